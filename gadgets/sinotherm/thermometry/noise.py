"""Uncertainty of the temperature: by formula from the image noise, or from pre-heating frames."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, MaskArray
from sinotherm.errors import SettingsError

__all__ = ["ENOUGH_FRAMES", "POOL", "coverage_factor", "sigma_by_formula", "sigma_of_change", "temporal_phase_sd"]

ENOUGH_FRAMES: Final = 30
"""Frames whose temporal SD is taken as it is; one of fewer degrees of freedom is widened by Student's t."""
POOL: Final = 7
"""Side of the window over which the temporal SD is pooled, voxels."""


def sigma_by_formula(
    *,
    signal: FloatArray,
    noise_sd: FloatArray,
    baseline_signal: FloatArray,
    baseline_noise_sd: FloatArray,
    n_effective: float,
    degc_per_radian: float,
) -> FloatArray:
    """Return σ_T = sqrt(1/SNR_t² + 1/(N_eff·SNR_0²)) / |dφ/dT|, float32 (slice, y, x), °C; inf without signal.

    It holds for linear reconstructions whose frame and baseline lie on the same spokes: streaks are not noise.

    Parameters
    ----------
    signal, baseline_signal
        |S| of the frame and of the baseline, float32 (slice, y, x).
    noise_sd, baseline_noise_sd
        SD of the real part of the noise of the frame and of one baseline frame, the same unit and shape.
    n_effective
        Independent baseline frames (sliding windows share spokes).
    degc_per_radian
        °C that 1 rad stands for.

    References
    ----------
    Conturo and Smith 1990, 10.1002/mrm.1910150308 (σ_φ = σ/|S|).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (noise_sd / signal) ** 2 + (baseline_noise_sd / baseline_signal) ** 2 / np.float32(n_effective)
        sigma = np.sqrt(variance) * np.float32(abs(degc_per_radian))
    return np.where(np.isnan(sigma), np.float32(np.inf), sigma).astype(np.float32, copy=False)


def sigma_of_change(change: FloatArray, mask: MaskArray, per_degc: float, per_gradient: float) -> FloatArray:
    """Return the SD of a network's error that grows with what it shows, float32 (slice, y, x), °C.

    A network shrinks what is narrow or rare, which no frame before heating can tell:
    σ² = (a·|ΔT|)² + (b·|∇ΔT|)². ΔT is averaged over a Gaussian of 1 voxel inside the mask, so that its
    own noise does not count as gradient.

    Parameters
    ----------
    change
        float32 (slice, y, x), °C.
    mask
        bool (slice, y, x): voxels with signal; 0 elsewhere.
    per_degc, per_gradient
        a, and b in voxels; from the model card, where they are set on validation people.
    """
    from scipy import ndimage

    def averaged(values: FloatArray) -> FloatArray:
        return np.asarray(ndimage.gaussian_filter(values, (0.0, 1.0, 1.0)))

    inside = mask & np.isfinite(change)
    share = averaged(inside.astype(np.float32))
    shown = np.where(inside, averaged(np.where(inside, change, np.float32(0.0))) / np.maximum(share, 1e-3), 0.0)
    down, along = np.gradient(shown, axis=(1, 2))
    variance = (per_degc * shown) ** 2 + per_gradient**2 * (down**2 + along**2)
    return np.where(inside, np.sqrt(variance), 0.0).astype(np.float32)


def temporal_phase_sd(products: Sequence[ComplexArray], mask: MaskArray) -> FloatArray:
    """Return the SD of the phase over pre-heating frames, float32 (slice, y, x), rad.

    The noise of the image, SD times signal, is pooled over `POOL` × `POOL` voxels of the mask: a voxel's
    own SD of few frames scatters so much that σ_T would be too small in one place and too large in the
    next. What scatter is left is made up for by `coverage_factor`.

    Parameters
    ----------
    products
        complex64 (slice, y, x), one a frame: complex product with the mean of these same frames,
        drift taken out, so that the phases lie around zero.
    mask
        bool (slice, y, x): voxels with signal; the others keep the SD of their own.

    Raises
    ------
    SettingsError
        Fewer than two frames.
    """
    n_frames = len(products)
    if n_frames < 2:
        raise SettingsError(
            f"{n_frames} pre-heating frames: a temporal SD needs 2 or more (thermometry.baseline_frames)."
        )
    from scipy import ndimage

    phases = np.stack([np.angle(product) for product in products])
    deviations = phases - phases.mean(axis=0)
    own = np.square(deviations).sum(axis=0) / (n_frames - 1)
    signal = np.mean([np.abs(product) for product in products], axis=0)
    window, inside = (1, POOL, POOL), mask.astype(np.float64)
    share = ndimage.uniform_filter(inside, window, mode="constant")
    noise = ndimage.uniform_filter(inside * own * signal, window, mode="constant") / np.where(mask, share, 1.0)
    pooled = np.where(mask, noise / np.where(mask, signal, 1.0), own)
    scores = np.where(mask, deviations / np.sqrt(np.where(pooled > 0.0, pooled, 1.0)), 0.0)
    freedom = (n_frames - 1) * _independent(scores, mask)
    widening = np.where(mask, coverage_factor(freedom), coverage_factor(n_frames - 1))
    return (widening * np.sqrt(pooled)).astype(np.float32)


def _independent(scores: FloatArray, mask: MaskArray) -> float:
    """Return how many independent voxels a pool of `POOL` × `POOL` holds.

    The variance of a mean of squares of n Gaussian values is 2·Σ_ij ρ_ij²/n² of their variance squared:
    that of n²/Σ_ij ρ_ij² independent ones. ρ is the autocorrelation of the scores (frame, slice, y, x).
    """
    size = [2 * n for n in scores.shape[-2:]]

    def correlated(values: FloatArray) -> FloatArray:
        power = np.square(np.abs(np.fft.rfft2(values, size))).reshape(-1, size[0], size[1] // 2 + 1).sum(axis=0)
        offsets = np.arange(-POOL + 1, POOL)
        return np.asarray(np.fft.irfft2(power, size)[np.ix_(offsets, offsets)])

    pairs = correlated(mask.astype(np.float64)) * len(scores)
    products = correlated(scores)
    zero = products[POOL - 1, POOL - 1]
    if not zero > 0.0:
        return 1.0
    usual = products / np.maximum(pairs, 1.0) * (pairs[POOL - 1, POOL - 1] / zero)
    overlap = POOL - np.abs(np.arange(-POOL + 1, POOL))
    within = float(np.sum(np.outer(overlap, overlap) * np.where(pairs > 0.5, usual, 1.0) ** 2))
    return max(1.0, POOL**4 / within)


def coverage_factor(freedom: float) -> float:
    """Return the factor by which an SD of few degrees of freedom is widened, so that ±1.96 σ covers 95 %.

    Student's t over the normal quantile; 1 from `ENOUGH_FRAMES` − 1 on.
    """
    if freedom >= ENOUGH_FRAMES - 1:
        return 1.0
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedom, 0.975) / ndtri(0.975))
