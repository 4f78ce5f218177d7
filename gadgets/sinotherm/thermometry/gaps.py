"""Where a frame lies in its scan, and which ones are missing, told by what counts them and by time."""

import math
import statistics
from collections import deque
from collections.abc import Hashable
from typing import Final

from sinotherm.core.scan import FrameImage

__all__ = ["FOLLOWS", "RECENT", "FrameCount", "ScanCount"]

RECENT: Final = 15
"""Intervals of which the median is the expected one."""
FOLLOWS: Final = 1.5
"""Expected intervals within which no frame is missing."""
_SLACK: Final = 0.05
"""Frames by which the time of a frame may come too early."""


def _counter(image: FrameImage) -> float:
    """Return what counts the frames: the readouts of the scan, else repetitions, else the numbers of the images."""
    if image.spokes:
        return 0.5 * (image.spokes[0].index + image.spokes[-1].index)
    told = image.meta.get("scan_counter")
    if isinstance(told, float):
        return told
    return float(getattr(image.header, "repetition", image.number))


class FrameCount:
    """Counts the frames of a slice that are missing: frames are numbered as they come, without gaps.

    The scan counter of a frame's readouts rises by the same from frame to frame (another node of ours tells it);
    of foreign images the repetition does, and without either the number. Where nobody counts, the time stamps tell.

    Parameters
    ----------
    stale_intervals
        As many frame intervals without a frame are an alarm.

    Attributes
    ----------
    follows
        Whether the last frame came directly after the one before, as far as counters can tell.
    missing
        Frames that are missing since the first one, beside those that the numbers leave out.
    """

    def __init__(self, stale_intervals: float) -> None:
        self._limit = stale_intervals
        self._place = self._time_s = math.nan
        self._number = 0
        self._counts = False
        self._intervals: deque[float] = deque(maxlen=RECENT)
        self.follows = True
        self.missing = 0

    def until(self, place: float, time_s: float) -> float:
        """Return how many frame intervals after the last frame a counter and a time lie; 0 where nothing tells."""
        gap = place - self._place if self._counts else time_s - self._time_s
        return gap / statistics.median(self._intervals) if self._intervals and gap > 0.0 else 0.0

    def frame(self, image: FrameImage) -> str:
        """Take an image of a frame; return the alarm that it raises, or an empty text."""
        place, time_s = _counter(image), image.footprint[1]
        gap, step = place - self._place, image.number - self._number
        if abs(gap) > 0.0 and not self._counts:
            self._counts = True
            self._intervals.clear()
        if not self._counts:
            gap = time_s - self._time_s
        self._place, self._time_s, self._number = place, time_s, image.number
        expected = statistics.median(self._intervals) if self._intervals else math.inf
        self.follows = not (gap < 0.0 or gap > FOLLOWS * expected)
        if not gap > 0.0:
            return ""
        self._intervals.append(gap)
        intervals = round(gap / expected)
        self.missing += max(0, intervals - step)
        if not intervals > self._limit:
            return ""
        return f"stale frame: {intervals - 1} frames are missing before this one, limit {self._limit:g} intervals"


class ScanCount:
    """Says which frame of the scan a frame is, as its streams may begin late, lag behind or lose frames.

    A stream is what has frames of its own: a slice seen by one reconstruction. It begins in the scan where its
    first frame lies between the scan's first one and the furthest one that has come, by time or by counter;
    where neither tells, with the furthest one. From then on it counts its own frames, the missing ones too.
    """

    def __init__(self) -> None:
        self._streams: dict[Hashable, tuple[int, FrameCount]] = {}
        self._places: dict[Hashable, int] = {}
        self._first = self._last = (math.nan, math.nan)
        self._furthest = 0

    def place(self, stream: Hashable, image: FrameImage) -> int:
        """Take an image of each frame of a stream; return its place in the scan, from 0."""
        clocks = (image.footprint[1], _counter(image))
        if not self._streams:
            self._first = clocks
        if stream not in self._streams:
            self._streams[stream] = (self._begin(clocks) - image.number, FrameCount(math.inf))
        offset, count = self._streams[stream]
        count.frame(image)
        place = offset + image.number + count.missing
        if place >= self._furthest:
            self._furthest, self._last = place, clocks
        self._places[stream] = place
        return place

    def awaited(self, stream: Hashable) -> int:
        """Return the place of the first frame of a stream that is later than all that have come of any stream."""
        time_s, counter = self._last
        ahead = self._streams[stream][1].until(counter, time_s)
        return min(self._places[stream] + math.floor(ahead + _SLACK), self._furthest) + 1

    def _begin(self, clocks: tuple[float, float]) -> int:
        """Return the place of a frame of which nothing is known but what the clocks say."""
        spans = zip(clocks, self._first, self._last, strict=True)
        shares = [(now - first) / (last - first) for now, first, last in spans if last > first and now > -math.inf]
        # A reconstruction that begins late may count its own frames from 0: who says later is right.
        share = min(1.0, max([0.0, *shares])) if shares else 1.0
        return math.floor(share * self._furthest + _SLACK)
