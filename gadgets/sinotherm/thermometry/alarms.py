"""Alarms: what an operator must see at once."""

import math
import statistics
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from sinotherm.core.scan import MetaValue
from sinotherm.thermometry.gaps import FOLLOWS, RECENT

__all__ = ["AlarmLimits", "Observation", "StaleWatch", "Watchdog", "alarms", "subject"]

_OVER_TEMPERATURE: Final = "over-temperature"
_DOSE_REACHED: Final = "dose reached"
_NO_READING: Final = "no reading"
_LOST: Final = "readings lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmLimits:
    """Limits of the alarms; ``None`` switches one off.

    Attributes
    ----------
    temperature_degc
        T10 of a region (its hot tenth) above this.
    dose_min
        CEM43 of a region's T90 curve reached.
    signal_share
        Median signal of the body below this share of the baseline's.
    wrap_share
        Share of the body's voxels in doubt about their phase wrap.
    """

    temperature_degc: float | None = None
    dose_min: float | None = None
    signal_share: float = 0.5
    wrap_share: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the alarms of a frame are judged by.

    Attributes
    ----------
    regions
        Rows of the region statistics.
    signal_share
        Median signal of the body over the baseline's.
    wrap_share
        Share of the body in doubt about its phase wrap.
    noise_problem, drift_problem, motion, guard, baseline_problem
        Why no uncertainty is known, why the drift fit failed, what moved, why the network guard tripped, why the
        baseline does not fit; empty = well.
    """

    regions: Sequence[Mapping[str, MetaValue]] = ()
    signal_share: float = 1.0
    wrap_share: float = 0.0
    noise_problem: str = ""
    drift_problem: str = ""
    motion: str = ""
    guard: str = ""
    baseline_problem: str = ""


def _number(row: Mapping[str, MetaValue], name: str) -> float:
    value = row.get(name, math.nan)
    return float(value) if isinstance(value, int | float) else math.nan


def alarms(seen: Observation, limits: AlarmLimits) -> tuple[str, ...]:
    """Return the texts of the alarms that a frame raises, ASCII, each beginning with its kind."""
    texts: list[str] = []
    for row in seen.regions:
        name = row.get("region", "")
        hot, dose = _number(row, "t10_degc"), _number(row, "cem43_t90_min")
        if (
            limits.temperature_degc is not None
            and row.get("quantity") == "temperature"
            and hot > limits.temperature_degc
        ):
            texts.append(
                f"{_OVER_TEMPERATURE}: T10 of {name} is {hot:.1f} degC, limit {limits.temperature_degc:.1f} degC"
            )
        if row.get("n") == 0:
            texts.append(f"{_NO_READING}: {name} is without a voxel that can be read")
        if "lost" in row:
            texts.append(f"{_LOST}: {name} is down to {row['n']} of {row['voxels']} voxels ({row['lost']})")
        if limits.dose_min is not None and dose >= limits.dose_min:
            texts.append(f"{_DOSE_REACHED}: CEM43 T90 of {name} is {dose:.1f} min, limit {limits.dose_min:.1f} min")
    if seen.signal_share < limits.signal_share:
        texts.append(
            f"signal lost: {100 * seen.signal_share:.0f} % of the baseline's signal, "
            f"limit {100 * limits.signal_share:.0f} %"
        )
    if seen.wrap_share > limits.wrap_share:
        texts.append(
            f"wrap risk: the phase of {100 * seen.wrap_share:.1f} % of the body jumped, "
            f"limit {100 * limits.wrap_share:.1f} %"
        )
    for kind, reason in (
        ("noise not known", seen.noise_problem),
        ("drift fit failed", seen.drift_problem),
        ("motion", seen.motion),
        ("network guard", seen.guard),
        ("baseline", seen.baseline_problem),
    ):
        if reason:
            texts.append(f"{kind}: {reason}")
    return tuple(texts)


def subject(text: str) -> str:
    """Return what an alarm's text is about: its kind, and the region where it is a region's."""
    kind = text.partition(":")[0]
    return text.rpartition(" is ")[0] if kind in (_OVER_TEMPERATURE, _DOSE_REACHED, _NO_READING, _LOST) else kind


class StaleWatch:
    """Notices that maps stay away: none for k expected intervals.

    The expected interval is the median of the last ones.

    Parameters
    ----------
    intervals
        k; frames come late at more than this many expected intervals.

    Attributes
    ----------
    follows
        Whether the last frame came directly after the one before, as far as time can tell.
    """

    def __init__(self, intervals: float) -> None:
        self._limit = intervals
        self._last = math.nan
        self._intervals: deque[float] = deque(maxlen=RECENT)
        self.follows = True

    @property
    def expected_s(self) -> float:
        """Time between two frames, s; infinite before the second one."""
        return statistics.median(self._intervals) if self._intervals else math.inf

    @property
    def patience_s(self) -> float:
        """Time without a map after which the alarm is due, s; infinite before the second frame."""
        return self._limit * self.expected_s

    def frame(self, time_s: float) -> str:
        """Take a frame's time; return the alarm that it raises, or an empty text."""
        gap, expected, late = time_s - self._last, self.expected_s, False
        self.follows = not (gap < 0.0 or gap > FOLLOWS * expected)
        if math.isfinite(time_s):
            self._last = time_s
        if gap <= 0.0:
            where = f"lies {-gap:.1f} s before the last one" if gap < 0.0 else "has the time of the last one"
            return f"time stamps: this frame {where}"
        if gap > 0.0:
            late = gap > self.patience_s
            self._intervals.append(gap)
        if not late:
            return ""
        return f"stale frame: no map for {gap:.1f} s, {expected:.1f} s expected, limit {self._limit:g} intervals"


class Watchdog:
    """Notices in live scans that nothing comes at all, when there is no next frame to notice it by.

    Parameters
    ----------
    notify
        Called from a thread of its own with the alarm's text.
    """

    def __init__(self, notify: Callable[[str], object]) -> None:
        self._notify = notify
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.expect(math.inf)

    def expect(self, within_s: float) -> None:
        """Wait for the next call; longer than this is an alarm. Infinite: wait for nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if math.isfinite(within_s):
            text = f"stale frame: no map for {within_s:.1f} s"
            self._timer = threading.Timer(within_s, self._notify, (text,))
            self._timer.daemon = True
            self._timer.start()
