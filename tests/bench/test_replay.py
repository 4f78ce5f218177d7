import json
from importlib.resources import files

import jsonschema

from sinotherm.bench.replay import record_scan, replay, rows
from sinotherm.wire.file import MrdFile


def test_recorded_scan_holds_the_frames(tmp_path):
    path = tmp_path / "scan.h5"
    record_scan(path, coils=2, spokes=8, frames=3, repetition_time_s=3e-3)
    with MrdFile(path) as file:
        assert file.n_readouts == 24
        counters = [readout.header.scan_counter for readout in file.readouts()]
    assert counters == list(range(24))


def test_every_frame_becomes_an_image_and_memory_stays(tmp_path):
    path = tmp_path / "scan.h5"
    # Frames are large and a readout is small: what piled up would show.
    record_scan(path, coils=2, spokes=8, frames=40, repetition_time_s=3e-3)
    took = replay(path, "gridding")
    assert took.images == 40
    assert took.readouts == 39 * 8
    assert took.wall_s > 0
    one_frame = 2 * 256 * 256 * 8
    assert took.growth_bytes < 16 * one_frame


def test_rows_name_the_speed():
    (row,) = rows(coils=2, spokes=(8,), frames=4, method="gridding")
    assert row["frames"] == 4
    assert row["faster_than_scanner"] > 0
    assert row["cpu_us_per_readout"] > 0
    schema = json.loads(files("sinotherm").joinpath("schemas/bench.json").read_text())
    jsonschema.validate(row, schema["$defs"]["replay"])


def test_a_network_makes_one_image_a_frame(tmp_path):
    path = tmp_path / "scan.h5"
    record_scan(path, coils=2, spokes=32, frames=4, repetition_time_s=3e-3)
    assert replay(path, "pdunet").images == 4
