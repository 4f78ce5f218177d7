import time

import numpy as np
import pytest
import torch

from direct_radial import dense_sense, ellipse_image, unit_maps
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import DataError, SettingsError
from sinotherm.reconstruction.cg_sense import cg_sense, conjugate_gradients, detail_filter, sample_weights
from sinotherm.reconstruction.sense_normal import SenseNormal

N = 16


def setup(n_spokes=7, n_coils=3, n=N, matrix=None):
    rng = np.random.default_rng(3)
    angles = spoke_angles("golden", n_spokes)
    sampling = RadialSampling(n_readout=2 * n, spacing=1 / (2 * n), centre=n - 0.5)
    shifts = 0.01 * rng.standard_normal((n_spokes, 2))
    return angles, sampling, unit_maps(n_coils, n, matrix), shifts, rng


@pytest.mark.parametrize(("n_coils", "size"), [(3, 16), (9, 15), (1, 24)])
def test_normal_operator_is_the_direct_sum(n_coils, size):
    angles, sampling, maps, shifts, rng = setup(n_coils=n_coils, matrix=size)
    weights = rng.random((len(angles), sampling.n_readout))
    normal = SenseNormal(angles, sampling, maps, shifts=shifts, weights=weights)
    matrix = dense_sense(angles, sampling, maps, shifts)
    image = (rng.standard_normal((size, size)) + 1j * rng.standard_normal((size, size))).astype(np.complex64)
    flat = np.tile(weights.ravel(), n_coils)
    expected = (matrix.conj().T @ (flat * (matrix @ image.ravel()))).reshape(size, size) / normal.scale
    np.testing.assert_allclose(normal(torch.from_numpy(image)), expected, atol=2e-4 * np.abs(expected).max())
    data = rng.standard_normal((n_coils, *weights.shape)).astype(np.complex64)
    expected = (matrix.conj().T @ (flat * data.ravel())).reshape(size, size) / normal.scale
    assert np.linalg.norm(normal.right_hand_side(data).numpy() - expected) < 4e-3 * np.linalg.norm(expected)


def test_scale_bounds_the_eigenvalues():
    angles, sampling, _, _, _ = setup(n_coils=1)
    ones = np.ones((1, N, N), np.complex64)
    normal = SenseNormal(angles, sampling, ones)
    largest = np.linalg.eigvalsh(
        dense_sense(angles, sampling, ones).conj().T @ dense_sense(angles, sampling, ones)
    ).max()
    # The circle of 2G bounds the eigenvalues from above; the image is half as wide.
    assert largest <= normal.scale * (1 + 1e-4)
    assert largest > 0.4 * normal.scale


@pytest.mark.parametrize(("density", "corner"), [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.5, 0.2), (0.0, 0.1)])
def test_converges_to_the_regularised_least_squares_solution(density, corner):
    angles, sampling, maps, shifts, rng = setup(9)
    matrix = dense_sense(angles, sampling, maps, shifts)
    data = (matrix @ (ellipse_image(N) * np.exp(0.4j)).ravel()).reshape(3, 9, -1)
    data += 0.5 * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape))
    given = sample_weights(angles, sampling, density, shifts)
    weights = np.tile(given.ravel(), 3)
    scale = SenseNormal(angles, sampling, maps, shifts=shifts, weights=given).scale
    fourier = np.fft.fft2(np.eye(N * N).reshape(-1, N, N)).reshape(N * N, -1).T
    penalty = fourier.conj().T @ (detail_filter(N, 9, corner).ravel()[:, None] ** -2 * fourier) / N**2
    normal = matrix.conj().T @ (weights[:, None] * matrix) / scale + 1e-2 * penalty
    expected = np.linalg.solve(normal, matrix.conj().T @ (weights * data.ravel()) / scale).reshape(N, N)
    found = cg_sense(
        data.astype(np.complex64),
        *(angles, sampling, maps),
        shifts=shifts,
        density=density,
        regularisation=1e-2,
        corner=corner,
        iterations=100,
        tolerance=1e-6,
    )
    assert found.in_time
    assert found.iterations < 100
    assert np.linalg.norm(found.image - expected) < 1e-2 * np.linalg.norm(expected)


def test_amplitude_is_kept_and_streaks_go():
    n = 48
    angles, sampling, maps, _, _ = setup(20, 6, n)
    true = ellipse_image(n)
    data = (dense_sense(angles, sampling, maps) @ true.ravel()).reshape(6, 20, -1).astype(np.complex64)
    found = cg_sense(data, angles, sampling, maps, iterations=15).image
    body = true > 0
    assert np.linalg.norm((found - true)[body]) < 0.12 * np.linalg.norm(true[body])


def test_detail_is_expected_where_spokes_are_dense():
    few, all_ = detail_filter(64, 8, 0.2), detail_filter(64, 101, 0.2)
    assert few[0, 0] == all_[0, 0] == 1.0
    corner = np.hypot(0.2, 8 / (np.pi * 64))
    assert few[0, 32] == pytest.approx(1.0 / np.hypot(1.0, 0.5 / corner))
    np.testing.assert_array_equal(few, few.T)
    assert all_.min() > 1.25 * few.min()
    assert (detail_filter(7, 3, 0.0) == 1.0).all()
    with pytest.raises(SettingsError, match="corner = -1"):
        detail_filter(8, 8, -1.0)


def test_expecting_less_detail_shows_less_noise():
    n = 32
    angles, sampling, maps, _, rng = setup(12, 6, n)
    true = ellipse_image(n)
    data = (dense_sense(angles, sampling, maps) @ true.ravel()).reshape(6, 12, -1)
    data += 4.0 * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape))
    error = {
        corner: np.linalg.norm(cg_sense(data.astype(np.complex64), angles, sampling, maps, corner=corner).image - true)
        for corner in (0.0, 0.2)
    }
    assert error[0.2] < 0.85 * error[0.0]


def test_weights_follow_the_distance_from_the_centre():
    angles = np.array([0.0, np.pi / 2])
    sampling = RadialSampling(n_readout=8, spacing=0.1, centre=4.0)
    shifts = np.array([[0.0, 0.3], [0.0, 0.0]])
    beside, through = sample_weights(angles, sampling, 1.0, shifts)
    assert through[0] == pytest.approx(1.0)
    assert through[4] == pytest.approx(0.025 / 0.4)
    np.testing.assert_allclose(beside, np.hypot(sampling.positions, 0.3) / 0.4, rtol=1e-6)


def test_warm_start_needs_fewer_iterations():
    angles, sampling, maps, _, _ = setup(12)
    data = (dense_sense(angles, sampling, maps) @ ellipse_image(N).ravel()).reshape(3, 12, -1).astype(np.complex64)
    settings = {"iterations": 200, "tolerance": 1e-4, "regularisation": 1e-2}
    cold = cg_sense(data, angles, sampling, maps, **settings)
    warm = cg_sense(data, angles, sampling, maps, start=0.98 * cold.image, **settings)
    assert warm.iterations < cold.iterations
    again = cg_sense(data, angles, sampling, maps, start=cold.image, **settings)
    assert again.iterations <= 1
    assert cold.residual <= 1e-4


def test_time_budget_ends_the_iterations_and_says_so():
    angles, sampling, maps, _, _ = setup()
    data = np.ones((3, 7, 2 * N), np.complex64)
    found = cg_sense(data, angles, sampling, maps, iterations=10, time_budget_s=0.0)
    assert not found.in_time
    assert found.iterations == 1
    assert found.image.any()

    def slow(image):
        time.sleep(0.03)
        return image * torch.linspace(0.1, 1.0, image.numel()).reshape(image.shape)

    _, done, residual = conjugate_gradients(
        slow, torch.ones((8, 8), dtype=torch.complex64), iterations=50, deadline=time.perf_counter() + 0.1
    )
    assert 1 <= done <= 5
    assert residual > 0.0


def test_no_signal_gives_no_image():
    angles, sampling, maps, _, _ = setup()
    found = cg_sense(np.zeros((3, 7, 2 * N), np.complex64), angles, sampling, maps)
    assert not found.image.any()
    assert found.in_time
    faint = cg_sense(np.full((3, 7, 2 * N), 1e-20, np.complex64), angles, sampling, maps)
    assert np.isfinite(faint.image).all()
    nothing = SenseNormal(angles, sampling, maps, weights=np.zeros((7, 2 * N), np.float32))
    with np.errstate(all="raise"):
        assert not nothing.right_hand_side(np.ones((3, 7, 2 * N), np.complex64)).any()


def test_what_does_not_fit_is_refused():
    angles, sampling, maps, _, _ = setup()
    data = np.zeros((3, 7, 2 * N), np.complex64)
    with pytest.raises(DataError, match=r"\(3, 7, 32\) is needed"):
        cg_sense(data[:2], angles, sampling, maps)
    with pytest.raises(DataError, match=r"\(coil, G, G\)"):
        cg_sense(data, angles, sampling, maps[:, 1:])
    with pytest.raises(DataError, match="first guess"):
        cg_sense(data, angles, sampling, maps, start=np.zeros((4, 4), np.complex64))
    with pytest.raises(DataError, match=r"shifts of shape \(3, 2\): \(7, 2\) is needed"):
        cg_sense(data, angles, sampling, maps, shifts=np.zeros((3, 2)))
    with pytest.raises(SettingsError, match="density exponent"):
        cg_sense(data, angles, sampling, maps, density=2.0)
    for strength in (-1.0, np.nan):
        with pytest.raises(SettingsError, match="regularisation = "):
            cg_sense(data, angles, sampling, maps, regularisation=strength)


@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0.0, -np.inf)])
def test_a_sample_that_is_not_finite_is_no_empty_image(value):
    angles, sampling, maps, _, _ = setup()
    data = np.ones((3, 7, 2 * N), np.complex64)
    data[1, 3, 5] = value
    with pytest.raises(DataError, match="not finite"):
        cg_sense(data, angles, sampling, maps)
