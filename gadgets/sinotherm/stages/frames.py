"""Stage: assembles spokes into frames."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Literal

from pydantic import model_validator

from sinotherm.core.scan import Frame, Item, ScanHeader, Spoke
from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import SpokeError
from sinotherm.frames.assembly import FrameAssembler, FrameRule, PartialPolicy
from sinotherm.wire.messages import Text

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
        "When frames come faster than they can be made: make every one, or skip those of which a newer one has been "
        "received.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.stride and not self.window:
            raise ValueError("frames.stride is taken with frames.window only")
        return self


class _Latest:
    """Holds a frame back while a newer one of its slice and echo has been received already, and may take its place."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Frame] = {}
        self.n_skipped = 0

    def add(self, frame: Frame, *, held: bool) -> Iterator[Item]:
        """Yield the frame, or hold it; an older one that is held is skipped."""
        key = (frame.slice, frame.echo)
        older = self._held.pop(key, None)
        if older is not None:
            if not self.n_skipped:
                yield Text(
                    text=f"WRN overload: frame {older.number} is skipped, and others may be: "
                    "frames arrive faster than they are made (frames.overload = latest)"
                )
            self.n_skipped += 1
            logger.warning("frame %d is skipped: the next one has been received", older.number)
        if held:
            self._held[key] = frame
        else:
            yield self._noted(frame)

    def rest(self) -> Iterator[Item]:
        """Yield the frames that are held: no newer one has been received."""
        while self._held:
            yield self._noted(self._held.pop(next(iter(self._held))))

    def _noted(self, frame: Frame) -> Frame:
        return dataclasses.replace(frame, meta={**frame.meta, "frames_skipped": self.n_skipped})


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Pass every spoke on and, directly after the last spoke of a frame, yield the frame.

    Spokes of a stack of stars leave transformed along the partitions, plane by plane. With ``overload = latest``
    a frame comes late, after other spokes, or not at all where a newer one has been received; the console is
    told when that begins, and how many it were at the end. It is told as well how many spokes of partial frames
    were dropped.

    Raises
    ------
    SpokeError
        The scan had spokes, and none of them is in a frame; or as `FrameAssembler.add` says.
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
    latest = _Latest()
    n_spokes = 0
    for item in items:
        if not isinstance(item, Spoke):
            yield item
            continue
        n_spokes += 1
        for made in assembler.add(item):
            if settings.overload == "every" or not isinstance(made, Frame):
                yield made
            else:
                # So many more, and there is a newer frame.
                n_next = settings.stride if assembler.rule == "window" and settings.stride else made.n_spokes
                yield from latest.add(made, held=item.waiting >= n_next)
        if not item.waiting:
            # Who asks for more now may wait for the scanner.
            yield from latest.rest()
    yield from latest.rest()
    yield from assembler.finish()
    if latest.n_skipped:
        yield Text(text=f"WRN overload: {latest.n_skipped} of {assembler.n_frames} frames were skipped")
    n_dropped = assembler.n_dropped_spokes
    logger.info("%d frames, %d of them skipped; %d spokes dropped", *(assembler.n_frames, latest.n_skipped, n_dropped))
    if n_spokes and not assembler.n_frames:
        # An end without images would look like one of a scan that only measured noise.
        raise SpokeError(
            f"none of {n_spokes} spokes is in an image: no frame was complete, and frames end by "
            f"{assembler.described()}; acquire whole frames, set frames.by and frames.spokes as the scan is, or "
            "frames.partial = emit."
        )
    if n_dropped:
        yield Text(
            text=f"WRN {n_dropped} of {n_spokes} spokes are in no image: the scan or a plane ended before their frames "
            "were complete (frames.partial = drop)"
        )
