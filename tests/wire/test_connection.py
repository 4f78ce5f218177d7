import gc
import re
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ismrmrd
import numpy as np
import pytest

from mrd_handlers import QUICK, USUAL, open_scan, until
from mrd_peers import config_name, readout_message, text_message
from sinotherm.errors import (
    DataError,
    OverloadError,
    PeerError,
    PeerGoneError,
    ProtocolError,
    SettingsError,
    WireError,
)
from sinotherm.wire.connection import Connection, Inbox, ScanRequest, converse
from sinotherm.wire.messages import Close, ConfigFile, Error, Header, Query, Readout, Response, Text


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    one, other = socket.socketpair()
    first, second = Connection(one, patience=USUAL), Connection(other, patience=USUAL)
    yield first, second
    one.close()
    other.close()


def readout(*, stamp: int = 0, coils: int = 1, samples: int = 64, last: bool = False) -> Readout:
    header = ismrmrd.AcquisitionHeader()
    header.number_of_samples, header.active_channels, header.acquisition_time_stamp = samples, coils, stamp
    if last:
        header.setFlag(ismrmrd.ACQ_LAST_IN_REPETITION)
    return Readout(header=header, data=np.ones((coils, samples), np.complex64), trajectory=np.empty((samples, 0), "f4"))


def test_messages_arrive_stamped_with_the_clock(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    before = time.monotonic()
    one.send(readout(coils=3))
    got = other.receive()
    assert before <= got.received_s <= time.monotonic()
    one.send(Close())
    assert other.receive() == Close()
    assert other.closed
    with pytest.raises(PeerGoneError, match="the peer said CLOSE"):
        other.receive()


def test_large_messages_pass_in_pieces(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    big = readout(coils=32, samples=60000)
    thread = threading.Thread(target=one.send, args=(big,))
    thread.start()
    np.testing.assert_array_equal(other.receive().data, big.data)
    thread.join()


def test_silence_is_noticed(ends: tuple[Connection, Connection]) -> None:
    ends[0].silence_s = QUICK.silence_s
    with pytest.raises(PeerGoneError, match=r"silent for 0.5 s"):
        ends[0].receive()


def test_a_stop_is_noticed(ends: tuple[Connection, Connection]) -> None:
    ends[0].silence_s = 60.0
    threading.Timer(0.1, ends[0].stop).start()
    with pytest.raises(PeerGoneError, match="we were stopped"):
        ends[0].receive()


def test_a_vanished_peer_is_noticed(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    one._socket.close()
    with pytest.raises(PeerGoneError, match="without CLOSE"):
        other.receive()
    with pytest.raises(PeerGoneError, match="the peer is gone"):
        other.send(Text(text="x"))
    with pytest.raises(PeerGoneError, match="nothing can follow"):
        other.send(Text(text="x"))
    other._socket.close()
    with pytest.raises(PeerGoneError, match="the peer is gone"):
        next(other.stream())
    other.close()


def test_what_cannot_be_written_tears_nothing(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    with pytest.raises(DataError):
        one.send(3)
    one.send(Text(text="fine"))
    assert other.receive() == Text(text="fine")


def test_readouts_know_what_has_been_received_after_them(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    inbox = Inbox(other)
    items = inbox.items()
    one.send(readout())
    assert next(items).waiting == 0
    for _ in range(4):
        one.send(readout())
    one.send(Close())
    inbox._thread.join(10)
    # CLOSE and the end of the stream stand behind the last one.
    assert [item.waiting for item in items] == [5, 4, 3, 2]


def test_closing_waits_for_a_peer_that_still_sends(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    one.send(Text(text="last words"))
    one.send(Text(text="unread"))
    closing = threading.Thread(target=one.close)
    other.send(readout())
    closing.start()
    assert other.receive() == Text(text="last words")
    other.send(readout())
    assert other.receive() == Text(text="unread")
    other._socket.shutdown(socket.SHUT_WR)
    closing.join(15)
    assert not closing.is_alive()


def test_closing_a_deaf_peer_takes_no_longer_than_agreed(ends: tuple[Connection, Connection]) -> None:
    ends[0].patience = QUICK
    start = time.monotonic()
    ends[0].close()
    assert 0.4 < time.monotonic() - start < USUAL.drain_s


def test_the_inbox_takes_what_nobody_wants_yet(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    inbox = Inbox(other)
    for stamp in range(200):
        one.send(readout(stamp=stamp, samples=1000))
    one.send(Close())
    assert [item.header.acquisition_time_stamp for item in inbox.items()] == list(range(200))
    assert inbox.over
    assert list(inbox.items()) == list(inbox.ready()) == []


def test_ready_does_not_wait(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    inbox = Inbox(other)
    assert list(inbox.ready()) == []
    one.send(Text(text="x"))
    until(inbox._queue.qsize)
    assert list(inbox.ready()) == [Text(text="x")]
    one.send(Close())
    assert list(inbox.items()) == []


@pytest.mark.parametrize(
    ("message", "error", "match"),
    [
        (Error(text="oops\n"), PeerError, "the peer reports: oops$"),
        (ConfigFile(name="again"), ProtocolError, "a ConfigFile within a scan"),
    ],
)
def test_what_has_no_place_in_a_scan(
    ends: tuple[Connection, Connection], message: Any, error: type[Exception], match: str
) -> None:
    one, other = ends
    inbox = Inbox(other)
    one.send(readout())
    one.send(message)
    items = inbox.items()
    next(items)
    with pytest.raises(error, match=match):
        next(items)
    assert inbox.over
    one.send(Close())
    inbox.drain()


def test_queries_within_a_scan_are_answered(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    inbox = Inbox(other)
    for message in (readout(), Query(correlation=7, text="status"), readout(), Close()):
        one.send(message)
    assert [type(item) for item in inbox.items()] == [Readout, Readout]
    assert inbox._put_bytes - inbox._taken_bytes == 512
    assert one.receive() == Response(correlation=7, text="")


def test_a_stop_ends_the_items(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    inbox = Inbox(other)
    one.send(readout())
    until(inbox._queue.qsize)
    other.stop()
    assert len(list(inbox.items())) == 1
    assert inbox.cut


def test_a_stop_before_the_data_ends_the_items(ends: tuple[Connection, Connection]) -> None:
    ends[1].stop()
    inbox = Inbox(ends[1])
    assert list(inbox.items()) == []
    assert inbox.cut


def test_a_reader_that_dies_is_not_waited_for(
    ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Connection) -> Iterator[Any]:
        raise RuntimeError("a bug")
        yield

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(Connection, "stream", broken)
    with pytest.raises(WireError, match="the log says why"):
        list(Inbox(ends[1]).items())


BOUND = replace(USUAL, queue_bytes=20 * 512, tick_s=2.5e-3)


@pytest.fixture
def stuffed() -> Iterator[tuple[Connection, Inbox]]:
    one, other = socket.socketpair()
    yield Connection(one, patience=BOUND), Inbox(Connection(other, patience=BOUND))
    one.close()
    other.close()


@pytest.fixture
def at_the_scanners_pace(stuffed: tuple[Connection, Inbox], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every readout comes at its own time stamp: the clock that the reader sees is that of the readouts."""

    def clock() -> float:
        return (stuffed[1]._latest or 0) * BOUND.tick_s

    monkeypatch.setattr("sinotherm.wire.connection.monotonic", clock)


def send_all(peer: Connection, stamps: list[int]) -> None:
    try:
        for stamp in stamps:
            peer.send(readout(stamp=stamp))
        peer.send(Close())
    except PeerGoneError:
        pass


@pytest.mark.parametrize("stamps", [[0] * 400, list(range(0, 400_000, 1000))], ids=["no stamps", "a replay"])
def test_a_replay_is_held_back_and_loses_nothing(stuffed: tuple[Connection, Inbox], stamps: list[int]) -> None:
    peer, inbox = stuffed
    thread = threading.Thread(target=send_all, args=(peer, stamps))
    thread.start()
    time.sleep(0.3)
    assert inbox._queue.qsize() < 40
    got = [item.header.acquisition_time_stamp for item in inbox.items()]
    thread.join()
    assert got == stamps


@pytest.mark.parametrize("kind", ["image", "waveform", "text", "empty text", "trajectory"])
def test_everything_that_waits_is_bounded(stuffed: tuple[Connection, Inbox], kind: str) -> None:
    peer, inbox = stuffed
    message: Any = {
        "image": ismrmrd.Image.from_array(np.zeros((8, 8), np.complex64)),
        "waveform": ismrmrd.Waveform.from_array(np.zeros((2, 64), np.uint32)),
        "text": Text(text="x" * 512),
        "empty text": Text(text=""),
        "trajectory": Readout(
            header=readout(coils=0).header, data=np.empty((0, 64), "c8"), trajectory=np.zeros((64, 3), "f4")
        ),
    }[kind]
    if kind == "trajectory":
        message.header.trajectory_dimensions = 3

    def send() -> None:
        for _ in range(2000):
            peer.send(message)
        peer.send(Close())

    thread = threading.Thread(target=send)
    thread.start()
    time.sleep(0.3)
    assert inbox._queue.qsize() < 40
    assert len(list(inbox.items())) == 2000
    thread.join()


@pytest.mark.usefixtures("at_the_scanners_pace")
def test_a_scanners_waveforms_do_not_hide_an_overload(stuffed: tuple[Connection, Inbox]) -> None:
    peer, inbox = stuffed
    try:
        for stamp in range(1, 41):
            peer.send(readout(stamp=stamp))
            for _ in range(4):
                peer.send(ismrmrd.Waveform.from_array(np.zeros((1, 4), np.uint32)))
        peer.send(Close())
    except PeerGoneError:
        pass
    until(lambda: inbox._overload)
    with pytest.raises(OverloadError):
        list(inbox.items())
    inbox.drain()


@pytest.mark.usefixtures("at_the_scanners_pace")
def test_a_scanner_that_cannot_be_held_back_is_an_overload(stuffed: tuple[Connection, Inbox]) -> None:
    peer, inbox = stuffed
    send_all(peer, list(range(1, 41)))
    until(lambda: inbox._overload)
    with pytest.raises(OverloadError, match=r"bytes of readouts wait .* the bound is 10240.*frames.overload = latest"):
        list(inbox.items())
    inbox.drain()


def test_draining_frees_a_sender_that_is_held_back(stuffed: tuple[Connection, Inbox]) -> None:
    peer, inbox = stuffed
    thread = threading.Thread(target=send_all, args=(peer, [0] * 400))
    thread.start()
    time.sleep(0.2)
    inbox.drain()
    thread.join(20)
    assert not thread.is_alive()


def test_stopping_frees_a_reader_that_holds_back(stuffed: tuple[Connection, Inbox]) -> None:
    peer, inbox = stuffed
    thread = threading.Thread(target=send_all, args=(peer, [0] * 100), daemon=True)
    thread.start()
    time.sleep(0.2)
    inbox._connection.stop()
    inbox.drain()
    assert not inbox._thread.is_alive()
    thread.join(5)


def test_converse_with_a_peer_that_has_been_read_already(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    one.send(readout(last=True))
    one.send(Close())
    request = ScanRequest(config="frames", header_xml=b"<h/>")
    outcome = converse(other, open_scan, parent=True, request=request, close=False)
    assert (outcome.images, outcome.unsent, outcome.error) == (1, 0, None)
    assert isinstance(one.receive(), ismrmrd.Image)
    # The last CLOSE is left to whoever opened the socket.
    one.silence_s = QUICK.silence_s
    with pytest.raises(PeerGoneError, match="silent"):
        one.receive()


def test_a_peer_that_vanishes_before_the_last_close(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    one.send(ConfigFile(name="frames"))
    one.send(Header(xml=b"<h/>"))
    one.send(readout())
    one.send(Close())
    one._socket.close()
    outcome = converse(other, open_scan)
    assert isinstance(outcome.error, PeerGoneError)
    assert outcome.unsent == 1


def test_a_message_that_never_became_whole_is_given_back(ends: tuple[Connection, Connection]) -> None:
    """The server knows the connection until the next one comes."""
    one, other = ends
    raw = config_name("frames") + text_message(3, b"<h/>") + readout_message(coils=64, samples=60_000)[:-1]
    thread = threading.Thread(target=lambda: (one._socket.sendall(raw), one._socket.close()))
    thread.start()
    assert isinstance(converse(other, open_scan).error, PeerGoneError)
    thread.join()
    assert len(other._decoder._buffer) == 0


@pytest.mark.parametrize("config", ["frames", "fail"])
def test_what_a_failed_scan_was_made_of_is_given_back(
    ends: tuple[Connection, Connection],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    config: str,
) -> None:
    # What is logged is kept by pytest, with its traceback.
    caplog.set_level("CRITICAL", "sinotherm")
    one, other = ends
    known: list[weakref.ref[Any]] = []
    take = Inbox._take

    def note(inbox: Inbox, message: Any) -> None:
        known.append(weakref.ref(message.data))
        take(inbox, message)

    monkeypatch.setattr(Inbox, "_take", note)
    for message in (ConfigFile(name=config), Header(xml=b"<h/>"), *(readout(last=True) for _ in range(5))):
        one.send(message)
    one._socket.shutdown(socket.SHUT_WR)
    gc.disable()
    try:
        outcome = converse(other, open_scan)
        assert outcome.error is not None
        assert len(known) == 5
        assert all(data() is None for data in known)
    finally:
        gc.enable()


def test_fires_parameters_are_what_comes_first(ends: tuple[Connection, Connection]) -> None:
    one, other = ends
    seen: list[ScanRequest] = []

    def remember(request: ScanRequest) -> Any:
        seen.append(request)
        return open_scan(request)

    one.send(ConfigFile(name="frames"))
    one.send(Header(xml=b"<h/>", terminated=True))
    one.send(Text(text=' {"a": 1}', terminated=True))
    one.send(Text(text="not parameters"))
    one.send(Close())
    assert converse(other, remember).error is None
    assert seen == [ScanRequest(config="frames", header_xml=b"<h/>", parameters='{"a": 1}', terminated=True)]


def waveform() -> Any:
    return ismrmrd.Waveform.from_array(np.zeros((1, 4), np.uint32))


@pytest.mark.parametrize(
    "before",
    [
        [],
        [waveform()] * 3,
        [Text(text="DBG console ready")],
        [Text(text=""), waveform()],
        [Query(correlation=1, text="")],
    ],
    ids=["nothing", "waveforms", "remark", "both", "query"],
)
@pytest.mark.parametrize("start", ["", "\ufeff", "\n \ufeff"])
def test_fires_parameters_may_come_after_what_is_no_data(
    ends: tuple[Connection, Connection], before: list[Any], start: str
) -> None:
    one, other = ends
    seen: list[ScanRequest] = []
    taken: list[str] = []

    def remember(request: ScanRequest) -> Any:
        seen.append(request)
        return lambda items: (taken.append(type(item).__name__) for item in items)

    for message in (ConfigFile(name="frames"), Header(xml=b"<h/>"), *before, Text(text=start + '{"a": 1}')):
        one.send(message)
    for message in (waveform(), readout(), Close()):
        one.send(message)
    assert converse(other, remember).error is None
    assert [request.parameters for request in seen] == ['{"a": 1}']
    # Nothing is lost, and texts stay out of the chain.
    assert taken == ["Waveform"] * (before.count(waveform()) + 1) + ["Readout"]


@pytest.mark.parametrize("asked", ['{"parameters": {"config": "b"}}', '{"parameters": {"b": 1, "frames.by": "flags"}}'])
@pytest.mark.parametrize(
    "before", [[readout(last=True)], [Text(text='{"a": 1}')], [waveform(), waveform()]], ids=["data", "twice", "much"]
)
def test_a_scan_whose_parameters_come_too_late_does_not_go_on(
    ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch, asked: str, before: list[Any]
) -> None:
    monkeypatch.setattr("sinotherm.wire.connection._EARLY_BYTES", 1000)
    one, other = ends
    for message in (ConfigFile(name="frames"), Header(xml=b"<h/>"), *before, Text(text=asked), Close()):
        one.send(message)
    outcome = converse(other, open_scan)
    assert isinstance(outcome.error, ProtocolError)
    assert re.match(
        rf"parameters \(JSON, {len(asked)} characters\) where none are taken: .* before the first readout",
        str(outcome.error),
    )


@pytest.mark.parametrize(
    ("remark", "parent"),
    [
        ("{breath hold 1}", False),
        ("{" * 20_000, False),
        ('{"event": "table moved"}', False),
        ('{"parameters": {"patient": "supine"}}', False),
        ('{"parameters": ["a.b"]}', False),
        ('{"parameters": {"frames.by": "flags"}}', True),
    ],
)
def test_a_remark_that_asks_for_no_setting_ends_no_scan(
    ends: tuple[Connection, Connection], remark: str, parent: bool
) -> None:
    one, other = ends
    taken: list[Any] = []
    for message in (ConfigFile(name="a"), Header(xml=b"<h/>"), readout(), Text(text=remark), readout(), Close()):
        one.send(message)
    outcome = converse(other, lambda request: lambda items: (taken.append(item) for item in items), parent=parent)
    assert outcome.error is None
    assert len(taken) == 2


def test_a_scan_that_was_refused_is_read_to_its_end(ends: tuple[Connection, Connection]) -> None:
    """Longer than a header is waited for: the scanner goes on, and would find its connection broken."""
    one, other = ends
    other.patience = replace(other.patience, handshake_s=0.3)

    def full() -> Any:
        raise WireError("every place is taken.")

    def scan() -> None:
        one.send(ConfigFile(name="a"))
        one.send(Header(xml=b"<h/>"))
        for _ in range(8):
            time.sleep(0.1)
            one.send(readout())
        one.send(Close())

    sender = threading.Thread(target=scan)
    sender.start()
    outcome = converse(other, open_scan, parent=True, admit=full)
    assert not sender.is_alive() or sender.join(1.0) is None
    assert "every place" in str(outcome.error)
    assert other._decoder.closed


@pytest.mark.parametrize("parent", [False, True])
def test_what_cannot_be_opened_is_refused_before_the_first_readout(
    ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch, parent: bool
) -> None:
    """A scanner may pause between header and readouts, and the place of the scan is held meanwhile."""
    monkeypatch.setattr("sinotherm.wire.connection._PARAMETERS_S", 0.05)
    one, other = ends
    places: list[str] = []

    def refuse(request: ScanRequest) -> Any:
        raise SettingsError(f"unknown pipeline {request.config!r}.")

    def admit() -> Any:
        places.append("taken")
        return lambda: places.append("free")

    one.send(ConfigFile(name="nope"))
    one.send(Header(xml=b"<h/>"))
    thread = threading.Thread(target=converse, args=(other, refuse), kwargs={"parent": parent, "admit": admit})
    thread.start()
    words = "unknown pipeline 'nope'."
    assert one.receive() == (Error(text=words) if parent else Text(text=f"ERR {words}"))
    # Whoever has read that can begin at once, although this connection is listened to for a while.
    assert places == ["taken", "free"]
    one.send(Close())
    assert one.receive() == Close()
    one._socket.shutdown(socket.SHUT_WR)
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("flowing", [waveform(), Query(correlation=1, text="")], ids=["waveforms", "queries"])
def test_what_is_no_data_does_not_hold_up_the_refusal(
    ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch, flowing: Any
) -> None:
    monkeypatch.setattr("sinotherm.wire.connection._PARAMETERS_S", 0.1)
    one, other = ends
    refused = threading.Event()

    def refuse(request: ScanRequest) -> Any:
        refused.set()
        raise SettingsError(f"unknown pipeline {request.config!r}.")

    for message in (ConfigFile(name="nope"), Header(xml=b"<h/>")):
        one.send(message)
    thread = threading.Thread(target=converse, args=(other, refuse))
    thread.start()
    end = time.monotonic() + 10.0
    while not refused.is_set():
        assert time.monotonic() < end
        one.send(flowing)
        time.sleep(0.02)
    one.send(Close())
    thread.join(5)
    assert not thread.is_alive()


def test_parameters_may_come_late(ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinotherm.wire.connection._PARAMETERS_S", 0.01)
    one, other = ends
    seen: list[str] = []

    def remember(request: ScanRequest) -> Any:
        seen.append(request.parameters)
        if not request.parameters:
            one.send(Text(text='{"a": 1}'))
            one.send(Close())
        return open_scan(request)

    one.send(ConfigFile(name="frames"))
    one.send(Header(xml=b"<h/>"))
    assert converse(other, remember).error is None
    assert seen == ["", '{"a": 1}']
