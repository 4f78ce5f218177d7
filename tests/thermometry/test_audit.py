import csv
import errno
import fcntl
import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from sinotherm.core.scan import FrameStatistics, TemperatureMap
from sinotherm.thermometry.audit import COLUMNS, AuditLog

PLANE = np.ones((1, 3, 3), np.float32)


def _frame(number: int) -> tuple[TemperatureMap, FrameStatistics]:
    found = TemperatureMap(
        change_degc=PLANE, sigma_degc=PLANE, validity=PLANE.astype(np.uint16), number=number, cem43_min=2 * PLANE
    )
    row = {"region": "tumour", "quantity": "temperature", "n": 9, "voxels": 9, "t50_degc": np.float32(41.5)}
    statistics = FrameStatistics(
        number=number, time_s=float("nan"), regions=(row,), alarms=("motion: 2 px", "wrap risk: x"), meta={"a": (1, 2)}
    )
    return found, statistics


def _lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def test_every_frame_is_on_disk_before_the_next(tmp_path) -> None:
    folder = tmp_path / "new" / "log"
    with AuditLog(folder, keep_maps=True) as log:
        log.write("scan", {"settings": {"x": float("inf")}})
        for number in range(3):
            log.frame(*_frame(number))
            lines = _lines(folder)
            assert lines[-1]["frame"] == number
            assert (folder / "maps" / log.run / f"frame_{number:06d}_slice0.npz").is_file()
            rows = list(csv.DictReader((folder / "regions.csv").read_text().splitlines()))
            assert len(rows) == number + 1
    assert rows[0]["t50_degc"] == "41.5"
    assert rows[0]["alarms"] == "motion: 2 px; wrap risk: x"
    assert lines[0]["settings"] == {"x": None}
    assert lines[1]["time_s"] is None
    assert _lines(folder)[-1]["reason"] == "complete"
    with np.load(folder / "maps" / log.run / "frame_000001_slice0.npz") as stored:
        assert set(stored.files) == {"change_degc", "sigma_degc", "cem43_min", "validity"}
        np.testing.assert_array_equal(stored["cem43_min"], 2 * PLANE)


@pytest.mark.parametrize("name", ["audit.jsonl", "regions.csv"])
def test_a_full_disk_is_a_problem_and_no_error(tmp_path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    with AuditLog(tmp_path, keep_maps=True) as log:
        assert not log.problem
        log.frame(*_frame(0))
        assert "No space left" in log.problem
    assert (tmp_path / "maps" / log.run / "frame_000000_slice0.npz").is_file()


def test_a_map_that_cannot_be_kept_leaves_no_part_and_the_log_goes_on(tmp_path, monkeypatch) -> None:
    def full(path, **arrays) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    with AuditLog(tmp_path, keep_maps=True) as log:
        with monkeypatch.context() as patched:
            patched.setattr(np, "savez", full)
            log.frame(*_frame(0))
        assert log.problem
        assert not list((tmp_path / "maps" / log.run).iterdir())
        log.frame(*_frame(1))
        assert not log.problem
    assert [line.get("frame") for line in _lines(tmp_path)] == [1, None]


def test_a_restart_appends_and_a_failure_is_named(tmp_path) -> None:
    with AuditLog(tmp_path, keep_maps=False) as log:
        log.frame(*_frame(0))

    def fail() -> None:
        with AuditLog(tmp_path, keep_maps=False) as log:
            log.frame(*_frame(1))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert [line["record"] for line in _lines(tmp_path)] == ["frame", "end", "frame", "end"]
    assert _lines(tmp_path)[-1]["reason"] == "ValueError: broken"
    assert len((tmp_path / "regions.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "maps").exists()


def test_a_restart_touches_no_finished_map_and_its_lines_are_told_apart(tmp_path) -> None:
    with AuditLog(tmp_path, keep_maps=True) as first:
        first.frame(*_frame(0))
    finished = tmp_path / "maps" / first.run / "frame_000000_slice0.npz"
    before = finished.read_bytes()
    for name in ("audit.jsonl", "regions.csv"):
        with (tmp_path / name).open("a") as file:
            file.write("cut off in the middle of a li")
    found, statistics = _frame(0)
    with AuditLog(tmp_path, keep_maps=True) as second:
        second.frame(replace(found, change_degc=PLANE + 1), statistics)
    assert finished.read_bytes() == before
    assert (tmp_path / "maps" / second.run / finished.name).is_file()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines() if line[0] == "{"]
    assert [line["run"] for line in lines] == [first.run] * 2 + [second.run] * 2
    rows = list(csv.DictReader((tmp_path / "regions.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == [first.run, None, second.run]


def test_the_map_without_the_spatial_filter_is_kept_where_there_is_one(tmp_path) -> None:
    found, statistics = _frame(0)
    with AuditLog(tmp_path, keep_maps=True) as log:
        log.frame(replace(found, unfiltered_degc=3 * PLANE), statistics)
    with np.load(tmp_path / "maps" / log.run / "frame_000000_slice0.npz") as stored:
        np.testing.assert_array_equal(stored["unfiltered_degc"], 3 * PLANE)
        np.testing.assert_array_equal(stored["change_degc"], PLANE)


def test_scans_at_the_same_time_share_one_head(tmp_path) -> None:
    with AuditLog(tmp_path, keep_maps=False) as first, AuditLog(tmp_path, keep_maps=False) as second:
        for log in (second, first, second):
            log.frame(*_frame(0))
    rows = list(csv.DictReader((tmp_path / "regions.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == [second.run, first.run, second.run]


def test_of_scans_that_begin_together_one_writes_the_head(tmp_path) -> None:
    def scan() -> None:
        with AuditLog(tmp_path, keep_maps=False) as log:
            log.frame(*_frame(0))

    with (tmp_path / "regions.csv").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=scan)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        other.write(",".join(COLUMNS) + "\r\n")
    thread.join(10)
    rows = (tmp_path / "regions.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["frame", "0"]


def test_a_lock_that_somebody_keeps_holds_no_scan_up(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sinotherm.thermometry.audit._LOCK_S", 0.05)
    with (tmp_path / "regions.csv").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with AuditLog(tmp_path, keep_maps=False) as log:
            log.frame(*_frame(0))
    assert len((tmp_path / "regions.csv").read_text().splitlines()) == 2


def test_a_disk_that_knows_no_locks_is_written_to(tmp_path, monkeypatch) -> None:
    def unable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unable)
    with AuditLog(tmp_path, keep_maps=False) as log:
        log.frame(*_frame(0))
    assert len((tmp_path / "regions.csv").read_text().splitlines()) == 2


def test_maps_and_rows_of_two_reconstructions_are_told_apart(tmp_path) -> None:
    with AuditLog(tmp_path, keep_maps=True) as log:
        for method, beside in (("gridding", {"beside": "pdunet"}), ("pdunet", {})):
            found, statistics = _frame(4)
            meta = {"method": method} | beside
            log.frame(replace(found, meta=meta), replace(statistics, meta=meta))
    names = sorted(path.name for path in (tmp_path / "maps" / log.run).iterdir())
    assert names == ["frame_000004_slice0.npz", "frame_000004_slice0_gridding.npz"]
    rows = list(csv.DictReader((tmp_path / "regions.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["gridding", "pdunet"]
    assert [line["method"] for line in _lines(tmp_path) if line["record"] == "frame"] == ["gridding", "pdunet"]
