"""Uncertainty of the temperature: by formula from the image noise, or from pre-heating frames."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray
from sinotherm.errors import SettingsError

__all__ = ["ENOUGH_FRAMES", "coverage_factor", "sigma_by_formula", "temporal_phase_sd"]

ENOUGH_FRAMES: Final = 30
"""Pre-heating frames from which a temporal SD is taken as it is; fewer are widened by Student's t."""


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


def temporal_phase_sd(products: Sequence[ComplexArray]) -> FloatArray:
    """Return the SD of the phase over pre-heating frames, float32 (slice, y, x), rad.

    Parameters
    ----------
    products
        complex64 (slice, y, x), one a frame: complex product with the mean of these same frames,
        drift taken out, so that the phases lie around zero.

    Raises
    ------
    SettingsError
        Fewer than two frames.
    """
    if len(products) < 2:
        raise SettingsError(
            f"{len(products)} pre-heating frames: a temporal SD needs 2 or more (thermometry.baseline_frames)."
        )
    phases = np.stack([np.angle(product) for product in products])
    return phases.std(axis=0, ddof=1).astype(np.float32, copy=False)


def coverage_factor(n_frames: int) -> float:
    """Return the factor by which a temporal SD of few frames is widened, so that ±1.96 σ covers 95 %.

    Student's t over the normal quantile, with n − 1 degrees of freedom; 1 from `ENOUGH_FRAMES` on.
    """
    if n_frames >= ENOUGH_FRAMES:
        return 1.0
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(n_frames - 1, 0.975) / ndtri(0.975)) if n_frames > 1 else math.inf
