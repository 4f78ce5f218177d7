import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from direct_radial import ellipse_scan, ellipse_transform
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import SettingsError
from sinotherm.frames.compression import (
    region_compression,
    rows_without,
    streak_prone_coils,
    streak_ratios,
    svd_compression,
)

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


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), coils=st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True))
def test_coils_taken_out_of_whitened_data_are_those_left_out_before(seed, coils):
    raw = noise((8, 500), seed) + np.ones((8, 8)) @ noise((8, 500), seed + 1)
    factor = np.linalg.cholesky(raw @ raw.conj().T / 500)
    rows = rows_without(coils, factor)
    out = rows @ np.linalg.solve(factor, raw)
    np.testing.assert_allclose(rows @ rows.conj().T, np.eye(8 - len(coils)), atol=1e-5)
    # Whitened after they were left out, the data are the same up to a rotation.
    rest = np.delete(raw, coils, axis=0)
    apart = np.linalg.solve(np.linalg.cholesky(rest @ rest.conj().T / 500), rest)
    np.testing.assert_allclose(out.conj().T @ out, apart.conj().T @ apart, atol=1e-3)


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


def test_streak_ratio_finds_the_coil_that_sees_the_outside():
    data, angles, sampling = outside_scan(24)
    ratios = streak_ratios(data, angles, sampling, N)
    assert ratios.shape == (3,)
    assert ratios[2] > 1.6 * ratios[:2].max()
    np.testing.assert_allclose(streak_ratios(data * 7.0, angles, sampling, N), ratios, rtol=1e-3)


def ring(n_spokes, *, n_coils=8, level=0.0, seed=0):
    """Like coils round the object, and noise."""
    angles = spoke_angles("golden", n_spokes)
    data, sampling = ellipse_scan(N, angles, n_coils=n_coils)
    return data + level * noise(data.shape, seed), angles, sampling


@pytest.mark.parametrize("n_spokes", [16, 34, 64])
@pytest.mark.parametrize("n_coils", [3, 5, 8, 12])
def test_only_a_coil_whose_streaks_stand_out_is_streak_prone(n_spokes, n_coils):
    data, angles, sampling = ring(n_spokes, n_coils=n_coils, level=1.0)
    assert streak_prone_coils(data, angles, sampling, N, limit=2.5) == ()
    kappa = sampling.positions[None, :]
    beside = np.exp(-2j * np.pi * 0.8 * N * kappa * np.cos(angles)[:, None] - kappa**2 / 0.3)
    data[2] += (0.3 * np.abs(data).max() * beside).astype(np.complex64)
    assert streak_prone_coils(data, angles, sampling, N, limit=2.5) == (2,)


def test_a_coil_that_sees_nothing_is_not_streak_prone():
    data, angles, sampling = ring(34, level=1.0)
    data[4] = noise(data[4].shape, 1)
    ratios = streak_ratios(data, angles, sampling, N)
    assert ratios[4] > 2.5 * np.median(ratios)
    assert streak_prone_coils(data, angles, sampling, N, limit=2.5) == ()
    data[1:6] = 0.0
    assert streak_prone_coils(data, angles, sampling, N, limit=2.5) == ()
    assert streak_prone_coils(0.0 * data, angles, sampling, N, limit=2.5) == ()


@given(limit=st.floats(1e-3, 1.0), seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_no_more_than_half_of_the_coils_are_streak_prone(limit, seed):
    data, angles, sampling = ring(16, level=30.0, seed=seed)
    assert len(streak_prone_coils(data, angles, sampling, N, limit=limit)) <= 4


def test_impossible_requests_are_refused():
    data = noise((4, 2, 16))
    with pytest.raises(SettingsError, match="5 virtual coils from 4"):
        svd_compression(data, n_coils=5)
    with pytest.raises(SettingsError, match="above 0"):
        svd_compression(data, energy=0.0)
    with pytest.raises(SettingsError, match="oversampled readout"):
        region_compression(data, RadialSampling(n_readout=16, spacing=1 / 16, centre=8.0), 16, n_coils=2)
