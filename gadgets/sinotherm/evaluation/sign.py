"""The receiver's phase sign: with the tissue's PRF coefficient from a heating with a probe in it, or from fat."""

import csv
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np

from sinotherm.core.arrays import FloatArray, MaskArray
from sinotherm.core.physics import PRF_COEFFICIENT
from sinotherm.core.record import figures_record, write_record
from sinotherm.core.scan import FrameImage, TemperatureMap
from sinotherm.errors import DataError
from sinotherm.evaluation.measured import first_readout_s, measured, reconstructed
from sinotherm.evaluation.tables import command_line, print_row, table_cell
from sinotherm.pipelines.compose import merged
from sinotherm.pipelines.xml import Values
from sinotherm.thermometry.fat import fat_phase
from sinotherm.thermometry.monitor import frequency_and_echo_times
from sinotherm.thermometry.phase import complex_product
from sinotherm.thermometry.regions import region_mask
from sinotherm.thermometry.settings import ThermometrySettings

__all__ = ["FatSign", "SignFit", "fit_sign", "read_probe", "run_fat_sign", "run_sign", "sign_by_fat"]

logger = logging.getLogger(__name__)

_DAY_S: Final = 86_400.0
COEFFICIENT_LIMITS: Final = (-0.012e-6, -0.008e-6)
"""α of water-rich phantoms and tissue, per °C; outside of it the probe lies elsewhere or the TE is wrong."""
CORRELATION_LIMIT: Final = 0.95
LEAST_HEATING_DEGC: Final = 2.0
LEAST_SEPARATION_RAD: Final = 0.6
"""Phase by which the two signs must differ in what fat does between the echoes."""
CLEAR_SHARE: Final = 0.3
"""Largest distance from the nearer sign's phase, of the distances from both together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignFit:
    """What the probe says about the scanner.

    Attributes
    ----------
    phase_sign
        +1 where heating lowers the phase.
    prf_coefficient, prf_coefficient_se
        α and its standard error, per °C.
    correlation
        Of probe and map.
    heating_degc
        Range of the probe during the scan.
    probe_degc, map_degc
        float64 (frame,): change by probe and by a map of α = −0.01 ppm/°C and sign +1, of the frames that were used.
    """

    phase_sign: int
    prf_coefficient: float
    prf_coefficient_se: float
    correlation: float
    heating_degc: float
    probe_degc: FloatArray
    map_degc: FloatArray

    @property
    def stated_sign(self) -> int | None:
        """The sign; ``None`` where probe and map do not tell it: of noise, either would be read as an answer."""
        told = self.heating_degc >= LEAST_HEATING_DEGC and abs(self.correlation) >= CORRELATION_LIMIT
        return self.phase_sign if told else None

    @property
    def problems(self) -> list[str]:
        """Why the fit is not to be trusted; empty if it is."""
        low, high = COEFFICIENT_LIMITS
        found = []
        if self.heating_degc < LEAST_HEATING_DEGC:
            found.append(f"heating of {self.heating_degc:.1f} degC: {LEAST_HEATING_DEGC:g} degC are needed")
        if abs(self.correlation) < CORRELATION_LIMIT:
            found.append(f"correlation {self.correlation:.3f} of probe and map: {CORRELATION_LIMIT:g} is needed")
        if not low <= self.prf_coefficient <= high:
            found.append(
                f"alpha {1e6 * self.prf_coefficient:.4f} ppm/degC lies outside {1e6 * low:g} to {1e6 * high:g}: "
                "check the probe's place and the TE"
            )
        return found


def read_probe(path: Path, what: str = "probe") -> tuple[FloatArray, FloatArray]:
    """Return times (s since the file's first readout) and temperatures (°C) of a probe.

    Parameters
    ----------
    path
        CSV with a heading; columns ``time_s`` and ``temperature_degC``.
    what
        What it is to the user, for the errors.

    Raises
    ------
    DataError
        The file is missing, or lacks a column or finite numbers, or its times do not rise.
    """
    needed = "a CSV with the columns time_s and temperature_degC, comma between, is needed"
    try:
        # A spreadsheet may put a byte order mark in front.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            heading = reader.fieldnames or []
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{what} {path}: {error}; {needed}.") from error
    missing = [name for name in ("time_s", "temperature_degC") if name not in heading]
    if missing:
        raise DataError(f"{what} {path}: no column {' and '.join(missing)} in its first line {heading}; {needed}.")
    try:
        times, values = (np.array([float(row[name]) for row in rows]) for name in ("time_s", "temperature_degC"))
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} {path}: a value of time_s or temperature_degC is no number: {error}.") from error
    if not (np.isfinite(times).all() and np.isfinite(values).all()):
        raise DataError(f"{what} {path}: time_s and temperature_degC must be finite in every row.")
    if len(times) < 2 or not (np.diff(times) > 0).all():
        raise DataError(f"{what} {path}: two rows or more with rising time_s are needed.")
    return times, values


def fit_sign(
    maps: Sequence[TemperatureMap],
    mask: FloatArray,
    times_s: FloatArray,
    probe_degc: FloatArray,
    *,
    first_s: float = math.nan,
) -> SignFit:
    """Fit sign and α to the frames that lie within the probe's log.

    Those count that read every voxel of the region that most of them read.

    Parameters
    ----------
    maps
        Measured with α = −0.01 ppm/°C and phase_sign = +1.
    mask
        bool (slice, y, x): where the probe lies.
    times_s, probe_degc
        The probe's course, s since ``first_s``.
    first_s
        Time of the file's first readout, s since midnight; NaN: the first spoke of the first frame.

    Raises
    ------
    DataError
        Fewer than three frames with readings of the same voxels, or fewer than three of them within the log.
    """
    start = maps[0].footprint[0]
    if math.isfinite(first_s):
        # Midnight may lie between the two.
        start -= (start - first_s) % _DAY_S
    inside = np.array([found.change_degc[mask] for found in maps], dtype=np.float64)
    read = np.isfinite(inside)
    some = read.any(axis=1)
    # The mean must be of the same voxels in every frame: the hottest of them may lose their readings first.
    # Of the voxels that most frames read, as many as leave the most readings: one at the rim shall cost no frame.
    counts = read.sum(axis=0)
    most = counts[2 * counts > some.sum()]
    choices = [counts >= count for count in np.unique(most)] or [np.zeros(len(counts), dtype=bool)]
    voxels = max(choices, key=lambda these: int(these.sum() * read[:, these].all(axis=1).sum()))
    used = read[:, voxels].all(axis=1) & voxels.any()
    if used.sum() < 3:
        count = f"{some.sum()} frames have a reading at the probe"
        same = f", {used.sum()} of them in all voxels that most of them read" if some.sum() >= 3 else ""
        raise DataError(f"{count}{same}, 3 are needed: draw the region in tissue that has signal.")
    if not used[some].all():
        logger.warning(
            "%d of %d frames lack a voxel of the region and are left out", *((some & ~used).sum(), some.sum())
        )
    when = np.array([found.footprint[1] - start for found in maps])[used]
    measured_degc = inside[np.ix_(used, voxels)].mean(axis=1)
    # Outside its log, nobody knows the probe's temperature: its last value held on would change alpha.
    truth = np.interp(when, times_s, probe_degc, left=math.nan, right=math.nan)
    known = np.isfinite(truth)
    if not known.all():
        logged = f"the probe's log covers {times_s[0]:g} to {times_s[-1]:g} s"
        if known.sum() < 3:
            span = f"{when[0]:g} to {when[-1]:g} s after the first readout"
            raise DataError(
                f"{logged}, and the frames with a reading at the probe lie at {span}: {known.sum()} are within it, "
                "3 are needed; let time_s count from the first readout, and record the scan with time stamps."
            )
        logger.warning("%s: %d of %d frames lie outside and are left out", logged, (~known).sum(), len(known))
    truth, measured_degc = truth[known], measured_degc[known]
    x, y = truth - truth.mean(), measured_degc - measured_degc.mean()
    power = float(x @ x)
    slope = float(x @ y) / power if power > 0.0 else math.nan
    spread = math.sqrt(float(np.sum((y - slope * x) ** 2)) / max(1, len(x) - 2) / power) if power > 0.0 else math.nan
    both = math.sqrt(power * float(y @ y))
    return SignFit(
        phase_sign=1 if slope >= 0.0 else -1,
        prf_coefficient=abs(slope) * PRF_COEFFICIENT,
        prf_coefficient_se=spread * abs(PRF_COEFFICIENT),
        correlation=float(x @ y) / both if both > 0.0 else 0.0,
        heating_degc=float(np.ptp(truth)),
        probe_degc=truth - truth[0],
        map_degc=measured_degc - measured_degc[0],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FatSign:
    """What fat says about the scanner's phase sign.

    Attributes
    ----------
    phase_sign
        +1 where a frequency that rises makes the phase grow: heating then lowers it.
    offset_rad
        Phase that fat gained on water between the echoes, in (−π, π].
    expected_rad
        The same as phase_sign +1 would have it; −1 is its negative.
    n_frames
        Frames that were summed.
    """

    phase_sign: int
    offset_rad: float
    expected_rad: float
    n_frames: int

    @property
    def problems(self) -> list[str]:
        """Why the sign is not to be trusted; empty if it is."""
        separation = _distance(self.expected_rad, -self.expected_rad)
        near, far = sorted(_distance(self.offset_rad, sign * self.expected_rad) for sign in (1, -1))
        found = []
        if separation < LEAST_SEPARATION_RAD:
            found.append(
                f"both signs give fat nearly the same phase ({separation:.2f} rad apart): "
                "take echoes further from a multiple of half the period of fat against water"
            )
        elif near > CLEAR_SHARE * (near + far):
            found.append(
                f"fat gained {self.offset_rad:.2f} rad, which fits neither {self.expected_rad:.2f} nor "
                f"{-self.expected_rad:.2f}: draw the regions side by side, in pure water and pure fat"
            )
        return found


def _distance(one: float, other: float) -> float:
    """Return the angle between two phases, rad, 0 to π."""
    return abs(math.remainder(one - other, 2.0 * math.pi))


def sign_by_fat(
    images: Sequence[FrameImage],
    *,
    water: MaskArray,
    fat: MaskArray,
    larmor_hz: float,
    echo_times_s: Sequence[float],
) -> FatSign:
    """Return the sign by the phase that fat gains on water between the first two echoes.

    Fat's protons precess 3.4 ppm slower than water's. What the field and the coils do to both alike
    cancels; the regions lie side by side, so that the field is the same.

    Parameters
    ----------
    images
        Two echoes of one slice or more of every frame.
    water, fat
        bool (slice, y, x).

    Raises
    ------
    DataError
        No frame has both echoes, a TE of theirs is not stated or 0, or a region holds no signal.
    """
    echoes = {(image.number, image.echo): image for image in images if image.slice == images[0].slice}
    pairs = [
        (first, echoes[number, 1]) for (number, echo), first in echoes.items() if not echo and (number, 1) in echoes
    ]
    if not pairs:
        raise DataError("the sign follows from fat in two echoes: the scan has one.")
    if len(echo_times_s) < 2 or not min(echo_times_s[:2]) > 0.0:
        stated = ", ".join(f"{time_s:g}" for time_s in echo_times_s)
        raise DataError(
            f"the first two echoes need a TE above 0, header or settings state {stated} s: "
            "give thermometry.echo_times_s, one for each echo."
        )
    products = [complex_product(second.data, first.data) for first, second in pairs]
    gained = {
        name: complex(sum(product[mask].sum() for product in products)) for name, mask in (("w", water), ("f", fat))
    }
    if not all(abs(value) > 0.0 for value in gained.values()):
        raise DataError("the water or the fat region holds no signal: draw it in tissue.")
    offset = float(np.angle(gained["f"] * np.conj(gained["w"])))
    expected = fat_phase(larmor_hz=larmor_hz, echo_time_s=echo_times_s[1] - echo_times_s[0], phase_sign=1)
    return FatSign(
        phase_sign=1 if _distance(offset, expected) <= _distance(offset, -expected) else -1,
        offset_rad=offset,
        expected_rad=expected,
        n_frames=len(pairs),
    )


def run_fat_sign(path: Path, *, water: str, fat: str, values: Values, json: Path | None) -> bool:
    """Print the sign by fat and write the record; return whether to trust it.

    Raises
    ------
    HeaderError
        Neither header nor settings state f0 and TE.
    """
    scan, images = reconstructed(path, values)
    settings = ThermometrySettings.parse("thermometry", values.get("thermometry", {}))
    larmor_hz, echo_times_s = frequency_and_echo_times(scan, settings)
    shape = images[0].data.shape
    masks = {
        name: region_mask(text, (shape[1], shape[2], shape[3]), scan.pixel_of(shape, images[0].fov_m))
        for name, text in (("water", water), ("fat", fat))
    }
    found = sign_by_fat(images, **masks, larmor_hz=larmor_hz, echo_times_s=echo_times_s)
    figures: dict[str, Any] = {
        "phase_sign": None if found.problems else found.phase_sign,
        "offset_rad": found.offset_rad,
        "expected_rad": found.expected_rad,
        "n_frames": found.n_frames,
    }
    return _reported(figures, found.problems, f"thermometry.phase_sign={found.phase_sign}", json)


def _reported(figures: dict[str, Any], problems: Sequence[str], settings: str, json: Path | None) -> bool:
    """Print figures, verdict and the settings that they mean, and write the record; return whether it passed."""
    print_row(["figure", "value"])
    print_row(["---", "---"])
    for name, value in figures.items():
        print_row([name, table_cell(value)])
    verdict = "; ".join(problems) or "passed"
    print_row(["verdict", verdict])
    if not problems:
        print_row(["settings", settings])
    if json is not None:
        write_record(json, figures_record(command_line(), figures) | {"verdict": verdict})
    return not problems


def run_sign(path: Path, *, probe: Path, region: str, values: Values, json: Path | None, report: Path | None) -> bool:
    """Print sign and α with the settings that they mean, and write record and page; return whether to trust them."""
    times_s, probe_degc = read_probe(probe)
    fixed: Values = {"thermometry": {"phase_sign": "1", "prf_coefficient": str(PRF_COEFFICIENT)}}
    scan, maps = measured(path, merged(values, fixed))
    maps = [found for found in maps if found.slice == maps[0].slice]
    shape = maps[0].change_degc.shape
    mask = region_mask(region, (shape[0], shape[1], shape[2]), scan.pixel_of(shape, maps[0].fov_m))
    first_s = first_readout_s(path, values)
    found = fit_sign(maps, mask, times_s, probe_degc, first_s=first_s)
    figures: dict[str, Any] = {
        "phase_sign": found.stated_sign,
        "prf_coefficient_ppm_per_degC": 1e6 * found.prf_coefficient,
        "prf_coefficient_se_ppm_per_degC": 1e6 * found.prf_coefficient_se,
        "correlation": found.correlation,
        "heating_degC": found.heating_degc,
        "n_frames": len(found.map_degc),
    }
    figures = {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in figures.items()
    }
    settings = f"thermometry.phase_sign={found.phase_sign} thermometry.prf_coefficient={found.prf_coefficient:.4g}"
    if report is not None:
        verdict = "; ".join(found.problems) or "passed"
        _page(found, report, f"Phase sign of {path.name}: {verdict}")
    sound = _reported(figures, found.problems, settings, json)
    zero_s = maps[0].footprint[0] if math.isnan(first_s) else first_s
    if math.isfinite(zero_s):
        clock = (datetime.min + timedelta(seconds=zero_s)).time().isoformat("milliseconds")
        print_row(["probe", f"time_s = 0 is {clock} by the scan's time stamps"])
    return sound


def _page(found: SignFit, path: Path, title: str) -> None:
    """Write the one-page report, PDF or PNG by its suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.27, 8.0), layout="constrained")
    figure.suptitle(title, wrap=True)
    axis = figure.subplots()
    axis.plot(found.probe_degc, found.map_degc, "o")
    span = np.array([found.probe_degc.min(), found.probe_degc.max()])
    slope = found.phase_sign * found.prf_coefficient / PRF_COEFFICIENT
    sign = "–" if found.stated_sign is None else f"{found.stated_sign:+d}"
    axis.plot(span, slope * span, label=f"alpha {1e6 * found.prf_coefficient:.4f} ppm/°C, sign {sign}")
    axis.set(
        xlabel=f"probe, change in °C ({len(found.map_degc)} frames)",
        ylabel="map with alpha −0.01 ppm/°C and sign +1, change in °C",
    )
    axis.legend()
    figure.savefig(path)
