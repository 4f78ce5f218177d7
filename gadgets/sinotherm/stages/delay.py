"""Stage: gradient delay, estimated from the first frame and frozen for the scan."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from pydantic import model_validator

from sinotherm.core.scan import Estimates, Item, MetaValue, ScanHeader, Spoke
from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import SettingsError, SpokeError
from sinotherm.frames.calibration import first_frame, released, stacked, stored_estimate
from sinotherm.frames.delay import GradientDelay, opposed_delay, ring_delay

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


_RESOLUTION: Final = 0.02
"""Samples."""
_MOST_MISMATCH: Final = {"ring": 0.6, "opposed": 0.8}
"""Mismatch above which an estimate says nothing; noise alone has 0.77 and more by ring, 0.87 by opposed spokes."""


class Settings(StageSettings):
    """Gradient delay."""

    mode: Literal["auto", "given", "off"] = setting(
        "auto", "Estimate the gradient delay from the first frame, take the given one, or leave it."
    )
    given: tuple[float, ...] = setting(
        (),
        "Delays x, y[, xy] (one value: isotropic) beyond the trajectory's, positive = gradient late.",
        unit="samples",
        max_length=3,
    )
    method: Literal["ring", "opposed"] = setting(
        "ring", "Crossings of the spokes (any schedule), or phase slope between opposed spokes."
    )
    model: Literal["isotropic", "anisotropic"] = setting("anisotropic", "One delay, or an ellipse of delays x, y, xy.")
    spokes: int = setting(
        0,
        "Spokes to estimate from; 0: the first frame, as frames.spokes or frames.window says, else the header's.",
        ge=0,
    )
    limit: float = setting(
        3.5,
        "A larger estimate is taken for a failure, and spokes stay where their trajectory states them.",
        unit="samples",
        gt=0.0,
        le=5.0,
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.given and self.mode != "given":
            raise ValueError("delay.given is taken with delay.mode = given only")
        return self


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Add to ``Spoke.shift`` where the late gradients have moved each spoke from where its trajectory states it.

    With ``auto`` the first frame is held back until its last spoke, so that it gets the same delay as
    all others (`sinotherm.frames.calibration`); with a stored baseline it gets the baseline's, at once. Each
    echo has its own delay: readouts of alternating polarity are late in opposite directions.
    """
    if settings.mode == "off":
        yield from items
        return
    delays: Mapping[int, GradientDelay]
    held: list[Item] = []
    if settings.mode == "given":
        delays = {0: _given(settings.given)}
    elif not (delays := _stored(scan)):
        held, spokes = first_frame(items, scan, settings.spokes)
        delays = _estimated(spokes, settings)
    estimates = {echo: _as_estimate(delay) for echo, delay in delays.items() if settings.mode == "auto"}
    notes = {echo: _note(delay, settings) for echo, delay in delays.items()}
    for echo, note in notes.items():
        logger.info("gradient delay of echo %d: %s", echo, note)
    noted: dict[int, dict[str, Any]] = {}
    before: tuple[Any, Any] = (None, None)
    for item in released(held, items):
        if isinstance(item, Spoke) and delays:
            echo = item.echo if item.echo in delays else min(delays)
            if item.calibration is not before[0] or item.estimates is not before[1]:
                before = item.calibration, item.estimates
                noted = {
                    number: {
                        "calibration": {**item.calibration, **note},
                        "estimates": {**item.estimates, **estimates.get(number, {})},
                    }
                    for number, note in notes.items()
                }
            late = delays[echo].shift(item.angle_rad, item.sampling)
            shift = (item.shift[0] + late[0], item.shift[1] + late[1])
            yield item.changed(shift=shift, **noted[echo])
        else:
            yield item


def _as_estimate(delay: GradientDelay) -> Estimates:
    return {"gradient_delay": np.array([delay.x, delay.y, delay.xy, delay.mismatch], dtype=np.float64)}


def _stored(scan: ScanHeader) -> dict[int, GradientDelay]:
    """Return the delays of the stored baseline's scan by echo, which hold for all slices; empty without one."""
    found = {echo: stored_estimate(scan, "gradient_delay", echo=echo) for _, echo in scan.estimates}
    return {
        echo: GradientDelay(
            x=float(values[0]),
            y=float(values[1]),
            xy=float(values[2]),
            mismatch=float(values[3]),
            # Only estimates are stored: one without a mismatch was refused.
            refused="" if math.isfinite(values[3]) else "no estimate in the scan of the stored baseline",
        )
        for echo, values in sorted(found.items())
        if values is not None
    }


def _given(values: tuple[float, ...]) -> GradientDelay:
    if not values:
        raise SettingsError("delay.mode = given needs delay.given [samples]: x, y[, xy] or one isotropic value.")
    x, y, xy = (values[0], values[0], 0.0) if len(values) == 1 else (*values, 0.0)[:3]
    return GradientDelay(x=x, y=y, xy=xy)


def _estimated(spokes: Sequence[Spoke], settings: Settings) -> dict[int, GradientDelay]:
    """Return the delay per echo, from the slice and partition with the strongest signal."""
    delays: dict[int, GradientDelay] = {}
    for echo in sorted({spoke.echo for spoke in spokes}):
        planes: dict[tuple[int, int], list[Spoke]] = {}
        for spoke in spokes:
            if spoke.echo == echo:
                planes.setdefault((spoke.slice, spoke.partition), []).append(spoke)
        plane = max(planes.values(), key=lambda found: sum(float(np.vdot(s.data, s.data).real) for s in found))
        data, angles = stacked(plane)
        shifts = np.array([spoke.shift for spoke in plane])
        estimate = ring_delay if settings.method == "ring" else opposed_delay
        try:
            delay = estimate(data, angles, plane[0].sampling, model=settings.model, shifts=shifts)
        except SpokeError as error:
            logger.warning("no gradient delay applied: %s", error)
            delay = GradientDelay(x=0.0, y=0.0, refused=f"no estimate: {error}")
        found = f"x {delay.x:.2f}, y {delay.y:.2f}, xy {delay.xy:.2f} samples"
        if delay.mismatch > _MOST_MISMATCH[settings.method]:
            logger.warning(
                "no gradient delay applied: with the estimate %s spokes still differ by %.2f of their signal, the "
                "bound is %g: the first frame holds little more than noise; begin the scan with signal, or set "
                "delay.mode = given or off",
                *(found, delay.mismatch, _MOST_MISMATCH[settings.method]),
            )
            delay = GradientDelay(x=0.0, y=0.0, refused=f"{found}: spokes still differ by {delay.mismatch:.2f}")
        if max(abs(delay.x), abs(delay.y), abs(delay.xy)) > settings.limit:
            logger.warning(
                "no gradient delay applied: the estimate %s is above delay.limit = %g", found, settings.limit
            )
            delay = GradientDelay(x=0.0, y=0.0, refused=f"{found}: above delay.limit = {settings.limit:g}")
        delays[echo] = _simplified(delay)
    return delays


def _simplified(delay: GradientDelay) -> GradientDelay:
    """Take differences that the estimate cannot tell from none for none.

    Back-projection follows a delay along the spoke for nothing, one across it at a price.
    """
    x, y, xy = delay.x, delay.y, delay.xy
    if max(abs(x - y), abs(xy)) < _RESOLUTION:
        x = y = (x + y) / 2.0
        xy = 0.0
    if max(abs(x), abs(y), abs(xy)) < _RESOLUTION:
        x = y = xy = 0.0
    return dataclasses.replace(delay, x=x, y=y, xy=xy)


def _note(delay: GradientDelay, settings: Settings) -> dict[str, MetaValue]:
    note: dict[str, MetaValue] = {
        "gradient_delay_samples": (round(delay.x, 4), round(delay.y, 4), round(delay.xy, 4)),
        "gradient_delay_source": settings.mode if settings.mode == "given" else settings.method,
    }
    if not np.isnan(delay.mismatch):
        note["gradient_delay_mismatch"] = round(delay.mismatch, 4)
    if delay.refused:
        note["gradient_delay_refused"] = delay.refused
    return note
