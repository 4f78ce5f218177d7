"""Radial SENSE with total variation in space and time, by ADMM.

Minimises Σ_t ½‖W^½(A_t x_t − y_t)‖²/L + λ_s·a·Σ_t TV(x_t) + λ_t·a·Σ_t |x_{t+1} − x_t|₁, where TV is the
isotropic total variation of the complex image and a the image's amplitude, so that the strengths λ
carry no unit. Rudin, Osher and Fatemi 1992, 10.1016/0167-2789(92)90242-F; Block, Uecker and Frahm 2007,
10.1002/mrm.21236 (radial); Boyd et al. 2011, 10.1561/2200000016 (ADMM).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex64
from torch import Tensor

from sinotherm.core.arrays import ComplexArray, FrameData, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.reconstruction.cg_sense import IterativeImage, conjugate_gradients, first_guess, sample_weights
from sinotherm.reconstruction.sense_normal import SenseNormal

__all__ = ["Strengths", "iterate_tv", "minimise", "tv_sense"]

_START_ITERATIONS = 5
_INNER_ITERATIONS = 3
_THRESHOLD = 0.1
"""λ/ρ relative to the amplitude: the size of a jump that ADMM takes for one in its first rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """λ in space and in time (no unit); 0 leaves the term out."""

    space: float = 0.0
    time: float = 0.0


class _Differences:
    """Forward differences of a series (frame, y, x) in x, y and time, and their adjoints."""

    def __init__(self, strengths: Strengths) -> None:
        self.strengths = strengths

    def forward(self, series: Tensor) -> list[Tensor]:
        parts = []
        if self.strengths.space > 0.0:
            space = torch.zeros((2, *series.shape), dtype=series.dtype)
            space[0, :, :, :-1] = series[:, :, 1:] - series[:, :, :-1]
            space[1, :, :-1, :] = series[:, 1:, :] - series[:, :-1, :]
            parts.append(space)
        if self.strengths.time > 0.0:
            parts.append((series[1:] - series[:-1])[None])
        return parts

    def adjoint(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        total = torch.zeros_like(like)
        left = list(parts)
        if self.strengths.space > 0.0:
            along, down = left.pop(0)
            total[:, :, 1:] += along[:, :, :-1]
            total[:, :, :-1] -= along[:, :, :-1]
            total[:, 1:, :] += down[:, :-1, :]
            total[:, :-1, :] -= down[:, :-1, :]
        if self.strengths.time > 0.0:
            (step,) = left.pop(0)
            total[1:] += step
            total[:-1] -= step
        return total

    def weights(self) -> list[float]:
        return [value for value in (self.strengths.space, self.strengths.time) if value > 0.0]


def _shrink(parts: Tensor, threshold: float) -> Tensor:
    """Shorten the vectors along axis 0 by the threshold (proximal map of their summed length)."""
    length = torch.linalg.vector_norm(parts, dim=0)
    return parts * (1.0 - threshold / length.clamp_min(threshold)).clamp_min(0.0)


def minimise(
    normals: Sequence[SenseNormal],
    rights: Sequence[Tensor],
    strengths: Strengths,
    *,
    start: Tensor | None = None,
    amplitude: float | None = None,
    iterations: int = 10,
    deadline: float = float("inf"),
) -> tuple[Tensor, int]:
    """Return the series, complex64 (frame, y, x), and the rounds of ADMM done.

    Parameters
    ----------
    normals, rights
        Normal operator and right-hand side of each frame.
    strengths
        λ_s and λ_t.
    start
        First guess (frame, y, x); ``None``: a few conjugate gradients.
    amplitude
        a; ``None``: the 99th percentile of the first guess's magnitude.
    iterations
        Rounds of ADMM, each with three applications of every normal operator.
    deadline
        `time.perf_counter` at which no further round is begun; the first guess and one round always are.
    """
    if start is None:
        found = [
            conjugate_gradients(normal, right, iterations=_START_ITERATIONS, regularisation=1e-4)[0]
            for normal, right in zip(normals, rights, strict=True)
        ]
        series = torch.stack(found)
    else:
        series = start.clone()
    differences = _Differences(strengths)
    level = float(np.percentile(np.abs(series.numpy()), 99.0)) if amplitude is None else amplitude
    if level == 0.0 or not differences.weights():
        return series, 0
    # One ρ for every term, from the strongest: λ·a/ρ is its threshold.
    rho = max(differences.weights()) / _THRESHOLD
    thresholds = [weight * level / rho for weight in differences.weights()]
    target = torch.stack(list(rights))
    jumps = differences.forward(series)
    split = [_shrink(part, threshold) for part, threshold in zip(jumps, thresholds, strict=True)]
    duals = [part - flat for part, flat in zip(jumps, split, strict=True)]

    def system(image: Tensor) -> Tensor:
        applied = torch.stack([normal(frame) for normal, frame in zip(normals, image, strict=True)])
        return applied.add_(differences.adjoint(differences.forward(image), image), alpha=rho)

    done = 0
    while done < iterations and (done == 0 or time.perf_counter() < deadline):
        right = target + rho * differences.adjoint([z - u for z, u in zip(split, duals, strict=True)], series)
        series, _, _ = conjugate_gradients(system, right, start=series, iterations=_INNER_ITERATIONS)
        jumps = differences.forward(series)
        for index, threshold in enumerate(thresholds):
            moved = jumps[index] + duals[index]
            split[index] = _shrink(moved, threshold)
            duals[index] = moved - split[index]
        done += 1
    return series, done


def tv_sense(
    data: FrameData,
    angles: SpokeAngles,
    sampling: RadialSampling,
    maps: Complex64[np.ndarray, "coil y x"],
    *,
    shifts: SpokeShifts | None = None,
    density: float = 0.5,
    strength: float = 3e-4,
    iterations: int = 8,
    start: ComplexArray | None = None,
    amplitude: float | None = None,
    time_budget_s: float = float("inf"),
) -> IterativeImage:
    """Reconstruct one frame by SENSE with total variation.

    Parameters
    ----------
    data, angles, sampling, maps, shifts, density, start, time_budget_s
        As in `sinotherm.reconstruction.cg_sense.cg_sense`.
    strength
        λ_s.
    iterations
        Rounds of ADMM.
    amplitude
        a; state one for a whole scan, so that every frame is regularised alike.

    Raises
    ------
    DataError
        Shapes do not fit, or samples or maps are not finite.
    SettingsError
        The density exponent is out of its bounds.
    """
    deadline = time.perf_counter() + time_budget_s
    return iterate_tv(
        SenseNormal(angles, sampling, maps, shifts=shifts, weights=sample_weights(angles, sampling, density, shifts)),
        data,
        strength=strength,
        iterations=iterations,
        start=start,
        amplitude=amplitude,
        deadline=deadline,
    )


def iterate_tv(
    normal: SenseNormal,
    data: FrameData,
    *,
    strength: float = 3e-4,
    iterations: int = 8,
    start: ComplexArray | None = None,
    amplitude: float | None = None,
    deadline: float = float("inf"),
) -> IterativeImage:
    """Reconstruct one frame whose normal operator is at hand; parameters as in `tv_sense`."""
    first = first_guess(start, normal)
    right = normal.right_hand_side(data)
    series, done = minimise(
        [normal],
        [right],
        Strengths(space=strength),
        start=None if first is None else first[None],
        amplitude=amplitude,
        iterations=iterations,
        deadline=deadline,
    )
    rest = float(torch.linalg.vector_norm(right - normal(series[0])))
    residual = rest / max(float(torch.linalg.vector_norm(right)), 1e-30)
    return IterativeImage(
        image=series[0].numpy(),
        iterations=done * (_INNER_ITERATIONS + 1) + (_START_ITERATIONS if start is None and done else 0),
        rounds=done,
        residual=residual,
        in_time=done == iterations or residual == 0.0,
    )
