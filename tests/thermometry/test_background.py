import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

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
    reference, _, _ = background.reference(image[None].astype(np.complex64))
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


@pytest.mark.parametrize(
    "field",
    [12.0 * (X**2 - Y**2), 9.0 * X * Y - 20.0 * X, 6.0 * (X**3 - 3.0 * X * Y**2), 9.0 * (3.0 * X**2 * Y - Y**3)],
)
@pytest.mark.parametrize("radius", [0.15, 0.25, 0.42])
def test_harmonic_fields_have_no_bias(field: np.ndarray, radius: float) -> None:
    """Of those that obey Laplace's equation exactly; over the widest ring they turn several times."""
    heated = np.hypot(X - 0.1, Y) < radius
    image = (BODY * np.exp(1j * field)).astype(np.complex64)
    reference, _, _ = Background(heated, harmonic=True, order=3).reference(image[None])
    assert np.abs(np.angle(image * reference[0].conj())[heated]).max() < 2e-3


def test_harmonic_field_of_higher_orders() -> None:
    """What the harmonic polynomials lack the solution has: a source beside the body."""
    field = np.log((X - 1.2) ** 2 + Y**2) * 3.0
    image = (BODY * np.exp(1j * field)).astype(np.complex64)
    reference, _, _ = Background(HEATED, harmonic=True, order=3).reference(image[None])
    assert np.abs(np.angle(image * reference[0].conj())[HEATED]).max() < 0.02


def test_polynomial_of_a_phase_that_turns_often_over_the_ring() -> None:
    heated = np.hypot(X - 0.1, Y) < 0.42
    image = (BODY * np.exp(1j * (0.4 + 12.0 * (X**2 - Y**2) - 15.0 * Y))).astype(np.complex64)
    reference, _, _ = Background(heated, harmonic=False, order=2).reference(image[None])
    assert np.abs(np.angle(image * reference[0].conj())[heated]).max() < 2e-3


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_scatter_of_the_harmonic_reading_is_that_of_the_image(smooth: float) -> None:
    random, errors, noise = np.random.default_rng(4), [], 0.05
    background = Background(HEATED, harmonic=True, order=3)
    for _ in range(20):
        parts = gaussian_filter(random.standard_normal((2, N, N)), (0.0, smooth, smooth))
        parts *= noise / parts.std()
        image = BODY * np.exp(1j * FIELD) + parts[0] + 1j * parts[1]
        reference, _, _ = background.reference(image[None].astype(np.complex64))
        errors.append(np.angle(image * reference[0].conj())[HEATED])
    assert 0.83 < np.std(errors) / noise < 1.1


@pytest.mark.parametrize(("harmonic", "order"), [(False, 3), (True, 3)])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_the_ring_tells_the_noise(harmonic: bool, order: int, smooth: float) -> None:
    random, found, noise = np.random.default_rng(4), [], 0.05
    background = Background(HEATED, harmonic=harmonic, order=order)
    for _ in range(20):
        parts = gaussian_filter(random.standard_normal((2, N, N)), (0.0, smooth, smooth))
        parts *= noise / parts.std()
        # The noise of a phase is that of the image over the signal: the ring is darker on one side.
        image = (BODY * (1.0 + 0.5 * X)) * np.exp(1j * (FIELD + HEAT)) + parts[0] + 1j * parts[1]
        found.append(background.reference(image[None].astype(np.complex64))[2])
    # Noise that neighbours share leaves less to the terms of the fit.
    assert np.mean(found) == pytest.approx(noise, rel=0.02 + 0.08 * smooth)


def test_a_ring_of_fewer_pixels_than_terms_tells_no_noise() -> None:
    image = np.zeros((1, N, N), np.complex64)
    image[0, N // 2, 34:38] = 1.0
    assert np.isnan(Background(HEATED, harmonic=False, order=3).reference(image)[2])


@pytest.mark.parametrize("harmonic", [False, True])
def test_a_region_over_the_skin_is_read_and_its_noise_is_that_of_tissue(harmonic: bool) -> None:
    """Superficial hyperthermia: a fourth of the region lies in air, whose phase says nothing."""
    random, noise = np.random.default_rng(6), 0.01
    body, heated = np.hypot(X, Y) < 0.7, np.hypot(X - 0.6, Y) < 0.2
    background = Background(heated, harmonic=harmonic, order=3)
    errors, told = [], []
    for _ in range(10):
        image = body * np.exp(1j * (0.7 + 2.0 * X - Y)) + noise * (random.standard_normal((2, N, N)).T @ (1, 1j)).T
        reference, _, found = background.reference(image[None].astype(np.complex64))
        errors.append(np.angle(image * reference[0].conj())[heated & (np.hypot(X, Y) < 0.68)])
        told.append(found)
    assert np.sqrt(np.mean(np.square(errors))) < 2.0 * noise
    assert np.mean(told) == pytest.approx(noise, rel=0.1)


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
    image, _, noise = background.reference(HEATED[None].astype(np.complex64))
    assert not image.any()
    assert np.isnan(noise)


@pytest.mark.parametrize(("order", "grows"), [(3, 0.0), (6, 0.3)])
def test_stated_variance_of_the_polynomial_is_its_scatter(order: int, grows: float) -> None:
    random, noise = np.random.default_rng(3), 0.05
    background = Background(HEATED, harmonic=False, order=order)
    errors, stated = [], []
    for _ in range(30):
        image = BODY + noise * (random.standard_normal((N, N)) + 1j * random.standard_normal((N, N)))
        reference, variance, _ = background.reference(image[None].astype(np.complex64))
        errors.append(np.angle(reference[0][HEATED]))
        stated.append(variance[HEATED])
    scatter = np.sqrt(np.mean(np.square(errors)))
    assert scatter > grows * noise
    assert 0.75 < np.sqrt(np.mean(stated)) / scatter < 1.3
    assert not variance[~HEATED].any()
    assert not Background(HEATED, harmonic=True, order=3).reference(image[None].astype(np.complex64))[1].any()
