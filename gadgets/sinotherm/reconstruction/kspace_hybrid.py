"""Temperature phase straight from undersampled k-space (k-space hybrid model).

The heated image is the baseline's, turned by a smooth drift and by a sparse heating phase of known sign:
x = b·exp(i(P c + s·θ)), θ ≥ 0. Minimises ½‖W^½(A x − y)‖²/L + λ·a²·Σ θ over θ and c; with θ ≥ 0 the
ℓ1 norm is linear and the problem smooth in a box. Then θ is fitted again where it is not 0 and
without the penalty, which takes the penalty's bias away. Gaur and Grissom 2015, 10.1002/mrm.25327.
Sparsity suits focal heating (ultrasound); diffuse heating (RF hyperthermia) breaks it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Complex64, Float32

from sinotherm.core.arrays import ComplexArray, FloatArray, FrameData, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError
from sinotherm.reconstruction.cg_sense import sample_weights
from sinotherm.reconstruction.sense_normal import SenseNormal

__all__ = ["HybridPhase", "kspace_hybrid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridPhase:
    """What the k-space hybrid model found.

    Attributes
    ----------
    heating
        Phase by heating with its sign, rad, float32 (y, x).
    drift
        Smooth phase, rad, float32 (y, x).
    iterations
        Evaluations of the normal operator.
    """

    heating: Float32[np.ndarray, "y x"]
    drift: Float32[np.ndarray, "y x"]
    iterations: int


def kspace_hybrid(
    data: FrameData,
    angles: SpokeAngles,
    sampling: RadialSampling,
    maps: Complex64[np.ndarray, "coil y x"],
    baseline: Complex64[np.ndarray, "y x"],
    *,
    sign: Literal[-1, 1] = -1,
    shifts: SpokeShifts | None = None,
    density: float = 0.5,
    sparsity: float = 1e-3,
    drift_order: int = 1,
    iterations: int = 60,
) -> HybridPhase:
    """Return the heating phase of one frame.

    Parameters
    ----------
    data, angles, sampling, maps, shifts, density
        As in `sinotherm.reconstruction.cg_sense.cg_sense`.
    baseline
        b, the combined image before heating on the maps' grid.
    sign
        s: the sign of the phase that heating causes.
    sparsity
        λ, no unit: heating whose phase gains less fit than this is taken for none.
    drift_order
        Order of the drift's polynomial in x and y.
    iterations
        Iterations of each of the two fits at most.

    Raises
    ------
    DataError
        The baseline does not fit the maps, or is empty; or samples or maps are not finite.
    """
    if baseline.shape != maps.shape[1:]:
        raise DataError(f"baseline of shape {baseline.shape}: the maps' {maps.shape[1:]} is needed.")
    amplitude = float(np.percentile(np.abs(baseline), 99.0))
    if amplitude == 0.0:
        raise DataError("the baseline is empty: acquire it before heating.")
    weights = sample_weights(angles, sampling, density, shifts)
    normal = SenseNormal(angles, sampling, maps, shifts=shifts, weights=weights)
    model = _Model(
        normal,
        normal.right_hand_side(data) / amplitude,
        (baseline / amplitude).astype(np.complex64),
        _polynomials(baseline.shape, drift_order),
        sign,
    )
    size = baseline.size
    # Where there is no signal there is no phase to find.
    free = (np.abs(baseline) > 0.02 * amplitude).ravel()
    first = model.fit(np.zeros(size + model.n_drift), free, sparsity, iterations)
    second = model.fit(first, free & (first[:size] > 0.0), 0.0, iterations)
    return HybridPhase(
        heating=(sign * second[:size]).reshape(baseline.shape).astype(np.float32),
        drift=model.drift(second).astype(np.float32),
        iterations=model.evaluations,
    )


class _Model:
    """The cost of heating θ (pixel,) and drift coefficients c, side by side in one vector."""

    def __init__(
        self,
        normal: SenseNormal,
        right: torch.Tensor,
        baseline: ComplexArray,
        polynomials: FloatArray,
        sign: int,
    ) -> None:
        self._normal, self._right, self._baseline = normal, right, baseline
        self._polynomials, self._sign = polynomials, sign
        self.n_drift = len(polynomials)
        self.evaluations = 0

    def drift(self, values: FloatArray) -> FloatArray:
        return np.tensordot(values[self._baseline.size :], self._polynomials, axes=1)

    def cost(self, values: FloatArray, sparsity: float) -> tuple[float, FloatArray]:
        """Return the cost and its gradient."""
        size = self._baseline.size
        heating = values[:size].reshape(self._baseline.shape)
        image = self._baseline * np.exp(1j * (self.drift(values) + self._sign * heating))
        tensor = torch.from_numpy(image.astype(np.complex64))
        applied = self._normal(tensor)
        self.evaluations += 1
        fit = (
            0.5 * torch.vdot(tensor.ravel(), applied.ravel()).real
            - torch.vdot(self._right.ravel(), tensor.ravel()).real
        )
        # d/dφ of x = b·exp(iφ) is i·x, so the slope is Re(conj(i·x)·g) = Im(conj(x)·g).
        slope = np.imag(np.conj(image) * (applied - self._right).numpy())
        gradient = np.r_[
            self._sign * slope.ravel() + sparsity, np.tensordot(self._polynomials, slope, axes=((1, 2), (0, 1)))
        ]
        return float(fit) + sparsity * float(np.sum(values[:size])), gradient

    def fit(self, start: FloatArray, free: np.ndarray, sparsity: float, iterations: int) -> FloatArray:
        """Return the values of least cost near ``start`` with θ = 0 where it is not free."""
        size = self._baseline.size
        upper = np.r_[np.where(free, np.pi, 0.0), np.full(self.n_drift, np.inf)]
        lower = np.r_[np.zeros(size), np.full(self.n_drift, -np.inf)]
        found = scipy.optimize.minimize(
            self.cost,
            np.clip(start, lower, upper),
            args=(sparsity,),
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(lower, upper),
            options={"maxiter": iterations, "maxfun": 2 * iterations},
        )
        return found.x


def _polynomials(shape: tuple[int, ...], order: int) -> FloatArray:
    """Return xⁱyʲ, i + j ≤ order, on −1 … 1, float64 (term, y, x)."""
    row, column = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    return np.stack([column**i * row**j for i in range(order + 1) for j in range(order + 1 - i)])
