"""A Gadgetron that starts our targets, or dials a warm node; the parent knows the wire only from its description."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrd_peers import CLOSE, Peer, converse, execute, free_port, recorded, split, text_message

pytestmark = pytest.mark.data

CONFIGURATION = text_message(2, b"<configuration/>")
SMALL = text_message(
    2,
    b'<configuration><property name="frames.spokes" value="8"/>'
    b'<property name="publish.endpoint" value=""/></configuration>',
)


@pytest.fixture
def scan(shared_data: Path) -> list[bytes]:
    """Header, data and CLOSE as a Gadgetron sends them."""
    return [part for _, part in split(recorded(shared_data, "gadgetron_to_external.bin"))[1:]]


@contextlib.contextmanager
def node(target: str, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "sinotherm.cli", "node", target, "--port", str(port), "--no-warm-up", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield port, process
    finally:
        process.kill()
        process.communicate()


def test_frames_come_back_from_a_started_node(scan: list[bytes]) -> None:
    messages, code, log = execute("reconstruct", [SMALL, *scan])
    assert [number for number, _ in messages] == [1022, 1022], log
    assert code == 0


def test_a_setting_that_is_wrong_is_told_to_gadgetron(scan: list[bytes]) -> None:
    wrong = text_message(2, b'<configuration><property name="frames.spoke" value="8"/></configuration>')
    messages, code, log = execute("reconstruct", [wrong, *scan])
    assert [number for number, _ in messages] == [8]
    assert b"unknown setting frames.spoke; known settings of this stage: frames.by" in messages[0][1]
    assert code == 1
    assert "Traceback" not in log


@pytest.mark.parametrize("target", ["thermometry", "radial_thermometry"])
def test_other_targets_start(scan: list[bytes], target: str) -> None:
    # Frames too few for a baseline: the target starts, and ends without an error.
    messages, code, log = execute(target, [CONFIGURATION, scan[0], CLOSE])
    assert messages == [], log
    assert code == 0


def test_a_missing_dependency_is_told_to_gadgetron(scan: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "jaxtyping.py").write_text("raise ImportError('no jaxtyping here')\n")
    messages, code, log = execute("reconstruct", [CONFIGURATION, *scan], environment={"PYTHONPATH": str(tmp_path)})
    assert [number for number, _ in messages] == [8]
    assert b"sinotherm cannot be loaded: no jaxtyping here; install it" in messages[0][1]
    assert code == 1
    assert "sinotherm cannot be loaded" in log


@pytest.mark.parametrize("broken", [False, True])
def test_a_parent_that_vanishes_ends_the_node(scan: list[bytes], tmp_path: Path, broken: bool) -> None:
    environment = dict(os.environ)
    if broken:
        (tmp_path / "jaxtyping.py").write_text("raise ImportError('no jaxtyping here')\n")
        environment["PYTHONPATH"] = str(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "gadgetron", str(port), "sinotherm.nodes", "reconstruct"],
            stderr=subprocess.PIPE,
            env=environment,
        )
        sock, _ = listener.accept()
    sock.sendall(CONFIGURATION + b"".join(scan[:3]))
    sock.close()
    # The gadgetron package waits forever for a parent that is gone; we do not.
    assert process.wait(60) != 0
    process.communicate()


def test_a_warm_node_serves_scan_after_scan(scan: list[bytes]) -> None:
    with node("reconstruct") as (port, process):
        first = converse(port, [SMALL, *scan])
        assert [number for number, _ in first] == [1022, 1022]
        wrong = converse(port, [text_message(2, b"<configuration>"), *scan])
        assert [number for number, _ in wrong] == [8]
        assert b"is not XML" in wrong[0][1]
        assert [number for number, _ in converse(port, [SMALL, *scan])] == [1022, 1022]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_warm_node_with_an_unknown_target_does_not_start() -> None:
    with node("nonsense") as (_, process):
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "unknown target 'nonsense'; known targets: reconstruct" in process.stderr.read()


def test_sigterm_within_a_scan_delivers_what_is_finished(scan: list[bytes]) -> None:
    with node("reconstruct") as (port, process):
        converse(port, [SMALL, scan[0], CLOSE])
        peer = Peer(socket.create_connection(("127.0.0.1", port)))
        last = [n for n, part in enumerate(scan) if part[:2] == b"\xf0\x03" and part[5] & 0x20]
        peer.sock.sendall(SMALL + b"".join(scan[: last[0] + 1]))
        assert peer.message()[0] == 1022
        process.send_signal(signal.SIGTERM)
        number, text = peer.message()
        assert number == 8
        assert b"stopped before the end of the scan" in text
        peer.sock.sendall(CLOSE)
        assert peer.until_close() == []
        assert process.wait(30) == 0
        peer.close()
