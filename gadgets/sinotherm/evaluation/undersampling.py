"""Coil images sampled radially in retrospect: iterative reconstructions beside BART and sigpy on the same samples.

Each method's regularisation and iterations are tuned for the least error on the image itself, the same
way for all (fewest iterations within half a percent of it), and printed; times are of the tuned setting.
"""

import itertools
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.core.arrays import ComplexArray, FrameData, SpokeAngles
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import SettingsError
from sinotherm.evaluation.metrics import score
from sinotherm.operators.coils import adaptive_maps, combine
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import ACCURATE, FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import cg_sense
from sinotherm.reconstruction.total_variation import tv_sense

__all__ = ["METHODS", "Samples", "compare", "radial_samples"]

_REPEATS: Final = 3
_TOLERANCE: Final = 1.005
"""Of the settings whose error is this close to the least, the one of fewest iterations is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """A frame sampled in retrospect.

    Attributes
    ----------
    data
        complex64 (coil, spoke, readout).
    maps
        complex64 (coil, y, x) of the fully sampled coil images, the same for every method.
    reference
        complex64 (y, x): those images combined.
    """

    data: FrameData
    angles: SpokeAngles
    sampling: RadialSampling
    maps: ComplexArray
    reference: ComplexArray


def radial_samples(images: ComplexArray, n_spokes: int) -> Samples:
    """Sample coil images (coil, y, x) on golden-angle spokes, by a NUFFT of accuracy 1e-6."""
    n_coils, matrix, _ = images.shape
    angles = spoke_angles("golden", n_spokes)
    sampling = RadialSampling(n_readout=2 * matrix, spacing=1.0 / (2 * matrix), centre=float(matrix))
    plan = FinufftPlan((matrix, matrix), n_coils, dtype=np.complex128, accuracy=ACCURATE)
    data = plan.set_points(radial_points(angles, sampling).reshape(-1, 2)).forward(images)
    maps = adaptive_maps(images)
    return Samples(
        data=data.reshape(n_coils, n_spokes, -1).astype(np.complex64),
        angles=angles,
        sampling=sampling,
        maps=maps,
        reference=combine(images, maps),
    )


def _gridding(samples: Samples, _strength: float, _iterations: int) -> ComplexArray:
    weights = radial_weights(samples.angles, samples.sampling, centre="exact").astype(np.float32)
    n_coils, size = samples.maps.shape[:2]
    plan = FinufftPlan((size, size), n_coils).set_points(radial_points(samples.angles, samples.sampling).reshape(-1, 2))
    weighted = (samples.data * weights).astype(np.complex64, copy=False)
    return combine(plan.adjoint(weighted.reshape(n_coils, -1)), samples.maps)


def _cg_sense(density: float, corner: float = 0.2) -> Callable[[Samples, float, int], ComplexArray]:
    def run(samples: Samples, strength: float, iterations: int) -> ComplexArray:
        return cg_sense(
            samples.data,
            samples.angles,
            samples.sampling,
            samples.maps,
            density=density,
            regularisation=strength,
            corner=corner,
            iterations=iterations,
        ).image

    return run


def _tv_sense(samples: Samples, strength: float, iterations: int) -> ComplexArray:
    return tv_sense(
        samples.data, samples.angles, samples.sampling, samples.maps, strength=strength, iterations=iterations
    ).image


def _write_cfl(path: Path, array: ComplexArray) -> None:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    np.asarray(array, dtype=np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def _bart(arguments: Sequence[str]) -> Callable[[Samples, float, int], ComplexArray]:
    def run(samples: Samples, strength: float, iterations: int) -> ComplexArray:
        program = shutil.which("bart")
        if program is None:
            raise SettingsError("the program bart is not on the PATH: install it, or leave the method out.")
        size = samples.maps.shape[-1]
        points = radial_points(samples.angles, samples.sampling) * size
        trajectory = np.zeros((3, samples.sampling.n_readout, len(samples.angles)), np.complex64)
        trajectory[:2] = np.moveaxis(points, -1, 0).swapaxes(1, 2)
        with tempfile.TemporaryDirectory() as folder:
            names = [Path(folder) / name for name in ("trajectory", "data", "maps", "image")]
            _write_cfl(names[0], trajectory)
            _write_cfl(names[1], samples.data.transpose(2, 1, 0)[None])
            _write_cfl(names[2], samples.maps.transpose(2, 1, 0)[:, :, None])
            options = [text.format(strength=strength, iterations=iterations) for text in arguments]
            subprocess.run(  # noqa: S603 (fixed program and options)
                [program, "pics", "-d0", *options, "-t", *map(str, names)], check=True, stdout=subprocess.DEVNULL
            )
            return np.fromfile(names[3].with_suffix(".cfl"), np.complex64).reshape((size, size))

    return run


def _sigpy(samples: Samples, strength: float, iterations: int) -> ComplexArray:
    import sigpy.mri.app as apps

    # sigpy's coordinates are (row, column) in cycles per field of view.
    coordinates = radial_points(samples.angles, samples.sampling)[..., ::-1] * samples.maps.shape[-1]
    app = apps.SenseRecon(
        samples.data, samples.maps, lamda=strength, coord=coordinates, max_iter=iterations, show_pbar=False
    )
    return np.asarray(app.run())


_Method: TypeAlias = tuple[Callable[[Samples, float, int], ComplexArray], tuple[float, ...], tuple[int, ...]]

METHODS: Final[dict[str, _Method]] = {
    "gridding": (_gridding, (0.0,), (0,)),
    "cg_sense": (_cg_sense(0.5), (1e-4, 1e-3, 3e-3), (6, 8, 12, 16, 20, 24, 36)),
    "cg_sense, no weights nor prior": (_cg_sense(0.0, 0.0), (1e-4, 2e-4, 1e-3), (12, 16, 20, 24, 36)),
    "bart pics l2": (_bart(("-l2", "-r{strength}", "-i{iterations}")), (1e-3, 1e-2), (10, 15, 20, 30)),
    "sigpy l2": (_sigpy, (1e-3, 1e-2), (10, 15, 20, 30)),
    "cg_sense tv": (_tv_sense, (3e-4, 1e-3), (6, 12, 20)),
    "bart pics tv": (_bart(("-RT:3:0:{strength}", "-i{iterations}")), (3e-4, 1e-3), (50,)),
}
"""Method, strengths and iterations to choose from."""


def compare(images: ComplexArray, n_spokes: int, names: Sequence[str] = tuple(METHODS)) -> Iterator[dict[str, Any]]:
    """Yield one row a method: tuned setting, NRMSE and SSIM in the body, time.

    Parameters
    ----------
    images
        Fully sampled coil images, complex64 (coil, y, x).
    n_spokes
        Golden-angle spokes that are taken of them.
    names
        Of `METHODS`.

    Raises
    ------
    SettingsError
        A method is unknown, or its program is not installed.
    """
    samples = radial_samples(images, n_spokes)
    for name in names:
        if name not in METHODS:
            raise SettingsError(f"unknown method {name!r}; known methods: {', '.join(METHODS)}.")
        method, strengths, iterations = METHODS[name]
        tried = {
            setting: score(method(samples, *setting), samples.reference)
            for setting in itertools.product(strengths, iterations)
        }
        least = min(one.nrmse for one in tried.values())
        good = [item for item in tried.items() if item[1].nrmse <= _TOLERANCE * least]
        setting, best = min(good, key=lambda item: (item[0][1], item[1].nrmse))
        seconds = []
        for _ in range(_REPEATS):
            start_s = perf_counter()
            method(samples, *setting)
            seconds.append(perf_counter() - start_s)
        yield {
            "coils": len(images),
            "matrix": images.shape[-1],
            "spokes": n_spokes,
            "method": name,
            "strength": setting[0],
            "iterations": setting[1],
            "nrmse": best.nrmse,
            "ssim": best.ssim,
            "seconds": statistics.median(seconds),
        }
