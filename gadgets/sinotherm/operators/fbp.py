"""Filtered back-projection of complex sinograms as a differentiable operator.

Streams use `sinotherm.operators.backprojection`, which does the same spoke by spoke.
"""

import numpy as np
import torch
from torch import Tensor

from sinotherm.core.arrays import FloatArray, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.operators.density import AngularWeights, CentreRule, RadialFilter, radial_weights
from sinotherm.operators.fourier_slice import FourierSlice
from sinotherm.operators.linear import LinearOperator
from sinotherm.operators.nufft import FAST, Nufft, NufftBackend
from sinotherm.operators.radon import detector_sampling, spoke_offsets

__all__ = ["FilteredBackProjection"]


class FilteredBackProjection(LinearOperator):
    """Sinograms (…, spoke, detector) to images (…, y, x): f = Nᴴ W S⁻¹ p.

    S is the Fourier slice theorem, W the density weights, N the NUFFT: the inverse of `Radon` on
    densely sampled angles, quantitative on any.

    Parameters
    ----------
    angles
        Projection angles, rad, (spoke,); or (batch, spoke): item b of the data has its own.
    shape
        Image (y, x) in pixels.
    sampling
        Spokes that the detector is the transform of; `detector_sampling` of the larger side by default.
    radial_filter, centre, weights
        As in `radial_weights`.
    shifts
        Offset of each spoke (gradient delay), cycles per pixel, (…, spoke, 2).
    accuracy, backend
        As in `Nufft`.
    """

    density: Tensor

    def __init__(
        self,
        angles: FloatArray,
        shape: tuple[int, int],
        sampling: RadialSampling | None = None,
        *,
        radial_filter: RadialFilter = "ramp",
        centre: CentreRule = "exact",
        weights: AngularWeights = "equal",
        shifts: SpokeShifts | None = None,
        accuracy: float = FAST,
        backend: NufftBackend = "auto",
    ) -> None:
        sampling = detector_sampling(max(shape)) if sampling is None else sampling
        angles = np.asarray(angles, dtype=np.float64)
        nufft = Nufft.radial(angles, sampling, shape, shifts=shifts, accuracy=accuracy, backend=backend)
        super().__init__(nufft.range_shape, shape)
        self.nufft = nufft
        self.slices = FourierSlice(sampling, spoke_offsets(angles, shifts))
        rows = angles.reshape(-1, angles.shape[-1])
        offsets = [None] * len(rows) if shifts is None else np.reshape(shifts, (len(rows), -1, 2))
        density = np.stack(
            [
                radial_weights(row, sampling, weights=weights, radial_filter=radial_filter, centre=centre, shifts=shift)
                for row, shift in zip(rows, offsets, strict=True)
            ]
        )
        # S⁻¹ = Sᴴ / (n·Δκ²): the factor is folded into the weights.
        density /= sampling.n_readout * sampling.spacing**2
        self.register_buffer("density", torch.from_numpy(density), persistent=False)

    def _weighted(self, spokes: Tensor) -> Tensor:
        # Item b of a batch has its own weights; the axes between are free.
        between = spokes.ndim - 3 if len(self.density) > 1 else 0
        density = self.density.reshape(len(self.density), *(1,) * between, *self.density.shape[1:])
        density = density if len(self.density) > 1 else density[0]
        return spokes * density.to(spokes.real.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images of sinograms."""
        self.check(x, self.domain_shape, "sinograms")
        return self.nufft.adjoint(self._weighted(self.slices.adjoint(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the adjoint's sinograms of images: S W N y."""
        self.check(y, self.range_shape, "images")
        return self.slices(self._weighted(self.nufft(y)))
