"""Measures of the shipped weights that run in seconds, on validation people."""

import numpy as np
import pytest
import torch

from sinotherm.evaluation.images import magnitude_slices
from sinotherm.evaluation.metrics import score
from sinotherm.evaluation.radial import methods, simulate_scan
from sinotherm.networks.inference import RadialReconstructor, sped_up
from sinotherm.networks.radial import RadialSinogram
from sinotherm.networks.weights import load_network

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def slices(shared_data):
    chosen = magnitude_slices(shared_data, split="val", per_person=1)
    # One of each set is enough here; `sinotherm evaluate radial` takes all.
    return list({one.dataset: one for one in chosen}.values())


@pytest.fixture(scope="module")
def scan(slices):
    brain = next(one for one in slices if one.dataset.startswith("brain_t1"))
    return simulate_scan(brain.image, setting="real", coils=8, angles="golden", spokes=34, snr=30.0)


@pytest.fixture(scope="module")
def reconstructor():
    return RadialReconstructor("pdunet-radial", device="cpu")


def test_phase_error_is_at_most_half_of_griddings(slices):
    ready = methods(["gridding", "pdunet"])
    for one in slices:
        scan = simulate_scan(one.image, setting="real", coils=8, angles="uniform", spokes=32, snr=30.0)
        gridding, network = (score(reconstruct(scan), scan.truth) for reconstruct in ready.values())
        assert network.phase_rmse_rad <= 0.5 * gridding.phase_rmse_rad, one.dataset
        assert network.ssim > gridding.ssim + 0.1, one.dataset


def test_scaled_and_rotated_and_shuffled_data(scan):
    network, _ = load_network("pdunet-radial")
    maps = torch.from_numpy(scan.maps)
    operator = RadialSinogram(scan.sampling, scan.angles, n_pixels=256, maps=maps)
    samples = torch.from_numpy(scan.samples)[None]
    shuffle = np.random.default_rng(0).permutation(len(scan.angles))
    other = RadialSinogram(scan.sampling, scan.angles[shuffle], n_pixels=256, maps=maps)
    with torch.inference_mode():
        image = network(operator.order(samples), operator)
        turned = network(operator.order((2 - 5j) * samples), operator)
        shuffled = network(other.order(samples[..., shuffle, :]), other)
        fast = sped_up(network, precision="bfloat16")(operator.order(samples), operator)
    assert (turned - (2 - 5j) * image).norm() < 1e-3 * abs(2 - 5j) * image.norm()
    assert (shuffled - image).norm() < 1e-3 * image.norm()
    correction = (image - operator.inverse(operator.order(samples))).norm()
    assert (fast - image).norm() < 1e-2 * correction


def _verdict(reconstructor, scan, samples):
    image, operator = reconstructor.reconstruct(samples, scan.sampling, scan.angles, scan.maps)
    return reconstructor.check(samples, scan.sampling, scan.angles, scan.maps, image, operator, fov_m=0.25)


def test_the_guard_lets_good_frames_pass_and_stops_bad_ones(reconstructor, scan):
    assert not _verdict(reconstructor, scan, scan.samples).trips
    assert not _verdict(reconstructor, scan, (7e3j * scan.samples).astype(np.complex64)).trips
    random = np.random.default_rng(0)
    noise = random.standard_normal(scan.samples.shape) + 1j * random.standard_normal(scan.samples.shape)
    assert _verdict(reconstructor, scan, noise.astype(np.complex64)).trips
    for spoke in (3, 20):
        bad = scan.samples.copy()
        bad[:, spoke] *= np.exp(1j)
        assert _verdict(reconstructor, scan, bad).trips
