"""A pipeline for tests of the wire: one image for each frame, straight from the last readout of it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ismrmrd
import numpy as np

from sinotherm.errors import SpokeError
from sinotherm.wire.connection import Patience, Process, ScanRequest
from sinotherm.wire.messages import Readout, Text
from sinotherm.wire.server import Server

QUICK = Patience(handshake_s=0.5, silence_s=0.5, send_s=0.5, drain_s=0.5)
"""For tests of silence; on a busy machine a peer of any other is silent for longer."""
USUAL = Patience(handshake_s=20.0, silence_s=20.0, send_s=20.0, drain_s=20.0)


def until(condition: Callable[[], Any]) -> None:
    """Wait until something has come about, which it must."""
    end = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def image_of(readout: Readout) -> Any:
    image = ismrmrd.Image.from_array(
        np.abs(readout.data).astype(np.float32),
        acquisition=ismrmrd.Acquisition(readout.header),
        transpose=False,
        image_series_index=1,
    )
    image.meta = {"unit": "°C", "scan_counter": str(readout.header.scan_counter)}
    return image


def last_readouts(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, Readout) and item.header.isFlagSet(ismrmrd.ACQ_LAST_IN_REPETITION):
            yield image_of(item)
        else:
            yield item


def failing_second(items: Iterator[Any]) -> Iterator[Any]:
    """Make one image, then fail in a way that nobody foresaw."""
    for item in last_readouts(items):
        yield item
        if isinstance(item, ismrmrd.Image):
            raise ZeroDivisionError("deliberate failure")


def talking(items: Iterator[Any]) -> Iterator[Any]:
    yield Text(text="WRN too hot")
    yield from last_readouts(items)


def exacting(items: Iterator[Any]) -> Iterator[Any]:
    """Make images, and refuse a scan that ends before the third."""
    made = list(last_readouts(items))
    if len(made) < 3:
        raise SpokeError(f"{len(made)} images: acquire three")
    yield from made


PROCESSES = {"frames": last_readouts, "fail": failing_second, "talk": talking, "exact": exacting}
REQUESTS: list[ScanRequest] = []


def open_scan(request: ScanRequest) -> Process:
    REQUESTS.append(request)
    return PROCESSES.get(request.config, last_readouts)


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[Server]:
    """Run a server in a thread; it must end within seconds of its stop."""
    REQUESTS.clear()
    server = Server(options.pop("opening", open_scan), port=0, **{"patience": USUAL, **options})
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
