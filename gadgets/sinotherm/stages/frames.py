"""Stage: assembles spokes into frames."""

import dataclasses
import logging
from collections.abc import Iterator
from time import monotonic
from typing import Literal

from sinotherm.core.scan import Frame, Item, ScanHeader, Spoke
from sinotherm.core.settings import StageSettings, setting
from sinotherm.frames.assembly import FrameAssembler, FrameRule, PartialPolicy

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


class Settings(StageSettings):
    """Spokes to frames."""

    by: FrameRule = setting(
        "auto",
        "What ends a frame: a count of spokes, the repetition index, flags of the readouts, or a sliding window; "
        "auto: as the header and the readouts say.",
    )
    spokes: int = setting(0, "Spokes of a frame (and partition); 0: as the header says.", ge=0, le=65_536)
    window: int = setting(0, "Spokes of a sliding window.", ge=0, le=65_536)
    stride: int = setting(0, "Spokes between two sliding windows; 0: as many as the window.", ge=0, le=65_536)
    partitions: int = setting(0, "Partitions that are acquired of each stack of stars; 0: the header's.", ge=0, le=4096)
    partial: PartialPolicy = setting(
        "drop", "What happens to a frame that the end of the scan or a new plane cuts short; either is logged."
    )
    overload: Literal["every", "latest"] = setting(
        "every",
        "When frames come faster than they can be made: make every one, or skip whole frames that newer ones overtook.",
    )


def _is_overtaken(frame: Frame) -> bool:
    """Return whether a whole frame's time has passed since the frame was received: the next one is there."""
    # Readouts from a file carry no clock: NaN compares false.
    return monotonic() - frame.received_s > frame.received_s - frame.spokes[0].received_s


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Pass every spoke on and, directly after the last spoke of a frame, yield the frame.

    Spokes of a stack of stars leave transformed along the partitions, plane by plane.
    """
    assembler = FrameAssembler(
        scan,
        by=settings.by,
        n_spokes=settings.spokes,
        window=settings.window,
        stride=settings.stride,
        n_partitions=settings.partitions,
        partial=settings.partial,
    )
    skipped = 0
    for item in items:
        if not isinstance(item, Spoke):
            yield item
            continue
        for made in assembler.add(item):
            if settings.overload == "every" or not isinstance(made, Frame):
                yield made
            elif _is_overtaken(made):
                skipped += 1
                logger.warning("frame %d is skipped: the next one has been received", made.number)
            else:
                yield dataclasses.replace(made, meta={**made.meta, "frames_skipped": skipped})
    yield from assembler.finish()
    logger.info(
        "%d frames, %d of them skipped; %d spokes dropped", assembler.n_frames, skipped, assembler.n_dropped_spokes
    )
