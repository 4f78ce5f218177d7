import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sinotherm.cli.recon import command
from sinotherm.errors import DataError, FileFormatError, SettingsError
from sinotherm.wire.file import AcquisitionWriter, MrdFile, read_images

pytestmark = pytest.mark.data

app = typer.Typer()
app.command()(command)
QUIET = ("--set", "publish.endpoint=", "--set", "frames.spokes=8")


@pytest.fixture
def scan(shared_data: Path) -> Path:
    return shared_data / "wire" / "tiny_radial.h5"


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(part) for part in arguments], catch_exceptions=False)


def test_images_are_counted_by_series(scan: Path, tmp_path: Path) -> None:
    result = run(scan, "-o", tmp_path / "a.h5", *QUIET)
    assert result.exit_code == 0
    assert f"{tmp_path / 'a.h5'}: series 1, 2 images" in result.stdout
    with MrdFile(scan) as file, MrdFile(tmp_path / "a.h5") as images:
        assert images.header_xml == file.header_xml
        assert len(list(images.items())) == 2


def test_the_images_of_a_scan_stand_beside_it(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.h5").write_bytes(scan.read_bytes())
    run(tmp_path / "scan.h5", *QUIET)
    assert list(read_images(tmp_path / "scan_images.h5")) == [1]


def test_settings_decide(scan: Path, tmp_path: Path) -> None:
    run(scan, "-o", tmp_path / "a.h5", *QUIET, "--set", "frames.by=count", "--set", "frames.spokes=4")
    assert len(read_images(tmp_path / "a.h5")[1].headers) == 4
    with pytest.raises(SettingsError, match=r"write stage.setting=value"):
        run(scan, "-o", tmp_path / "b.h5", "--set", "frames")
    with pytest.raises(SettingsError, match="unknown pipeline 'none'"):
        run(scan, "-o", tmp_path / "b.h5", "-p", "none")


def test_a_folder_of_pipelines_must_be_there(scan: Path) -> None:
    result = run(scan, "--pipelines", "/nonexistent")
    assert result.exit_code == 2
    assert "does not exist" in result.output


def test_the_scan_itself_is_never_overwritten(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.h5").write_bytes(scan.read_bytes())
    with pytest.raises(SettingsError, match="that is the scan itself"):
        run(tmp_path / "scan.h5", "-o", tmp_path / "scan.h5", *QUIET)
    assert (tmp_path / "scan.h5").read_bytes() == scan.read_bytes()


@pytest.mark.parametrize(("n", "match"), [(1, "no image came of 1 readouts"), (4, "none of 3 spokes is in an image")])
def test_a_scan_that_gives_no_image_is_an_error(scan: Path, tmp_path: Path, n: int, match: str) -> None:
    with MrdFile(scan) as file, AcquisitionWriter(tmp_path / "short.h5", file.header_xml) as writer:
        for readout in list(file.readouts())[:n]:
            writer.append(readout)
    with pytest.raises(DataError, match=match):
        run(tmp_path / "short.h5", "-o", tmp_path / "a.h5", *QUIET)


def test_a_run_that_fails_before_its_first_image_leaves_an_earlier_result(scan: Path, tmp_path: Path) -> None:
    run(scan, "-o", tmp_path / "a.h5", *QUIET)
    for target in ("a.h5", "new.h5"):
        with pytest.raises(DataError):
            run(scan, "-o", tmp_path / target, "-p", "thermometry", "--set", "publish.endpoint=")
    assert len(read_images(tmp_path / "a.h5")[1].headers) == 2
    assert not (tmp_path / "new.h5").exists()


@pytest.mark.parametrize("pipeline", ["radial_fbp", "radial_thermometry"])
def test_images_are_no_readouts(scan: Path, tmp_path: Path, pipeline: str) -> None:
    run(scan, "-o", tmp_path / "a.h5", *QUIET)
    with pytest.raises(DataError, match=f"no readouts, which {pipeline} takes; .* -p thermometry"):
        run(tmp_path / "a.h5", "-p", pipeline)
    assert not (tmp_path / "a_images.h5").exists()


def test_what_is_not_mrd_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("nothing")
    with pytest.raises(FileFormatError, match="not an HDF5 file"):
        run(tmp_path / "a.h5", *QUIET)
    assert not (tmp_path / "a_images.h5").exists()


def test_an_interruption_keeps_the_images(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = MrdFile.items

    def interrupted(self: MrdFile) -> Iterator[Any]:
        for number, item in enumerate(items(self)):
            if number == 14:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(MrdFile, "items", interrupted)
    result = CliRunner().invoke(app, [str(scan), "-o", str(tmp_path / "a.h5"), *QUIET])
    assert result.exit_code != 0
    assert "series 1, 1 images" in result.stdout
    assert len(read_images(tmp_path / "a.h5")[1].headers) == 1


def test_a_full_disk_is_told_with_what_was_kept(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, size: int) -> None:
        if start > 20_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("sinotherm.wire.file._FLUSH_S", 0.0)
    result = CliRunner().invoke(app, [str(scan), "-o", str(tmp_path / "a.h5"), *QUIET])
    assert isinstance(result.exception, DataError)
    assert "No space left on device); 1 images are in it" in str(result.exception)
    assert "series 1, 1 images" in result.stdout


def test_texts_of_the_chain_are_shown(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinotherm.pipelines.compose import Pipeline
    from sinotherm.wire.messages import Text

    running = Pipeline.run

    def talking(self: Pipeline, *arguments: Any) -> Iterator[Any]:
        yield Text(text="WRN too hot")
        yield from running(self, *arguments)

    monkeypatch.setattr(Pipeline, "run", talking)
    assert "WRN too hot" in run(scan, "-o", tmp_path / "a.h5", *QUIET).stderr
