import json
from importlib.resources import files

import h5py
import jsonschema
import numpy as np
import typer
from typer.testing import CliRunner

from sinotherm.cli import recon
from sinotherm.cli.simulate import command
from sinotherm.errors import SettingsError
from sinotherm.simulation.phantoms import image_of_file
from sinotherm.wire.file import read_images

SMALL = [
    "--matrix", "16", "--coils", "2", "--spokes", "5", "--frames", "3", "--baseline", "1", "--cooling", "0",
    "--noise-scans", "2", "--dummy-scans", "1",
]  # fmt: skip


def run(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_scan_with_its_figures(tmp_path):
    result = run(tmp_path / "scan.h5", *SMALL, "--json", tmp_path / "scan.json", "--peak", "6", "--width", "60")
    assert result.exit_code == 0, result.output
    assert "3 frames of 5 spokes" in result.stdout
    record = json.loads((tmp_path / "scan.json").read_text())
    schema = json.loads((files("sinotherm.schemas") / "simulate.json").read_text())
    jsonschema.validate(record, schema)
    assert record["readouts"] == 18
    assert record["peak_heating_degC"] == 6.0
    with h5py.File(tmp_path / "scan.h5") as file:
        assert file["dataset/data"].shape == (18,)
        assert file["truth/temperature"].shape == (3, 16, 16)


def test_a_scan_without_noise_can_be_reconstructed(tmp_path):
    result = run(tmp_path / "scan.h5", *SMALL, "--snr", "inf", "--spokes", "25")
    assert result.exit_code == 0, result.output
    recon.command(tmp_path / "scan.h5", tmp_path / "images.h5")
    assert read_images(tmp_path / "images.h5")[1].data.any(axis=(1, 2, 3, 4)).tolist() == [True] * 3


def test_parts_of_the_scan_follow_its_length(tmp_path):
    result = run(tmp_path / "scan.h5", *SMALL[:6], "--frames", "12", "--json", tmp_path / "scan.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "scan.json").read_text())["baseline_frames"] == 4
    with h5py.File(tmp_path / "scan.h5") as file:
        peak = [np.nanmax(frame) for frame in file["truth/temperature"]]
    assert peak[3] == 37.0 < peak[4]
    assert peak[9] < peak[10] > peak[11]


def test_an_interruption_leaves_an_earlier_scan(tmp_path, monkeypatch):
    (tmp_path / "scan.h5").write_text("an earlier scan")

    def interrupted(scan, group):
        raise KeyboardInterrupt

    monkeypatch.setattr("sinotherm.simulation.mrd.write_truth", interrupted)
    assert run(tmp_path / "scan.h5", *SMALL).exit_code != 0
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("scan.h5", "an earlier scan")]


def test_an_image_as_object(tmp_path):
    image = np.zeros((32, 32))
    image[4:28, 4:28] = 100.0
    with h5py.File(tmp_path / "image.h5", "w") as file:
        file["person"] = image
    result = run(tmp_path / "scan.h5", *SMALL, "--object", f"{tmp_path}/image.h5:person", "--no-fat")
    assert result.exit_code == 0, result.output
    with h5py.File(tmp_path / "scan.h5") as file:
        found = file["truth/magnitude"][()]
    np.testing.assert_array_equal(found, image_of_file(f"{tmp_path}/image.h5:person", 16))


def test_an_echo_time_that_does_not_fit(tmp_path):
    result = run(tmp_path / "scan.h5", *SMALL, "--te", "30")
    assert isinstance(result.exception, SettingsError)
    assert "TE = 30 ms does not fit TR = 25 ms" in str(result.exception)
    assert not (tmp_path / "scan.h5").exists()
