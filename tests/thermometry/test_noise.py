import numpy as np
import pytest
from scipy import ndimage

from sinotherm.errors import SettingsError
from sinotherm.thermometry.noise import (
    coverage_factor,
    sigma_by_formula,
    sigma_of_change,
    temporal_phase_sd,
    uncertainty_of_fit,
    variance_of_fit,
)


def test_formula_against_simulated_noise() -> None:
    random = np.random.default_rng(3)
    n, frames, sd, sd0, scale = 40000, 4, 0.05, 0.08, 13.0

    def noise(level: float) -> np.ndarray:
        return level * (random.standard_normal(n) + 1j * random.standard_normal(n))

    baseline = np.mean([0.9 + noise(sd0) for _ in range(frames)], axis=0)
    change = np.angle((1.1 + noise(sd)) * baseline.conj()) * scale
    one = np.ones((1, 1, 1), np.float32)
    sigma = sigma_by_formula(
        signal=1.1 * one,
        noise_sd=sd * one,
        baseline_signal=0.9 * one,
        baseline_noise_sd=sd0 * one,
        n_effective=frames,
        degc_per_radian=-scale,
    )
    assert change.std() / sigma[0, 0, 0] == pytest.approx(1.0, abs=0.02)


def test_no_signal_or_noise_is_infinitely_uncertain() -> None:
    zero, one = np.zeros((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)
    for signal, level in ((zero, one), (zero, zero), (one, zero), (one, np.nan * one), (one, np.inf * one)):
        sigma = sigma_by_formula(
            signal=signal,
            noise_sd=level,
            baseline_signal=signal,
            baseline_noise_sd=level,
            n_effective=1.0,
            degc_per_radian=1.0,
        )
        assert np.isposinf(sigma).all()


def _products(phases: np.ndarray, signal: np.ndarray) -> list[np.ndarray]:
    return list((signal**2 * np.exp(1j * phases)).astype(np.complex64))


def test_temporal_sd_is_that_of_the_noise_over_the_signal() -> None:
    random = np.random.default_rng(4)
    signal = np.linspace(0.5, 2.0, 80)[None, None, :] * np.ones((1, 80, 80))
    mask = np.zeros((1, 80, 80), bool)
    mask[:, 10:70, 10:70] = True
    true = 0.03 / signal
    noise = true * random.standard_normal((10, 1, 80, 80))
    sd = temporal_phase_sd(_products(np.where(mask, noise, 2.0 * noise), signal), mask)
    assert sd.dtype == np.float32
    # White noise: 49 voxels of nine degrees of freedom each scatter by 1/sqrt(2 · 441).
    ratio = (sd / true)[mask]
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    assert ratio.std() == pytest.approx(1.0 / np.sqrt(882), rel=0.35)
    # Voxels without signal keep their own, widened by Student's t of nine degrees of freedom.
    own = (2.0 * noise).std(axis=0, ddof=1)
    np.testing.assert_allclose(sd[~mask], coverage_factor(9) * own[~mask], rtol=1e-3)


@pytest.mark.parametrize(("n_frames", "blur"), [(3, 0.0), (5, 1.0), (5, 4.0), (10, 4.0), (30, 2.0)])
def test_coverage_of_white_and_of_smooth_noise(n_frames: int, blur: float) -> None:
    random = np.random.default_rng(5)
    mask, signal = np.ones((1, 64, 64), bool), np.ones((1, 64, 64))
    hits = []
    for _ in range(12):
        noise = ndimage.gaussian_filter(random.standard_normal((n_frames + 1, 1, 64, 64)), (0, 0, blur, blur))
        noise *= 0.03 / noise.std()
        sd = temporal_phase_sd(_products(noise[1:] - noise[1:].mean(axis=0), signal), mask)
        hits.append(np.mean(np.abs(noise[0]) < 1.96 * sd))
    assert 0.93 < np.mean(hits) < 0.98


def test_the_error_of_a_change_grows_with_it_and_with_its_gradient() -> None:
    mask = np.ones((1, 32, 32), bool)
    mask[:, :, 28:] = False
    ramp = np.broadcast_to(0.5 * np.arange(32, dtype=np.float32), (1, 32, 32))
    inner = np.s_[:, 8:22, 8:22]
    np.testing.assert_allclose(sigma_of_change(ramp, mask, 0.1, 0.0)[inner], 0.1 * ramp[inner], rtol=1e-4)
    np.testing.assert_allclose(sigma_of_change(ramp, mask, 0.0, 0.4)[inner], 0.4 * 0.5, rtol=1e-4)
    both = sigma_of_change(np.where(mask, ramp, np.nan), mask, 0.1, 0.4)
    np.testing.assert_allclose(both[inner], np.hypot(0.1 * ramp[inner], 0.2), rtol=1e-4)
    assert (both[~mask] == 0).all()
    assert not sigma_of_change(np.zeros_like(ramp), mask, 0.1, 0.4).any()


def test_constant_frames_have_no_noise() -> None:
    sd = temporal_phase_sd([np.ones((1, 8, 8), np.complex64)] * 3, np.ones((1, 8, 8), bool))
    np.testing.assert_array_equal(sd, 0.0)


def test_factor_needs_frames() -> None:
    assert coverage_factor(29) == 1.0
    assert coverage_factor(1) == pytest.approx(12.706 / 1.96, rel=1e-3)
    with pytest.raises(SettingsError, match="2 or more"):
        temporal_phase_sd([np.ones((1, 2, 2), np.complex64)], np.ones((1, 2, 2), bool))


def test_uncertainty_of_a_fit_to_equal_and_to_lonely_values() -> None:
    random = np.random.default_rng(8)
    places = np.ones((20, 20), bool)
    one = np.ones(400)
    design = np.stack([one, random.standard_normal(400)], axis=1)

    def root(residual: np.ndarray, sd: float, places: np.ndarray) -> np.ndarray:
        n = len(residual)
        return uncertainty_of_fit(
            design[:n], residual, np.full(n, sd), prior=np.ones(n), kept=np.ones(n), places=places
        )

    white = root(0.1 * random.standard_normal(400), 0.1, places)
    exact = 0.01 * np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(np.diag(white @ white.T), np.diag(exact), rtol=0.4)
    terms = np.array([[[1.0, 1.0]], [[0.0, 2.0]]], np.float32)
    found = variance_of_fit(terms, white)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, 1], np.array([1.0, 2.0]) @ white @ white.T @ [1.0, 2.0], rtol=1e-4)
    # Without residuals, or without neighbours, there is no correlation to see.
    still = root(np.zeros(400), 0.1, places)
    np.testing.assert_allclose(still @ still.T, exact * 400 / 398, rtol=1e-6)
    apart = np.zeros((40, 40), bool)
    apart[::2, ::2] = True
    lonely = root(0.1 * np.sign(random.standard_normal(400)), 0.1, apart)
    np.testing.assert_allclose(lonely @ lonely.T, exact * 400 / 398, rtol=1e-6)
    # Two terms that are the same but for rounding: their difference is not known.
    twins = uncertainty_of_fit(
        np.stack([one, one + 1e-9 * design[:, 1]], axis=1), 0.1 * one, 0.1 * one, prior=one, kept=one, places=places
    )
    assert variance_of_fit(np.array([[1.0], [-1.0]], np.float32), twins)[0] > 1e6
    # Two values that two terms fit exactly leave one nominal degree of freedom, and a wide margin.
    few = root(np.array([0.1, -0.1]), 0.1, np.array([[True, False, True]]))
    assert np.sqrt(np.diag(few @ few.T)).min() > 5 * 0.1
