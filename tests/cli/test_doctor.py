import builtins
import importlib.metadata
import shutil
import socket
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sinotherm.cli import doctor
from sinotherm.cli.doctor import Finding, command
from sinotherm.errors import SettingsError
from sinotherm.pipelines import compose, registry

Version = namedtuple("Version", "major minor micro")


def run(**environment):
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [], env={"COLUMNS": "80", **environment})
    return result.exit_code, result.stdout


def by_name(findings):
    return {finding.what: finding for finding in findings}


def test_a_sound_installation(monkeypatch):
    monkeypatch.setattr(doctor, "_pipelines", lambda: iter(()))
    code, text = run()
    assert code == 0
    for name in ("numpy", "torch", "ismrmrd", "gadgetron", "processor", "GPU", "extra openvino"):
        assert name in text
    assert "Everything that is needed is there." in text


def test_something_missing_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(
        doctor, "examine", lambda: iter([Finding(what="numpy", state="bad", text="not installed: pip install numpy")])
    )
    code, text = run()
    assert code == 1
    assert "pip install numpy" in text
    assert "1 of these must be put right" in text


def test_lines_are_folded_for_a_terminal_only(monkeypatch):
    path = "/a/path" * 20
    monkeypatch.setattr(doctor, "examine", lambda: iter([Finding(what="Python", state="ok", text=path)]))
    assert f"Python  ok    {path}" in run(FORCE_COLOR="")[1].splitlines()
    shown = run(FORCE_COLOR="1")[1]
    assert path not in shown
    assert "Everything that is needed is there." in shown


def test_packages_that_are_missing_or_too_old(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name in ("numpy", "openvino"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "scipy" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = by_name(doctor._packages())
    assert found["numpy"].state == "bad"
    assert "pip install 'numpy>=" in found["numpy"].text
    assert found["scipy"].state == "bad"
    assert "0.1 is too old" in found["scipy"].text
    assert found["extra openvino"].state == "note"
    assert "sinotherm[openvino]" in found["extra openvino"].text
    assert found["torch"].state == "ok"


def test_versions_are_compared_as_numbers():
    assert doctor._parts("2.10.0") > doctor._parts("2.9")
    assert doctor._parts("2.13.0+cpu") == (2, 13, 0)


@pytest.mark.parametrize(("version", "state"), [((3, 10, 1), "bad"), ((3, 12, 0), "ok"), ((3, 14, 0), "bad")])
def test_python(monkeypatch, version, state):
    monkeypatch.setattr(sys, "version_info", Version(*version))
    assert doctor._python().state == state


def test_a_package_that_does_not_load(monkeypatch):
    real = builtins.__import__

    def broken(name, *rest, **options):
        if name == "torch":
            raise OSError("libtorch.so: no such file")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", broken)
    found = by_name(doctor._devices())
    assert found["torch"].state == "bad"
    assert "libtorch.so" in found["torch"].text


def test_backends_are_named_only_if_they_load(monkeypatch):
    found = by_name(doctor._devices())
    assert any("numba" in finding.text for finding in found.values())
    monkeypatch.setattr(doctor, "_broken", lambda module: Finding(what=module, state="bad", text="x"))
    found = by_name(doctor._devices())
    assert found["finufft"].state == "bad"
    assert not any("kernel" in finding.text for finding in found.values())


def test_a_broken_package_is_named():
    assert doctor._broken("json") is None
    assert doctor._broken("sinotherm_not_there").state == "bad"


def test_devices(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    assert "GPU 0, GPU 1" in by_name(doctor._devices())["GPU"].text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "everything runs on the processor" in by_name(doctor._devices())["GPU"].text


def test_pipelines(monkeypatch, tmp_path):
    (tmp_path / "ours.xml").write_text('<execute name="sinotherm.nodes"/>')
    (tmp_path / "grappa.xml").write_text("<gadget/>")
    (tmp_path / "good.xml").write_text("sinotherm.nodes")
    monkeypatch.setattr(registry, "pipeline_directories", lambda directories=(): iter([tmp_path]))

    def load(name):
        if name != "good":
            raise SettingsError(f"{name} is wrong")

    monkeypatch.setattr(compose, "load_pipeline", load)
    found = by_name(doctor._pipelines())
    assert {name: finding.state for name, finding in found.items()} == {
        "pipeline good": "ok",
        "pipeline grappa": "note",
        "pipeline ours": "bad",
    }
    monkeypatch.setattr(registry, "pipeline_directories", lambda directories=(): iter(()))
    assert by_name(doctor._pipelines())["pipelines"].state == "bad"


@pytest.mark.parametrize("here", [True, False])
def test_surroundings(monkeypatch, here):
    folder = Path(sys.executable).parent if here else Path("/elsewhere")
    present = {"python": str(folder / "python"), "gadgetron": "/opt/gadgetron", "g++": "/opt/g++"} if here else {}
    monkeypatch.setattr(shutil, "which", present.get)
    found = by_name(doctor._surroundings())
    assert found["Gadgetron's Python"].state == ("ok" if here else "note")
    assert ("first on its PATH" in found["Gadgetron's Python"].text) is not here
    assert ("/opt/gadgetron" in found["Gadgetron"].text) is here
    assert ("torch can compile" in found["C++ compiler"].text) is here


@pytest.mark.parametrize("taken", [True, False])
def test_the_port(monkeypatch, taken):
    def bind(probe, address):
        if taken:
            raise OSError("in use")

    monkeypatch.setattr(socket.socket, "bind", bind)
    assert by_name(doctor._surroundings())["port 9002"].state == ("note" if taken else "ok")
