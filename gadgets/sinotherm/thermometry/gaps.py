"""Frames that are missing, told by what counts them: time stamps may be none, or stand still."""

import math
import statistics
from collections import deque
from typing import Final

from sinotherm.core.scan import FrameImage

__all__ = ["FOLLOWS", "RECENT", "FrameCount"]

RECENT: Final = 15
"""Intervals of which the median is the expected one."""
FOLLOWS: Final = 1.5
"""Expected intervals within which no frame is missing."""


class FrameCount:
    """Counts the frames of a slice that are missing: frames are numbered as they come, without gaps.

    The scan counter of a frame's readouts rises by the same from frame to frame; of foreign images the
    repetition does, and without either the number. A counter that nobody counts tells nothing.

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
        self._place = math.nan
        self._number = 0
        self._intervals: deque[float] = deque(maxlen=RECENT)
        self.follows = True
        self.missing = 0

    def frame(self, image: FrameImage) -> str:
        """Take an image of a frame; return the alarm that it raises, or an empty text."""
        if image.spokes:
            place = 0.5 * (image.spokes[0].index + image.spokes[-1].index)
        else:
            place = float(getattr(image.header, "repetition", image.number))
        gap, step = place - self._place, image.number - self._number
        self._place, self._number = place, image.number
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
