import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from direct_radial import ellipse_scan, ellipse_transform
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import SettingsError
from sinotherm.frames.compression import region_compression, streak_ratios, streak_weights, svd_compression

N = 64


def noise(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def mixed(n_physical, n_sources, seed=0):
    """Few independent sources seen by many coils."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((n_physical, n_sources)) + 1j * rng.standard_normal((n_physical, n_sources))
    return np.einsum("cs,snr->cnr", mixing, noise((n_sources, 6, 40), seed)).astype(np.complex64)


@settings(max_examples=20, deadline=None)
@given(n_coils=st.integers(1, 12), seed=st.integers(0, 99))
def test_rows_are_orthonormal_so_white_noise_stays_white(n_coils, seed):
    found = svd_compression(mixed(12, 12, seed), n_coils=n_coils)
    assert found.matrix.shape == (n_coils, 12)
    np.testing.assert_allclose(found.matrix @ found.matrix.conj().T, np.eye(n_coils), atol=1e-5)


def test_sources_are_kept_whole_and_energy_is_what_is_said():
    data = mixed(10, 3)
    found = svd_compression(data, energy=0.999999)
    assert found.matrix.shape == (3, 10)
    assert found.energy == pytest.approx(1.0, abs=1e-6)
    back = np.tensordot(found.matrix.conj().T, found.apply(data), axes=1)
    np.testing.assert_allclose(back, data, atol=2e-5 * np.abs(data).max())
    two = svd_compression(data, n_coils=2)
    share = np.sum(np.abs(two.apply(data)) ** 2) / np.sum(np.abs(data) ** 2)
    assert two.energy == pytest.approx(share, rel=1e-5)
    assert svd_compression(data, energy=1.0).matrix.shape[0] <= 10


def test_weights_leave_a_coil_behind_but_do_not_touch_the_noise():
    data = noise((4, 8, 64))
    data[3] *= 10.0
    plain = svd_compression(data, n_coils=3)
    assert np.abs(plain.matrix[:, 3]).max() > 0.99
    cautious = svd_compression(data, n_coils=3, weights=np.array([1.0, 1.0, 1.0, 0.0]))
    assert np.abs(cautious.matrix[:, 3]).max() < 1e-6
    np.testing.assert_allclose(np.linalg.norm(cautious.matrix, axis=1), 1.0, rtol=1e-6)


def outside_scan(n_spokes=48):
    """Two coils see the ellipses, a third mostly something 0.75 N off-centre."""
    angles = spoke_angles("golden", n_spokes)
    data, sampling = ellipse_scan(N, angles, n_coils=2)
    kappa = sampling.positions[None, :]
    kx, ky = kappa * np.cos(angles)[:, None], kappa * np.sin(angles)[:, None]
    far = ellipse_transform(4 * kx, 4 * ky, N // 4) * 6 * np.exp(-2j * np.pi * 0.75 * N * kx)
    third = 0.1 * data[0] + far
    return np.concatenate((data, third[None].astype(np.complex64))), angles, sampling


def test_region_keeps_the_field_of_view_and_gives_up_the_outside():
    data, _, sampling = outside_scan()
    found = region_compression(data, sampling, N, n_coils=2)
    np.testing.assert_allclose(found.matrix @ found.matrix.conj().T, np.eye(2), atol=1e-5)

    def outside(compression):
        projections = np.fft.fft(compression.apply(data), axis=-1)
        far = np.abs(np.fft.fftfreq(2 * N)) * 2 * N > N / 2
        energy = np.sum(np.abs(projections) ** 2, axis=(0, 1))
        return energy[far].sum() / energy[~far].sum()

    assert outside(found) < 0.2 * outside(svd_compression(data, n_coils=2))
    assert found.energy > 0.95
    weighted = region_compression(data, sampling, N, n_coils=1, weights=np.array([1.0, 0.0, 1.0]))
    assert np.abs(weighted.matrix[0, 1]) < np.abs(weighted.matrix[0, 0])


def test_streak_ratio_finds_the_coil_that_sees_the_outside():
    data, angles, sampling = outside_scan(24)
    ratios = streak_ratios(data, angles, sampling, N)
    assert ratios.shape == (3,)
    assert ratios[2] > 1.6 * ratios[:2].max()
    np.testing.assert_allclose(streak_ratios(data * 7.0, angles, sampling, N), ratios, rtol=1e-3)


def test_streak_weights():
    np.testing.assert_allclose(streak_weights([1.0, 1.0, 1.0, 4.0], limit=2.0), [1.0, 1.0, 1.0, 0.5])
    np.testing.assert_allclose(streak_weights([0.5, 0.6, 0.7]), 1.0)
    np.testing.assert_allclose(streak_weights([0.0, 0.0]), 1.0)


def test_impossible_requests_are_refused():
    data = noise((4, 2, 16))
    with pytest.raises(SettingsError, match="5 virtual coils from 4"):
        svd_compression(data, n_coils=5)
    with pytest.raises(SettingsError, match="above 0"):
        svd_compression(data, energy=0.0)
    with pytest.raises(SettingsError, match="oversampled readout"):
        region_compression(data, RadialSampling(n_readout=16, spacing=1 / 16, centre=8.0), 16, n_coils=2)
