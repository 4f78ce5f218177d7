import json
from importlib.resources import files

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from sinotherm.cli.demo import command
from sinotherm.errors import WireError
from sinotherm.evaluation import demonstration
from sinotherm.simulation.protocol import Protocol

TINY = Protocol(
    matrix=64, n_coils=4, spokes=101, frames=6, baseline_frames=2, cooling_frames=1, noise_scans=16, dummy_scans=2,
    repetition_time_s=0.1,
)  # fmt: skip


FAST = Protocol(
    matrix=128, n_coils=4, spokes=40, frames=9, baseline_frames=5, cooling_frames=1, schedule="golden", noise_scans=16,
    dummy_scans=2,
)  # fmt: skip


@pytest.mark.slow
def test_the_network_beside_gridding(tmp_path, monkeypatch):
    monkeypatch.setattr(demonstration, "DEMO", TINY)
    monkeypatch.setattr(demonstration, "ACCELERATED", FAST)
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["-o", str(tmp_path / "d"), "--keep-scan"])
    assert result.exit_code == 0, result.output
    assert {"accelerated.png", "accelerated.h5", "accelerated_scan.h5"} <= {p.name for p in (tmp_path / "d").iterdir()}
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    jsonschema.validate(report, json.loads((files("sinotherm.schemas") / "demo.json").read_text()))
    fast = report["accelerated"]
    assert fast["pdunet"]["frames_received"] == fast["gridding"]["frames_received"] == 9
    assert fast["guard_trips"] == 0
    assert fast["pdunet"]["tumour_rmse_degC"] < 0.5 * fast["gridding"]["tumour_rmse_degC"]


def test_a_demo_that_fails_leaves_no_scan(tmp_path, monkeypatch):
    def fail(folder, *_, **__):
        (folder / "scan.h5").write_bytes(b"0.7 GB")
        raise WireError("no place left")

    monkeypatch.setattr(demonstration, "demonstrate", fail)
    app = typer.Typer()
    app.command()(command)
    for options, left in (["--keep-scan"], ["scan.h5"]), ([], []):
        assert isinstance(CliRunner().invoke(app, ["-o", str(tmp_path), *options]).exception, WireError)
        assert [path.name for path in tmp_path.iterdir()] == left


@pytest.mark.slow
def test_report_images_and_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(demonstration, "DEMO", TINY)
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(
        app, ["-o", str(tmp_path / "d"), "--seed", "3", "--json", str(tmp_path / "f.json"), "--no-accelerated"]
    )
    assert result.exit_code == 0, result.output
    assert "6 of 6" in result.stdout
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["images.h5", "overview.png", "report.json"]
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    jsonschema.validate(report, json.loads((files("sinotherm.schemas") / "demo.json").read_text()))
    assert report["seed"] == 3
    assert report == json.loads((tmp_path / "f.json").read_text())
