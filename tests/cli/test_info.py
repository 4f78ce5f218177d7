import json
from importlib.resources import files

import h5py
import ismrmrd
import jsonschema
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from sinotherm.cli.info import command, describe
from sinotherm.errors import FileFormatError
from sinotherm.wire.file import AcquisitionWriter, ImageWriter
from sinotherm.wire.messages import Readout

SPACE = (
    "<{0}><matrixSize><x>{1}</x><y>{1}</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>{2}</x><y>{2}</y><z>5</z></fieldOfView_mm></{0}>"
)
HEADER = (
    "<ismrmrdHeader><encoding>"
    + SPACE.format("encodedSpace", 32, 600)
    + SPACE.format("reconSpace", 16, 300)
    + "<trajectory>{}</trajectory></encoding></ismrmrdHeader>"
)


def readout(counter, angle=None, flags=(), **head):
    data = np.ones((2, 32), np.complex64)
    kappa = (np.arange(32) - 16) / 32
    trajectory = np.zeros((32, 0)) if angle is None else np.stack((kappa * np.cos(angle), kappa * np.sin(angle)), 1)
    acquisition = ismrmrd.Acquisition.from_array(data, trajectory.astype(np.float32))
    acquisition.scan_counter = counter
    for name, value in head.items():
        setattr(acquisition, name, value)
    for flag in flags:
        acquisition.set_flag(flag)
    return Readout(header=acquisition.getHead(), data=data, trajectory=trajectory.astype(np.float32))


def write(path, readouts, trajectory="radial"):
    with AcquisitionWriter(path, HEADER.format(trajectory).encode()) as writer:
        for item in readouts:
            writer.append(item)
    return path


@pytest.fixture
def app():
    made = typer.Typer()
    made.command()(command)
    return made


def screen(app, path, *options):
    result = CliRunner().invoke(app, [str(path), *options], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


@pytest.mark.data
def test_the_tiny_scan(app, shared_data, tmp_path):
    text = screen(app, shared_data / "wire" / "tiny_radial.h5", "--json", str(tmp_path / "info.json"))
    assert "16 x 16 pixels, 240 x 240 x 8 mm" in text
    assert "radial; angles from the trajectory, detected unit: cycles" in text
    assert "17: 16 spokes, noise: 1 (32 samples)" in text
    assert "TE 12.5 ms" in text
    assert "B0 1.5 T; f0: 6.38662e+07 Hz" in text
    assert "2 images of 8 spokes" in text
    record = json.loads((tmp_path / "info.json").read_text())
    schema = json.loads((files("sinotherm") / "schemas" / "info.json").read_text())
    jsonschema.validate(record, schema)
    assert record["frames"] == 2
    assert record["duration_s"] == pytest.approx(0.375)
    assert record["commit"] is None or isinstance(record["commit"], str)


@pytest.mark.data
def test_the_real_scan_is_silent_about_much(app, shared_data):
    path = shared_data / "radial_cardiac_perfusion_goldenangle" / "radial_perfusion_7x30spokes_ismrmrd.h5"
    text = screen(app, path)
    assert "TE not stated" in text
    assert "TR not stated" in text
    assert "no time stamps" in text
    assert "centre at 143.5, spacing 1/287" in text
    assert "7 images of 30 spokes" in text
    assert "no noise scan" in text
    assert "thermometry needs TE, which the header does not state" in text


def test_gaps_and_other_readouts(tmp_path, app):
    dummy = [ismrmrd.ACQ_IS_DUMMYSCAN_DATA]
    last = [ismrmrd.ACQ_LAST_IN_REPETITION]
    items = [
        readout(0, flags=dummy),
        *(readout(i, 0.1 * i) for i in (1, 2, 5)),
        readout(6, 0.6, last),
        readout(7, 0.7),
    ]
    path = write(tmp_path / "scan.h5", items)
    figures = describe(path)
    assert figures["other_readouts"] == {"dummy": 1}
    assert (figures["readouts_missing"], figures["readouts_repeated"]) == (2, 0)
    assert (figures["frames"], figures["spokes_per_frame"], figures["spokes_left_over"]) == (1, [4], 1)
    text = screen(app, path)
    assert "6: 5 spokes, noise: none, 1 dummy" in text
    assert "2 readouts missing, 0 repeated" in text
    assert "1 spokes are left over" in text
    assert "TE and f0" in text


def test_angles_without_a_trajectory(tmp_path, app):
    path = write(tmp_path / "scan.h5", [readout(i) for i in range(3)], "goldenangle")
    assert "goldenangle; no trajectory; angles: golden" in screen(app, path)
    assert describe(path)["trajectory_unit"] is None


def test_what_cannot_be_reconstructed_is_said(tmp_path, app):
    path = write(tmp_path / "scan.h5", [readout(0)], "cartesian")
    assert describe(path)["spokes"] == 0
    text = screen(app, path)
    assert "not reconstructed: readout 0 has no trajectory and the header says 'cartesian'" in text
    assert "cartesian; no spokes" in text


def test_a_file_of_images(tmp_path, app):
    path = tmp_path / "images.h5"
    with ImageWriter(path, HEADER.format("radial").encode()) as writer:
        image = ismrmrd.Image.from_array(np.zeros((1, 1, 4, 6), np.float32), transpose=False)
        image.image_series_index = 3
        writer.append(image)
        image = ismrmrd.Image.from_array(np.zeros((1, 1, 5, 6), np.int16), transpose=False)
        image.image_series_index = 3
        writer.append(image)
    text = screen(app, path)
    assert "series 3 1 images, 1 x 1 x 4 x 6 float32" in text
    assert "series 3 1 images, 1 x 1 x 5 x 6 int16" in text
    assert "nothing: there is no complete frame" in text


@pytest.mark.parametrize(
    ("dtype", "more", "said"),
    [
        (np.complex64, (), "series 2"),
        (np.complex128, (11,), "series 2, 11"),
        (np.complex64, (11, 12, 13), "series 2, 11; without maps: 12, 13"),
    ],
)
def test_complex_images_can_become_temperature_maps(tmp_path, app, dtype, more, said):
    path = tmp_path / "images.h5"
    with ImageWriter(path, HEADER.format("cartesian").encode()) as writer:
        kinds = [(1, np.float32, "magnitude"), (2, dtype, "complex"), (7, dtype, "sinogram")]
        for series, kind, product in (*kinds, *((number, dtype, "complex") for number in more)):
            image = ismrmrd.Image.from_array(np.zeros((1, 1, 4, 6), kind), transpose=False)
            image.image_series_index = series
            image.meta = {"sinotherm_product": product}
            writer.append(image)
    text = screen(app, path)
    assert f"temperature maps of the complex images ({said}): -p thermometry; thermometry needs TE and f0" in text
    assert "nothing" not in text


def test_a_damaged_series_does_not_hide_the_rest(tmp_path, app):
    path = write(tmp_path / "scan.h5", [readout(i, 0.1 * i) for i in range(3)])
    with h5py.File(path, "r+") as file:
        file["dataset"].create_group("image_1")
    text = screen(app, path, "--json", str(tmp_path / "info.json"))
    assert "3: 3 spokes" in text
    assert "image_1 lacks one of header, attributes, data." in text
    record = json.loads((tmp_path / "info.json").read_text())
    jsonschema.validate(record, json.loads((files("sinotherm") / "schemas" / "info.json").read_text()))
    assert len(record["image_problems"]) == 1


def test_frames_before_a_bad_readout_are_counted(tmp_path, app):
    items = [readout(0, 0.0), readout(1, 0.1, [ismrmrd.ACQ_LAST_IN_REPETITION]), readout(2, 0.2), readout(3)]
    text = screen(app, write(tmp_path / "scan.h5", items, "cartesian"))
    assert "1 images of 2 spokes" in text
    assert "it ends there: readout 3 has no trajectory" in text


def test_no_mrd_file(tmp_path):
    with pytest.raises(FileFormatError):
        describe(tmp_path / "none.h5")
