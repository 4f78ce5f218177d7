"""Images → the same images, each followed by its temperature map and its statistics."""

import logging
from collections.abc import Iterator
from pathlib import Path

from sinotherm.core.scan import FrameImage, Item, ScanHeader
from sinotherm.errors import BaselineError
from sinotherm.thermometry.baseline import load_baseline, save_baseline
from sinotherm.thermometry.monitor import SliceMonitor
from sinotherm.thermometry.settings import ThermometrySettings as Settings

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


def _monitor(scan: ScanHeader, settings: Settings, slice_: int) -> SliceMonitor:
    if settings.baseline_rule != "stored":
        return SliceMonitor(scan, settings)
    stored = {
        echo: baseline
        for (place, echo), baseline in load_baseline(Path(settings.baseline_file)).items()
        if place == slice_
    }
    if not stored:
        raise BaselineError(
            f"{settings.baseline_file!r} holds no baseline of slice {slice_}: store one of this protocol."
        )
    return SliceMonitor(scan, settings, stored=stored)


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Follow each `FrameImage` by a `TemperatureMap` and `FrameStatistics`, once all echoes of its frame are there.

    Frames before the baseline is complete have maps without readings (bit ``NO_BASELINE``).
    """
    if settings.phase_sign is None:
        logger.warning(
            "thermometry.phase_sign is not set: +1 is assumed (heating lowers the phase); "
            "check it with `sinotherm qa sign`"
        )
    monitors: dict[int, SliceMonitor] = {}
    frames: dict[int, list[FrameImage]] = {}
    echoes: dict[int, int] = {}
    expected = len(settings.echo_times_s or scan.echo_times_s)

    def measure(slice_: int) -> Iterator[Item]:
        if slice_ not in monitors:
            monitors[slice_] = _monitor(scan, settings, slice_)
        monitor = monitors[slice_]
        before = monitor.baselines
        yield from monitor.frame(frames.pop(slice_))
        if settings.baseline_save and monitor.baselines and not before:
            save_baseline(
                Path(settings.baseline_save),
                {(place, echo): kept for place, one in monitors.items() for echo, kept in one.baselines.items()},
            )

    for item in items:
        if not isinstance(item, FrameImage):
            yield item
            continue
        waiting = frames.get(item.slice)
        if waiting and waiting[0].number != item.number:
            # The header announced more echoes than come.
            echoes[item.slice] = len(waiting)
            yield from measure(item.slice)
        yield item
        frames.setdefault(item.slice, []).append(item)
        if len(frames[item.slice]) >= echoes.get(item.slice, expected):
            yield from measure(item.slice)
    for slice_ in list(frames):
        yield from measure(slice_)
