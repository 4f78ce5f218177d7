import signal
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from sinotherm.cli.evaluate import app
from sinotherm.errors import SettingsError


def test_thermo_hands_its_options_to_the_evaluation(monkeypatch):
    seen = {}

    def command(spokes: str = "40", snr: float = 40.0) -> None:
        """Score series."""
        seen.update(spokes=spokes, snr=snr)

    module = types.ModuleType("sinotherm.evaluation.thermo")
    module.command = command
    monkeypatch.setitem(sys.modules, "sinotherm.evaluation.thermo", module)
    assert CliRunner().invoke(app, ["thermo", "--spokes", "25,40"]).exit_code == 0
    assert seen == {"spokes": "25,40", "snr": 40.0}
    help_text = CliRunner().invoke(app, ["thermo", "--help"])
    assert "--spokes" in help_text.output


def test_the_help_names_what_the_options_take(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    seen = []
    monkeypatch.setattr("sinotherm.evaluation.radial.run", lambda *_, **options: seen.append(options["angles"]))
    assert "uniform, golden, or uniform,golden." in CliRunner().invoke(app, ["radial", "--help"]).output
    assert "rf (diffuse, a frame every 20 s), focal" in CliRunner().invoke(app, ["thermo", "--help"]).output
    assert CliRunner().invoke(app, ["radial", "--angles", "uniform,golden"]).exit_code == 0
    assert seen == [["uniform", "golden"]]
    refused = CliRunner().invoke(app, ["radial", "--angles", "both"]).exception
    assert isinstance(refused, SettingsError)
    assert "uniform, golden, or uniform,golden is needed" in str(refused)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_of_thermo_is_no_success(number):
    program = f"""
import os, signal, sys, types
from sinotherm.cli.__main__ import main
# Who runs tests in the background of a shell has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
def command() -> None:
    os.kill(os.getpid(), {number:d})
    while True:
        pass
sys.modules["sinotherm.evaluation.thermo"] = module = types.ModuleType("sinotherm.evaluation.thermo")
module.command = command
sys.argv = ["sinotherm", "evaluate", "thermo"]
main()
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 130


@pytest.mark.parametrize(
    "arguments",
    [
        ["radial", "--split", "test"],
        ["radial", "--coils", "1;8"],
        ["radial", "--coils", "8,0"],
        ["radial", "--spokes", "-32"],
        ["ct", "--split", "x"],
        ["thermo", "--spokes", "nan"],
        ["thermo", "--spokes", "40.7"],
        ["thermo", "--spokes", "40,0"],
        ["thermo", "--peaks", "44,inf"],
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(arguments):
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SettingsError)


@pytest.mark.parametrize("command", ["radial", "ct", "cartesian", "thermo"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path, command):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, [command, "--data", str(tmp_path / "none"), "-o", str(tmp_path / "file")])
    assert isinstance(result.exception, SettingsError)
    assert "cannot be made a folder" in str(result.exception)


def test_a_heating_curve_that_is_missing_is_named_by_its_option(tmp_path):
    result = CliRunner().invoke(app, ["thermo", "--temperature", str(tmp_path / "none.csv")])
    assert str(result.exception).startswith(f"--temperature {tmp_path / 'none.csv'}: ")
