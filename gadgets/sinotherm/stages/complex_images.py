"""Stage: complex images of other reconstructions as images of ours."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sinotherm.core.scan import FrameImage, Item, ScanHeader
from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import DataError
from sinotherm.frames.clock import StampClock
from sinotherm.frames.images import foreign_image, is_image
from sinotherm.wire.messages import Image, Readout, Text

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


class Settings(StageSettings):
    """Complex images in."""

    tick: float = setting(
        2.5e-3, "Length of a tick of the acquisition time stamp (Siemens: 2.5 ms).", unit="s", gt=0.0, le=1.0
    )


class _Frames:
    """Counts the frames of a slice of a series, and says to which an image belongs: a lost echo moves no other.

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


class _Series:
    """Tells series apart: two of them are two reconstructions, and never make the frames of one.

    The images and maps of all that go beside would stand in the same series: there is room for one.
    """

    def __init__(self) -> None:
        self._frames: defaultdict[tuple[int, int], _Frames] = defaultdict(_Frames)
        self._first: int | None = None
        self._beside: int | None = None

    def image(self, item: Any, time_s: float) -> FrameImage | None:
        """Return an image with the number of its frame, ``None`` for a series too many.

        It goes beside the first series, if it is of another one.
        """
        head = item.getHead()
        series = head.image_series_index
        number = self._frames[series, head.slice].number(head, time_s)
        image = foreign_image(item, number=number, time_s=time_s)
        said = "beside" in image.meta
        if self._first is None and not said:
            self._first = series
        if series == self._first and not said:
            return image
        if self._beside is None:
            self._beside = series
            if not said:
                logger.warning(
                    "complex images of series %d come beside those of series %d: measured on their own, "
                    "their maps are those that go beside",
                    *(series, self._first),
                )
        if series != self._beside:
            return None
        return image if said else replace(image, meta={**image.meta, "beside": f"foreign_{self._first}"})

    def measured(self) -> str:
        """Return the series that are measured, in words."""
        return " and ".join(str(series) for series in (self._first, self._beside) if series is not None)


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:  # noqa: ARG001 (every stage has it)
    """Replace every complex MRD image by a `FrameImage`; images without phase or pixels, sinograms and the rest pass.

    So do complex images of further series than two, of which the console is told.

    Raises
    ------
    DataError
        Acquisitions come instead.
    """
    series = _Series()
    clock = StampClock(settings.tick)
    warned: set[tuple[int, str]] = set()
    for item in items:
        if isinstance(item, Readout):
            raise DataError(
                f"readout {item.header.scan_counter} came where complex images are awaited: "
                "acquisitions are the business of radial_thermometry."
            )
        if not isinstance(item, Image):
            yield item
            continue
        number, lack = item.image_series_index, _lack(item)
        image = None
        if not lack and is_image(item):
            # A stamp of 0 is none.
            stamp = item.getHead().acquisition_time_stamp
            image = series.image(item, clock.time_s(stamp) if stamp else math.nan)
            if image is None and (number, "") not in warned:
                warned.add((number, ""))
                text = (
                    f"complex images of series {number} are passed on as they are, without maps: a scan has maps of "
                    f"two reconstructions at most, here of series {series.measured()}; send series {number} as a scan "
                    "of its own"
                )
                logger.warning("%s", text)
                yield Text(text=f"WRN {text}")
        elif lack and (number, lack) not in warned:
            warned.add((number, lack))
            logger.warning("image series %d %s: passed on as it is; thermometry needs complex images", *(number, lack))
        yield item if image is None else image


def _lack(image: Any) -> str:
    """Return why an image cannot be measured, or an empty text."""
    if not image.data.size:
        return "has an image without pixels"
    return "" if image.data.dtype.kind == "c" else f"is {image.data.dtype} and has no phase"
