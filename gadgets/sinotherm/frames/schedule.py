"""The place of a spoke in a schedule that goes on from frame to frame, where readouts may be missing."""

from collections.abc import Hashable
from dataclasses import dataclass

from sinotherm.errors import SpokeError

__all__ = ["RunningCount"]


@dataclass(slots=True, kw_only=True)
class _Last:
    """The last spoke of a stream: its place, its encoding step, and the readouts that were missing by then."""

    count: int
    step: int
    missing: int


class RunningCount:
    """Counts the spokes of each stream (slice, partition and echo), those that were lost too.

    The scan counter says that readouts are missing, not which: spokes of this stream or of another, navigators, or
    nothing that was ever meant for us. ``kspace_encode_step_1`` tells it where it counts the spokes: it rises by one
    until it begins anew. Where it does not, only a scan of one stream and of nothing but spokes leaves no choice.

    Parameters
    ----------
    period
        Spokes after which the step begins anew, by the header; 0: unknown.

    Attributes
    ----------
    n_taken_for_lost
        Missing readouts that were taken for spokes because the scan had nothing else.
    """

    def __init__(self, period: int) -> None:
        self.n_taken_for_lost = 0
        self._header_period = period
        self._period = 0
        self._counts: bool | None = None
        self._streams: dict[Hashable, _Last] = {}
        self._first: _Last | None = None
        self._others = 0
        self._spokes_alone = True

    def next(self, stream: Hashable, step: int, *, readout: int, n_missing: int, n_others: int) -> int:
        """Return the place of the next spoke of a stream in its schedule, from 0.

        Parameters
        ----------
        stream
            Whose it is.
        step
            Its ``kspace_encode_step_1``.
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
        if self._first is None:
            self._first, self._others = _Last(count=0, step=step, missing=n_missing), n_others
        if last is None:
            gap, ahead = n_missing - self._first.missing, step - self._first.step
            # A first spoke that lies ahead of the scan's first by what was missing was not the stream's first.
            count = ahead if self._counts is not False and 0 < ahead <= gap else 0
        else:
            gap = n_missing - last.missing
            if gap:
                alone = self._spokes_alone and len(self._streams) == 1 and n_others == self._others
                count = last.count + 1 + self._lost(step - last.step, gap, alone=alone, readout=readout)
            else:
                self._follow(step - last.step)
                count = last.count + 1
        self._streams[stream] = _Last(count=count, step=step, missing=n_missing)
        return count

    def _follow(self, ahead: int) -> None:
        """See from two spokes with nothing missing between whether, and from where to where, the step counts."""
        if ahead == 1:
            self._counts = self._counts is not False
            return
        period = 1 - ahead
        if period < 2 or self._period not in (0, period):
            self._counts = False
        self._period = period

    def _lost(self, ahead: int, gap: int, *, alone: bool, readout: int) -> int:
        """Return how many spokes of a stream were lost where ``gap`` readouts are missing."""
        period = self._period or self._header_period
        if self._counts is not False and (self._counts or ahead > 0):
            lost = ahead - 1
            if lost < 0 and period:
                lost %= period
            if 0 <= lost <= gap:
                rounds = (gap - lost) // period if period else 0
                if rounds == 0 or (alone and (gap - lost) % period == 0):
                    self._counts = True
                    self._spokes_alone &= lost + rounds * period == gap
                    return lost + rounds * period
            # Both counters are right, and contradict each other: what is missing is more than spokes.
            alone &= not (self._counts and lost >= 0)
        if alone:
            self.n_taken_for_lost += gap
            return gap
        raise SpokeError(
            f"readout {readout}: {gap} readouts are missing before it, and nothing tells which of them were spokes, "
            "whose angles are lost with them: kspace_encode_step_1 does not count the spokes, and the scan has other "
            "readouts than those of one slice, partition and echo. Give trajectories, or set spokes.counter = scan "
            "where every readout takes its angle, spokes.angles = user_float, or spokes.per_frame where the header "
            "does not say after how many spokes step 1 begins anew."
        )
