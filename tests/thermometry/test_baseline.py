import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import EncodingSpace, FrameImage, ScanHeader, Spoke
from sinotherm.errors import BaselineError
from sinotherm.thermometry.baseline import (
    Baseline,
    BaselineBuilder,
    check_fingerprint,
    effective_frames,
    fingerprint_of,
    load_baseline,
    outliers,
    save_baseline,
    stored_estimates,
)

SPACE = EncodingSpace(matrix=(8, 8, 1), fov_m=(0.2, 0.2, 0.005))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial", larmor_hz=63.87e6, echo_times_s=(0.019,))
SHAPE = (2, 1, 8, 8)


def _image(number: int, data: np.ndarray | None = None, **changes) -> FrameImage:
    values = np.full(SHAPE, 1.0 + 2.0j, np.complex64) if data is None else data.astype(np.complex64)
    return FrameImage(data=values, number=number, **changes)


def _spokes(first: int, count: int) -> tuple[Spoke, ...]:
    sampling = RadialSampling(n_readout=4, spacing=0.25, centre=2.0)
    return tuple(
        Spoke(data=np.zeros((1, 4), np.complex64), sampling=sampling, angle_rad=0.0, index=index)
        for index in range(first, first + count)
    )


def test_baseline_is_the_mean_and_its_noise_falls() -> None:
    random = np.random.default_rng(0)
    frames = [random.standard_normal(SHAPE) + 1j * random.standard_normal(SHAPE) for _ in range(4)]
    builder = BaselineBuilder(4)
    for number, data in enumerate(frames):
        assert not builder.complete
        builder.add(_image(number, data, footprint=(number, number + 0.5, number + 1)))
    assert builder.complete
    baseline = builder.build(SCAN)
    np.testing.assert_allclose(baseline.data, np.mean(frames, axis=0), rtol=1e-5, atol=1e-6)
    assert baseline.data.dtype == np.complex64
    assert (baseline.n_effective, baseline.frames, baseline.time_s) == (4.0, (0, 1, 2, 3), 3.5)
    assert len(baseline.name) == 12


def test_a_moved_frame_is_left_out() -> None:
    random = np.random.default_rng(1)
    still = random.standard_normal(SHAPE)
    frames = [still * np.exp(0.1j * n) + 0.01 * random.standard_normal(SHAPE) for n in range(6)]
    frames[2] = np.roll(frames[2], 1, axis=-1)
    assert outliers(frames) == [False, False, True, False, False, False]
    builder = BaselineBuilder(6)
    for number, data in enumerate(frames):
        builder.add(_image(number, data))
    baseline = builder.build(SCAN)
    assert (baseline.rejected, len(baseline.frames)) == ((2,), 5)


def test_three_frames_have_no_outlier() -> None:
    assert outliers([np.zeros(SHAPE), np.ones(SHAPE), np.ones(SHAPE)]) == [False] * 3


def test_a_frame_with_a_value_that_is_not_finite_is_left_out() -> None:
    random = np.random.default_rng(4)
    frames = [1.0 + 0.01 * random.standard_normal(SHAPE) for _ in range(6)]
    frames[1][0, 0, 3, 3] = np.nan
    frames[4] = np.roll(frames[4] + np.arange(8), 3, axis=-1)
    assert outliers(frames) == [False, True, False, False, True, False]
    assert outliers(frames[:3]) == [False, True, False]
    builder = BaselineBuilder(6)
    for number, data in enumerate(frames):
        builder.add(_image(number, data))
    baseline = builder.build(SCAN)
    assert (baseline.rejected, baseline.frames, baseline.n_effective) == ((1, 4), (0, 2, 3, 5), 4.0)
    assert np.isfinite(baseline.data).all()


def test_a_frame_that_lost_readouts_is_left_out() -> None:
    builder = BaselineBuilder(3)
    for number, spokes in enumerate(("23", "40", "40")):
        builder.add(_image(number, fingerprint={"method": "fbp", "spokes": spokes}))
    baseline = builder.build(SCAN)
    assert (baseline.rejected, baseline.frames, baseline.fingerprint["spokes"]) == ((0,), (1, 2), "40")


def test_most_frames_are_not_finite() -> None:
    builder = BaselineBuilder(3)
    for number, value in enumerate((np.nan, 1.0, np.inf)):
        builder.add(_image(number, np.full(SHAPE, value)))
    with pytest.raises(BaselineError, match="2 of 3 pre-heating frames hold values that are not finite"):
        builder.build(SCAN)


def test_values_that_are_not_finite() -> None:
    builder = BaselineBuilder(1)
    builder.add(_image(0, np.full(SHAPE, np.nan)))
    with pytest.raises(BaselineError, match="not finite"):
        builder.build(SCAN)


def test_frames_of_different_making_make_no_baseline() -> None:
    builder = BaselineBuilder(2)
    builder.add(_image(0, fingerprint={"method": "fbp"}))
    builder.add(_image(1, fingerprint={"method": "gridding"}))
    with pytest.raises(BaselineError, match=r"method = gridding \(baseline: fbp\)"):
        builder.build(SCAN)


def test_sliding_windows_share_spokes() -> None:
    assert effective_frames([_image(n, spokes=_spokes(8 * n, 8)) for n in range(3)]) == 3.0
    assert effective_frames([_image(n, spokes=_spokes(2 * n, 8)) for n in range(3)]) == pytest.approx(12 / 8)


def test_foreign_images_count_by_time() -> None:
    def at(start: float, end: float) -> FrameImage:
        return _image(0, footprint=(start, (start + end) / 2, end))

    assert effective_frames([at(0, 1), at(1, 2), at(5, 6)]) == pytest.approx(3.0)
    assert effective_frames([at(0, 2), at(1, 3)]) == pytest.approx(1.5)
    assert effective_frames([at(1, 1), at(2, 2)]) == 2.0
    assert effective_frames([_image(0), _image(1)]) == 2.0


def test_fingerprint_states_frequency_echo_and_geometry() -> None:
    found = fingerprint_of(_image(0, fingerprint={"method": "fbp"}), SCAN)
    assert found == {
        "shape": "2x1x8x8",
        "larmor_hz": "63870000",
        "echo_time_s": "0.019",
        "fov_m": "0.2x0.2x0.005",
        "method": "fbp",
    }
    silent = replace(SCAN, larmor_hz=None, echo_times_s=())
    assert "larmor_hz" not in fingerprint_of(_image(0), silent)
    check_fingerprint(found, {"method": "fbp", "other": "x"})
    with pytest.raises(BaselineError, match="larmor_hz = 64000000"):
        check_fingerprint(found, fingerprint_of(_image(0), replace(SCAN, larmor_hz=64e6)))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("0.000 12.346 1.000", True),
        ("-0.001 12.345 1.000", True),
        ("0.000 12.347 1.000", False),
        ("0.000 nan 1.000", False),
        ("0.000 12.345", False),
        ("elsewhere", False),
    ],
)
def test_geometry_is_the_same_within_its_last_digit(other: str, same: bool) -> None:
    with nullcontext() if same else pytest.raises(BaselineError, match="geometry = "):
        check_fingerprint({"geometry": "0.000 12.345 1.000"}, {"geometry": other})


@pytest.mark.parametrize("name", ["baseline.h5", "baseline.npz"])
def test_stored_and_read_again(tmp_path, name: str) -> None:
    random = np.random.default_rng(2)
    data = (random.standard_normal(SHAPE) + 1j * random.standard_normal(SHAPE)).astype(np.complex64)
    plane = np.ones(SHAPE[1:], np.float32)
    rich = Baseline(
        data=data,
        n_effective=2.5,
        frames=(0, 2),
        rejected=(1,),
        noise_sd=plane,
        phase_sd_rad=2 * plane,
        library=(data, 3 * data),
        fingerprint={"method": "fbp", "estimated": "coil_maps"},
        estimates={"coil_maps": data[:, 0], "gradient_delay": np.array([0.1, math.nan])},
        time_s=3.0,
    )
    plain = Baseline(data=2 * data, n_effective=1.0, frames=(4,))
    path = tmp_path / name
    save_baseline(path, {(0, 0, "fbp"): rich, (3, 1, "tcr"): plain})
    assert [other.name for other in tmp_path.iterdir()] == [name]
    found = load_baseline(path)
    assert set(found) == {(0, 0, "fbp"), (3, 1, "tcr")}
    np.testing.assert_array_equal(found[0, 0, "fbp"].data, data)
    np.testing.assert_array_equal(found[0, 0, "fbp"].noise_sd, plane)
    np.testing.assert_array_equal(found[0, 0, "fbp"].phase_sd_rad, 2 * plane)
    np.testing.assert_array_equal(found[0, 0, "fbp"].library, [data, 3 * data])
    assert found[3, 1, "tcr"].library == ()
    assert (found[0, 0, "fbp"].frames, found[0, 0, "fbp"].rejected, found[0, 0, "fbp"].n_effective) == (
        (0, 2),
        (1,),
        2.5,
    )
    assert found[0, 0, "fbp"].fingerprint == {"method": "fbp", "estimated": "coil_maps"}
    assert set(stored_estimates(path, "fbp")) == {(0, 0)}
    estimates = stored_estimates(path, "fbp")[0, 0]
    assert set(estimates) == {"coil_maps", "gradient_delay"}
    np.testing.assert_array_equal(estimates["coil_maps"], data[:, 0])
    np.testing.assert_array_equal(estimates["gradient_delay"], [0.1, math.nan])
    assert stored_estimates(path, "gridding") == {}
    with pytest.raises(BaselineError, match="lacks the coil maps"):
        stored_estimates(path, "tcr")
    assert math.isnan(found[0, 0, "fbp"].time_s)
    assert found[3, 1, "tcr"].noise_sd is None
    assert found[3, 1, "tcr"].phase_sd_rad is None


def test_files_that_are_no_baseline(tmp_path) -> None:
    with pytest.raises(BaselineError, match="does not exist"):
        load_baseline(tmp_path / "absent.h5")
    for name in ("broken.h5", "broken.npz"):
        (tmp_path / name).write_bytes(b"not a baseline")
        with pytest.raises(BaselineError, match="is not a baseline file"):
            load_baseline(tmp_path / name)
    np.savez(tmp_path / "other.npz", values=np.ones(3))
    with pytest.raises(BaselineError, match="is not a baseline file"):
        load_baseline(tmp_path / "other.npz")


@pytest.mark.parametrize("schema", [1, 99])
def test_a_file_of_another_schema_is_refused(tmp_path, schema: int) -> None:
    path = tmp_path / "b.npz"
    save_baseline(path, {(0, 0, "fbp"): Baseline(data=np.ones(SHAPE, np.complex64), n_effective=1.0, frames=(0,))})
    with np.load(path) as archive:
        entries = dict(archive)
    facts = json.loads(str(entries.pop("facts")))
    np.savez(path, facts=np.array(json.dumps(facts | {"schema": schema})), **entries)
    with pytest.raises(BaselineError, match=f"has the schema {schema}.* reads 2: take a new baseline"):
        load_baseline(path)


def test_library_keeps_a_frame_that_is_unlike_the_rest_but_none_that_is_not_finite() -> None:
    random = np.random.default_rng(4)
    builder = BaselineBuilder(8, library=True)
    for number in range(8):
        data = 0.01 * random.standard_normal(SHAPE) + (2.0 if number == 3 else 1.0)
        builder.add(_image(number, np.full(SHAPE, np.nan) if number == 5 else data))
    baseline = builder.build(SCAN)
    assert baseline.frames == (0, 1, 2, 3, 4, 6, 7)
    assert baseline.rejected == (5,)
    assert len(baseline.library) == 7
    assert np.abs(baseline.library[3]).mean() == pytest.approx(2.0, abs=0.02)
    # Where the body lies is told by those that belong together.
    assert np.abs(baseline.data).mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", ["b.h5", "b.npz"])
def test_a_full_disk_leaves_the_stored_baseline_as_it_was(tmp_path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    baseline = Baseline(data=np.ones(SHAPE, np.complex64), n_effective=1.0, frames=(0,), fingerprint={})
    path = tmp_path / name
    save_baseline(path, {(0, 0, "fbp"): baseline})
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_baseline(path, {(1, 0, "fbp"): baseline})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
