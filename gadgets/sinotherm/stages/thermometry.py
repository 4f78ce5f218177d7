"""Images → the same images, each followed by its temperature map and its statistics."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sinotherm import __version__
from sinotherm.core.scan import FrameImage, FrameStatistics, Item, MetaValue, ScanHeader
from sinotherm.errors import BaselineError, SettingsError, WireError
from sinotherm.thermometry.audit import AuditLog
from sinotherm.thermometry.baseline import load_baseline, save_baseline
from sinotherm.thermometry.commands import CommandBook
from sinotherm.thermometry.monitor import SliceMonitor
from sinotherm.thermometry.settings import ThermometrySettings as Settings
from sinotherm.wire.feed import CommandServer
from sinotherm.wire.messages import Text

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Follow each `FrameImage` by a `TemperatureMap` and `FrameStatistics`, once all echoes of its frame are there.

    Frames before the baseline is complete have maps without readings (bit ``NO_BASELINE``). An alarm
    that was not up in the frame before also goes to the console, as a text that begins with ``WRN``.
    """
    if settings.phase_sign is None:
        logger.warning(
            "thermometry.phase_sign is not set: +1 is assumed (heating lowers the phase); "
            "check it with `sinotherm qa sign`"
        )
    with ExitStack() as open_things:
        session = _Session(scan, settings, open_things)
        for item in items:
            session.obey()
            if not isinstance(item, FrameImage):
                yield item
                continue
            yield from session.flush_before(item)
            yield item
            yield from session.add(item)
        yield from session.flush()


class _Session:
    """One scan: its monitors, log, commands, and the echoes that wait for their frame."""

    def __init__(self, scan: ScanHeader, settings: Settings, open_things: ExitStack) -> None:
        self._scan = scan
        self._monitors: dict[int, SliceMonitor] = {}
        self._waiting: dict[int, list[FrameImage]] = {}
        self._echoes: dict[int, int] = {}
        self._up: dict[int, set[str]] = {}
        self._notes: dict[str, MetaValue] = _qualification(settings.qualified) if settings.qualified else {}
        self._log: AuditLog | None = None
        if settings.log:
            self._log = open_things.enter_context(AuditLog(Path(settings.log), keep_maps=settings.log_maps))
        self._server = _command_server(settings, open_things) if settings.commands else None
        self._book = CommandBook(settings, self._monitors, self._record)
        facts = {
            "version": __version__,
            "measurement_id": scan.measurement_id,
            "protocol": scan.protocol,
            "larmor_hz": scan.larmor_hz,
            "echo_times_s": scan.echo_times_s,
            "settings": settings.model_dump(),
        }
        self._record("scan", facts)

    def _record(self, record: str, facts: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.write(record, facts)

    def obey(self) -> None:
        """Carry out the commands that wait."""
        if self._server is not None:
            self._server.poll(self._book.handle)

    def flush_before(self, image: FrameImage) -> Iterator[Item]:
        """Measure a frame of which the next one shows that no more echoes come (the header announced more)."""
        waiting = self._waiting.get(image.slice)
        if waiting and waiting[0].number != image.number:
            self._echoes[image.slice] = len(waiting)
            yield from self._measure(image.slice)

    def add(self, image: FrameImage) -> Iterator[Item]:
        """Take an image, and measure its frame if it is complete."""
        settings = self._book.settings
        expected = self._echoes.get(image.slice, len(settings.echo_times_s or self._scan.echo_times_s))
        self._waiting.setdefault(image.slice, []).append(image)
        if len(self._waiting[image.slice]) >= expected:
            yield from self._measure(image.slice)

    def flush(self) -> Iterator[Item]:
        """Measure what still waits at the end."""
        for slice_ in list(self._waiting):
            yield from self._measure(slice_)

    def _measure(self, slice_: int) -> Iterator[Item]:
        images = self._waiting.pop(slice_)
        if slice_ not in self._monitors:
            self._monitors[slice_] = self._monitor(slice_)
        monitor = self._monitors[slice_]
        generation = monitor.generation
        events = self._book.take_events()
        notes = self._notes | ({"events": events} if events else {})
        found, statistics = monitor.frame(images, notes=notes)
        if self._log is not None:
            self._log.frame(found, statistics)
        if monitor.generation != generation:
            self._new_baseline(slice_, monitor)
        yield found
        yield statistics
        yield from self._warnings(statistics)

    def _monitor(self, slice_: int) -> SliceMonitor:
        settings = self._book.settings
        if settings.baseline_rule != "stored":
            return SliceMonitor(self._scan, settings)
        every = load_baseline(Path(settings.baseline_file))
        stored = {echo: baseline for (place, echo), baseline in every.items() if place == slice_}
        if not stored:
            raise BaselineError(
                f"{settings.baseline_file!r} holds no baseline of slice {slice_}: store one of this protocol."
            )
        return SliceMonitor(self._scan, settings, stored=stored)

    def _new_baseline(self, slice_: int, monitor: SliceMonitor) -> None:
        """Log a baseline that has been put into service, and save it if asked to."""
        for echo, baseline in monitor.baselines.items():
            facts = {
                "slice": slice_,
                "echo": echo,
                "name": baseline.name,
                "frames": baseline.frames,
                "rejected": baseline.rejected,
                "effective_frames": baseline.n_effective,
                "fingerprint": baseline.fingerprint,
            }
            self._record("baseline", facts)
        path = self._book.settings.baseline_save
        if path:
            kept = {
                (place, echo): baseline
                for place, one in self._monitors.items()
                for echo, baseline in one.baselines.items()
            }
            save_baseline(Path(path), kept)

    def _warnings(self, statistics: FrameStatistics) -> Iterator[Text]:
        """Tell the console of the alarms that were not up in the slice's last frame."""
        before = self._up.get(statistics.slice, set())
        now = {text.partition(":")[0] for text in statistics.alarms}
        self._up[statistics.slice] = now
        for text in statistics.alarms:
            if text.partition(":")[0] not in before:
                yield Text(text=f"WRN frame {statistics.number}: {text}")


def _qualification(path: str) -> dict[str, MetaValue]:
    """Return the note of a record of `sinotherm qa`."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        return {"last_qualified": f"{record['time']} ({record['command']}: {record['verdict']})"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"thermometry.qualified = {path!r} is not a record of `sinotherm qa` ({error}); write one with its --json."
        ) from error


def _command_server(settings: Settings, open_things: ExitStack) -> CommandServer | None:
    """Return the server of the commands; one that cannot listen is a warning: the scan goes on."""
    try:
        key = Path(settings.commands_key_file).read_text(encoding="utf-8").strip() if settings.commands_key_file else ""
    except OSError as error:
        raise SettingsError(f"thermometry.commands_key_file = {settings.commands_key_file!r}: {error}.") from error
    try:
        return open_things.enter_context(CommandServer(settings.commands, key=key))
    except WireError as error:
        logger.warning("no commands: %s", error)
        return None
