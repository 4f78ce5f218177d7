"""Parallel-beam Radon transform of complex images, band-limited, at any angles."""

import numpy as np

from sinotherm.core.arrays import FloatArray, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.operators.density import parallel_shift
from sinotherm.operators.fourier_slice import FourierSlice
from sinotherm.operators.linear import Composition
from sinotherm.operators.nufft import FAST, Nufft, NufftBackend

__all__ = ["Radon", "detector_sampling", "spoke_offsets"]


def detector_sampling(n_pixels: int, oversampling: int = 2) -> RadialSampling:
    """Return the sampling of a detector of ``oversampling·n_pixels`` elements, each as wide as a pixel."""
    n = oversampling * n_pixels
    return RadialSampling(n_readout=n, spacing=1.0 / n, centre=float(n // 2))


class Radon(Composition):
    """Images (…, y, x) to sinograms (…, spoke, detector): NUFFT on the spokes, then the Fourier slice theorem.

    The line integrals of the band-limited object, in units of the object times pixels. Interpolating
    projectors are off by 0.15 on the same task, worth whole degrees of temperature. The adjoint is that
    of exactly this operator, at any accuracy of the NUFFT.

    Parameters
    ----------
    angles
        Projection angles, rad, (spoke,); or (batch, spoke): item b of the data has its own.
    shape
        Image (y, x) in pixels.
    sampling
        Spokes that the detector is the transform of; `detector_sampling` of the larger side by default.
    shifts
        Offset of each spoke (gradient delay), cycles per pixel, (…, spoke, 2).
    accuracy, backend
        As in `Nufft`.
    """

    def __init__(
        self,
        angles: FloatArray,
        shape: tuple[int, int],
        sampling: RadialSampling | None = None,
        *,
        shifts: SpokeShifts | None = None,
        accuracy: float = FAST,
        backend: NufftBackend = "auto",
    ) -> None:
        sampling = detector_sampling(max(shape)) if sampling is None else sampling
        super().__init__(
            FourierSlice(sampling, spoke_offsets(angles, shifts)),
            Nufft.radial(angles, sampling, shape, shifts=shifts, accuracy=accuracy, backend=backend),
        )
        self.sampling = sampling


def spoke_offsets(angles: FloatArray, shifts: SpokeShifts | None) -> FloatArray:
    """Return the shift of each spoke along itself, cycles per pixel, (…, spoke); zeros without shifts."""
    return np.zeros(np.shape(angles)) if shifts is None else parallel_shift(np.asarray(angles), np.asarray(shifts))
