"""``evaluate ct``: sparse fan-beam CT, scored on patients (the first paper's other half)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import SettingsError
from sinotherm.evaluation.images import default_split
from sinotherm.evaluation.metrics import ImageScores, people_means, score
from sinotherm.operators.fan_beam import FanBeam, FanBeamGeometry
from sinotherm.simulation.image_sets import Split, attenuation, find_splits, read_series

__all__ = ["METHODS", "evaluate", "methods"]

log = logging.getLogger(__name__)

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


def evaluate(
    path: Path, *, split: Split | None = None, sparsity: int = 16, names: Sequence[str] = METHODS
) -> Iterator[dict[str, Any]]:
    """Yield one row for each set and method; means and SDs are over patients.

    Images are attenuation relative to water, 256 pixels; the scan is the first paper's fan beam, every
    ``sparsity``-th of 360 views.
    """
    import torch

    ready = methods(names)
    splits = find_splits(path)
    datasets = None
    if splits is not None and (path / "splits.json").is_file():
        datasets = [name for name in splits if name.startswith("ct_")]
    split = split or default_split(path)
    projector = FanBeam(FanBeamGeometry(), FanBeamGeometry.sparse_views(VIEWS, sparsity))
    results: dict[str, dict[str, list[tuple[str, ImageScores]]]] = {}
    for series in read_series(path, split=split, datasets=datasets):
        for image in series.images:
            truth = attenuation(image, projector.geometry.n_pixels)
            sinogram = projector(torch.from_numpy(truth)).numpy()
            for name, reconstruct in ready.items():
                found = score(reconstruct(sinogram, projector).astype(np.complex64), truth.astype(np.complex64))
                results.setdefault(series.dataset, {}).setdefault(name, []).append((series.person, found))
    for dataset, by_method in results.items():
        for name, scores in by_method.items():
            means = people_means(scores)
            # Attenuation is real.
            del means["phase_rmse_rad_mean"]
            yield {
                "dataset": dataset,
                "split": split,
                "method": name,
                "sparsity": sparsity,
                "views": len(projector.angles),
                **means,
            }
