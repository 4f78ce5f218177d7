import itertools
import math

import numpy as np
import pytest
import torch

from operator_checks import direct_sum, direct_transform, relative_error
from sinotherm.core.geometry import GOLDEN_ANGLE, RadialSampling
from sinotherm.networks.radial import RadialSinogram, upsample

N = 16
SAMPLING = RadialSampling(n_readout=2 * N, spacing=0.5 / N, centre=float(N))


def _image(seed=0, batch=1):
    random = torch.Generator().manual_seed(seed)
    return torch.view_as_complex(torch.randn((batch, N, N, 2), generator=random))


def _maps(coils=3):
    maps = torch.view_as_complex(torch.randn((coils, N, N, 2), generator=torch.Generator().manual_seed(9)))
    return maps / maps.abs().square().sum(0).sqrt()


def _points(angles, sampling=SAMPLING):
    return (sampling.positions[None, :, None] * np.stack([np.cos(angles), np.sin(angles)], -1)[:, None]).reshape(-1, 2)


@pytest.mark.parametrize("centre", [float(N), N - 0.5, N + 0.25])
def test_sinogram_is_the_line_integral_transform_of_the_image(centre):
    sampling = RadialSampling(n_readout=2 * N, spacing=0.5 / N, centre=centre)
    angles = np.array([0.3, 2.0, 1.1, 4.0, 5.5])
    image, maps = _image(), _maps()
    operator = RadialSinogram(sampling, angles, n_pixels=N, maps=maps)
    samples = direct_transform(_points(angles, sampling), (image * maps).numpy()).reshape(1, 3, 5, 2 * N)
    order = np.argsort(angles % math.pi)
    s = np.arange(2 * N) - N
    kernel = np.exp(2j * math.pi * np.outer(sampling.positions, s)) / (2 * N)
    projections = samples @ kernel
    flipped = np.array([np.exp(2j * math.pi * np.outer(sampling.positions, -s))]) / (2 * N)
    for place, spoke in enumerate(order):
        expected = samples[:, :, spoke] @ flipped[0] if angles[spoke] >= math.pi else projections[:, :, spoke]
        measured = operator.forward(image)[:, :, place].numpy()
        # Detector pixel −n/2 is also +n/2; where the spoke's centre lies between samples they differ in phase.
        first = 0 if centre == N else 1
        np.testing.assert_allclose(measured[..., first:], expected[..., first:], atol=3e-3 * np.abs(projections).max())


def test_inverse_is_the_weighted_sum_of_back_projections():
    angles = np.arange(7) * GOLDEN_ANGLE
    operator = RadialSinogram(SAMPLING, angles, n_pixels=N, equal=True)
    samples = torch.view_as_complex(torch.randn((1, 1, 7, 2 * N, 2), generator=torch.Generator().manual_seed(3)))
    kappa = np.abs(SAMPLING.positions)
    weights = np.where(kappa > 0, SAMPLING.spacing * kappa * math.pi / 7, SAMPLING.spacing**2 * math.pi / 7 / 4)
    expected = direct_sum(_points(angles), (samples.numpy() * weights).reshape(1, -1), (N, N))
    measured = operator.inverse(operator.order(samples)).numpy()
    assert relative_error(measured, expected) < 4e-3


def test_order_and_restore_are_inverse():
    angles = np.arange(9) * GOLDEN_ANGLE
    operator = RadialSinogram(SAMPLING, angles, n_pixels=N)
    samples = torch.view_as_complex(torch.randn((2, 4, 9, 2 * N, 2), generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(operator.restore(operator.order(samples)), samples, atol=1e-5, rtol=0)


def test_the_order_of_acquisition_does_not_matter():
    angles = np.arange(11) * GOLDEN_ANGLE
    image, shuffle = _image(), np.random.default_rng(0).permutation(11)
    one = RadialSinogram(SAMPLING, angles, n_pixels=N, maps=_maps())
    two = RadialSinogram(SAMPLING, angles[shuffle], n_pixels=N, maps=_maps())
    torch.testing.assert_close(one.forward(image), two.forward(image))
    samples = one.restore(one.forward(image))
    torch.testing.assert_close(
        one.inverse(one.order(samples)), two.inverse(two.order(samples[..., shuffle, :])), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("spokes", [3, 8, 40])
def test_update_converges_where_the_inverse_would_not(spokes):
    angles = np.arange(spokes) * math.pi / spokes
    operator = RadialSinogram(SAMPLING, angles, n_pixels=N, maps=_maps())
    measured = operator.forward(_image())
    image, residuals = torch.zeros(1, N, N, dtype=torch.complex64), []
    for _ in range(8):
        residual = measured - operator.forward(image)
        residuals.append(float(residual.norm()))
        image = image + operator.update(residual)
    assert all(b < a for a, b in itertools.pairwise(residuals))


def test_shifts_move_the_samples():
    angles, shift = np.array([0.4, 1.7]), np.array([[0.01, -0.02], [0.0, 0.03]])
    operator = RadialSinogram(SAMPLING, angles, n_pixels=N, shifts=shift)
    points = (_points(angles).reshape(2, -1, 2) + shift[:, None]).reshape(-1, 2)
    expected = direct_transform(points, _image().numpy()).reshape(1, 1, 2, 2 * N)
    measured = operator.restore(operator.forward(_image())).numpy()
    assert relative_error(measured, expected) < 4e-3


@pytest.mark.parametrize(
    "angles",
    [
        np.arange(6) * math.pi / 6,
        np.arange(7) * GOLDEN_ANGLE,
        np.arange(8) * math.pi / 4 + 0.1,
        math.pi - 1e-12 + np.arange(6) * math.pi / 6,
    ],
)
def test_upsampling_fills_every_gap_and_keeps_what_was_measured(angles):
    image = _image(batch=2)
    operator = RadialSinogram(SAMPLING, angles, n_pixels=N, maps=_maps())
    measured = operator.forward(image) + 1.0
    full = upsample(image, operator, measured, 24)
    assert full.measured.sum() == len(angles)
    assert (np.diff(full.angles) >= 0).all()
    gaps = np.diff(np.append(full.angles, full.angles[0] + math.pi))
    assert len(full.angles) == 24
    assert gaps.max() < math.pi / 24 * 1.21
    torch.testing.assert_close(full.sinogram[:, :, full.measured], measured)
    whole = RadialSinogram(SAMPLING, full.angles, n_pixels=N, maps=_maps()).forward(image)
    torch.testing.assert_close(full.sinogram[:, :, ~full.measured], whole[:, :, ~full.measured], atol=1e-4, rtol=1e-3)


def test_a_full_sinogram_is_left_as_it_is():
    angles = np.arange(30) * math.pi / 30
    operator = RadialSinogram(SAMPLING, angles, n_pixels=N)
    measured = operator.forward(_image())
    full = upsample(_image(seed=1), operator, measured, 24)
    assert full.measured.all()
    assert torch.equal(full.sinogram, measured)


@pytest.mark.parametrize("centre", [float(N), N - 0.5, N + 0.25])
@pytest.mark.parametrize("with_maps", [False, True])
def test_fused_operator_is_the_same_map_and_keeps_to_its_maps(centre, with_maps):
    sampling = RadialSampling(n_readout=2 * N, spacing=0.5 / N, centre=centre)
    angles = np.array([0.3, 2.0, 1.1, 4.0, 5.5])
    shifts = np.random.default_rng(0).normal(0, 0.01, (5, 2))
    maps = _maps() if with_maps else None
    settings = {"n_pixels": N, "maps": maps, "shifts": shifts}
    plain = RadialSinogram(sampling, angles, backend="finufft", **settings)
    fused = RadialSinogram(sampling, angles, backend="fused", **settings)
    image = _image(batch=2)
    with torch.inference_mode():
        dual = plain.forward(image)
        assert relative_error(fused.forward(image).numpy(), dual.numpy()) < 1e-3
        assert relative_error(fused.update(dual).numpy(), plain.update(dual).numpy()) < 1e-3
        assert relative_error(fused.inverse(dual).numpy(), plain.inverse(dual).numpy()) < 1e-3
        for operator in (plain, fused):
            normal = operator.update(operator.forward(image))
            assert relative_error(operator.normal(image).numpy(), normal.numpy()) < 5e-4
        other = torch.stack([_maps(), _maps().flip(0)])
        moved, reference = fused.with_maps(other), plain.with_maps(other)
        dual = reference.forward(image)
        assert relative_error(moved.forward(image).numpy(), dual.numpy()) < 1e-3
        assert relative_error(moved.update(dual).numpy(), reference.update(dual).numpy()) < 1e-3
