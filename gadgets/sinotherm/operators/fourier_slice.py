"""Fourier slice theorem, complex: a radial spoke and the projection of the object at the same angle."""

import math

import numpy as np
import torch
from torch import Tensor

from sinotherm.core.arrays import FloatArray
from sinotherm.core.geometry import RadialSampling
from sinotherm.operators.fourier import fft1, ifft1
from sinotherm.operators.linear import LinearOperator

__all__ = ["FourierSlice"]


class FourierSlice(LinearOperator):
    """Spokes (…, readout) to projections (…, detector): p(s_j) = Δκ·Σ_i d_i·exp(+2πi κ_i·s_j).

    The detector has as many elements as the readout has samples, of 1/(n·Δκ) pixels each (1 pixel
    where Δκ = 1/n), and s = 0 at index n//2. p is the line integral of the complex object, in units of
    the object times pixels. The samples' centre may lie at any fraction of a sample: it becomes
    a linear phase on the detector, exact for every sampling. Bracewell 1956, 10.1071/PH560198.

    Parameters
    ----------
    sampling
        Where the samples lie on each spoke.
    offsets
        Shift of each spoke along itself (gradient delay), cycles per pixel, (spoke,) or (batch, spoke);
        then the domain is (spoke, readout).
    """

    phase: Tensor

    def __init__(self, sampling: RadialSampling, offsets: FloatArray | None = None) -> None:
        n = sampling.n_readout
        shape = (n,) if offsets is None else (np.shape(offsets)[-1], n)
        super().__init__(shape, shape)
        self.sampling = sampling
        position = (np.arange(n) - n // 2) / (n * sampling.spacing)
        along = np.zeros(1) if offsets is None else np.asarray(offsets, dtype=np.float64)
        along = along.reshape(-1)[:1] if np.ptp(along) == 0.0 else along
        carrier = (n // 2 - sampling.centre) * sampling.spacing + along[..., None]
        phase = np.exp(2j * np.pi * carrier * position)
        self.register_buffer("phase", torch.from_numpy(phase), persistent=False)
        self._scale = sampling.spacing * math.sqrt(n)

    def _phase(self, data: Tensor) -> Tensor:
        batch = self.phase.ndim - 2
        # The sets of a batch stand on its first axis, the axes between are free.
        spread = self.phase.reshape(
            *self.phase.shape[:batch], *(1,) * (data.ndim - 3) * batch, *self.phase.shape[batch:]
        )
        return spread.to(data.dtype) * self._scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the projections of spokes."""
        self.check(x, self.domain_shape, "spokes")
        return ifft1(x) * self._phase(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᴴ y; see `inverse` for the spokes of projections."""
        self.check(y, self.range_shape, "projections")
        return fft1(y * self._phase(y).conj())

    def inverse(self, y: Tensor) -> Tensor:
        """Return the spokes of projections: the exact inverse, the adjoint over n·Δκ²."""
        return self.adjoint(y) / self._scale**2
