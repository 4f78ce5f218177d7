"""What a pipeline may consist of, and where its file is looked for.

The tables are fixed: nothing that comes over the network ever names a module to import.
"""

import importlib
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import SettingsError

__all__ = [
    "METHODS",
    "METHOD_SLOT",
    "STAGES",
    "TARGETS",
    "ReconstructionSettings",
    "find_pipeline",
    "pipeline_directories",
    "pipeline_names",
    "stage_module",
    "target_stages",
]

STAGES: Final = {
    "whitening": "sinotherm.stages.whitening",
    "spokes": "sinotherm.stages.spokes",
    "compression": "sinotherm.stages.compression",
    "delay": "sinotherm.stages.delay",
    "frames": "sinotherm.stages.frames",
    "fbp": "sinotherm.stages.fbp",
    "gridding": "sinotherm.stages.gridding",
    "cg_sense": "sinotherm.stages.cg_sense",
    "pdunet": "sinotherm.stages.pdunet",
    "complex_images": "sinotherm.stages.complex_images",
    "thermometry": "sinotherm.stages.thermometry",
    "publish": "sinotherm.stages.publish",
    "images": "sinotherm.stages.images",
}
"""Stages by name, in the order in which they can stand in a chain."""

METHOD_SLOT: Final = "reconstruction"
METHODS: Final = ("fbp", "gridding", "cg_sense", "pdunet")

_ACQUISITIONS: Final = ("whitening", "spokes", "compression", "delay", "frames", METHOD_SLOT)

TARGETS: Final = {
    "reconstruct": (*_ACQUISITIONS, "publish", "images"),
    "thermometry": ("complex_images", "thermometry", "publish", "images"),
    "radial_thermometry": (*_ACQUISITIONS, "thermometry", "publish", "images"),
}
"""Stages of each target; ``reconstruction`` stands for the stage that ``reconstruction.method`` names."""

_BARE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.xml)?")


class ReconstructionSettings(StageSettings):
    """Which stage makes images of frames."""

    method: Literal["fbp", "gridding", "cg_sense", "pdunet"] = setting(
        "fbp", "Stage that makes images of frames: filtered back-projection, NUFFT gridding, CG-SENSE or the network."
    )


def target_stages(target: str, method: str) -> tuple[str, ...]:
    """Return the stages of a target with the reconstruction method in its place.

    Raises
    ------
    SettingsError
        The target is unknown; the known ones are listed.
    """
    if target not in TARGETS:
        raise SettingsError(f"unknown target {target[:80]!r}; known targets: {', '.join(TARGETS)}.")
    return tuple(method if stage == METHOD_SLOT else stage for stage in TARGETS[target])


def stage_module(name: str) -> ModuleType:
    """Return the module of a stage, imported on first use.

    Raises
    ------
    SettingsError
        The stage is unknown (the known ones are listed), or what it needs is not installed.
    """
    if name not in STAGES:
        raise SettingsError(f"unknown stage {name[:80]!r}; known stages: {', '.join(STAGES)}.")
    try:
        return importlib.import_module(STAGES[name])
    except ImportError as error:
        raise SettingsError(
            f"stage {name} cannot be loaded: {error}; `sinotherm doctor` says what is missing."
        ) from error


def pipeline_directories(directories: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield the folders in which pipelines are looked for: the given ones, the installed ones, the checkout's."""
    yield from directories
    yield Path(sysconfig.get_path("data")) / "share" / "gadgetron" / "config"
    checkout = Path(__file__).resolve().parents[3]
    # An editable installation has no shared data.
    if (checkout / "pyproject.toml").is_file():
        yield checkout / "pipeline_xml"


def pipeline_names(directories: Sequence[Path] = ()) -> list[str]:
    """Return the names of all pipelines that can be found."""
    return sorted({file.stem for folder in pipeline_directories(directories) for file in folder.glob("*.xml")})


def find_pipeline(name: str, directories: Sequence[Path] = ()) -> Path:
    """Return the file of a pipeline.

    Parameters
    ----------
    name
        A bare name, with or without ``.xml``; never a path, because it may come over the network.
    directories
        Folders that are searched first.

    Raises
    ------
    SettingsError
        The name is not a bare name, or there is no such pipeline; the known ones are listed.
    """
    if not _BARE_NAME.fullmatch(name):
        raise SettingsError(
            f"pipeline name {name[:80]!r}: a bare name of letters, digits, _ and - is meant, not a path; "
            f"known pipelines: {', '.join(pipeline_names(directories)) or 'none'}."
        )
    for folder in pipeline_directories(directories):
        file = folder / f"{name.removesuffix('.xml')}.xml"
        if file.is_file():
            return file
    raise SettingsError(
        f"unknown pipeline {name!r}; known pipelines: {', '.join(pipeline_names(directories)) or 'none'} "
        "(a folder of your own is given by --pipelines DIR)."
    )
