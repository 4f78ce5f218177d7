"""Alarms: what an operator must see at once."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sinotherm.core.scan import MetaValue

__all__ = ["AlarmLimits", "Observation", "StaleWatch", "Watchdog", "alarms"]


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
    drift_problem, motion, guard, baseline_problem
        Why the drift fit failed, what moved, why the network guard tripped, why the baseline does not fit;
        empty = well.
    """

    regions: Sequence[Mapping[str, MetaValue]] = ()
    signal_share: float = 1.0
    wrap_share: float = 0.0
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
            texts.append(f"over-temperature: T10 of {name} is {hot:.1f} degC, limit {limits.temperature_degc:.1f} degC")
        if limits.dose_min is not None and dose >= limits.dose_min:
            texts.append(f"dose reached: CEM43 T90 of {name} is {dose:.1f} min, limit {limits.dose_min:.1f} min")
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
        ("drift fit failed", seen.drift_problem),
        ("motion", seen.motion),
        ("network guard", seen.guard),
        ("baseline", seen.baseline_problem),
    ):
        if reason:
            texts.append(f"{kind}: {reason}")
    return tuple(texts)


class StaleWatch:
    """Notices that maps stay away: none for k expected intervals.

    The expected interval is the shortest between two frames so far.

    Parameters
    ----------
    intervals
        k; frames come late at more than this many expected intervals.
    """

    def __init__(self, intervals: float) -> None:
        self._limit = intervals
        self._last = math.nan
        self._expected = math.inf

    @property
    def patience_s(self) -> float:
        """Time without a map after which the alarm is due, s; infinite before the second frame."""
        return self._limit * self._expected

    def frame(self, time_s: float) -> str:
        """Take a frame's time; return the alarm that it raises, or an empty text."""
        gap = time_s - self._last
        self._last = time_s
        if not gap > 0.0:
            return ""
        late = gap > self.patience_s
        text = (
            f"stale frame: no map for {gap:.1f} s, {self._expected:.1f} s expected, limit {self._limit:g} intervals"
            if late
            else ""
        )
        self._expected = min(self._expected, gap)
        return text


class Watchdog:
    """Notices in live scans that nothing comes at all, when there is no next frame to notice it by.

    Parameters
    ----------
    notify
        Called from a thread of its own with the alarm's text.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
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
