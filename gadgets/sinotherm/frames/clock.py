"""The clock of a scan: acquisition time stamps begin again at midnight, times do not."""

import math
from typing import Final

__all__ = ["StampClock"]

_DAY_S: Final = 86_400.0


class StampClock:
    """Makes times of the time stamps of a scan.

    Parameters
    ----------
    tick_s
        Length of a tick of the stamp, s.

    Attributes
    ----------
    running
        Whether a stamp has been read yet.
    """

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._last_s = math.nan
        self.running = False

    def time_s(self, stamp: int) -> float:
        """Return the time of a stamp, s since the midnight before the first one: on the day nearest to the last."""
        time_s = stamp * self._tick_s
        if self.running:
            time_s += _DAY_S * max(0, round((self._last_s - time_s) / _DAY_S))
        self._last_s, self.running = time_s, True
        return time_s
