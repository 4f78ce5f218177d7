import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from mrd_handlers import serving
from mrd_peers import CLOSE, Peer, recorded, split, text_message
from sinotherm.errors import HeaderError, PeerError, PeerGoneError, SettingsError, WireError
from sinotherm.wire.client import connect, paced, stream
from sinotherm.wire.connection import Connection
from sinotherm.wire.file import ImageWriter, MrdFile, read_images
from sinotherm.wire.messages import Readout

XML = b"<ismrmrdHeader/>"


def readout(stamp: int = 0, *, last: bool = False) -> Readout:
    header = ismrmrd.AcquisitionHeader()
    header.number_of_samples, header.active_channels, header.acquisition_time_stamp = 4, 1, stamp
    if last:
        header.setFlag(ismrmrd.ACQ_LAST_IN_REPETITION)
    return Readout(header=header, data=np.ones((1, 4), np.complex64), trajectory=np.empty((4, 0), np.float32))


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("sinotherm.wire.client.monotonic", lambda: self.now)
        monkeypatch.setattr("sinotherm.wire.client.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.mark.parametrize("speed", [1.0, 4.0])
def test_the_scanners_pace_is_that_of_the_time_stamps(monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    clock = Clock(monkeypatch)
    waveform = ismrmrd.Waveform.from_array(np.zeros((1, 1), np.uint32))
    items = [readout(0), readout(400), waveform, readout(402), readout(402), readout(10), readout(804)]
    due = []
    for item in paced(items, speed):
        due.append(clock.now - 1000.0)
        clock.now += 1e-4 if isinstance(item, Readout) else 0.0
    expected = np.array([0, 0, 0, 2, 2, 2, 404]) * 2.5e-3 / speed
    np.testing.assert_allclose(due, expected, atol=5e-4)


def test_without_time_stamps_the_repetition_time_paces(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    due = []
    for _ in paced([readout(7)] * 4, 2.0, stamped=False, repetition_time_s=0.03):
        due.append(clock.now - 1000.0)  # noqa: PERF401
    np.testing.assert_allclose(due, [0.0, 0.015, 0.03, 0.045])


def test_a_pace_needs_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    with pytest.raises(HeaderError, match="give --tr"):
        paced([readout()], 1.0, stamped=False)
    for speed in (0.0, -1.0, math.nan):
        with pytest.raises(SettingsError, match="it must be above 0"):
            paced([readout()], speed)
    assert len(list(paced([readout()] * 3, math.inf))) == 3


def test_images_are_stored_and_counted(tmp_path: Path) -> None:
    sent: list[Any] = []
    items = [readout(n, last=n % 2 == 1) for n in range(6)]
    with serving() as server, ImageWriter(tmp_path / "a.h5") as writer:
        connection = connect(*server.address)
        received = stream(connection, "talk", XML, items, writer.append, sent=sent.append)
    assert received.images == {1: 3}
    assert received.texts == ["WRN too hot"]
    assert sent == items
    assert read_images(tmp_path / "a.h5")[1].data.shape == (3, 1, 1, 1, 4)


def test_a_pipeline_may_be_a_document() -> None:
    with serving() as server:
        received = stream(connect(*server.address), "  <configuration/>", XML, [readout(last=True)], lambda _: None)
    assert received.images == {1: 1}


@pytest.mark.data
def test_a_recorded_scan_comes_back(shared_data: Path, tmp_path: Path) -> None:
    with MrdFile(shared_data / "wire" / "tiny_radial.h5") as file, serving() as server:
        received = stream(connect(*server.address), "frames", file.header_xml, file.items(), lambda _: None)
    assert received.images == {1: 2}


def test_a_servers_failure_is_an_error_and_the_images_before_it_are_kept(tmp_path: Path) -> None:
    items = (readout(n, last=True) for n in range(100_000))
    with serving() as server, ImageWriter(tmp_path / "a.h5") as writer:
        with pytest.raises(PeerError, match="the server reports: internal error, ZeroDivisionError"):
            stream(connect(*server.address), "fail", XML, items, writer.append)
        # The client stopped sending.
        assert next(items).header.acquisition_time_stamp < 99_999
    assert len(read_images(tmp_path / "a.h5")[1].headers) == 1


class Scripted:
    """A server that sends the given bytes once the client has sent something, then closes."""

    def __init__(self, answer: bytes, *, reads: int = 1) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._run, args=(answer, reads))
        self.thread.start()

    def _run(self, answer: bytes, reads: int) -> None:
        with self.listener, self.listener.accept()[0] as sock:
            peer = Peer(sock)
            for _ in range(reads):
                peer.message()
            sock.sendall(answer)
            if answer.endswith(CLOSE):
                peer.until_close()


@pytest.fixture
def scripted() -> Iterator[Any]:
    servers: list[Scripted] = []

    def make(answer: bytes, **options: int) -> Scripted:
        servers.append(Scripted(answer, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.thread.join(10)


@pytest.mark.data
def test_gadgetrons_own_report_of_a_failure_is_understood(scripted: Any, shared_data: Path) -> None:
    answer = recorded(shared_data, "error_server_to_client.bin")
    assert [number for number, _ in split(answer)] == [1022, 5, 4]
    images: list[Any] = []
    connection = connect("127.0.0.1", scripted(answer).port)
    with pytest.raises(PeerError, match="ERROR: Errors received: \nsinotherm test: deliberate failure"):
        stream(connection, "x", XML, [readout()], images.append)
    assert len(images) == 1


@pytest.mark.data
def test_fires_and_gadgetrons_images_are_taken(scripted: Any, shared_data: Path) -> None:
    for name, series in (("fire_server_to_client.bin", {0: 2}), ("server_to_client.bin", {0: 2, 1: 1})):
        connection = connect("127.0.0.1", scripted(recorded(shared_data, name)).port)
        images: list[Any] = []
        received = stream(connection, "x", XML, [readout()], images.append)
        assert sum(received.images.values()) == sum(series.values()) == len(images)


def test_a_server_that_vanishes_is_an_error(scripted: Any) -> None:
    for answer in (b"", text_message(5, b"DBG hello")):
        connection = connect("127.0.0.1", scripted(answer, reads=2).port)
        with pytest.raises(PeerGoneError):
            stream(connection, "x", XML, (readout() for _ in range(100_000)), lambda _: None)


def test_a_server_that_ends_without_close_is_an_error(scripted: Any) -> None:
    connection = connect("127.0.0.1", scripted(b"", reads=4).port)
    with pytest.raises(PeerGoneError, match="without CLOSE"):
        stream(connection, "x", XML, [readout()], lambda _: None)


def test_what_is_not_an_image_is_not_stored(scripted: Any, caplog: pytest.LogCaptureFixture) -> None:
    waveform = ismrmrd.Waveform.from_array(np.zeros((1, 1), np.uint32))
    answer = b"\x02\x04" + waveform.to_bytes() + CLOSE
    with caplog.at_level("INFO"):
        received = stream(connect("127.0.0.1", scripted(answer).port), "x", XML, [readout()], lambda _: None)
    assert received.images == {}
    assert "the server sent a Waveform" in caplog.text


def test_a_server_that_closes_early_is_taken_at_its_word(scripted: Any) -> None:
    connection = connect("127.0.0.1", scripted(CLOSE).port)

    def slowly() -> Iterator[Readout]:
        for _ in range(1000):
            time.sleep(0.01)
            yield readout()

    start = time.monotonic()
    assert stream(connection, "x", XML, slowly(), lambda _: None).images == {}
    assert time.monotonic() - start < 8


def test_a_failure_of_our_own_ends_the_connection() -> None:
    def broken() -> Iterator[Readout]:
        yield readout()
        raise HeaderError("from the file")

    with serving() as server, pytest.raises(HeaderError, match="from the file"):
        stream(connect(*server.address), "frames", XML, broken(), lambda _: None)


def test_a_server_may_still_be_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    waits: list[float] = []
    monkeypatch.setattr("sinotherm.wire.client.sleep", waits.append)
    with pytest.raises(WireError, match=rf"no server at .*:{port} after 3 tries .*sinotherm serve --port {port}"):
        connect("127.0.0.1", port, tries=3)
    assert waits == [1.0, 1.0]

    def start(_: float) -> None:
        waits.append(9.0)
        listeners.append(socket.create_server(("127.0.0.1", port)))

    listeners: list[socket.socket] = []
    monkeypatch.setattr("sinotherm.wire.client.sleep", start)
    connection = connect("127.0.0.1", port)
    assert isinstance(connection, Connection)
    connection.stop()
    connection.close()
    listeners[0].close()
    with pytest.raises(SettingsError, match="at least one"):
        connect("127.0.0.1", port, tries=0)
