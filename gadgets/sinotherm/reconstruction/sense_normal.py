"""The normal operator of radial SENSE, Σ_c conj(s_c)·T(s_c·x), without any NUFFT in the iteration.

T = FᴴWF is a convolution with the point spread function p(d) = Σ_m w_m·exp(2πi k_m·d) (Toeplitz:
Fessler et al. 2005, 10.1109/TSP.2005.853152). Embedded in a circle of twice the image it costs FFTs
of 2G × 2G, mostly zeros in and waste out. The even and odd frequencies of that circle are four FFTs of
G × G of the image times exp(−iπ(ax + by)/G), a, b ∈ {0, 1}, which need no padding and stay in the cache:
the same operator, two to three times as fast.
"""

from typing import Final

import numpy as np
import scipy.fft
import torch
from jaxtyping import Complex64
from torch import Tensor

from sinotherm.core.arrays import FloatArray, FrameData, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError
from sinotherm.operators.nufft import FinufftPlan, radial_points

__all__ = ["SenseNormal", "Toeplitz"]

_PSF_ACCURACY: Final = 1e-5
_COILS_AT_ONCE: Final = 8
"""More coils leave the cache; fewer are not worth a parallel section."""


class Toeplitz:
    """T = FᴴWF of one set of radial spokes on a square grid.

    Parameters
    ----------
    points
        float64 (sample, 2), cycles per pixel (kx, ky).
    weights
        float (sample,), real and not negative.
    size
        G, pixels.
    """

    def __init__(self, points: FloatArray, weights: FloatArray, size: int) -> None:
        self.size = size
        plan = FinufftPlan((2 * size, 2 * size), accuracy=_PSF_ACCURACY).set_points(points.reshape(-1, 2))
        spread = plan.adjoint(weights.reshape(1, -1).astype(np.complex64))[0]
        # d = −G belongs to no pair of pixels; without it the spectrum is real.
        spread[0] = 0.0
        spread[:, 0] = 0.0
        spectrum = scipy.fft.fft2(np.fft.ifftshift(spread), overwrite_x=True, workers=-1).real
        # Both parts of a complex number are multiplied by the same real number.
        parts = spectrum.reshape(size, 2, size, 2).transpose(1, 3, 0, 2) / (4.0 * size * size)
        self._spectra = torch.from_numpy(np.repeat(parts.astype(np.float32), 2, axis=-1))
        half_turn = np.exp(-1j * np.pi * np.arange(size) / size).astype(np.complex64)
        axis = (np.ones(size, np.complex64), half_turn)
        self._work = torch.empty((_COILS_AT_ONCE, size, size), dtype=torch.complex64)
        self._phases = torch.from_numpy(np.stack([[np.outer(axis[a], axis[b]) for b in (0, 1)] for a in (0, 1)]))
        self.largest = float(spectrum.max())

    def apply(self, image: Tensor, maps: Tensor, conjugate_maps: Tensor) -> Tensor:
        """Return Σ_c conj(s_c)·T(s_c·x), complex64 (y, x)."""
        total = torch.zeros_like(image)
        for a in (0, 1):
            for b in (0, 1):
                phase, spectrum = self._phases[a, b], self._spectra[a, b]
                turned, part = image * phase, torch.zeros_like(image)
                for first in range(0, len(maps), _COILS_AT_ONCE):
                    some = slice(first, first + _COILS_AT_ONCE)
                    work = self._work[: len(maps[some])]
                    spectra = torch.fft.fft2(torch.mul(maps[some], turned, out=work))
                    torch.view_as_real(spectra).reshape(len(work), self.size, -1).mul_(spectrum)
                    part += torch.fft.ifft2(spectra, norm="forward").mul_(conjugate_maps[some]).sum(dim=0)
                total += part.mul_(phase.conj())
        return total


class SenseNormal:
    """AᴴWA and AᴴW of radial SENSE for one frame, A = NUFFT ∘ coil maps.

    Parameters
    ----------
    angles, sampling, shifts
        Of the frame's spokes.
    maps
        complex64 (coil, G, G), Σ_c |s_c|² = 1 in the object; G may exceed the image (extended grid).
    weights
        float (spoke, readout) or None (all 1): weights of the samples in the least-squares sum.

    Attributes
    ----------
    size, n_spokes
        G, and the spokes of the frame.
    scale
        The operator is divided by this: the largest eigenvalue of the circle that T is embedded in, so
        that regularisation strengths hardly depend on matrix, spokes or weights.

    Raises
    ------
    DataError
        The maps are not square, or there are not as many shifts as spokes.
    """

    def __init__(
        self,
        angles: SpokeAngles,
        sampling: RadialSampling,
        maps: Complex64[np.ndarray, "coil y x"],
        *,
        shifts: SpokeShifts | None = None,
        weights: FloatArray | None = None,
    ) -> None:
        if maps.ndim != 3 or maps.shape[1] != maps.shape[2]:
            raise DataError(f"coil maps of shape {maps.shape}: (coil, G, G) is needed.")
        self.size, self.n_spokes = maps.shape[-1], len(angles)
        self.maps = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.complex64))
        self._conjugate = self.maps.conj().resolve_conj()
        self._points = radial_points(angles, sampling, shifts).reshape(-1, 2)
        shape = (len(angles), sampling.n_readout)
        self._weights = np.ones(shape, np.float32) if weights is None else np.broadcast_to(weights, shape)
        self._toeplitz = Toeplitz(self._points, self._weights.ravel(), self.size)
        # Without any weight both sides are zero, whatever they are divided by.
        self.scale = self._toeplitz.largest or 1.0

    def right_hand_side(self, data: FrameData) -> Tensor:
        """Return AᴴW y / scale, complex64 (y, x), of samples (coil, spoke, readout).

        Raises
        ------
        DataError
            The samples do not have the operator's coils, spokes or length, or are not all finite.
        """
        n_coils = len(self.maps)
        if data.shape != (n_coils, *self._weights.shape):
            raise DataError(f"data of shape {data.shape}: {(n_coils, *self._weights.shape)} is needed.")
        plan = FinufftPlan((self.size, self.size), n_coils).set_points(self._points)
        with np.errstate(over="ignore", invalid="ignore"):
            weighted = (data * (self._weights / self.scale).astype(np.float32)).reshape(n_coils, -1)
        images = torch.from_numpy(plan.adjoint(weighted))
        found = (images * self._conjugate).sum(dim=0)
        # Gridding takes what is not finite to every pixel: one look at the image for all samples.
        if not bool(torch.isfinite(found).all()):
            raise DataError(
                "the samples or coil maps hold values that are not finite, or too large for single precision: leave "
                "out those spokes, or scale them."
            )
        return found

    def __call__(self, image: Tensor) -> Tensor:
        """Return AᴴWA x / scale, complex64 (y, x)."""
        return self._toeplitz.apply(image, self.maps, self._conjugate).div_(self.scale)
