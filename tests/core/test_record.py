import json
import math
import subprocess
from importlib.metadata import PackageNotFoundError

import pytest

from sinotherm.core import record
from sinotherm.errors import SettingsError


def test_figures_stand_beside_machine_versions_and_commit():
    made = record.figures_record("sinotherm demo", {"wall_s": 3.5})
    assert made["command"] == "sinotherm demo"
    assert made["wall_s"] == 3.5
    assert made["schema"] == 1
    assert made["time"].endswith("+00:00")
    assert made["versions"]["numpy"]
    assert made["machine"]["cores"] >= 1
    assert made["machine"]["memory_GiB"] > 0
    assert "results" not in made


def test_rows_become_results():
    made = record.figures_record("sinotherm bench", [{"coils": 8}])
    assert made["results"] == [{"coils": 8}]


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(record, "version", version)
    assert record.figures_record("x", {})["versions"] == {}


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [("abc123-dirty\n", "abc123-dirty"), ("\n", None), (FileNotFoundError("git"), None)],
)
def test_the_commit_of_a_checkout_or_none(monkeypatch, outcome, expected):
    def run(*arguments, **options):
        if isinstance(outcome, Exception):
            raise outcome
        return subprocess.CompletedProcess(arguments, 0, stdout=outcome)

    monkeypatch.setattr(record.subprocess, "run", run)
    assert record.figures_record("x", {})["commit"] == expected


@pytest.mark.parametrize("text", ["flags : x\nmodel name\t: Fast CPU\n", "flags: x\n", None])
def test_the_processor_is_named(monkeypatch, text):
    def read_text(path, encoding):
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(record.Path, "read_text", read_text)
    monkeypatch.setattr(record.platform, "processor", lambda: "")
    expected = "Fast CPU" if text and "model" in text else record.platform.machine()
    assert record.machine()["processor"] == expected


def test_what_json_cannot_say_is_null_and_named(tmp_path, caplog):
    path = tmp_path / "record.json"
    record.write_record(path, {"a": None, "n": 1, "part": {"b": 2.0}, "results": [{"c": "x"}]})
    assert json.loads(path.read_text()) == {"a": None, "n": 1, "part": {"b": 2.0}, "results": [{"c": "x"}]}
    assert not caplog.records
    record.write_record(path, {"a": math.nan, "part": {"b": math.inf}, "results": ({"c": 1}, {"c": -math.inf})})
    assert json.loads(path.read_text()) == {"a": None, "part": {"b": None}, "results": [{"c": 1}, {"c": None}]}
    assert "null in the record: a, part.b, results[1].c" in caplog.text


def test_a_file_that_cannot_be_written_is_told_beforehand(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    assert record.writable(None) is None
    assert record.writable(path) == path
    assert not path.exists()
    with pytest.raises(SettingsError, match="it is a folder"):
        record.writable(tmp_path)
    with pytest.raises(SettingsError, match=r"there is no folder .*none; make it first"):
        record.writable(tmp_path / "none" / "a.json")
    path.touch()
    with pytest.raises(SettingsError, match="there is no folder"):
        record.writable(path / "b.json")
    monkeypatch.setattr(record.os, "access", lambda place, _: place != path)
    assert record.writable(tmp_path / "b.json")
    with pytest.raises(SettingsError, match="permission is denied"):
        record.writable(path)


def test_a_folder_is_made_before_the_work(tmp_path, monkeypatch):
    assert record.writable_folder(None) is None
    assert record.writable_folder(tmp_path / "new" / "one") == tmp_path / "new" / "one"
    assert (tmp_path / "new" / "one").is_dir()
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "one"):
        with pytest.raises(SettingsError, match="cannot be made a folder"):
            record.writable_folder(place)
    monkeypatch.setattr(record.os, "access", lambda *_: False)
    with pytest.raises(SettingsError, match="permission is denied"):
        record.writable_folder(tmp_path)
