"""The filter in time: less noise, no lag behind steady heating, and a short one where power is switched."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinotherm.thermometry.trend import TrendFilter

SIDE = 48
NOISE = 0.3
BODY = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2)) < 20
SPOT = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2)) < 6


def _noise(frames: int, seed: int = 0, *, smooth: float = 0.0) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal((frames, SIDE, SIDE))
    if smooth:
        noise = gaussian_filter(noise, (0.0, smooth, smooth))
        noise /= noise.std()
    return (NOISE * noise).astype(np.float32)


def _filtered(
    frames: np.ndarray, *, interval_s: float = 1.0, before: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the filter makes of frames of this noise, and its variances; ``before``: those before heating."""
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, NOISE**2, dtype=np.float32)
    if before is not None:
        trend.learn([(frame, (k - len(before)) * interval_s) for k, frame in enumerate(before)], own, BODY, len(before))
    shown = [trend.update(frame, own, BODY, number * interval_s) for number, frame in enumerate(frames)]
    return np.stack([change for change, *_ in shown]), np.stack([left for _, left, _ in shown])


def test_the_first_frame_is_shown_as_it_is() -> None:
    frames = _noise(1)
    filtered, variance = _filtered(frames)
    np.testing.assert_allclose(filtered[0], frames[0], atol=1e-5)
    np.testing.assert_allclose(variance[0], NOISE**2, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_steady_heating_is_followed_without_lag_and_with_less_noise(rate: float, smooth: float) -> None:
    truth = (rate * np.arange(60.0)[:, None, None] * BODY).astype(np.float32)
    before = _noise(40, seed=1, smooth=smooth)
    filtered, variance = _filtered(truth + _noise(60, smooth=smooth), before=before)
    error = (filtered - truth)[20:, BODY]
    assert abs(error.mean()) < 0.02
    assert error.std() < 0.75 * NOISE
    # What the filter states covers what it leaves, and is no more than a third above it.
    assert 0.75 < error.std() / math.sqrt(variance[20:, BODY].mean()) < 1.05


def test_heat_that_approaches_its_steady_state_is_not_led_beyond_it() -> None:
    """Nine degrees in ten minutes, of which perfusion takes its part."""
    times_s = 20.0 * np.arange(31.0)
    course = 9.0 * np.expm1(-times_s / 800.0) / np.expm1(-600.0 / 800.0)
    truth = (course[:, None, None] * SPOT).astype(np.float32)
    before = _noise(30, seed=1)
    errors = []
    for seed in range(2, 6):
        filtered, _ = _filtered(truth + _noise(31, seed=seed), interval_s=20.0, before=before)
        errors.append((filtered - truth)[10:, SPOT].mean())
    # With a rate that lasts it is 0.029.
    assert abs(np.mean(errors)) < 0.02


@pytest.mark.parametrize("where", ["spot", "most of the body"])
@pytest.mark.parametrize("interval_s", [0.2, 60.0])
@pytest.mark.parametrize("rise", [0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_power_that_is_switched_is_seen_at_once(where: str, interval_s: float, rise: float, smooth: float) -> None:
    """Up to ten thousand standard deviations a frame, and however long after."""
    heated = SPOT if where == "spot" else np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2)) < 17
    on, off = 20, 40
    course = np.clip(np.arange(80.0) - on + 1, 0, off - on) * rise * NOISE
    truth = (course[:, None, None] * heated).astype(np.float32)
    frames = truth + _noise(80, smooth=smooth)
    before = _noise(30, seed=1, smooth=smooth)
    filtered, variance = _filtered(frames, interval_s=interval_s, before=before)
    assert np.isfinite(filtered).all()
    assert (variance > 0.0).all()
    lag = (filtered - frames)[:, heated].mean(axis=1)
    assert abs(lag[on:]).max() < (2.0 if smooth else 0.8) * NOISE
    # What noise alone makes of the mean of so few voxels from frame to frame is a half of it. Heat that rises for
    # twenty minutes without any loss is no tissue's.
    most, mean = (0.6, 0.2) if interval_s < 1.0 else (1.0, 0.6)
    assert abs(lag[[*range(on + 5, off), *range(off + 5, 80)]]).max() < most * NOISE
    assert abs(lag[on + 5 : off].mean()) < mean * NOISE
    # Where much lags at once σ says so, and it filters again afterwards.
    covered = np.abs(filtered - truth) <= 1.96 * np.sqrt(variance)
    assert covered[on : on + 4, heated].mean() > 0.84
    still = (filtered - truth)[60:, BODY]
    assert still.std() < 0.75 * NOISE


def test_what_was_believed_counts_as_a_frame_and_what_is_settled_as_less() -> None:
    """The error of a frame that departs is its own, whatever the scatter before heating told of the filter's."""
    noise = _noise(200)
    mixed = (noise[1:] - 0.8 * noise[:-1]) / math.hypot(1.0, 0.8)
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, NOISE**2, dtype=np.float32)
    trend.learn([(frame, float(number)) for number, frame in enumerate(mixed[:40])], own, BODY, 40.0)
    covered = {"settled": [], "switched": []}
    for number in range(40, 199):
        # 6 SD on and off, every eighth frame.
        heat = 6.0 * NOISE * SPOT * ((number // 8) % 2)
        shown, variance, _ = trend.update((mixed[number] + heat).astype(np.float32), own, BODY, float(number))
        inside = np.abs(shown - heat) <= 1.96 * np.sqrt(variance)
        covered["settled"].append(inside[BODY & ~SPOT].mean())
        if number % 8 == 0:
            covered["switched"].append(inside[SPOT].mean())
    # What a change of the rate may have made counts too, though none is there.
    assert np.mean(covered["settled"]) > 0.93
    assert np.mean(covered["switched"]) == pytest.approx(0.95, abs=0.03)


def _cases() -> dict[str, np.ndarray]:
    frames = np.arange(80)
    noise, ramp = _noise(80), np.linspace(-1.0, 1.0, SIDE)[None, None, :] * np.ones((SIDE, 1))
    moved = np.random.default_rng(5).standard_normal(80)[:, None, None] * SPOT
    pulses = {f"{on} on of {2 * on}": ((frames // on) % 2)[:, None, None] * SPOT * 30.0 for on in (1, 2, 5)}
    courses = pulses | {
        "breathing": np.sin(2.0 * np.pi * frames / 4.0)[:, None, None] * ramp * 10.0,
        "offsets": 5.0 * moved,
        "growing": np.minimum(1.2**frames, 200.0)[:, None, None] * SPOT,
        "whole body": ((frames // 3) % 2)[:, None, None] * BODY * 10.0,
    }
    found = {name: noise + NOISE * course for name, course in courses.items()}
    found["noise"] = 10.0 * noise
    found["exact"] = noise * (frames > 20)[:, None, None]
    return {name: course.astype(np.float32) for name, course in found.items()}


@pytest.mark.parametrize("case", _cases())
@pytest.mark.parametrize("interval_s", [0.01, 10.0, 600.0])
def test_nothing_that_changes_again_and_again_is_the_end_of_the_filter(case: str, interval_s: float) -> None:
    trend = TrendFilter(BODY.shape)
    own, quiet = np.full(BODY.shape, NOISE**2, dtype=np.float32), _noise(70, seed=2)
    trend.learn([(frame, number * interval_s) for number, frame in enumerate(_noise(30, seed=1))], own, BODY, 30.0)
    for number, frame in enumerate(_cases()[case]):
        shown, variance, _ = trend.update(frame, own, BODY, (30 + number) * interval_s)
        assert np.isfinite(shown).all()
        assert (variance > 0.0).all()
        assert (np.abs(shown - frame)[BODY] <= 7.0 * NOISE).all()
    last = []
    for number, frame in enumerate(quiet):
        shown, variance, _ = trend.update(frame, own, BODY, (110 + number) * interval_s)
        last.append(shown[BODY])
    assert np.std(last[30:]) < 0.75 * NOISE
    assert np.mean(np.abs(last[30:]) <= 1.96 * np.sqrt(variance[BODY])) == pytest.approx(0.95, abs=0.03)


@given(
    steps_s=st.lists(st.floats(1e-4, 1e3), min_size=5, max_size=40),
    seed=st.integers(0, 1000),
    spread=st.floats(1.0, 1e4),
)
def test_no_course_leaves_the_numbers(steps_s: list[float], seed: int, spread: float) -> None:
    """Frames from a tenth of a millisecond to a quarter of an hour apart, variances and jumps of all sizes."""
    random = np.random.default_rng(seed)
    trend, time_s = TrendFilter((6, 6)), 0.0
    for step_s in steps_s:
        time_s += step_s
        own = (0.01 * spread ** random.uniform(0.0, 1.0, (6, 6))).astype(np.float32)
        change = (np.sqrt(own) * random.standard_normal((6, 6)) + 50.0 * random.integers(0, 2)).astype(np.float32)
        valid = random.uniform(size=(6, 6)) < 0.7
        shown, variance, _ = trend.update(change, own, valid, time_s)
        assert np.isfinite(shown).all()
        assert (np.isfinite(variance) & (variance > 0.0)).all()


def test_a_small_body_is_filtered_as_well_after_an_hour() -> None:
    small = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2)) < 6
    trend, random = TrendFilter(BODY.shape), np.random.default_rng(0)
    own, errors = np.full(BODY.shape, NOISE**2, dtype=np.float32), []
    for number in range(1500):
        frame = (NOISE * random.standard_normal(BODY.shape)).astype(np.float32)
        errors.append(trend.update(frame, own, small, float(number))[0][small].std())
    assert np.mean(errors[-300:]) < 1.1 * np.mean(errors[50:350])


def test_a_focus_of_one_voxel_is_believed() -> None:
    truth = np.zeros((30, SIDE, SIDE), dtype=np.float32)
    truth[20:, SIDE // 2, SIDE // 2] = 8.0
    filtered, _ = _filtered(truth + _noise(30))
    assert filtered[20, SIDE // 2, SIDE // 2] > 7.0


def test_heat_of_the_whole_body_is_believed() -> None:
    truth = np.zeros((30, SIDE, SIDE), dtype=np.float32)
    truth[20:] = 5.0
    filtered, _ = _filtered(truth + _noise(30))
    assert filtered[20, BODY].mean() > 4.5


@given(
    values=st.lists(st.floats(-40.0, 40.0, width=32), min_size=1, max_size=8),
    interval_s=st.floats(1e-3, 1e3),
)
def test_what_is_known_is_never_less_than_the_frame_tells(values: list[float], interval_s: float) -> None:
    trend = TrendFilter((2, 2))
    own, valid = np.full((2, 2), 0.04, dtype=np.float32), np.ones((2, 2), dtype=bool)
    for number, value in enumerate(values):
        change, variance, _ = trend.update(np.full((2, 2), value, np.float32), own, valid, number * interval_s)
        assert np.isfinite(change).all()
        assert (variance >= own).all()
        # Six standard deviations are the most that the filter keeps of its own opinion.
        assert (np.abs(change - value) <= 6.0 * 0.2 + 1e-3).all()


def test_a_voxel_without_a_reading_keeps_what_was_given_and_goes_on() -> None:
    frames = np.stack([np.full((SIDE, SIDE), 0.1 * number, dtype=np.float32) for number in range(20)])
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, NOISE**2, dtype=np.float32)
    for number in range(10):
        trend.update(frames[number], own, BODY, float(number))
    nothing = np.full_like(frames[0], np.nan)
    shown, variance, _ = trend.update(nothing, own, BODY, 10.0)
    assert np.isnan(shown).all()
    np.testing.assert_array_equal(variance, own)
    masked, *_ = trend.update(np.full_like(own, 30.0), own, np.zeros_like(BODY), 11.0)
    assert (masked == 30.0).all()
    shown, variance, _ = trend.update(frames[12], own, BODY, 12.0)
    assert shown[BODY] == pytest.approx(1.2, abs=0.02)


def test_a_withdrawn_frame_leaves_no_trace() -> None:
    frames, own = _noise(12), np.full(BODY.shape, NOISE**2, dtype=np.float32)
    one, other = (TrendFilter(BODY.shape) for _ in range(2))
    for number in range(10):
        one.update(frames[number], own, BODY, float(number))
        other.update(frames[number], own, BODY, float(number))
    one.update(frames[10] + 9.0, own, BODY, 10.0)
    one.withdraw()
    for mine, theirs in zip(
        one.update(frames[11], own, BODY, 11.0), other.update(frames[11], own, BODY, 11.0), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("time_s", [math.nan, 3.0, 2.0, 3.0 + 1e-9, 1.7e9])
def test_without_a_later_time_the_course_begins_anew(time_s: float) -> None:
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, NOISE**2, dtype=np.float32)
    for number, frame in enumerate(_noise(4)):
        trend.update(frame, own, BODY, float(number))
    shown, variance, _ = trend.update(np.full_like(own, 2.0), own, BODY, time_s)
    np.testing.assert_allclose(shown, 2.0, atol=1e-5)
    np.testing.assert_allclose(variance[BODY], NOISE**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("frames", "mix", "independent", "least", "most"),
    [
        (40, (1.0, 0.0), 40.0, 0.9, 1.1),
        # Errors that alternate from frame to frame are filtered better than independent ones, slow ones worse.
        (40, (1.0, -0.8), 40.0, 0.7, 0.9),
        (40, (1.0, 0.9), 40.0, 1.15, 1.8),
        (15, (1.0, -0.8), 15.0, 1.0, 1.0),
        # Frames that share spokes hide a part of their noise from each other.
        (40, (1.0, 0.0), 10.0, 2.0, 2.0),
        (4, (1.0, 0.0), 4.0, math.inf, math.inf),
    ],
)
def test_the_scatter_before_heating_tells_what_noise_is_left(
    frames: int, mix: tuple[float, float], independent: float, least: float, most: float
) -> None:
    noise = _noise(frames + 1)
    mixed = (mix[0] * noise[1:] + mix[1] * noise[:-1]) / math.hypot(*mix)
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, NOISE**2, dtype=np.float32)
    trend.learn([(frame, float(number)) for number, frame in enumerate(mixed)], own, BODY, independent)
    assert least <= trend.noise_factor <= most
    _, variance, _ = trend.update(mixed[0], own, BODY, float(frames))
    if independent != frames or frames < 5:
        # Nothing is claimed that nobody saw.
        assert (variance >= 0.99 * own).all()


def test_frames_without_signal_teach_nothing() -> None:
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, NOISE**2, dtype=np.float32)
    trend.learn([(frame, float(number)) for number, frame in enumerate(_noise(40))], own, np.zeros_like(BODY), 40.0)
    assert trend.noise_factor == math.inf
