"""From a finished run to weights that can be shipped: half precision, hash and model card."""

import csv
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file

from sinotherm.errors import WeightsError
from sinotherm.networks.inference import RadialReconstructor, estimate_maps
from sinotherm.networks.radial import RadialSinogram
from sinotherm.networks.weights import GuardLimits, ModelCard, ValidRange, load_network, save_network
from sinotherm.training.loop import Configuration, build_network
from sinotherm.training.simulation import RadialSimulator

__all__ = ["calibrate_guard", "package_run"]

logger = logging.getLogger(__name__)

LICENCES: Final = {
    "brain_t1_ds002748": "OpenNeuro ds002748, CC0: skull-stripped T1 of 58 adults",
    "brain_ms_multicontrast": "MS lesion change database (Lesjak et al. 2016), CC-BY: T1, T2, FLAIR of 4 patients",
    "pelvis_prostatex": "TCIA PROSTATEx (Litjens et al.), CC BY: T2 of 1 patient",
    "ct_tcga_lung": "TCIA TCGA-LUAD and TCGA-LUSC, CC BY 3.0: CT of 38 patients",
}


def package_run(configuration: Configuration, run: Path, target: Path | None = None) -> Path:
    """Write the best weights of a run with their card; return the path of the weights.

    Parameters
    ----------
    configuration
        Of the run.
    run
        Its folder.
    target
        Folder for the three files; the run's by default.

    Raises
    ------
    WeightsError
        The run has no weights yet.
    """
    best = run / "best.safetensors"
    if not best.is_file():
        raise WeightsError(f"no weights in {run}: the run has not reached its first validation.")
    network = build_network(configuration)
    network.load_state_dict(load_file(best))
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    with (run / "metrics.csv").open(encoding="utf-8") as table:
        last = list(csv.DictReader(table))[-1]
    card = ModelCard(
        name=configuration.name,
        network=configuration.network,
        geometry=configuration.geometry,
        sha256="",
        architecture=network.architecture.as_dict(),
        valid=_range(configuration),
        guard=GuardLimits(),
        data={name: LICENCES.get(name, "not stated") for name in configuration.data},
        training={
            "parameters": network.n_parameters,
            "steps_in_all": int(last["step"]),
            "steps_of_these_weights": int(found["step"]),
            "batch": found["configuration"]["batch"],
            "minutes": round(found["configuration"]["minutes"], 1) or "by steps",
            "device": found.get("device", "not stated"),
            "cpu_core_hours": round(float(last["cpu_hours"]), 2),
            "simulation": json.dumps(configuration.simulation),
        },
        metrics={
            name: round(value, 4) for name, value in found.items() if name.count("_") and isinstance(value, float)
        },
        notes=(
            "Trained on simulated scans of magnitude images; metrics are of the training's validation scans "
            "(validation people only): SSIM in the body (ssim) and over the whole image (ssim_whole).",
        ),
    )
    path = (target or run) / f"{configuration.name}.safetensors"
    save_network(network, path, card)
    return path


def calibrate_guard(
    weights: Path,
    images: np.ndarray,
    probabilities: np.ndarray,
    *,
    spokes: Sequence[int] = (21, 32, 64, 128),
    scans: int = 24,
    quantile: float = 0.99,
) -> GuardLimits:
    """Set the guard's limits on simulated scans of validation people, and write them into the card.

    A limit is the quantile of each residual over scans of 1 to 8 coils and SNR 15 to 60 (heated ones for a
    guided network), raised by a half: real scans have off-resonance, fat and maps of their own, and spokes
    that are wrong have residuals near 1.

    Parameters
    ----------
    weights
        A ``.safetensors`` file with its card beside it.
    images, probabilities
        As `sinotherm.training.loop.load_images` returns them.
    spokes
        Numbers of spokes at which limits are set.
    scans
        Scans for each number of spokes.
    quantile
        1 minus the share of false trips that is aimed at.
    """
    network = RadialReconstructor(weights, device="cpu")
    limits: dict[str, list[float]] = {"held_out": [], "spoke": []}
    for count in spokes:
        simulator = RadialSimulator(
            images,
            probabilities,
            batch=1,
            paper=0.0,
            spokes=(count, count),
            sizes=(256,),
            size_weights=(1.0,),
            coils=(1, 4, 8),
            coil_weights=(0.3, 0.3, 0.4),
            heating=network.guided,
        )
        seen: dict[str, list[float]] = {"held_out": [], "spoke": []}
        for scan in range(scans):
            batch = simulator.sample(torch.Generator().manual_seed(9000 + scan))
            operator: RadialSinogram = batch.operator
            samples = operator.restore(batch.measured)[0].numpy()
            maps = estimate_maps(samples, operator.sampling, operator.angles, 256)
            scanned = (samples, operator.sampling, operator.angles, maps)
            guide = None if batch.reference is None else batch.reference[0].numpy()
            image, used = network.reconstruct(*scanned, reference=guide)
            residuals = network.residuals(*scanned, image, used, frame=scan, reference=guide)
            for name, value in residuals.items():
                seen[name].append(value)
        for name, values in seen.items():
            limits[name].append(round(1.5 * float(np.quantile(values, quantile)), 4))
        logger.info("%d spokes: limits %s", count, {name: values[-1] for name, values in limits.items()})
    found = GuardLimits(spokes=tuple(spokes), **{name: tuple(values) for name, values in limits.items()})
    network_of, card = load_network(weights)
    save_network(network_of, weights, dataclasses.replace(card, guard=found))
    return found


def _range(configuration: Configuration) -> ValidRange:
    settings = configuration.simulation
    if configuration.geometry != "radial" or configuration.network == "paper":
        return ValidRange(spokes=(1, 512), coils=(1, 32), pixels=(256, 256), snr=(0.0, 1e9), fov_m=(0.0, 10.0))
    return ValidRange(
        spokes=tuple(settings.get("spokes", (21, 128))),
        coils=(min(settings.get("coils", (1,))), max(settings.get("coils", (12,)))),
        pixels=(min(settings.get("sizes", (192,))), max(settings.get("sizes", (256,)))),
    )
