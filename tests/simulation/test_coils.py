import numpy as np
import pytest

from sinotherm.errors import SettingsError
from sinotherm.simulation.coils import coil_array


@pytest.fixture
def body():
    y, x = np.mgrid[:48, :48] - 24
    return (x / 18) ** 2 + (y / 13) ** 2 < 1


@pytest.mark.parametrize("n_coils", [2, 8, 32])
def test_coils_cover_the_body_and_differ(n_coils, body):
    coils = coil_array(n_coils, body=body, fov_m=0.4, random=np.random.default_rng(1))
    assert coils.maps.shape == (n_coils, 48, 48)
    assert coils.maps.dtype == np.complex64
    together = np.sqrt(np.sum(np.abs(coils.maps) ** 2, axis=0))
    assert np.median(together[body]) == pytest.approx(1.0, rel=1e-5)
    assert together[body].min() > 0.1
    values = np.linalg.svd(coils.maps[:, body], compute_uv=False)
    assert values[-1] > 1e-4 * values[0]


@pytest.mark.parametrize("n_coils", [8, 32])
def test_maps_are_smooth_and_strongest_at_the_coil(n_coils, body):
    coils = coil_array(n_coils, body=body, fov_m=0.4, random=np.random.default_rng(2))
    inside = body & np.roll(body, 1, axis=1)
    step = np.abs(coils.maps - np.roll(coils.maps, 1, axis=2))[:, inside]
    assert np.median(step) < 0.15 * np.median(np.abs(coils.maps[:, inside]))
    weight = np.abs(coils.maps) * body
    y, x = np.mgrid[:48, :48] - 24
    turn = np.unwrap([np.angle(np.sum(w * (x + 1j * y))) for w in weight[: min(n_coils, 16)]])
    assert abs(turn[-1] - turn[0]) > np.pi


def test_noise_covariance_is_hermitian_positive_and_normalised(body):
    covariance = coil_array(16, body=body, fov_m=0.4, random=np.random.default_rng(3)).noise_covariance
    np.testing.assert_allclose(covariance, covariance.conj().T, atol=1e-12)
    values = np.linalg.eigvalsh(covariance)
    assert values[0] > 0.1
    assert np.trace(covariance).real == pytest.approx(16.0)
    assert np.abs(covariance[0, 1]) > 1e-3


def test_optimal_signal_against_the_formula_per_voxel(body):
    coils = coil_array(4, body=body, fov_m=0.4, random=np.random.default_rng(4))
    c = coils.maps[:, 20, 25].astype(complex)
    expected = np.sqrt((c.conj() @ np.linalg.inv(coils.noise_covariance) @ c).real)
    assert coils.optimal_signal()[20, 25] == pytest.approx(expected, rel=1e-6)


def test_body_coil_and_bounds(body):
    one = coil_array(1, body=body, fov_m=0.4, random=np.random.default_rng(0))
    np.testing.assert_array_equal(one.maps, 1.0)
    for n_coils in (0, 65):
        with pytest.raises(SettingsError, match="1 to 64"):
            coil_array(n_coils, body=body, fov_m=0.4, random=np.random.default_rng(0))
