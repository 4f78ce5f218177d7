"""The course of a temperature: a filter in time for maps of one plane, which follows the rate of heating.

A mean over frames lags behind what heats. Here every voxel has a temperature and a rate at which it changes, and the
rate changes at random (Kalman filter with constant rate; for thermometry with ultrasound Roujol et al. 2012,
10.1109/TMI.2011.2171772). Nobody tells the filter when power is switched: where a frame departs from what was
expected by more than noise does, it is believed.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from sinotherm.core.arrays import FloatArray, MaskArray

__all__ = ["TrendFilter"]

_CHANCE: Final = np.float32(0.01)
"""Variance that a change of the rate within a frame gives its temperature, relative to that of the frame's noise.
Half or eight times as much changes the RMSE of nine heated scenes by at most 0.013 °C: what is rare is believed anyhow.
"""
_NEIGHBOURHOOD_PX: Final = 3.0
"""SD of the Gaussian over which departures are averaged before they count."""
_MOST_TOGETHER: Final = 3.0
"""Of the averages' own scatter over the body: what is beyond is no noise."""
_MOST_ALONE: Final = 5.0
"""The same of a single voxel."""
_MEMORY: Final = 0.7
"""Share of what departures have averaged that the next frame keeps: a slow one shows in several frames together."""
_UNKNOWN: Final = np.float32(1e6)
"""Variance of a temperature that has never been read, °C²."""
_FASTEST: Final = np.float32(1.0)
"""SD of a rate of which nothing is known, °C/s."""
_SETTLED: Final = 5
"""Frames after which the filter's own variance no longer tells that it has just begun."""
_ENOUGH: Final = 30
"""Frames of which the scatter may show that the noise is less than the filter takes it for."""
_MEDIAN: Final = 0.6745
"""Median of |x| of a normal distribution of SD 1."""


class TrendFilter:
    """Filter of the temperature change of one plane.

    Parameters
    ----------
    shape
        Rows and columns.

    Attributes
    ----------
    noise_factor
        SD of the noise that is left, relative to that of a noise that is independent from frame to frame.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.noise_factor = 1.0
        # Temperature and rate; their variances and covariance (a, b, c); the same of the noise in them alone.
        self._state: FloatArray = np.zeros((8, *shape), dtype=np.float32)
        self._state[2], self._state[4] = _UNKNOWN, _FASTEST**2
        self._departed: FloatArray = np.zeros(shape, dtype=np.float32)
        self._time_s: float | None = None
        self._before: tuple[FloatArray, FloatArray, float | None] = self._state, self._departed, None

    def learn(self, frames: Sequence[tuple[FloatArray, FloatArray, float]], valid: MaskArray) -> None:
        """Take frames of which is known that nothing heats in them, and see how much noise the filter leaves.

        Noise that comes in waves is taken for heat: the filter leaves more of it than it knows. Only `_ENOUGH` frames
        may show that it is less (frames on rotating spokes make errors of alternating sign).

        Parameters
        ----------
        frames
            Change, float32 (y, x), °C; variance of its noise, float32 (y, x), °C²; time, s.
        valid
            bool (y, x): voxels with signal.
        """
        scores = []
        for number, (change, variance, time_s) in enumerate(frames):
            filtered, _ = self.update(change, variance, valid, time_s)
            if number >= _SETTLED:
                seen = valid & (self._state[5] > 0.0)
                scores.append(np.abs(filtered[seen]) / np.sqrt(self._state[5][seen]))
        if scores and scores[0].size:
            found = float(np.median(np.concatenate(scores))) / _MEDIAN
            self.noise_factor = found if len(frames) >= _ENOUGH else max(1.0, found)

    def withdraw(self) -> None:
        """Forget the last frame, which turned out to be none to go on from."""
        self._state, self._departed, self._time_s = self._before

    def update(
        self, change: FloatArray, variance: FloatArray, valid: MaskArray, time_s: float
    ) -> tuple[FloatArray, FloatArray]:
        """Return the change after this frame and its variance, float32 (y, x), °C and °C².

        Voxels without a reading keep what was given; their course goes on as it was.

        Parameters
        ----------
        change, variance
            float32 (y, x): change of this frame, °C, and the variance of what is its own in it, °C².
        valid
            bool (y, x): voxels with a reading.
        time_s
            Of the frame, s. Where it is not known, or not later than the last one, every voxel begins anew.
        """
        self._before = self._state, self._departed, self._time_s
        step = np.float32(np.nan if self._time_s is None else time_s - self._time_s)
        if not step > 0.0:
            fresh = TrendFilter(change.shape)
            self._state, self._departed, step = fresh._state, fresh._departed, np.float32(0.0)
        self._time_s = time_s if np.isfinite(time_s) else None
        read = valid & np.isfinite(change) & np.isfinite(variance) & (variance > 0.0)
        own = np.where(read, variance, np.float32(1.0))
        temperature, rate, *spread = self._state
        expected = temperature + step * rate
        a, b, c = _carried(spread[:3], step)
        noise = _carried(spread[3:], step)
        departure = np.where(read, change - expected, np.float32(0.0))
        if step > 0.0:
            chance = _CHANCE * own
            usual = a + chance + own
            # As much more may the rate have changed as makes what is seen no more than noise.
            beyond = np.square(self._surprise(departure, np.sqrt(usual), read)) - 1.0
            most = chance + np.where(read, usual * beyond, np.float32(0.0))
            a, b, c = a + most, b + most * (1.5 / step), c + most * (3.0 / step**2)
        total = a + own
        gain, rate_gain, rest = a / total, b / total, own / total
        n_a, n_b, n_c = noise
        after = np.stack(
            [
                expected + gain * departure,
                rate + rate_gain * departure,
                gain * own,
                b * rest,
                c - rate_gain * b,
                np.square(rest) * n_a + np.square(gain) * own,
                rest * (n_b - rate_gain * n_a) + gain * rate_gain * own,
                n_c - 2.0 * rate_gain * n_b + np.square(rate_gain) * (n_a + own),
            ]
        )
        passed = np.stack([expected, rate, a, b, c, *noise])
        self._state = np.where(read, after, passed).astype(np.float32, copy=False)
        # What a change of the rate may have made is not noise, and none of it is known better than it is.
        left = self._state[2] + np.float32(self.noise_factor**2 - 1.0) * self._state[5]
        return np.where(read, self._state[0], change), np.where(read, left, variance)

    def _surprise(self, departure: FloatArray, sd: FloatArray, read: MaskArray) -> FloatArray:
        """Return by how much departures exceed what noise makes, at least 1, float32 (y, x).

        Those of one frame, and their mean over the last ones, which follow no trend while the course is followed. Noise
        has an unknown correlation in space: the scatter over the body tells the scale. Where all of the body heats, it
        is no more than that of the voxels.
        """
        from scipy.ndimage import gaussian_filter

        if not read.any():
            return np.ones_like(departure)
        alone = np.abs(departure) / sd
        usual = gaussian_filter(np.where(read, sd, np.float32(0.0)), _NEIGHBOURHOOD_PX)
        together = gaussian_filter(departure, _NEIGHBOURHOOD_PX) / np.maximum(usual, np.float32(1e-9))
        self._departed = np.float32(_MEMORY) * self._departed + np.float32(1.0 - _MEMORY) * together
        scale = _scale(together[read], 1.0)
        slow = _scale(self._departed[read], math.sqrt((1.0 - _MEMORY) / (1.0 + _MEMORY)))
        return np.maximum.reduce(
            [
                np.ones_like(departure),
                alone / np.float32(_MOST_ALONE),
                np.abs(together) / np.float32(_MOST_TOGETHER * scale),
                np.abs(self._departed) / np.float32(_MOST_TOGETHER * slow),
            ]
        )


def _scale(values: FloatArray, most: float) -> float:
    """Return the SD of values that lie around zero, by their median, between next to nothing and the most."""
    return max(min(float(np.median(np.abs(values))) / _MEDIAN, most), 1e-6)


def _carried(spread: Sequence[FloatArray] | FloatArray, step: np.float32) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return variances and covariance of temperature and rate after a time step."""
    a, b, c = spread
    return a + step * (2.0 * b + step * c), b + step * c, c
