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
from sinotherm.simulation.mrd import simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan

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
    assert all(row["passed"] and row["noise_relative"] is None for row in silent)


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
