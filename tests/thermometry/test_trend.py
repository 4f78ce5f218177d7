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
    frames: np.ndarray, *, interval_s: float = 1.0, variance: float = NOISE**2
) -> tuple[np.ndarray, np.ndarray]:
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, variance, dtype=np.float32)
    shown = [trend.update(frame, own, BODY, number * interval_s) for number, frame in enumerate(frames)]
    return np.stack([change for change, _ in shown]), np.stack([left for _, left in shown])


def test_the_first_frame_is_shown_as_it_is() -> None:
    frames = _noise(1)
    filtered, variance = _filtered(frames)
    np.testing.assert_allclose(filtered[0], frames[0], atol=1e-5)
    np.testing.assert_allclose(variance[0], NOISE**2, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_steady_heating_is_followed_without_lag_and_with_less_noise(rate: float, smooth: float) -> None:
    truth = (rate * np.arange(60.0)[:, None, None] * BODY).astype(np.float32)
    filtered, variance = _filtered(truth + _noise(60, smooth=smooth))
    error = (filtered - truth)[20:, BODY]
    assert abs(error.mean()) < 0.02
    assert error.std() < 0.75 * NOISE
    # What the filter states covers what it leaves, and is no more than a third above it.
    assert 0.75 < error.std() / math.sqrt(variance[20:, BODY].mean()) < 1.05


@pytest.mark.parametrize("interval_s", [0.2, 1.0, 10.0])
@pytest.mark.parametrize("rise", [0.3, 1.0])
def test_power_that_is_switched_is_seen_at_once(interval_s: float, rise: float) -> None:
    on, off = 20, 40
    course = np.clip(np.arange(60.0) - on + 1, 0, off - on) * rise
    truth = (course[:, None, None] * SPOT).astype(np.float32)
    frames = truth + _noise(60, smooth=1.0)
    filtered, _ = _filtered(frames, interval_s=interval_s)
    lag = (filtered - frames)[:, SPOT].mean(axis=1)
    # The rise of about one frame is missing at first, and after four frames nothing that noise could not be.
    assert abs(lag[on:]).max() < 1.3 * NOISE
    assert abs(lag[[*range(on + 4, off), *range(off + 4, 60)]]).max() < 0.55 * NOISE
    assert abs(lag[on + 4 : off].mean()) < 0.15 * NOISE


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
        change, variance = trend.update(np.full((2, 2), value, np.float32), own, valid, number * interval_s)
        assert np.isfinite(change).all()
        assert (variance > 0.0).all()
        assert (variance <= 0.0401).all()
        # Five standard deviations are the most that the filter keeps of its own opinion.
        assert (np.abs(change - value) <= 5.0 * 0.2 + 1e-3).all()


def test_a_voxel_without_a_reading_keeps_what_was_given_and_goes_on() -> None:
    frames = np.stack([np.full((SIDE, SIDE), 0.1 * number, dtype=np.float32) for number in range(20)])
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, NOISE**2, dtype=np.float32)
    for number in range(10):
        trend.update(frames[number], own, BODY, float(number))
    nothing = np.full_like(frames[0], np.nan)
    shown, variance = trend.update(nothing, own, BODY, 10.0)
    assert np.isnan(shown).all()
    np.testing.assert_array_equal(variance, own)
    masked, _ = trend.update(np.full_like(own, 30.0), own, np.zeros_like(BODY), 11.0)
    assert (masked == 30.0).all()
    shown, variance = trend.update(frames[12], own, BODY, 12.0)
    assert shown[BODY] == pytest.approx(1.2, abs=0.02)
    assert (variance[BODY] < own[BODY]).all()


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


@pytest.mark.parametrize("time_s", [math.nan, 3.0, 2.0])
def test_without_a_later_time_the_course_begins_anew(time_s: float) -> None:
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, NOISE**2, dtype=np.float32)
    for number, frame in enumerate(_noise(4)):
        trend.update(frame, own, BODY, float(number))
    shown, variance = trend.update(np.full_like(own, 2.0), own, BODY, time_s)
    np.testing.assert_allclose(shown, 2.0, atol=1e-5)
    np.testing.assert_allclose(variance[BODY], NOISE**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("frames", "mix", "least", "most"),
    [
        (40, (1.0, 0.0), 0.9, 1.1),
        # Errors that alternate from frame to frame are filtered better than independent ones, slow ones worse.
        (40, (1.0, -0.8), 0.4, 0.9),
        (40, (1.0, 0.9), 1.15, 1.8),
        (15, (1.0, -0.8), 1.0, 1.0),
    ],
)
def test_the_scatter_before_heating_tells_what_noise_is_left(
    frames: int, mix: tuple[float, float], least: float, most: float
) -> None:
    noise = _noise(frames + 1)
    mixed = (mix[0] * noise[1:] + mix[1] * noise[:-1]) / math.hypot(*mix)
    trend = TrendFilter(BODY.shape)
    own = np.full(BODY.shape, NOISE**2, dtype=np.float32)
    trend.learn([(frame, own, float(number)) for number, frame in enumerate(mixed)], BODY)
    assert least <= trend.noise_factor <= most
    assert TrendFilter(BODY.shape).noise_factor == 1.0
