import numpy as np
import pytest
import torch

from operator_checks import random_complex, relative_error
from sinotherm.errors import DataError, SettingsError
from sinotherm.operators.coils import adaptive_maps, combine, espirit_maps, maps_name, rss


def coil_scene(n_coils: int = 4, n: int = 24, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A disc with a phase, seen by coils around it: (object, sensitivities, coil images)."""
    y, x = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij")
    angles = np.arange(n_coils) * 2 * np.pi / n_coils
    away = np.stack([(x - 1.3 * np.cos(a)) ** 2 + (y - 1.3 * np.sin(a)) ** 2 for a in angles])
    maps = np.exp(-away / 2) * np.exp(1j * (angles[:, None, None] + 0.5 * x))
    maps = maps / np.sqrt(np.sum(np.abs(maps) ** 2, 0))
    image = (x**2 + y**2 < 0.7) * np.exp(0.8j * y)
    random = np.random.default_rng(0)
    images = maps * image + noise * (random.standard_normal(maps.shape) + 1j * random.standard_normal(maps.shape))
    return image, maps, images.astype(np.complex64)


@pytest.mark.kernel
def test_maps_are_the_sensitivities_up_to_a_common_phase() -> None:
    image, truth, images = coil_scene()
    maps = adaptive_maps(images, 3)
    inside = np.abs(image) > 0
    overlap = np.abs(np.sum(maps.conj() * truth, 0))
    assert overlap[inside].min() > 0.99
    np.testing.assert_allclose(np.sum(np.abs(maps) ** 2, 0), 1.0, rtol=1e-5)
    assert maps.dtype == np.complex64


@pytest.mark.kernel
def test_the_combination_keeps_amplitude_and_the_phase_between_frames() -> None:
    image, _, images = coil_scene(noise=0.01)
    maps = adaptive_maps(images, 5)
    inside = np.abs(image) > 0
    np.testing.assert_allclose(np.abs(combine(images, maps))[inside], 1.0, atol=0.06)
    # A later frame, turned by a phase: frozen maps hand on exactly that.
    turned = combine(images * np.complex64(np.exp(0.4j)), maps)
    np.testing.assert_allclose(np.angle(turned * combine(images, maps).conj())[inside], 0.4, atol=1e-5)


@pytest.mark.kernel
def test_maps_of_nothing_are_finite() -> None:
    maps = adaptive_maps(np.zeros((3, 4, 5), np.complex64))
    np.testing.assert_allclose(np.sum(np.abs(maps) ** 2, 0), 1.0, rtol=1e-5)


def test_rss_and_combination_by_their_definitions() -> None:
    images, maps = random_complex((3, 4, 5)).numpy(), random_complex((3, 4, 5), seed=1).numpy()
    np.testing.assert_allclose(rss(images), np.linalg.norm(images, axis=0), rtol=1e-6)
    expected = sum(maps[c].conj() * images[c] for c in range(3))
    assert relative_error(combine(images.astype(np.complex64), maps.astype(np.complex64)), expected) < 1e-6


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 8, 8), (3, 8, 8)])
def test_maps_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=rf"\(2, 8, 8\) and maps of shape \({shape[0]}, {shape[1]}, {shape[2]}\)"):
        combine(np.ones((2, 8, 8), np.complex64), np.ones(shape, np.complex64))


def test_maps_are_named_by_content() -> None:
    maps = random_complex((2, 3, 3), torch.complex64).numpy()
    assert maps_name(maps) == maps_name(maps.copy())
    assert maps_name(maps) != maps_name(maps * 2)


@pytest.mark.kernel
def test_espirit_maps_are_the_sensitivities_up_to_a_common_phase() -> None:
    image, truth, images = coil_scene(n=32, noise=0.003)
    maps = espirit_maps(images, calibration=16, kernel=4)
    inside = np.abs(image) > 0
    overlap = np.abs(np.sum(maps.conj() * truth, 0))
    assert np.median(overlap[inside]) > 0.999
    assert overlap[inside].min() > 0.98
    np.testing.assert_allclose(np.sum(np.abs(maps) ** 2, 0), 1.0, rtol=1e-5)


@pytest.mark.kernel
def test_espirit_maps_of_nothing_are_finite() -> None:
    maps = espirit_maps(np.zeros((2, 8, 8), np.complex64), calibration=6, kernel=2)
    np.testing.assert_allclose(np.sum(np.abs(maps) ** 2, 0), 1.0, rtol=1e-5)


def test_espirit_refuses_a_region_that_does_not_fit() -> None:
    with pytest.raises(SettingsError, match="region of 24"):
        espirit_maps(np.zeros((2, 16, 16), np.complex64))
