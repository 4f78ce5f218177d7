"""The place of a spoke in a schedule that goes on from frame to frame, where readouts may be missing."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from sinotherm.errors import SpokeError

__all__ = ["RunningCount"]

_FEWEST: Final = 8
"""Spokes of a frame, where nothing says how many it has."""


@dataclass(slots=True, kw_only=True)
class _Last:
    """The last spoke of a stream: its place and counters, and the readouts that were missing by then."""

    count: int
    step: int
    repetition: int
    missing: int


class RunningCount:
    """Counts the spokes of each stream (slice, partition and echo), those that were lost too.

    The scan counter says that readouts are missing, not which: spokes of this stream or of another, navigators, or
    nothing that was ever meant for us. ``kspace_encode_step_1`` tells it where it counts the spokes: it rises by one
    until it begins anew, in a later repetition if these are counted. Where it does not, only a scan of one stream and
    of nothing but spokes leaves no choice.

    Parameters
    ----------
    period
        Spokes after which the step begins anew, by the header; 0: unknown.

    Attributes
    ----------
    n_unproven
        Missing readouts of which no counter proves how many were spokes.
    """

    def __init__(self, period: int) -> None:
        self.n_unproven = 0
        self._header_period = period
        self._period = 0
        self._counts: bool | None = None
        self._streams: dict[Hashable, _Last] = {}
        self._first: _Last | None = None
        self._most = 0
        self._others = 0
        self._spokes_alone = True
        self._guessed = False
        self._tied = True

    def next(self, stream: Hashable, step: int, repetition: int, *, readout: int, n_missing: int, n_others: int) -> int:
        """Return the place of the next spoke of a stream in its schedule, from 0.

        Parameters
        ----------
        stream
            Whose it is.
        step, repetition
            Its ``kspace_encode_step_1`` and repetition counter.
        readout
            Its scan counter, for messages.
        n_missing, n_others
            Readouts that were missing so far, and that were there and are no spokes.

        Raises
        ------
        SpokeError
            Readouts are missing, and nothing tells how many of them were spokes of the stream.
        """
        last = self._streams.get(stream)
        now = _Last(count=0, step=step, repetition=repetition, missing=n_missing)
        if self._first is None:
            self._first, self._others = now, n_others
        self._most = max(self._most, step - self._first.step)
        if last is None:
            ahead = step - self._first.step
            # A first spoke that lies ahead of the scan's first by what was missing was not the stream's first.
            now.count = ahead if self._counts and 0 < ahead <= n_missing - self._first.missing else 0
        elif n_missing > last.missing:
            alone = self._spokes_alone and len(self._streams) == 1 and n_others == self._others
            lost = self._lost(last, now, alone=alone)
            if lost is None:
                raise SpokeError(
                    f"readout {readout}: {n_missing - last.missing} readouts are missing since the last spoke of its "
                    "slice, partition and echo, and nothing tells which of them were spokes, whose angles are lost "
                    "with them: kspace_encode_step_1 does not count the spokes, or they are too many. Give "
                    "trajectories, or set spokes.counter = received where no spoke is missing, and = scan where every "
                    "readout takes an angle."
                )
            now.count = last.count + 1 + lost
        else:
            self._follow(step - last.step, repetition - last.repetition, readout)
            now.count = last.count + 1
        self._streams[stream] = now
        return now.count

    def _follow(self, ahead: int, later: int, readout: int) -> None:
        """See from two spokes with nothing missing between whether, and from where to where, the step counts."""
        # Does it begin anew with every repetition, and only then?
        self._tied &= (later == 1) == (ahead < 1)
        if ahead == 1:
            self._counts = self._counts is not False
            return
        period = 1 - ahead
        if period < 2 or self._period not in (0, period):
            if self._guessed and self._counts is not False:
                raise SpokeError(
                    f"readout {readout}: kspace_encode_step_1 does not count the spokes, though it seemed to where the "
                    "first readouts were missing: the angles since then are not known. Give trajectories, or set "
                    "spokes.counter."
                )
            self._counts = False
        self._period = period

    def _lost(self, last: _Last, now: _Last, *, alone: bool) -> int | None:
        """Return how many spokes of a stream were lost between two, ``None`` where nothing tells it."""
        gap, ahead = now.missing - last.missing, now.step - last.step
        if self._counts is not False and (self._counts or ahead > 0):
            least = max(self._most + 1, _FEWEST)
            period = self._period or self._header_period or (0 if alone else least)
            later = now.repetition - last.repetition
            lost = ahead - 1
            known = self._tied and later > 0 and (self._period > 0 or (period > 0 and ahead <= 0))
            # Lost all round, or a step that goes on in the next repetition.
            unclear = alone and later > 0 and ahead > 0 and not self._period
            if known:
                lost += later * period
            elif lost < 0 and period:
                lost %= period
            # Whole rounds of the step leave no trace in it.
            rest = gap - lost
            if 0 <= lost <= gap and not unclear and (known or rest < (period or least)):
                self._guessed |= self._counts is None and rest > 0
                if ahead < 1 and not (self._period or self._header_period):
                    self.n_unproven += gap
                self._counts = True
                self._spokes_alone &= rest == 0
                return lost
            # Where both counters are right and contradict each other, more than spokes is missing.
            whole = period > 0 and 0 <= lost <= gap and rest % period == 0
            if self._counts and lost >= 0 and (ahead > 0 or self._period) and period and not whole:
                return None
        if not alone:
            return None
        self.n_unproven += gap
        return gap
