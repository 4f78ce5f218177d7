"""Network weights: half-precision safetensors, each with a model card that holds its hash and its range.

A file is read only if its SHA-256 is the card's; nothing is ever fetched from a network.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from sinotherm.errors import WeightsError
from sinotherm.networks.checks import AfterValidator, ConfigDict, Field, checked
from sinotherm.networks.paper import PaperArchitecture, PaperPrimalDual
from sinotherm.networks.primal_dual import Architecture, PrimalDual

__all__ = ["SHIPPED", "GuardLimits", "ModelCard", "ValidRange", "load_network", "load_tensors_of", "save_network"]

SHIPPED: Final = Path(__file__).parent / "weights"
MAX_BYTES: Final = 8_000_000

_CHECKED: Final = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of what is read from a card: a limit that is NaN is never exceeded, and a name that is unknown has no effect."""


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lowest comes first")
    return bounds


# Whole numbers stay whole, so that a card that is written again is the same text.
_Bounds: TypeAlias = Annotated[tuple[int | float, int | float], AfterValidator(_ascending)]
_Limits: TypeAlias = tuple[Annotated[float, Field(gt=0)], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidRange:
    """Where a network may be used: (lowest, highest) of what it was trained on.

    Attributes
    ----------
    spokes, coils, pixels
        Spokes of a frame (views, lines), coils after compression, rows and columns.
    snr
        As in the evaluation protocol: |S|/SD in the combined reconstruction of 402 spokes; 1e9 is no noise.
    fov_m
        Field of view, m.
    """

    __pydantic_config__ = _CHECKED

    spokes: _Bounds = (21, 128)
    coils: _Bounds = (1, 12)
    pixels: _Bounds = (192, 256)
    snr: _Bounds = (10.0, 1e9)
    fov_m: _Bounds = (0.12, 0.55)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLimits:
    """Residuals above which the guard trips, by number of spokes (ascending); set on validation people.

    Attributes
    ----------
    spokes
        Number of spokes at which the limits below were found.
    held_out
        Relative residual of spokes that were left out.
    spoke
        Largest relative residual of a spoke that was used.

    Raises
    ------
    ValueError
        The numbers of spokes do not ascend, or there is not one limit of each kind for each of them.
    """

    __pydantic_config__ = _CHECKED

    spokes: tuple[int, ...] = ()
    held_out: _Limits = ()
    spoke: _Limits = ()

    def __post_init__(self) -> None:
        if not len(self.spokes) == len(self.held_out) == len(self.spoke):
            raise ValueError("each number of spokes needs one limit of each kind")
        if any(after <= before for before, after in pairwise(self.spokes)):
            raise ValueError("the numbers of spokes must ascend")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a weight file is, how it was made and where it may be used.

    Attributes
    ----------
    name, network
        Name of the weights and the family: ``primal-dual`` or ``paper``.
    geometry
        ``radial``, ``cartesian`` or ``fan-beam``.
    sha256
        Of the safetensors file.
    architecture
        Fields of the family's architecture.
    valid, guard
        Range of use and the guard's limits.
    change_error
        Of a guided network: SD of the error of a change, for each unit of it and of its gradient a voxel, set on
        validation people; part of σ_T.
    licence, data, training, metrics, notes
        For people: licence of the weights; sets, licences and number of people; simulation, steps and
        hours; scores by set; what to know.
    """

    __pydantic_config__ = _CHECKED

    name: str
    network: Literal["primal-dual", "paper"]
    geometry: Literal["radial", "cartesian", "fan-beam"]
    sha256: str
    architecture: Mapping[str, Any]
    valid: ValidRange
    guard: GuardLimits
    change_error: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.0, 0.0)
    licence: str = "not stated"
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read a card.

        Raises
        ------
        WeightsError
            The text is not a card, or a value is of another type or out of its bounds.
        """
        try:
            return checked(cls, text)
        except ValueError as error:
            raise WeightsError(f"not a model card: {error}.") from None

    def as_json(self) -> str:
        """Return the card as JSON text."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def as_markdown(self) -> str:
        """Return the card for people."""
        lines = [f"# {self.name}", "", f"{self.network} network for {self.geometry} data. Research use only.", ""]
        tables: dict[str, Mapping[str, Any]] = {
            "Use it within": asdict(self.valid),
            "Guard limits": asdict(self.guard),
            "Error of a change": {
                "SD for each unit": self.change_error[0],
                "for each unit a voxel": self.change_error[1],
            },
            "Data": self.data,
            "Training": self.training,
            "Metrics": self.metrics,
            "Architecture": self.architecture,
        }
        if not any(self.change_error):
            del tables["Error of a change"]
        for title, rows in tables.items():
            lines += [f"## {title}", ""]
            plain = {name: value for name, value in rows.items() if not isinstance(value, Mapping)}
            if plain:
                lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in plain.items()), ""]
            for name, value in rows.items():
                if isinstance(value, Mapping):
                    lines += [f"### {name}", "", *_table(value), ""]
        if self.notes:
            lines += ["## Notes", "", *(f"- {note}" for note in self.notes), ""]
        lines += [f"Licence of the weights: {self.licence}. SHA-256: `{self.sha256}`.", ""]
        return "\n".join(lines)

    def build(self) -> nn.Module:
        """Return the network of this card, untrained.

        Raises
        ------
        WeightsError
            The architecture has an unknown setting, or one of another type or out of its bounds.
        """
        try:
            if self.network == "paper":
                return PaperPrimalDual(checked(PaperArchitecture, self.architecture))
            return PrimalDual(checked(Architecture, self.architecture))
        except ValueError as error:
            raise WeightsError(f"not an architecture: {error}.") from None


def _table(rows: Mapping[str, Any]) -> list[str]:
    """Return a table of rows; each is a mapping of the same columns, or one value."""
    columns = list(next((row for row in rows.values() if isinstance(row, Mapping)), {"": None}))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [row.get(column, "") for column in columns] if isinstance(row, Mapping) else [row]
        lines.append("| " + " | ".join([name, *map(_cell, cells)]) + " |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_cell(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _locate(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix != ".safetensors":
        path = SHIPPED / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors"))) or "none"
        raise WeightsError(f"no weights {name}: {path} does not exist; shipped weights: {known}.")
    return path


def load_tensors_of(name: str | Path) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """Return the tensors (float32) and the card of shipped weights (by name) or of a file.

    Raises
    ------
    WeightsError
        The file or its card is missing or damaged, the hash differs, or a weight is not finite.
    """
    path = _locate(name)
    card_path = path.with_suffix(".json")
    if not card_path.is_file():
        raise WeightsError(f"weights without a model card: {card_path} does not exist.")
    try:
        card = ModelCard.parse(card_path.read_bytes())
    except WeightsError as error:
        raise WeightsError(f"{card_path}: {error}") from None
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise WeightsError(
            f"{path} was altered: SHA-256 {digest[:12]}… is not the card's {card.sha256[:12]}…; reinstall it."
        )
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}.") from error
    found = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    for key, value in found.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: weight {key} is not finite: the file is damaged, or its training diverged.")
    return found, card


def load_network(name: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, ModelCard]:
    """Return a network in evaluation mode with its card.

    Parameters
    ----------
    name
        Name of shipped weights, or the path of a ``.safetensors`` file with its ``.json`` beside it.
    device
        Where its tensors are put.

    Raises
    ------
    WeightsError
        As `load_tensors_of`, the card's architecture is none, or the tensors do not fit it.
    """
    tensors, card = load_tensors_of(name)
    try:
        network = card.build()
        network.load_state_dict(tensors)
    except WeightsError as error:
        raise WeightsError(f"weights {name}: {error}") from None
    except RuntimeError as error:
        raise WeightsError(f"weights {name} do not fit their card: {error}.") from error
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval(), card


def save_network(network: nn.Module, path: Path, card: ModelCard) -> ModelCard:
    """Write weights in half precision with their card in JSON and Markdown; return the card with its hash.

    Raises
    ------
    WeightsError
        A value is not finite in half precision, or the file would exceed 8 MB.
    """
    tensors = {
        key: value.detach().cpu().contiguous().half() if value.is_floating_point() else value.cpu()
        for key, value in network.state_dict().items()
    }
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"weight {key} is not finite in half precision: the training diverged.")
    content = save_tensors(tensors)
    if len(content) > MAX_BYTES:
        raise WeightsError(f"weights of {len(content)} bytes exceed {MAX_BYTES}: make the network smaller.")
    values = {name: getattr(card, name) for name in card.__dataclass_fields__}
    card = ModelCard(**(values | {"sha256": hashlib.sha256(content).hexdigest()}))
    path.write_bytes(content)
    path.with_suffix(".json").write_text(card.as_json(), encoding="utf-8")
    path.with_suffix(".md").write_text(card.as_markdown(), encoding="utf-8")
    return card
