import numpy as np
import pytest

from direct_radial import ellipse_image, ellipse_scan
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import DataError, SettingsError
from sinotherm.frames.delay import GradientDelay
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.reconstruction.view_sharing import frames_shared, view_sharing

N, SPOKES = 64, 21


def scan(n_frames, contrast=None, delay=(0.0, 0.0, 0.0)):
    angles = spoke_angles("golden", n_frames * SPOKES)
    data, sampling = ellipse_scan(N, angles, n_coils=2, delay=delay)
    frames = data.reshape(2, n_frames, SPOKES, -1).swapaxes(0, 1)
    if contrast is not None:
        frames = frames * np.asarray(contrast, np.float32)[:, None, None, None]
    return frames, angles.reshape(n_frames, SPOKES), sampling


def test_more_frames_share_further_out():
    sampling = RadialSampling(n_readout=128, spacing=1 / 128, centre=64.0)
    radius = np.abs(sampling.positions)
    shared = frames_shared(radius, SPOKES, N, 5)
    assert shared[64] == 1
    assert shared[0] == 5
    assert set(shared) == {1, 3, 5}
    assert np.all(np.diff(shared[64:]) >= 0)
    with pytest.raises(SettingsError, match="odd"):
        frames_shared(radius, SPOKES, N, 4)


@pytest.mark.parametrize("n_frames", [3, 4, 5])
def test_an_even_window_is_refused_however_few_frames_there_are(n_frames):
    with pytest.raises(SettingsError, match="4 frames shared at most: give an odd number"):
        view_sharing(*scan(n_frames), N, most=4)


def test_shared_views_streak_less_and_keep_the_amplitude():
    data, angles, sampling = scan(7)
    alone = view_sharing(data, angles, sampling, N, most=1)
    shared = view_sharing(data, angles, sampling, N)
    true = ellipse_image(N)
    coil = shared[3, 0]
    # The first coil's map is known to be smooth: compare magnitudes of its own dense image.
    dense, dense_angles, _ = scan(12)
    one_frame = dense.swapaxes(0, 1).reshape(1, 2, -1, 2 * N)
    reference = view_sharing(one_frame, dense_angles.reshape(1, -1), sampling, N, most=1)[0, 0]
    assert np.linalg.norm(coil - reference) < 0.6 * np.linalg.norm(alone[3, 0] - reference)
    body = true > 0
    assert np.median(np.abs(coil[body]) / np.abs(reference[body])) == pytest.approx(1.0, abs=0.02)


def test_contrast_is_the_frames_own_and_the_ends_are_reached():
    course = np.array([1.0, 1.0, 1.0, 3.0, 3.0, 3.0])
    data, angles, sampling = scan(6, course)
    images = np.abs(view_sharing(data, angles, sampling, N)[:, 0])
    body = ellipse_image(N) > 0.9
    levels = images[:, body].mean(axis=1)
    np.testing.assert_allclose(levels / levels[0], course, rtol=0.1)


def gridding(data, angles, sampling, shifts):
    """Coil images of all spokes together."""
    spokes, points = angles.reshape(-1), radial_points(angles, sampling, shifts).reshape(-1, 2)
    weights = radial_weights(spokes, sampling, centre="exact", shifts=shifts.reshape(-1, 2))
    samples = data.swapaxes(0, 1).reshape(data.shape[1], -1) * weights.reshape(-1)
    return FinufftPlan((N, N), data.shape[1]).set_points(points).adjoint(samples.astype(np.complex64))


def error_beside_gridding(delay):
    """NRMSE of the middle frame to the gridding of the spokes of all frames that share it."""
    data, angles, sampling = scan(7, delay=delay)
    late = GradientDelay(x=delay[0], y=delay[1], xy=delay[2])
    shifts = np.array([[late.shift(angle, sampling) for angle in spokes] for spokes in angles])
    shared = view_sharing(data, angles, sampling, N, shifts=shifts)[3]
    reference = gridding(data[1:6], angles[1:6], sampling, shifts[1:6])
    return np.linalg.norm(shared - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize("delay", [(1.0, 1.0, 0.0), (3.0, 3.0, 0.0), (-2.0, -2.0, 0.0), (0.2, 0.1, 0.05)])
def test_delays_along_the_spokes_cost_nothing(delay):
    assert error_beside_gridding(delay) < 1.05 * error_beside_gridding((0.0, 0.0, 0.0)) < 0.07


@pytest.mark.parametrize("delay", [(1.0, -1.0, 0.0), (2.0, -1.0, 0.3), (-2.0, 1.0, -0.5), (3.0, -3.0, 1.0)])
def test_delays_across_the_spokes_are_followed(delay):
    # 21 spokes that miss the centre leave more to the weights there than the 105 of the gridding.
    assert error_beside_gridding(delay) < 0.13


def test_shapes():
    data, angles, sampling = scan(2)
    assert view_sharing(data, angles, sampling, N).shape == (2, 2, N, N)
    with pytest.raises(DataError, match="angles of shape"):
        view_sharing(data, angles[:1], sampling, N)
