"""The record of a run: figures with the machine, versions and commit beside them.

Every command that reports figures writes this with ``--json FILE``.
"""

import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from sinotherm.errors import SettingsError

__all__ = ["figures_record", "machine", "whole_numbers", "writable", "writable_folder", "write_record"]

logger = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
_PACKAGES: Final = ("sinotherm", "torch", "numpy", "finufft", "numba", "torchkbnufft", "ismrmrd", "gadgetron")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the source tree, or ``None`` for an installed package."""
    folder = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(  # noqa: S603 (fixed arguments)
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Return processor, cores, memory, load, system and Python of this machine."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_GiB": round(pages * page / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def figures_record(command: str, figures: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the record of a run.

    Parameters
    ----------
    command
        The command as the user typed it.
    figures
        A mapping is laid out at the top level; a sequence of flat rows becomes ``results``.
    """
    record: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }
    if isinstance(figures, Mapping):
        return record | dict(figures)
    return record | {"results": [dict(row) for row in figures]}


def whole_numbers(text: str, option: str) -> list[int]:
    """Return the numbers of an option's value, with commas between.

    Raises
    ------
    SettingsError
        One is no whole number, or below 1.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingsError(f"{option} {text!r}: whole numbers with commas between are needed.") from None
    if min(numbers) < 1:
        raise SettingsError(f"{option} {text!r}: {min(numbers)} is below 1; give whole numbers from 1 on.")
    return numbers


def writable(path: Path | None) -> Path | None:
    """Return the path of a file that is to be written after the work; ``None`` is passed on.

    Raises
    ------
    SettingsError
        It cannot be written: better known before hours of work than after them.
    """
    if path is None:
        return None
    if path.is_dir():
        raise SettingsError(f"{path}: cannot be written, it is a folder; name a file.")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: cannot be written, there is no folder {path.parent}; make it first.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SettingsError(f"{path}: cannot be written, permission is denied; name another file.")
    return path


def writable_folder(path: Path | None) -> Path | None:
    """Return the path of a folder for files that are to be written after the work, made; ``None`` is passed on.

    Raises
    ------
    SettingsError
        It cannot be made or written to, as in `writable`.
    """
    if path is None:
        return None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be made a folder ({error}); name another one.") from None
    if not os.access(path, os.W_OK):
        raise SettingsError(f"{path}: cannot be written to, permission is denied; name another folder.")
    return path


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON; a figure that is NaN or infinite becomes ``null``, with a warning that names it."""
    lost: list[str] = []
    finite = _finite(record, "", lost)
    if lost:
        logger.warning("%s: not finite, so null in the record: %s", path, ", ".join(lost))
    path.write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any, place: str, lost: list[str]) -> Any:
    """Return the value with ``None`` for what JSON cannot say; the places of these are added to ``lost``."""
    if isinstance(value, Mapping):
        return {name: _finite(part, f"{place}.{name}".lstrip("."), lost) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part, f"{place}[{index}]", lost) for index, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        lost.append(place)
        return None
    return value
