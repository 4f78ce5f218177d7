"""Commands during a scan: what an operator may change, checked like the settings they change."""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from sinotherm.core.scan import ScanHeader
from sinotherm.errors import SettingsError, WireError
from sinotherm.thermometry.monitor import COLD_DEGC, SliceMonitor
from sinotherm.thermometry.regions import check_region, named_regions
from sinotherm.thermometry.settings import ThermometrySettings

__all__ = ["COMMANDS", "CommandBook", "CommandedScan"]

logger = logging.getLogger(__name__)

COMMANDS: Final[Mapping[str, str]] = {
    "set_baseline": "frames, dose, force: take a new baseline from the next frames, heated or not with force; "
    "dose is keep or reset",
    "body_temperature": "degc: temperature of the body before heating",
    "region": "name, shape: draw a region of interest; without shape remove it",
    "cold_mask": "shape: where the drift is fitted",
    "thresholds": "temperature_degc, dose_min, signal, wrap: limits of the alarms",
    "mark": "text: write a remark into the log and the next image",
    "status": "what is set now",
}
"""Name → arguments and meaning; each takes ``scan`` as well, the measurement id or run of the scan that is meant."""

_REGION_NAME: Final = re.compile(r"[\w-]([\w -]{0,62}[\w-])?")

_lock = threading.Lock()
_commanded: list["CommandedScan"] = []


class CommandedScan:
    """Whose commands they are: a scan that takes commands, among those of this process that share its endpoint.

    One of them listens at a time, and the next when it has ended. A command that does not say which scan it
    means is refused while there are several: it would reach whichever listens.

    Parameters
    ----------
    endpoint
        Where its commands are taken.
    measurement_id
        The header's; may be empty, or another scan's as well.
    run
        Name of the run, unlike any other's; by default the time, UTC.

    Attributes
    ----------
    listens
        Whether the endpoint is this scan's.
    """

    def __init__(self, endpoint: str = "", *, measurement_id: str = "", run: str = "") -> None:
        self._endpoint = endpoint
        self._measurement_id = measurement_id
        self._run = run or datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.listens = False

    def __str__(self) -> str:
        return f"{self._measurement_id!r} (run {self._run})"

    def __enter__(self) -> Self:
        with _lock:
            _commanded.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            _commanded.remove(self)

    @property
    def facts(self) -> Mapping[str, str]:
        """How a command may name the scan."""
        return {"measurement_id": self._measurement_id, "run": self._run}

    def _others(self) -> list["CommandedScan"]:
        return [scan for scan in _commanded if scan is not self and scan._endpoint == self._endpoint]

    def claim(self) -> None:
        """Take the endpoint.

        Raises
        ------
        WireError
            Another scan of this process has it.
        """
        with _lock:
            for other in self._others():
                if other.listens:
                    raise WireError(f"scan {other} takes those on {self._endpoint} until it ends.")
            self.listens = True

    def check(self, meant: object) -> None:
        """Refuse a command that means another scan, or (``None``) does not say which of several.

        Raises
        ------
        SettingsError
            It may not be for this scan.
        """
        with _lock:
            others = self._others()
        if meant is None and others:
            raise SettingsError(
                f"{len(others) + 1} scans run here: say which one is meant (scan = its measurement id or run). "
                f"Commands reach {self} now; {', '.join(map(str, others))} must wait for its end."
            )
        own = {self._run, self._measurement_id} - {"", *(other._measurement_id for other in others)}
        if meant is not None and str(meant) not in own:
            raise SettingsError(f"commands reach scan {self} now, and {meant!r} is none of its own names.")


class CommandBook:
    """Carries out commands on the monitors of a scan.

    Parameters
    ----------
    scan
        The scan's header.
    settings
        The stage's settings; ``settings`` always holds the present ones.
    monitors
        The monitors by slice and reconstruction; may grow during the scan.
    log
        Called with the record's name and its facts for every command that was carried out or refused.
    commanded
        Whose commands they are.
    awaited
        Returns the next frame of a stream that is later than all that have come; by default it is that of the scan.

    Attributes
    ----------
    renewal, forced
        Frames of the scan of which the last new baseline is made, and whether heated ones as well.
    """

    def __init__(
        self,
        scan: ScanHeader,
        settings: ThermometrySettings,
        monitors: Mapping[tuple[int, str], SliceMonitor],
        log: Callable[[str, Mapping[str, Any]], None],
        commanded: CommandedScan | None = None,
        *,
        awaited: Callable[[tuple[int, str]], int] | None = None,
    ) -> None:
        self._scan = scan
        self._awaited = awaited
        self.settings = settings
        self._monitors = monitors
        self._log = log
        self._commanded = commanded or CommandedScan(measurement_id=scan.measurement_id)
        self._events: list[str] = []
        self._frames = 0
        self.renewal = range(0)
        self.forced = False
        self._renewed: set[tuple[int, str]] = set()

    def take_events(self) -> tuple[str, ...]:
        """Return what was commanded since the last call, for the next image's meta."""
        events = tuple(self._events)
        self._events = []
        return events

    def owes_baseline(self, stream: tuple[int, str], place: int) -> bool:
        """Return whether a stream that was not there when a new baseline was commanded begins it with this frame.

        It begins with one of the frames of which the others make theirs, never later: those may be heated.

        Parameters
        ----------
        stream
            Slice and reconstruction, of which every frame must be told.
        place
            Which frame of the scan it is, from 0.
        """
        self._frames = max(self._frames, place + 1)
        if place not in self.renewal or stream in self._renewed:
            return False
        self._renewed.add(stream)
        return True

    def handle(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Carry out a command and return its answer, with the names of the scan (``scan``).

        Raises
        ------
        SettingsError
            The command or an argument is unknown, a value is out of range, or another scan may be meant;
            nothing is changed then.
        """
        given = dict(arguments)
        meant = given.pop("scan", None)
        try:
            if meant is not None or name != "status":
                self._commanded.check(meant)
            answer = self._carry_out(name, given)
        except SettingsError as error:
            self._log("command", {"command": name, "arguments": dict(arguments), "refused": str(error)})
            raise
        if name != "status":
            text = " ".join([name, *(f"{key}={value}" for key, value in arguments.items() if key != "scan")])
            logger.info("command: %s", text)
            self._events.append(text)
            self._log("command", {"command": name, "arguments": dict(arguments), "answer": answer})
        return {**answer, "scan": self._commanded.facts}

    def _carry_out(self, name: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
        allowed = COMMANDS.get(name)
        if allowed is None:
            raise SettingsError(f"unknown command {name!r}; known commands: {', '.join(COMMANDS)}.")
        refuse = ThermometrySettings.refuse_foreign
        known = [part.strip() for part in allowed.partition(":")[0].split(",")] if ":" in allowed else []
        for argument in arguments:
            if argument not in known:
                raise SettingsError(f"{name} has no argument {argument!r}; it has: {', '.join(known) or 'none'}.")
        match name:
            case "set_baseline":
                hot = sum(monitor.n_heated for monitor in self._monitors.values())
                forced = arguments.pop("force", False) is True
                if hot and not forced:
                    raise SettingsError(
                        f"{hot} voxels are more than {COLD_DEGC:g} degC warmer than the baseline, beyond their "
                        "uncertainty, or were when they were last read: a new one would show them as unheated. Wait "
                        "until they have cooled, or give force = true."
                    )
                changes = {"frames": "baseline_frames", "dose": "dose_on_new_baseline"}
                self._change({changes[key]: value for key, value in arguments.items() if key in changes})
                begin = self._frames or self.settings.baseline_skip
                self.renewal, self.forced = range(begin, begin + self.settings.baseline_frames), forced
                self._renewed = set(self._monitors)
                for stream, monitor in self._monitors.items():
                    first = begin if self._awaited is None else self._awaited(stream)
                    frames = range(first, first + self.settings.baseline_frames)
                    monitor.renew_baseline(frames, forced=forced)
                return {"frames": self.settings.baseline_frames, "dose": self.settings.dose_on_new_baseline}
            case "body_temperature":
                self._change({"body_temperature_degc": _needed(name, arguments, "degc")})
                return {"degc": self.settings.body_temperature_degc}
            case "region":
                # Files that the regions of this machine's user name stay; a command adds none.
                refuse("thermometry", {"regions": "=".join(str(value) for value in arguments.values())})
                regions, region = dict(named_regions(self.settings.regions)), str(_needed(name, arguments, "name"))
                regions.pop(region, None)
                if arguments.get("shape") is not None:
                    regions[_region_name(region)] = _one_shape(str(arguments["shape"]))
                self._change({"regions": ";".join(f"{key}={shape}" for key, shape in regions.items())})
                return {"regions": regions}
            case "cold_mask":
                refuse("thermometry", {"cold_mask": _needed(name, arguments, "shape")})
                self._change({"cold_mask": arguments["shape"]})
                return {"shape": self.settings.cold_mask}
            case "thresholds":
                self._change({f"alarm_{key}": value for key, value in arguments.items()})
                limits = {key: getattr(self.settings, f"alarm_{key}") for key in known}
                silent = self.settings.silent_alarms
                return limits | ({"warning": silent} if silent else {})
            case "mark":
                return {"text": str(_needed(name, arguments, "text"))}
            case _:
                return {"settings": self.settings.model_dump(), "streams": sorted(self._monitors)}

    def _change(self, changes: Mapping[str, Any]) -> None:
        """Check the changed settings, try them on every monitor, and keep them."""
        settings = ThermometrySettings.parse("thermometry", {**self.settings.model_dump(), **changes})
        if not self._monitors:
            # No image has been seen: what is drawn must fit those that the header announces.
            settings.check_drawings(self._scan, known=self.settings.drawings)
        for monitor in self._monitors.values():
            monitor.configure(settings)
        self.settings = settings


def _region_name(name: str) -> str:
    """Return the name of a region that is drawn; it stands in settings, logs and images, and must not act in them."""
    if not _REGION_NAME.fullmatch(name):
        raise SettingsError(
            f"region name {name[:80]!r}: write up to 64 letters, digits, spaces, _ and -, with no space at its ends."
        )
    return name


def _one_shape(shape: str) -> str:
    """Return the shape of a region that is drawn, which begins no other region."""
    check_region(shape)
    if not shape.isprintable():
        raise SettingsError(f"region {shape[:80]!r}: write it in one line, without control characters.")
    return shape


def _needed(name: str, arguments: Mapping[str, Any], argument: str) -> Any:
    if arguments.get(argument) is None:
        raise SettingsError(f"{name} needs the argument {argument!r}.")
    return arguments[argument]
