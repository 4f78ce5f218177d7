"""Images → the same images, each followed by its temperature map and its statistics."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeAlias

from sinotherm import __version__
from sinotherm.core.physics import PRF_COEFFICIENT_SPREAD
from sinotherm.core.record import writable
from sinotherm.core.scan import FrameImage, FrameStatistics, Item, MetaValue, ScanHeader, TemperatureMap
from sinotherm.errors import BaselineError, HeaderError, SettingsError, WireError
from sinotherm.thermometry.alarms import Watchdog, subject
from sinotherm.thermometry.audit import AuditLog
from sinotherm.thermometry.baseline import Baseline, load_baseline, save_baseline
from sinotherm.thermometry.commands import CommandBook, CommandedScan
from sinotherm.thermometry.echoes import EchoCollector
from sinotherm.thermometry.gaps import ScanCount
from sinotherm.thermometry.monitor import SliceMonitor
from sinotherm.thermometry.settings import ThermometrySettings as Settings
from sinotherm.wire.feed import CommandServer
from sinotherm.wire.messages import Text

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0
"""Time after which a scan without commands tries again to take them."""

_Stream: TypeAlias = tuple[int, str]
"""Slice and reconstruction method."""


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Follow each `FrameImage` by a `TemperatureMap` and `FrameStatistics`, once all echoes of its frame are there.

    Frames before the baseline is complete have maps without readings (bit ``NO_BASELINE``). An image that
    stands in for one that the network's guard held back (meta ``in_place_of``) is followed by that
    reconstruction's map without readings (bit ``GUARD``). An alarm that was not up in the frame before
    also goes to the console, as a text that begins with ``WRN``; at the start, why the records of
    ``settings.qualified`` do not qualify the scan, what makes f0 or TE doubtful, and that its commands cannot be
    taken; at the end, that there was no baseline to measure against, or no image at all.
    """
    if settings.phase_sign is None:
        logger.warning(
            "thermometry.phase_sign is not set: +1 is assumed (heating lowers the phase); "
            "check it with `sinotherm qa sign`"
        )
    with ExitStack() as open_things:
        session = _Session(scan, settings, open_things)
        if session.unqualified:
            yield session.alarm(f"qualification: {session.unqualified}")
        if doubtful := settings.doubtful_timing(scan):
            yield session.alarm(f"timing: {doubtful}; every change of temperature scales with it")
        if session.no_commands:
            yield session.alarm(f"no commands: {session.no_commands}")
        for item in items:
            session.obey()
            if not isinstance(item, FrameImage):
                yield item
                continue
            yield from session.flush_before(item)
            yield item
            yield from session.add(item)
        yield from session.flush()


def _stream(image: FrameImage) -> _Stream:
    """Return the stream of an image; what stands in for another image belongs to that one's."""
    method = image.meta.get("method", image.fingerprint.get("method", ""))
    return image.slice, str(image.meta.get("in_place_of", method))


class _Session:
    """One scan: its monitors, log, commands, and the echoes that wait for their frame.

    A stream is a slice seen by one reconstruction: a network's images come beside gridding's, and each
    is measured against its own baseline.
    """

    def __init__(self, scan: ScanHeader, settings: Settings, open_things: ExitStack) -> None:
        self._scan = scan
        self._monitors: dict[_Stream, SliceMonitor] = {}
        self._echoes: dict[_Stream, EchoCollector] = {}
        self._up: dict[_Stream, set[str]] = {}
        self._count = ScanCount()
        self._several = False
        self._notes: dict[str, MetaValue] = {}
        self.unqualified = ""
        if settings.qualified:
            self._notes, self.unqualified = _qualification(settings)
        self._stored = load_baseline(Path(settings.baseline_file)) if settings.baseline_rule == "stored" else {}
        self._log: AuditLog | None = None
        self._log_fails = False
        if settings.log:
            try:
                self._log = open_things.enter_context(AuditLog(Path(settings.log), keep_maps=settings.log_maps))
            except OSError as error:
                raise SettingsError(f"thermometry.log = {settings.log!r}: cannot be written ({error}).") from error
        if settings.baseline_save:
            writable(Path(settings.baseline_save))
        self._watchdog = open_things.enter_context(Watchdog(self._stalled))
        self._stall = False
        self._mapped_s = math.nan
        self._open_things = open_things
        self._server: CommandServer | None = None
        self._tried_s = math.nan
        self.no_commands = ""
        run = self._log.run if self._log is not None else ""
        self._commanded = CommandedScan(settings.commands, measurement_id=scan.measurement_id, run=run)
        self._book = CommandBook(
            scan, settings, self._monitors, self._record, self._commanded, awaited=self._count.awaited
        )
        if settings.commands:
            open_things.enter_context(self._commanded)
            self._listen()
        facts = {
            "version": __version__,
            "measurement_id": scan.measurement_id,
            "protocol": scan.protocol,
            "larmor_hz": scan.larmor_hz,
            "echo_times_s": scan.echo_times_s,
            "settings": settings.model_dump(),
            "chain": {stage: values for stage, values in scan.chain.items() if stage != "thermometry"},
        }
        self._record("scan", facts)
        if settings.silent_alarms:
            logger.warning("%s", settings.silent_alarms)
            self._record("alarm", {"alarm": settings.silent_alarms})

    def _record(self, record: str, facts: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.write(record, facts)

    def alarm(self, text: str) -> Text:
        """Log an alarm that belongs to no map, and return it for the console."""
        logger.warning("%s", text)
        self._record("alarm", {"alarm": text})
        return Text(text=f"WRN {text}")

    def _stalled(self, text: str) -> None:
        """Log that nothing comes, from the watchdog's thread; the next map tells it to the console and the feed."""
        self._stall = True
        self.alarm(text)

    def _listen(self) -> None:
        """Begin to take commands, or say why not: another scan may have the endpoint until it ends."""
        self._tried_s = monotonic()
        try:
            self._commanded.claim()
            self._server = self._open_things.enter_context(_command_server(self._book.settings))
        except (WireError, SettingsError) as error:
            # What is wrong with the settings ends a scan that begins, not one that runs.
            if isinstance(error, SettingsError) and not self.no_commands:
                raise
            self._commanded.listens = False
            self.no_commands = str(error)
            return
        if self.no_commands:
            logger.info("commands are taken now, on %s", self._book.settings.commands)
            self.no_commands = ""

    def obey(self) -> None:
        """Carry out the commands that wait."""
        if self.no_commands and monotonic() - self._tried_s >= _AGAIN_S:
            self._listen()
        if self._server is not None:
            self._server.poll(self._book.handle)

    def flush_before(self, image: FrameImage) -> Iterator[Item]:
        """Measure a frame of which the next one shows that no more echoes come (the header announced more)."""
        stream = _stream(image)
        if stream in self._echoes and self._echoes[stream].is_over(image):
            yield from self._measure(stream)

    def add(self, image: FrameImage) -> Iterator[Item]:
        """Take an image, and measure its frame if it is complete.

        Raises
        ------
        HeaderError
            The image is of an echo without a TE.
        """
        stream = _stream(image)
        times = self._book.settings.echo_times_s or self._scan.echo_times_s
        if times and not (image.echo < len(times) and times[image.echo] > 0.0):
            stated = ", ".join(f"{time_s:g}" for time_s in times)
            raise HeaderError(
                f"echo {image.echo} has no TE, or one of 0; header or settings state {stated} s: "
                "give thermometry.echo_times_s, one above 0 for each echo."
            )
        echoes = self._echoes.setdefault(stream, EchoCollector(len(times)))
        self._several |= len(self._echoes) > 1 or "beside" in image.meta or self._scan.n_slices > 1
        if not echoes.add(image):
            frame = f"frame {image.number}{self._where(stream)}"
            yield self.alarm(f"echo lost: echo {image.echo} of {frame} came after its map was made")
        elif echoes.complete:
            yield from self._measure(stream)

    def flush(self) -> Iterator[Item]:
        """Measure what still waits at the end, and tell which baselines never were complete."""
        for stream, echoes in self._echoes.items():
            if echoes.waits:
                yield from self._measure(stream)
        for (slice_, method), monitor in self._monitors.items():
            if monitor.unmeasured:
                where = f"slice {slice_}, {method}: " if len(self._monitors) > 1 else ""
                yield self.alarm(f"baseline: {where}{monitor.unmeasured}; no temperature was made")
        if not self._monitors:
            yield self.alarm("no images: none with phase came; no temperature was made")

    def _where(self, stream: _Stream) -> str:
        """Return whose frame it is, where more than one has this number; else an empty text."""
        slice_, method = stream
        return f", slice {slice_}{method and ', '}{method}" if self._several else ""

    def _measure(self, stream: _Stream) -> Iterator[Item]:
        images, missing = self._echoes[stream].take()
        # One echo held back leaves no frame.
        withheld = next((str(image.meta["guard"]) for image in images if "in_place_of" in image.meta), "")
        if stream not in self._monitors:
            if images[0].meta.get("centre_weight") == "area":
                logger.warning(
                    "the classical weight at the centre of k-space adds a pedestal to the images, which makes "
                    "changes of temperature a few percent too small: set %s.centre=exact",
                    stream[1],
                )
            self._monitors[stream] = SliceMonitor(self._scan, self._book.settings, stored=self._stored_for(stream))
        monitor = self._monitors[stream]
        place = self._count.place(stream, images[0])
        if self._book.owes_baseline(stream, place):
            monitor.renew_baseline(self._book.renewal, forced=self._book.forced)
        generation = monitor.generation
        events = self._book.take_events()
        notes = self._notes | ({"events": events} if events else {})
        if self.no_commands:
            notes |= {"no_commands": self.no_commands}
        if withheld:
            notes |= {"method": stream[1]}
        found, statistics = monitor.frame(images, notes=notes, ordinal=place, withheld=withheld)
        texts = [f"echo lost: the frame came without echo {', '.join(map(str, missing))}"] if missing else []
        if math.isfinite(images[-1].received_s):
            texts += self._behind(found, statistics, monitor.patience_s)
            self._watchdog.expect(monitor.patience_s)
            statistics = replace(statistics, patience_s=monitor.patience_s)
        if texts:
            for text in texts:
                logger.warning("frame %d%s: %s", found.number, self._where(stream), text)
            raised = (*statistics.alarms, *texts)
            meta = {**found.meta, "alarms": raised}
            found, statistics = replace(found, meta=meta), replace(statistics, alarms=raised, meta=meta)
        if self._log is not None:
            self._log.frame(found, statistics)
        if monitor.generation != generation:
            yield from self._new_baseline(stream, monitor)
        yield from self._log_warnings()
        yield found
        yield statistics
        yield from self._warnings(stream, statistics)

    def _behind(self, found: TemperatureMap, statistics: FrameStatistics, patience_s: float) -> Iterator[str]:
        """Yield the alarms that the clock raises at a live map: nothing came for long, or it shows what has passed.

        A map without a reading shows nothing that could be taken for the present.
        """
        now_s = monotonic()
        if self._stall and "stale frame" not in map(subject, statistics.alarms):
            yield f"stale frame: no map for {now_s - self._mapped_s:.1f} s before this one"
        self._stall, self._mapped_s = False, now_s
        age_s = now_s - found.received_s
        if age_s > patience_s and not found.validity.all():
            yield f"late map: it shows the state of {age_s:.1f} s ago, limit {patience_s:.1f} s"

    def _stored_for(self, stream: _Stream) -> Mapping[int, Baseline] | None:
        """Return the stored baselines of a stream by echo.

        The first stream of a scan takes another reconstruction's if there is none of its own, and is told
        then what does not fit; a later one goes without.
        """
        slice_, method = stream
        here = {key: baseline for key, baseline in self._stored.items() if key[0] == slice_}
        own = {echo: baseline for (_, echo, name), baseline in here.items() if name == method}
        if own or not self._stored or any(other == slice_ for other, _ in self._monitors):
            return own or None
        if not here:
            path = self._book.settings.baseline_file
            raise BaselineError(f"{path!r} holds no baseline of slice {slice_}: store one of this protocol.")
        return {echo: baseline for (_, echo, _), baseline in here.items()}

    def _new_baseline(self, stream: _Stream, monitor: SliceMonitor) -> Iterator[Text]:
        """Log a baseline that has been put into service, and save it if asked to; what goes wrong is an alarm."""
        for echo, baseline in monitor.baselines.items():
            facts = {
                "slice": stream[0],
                "echo": echo,
                "method": stream[1],
                "name": baseline.name,
                "frames": baseline.frames,
                "rejected": baseline.rejected,
                "effective_frames": baseline.n_effective,
                "fingerprint": baseline.fingerprint,
            }
            self._record("baseline", facts)
        path = self._book.settings.baseline_save
        if path:
            # Those of slices that have not come yet stay in a file that is gone on with.
            kept = {**self._stored} | {
                (slice_, echo, method): baseline
                for (slice_, method), one in self._monitors.items()
                for echo, baseline in one.baselines.items()
            }
            try:
                save_baseline(Path(path), kept)
            except OSError as error:
                yield self.alarm(f"baseline not saved: {error}")

    def _log_warnings(self) -> Iterator[Text]:
        """Tell the console that the log is not written, once until it is again."""
        problem = "" if self._log is None else self._log.problem
        if problem and not self._log_fails:
            yield self.alarm(f"log not written: {problem}; the scan goes on without")
        self._log_fails = bool(problem)

    def _warnings(self, stream: _Stream, statistics: FrameStatistics) -> Iterator[Text]:
        """Tell the console of the alarms that were not up in the stream's last frame."""
        before = self._up.get(stream, set())
        now = {subject(text) for text in statistics.alarms}
        self._up[stream] = now
        for text in statistics.alarms:
            if subject(text) not in before:
                yield Text(text=f"WRN frame {statistics.number}{self._where(stream)}: {text}")


def _qualification(settings: Settings) -> tuple[dict[str, MetaValue], str]:
    """Return the note of the records of `sinotherm qa`, and why they do not qualify this scan; empty if they do."""
    dates, problems = [], []
    for path in settings.qualified:
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            dates.append(f"{record['time']} ({record['command']}: {record['verdict']})")
            problems += _disagreements(record, settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(
                f"thermometry.qualified = {path!r} is not a record of `sinotherm qa stability` or `qa sign` with a "
                f"verdict ({error}); write one with --json."
            ) from error
    notes: dict[str, MetaValue] = {"last_qualified": "; ".join(dates)}
    if problems:
        notes["unqualified"] = "; ".join(problems)
    return notes, "; ".join(problems)


def _disagreements(record: Mapping[str, Any], settings: Settings) -> list[str]:
    """Return why a record of `sinotherm qa` does not qualify a scan with these settings."""
    verdict, sign = record["verdict"], record.get("phase_sign")
    problems = [] if verdict == "passed" else [f"the record did not pass ({verdict})"]
    if sign is not None and sign != (used := settings.phase_sign or 1):
        problems.append(f"the record says phase_sign = {sign}, the maps are made with {used}, heating as cooling")
    found_ppm = record.get("prf_coefficient_ppm_per_degC")
    if found_ppm is not None:
        used_ppm, error_ppm = 1e6 * settings.prf_coefficient, record.get("prf_coefficient_se_ppm_per_degC") or 0.0
        if not abs(found_ppm - used_ppm) <= PRF_COEFFICIENT_SPREAD * abs(used_ppm) + 2.0 * error_ppm:
            problems.append(
                f"the record says an alpha of {found_ppm:.4g} ppm/degC, the maps are made with {used_ppm:.4g}"
            )
    return problems


def _command_server(settings: Settings) -> CommandServer:
    """Return the server of the commands."""
    try:
        key = Path(settings.commands_key_file).read_text(encoding="utf-8").strip() if settings.commands_key_file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"thermometry.commands_key_file = {settings.commands_key_file!r}: {error}; it must be a text file (UTF-8) "
            "that holds the key."
        ) from error
    return CommandServer(settings.commands, key=key)
