"""Stage ``publish``: the live feed of images, maps and statistics; passes everything on."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from itertools import count
from time import monotonic
from typing import Any, Final
from uuid import uuid4

from sinotherm.core.scan import FrameImage, FrameStatistics, Item, ScanHeader, TemperatureMap
from sinotherm.core.settings import NOT_EMPTY, StageSettings, setting
from sinotherm.errors import WireError
from sinotherm.thermometry.alarms import Watchdog
from sinotherm.wire.feed import FEED_ENDPOINT, Publisher, shared_publisher

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)

_MAPS = (
    ("temperature_change", "change_degc", "degC"),
    ("temperature", "temperature_degc", "degC"),
    ("temperature_sigma", "sigma_degc", "degC"),
    ("dose", "cem43_min", "min"),
    ("validity", "validity", ""),
)

_PROCESS: Final = uuid4().hex
_RUNS: Final = count()


class Settings(StageSettings):
    """Settings of the live feed."""

    endpoint: str = setting(FEED_ENDPOINT, "ZeroMQ endpoint of the live feed; empty: no feed.", local=NOT_EMPTY)


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Publish images, maps and statistics to whoever listens; the chain never waits for them.

    The header entry ``run`` tells scans apart, also those that share a feed: a name of the process, ``-``, and
    a counter. When the scan is over, its end is published (topic ``end``).

    A live scan that stops has no item to tell of it: then the alarm is published (topic ``alarm``) when the
    patience of the last statistics is over.

    A feed that cannot be opened (another process has the endpoint) is a warning: the scan goes on.
    """
    try:
        publisher = shared_publisher(settings.endpoint) if settings.endpoint else None
    except WireError as error:
        logger.warning("no live feed: %s", error)
        publisher = None
    if publisher is None:
        yield from items
        return
    run = f"{_PROCESS}-{next(_RUNS)}"
    facts = {"run": run, "measurement_id": scan.measurement_id, "protocol": scan.protocol}
    latency_ms = math.nan

    def stalled(text: str) -> None:
        publisher.publish("alarm", {**facts, "alarms": (text,)})

    try:
        with Watchdog(stalled) as watchdog:
            for item in items:
                if isinstance(item, FrameImage | TemperatureMap):
                    latency_ms = 1e3 * (monotonic() - item.received_s)
                    _publish(publisher, item, {**facts, "latency_ms": latency_ms})
                elif isinstance(item, FrameStatistics):
                    watchdog.expect(item.patience_s)
                    publisher.publish(
                        _topic("statistics", item), {**facts, "latency_ms": latency_ms, **dataclasses.asdict(item)}
                    )
                yield item
    finally:
        publisher.publish("end", facts)


def _topic(name: str, item: FrameImage | TemperatureMap | FrameStatistics) -> str:
    """Return the topic: what goes beside a network's has one of its own, and neither takes the other's place."""
    return f"{name}_beside" if item.meta.get("beside") else name


def _publish(publisher: Publisher, item: FrameImage | TemperatureMap, facts: Mapping[str, Any]) -> None:
    header = {
        **facts,
        "number": item.number,
        "slice": item.slice,
        "footprint_s": item.footprint,
        "meta": item.meta,
    }
    if isinstance(item, FrameImage):
        publisher.publish(
            _topic("image", item), {**header, "echo": item.echo, "phase_valid": item.phase_valid}, item.data
        )
        return
    for topic, name, unit in _MAPS:
        array = getattr(item, name)
        if array is not None:
            publisher.publish(_topic(topic, item), {**header, "unit": unit}, array)
