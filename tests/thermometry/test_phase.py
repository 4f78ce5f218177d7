import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinotherm.core.physics import degc_per_radian, radian_per_degc
from sinotherm.errors import DataError, SettingsError
from sinotherm.thermometry.phase import (
    JUMP_LIMIT_RAD,
    TemporalUnwrapper,
    combine_echoes,
    complex_product,
    connected_phase,
)

RANDOM = np.random.default_rng(5)


def _images(coils: int = 3) -> tuple[np.ndarray, np.ndarray]:
    shape = (coils, 1, 6, 7)
    values = RANDOM.standard_normal((2, *shape)) + 1j * RANDOM.standard_normal((2, *shape))
    return values[0].astype(np.complex64), values[1].astype(np.complex64)


@pytest.mark.parametrize("coils", [1, 3])
def test_product_is_the_sum_over_coils(coils: int) -> None:
    image, baseline = _images(coils)
    expected = sum(image[c] * np.conj(baseline[c]) for c in range(coils))
    np.testing.assert_allclose(complex_product(image, baseline), expected, rtol=1e-5, atol=1e-5)


def test_neighbours_are_summed() -> None:
    image, baseline = _images()
    single = complex_product(image, baseline)
    summed = complex_product(image, baseline, neighbours=3)
    np.testing.assert_allclose(summed[0, 2, 3], single[0, 1:4, 2:5].sum(), rtol=1e-4)


@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_window_has_a_middle(neighbours: int) -> None:
    with pytest.raises(SettingsError, match=f"a window of {neighbours} voxels: give an odd number"):
        complex_product(*_images(), neighbours=neighbours)


def test_a_phase_that_is_not_finite_is_refused_where_it_is_trusted() -> None:
    wrapped = np.zeros((1, 16, 16), np.float32)
    wrapped[0, 8, 8] = np.nan
    trusted = np.ones(wrapped.shape, bool)
    with pytest.raises(DataError, match="not finite"):
        connected_phase(wrapped, trusted, trusted, trusted, np.zeros_like(wrapped))
    trusted[0, 8, 8] = False
    phase, certain = connected_phase(wrapped, trusted, trusted, trusted, np.zeros_like(wrapped))
    np.testing.assert_array_equal(certain, trusted)
    assert not phase[certain].any()


def test_shapes_must_agree() -> None:
    with pytest.raises(DataError, match="does not fit its baseline"):
        complex_product(np.zeros((1, 1, 4, 4), np.complex64), np.zeros((1, 1, 4, 5), np.complex64))


@settings(max_examples=25, deadline=None)
@given(
    sign=st.sampled_from([-1, 1]),
    larmor_hz=st.floats(2e7, 3e8),
    echo_time_s=st.floats(1e-3, 3e-2),
    change=st.floats(-20.0, 20.0),
)
def test_temperature_to_phase_and_back(sign: int, larmor_hz: float, echo_time_s: float, change: float) -> None:
    facts = {"larmor_hz": larmor_hz, "echo_time_s": echo_time_s, "prf_coefficient": -1e-8, "phase_sign": sign}
    baseline = np.full((1, 1, 4, 4), 2.0 - 1.0j, dtype=np.complex64)
    phase = radian_per_degc(**facts) * change
    image = (baseline * np.exp(1j * phase)).astype(np.complex64)
    trusted = np.ones((1, 4, 4), bool)
    unwrapper = TemporalUnwrapper()
    found, _ = unwrapper.update(complex_product(image, baseline), trusted, trusted)
    turns = round((phase - float(found[0, 0, 0])) / (2 * math.pi))
    np.testing.assert_allclose((found + 2 * math.pi * turns) * degc_per_radian(**facts), change, atol=2e-4)


@pytest.mark.parametrize("sign", [-1, 1])
def test_ramp_of_sixty_degrees_is_followed_beyond_the_wrap(sign: int) -> None:
    facts = {"larmor_hz": 123.2e6, "echo_time_s": 0.013, "prf_coefficient": -1e-8, "phase_sign": sign}
    y, x = np.mgrid[:32, :32] - 16
    heat = 60.0 * np.exp(-(x**2 + y**2) / 60.0)[None]
    trusted = np.ones(heat.shape, bool)
    unwrapper = TemporalUnwrapper()
    for share in np.linspace(0.0, 1.0, 31):
        drift = 2.5 * share
        product = np.exp(1j * (radian_per_degc(**facts) * heat * share + drift)).astype(np.complex64)
        phase, doubtful = unwrapper.update(product, trusted, trusted)
        assert not doubtful.any()
        np.testing.assert_allclose((phase - drift) * degc_per_radian(**facts), heat * share, atol=1e-3)


def test_a_jump_is_flagged_until_the_neighbours_agree() -> None:
    trusted = np.ones((1, 16, 16), bool)
    unwrapper = TemporalUnwrapper()
    quiet = np.ones((1, 16, 16), np.complex64)
    unwrapper.update(quiet, trusted, trusted)
    jumped = quiet.copy()
    jumped[0, 8, 8] = np.exp(1j * (JUMP_LIMIT_RAD + 0.2))
    _, doubtful = unwrapper.update(jumped, trusted, trusted)
    assert doubtful.sum() == 1
    assert doubtful[0, 8, 8]
    _, doubtful = unwrapper.update(jumped, trusted, trusted)
    assert doubtful[0, 8, 8]
    phase, doubtful = unwrapper.update(quiet, trusted, trusted)
    assert not doubtful.any()
    np.testing.assert_allclose(phase, 0.0, atol=1e-6)


def test_a_voxel_that_went_round_joins_its_neighbours() -> None:
    trusted = np.ones((1, 16, 16), bool)
    unwrapper = TemporalUnwrapper()
    for angle in (0.0, 2.6, -2.0, 0.0):
        product = np.ones((1, 16, 16), np.complex64)
        product[0, 8, 8] = np.exp(1j * angle)
        phase, doubtful = unwrapper.update(product, trusted, ~trusted)
        assert doubtful[0, 8, 8] == (angle != 0.0)
    np.testing.assert_allclose(phase, 0.0, atol=1e-4)


def test_a_cold_voxel_that_went_round_goes_on_from_the_branch_of_its_neighbours() -> None:
    cold = np.ones((1, 16, 16), bool)
    unwrapper = TemporalUnwrapper()
    for angle in (0.0, 2.6, -2.0, 0.0):
        product = np.ones((1, 16, 16), np.complex64)
        product[0, 8, 8] = np.exp(1j * angle)
        phase, doubtful = unwrapper.update(product, cold, cold)
        assert doubtful[0, 8, 8] == (angle != 0.0 or phase[0, 8, 8] > 1.0)
    # Time says a turn, space none: the drift is fitted to what time says, and the voxel has no reading.
    assert phase[0, 8, 8] == pytest.approx(2 * math.pi, abs=1e-3)
    phase, doubtful = unwrapper.update(product, cold, cold)
    assert not doubtful.any()
    np.testing.assert_allclose(phase, 0.0, atol=1e-4)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("width", [2.0, 6.0])
def test_heat_of_more_than_a_turn_at_once_is_followed_or_flagged(width: float, lost: bool) -> None:
    y, x = np.mgrid[:48, :48] - 24
    radius = np.hypot(x, y)
    body = (radius < 22)[None]
    cold = body & (radius > 18)
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(body.shape, np.complex64), body, cold)
    if lost:
        unwrapper.lose()
    truth = 6.5 * np.exp(-(radius**2) / (2 * width**2))[None]
    for drift in (0.3, 0.9):
        phase, doubtful = unwrapper.update(np.exp(1j * (truth + drift)).astype(np.complex64), body, cold)
        certain = body & ~doubtful
        np.testing.assert_allclose((phase - drift)[certain], truth[certain], atol=1e-3)
        assert certain[cold].all()
        # Beyond a quarter of a turn a pixel nothing leads to the middle.
        assert doubtful[0, 24, 24] == (width < 5.0)
    for share in np.linspace(1.0, 0.0, 9):
        phase, doubtful = unwrapper.update(np.exp(1j * share * truth).astype(np.complex64), body, cold)
    assert not doubtful.any()
    np.testing.assert_allclose(phase[body], 0.0, atol=1e-3)


@pytest.mark.parametrize("heat", [3.3, 5.2])
def test_a_body_that_is_hot_for_the_most_part_after_a_gap_is_read_from_its_cold_tissue(heat: float) -> None:
    y, x = np.mgrid[:64, :64] - 32
    radius = np.hypot(x, y)
    body = (radius < 30)[None]
    cold = body & (radius > 27)
    truth = heat * np.exp(-((radius / 24.0) ** 12))[None]
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(body.shape, np.complex64), body, cold)
    unwrapper.lose()
    phase, doubtful = unwrapper.update(np.exp(1j * (truth + 0.4)).astype(np.complex64), body, cold)
    assert not doubtful.any()
    found = phase - phase[cold].mean()
    np.testing.assert_allclose(found[body], (truth - truth[cold].mean())[body], atol=1e-3)


def test_cold_tissue_that_tells_different_branches_tells_none_and_has_no_reading_itself() -> None:
    y, x = np.mgrid[:32, :64]
    body = np.ones((1, 32, 64), bool)
    cold = np.zeros_like(body)
    cold[0, 14:18] = True
    # Along the cold tissue the drift rises by more than a turn: time cannot follow all of it.
    drift = (0.16 * (x - 31.5) * np.exp(-(((y - 15.5) / 8.0) ** 2)))[None]
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(body.shape, np.complex64), body, cold)
    unwrapper.lose()
    phase, doubtful = unwrapper.update(np.exp(1j * drift).astype(np.complex64), body, cold)
    assert 0.2 < doubtful[cold].mean() < 0.8
    assert not doubtful[~cold].any()
    np.testing.assert_allclose(phase[~doubtful], drift[~doubtful], atol=1e-3)


@pytest.mark.parametrize("heat", [4.1, 5.2])
def test_a_reference_of_the_frame_itself_needs_no_change_of_the_whole(heat: float) -> None:
    y, x = np.mgrid[:48, :48] - 24
    radius = np.hypot(x, y)
    region = (radius < 16)[None]
    rim = region & (radius > 14)
    truth = heat * np.exp(-((radius / 11.5) ** 8))[None]
    unwrapper = TemporalUnwrapper(known=False, drifts=False)
    for share in (1.0, 0.8):
        phase, doubtful = unwrapper.update(np.exp(1j * share * truth).astype(np.complex64), region, rim)
        assert not doubtful.any()
        np.testing.assert_allclose(phase[region], share * truth[region], atol=1e-3)


def test_a_part_of_the_body_without_anchors_goes_on_beside_a_jump() -> None:
    trusted = np.ones((1, 12, 24), bool)
    trusted[..., 12] = False
    anchors = trusted.copy()
    anchors[..., 12:] = False
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(trusted.shape, np.complex64), trusted, anchors)
    jumped = np.ones(trusted.shape, np.complex64)
    jumped[0, 3:7, 3:7] = np.exp(2.9j)
    _, doubtful = unwrapper.update(jumped, trusted, anchors)
    assert doubtful.sum() == 16
    unwrapper.lose()
    _, doubtful = unwrapper.update(jumped, trusted, anchors)
    assert doubtful.sum() == 16


@pytest.mark.parametrize("lost", [False, True])
def test_a_brain_in_its_skull_goes_by_itself_and_a_focus_in_it_does_not(lost: bool) -> None:
    y, x = np.mgrid[:64, :64] - 32
    radius = np.hypot(x, y)
    scalp, brain = (np.abs(radius - 28) < 2)[None], (radius < 22)[None]
    body = scalp | brain
    truth = 6.3 * np.exp(-((x - 5) ** 2 + y**2) / 6.0)[None]
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(body.shape, np.complex64), body, scalp)
    if lost:
        unwrapper.lose()
    phase, doubtful = unwrapper.update(np.exp(1j * (truth + 0.4)).astype(np.complex64), body, scalp)
    certain = body & ~doubtful
    assert certain[brain].mean() > 0.9
    assert doubtful[0, 32, 37]
    np.testing.assert_allclose((phase - 0.4)[certain], truth[certain], atol=1e-3)


def test_cold_tissue_stays_within_half_a_turn_of_what_is_expected() -> None:
    _, x = np.mgrid[:32, :32]
    cold = np.zeros((1, 32, 32), bool)
    cold[0, :6] = True
    body = np.ones_like(cold)
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(body.shape, np.complex64), body, cold)
    ramp = np.where(cold, 1.2 * x, 0.0)
    phase, _ = unwrapper.update(np.exp(1j * ramp).astype(np.complex64), body, cold)
    assert np.abs(phase).max() <= math.pi + 0.1


def _spot(width: float, peak: float, *, at: tuple[float, float] = (0.0, 0.0), n: int = 48) -> np.ndarray:
    y, x = np.mgrid[:n, :n] - n // 2
    return peak * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * width**2))[None]


def test_voxels_that_come_back_after_darkness_take_the_branch_of_their_neighbours() -> None:
    body = np.ones((1, 48, 48), bool)
    cold = body.copy()
    cold[0, 4:-4, 4:-4] = False
    dark = _spot(4.0, 1.0) > 0.8
    unwrapper = TemporalUnwrapper()
    for step in range(9):
        truth = _spot(6.0, step)
        trusted = body & ~dark if 0 < step < 8 else body
        phase, doubtful = unwrapper.update(np.exp(1j * truth).astype(np.complex64), trusted, cold)
        assert not doubtful.any()
        np.testing.assert_allclose(phase[trusted], truth[trusted], atol=1e-3)


@pytest.mark.parametrize("large", [False, True])
def test_an_islet_that_comes_back_is_read_where_it_is_large(large: bool) -> None:
    body = np.zeros((1, 32, 32), bool)
    body[0, :, :12] = True
    islet = np.zeros_like(body)
    islet[0, 4:14, 16 : 26 if large else 18] = True
    unwrapper = TemporalUnwrapper()
    quiet = np.ones(body.shape, np.complex64)
    for trusted in (body | islet, body, body | islet):
        _, doubtful = unwrapper.update(quiet, trusted, np.zeros_like(body))
    np.testing.assert_array_equal(doubtful, islet & (not large))


def test_cold_tissue_that_comes_back_is_followed_by_time_alone() -> None:
    body = np.zeros((1, 16, 16), bool)
    body[0, :, :8] = True
    tube = np.zeros_like(body)
    tube[0, 4:7, 12:15] = True
    unwrapper = TemporalUnwrapper()
    for angle, trusted in ((0.0, body | tube), (0.4, body), (0.8, body | tube)):
        product = np.full(body.shape, np.exp(1j * angle), np.complex64)
        phase, doubtful = unwrapper.update(product, trusted, tube)
        assert not doubtful.any()
    np.testing.assert_allclose(phase, 0.8, atol=1e-3)


@pytest.mark.parametrize("at", [(0.0, 0.0), (0.3, -0.2), (0.5, 0.5)])
@pytest.mark.parametrize("width", [1.0, 1.2, 1.5])
def test_the_middle_of_a_focus_whose_flank_jumps_is_doubtful(width: float, at: tuple[float, float]) -> None:
    body = np.ones((1, 48, 48), bool)
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(body.shape, np.complex64), body, np.zeros_like(body))
    truth = _spot(width, 5.2, at=at)
    for _ in range(2):
        phase, doubtful = unwrapper.update(np.exp(1j * truth).astype(np.complex64), body, np.zeros_like(body))
        np.testing.assert_allclose((phase - phase[0, 0, 0])[~doubtful], truth[~doubtful], atol=1e-3)
        assert doubtful[truth > JUMP_LIMIT_RAD].all()
        # What the flank did not reach keeps its reading.
        assert not doubtful[truth < 1.5].any()


def test_a_jump_in_an_islet_costs_the_rest_of_it_nothing() -> None:
    body = np.zeros((1, 24, 24), bool)
    body[0, :, :10] = True
    body[0, 10:13, 16:19] = True
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(body.shape, np.complex64), body, np.zeros_like(body))
    jumped = np.ones(body.shape, np.complex64)
    jumped[0, 11, 17] = np.exp(2.8j)
    _, doubtful = unwrapper.update(jumped, body, np.zeros_like(body))
    np.testing.assert_array_equal(np.argwhere(doubtful), [[0, 11, 17]])


def test_jumps_of_single_voxels_cost_no_other_voxel_its_reading() -> None:
    random = np.random.default_rng(2)
    body = np.ones((1, 64, 64), bool)
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(body.shape, np.complex64), body, np.zeros_like(body))
    noisy = np.ones(body.shape, np.complex64)
    noisy[0].flat[random.choice(64 * 64, 60, replace=False)] = np.exp(2.8j)
    _, doubtful = unwrapper.update(noisy, body, np.zeros_like(body))
    np.testing.assert_array_equal(doubtful, noisy != 1.0)


def test_a_frame_that_is_withdrawn_leaves_no_trace() -> None:
    random = np.random.default_rng(0)
    trusted = np.ones((1, 16, 16), bool)
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones(trusted.shape, np.complex64), trusted, trusted)
    for _ in range(5):
        noise = np.exp(1j * random.uniform(-3.0, 3.0, trusted.shape)).astype(np.complex64)
        unwrapper.update(noise, trusted, trusted)
        unwrapper.withdraw()
    phase, doubtful = unwrapper.update(np.exp(0.4j * np.ones(trusted.shape)).astype(np.complex64), trusted, trusted)
    assert not doubtful.any()
    np.testing.assert_allclose(phase, 0.4, atol=1e-4)


def test_voxels_without_signal_are_not_flagged() -> None:
    trusted = np.zeros((1, 8, 8), bool)
    trusted[0, :, :4] = True
    unwrapper = TemporalUnwrapper()
    unwrapper.update(np.ones((1, 8, 8), np.complex64), trusted, trusted)
    product = np.ones((1, 8, 8), np.complex64)
    product[0, :, 4:] = -1.0
    _, doubtful = unwrapper.update(product, trusted, trusted)
    assert not doubtful.any()


def test_echoes_are_weighted_by_the_square_of_echo_time_and_signal() -> None:
    changes = [np.full((1, 1, 2), 2.0, np.float32), np.full((1, 1, 2), 4.0, np.float32)]
    sizes = [np.array([[[3.0, 0.0]]], np.float32), np.array([[[1.0, 0.0]]], np.float32)]
    change, weights = combine_echoes(changes, sizes, (0.005, 0.015))
    np.testing.assert_allclose(weights[:, 0, 0, 0], [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(change[0, 0], [3.0, 3.0], rtol=1e-6)
    change, _ = combine_echoes(changes, [np.ones((1, 1, 2), np.float32)] * 2, (0.005, 0.015))
    np.testing.assert_allclose(change, (2.0 * 1 + 4.0 * 9) / 10, rtol=1e-6)


def test_another_baseline_goes_on_with_the_same_phase() -> None:
    trusted = np.ones((1, 4, 4), bool)
    between = np.exp(0.8j * np.arange(16)).reshape(1, 4, 4).astype(np.complex64)
    unwrapper = TemporalUnwrapper()
    unwrapper.rebase(between)
    for turn in np.linspace(0.0, 8.0, 9):
        before, _ = unwrapper.update(np.full((1, 4, 4), np.exp(1j * turn), np.complex64), trusted, trusted)
    unwrapper.rebase(between)
    after, doubtful = unwrapper.update((np.exp(8.0j) * between).astype(np.complex64), trusted, trusted)
    assert not doubtful.any()
    np.testing.assert_allclose(after - before, np.angle(between), atol=1e-4)
