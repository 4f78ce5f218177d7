import dataclasses
import json
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from direct_radial import ellipse_scan
from sinotherm.cli.qa import app
from sinotherm.core.geometry import spoke_angles
from sinotherm.core.scan import Spoke
from sinotherm.errors import SpokeError
from sinotherm.evaluation.acceptance import coil_rows, delay_rows
from sinotherm.frames.delay import GradientDelay
from sinotherm.frames.whitening import is_noise
from sinotherm.simulation.mrd import simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan
from sinotherm.wire.file import AcquisitionWriter, MrdFile

N = 64


def spokes_of(schedule, delay, n_coils=3, n_spokes=48, coil=None):
    angles = spoke_angles(schedule, n_spokes)
    data, sampling = ellipse_scan(N, angles, n_coils=n_coils, delay=delay, noise=0.5)
    if coil is not None:
        data[coil] = 0.01 * data[coil] + 3000 * np.exp(
            -2j * np.pi * 0.8 * N * sampling.positions * np.cos(angles)[:, None]
        )
    return [Spoke(data=data[:, i], sampling=sampling, angle_rad=float(a)) for i, a in enumerate(angles)]


def test_delays_of_the_parts_agree_and_small_ones_pass():
    rows = delay_rows(spokes_of("golden", (0.6, -0.3, 0.1)))
    assert [row["part"] for row in rows] == ["all", "even spokes", "odd spokes", "first half", "second half"]
    for row in rows:
        assert row["x_samples"] == pytest.approx(0.6, abs=0.06)
        assert row["y_samples"] == pytest.approx(-0.3, abs=0.06)
        assert row["passed"]


def test_large_delays_fail_and_opposed_spokes_are_shown_beside():
    rows = delay_rows(spokes_of("uniform360", (1.8, 1.8, 0.0)))
    assert [row["method"] for row in rows].count("opposed") == 1
    assert rows[-1]["x_samples"] == pytest.approx(1.8, abs=0.1)
    assert not any(row["passed"] for row in rows)


def test_delays_that_the_trajectory_states_are_none():
    delay = GradientDelay(x=1.8, y=1.8)
    spokes = [
        dataclasses.replace(one, shift=delay.shift(one.angle_rad, one.sampling))
        for one in spokes_of("uniform360", (1.8, 1.8, 0.0))
    ]
    rows = delay_rows(spokes)
    assert [row["passed"] for row in rows] == [True] * 6
    assert max(abs(row["x_samples"]) for row in rows) < 0.05


def test_a_delay_that_changes_during_the_scan_fails():
    early, late = spokes_of("golden", (0.5, 0.5, 0.0)), spokes_of("golden", (-0.5, -0.5, 0.0))
    rows = {row["part"]: row for row in delay_rows(early[:24] + late[24:])}
    assert not rows["first half"]["passed"]
    assert not rows["second half"]["passed"]


def test_coils_are_judged_by_noise_correlation_and_streaks():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((5, 4000)) + 1j * rng.standard_normal((5, 4000))
    noise[1] = 0.8 * noise[0] + 0.6 * noise[1]
    noise[2] *= 5.0
    rows = coil_rows(noise.astype(np.complex64), spokes_of("golden", (0.0, 0.0, 0.0), 5, coil=3), N)
    assert rows[1]["correlated_with"] == 0
    assert rows[1]["largest_correlation"] == pytest.approx(0.8, abs=0.05)
    assert rows[2]["noise_relative"] == pytest.approx(5.0, rel=0.1)
    assert rows[3]["streak_relative"] > 2.0
    assert [row["passed"] for row in rows] == [False, False, False, False, True]
    silent = coil_rows(np.empty((0, 0), np.complex64), spokes_of("golden", (0.0, 0.0, 0.0), 5), N)
    assert all(row["noise_relative"] is None and row["streak_relative"] < 2.0 for row in silent)
    assert not any(row["passed"] for row in silent)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_coils_of_zeros_do_not_pass(noise):
    rng = np.random.default_rng(0)
    samples = noise * (rng.standard_normal((3, 4000)) + 1j * rng.standard_normal((3, 4000)))
    spokes = spokes_of("golden", (0.0, 0.0, 0.0))
    dead = [dataclasses.replace(s, data=s.data * np.array([[1], [0], [1]], np.complex64)) for s in spokes]
    rows = coil_rows(samples.astype(np.complex64), dead, N)
    assert [row["passed"] for row in rows] == [noise > 0, False, noise > 0]
    assert rows[1]["streak_relative"] is None
    empty = [dataclasses.replace(s, data=np.zeros_like(s.data)) for s in spokes]
    assert not any(row["passed"] for row in coil_rows(samples.astype(np.complex64), empty, N))


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("qa") / "scan.h5"
    protocol = Protocol(
        matrix=48,
        n_coils=4,
        spokes=40,
        frames=2,
        baseline_frames=1,
        cooling_frames=0,
        schedule="golden",
        delay_x=0.7,
        delay_y=0.2,
        dummy_scans=0,
    )
    simulate(Scan(protocol=protocol), path)
    return path


@pytest.mark.parametrize("command", ["delay", "coils"])
def test_command_prints_and_records_by_its_schema(command, scan_file, tmp_path):
    record = tmp_path / "qa.json"
    result = CliRunner().invoke(app, [command, str(scan_file), "--spokes", "80", "--json", str(record)])
    assert result.exit_code == 0, result.output
    assert "passed" in result.output
    written = json.loads(record.read_text())
    jsonschema.validate(written, json.loads((files("sinotherm") / f"schemas/qa_{command}.json").read_text()))
    if command == "delay":
        assert written["results"][0]["x_samples"] == pytest.approx(0.7, abs=0.1)
        assert written["results"][0]["y_samples"] == pytest.approx(0.2, abs=0.1)
    else:
        assert len(written["results"]) == 4


def changed(scan_file, path, change):
    with MrdFile(scan_file) as file, AcquisitionWriter(path, file.header_xml) as writer:
        for readout in file.readouts():
            made = change(readout)
            if made is not None:
                writer.append(made)
    return path


def test_streaks_are_laid_to_the_coil_that_makes_them(scan_file, tmp_path):
    """Noise correlation mixes the coils in whitening, each into those after it."""
    mixing = np.linalg.cholesky(np.full((4, 4), 0.4) + 0.6 * np.eye(4))
    rng = np.random.default_rng(0)

    def streaky(readout):
        shape = readout.data.shape
        data = (mixing @ (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))).astype(np.complex64)
        if not is_noise(readout.header):
            data = 1e-3 * np.abs(readout.data).max() * data + readout.data
            along = readout.trajectory[:, 0] * 38.0
            data[1] += (3.0 * np.abs(readout.data).max() * np.exp(-2j * np.pi * along)).astype(np.complex64)
        return dataclasses.replace(readout, data=data.astype(np.complex64))

    record = tmp_path / "qa.json"
    path = changed(scan_file, tmp_path / "streaky.h5", streaky)
    result = CliRunner().invoke(app, ["coils", str(path), "--spokes", "80", "--json", str(record)])
    assert result.exit_code == 1
    passed = [row["passed"] for row in json.loads(record.read_text())["results"]]
    assert passed == [True, False, True, True]


def test_what_could_not_be_judged_is_said(scan_file, tmp_path):
    quiet = changed(scan_file, tmp_path / "quiet.h5", lambda r: None if is_noise(r.header) else r)
    result = CliRunner().invoke(app, ["coils", str(quiet)])
    assert result.exit_code == 1
    assert "NOT passed\nno noise readouts in the scan" in result.output

    def zeros(readout):
        return dataclasses.replace(readout, data=np.zeros_like(readout.data))

    record = tmp_path / "qa.json"
    empty = changed(scan_file, tmp_path / "empty.h5", zeros)
    result = CliRunner().invoke(app, ["coils", str(empty), "--json", str(record)])
    assert result.exit_code == 1
    assert "no signal in coil 0, 1, 2, 3: zeros only" in result.output
    jsonschema.validate(
        json.loads(record.read_text()), json.loads((files("sinotherm") / "schemas/qa_coils.json").read_text())
    )


def test_failure_is_the_exit_code(scan_file, monkeypatch):
    for name in ("DELAY_LIMIT", "STREAK_LIMIT"):
        monkeypatch.setattr(f"sinotherm.evaluation.acceptance.{name}", 0.0)
    for command in ("delay", "coils"):
        result = CliRunner().invoke(app, [command, str(scan_file)])
        assert result.exit_code == 1
        assert "NOT passed" in result.output


def test_a_file_without_spokes_is_refused(tmp_path, scan_file):
    import h5py

    empty = tmp_path / "empty.h5"
    with h5py.File(scan_file) as source, h5py.File(empty, "w") as target:
        group = target.create_group("dataset")
        source.copy("dataset/xml", group)
    with pytest.raises(SpokeError, match="no spokes of slice 0"):
        CliRunner().invoke(app, ["coils", str(empty)], catch_exceptions=False)
