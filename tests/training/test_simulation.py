import math

import numpy as np
import pytest
import torch

from sinotherm.core.geometry import RadialSampling
from sinotherm.networks.radial import RadialSinogram
from sinotherm.training.simulation import (
    CartesianSimulator,
    FanBeamSimulator,
    PaperRadialSimulator,
    RadialSimulator,
    birdcage_maps,
    noise_scale,
    smooth_field,
)


def _random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    y, x = np.mgrid[:256, :256] - 128
    body = ((x / 100) ** 2 + (y / 70) ** 2 < 1) * (0.7 + 0.3 * np.cos(x / 9) * np.sin(y / 7))
    stack = np.stack([body, body.T])
    return (stack * 65535 / 2).astype(np.uint16), np.array([0.5, 0.5])


def _simulator(images, **settings):
    return RadialSimulator(*images, batch=2, **({"sizes": (64,), "size_weights": (1.0,), "paper": 0.0} | settings))


def test_the_same_generator_gives_the_same_batch(images):
    one, two, other = (_simulator(images).sample(_random(seed)) for seed in (4, 4, 5))
    assert torch.equal(one.measured, two.measured)
    assert torch.equal(one.target, two.target)
    assert one.measured.shape != other.measured.shape or not torch.equal(one.measured, other.measured)


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("mixed", [False, True])
def test_maps_are_normalised_and_smooth(coils, mixed):
    maps = birdcage_maps(_random(), 2, coils, 64, mixed=mixed)
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(2, 64, 64))
    step = (maps[..., 1:] - maps[..., :-1]).abs().max()
    assert step < 0.35


def test_smooth_fields_are_normalised():
    field = smooth_field(_random(), 3, 64, 4)
    torch.testing.assert_close(field.mean(dim=(1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(field.std(dim=(1, 2)), torch.ones(3))


def test_the_noise_has_the_stated_snr():
    """In the ramp-filtered reconstruction of 402 spokes the noise's SD is the signal over the SNR."""
    size = 32
    sampling = RadialSampling(n_readout=2 * size, spacing=0.5 / size, centre=float(size))
    operator = RadialSinogram(sampling, np.arange(402) * math.pi / 402, n_pixels=size)
    noise = torch.view_as_complex(torch.randn((8, 1, 402, 2 * size, 2), generator=_random()))
    image = operator.inverse(operator.to_sinogram(noise * noise_scale(sampling, 25.0, 3.0)))
    assert float(image.real.std()) == pytest.approx(3.0 / 25.0, rel=0.03)


def test_samples_of_the_sinogram_have_that_noise(images):
    clean, noisy = (
        _simulator(images, snr=(snr, snr), coils=(4,), coil_weights=(1.0,)).sample(_random(1)) for snr in (1e9, 20.0)
    )
    noise = noisy.operator.to_samples(noisy.measured - clean.measured)
    spread = noise.real.flatten(1).std(dim=1)
    magnitude = clean.target.abs()
    expected = [noise_scale(clean.operator.sampling, 20.0, float(m[m > 0.05 * m.max()].median())) for m in magnitude]
    torch.testing.assert_close(spread, torch.tensor(expected), rtol=0.05, atol=0)


def test_the_papers_setting_is_real_and_noise_free(images):
    batch = RadialSimulator(*images, batch=2, paper=1.0).sample(_random())
    assert batch.measured.shape[1] == 1
    assert not batch.target.imag.any()
    torch.testing.assert_close(batch.measured, batch.operator.forward(batch.target))


def test_networks_of_the_papers_get_magnitude_projections(images):
    batch = PaperRadialSimulator(*images, batch=2).sample(_random())
    assert batch.measured.shape == (2, 32, 363)
    assert (batch.measured >= 0).all()
    projected = batch.operator.forward(batch.target.real)
    # The modulus of a sampled edge has no undershoot: it differs there, and only there.
    assert (projected - batch.measured).abs().mean() < 2e-3 * batch.measured.max()
    back = batch.operator.inverse(batch.measured)
    scale = (back * batch.target.real).sum() / back.square().sum()
    assert float(scale) == pytest.approx(1.0, abs=0.15)


def test_the_reference_lacks_the_heating_and_has_little_noise(images):
    batch = _simulator(images, heating=True, snr=(50.0, 50.0)).sample(_random(2))
    body = batch.target.abs() > 0.3
    modulus = (batch.reference.abs() - batch.target.abs())[body]
    assert modulus.abs().mean() < 0.05
    phase = (batch.target * batch.reference.conj()).angle()[body]
    assert phase.std() > 0.02


def test_cartesian_scans_are_zero_where_nothing_was_measured(images):
    simulator = CartesianSimulator(*images, batch=2, acceleration=(8.0, 8.0), coils=(4,))
    batch = simulator.sample(_random())
    lines = batch.operator.context()[0, :, 0].bool()
    assert int(lines.sum()) == 32
    assert not batch.measured[:, :, ~lines].any()
    assert batch.measured.shape == (2, 4, 256, 256)


@pytest.mark.parametrize("paper", [False, True])
def test_fan_beam_scans_are_line_integrals(images, paper):
    batch = FanBeamSimulator(*images, batch=2, sparsity=(90,), paper=paper).sample(_random())
    assert batch.measured.is_complex() != paper
    image = batch.target.real if paper else batch.target
    torch.testing.assert_close(batch.operator.forward(image), batch.measured)
    assert batch.measured.shape[-2:] == (4, 511)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", [RadialSimulator, PaperRadialSimulator, CartesianSimulator, FanBeamSimulator])
def test_scans_are_made_on_the_gpu(images, kind):
    batch = kind(*images, batch=2, device="cuda").sample(torch.Generator("cuda").manual_seed(0))
    assert batch.target.is_cuda
    assert batch.measured.is_cuda
    assert torch.isfinite(batch.operator.inverse(batch.measured).abs()).all()


@pytest.mark.parametrize("size", [64, 128])
def test_foci_are_narrow_in_pixels_whatever_the_grid(size):
    spots = RadialSimulator.focus(_random(), torch.zeros(64, size, size, dtype=torch.bool))
    peak = spots.abs().amax(dim=(1, 2))
    assert 0.5 < float((peak > 0.05).float().mean()) < 1.0
    assert float(peak.max()) < 3.6
    # A Gaussian of SD s covers 2πs² pixels of its peak: 9 to 157 for one of 1.2 to 5 pixels.
    area = spots.sum(dim=(1, 2)).abs() / peak.clamp_min(1e-3)
    assert float(area[peak > 0.1].max()) < 3 * 2 * math.pi * 5.1**2


def test_some_foci_lie_where_they_are_asked_to() -> None:
    corner = torch.zeros(64, 96, 96, dtype=torch.bool)
    corner[:, :4, :4] = True
    spots = RadialSimulator.focus(_random(), corner).abs()
    assert 0.2 < float((spots[:, :4, :4].amax(dim=(1, 2)) > 0.05).float().mean()) < 0.8


def test_fat_under_the_skin_stays_cold_in_some_objects() -> None:
    body = torch.zeros(64, 64, 64)
    body[:, 8:56, 8:56] = 1.0
    change = RadialSimulator.change(_random(), body)
    # Nothing but heat varies from pixel to pixel: drift is smooth.
    step = (change[:, 8:56, 9:56] - change[:, 8:56, 8:55]).abs().amax(dim=(1, 2))
    assert float((step > 0.1).float().mean()) > 0.2
    assert torch.isfinite(change).all()
