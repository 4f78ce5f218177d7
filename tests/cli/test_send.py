import contextlib
import signal
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mrd_handlers import REQUESTS, serving
from mrd_peers import free_port
from sinotherm.cli.send import command
from sinotherm.errors import DataError, HeaderError, PeerError, SettingsError, WireError
from sinotherm.wire.file import AcquisitionWriter, ImageWriter, read_images
from sinotherm.wire.messages import Readout

app = typer.Typer()
app.command()(command)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(part) for part in arguments], catch_exceptions=False)


@pytest.fixture
def unstamped(tmp_path: Path) -> Path:
    """A scan without time stamps, and with a header that says nothing."""
    with AcquisitionWriter(tmp_path / "scan.h5", b"<ismrmrdHeader/>") as writer:
        for _ in range(3):
            header = ismrmrd.AcquisitionHeader()
            header.number_of_samples, header.active_channels = 4, 1
            header.setFlag(ismrmrd.ACQ_LAST_IN_REPETITION)
            data = np.ones((1, 4), np.complex64)
            writer.append(Readout(header=header, data=data, trajectory=np.empty((4, 0), np.float32)))
    return tmp_path / "scan.h5"


@pytest.mark.data
@pytest.mark.parametrize("pace", ["fast", "scanner", "50"])
def test_images_come_back_at_any_pace(shared_data: Path, tmp_path: Path, pace: str) -> None:
    scan, out = shared_data / "wire" / "tiny_radial.h5", tmp_path / "a.h5"
    with serving() as server:
        result = run(scan, "-o", out, "--to", f"127.0.0.1:{server.address[1]}", "-c", "frames", "--pace", pace)
    assert result.exit_code == 0
    assert "series 1: 2 images" in result.stdout
    assert len(read_images(out)[1].headers) == 2


def test_a_pipeline_file_is_sent_as_its_text(unstamped: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.xml").write_text("<configuration>µ</configuration>")
    with serving() as server:
        to = f"127.0.0.1:{server.address[1]}"
        run(unstamped, "-o", tmp_path / "a.h5", "--to", to, "-c", tmp_path / "mine.xml")
        assert REQUESTS[-1].config == "<configuration>µ</configuration>"
        # A name that only looks like a file is a name.
        run(unstamped, "-o", tmp_path / "a.h5", "--to", to, "-c", "other.xml")
        assert REQUESTS[-1].config == "other.xml"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "iso-8859-1", "utf-16"])
def test_a_pipeline_file_of_another_encoding_travels_as_utf_8(unstamped: Path, tmp_path: Path, encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?><configuration>Körper</configuration>'
    (tmp_path / "mine.xml").write_text(text, encoding=encoding)
    with serving() as server:
        run(unstamped, "-o", tmp_path / "a.h5", "--to", f"127.0.0.1:{server.address[1]}", "-c", tmp_path / "mine.xml")
    assert REQUESTS[-1].config == (text if encoding == "utf-8-sig" else "<configuration>Körper</configuration>")


def test_a_pipeline_file_that_is_no_xml_is_told(unstamped: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.xml").write_bytes(b"<configuration>\xff</configuration>")
    with pytest.raises(DataError, match=r"the pipeline .*mine\.xml \(.* bytes\) is not XML"):
        run(unstamped, "-o", tmp_path / "a.h5", "-c", tmp_path / "mine.xml")


def test_a_pace_without_a_clock_needs_tr(unstamped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "a.h5"
    with serving() as server:
        to = f"127.0.0.1:{server.address[1]}"
        with pytest.raises(HeaderError, match=r"give --tr \(s\)"):
            run(unstamped, "-o", out, "--to", to, "--pace", "scanner")
        assert "TR is not known" in caplog.text
        assert run(unstamped, "-o", out, "--to", to, "--pace", "scanner", "--tr", "0.002").exit_code == 0
        assert run(unstamped, "-o", out, "--to", to).exit_code == 0
    assert len(read_images(out)[1].headers) == 3


def test_a_servers_failure_is_ours(unstamped: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    with serving() as server, pytest.raises(PeerError, match="deliberate failure"):
        run(unstamped, "-o", out, "--to", f"127.0.0.1:{server.address[1]}", "-c", "fail")
    assert len(read_images(out)[1].headers) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("method", ["append", "close"])
def test_a_signal_within_a_write_takes_effect_after_it(
    unstamped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, method: str
) -> None:
    inner = getattr(ImageWriter, method)

    def interrupted(self: ImageWriter, *arguments: Any) -> None:
        # HDF5 swallows what is raised in the Python that it calls.
        with contextlib.suppress(KeyboardInterrupt):
            if self.counts or method == "append":
                signal.raise_signal(number)
            inner(self, *arguments)

    monkeypatch.setattr(ImageWriter, method, interrupted)
    monkeypatch.setattr("sinotherm.wire.file._FLUSH_S", 0.0)
    out = tmp_path / "a.h5"
    with serving() as server:
        result = CliRunner().invoke(
            app, [str(unstamped), "-o", str(out), "--to", f"127.0.0.1:{server.address[1]}", "-c", "frames"]
        )
    assert result.exit_code == 130
    assert len(read_images(out)[1].headers) == (1 if method == "append" else 3)


def refusing(request: Any) -> Any:
    raise SettingsError("no such pipeline")


@pytest.mark.parametrize(
    ("opening", "kind", "match"),
    [
        (refusing, PeerError, "no such pipeline"),
        (lambda request: lambda items: (item for item in items if False), DataError, "no image came back from 127"),
    ],
)
def test_without_an_image_the_file_is_left_as_it_was(
    unstamped: Path, tmp_path: Path, opening: Any, kind: type[Exception], match: str
) -> None:
    out = tmp_path / "a.h5"
    out.write_text("an earlier result")
    with serving(opening=opening) as server, pytest.raises(kind, match=match):
        run(unstamped, "-o", out, "--to", f"127.0.0.1:{server.address[1]}")
    assert out.read_text() == "an earlier result"


def test_addresses_and_paces_are_checked(unstamped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.h5"
    for to in ("localhost", "localhost:port", ":"):
        with pytest.raises(SettingsError, match="write HOST:PORT"):
            run(unstamped, "-o", out, "--to", to)
    for pace, match in (("quick", "scanner, fast, or a number"), ("0", "it must be above 0")):
        with pytest.raises(SettingsError, match=match):
            run(unstamped, "-o", out, "--pace", pace)
    monkeypatch.setattr("sinotherm.wire.client.sleep", lambda _: None)
    with pytest.raises(WireError, match="no server at"):
        run(unstamped, "-o", out, "--to", f"127.0.0.1:{free_port()}")


def test_a_port_that_cannot_be_is_refused_at_once(unstamped: Path, tmp_path: Path) -> None:
    for port in (0, 99999):
        with pytest.raises(SettingsError, match=f"port {port}: it lies between 1 and 65535"):
            run(unstamped, "-o", tmp_path / "a.h5", "--to", f"127.0.0.1:{port}")
