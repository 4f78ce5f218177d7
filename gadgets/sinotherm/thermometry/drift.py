"""B0 drift: a polynomial in space, fitted in tissue that is not heated, robustly.

The phase is taken from complex sums over blocks of voxels, so that noise is averaged before an angle
is formed and the fit costs little. Coordinates of the polynomial run from −1 to 1 over the image.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, PlaneMask
from sinotherm.errors import SettingsError
from sinotherm.thermometry.noise import uncertainty_of_fit, variance_of_fit

__all__ = ["DriftEstimator", "DriftFit", "monomials", "periphery_mask", "polynomial_terms"]

BLOCK: Final = 4
MAX_ITERATIONS: Final = 30
STOP_DEGC: Final = 1e-3
RIM_DEPTH_M: Final = 10e-3
_ENOUGH_BLOCKS: Final = 200
"""Blocks below which a fit of order 2 takes smaller ones: a rim tells what rises from it to the middle by its thickness
alone, which blocks as wide as the rim average out."""
_FLOOR_DEGC: Final = 2e-3
_LEAST_SIGNAL: Final = 0.05
"""Median signal of the cold blocks relative to the baseline's, below which there is none to fit."""
_PRESENT: Final = 0.25
_CAUCHY: Final = 2.385
_QUANTILE: Final = 0.3
_START_WIDTH: Final = 3.5
_END_WIDTH: Final = 1.5
_MOST_RESIDUAL_RAD: Final = 0.75
"""Blocks that scatter by more hold noise, not one phase: that of nothing is spread over ±π, an SD of 1.8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftFit:
    """Result of the fit of one slice.

    Attributes
    ----------
    field_degc
        float32 (y, x): what the drift adds to the temperature, °C.
    coefficients_degc
        Of 1, x, y (, x², x·y, y²), coordinates from −1 to 1.
    voxels
        Voxels of the cold mask that the fit kept.
    condition
        Condition number of the weighted design matrix.
    residual_degc
        Robust SD of the residual of a block, °C.
    iterations
        Of the reweighting.
    problem
        Why the fit failed; empty where it holds. A failed fit's field is zero.
    uncertainty
        Root of the covariance of the coefficients, float64 (term, term), °C; ``None`` where the fit failed.
    """

    field_degc: FloatArray
    coefficients_degc: tuple[float, ...]
    voxels: int
    condition: float
    residual_degc: float
    iterations: int
    problem: str = ""
    uncertainty: FloatArray | None = None


def monomials(x: FloatArray, y: FloatArray, order: int) -> FloatArray:
    """Return 1, x, y, x², x·y, y² … up to ``order``, float64 (term, …).

    Raises
    ------
    SettingsError
        The order is not 0 to 6.
    """
    if not 0 <= order <= 6:
        raise SettingsError(f"polynomial of order {order}: it is 0 to 6.")
    return np.stack([x ** (degree - j) * y**j for degree in range(order + 1) for j in range(degree + 1)])


def polynomial_terms(shape: tuple[int, int], order: int) -> FloatArray:
    """Return the `monomials` on the image, float64 (term, y, x), with x and y from −1 to 1."""
    y = (np.arange(shape[0]) - shape[0] // 2)[:, None] / (shape[0] / 2) + np.zeros(shape)
    x = (np.arange(shape[1]) - shape[1] // 2)[None, :] / (shape[1] / 2) + np.zeros(shape)
    return monomials(x, y, order)


def periphery_mask(magnitude: FloatArray, threshold: float, pixel_m: tuple[float, float]) -> PlaneMask:
    """Return the outer 10 mm of what gives signal, bool (y, x): where no heating is expected.

    Deep heating leaves the periphery of the body coldest, the subcutaneous fat there does not shift
    at all, and it surrounds what is heated, so that the drift inside is interpolated; oil tubes beside
    the body are taken whole. What is heated there all the same the fit leaves out, as far as a lowest surface is
    left to see; cooled tissue becomes that surface (a water bolus: see the limits in the documentation).
    """
    from scipy import ndimage

    solid = ndimage.binary_fill_holes(ndimage.binary_opening(magnitude > threshold, iterations=2))
    depth = ndimage.distance_transform_edt(np.pad(solid, 1), sampling=(pixel_m[1], pixel_m[0]))[1:-1, 1:-1]
    # The outermost pixel is half air.
    edge = 1.2 * max(pixel_m)
    return (magnitude > threshold) & (depth > edge) & (depth <= edge + RIM_DEPTH_M)


def _least_squares(design: FloatArray, values: FloatArray, weights: FloatArray) -> FloatArray:
    weighted = design * weights[:, None]
    return np.linalg.lstsq(weighted.T @ design, weighted.T @ values, rcond=None)[0]


class DriftEstimator:
    """Fits the drift of one slice, frame after frame.

    Parameters
    ----------
    magnitude
        float (y, x): magnitude of the baseline.
    mask
        bool (y, x): voxels that are not heated.
    order
        Order of the polynomial.
    one_sided
        The mask was found, not given: some of it may be heated (never cooled), so the fit seeks the
        lowest surface that the voxels share instead of their middle.
    min_voxels, max_condition
        Gates of the fit.

    References
    ----------
    Robust drift correction in PRF thermometry: Bing et al. 2016, 10.1186/s40349-016-0067-7.
    """

    def __init__(
        self,
        *,
        magnitude: FloatArray,
        mask: PlaneMask,
        order: int,
        one_sided: bool,
        min_voxels: int,
        max_condition: float,
    ) -> None:
        self._shape = magnitude.shape
        self._terms = polynomial_terms((magnitude.shape[0], magnitude.shape[1]), order)
        self._single = self._terms.astype(np.float32)
        self._one_sided = one_sided
        self._min_voxels = min_voxels
        self._max_condition = max_condition
        power = np.where(mask, np.asarray(magnitude, dtype=np.float64) ** 2, 0.0)
        self._mask = np.asarray(mask, dtype=bool)
        self._power = power
        self._block = BLOCK
        while order > 1 and self._block > 1 and np.count_nonzero(self._blocks(power)) < _ENOUGH_BLOCKS:
            self._block //= 2
        block_power = self._blocks(power)
        self._rows = block_power > 0.0
        self._block_power = block_power[self._rows]
        self._places = np.nonzero(self._rows)
        self._voxels = self._blocks(self._mask.astype(np.float64))[self._rows]
        # The phase of a complex sum is the power-weighted mean of the phases: so is its place.
        self._design = np.stack([self._blocks(power * term)[self._rows] for term in self._terms], axis=1)
        self._design /= self._block_power[:, None]

    def _blocks(self, values: FloatArray) -> FloatArray:
        """Return the sums over square blocks of voxels."""
        size = self._block
        ny, nx = (-(-n // size) for n in self._shape)
        if values.shape != (ny * size, nx * size):
            values = np.pad(values, ((0, ny * size - values.shape[0]), (0, nx * size - values.shape[1])))
        return values.reshape(ny, size, nx, size).sum(axis=(1, 3))

    def field(self, coefficients: tuple[float, ...]) -> FloatArray:
        """Return the field of these coefficients, float32 (y, x), °C."""
        return np.einsum("t,tyx->yx", np.asarray(coefficients, dtype=np.float64), self._terms).astype(np.float32)

    def variance(self, fit: DriftFit) -> FloatArray:
        """Return the variance of the field of a fit, float32 (y, x), °C²: small amid the cold tissue, large far off."""
        if fit.uncertainty is None:
            return np.zeros(self._shape, dtype=np.float32)
        return variance_of_fit(self._single, fit.uncertainty)

    def _failed(self, problem: str, *, voxels: int = 0, condition: float = 0.0) -> DriftFit:
        return DriftFit(
            field_degc=np.zeros(self._shape, dtype=np.float32),
            coefficients_degc=(),
            voxels=voxels,
            condition=condition,
            residual_degc=0.0,
            iterations=0,
            problem=problem,
        )

    def fit(self, product: ComplexArray, phase: FloatArray, degc_per_radian: float) -> DriftFit:
        """Fit the drift of a frame.

        Parameters
        ----------
        product
            complex64 (y, x): complex product of frame and baseline.
        phase
            float32 (y, x), rad: its unwrapped angle.
        degc_per_radian
            °C that 1 rad stands for.
        """
        sums = self._blocks(np.where(self._mask, product, 0))[self._rows]
        signal = np.abs(sums)
        # Blocks that went dark in this frame (or hold nothing finite) have no phase to tell.
        level = float(np.median(signal / self._block_power)) if len(signal) else 0.0
        present = signal > _PRESENT * level * self._block_power
        voxels = int(self._voxels[present].sum())
        if not level >= _LEAST_SIGNAL and voxels >= self._min_voxels:
            # Noise can agree on a drift by chance.
            return self._failed(
                f"the cold voxels hold no signal: {100.0 * level:.1f} % of the baseline's", voxels=voxels
            )
        if voxels < self._min_voxels:
            return self._failed(f"{voxels} cold voxels: {self._min_voxels} are needed", voxels=voxels)
        design, power = self._design[present], self._block_power[present]
        branch = self._blocks(self._power * phase)[self._rows][present] / power
        values = (branch + np.angle(sums[present] * np.exp(-1j * branch))) * degc_per_radian
        # Relative weights by noise, levelled off where the noise is no longer what limits.
        relative = power / np.median(power)
        prior = relative / (1.0 + relative)
        solve = self._lowest if self._one_sided else self._middle
        coefficients, scale, weights, iterations = solve(design, values, prior, np.sqrt(1.0 / relative))
        kept = int(self._voxels[present][np.abs(values - design @ coefficients) < 3.0 * scale].sum())
        condition = float(np.linalg.cond(design * np.sqrt(weights / weights.max())[:, None]))
        if kept < self._min_voxels:
            return self._failed(
                f"{kept} cold voxels agree on one drift: {self._min_voxels} are needed",
                voxels=kept,
                condition=condition,
            )
        spread = float(np.median(scale)) / abs(degc_per_radian)
        if not spread <= _MOST_RESIDUAL_RAD:
            return self._failed(
                f"the cold voxels scatter by {spread:.2f} rad around any drift: they hold no signal",
                voxels=kept,
                condition=condition,
            )
        if not condition <= self._max_condition:
            return self._failed(
                f"condition number {condition:.3g} of the fit exceeds {self._max_condition:.3g}: "
                "take a lower order or a cold mask that spreads wider",
                voxels=kept,
                condition=condition,
            )
        places = np.zeros(self._rows.shape, dtype=bool)
        places[self._places[0][present], self._places[1][present]] = True
        uncertainty = uncertainty_of_fit(
            design, values - design @ coefficients, scale, prior=prior, kept=weights / prior, places=places
        )
        found = tuple(float(value) for value in coefficients)
        return DriftFit(
            field_degc=self.field(found),
            coefficients_degc=found,
            voxels=kept,
            condition=condition,
            residual_degc=float(np.median(scale)),
            iterations=iterations,
            uncertainty=uncertainty,
        )

    @staticmethod
    def _middle(
        design: FloatArray, values: FloatArray, prior: FloatArray, spread: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, int]:
        """Fit a given mask: iteratively reweighted by 1/(1 + r²), r in 2.385 robust SD of the residuals.

        That unit keeps 95 % of the efficiency of least squares in Gaussian noise. Holland and Welsch
        1977, 10.1080/03610927708827533.
        """
        weights = prior
        coefficients = _least_squares(design, values, weights)
        scale, iterations, moved = spread, 0, np.inf
        while iterations < MAX_ITERATIONS and moved >= STOP_DEGC:
            iterations += 1
            residual = values - design @ coefficients
            scale = np.maximum(1.4826 * np.median(np.abs(residual) / spread) * spread, _FLOOR_DEGC)
            weights = prior / (1.0 + (residual / (_CAUCHY * scale)) ** 2)
            change = _least_squares(design, values, weights) - coefficients
            coefficients = coefficients + change
            moved = np.abs(design @ change).max()
        return coefficients, scale, weights, iterations

    @staticmethod
    def _lowest(
        design: FloatArray, values: FloatArray, prior: FloatArray, spread: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, int]:
        """Fit a found mask: from a low quantile up to the lowest surface on which the blocks gather.

        Heating only raises a block, so that the residuals below the surface are noise alone and give its scale.
        The window narrows to where noise, not heated tissue, decides. A method of this project, from no paper.
        """
        coefficients = _least_squares(design, values, prior)
        for _ in range(MAX_ITERATIONS // 2):
            residual = values - design @ coefficients
            tilt = np.where(residual > 0.0, _QUANTILE, 1.0 - _QUANTILE) / np.maximum(np.abs(residual), 0.05)
            coefficients = _least_squares(design, values, prior * tilt)
        width, moved = _START_WIDTH, np.inf
        scale, weights, iterations = spread, prior, 0
        while iterations < MAX_ITERATIONS and (width > _END_WIDTH or moved >= STOP_DEGC):
            iterations += 1
            width = max(_END_WIDTH, 0.85 * width)
            residual = values - design @ coefficients
            below = residual <= np.median(residual)
            scale = np.maximum(1.4826 * np.median(np.abs(residual[below]) / spread[below]) * spread, _FLOOR_DEGC)
            weights = prior * np.exp(-0.5 * (residual / (width * scale)) ** 2)
            change = _least_squares(design, values, weights) - coefficients
            coefficients = coefficients + change
            moved = np.abs(design @ change).max()
        return coefficients, scale, weights, iterations
