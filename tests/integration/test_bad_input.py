"""What is wrong with a scan is said clearly, through every door, and the next scan is served."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mrd_peers import (
    CLOSE,
    config_name,
    converse,
    dial,
    free_port,
    readout_message,
    recorded,
    split,
    text_message,
)
from sinotherm.cli import __main__ as cli
from sinotherm.wire.file import read_images

pytestmark = pytest.mark.data

CONFIGURATION = '<configuration><property name="frames.spokes" value="8"/></configuration>'
PIPELINE = f"""<configuration><version>2</version><stream><external>
<execute name="sinotherm.nodes" target="reconstruct" type="python"/>{CONFIGURATION}
</external></stream></configuration>"""
ACQUISITION = struct.pack("<H", 1008)
N_PARTS = 21
"""Config, header, noise, spokes 1 to 7, waveform, spokes 8 to 16, CLOSE."""


@dataclass
class Running:
    """A server or node in a process of its own."""

    port: int
    process: "subprocess.Popen[str]"
    log: Path

    def peak_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Running]:
    port = free_port()
    log = folder / f"{arguments[0]}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "sinotherm.cli", *arguments, "--port", str(port), "--no-warm-up"],
            stderr=stderr,
            text=True,
        )
    try:
        yield Running(port, process, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def feed() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, feed: str) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server"), "serve", "--set", f"publish.endpoint={feed}") as process:
        yield process


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, feed: str) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("node"), "node", "reconstruct", "--set", "publish.endpoint=") as process:
        yield process


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "wire"


@pytest.fixture(scope="module")
def scan(shared_data: Path) -> list[bytes]:
    """A good scan as a client sends it."""
    parts = [part for _, part in split(recorded(shared_data, "client_to_server.bin"))]
    assert len(parts) == N_PARTS
    return [text_message(2, PIPELINE.encode()), *parts[1:]]


def spokes(parts: list[bytes]) -> list[int]:
    """Return where the spokes stand: acquisitions after the noise."""
    return [n for n, part in enumerate(parts) if part[:2] == ACQUISITION][1:]


def changed(part: bytes, at: int, form: str, *values: Any) -> bytes:
    """Return a readout's message with other header values; ``at`` counts from the header's first byte."""
    raw = bytearray(part)
    struct.pack_into(form, raw, 2 + at, *values)
    return bytes(raw)


def with_spoke(parts: list[bytes], number: int, made: Callable[[bytes], bytes]) -> list[bytes]:
    at = spokes(parts)[number]
    return [*parts[:at], made(parts[at]), *parts[at + 1 :]]


def with_header(parts: list[bytes], xml: bytes) -> list[bytes]:
    return [parts[0], text_message(3, xml), *parts[2:]]


def header(parts: list[bytes]) -> bytes:
    return parts[1][6:]


def without_trajectory(part: bytes) -> bytes:
    samples, _, _ = struct.unpack_from("<HHH", part, 2 + 34)
    (dims,) = struct.unpack_from("<H", part, 2 + 176)
    return changed(part, 176, "<H", 0)[:342] + part[342 + 4 * samples * dims :]


def with_nan(part: bytes) -> bytes:
    return part[:-8] + struct.pack("<ff", float("nan"), 0.0)


def one_coil(part: bytes) -> bytes:
    samples = struct.unpack_from("<H", part, 2 + 34)[0]
    return changed(part, 38, "<H", 1)[: -8 * samples]


def all_spokes(parts: list[bytes], made: Callable[[bytes], bytes]) -> list[bytes]:
    places = set(spokes(parts))
    return [made(part) if n in places else part for n, part in enumerate(parts)]


Change = Callable[[list[bytes]], list[bytes]]

# Of the data: what is wrong, images before it, words of the error.
DATA: dict[str, tuple[Change, int, str]] = {
    "coils": (lambda p: with_spoke(p, 11, one_coil), 1, "has 1 channels, the noise scan 2"),
    "nan": (lambda p: with_spoke(p, 11, with_nan), 1, "holds values that are not finite"),
    "no trajectory at one spoke": (lambda p: with_spoke(p, 11, without_trajectory), 1, "has no trajectory"),
    "no trajectory at all": (
        lambda p: all_spokes(with_header(p, header(p).replace(b"radial<", b"other<")), without_trajectory),
        0,
        "no way to derive the angles; if the scan is radial, set spokes.angles",
    ),
    "one sample": (lambda p: with_spoke(p, 11, lambda s: changed(s, 168, "<HH", 31, 0)), 1, "at least 2 are needed"),
    "empty header": (lambda p: with_header(p, b" "), 0, "the scan header is empty"),
    "header not XML": (lambda p: with_header(p, b"<ismrmrdHeader>"), 0, "is not XML"),
    "header of something else": (lambda p: with_header(p, b"<html/>"), 0, "begins with <html>"),
    "no encoding": (lambda p: with_header(p, b"<ismrmrdHeader/>"), 0, "has no <encoding>"),
    "absurd matrix": (
        lambda p: with_header(p, header(p).replace(b"<x>16</x>", b"<x>1000000</x>")),
        0,
        "reconSpace matrix x of the scan header is 1e+06: it must be 1 to 4096",
    ),
    "deep header": (lambda p: with_header(p, b"<a>" * 100_000), 0, "a depth of 64"),
}

# Of the stream, which a file does not have.
STREAM: dict[str, tuple[Change, int, str]] = {
    "unknown id": (lambda p: [*p[:14], struct.pack("<H", 777), *p[14:]], 1, "message id 777 is unknown (known: 1, 2"),
    "not MRD": (lambda p: [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], 0, "message id 17735 is unknown"),
    "no config": (lambda p: p[1:], 0, "begins with a Header where a config (1 or 2) must come"),
    "no header": (lambda p: [p[0], *p[2:]], 0, "begins with a Readout where the header (3) must come"),
    "two headers": (lambda p: [*p[:14], p[1], *p[14:]], 1, "config and header come once"),
    "absurd text": (lambda p: [struct.pack("<HI", 3, 2**32 - 1)], 0, "bytes of text 4294967295: the bound is 16777216"),
    "absurd coils": (
        lambda p: [*p[:14], readout_message(coils=2, samples=2)[:2] + absurd(coils=65535), *p[14:]],
        1,
        "coils of a readout: 65535: the bound is 1024",
    ),
    "absurd trajectory": (
        lambda p: [*p[:14], ACQUISITION + absurd(dims=65535), *p[14:]],
        1,
        "trajectory dimensions of a readout: 65535: the bound is 16",
    ),
    "absurd image": (
        lambda p: [*p[:14], struct.pack("<H", 1022) + absurd_image(), *p[14:]],
        1,
        "IMAGE) of 4",
    ),
    "unfinished message": (lambda p: [*p[:14], p[14][:500]], 1, "within a message"),
    "no CLOSE": (lambda p: p[:14], 1, "closed the connection without CLOSE"),
    "unknown pipeline": (lambda p: [config_name("nope"), *p[1:]], 0, "unknown pipeline 'nope'; known pipelines: "),
    "path as pipeline": (lambda p: [config_name("../x.xml"), *p[1:]], 0, "a bare name of letters"),
    "unknown stage": (
        lambda p: [text_message(2, PIPELINE.replace("frames.", "sorting.").encode()), *p[1:]],
        0,
        "stage 'sorting' is unknown in the target reconstruct; its stages: whitening, spokes",
    ),
    "unknown setting": (
        lambda p: [text_message(2, PIPELINE.replace("frames.spokes", "frames.spoke").encode()), *p[1:]],
        0,
        "unknown setting frames.spoke; known settings of this stage: frames.by, frames.spokes",
    ),
    "setting out of range": (
        lambda p: [text_message(2, PIPELINE.replace('"8"', '"-8"').encode()), *p[1:]],
        0,
        "frames.spokes = '-8': Input should be greater than or equal to 0",
    ),
    "file of this machine": (
        lambda p: [*p[:2], text_message(5, b'{"parameters": {"publish.endpoint": "tcp://*:5560"}}'), *p[2:]],
        0,
        "publish.endpoint = 'tcp://*:5560' is refused from a network peer",
    ),
    "another module": (
        lambda p: [text_message(2, PIPELINE.replace("sinotherm.nodes", "os").encode()), *p[1:]],
        0,
        "no other module is ever imported by a pipeline",
    ),
}


def absurd(*, coils: int = 1, dims: int = 0) -> bytes:
    head = bytearray(readout_message(coils=1, samples=1)[2:342])
    struct.pack_into("<HHH", head, 34, 65535, coils, coils)
    struct.pack_into("<H", head, 176, dims)
    return bytes(head)


def absurd_image() -> bytes:
    """Return the header of an image of 4 TB."""
    head = bytearray(198)
    struct.pack_into("<HHIQ", head, 0, 1, 7, 0, 0)
    struct.pack_into("<HHH", head, 16, 8192, 8192, 8192)
    struct.pack_into("<H", head, 34, 1)
    return bytes(head) + struct.pack("<Q", 0)


def held(port: int, parts: list[bytes]) -> list[tuple[int, bytes]]:
    """Send a scan, say that nothing more comes, and return what came back up to CLOSE."""
    peer = dial(port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            peer.sock.sendall(part)
        peer.sock.shutdown(socket.SHUT_WR)
    try:
        return peer.until_close()
    finally:
        peer.close()


def ids(messages: list[tuple[int, bytes]]) -> list[int]:
    return [number for number, _ in messages]


@pytest.mark.parametrize("case", [*DATA, *STREAM])
def test_a_client_is_told(server: Running, scan: list[bytes], case: str) -> None:
    change, n_images, words = (DATA | STREAM)[case]
    messages = held(server.port, change(scan))
    assert ids(messages) == [1022] * n_images + [5]
    text = messages[-1][1].decode()
    assert text.startswith("ERR ")
    assert words in text
    assert "internal error" not in text


@pytest.mark.parametrize(
    "case", ["coils", "nan", "no trajectory at all", "absurd matrix", "unknown id", "no CLOSE", "unfinished message"]
)
def test_a_gadgetron_is_told(node: Running, scan: list[bytes], case: str) -> None:
    change, n_images, words = (DATA | STREAM)[case]
    messages = held(node.port, [text_message(2, CONFIGURATION.encode()), *change(scan)[1:]])
    assert ids(messages) == [1022] * n_images + [8]
    assert words in messages[-1][1].decode()


def test_a_gadgetron_names_no_file(node: Running, scan: list[bytes]) -> None:
    sent = b'<configuration><property name="publish.endpoint" value="tcp://*:1"/></configuration>'
    messages = converse(node.port, [text_message(2, sent), *scan[1:]])
    assert ids(messages) == [8]
    assert b"is refused from a network peer" in messages[0][1]


def test_what_was_refused_took_no_memory_and_left_no_traceback(server: Running, scan: list[bytes]) -> None:
    converse(server.port, scan)
    before = server.peak_mib()
    for case in ("absurd text", "absurd coils", "absurd trajectory", "absurd image", "deep header"):
        held(server.port, STREAM[case][0](scan) if case in STREAM else DATA[case][0](scan))
    assert server.peak_mib() - before < 64.0
    assert "Traceback" not in server.log.read_text()


def test_spokes_that_are_missing_or_come_twice_are_logged(server: Running, scan: list[bytes]) -> None:
    where = spokes(scan)
    twice = [*scan[: where[3] + 1], scan[where[3]], *scan[where[3] + 1 :]]
    assert ids(converse(server.port, twice)) == [1022, 1022]
    missing = [part for n, part in enumerate(scan) if n != where[3]]
    # The flags of the last spokes end the frames, one of them is short.
    assert ids(converse(server.port, missing))[:1] == [1022]
    log = server.log.read_text()
    assert "the readout came twice" in log
    assert "1 readouts are missing" in log


def test_a_peer_that_vanishes_does_not_hurt_the_next(server: Running, scan: list[bytes]) -> None:
    peer = dial(server.port)
    peer.sock.sendall(b"".join(scan[:14]))
    assert peer.message()[0] == 1022
    # RST instead of FIN: the machine is gone.
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert ids(converse(server.port, scan)) == [1022, 1022]


def test_two_clients_at_once_are_both_served(server: Running, scan: list[bytes]) -> None:
    # Both publish on the server's feed.
    first, second = dial(server.port), dial(server.port)
    for part in scan[:12]:
        first.sock.sendall(part)
        second.sock.sendall(part)
    for peer in (second, first):
        peer.sock.sendall(b"".join(scan[12:]))
        assert ids(peer.until_close()) == [1022, 1022]
        peer.close()
    assert "no live feed" not in server.log.read_text()


def test_a_feed_that_another_process_has_does_not_fail_the_scan(
    server: Running, scan: list[bytes], feed: str, folder: Path, tmp_path: Path
) -> None:
    converse(server.port, scan)
    done = recon(folder / "tiny_radial.h5", "-o", tmp_path / "o.h5", "--set", f"publish.endpoint={feed}")
    assert done.returncode == 0, done.stderr
    assert "no live feed: cannot listen on" in done.stderr
    assert len(read_images(tmp_path / "o.h5")[1].headers) == 2


def test_sigterm_delivers_what_is_finished(scan: list[bytes], tmp_path: Path) -> None:
    with running(tmp_path, "serve", "--set", "publish.endpoint=") as server:
        peer = dial(server.port)
        peer.sock.sendall(b"".join(scan[:14]))
        assert peer.message()[0] == 1022
        server.process.send_signal(signal.SIGTERM)
        messages = peer.until_close()
        peer.close()
        # Of the next frame's two spokes as many are told as had been read.
        assert all(text.startswith(b"WRN ") and b"spokes are in no image" in text for _, text in messages[:-1])
        assert messages[-1][0] == 5
        assert messages[-1][1].startswith(b"ERR stopped before the end of the scan")
        assert server.process.wait(30) == 0


def test_a_stop_in_the_first_frame_is_told_as_a_stop(scan: list[bytes], tmp_path: Path) -> None:
    with running(tmp_path, "serve", "--set", "publish.endpoint=") as server:
        peer = dial(server.port)
        peer.sock.sendall(b"".join(scan[:7]))
        while "; settings: " not in server.log.read_text():
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        messages = peer.until_close()
        peer.close()
        assert [text.partition(b";")[0] for _, text in messages] == [b"ERR stopped before the end of the scan"]
        assert server.process.wait(30) == 0


# The file door


def recon(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sinotherm.cli", "recon", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Return the program in this process: exit code and stderr of a command line."""
    if not cli.app.registered_commands:
        cli._register()
    monkeypatch.setattr(cli, "_register", lambda: None)
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sinotherm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    yield call
    signal.signal(signal.SIGTERM, before)


def as_file(path: Path, parts: list[bytes]) -> Path:
    """Write the messages of a client as an MRD file, without our writer."""
    heads, trajectories, data = [], [], []
    for part in parts:
        if part[:2] == ACQUISITION:
            samples, _, coils = struct.unpack_from("<HHH", part, 2 + 34)
            (dims,) = struct.unpack_from("<H", part, 2 + 176)
            heads.append(part[2:342])
            trajectories.append(np.frombuffer(part, "<f4", samples * dims, 342))
            data.append(np.frombuffer(part, "<f4", 2 * samples * coils, 342 + 4 * samples * dims))
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset/xml", (1,), h5py.special_dtype(vlen=bytes))[0] = header(parts)
        floats = h5py.special_dtype(vlen=np.dtype("<f4"))
        from ismrmrd.hdf5 import acquisition_dtype

        table = np.empty(len(heads), [("head", acquisition_dtype["head"]), ("traj", floats), ("data", floats)])
        table["head"] = np.frombuffer(b"".join(heads), acquisition_dtype["head"])
        for n, (one, other) in enumerate(zip(trajectories, data, strict=True)):
            table["traj"][n], table["data"][n] = one, other
        file["dataset/data"] = table
    return path


QUIET = ("--set", "publish.endpoint=", "--set", "frames.spokes=8")


@pytest.mark.parametrize("case", DATA)
def test_a_file_is_judged_like_a_stream(main: Any, scan: list[bytes], tmp_path: Path, case: str) -> None:
    change, n_images, words = DATA[case]
    path = as_file(tmp_path / "scan.h5", change(scan))
    code, text = main("recon", path, "-o", tmp_path / "o.h5", *QUIET)
    assert code == 1
    line = text.splitlines()[-1]
    assert line.startswith("sinotherm: error: ")
    # A header of spaces is none at all in a file.
    assert ("has no header in /dataset/xml" if case == "empty header" else words) in line
    if n_images:
        assert len(read_images(tmp_path / "o.h5")[1].headers) == n_images


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "nope"], "unknown pipeline 'nope'; known pipelines: "),
        (["--set", "sorting.a=1"], "stage 'sorting' is not part of the pipeline radial_fbp; it has: "),
        (["--set", "frames.spoke=1"], "unknown setting frames.spoke; known settings"),
        (["--set", "frames.spokes=1000000"], "frames.spokes = '1000000': Input should be less than or equal to 65536"),
        (["--set", "frames.spokes=60000"], "none of 16 spokes is in an image: no frame was complete"),
        (["--set", "frames.window=400"], "frames end by window of 400 spokes every 400; acquire whole"),
        (["-p", "thermometry"], "acquisitions are the business of radial_thermometry"),
        (["-o", "none/o.h5"], "none/o.h5: cannot be written, there is no folder none; make it first."),
        (["-o", "."], "cannot be written, it is a folder"),
        (["--dataset", "nothing"], "it has no group /nothing (in it: dataset)"),
    ],
)
def test_a_command_line_that_cannot_be_met(
    main: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = [] if "thermometry" in arguments else ["--set", "publish.endpoint="]
    code, text = main("recon", folder / "tiny_radial.h5", "-o", "o.h5", *quiet, *arguments)
    assert code == 1
    assert words in text.splitlines()[-1]


def test_files_that_are_no_scans(main: Any, folder: Path, scan: list[bytes], tmp_path: Path) -> None:
    whole = (folder / "tiny_radial.h5").read_bytes()
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    as_file(tmp_path / "empty.h5", scan[:2])
    expected = {
        "text.h5": "not an HDF5 file, or damaged",
        "cut.h5": "damaged",
        "other.h5": "not an MRD file, it has no group /dataset (in it: x)",
        "absent.h5": "no such file",
        ".": "a folder; give the MRD file itself",
        "empty.h5": "no readouts, which radial_fbp takes",
    }
    for name, words in expected.items():
        code, text = main("recon", tmp_path / name, "-o", tmp_path / "o.h5", "--set", "publish.endpoint=")
        assert code == 1, name
        assert words in text.splitlines()[-1], name


def test_a_cartesian_scan_and_a_single_spoke(main: Any, scan: list[bytes], tmp_path: Path) -> None:
    def line(part: bytes) -> bytes:
        (counter,) = struct.unpack_from("<I", part, 2 + 14)
        points = np.stack([np.arange(32) / 32 - 0.5, np.full(32, (counter % 16 - 8 + 0.5) / 32)], axis=1)
        return part[:342] + points.astype("<f4").tobytes() + part[342 + 256 :]

    path = as_file(tmp_path / "cartesian.h5", all_spokes(scan, line))
    code, text = main("recon", path, "-o", tmp_path / "o.h5", *QUIET)
    assert code == 1
    assert "only radial trajectories are reconstructed" in text.splitlines()[-1]
    first = spokes(scan)[0]
    path = as_file(tmp_path / "one.h5", [*scan[: first + 1], CLOSE])
    assert main("recon", path, "-o", tmp_path / "o.h5", *QUIET, "--set", "frames.spokes=1")[0] == 0
    image = read_images(tmp_path / "o.h5")[1].data
    assert image.shape[0] == 1
    assert np.isfinite(image).all()


def test_a_reconstruction_that_is_stopped_keeps_its_images(folder: Path, tmp_path: Path) -> None:
    with h5py.File(folder / "tiny_radial.h5") as file:
        xml, rows = file["dataset/xml"][()], file["dataset/data"][()]
    many = np.concatenate([rows[:1], np.tile(rows[1:], 4000)])
    with h5py.File(tmp_path / "long.h5", "w") as file:
        file["dataset/xml"] = xml
        table = file.create_dataset("dataset/data", (len(many),), many.dtype, chunks=(512,))
        table[:] = many
    out = tmp_path / "o.h5"
    command = [sys.executable, "-m", "sinotherm.cli", "recon", tmp_path / "long.h5", "-o", out, *QUIET]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        end = time.monotonic() + 60
        while not (out.exists() and out.stat().st_size > 10_000) and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode not in (0, -signal.SIGTERM), errors
    assert "Traceback" not in errors
    n_images = len(read_images(out)[1].headers)
    assert 0 < n_images < 8000
    assert f"series 1, {n_images} images" in said


def test_a_client_that_is_told_says_so(
    server: Running, folder: Path, scan: list[bytes], main: Any, tmp_path: Path
) -> None:
    path = as_file(tmp_path / "nan.h5", with_spoke(scan, 11, with_nan))
    (tmp_path / "tiny.xml").write_text(PIPELINE)
    where = ("--to", f"127.0.0.1:{server.port}", "-c", tmp_path / "tiny.xml", "-o", tmp_path / "o.h5")
    code, text = main("send", path, *where)
    assert code == 1
    assert "holds values that are not finite" in text.splitlines()[-1]
    assert len(read_images(tmp_path / "o.h5")[1].headers) == 1
    code, text = main("send", folder / "tiny_radial.h5", *where)
    assert code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        "bench ingest",
        "demo -o .",
        "evaluate cartesian --data absent",
        "evaluate ct --data absent",
        "evaluate radial --data absent",
        "evaluate thermo --data absent",
        "qa coils absent.h5",
        "qa stability absent.h5",
        "simulate scan.h5",
    ],
)
def test_a_record_that_cannot_be_written_is_told_before_the_work(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = main(*arguments.split(), "--json", "none/x.json")
    assert code == 1
    assert text.splitlines()[-1].endswith("none/x.json: cannot be written, there is no folder none; make it first.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", ["stability absent.h5", "sign absent.h5 --probe p.csv --region circle:1,1,1"])
@pytest.mark.parametrize(
    ("report", "words"), [("r.txt", "a name that ends in .pdf or .png is needed"), ("none/r.pdf", "no folder none")]
)
def test_a_page_that_cannot_be_written_is_told_before_the_work(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, report: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = main("qa", *arguments.split(), "--report", report)
    assert code == 1
    assert words in text.splitlines()[-1]


@pytest.mark.parametrize("arguments", ["demo --seed -1", "simulate o.h5 --seed -1", "train radial --device foo"])
def test_options_out_of_range_are_no_tracebacks(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = main(*arguments.split())
    assert code == 2
    assert "Invalid value" in text
    assert not list(tmp_path.iterdir())
