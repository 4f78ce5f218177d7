"""Images and thermometry of an MRD file as values: those of every frame."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

from sinotherm.core.scan import FrameImage, Item, ScanHeader, TemperatureMap
from sinotherm.errors import DataError
from sinotherm.frames.header import scan_header
from sinotherm.pipelines.compose import Chain, compose, merged
from sinotherm.pipelines.xml import Values
from sinotherm.wire.file import MrdFile

__all__ = ["first_readout_s", "measured", "reconstructed"]

_Made = TypeVar("_Made", FrameImage, TemperatureMap)

_FROM_READOUTS: Final[Values] = {
    "reconstruction": {"method": "gridding"},
    # The pedestal of the classical weights dilutes the phase: temperatures would be a few percent low.
    "gridding": {"centre": "exact"},
}


def reconstructed(path: Path, values: Values) -> tuple[ScanHeader, list[FrameImage]]:
    """Return the header of a file and the image of every frame and echo, of one reconstruction.

    What goes beside another reconstruction (a second series of complex images, gridding beside a network) has
    a baseline and noise of its own and is left out, unless there is nothing else.

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


def first_readout_s(path: Path, values: Values) -> float:
    """Return the time of a file's first readout with a time stamp, s since midnight: noise and dummy scans count.

    Parameters
    ----------
    path, values
        As in `reconstructed`; NaN for a file of images, or without time stamps.
    """
    settings = {name: settings for name, _, settings in _chain(values, raw=True).stages}
    tick_s = float(settings["spokes"].model_dump()["tick"])
    with MrdFile(path) as file:
        stamps = (readout.header.acquisition_time_stamp for readout in file.readouts())
        return next((stamp * tick_s for stamp in stamps if stamp), math.nan)


def _chain(values: Values, *, raw: bool) -> Chain:
    return compose("radial_thermometry", merged(_FROM_READOUTS, values)) if raw else compose("thermometry", values)


def _made(path: Path, values: Values, kind: type[_Made], *, without: tuple[str, ...]) -> tuple[ScanHeader, list[_Made]]:
    with MrdFile(path) as file:
        scan = scan_header(file.header_xml)
        chain = _chain(values, raw=file.n_readouts > 0)
        items: Iterator[Item] = iter(file.items())
        for name, module, settings in chain.stages:
            if name not in without:
                items = module.stage(items, scan, settings)
        found = [item for item in items if isinstance(item, kind)]
    if not found:
        raise DataError(
            f"{path}: no complete frame; thermometry needs frames, `sinotherm info` says what is in the file."
        )
    return scan, [item for item in found if "beside" not in item.meta] or found
