"""The reference that guides a network, moved to where the field and the body have drifted since it was taken.

A reference that is subtracted as it is leaves the whole drift as residual: 0.2 rad are a fifth of the
signal. So drift and motion are estimated first, and taken into the reference before it is projected.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np
from scipy import ndimage

from sinotherm.core.arrays import ComplexArray, FloatArray, FrameData, MaskArray, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.operators.coils import PlaneImages, combine
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.thermometry.drift import DriftEstimator, periphery_mask
from sinotherm.thermometry.motion import MotionWatch

__all__ = ["Guide", "belonging", "references", "strays"]

logger = logging.getLogger(__name__)

ROUNDS: Final = 2
"""What the frame has beyond the reference has streaks of the drift that is left: a second round sees next to none."""
MOST_ROUNDS: Final = 5
"""While the body is still found elsewhere: a step of more than a pixel is seen too short."""
STILL_PX: Final = 0.2
"""A smaller shift is five standard deviations of its estimate from 25 spokes: the body lies still."""
FARTHEST_PX: Final = 5.0

FOLDS: Final = 5
"""References that are made without a part of the frames."""

STRAY_FACTOR: Final = 4.0
"""Noise, streaks and drift leave no spoke more than 2.4 times the usual one's residual."""

_LEAST_SIGNAL: Final = 0.05
_LEAST_VOXELS: Final = 50
_MOST_CONDITION: Final = 1e4
_DEGC_PER_RADIAN: Final = 10.0
"""The estimator's gates are in °C; at 1.5 T and TE 19 ms 1 rad is 13 °C. Nothing else depends on it."""


_Frame = TypeVar("_Frame")


def references(
    frames: Sequence[_Frame], reconstruct: Callable[[Sequence[_Frame]], ComplexArray]
) -> tuple[ComplexArray, list[ComplexArray]]:
    """Return the reference of all pre-heating frames, and for each of them one that it has no part in.

    A frame lies nearer to a reference that holds its own noise than any later frame does: the scatter of
    the baseline's frames, from which σ_T follows, would be too small by a tenth.

    Parameters
    ----------
    frames
        The frames before heating.
    reconstruct
        Frames → the image of all their spokes together, complex64 (y, x).
    """
    whole = reconstruct(frames)
    folds = min(FOLDS, len(frames))
    if folds < 2:
        return whole, [whole] * len(frames)
    without = [
        reconstruct([frame for place, frame in enumerate(frames) if place % folds != fold]) for fold in range(folds)
    ]
    return whole, [without[place % folds] for place in range(len(frames))]


def strays(residuals: Sequence[FloatArray]) -> list[bool]:
    """Return which frames a reference of the others does not explain as it explains the rest.

    A stray frame has a spoke with more than `STRAY_FACTOR` times the usual spoke's residual, or is beyond the
    usual as a whole: by that factor too, but one frame of n that is wrong by b is wrong by b against the others,
    and makes their references wrong by b/(n−1). A loud spoke spoils the others' references as well (of three
    frames by half), so what stands out less than 0.7 times as far as the worst waits until that is gone. Fewer
    than three frames have none: one of two cannot be told from the other.

    Parameters
    ----------
    residuals
        Of each frame, norm of what the reference leaves of each spoke, (spoke,).
    """
    if len(residuals) < 3:
        return [False] * len(residuals)
    usual = max(float(np.median(np.concatenate(residuals))), 1e-30)
    frames = np.array([np.median(one) for one in residuals])
    factor = min(STRAY_FACTOR, 0.75 * (len(frames) - 1))
    far = np.maximum(
        np.array([np.max(one) for one in residuals]) / (STRAY_FACTOR * usual),
        frames / (factor * max(float(np.median(frames)), 1e-30)),
    )
    return [bool(one > max(1.0, 0.7 * far.max())) for one in far]


def belonging(
    frames: Sequence[_Frame],
    reconstruct: Callable[[Sequence[_Frame]], ComplexArray],
    residual: Callable[[_Frame, ComplexArray], FloatArray],
) -> tuple[list[_Frame], ComplexArray, list[ComplexArray]]:
    """Return the frames without strays, and the `references` of those.

    At least half of the frames stay: where more do not fit, nobody knows which are right.

    Parameters
    ----------
    frames, reconstruct
        As in `references`.
    residual
        Frame and reference → norm of what the reference leaves of each spoke, (spoke,).
    """
    kept = list(frames)
    while True:
        whole, others = references(kept, reconstruct)
        out = strays([residual(frame, one) for frame, one in zip(kept, others, strict=True)])
        left = [frame for frame, stray in zip(kept, out, strict=True) if not stray]
        if 2 * len(left) < len(frames):
            logger.warning("more than half of the %d frames of the reference do not fit each other", len(frames))
            left = kept
        if len(left) == len(kept):
            return kept, whole, others
        kept = left


class Guide:
    """A pre-heating reference that follows the drift of the field and shifts of the body, frame by frame.

    Parameters
    ----------
    reference
        Image before heating, complex64 (y, x), in units of the object.
    maps
        Coil maps, complex64 (coil, y, x), Σ|s|² = 1.
    pixel_m
        Size of a pixel (x, y), m.
    order
        Order of the drift's polynomial in space; −1: the reference stays as it is.
    still
        bool (y, x): fat, which heat does not turn but drift does.

    Attributes
    ----------
    reference
        As given.
    name
        Short name of the reference by content, for meta and fingerprints.
    drift_rad
        Coefficients of the last frame's drift, of 1, x, y (, x², x·y, y²), coordinates from −1 to 1; rad.
    shift_px
        Shift (x, y) of the body in the last frame, pixels; zero while it lies still.
    still
        As given, where it lies in the last frame; ``None`` where drift or shift of that frame are not known.
    """

    def __init__(
        self,
        reference: ComplexArray,
        maps: PlaneImages,
        *,
        pixel_m: tuple[float, float],
        order: int = 1,
        still: MaskArray | None = None,
    ) -> None:
        self.reference: ComplexArray = np.ascontiguousarray(reference, dtype=np.complex64)
        self.name = hashlib.sha256(self.reference.tobytes()).hexdigest()[:12]
        self.drift_rad: tuple[float, ...] = ()
        self.shift_px = (0.0, 0.0)
        self.still: MaskArray | None = None
        self._still = self._still_placed = still
        self._placed: ComplexArray = self.reference
        self._maps = maps
        self._field: FloatArray = np.zeros(reference.shape, dtype=np.float32)
        self._estimator: DriftEstimator | None = None
        if order < 0:
            return
        size = np.abs(self.reference)
        self._watch = MotionWatch(size)
        self._plan = FinufftPlan((maps.shape[1], maps.shape[2]), len(maps))
        self._estimator = DriftEstimator(
            magnitude=size,
            mask=periphery_mask(size, _LEAST_SIGNAL * float(np.percentile(size, 99.0)), pixel_m),
            order=order,
            # Which way heating turns the phase is not known here.
            one_sided=False,
            min_voxels=_LEAST_VOXELS,
            max_condition=_MOST_CONDITION,
        )

    def turned(
        self,
        data: FrameData,
        sampling: RadialSampling,
        angles: SpokeAngles,
        *,
        shifts: SpokeShifts | None = None,
    ) -> ComplexArray:
        """Return the reference as this frame would show it if it had only drifted and moved, complex64 (y, x).

        The frame is seen through the gridding image of what it has beyond the reference as the last frame
        saw it: no streaks come of what both have in common, and a slow drift never wraps. Where no drift
        can be fitted, or the body is found farther away than `FARTHEST_PX`, the last frame's stays.

        Parameters
        ----------
        data
            complex64 (coil, spoke, readout).
        sampling, angles
            Where the samples lie on every spoke; rad, float64 (spoke,).
        shifts
            cycles per pixel, (spoke, 2).
        """
        if self._estimator is None:
            return self.reference
        self._plan.set_points(np.ascontiguousarray(radial_points(angles, sampling, shifts).reshape(-1, 2)))
        weights = radial_weights(angles, sampling, weights="gaps", centre="exact", shifts=shifts).astype(np.float32)
        turned = self._turn()
        self.still = self._still_placed
        for number in range(MOST_ROUNDS):
            beyond = data - self._plan.forward(self._maps * turned).reshape(data.shape)
            change = self._plan.adjoint((beyond * weights).astype(np.complex64).reshape(len(data), -1))
            frame = turned + combine(change, self._maps)
            product = frame * turned.conj()
            fit = self._estimator.fit(product, np.angle(product), _DEGC_PER_RADIAN)
            if fit.problem:
                self.still = None
                break
            more = tuple(value / _DEGC_PER_RADIAN for value in fit.coefficients_degc)
            self.drift_rad = tuple(map(sum, zip(self.drift_rad or (0.0,) * len(more), more, strict=True)))
            self._field = self._field + fit.field_degc / np.float32(_DEGC_PER_RADIAN)
            moved = self._move(np.abs(frame))
            turned = self._turn()
            if number + 1 >= ROUNDS and not moved:
                break
        return turned

    def _move(self, magnitude: FloatArray) -> bool:
        """Put the reference where the body lies in a frame; return whether that is elsewhere."""
        motion = self._watch.compare(magnitude)
        shift = (self.shift_px[0] + motion.shift_px[0], self.shift_px[1] + motion.shift_px[1])
        if not motion.distance_px > STILL_PX:
            return False
        if math.hypot(*shift) > FARTHEST_PX:
            self.still = None
            return False
        self.shift_px = shift
        ky, kx = (np.fft.fftfreq(n) for n in self.reference.shape)
        ramp = np.exp(-2j * np.pi * (kx[None, :] * shift[0] + ky[:, None] * shift[1]))
        self._placed = np.fft.ifft2(np.fft.fft2(self.reference) * ramp)
        if self._still is not None:
            self.still = self._still_placed = ndimage.shift(self._still, shift[::-1], order=0)
        self._watch = MotionWatch(np.abs(self._placed))
        return True

    def _turn(self) -> ComplexArray:
        turned: ComplexArray = (self._placed * np.exp(1j * self._field)).astype(np.complex64)
        return turned
