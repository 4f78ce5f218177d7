"""The client: streams a scan to a server, at the scanner's pace if asked, and takes the images."""

import logging
import math
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Final

from sinotherm.errors import HeaderError, PeerError, PeerGoneError, SettingsError, WireError
from sinotherm.wire.codec import Limits
from sinotherm.wire.connection import Connection, Inbox, Patience
from sinotherm.wire.messages import Close, ConfigFile, ConfigText, Header, Image, Readout, Text

__all__ = ["Received", "connect", "paced", "stream"]

logger = logging.getLogger(__name__)

_TICK_S: Final = 2.5e-3
_RETRY_S: Final = 1.0


@dataclass(slots=True, kw_only=True)
class Received:
    """What came back from a server: number of images by series, its texts, and the failure that it reported."""

    images: dict[int, int] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    failure: str | None = None


def connect(
    host: str, port: int, *, tries: int = 10, patience: Patience | None = None, limits: Limits | None = None
) -> Connection:
    """Return a connection to a server, which may still be starting.

    Raises
    ------
    SettingsError
        There is no such port.
    WireError
        Nobody answers after ``tries`` tries, one second apart.
    """
    if not 0 < port <= 65535:
        raise SettingsError(f"port {port}: it lies between 1 and 65535.")
    for left in reversed(range(tries)):
        try:
            sock = socket.create_connection((host, port), timeout=3.0)
        except OSError as error:
            if not left:
                raise WireError(
                    f"no server at {host}:{port} after {tries} tries ({error}): start one with "
                    f"`sinotherm serve --port {port}`, or give another address."
                ) from None
            logger.info("no server at %s:%d yet (%s)", host, port, error)
            sleep(_RETRY_S)
        else:
            return Connection(sock, patience=patience, limits=limits)
    raise SettingsError(f"tries = {tries}: at least one is needed.")


def paced(
    items: Iterable[Any],
    speed: float,
    *,
    stamped: bool = True,
    repetition_time_s: float | None = None,
    tick_s: float = _TICK_S,
) -> Iterator[Any]:
    """Return items that come when a scanner would have sent them.

    A readout is due when its time stamp says; a waveform, or a readout without a stamp, follows the
    one before it.

    Parameters
    ----------
    items
        Readouts and waveforms in order.
    speed
        1 is the scanner's pace, N is N times faster; infinite: as fast as they are taken.
    stamped
        Whether the readouts carry time stamps; else they follow each other by the repetition time.
    repetition_time_s
        TR, s; needed only where there are no time stamps.
    tick_s
        Unit of the time stamps, s.

    Raises
    ------
    SettingsError
        The speed is not above 0.
    HeaderError
        There are neither time stamps nor a repetition time.
    """
    if not speed > 0.0:
        raise SettingsError(f"pace {speed}: it must be above 0 (1 is the scanner's own).")
    if math.isinf(speed):
        return iter(items)
    if not stamped and repetition_time_s is None:
        raise HeaderError("the readouts carry no time stamps and the header no TR: give --tr (s).")
    return _waiting(items, speed, None if stamped else repetition_time_s, tick_s)


def _waiting(items: Iterable[Any], speed: float, step_s: float | None, tick_s: float) -> Iterator[Any]:
    start_s, due_s, first = monotonic(), 0.0, 0
    for item in items:
        if isinstance(item, Readout):
            stamp = int(item.header.acquisition_time_stamp)
            if step_s is None and stamp > 0:
                first = first or stamp
                # A scan that runs over midnight starts again at 0: it goes on at once.
                due_s = max(due_s, (stamp - first) * tick_s)
            wait_s = start_s + due_s / speed - monotonic()
            if wait_s > 0.0:
                sleep(wait_s)
            due_s += step_s or 0.0
        yield item


def stream(
    connection: Connection,
    pipeline: str,
    header_xml: bytes,
    items: Iterable[Any],
    store: Callable[[Any], None],
    *,
    sent: Callable[[Any], None] | None = None,
) -> Received:
    """Send a scan, take the images as they come, and close the connection.

    Parameters
    ----------
    connection
        A server's.
    pipeline
        Name of the pipeline, or its XML document.
    header_xml
        The scan's MRD header.
    items
        Readouts and waveforms, at the pace at which they are to be sent (`paced`).
    store
        Called with each image (``ismrmrd.Image``).
    sent
        Called with each item that was sent.

    Raises
    ------
    PeerError
        The server reported a failure; images that came before it were stored.
    PeerGoneError, ProtocolError
        The connection failed.
    """
    received = Received()
    try:
        inbox = _open(connection, pipeline, header_xml)
        gone: PeerGoneError | None = None
        try:
            for item in items:
                connection.send(item)
                if sent is not None:
                    sent(item)
                for message in inbox.ready():
                    _take(message, received, store)
                if received.failure is not None or inbox.over:
                    break
            connection.send(Close())
        except PeerGoneError as error:
            gone = error
        try:
            for message in inbox.items():
                _take(message, received, store)
        except PeerGoneError as error:
            gone = gone or error
        if received.failure is not None:
            raise PeerError(f"the server reports: {received.failure}")
        if gone is not None:
            raise gone
    finally:
        connection.stop()
        connection.close()
    return received


def _open(connection: Connection, pipeline: str, header_xml: bytes) -> Inbox:
    document = pipeline.lstrip().startswith("<")
    connection.send(ConfigText(text=pipeline) if document else ConfigFile(name=pipeline))
    connection.send(Header(xml=header_xml))
    connection.await_data()
    return Inbox(connection)


def _take(message: Any, received: Received, store: Callable[[Any], None]) -> None:
    if isinstance(message, Image):
        store(message)
        series = int(message.image_series_index)
        received.images[series] = received.images.get(series, 0) + 1
    elif isinstance(message, Text):
        text = message.text.strip()
        received.texts.append(text)
        # Gadgetron turns the ERROR of an external node into a text of its own form.
        if text.startswith("ERR") or "] ERROR:" in text:
            received.failure = text.removeprefix("ERR").strip()
        else:
            logger.info("the server says: %s", text)
    else:
        logger.info("the server sent a %s, which is not stored", type(message).__name__)
