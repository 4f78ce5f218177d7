import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from direct_radial import coil_maps, ellipse_image, ellipse_scan, noise_for_snr, unit_maps
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import SpokeError
from sinotherm.frames.delay import GradientDelay, opposed_delay, opposed_pairs, ring_delay
from sinotherm.operators.coils import combine
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points

N = 256
DELAYS = [(-3.0, -3.0, 0.0), (3.0, -3.0, 0.0), (1.3, 0.4, 0.2), (-2.2, 2.9, -0.5)]


def error(found, true):
    return max(abs(a - b) for a, b in zip((found.x, found.y, found.xy), true, strict=True))


@pytest.mark.parametrize("n_coils", [1, 4])
@pytest.mark.parametrize("schedule", ["uniform180", "uniform360", "golden", "tiny_golden", "raga"])
def test_ring_recovers_delays_at_snr_20_to_a_twentieth_sample(schedule, n_coils):
    angles = spoke_angles(schedule, 34)
    noise = noise_for_snr(N, 20.0, n_coils)
    for seed, delay in enumerate(DELAYS):
        data, sampling = ellipse_scan(N, angles, n_coils=n_coils, delay=delay, noise=noise, seed=seed)
        assert error(ring_delay(data, angles, sampling), delay) <= 0.05


@settings(max_examples=8, deadline=None)
@given(delay=st.floats(-3.0, 3.0), offset=st.floats(-0.5, 0.5), turn=st.floats(-4.0, 4.0))
def test_isotropic_model_with_any_centre_and_rotation(delay, offset, turn):
    angles = spoke_angles("golden", 21) + turn
    data, sampling = ellipse_scan(64, angles, n_coils=3, delay=(delay, delay, 0.0), centre=64 + offset)
    found = ring_delay(data, angles, sampling, model="isotropic")
    assert found.x == found.y
    assert found.xy == 0.0
    assert found.x == pytest.approx(delay, abs=0.02)
    assert found.mismatch < 0.02


@pytest.mark.parametrize("delay", [-3.0, -0.7, 0.0, 2.4])
@pytest.mark.parametrize("model", ["isotropic", "anisotropic"])
def test_phase_slope_of_opposed_spokes(delay, model):
    angles = spoke_angles("uniform360", 32)
    noise = noise_for_snr(N, 20.0, 4)
    data, sampling = ellipse_scan(N, angles, n_coils=4, delay=(delay, delay, 0.0), noise=noise)
    assert error(opposed_delay(data, angles, sampling, model=model), (delay, delay, 0.0)) <= 0.05


@pytest.mark.parametrize("estimate", [ring_delay, opposed_delay])
def test_the_delay_comes_on_top_of_where_each_spoke_is_stated(estimate):
    angles = spoke_angles("uniform360", 32)
    stated = np.random.default_rng(1).uniform(-1.5, 1.5, 32)
    scans = [
        ellipse_scan(64, angles[i : i + 1], n_coils=3, delay=(0.6 + own, 0.6 + own, 0.0))
        for i, own in enumerate(stated)
    ]
    sampling = scans[0][1]
    shifts = np.array(
        [GradientDelay(x=own, y=own).shift(angle, sampling) for own, angle in zip(stated, angles, strict=True)]
    )
    data = np.concatenate([one for one, _ in scans], axis=1)
    assert error(estimate(data, angles, sampling, shifts=shifts), (0.6, 0.6, 0.0)) <= 0.02


def test_a_common_phase_of_a_spoke_does_not_move_the_phase_slope():
    angles = spoke_angles("uniform360", 32)
    data, sampling = ellipse_scan(64, angles, n_coils=2, delay=(1.0, 1.0, 0.0))
    turned = data * np.exp(0.8j * np.cos(angles))[None, :, None]
    plain, phased = (opposed_delay(d, angles, sampling) for d in (data, turned))
    assert error(phased, (plain.x, plain.y, plain.xy)) < 1e-6


def test_opposed_pairs_use_each_spoke_once():
    assert opposed_pairs(spoke_angles("uniform360", 6)) == [(0, 3), (1, 4), (2, 5)]
    assert opposed_pairs(np.array([0.0, np.pi, np.pi, 2 * np.pi])) == [(0, 1), (2, 3)]
    assert opposed_pairs(spoke_angles("uniform180", 8)) == []


def test_shift_is_where_a_late_gradient_leaves_the_spoke():
    sampling = RadialSampling(n_readout=128, spacing=1 / 128, centre=64.0)
    delay = GradientDelay(x=2.0, y=1.0, xy=0.5)
    shifts = 128 * np.array([delay.shift(angle, sampling) for angle in (0.0, np.pi / 2, np.pi)])
    np.testing.assert_allclose(shifts, [[-2.0, -0.5], [-0.5, -1.0], [2.0, 0.5]], atol=1e-12)


def test_few_spokes_keep_what_their_crossings_say():
    # 35 samples around the centre for 24 pixels: too few to refine on.
    angles = spoke_angles("golden", 5)
    data, sampling = ellipse_scan(64, angles, n_coils=4, delay=(1.0, 0.5, 0.0))
    assert error(ring_delay(data, angles, sampling), (1.0, 0.5, 0.0)) <= 0.01


def test_what_cannot_be_estimated_is_refused():
    angles = np.full(8, 0.3)
    data, sampling = ellipse_scan(32, angles)
    with pytest.raises(SpokeError, match="without two crossings"):
        ring_delay(data, angles, sampling)
    with pytest.raises(SpokeError, match="3 are needed"):
        opposed_delay(data, angles, sampling)
    with pytest.raises(SpokeError, match="no signal"):
        ring_delay(np.zeros((1, 8, 64), np.complex64), spoke_angles("golden", 8), sampling)
    with pytest.raises(SpokeError, match="no signal"):
        opposed_delay(np.zeros((1, 8, 64), np.complex64), spoke_angles("uniform360", 8), sampling)


@pytest.mark.parametrize("schedule", ["uniform180", "uniform360", "golden"])
@pytest.mark.parametrize("lost", [0, 5, slice(0, 3)])
def test_spokes_without_signal_are_left_out(schedule, lost):
    angles = spoke_angles(schedule, 64)
    data, sampling = ellipse_scan(64, angles, n_coils=3, delay=(1.0, 1.0, 0.0), noise=noise_for_snr(64, 20.0, 3))
    data[:, lost] = 0
    stated = np.zeros((64, 2))
    assert error(ring_delay(data, angles, sampling, shifts=stated), (1.0, 1.0, 0.0)) <= 0.05
    if schedule == "uniform360":
        assert error(opposed_delay(data, angles, sampling), (1.0, 1.0, 0.0)) <= 0.05


@pytest.mark.data
def test_halves_of_a_real_scan_agree_to_a_tenth_sample(shared_data):
    folder = shared_data / "radial_cardiac_perfusion_goldenangle"
    with h5py.File(folder / "radial_perfusion_7x30spokes_ismrmrd.h5") as file:
        rows = file["dataset/data"][:]
    data = np.stack([row["data"].view(np.complex64).reshape(3, 288) for row in rows], axis=1)
    trajectory = np.stack([row["traj"].reshape(288, -1)[:, :2] for row in rows])
    step = trajectory[:, -1] - trajectory[:, 0]
    angles = np.arctan2(step[:, 1], step[:, 0]).astype(np.float64)
    sampling = RadialSampling(n_readout=288, spacing=1 / 288, centre=143.5)
    whole = ring_delay(data, angles, sampling)
    assert max(abs(whole.x), abs(whole.y), abs(whole.xy)) < 1.0
    for half in (slice(0, None, 2), slice(1, None, 2), slice(0, 105), slice(105, None)):
        part = ring_delay(data[:, half], angles[half], sampling)
        assert error(part, (whole.x, whole.y, whole.xy)) <= 0.1


def gridded(data, angles, sampling, shifts, n):
    weights = radial_weights(angles, sampling, centre="exact", shifts=shifts).astype(np.float32)
    plan = FinufftPlan((n, n), len(data)).set_points(radial_points(angles, sampling, shifts).reshape(-1, 2))
    return combine(plan.adjoint((data * weights).astype(np.complex64).reshape(len(data), -1)), unit_maps(len(data), n))


# Spokes that miss the centre sideways by several samples leave a hole there that nothing fills: x and y stay alike.
@pytest.mark.parametrize("delay", [(-3.0, -3.0, 0.0), (3.0, 3.0, 0.0), (1.3, 0.4, 0.2)])
def test_corrected_images_are_as_good_as_without_delay(delay):
    n, n_coils = 96, 4
    angles = spoke_angles("golden", 151)
    noise = noise_for_snr(n, 20.0, n_coils)
    true = np.sqrt((np.abs(coil_maps(n_coils, n)) ** 2).sum(0)) * ellipse_image(n)

    def error(data, sampling, correction):
        shifts = np.array([correction.shift(angle, sampling) for angle in angles])
        image = gridded(data, angles, sampling, shifts, n)
        return np.linalg.norm(image - true) / np.linalg.norm(true)

    none = GradientDelay(x=0.0, y=0.0)
    straight = error(*ellipse_scan(n, angles, n_coils=n_coils, noise=noise), none)
    late, sampling = ellipse_scan(n, angles, n_coils=n_coils, delay=delay, noise=noise)
    found = ring_delay(late[:, :34], angles[:34], sampling)
    assert error(late, sampling, found) <= 1.05 * straight
    assert error(late, sampling, none) > 1.2 * straight
