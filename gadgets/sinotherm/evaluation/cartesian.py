"""``evaluate cartesian``: accelerated Cartesian imaging (the thermometry paper's setting), scored on people.

Complex objects with a smooth phase, coils round the body, random lines denser towards k = 0, white noise
of a stated SNR.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sinotherm.core.arrays import ComplexArray, FloatArray
from sinotherm.errors import SettingsError
from sinotherm.evaluation.images import default_split, magnitude_slices
from sinotherm.evaluation.metrics import body_signal
from sinotherm.evaluation.radial import coil_maps, complex_object
from sinotherm.evaluation.reports import Result, report, set_rows
from sinotherm.networks.cartesian import CartesianLines
from sinotherm.operators.cartesian import variable_density_lines
from sinotherm.simulation.image_sets import Split

__all__ = ["METHODS", "evaluate", "methods", "run"]

log = logging.getLogger(__name__)

METHODS: Final = ("zero-filled", "cg-sense", "fourier-pdunet")
CG_REGULARISATION: Final = 0.02
CG_ITERATIONS: Final = 12

Reconstruction: TypeAlias = Callable[[Tensor, CartesianLines], Tensor]


def _zero_filled(measured: Tensor, operator: CartesianLines) -> Tensor:
    return operator.inverse(measured)


def _cg_sense(measured: Tensor, operator: CartesianLines) -> Tensor:
    """Return min ‖A f − y‖² + λ‖f‖² by conjugate gradients; λ and iterations were tuned on validation people."""
    from sinotherm.reconstruction.cg_sense import conjugate_gradients

    def normal(image: Tensor) -> Tensor:
        return operator.inverse(operator.forward(image[None]))[0] + CG_REGULARISATION * image

    image, _, _ = conjugate_gradients(normal, operator.inverse(measured)[0], iterations=CG_ITERATIONS)
    return image[None]


def _network(name: str) -> Reconstruction:
    from sinotherm.networks.weights import load_network

    network, _ = load_network(name)
    return network


def methods(names: Sequence[str]) -> dict[str, Reconstruction]:
    """Return the reconstructions of these names.

    Raises
    ------
    SettingsError
        A name is unknown.
    WeightsError
        A network's weights are missing; the message names the file.
    """
    known: dict[str, Reconstruction] = {"zero-filled": _zero_filled, "cg-sense": _cg_sense}
    for name in names:
        if name not in METHODS:
            raise SettingsError(f"unknown method {name}; known: {', '.join(METHODS)}.")
    return {name: known[name] if name in known else _network(name) for name in names}


def _images(
    ready: Mapping[str, Reconstruction], case: Mapping[str, Any], image: FloatArray, seed: int
) -> tuple[ComplexArray, dict[str, ComplexArray]]:
    """Return the truth of a slice, and what each method makes of its scan."""
    random = np.random.default_rng(seed)
    truth = complex_object(image, random)
    maps = coil_maps(image, case["coils"], random)
    lines = variable_density_lines(image.shape[0], case["acceleration"], random)
    operator = CartesianLines(lines, torch.from_numpy(maps))
    level = body_signal(image) / case["snr"]
    with torch.inference_mode():
        measured = operator.forward(torch.from_numpy(truth)[None])
        noise = random.standard_normal((2, *measured.shape), dtype=np.float32)
        white = torch.complex(torch.from_numpy(noise[0]), torch.from_numpy(noise[1]))
        measured = measured + level * white * operator.context()[None]
        return truth, {name: reconstruct(measured, operator)[0].numpy() for name, reconstruct in ready.items()}


def evaluate(
    path: Path,
    *,
    split: Split | None = None,
    acceleration: float = 10.0,
    coils: int = 8,
    snr: float = 30.0,
    names: Sequence[str] = METHODS,
    per_person: int | None = None,
) -> Iterator[Result]:
    """Yield one row for each set and method, and the scores of each slice; means and SDs are over people.

    The SNR is |S|/SD(real part) of the fully sampled, combined image; |S| as `body_signal`.
    """
    ready = methods(names)
    if "cg-sense" in ready:
        log.info("cg-sense, tuned on val: regularisation %g, %d iterations", CG_REGULARISATION, CG_ITERATIONS)
    slices = magnitude_slices(path, split=split, per_person=per_person)
    split = split or default_split(path)
    case = {"acceleration": acceleration, "coils": coils, "snr": snr}
    for dataset, name, (means, found) in set_rows(slices, ready, partial(_images, ready, case)):
        yield {"dataset": dataset, "split": split, "method": name, **case, **means}, found


def run(path: Path, *, output: Path | None = None, json: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    """Print the table of `evaluate`, and write it with a figure of the worst, median and best slice."""
    results = evaluate(path, **options)
    return report(results, "cartesian", again=lambda names: partial(_images, methods(names)), output=output, json=json)
