"""The server and the warm node against peers that know the wire only from its description."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrd_handlers import QUICK, REQUESTS, USUAL, last_readouts, open_scan, serving, until
from mrd_peers import CLOSE, Peer, config_name, converse, dial, pixels, readout_message, recorded, split, text_message
from sinotherm.errors import SettingsError, WireError
from sinotherm.wire.connection import ScanRequest
from sinotherm.wire.server import Server

HEADER = text_message(3, b"<ismrmrdHeader/>")
LAST = 1 << 13


def frame(counter: int = 0) -> bytes:
    return readout_message(coils=1, samples=4, flags=LAST, counter=counter, stamp=counter)


def open_connections(server: Server) -> int:
    return sum(thread.is_alive() for thread in server._active)


def ids(messages: list[tuple[int, bytes]]) -> list[int]:
    return [number for number, _ in messages]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "config", "terminated"),
    [
        ("client_to_server", None, False),
        ("client_to_server_named", "golden_images.xml", False),
        ("fire_client_to_server", "invertcontrast", True),
        ("fire_configtext_client_to_server", "invertcontrast", True),
    ],
)
def test_real_clients_get_images(shared_data: Path, name: str, config: str | None, terminated: bool) -> None:
    raw = recorded(shared_data, f"{name}.bin")
    with serving() as server:
        messages = converse(server.address[1], [raw])
    (request,) = REQUESTS
    assert ids(messages) == [1022, 1022]
    last = [part for number, part in split(raw) if number == 1008 and struct.unpack_from("<Q", part, 4)[0] & LAST]
    assert len(last) == 2
    for (_, payload), part in zip(messages, last, strict=True):
        # Two coils of 32 samples of which the magnitude was taken.
        assert len(pixels(payload)) == 2 * 32 * 4
        # measurement_uid, position and directions are the readout's.
        assert payload[12:16] == part[12:16]
        assert payload[36:84] == part[184:232]
    assert request.terminated is terminated
    assert request.header_xml == next(part for number, part in split(raw) if number == 3)[6:].rstrip(b"\0")
    if config is None:
        assert request.config.startswith("<?xml")
    else:
        assert request.config == config
    assert ("sinotherm golden capture" in request.parameters) == (name == "fire_client_to_server")


@pytest.mark.data
def test_a_gadgetron_parent_gets_what_an_external_node_sends(shared_data: Path) -> None:
    raw = recorded(shared_data, "gadgetron_to_external.bin")
    with serving(parent=True) as server:
        messages = converse(server.address[1], [raw])
    assert ids(messages) == [1022, 1022]
    assert "te_ms" in REQUESTS[0].config


def test_a_gadgetron_parent_gets_no_texts() -> None:
    with serving(parent=True) as server:
        messages = converse(server.address[1], [text_message(2, b"talk"), HEADER, frame(), CLOSE])
    assert ids(messages) == [1022]


def test_a_client_gets_texts_and_its_own_are_not_sent_back() -> None:
    with serving() as server:
        for nul in (b"", b"\0"):
            header = text_message(3, b"<ismrmrdHeader/>" + nul)
            parts = [config_name("talk"), header, frame(), text_message(5, b"hello" + nul), CLOSE]
            messages = converse(server.address[1], parts)
            assert messages[0] == (5, b"WRN too hot" + nul)
            assert ids(messages) == [5, 1022]


def test_failures_reach_a_client_as_text_and_a_parent_as_error() -> None:
    # The parent sends much after the failure; all of it must be read before the last CLOSE.
    more = [readout_message(coils=8, samples=512) for _ in range(300)]
    for parent, number, start in ((False, 5, b"ERR "), (True, 8, b"")):
        with serving(parent=parent) as server:
            messages = converse(server.address[1], [text_message(2, b"fail"), HEADER, frame(1), *more, CLOSE])
            assert ids(messages) == [1022, number]
            assert messages[1][1] == start + b"internal error, ZeroDivisionError: deliberate failure"
            # The next scan is served.
            assert ids(converse(server.address[1], [config_name("frames"), HEADER, frame(2), CLOSE])) == [1022]


def test_a_parents_error_comes_before_its_close_and_ours_after() -> None:
    with serving(parent=True) as server:
        peer = dial(server.address[1])
        peer.sock.sendall(text_message(2, b"fail") + HEADER + frame(1))
        assert peer.message()[0] == 1022
        assert peer.message()[0] == 8
        peer.sock.settimeout(0.4)
        with pytest.raises(TimeoutError):
            peer.message()
        peer.sock.sendall(frame(2) + CLOSE)
        peer.sock.settimeout(10)
        assert peer.message()[0] == 4
        with pytest.raises(EOFError):
            peer.message()
        peer.close()


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([frame()], "a Readout where a config"),
        ([HEADER], "a Header where a config"),
        ([CLOSE], "a Close where a config"),
        ([config_name("frames"), config_name("frames")], "a ConfigFile where the header"),
        ([config_name("frames"), HEADER, frame(1), HEADER], "a Header within a scan"),
        ([config_name("frames"), HEADER, frame(1), struct.pack("<H", 4711)], "message id 4711 is unknown"),
        ([config_name("frames"), HEADER, frame(1), struct.pack("<H", 1023)], "1023 (RECON_DATA) is not taken here"),
        ([config_name("frames"), HEADER, frame(1), struct.pack("<HI", 5, 2**32 - 1)], "bytes of text 4294967295"),
        ([config_name("frames"), HEADER, frame(1), struct.pack("<HQ4s", 8, 4, b"oops")], "the peer reports: oops"),
        ([struct.pack("<HQ4s", 8, 4, b"oops")], "the peer reports: oops"),
        ([config_name("frames"), HEADER, frame(1)[:-3]], "within a message"),
        ([config_name("frames"), HEADER, frame(1)], "without CLOSE"),
    ],
)
def test_bad_streams_are_answered_and_the_next_scan_is_served(parent: bool, parts: list[bytes], words: str) -> None:
    with serving(parent=parent) as server:
        peer = dial(server.address[1])
        peer.sock.sendall(b"".join(parts))
        peer.sock.shutdown(socket.SHUT_WR)
        messages = peer.until_close()
        peer.close()
        assert messages[-1][0] == (8 if parent else 5)
        assert words in messages[-1][1].decode()
        # What was finished before is there.
        assert ids(messages[:-1]) == [1022] * (frame(1) in parts)
        assert ids(converse(server.address[1], [config_name("frames"), HEADER, frame(2), CLOSE])) == [1022]


def test_queries_are_answered() -> None:
    query = struct.pack("<HQQQ4s", 6, 0, 99, 4, b"info")
    with serving() as server:
        parts = [query, config_name("frames"), query, HEADER, query, frame(), query, CLOSE]
        messages = converse(server.address[1], parts)
    answer = (7, struct.pack("<Q", 99))
    assert messages[:3] == [answer] * 3
    assert ids(messages[3:]) == [1022, 7]


def test_what_a_peer_writes_forges_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    forged = b"x\n2099-01-01 ERROR forged \x1b[31m" + b"A" * 100_000
    error = struct.pack("<HQ", 8, len(forged)) + forged
    with caplog.at_level("INFO"), serving() as server:
        for parts in (
            [HEADER, frame(), text_message(5, forged), CLOSE],
            [HEADER, text_message(5, forged), error],
            [error],
        ):
            converse(server.address[1], [config_name("frames"), *parts])
        until(lambda: caplog.text.count("the peer reports: x") == 2)
    said = [record.getMessage() for record in caplog.records if "forged" in record.getMessage()]
    assert len(said) == 4
    for line in said:
        assert r"x\n2099-01-01 ERROR forged \x1b[31mAAA" in line
        assert line.isprintable()
        assert len(line) < 700


def test_an_error_that_names_what_a_peer_sent_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def refusing(request: ScanRequest) -> Any:
        raise SettingsError(f"unknown setting {request.parameters}; known settings: frames.spokes.")

    with serving(opening=refusing) as server:
        parts = [config_name("x"), HEADER, text_message(5, b'{"a\nforged": 1}' + b" " * 100_000 + b"."), CLOSE]
        messages = converse(server.address[1], parts)
    # The peer gets its own words whole.
    assert messages[0][1].endswith(b" .; known settings: frames.spokes.")
    (line,) = [record.getMessage() for record in caplog.records if "forged" in record.getMessage()]
    assert r'unknown setting {"a\nforged": 1}' in line
    assert line.isprintable()
    assert len(line) < 4100


def test_a_silent_peer_is_told_and_given_up() -> None:
    with serving(patience=QUICK) as server:
        for parts in ([], [config_name("frames")], [config_name("frames"), HEADER, frame(1)]):
            peer = dial(server.address[1])
            peer.sock.sendall(b"".join(parts))
            messages = peer.until_close()
            if HEADER in parts:
                assert b"ERR the peer was silent for 0.5 s" in messages[-1][1]
            else:
                assert b"ERR config and header did not come within 0.5 s" in messages[-1][1]
            peer.close()


@pytest.mark.parametrize("begun", [False, True], ids=["no header", "refused"])
def test_a_peer_that_drips_is_given_up(begun: bool) -> None:
    """A byte now and then is no silence, but holds a place among the connections."""
    with serving(patience=replace(USUAL, handshake_s=0.5, drain_s=0.5), scans=1) as server:
        scanning, dripping = dial(server.address[1]), dial(server.address[1])
        scanning.sock.sendall(config_name("frames") + HEADER)
        until(lambda: server._scanning)
        if begun:
            dripping.sock.sendall(config_name("frames") + HEADER)
        for byte in readout_message(coils=1, samples=512) if begun else config_name("frames"):
            with contextlib.suppress(OSError):
                dripping.sock.sendall(bytes([byte]))
            time.sleep(0.05)
            if open_connections(server) == 1:
                break
        assert open_connections(server) == 1
        words = b"ERR 1 scans are under way" if begun else b"ERR config and header did not come within 0.5 s"
        assert words in dripping.message()[1]
        dripping.close()
        # Within a scan nobody is hurried.
        scanning.sock.sendall(frame(1) + CLOSE)
        assert ids(scanning.until_close()) == [1022]
        scanning.close()


def test_without_a_scan_no_large_message_is_taken() -> None:
    """Images may be a GiB each, and more connections than scans are open."""
    head = readout_message(coils=1024, samples=65_535)[:350]
    with serving(scans=1) as server:
        scanning = dial(server.address[1])
        scanning.sock.sendall(config_name("frames") + HEADER)
        until(lambda: server._scanning)
        for parts in ([], [config_name("frames")], [config_name("frames"), HEADER]):
            peer = dial(server.address[1])
            peer.sock.sendall(b"".join(parts) + head)
            messages = peer.until_close()
            if HEADER in parts:
                assert b"ERR 1 scans are under way" in messages[0][1]
            else:
                assert b"there is no scan yet: send config, header, data, CLOSE" in messages[0][1]
            peer.close()
        scanning.sock.sendall(CLOSE)
        scanning.close()


def test_a_killed_peer_and_a_port_scan_leave_the_server_alive() -> None:
    with serving() as server:
        for parts in ([], [config_name("frames"), HEADER, frame(1)]):
            peer = dial(server.address[1])
            peer.sock.sendall(b"".join(parts))
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        assert ids(converse(server.address[1], [config_name("frames"), HEADER, frame(2), CLOSE])) == [1022]


def test_a_peer_that_takes_nothing_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    big = readout_message(coils=64, samples=65535, flags=LAST)
    # Neither can it be drained.
    with serving(patience=replace(USUAL, send_s=0.5, drain_s=0.5)) as server:
        peer = dial(server.address[1])
        peer.sock.sendall(config_name("frames") + HEADER + big)
        until(lambda: "took nothing for" in caplog.text)
        assert "the peer took nothing for 0.5 s" in caplog.text
        # A second message into the torn one would be read as pixels.
        with pytest.raises((EOFError, ConnectionResetError)):
            peer.message()
        peer.close()
        assert ids(converse(server.address[1], [config_name("frames"), HEADER, frame(2), CLOSE])) == [1022]


def test_a_slow_sender_is_waited_for() -> None:
    raw = config_name("frames") + HEADER + frame(1) + CLOSE
    with serving() as server:
        peer = dial(server.address[1])
        for at in range(0, len(raw), 97):
            peer.sock.sendall(raw[at : at + 97])
            time.sleep(0.01)
        assert ids(peer.until_close()) == [1022]
        peer.close()


def test_two_clients_at_once_do_not_meet() -> None:
    with serving() as server:
        first, second = dial(server.address[1]), dial(server.address[1])
        for peer, counter in ((first, 1), (second, 2)):
            peer.sock.sendall(config_name("frames") + HEADER + frame(counter))
        for peer, counter in ((second, 2), (first, 1)):
            assert f"<value>{counter}</value>".encode() in peer.message()[1]
            peer.sock.sendall(CLOSE)
            assert peer.until_close() == []
            peer.close()


def test_one_scan_too_many_is_refused() -> None:
    with serving(scans=1) as server:
        first = dial(server.address[1])
        first.sock.sendall(config_name("frames") + HEADER + frame(1))
        assert first.message()[0] == 1022
        messages = converse(server.address[1], [config_name("frames"), HEADER, frame(2), CLOSE])
        assert ids(messages) == [5]
        assert b"ERR 1 scans are under way, which is the bound" in messages[0][1]
        first.sock.sendall(CLOSE)
        assert first.until_close() == []
        first.close()
        assert ids(converse(server.address[1], [config_name("frames"), HEADER, frame(2), CLOSE])) == [1022]


def test_a_scan_may_begin_when_the_last_one_is_told_to_be_over() -> None:
    with serving(scans=1) as server:
        for parts in (["fail", frame(1)], ["frames", frame(1), CLOSE]):
            ended = dial(server.address[1])
            ended.sock.sendall(config_name(parts[0]) + HEADER + b"".join(parts[1:]))
            ended.until_close()
            # Its connection is still open.
            assert ids(converse(server.address[1], [config_name("frames"), HEADER, frame(2), CLOSE])) == [1022]
            ended.close()


def test_connections_that_say_nothing_take_no_scans_place() -> None:
    with serving(scans=1) as server:
        silent = [dial(server.address[1]) for _ in range(4)]
        silent[0].sock.sendall(config_name("frames"))
        assert ids(converse(server.address[1], [config_name("frames"), HEADER, frame(1), CLOSE])) == [1022]
        until(lambda: open_connections(server) == 4)
        # They have a bound of their own, and whoever is beyond it is told.
        silent += [dial(server.address[1]) for _ in range(29)]
        one_more = dial(server.address[1])
        assert b"ERR 33 connections are open, which is the bound" in one_more.until_close()[0][1]
        for peer in (*silent, one_more):
            peer.close()
        until(lambda: not open_connections(server))
        assert ids(converse(server.address[1], [config_name("frames"), HEADER, frame(2), CLOSE])) == [1022]


def test_a_scan_has_its_place_from_the_header_on() -> None:
    with serving(scans=1) as server:
        first = dial(server.address[1])
        first.sock.sendall(config_name("frames") + HEADER)
        until(lambda: server._scanning)
        second = dial(server.address[1])
        second.sock.sendall(config_name("frames") + HEADER)
        # It is refused before its first readout.
        assert b"ERR 1 scans are under way" in second.until_close()[0][1]
        second.close()
        first.sock.sendall(frame(1) + CLOSE)
        assert ids(first.until_close()) == [1022]
        first.close()


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_a_health_check_is_no_failed_scan(caplog: pytest.LogCaptureFixture, parent: bool, reset: bool) -> None:
    with caplog.at_level("DEBUG"), serving(parent=parent) as server:
        peer = dial(server.address[1])
        if reset:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        until(lambda: "the peer connected and left" in caplog.text)
    assert [record.message for record in caplog.records if record.levelname != "DEBUG"] == []


@pytest.mark.parametrize("parent", [False, True])
def test_stopping_delivers_what_is_finished(parent: bool) -> None:
    # Neither peer says CLOSE.
    with serving(parent=parent, patience=replace(USUAL, drain_s=0.5)) as server:
        scanning, opening = dial(server.address[1]), dial(server.address[1])
        scanning.sock.sendall(config_name("frames") + HEADER + frame(1))
        opening.sock.sendall(config_name("frames"))
        messages = [scanning.message()]
        until(lambda: open_connections(server) == 2)
        server.stop()
        messages += scanning.until_close()
        assert ids(messages) == [1022, 8 if parent else 5]
        assert b"stopped before the end of the scan" in messages[1][1]
        assert b"we were stopped" in opening.until_close()[0][1]
        scanning.close()
        opening.close()


def test_what_a_pipeline_says_of_a_stopped_scan_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """It would blame the peer for a scan that we have cut short."""
    with serving() as server:
        peer = dial(server.address[1])
        peer.sock.sendall(config_name("exact") + HEADER + frame(1))
        until(lambda: REQUESTS)
        server.stop()
        messages = peer.until_close()
        assert [text[:36] for _, text in messages] == [b"ERR stopped before the end of the scan"[:36]]
        peer.close()
    assert "images: acquire three" in caplog.text


@pytest.mark.parametrize("parent", [False, True])
def test_stopping_in_the_middle_of_a_scan_loses_nothing_that_was_sent(parent: bool) -> None:
    with serving(parent=parent) as server:
        peer = dial(server.address[1])
        peer.sock.sendall(config_name("frames") + HEADER)
        ended = threading.Event()

        def scan() -> None:
            counter = 0
            while not ended.is_set():
                counter += 1
                try:
                    peer.sock.sendall(frame(counter))
                except OSError:
                    return
                time.sleep(1e-3)

        thread = threading.Thread(target=scan)
        thread.start()
        messages = [peer.message() for _ in range(10)]
        server.stop()
        messages += peer.until_close() if not parent else [peer.message()]
        while messages[-1][0] == 1022:
            messages.append(peer.message())
        # The scanner goes on for a while, and must not be cut off before it has read what we say.
        time.sleep(0.3)
        ended.set()
        thread.join()
        assert messages[-1][0] == (8 if parent else 5)
        assert b"stopped before the end of the scan" in messages[-1][1]
        assert ids(messages[:-1]) == [1022] * (len(messages) - 1)
        assert len(messages) > 10
        peer.sock.sendall(CLOSE)
        if parent:
            assert peer.until_close() == []
        peer.close()


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("terminated", [False, True])
def test_a_scan_that_does_not_stop_is_told_and_left_behind(
    caplog: pytest.LogCaptureFixture, parent: bool, terminated: bool
) -> None:
    begun, release = threading.Event(), threading.Event()

    def stubborn(_: ScanRequest) -> Any:
        def process(items: Iterator[Any]) -> Iterator[Any]:
            begun.set()
            release.wait(60)
            yield from items

        return process

    server = Server(stubborn, port=0, patience=USUAL, parent=parent)
    left: list[int] = []
    thread = threading.Thread(target=lambda: left.append(server.run(grace_s=0.3)))
    thread.start()
    peer = dial(server.address[1])
    header = text_message(3, HEADER[6:] + b"\0") if terminated else HEADER
    peer.sock.sendall(config_name("frames") + header + frame(1))
    assert begun.wait(20)
    server.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert left == [1]
    assert "did not end within 0.3 s" in caplog.text
    words = b"the server was stopped and a frame took more than 0.3 s: the images finished so far were sent."
    if parent:
        assert peer.message() == (8, words)
        with pytest.raises(EOFError):
            peer.message()
    else:
        assert peer.until_close() == [(5, b"ERR " + words + (b"\0" if terminated else b""))]
    release.set()
    peer.close()


def test_errors_of_the_pipeline_reach_the_client_word_by_word() -> None:
    def refusing(request: ScanRequest) -> Any:
        raise SettingsError(f"unknown pipeline {request.config!r}; known pipelines: µ.")

    with serving(opening=refusing) as server:
        messages = converse(server.address[1], [config_name("none"), HEADER, frame(), CLOSE])
    assert messages == [(5, "ERR unknown pipeline 'none'; known pipelines: µ.".encode())]


def test_a_pipeline_that_ends_early_still_reads_to_the_close() -> None:
    def first_only(_: ScanRequest) -> Any:
        def process(items: Iterator[Any]) -> Iterator[Any]:
            yield next(last_readouts(items))

        return process

    with serving(opening=first_only) as server:
        parts = [config_name("x"), HEADER, *(frame(n) for n in range(50)), CLOSE]
        assert ids(converse(server.address[1], parts)) == [1022]
        assert ids(converse(server.address[1], [config_name("x"), HEADER, CLOSE])) == [5]


def test_the_address_must_be_ours() -> None:
    with serving() as server:
        assert server.address[0] == "127.0.0.1"
        with pytest.raises(WireError, match=r"cannot listen on 127.0.0.1:\d+ .* choose another"):
            Server(last_readouts, port=server.address[1])  # type: ignore[arg-type]
    with pytest.raises(WireError, match="port 99999: it lies between 0 and 65535"):
        Server(last_readouts, port=99999)  # type: ignore[arg-type]


def test_a_server_listens_on_ipv6_where_there_is_one() -> None:
    try:
        server = Server(last_readouts, host="::1", port=0)  # type: ignore[arg-type]
    except WireError:
        pytest.skip("no IPv6 loopback here")
    assert server.address[0] == "::1"
    server.stop()
    server.run()


def test_who_listens_on_every_address_takes_ipv4_too() -> None:
    try:
        server = Server(open_scan, host="::", port=0)
    except WireError:
        pytest.skip("no IPv6 here")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        messages = converse(server.address[1], [config_name("frames"), HEADER, frame(1), CLOSE])
    finally:
        server.stop()
        thread.join(30)
    assert ids(messages) == [1022]


def test_a_client_that_is_gone_before_it_is_accepted_is_no_matter(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as server:
        # It has the real listener open before another takes its place.
        converse(server.address[1], [config_name("frames"), HEADER, CLOSE])
        real = server._listener.accept
        failures = [OSError("too many open files")]

        class Listener:
            def __getattr__(self, name: str) -> Any:
                return getattr(listener, name)

            def accept(self) -> Any:
                if failures:
                    raise failures.pop()
                return real()

        listener, server._listener = server._listener, Listener()  # type: ignore[assignment]
        assert ids(converse(server.address[1], [config_name("frames"), HEADER, frame(2), CLOSE])) == [1022]
        # The server may have waited at the real listener still, and meets the failing one only afterwards.
        until(lambda: "could not be taken" in caplog.text)
        server._listener = listener
    assert "a connection could not be taken: too many open files" in caplog.text


def test_peer_reads_strictly() -> None:
    one, other = socket.socketpair()
    one.sendall(struct.pack("<H", 12))
    with pytest.raises(ValueError, match="unknown id 12"):
        Peer(other).message()
    one.close()
    other.close()
