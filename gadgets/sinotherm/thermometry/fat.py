"""Fat, which does not shift with temperature: found by its phase and its brightness."""

import logging
import math
from typing import Final

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, MaskArray
from sinotherm.core.physics import FAT_SHIFT
from sinotherm.thermometry.drift import polynomial_terms

__all__ = ["fat_phase", "find_fat"]

logger = logging.getLogger(__name__)

SMALLEST_OFFSET_RAD: Final = 0.6
_WINDOW_RAD: Final = 0.4
_ORDER: Final = 3
_STEPS: Final = 12
_EXPLAINED: Final = 0.7


def fat_phase(*, larmor_hz: float, echo_time_s: float, phase_sign: int) -> float:
    """Return the phase of fat against water at this TE, rad in (−π, π]."""
    angle = phase_sign * 2.0 * math.pi * larmor_hz * FAT_SHIFT * echo_time_s
    return float(np.angle(np.exp(1j * angle)))


def find_fat(image: ComplexArray, magnitude: FloatArray, level: float, offset_rad: float) -> MaskArray:
    """Return what is surely fat, bool (y, x); nothing where that cannot be said.

    Water's phase is taken as a smooth field (order 3, fitted robustly); fat is what differs from it by
    the offset that the echo time predicts and is brighter than the median of the body. Both must hold:
    a tumour has water's phase, whatever its brightness. Nothing is found where fat and water are in
    phase or where the two together explain less than 70 % of the body.

    Parameters
    ----------
    image, magnitude
        complex64 and float (y, x): combined baseline.
    level
        Signal below this is noise.
    offset_rad
        `fat_phase`.
    """
    from scipy import ndimage

    nothing = np.zeros(magnitude.shape, dtype=bool)
    if abs(offset_rad) < SMALLEST_OFFSET_RAD:
        logger.warning("fat is not looked for: at this TE its phase differs from water's by %.2f rad only", offset_rad)
        return nothing
    body = magnitude > level
    terms = polynomial_terms((magnitude.shape[0], magnitude.shape[1]), _ORDER)[:, body].T
    values, weights = image[body], magnitude[body].astype(np.float64)
    both_x, both_y = body[:, 1:] & body[:, :-1], body[1:] & body[:-1]
    coefficients = np.zeros(terms.shape[1])
    coefficients[1] = np.angle(np.vdot(image[:, :-1][both_x], image[:, 1:][both_x])) * magnitude.shape[1] / 2
    coefficients[2] = np.angle(np.vdot(image[:-1][both_y], image[1:][both_y])) * magnitude.shape[0] / 2
    coefficients[0] = np.angle(np.sum(values * np.exp(-1j * (terms @ coefficients))))
    for _ in range(_STEPS):
        residual = np.angle(values * np.exp(-1j * (terms @ coefficients)))
        # What already lies at fat's phase is taken as fat and tells about the same field.
        fatty = np.abs(np.angle(np.exp(1j * (residual - offset_rad)))) < np.abs(residual)
        residual = np.where(fatty, np.angle(np.exp(1j * (residual - offset_rad))), residual)
        near = weights / (1.0 + (residual / _WINDOW_RAD) ** 2) ** 2
        weighted = terms * near[:, None]
        coefficients += np.linalg.lstsq(weighted.T @ terms, weighted.T @ residual, rcond=None)[0]
    residual = np.angle(values * np.exp(-1j * (terms @ coefficients)))
    from_fat = np.abs(np.angle(np.exp(1j * (residual - offset_rad))))
    is_fat = (from_fat < _WINDOW_RAD) & (magnitude[body] > np.median(magnitude[body]))
    explained = float(np.mean((from_fat < _WINDOW_RAD) | (np.abs(residual) < _WINDOW_RAD)))
    if explained < _EXPLAINED or is_fat.mean() > 0.5:
        logger.warning(
            "fat is not masked: water and fat of one smooth field explain %.0f %% of the body (%.0f %% fat)",
            100 * explained,
            100 * is_fat.mean(),
        )
        return nothing
    found = nothing.copy()
    found[body] = is_fat
    return ndimage.binary_opening(found)
