"""The training loop: one plain PyTorch loop for every network, on CPU, one GPU or several.

Needs torch, numpy and safetensors alone, with images as NumPy files (other formats need their readers); started by
``sinotherm train`` or, without the packages of the commands, ``python -m sinotherm.training``. What else is
installed is used: compiled operators (numba) on a CPU, pictures (matplotlib). A run is a folder: ``metrics.csv``,
``last.pt`` (resumes to the same numbers), ``best.safetensors`` (averaged weights, best validation), pictures,
``run.json``.
"""

import csv
import hashlib
import json
import logging
import math
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from sinotherm.errors import DataError, SettingsError, WeightsError
from sinotherm.networks.paper import PaperArchitecture, PaperPrimalDual
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import load_tensors_of
from sinotherm.operators.backend import Device, choose_device, has_bfloat16
from sinotherm.simulation.image_sets import (
    HOUNSFIELD,
    MAGNITUDE,
    Split,
    attenuation,
    files_of,
    find_splits,
    is_hounsfield,
    is_magnitude,
    prepare,
    read_series,
    shows_something,
)
from sinotherm.training.losses import image_loss, structural_similarity
from sinotherm.training.simulation import (
    Batch,
    CartesianSimulator,
    FanBeamSimulator,
    ObjectSource,
    PaperRadialSimulator,
    RadialSimulator,
)

__all__ = [
    "Configuration",
    "Trainer",
    "build_network",
    "build_simulator",
    "load_images",
    "own_device",
    "train",
    "validation_kinds",
    "validation_scans",
    "validation_scores",
]

log = logging.getLogger(__name__)

CONFIGS: Final = Path(__file__).parent / "configs"

LEAST: Final = {
    **dict.fromkeys(("steps", "batch", "validate", "checkpoint"), 1),
    **dict.fromkeys(("decay", "warmup", "minutes", "seed", "average"), 0),
    **dict.fromkeys(("weight_decay", "ssim_weight", "phase_weight", "change_weight"), 0),
}
MOST: Final = {"seed": 2**32 - 1, "average": 1}

LEAST_OF_NETWORKS: Final = {
    **dict.fromkeys(("iterations", "n_primal", "n_dual", "dual_features"), 1),
    "dual_layers": 2,
    "memory": 0,
}

FREE: Final = frozenset({"steps", "decay", "minutes", "validate", "checkpoint", "valid"})
"""What may change when a run goes on: its length, when it is looked at, and what is claimed of it."""


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value, with lists for tuples as TOML has them, is of an annotated type."""
    kind, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind is Literal:
        return value in parts
    if kind is tuple:
        if not isinstance(value, list | tuple):
            return False
        wanted = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if hint in (int, float):
        right = isinstance(value, int | hint) and not isinstance(value, bool)
        return right and math.isfinite(value)
    return isinstance(value, hint)


def _refuse_misfits(what: str, settings: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise a `SettingsError` for the first setting that is not of its annotated type."""
    for name, value in settings.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            choice = f"one of {', '.join(map(repr, get_args(hint)))}"
            wanted = choice if get_origin(hint) is Literal else hint if get_args(hint) else hint.__name__
            raise SettingsError(f"{what}: {name} = {value!r}; it must be {wanted}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A training run.

    Attributes
    ----------
    name
        Network to train; also the name of its weights.
    geometry, network
        ``radial``, ``cartesian`` or ``fan-beam``; ``primal-dual`` (ours) or ``paper`` (the comparators).
    data
        Share of each image set in the batches.
    steps, warmup, decay
        Optimiser steps in all, of the linear start, and of the cosine decay at the end; the learning
        rate is constant in between, so that a run can be prolonged before its decay.
    learning_rate, batch, weight_decay, ssim_weight, phase_weight, average
        Of AdamW, the batch, the loss and the exponential moving average of the weights.
    change_weight
        Of a guided network: how much more a voxel whose phase truly changes by 1 rad counts in the phase loss, and
        how much more one where the change is not that of its surroundings. Narrow spots and the borders of heated
        tissue are few voxels; without it they are the last that a network learns.
    reduced
        Whether blocks train in bfloat16 where the device computes in it (operators and weights stay in single
        precision).
    validate, checkpoint
        Steps between validations and between checkpoints.
    seed
        Of weights and scans, below 2³².
    minutes
        Instead of by steps, the run ends after this time, and the learning rate decays over the same
        fraction of it: for comparisons at equal time. Such a run does not resume to the same numbers.
    valid
        Lowest and highest spokes, coils or pixels that the model card shall claim, where that is less than what
        the simulation draws.
    architecture, simulation
        Settings of the network's architecture and of the geometry's simulator.

    Raises
    ------
    SettingsError
        A setting is of another type or out of its bounds.
    """

    name: str
    data: dict[str, float]
    steps: int
    decay: int
    geometry: Literal["radial", "cartesian", "fan-beam"] = "radial"
    network: Literal["primal-dual", "paper"] = "primal-dual"
    warmup: int = 200
    learning_rate: float = 1e-3
    batch: int = 4
    weight_decay: float = 1e-4
    ssim_weight: float = 0.1
    phase_weight: float = 0.0
    change_weight: float = 0.0
    average: float = 0.999
    reduced: bool = True
    validate: int = 500
    checkpoint: int = 100
    seed: int = 1
    minutes: float = 0.0
    valid: dict[str, tuple[float, float]] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)
    simulation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        what = f"configuration {self.name}"
        _refuse_misfits(what, asdict(self), get_type_hints(type(self)))
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise SettingsError(f"{what}: {name} = {getattr(self, name)}; it must be at least {least}.")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise SettingsError(f"{what}: {name} = {getattr(self, name)}; it must be at most {most}.")
        if self.learning_rate <= 0:
            raise SettingsError(f"{what}: learning_rate = {self.learning_rate:g}; it must be above 0.")
        if self.name in ("", "..") or Path(self.name).name != self.name:
            raise SettingsError(f"configuration: name = {self.name!r}; it must be the name of a folder, not a path.")
        if self.decay > self.steps:
            raise SettingsError(f"{what}: decay = {self.decay} is more than steps = {self.steps}: give both.")
        if not self.data:
            raise SettingsError(f"{what}: [data] is empty; name a set of images and its share, as in SET = 1.0.")
        if any(share <= 0 for share in self.data.values()):
            raise SettingsError(f"{what}: data = {self.data}; every share must be above 0.")
        if not {"spokes", "coils", "pixels"}.issuperset(self.valid):
            raise SettingsError(f"{what}: valid = {self.valid}; it may claim spokes, coils and pixels.")
        if any(low > high for low, high in self.valid.values()):
            raise SettingsError(f"{what}: valid = {self.valid}; the lowest of each must be no more than the highest.")
        if self.network == "paper" and self.geometry == "cartesian":
            raise SettingsError(f"{what}: the papers' networks know radial and fan-beam data only.")
        if bool(self.architecture.get("reference")) != bool(self.simulation.get("heating")):
            raise SettingsError(f"{what}: reference of the architecture and heating of the simulation go together.")

    @classmethod
    def read(cls, path: Path | str, **changes: Any) -> Self:
        """Read a TOML file, or a shipped configuration by name.

        Raises
        ------
        SettingsError
            The file does not exist or is not TOML, or a setting is unknown, missing or wrong.
        """
        file = Path(path)
        if not file.is_file():
            file = CONFIGS / f"{path}.toml"
        if not file.is_file():
            known = ", ".join(sorted(config.stem for config in CONFIGS.glob("*.toml")))
            raise SettingsError(f"no training configuration {path}; shipped ones: {known}.")
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8")) | changes
        except ValueError as error:
            raise SettingsError(f"{file} is not a TOML file: {error}.") from error
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise SettingsError(f"unknown settings in {file}: {', '.join(sorted(unknown))}.")
        try:
            found = cls(**values)
        except TypeError as error:
            raise SettingsError(f"{file}: {error}") from error
        # What is wrong in their settings shall show before images are read for minutes.
        build_network(found)
        build_simulator(found, np.ones((1, 8, 8)), np.ones(1))
        return found

    def refuse_changes(self, before: Mapping[str, Any], names: Iterable[str], run: Path) -> None:
        """Raise a `SettingsError` where these settings are not those that a run in a folder was started with.

        Parameters
        ----------
        before
            The run's configuration as it was kept; what it lacks, as one of an older version does, may be anything.
        """
        then, now = (json.loads(json.dumps(values)) for values in (dict(before), asdict(self)))
        changed = [
            f"{name} was {then[name]!r} and is {now[name]!r}"
            for name in names
            if name in then and then[name] != now[name]
        ]
        if changed:
            listed = "; ".join(changed)
            raise SettingsError(f"{run} was started otherwise: {listed}. Set it back, or take another --runs folder.")

    def rate(self, step: int, done: float | None = None) -> float:
        """Learning rate of a step: linear start, constant, cosine decay.

        Parameters
        ----------
        done
            Part of the run that is over; by default that of the steps.
        """
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        part = self.decay / self.steps
        into = (step / self.steps if done is None else done) - (1.0 - part)
        if into <= 0 or part == 0:
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, into / part)))


def load_images(
    folder: Path, shares: Mapping[str, float], split: Split, size: int = 256, *, geometry: str = "radial"
) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint16 (image, size, size) with full scale 2.0, and the probability of each.

    Images of a set share its probability equally by person and, within a person, by slice. Scans of a
    ``fan-beam`` are made of Hounsfield units, which become attenuation relative to water, all others of magnitudes.

    Raises
    ------
    DataError
        There is no such folder, a set has no image of this split, or images are not of the geometry's kind.
    """
    images, weights, _ = _read_images(folder, shares, split, size, geometry=geometry)
    return images, weights


def _read_images(
    folder: Path, shares: Mapping[str, float], split: Split, size: int = 256, *, geometry: str
) -> tuple[np.ndarray, np.ndarray, dict[str, list[str]]]:
    """Return what `load_images` returns, and the people of each set."""
    ct = geometry == "fan-beam"
    fits, ready, needed = (is_hounsfield, attenuation, HOUNSFIELD) if ct else (is_magnitude, prepare, MAGNITUDE)
    images: list[np.ndarray] = []
    owners: list[tuple[str, str]] = []
    for series in read_series(folder, split=split, datasets=tuple(shares)):
        shown = [image for image in series.images if shows_something(image)]
        if shown and not fits(series.images):
            raise DataError(
                f"{series.person} {series.name} of {series.dataset} in {folder} ({series.images.min():g} to "
                f"{series.images.max():g}) cannot be used: {geometry} scans are made of {needed}. Take it out of the "
                "set, or the set out of the configuration's [data]."
            )
        for image in shown:
            images.append(np.clip(ready(image, size) * (65535 / 2), 0, 65535).astype(np.uint16))
            owners.append((series.dataset, series.person))
    missing = sorted(set(shares) - {dataset for dataset, _ in owners})
    if missing:
        raise DataError(
            f"no images of split {split} in {folder} of the sets {', '.join(missing)}: check the names in the "
            "configuration's [data], and the sets' people in splits.json."
        )
    counts = {owner: owners.count(owner) for owner in set(owners)}
    people = {name: sorted(p for d, p in counts if d == name) for name in shares}
    weights = np.array([shares[d] / len(people[d]) / counts[d, p] for d, p in owners])
    return np.stack(images), weights / weights.sum(), people


def _fingerprint(folder: Path, configuration: Configuration) -> str:
    """Return what tells images of one folder, and of one state of it, prepared for one kind of scan, from others."""
    names = configuration.data.keys()
    # The last is what is kept of them.
    state: list[Any] = [str(folder.resolve()), configuration.geometry == "fan-beam", "images, weights, people"]
    for file in files_of(folder, names):
        # Reading says what is wrong with a link whose target is missing.
        about = file.stat() if file.exists() else file.lstat()
        state.append((str(file.relative_to(folder.absolute())), about.st_size, about.st_mtime_ns))
    splits = find_splits(folder) or {}
    state.append({name: splits.get(name) for name in sorted(names)})
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]


def _complex(image: Tensor) -> Tensor:
    """Return a network's image as complex: those of the papers are real."""
    return image if image.is_complex() else torch.complex(image, torch.zeros_like(image))


def _answer(model: nn.Module, batch: Batch) -> Tensor:
    guide = () if batch.reference is None else (batch.reference,)
    return _complex(model(batch.measured, batch.operator, *guide))


@torch.no_grad()
def validation_scores(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Return NRMSE of the complex image, phase RMSE in the body (rad), and SSIM of the modulus, there and whole."""
    nrmse: list[float] = []
    phase: list[float] = []
    whole: list[float] = []
    inside: list[float] = []
    for batch in batches:
        image = _answer(model, batch)
        truth = batch.target.abs()
        error = (image - batch.target).abs().square().sum(dim=(1, 2)).sqrt()
        nrmse += (error / truth.square().sum(dim=(1, 2)).sqrt()).tolist()
        similarity = structural_similarity(image.abs(), truth)
        signal = truth > 0.05 * truth.amax(dim=(1, 2), keepdim=True)
        turned = (image * batch.target.conj()).angle().square() * signal
        phase += (turned.sum(dim=(1, 2)) / signal.sum(dim=(1, 2))).sqrt().tolist()
        body = functional.max_pool2d(signal.float(), 11, 1, 5)
        body = body[:, 3:-3, 3:-3]
        whole += similarity.mean(dim=(1, 2)).tolist()
        inside += ((similarity * body).sum(dim=(1, 2)) / body.sum(dim=(1, 2))).tolist()
    return {
        "nrmse": float(np.mean(nrmse)),
        "phase_rmse_rad": float(np.mean(phase)),
        "ssim": float(np.mean(inside)),
        "ssim_whole": float(np.mean(whole)),
    }


def _tuples(value: Any) -> Any:
    """TOML knows lists only."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def build_network(configuration: Configuration) -> PrimalDual | PaperPrimalDual:
    """Return the untrained network of a configuration.

    Raises
    ------
    SettingsError
        The architecture has an unknown or a wrong setting.
    """
    what = f"architecture of {configuration.name}"
    kind = PaperArchitecture if configuration.network == "paper" else Architecture
    _refuse_misfits(what, configuration.architecture, get_type_hints(kind))
    try:
        architecture = kind(**{name: _tuples(value) for name, value in configuration.architecture.items()})
    except TypeError as error:
        raise SettingsError(f"{what}: {error}.") from error
    for name, least in LEAST_OF_NETWORKS.items():
        if getattr(architecture, name, least) < least:
            raise SettingsError(f"{what}: {name} = {getattr(architecture, name)}; it must be at least {least}.")
    if isinstance(architecture, PaperArchitecture):
        return PaperPrimalDual(architecture)
    widths, closing = architecture.primal_features, architecture.closing
    if min(widths, default=0) < 1:
        raise SettingsError(f"{what}: primal_features = {widths}; there must be some, each at least 1.")
    if architecture.start < 0:
        raise SettingsError(f"{what}: start = {architecture.start}; it must be at least 0.")
    if architecture.context != 1:
        raise SettingsError(f"{what}: context = {architecture.context}; every geometry's measurement has 1 channel.")
    if closing and not (architecture.reference and all(width > 0 and least >= 0 for width, least in closing)):
        raise SettingsError(
            f"{what}: closing = {closing}; it needs a reference, widths above 0 and z-scores of at least 0."
        )
    architecture.check_geometry(configuration.geometry)
    return PrimalDual(architecture)


def build_simulator(
    configuration: Configuration, images: np.ndarray, weights: np.ndarray, **changes: Any
) -> ObjectSource:
    """Return the simulator of a configuration.

    Raises
    ------
    SettingsError
        The simulation has an unknown or a wrong setting.
    """
    what = f"simulation of {configuration.name}"
    paper = configuration.network == "paper"
    kinds: dict[str, type[Any]] = {
        "radial": PaperRadialSimulator if paper else RadialSimulator,
        "cartesian": CartesianSimulator,
        "fan-beam": FanBeamSimulator,
    }
    kind = kinds[configuration.geometry]
    own = {"paper": paper} if kind is FanBeamSimulator else {}
    settings = {"batch": configuration.batch} | configuration.simulation | changes
    _refuse_misfits(what, settings, get_type_hints(kind.__init__))
    try:
        return kind(images, weights, **own, **{name: _tuples(value) for name, value in settings.items()})
    except TypeError as error:
        raise SettingsError(f"{what}: {error}.") from error


def validation_kinds(configuration: Configuration) -> dict[str, dict[str, Any]]:
    """Return the fixed validation scans of a configuration: name → changes of the simulator's settings."""
    if configuration.geometry == "cartesian":
        return {"R10": {"acceleration": (10.0, 10.0), "coils": (8,), "snr": (30.0, 30.0)}}
    if configuration.geometry == "fan-beam":
        return {"sparse16": {"sparsity": (16,)}}
    if configuration.network == "paper":
        return {"paper": {}}
    common = {"sizes": (256,), "size_weights": (1.0,), "spokes": (32, 32), "snr": (30.0, 30.0)}
    kinds: dict[str, dict[str, Any]] = {
        "real1": common | {"paper": 0.0, "coils": (1,), "coil_weights": (1.0,)},
        "real8": common | {"paper": 0.0, "coils": (8,), "coil_weights": (1.0,)},
    }
    return kinds if configuration.simulation.get("heating") else {"paper": common | {"paper": 1.0}} | kinds


def validation_scans(
    configuration: Configuration, images: np.ndarray, weights: np.ndarray, device: str = "cpu"
) -> dict[str, list[Batch]]:
    """Return the same sixteen scans of each validation kind every time: name → batches."""

    def scans(changes: Mapping[str, Any]) -> list[Batch]:
        simulator = build_simulator(configuration, images, weights, batch=4, device=device, **changes)
        return [simulator.sample(torch.Generator(device).manual_seed(77 + i)) for i in range(4)]

    return {name: scans(changes) for name, changes in validation_kinds(configuration).items()}


def own_device(device: Device) -> torch.device:
    """Return the device of this process: where several share a machine, the GPU of its ``LOCAL_RANK``.

    Raises
    ------
    SettingsError
        CUDA is asked for and there is none, or there are more processes than GPUs.
    """
    chosen = choose_device(device)
    local = os.environ.get("LOCAL_RANK")
    if chosen.type != "cuda" or local is None:
        return chosen
    found = torch.cuda.device_count()
    if int(local) >= found:
        raise SettingsError(f"process {int(local) + 1} of this machine has {found} GPUs: start one process a GPU.")
    own = torch.device("cuda", int(local))
    # NCCL, and whatever allocates without a device, would otherwise meet on the first GPU.
    torch.cuda.set_device(own)
    return own


class Trainer:
    """Trains one network in one folder.

    Parameters
    ----------
    configuration, folder
        What to train, and where the run is kept.
    images
        Folder of the image sets with their ``splits.json``; what is wrong with a checkpoint or with weights shows
        before they are prepared, which takes minutes.
    device
        ``cpu``, ``cuda`` or ``auto``; under ``torchrun`` every process takes its own GPU.
    """

    def __init__(self, configuration: Configuration, folder: Path, images: Path, device: Device = "cpu") -> None:
        self.configuration = c = configuration
        self.folder = folder
        self.device = own_device(device)
        self.rank = int(os.environ.get("RANK", "0"))
        folder.mkdir(parents=True, exist_ok=True)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        torch.manual_seed(c.seed)
        self.model = build_network(c).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if c.reduced and isinstance(self.model, PrimalDual):
            if has_bfloat16(self.device):
                self.model.reduced = torch.bfloat16
            else:
                log.info("%s: blocks train in single precision: bfloat16 is emulated here", c.name)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=c.learning_rate,
            weight_decay=c.weight_decay,
            betas=(0.9, 0.99),
            fused=self.device.type == "cuda",
        )
        self.step = 0
        self.cpu_hours = 0.0
        self.best = -math.inf
        self.origin: dict[str, Any] = {}
        self.people: dict[str, list[str]] = {}
        self._folder_of_images = images

    @cached_property
    def simulator(self) -> ObjectSource:
        """Source of the scans to train on; its images are prepared when it is first asked for."""
        images, weights, people = self._images(self._folder_of_images, "train")
        # A run may go on with other people's images: it has seen them all.
        self.people = {name: sorted({*self.people.get(name, ()), *found}) for name, found in people.items()}
        return build_simulator(self.configuration, images, weights, device=str(self.device))

    @cached_property
    def scenes(self) -> dict[str, list[Batch]]:
        """The validation scans by kind; their images are prepared when they are first asked for."""
        images, weights, _ = self._images(self._folder_of_images, "val")
        return validation_scans(self.configuration, images, weights, device=str(self.device))

    def _random(self) -> torch.Generator:
        """Return the generator of this step's scans."""
        # On a CPU only the low 32 bits of a seed count: each has to depend on all three numbers.
        (mixed,) = np.random.SeedSequence((self.configuration.seed, self.step, self.rank)).generate_state(1)
        return torch.Generator(self.device).manual_seed(int(mixed))

    def _images(self, folder: Path, split: Split) -> tuple[np.ndarray, np.ndarray, dict[str, list[str]]]:
        # Preparing takes longer than reading: runs on the same images beside each other share the prepared ones.
        if not folder.exists():
            raise DataError(f"no images: {folder} does not exist.")
        c = self.configuration
        sets = "_".join(f"{name}-{share:g}" for name, share in sorted(c.data.items()))
        key = _fingerprint(folder, c)
        cache = self.folder.parent / f"images_{split}_{sets}_{key}.npz"
        if not cache.is_file():
            images, weights, people = _read_images(folder, c.data, split, geometry=c.geometry)
            # A run that starts beside this one must not read half a file.
            part = cache.with_name(f"{cache.stem}.{os.getpid()}.part.npz")
            np.savez(part, images=images, weights=weights, people=json.dumps(people))
            part.replace(cache)
        with np.load(cache) as kept:
            return kept["images"], kept["weights"], json.loads(str(kept["people"]))

    def save(self) -> None:
        """Write the checkpoint; a crash while writing leaves the one before."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "best": self.best,
            "cpu_hours": self.cpu_hours,
            "origin": self.origin,
            "people": self.people,
            "configuration": asdict(self.configuration),
        }
        target = self.folder / "last.pt"
        torch.save(state, target.with_suffix(".part"))
        target.with_suffix(".part").replace(target)

    def resume(self) -> None:
        """Go on from the folder's checkpoint.

        Raises
        ------
        SettingsError
            The run was started with other settings than those that may change.
        WeightsError
            The folder holds no checkpoint, or one that cannot be read.
        """
        file = self.folder / "last.pt"
        if not file.is_file():
            raise WeightsError(f"nothing to resume: {file} does not exist.")
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
            before = dict(state["configuration"])
            parts = [state[name] for name in ("model", "average", "optimiser", "step", "best", "cpu_hours")]
        # What is damaged makes the reader raise anything.
        except Exception as error:
            raise WeightsError(
                f"{file} is no checkpoint that can be read ({type(error).__name__}): put back a copy of it, or start "
                "again with another --runs folder; --package still makes weights of a best.safetensors that lies there."
            ) from error
        fixed = [item.name for item in fields(Configuration) if item.name not in FREE]
        self.configuration.refuse_changes(before, fixed, self.folder)
        model, self.average, optimiser, self.step, self.best, self.cpu_hours = parts
        self.model.load_state_dict(model)
        self.optimiser.load_state_dict(optimiser)
        self.origin = state.get("origin", {})
        self.people = state.get("people", {})

    def start_from(self, weights: str | Path) -> None:
        """Start from weights (name or file) with a fresh optimiser.

        Raises
        ------
        WeightsError
            There are no such weights, or they do not fit the configured network.
        """
        tensors, card = load_tensors_of(weights)
        try:
            self.model.load_state_dict(tensors)
        except RuntimeError as error:
            own = json.loads(json.dumps(self.model.architecture.as_dict()))
            theirs = json.loads(json.dumps(card.architecture))
            apart = [
                f"{name} = {theirs.get(name)}, not {own.get(name)}"
                for name in sorted(own.keys() | theirs.keys())
                if own.get(name) != theirs.get(name)
            ]
            raise WeightsError(
                f"weights {card.name} ({card.geometry}, {card.network}) do not fit {self.configuration.name}: "
                f"they have {'; '.join(apart) or str(error).splitlines()[0]}."
            ) from error
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.origin = {"weights": card.name, "change_error": list(card.change_error), "licence": card.licence}

    def run(self, *, until: int | None = None, report: Callable[[int, float], None] | None = None) -> None:
        """Train up to the configured number of steps, or to step ``until``, or for the configured time.

        Raises
        ------
        DataError
            The loss or a validation score is not finite; the checkpoint before is kept.
        """
        c = self.configuration
        if self.rank == 0:
            self._forget_later_rows()
        # In every process, and before the clock runs.
        simulator, _ = self.simulator, self.scenes
        limit_s = 60.0 * c.minutes
        end = until or (sys.maxsize if limit_s else c.steps)
        self.model.train()
        began, started, losses = time.monotonic(), time.process_time(), []
        while self.step < end:
            done = self._shared((time.monotonic() - began) / limit_s) if limit_s else None
            if done is not None and done >= 1.0:
                end = self.step
            else:
                losses.append(self._update(simulator.sample(self._random()), c.rate(self.step, done)))
                self.step += 1
                if report is not None:
                    report(self.step, float(losses[-1]))
            if self.step % c.checkpoint and self.step != end:
                continue
            # Nothing where the time was over at once.
            loss = float(torch.stack(losses).mean()) if losses else None
            losses = []
            if loss is not None and not math.isfinite(loss):
                raise self._spoilt("the loss")
            if self.rank == 0:
                self.cpu_hours += (time.process_time() - started) / 3600
                started = time.process_time()
                if loss is not None:
                    self._log({"step": self.step, "cpu_hours": self.cpu_hours, "loss": loss})
                if self.step % c.validate == 0 or self.step == end:
                    self.validate()
                self.save()

    def _forget_later_rows(self) -> None:
        """Drop rows of the tables beyond this step: a run that was killed wrote them without a checkpoint."""
        for name in ("metrics.csv", "validation.csv"):
            file = self.folder / name
            if not file.is_file():
                continue
            header, *rows = file.read_bytes().splitlines(keepends=True) or [b""]
            # The last row may have been cut off.
            kept = [row for row in rows if row.endswith(b"\n") and int(row.split(b",")[0]) <= self.step]
            if kept:
                file.with_suffix(".part").write_bytes(b"".join([header, *kept]))
                file.with_suffix(".part").replace(file)
            else:
                # Whatever writes the next row writes the header too.
                file.unlink()

    def _spoilt(self, what: str) -> DataError:
        return DataError(
            f"{what} is not finite at step {self.step}: the images hold what no scan can be made of, or the learning "
            f"rate {self.configuration.learning_rate:g} is too high; {self.folder} keeps the checkpoint before."
        )

    def _update(self, batch: Batch, rate: float) -> Tensor:
        c = self.configuration
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        importance = None
        if batch.reference is not None and c.change_weight > 0:
            change = (batch.target * batch.reference.conj()).angle()
            around = functional.avg_pool2d(change[:, None], 17, 1, 8, count_include_pad=False)[:, 0]
            narrow = (change - around).abs()
            importance = 1.0 + c.change_weight * (change.abs() + narrow / (narrow + 0.1))
        loss = image_loss(
            _answer(self.model, batch),
            batch.target,
            ssim_weight=c.ssim_weight,
            phase_weight=c.phase_weight,
            importance=importance,
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if torch.distributed.is_initialized():
            self._share_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for parameter in self.model.parameters():
            # A batch whose gradient overflows counts for nothing; asking whether it did would wait for the GPU.
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        self.optimiser.step()
        keep = min(c.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - keep)
                else:
                    self.average[name].copy_(value)
        return loss.detach()

    def _shared(self, value: float) -> float:
        """Return the first process's value: clocks of their own would end one process while others wait for it."""
        if not torch.distributed.is_initialized():
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(told, 0)
        return float(told)

    def _share_gradients(self) -> None:
        for parameter in self.model.parameters():
            # Not every backend can average.
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad.div_(torch.distributed.get_world_size())

    def validate(self) -> dict[str, dict[str, float]]:
        """Score the averaged weights on the fixed validation scans; keep them if they are the best so far.

        Raises
        ------
        DataError
            A score is not finite.
        """
        current = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        scores = {name: validation_scores(self.model, batches) for name, batches in self.scenes.items()}
        self._picture()
        self.model.load_state_dict(current)
        self.model.train()
        row = {"step": self.step, "cpu_hours": self.cpu_hours}
        row |= {f"{scene}_{name}": value for scene, values in scores.items() for name, value in values.items()}
        self._log(row, "validation.csv")
        for scene, values in scores.items():
            if not all(map(math.isfinite, values.values())):
                raise self._spoilt(f"a score of the validation scans {scene}")
        # A guided network is there for its phase.
        guided = isinstance(self.model, PrimalDual) and self.model.architecture.reference
        score = [-values["phase_rmse_rad"] if guided else values["ssim"] for values in scores.values()]
        if float(np.mean(score)) > self.best:
            self.best = float(np.mean(score))
            # Written by safetensors itself, nobody else could read the file.
            content = save_tensors({name: value.contiguous() for name, value in self.average.items()})
            (self.folder / "best.safetensors").write_bytes(content)
            about = {
                "device": self._device_name(),
                "origin": self.origin,
                "people": self.people,
                "configuration": asdict(self.configuration),
            }
            (self.folder / "run.json").write_text(json.dumps(row | about))
        log.info("step %d: %s", self.step, {k: {n: round(v, 4) for n, v in s.items()} for k, s in scores.items()})
        return scores

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"

    def _picture(self) -> None:
        """Write truth, image and error of the first scan of each validation kind, if matplotlib is there."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(7.5, 2.6 * len(self.scenes)), layout="constrained")
        axes = figure.subplots(len(self.scenes), 3, squeeze=False)
        for line, (name, batches) in zip(axes, self.scenes.items(), strict=True):
            with torch.no_grad():
                image = _answer(self.model, batches[0])[0].abs().cpu()
            truth = batches[0].target[0].abs().cpu()
            peak = float(truth.max())
            shown = {"truth": truth, name: image, "error × 5": 5 * (image - truth).abs()}
            for axis, (title, values) in zip(line, shown.items(), strict=True):
                axis.imshow(values.numpy(), cmap="gray", vmin=0, vmax=peak)
                axis.set_title(title, fontsize=8)
                axis.set_axis_off()
        figure.savefig(self.folder / f"step_{self.step:06d}.png", dpi=80)

    def _log(self, row: dict[str, float], name: str = "metrics.csv") -> None:
        file = self.folder / name
        fresh = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, fieldnames=list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({key: round(value, 6) for key, value in row.items()})


def train(
    configuration: Configuration,
    folder: Path,
    images: Path,
    device: Device = "cpu",
    *,
    resume: bool = False,
    init: str | None = None,
) -> None:
    """Train a network in a folder.

    Parameters
    ----------
    configuration, folder, images, device
        As in `Trainer`.
    resume
        Whether to go on from the folder's checkpoint.
    init
        Name or file of weights to start from with a fresh optimiser.

    Raises
    ------
    SettingsError
        The run is to start and to go on, or to start where one is already; and as in `Trainer.resume`.
    DataError, WeightsError
        As in `Trainer`.
    """
    if resume and init:
        raise SettingsError("--resume and --init exclude each other: one keeps the optimiser, the other starts afresh.")
    if not resume and (folder / "last.pt").is_file():
        raise SettingsError(f"{folder} holds a run already: use --resume, or another --runs folder.")
    trainer = Trainer(configuration, folder, images, device)
    if resume:
        trainer.resume()
    elif init:
        trainer.start_from(init)
    if not configuration.minutes and trainer.step >= configuration.steps:
        log.warning(
            "%s: nothing is trained: the run is at step %d already, of %d in all; give more --steps to go on",
            *(folder, trainer.step, configuration.steps),
        )
        return
    trainer.run()
