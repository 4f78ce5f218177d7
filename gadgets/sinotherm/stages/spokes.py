"""Stage: makes spokes of readouts."""

import logging
from collections.abc import Iterator

from sinotherm.core.scan import Item, ScanHeader
from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import SpokeError
from sinotherm.frames.spokes import AngleCounter, AngleSource, SpokeReader, TrajectoryUnit
from sinotherm.wire.messages import Readout, Text

__all__ = ["Settings", "reader", "stage"]

logger = logging.getLogger(__name__)


class Settings(StageSettings):
    """Readouts to spokes."""

    angles: AngleSource = setting(
        "auto", "Where the spoke angles come from; auto: the trajectory where there is one, else the header."
    )
    trajectory_unit: TrajectoryUnit = setting(
        "auto", "Unit of the trajectory: cycles or radians per encoded pixel, or multiples of 1/FOV; auto: detected."
    )
    counter: AngleCounter = setting(
        "auto",
        "What counts the spokes of a schedule: running (of each slice, partition and echo, those that were lost too), "
        "received (without those), encoding (step 1) or scan counter; auto: running for golden angles, else encoding.",
    )
    per_frame: int = setting(
        0, "Spokes after which a uniform or rational schedule repeats; 0: as the header says.", ge=0, le=65_536
    )
    tiny_golden_order: int = setting(
        0, "Order of the tiny golden angle; 0: as the header says, else 7 with a warning.", ge=0, le=100
    )
    user_float: int = setting(0, "Which user_float of a readout holds its angle.", ge=0, le=7)
    user_float_degrees: bool = setting(False, "The angle in user_float is in degrees instead of radians.")
    tick: float = setting(
        2.5e-3, "Length of a tick of the acquisition time stamp (Siemens: 2.5 ms).", unit="s", gt=0.0, le=1.0
    )


def reader(scan: ScanHeader, settings: Settings) -> SpokeReader:
    """Return the reader that these settings describe."""
    return SpokeReader(
        scan,
        angles=settings.angles,
        trajectory_unit=settings.trajectory_unit,
        counter=settings.counter,
        per_frame=settings.per_frame,
        order=settings.tiny_golden_order,
        user_float=settings.user_float,
        user_float_degrees=settings.user_float_degrees,
        tick_s=settings.tick,
    )


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Replace every readout by its spoke; readouts that are no part of an image are dropped and counted.

    The console is told, once, where readouts belong to an encoding of which no images are made, and where no
    counter proves how many missing readouts were spokes of a schedule.

    Raises
    ------
    HeaderError
        The pixels of the reconstructed space are not square.
    SpokeError
        A readout does not fit the scan, or its angle cannot be derived; or all that could be part of an image
        belong to other encodings than the header's radial one.
    """
    spokes = reader(scan, settings)
    n_spokes = 0
    for item in items:
        if not isinstance(item, Readout):
            yield item
            continue
        spoke = spokes.read(item)
        while spokes.notices:
            yield Text(text=f"WRN {spokes.notices.pop(0)}")
        if spoke is not None:
            n_spokes += 1
            yield spoke
    dropped = ", ".join(f"{count} {kind}" for kind, count in spokes.kept_out.items()) or "none"
    logger.info(
        "%d spokes; kept out of frames: %s; readouts missing: %d, repeated: %d",
        *(n_spokes, dropped, spokes.n_missing, spokes.n_repeated),
    )
    if not n_spokes and spokes.n_elsewhere:
        # An end without images would look like one of a scan that only measured noise.
        raise SpokeError(
            f"none of {spokes.n_elsewhere} readouts could be used: images are made of those of encoding space "
            f"{scan.encoding_space}, the header's first radial one, and the scan had: {dropped}; correct the order and "
            "trajectories of the header's encodings, or encoding_space_ref of the readouts."
        )
