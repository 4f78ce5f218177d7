"""Acceptance of a scanner for thermometry: stability of an unheated phantom over ten minutes."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sinotherm.core.arrays import FloatArray
from sinotherm.core.record import figures_record, write_record
from sinotherm.core.scan import MetaValue, TemperatureMap
from sinotherm.errors import DataError
from sinotherm.evaluation.measured import measured
from sinotherm.evaluation.tables import command_line, print_row, table_cell
from sinotherm.pipelines.compose import merged
from sinotherm.pipelines.xml import Values

__all__ = ["LIMITS", "Stability", "run_stability", "stability"]

LIMITS: Final[Mapping[str, tuple[float | None, float | None]]] = {
    "duration_min": (10.0, None),
    "frames_without_reading_percent": (None, 5.0),
    "bias_degC": (-0.1, 0.1),
    "temporal_sd_degC": (None, 0.5),
    "residual_drift_degC_per_h": (-0.5, 0.5),
    "field_drift_degC_per_h": (-20.0, 20.0),
    "z_score_sd": (0.9, 1.1),
    "gradient_delay_samples": (None, 1.0),
    "streak_prone_coils": (None, 0.0),
}
"""Lowest and highest value of each figure. Bias and SD are a fraction of what hyperthermia asks for (0.5 °C)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stability:
    """Stability of a scan.

    Attributes
    ----------
    rows
        One a figure: name, value (``None``: not known), limits, passed (``None``: not judged, as nobody looked for it).
    times_s, mean_degc, field_degc
        float64 (frame,): course of the mean change after, and of the field before drift correction.
    sd_degc
        float32 (y, x): temporal SD of every voxel of the first slice; NaN where there is no reading.
    scores
        float32 (n,): all errors over their predicted uncertainty.
    """

    rows: Sequence[Mapping[str, Any]]
    times_s: FloatArray
    mean_degc: FloatArray
    field_degc: FloatArray
    sd_degc: FloatArray
    scores: FloatArray

    @property
    def passed(self) -> bool:
        """Whether every figure that is judged lies within its limits."""
        return all(row["passed"] is not False for row in self.rows)


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    if value is None or not math.isfinite(value):
        return False
    return (low is None or value >= low) and (high is None or value <= high)


def stability(maps: Sequence[TemperatureMap]) -> Stability:
    """Return the stability of the frames of one slice of an unheated phantom.

    Raises
    ------
    DataError
        Fewer than three frames with readings, no voxel that every frame reads, or a frame without a time stamp.
    """
    frames = [found for found in maps if np.isfinite(found.change_degc).any()]
    if len(frames) < 3:
        raise DataError(f"{len(frames)} frames with readings: a stability scan needs 3 and 10 minutes.")
    # Those before are the baseline.
    served = list(itertools.dropwhile(lambda found: found is not frames[0], maps))
    changes = np.stack([found.change_degc[0] for found in frames])
    everywhere = np.isfinite(changes).all(axis=0)
    if not everywhere.any():
        raise DataError("no voxel has a reading in every frame: the phantom moved, or the signal is too weak.")
    times = np.array([found.footprint[1] for found in frames])
    untimed = int((~np.isfinite([found.footprint for found in maps])).any(axis=1).sum())
    if untimed:
        raise DataError(
            f"{untimed} of {len(maps)} frames carry no time stamp: neither the duration nor a drift per hour can be "
            "judged; record the scan with acquisition_time_stamp."
        )
    inside = changes[:, everywhere].astype(np.float64)
    mean = inside.mean(axis=1)
    field = np.array([_first(found.meta.get("drift_coefficients_degC")) for found in frames])
    sd = np.where(everywhere, changes.std(axis=0, ddof=1), np.float32(np.nan))
    scores = np.concatenate([(found.change_degc[0] / found.sigma_degc[0])[everywhere] for found in frames])
    hours = times / 3600.0
    meta = frames[-1].meta
    # Images of another reconstruction do not say what was sought in their spokes, and a setting may leave it out.
    unsought = {"gradient_delay_samples", "streak_prone_coils"} - set(meta)
    values: dict[str, float | None] = {
        "duration_min": float(frames[-1].footprint[2] - maps[0].footprint[0]) / 60.0,
        "frames_without_reading_percent": 100.0 * (1.0 - len(frames) / len(served)),
        "bias_degC": float(mean.mean()),
        "temporal_sd_degC": float(np.median(sd[everywhere])),
        "residual_drift_degC_per_h": float(np.polyfit(hours, mean, 1)[0]),
        "field_drift_degC_per_h": float(np.polyfit(hours, field, 1)[0]) if np.isfinite(field).all() else None,
        "z_score_sd": float(scores.std()),
        "gradient_delay_samples": _largest_delay(meta),
        "streak_prone_coils": _streaky(meta),
    }
    rows = [
        {
            "figure": name,
            "value": value if value is None or math.isfinite(value) else None,
            "limit_low": LIMITS[name][0],
            "limit_high": LIMITS[name][1],
            "passed": None if name in unsought else _within(value, *LIMITS[name]),
        }
        for name, value in values.items()
    ]
    return Stability(rows=rows, times_s=times, mean_degc=mean, field_degc=field, sd_degc=sd, scores=scores)


def _first(value: Any) -> float:
    return float(value[0]) if isinstance(value, tuple) and value else math.nan


def _largest_delay(meta: Mapping[str, MetaValue]) -> float | None:
    """Return the largest part of the gradient delay, samples; ``None`` where it is not known.

    An estimate that fails leaves the spokes where they are: its zeros, without a mismatch, are no measurement.
    """
    delay = meta.get("gradient_delay_samples")
    found = meta.get("gradient_delay_source") == "given" or "gradient_delay_mismatch" in meta
    return max(abs(float(part)) for part in delay) if found and isinstance(delay, tuple) else None


def _streaky(meta: Mapping[str, MetaValue]) -> float | None:
    """Return how many coils were left out; ``None`` where none was looked for."""
    coils = meta.get("streak_prone_coils")
    return None if coils is None else float(len(coils)) if isinstance(coils, tuple) else 1.0


def run_stability(path: Path, *, values: Values, json: Path | None, report: Path | None) -> bool:
    """Print the stability of a scan with its limits, and write record and page; return whether it passed."""
    settings: Values = {"thermometry": {"phase_sign": "1"}}
    _, maps = measured(path, merged(settings, values))
    found = stability([one for one in maps if one.slice == maps[0].slice])
    columns = ["figure", "value", "limit_low", "limit_high", "passed"]
    print_row(columns)
    print_row(["---"] * len(columns))
    for row in found.rows:
        print_row([table_cell(row[name]) for name in columns])
    verdict = "passed" if found.passed else "NOT passed"
    print_row([f"{verdict}", "", "", "", ""])
    if report is not None:
        _page(found, report, f"Stability of {path.name}: {verdict}")
    if json is not None:
        write_record(json, figures_record(command_line(), list(found.rows)) | {"verdict": verdict})
    return found.passed


def _page(found: Stability, path: Path, title: str) -> None:
    """Write the one-page report, PDF or PNG by its suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.27, 11.69), layout="constrained")
    figure.suptitle(title)
    parts: Any = figure.subfigures(3, 1, height_ratios=(1.0, 1.2, 1.2))
    table, courses, pictures = parts
    axis = table.subplots()
    axis.set_axis_off()
    cells = [[table_cell(row[name]) for name in ("value", "limit_low", "limit_high", "passed")] for row in found.rows]
    axis.table(
        cells,
        rowLabels=[row["figure"] for row in found.rows],
        colLabels=["value", "lowest", "highest", "passed"],
        loc="center",
        colWidths=[0.15] * 4,
    )
    minutes = (found.times_s - found.times_s[0]) / 60.0
    left, right = courses.subplots(1, 2)
    left.plot(minutes, found.mean_degc)
    left.set(xlabel="time, min", ylabel="mean change after drift correction, °C")
    right.plot(minutes, found.field_degc)
    right.set(xlabel="time, min", ylabel="field drift at the centre, °C")
    left, right = pictures.subplots(1, 2)
    shown = left.imshow(found.sd_degc, vmin=0.0, vmax=1.0)
    left.set_title("temporal SD, °C")
    pictures.colorbar(shown, ax=left)
    right.hist(np.clip(found.scores[np.isfinite(found.scores)], -5, 5), bins=60, density=True)
    grid = np.linspace(-5, 5, 201)
    right.plot(grid, np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi))
    right.set_title("error over predicted uncertainty")
    figure.savefig(path)
