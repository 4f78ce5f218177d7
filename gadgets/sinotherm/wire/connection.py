"""An MRD connection: notices EOF and silence, never blocks the scanner, and tells the peer of failures.

A reader thread takes messages off the socket as they come and queues them, so that a slow frame is
not felt by the sender; what is made of them is sent by the thread that makes it.
"""

import json
import logging
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any, Final, TypeAlias

from sinotherm.errors import (
    OverloadError,
    PeerError,
    PeerGoneError,
    ProtocolError,
    SettingsError,
    SinothermError,
    WireError,
)
from sinotherm.wire.codec import Decoder, Limits, encode
from sinotherm.wire.messages import (
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Message,
    Query,
    Readout,
    Response,
    Text,
    Waveform,
    quoted,
)

__all__ = ["Connection", "Inbox", "OpenScan", "Outcome", "Patience", "Process", "ScanRequest", "converse", "tell"]

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_HOLD_S: Final = 1e-3
_LEAVE_S: Final = 3.0
_REPLAY: Final = 1.2
_PARAMETERS_S: Final = 2.0
"""FIRE's JSON comes within this time after the header, or the scan is opened without it."""
_EARLY_BYTES: Final = 1 << 20
"""What may come before FIRE's JSON and be kept meanwhile."""
_ITEM_BYTES: Final = 512
_LOGGED: Final = 4000
"""Characters of an error that go into the log; lists of what is known are long."""
_STOPPED: Final = "stopped before the end of the scan; the images finished so far were sent."


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a peer is waited for, and how much of what it sends is kept.

    Attributes
    ----------
    handshake_s
        Time within which config and header must be there, s.
    silence_s
        Silence within a scan (a scanner may pause), s.
    send_s
        Time within which the peer must take something that is sent to it, s.
    drain_s
        Silence after a failure until its CLOSE, s.
    queue_bytes
        Memory of what was received and is not yet worked on.
    tick_s
        Unit of the readouts' time stamps, s (Siemens: 2.5 ms).

    Raises
    ------
    SettingsError
        A time or the bound of bytes is not above 0 and finite.
    """

    handshake_s: float = 30.0
    silence_s: float = 600.0
    send_s: float = 30.0
    drain_s: float = 10.0
    queue_bytes: int = 1 << 30
    tick_s: float = 2.5e-3

    def __post_init__(self) -> None:
        for name in ("handshake_s", "silence_s", "send_s", "drain_s", "queue_bytes", "tick_s"):
            value = getattr(self, name)
            # NaN is in no order: no silence would ever be longer.
            if not 0.0 < value < math.inf:
                raise SettingsError(f"{name} = {value}: it must be above 0 and finite.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRequest:
    """What a peer asks for.

    Attributes
    ----------
    config
        Name of the pipeline, or its XML document (a Gadgetron parent: its ``<configuration>`` element).
    header_xml
        The scan's MRD header.
    parameters
        FIRE's JSON that came after the header, empty where there was none.
    terminated
        The peer ends its texts with NUL, and so do we.
    """

    config: str
    header_xml: bytes
    parameters: str = ""
    terminated: bool = False


Process: TypeAlias = Callable[[Iterator[Any]], Iterator[Any]]
"""Makes images of a scan's items."""

OpenScan: TypeAlias = Callable[[ScanRequest], Process]
"""Returns what works on a scan; raises where the request cannot be met."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How a scan ended: what was sent to the peer, and the error that it was told of."""

    images: int = 0
    unsent: int = 0
    error: BaseException | None = None


class Connection:
    """Messages over a connected stream socket, in both directions.

    Parameters
    ----------
    sock
        The socket; the connection owns it.
    patience, limits
        Time-outs, and bounds of what the peer may announce.

    Attributes
    ----------
    silence_s
        Silence after which the peer is given up, s.
    stopped
        Called by `stop`, so that whoever waits for messages ends.
    vacant
        The peer closed the connection before it had sent anything.
    terminated
        The peer ends its texts with NUL.
    """

    def __init__(self, sock: socket.socket, *, patience: Patience | None = None, limits: Limits | None = None) -> None:
        self.patience = patience or Patience()
        self.silence_s = self.patience.handshake_s
        self._socket = sock
        self._decoder = Decoder(limits=limits)
        self._stopping = threading.Event()
        self._until_s = math.inf
        self._torn = False
        self._heard = self.vacant = self.terminated = False
        # Kernel time-outs cost nothing a call; Python's would poll before each one.
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(_POLL_S))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(self.patience.send_s))
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A peer whose machine died sends no FIN.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self.stopped: Callable[[], None] | None = None
        self._messages = self.stream()

    @property
    def closed(self) -> bool:
        """Whether the peer's CLOSE has arrived."""
        return self._decoder.closed

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """End `stream` soon, from another thread: at once, or when ``stopped`` has told whom it concerns."""
        self._stopping.set()
        if self.stopped is not None:
            self.stopped()

    def await_header(self) -> None:
        """Wait for config and header no longer than ``handshake_s``, and for nothing larger than a header may be."""
        self._decoder.confined = True
        self._until_s = monotonic() + self.patience.handshake_s
        self.silence_s = math.inf

    def await_data(self) -> None:
        """Take whatever belongs to a scan, which may pause for ``silence_s``."""
        self._decoder.confined = False
        self._until_s = math.inf
        self.silence_s = self.patience.silence_s

    def await_close(self) -> None:
        """Wait for the end of a scan that was refused, however long it lasts: a Gadgetron sends all of it."""
        self._until_s = math.inf

    def forget(self) -> None:
        """Give back the memory of what was received; nothing more is read but to be thrown away by `close`.

        Whoever keeps the connection, itself for one (it has its own `stream`), would keep a message that never
        became whole.
        """
        self._messages = iter(())
        self._decoder.forget()

    def stream(self) -> Iterator[Message]:
        """Yield what the peer sends up to and including CLOSE, or until `stop`.

        A peer that is told of the stop (``stopped``) gets a moment in which it is still listened to, because
        closing with unread input would lose what was sent to it.

        Raises
        ------
        PeerGoneError
            The peer closed without CLOSE, vanished, was silent for too long, or took too long for its header.
        ProtocolError, DataError
            As `Decoder.messages`.
        """
        decoder, quiet_s, leave_s = self._decoder, monotonic(), math.inf
        yield from decoder.messages()
        while not decoder.closed:
            if self._stopping.is_set():
                leave_s = min(leave_s, monotonic() + (_LEAVE_S if self.stopped is not None else 0.0))
                if monotonic() >= leave_s:
                    return
            # Not only silence: a byte now and then would keep the connection for ever.
            if monotonic() > self._until_s:
                raise PeerGoneError(
                    f"config and header did not come within {self.patience.handshake_s:g} s: send them when the "
                    "connection is open, and connect when the scan begins."
                )
            try:
                n_bytes = self._socket.recv_into(decoder.space())
            except BlockingIOError:
                if monotonic() - quiet_s > self.silence_s:
                    raise PeerGoneError(
                        f"the peer was silent for {self.silence_s:g} s: is it still alive? "
                        "One that only pauses needs a larger --silence-s."
                    ) from None
                continue
            except OSError as error:
                self.vacant = not self._heard
                raise PeerGoneError(
                    f"the peer is gone ({error.strerror or error}): the scan is not complete."
                ) from None
            if n_bytes == 0:
                self.vacant = not self._heard
                decoder.end()
            self._heard = True
            quiet_s = monotonic()
            decoder.received(n_bytes, at_s=quiet_s)
            yield from decoder.messages()

    def receive(self) -> Message:
        """Return the next message.

        Raises
        ------
        PeerGoneError, ProtocolError, DataError
            As `stream`; also after CLOSE or `stop`.
        """
        for message in self._messages:
            return message
        raise PeerGoneError("nothing more comes: " + ("we were stopped." if self.stopping else "the peer said CLOSE."))

    def send(self, message: Message) -> None:
        """Send a message.

        Raises
        ------
        PeerGoneError
            The peer vanished, or takes nothing for too long.
        DataError
            The message cannot be written.
        """
        buffers = encode(message)
        left = sum(len(buffer) for buffer in buffers)
        if self._torn:
            raise PeerGoneError("the last message could not be sent to its end, nothing can follow it.")
        self._torn = True
        try:
            while left > (sent := self._socket.sendmsg(buffers)):
                left -= sent
                while sent >= len(buffers[0]):
                    sent -= len(buffers.pop(0))
                buffers[0] = buffers[0][sent:]
        except BlockingIOError:
            raise PeerGoneError(
                f"the peer took nothing for {self.patience.send_s:g} s: it must read while it sends."
            ) from None
        except OSError as error:
            raise PeerGoneError(f"the peer is gone ({error.strerror or error}).") from None
        self._torn = False

    def close(self) -> None:
        """Close the socket, once the peer has had a moment to take what was sent.

        Closing with unread input would reset the connection and lose what is under way.
        """
        until = monotonic() + (_POLL_S if self.stopping else self.patience.drain_s)
        waste = bytearray(1 << 16)
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while not self.closed and monotonic() < until:
                try:
                    if self._socket.recv_into(waste) == 0:
                        break
                except BlockingIOError:
                    continue
        except OSError:
            logger.debug("the peer was gone before the connection was closed")
        finally:
            self._socket.close()


def _timeval(seconds: float) -> bytes:
    whole = math.floor(seconds)
    return struct.pack("@ll", whole, round((seconds - whole) * 1e6))


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing in the queue: why there is nothing more."""

    error: SinothermError | None


def _memory_bytes(message: Message) -> int:
    """Return about what a message takes while it waits; one without content is no less than its objects."""
    if isinstance(message, Readout):
        return _ITEM_BYTES + message.data.nbytes + message.trajectory.nbytes
    if isinstance(message, Image):
        return _ITEM_BYTES + int(message.data.nbytes) + int(message.attribute_string_len)
    if isinstance(message, Waveform):
        return _ITEM_BYTES + int(message.data.nbytes)
    return _ITEM_BYTES + len(getattr(message, "text", ""))


class Inbox:
    """What a peer sends during a scan, read by a thread of its own and kept until somebody wants it.

    Nothing is ever dropped. When the queue is full, a sender that runs ahead of the scanner's clock
    (a replay), or shows none, is held back through TCP; one that sends at the scanner's pace cannot be
    held back: that is an overload, and fails at once. The clock is the readouts': a sender of images is held back.

    Parameters
    ----------
    connection
        Its header has been received; from now on only the inbox reads from it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._patience = connection.patience
        self.over = False
        self.cut = False
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._put_bytes = self._taken_bytes = 0
        self._discarding = False
        self._overload: OverloadError | None = None
        self._first: tuple[float, int] | None = None
        self._latest: int | None = None
        self._held_s = 0.0
        self._thread = threading.Thread(target=self._read, name="sinotherm-reader", daemon=True)
        connection.stopped = self._cut_off
        if connection.stopping:
            self._cut_off()
        self._thread.start()

    def _cut_off(self) -> None:
        """End the items after what has been received so far."""
        self._discarding = True
        self._queue.put(_End(None))

    def _read(self) -> None:
        end = _End(WireError("the thread that reads from the peer failed; the log says why."))
        try:
            for message in self._connection.stream():
                if not self._discarding:
                    self._take(message)
            end = _End(None)
        except SinothermError as error:
            # Its traceback would keep this frame, and with it the last message.
            end = _End(error.with_traceback(None))
        finally:
            self._connection.forget()
            self._queue.put(end)

    def _take(self, message: Message) -> None:
        if isinstance(message, Readout):
            self._latest = message.header.acquisition_time_stamp
            if self._first is None:
                self._first = monotonic(), self._latest
        if self._put_bytes - self._taken_bytes > self._patience.queue_bytes:
            self._hold()
        self._put_bytes += _memory_bytes(message)
        self._queue.put(message)

    def _hold(self) -> None:
        """Wait until there is room, if the sender may be held back."""
        start_s, stamp = self._first or (0.0, 0)
        now_s = monotonic()
        scanned_s = ((self._latest or stamp) - stamp) * self._patience.tick_s
        if 0.0 < scanned_s <= _REPLAY * (now_s - start_s - self._held_s):
            self._overload = OverloadError(
                f"{self._put_bytes - self._taken_bytes} bytes of readouts wait to be reconstructed, the bound is "
                f"{self._patience.queue_bytes}: frames arrive faster than they can be made. Choose fewer spokes or a "
                "faster method, or let whole frames be skipped (frames.overload = latest)."
            )
            self._discarding = True
        while self._put_bytes - self._taken_bytes > self._patience.queue_bytes and not self._discarding:
            sleep(_HOLD_S)
        self._held_s += monotonic() - now_s

    def items(self) -> Iterator[Any]:
        """Yield what the peer sends until its CLOSE, or until the connection is stopped.

        Raises
        ------
        PeerError
            The peer reported a failure.
        OverloadError
            The queue is full and the scanner cannot be held back.
        PeerGoneError, ProtocolError, DataError
            As `Connection.stream`, after everything that came before.
        """
        while not self.over:
            yield from self._checked(self._queue.get())

    def wait(self, within_s: float) -> bool:
        """Return whether something has arrived, once it has or the time is over."""
        until = monotonic() + within_s
        while self._queue.empty() and monotonic() < until:
            sleep(_HOLD_S)
        return not self._queue.empty()

    def ready(self) -> Iterator[Any]:
        """Yield what has arrived so far; raises as `items`."""
        while not (self.over or self._queue.empty()):
            yield from self._checked(self._queue.get())

    def _checked(self, message: Message | _End) -> tuple[Any, ...]:
        """Return the message as what it is worth: an item, nothing, or an error to be raised."""
        if self._overload is not None:
            self.over = True
            raise self._overload
        if isinstance(message, (Readout, Image, Waveform, Text)):
            self._taken_bytes += _memory_bytes(message)
            if isinstance(message, Readout):
                message.waiting = self._queue.qsize()
            return (message,)
        if isinstance(message, Query):
            self._taken_bytes += _memory_bytes(message)
            self._connection.send(Response(correlation=message.correlation, text=""))
            return ()
        self.over = True
        if isinstance(message, _End) and message.error is not None:
            raise message.error
        if isinstance(message, Error):
            raise PeerError(f"the peer reports: {quoted(message.text)}")
        if isinstance(message, (_End, Close)):
            self.cut = isinstance(message, _End)
            return ()
        raise ProtocolError(f"a {type(message).__name__} within a scan: config and header come once, before the data.")

    def drain(self) -> None:
        """Throw away what waits and still comes, until the peer's CLOSE, its EOF, or silence of ``drain_s``."""
        self._discarding = True
        self._connection.silence_s = self._patience.drain_s
        self._thread.join()
        self._queue = SimpleQueue()


def _handshake(connection: Connection) -> ScanRequest:
    """Return the config and header that a peer opens its scan with."""
    config: ConfigFile | ConfigText | None = None
    connection.await_header()
    while True:
        message = connection.receive()
        match message:
            case Query():
                connection.send(Response(correlation=message.correlation, text=""))
            case ConfigFile() | ConfigText() if config is None:
                config = message
            case Header() if config is not None:
                return ScanRequest(
                    config=(config.name if isinstance(config, ConfigFile) else config.text).strip(),
                    header_xml=message.xml,
                    terminated=message.terminated,
                )
            case Error():
                raise PeerError(f"the peer reports: {quoted(message.text)}")
            case _:
                awaited = "a config (1 or 2)" if config is None else "the header (3)"
                raise ProtocolError(
                    f"the scan begins with a {type(message).__name__} where {awaited} must come: "
                    "send config, header, data, CLOSE."
                )


def _open(open_scan: OpenScan, request: ScanRequest, inbox: Inbox, *, parent: bool) -> tuple[Process, Iterator[Any]]:
    """Return what works on the scan, and its items; FIRE's JSON, if it comes before the data, is part of the request.

    A scanner may pause before its first readout. What cannot be opened is refused by then, and its place is
    free; but JSON may name another pipeline, or the setting that is missing, and is waited for a moment.
    """
    items = inbox.items()
    if parent:
        return open_scan(request), items
    process: Process | None = None
    early: list[Any] = []
    n_bytes, until = 0, monotonic() + _PARAMETERS_S
    while n_bytes <= _EARLY_BYTES and not inbox.over:
        # Waveforms may flow long before the first readout: they are no reason to wait longer.
        if process is None and (monotonic() >= until or not inbox.wait(until - monotonic())):
            process = open_scan(request)
        item = next(inbox.ready() if process is None else items, None)
        if item is None:
            # A query was answered, or there is nothing more.
            continue
        if isinstance(item, Text):
            if parameters := _parameters(item):
                return open_scan(replace(request, parameters=parameters)), chain(early, items)
            _note(item)
            continue
        early.append(item)
        n_bytes += _memory_bytes(item)
        if not isinstance(item, Waveform):
            break
    return process or open_scan(request), chain(early, items)


def _parameters(message: Text) -> str:
    """Return the JSON that a text consists of, or nothing where it is a remark."""
    text = message.text.lstrip("\ufeff \t\r\n")
    return text if text.startswith("{") else ""


def _note(remark: Text) -> None:
    logger.info("the peer says: %s", quoted(remark.text))


def _asks(message: Text) -> bool:
    """Whether a text asks for a pipeline or a setting."""
    try:
        document = json.loads(_parameters(message) or "{}")
    except (ValueError, RecursionError):
        return False
    asked = document.get("parameters")
    return isinstance(asked, dict) and any(name == "config" or "." in name for name in asked)


def _without_texts(items: Iterator[Any], *, parent: bool) -> Iterator[Any]:
    """Keep the peer's remarks out of the chain, which would send them back.

    Raises
    ------
    ProtocolError
        A client asks for settings: a scan must not go on with other ones. (A ``parent`` has said them in its config.)
    """
    for item in items:
        if not isinstance(item, Text):
            yield item
        elif not parent and _asks(item):
            raise ProtocolError(
                f"parameters (JSON, {len(item.text)} characters) where none are taken: a client sends them once, after "
                f"the header, before the first readout or image and at most {_EARLY_BYTES >> 20} MiB of waveforms."
            )
        else:
            _note(item)


def _send(connection: Connection, item: Any, request: ScanRequest, outcome: Outcome, *, parent: bool) -> None:
    if isinstance(item, Image):
        connection.send(item)
        outcome.images += 1
    elif isinstance(item, Text) and not parent:
        connection.send(replace(item, terminated=request.terminated))
    elif isinstance(item, Text):
        logger.warning("not sent, a Gadgetron takes no text: %s", item.text.strip())
    else:
        outcome.unsent += 1


def tell(connection: Connection, error: BaseException, *, parent: bool) -> None:
    """Report a failure so that the peer shows it; the last that a client is told.

    Parameters
    ----------
    connection
        The peer.
    error
        The failure.
    parent
        The peer is a Gadgetron that we are an external node of.
    """
    text = str(error) if isinstance(error, SinothermError) else f"internal error, {type(error).__name__}: {error}"
    try:
        connection.send(Error(text=text) if parent else Text(text=f"ERR {text}", terminated=connection.terminated))
        if not parent:
            connection.send(Close())
    except PeerGoneError:
        logger.info("the peer is gone and cannot be told of the failure")


def converse(
    connection: Connection,
    open_scan: OpenScan,
    *,
    parent: bool = False,
    request: ScanRequest | None = None,
    close: bool = True,
    admit: Callable[[], Callable[[], None]] | None = None,
) -> Outcome:
    """Hold one scan with a peer: what it asks for, its data in, images out, CLOSE.

    A failure is reported in the way that the peer shows: ERROR, then everything read up to its CLOSE,
    for a Gadgetron parent; a text that begins with ``ERR``, then CLOSE, for a client.

    Parameters
    ----------
    connection
        The peer.
    open_scan
        Returns what works on the scan.
    parent
        The peer is a Gadgetron that we are an external node of: it must not get texts.
    request
        What the peer asks for, if config and header have been read already.
    close
        Whether the last CLOSE and closing the socket are ours.
    admit
        Called when config and header are there; what it raises refuses the scan. What it returns is called when
        nothing more is made for the scan, before the peer is told of its end.

    Returns
    -------
    Outcome
        What was sent, and the error, if there was one; it has been logged.
    """
    outcome, inbox, release = Outcome(), None, None
    try:
        request = request or _handshake(connection)
        connection.terminated = request.terminated
        if admit is not None:
            release = admit()
        connection.await_data()
        inbox = Inbox(connection)
        process, items = _open(open_scan, request, inbox, parent=parent)
        for item in process(_without_texts(items, parent=parent)):
            _send(connection, item, request, outcome, parent=parent)
        if inbox.cut:
            raise WireError(_STOPPED)  # noqa: TRY301
    except SinothermError as error:
        outcome.error = error
        if inbox is not None and inbox.cut and str(error) != _STOPPED:
            # What the chain then says of an unfinished scan is no fault of the peer's.
            logger.warning("after the stop: %s", quoted(str(error), bound=_LOGGED))
            outcome.error = error = WireError(_STOPPED)
        if request is None and connection.vacant:
            # A health check or a port scan: there was no scan, and there is nobody to be told.
            logger.debug("the peer connected and left")
        else:
            # It may name what the peer sent: a setting, a pipeline.
            logger.error("scan ended after %d images: %s", outcome.images, quoted(str(error), bound=_LOGGED))  # noqa: TRY400
    except Exception as error:
        outcome.error = error
        logger.exception("scan ended after %d images", outcome.images)
    if release is not None:
        # Whoever has read the end of this scan may begin the next.
        release()
    if outcome.error is not None and not (request is None and connection.vacant):
        tell(connection, outcome.error, parent=parent)
    if inbox is None and request is not None and parent:
        connection.await_close()
    (inbox or Inbox(connection)).drain()
    try:
        if close and (outcome.error is None or parent):
            connection.send(Close())
    except PeerGoneError as error:
        outcome.error = outcome.error or error
    if close:
        connection.close()
    if outcome.error is None:
        logger.info("scan finished, %d images sent", outcome.images)
    if outcome.unsent:
        logger.debug("%d items of other kinds were not sent", outcome.unsent)
    if outcome.error is not None:
        # The frames that it came through hold the scan's frames, and it is held by one of them.
        outcome.error = outcome.error.with_traceback(None)
    return outcome
