"""CG-SENSE: conjugate gradients on the normal equations of radial SENSE.

Minimises ‖W^½(A x − y)‖²/L + λ‖D⁻¹x‖², A = NUFFT ∘ coil maps and L a bound of the eigenvalues of FᴴWF, so that
λ means the same for every matrix, number of spokes and weighting. Pruessmann et al. 2001,
10.1002/mrm.1241. D² is the power that images have at each spatial frequency (`detail_filter`): the solver works
on z = D⁻¹x (as Uecker et al. 2008, 10.1002/mrm.21691, do for coil maps), so that stopping early regularises
as λ does.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex64
from torch import Tensor

from sinotherm.core.arrays import ComplexArray, FloatArray, FrameData, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError, SettingsError
from sinotherm.operators.nufft import radial_points
from sinotherm.reconstruction.sense_normal import SenseNormal

__all__ = [
    "IterativeImage",
    "cg_sense",
    "conjugate_gradients",
    "detail_filter",
    "first_guess",
    "grid_size",
    "iterate_cg",
    "sample_weights",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class IterativeImage:
    """What an iterative reconstruction made.

    Attributes
    ----------
    image
        complex64 (G, G) in units of the object, on the grid of the maps.
    iterations
        Applications of the normal operator.
    rounds
        What a bound of the iterations counts: the same, or (total variation) rounds of ADMM.
    residual
        Norm of the normal equations' residual relative to their right-hand side, both filtered by D.
    in_time
        False where the time budget ended the iterations.
    """

    image: Complex64[np.ndarray, "y x"]
    iterations: int
    rounds: int
    residual: float
    in_time: bool = True


def sample_weights(
    angles: SpokeAngles, sampling: RadialSampling, density: float, shifts: SpokeShifts | None = None
) -> FloatArray:
    """Return |k|^density per sample, float32 (spoke, readout), 1 at the end of the spoke.

    With the distance |k| from the centre itself: where gradient delays make spokes miss it, the distance κ
    along the spoke would give what lies nearest to the centre next to no weight.
    The ramp (density 1) makes the normal operator of a full set of spokes nearly the identity: fewest
    iterations, more noise; density 0 is the maximum-likelihood solution and converges slowly; ½ is
    within a percent of the best error of either after a dozen iterations.

    Parameters
    ----------
    angles, sampling, shifts
        As in `sinotherm.operators.nufft.radial_points`.
    density
        Exponent, 0 to 1.

    Raises
    ------
    SettingsError
        The exponent is out of its bounds.
    DataError
        There are not as many shifts as angles.
    """
    if not 0.0 <= density <= 1.0:
        raise SettingsError(f"density exponent = {density:g}: give 0 (no compensation) to 1 (ramp).")
    radius = np.linalg.norm(radial_points(angles, sampling, shifts), axis=-1)
    floor, edge = sampling.spacing / 4.0, np.abs(sampling.positions).max()
    return np.asarray((np.maximum(radius, floor) / edge) ** density, dtype=np.float32)


def detail_filter(size: int, n_spokes: int, corner: float) -> FloatArray:
    """Return D, the amplitude expected at each spatial frequency: float32 (ky, kx), unshifted, 1 at 0.

    D² = 1/(1 + |k|²/k_c²): the penalty is that of the image's energy and of its gradient's. Where spokes lie densely
    the data say themselves what is there: k_c² = corner² + (n/(π·size))², with the radius up to which n spokes
    sample a grid of this size fully.

    Parameters
    ----------
    size
        Side of the grid, pixels.
    n_spokes
        Spokes of the frame.
    corner
        k_c with few spokes, cycles per pixel, 0 to 1; 0: D = 1.

    Raises
    ------
    SettingsError
        The corner is out of its bounds.
    """
    if not 0.0 <= corner <= 1.0:
        raise SettingsError(f"corner = {corner:g} cycles per pixel: give 0 (no frequency is preferred) to 1.")
    if corner == 0.0:
        return np.ones((size, size), dtype=np.float32)
    frequency = np.fft.fftfreq(size)
    square = frequency**2 + frequency[:, None] ** 2
    return np.asarray((1.0 + square / (corner**2 + (n_spokes / (math.pi * size)) ** 2)) ** -0.5, dtype=np.float32)


def grid_size(data: FrameData, angles: SpokeAngles, sampling: RadialSampling, matrix: int) -> int:
    """Return the even side of the grid, pixels, that takes up everything the coils see.

    An iterative reconstruction must explain all signal; what lies outside its grid is forced into
    it. The grid is ``matrix`` or 1¼, 1½ or 2 times that: the smallest one beyond which the projections
    hold less than 0.03 % of the signal's energy (edges are thin, and thin parts project weakly).

    Parameters
    ----------
    data
        complex64 (coil, spoke, readout).
    angles, sampling
        rad, float64 (spoke,); where the samples lie on every spoke.
    matrix
        Side of the image, pixels.
    """
    projections = np.abs(np.fft.fft(data, axis=-1)) ** 2
    profile = projections.sum(axis=0)
    detector = np.abs(np.fft.fftfreq(sampling.n_readout)) / sampling.spacing
    profile = np.maximum(profile - np.percentile(profile, 10.0, axis=-1, keepdims=True), 0.0)
    # A square of half side h spans h·(|cos θ| + |sin θ|) on the detector at θ.
    span = np.abs(np.cos(angles)) + np.abs(np.sin(angles))
    total = max(float(profile.sum()), 1e-30)
    for factor in (1.0, 1.25, 1.5):
        beyond = detector[None, :] > factor * matrix / 2.0 * span[:, None]
        if float(profile[beyond].sum()) < 3e-4 * total:
            return 2 * math.ceil(factor * matrix / 2.0)
    return 2 * math.ceil(min(2.0 * matrix, 1.0 / sampling.spacing) / 2.0)


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    start: Tensor | None = None,
    regularisation: float = 0.0,
    iterations: int = 10,
    tolerance: float = 0.0,
    deadline: float = float("inf"),
) -> tuple[Tensor, int, float]:
    """Solve (N + λ) x = b, N Hermitian and not negative.

    Parameters
    ----------
    normal
        N, of tensors shaped as b.
    right
        b, complex64.
    start
        First guess; ``None``: zero.
    regularisation
        λ.
    iterations
        Applications of N at most, those that the first guess costs apart.
    tolerance
        Stop at this residual relative to ‖b‖.
    deadline
        `time.perf_counter` at which no further iteration is begun; the first one always is.

    Returns
    -------
    tuple
        x, iterations done, relative residual.
    """
    size = float(torch.linalg.vector_norm(right))
    if size == 0.0:
        return torch.zeros_like(right), 0, 0.0
    if start is None:
        solution, rest = torch.zeros_like(right), right.clone()
    else:
        solution = start.clone()
        rest = right - normal(solution) - regularisation * solution
    direction = rest.clone()
    energy = float(torch.linalg.vector_norm(rest)) ** 2
    done = 0
    while done < iterations and energy > (tolerance * size) ** 2 and (done == 0 or time.perf_counter() < deadline):
        image = normal(direction).add_(direction, alpha=regularisation)
        curvature = float(torch.vdot(direction.ravel(), image.ravel()).real)
        if not curvature > 0.0:
            # What is left is too small for single precision.
            break
        step = energy / curvature
        solution.add_(direction, alpha=step)
        rest.sub_(image, alpha=step)
        next_energy = float(torch.linalg.vector_norm(rest)) ** 2
        direction.mul_(next_energy / energy).add_(rest)
        energy = next_energy
        done += 1
    return solution, done, energy**0.5 / size


def cg_sense(
    data: FrameData,
    angles: SpokeAngles,
    sampling: RadialSampling,
    maps: Complex64[np.ndarray, "coil y x"],
    *,
    shifts: SpokeShifts | None = None,
    density: float = 0.5,
    regularisation: float = 1e-3,
    corner: float = 0.2,
    iterations: int = 12,
    tolerance: float = 0.0,
    start: ComplexArray | None = None,
    time_budget_s: float = float("inf"),
) -> IterativeImage:
    """Reconstruct one frame by CG-SENSE.

    Parameters
    ----------
    data
        complex64 (coil, spoke, readout), whitened.
    angles, shifts
        rad, float64 (spoke,); cycles per pixel, float64 (spoke, 2).
    sampling
        Where the samples lie on every spoke.
    maps
        complex64 (coil, G, G), Σ_c |s_c|² = 1 in the object, 0 where there is nothing. G beyond the
        image's matrix (pixels of the same size) takes up bodies larger than the field of view;
        crop last.
    density
        Exponent of the sample weights, see `sample_weights`.
    regularisation
        λ, relative to the largest eigenvalue of the normal operator.
    corner
        Beyond this spatial frequency, cycles per pixel, less detail is expected (`detail_filter`); 0: the same.
    iterations
        Of conjugate gradients at most.
    tolerance
        Stop at this residual, relative to the right-hand side's norm; 0: never.
    start
        First guess, complex64 (G, G), such as the last frame's image.
    time_budget_s
        No iteration but the first is begun after this time, the set-up included.

    Raises
    ------
    DataError
        Shapes do not fit, or samples or maps are not finite.
    SettingsError
        The density exponent, the regularisation or the corner is out of its bounds.
    """
    deadline = time.perf_counter() + time_budget_s
    return iterate_cg(
        SenseNormal(angles, sampling, maps, shifts=shifts, weights=sample_weights(angles, sampling, density, shifts)),
        data,
        regularisation=regularisation,
        corner=corner,
        iterations=iterations,
        tolerance=tolerance,
        start=start,
        deadline=deadline,
    )


def iterate_cg(
    normal: SenseNormal,
    data: FrameData,
    *,
    regularisation: float = 1e-3,
    corner: float = 0.2,
    iterations: int = 12,
    tolerance: float = 0.0,
    start: ComplexArray | None = None,
    deadline: float = float("inf"),
) -> IterativeImage:
    """Reconstruct one frame whose normal operator is at hand; parameters and errors as in `cg_sense`."""
    if not regularisation >= 0.0:
        raise SettingsError(f"regularisation = {regularisation:g}: give 0 (none) or more.")
    amplitudes = torch.from_numpy(detail_filter(normal.size, normal.n_spokes, corner))

    def filtered(image: Tensor) -> Tensor:
        return image if corner == 0.0 else torch.fft.ifft2(torch.fft.fft2(image).mul_(amplitudes))

    first = first_guess(start, normal)
    solution, done, residual = conjugate_gradients(
        lambda image: filtered(normal(filtered(image))),
        filtered(normal.right_hand_side(data)),
        start=None if first is None else torch.fft.ifft2(torch.fft.fft2(first).div_(amplitudes)),
        regularisation=regularisation,
        iterations=iterations,
        tolerance=tolerance,
        deadline=deadline,
    )
    in_time = done == iterations or residual <= tolerance
    image = filtered(solution).numpy()
    return IterativeImage(image=image, iterations=done, rounds=done, residual=residual, in_time=in_time)


def first_guess(start: ComplexArray | None, normal: SenseNormal) -> Tensor | None:
    """Return the first guess as a tensor.

    Raises
    ------
    DataError
        It is not as large as the operator's grid.
    """
    if start is None:
        return None
    if start.shape != (normal.size, normal.size):
        raise DataError(f"first guess of shape {start.shape}: {(normal.size, normal.size)} is needed.")
    return torch.from_numpy(np.ascontiguousarray(start, dtype=np.complex64))
