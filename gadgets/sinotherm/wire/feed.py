"""The live feed: what a scan shows while it runs, and commands to it, over ZeroMQ.

A feed message has three parts: topic, JSON header (``schema`` is its version), raw array (empty where
there is none). The feed is for eyes and displays: bounded, the newest wins, and it never slows the
chain. Commands are requests that are answered: JSON in, JSON out.
"""

import atexit
import hmac
import ipaddress
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import numpy as np
import zmq

from sinotherm.errors import PeerError, PeerGoneError, ProtocolError, SettingsError, SinothermError, WireError

__all__ = [
    "COMMAND_ENDPOINT",
    "FEED_ENDPOINT",
    "SCHEMA",
    "CommandClient",
    "CommandServer",
    "FeedMessage",
    "Publisher",
    "Subscriber",
    "is_loopback",
    "plain",
    "shared_publisher",
]

logger = logging.getLogger(__name__)

SCHEMA: Final = 1
"""Version of the header of feed messages and commands."""

FEED_ENDPOINT: Final = "tcp://127.0.0.1:5560"
COMMAND_ENDPOINT: Final = "tcp://127.0.0.1:5561"

_WAITING_PARTS: Final = 48
_POLL_S: Final = 0.05
_FAREWELL_S: Final = 3.0
_LINGER_MS: Final = 2400
"""For what subscribers that are slow have not taken yet; within the farewell."""
_TOPIC_BYTES: Final = 128
"""What a subscriber may say at once: a topic is shorter, and so is ZeroMQ's own greeting."""
_COMMAND_BYTES: Final = 1 << 16
_COMMAND_LEVELS: Final = 8
_ANSWER_S: Final = 5e-3
_HEADER_BYTES: Final = 1 << 20


def is_loopback(endpoint: str) -> bool:
    """Return whether only this machine can reach a ZeroMQ endpoint."""
    parts = urlsplit(endpoint)
    if parts.scheme in ("ipc", "inproc"):
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numpy scalars become numbers, NaN and infinity ``None``."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _bind(kind: int, endpoint: str, *, context: Any = None, **options: int) -> Any:
    sock: Any = (context or zmq.Context.instance()).socket(kind)
    sock.linger = 0
    for name, value in options.items():
        setattr(sock, name, value)
    try:
        sock.bind(endpoint)
    except zmq.ZMQError as error:
        sock.close()
        raise WireError(f"cannot listen on {endpoint} ({error}); give another endpoint, or none.") from None
    return sock


def _connect(kind: int, endpoint: str, **options: int) -> Any:
    sock: Any = zmq.Context.instance().socket(kind)
    sock.linger = 0
    for name, value in options.items():
        setattr(sock, name, value)
    try:
        sock.connect(endpoint)
    except zmq.ZMQError as error:
        sock.close()
        raise SettingsError(f"endpoint {endpoint!r}: {error}; write tcp://HOST:PORT.") from None
    return sock


class _Socket:
    """A socket that is closed with its owner."""

    _sock: Any

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeedMessage:
    """One message of the feed.

    Attributes
    ----------
    topic
        What it is: ``image``, ``temperature``, ``statistics`` …
    header
        Its facts, with ``schema``, and ``dtype`` and ``shape`` of the array.
    array
        The array, or ``None``.
    """

    topic: str
    header: Mapping[str, Any]
    array: np.ndarray | None


class Publisher(_Socket):
    """Publishes to whoever listens, from a thread of its own.

    Of each topic and scan (header entry ``run``) only the newest message waits to be sent. Before anybody has
    subscribed, no array is sent; what has none (statistics, alarms, the end) is small, and goes out in any case.

    Parameters
    ----------
    endpoint
        Where to listen for subscribers.

    Attributes
    ----------
    topics
        How many topics have been subscribed to; those of a subscriber that is gone may be among them.
    replaced
        Messages that a newer one took the place of.

    Raises
    ------
    WireError
        The endpoint is taken or not ours.
    """

    def __init__(self, endpoint: str = FEED_ENDPOINT) -> None:
        # Not XPUB: it would hand us what its peers say, and one that subscribes without end would keep us listening,
        # and the alarms from all others.
        self._context = zmq.Context()
        try:
            self._sock = _bind(zmq.PUB, endpoint, context=self._context, sndhwm=_WAITING_PARTS, maxmsgsize=_TOPIC_BYTES)
        except WireError:
            self._context.term()
            raise
        if not is_loopback(endpoint):
            logger.warning("the feed on %s can be read by everybody who reaches it", endpoint)
        self._waiting: dict[tuple[str, Any], tuple[Mapping[str, Any], np.ndarray | None]] = {}
        self._change = threading.Condition()
        self._closed = False
        self.topics = self.replaced = 0
        self._thread = threading.Thread(target=self._run, name="sinotherm-feed", daemon=True)
        self._thread.start()

    def publish(self, topic: str, header: Mapping[str, Any], array: np.ndarray | None = None) -> None:
        """Hand over a message; returns at once. The array must not be changed afterwards."""
        if array is not None and not self.topics:
            return
        with self._change:
            kind = (topic, header.get("run"))
            if self._waiting.pop(kind, None) is not None:
                self.replaced += 1
            self._waiting[kind] = (header, array)
            self._change.notify()

    def close(self) -> None:
        """Send what waits, and close; what peers do keeps nobody here for more than a few seconds."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(_FAREWELL_S)

    def _run(self) -> None:
        while not (self._closed and not self._waiting):
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed, _POLL_S)
                waiting = [(kind[0], *self._waiting.pop(kind)) for kind in list(self._waiting)[:1]]
            # ZeroMQ looks at what its peers say when it is asked for its events.
            self._sock.get(zmq.EVENTS)
            self.topics = self._counted()
            for topic, header, array in waiting:
                self._send(topic, header, array)
        self._sock.close(linger=_LINGER_MS)
        self._context.term()

    def _counted(self) -> int:
        """Return how many topics have been subscribed to; one where a ZeroMQ before 4.3.5 does not count them."""
        try:
            return int(self._sock.get(zmq.TOPICS_COUNT))
        except zmq.ZMQError:
            return 1

    def _send(self, topic: str, header: Mapping[str, Any], array: np.ndarray | None) -> None:
        head = {**plain(header), "schema": SCHEMA, "topic": topic}
        if array is not None:
            array = np.ascontiguousarray(array)
            head |= {"dtype": array.dtype.str, "shape": list(array.shape)}
        parts = [topic.encode(), json.dumps(head, allow_nan=False).encode(), b"" if array is None else array]
        # A copy: a process that ends would take the array's own memory from under it.
        self._sock.send_multipart(parts)


_shared: dict[str, Publisher] = {}
_shared_lock = threading.Lock()


def shared_publisher(endpoint: str) -> Publisher:
    """Return the process's publisher on an endpoint: scans at the same time share it, watchers outlive scans.

    Raises
    ------
    WireError
        The endpoint is taken by another process, or not ours.
    """
    with _shared_lock:
        if endpoint not in _shared:
            _shared[endpoint] = Publisher(endpoint)
            atexit.register(_shared[endpoint].close)
        return _shared[endpoint]


class Subscriber(_Socket):
    """Listens to a feed.

    Parameters
    ----------
    endpoint
        The publisher's; it may start later, and come and go.
    topics
        Which topics; all by default.
    """

    def __init__(self, endpoint: str = FEED_ENDPOINT, *, topics: Iterable[str] = ("",)) -> None:
        self._sock = _connect(zmq.SUB, endpoint, rcvhwm=_WAITING_PARTS)
        for topic in topics:
            self._sock.subscribe(topic)

    def receive(self, *, within_s: float = 1.0) -> FeedMessage | None:
        """Return the next message, or ``None`` if none comes in time.

        Raises
        ------
        ProtocolError
            What came is not a message of this feed, or of another schema version.
        """
        if not self._sock.poll(round(1e3 * within_s)):
            return None
        parts = self._sock.recv_multipart()
        if len(parts) != 3 or len(parts[1]) > _HEADER_BYTES:
            raise ProtocolError(f"a feed message of {len(parts)} parts: it has topic, header and array.")
        try:
            header = json.loads(parts[1])
            schema = header.get("schema")
        except (ValueError, AttributeError) as error:
            raise ProtocolError(f"the header of a feed message is not a JSON object ({error}).") from None
        if schema != SCHEMA:
            raise ProtocolError(
                f"feed of schema {schema}: this program reads {SCHEMA}; use the same version on both sides."
            )
        array = None
        if "dtype" in header:
            try:
                array = np.frombuffer(parts[2], np.dtype(header["dtype"])).reshape(header["shape"])
            except (TypeError, ValueError) as error:
                raise ProtocolError(f"the array of a feed message does not fit its header ({error}).") from None
        return FeedMessage(topic=parts[0].decode("utf-8", "replace"), header=header, array=array)


def _is_deeper(value: Any, levels: int) -> bool:
    """Return whether lists and objects stand in each other on more levels than these."""
    if not isinstance(value, (dict, list)):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(part, levels - 1) for part in parts)


def _checked_key(endpoint: str, key: str) -> bytes:
    if not (key or is_loopback(endpoint)):
        raise SettingsError(f"commands on {endpoint} can be sent by everybody who reaches it: give a key.")
    return key.encode()


class CommandServer(_Socket):
    """Takes commands during a scan; the chain asks for them between frames.

    A request is ``{"schema": 1, "command": NAME, "arguments": {…}, "key": KEY}``, one message part of at most
    64 KiB; the answer is ``{"schema": 1, "ok": true, "result": {…}}`` or ``{"schema": 1, "ok": false, "error": TEXT}``.

    Parameters
    ----------
    endpoint
        Where to listen.
    key
        Secret that every request must carry; needed unless the endpoint is loopback.

    Raises
    ------
    SettingsError
        There is no key and the endpoint is not loopback.
    WireError
        The endpoint is taken or not ours.
    """

    def __init__(self, endpoint: str = COMMAND_ENDPOINT, *, key: str = "") -> None:
        self._key = _checked_key(endpoint, key)
        # The bound is one of each part, and a request may have any number of them.
        self._sock = _bind(zmq.REP, endpoint, maxmsgsize=_COMMAND_BYTES)
        self._n_parts = 0

    def poll(self, handle: Callable[[str, Mapping[str, Any]], Mapping[str, Any] | None]) -> int:
        """Answer what waits, without waiting, and return how many requests that were.

        After a few milliseconds the rest is left to the next call: a flood of requests must not keep the
        chain from its frames, nor must one of many parts, which is refused when its last one has come. Peers take
        turns.

        Parameters
        ----------
        handle
            Called with command and arguments; returns the result, or raises an error of ours, which is
            the answer then.
        """
        answered, until = 0, time.monotonic() + _ANSWER_S
        begun = False
        while not (begun and time.monotonic() >= until) and self._sock.poll(0):
            begun = True
            raw = self._sock.recv()
            self._n_parts += 1
            if self._sock.rcvmore:
                continue
            n_parts, self._n_parts = self._n_parts, 0
            try:
                if n_parts > 1:
                    raise ProtocolError(f"the command has {n_parts} message parts: send it as one.")
                answer = {"ok": True, "result": plain(self._result(raw, handle) or {})}
            except SinothermError as error:
                answer = {"ok": False, "error": str(error)}
            self._sock.send(json.dumps({"schema": SCHEMA, **answer}).encode())
            answered += 1
        return answered

    def _result(
        self, raw: bytes, handle: Callable[[str, Mapping[str, Any]], Mapping[str, Any] | None]
    ) -> Mapping[str, Any] | None:
        try:
            request = json.loads(raw)
            # Half a surrogate pair passes for JSON, and fails wherever it is written later.
            json.dumps(request, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"the command is not JSON ({error}).") from None
        if not isinstance(request, dict) or request.get("schema") != SCHEMA:
            raise ProtocolError(f"the command is not a JSON object of schema {SCHEMA}.")
        if _is_deeper(request, _COMMAND_LEVELS):
            raise ProtocolError(
                f"lists and objects of the command stand in each other on more than {_COMMAND_LEVELS} levels: "
                "send plain values."
            )
        if not hmac.compare_digest(str(request.get("key", "")).encode(), self._key):
            raise ProtocolError("the key is wrong: the command is refused.")
        name, arguments = request.get("command"), request.get("arguments", {})
        if not (isinstance(name, str) and isinstance(arguments, dict)):
            raise ProtocolError("a command has a name (command) and arguments (an object).")
        return handle(name, arguments)


class CommandClient(_Socket):
    """Sends commands to a running scan.

    Parameters
    ----------
    endpoint, key
        As the server's.
    within_s
        Time within which an answer must come, s; the scan answers between frames.
    """

    def __init__(self, endpoint: str = COMMAND_ENDPOINT, *, key: str = "", within_s: float = 10.0) -> None:
        self._endpoint, self._key, self._within_s = endpoint, key, within_s
        self._sock = _connect(zmq.REQ, endpoint, req_relaxed=1, req_correlate=1)

    def request(self, command: str, /, **arguments: Any) -> Mapping[str, Any]:
        """Return the result of a command.

        Raises
        ------
        SettingsError
            An argument is not finite; JSON has no word for it, and none at all would switch an alarm off.
        PeerError
            The scan refuses it, with the reason.
        PeerGoneError
            No answer came in time.
        ProtocolError
            What came is no answer to a command.
        """
        request = {"schema": SCHEMA, "command": command, "arguments": arguments, "key": self._key}
        try:
            raw = json.dumps(request, allow_nan=False, default=np.generic.item).encode()
        except ValueError:
            raise SettingsError(f"{command}: {arguments} holds a number that is not finite; give a number.") from None
        self._sock.send(raw)
        if not self._sock.poll(round(1e3 * self._within_s)):
            raise PeerGoneError(
                f"no answer from {self._endpoint} within {self._within_s:g} s: is a scan running that takes commands? "
                "One that is busy may carry it out yet: ask for its status."
            )
        try:
            answer = json.loads(self._sock.recv())
            result: Mapping[str, Any] | None = dict(answer["result"]) if answer["ok"] else None
            refusal = "" if answer["ok"] else str(answer["error"])
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"what {self._endpoint} sent is no answer to a command ({error}).") from None
        if result is None:
            raise PeerError(f"{command} was refused: {refusal}")
        return result
