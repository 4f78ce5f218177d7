"""Uncertainty of the temperature: by formula from the image noise, or from pre-heating frames."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, MaskArray
from sinotherm.errors import SettingsError

__all__ = [
    "ENOUGH_FRAMES",
    "POOL",
    "coverage_factor",
    "sigma_by_formula",
    "sigma_of_change",
    "temporal_phase_sd",
    "uncertainty_of_fit",
    "variance_of_fit",
]

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
    """Return σ_T = sqrt(1/SNR_t² + 1/(N_eff·SNR_0²)) / |dφ/dT|, float32 (slice, y, x), °C.

    It is infinite without signal, and where the noise is 0 or not finite, for then nobody measured it. It holds for
    linear reconstructions whose frame and baseline lie on the same spokes: streaks are not noise.

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
    known = (noise_sd > 0.0) & (baseline_noise_sd > 0.0) & ~np.isnan(sigma)
    return np.where(known, sigma, np.float32(np.inf)).astype(np.float32, copy=False)


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
        complex64 (slice, y, x), one a frame: complex product with what it is compared with (the mean of these same
        frames, a reference), drift taken out, so that the phases lie around zero.
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


def uncertainty_of_fit(
    design: FloatArray,
    residual: FloatArray,
    sd: FloatArray,
    *,
    prior: FloatArray,
    kept: FloatArray,
    places: MaskArray,
) -> FloatArray:
    """Return a root R of the covariance R·Rᵀ of the coefficients of a weighted fit, float64 (term, term).

    (XᵀWX)⁻¹ XᵀWVWX (XᵀWX)⁻¹, X the design, V the covariance of the values; of weighted least squares with the
    right weights that is (XᵀWX)⁻¹. W = P·K are the weights: by noise, and of a robust fit. K counts once, not squared,
    in the middle: within 15 % of the variance of the M-estimators used here, on the safe side.

    V has sd² on its diagonal. Noise that neighbours share makes the fit worse than their number tells: between each
    value and its eight neighbours on the grid stands the mean correlation of their residuals, plus that which
    the fit itself takes from them. Where it would make a combination of terms more certain, it counts as none.
    n − t degrees of freedom are left, t the terms, each as often as it counts in that noise; few are widened by
    `coverage_factor`. Noise that is smooth over most of the values cannot be told from the fitted field: drift of order
    1 in 16 blocks of 4 voxels, noise with an FWHM of 4.7 voxels: σ_T too small by 1.3 (white noise: too large by 1.1).

    Parameters
    ----------
    design
        float64 (value, term).
    residual, sd
        (value,): what the fit leaves, and its SD by a robust estimate.
    prior, kept
        (value,): P, and K from 0 to 1.
    places
        bool (y, x): where the values lie on the grid, in the order of rows.

    References
    ----------
    Sandwich covariance: Huber 1967 (Proc. 5th Berkeley Symp. 1, 221). With values correlated in space: Conley
    1999, 10.1016/S0304-4076(98)00084-0.
    """
    count, weights = float(kept.sum()), prior * kept
    basis, triangle = np.linalg.qr(design * (np.sqrt(weights * prior) * sd)[:, None])
    values = np.column_stack([kept, np.sqrt(kept) * residual / sd, basis])
    near = _neighbours(values, places)
    links = basis.T @ near[:, 2:]
    pairs, own = float(kept @ near[:, 0]), float(np.square(values[:, 1]).sum())
    correlation = 0.0
    if pairs > 0.0 and own > 0.0:
        shared = float(values[:, 1] @ near[:, 1]) / own * (count - len(links)) + float(np.trace(links))
        correlation = min(1.0, max(0.0, shared / pairs))
    strengths, directions = np.linalg.eigh(0.5 * (links + links.T))
    factors = np.maximum(1.0, 1.0 + correlation * strengths)
    freedom = max(1.0, count - float(factors.sum()))
    widening = coverage_factor(max(1.0, freedom / (1.0 + correlation * pairs / count)))
    # Nothing is cut off: a combination of terms that the values do not tell is uncertain, not zero.
    inverse = np.linalg.pinv(design.T @ (design * weights[:, None]), rcond=0.0, hermitian=True)
    root = inverse @ triangle.T @ (directions * np.sqrt(factors))
    return np.asarray(root * (math.sqrt(count / freedom) * widening))


def _neighbours(values: FloatArray, places: MaskArray) -> FloatArray:
    """Return the sums over the eight neighbours on the grid, (value, column)."""
    grid = np.zeros((places.shape[0] + 2, places.shape[1] + 2, values.shape[1]))
    grid[1:-1, 1:-1][places] = values
    rows = grid[:-2] + grid[1:-1] + grid[2:]
    return np.asarray((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:])[places] - values)


def variance_of_fit(terms: FloatArray, root: FloatArray) -> FloatArray:
    """Return the variance Σ(termsᵀ·R)² of a fit, float32 (…), from float32 terms (term, …) and `uncertainty_of_fit`."""
    parts = np.ascontiguousarray(root.T, dtype=np.float32) @ terms.reshape(len(terms), -1)
    return np.asarray(np.einsum("tv,tv->v", parts, parts).reshape(terms.shape[1:]))
