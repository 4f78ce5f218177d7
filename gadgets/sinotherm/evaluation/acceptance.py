"""Acceptance of a scanner from one scan: gradient delays, coil noise, streak-prone coils, each with its limit."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from sinotherm.core.arrays import ComplexArray
from sinotherm.core.record import figures_record, write_record
from sinotherm.core.scan import ScanHeader, Spoke
from sinotherm.errors import SpokeError
from sinotherm.evaluation.tables import command_line, print_row, table_cell
from sinotherm.frames.calibration import stacked
from sinotherm.frames.compression import streak_ratios
from sinotherm.frames.delay import GradientDelay, opposed_delay, opposed_pairs, ring_delay
from sinotherm.frames.header import scan_header
from sinotherm.frames.whitening import is_noise
from sinotherm.stages import spokes as spokes_stage
from sinotherm.stages import whitening
from sinotherm.wire.file import MrdFile
from sinotherm.wire.messages import Readout

__all__ = ["coil_rows", "delay_rows", "run_coils", "run_delay"]

DELAY_LIMIT: Final = 1.0
"""Samples of the oversampled readout: half a pixel. More is worth a service call, though it is corrected."""
STABILITY_LIMIT: Final = 0.1
"""Samples between parts of the scan."""
CORRELATION_LIMIT: Final = 0.5
"""Magnitude of the noise correlation of two coils; neighbours that are not decoupled have more."""
NOISE_LIMIT: Final = 2.0
"""Noise SD of a coil relative to the median: more, or less than its inverse, is a broken chain."""
STREAK_LIMIT: Final = 2.0
"""Streak ratio relative to the median."""


def delay_rows(spokes: Sequence[Spoke]) -> list[dict[str, Any]]:
    """Return the gradient delay of the scan and of its parts beyond what its trajectory states, one row each.

    Parameters
    ----------
    spokes
        Of one slice, partition and echo, uncorrected, in order of acquisition.

    Raises
    ------
    SpokeError
        The spokes do not cross.
    """
    data, angles = stacked(spokes)
    shifts = np.array([spoke.shift for spoke in spokes])
    sampling, n = spokes[0].sampling, len(spokes)
    parts = {
        "all": slice(None),
        "even spokes": slice(0, None, 2),
        "odd spokes": slice(1, None, 2),
        "first half": slice(0, n // 2),
        "second half": slice(n // 2, None),
    }
    found = {
        name: ring_delay(data[:, part], angles[part], sampling, shifts=shifts[part]) for name, part in parts.items()
    }
    whole = found["all"]
    rows = [_delay_row(name, "ring", n if name == "all" else n // 2, one, whole) for name, one in found.items()]
    if len(opposed_pairs(angles)) >= 3:
        opposed = opposed_delay(data, angles, sampling, shifts=shifts)
        rows.append(_delay_row("all", "opposed", n, opposed, whole))
    return rows


def _delay_row(name: str, method: str, n_spokes: int, one: GradientDelay, whole: GradientDelay) -> dict[str, Any]:
    largest = max(abs(one.x), abs(one.y), abs(one.xy))
    apart = max(abs(one.x - whole.x), abs(one.y - whole.y), abs(one.xy - whole.xy))
    return {
        "part": name,
        "method": method,
        "n_spokes": n_spokes,
        "x_samples": one.x,
        "y_samples": one.y,
        "xy_samples": one.xy,
        "mismatch": one.mismatch,
        "deviation_samples": apart,
        "limit_samples": DELAY_LIMIT,
        "limit_deviation_samples": STABILITY_LIMIT,
        # The two methods neglect different things; their difference is shown, not judged.
        "passed": bool(largest <= DELAY_LIMIT and (apart <= STABILITY_LIMIT or method == "opposed")),
    }


def coil_rows(noise: ComplexArray, spokes: Sequence[Spoke], matrix: int) -> list[dict[str, Any]]:
    """Return noise level, largest noise correlation and streak ratio of every coil, one row each.

    Parameters
    ----------
    noise
        Samples of the scan's noise readouts, complex64 (coil, sample); without any, those figures are ``None``
        and no coil passes.
    spokes
        Of one slice, partition and echo, not whitened: whitening mixes the coils, and would lay the streaks of
        one on others. A coil of zeros has no streak ratio and does not pass.
    matrix
        Width of the image, pixels.
    """
    data, angles = stacked(spokes)
    ratios = streak_ratios(data, angles, spokes[0].sampling, matrix)
    signal = np.any(data, axis=(1, 2))
    ratios = ratios / (float(np.median(ratios[signal])) if signal.any() else 1.0)
    n_coils = len(data)
    level, correlation = np.ones(n_coils), np.zeros((n_coils, n_coils))
    if noise.size:
        covariance = noise @ noise.conj().T / noise.shape[1]
        level = np.sqrt(np.diag(covariance).real.astype(np.float64))
        floor = np.maximum(level, 1e-30)
        correlation = np.abs(covariance) / np.outer(floor, floor) * (1.0 - np.eye(n_coils))
        level = level / np.median(floor)
    rows = []
    for coil in range(n_coils):
        row: dict[str, Any] = {
            "coil": coil,
            "noise_relative": None,
            "largest_correlation": None,
            "correlated_with": None,
            "streak_relative": float(ratios[coil]) if signal[coil] else None,
            "limit_noise_relative": NOISE_LIMIT,
            "limit_correlation": CORRELATION_LIMIT,
            "limit_streak_relative": STREAK_LIMIT,
        }
        passed = noise.size and signal[coil] and ratios[coil] <= STREAK_LIMIT
        if noise.size:
            other = int(np.argmax(correlation[coil]))
            row["noise_relative"] = float(level[coil])
            row["largest_correlation"] = float(correlation[coil, other])
            row["correlated_with"] = other if n_coils > 1 else None
            passed &= 1.0 / NOISE_LIMIT <= level[coil] <= NOISE_LIMIT and correlation[coil, other] <= CORRELATION_LIMIT
        rows.append(row | {"passed": bool(passed)})
    return rows


def _scan(path: Path, n_spokes: int, *, whitened: bool) -> tuple[ScanHeader, ComplexArray, list[Spoke]]:
    """Return header, noise (coil, sample) and the first spokes of slice 0, the central partition and echo 0."""
    noise: list[ComplexArray] = []
    with MrdFile(path) as file:
        scan = scan_header(file.header_xml)

        def readouts() -> Iterator[Readout]:
            for readout in file.readouts():
                if is_noise(readout.header):
                    noise.append(readout.data)
                yield readout

        mode = whitening.Settings(mode="auto" if whitened else "off")
        items = whitening.stage(readouts(), scan, mode)
        made = (item for item in spokes_stage.stage(items, scan, spokes_stage.Settings()) if isinstance(item, Spoke))
        centre = scan.n_partitions // 2
        wanted = (spoke for spoke in made if (spoke.slice, spoke.echo, spoke.partition) == (0, 0, centre))
        spokes = list(islice(wanted, n_spokes))
    if not spokes:
        raise SpokeError(f"{path}: no spokes of slice 0, echo 0 and partition {centre}.")
    return scan, np.concatenate(noise, axis=1) if noise else np.empty((0, 0), np.complex64), spokes


def _report(rows: Sequence[Mapping[str, Any]], json: Path | None) -> bool:
    columns = [name for name in rows[0] if not name.startswith("limit")]
    print_row(columns)
    print_row(["---"] * len(columns))
    for row in rows:
        print_row([table_cell(row[name]) for name in columns])
    limits = ", ".join(f"{name[6:]} {value:g}" for name, value in rows[0].items() if name.startswith("limit"))
    passed = all(row["passed"] for row in rows)
    sys.stdout.write(f"limits: {limits}\n{'passed' if passed else 'NOT passed'}\n")
    if json is not None:
        write_record(json, figures_record(command_line(), [dict(row) for row in rows]))
    return passed


def run_delay(path: Path, *, n_spokes: int, json: Path | None) -> bool:
    """Print the gradient delays of a scan; return whether they are within the limits."""
    _, _, spokes = _scan(path, n_spokes, whitened=True)
    return _report(delay_rows(spokes), json)


def run_coils(path: Path, *, n_spokes: int, json: Path | None) -> bool:
    """Print the coils' noise and streaks of a scan; return whether they are within the limits."""
    scan, noise, spokes = _scan(path, n_spokes, whitened=False)
    passed = _report(coil_rows(noise, spokes, max(scan.recon.matrix[:2])), json)
    if not noise.size:
        sys.stdout.write("no noise readouts in the scan: noise and its correlation could not be judged\n")
    empty = [str(coil) for coil in range(len(spokes[0].data)) if not any(spoke.data[coil].any() for spoke in spokes)]
    if empty:
        sys.stdout.write(f"no signal in coil {', '.join(empty)}: zeros only\n")
    return passed
