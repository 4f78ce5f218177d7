"""Ingest of readouts from a socket and from a file, against the loopback's floor and the PyPI packages."""

import socket
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, Final

from sinotherm.bench.scan import bench_scan
from sinotherm.bench.scanner import accepted, scanning
from sinotherm.wire.codec import Decoder
from sinotherm.wire.connection import Connection
from sinotherm.wire.file import AcquisitionWriter, MrdFile

__all__ = ["rows"]

_SPOKES: Final = 16
_CONFIG: Final = "<configuration/>"


def _floor(sock: socket.socket, n_bytes: int) -> None:
    """Take the bytes and do nothing with them."""
    waste = bytearray(512 << 10)
    while n_bytes > 0:
        n_bytes -= sock.recv_into(waste)


def _sinotherm(sock: socket.socket, _n_bytes: int) -> None:
    for _ in Connection(sock).stream():
        pass


def _gadgetron(sock: socket.socket, _n_bytes: int) -> None:
    from gadgetron.external.connection import Connection as Peer

    for _ in Peer(sock):
        pass


_RECEIVERS: Final[dict[str, Callable[[socket.socket, int], None]]] = {
    "loopback floor": _floor,
    "sinotherm": _sinotherm,
    "gadgetron readers": _gadgetron,
}


def _received(name: str, coils: int, readouts: int) -> tuple[float, float]:
    """Return wall and processor time a readout, s, of one receiver."""
    scan = bench_scan(coils=coils, spokes=_SPOKES, repetition_time_s=3e-3)
    opening, repeats = scan.opening(_CONFIG), max(1, readouts // _SPOKES)
    n_bytes = len(opening) + repeats * sum(len(part) for part in scan.readouts) + 2
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        scanning(listener.getsockname()[1], opening, scan.readouts, repeats=repeats),
    ):
        sock = accepted(listener)
        # What the receiver does before the first byte is not ingest.
        sock.recv(1, socket.MSG_PEEK)
        wall_s, work_s = perf_counter(), thread_time()
        _RECEIVERS[name](sock, n_bytes)
        wall_s, work_s = perf_counter() - wall_s, thread_time() - work_s
        sock.close()
    return wall_s / (repeats * _SPOKES), work_s / (repeats * _SPOKES)


def _ingest_rows(coils: int, readouts: int, rounds: int) -> list[dict[str, Any]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in _RECEIVERS}
    for _ in range(rounds):
        for name, taken in times.items():
            taken.append(_received(name, coils, readouts))
    wall_s = {name: statistics.median(wall for wall, _ in taken) for name, taken in times.items()}
    work_s = {name: statistics.median(work for _, work in taken) for name, taken in times.items()}
    return [
        {
            "measure": "ingest",
            "chain": name,
            "coils": coils,
            "wall_us_per_readout": round(1e6 * wall_s[name], 2),
            "cpu_us_per_readout": round(1e6 * work_s[name], 2),
            "throughput_to_floor": round(wall_s["loopback floor"] / wall_s[name], 3),
            "cpu_to_gadgetron_readers": round(work_s[name] / work_s["gadgetron readers"], 3),
            "speed_to_read_acquisition": None,
        }
        for name in times
    ]


def _file_rows(coils: int, readouts: int) -> list[dict[str, Any]]:
    from ismrmrd import Dataset

    scan = bench_scan(coils=coils, spokes=_SPOKES, repetition_time_s=3e-3)
    decoder = Decoder()
    parts = [part for raw in scan.readouts for part in decoder.feed(raw)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        with AcquisitionWriter(path, scan.header_xml) as writer:
            for number in range(readouts):
                writer.append(parts[number % _SPOKES])
        start_s, work_s = perf_counter(), thread_time()
        with MrdFile(path) as file:
            n_ours = sum(1 for _ in file.items())
        ours_s, ours_work_s = (perf_counter() - start_s) / n_ours, (thread_time() - work_s) / n_ours
        n_theirs = max(1, readouts // 20)
        with Dataset(path, mode="r") as package:
            start_s, work_s = perf_counter(), thread_time()
            for number in range(n_theirs):
                package.read_acquisition(number)
            theirs_s, theirs_work_s = (perf_counter() - start_s) / n_theirs, (thread_time() - work_s) / n_theirs
    return [
        {
            "measure": "file",
            "chain": name,
            "coils": coils,
            "wall_us_per_readout": round(1e6 * wall_s, 2),
            "cpu_us_per_readout": round(1e6 * work, 2),
            "throughput_to_floor": None,
            "cpu_to_gadgetron_readers": None,
            "speed_to_read_acquisition": round(theirs_s / wall_s, 2),
        }
        for name, wall_s, work in (
            ("sinotherm", ours_s, ours_work_s),
            ("ismrmrd read_acquisition", theirs_s, theirs_work_s),
        )
    ]


def rows(*, coils: int = 8, readouts: int = 4000, rounds: int = 5) -> list[dict[str, Any]]:
    """Return one row a receiver and one a reader of files.

    Parameters
    ----------
    coils
        Receiver coils; 512 samples a readout, with a two-dimensional trajectory.
    readouts
        Readouts a round.
    rounds
        Rounds of the socket, taken in turn; medians are given.

    Returns
    -------
    list
        ``measure`` (ingest or file), ``chain``, times a readout, and the ratios of goal 5: throughput
        to the floor of the loopback socket, processor time to the PyPI gadgetron readers, and speed to
        ``ismrmrd.Dataset.read_acquisition``.
    """
    return _ingest_rows(coils, readouts, rounds) + _file_rows(coils, readouts)
