"""Stage: complex images of other reconstructions as images of ours."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sinotherm.core.scan import Item, ScanHeader
from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import DataError
from sinotherm.frames.clock import StampClock
from sinotherm.frames.images import foreign_image
from sinotherm.wire.messages import Image, Readout

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


class Settings(StageSettings):
    """Complex images in."""

    tick: float = setting(
        2.5e-3, "Length of a tick of the acquisition time stamp (Siemens: 2.5 ms).", unit="s", gt=0.0, le=1.0
    )


class _Frames:
    """Counts the frames of one slice, and says to which an image belongs: an echo that is lost moves no other.

    Echoes of a frame have the same repetition. Where nobody counts repetitions, the time stamps tell
    frames apart; and without those, contrasts that do not rise.
    """

    def __init__(self) -> None:
        self._number = -1
        self._contrasts: list[int] = []
        self._repetition = 0
        self._counted = False
        self._begun_s = math.nan
        self._times_s: dict[int, float] = {}
        self._interval_s = math.nan

    def number(self, head: Any, time_s: float) -> int:
        """Return the number of the frame of an image, from 0."""
        between_s = time_s - self._times_s.get(head.contrast, math.nan)
        if between_s > 0.0 and not between_s >= self._interval_s:
            self._interval_s = between_s
        self._times_s[head.contrast] = time_s
        if not self._goes_on(head, time_s):
            self._counted |= self._number >= 0 and head.repetition != self._repetition
            self._number += 1
            self._contrasts, self._repetition, self._begun_s = [], head.repetition, time_s
        self._contrasts.append(head.contrast)
        return self._number

    def _goes_on(self, head: Any, time_s: float) -> bool:
        """Whether an image belongs to the same frame as the last one."""
        if head.contrast in self._contrasts or head.repetition != self._repetition or self._number < 0:
            return False
        if self._counted:
            return True
        apart = abs(time_s - self._begun_s) / self._interval_s
        rises = head.contrast > self._contrasts[-1]
        # The next echo of the same frame comes before the frame's first echo could come again.
        return (rises and not apart >= 1.0) or apart < 0.5


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:  # noqa: ARG001 (every stage has it)
    """Replace every complex MRD image by a `FrameImage`; images without phase and the rest pass.

    Raises
    ------
    DataError
        Acquisitions come instead.
    """
    frames: defaultdict[int, _Frames] = defaultdict(_Frames)
    clock = StampClock(settings.tick)
    warned = False
    for item in items:
        if isinstance(item, Readout):
            raise DataError(
                f"readout {item.header.scan_counter} came where complex images are awaited: "
                "acquisitions are the business of radial_thermometry."
            )
        if not isinstance(item, Image):
            yield item
        elif item.data.dtype.kind == "c":
            head = item.getHead()
            # A stamp of 0 is none.
            time_s = clock.time_s(head.acquisition_time_stamp) if head.acquisition_time_stamp else math.nan
            yield foreign_image(item, number=frames[head.slice].number(head, time_s), time_s=time_s)
        else:
            if not warned:
                logger.warning(
                    "image series %d is %s and has no phase: passed on as it is; thermometry needs complex images",
                    *(item.image_series_index, item.data.dtype),
                )
                warned = True
            yield item
