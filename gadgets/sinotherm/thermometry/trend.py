"""The course of a temperature: a filter in time for maps of one plane, which follows the rate of heating.

A mean over frames lags behind what heats. Here every voxel has a temperature and a rate at which it changes, and the
rate changes at random and dies away, as blood and conduction carry heat off (Kalman filter with a damped rate; for
thermometry with ultrasound Roujol et al. 2012, 10.1109/TMI.2011.2171772). Nobody tells the filter when power is
switched: where a frame departs from what was expected by more than noise does, it is believed.
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
_RELAXATION_S: Final = 1200.0
"""Time in which a rate falls to 1/e. Blood alone takes 1,460 s for that in resting muscle (37 ml/min/kg), conduction
alone 600 s where heat is 30 mm wide: rather too much is expected of a rate than too little.
"""
_NEIGHBOURHOOD_PX: Final = 3.0
"""SD of the Gaussian over which departures are averaged before they count."""
_MOST_TOGETHER: Final = 4.0
"""Of the scatter of such averages: what is beyond is no noise."""
_MOST_ALONE: Final = 6.0
"""Of the noise of a frame, of which a departure has a little more: what is beyond is no noise in a single voxel."""
_MEMORY: Final = 0.7
"""Share of what departures have averaged that the next frame keeps: a slow one shows in several frames together."""
_MOST_BELIEVED: Final = 30.0
"""Surprise above which a frame counts alone already; more would leave the range of single precision."""
_HEATED: Final = 2.0
"""Times the usual scatter of averages: what scatters more than that is heat, and no measure of noise."""
_EXACT: Final = 0.3
"""The same: what scatters less is no frame of this scan."""
_USUAL: Final = 0.1
"""Share that a frame has in the usual scatter."""
_SCATTER: Final = 0.5
"""Scatter of averages, relative to a voxel's, above which noise would be smoother than the neighbourhood."""
_LEAST_FACTOR: Final = 0.7
"""Noise before heating that is less than this of what is left may have been less than later on."""
_UNKNOWN: Final = np.float32(1e6)
"""Variance of a temperature that has never been read, °C²."""
_FASTEST: Final = np.float32(1.0)
"""SD of a rate of which nothing is known, °C/s."""
_TINY: Final = np.float32(1e-30)
_SHORTEST_S: Final = 1e-3
"""Frames that are nearer to each other tell no rate."""
_LONGEST_S: Final = 3600.0
"""Nor those that are farther apart: a clock was set anew, and single precision would be lost on what it means."""
_SETTLED: Final = 5
"""Frames after which what the filter does no longer tells that it has just begun."""
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
        SD of the noise that is left, relative to that of a noise that is independent from frame to frame; infinite
        where nothing is known of it, and the uncertainty then that of the frame.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.noise_factor = math.inf
        self._settled = 0.0
        self._shape = shape
        self._usual: tuple[float, float] | None = None
        self.begin()
        self._before: tuple[FloatArray, FloatArray, int, float | None, tuple[float, float] | None]
        self._before = self._state, self._departed, self._frames, self._time_s, self._usual

    def begin(self) -> None:
        """Forget the course."""
        # Temperature and rate; their variances and covariance (a, b, c); the same of the noise in them alone.
        self._state: FloatArray = np.zeros((8, *self._shape), dtype=np.float32)
        self._state[2], self._state[4] = _UNKNOWN, _FASTEST**2
        self._departed: FloatArray = np.zeros(self._shape, dtype=np.float32)
        self._frames = 0
        self._time_s: float | None = None

    def learn(
        self, frames: Sequence[tuple[FloatArray, float]], variance: FloatArray, valid: MaskArray, independent: float
    ) -> None:
        """Take frames of which is known that nothing heats in them, and see how much noise the filter leaves.

        Noise that comes in waves is taken for heat: the filter leaves more of it than it knows. Only `_ENOUGH` frames
        may show that it is less (frames on rotating spokes make errors of alternating sign), and none that share
        spokes.

        Parameters
        ----------
        frames
            Change, float32 (y, x), °C, and time, s.
        variance
            float32 (y, x): of the noise in each of them, °C².
        valid
            bool (y, x): voxels with signal.
        independent
            How many independent frames they are worth.
        """
        scores, settled = [], []
        for change, time_s in frames:
            filtered, *_ = self.update(change, variance, valid, time_s)
            noise = self._state[5]
            seen = valid & np.isfinite(change) & (noise > 0.0)
            if self._frames > _SETTLED and seen.any():
                scores.append(np.abs(filtered[seen]) / np.sqrt(noise[seen]))
                settled.append(np.median(noise[seen] / variance[seen]))
        if scores:
            found = float(np.median(np.concatenate(scores))) / _MEDIAN
            overlap = max(1.0, math.sqrt(len(frames) / independent))
            enough = len(frames) >= _ENOUGH and overlap < 1.01
            self.noise_factor = max(found, _LEAST_FACTOR if enough else overlap)
            self._settled = min(0.9, float(np.median(settled)))

    def withdraw(self) -> None:
        """Forget the last frame, which turned out to be none to go on from."""
        self._state, self._departed, self._frames, self._time_s, self._usual = self._before

    def update(
        self, change: FloatArray, variance: FloatArray, valid: MaskArray, time_s: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the change after this frame, its variance, and what of that is no noise, float32 (y, x), °C, °C², °C².

        What a whole neighbourhood departed by and was not believed may be heat. Voxels without a reading keep what was
        given; their course goes on as it was.

        Parameters
        ----------
        change, variance
            float32 (y, x): change of this frame, °C, and the variance of what is its own in it, °C².
        valid
            bool (y, x): voxels with a reading.
        time_s
            Of the frame, s. Where it is not known, not later than the last one, or later by more than an hour, every
            voxel begins anew.
        """
        self._before = self._state, self._departed, self._frames, self._time_s, self._usual
        passed_s = math.nan if self._time_s is None else time_s - self._time_s
        if not _SHORTEST_S < passed_s < _LONGEST_S:
            self.begin()
            passed_s = 0.0
        self._time_s = time_s if math.isfinite(time_s) else None
        self._frames += 1
        step = np.float32(passed_s)
        read = valid & np.isfinite(change) & np.isfinite(variance) & (variance > 0.0)
        own = np.where(read, variance, np.float32(1.0))
        temperature, rate, *spread = self._state
        kept = np.float32(math.exp(-passed_s / _RELAXATION_S))
        reach = np.float32(-_RELAXATION_S * math.expm1(-passed_s / _RELAXATION_S))
        expected, rate = temperature + reach * rate, kept * rate
        a, b, c = _carried(spread[:3], reach, kept)
        departure = np.where(read, change - expected, np.float32(0.0))
        together = np.zeros_like(departure)
        if step > 0.0:
            surprise, together = self._surprise(departure / np.sqrt(own), read)
            # As much more may the rate have changed as makes what is seen no more than noise. What was believed before
            # is no reason for more: a pulse after the other would go beyond all numbers.
            most = (np.minimum(a, own) + own) * np.square(surprise) - (a + own)
            more = _CHANCE * own + np.maximum(most, 0.0)
            a, b, c = a + more, b + more * (1.5 / step), c + more * (3.0 / step**2)
        total = a + own
        gain, rate_gain, rest = a / total, b / total, own / total
        n_a, n_b, n_c = _carried(spread[3:], reach, kept)
        after = np.where(
            read,
            [
                expected + gain * departure,
                rate + rate_gain * departure,
                gain * own,
                rest * b,
                rest * c + gain * c - rate_gain * b,
                np.square(rest) * n_a + np.square(gain) * own,
                rest * (n_b - rate_gain * n_a) + gain * rate_gain * own,
                n_c - 2.0 * rate_gain * n_b + np.square(rate_gain) * (n_a + own),
            ],
            [expected, rate, a, b, c, n_a, n_b, n_c],
        ).astype(np.float32, copy=False)
        # Rounding would leave less than nothing of a difference, and more noise than there is uncertainty.
        after[4] = np.maximum(after[4], np.square(after[3]) / np.maximum(after[2], _TINY))
        after[5] = np.clip(after[5], 0.0, after[2])
        after[7] = np.clip(after[7], 0.0, after[4])
        most_b = np.sqrt(after[5]) * np.sqrt(after[7])
        after[6] = np.clip(after[6], -most_b, most_b)
        self._state = after
        hidden = np.square(rest * together) * own
        return (
            np.where(read, after[0], change),
            np.where(read, self._left(own) + hidden, variance),
            np.where(read, hidden, np.float32(0.0)),
        )

    def _left(self, own: FloatArray) -> FloatArray:
        """Return the variance of the noise in what is shown, °C²; at most the frame's own.

        A frame that is believed has its own noise, one that the filter settled on the rest that `learn` saw.
        """
        if not math.isfinite(self.noise_factor):
            return own
        noise = self._state[5]
        settled = np.clip((own - noise) / ((1.0 - self._settled) * own), 0.0, 1.0)
        return np.minimum(own, own + settled * (np.float32(self.noise_factor**2) * noise - own))

    def _surprise(self, scores: FloatArray, read: MaskArray) -> tuple[FloatArray, FloatArray]:
        """Return by how much departures exceed what noise makes, at least 1, and their local means, float32 (y, x).

        Those of one frame, and their mean over the last ones, which follow no trend while the course is followed. The
        scatter of averages over the body tells how noise is correlated in space; where much heats, the usual one.

        Parameters
        ----------
        scores
            float32 (y, x): departures relative to the noise of a frame; 0 where nothing is read.
        read
            bool (y, x).
        """
        from scipy.ndimage import gaussian_filter

        if not read.any():
            return np.ones_like(scores), np.zeros_like(scores)
        share = np.maximum(gaussian_filter(read.astype(np.float32), _NEIGHBOURHOOD_PX), np.float32(1e-3))
        together = np.where(read, gaussian_filter(scores, _NEIGHBOURHOOD_PX) / share, np.float32(0.0))
        departed = np.float32(_MEMORY) * self._departed + np.float32(1.0 - _MEMORY) * together
        found = _scatter(together[read]), _scatter(departed[read])
        most = _SCATTER, _slow(_SCATTER)
        if self._frames > _SETTLED:
            before = self._usual or (min(found[0], most[0]), min(found[1], most[1]))
            self._usual = _followed(before[0], found[0]), _followed(before[1], found[1])
        now, slow = (min(one, _HEATED * usual) for one, usual in zip(found, self._usual or most, strict=True))
        surprise = np.maximum.reduce(
            [
                np.abs(scores) / np.float32(_MOST_ALONE),
                np.abs(together) / np.float32(_MOST_TOGETHER * now),
                np.abs(departed) / np.float32(_MOST_TOGETHER * slow),
            ]
        )
        surprise = np.clip(surprise, 1.0, _MOST_BELIEVED).astype(np.float32, copy=False)
        # What is believed is no departure any more.
        self._departed = departed / np.square(surprise)
        return surprise, together


def _followed(usual: float, found: float) -> float:
    """Return the usual scatter after a frame's, which has no part in it where it is heat, or no noise at all."""
    return usual + _USUAL * (found - usual) if _EXACT * usual < found < _HEATED * usual else usual


def _slow(scatter: float) -> float:
    """Return the scatter of means over the last frames of what scatters like this in each."""
    return scatter * math.sqrt((1.0 - _MEMORY) / (1.0 + _MEMORY))


def _scatter(values: FloatArray) -> float:
    """Return the SD of values that lie around zero, by their median."""
    return max(float(np.median(np.abs(values))) / _MEDIAN, 1e-6)


def _carried(
    spread: Sequence[FloatArray] | FloatArray, reach: np.float32, kept: np.float32
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return variances and covariance of temperature and rate after a time step.

    ``reach`` is how far a rate leads (s), ``kept`` what is left of it.
    """
    a, b, c = spread
    return a + reach * (2.0 * b + reach * c), kept * (b + reach * c), kept**2 * c
