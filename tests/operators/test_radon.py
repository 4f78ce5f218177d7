"""Fourier slice, Radon and filtered back-projection."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_checks import adjoint_mismatch, random_complex, relative_error
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.operators.fbp import FilteredBackProjection
from sinotherm.operators.fourier_slice import FourierSlice
from sinotherm.operators.radon import Radon, detector_sampling

ODD = RadialSampling(n_readout=33, spacing=1 / 33, centre=15.5)


def gaussian(shape: tuple[int, int], centre: tuple[float, float], width: float) -> np.ndarray:
    """A blob at (x, y); its line integrals are Gaussians, known to machine precision."""
    y, x = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * width**2))


def gaussian_projection(s: np.ndarray, angles: np.ndarray, centre: tuple[float, float], width: float) -> np.ndarray:
    along = np.cos(angles) * centre[0] + np.sin(angles) * centre[1]
    return np.sqrt(2 * np.pi) * width * np.exp(-((s - along[:, None]) ** 2) / (2 * width**2))


@given(st.integers(1, 20), st.floats(-2, 2), st.booleans())
@settings(deadline=None, max_examples=20)
def test_fourier_slice_is_the_sum_by_its_definition(n: int, fraction: float, shifted: bool) -> None:
    sampling = RadialSampling(n_readout=n, spacing=0.9 / n, centre=n / 2 + fraction)
    offsets = np.array([0.01, -0.02, 0.0]) if shifted else np.zeros(3)
    spokes = random_complex((2, 3, n))
    s = (np.arange(n) - n // 2) / (n * sampling.spacing)
    kappa = sampling.positions[None] + offsets[:, None]
    truth = sampling.spacing * np.einsum("bti,tij->btj", spokes.numpy(), np.exp(2j * np.pi * kappa[:, :, None] * s))
    operator = FourierSlice(sampling, offsets)
    np.testing.assert_allclose(operator(spokes).numpy(), truth, atol=1e-12)
    torch.testing.assert_close(operator.inverse(operator(spokes)), spokes)
    assert adjoint_mismatch(operator) < 1e-12
    assert adjoint_mismatch(FourierSlice(sampling)) < 1e-12


@pytest.mark.parametrize("centre", [(0.0, 0.0), (4.3, -3.6)])
@pytest.mark.parametrize("sampling", [None, RadialSampling(n_readout=96, spacing=1 / 96, centre=47.5)])
def test_projections_are_the_line_integrals(centre: tuple[float, float], sampling: RadialSampling | None) -> None:
    angles = np.array([0.0, 0.4, 1.2, 2.0, 4.0])
    shape = (48, 40)
    image = torch.from_numpy(gaussian(shape, centre, 2.0) * np.exp(0.7j))
    operator = Radon(angles, shape, sampling, accuracy=1e-12)
    s = np.arange(96) - 48
    truth = gaussian_projection(s, angles, centre, 2.0) * np.exp(0.7j)
    assert relative_error(operator(image).numpy(), truth) < 1e-7


def test_opposed_projections_are_mirror_images() -> None:
    # On an even centred grid mirroring is a flip followed by a roll of one.
    image = torch.from_numpy(gaussian((32, 32), (3.1, 5.2), 2.0)).to(torch.complex128)
    there, back = Radon(np.array([0.6, 0.6 + np.pi]), (32, 32), accuracy=1e-12)(image)
    torch.testing.assert_close(back, torch.roll(torch.flip(there, (-1,)), 1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
def test_adjoints_are_exact(shape: tuple[int, int]) -> None:
    angles = np.array([0.1, 1.0, 2.2])
    shifts = np.array([[0.01, 0.02], [-0.01, 0.0], [0.0, 0.01]])
    for sampling in (None, ODD):
        assert adjoint_mismatch(Radon(angles, shape, sampling, shifts=shifts)) < 1e-10
        assert adjoint_mismatch(FilteredBackProjection(angles, shape, sampling, shifts=shifts, weights="gaps")) < 1e-10


def test_batched_angles_equal_single_ones() -> None:
    angles = np.random.default_rng(0).uniform(0, 3, (2, 5))
    shifts = np.random.default_rng(1).normal(0, 0.01, (2, 5, 2))
    x = random_complex((2, 3, 16, 16))
    for kind in (Radon, FilteredBackProjection):
        together = kind(angles, (16, 16), shifts=shifts)
        data = x if kind is Radon else random_complex((2, 3, 5, 32))
        for item in range(2):
            alone = kind(angles[item], (16, 16), shifts=shifts[item])
            torch.testing.assert_close(together(data)[item], alone(data[item]))
        assert adjoint_mismatch(together, (2, 3)) < 1e-10


@pytest.mark.parametrize("centre_of_readout", [64.0, 63.5, 62.8])
@pytest.mark.parametrize("weights", ["equal", "gaps"])
def test_back_projection_inverts_the_transform(centre_of_readout: float, weights: str) -> None:
    image = gaussian((64, 64), (6.0, -9.0), 3.0) * np.exp(0.3j)
    angles = spoke_angles("uniform180", 110)
    sampling = RadialSampling(n_readout=128, spacing=1 / 128, centre=centre_of_readout)
    sinogram = Radon(angles, (64, 64), sampling, accuracy=1e-9)(torch.from_numpy(image))
    back = FilteredBackProjection(angles, (64, 64), sampling, weights=weights, accuracy=1e-9)(sinogram)
    assert relative_error(back.numpy(), image) < 3e-3
    # The classical weights leave a pedestal, by this formula.
    area = FilteredBackProjection(angles, (64, 64), sampling, weights=weights, centre="area", accuracy=1e-9)(sinogram)
    pedestal = (area - back)[28:37, 28:37].mean().item() / image.sum()
    assert abs(pedestal) == pytest.approx(np.pi / 12 / 128**2, rel=0.05)


def test_the_hann_window_softens_without_changing_the_amplitude() -> None:
    image = gaussian((64, 64), (0.0, 0.0), 8.0)
    angles = spoke_angles("uniform180", 110)
    sinogram = Radon(angles, (64, 64))(torch.from_numpy(image).to(torch.complex128))
    soft = FilteredBackProjection(angles, (64, 64), radial_filter="hann")(sinogram).real.numpy()
    assert soft.max() == pytest.approx(1.0, abs=0.02)
    assert soft.sum() == pytest.approx(image.sum(), rel=0.01)


def test_detector_defaults_to_the_full_oversampled_width() -> None:
    assert detector_sampling(256) == RadialSampling(n_readout=512, spacing=1 / 512, centre=256.0)
    assert Radon(np.zeros(2), (10, 12)).range_shape == (2, 24)


def test_a_disc_has_its_chords() -> None:
    # A hard edge is not band-limited: the chord is met in the mean, with Gibbs ripple at the rim.
    fine = (np.arange(64 * 8) + 0.5) / 8 - 32.0 - 0.5
    disc = (fine[:, None] ** 2 + (fine[None] - 5.0) ** 2 <= 15.0**2).astype(float)
    image = disc.reshape(64, 8, 64, 8).mean((1, 3))
    angles = np.array([0.0, 0.9])
    p = Radon(angles, (64, 64))(torch.from_numpy(image).to(torch.complex128)).real.numpy()
    s = np.arange(128) - 64 - 5.0 * np.cos(angles)[:, None]
    chord = 2 * np.sqrt(np.maximum(15.0**2 - s**2, 0.0))
    inside = np.abs(s) < 12
    np.testing.assert_allclose(p[inside], chord[inside], atol=0.5)
    np.testing.assert_allclose(p.sum(-1), np.pi * 15.0**2, rtol=2e-3)
