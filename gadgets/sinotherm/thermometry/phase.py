"""Phase differences: complex products over coils and neighbours, unwrapped in time, echoes combined."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from sinotherm.core.arrays import CoilImages, ComplexArray, FloatArray, MaskArray
from sinotherm.errors import DataError

__all__ = ["JUMP_LIMIT_RAD", "TemporalUnwrapper", "combine_echoes", "complex_product"]

JUMP_LIMIT_RAD: Final = 0.75 * math.pi
"""Largest change of a voxel's phase between frames (beside the whole image's) whose branch is certain."""


def complex_product(image: CoilImages, baseline: CoilImages, *, neighbours: int = 1) -> ComplexArray:
    """Return Σ_c x_c · conj(x0_c), complex64 (slice, y, x), summed over ``neighbours`` × ``neighbours`` voxels.

    Its angle is the phase difference, each coil and neighbour weighted by its own signal; angles
    themselves are never subtracted or averaged.

    Parameters
    ----------
    image, baseline
        complex64 (coil, slice, y, x) of one echo.
    neighbours
        Odd width of the in-plane window; 1 leaves every voxel to itself.

    Raises
    ------
    DataError
        The shapes differ.

    References
    ----------
    Bernstein et al. 1994, 10.1002/mrm.1910320308.
    """
    if image.shape != baseline.shape:
        raise DataError(
            f"an image of (coil, slice, y, x) = {image.shape} does not fit its baseline of {baseline.shape}: "
            "take a new baseline after a change of the matrix or the coils."
        )
    product = np.einsum("czyx,czyx->zyx", image, baseline.conj()) if len(image) > 1 else image[0] * baseline[0].conj()
    if neighbours > 1:
        from scipy.ndimage import uniform_filter

        size = (1, neighbours, neighbours)
        product = uniform_filter(product, size=size, mode="nearest") * np.float32(neighbours**2)
    return product.astype(np.complex64, copy=False)


class TemporalUnwrapper:
    """Follows the phase difference of every voxel through the frames, beyond ±π.

    The change of the whole image since the last frame (B0 drift) is taken out first; what then
    jumps by more than `JUMP_LIMIT_RAD` in a voxel may have gone either way: the voxel is doubtful
    until its value agrees with its neighbours' again, or until `reset`.
    """

    def __init__(self) -> None:
        self._phase: np.ndarray[Any, np.dtype[np.float32]] | None = None
        self._product: ComplexArray | None = None
        self._doubtful: MaskArray | None = None

    def reset(self) -> None:
        """Forget the past: the baseline changed."""
        self._phase = self._product = self._doubtful = None

    def rebase(self, between: ComplexArray) -> None:
        """Go on against another baseline.

        Parameters
        ----------
        between
            complex64 (slice, y, x): complex product of the old baseline with the new one.
        """
        if self._phase is not None and self._product is not None:
            angle = np.angle(between)
            self._phase = self._phase + angle
            self._product = self._product * np.exp(1j * angle).astype(np.complex64)

    def update(self, product: ComplexArray, trusted: MaskArray) -> tuple[FloatArray, MaskArray]:
        """Take the next frame's complex product.

        Parameters
        ----------
        product
            complex64 (slice, y, x).
        trusted
            bool (slice, y, x): voxels with enough signal for a phase.

        Returns
        -------
        phase
            float32 (slice, y, x), rad: unwrapped phase difference to the baseline.
        doubtful
            bool (slice, y, x): trusted voxels whose branch is not certain.
        """
        wrapped = np.angle(product)
        turn = np.float32(2.0 * math.pi)
        if self._phase is None or self._product is None or self._doubtful is None:
            before: FloatArray = np.zeros_like(wrapped)
            doubtful = np.zeros_like(trusted)
            bulk = np.angle(product[trusted].sum(dtype=np.complex128))
        else:
            before, doubtful = self._phase, self._doubtful
            bulk = np.angle(np.vdot(self._product[trusted], product[trusted]))
        expected = before + np.float32(bulk)
        step = wrapped - expected
        step -= turn * np.rint(step / turn)
        # A voxel without signal in this frame keeps its branch: noise would walk it away.
        phase = np.where(trusted, expected + step, expected)
        doubtful = (doubtful | (np.abs(step) > JUMP_LIMIT_RAD)) & trusted
        if doubtful.any():
            doubtful = doubtful & ~self._agrees(phase, trusted & ~doubtful)
        self._phase, self._product, self._doubtful = phase, product, doubtful
        return phase, doubtful

    @staticmethod
    def _agrees(phase: FloatArray, certain: MaskArray) -> MaskArray:
        """Return where the phase lies within π/2 of the mean of the certain voxels of the 5 × 5 around it."""
        from scipy.ndimage import uniform_filter

        share = uniform_filter(certain.astype(np.float32), size=(1, 5, 5), mode="constant")
        total = uniform_filter(np.where(certain, phase, np.float32(0.0)), size=(1, 5, 5), mode="constant")
        near = share > 0.2
        return near & (np.abs(phase * share - total) < 0.5 * math.pi * share)


def combine_echoes(
    changes: Sequence[FloatArray], magnitudes: Sequence[FloatArray], echo_times_s: Sequence[float]
) -> tuple[FloatArray, FloatArray]:
    """Return the echoes' temperature changes combined with weights (TE·|S|)², and the weights.

    Parameters
    ----------
    changes
        float32 (slice, y, x), °C, one an echo: each echo unwrapped and converted by itself.
    magnitudes
        float32 (slice, y, x), |S| of each echo in the same unit.
    echo_times_s
        TE of each echo, s.

    Returns
    -------
    change
        float32 (slice, y, x), °C.
    weights
        float32 (echo, slice, y, x), adding up to 1 over the echoes.
    """
    weights = np.stack([(te * size) ** 2 for te, size in zip(echo_times_s, magnitudes, strict=True)])
    total = weights.sum(axis=0)
    weights = np.divide(weights, total, out=np.full_like(weights, 1.0 / len(weights)), where=total > 0.0)
    return np.einsum("ezyx,ezyx->zyx", weights, np.stack(changes)), weights
