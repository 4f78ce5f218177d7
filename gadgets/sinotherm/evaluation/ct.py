"""``evaluate ct``: sparse fan-beam CT, scored on patients (the first paper's other half)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray
from sinotherm.errors import SettingsError
from sinotherm.evaluation.images import attenuation_slices, default_split
from sinotherm.evaluation.reports import Result, report, set_rows
from sinotherm.operators.fan_beam import FanBeam, FanBeamGeometry
from sinotherm.simulation.image_sets import Split

__all__ = ["METHODS", "evaluate", "methods", "run"]

METHODS: Final = ("fbp", "pdunet-paper-ct", "pdunet-ct")
VIEWS: Final = 360

Reconstruction: TypeAlias = Callable[[FloatArray, FanBeam], FloatArray]


def _fbp(sinogram: FloatArray, projector: FanBeam) -> FloatArray:
    import torch

    return projector.filtered_back_projection(torch.from_numpy(sinogram)).numpy()


def _network(name: str) -> Reconstruction:
    import torch

    from sinotherm.networks.fan_beam import FanBeamSinogram, RealFanBeamSinogram
    from sinotherm.networks.weights import load_network

    network, card = load_network(name)

    def reconstruct(sinogram: FloatArray, projector: FanBeam) -> FloatArray:
        measured = torch.from_numpy(sinogram)[None]
        with torch.inference_mode():
            if card.network == "paper":
                return network(measured, RealFanBeamSinogram(projector))[0].numpy()
            dual = torch.complex(measured, torch.zeros_like(measured))[:, None]
            return network(dual, FanBeamSinogram(projector))[0].real.numpy()

    return reconstruct


def methods(names: Sequence[str]) -> dict[str, Reconstruction]:
    """Return the reconstructions of these names.

    Raises
    ------
    SettingsError
        A name is unknown.
    WeightsError
        A network's weights are missing; the message names the file.
    """
    for name in names:
        if name not in METHODS:
            raise SettingsError(f"unknown method {name}; known: {', '.join(METHODS)}.")
    return {name: _fbp if name == "fbp" else _network(name) for name in names}


def _projector(sparsity: int) -> FanBeam:
    return FanBeam(FanBeamGeometry(), FanBeamGeometry.sparse_views(VIEWS, sparsity))


def _images(
    ready: Mapping[str, Reconstruction], case: Mapping[str, Any], image: FloatArray, _seed: int
) -> tuple[ComplexArray, dict[str, ComplexArray]]:
    """Return the truth of a slice, and what each method makes of its views."""
    import torch

    projector = _projector(case["sparsity"])
    sinogram = projector(torch.from_numpy(image)).numpy()
    images = {name: reconstruct(sinogram, projector).astype(np.complex64) for name, reconstruct in ready.items()}
    return image.astype(np.complex64), images


def evaluate(
    path: Path, *, split: Split | None = None, sparsity: int = 16, names: Sequence[str] = METHODS
) -> Iterator[Result]:
    """Yield one row for each set and method, and the scores of each slice; means and SDs are over patients.

    Images are attenuation relative to water, 256 pixels; the scan is the first paper's fan beam, every
    ``sparsity``-th of 360 views.
    """
    ready = methods(names)
    projector = _projector(sparsity)
    slices = attenuation_slices(path, split=split, size=projector.geometry.n_pixels)
    split = split or default_split(path)
    case = {"sparsity": sparsity, "views": len(projector.angles)}
    for dataset, name, (means, found) in set_rows(slices, ready, partial(_images, ready, case)):
        # Attenuation is real.
        del means["phase_rmse_rad_mean"]
        yield {"dataset": dataset, "split": split, "method": name, **case, **means}, found


def run(path: Path, *, output: Path | None = None, json: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    """Print the table of `evaluate`, and write it with a figure of the worst, median and best slice."""
    results = evaluate(path, **options)
    return report(results, "ct", again=lambda names: partial(_images, methods(names)), output=output, json=json)
