"""Gadgetron's version 2 configurations, as far as they can be run without Gadgetron.

A node that names a target of ours becomes a step; a node that is C++ or lives in another process is
refused by name, with what replaces it here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sinotherm.core.documents import parse_document
from sinotherm.errors import DataError, SettingsError

__all__ = ["NODES_MODULE", "Step", "Values", "parse_configuration", "parse_properties", "split_name"]

Values: TypeAlias = Mapping[str, Mapping[str, str]]
"""Settings by stage and name, as text."""

NODES_MODULE: Final = "sinotherm.nodes"

_MAX_BYTES: Final = 1 << 20
_MAX_NODES: Final = 16
"""Bound of a pipeline's nodes: each is a chain of generators in the one before, and Python stacks them."""

_RUN_BY_US: Final = f'<external><execute name="{NODES_MODULE}" target="reconstruct" type="python"/>…</external>'

_REPLACEMENTS: Final = {
    "NoiseAdjustGadget": "the stage whitening",
    "PCACoilGadget": "the stage compression",
    "CoilReductionGadget": "the stage compression",
    "GenericReconEigenChannelGadget": "the stage compression",
    "AcquisitionAccumulateTriggerGadget": "the stage frames (frames.by, frames.spokes)",
    "AccumulatorGadget": "the stage frames",
    "FlagTriggerGadget": "the stage frames (frames.by = flags)",
    "BucketToBufferGadget": "the stage frames",
    "RadialPhaseCorrectionGadget": "the stage delay",
    "gpuRadialPrepGadget": "the stages spokes and frames",
    "gpuRadialSensePrepGadget": "the stages spokes and frames",
    "gpuRadialSpiritPrepGadget": "the stages spokes and frames",
    "gpuCgSenseGadget": "the stage cg_sense",
    "gpuCgSpiritGadget": "the stage cg_sense",
    "gpuSbSenseGadget": "the stage cg_sense",
    "gpuNlcgSenseGadget": "the stage cg_sense",
    "CPUGriddingReconGadget": "the stage gridding",
    "GriddingReconGadget": "the stage gridding",
    "GPUGriddingReconGadget": "the stage gridding",
    "CombineGadget": "the coil combination of the reconstruction stages",
    "RemoveROOversamplingGadget": "nothing: the reconstruction stages crop the readout oversampling last",
    "CropAndCombineGadget": "the reconstruction stages",
    "ExtractGadget": "the stage images",
    "ComplexToFloatGadget": "the stage images",
    "AutoScaleGadget": "the stage images (one scale for the whole scan)",
    "FloatToUShortGadget": "the stage images (images.format = console)",
    "FloatToFixedPointGadget": "the stage images (images.format = console)",
    "ImageFinishGadget": "nothing: images leave at the end of the chain",
    "ImageArraySplitGadget": "nothing: images leave one by one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One of our nodes: a target with the values that its configuration gives."""

    target: str
    values: Values


def split_name(name: str) -> tuple[str, str]:
    """Return stage and setting of a ``stage.setting`` name.

    Raises
    ------
    SettingsError
        It is not two words with a dot between.
    """
    stage, dot, setting = name.strip().partition(".")
    if not (stage and dot and setting) or "." in setting:
        raise SettingsError(f"setting name {name[:80]!r}: it is written stage.setting, for example frames.spokes.")
    return stage, setting


def _parse(text: str | bytes, what: str) -> Any:
    raw = (text.encode() if isinstance(text, str) else bytes(text)).rstrip(b"\0 \r\n\t")
    try:
        return parse_document(raw, what, max_bytes=_MAX_BYTES)
    except DataError as error:
        raise SettingsError(str(error)) from None


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _child(element: Any, name: str) -> Any:
    return next((child for child in element if _name(child) == name), None)


def _check_children(element: Any, what: str, known: Sequence[str]) -> None:
    """Refuse what would be left out with all settings in it.

    Raises
    ------
    SettingsError
        An element is unknown there, or comes twice.
    """
    names = [_name(child) for child in element]
    for place, name in enumerate(names):
        if name not in known or name in names[:place]:
            second = "a second " if name in known else ""
            allowed = ", ".join(f"<{one}>" for one in known)
            raise SettingsError(
                f"{what} holds {second}<{name[:40]}>, which would be left out with all settings in it: "
                f"{f'it takes {allowed}, each once' if known else 'it takes attributes only'}."
            )


def _values(element: Any) -> dict[str, dict[str, str]]:
    values: dict[str, dict[str, str]] = {}
    for entry in () if element is None else element:
        if _name(entry) != "property":
            raise SettingsError(
                f"a node's <configuration> holds <{_name(entry)[:40]}>, which would be left out with all settings in "
                'it: a node takes <property name="stage.setting" value="…"/> only; a whole pipeline belongs to '
                "`sinotherm serve` or to the Gadgetron."
            )
        stage, setting = split_name(entry.get("name") or "")
        value = entry.get("value")
        if setting in values.get(stage, {}):
            raise SettingsError(
                f"a node's <configuration> has {stage[:40]}.{setting[:40]} twice: leave out one of them."
            )
        values.setdefault(stage, {})[setting] = (entry.text or "") if value is None else value
    return values


def parse_properties(text: str | bytes) -> Values:
    """Return the values of a node's own ``<configuration>``, as Gadgetron sends it to an external node.

    Raises
    ------
    SettingsError
        It is not XML, holds more than properties, as a whole pipeline does, or a property is not named
        ``stage.setting``.
    """
    root = _parse(text, "the node's configuration")
    if _name(root) != "configuration":
        raise SettingsError(f"the node's configuration begins with <{_name(root)[:40]}>: expected <configuration>.")
    return _values(root)


def parse_configuration(text: str | bytes) -> tuple[Step, ...]:
    """Return the steps of a whole pipeline.

    Raises
    ------
    SettingsError
        It is not a version 2 configuration, or it holds a node that only Gadgetron or another process
        can run; the message names the node and what replaces it. Or it has more nodes than the bound, or an element
        in a place where it would be left out.
    """
    root = _parse(text, "the pipeline")
    if _name(root) != "configuration":
        raise SettingsError(
            f"the pipeline begins with <{_name(root)[:40]}>: expected Gadgetron's version 2, "
            "<configuration><version>2</version>…<stream>…</stream></configuration>."
        )
    version = _child(root, "version")
    number = "" if version is None else (version.text or "").strip()
    if number != "2":
        raise SettingsError(f"the pipeline is of version {number or 'none'}: write <version>2</version>.")
    _check_children(root, "the pipeline", ("version", "readers", "writers", "stream"))
    stream = _child(root, "stream")
    if stream is None:
        raise SettingsError("the pipeline has no <stream>: its nodes belong into <stream>…</stream>.")
    if len(stream) > _MAX_NODES:
        raise SettingsError(
            f"the pipeline's <stream> has {len(stream)} nodes: the bound is {_MAX_NODES}, and one of {_RUN_BY_US} does "
            "all the work of its target; leave out the others."
        )
    steps = tuple(_step(node) for node in stream)
    if not steps:
        raise SettingsError(f"the pipeline's <stream> is empty: put {_RUN_BY_US} into it.")
    return steps


def _step(node: Any) -> Step:
    kind = _name(node)
    if kind == "gadget":
        raise SettingsError(_gadget(node))
    if kind != "external":
        inside = ", ".join(
            _class_name(gadget) for gadget in node.iter() if _name(gadget) in ("gadget", "classname", "execute")
        )
        raise SettingsError(
            f"<{kind}>{f' with {inside}' if inside else ''} runs in Gadgetron only: "
            f"here the nodes of a stream follow each other, each as {_RUN_BY_US}."
        )
    execute, connect = _child(node, "execute"), _child(node, "connect")
    if execute is None:
        where = "" if connect is None else f' address="{connect.get("address")}" port="{connect.get("port")}"'
        raise SettingsError(
            f"<connect{where}/> is a process that Gadgetron dials; here the node runs inside: write {_RUN_BY_US}."
        )
    module, target = execute.get("name") or "", execute.get("target") or ""
    if module != NODES_MODULE or not target:
        raise SettingsError(
            f'<execute name="{module[:80]}" target="{target[:80]}"/>: only targets of {NODES_MODULE} are run, '
            f"no other module is ever imported by a pipeline; write {_RUN_BY_US}."
        )
    # Gadgetron writes readers and writers into every external node.
    _check_children(node, "<external>", ("execute", "connect", "readers", "writers", "configuration"))
    _check_children(execute, "<execute>", ())
    configuration = _child(node, "configuration")
    # Those of other namespaces (xml:space) are no settings.
    attributes = [name for name in ({} if configuration is None else configuration.attrib) if "}" not in name]
    if attributes:
        raise SettingsError(
            f"<configuration> has the attribute {attributes[0][:40]!r}: settings are written "
            '<property name="stage.setting" value="…"/> within it.'
        )
    return Step(target=target, values=_values(configuration))


def _class_name(gadget: Any) -> str:
    classname = _child(gadget, "classname")
    return str((gadget.get("target") or gadget.text or "") if classname is None else classname.text or "").strip()


def _gadget(node: Any) -> str:
    name = _class_name(node) or "without a <classname>"
    known = _REPLACEMENTS.get(name)
    instead = f"{known} does its work" if known else "there is no stage of that name; leave it out or run Gadgetron"
    return f"<gadget> {name} is C++ and cannot be run here: {instead}; our stages run inside {_RUN_BY_US}."
