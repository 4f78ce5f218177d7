import numpy as np
import pytest

from sinotherm.errors import DataError, SettingsError
from sinotherm.thermometry.background import Background

N = 96
Y, X = (np.mgrid[:N, :N] - N // 2) / (N / 2)
BODY = np.hypot(X, Y) < 0.9
HEATED = np.hypot(X - 0.1, Y) < 0.25
HEAT = np.where(np.hypot(X - 0.1, Y) < 0.2, -1.2 * np.exp(-((X - 0.1) ** 2 + Y**2) / 0.008), 0.0)
# Harmonic polynomials: both modes can represent them exactly.
FIELD = 0.7 + 9.0 * X - 5.0 * Y + 3.0 * (X**2 - Y**2) + 2.0 * X * Y


def _reading(background: Background, noise: float) -> np.ndarray:
    random = np.random.default_rng(2)
    image = BODY * np.exp(1j * (FIELD + HEAT))
    image = image + noise * (random.standard_normal((N, N)) + 1j * random.standard_normal((N, N)))
    reference, _ = background.reference(image[None].astype(np.complex64))
    assert reference.dtype == np.complex64
    assert not reference[0][~HEATED].any()
    return np.angle(image * reference[0].conj())


@pytest.mark.parametrize(("harmonic", "order"), [(False, 2), (False, 4), (True, 3)])
def test_heating_is_read_without_a_baseline(harmonic: bool, order: int) -> None:
    background = Background(HEATED, harmonic=harmonic, order=order)
    found = _reading(background, 0.0)
    np.testing.assert_allclose(found[HEATED], HEAT[HEATED], atol=0.02)
    noisy = _reading(background, 0.02)
    assert abs((noisy - HEAT)[HEATED].mean()) < 0.02


def test_first_order_cannot_follow_curvature() -> None:
    found = _reading(Background(HEATED, harmonic=False, order=1), 0.0)
    assert np.abs(found - HEAT)[HEATED].max() > 0.05


def test_what_cannot_be_read() -> None:
    touching = np.zeros((N, N), bool)
    touching[:5] = True
    with pytest.raises(SettingsError, match="border of the image"):
        Background(touching, harmonic=False, order=2)
    background = Background(HEATED, harmonic=False, order=2)
    with pytest.raises(DataError, match="2 coil images"):
        background.reference(np.ones((2, N, N), np.complex64))
    assert not background.reference(HEATED[None].astype(np.complex64))[0].any()


@pytest.mark.parametrize(("order", "grows"), [(3, 0.0), (6, 0.3)])
def test_stated_variance_of_the_polynomial_is_its_scatter(order: int, grows: float) -> None:
    random, noise = np.random.default_rng(3), 0.05
    background = Background(HEATED, harmonic=False, order=order)
    errors, stated = [], []
    for _ in range(30):
        image = BODY + noise * (random.standard_normal((N, N)) + 1j * random.standard_normal((N, N)))
        reference, variance = background.reference(image[None].astype(np.complex64))
        errors.append(np.angle(reference[0][HEATED]))
        stated.append(variance[HEATED])
    scatter = np.sqrt(np.mean(np.square(errors)))
    assert scatter > grows * noise
    assert 0.75 < np.sqrt(np.mean(stated)) / scatter < 1.3
    assert not variance[~HEATED].any()
    assert not Background(HEATED, harmonic=True, order=3).reference(image[None].astype(np.complex64))[1].any()
