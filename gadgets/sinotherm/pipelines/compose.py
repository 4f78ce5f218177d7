"""From names and values to a chain of stages that runs."""

import dataclasses
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from sinotherm.core.scan import FrameImage, Item, ScanHeader, TemperatureMap
from sinotherm.core.settings import StageSettings
from sinotherm.errors import SettingsError
from sinotherm.pipelines.registry import (
    METHOD_SLOT,
    METHODS,
    STAGES,
    TARGETS,
    ReconstructionSettings,
    find_pipeline,
    stage_module,
    target_stages,
)
from sinotherm.pipelines.xml import Step, Values, parse_configuration, split_name
from sinotherm.thermometry.baseline import stored_estimates
from sinotherm.thermometry.monitor import frequency_and_echo_times
from sinotherm.thermometry.settings import ThermometrySettings
from sinotherm.wire.messages import quoted

__all__ = [
    "Chain",
    "Pipeline",
    "check_values",
    "compose",
    "fire_parameters",
    "load_pipeline",
    "merged",
    "parse_assignments",
    "refuse_foreign",
]

logger = logging.getLogger(__name__)

THERMOMETRY_NETWORK: Final = "pdunet-thermo"
"""Weights of the network where thermometry follows it."""

_FIRST_FRAME: Final = ("compression", "delay")
"""Stages that decide on the first frame and hold it back until then."""
_LAST_STAGES: Final = ("publish", "images")


_TAKEN_WITH: Final = {
    "thermometry": ("baseline_file", "baseline_rule", "stored"),
    "delay": ("given", "mode", "given"),
    "frames": ("stride", "window", "0*[1-9][0-9]*"),
}
"""Settings that are taken with some values of another only, and those (a regular expression)."""


def merged(*sources: Values) -> dict[str, dict[str, str]]:
    """Return the values of all sources; a later one wins, and what an earlier one said of what it turns off is gone."""
    values: dict[str, dict[str, str]] = {}
    for source in sources:
        for stage, settings in source.items():
            held = values.setdefault(stage, {})
            name, deciding, needed = _TAKEN_WITH.get(stage, ("", "", ""))
            if deciding in settings and not re.fullmatch(needed, settings[deciding]):
                held.pop(name, None)
            held.update(settings)
    return values


def parse_assignments(assignments: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the values of ``stage.setting=value`` texts (``--set``); a later one wins.

    Raises
    ------
    SettingsError
        A text is not of that form.
    """
    values: dict[str, dict[str, str]] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"setting {text[:80]!r}: write stage.setting=value, for example frames.spokes=210.")
        stage, setting = split_name(name)
        values.setdefault(stage, {})[setting] = value.strip()
    return values


def fire_parameters(text: str) -> tuple[str | None, dict[str, dict[str, str]]]:
    """Return pipeline name and values of FIRE's JSON, which follows the header as a text message.

    Parameters
    ----------
    text
        ``{"version": …, "parameters": {"config": …, "stage.setting": …}}``. Parameters without a dot
        belong to the console (apart from ``config``, which overrides the pipeline) and are logged.

    Returns
    -------
    name
        The pipeline that the console asks for, or ``None``.
    values
        By stage and setting.

    Raises
    ------
    SettingsError
        It is not such a document.
    """
    try:
        document = json.loads(text.rstrip("\0"))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"the console's parameters ({len(text)} characters) are not JSON: {error}.") from None
    parameters = document.get("parameters", None if document else {}) if isinstance(document, dict) else None
    if not isinstance(parameters, dict):
        raise SettingsError('the console\'s parameters must look like {"version": "1.0", "parameters": {…}}.')
    values: dict[str, dict[str, str]] = {}
    name: str | None = None
    for key, value in parameters.items():
        if key == "config":
            name = str(value) or None
        elif "." in key:
            stage, setting = split_name(key)
            values.setdefault(stage, {})[setting] = _text(value)
        else:
            logger.info(
                "console parameter %s = %s is no stage.setting: left to the console", quoted(key), quoted(str(value))
            )
    return name, values


def check_values(values: Values) -> None:
    """Check settings before it is known to which pipeline they will be given.

    Raises
    ------
    SettingsError
        A stage or setting is unknown (the known ones are listed), or a value is out of range.
    """
    for stage, settings in values.items():
        kind = ReconstructionSettings if stage == METHOD_SLOT else stage_module(stage).Settings
        kind.check(stage, settings)


def refuse_foreign(values: Values) -> None:
    """Check settings that come from a network peer, before anything is made of them.

    Raises
    ------
    SettingsError
        One names a file, a folder or an endpoint of this machine.
    """
    for stage, settings in values.items():
        if stage in STAGES:
            stage_module(stage).Settings.refuse_foreign(stage, settings)


def _text(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, list) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The stages of one target with their checked settings.

    Attributes
    ----------
    target
        Name of the target.
    stages
        (name, module, settings) in order.
    values
        The settings that were given, by name; defaults left out.
    """

    target: str
    stages: tuple[tuple[str, ModuleType, StageSettings], ...]
    values: Mapping[str, str]

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Every setting, given or by default, by stage."""
        return {name: settings.model_dump() for name, _, settings in self.stages}

    def check(self, scan: ScanHeader) -> None:
        """Check, before its first readout, that a scan's header and the settings of the stages go together.

        Raises
        ------
        HeaderError
            It does not state what a stage cannot do without.
        SettingsError
            A region does not lie in the images.
        """
        names = [name for name, _, _ in self.stages]
        for _, _, settings in self.stages:
            if isinstance(settings, ThermometrySettings):
                frequency_and_echo_times(scan, settings)
                # Images that others made may be of another size than the header says.
                if any(method in names for method in METHODS):
                    settings.check_drawings(scan)

    def __call__(self, scan: ScanHeader, items: Iterator[Item]) -> Iterator[Item]:
        """Return what leaves the chain when ``items`` enter it."""
        self.check(scan)
        note = {"pipeline": " > ".join(name for name, _, _ in self.stages)}
        note |= {f"setting {name}": value for name, value in self.values.items()}
        noted = False
        scan = dataclasses.replace(self._with_stored(scan), chain={**scan.chain, **self.settings})
        for name, module, settings in self.stages:
            if name in _LAST_STAGES and not noted:
                items = _noted(items, note)
                noted = True
            items = module.stage(items, scan, settings)
        return items

    def _with_stored(self, scan: ScanHeader) -> ScanHeader:
        """Return the header with what the scan of a stored baseline estimated, for the stages that would anew.

        Raises
        ------
        BaselineError
            The file cannot be read, or lacks it.
        """
        settings = {name: one for name, _, one in self.stages}
        thermometry = settings.get("thermometry")
        method = next((name for name in METHODS if name in settings), "")
        if not method or not isinstance(thermometry, ThermometrySettings) or thermometry.baseline_rule != "stored":
            return scan
        return dataclasses.replace(scan, estimates=stored_estimates(Path(thermometry.baseline_file), method))


def _noted(items: Iterator[Item], note: Mapping[str, str]) -> Iterator[Item]:
    """Write into every image and map which stages and settings made it."""
    for item in items:
        if isinstance(item, FrameImage | TemperatureMap):
            yield dataclasses.replace(item, meta={**item.meta, **note})
        else:
            yield item


def compose(target: str, values: Values, asked: Collection[str] = ()) -> Chain:
    """Return the chain of a target.

    Parameters
    ----------
    target
        One of `sinotherm.pipelines.registry.TARGETS`.
    values
        Settings by stage and name, as text.
    asked
        Stages with settings that somebody gave for this very scan: of one that is not used he is warned.

    Raises
    ------
    SettingsError
        Target, stage or setting is unknown (the known ones are listed), or a value is out of range.
    """
    known = TARGETS.get(target, ())
    given = values
    method = ReconstructionSettings.parse(METHOD_SLOT, given.get(METHOD_SLOT, {})).method
    names = target_stages(target, method)
    used: dict[str, str] = {}
    for stage, settings in given.items():
        if stage in METHODS and stage not in names:
            # So that another method can be chosen without a pipeline of its own.
            stage_module(stage).Settings.check(stage, settings)
            why = f"reconstruction.method is {method}" if METHOD_SLOT in known else f"{target} has no reconstruction"
            logger.log(
                logging.WARNING if stage in asked else logging.INFO, "settings of %s are not used: %s", stage, why
            )
        elif stage not in names and not (stage == METHOD_SLOT and METHOD_SLOT in known):
            what = "is not part of" if stage in STAGES else "is unknown in"
            raise SettingsError(f"stage {stage!r} {what} the target {target}; its stages: {', '.join(names)}.")
        else:
            used |= {f"{stage}.{name}": str(value) for name, value in settings.items()}
    if method == "pdunet" and "thermometry" in names:
        given = _with_thermometry(given)
    if "frames" in names:
        given = _with_first_frame(given)
    stages = []
    for name in names:
        module = stage_module(name)
        stages.append((name, module, module.Settings.parse(name, given.get(name, {}))))
    return Chain(target=target, stages=tuple(stages), values=used)


def _with_first_frame(given: Values) -> Values:
    """Return the settings with the spokes of a frame where a stage that waits for the first one has none of its own.

    The header's frame may be longer by far than the one that is asked for, whose image would be late by the rest.
    """
    frames = stage_module("frames").Settings.parse("frames", given.get("frames", {}))
    window = frames.window if frames.by in ("auto", "window") else 0
    n_spokes = window or (frames.spokes if frames.by != "flags" else 0)
    decided = {"spokes": str(n_spokes)}
    waiting = [
        name
        for name in _FIRST_FRAME
        if n_spokes and not stage_module(name).Settings.parse(name, given.get(name, {})).spokes
    ]
    return {**given, **{name: {**given.get(name, {}), **decided} for name in waiting}}


def _with_thermometry(given: Values) -> Values:
    """Return the settings with those of the network that thermometry decides where nobody else does.

    Raises
    ------
    SettingsError
        Gridding is not to go beside the network, or the baseline is a stored one.
    """
    baseline = stage_module("thermometry").Settings.parse("thermometry", given.get("thermometry", {}))
    if baseline.baseline_rule == "stored":
        raise SettingsError(
            "thermometry.baseline_rule = stored: a network's images belong to the reference of their own scan; "
            "take the baseline from this scan, or another reconstruction.method."
        )
    decided = {
        "network": THERMOMETRY_NETWORK,
        "reference_frames": str(baseline.baseline_frames),
        "reference_skip": str(baseline.baseline_skip),
        # What the guide of the network does not follow looks like heat where fat is held still.
        "drift_order": str(max(1, baseline.drift_order)),
    }
    own = decided | dict(given.get("pdunet", {}))
    if not stage_module("pdunet").Settings.parse("pdunet", own).beside:
        raise SettingsError("pdunet.beside = false: a network's temperature maps never go without gridding's beside.")
    return {**given, "pdunet": own}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline: its steps one after the other, checked when it is made.

    Attributes
    ----------
    name
        Its name, for the log.
    steps
        Targets with the values of the pipeline's file.
    asked
        Stages with settings that were given for this very scan.
    """

    name: str
    steps: tuple[Step, ...]
    asked: frozenset[str] = frozenset()
    _chains: tuple[Chain, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_chains", tuple(compose(step.target, step.values, self.asked) for step in self.steps))

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chain of each step."""
        return self._chains

    @property
    def takes_readouts(self) -> bool:
        """Whether it begins with readouts, not with images."""
        return METHOD_SLOT in TARGETS[self.steps[0].target]

    def with_values(self, values: Values, general: Values | None = None) -> "Pipeline":
        """Return the pipeline with other settings; each goes to every step that has its stage.

        Parameters
        ----------
        values
            Settings for this scan.
        general
            Settings for any pipeline, which hold where ``values`` say nothing; those of other stages are left out.

        Raises
        ------
        SettingsError
            No step has the stage, or a name or value is wrong.
        """
        parts = self._parts()
        for stage in values:
            if not any(stage in part for part in parts):
                known = ", ".join(name for name in (METHOD_SLOT, *STAGES) if any(name in part for part in parts))
                raise SettingsError(f"stage {stage[:80]!r} is not part of the pipeline {self.name}; it has: {known}.")
        given = merged(general or {}, values)
        if left_out := ", ".join(stage for stage in given if not any(stage in part for part in parts)):
            logger.info("settings of %s are not used: not part of the pipeline %s", left_out, self.name)
        steps = tuple(
            Step(
                target=step.target,
                values=merged(step.values, {stage: named for stage, named in given.items() if stage in part}),
            )
            for step, part in zip(self.steps, parts, strict=True)
        )
        return Pipeline(name=self.name, steps=steps, asked=frozenset(values))

    def _parts(self) -> list[set[str]]:
        """Return the stages that can be set in each step."""
        parts = [set(TARGETS.get(step.target, ())) for step in self.steps]
        return [stages | set(METHODS) if METHOD_SLOT in stages else stages for stages in parts]

    def check(self, scan: ScanHeader) -> None:
        """Check a header as each chain does.

        Raises
        ------
        HeaderError
            It lacks what a stage cannot do without.
        SettingsError
            A region does not lie in the images.
        """
        for chain in self._chains:
            chain.check(scan)

    def run(self, scan: ScanHeader, items: Iterator[Item]) -> Iterator[Item]:
        """Return what leaves the pipeline when ``items`` enter it."""
        # A chain's log tells what made its images, and what becomes of them.
        steps = {stage: values for chain in self._chains for stage, values in chain.settings.items()}
        scan = dataclasses.replace(scan, chain=steps)
        for chain in self._chains:
            given = ", ".join(f"{name}={value}" for name, value in chain.values.items()) or "all by default"
            logger.info("pipeline %s: %s; settings: %s", self.name, chain.target, given)
            items = chain(scan, items)
        return items


def load_pipeline(source: str, directories: Sequence[Path] = (), *, local: bool = False) -> Pipeline:
    """Return a pipeline by name or from its XML text.

    Parameters
    ----------
    source
        A bare name, or a whole document (it begins with ``<``).
    directories
        Folders that are searched before the installed ones.
    local
        The name comes from the user of this machine, who may also give the path of a file, and whose
        document may name files and endpoints.

    Raises
    ------
    SettingsError
        There is no such pipeline, it cannot be run here, or a peer's document names files or endpoints.
    """
    text = source.strip("\0 \r\n\t\ufeff")
    if text.startswith("<"):
        steps = parse_configuration(text)
        for step in () if local else steps:
            refuse_foreign(step.values)
        return Pipeline(name="(sent as text)", steps=steps)
    file = Path(text)
    if not (local and file.suffix == ".xml" and file.is_file()):
        file = find_pipeline(text, directories)
    return Pipeline(name=file.stem, steps=parse_configuration(file.read_bytes()))
