"""Images and thermometry of an MRD file as values: those of every frame."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

from sinotherm.core.scan import FrameImage, Item, ScanHeader, TemperatureMap
from sinotherm.errors import DataError
from sinotherm.frames.header import scan_header
from sinotherm.pipelines.compose import compose, merged
from sinotherm.pipelines.xml import Values
from sinotherm.wire.file import MrdFile

__all__ = ["measured", "reconstructed"]

_Made = TypeVar("_Made")

_FROM_READOUTS: Final[Values] = {
    "reconstruction": {"method": "gridding"},
    # The pedestal of the classical weights dilutes the phase: temperatures would be a few percent low.
    "gridding": {"centre": "exact"},
}


def reconstructed(path: Path, values: Values) -> tuple[ScanHeader, list[FrameImage]]:
    """Return the header of a file and the image of every frame and echo.

    Parameters
    ----------
    path
        MRD file of radial readouts (reconstructed by gridding) or of complex images.
    values
        Settings by stage and name, as text.

    Raises
    ------
    DataError
        No frame came of it.
    """
    return _made(path, values, FrameImage, without=("thermometry", "publish", "images"))


def measured(path: Path, values: Values) -> tuple[ScanHeader, list[TemperatureMap]]:
    """Return the header of a file and the map of every frame; as `reconstructed`."""
    return _made(path, values, TemperatureMap, without=("publish", "images"))


def _made(path: Path, values: Values, kind: type[_Made], *, without: tuple[str, ...]) -> tuple[ScanHeader, list[_Made]]:
    with MrdFile(path) as file:
        scan = scan_header(file.header_xml)
        raw = file.n_readouts > 0
        chain = compose("radial_thermometry", merged(_FROM_READOUTS, values)) if raw else compose("thermometry", values)
        items: Iterator[Item] = iter(file.items())
        for name, module, settings in chain.stages:
            if name not in without:
                items = module.stage(items, scan, settings)
        found = [item for item in items if isinstance(item, kind)]
    if not found:
        raise DataError(
            f"{path}: no complete frame; thermometry needs frames, `sinotherm info` says what is in the file."
        )
    return scan, found
