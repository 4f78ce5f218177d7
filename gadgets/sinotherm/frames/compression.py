"""Coil compression: fewer virtual coils that keep the signal, without the coils that streak.

All matrices have orthonormal rows and act on whitened data, so the noise of the virtual coils is
white with the same SD.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
from jaxtyping import Complex64, Complex128, Float64

from sinotherm.core.arrays import ComplexArray, FrameData, SpokeAngles, SpokeData
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import SettingsError
from sinotherm.operators.nufft import FinufftPlan, radial_points

__all__ = [
    "CoilCompression",
    "region_compression",
    "rows_without",
    "streak_prone_coils",
    "streak_ratios",
    "svd_compression",
]

Covariance: TypeAlias = Complex128[np.ndarray, "coil coil"]
CoilFigures: TypeAlias = Float64[np.ndarray, "coil"]
CoilMatrix: TypeAlias = Complex64[np.ndarray, "virtual coil"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoilCompression:
    """A frozen coil compression.

    Attributes
    ----------
    matrix
        complex64 (virtual coil, coil), rows orthonormal.
    energy
        Share of the signal's energy (with the region method: inside the field of view) that the virtual
        coils keep, 0 … 1; NaN where nobody measured it.
    """

    matrix: CoilMatrix
    energy: float = math.nan

    def apply(self, data: SpokeData) -> SpokeData:
        """Return the virtual coils' data, complex64 (virtual coil, …), of data (coil, …)."""
        return np.tensordot(self.matrix, data, axes=1)


def svd_compression(data: FrameData, *, n_coils: int = 0, energy: float = 1.0) -> CoilCompression:
    """Return the compression onto the strongest singular vectors of the data.

    Buehrer et al. 2007, 10.1002/mrm.21237; Huang et al. 2008, 10.1016/j.mri.2007.04.010.

    Parameters
    ----------
    data
        complex64 (coil, spoke, readout), whitened.
    n_coils
        Virtual coils; 0: as many as ``energy`` asks for.
    energy
        Share of the energy to keep, used where ``n_coils`` is 0.

    Raises
    ------
    SettingsError
        More virtual coils are asked for than there are coils, or the energy is not in (0, 1].
    """
    covariance = _covariance(data)
    values, vectors = np.linalg.eigh(covariance)
    strongest = vectors[:, ::-1]
    if n_coils == 0:
        if not 0.0 < energy <= 1.0:
            raise SettingsError(f"energy to keep = {energy:g}: give a share above 0, at most 1.")
        shares = np.cumsum(np.maximum(values[::-1], 0.0)) / max(float(np.sum(np.maximum(values, 0.0))), 1e-300)
        # Rounding may leave the last sum a hair below 1.
        n_coils = min(int(np.searchsorted(shares, energy - 1e-9)) + 1, len(values))
    return _compression(strongest[:, : _checked(n_coils, len(values))], covariance)


def region_compression(data: FrameData, sampling: RadialSampling, matrix: int, *, n_coils: int) -> CoilCompression:
    """Return the compression that keeps the field of view and gives up what lies outside (ROVir).

    Maximises v*Av / v*Bv, A the coil covariance of the projections inside the field of view and B of
    those beyond it, where only things lie that streak into the image. Kim et al. 2021,
    10.1002/mrm.28706, here on the projections, which twofold oversampled readouts give for free.

    Parameters
    ----------
    data
        complex64 (coil, spoke, readout), whitened.
    sampling
        Where the samples lie on every spoke.
    matrix
        Width of the field of view, pixels.
    n_coils
        Virtual coils.

    Raises
    ------
    SettingsError
        The readout is not oversampled, so nothing is known of the outside; or too many virtual coils.
    """
    projections = np.fft.fft(data, axis=-1)
    # FFT bin m of n lies at s = m/(n·spacing) pixels, whatever sample the spoke's centre is.
    detector = np.abs(np.fft.fftfreq(sampling.n_readout)) / sampling.spacing
    inside = detector <= matrix / 2
    if np.mean(inside) > 0.9:
        raise SettingsError(
            f"compression.method = region needs an oversampled readout; this one spans {1 / sampling.spacing:.0f} "
            f"pixels for an image of {matrix}: use svd."
        )
    signal, unwanted = _covariance(projections[..., inside]), _covariance(projections[..., ~inside])
    # Noise alone outside makes B = σ²·1 and the method falls back to the SVD of the inside.
    floor = 1e-3 * float(np.trace(signal + unwanted).real) / len(signal)
    _, vectors = scipy.linalg.eigh(signal, unwanted + floor * np.eye(len(signal)))
    chosen, _ = np.linalg.qr(vectors[:, ::-1][:, : _checked(n_coils, len(signal))])
    return _compression(chosen, signal)


def rows_without(coils: Sequence[int], mixing: ComplexArray) -> CoilMatrix:
    """Return the matrix that takes coils out of whitened data as if they had been left out before whitening.

    Whitened data have a coil along its column of the whitening matrix. The rows are an orthonormal basis
    of what is orthogonal to the columns of these coils.

    Parameters
    ----------
    coils
        The coils to take out.
    mixing
        Inverse of the whitening matrix up to a factor, complex (coil, coil); the identity without whitening.
    """
    columns = np.linalg.inv(mixing)[:, list(coils)]
    return scipy.linalg.null_space(columns.conj().T).conj().T.astype(np.complex64)


def streak_prone_coils(
    data: FrameData, angles: SpokeAngles, sampling: RadialSampling, matrix: int, *, limit: float
) -> tuple[int, ...]:
    """Return the coils whose streaks stand out, no more than half of all.

    They are above ``limit`` times the median of the coils, both by themselves and relative to the coil's image
    (`streak_ratios`): a coil that sees little has a high ratio by its noise, and harms nothing. In an array
    whose coils differ more, as many small ones close to the body do, a coil must stand out more.
    Xue et al. 2012, Magn. Reson. Med. 67:470 (who leave such coils out).

    Parameters
    ----------
    data
        complex64 (coil, spoke, readout) of one slice, partition and echo, not whitened: whitening mixes the
        coils, and lays the streaks of one on others. The noise should be of one level.
    angles, sampling
        rad, float64 (spoke,); where the samples lie on every spoke.
    matrix
        Width of the field of view, pixels.
    limit
        Times the median; below 1 it is taken for 1.
    """
    streaks, smooth = _streaks(data, angles, sampling, matrix)
    # Inputs that nothing is plugged into would lower the median.
    used = np.flatnonzero(streaks)
    if not used.size:
        return ()
    high = np.ones(len(used), dtype=np.bool_)
    for values in (streaks[used], streaks[used] / smooth[used]):
        relative = values / np.median(values)
        typical = np.exp(np.median(np.abs(np.log(relative))))
        high &= relative > max(limit, 1.0) * typical**3
    return tuple(int(coil) for coil in used[high])


def streak_ratios(data: FrameData, angles: SpokeAngles, sampling: RadialSampling, matrix: int) -> CoilFigures:
    """Return the streak ratio of each coil, float64 (coil,).

    The mean difference between the coil's image and its streak-free low-resolution image, relative
    to the mean of the latter. The low resolution is what these spokes sample densely enough.
    Xue et al. 2012, Magn. Reson. Med. 67:470; Holme and Frahm
    2016, 10.21037/qims.2016.10.02 (on sinograms).

    Parameters
    ----------
    data
        complex64 (coil, spoke, readout) of one slice and partition.
    angles, sampling
        rad, float64 (spoke,); where the samples lie on every spoke.
    matrix
        Width of the field of view, pixels.
    """
    streaks, smooth = _streaks(data, angles, sampling, matrix)
    return streaks / smooth


def _streaks(
    data: FrameData, angles: SpokeAngles, sampling: RadialSampling, matrix: int
) -> tuple[CoilFigures, CoilFigures]:
    """Return the mean size of the streaks and of the streak-free image of each coil, float64 (coil,)."""
    points = radial_points(angles, sampling).reshape(-1, 2)
    plan = FinufftPlan((matrix, matrix), len(data)).set_points(points)
    radius = np.abs(sampling.positions)
    ramp = np.broadcast_to(radius, data.shape[1:]).ravel()
    # Neighbouring spokes are π·κ/S apart; denser than 1/matrix nothing streaks.
    dense = min(0.5, max(len(angles) / (np.pi * matrix), 2.0 / matrix))
    window = np.where(radius < dense, np.cos(np.pi / 2 * np.minimum(radius / dense, 1.0)) ** 2, 0.0)
    flat = data.reshape(len(data), -1)
    whole = np.abs(plan.adjoint(flat * ramp))
    smooth = np.abs(plan.adjoint(flat * ramp * np.tile(window, len(angles))))
    streaks = np.mean(np.abs(whole - smooth), axis=(1, 2))
    return streaks.astype(np.float64), np.maximum(np.mean(smooth, axis=(1, 2)), 1e-30).astype(np.float64)


def _covariance(data: np.ndarray[Any, Any]) -> Covariance:
    flat = data.reshape(len(data), -1).astype(np.complex128)
    return flat @ flat.conj().T


def _checked(n_coils: int, available: int) -> int:
    if not 1 <= n_coils <= available:
        raise SettingsError(f"{n_coils} virtual coils from {available} coils: give a number from 1 to {available}.")
    return n_coils


def _compression(vectors: Complex128[np.ndarray, "coil virtual"], covariance: Covariance) -> CoilCompression:
    kept = float(np.einsum("cv,cd,dv->", vectors.conj(), covariance, vectors).real)
    total = max(float(np.trace(covariance).real), 1e-300)
    return CoilCompression(matrix=vectors.conj().T.astype(np.complex64), energy=min(1.0, kept / total))
