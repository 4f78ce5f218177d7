"""One scan through four doors: the same pixels."""

import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from mrd_peers import converse, dial, execute, free_port, pixels, recorded, split, text_message
from sinotherm.wire.file import read_images

pytestmark = pytest.mark.data

SINOTHERM = [sys.executable, "-m", "sinotherm.cli"]
CONFIGURATION = (
    "<configuration>"
    '<property name="frames.spokes" value="8"/><property name="publish.endpoint" value=""/>'
    "</configuration>"
)
PIPELINE = f"""<?xml version="1.0"?>
<configuration><version>2</version><readers/><writers/><stream><external>
<execute name="sinotherm.nodes" target="reconstruct" type="python"/>{CONFIGURATION}
</external></stream></configuration>"""


def sinotherm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*SINOTHERM, *arguments], capture_output=True, text=True, timeout=120, check=False)


def images_of(messages: list[tuple[int, bytes]]) -> np.ndarray:
    assert [number for number, _ in messages] == [1022, 1022]
    return np.stack([np.frombuffer(pixels(payload), "<f4").reshape(16, 16) for _, payload in messages])


@pytest.fixture
def scan(shared_data: Path) -> Path:
    return shared_data / "wire" / "tiny_radial.h5"


@pytest.fixture
def pipelines(tmp_path: Path) -> Path:
    (tmp_path / "tiny.xml").write_text(PIPELINE)
    return tmp_path


@pytest.fixture
def from_file(scan: Path, pipelines: Path) -> np.ndarray:
    """The reference: the file door."""
    result = sinotherm("recon", str(scan), "-p", "tiny", "--pipelines", str(pipelines), "-o", str(pipelines / "r.h5"))
    assert result.returncode == 0, result.stderr
    assert "series 1, 2 images" in result.stdout
    data = read_images(pipelines / "r.h5")[1].data
    assert data.shape == (2, 1, 1, 16, 16)
    assert data.max() > 0
    return data[:, 0, 0]


def assert_same(images: np.ndarray, reference: np.ndarray) -> None:
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, reference, rtol=0, atol=1e-6 * reference.max())


def test_server_and_client_give_the_pixels_of_the_file(scan: Path, pipelines: Path, from_file: np.ndarray) -> None:
    port = free_port()
    server = subprocess.Popen(
        [*SINOTHERM, "serve", "--port", str(port), "--pipelines", str(pipelines), "--no-warm-up"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # `send` waits 10 s for a server that is still starting, and on a busy machine one takes longer.
        dial(port).close()
        for number, config in enumerate(("tiny", str(pipelines / "tiny.xml"))):
            out = pipelines / f"s{number}.h5"
            result = sinotherm("send", str(scan), "--to", f"127.0.0.1:{port}", "-c", config, "-o", str(out))
            assert result.returncode == 0, result.stderr
            assert "series 1: 2 images" in result.stdout
            assert_same(read_images(out)[1].data[:, 0, 0], from_file)
        # As the C++ client and as FIRE send it.
        for name in ("client_to_server.bin", "fire_client_to_server.bin"):
            parts = [part for _, part in split(recorded(scan.parents[1], name))]
            parts[0] = text_message(2, PIPELINE.encode())
            assert_same(images_of(converse(port, parts)), from_file)
        result = sinotherm("send", str(scan), "--to", f"127.0.0.1:{port}", "-c", "none", "-o", str(pipelines / "n.h5"))
        assert result.returncode == 1
        assert "unknown pipeline 'none'; known pipelines:" in result.stderr
        assert "Traceback" not in result.stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.communicate()


def test_nodes_give_the_pixels_of_the_file(scan: Path, from_file: np.ndarray) -> None:
    raw = recorded(scan.parents[1], "gadgetron_to_external.bin")
    parts = [text_message(2, CONFIGURATION.encode()), *(part for _, part in split(raw)[1:])]
    messages, code, log = execute("reconstruct", parts)
    assert code == 0, log
    assert_same(images_of(messages), from_file)
    port = free_port()
    node = subprocess.Popen(
        [*SINOTHERM, "node", "reconstruct", "--port", str(port), "--no-warm-up"], stderr=subprocess.PIPE
    )
    try:
        assert_same(images_of(converse(port, parts)), from_file)
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
    finally:
        node.kill()
        node.communicate()


def test_a_truncated_scan_keeps_the_images_finished_so_far(scan: Path, pipelines: Path) -> None:
    broken = pipelines / "broken.h5"
    broken.write_bytes(scan.read_bytes())
    with h5py.File(broken, "r+") as file:
        table = file["dataset/data"]
        row = table[14]
        row["data"] = row["data"][:-2]
        table[14] = row
    out = pipelines / "b.h5"
    result = sinotherm("recon", str(broken), "-p", str(pipelines / "tiny.xml"), "-o", str(out))
    assert result.returncode == 1
    assert "readout 14 holds 126 data" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(read_images(out)[1].headers) == 1
