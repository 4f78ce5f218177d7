"""Thermal dose: cumulative equivalent minutes at 43 °C, exactly integrated between frames."""

import math
from typing import Any, Final

import numpy as np

from sinotherm.core.arrays import FloatArray, MaskArray
from sinotherm.core.physics import BREAKPOINT_DEGC

__all__ = ["CAP_DEGC", "DoseIntegrator", "cem43"]

CAP_DEGC: Final = 85.0
"""Temperature at which the exponent is capped, °C: the end of the ablation window."""

_ABOVE: Final = math.log(2.0)
_BELOW: Final = math.log(4.0)
_FLAT_DEGC: Final = 1e-6


def _antiderivative(excess: FloatArray) -> FloatArray:
    """Return ∫₀^y R^(−u) du with R = 0.5 above and 0.25 below zero; exact near zero through expm1."""
    rate = np.where(excess >= 0.0, _ABOVE, _BELOW)
    return np.expm1(rate * excess) / rate


def cem43(start_degc: FloatArray | float, end_degc: FloatArray | float, duration_s: FloatArray | float) -> FloatArray:
    """Return the dose of an interval over which the temperature runs linearly, float64, minutes.

    CEM43 = ∫ R^(43 − T) dt with R = 0.5 at and above 43 °C and 0.25 below, in closed form: with
    y = T − 43 and G the antiderivative of R^(−y), it is duration · (G(y₁) − G(y₀)) / (y₁ − y₀), which
    also holds where the course crosses 43 °C. Temperatures above `CAP_DEGC` count as `CAP_DEGC`.

    Parameters
    ----------
    start_degc, end_degc
        Temperatures at the ends of the interval, °C, of any one shape.
    duration_s
        Length of the interval, s.

    References
    ----------
    Sapareto and Dewey 1984, 10.1016/0360-3016(84)90379-1.
    """
    y0 = np.minimum(np.asarray(start_degc, dtype=np.float64), CAP_DEGC) - BREAKPOINT_DEGC
    y1 = np.minimum(np.asarray(end_degc, dtype=np.float64), CAP_DEGC) - BREAKPOINT_DEGC
    run = y1 - y0
    middle = 0.5 * (y0 + y1)
    flat = np.abs(run) < _FLAT_DEGC
    slope = (_antiderivative(y1) - _antiderivative(y0)) / np.where(flat, 1.0, run)
    level = np.exp(np.where(middle >= 0.0, _ABOVE, _BELOW) * middle)
    return np.where(flat, level, slope) * (np.asarray(duration_s, dtype=np.float64) / 60.0)


class DoseIntegrator:
    """Dose of every voxel since it was reset.

    Gap rule: over up to ``max_gap_frames`` frames without a valid reading the temperature is
    interpolated linearly between the valid readings on either side; a longer gap, and time that stands
    still or runs backwards, adds nothing, and the voxel's dose is a lower bound from then on.

    Parameters
    ----------
    temperature_degc
        float (…): temperatures at the start (body temperature before heating), °C.
    time_s
        Time of the start, s.
    max_gap_frames
        Longest gap that is interpolated, frames.
    minutes
        float (…): dose at the start, min; 0 by default.
    lower_bound
        Whether there may have been dose before.

    Attributes
    ----------
    minutes
        float64 (…): dose, min.
    lower_bound, read
        bool (…): what the dose is at least; voxels that have had a reading.
    last_degc, last_s
        float64 (…): last reading, °C, and its time, s; before the first one those of the start.
    """

    def __init__(
        self,
        temperature_degc: FloatArray,
        time_s: float,
        *,
        max_gap_frames: int,
        minutes: FloatArray | float = 0.0,
        lower_bound: bool = False,
    ) -> None:
        start = np.array(temperature_degc, dtype=np.float64)
        self.last_degc: np.ndarray[Any, np.dtype[np.float64]] = start
        self.last_s: np.ndarray[Any, np.dtype[np.float64]] = np.full(start.shape, time_s)
        self._missing = np.zeros(start.shape, dtype=np.int32)
        self.max_gap_frames = max_gap_frames
        self.minutes: np.ndarray[Any, np.dtype[np.float64]] = np.full(start.shape, minutes)
        self.lower_bound: MaskArray = np.full(start.shape, lower_bound)
        self.read: MaskArray = np.zeros(start.shape, dtype=bool)

    def update(self, temperature_degc: FloatArray, time_s: float, *, longest_s: float = math.inf) -> None:
        """Add the interval up to this frame.

        Parameters
        ----------
        temperature_degc
            float (…), °C; NaN = no valid reading.
        time_s
            Time of the frame, s; NaN, and the frame is a gap.
        longest_s
            Longest interval that is interpolated, whatever has come in it.
        """
        valid = np.isfinite(temperature_degc) & math.isfinite(time_s)
        interval = time_s - self.last_s
        # The start may be a reading's own time; two readings of one time are a clock that stands still.
        forward = (interval > 0.0) | ((interval == 0.0) & ~self.read)
        use = valid & (self._missing <= self.max_gap_frames) & forward & (interval <= longest_s)
        self.minutes[use] += cem43(self.last_degc[use], temperature_degc[use], interval[use])
        self._missing = np.where(valid, 0, self._missing + 1)
        self.lower_bound |= (self._missing > self.max_gap_frames) | (valid & ~use)
        self.read |= valid
        self.last_degc[valid] = temperature_degc[valid]
        self.last_s[valid] = time_s

    def shift(self, by_degc: float) -> None:
        """Carry the dose over to temperatures that all were this much higher, °C; what there is, is a lower bound.

        A degree multiplies the rate by 2 above 43 °C and by 4 below, and how long it was on which side is not kept: the
        dose becomes the least that it can have been (temperatures near `CAP_DEGC` aside).
        """
        self.minutes *= (2.0 if by_degc > 0.0 else 4.0) ** by_degc
        self.last_degc += by_degc
        self.lower_bound |= self.minutes > 0.0
