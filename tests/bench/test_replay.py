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
    record_scan(path, coils=4, spokes=8, frames=60, repetition_time_s=3e-3)
    took = replay(path)
    assert took.images == 60
    assert took.readouts == 59 * 8
    assert took.wall_s > 0
    one_frame = 4 * 256 * 256 * 8
    assert took.growth_bytes < 12 * one_frame


def test_rows_name_the_speed():
    (row,) = rows(coils=2, spokes=(8,), frames=4, method="gridding")
    assert row["frames"] == 4
    assert row["faster_than_scanner"] > 0
    assert row["cpu_us_per_readout"] > 0
