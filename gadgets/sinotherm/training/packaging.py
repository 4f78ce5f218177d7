"""From a finished run to weights that can be shipped: half precision, hash and model card."""

import csv
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file

from sinotherm.errors import SettingsError, WeightsError
from sinotherm.networks.inference import FEWEST_GUARDED, RadialReconstructor, estimate_maps
from sinotherm.networks.radial import RadialSinogram
from sinotherm.networks.weights import GuardLimits, ModelCard, ValidRange, load_network, save_network
from sinotherm.operators.fan_beam import FanBeamGeometry
from sinotherm.training.loop import (
    Configuration,
    build_network,
    build_simulator,
    load_images,
    validation_kinds,
    validation_scans,
    validation_scores,
)
from sinotherm.training.simulation import CartesianSimulator, FanBeamSimulator, RadialSimulator

__all__ = ["calibrate_guard", "package_run", "score_sets", "valid_range"]

logger = logging.getLogger(__name__)

NO_NOISE: Final = 1e9

NOT_FITTED: Final = (1.0, 1.0)
"""Error of a change of a guided network for which nobody has fitted one: as large as the change."""

SETS: Final = {
    "brain_t1_ds002748": ("766c8ed12db7", "OpenNeuro ds002748, CC0: skull-stripped T1 of 58 adults"),
    "brain_ms_multicontrast": (
        "1dd75524eedc",
        "MS lesion change database (Lesjak et al. 2016), CC-BY: T1, T2, FLAIR of 4 patients",
    ),
    "pelvis_prostatex": ("faa2027d6e26", "TCIA PROSTATEx (Litjens et al.), CC BY: T2 of 1 patient"),
    "ct_tcga_lung": ("612d50564ae0", "TCIA TCGA-LUAD and TCGA-LUSC, CC BY 3.0: CT of 38 patients"),
}
"""What the shipped weights were trained on: hash of the training people's names (`_names_hash`), and what it is."""
LICENCE: Final = "CC-BY-4.0"
NOT_STATED: Final = "not stated"


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
    SettingsError
        The run was started with another network, other data or another simulation, or the configuration claims a
        wider range than it trains.
    """
    best = run / "best.safetensors"
    if not best.is_file():
        raise WeightsError(f"no weights in {run}: the run has not reached its first validation.")
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    # The card states how the run was trained; what it is packaged as must be what it is.
    same = ("name", "network", "geometry", "architecture", "data", "simulation")
    configuration.refuse_changes(found["configuration"], same, run)
    network = build_network(configuration)
    network.load_state_dict(load_file(best))
    origin, people = found.get("origin", {}), found.get("people", {})
    change_error, notes = _change_error(configuration, origin)
    valid = valid_range(configuration)
    ours = all(_is_shipped(name, people) for name in configuration.data)
    with (run / "metrics.csv").open(encoding="utf-8") as table:
        last = list(csv.DictReader(table))[-1]
    card = ModelCard(
        name=configuration.name,
        network=configuration.network,
        geometry=configuration.geometry,
        sha256="",
        architecture=network.architecture.as_dict(),
        valid=valid,
        guard=GuardLimits(),
        change_error=change_error,
        # Of other people's images we cannot say it.
        licence=LICENCE if ours and (not origin or origin.get("licence") == LICENCE) else NOT_STATED,
        data={name: _about(name, people) for name in configuration.data},
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
            name: round(value, 4) for name, value in found.items() if isinstance(value, float) and name != "cpu_hours"
        },
        notes=(
            "Trained on simulated scans of magnitude images; metrics are of the training's validation scans "
            "(validation people only): SSIM in the body (ssim) and over the whole image (ssim_whole).",
            *_validated_outside(configuration, valid),
            *notes,
        ),
    )
    path = (target or run) / f"{configuration.name}.safetensors"
    save_network(network, path, card)
    return path


def score_sets(configuration: Configuration, weights: Path, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Score packaged weights on the validation people of each image set, and write it into their card.

    Parameters
    ----------
    configuration
        Of the run.
    weights
        A ``.safetensors`` file with its card beside it.
    folder
        The image sets with their ``splits.json``.

    Returns
    -------
    dict
        Validation kind → set → score, of the training's validation scans, made of one set at a time.

    Raises
    ------
    DataError
        As `sinotherm.training.loop.load_images`.
    """
    network, card = load_network(weights)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for dataset in configuration.data:
        scans = validation_scans(
            configuration, *load_images(folder, {dataset: 1.0}, "val", geometry=configuration.geometry)
        )
        for kind, batches in scans.items():
            scores = {name: round(value, 4) for name, value in validation_scores(network, batches).items()}
            found.setdefault(f"{kind}, by set", {})[dataset] = scores
    save_network(network, weights, dataclasses.replace(card, metrics={**card.metrics, **found}))
    return found


def calibrate_guard(
    configuration: Configuration,
    weights: Path,
    images: np.ndarray,
    probabilities: np.ndarray,
    *,
    scans: int = 24,
    quantile: float = 0.99,
) -> GuardLimits:
    """Set the guard's limits on simulated scans of validation people, and write them into the card.

    Limits are set at four numbers of spokes from the lowest to the highest of the card's range, at its largest
    image. A limit is the quantile of each residual over scans as the network was trained on (coils within the
    range, SNR, heating), raised by a half: real scans have off-resonance, fat and maps of their own, and spokes
    that are wrong have residuals near 1.

    Parameters
    ----------
    configuration
        Of the run.
    weights
        A ``.safetensors`` file with its card beside it.
    images, probabilities
        As `sinotherm.training.loop.load_images` returns them.
    scans
        Scans for each number of spokes.
    quantile
        1 minus the share of false trips that is aimed at.

    Raises
    ------
    SettingsError
        The run's network is not for radial data.
    """
    network = RadialReconstructor(weights, device="cpu")
    valid = network.card.valid
    size = int(valid.pixels[1])
    trained = build_simulator(configuration, images, probabilities)
    if not isinstance(trained, RadialSimulator):
        raise SettingsError(f"{configuration.name} is not for radial data: only such networks have a guard.")
    coils = {
        count: float(often)
        for count, often in zip(trained.coils, trained.coil_weights, strict=True)
        if valid.coils[0] <= count <= valid.coils[1]
    }
    # Of fewer spokes none are left out.
    lowest, highest = np.maximum(valid.spokes, FEWEST_GUARDED)
    counts = np.unique(np.round(np.geomspace(lowest, highest, 4)).astype(int))
    limits: dict[str, list[float]] = {"held_out": [], "spoke": []}
    for count in counts:
        simulator = build_simulator(
            configuration,
            images,
            probabilities,
            batch=1,
            paper=0.0,
            spokes=(int(count), int(count)),
            sizes=(size,),
            size_weights=(1.0,),
            coils=tuple(coils),
            coil_weights=tuple(coils.values()),
        )
        seen: dict[str, list[float]] = {"held_out": [], "spoke": []}
        for scan in range(scans):
            batch = simulator.sample(torch.Generator().manual_seed(9000 + scan))
            operator: RadialSinogram = batch.operator
            samples = operator.restore(batch.measured)[0].numpy()
            maps = estimate_maps(samples, operator.sampling, operator.angles, size)
            scanned = (samples, operator.sampling, operator.angles, maps)
            guide = None if batch.reference is None else batch.reference[0].numpy()
            image, used = network.reconstruct(*scanned, reference=guide)
            residuals = network.residuals(*scanned, image, used, frame=scan, reference=guide)
            for name, value in residuals.items():
                seen[name].append(value)
        for name, values in seen.items():
            limits[name].append(round(1.5 * float(np.quantile(values, quantile)), 4))
        logger.info("%d spokes: limits %s", count, {name: values[-1] for name, values in limits.items()})
    found = GuardLimits(spokes=tuple(map(int, counts)), **{name: tuple(values) for name, values in limits.items()})
    network_of, card = load_network(weights)
    save_network(network_of, weights, dataclasses.replace(card, guard=found))
    return found


def _names_hash(people: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(sorted(people)).encode()).hexdigest()[:12]


def _is_shipped(name: str, people: Mapping[str, Sequence[str]]) -> bool:
    """Return whether the people of a set are those of the set of this name that the shipped weights know."""
    return name in SETS and _names_hash(people.get(name, ())) == SETS[name][0]


def _about(name: str, people: Mapping[str, Sequence[str]]) -> str:
    """Return what the card says of a set: a name alone says nothing about who is in it."""
    if _is_shipped(name, people):
        return SETS[name][1]
    # Runs of earlier versions did not keep who was read.
    return f"{NOT_STATED}; people: {len(people[name])}" if name in people else NOT_STATED


def _validated_outside(configuration: Configuration, valid: ValidRange) -> list[str]:
    """Return the note that some validation scans, which are fixed, lie outside of the card's range."""
    outside = []
    for kind, changes in validation_kinds(configuration).items():
        for setting, what in (("sizes", "pixels"), ("coils", "coils"), ("spokes", "spokes")):
            scanned = changes.get(setting, ())
            low, high = getattr(valid, what)
            if any(not low <= value <= high for value in scanned):
                outside.append(f"{kind} of {scanned[0]} {what}")
    if not outside:
        return []
    return [f"Some of these scans lie outside of the card's range, and their metrics with them: {', '.join(outside)}."]


def _change_error(configuration: Configuration, origin: Mapping[str, Any]) -> tuple[tuple[float, float], list[str]]:
    """Return the error of a change that the card states, and what it says about it."""
    if not configuration.architecture.get("reference"):
        return (0.0, 0.0), []
    known = [float(value) for value in origin.get("change_error", ())]
    if any(known):
        source = origin["weights"]
        return (known[0], known[1]), [f"The error of a change is that of {source}, from which the training started."]
    note = (
        "The error of a change was not fitted: it is stated as the whole change, so that no temperature of these "
        "weights looks certain. Fit it to heated scans of validation people and write it into the card."
    )
    logger.warning("%s: %s", configuration.name, note)
    return NOT_FITTED, [note]


def valid_range(configuration: Configuration) -> ValidRange:
    """Return what the configuration's simulator draws, or the part of it that the configuration claims.

    Raises
    ------
    SettingsError
        The configuration claims more than its simulator draws.
    """
    simulator = build_simulator(configuration, np.ones((1, 8, 8)), np.ones(1))
    counts, coils, sizes, lowest_snr, fov_m = [1], [1], [256], NO_NOISE, (0.0, 10.0)
    if isinstance(simulator, FanBeamSimulator):
        counts = [len(FanBeamGeometry.sparse_views(360, every)) for every in simulator.sparsity]
    elif isinstance(simulator, CartesianSimulator):
        counts, coils = [round(256 / part) for part in simulator.acceleration], list(simulator.coils)
        lowest_snr = simulator.snr[0]
    elif isinstance(simulator, RadialSimulator):
        counts = simulator.counts.tolist()
        if configuration.network != "paper":
            fov_m = ValidRange().fov_m
        # A share of scans without noise and object phase says nothing about real ones of their size.
        if simulator.paper < 1:
            coils, sizes, lowest_snr = list(simulator.coils), list(simulator.sizes), simulator.snr[0]
    found = ValidRange(
        spokes=(min(counts), max(counts)),
        coils=(min(coils), max(coils)),
        pixels=(min(sizes), max(sizes)),
        # What a frame's SNR is estimated to be scatters.
        snr=(lowest_snr if lowest_snr == NO_NOISE else max(10.0, lowest_snr - 5.0), NO_NOISE),
        fov_m=fov_m,
    )
    for name, (low, high) in configuration.valid.items():
        lowest, highest = getattr(found, name)
        if not lowest <= low <= high <= highest:
            raise SettingsError(
                f"configuration {configuration.name} claims {name} {low:g} to {high:g} and trains {lowest:g} to "
                f"{highest:g}: claim no more than that."
            )
        found = dataclasses.replace(found, **{name: (low, high)})
    return found
