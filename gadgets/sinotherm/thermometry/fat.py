"""Fat, which does not shift with temperature: found by its phase and its brightness."""

import logging
import math
from typing import Final

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, PlaneMask
from sinotherm.core.physics import FAT_SHIFT
from sinotherm.thermometry.drift import polynomial_terms

__all__ = ["fat_at_echo", "fat_phase", "find_fat"]

logger = logging.getLogger(__name__)

SMALLEST_OFFSET_RAD: Final = 0.6
_WINDOW_RAD: Final = 0.3
_ORDER: Final = 3
_STEPS: Final = 8
_EXPLAINED: Final = 0.7


def fat_phase(*, larmor_hz: float, echo_time_s: float, phase_sign: int) -> float:
    """Return the phase of fat against water at this TE, rad in (−π, π]."""
    angle = phase_sign * 2.0 * math.pi * larmor_hz * FAT_SHIFT * echo_time_s
    return float(np.angle(np.exp(1j * angle)))


def _residuals(
    values: ComplexArray, terms: FloatArray, coefficients: FloatArray, offset_rad: float
) -> tuple[FloatArray, FloatArray]:
    """Return the phase of every voxel against water's and against fat's, rad."""
    flat = values * np.exp(-1j * (terms @ coefficients))
    return np.angle(flat), np.angle(flat * np.exp(-1j * offset_rad))


def _water_field(values: ComplexArray, terms: FloatArray, start: FloatArray, offset_rad: float) -> FloatArray:
    """Fit water's phase by rising order; what lies nearer to fat's phase tells about the same field as fat."""
    coefficients = start
    for order in (1, 2, 3):
        used = (order + 1) * (order + 2) // 2
        for _ in range(_STEPS):
            water, fatty = _residuals(values, terms, coefficients, offset_rad)
            nearest = np.where(np.abs(fatty) < np.abs(water), fatty, water)
            weighted = terms[:, :used] / (1.0 + (nearest / _WINDOW_RAD) ** 2)[:, None] ** 2
            change = np.linalg.lstsq(weighted.T @ terms[:, :used], weighted.T @ nearest, rcond=None)[0]
            coefficients = coefficients.copy()
            coefficients[:used] += change
    return coefficients


def find_fat(image: ComplexArray, magnitude: FloatArray, level: float, offset_rad: float) -> PlaneMask:
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
    values = image[body]
    both_x, both_y = body[:, 1:] & body[:, :-1], body[1:] & body[:-1]
    start = np.zeros(terms.shape[1])
    start[1] = np.angle(np.vdot(image[:, :-1][both_x], image[:, 1:][both_x])) * magnitude.shape[1] / 2
    start[2] = np.angle(np.vdot(image[:-1][both_y], image[1:][both_y])) * magnitude.shape[0] / 2
    start[0] = np.angle(np.sum(values * np.exp(-1j * (terms @ start))))
    best, residual, from_fat = -1.0, np.zeros(len(values)), np.zeros(len(values))
    # Where the mean phase lies between the two is not known beforehand.
    for share in (0.0, -0.25, -0.5, -0.75, -1.0):
        shifted = start.copy()
        shifted[0] += share * offset_rad
        water, fatty = _residuals(values, terms, _water_field(values, terms, shifted, offset_rad), offset_rad)
        explained = float(np.mean(np.minimum(np.abs(water), np.abs(fatty)) < _WINDOW_RAD))
        if explained > best:
            best, residual, from_fat = explained, np.abs(water), np.abs(fatty)
    is_fat = (from_fat < _WINDOW_RAD) & (from_fat < residual) & (magnitude[body] > np.median(magnitude[body]))
    if best < _EXPLAINED or is_fat.mean() > 0.5:
        logger.warning(
            "fat is not masked: water and fat of one smooth field explain %.0f %% of the body (%.0f %% fat)",
            100 * best,
            100 * is_fat.mean(),
        )
        return nothing
    found = nothing.copy()
    found[body] = is_fat
    return ndimage.binary_opening(found)


def fat_at_echo(
    image: ComplexArray, *, min_signal: float, larmor_hz: float, echo_time_s: float, phase_sign: int
) -> PlaneMask:
    """Return what is surely fat in a combined image (y, x), by `find_fat`, bool (y, x).

    Signal below ``min_signal`` of the 99th percentile is noise; the other arguments are those of `fat_phase`.
    """
    size = np.abs(image)
    offset = fat_phase(larmor_hz=larmor_hz, echo_time_s=echo_time_s, phase_sign=phase_sign)
    return find_fat(image, size, min_signal * float(np.percentile(size, 99.0)), offset)
