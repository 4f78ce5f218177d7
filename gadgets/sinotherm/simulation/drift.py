"""The main field: its static error and its drift, as polynomials in space and time."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import SettingsError

__all__ = ["FieldDrift", "polynomial_terms", "random_drift", "static_field"]


def polynomial_terms(matrix: int, order: int) -> Float64[np.ndarray, "term y x"]:
    """Return the monomials x^i y^j with i + j ≤ order, float64 (term, y, x), by rising degree.

    x and y run over [−1, 1) across the field of view and are 0 at pixel n//2.
    """
    axis = (np.arange(matrix) - matrix // 2) / (matrix / 2.0)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    powers = [(degree - j, j) for degree in range(order + 1) for j in range(degree + 1)]
    return np.stack([x**i * y**j for i, j in powers])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FieldDrift:
    """Drift of the resonance frequency: Σ_jm coefficients[j, m] · p_j(x, y) · (t/duration)^(m+1), Hz.

    Attributes
    ----------
    coefficients
        float64 (space term, time power − 1), Hz; the terms of `polynomial_terms`.
    duration_s
        Time at which the drift has its full size.
    matrix
        Rows and columns of the grid.
    """

    coefficients: Float64[np.ndarray, "term power"]
    duration_s: float
    matrix: int

    @property
    def terms(self) -> Float64[np.ndarray, "term y x"]:
        """The monomials in space."""
        order = round((math.sqrt(8 * len(self.coefficients) + 1) - 3) / 2)
        return polynomial_terms(self.matrix, order)

    def course(self, times_s: FloatArray) -> Float64[np.ndarray, "time term"]:
        """Return the coefficient of each term in space at the given times, Hz."""
        powers = np.arange(1, self.coefficients.shape[1] + 1)
        return (np.asarray(times_s)[:, None] / self.duration_s) ** powers @ self.coefficients.T

    def frequency(self, times_s: FloatArray) -> Float64[np.ndarray, "time y x"]:
        """Return the frequency offset at the given times, Hz; 0 at time 0."""
        return np.tensordot(self.course(times_s), self.terms, axes=1)


def random_drift(
    amplitude_hz: float,
    *,
    order_space: int,
    order_time: int,
    duration_s: float,
    body: Bool[np.ndarray, "y x"],
    random: np.random.Generator,
) -> FieldDrift:
    """Return a drift whose largest value in the body at the end of the scan is ``amplitude_hz``.

    The uniform part is the largest, as a magnet's drift is; gradients and curvature follow from warming
    shims. Half of the course is quadratic at the second order in time. El-Sharkawy et al. 2006,
    10.1007/s10334-006-0051-0.

    Raises
    ------
    SettingsError
        An order is not 0, 1 or 2.
    """
    for name, order in (("order in space", order_space), ("order in time", order_time)):
        if order not in (0, 1, 2):
            raise SettingsError(f"drift of {name} {order}: it must be 0, 1 or 2.")
    matrix = body.shape[0]
    terms = polynomial_terms(matrix, order_space)
    degree = np.repeat(np.arange(order_space + 1), np.arange(order_space + 1) + 1)
    end = random.uniform(-1.0, 1.0, len(terms)) * 0.5**degree
    end[0] = math.copysign(1.0, end[0])
    reached = np.max(np.abs(np.tensordot(end, terms, axes=1))[body])
    shares = np.array({0: [0.0], 1: [1.0], 2: [0.5, 0.5]}[order_time])
    return FieldDrift(
        coefficients=np.outer(end * (amplitude_hz / reached), shares), duration_s=duration_s, matrix=matrix
    )


def static_field(
    amplitude_hz: float, *, body: Bool[np.ndarray, "y x"], random: np.random.Generator
) -> Float64[np.ndarray, "y x"]:
    """Return what the shim leaves: a polynomial of order 3 of at most ``amplitude_hz`` in the body, Hz."""
    terms = polynomial_terms(body.shape[0], 3)[1:]
    field = np.tensordot(random.standard_normal(len(terms)), terms, axes=1)
    field -= field[body].mean()
    # Outside of the body the polynomial grows without bound, where nothing gives signal.
    field = np.where(body, field, 0.0)
    return field * (amplitude_hz / np.max(np.abs(field)))
