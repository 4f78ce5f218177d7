"""Adjoint and forward operators of a radial frame against named peers, in one run.

Each candidate gets the samples (coil, spoke, readout) of a Shepp-Logan phantom seen by coils and
gives coil images, or the reverse. Density weights are free for the peers; ours filters inside. Errors
are against the direct sum of the first coil, up to one complex factor, since peers scale as they like.
"""

import functools
import logging
import math
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.operators.backend import frame_backend
from sinotherm.operators.backprojection import BackProjector
from sinotherm.operators.density import readout_weights
from sinotherm.operators.gridded import GriddedPlan
from sinotherm.operators.nufft import FinufftPlan, radial_points

__all__ = ["CANDIDATES", "Problem", "kernel_floor_ms", "radial_problem", "rows"]

logger = logging.getLogger(__name__)

Call: TypeAlias = Callable[[], Any]
"""A timed call; its result as an array (coil, y, x) or (coil, sample) comes from `Candidate.result`."""

MATRIX: Final = 256
_BUDGET_S: Final = 1.0
_LEAST: Final = 3
_MOST: Final = 25
_BART_FRAMES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A radial frame.

    Attributes
    ----------
    data
        complex64 (coil, spoke, readout).
    weighted
        The same times its density weights.
    images
        complex64 (coil, y, x): what the forward operator starts from.
    angles
        Spoke angles, rad.
    points
        float64 (sample, 2), cycles per pixel (kx, ky).
    sampling
        Where the samples lie on each spoke.
    """

    data: ComplexArray
    weighted: ComplexArray
    images: ComplexArray
    angles: FloatArray
    points: FloatArray
    sampling: RadialSampling

    @property
    def n(self) -> int:
        """Side of the image, pixels."""
        return int(self.images.shape[-1])


@dataclass(frozen=True, slots=True)
class Candidate:
    """Adjoint and forward of one implementation, or ``None`` for what it lacks; marginal time where a call is whole."""

    adjoint: Call | None = None
    forward: Call | None = None
    time_ms: Callable[[str], float] | None = None


def _kernel(problem: Problem) -> Candidate:
    projector = BackProjector((problem.n, problem.n), len(problem.data), problem.sampling, centre="area")

    def adjoint() -> ComplexArray:
        projector.reset()
        projector.add_batch(problem.data, problem.angles)
        return np.moveaxis(projector.image, -1, 0)

    return Candidate(adjoint)


def _finufft(problem: Problem, accuracy: float = 5e-4) -> Candidate:
    n_coils, n = len(problem.data), problem.n
    plan = FinufftPlan((n, n), n_coils, accuracy=accuracy).set_points(problem.points)
    samples = problem.weighted.reshape(n_coils, -1)
    images, out = np.empty_like(problem.images), np.empty_like(samples)
    return Candidate(lambda: plan.adjoint(samples, images), lambda: plan.forward(problem.images, out))


def _gridded(problem: Problem) -> Candidate:
    plan = GriddedPlan(problem.points, (problem.n, problem.n))
    samples = problem.weighted.reshape(len(problem.data), -1)
    images, out = np.empty_like(problem.images), np.empty_like(samples)
    return Candidate(lambda: plan.adjoint(samples, images), lambda: plan.forward(problem.images, out))


def _torchkbnufft(problem: Problem) -> Candidate:
    import torch
    import torchkbnufft

    size = (problem.n, problem.n)
    omega = torch.from_numpy((problem.points[:, ::-1].T * 2.0 * math.pi).astype(np.float32))
    forward, adjoint = torchkbnufft.KbNufft(size), torchkbnufft.KbNufftAdjoint(size)
    images = torch.from_numpy(problem.images)[None]
    samples = torch.from_numpy(problem.weighted.reshape(1, len(problem.data), -1))
    return Candidate(lambda: adjoint(samples, omega)[0].numpy(), lambda: forward(images, omega)[0].numpy())


def _sigpy(problem: Problem) -> Candidate:
    import sigpy

    places = np.ascontiguousarray(problem.points[:, ::-1], dtype=np.float32) * np.float32(problem.n)
    samples = problem.weighted.reshape(len(problem.data), -1)
    return Candidate(
        lambda: sigpy.nufft_adjoint(samples, places, oshape=problem.images.shape),
        lambda: sigpy.nufft(problem.images, places),
    )


def _mri_nufft(problem: Problem) -> Candidate:
    import mrinufft

    points = np.ascontiguousarray(problem.points[:, ::-1] * (2.0 * math.pi), dtype=np.float32)
    operator = mrinufft.get_operator("finufft")(
        points, shape=(problem.n, problem.n), n_coils=len(problem.data), squeeze_dims=True
    )
    samples = problem.weighted.reshape(len(problem.data), -1)
    coils = (len(problem.data), -1)
    return Candidate(
        lambda: operator.adj_op(samples).reshape(problem.images.shape),
        lambda: operator.op(problem.images).reshape(coils),
    )


def _skimage(problem: Problem) -> Candidate:
    from skimage.transform import iradon

    from sinotherm.operators.fourier import ifft1

    # Its angles run the other way, and it takes real projections only.
    turn = np.exp(
        -2j * np.pi * (problem.sampling.centre - problem.data.shape[-1] // 2) * np.arange(problem.data.shape[-1])
    )
    projections = ifft1(problem.data) * turn.astype(np.complex64)
    degrees = -np.rad2deg(problem.angles)

    def one(projection: FloatArray) -> FloatArray:
        return iradon(projection.T, degrees, output_size=problem.n, circle=False)  # type: ignore[no-untyped-call]

    return Candidate(lambda: np.stack([one(p.real) + 1j * one(p.imag) for p in projections]))


def _bart(problem: Problem) -> Candidate:
    """Marginal time of a frame: BART reads and writes files, so that of many frames less that of one counts."""
    command = shutil.which("bart")
    if command is None:
        raise ModuleNotFoundError("bart is not on PATH", name="bart (apt-get install bart)")
    n, n_coils, n_readout = problem.n, len(problem.data), problem.data.shape[-1]
    n_spokes = len(problem.angles)
    places = np.zeros((3, n_readout * n_spokes), np.complex64)
    places[:2] = problem.points.T * n

    def run(direction: str, frames: int) -> ComplexArray:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shape = (n_readout, n_spokes)
            _write_cfl(folder / "traj", places.reshape(3, *shape[::-1]).transpose(0, 2, 1), (3, *shape))
            if direction == "adjoint":
                samples = np.repeat(problem.weighted[..., None], frames, -1).transpose(2, 1, 0, 3)
                _write_cfl(folder / "in", samples, (1, *shape, n_coils, *(1,) * 6, frames))
            else:
                images = np.repeat(problem.images[..., None], frames, -1).transpose(2, 1, 0, 3)
                _write_cfl(folder / "in", images, (n, n, 1, n_coils, *(1,) * 6, frames))
            flags = ["-a", "-d", f"{n}:{n}:1"] if direction == "adjoint" else []
            subprocess.run(  # noqa: S603 (fixed arguments)
                [command, "nufft", *flags, "traj", "in", "out"], cwd=folder, check=True, capture_output=True
            )
            out = _read_cfl(folder / "out")
        if direction == "adjoint":
            return out.reshape(n, n, n_coils, frames, order="F")[..., 0].transpose(2, 1, 0)
        return (
            out.reshape(n_readout, n_spokes, n_coils, frames, order="F")[..., 0].transpose(2, 1, 0).reshape(n_coils, -1)
        )

    def marginal_ms(direction: str) -> float:
        one, many = (
            min(_seconds(functools.partial(run, direction, frames)) for _ in range(3)) for frames in (1, _BART_FRAMES)
        )
        return 1e3 * (many - one) / (_BART_FRAMES - 1)

    return Candidate(lambda: run("adjoint", 1), lambda: run("forward", 1), marginal_ms)


def _write_cfl(path: Path, array: ComplexArray, shape: tuple[int, ...]) -> None:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(str(n) for n in shape) + "\n", encoding="ascii")
    array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def _read_cfl(path: Path) -> ComplexArray:
    return np.fromfile(path.with_suffix(".cfl"), np.complex64)


def _chosen(problem: Problem) -> Candidate:
    """Return what the product takes for a whole frame."""
    gridded = _gridded(problem)
    if frame_backend(*problem.data.shape[:2]) == "gridded":
        return gridded
    return Candidate(_kernel(problem).adjoint, gridded.forward)


CANDIDATES: Final[dict[str, Callable[[Problem], Candidate]]] = {
    "sinotherm": _chosen,
    "sinotherm back-projection": _kernel,
    "sinotherm gridding": _gridded,
    "finufft tuned": _finufft,
    "finufft tuned, eps 1e-3": functools.partial(_finufft, accuracy=1e-3),
    "torchkbnufft": _torchkbnufft,
    "sigpy": _sigpy,
    "mri-nufft": _mri_nufft,
    "bart": _bart,
    "skimage": _skimage,
}


def _seconds(call: Call) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _medians_ms(calls: Mapping[tuple[str, str], Call]) -> dict[tuple[str, str], float]:
    """Return the median time of each call, ms.

    All are called in turn, at least three times and as often as the budget of each allows, so that what else the
    machine does meets all of them alike. A first call of each warms up.
    """
    for call in calls.values():
        call()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(_MOST):
        for key, call in calls.items():
            if len(times[key]) < _LEAST or sum(times[key]) < _BUDGET_S:
                times[key].append(_seconds(call))
    return {key: 1e3 * statistics.median(found) for key, found in times.items()}


@functools.cache
def _machine_rates() -> tuple[float, float]:
    """Return floating-point operations (single-precision matrix product) and bytes copied, per second."""
    side = 1024
    a = np.ones((side, side), np.float32)
    memory = np.ones(1 << 24, np.float32)
    target = np.empty_like(memory)
    operations = 2.0 * side**3 / min(_seconds(lambda: a @ a) for _ in range(8))
    copied = 2.0 * memory.nbytes / min(_seconds(lambda: np.copyto(target, memory)) for _ in range(8))
    return operations, copied


def kernel_floor_ms(n_coils: int, n_spokes: int, n: int = MATRIX) -> float:
    """Return the least time of a four-tap back-projection on this machine, ms.

    Four multiply-adds per pixel, spoke and real channel at the rate of a matrix product, and one reading
    and writing of the images at the rate of a copy.
    """
    operations, copied = _machine_rates()
    return 1e3 * (n * n * n_spokes * 4 * 2 * n_coils * 2 / operations + 2 * n * n * n_coils * 8 / copied)


def _phantom(n: int, n_coils: int) -> ComplexArray:
    """Return a Shepp-Logan phantom with a phase, seen by coils around it, complex64 (coil, y, x)."""
    from skimage.data import shepp_logan_phantom
    from skimage.transform import resize

    image = resize(shepp_logan_phantom(), (n, n), anti_aliasing=True)  # type: ignore[no-untyped-call]
    y, x = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij")
    angles = 2.0 * np.pi * np.arange(n_coils) / n_coils
    away = [(x - 1.2 * np.cos(a)) ** 2 + (y - 1.2 * np.sin(a)) ** 2 for a in angles]
    return np.stack([image * np.exp(-d / 2 + 1j * (a + x)) for a, d in zip(angles, away, strict=True)]).astype(
        np.complex64
    )


def radial_problem(n: int, n_coils: int, n_spokes: int) -> Problem:
    """Return golden-angle spokes of a Shepp-Logan phantom seen by coils, without noise."""
    sampling = RadialSampling(n_readout=2 * n, spacing=0.5 / n, centre=float(n))
    angles = spoke_angles("golden", n_spokes)
    points = radial_points(angles, sampling).reshape(-1, 2)
    images = _phantom(n, n_coils)
    plan = FinufftPlan((n, n), n_coils, dtype=np.complex128, accuracy=1e-9).set_points(points)
    data = plan.forward(images).astype(np.complex64).reshape(n_coils, n_spokes, -1)
    weighted = data * readout_weights(sampling, centre="area").astype(np.float32)
    return Problem(data=data, weighted=weighted, images=images, angles=angles, points=points, sampling=sampling)


def _direct_adjoint(problem: Problem) -> ComplexArray:
    """Return the first coil's image by the definition of the sum, complex128 (y, x)."""
    place = np.arange(problem.n) - problem.n // 2
    total = np.zeros((problem.n, problem.n), np.complex128)
    values = problem.weighted[0].reshape(-1).astype(np.complex128)
    for part in np.array_split(np.arange(len(values)), max(1, len(values) // 8192)):
        kx, ky = problem.points[part].T
        by_row = np.exp(2j * np.pi * np.outer(place, ky)) * values[part]
        total += by_row @ np.exp(2j * np.pi * np.outer(kx, place))
    return total


def _direct_forward(problem: Problem, samples: Any) -> ComplexArray:
    """Return some samples of the first coil by the definition of the sum, complex128 (sample,)."""
    place = np.arange(problem.n) - problem.n // 2
    kx, ky = problem.points[samples].T
    rows = np.exp(-2j * np.pi * np.outer(ky, place)) @ problem.images[0].astype(np.complex128)
    return np.sum(rows * np.exp(-2j * np.pi * np.outer(kx, place)), axis=1)


def _error(measured: ComplexArray, truth: ComplexArray) -> float:
    """Return the relative error, after the best complex factor."""
    factor = np.vdot(measured, truth) / np.vdot(measured, measured)
    return float(np.linalg.norm(factor * measured - truth) / np.linalg.norm(truth))


def _measure(problem: Problem, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    n_samples = problem.weighted[0].size
    some = np.linspace(0, n_samples - 1, 97).astype(int)
    truth = {"adjoint": _direct_adjoint(problem), "forward": _direct_forward(problem, some)}
    floor_ms = kernel_floor_ms(len(problem.data), len(problem.angles), problem.n)
    missing: dict[str, str] = {}
    calls: dict[tuple[str, str], Call] = {}
    errors: dict[tuple[str, str], float] = {}
    times_ms: dict[tuple[str, str], float] = {}
    for name in names:
        try:
            candidate = CANDIDATES[name](problem)
        except ModuleNotFoundError as error:
            missing[name] = f"not installed: {error.name}"
            continue
        for way, call in (("adjoint", candidate.adjoint), ("forward", candidate.forward)):
            if call is None:
                continue
            result = np.asarray(call(), np.complex128)
            measured = result[0] if way == "adjoint" else result.reshape(len(problem.data), -1)[0, some]
            errors[name, way] = _error(measured, truth[way])
            if candidate.time_ms is None:
                calls[name, way] = call
            else:
                times_ms[name, way] = candidate.time_ms(way)
    times_ms |= _medians_ms(calls)
    for way in truth:
        for name in names:
            time_ms, own = times_ms.get((name, way)), times_ms.get(("sinotherm", way))
            if time_ms is None and name not in missing:
                continue
            yield {
                "direction": way,
                "coils": len(problem.data),
                "spokes": len(problem.angles),
                "candidate": name,
                "time_ms": None if time_ms is None else round(time_ms, 3),
                "ratio_to_sinotherm": None if time_ms is None or own is None else round(time_ms / own, 2),
                "error_to_direct_sum": None if name in missing else float(f"{errors[name, way]:.2e}"),
                "floor_ms": round(floor_ms, 3) if way == "adjoint" else None,
                "note": missing.get(name, ""),
            }


def rows(
    *,
    coils: Sequence[int] = (1, 8, 16),
    spokes: Sequence[int] = (16, 32, 64, 402),
    matrix: int = MATRIX,
    candidates: Sequence[str] = tuple(CANDIDATES),
) -> list[dict[str, Any]]:
    """Return one row per direction, coils, spokes and candidate.

    Parameters
    ----------
    coils, spokes
        Sizes of the frames; readouts are twice oversampled, angles golden.
    matrix
        Side of the image, pixels.
    candidates
        Names of `CANDIDATES`; those that are not installed get a row that says so.

    Returns
    -------
    list of dict
        ``direction``, ``coils``, ``spokes``, ``candidate``, ``time_ms`` (median), ``ratio_to_sinotherm`` (time
        over ours), ``error_to_direct_sum`` (relative), ``floor_ms`` (`kernel_floor_ms`), ``note``.
    """
    found: list[dict[str, Any]] = []
    for n_coils in coils:
        for n_spokes in spokes:
            logger.info("%d coils, %d spokes", n_coils, n_spokes)
            found.extend(_measure(radial_problem(matrix, n_coils, n_spokes), candidates))
    return found
