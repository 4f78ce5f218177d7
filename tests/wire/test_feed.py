import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import zmq

from mrd_peers import free_port
from sinotherm.errors import PeerError, PeerGoneError, ProtocolError, SettingsError, WireError
from sinotherm.wire import feed
from sinotherm.wire.feed import (
    SCHEMA,
    CommandClient,
    CommandServer,
    Publisher,
    Subscriber,
    is_loopback,
    plain,
    shared_publisher,
)


@pytest.fixture
def endpoint() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


def until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://127.0.0.1:5560", True),
        ("tcp://127.3.2.1:5560", True),
        ("tcp://localhost:5560", True),
        ("tcp://[::1]:5560", True),
        ("ipc:///tmp/feed", True),
        ("inproc://feed", True),
        ("tcp://0.0.0.0:5560", False),
        ("tcp://*:5560", False),
        ("tcp://192.168.0.7:5560", False),
        ("nonsense", False),
    ],
)
def test_loopback(endpoint: str, expected: bool) -> None:
    assert is_loopback(endpoint) is expected


def test_values_become_plain() -> None:
    value = {"a": np.float32(0.5), 2: (np.int64(3), float("nan"), [np.bool_(True)]), "c": None, "d": "°C"}
    assert plain(value) == {"a": 0.5, "2": [3, None, [True]], "c": None, "d": "°C"}


def test_messages_are_topic_header_and_array(endpoint: str) -> None:
    with Publisher(endpoint) as publisher, Subscriber(endpoint, topics=("image", "statistics")) as subscriber:
        until(lambda: publisher.topics == 2)
        image = np.arange(6, dtype=np.complex64).reshape(2, 3)
        publisher.publish("image", {"number": 4, "latency_ms": float("nan")}, image.T)
        message = subscriber.receive(within_s=5)
        assert message is not None
        assert message.topic == "image"
        expected = {
            "number": 4,
            "latency_ms": None,
            "schema": SCHEMA,
            "topic": "image",
            "dtype": "<c8",
            "shape": [3, 2],
        }
        assert message.header == expected
        assert message.array is not None
        np.testing.assert_array_equal(message.array, image.T)
        publisher.publish("statistics", {"alarms": ("hot",)})
        message = subscriber.receive(within_s=5)
        assert message is not None
        assert message.array is None
        assert message.header["alarms"] == ["hot"]
        assert subscriber.receive(within_s=0.01) is None


def test_nothing_is_done_for_nobody(endpoint: str) -> None:
    with Publisher(endpoint) as publisher:
        publisher.publish("image", {"unserialisable": object()}, np.zeros(3))
        assert not publisher._waiting


def _ready(**properties: bytes) -> bytes:
    """Return the command with which a ZMTP 3.0 peer says what it is."""
    body = b"\x05READY"
    for name, value in properties.items():
        name_bytes = name.replace("_", "-").encode()
        body += bytes([len(name_bytes)]) + name_bytes + len(value).to_bytes(4, "big") + value
    return bytes([4, len(body)]) + body


def dial(endpoint: str) -> socket.socket:
    """Return a connection on which ZeroMQ takes messages of a subscriber."""
    peer = socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])))
    peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    peer.sendall(_ready(Socket_Type=b"SUB"))
    peer.settimeout(10)
    answer = b""
    while b"READY" not in answer:
        answer += peer.recv(1024)
    return peer


def small(message: bytes) -> bytes:
    """Return a message as a frame."""
    return bytes([0, len(message)]) + message


def test_a_message_of_one_peer_takes_nothing_from_the_others(endpoint: str) -> None:
    """ZeroMQ's own sockets do not take back what others asked for; other implementations of its protocol may."""
    with (
        Publisher(endpoint) as publisher,
        Subscriber(endpoint, topics=("alarm", "image")) as subscriber,
        dial(endpoint) as peer,
    ):
        until(lambda: publisher.topics == 2)
        for message in (b"\x05image", b"", b"image", b"\x00image", b"\x00alarm", b"\x01done"):
            peer.sendall(small(message))
        until(lambda: publisher.topics == 3)
        publisher.publish("image", {}, np.zeros(3))
        publisher.publish("alarm", {"alarms": ("hot",)})
        got = [subscriber.receive(within_s=5) for _ in range(2)]
    assert [message and message.topic for message in got] == ["image", "alarm"]


def test_who_subscribes_without_end_silences_nobody(endpoint: str) -> None:
    with Subscriber(endpoint, topics=("alarm",)) as subscriber, Publisher(endpoint) as publisher:
        until(lambda: publisher.topics == 1)
        with dial(endpoint) as peer:
            ended = threading.Event()

            def flood() -> None:
                block = (small(b"\x01x") + small(b"\x00x")) * 20_000
                with contextlib.suppress(OSError):
                    while not ended.is_set():
                        peer.sendall(block)

            thread = threading.Thread(target=flood)
            thread.start()
            time.sleep(0.5)
            for number in range(5):
                publisher.publish("alarm", {"number": number})
                message = subscriber.receive(within_s=5)
                assert message is not None
                assert message.header["number"] == number
            start = time.monotonic()
            publisher.close()
            ended.set()
            assert time.monotonic() - start < 2.0
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_a_process_that_ends_has_sent_what_it_published(endpoint: str) -> None:
    """Arrays are sent from their own memory: it must not be gone while they are under way."""
    program = f"""
import numpy as np, time
from sinotherm.wire.feed import shared_publisher
publisher = shared_publisher({endpoint!r})
while not publisher.topics:
    time.sleep(0.01)
for number in range(8):
    publisher.publish(f"image{{number}}", {{}}, np.full((512, 512), number, np.float32))
publisher.publish("end", {{}})
"""
    with Subscriber(endpoint) as subscriber:
        process = subprocess.Popen([sys.executable, "-c", program])
        found = []
        while len(found) < 9 and (message := subscriber.receive(within_s=30.0)) is not None:
            found.append(message)
        assert process.wait(30.0) == 0
    assert [message.topic for message in found] == [*(f"image{number}" for number in range(8)), "end"]
    assert all(message.array is not None and (message.array == k).all() for k, message in enumerate(found[:8]))


def test_a_library_that_does_not_count_topics_sends_all(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "TOPICS_COUNT", 9999)
    with Subscriber(endpoint, topics=("image",)) as subscriber, Publisher(endpoint) as publisher:
        until(lambda: publisher.topics == 1)
        found = None
        while found is None:
            publisher.publish("image", {}, np.zeros(3, np.float32))
            found = subscriber.receive(within_s=0.2)
    assert found.array is not None


def test_many_topics_cost_the_chain_nothing(endpoint: str) -> None:
    with Publisher(endpoint) as publisher, dial(endpoint) as peer:
        peer.sendall(b"".join(small(b"\x01topic %d" % number) for number in range(20_000)))
        until(lambda: publisher.topics == 20_000)
        start = time.monotonic()
        for _ in range(100):
            publisher.publish("image", {}, np.zeros(3))
        assert time.monotonic() - start < 0.5


def test_a_subscriber_that_says_too_much_is_cut_off_before_memory_is_taken(endpoint: str) -> None:
    with Publisher(endpoint), dial(endpoint) as peer:
        peer.sendall(b"\x02" + (400 << 20).to_bytes(8, "big") + b"\x01")
        assert peer.recv(1) == b""


def test_a_feed_that_hangs_is_not_waited_for(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_FAREWELL_S", 0.1)
    hanging = threading.Event()
    monkeypatch.setattr(Publisher, "_send", lambda *_: hanging.wait(20))
    publisher = Publisher(endpoint)
    publisher.publish("alarm", {})
    start = time.monotonic()
    publisher.close()
    assert time.monotonic() - start < 5.0
    hanging.set()
    publisher._thread.join(10)


def test_the_newest_wins_and_the_chain_never_waits(endpoint: str) -> None:
    with Publisher(endpoint) as publisher, Subscriber(endpoint) as subscriber:
        until(lambda: publisher.topics)
        big = np.zeros(1 << 22, np.uint8)
        for number in range(200):
            publisher.publish("image", {"number": number}, big)
        numbers = []
        while (message := subscriber.receive(within_s=0.5)) is not None:
            numbers.append(message.header["number"])
        assert numbers == sorted(numbers)
        assert numbers[-1] == 199
        assert len(numbers) + publisher.replaced <= 200
        assert publisher.replaced > 0


def test_what_waits_is_sent_before_closing(endpoint: str) -> None:
    with Subscriber(endpoint):
        publisher = Publisher(endpoint)
        until(lambda: publisher.topics)
        publisher.publish("x", {})
        publisher.close()
        assert publisher._sock.closed


def test_scans_of_a_process_share_a_feed(endpoint: str) -> None:
    assert shared_publisher(endpoint) is shared_publisher(endpoint)
    with pytest.raises(WireError, match="cannot listen on"):
        Publisher(endpoint)
    shared_publisher(endpoint).close()


def test_a_feed_for_everybody_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with Publisher(f"tcp://0.0.0.0:{free_port()}"):
        pass
    assert "can be read by everybody" in caplog.text


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([b"image"], "of 1 parts"),
        ([b"image", b"{" + b" " * (1 << 20) + b"}", b""], "of 3 parts"),
        ([b"image", b"{", b""], "not a JSON object"),
        ([b"image", b"[]", b""], "not a JSON object"),
        ([b"image", b'{"schema": 99}', b""], "schema 99: this program reads 1"),
        ([b"image", b'{"schema": 1, "dtype": "<f4", "shape": [3]}', b"12345678"], "does not fit its header"),
        ([b"image", b'{"schema": 1, "dtype": "nonsense", "shape": [3]}', b"1234"], "does not fit its header"),
    ],
)
def test_what_is_no_feed_message_is_refused(endpoint: str, parts: list[bytes], match: str) -> None:
    with Subscriber(endpoint) as subscriber, zmq.Context.instance().socket(zmq.XPUB) as sock:
        sock.linger = 0
        sock.bind(endpoint)
        assert sock.recv() == b"\x01"
        sock.send_multipart(parts)
        with pytest.raises(ProtocolError, match=match):
            subscriber.receive(within_s=5)


def test_endpoints_are_checked() -> None:
    with pytest.raises(SettingsError, match="write tcp://HOST:PORT"):
        Subscriber("nonsense")


@pytest.fixture
def commands(endpoint: str) -> Iterator[list[tuple[str, Mapping[str, Any]]]]:
    """Answer commands as a scan does between its frames."""
    taken: list[tuple[str, Mapping[str, Any]]] = []
    ended = threading.Event()

    def handle(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
        taken.append((name, arguments))
        if name == "refuse":
            raise SettingsError("body temperature 90: at most 45 degC.")
        return None if name == "mark" else {"echo": arguments, "sigma": np.float32(0.5)}

    def scan() -> None:
        with CommandServer(endpoint, key="secret") as server:
            while not ended.is_set():
                server.poll(handle)
                time.sleep(0.005)

    thread = threading.Thread(target=scan)
    thread.start()
    yield taken
    ended.set()
    thread.join()


def test_commands_are_answered(endpoint: str, commands: list[Any]) -> None:
    with CommandClient(endpoint, key="secret") as client:
        assert client.request("set", body=np.float64(37.0)) == {"echo": {"body": 37.0}, "sigma": 0.5}
        assert client.request("mark") == {}
        with pytest.raises(PeerError, match="refuse was refused: body temperature 90: at most 45"):
            client.request("refuse")
    assert commands == [("set", {"body": 37.0}), ("mark", {}), ("refuse", {})]


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object of schema 1"),
        (b"[" * 50_000, "not JSON"),
        (b'{"schema": 1, "command": "mark", "key": "\\ud800"}', "not JSON"),
        (b'{"schema": 2}', "not a JSON object of schema 1"),
        (b'{"schema": 1, "command": "set", "key": "wrong"}', "the key is wrong"),
        (b'{"schema": 1, "command": 3, "key": "secret"}', "a command has a name"),
        (b'{"schema": 1, "command": "a", "arguments": [], "key": "secret"}', "a command has a name"),
        (
            b'{"schema": 1, "command": "a", "key": "secret", "arguments": {"text": ' + b"[" * 900 + b"]" * 900 + b"}}",
            "on more than 8 levels",
        ),
    ],
)
def test_bad_commands_are_refused(endpoint: str, commands: list[Any], raw: bytes, match: str) -> None:
    with zmq.Context.instance().socket(zmq.REQ) as sock:
        sock.linger = 0
        sock.connect(endpoint)
        sock.send(raw)
        assert sock.poll(5000)
        answer = json.loads(sock.recv())
    assert answer["ok"] is False
    assert match in answer["error"]


def test_a_command_in_parts_is_refused(endpoint: str, commands: list[Any]) -> None:
    with zmq.Context.instance().socket(zmq.REQ) as sock:
        sock.linger = 0
        sock.connect(endpoint)
        sock.send_multipart([b'{"schema": 1,', b'"command": "x", "key": "secret"}'])
        assert sock.poll(5000)
        assert "has 2 message parts: send it as one" in json.loads(sock.recv())["error"]
    with CommandClient(endpoint, key="secret") as client:
        assert client.request("mark") == {}
    assert commands == [("mark", {})]


def test_a_command_of_many_parts_does_not_keep_the_chain_from_its_frames(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read a few at a time, and neither kept nor understood."""
    monkeypatch.setattr(feed, "_ANSWER_S", 0.0)
    monkeypatch.setattr(CommandServer, "_result", lambda *_: pytest.fail("it was read"))
    with CommandServer(endpoint) as server, zmq.Context.instance().socket(zmq.REQ) as sock:
        sock.linger = 0
        sock.connect(endpoint)
        sock.send_multipart([b"[", *[b"0," * 20_000] * 50, b"0]"])
        until(lambda: server._sock.poll(0))
        assert [server.poll(lambda *_: None) for _ in range(52)] == [0] * 51 + [1]
        assert sock.poll(5000)
        assert "has 52 message parts" in json.loads(sock.recv())["error"]


def test_a_flood_of_requests_does_not_keep_the_chain_from_its_frames(endpoint: str) -> None:
    with CommandServer(endpoint) as server, zmq.Context.instance().socket(zmq.DEALER) as flood:
        flood.linger = 0
        flood.connect(endpoint)
        for _ in range(20):
            flood.send_multipart([b"", b'{"schema": 1, "command": "status"}'])
        until(lambda: server._sock.poll(0))
        polls = [server.poll(lambda *_: time.sleep(0.02)) for _ in range(20)]
        assert polls == [1] * 20
        assert server.poll(lambda *_: None) == 0


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), [1.0, np.float64("nan")]])
def test_a_number_that_json_cannot_say_is_not_sent_as_none(endpoint: str, commands: list[Any], value: Any) -> None:
    """To the alarms none at all means off."""
    with CommandClient(endpoint, key="secret") as client, pytest.raises(SettingsError, match="not finite"):
        client.request("thresholds", temperature_degc=value)
    assert commands == []


def test_a_scan_that_is_not_there_does_not_answer(endpoint: str) -> None:
    with CommandClient(endpoint, within_s=0.1) as client:
        for _ in range(2):
            with pytest.raises(PeerGoneError, match=r"no answer from .* within 0.1 s"):
                client.request("set")


def test_others_need_a_key() -> None:
    with pytest.raises(SettingsError, match="give a key"):
        CommandServer("tcp://0.0.0.0:5561")
    with CommandServer(f"tcp://0.0.0.0:{free_port()}", key="secret"):
        pass
