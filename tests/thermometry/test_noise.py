import math

import numpy as np
import pytest

from sinotherm.errors import SettingsError
from sinotherm.thermometry.noise import coverage_factor, sigma_by_formula, temporal_phase_sd


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


def test_no_signal_is_infinitely_uncertain() -> None:
    zero, one = np.zeros((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)
    for signal, level in ((zero, one), (zero, zero)):
        sigma = sigma_by_formula(
            signal=signal,
            noise_sd=level,
            baseline_signal=signal,
            baseline_noise_sd=level,
            n_effective=1.0,
            degc_per_radian=1.0,
        )
        assert np.isposinf(sigma).all()


def test_temporal_sd_and_its_widening() -> None:
    random = np.random.default_rng(4)
    phases = 0.03 * random.standard_normal((10, 1, 60, 60))
    sd = temporal_phase_sd(list(np.exp(1j * phases).astype(np.complex64)))
    np.testing.assert_allclose(sd, phases.std(axis=0, ddof=1), rtol=1e-3)
    # ±1.96 s of ten frames covers 0.906 of a further draw around a known mean; widened it is 0.95.
    further = 0.03 * random.standard_normal((1, 60, 60))
    plain = np.mean(np.abs(further) < 1.96 * sd)
    wide = np.mean(np.abs(further) < 1.96 * coverage_factor(10) * sd)
    assert plain == pytest.approx(0.918, abs=0.02)
    assert wide == pytest.approx(0.95, abs=0.015)


def test_factor_needs_frames() -> None:
    assert coverage_factor(30) == 1.0
    assert coverage_factor(2) == pytest.approx(12.706 / 1.96, rel=1e-3)
    assert math.isinf(coverage_factor(1))
    with pytest.raises(SettingsError, match="2 or more"):
        temporal_phase_sd([np.ones((1, 2, 2), np.complex64)])
