import numpy as np
import pytest

from direct_radial import ellipse_image, ellipse_scan
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import DataError, SettingsError
from sinotherm.reconstruction.view_sharing import frames_shared, view_sharing

N, SPOKES = 64, 21


def scan(n_frames, contrast=None):
    angles = spoke_angles("golden", n_frames * SPOKES)
    data, sampling = ellipse_scan(N, angles, n_coils=2)
    frames = data.reshape(2, n_frames, SPOKES, -1).swapaxes(0, 1)
    if contrast is not None:
        frames = frames * np.asarray(contrast, np.float32)[:, None, None, None]
    return frames, angles.reshape(n_frames, SPOKES), sampling


def test_more_frames_share_further_out():
    sampling = RadialSampling(n_readout=128, spacing=1 / 128, centre=64.0)
    shared = frames_shared(sampling, SPOKES, N, 5)
    assert shared[64] == 1
    assert shared[0] == 5
    assert set(shared) == {1, 3, 5}
    assert np.all(np.diff(shared[64:]) >= 0)
    with pytest.raises(SettingsError, match="odd"):
        frames_shared(sampling, SPOKES, N, 4)


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


def test_shapes_and_shifts():
    data, angles, sampling = scan(2)
    assert view_sharing(data, angles, sampling, N).shape == (2, 2, N, N)
    shifted = view_sharing(data, angles, sampling, N, shifts=np.full((2, SPOKES, 2), 0.01))
    assert not np.allclose(shifted, view_sharing(data, angles, sampling, N))
    with pytest.raises(DataError, match="angles of shape"):
        view_sharing(data, angles[:1], sampling, N)
