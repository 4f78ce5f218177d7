import dataclasses
import math

import numpy as np
import pytest
import torch

from sinotherm.core.geometry import GOLDEN_ANGLE, RadialSampling
from sinotherm.networks.blocks import DualBlock, as_complex, as_real, mirror_detector, pad_angles
from sinotherm.networks.primal_dual import Architecture, PrimalDual, intensity_scale
from sinotherm.networks.radial import RadialSinogram
from sinotherm.networks.unet import UNet
from sinotherm.operators.cartesian import CartesianSense

N = 20
SAMPLING = RadialSampling(n_readout=2 * N, spacing=0.5 / N, centre=float(N))
SMALL = Architecture(iterations=3, primal_features=(8, 16), dual_features=8, memory=4)


def _random(*shape, seed=0):
    return torch.view_as_complex(torch.randn((*shape, 2), generator=torch.Generator().manual_seed(seed)))


def _network(architecture=SMALL):
    """A network whose corrections are not zero."""
    torch.manual_seed(3)
    network = PrimalDual(architecture)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def _maps(coils):
    maps = _random(coils, N, N, seed=9)
    return maps / maps.abs().square().sum(0).sqrt()


@pytest.mark.parametrize("n", [10, 11])
def test_mirrored_projection_is_the_one_half_a_turn_on(n):
    s = np.arange(n) - n // 2
    image = np.random.default_rng(0).random(n)
    kappa = (np.arange(n) - n // 2) / n
    spoke = np.exp(-2j * math.pi * np.outer(kappa, s)) @ image
    opposite = np.exp(2j * math.pi * np.outer(kappa, s)) @ image
    back = np.exp(2j * math.pi * np.outer(s, kappa)) / n
    mirrored = mirror_detector(torch.from_numpy(back @ spoke)).numpy()
    # At even n the pixel −n/2 is its own mirror image.
    np.testing.assert_allclose(mirrored, back @ opposite, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_padding_continues_the_sinogram_beyond_half_a_turn(rows):
    """A sinogram sampled beyond 0 … π in the first place is what the padding makes."""
    step, n_angles, n = math.pi / 4, 4, 8
    angles = np.arange(-rows, n_angles + rows) * step
    image, s = np.random.default_rng(1).random((n, n)), np.arange(n) - n // 2
    kappa = (np.arange(n) - n // 2) / n
    y, x = np.meshgrid(s, s, indexing="ij")
    projections = []
    for angle in angles:
        phase = kappa[:, None, None] * (x * math.cos(angle) + y * math.sin(angle))
        spoke = (image * np.exp(-2j * math.pi * phase)).sum((1, 2))
        spoke[0] = 0  # the sample at −1/2 has no partner at +1/2
        projections.append(np.exp(2j * math.pi * np.outer(s, kappa)) @ spoke / n)
    wide = torch.from_numpy(np.array(projections))
    padded = pad_angles(wide[rows : rows + n_angles], rows, "mirror")
    torch.testing.assert_close(padded, wide)


def test_circular_and_open_padding():
    values = torch.arange(12.0).reshape(3, 4)
    torch.testing.assert_close(pad_angles(values, 1, "circular"), values[[2, 0, 1, 2, 0]])
    opened = pad_angles(values, 2, "none")
    assert opened.shape == (7, 4)
    assert not opened[[0, 1, 5, 6]].any()


@pytest.mark.parametrize("detector", [16, 17])
def test_dual_block_keeps_the_size_and_starts_as_no_correction(detector):
    block = DualBlock(5, features=8)
    values = torch.randn(3, 5, 7, detector)
    assert block(values).shape == (3, 2, 7, detector)
    assert not block(values).any()


def test_dual_block_sees_across_the_half_turn():
    """Turning the object by one angular step shifts the sinogram's rows; so must the block's answer."""
    torch.manual_seed(0)
    block = DualBlock(2, features=4).double()
    torch.nn.init.normal_(block.convolutions[-1].weight)
    # Even kernels along the detector, so that mirrored rows are treated alike.
    for convolution in block.convolutions:
        torch.nn.init.normal_(convolution.weight)
    values = torch.randn(1, 2, 6, 16, dtype=torch.float64)
    answer = block(values)
    changed = values.clone()
    changed[..., 0, :] += 1.0
    difference = (block(changed) - answer).abs().amax(dim=(0, 1, 3))
    assert (difference[[0, 1, 2, 3, 4, 5]] > 0).all()


def test_complex_and_real_are_inverse():
    values = _random(2, 3, 4)
    torch.testing.assert_close(as_complex(as_real(values)), values)
    assert as_complex(as_real(values).bfloat16()).dtype == torch.complex64


def test_unet_starts_as_no_correction_and_hands_on_its_memory():
    network = UNet(2, 2, features=(8, 16), memory_in=3, memory_out=5)
    correction, memory = network(torch.randn(2, 2, 16, 24), torch.randn(2, 3, 8, 12))
    assert correction.shape == (2, 2, 16, 24)
    assert memory.shape == (2, 5, 8, 12)
    assert not correction.any()


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("factor", [2.5, 1e-4j, -3 + 4j])
@pytest.mark.parametrize("start", [0, 3])
def test_scaled_and_rotated_input_gives_the_scaled_and_rotated_image(coils, factor, start):
    angles = np.arange(9) * GOLDEN_ANGLE
    operator = RadialSinogram(SAMPLING, angles, n_pixels=N, maps=_maps(coils))
    measured = operator.forward(_random(2, N, N) + 1.0)
    network = _network(dataclasses.replace(SMALL, start=start))
    with torch.no_grad():
        image, changed = network(measured, operator), network(factor * measured, operator)
    error = (changed - factor * image).abs().max() / (abs(factor) * image.abs().max())
    assert error < 1e-3
    assert (image - operator.inverse(measured)).abs().max() > 0.05 * image.abs().max()


def test_conjugate_gradients_start_a_multi_coil_frame():
    """After n iterations the image minimises the weighted residual over the n-dimensional Krylov space."""
    angles = np.arange(9) * GOLDEN_ANGLE
    operator = RadialSinogram(SAMPLING, angles, n_pixels=N, maps=_maps(3))
    measured = operator.forward(_random(2, N, N))
    network = PrimalDual(dataclasses.replace(SMALL, start=3))
    image = network._started(measured, operator)
    for sample in range(2):
        own = measured[sample : sample + 1]
        right = operator.update(own)
        basis = [right]
        for _ in range(2):
            basis.append(operator.update(operator.forward(basis[-1])))
        span = torch.stack([vector.flatten() for vector in basis], dim=1).to(torch.complex128)
        span = torch.linalg.qr(span)[0]
        applied = torch.stack(
            [
                operator.update(operator.forward(column.reshape(1, N, N).to(torch.complex64))).flatten()
                for column in span.T
            ],
            dim=1,
        ).to(torch.complex128)
        normal = span.conj().T @ applied
        best = span @ torch.linalg.solve(normal, span.conj().T @ right.flatten().to(torch.complex128))
        error = (image[sample].flatten() - best).norm() / best.norm()
        assert error < 2e-2
    residual = (measured - operator.forward(image)).norm() / measured.norm()
    assert residual < 0.5 * (measured - operator.forward(operator.inverse(measured))).norm() / measured.norm()


def test_a_single_coil_starts_from_the_back_projection():
    operator = RadialSinogram(SAMPLING, np.arange(9) * GOLDEN_ANGLE, n_pixels=N)
    measured = operator.forward(_random(1, N, N))
    network = PrimalDual(dataclasses.replace(SMALL, start=3))
    torch.testing.assert_close(network._started(measured, operator), operator.inverse(measured))


def test_the_order_of_the_spokes_does_not_matter():
    angles = np.arange(11) * GOLDEN_ANGLE
    shuffle = np.random.default_rng(0).permutation(11)
    first = RadialSinogram(SAMPLING, angles, n_pixels=N, maps=_maps(2))
    second = RadialSinogram(SAMPLING, angles[shuffle], n_pixels=N, maps=_maps(2))
    samples = first.restore(first.forward(_random(1, N, N)))
    network = _network()
    with torch.no_grad():
        one = network(first.order(samples), first)
        two = network(second.order(samples[..., shuffle, :]), second)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", ["real", "complex"])
@pytest.mark.parametrize("primal", ["unet", "convolutions"])
def test_the_operator_is_exchangeable(layers, primal):
    """The same family on Cartesian k-space; the update is consistent where nothing is missing."""
    maps = _maps(2)
    sense = CartesianSense(np.ones(N, dtype=bool), maps)

    class Cartesian:
        forward = staticmethod(sense.forward)
        inverse = update = staticmethod(sense.adjoint)

        @staticmethod
        def context():
            return sense.lines[None]

    image = _random(1, N, N)
    settings = {"iterations": 2, "primal_features": (8, 16), "dual_features": 8, "wrap": "none"}
    network = PrimalDual(Architecture(layers=layers, primal=primal, **settings)).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(sense(image), Cartesian()), image, atol=1e-4, rtol=1e-3)


def test_a_reference_enters_the_image_blocks():
    operator = RadialSinogram(SAMPLING, np.arange(9) * GOLDEN_ANGLE, n_pixels=N, maps=_maps(2))
    measured = operator.forward(_random(1, N, N))
    network = _network(Architecture(iterations=2, primal_features=(8, 16), dual_features=8, reference=True))
    with torch.no_grad():
        one = network(measured, operator, reference=_random(1, N, N, seed=1))
        two = network(measured, operator, reference=_random(1, N, N, seed=2))
    assert (one - two).abs().max() > 1e-3


@pytest.mark.parametrize("layers", ["real", "complex"])
@pytest.mark.parametrize("primal", ["unet", "convolutions"])
def test_every_weight_learns(layers, primal):
    operator = RadialSinogram(SAMPLING, np.arange(9) * GOLDEN_ANGLE, n_pixels=N, maps=_maps(2))
    network = _network(dataclasses.replace(SMALL, layers=layers, primal=primal))
    image = network(operator.forward(_random(1, N, N)), operator)
    image.abs().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_reduced_precision_touches_only_the_corrections():
    operator = RadialSinogram(SAMPLING, np.arange(9) * GOLDEN_ANGLE, n_pixels=N, maps=_maps(2))
    measured = operator.forward(_random(1, N, N))
    network = _network()
    with torch.no_grad():
        plain = network(measured, operator)
        network.reduced = torch.bfloat16
        fast = network(measured, operator)
    assert fast.dtype == torch.complex64
    correction = (plain - operator.inverse(measured)).norm()
    assert (fast - plain).norm() < 2e-2 * correction
    assert (fast - plain).norm() > 0


@pytest.mark.parametrize("symmetries", [2, 4, 8])
@pytest.mark.parametrize("layers", ["real", "complex"])
def test_averaged_image_blocks_answer_a_turned_image_with_the_turned_correction(symmetries, layers):
    network = _network(dataclasses.replace(SMALL, layers=layers))
    first, update = _random(2, N, N), _random(2, N, N, seed=1)

    def corrections(turned):
        one, memory = network._correct(0, [turned(first)], None)
        return one, network._correct(1, [turned(first), turned(update)], memory)[0]

    same = {
        "mirrored": lambda image: image.flip(-1),
        "upside down": lambda image: image.flip(-2),
        "transposed": lambda image: image.transpose(-2, -1),
        "a quarter turn": lambda image: torch.rot90(image, 1, (-2, -1)),
    }
    alone = corrections(lambda image: image)
    network.symmetries = symmetries
    plain = corrections(lambda image: image)
    assert not torch.allclose(plain[1], alone[1], atol=1e-3)
    for turned in list(same.values())[: {2: 1, 4: 2, 8: 4}[symmetries]]:
        for found, expected in zip(corrections(turned), plain, strict=True):
            torch.testing.assert_close(found, turned(expected), atol=1e-5, rtol=1e-4)
    network.symmetries = 1
    assert torch.equal(corrections(lambda image: image)[1], alone[1])


def test_the_intensity_scale_of_nothing_is_one():
    scale = intensity_scale(torch.zeros(2, 4, 4, dtype=torch.complex64))
    torch.testing.assert_close(scale, torch.ones(2, dtype=torch.complex64))


SMALL_GUIDED = Architecture(iterations=2, primal_features=(4, 8), dual_features=4, reference=True)


def _heated_body(width):
    """Return side, body, phase of 1 rad at most of this SD in pixels, operator and measurement."""
    n = 64
    y, x = torch.meshgrid(torch.arange(n) - n // 2, torch.arange(n) - n // 2, indexing="ij")
    body = ((x / 26.0) ** 2 + (y / 22.0) ** 2 < 1) * (0.7 + 0.3 * torch.cos(x / 3.0)) + 0j
    phase = torch.exp(-((x - 4.0) ** 2 + (y + 3.0) ** 2) / (2 * width**2))
    sampling = RadialSampling(n_readout=2 * n, spacing=0.5 / n, centre=float(n))
    operator = RadialSinogram(sampling, np.arange(24) * GOLDEN_ANGLE, n_pixels=n)
    measured = operator.forward((body * torch.polar(torch.ones(n, n), phase))[None])
    return n, body, phase, operator, measured


def test_settling_takes_the_phase_that_the_blocks_left_in_the_residual():
    """A guided network that finds nothing still shows a smooth change, and does not touch what fits already."""
    _, body, phase, operator, measured = _heated_body(7.0)
    images = {}
    for rounds in (0, 2, 6):
        network = PrimalDual(dataclasses.replace(SMALL_GUIDED, closing=((3.0, 0.0),) * rounds)).eval()
        with torch.inference_mode():
            images[rounds] = network(measured, operator, reference=body[None])[0]
    inside = body.abs() > 0.3
    left = {
        r: float(((image * body.conj()).angle() - phase)[inside].square().mean().sqrt()) for r, image in images.items()
    }
    assert left[0] > 0.25
    assert left[2] < 0.4 * left[0]
    assert left[6] < 0.2 * left[0]
    with torch.inference_mode():
        still = network(operator.forward(body[None]), operator, reference=body[None])[0]
    torch.testing.assert_close(still, body.to(still.dtype), atol=1e-3, rtol=0)


def test_narrow_closing_rounds_take_what_stands_out_of_the_noise_only():
    n, body, phase, operator, measured = _heated_body(2.0)
    measured = measured + 0.12 * torch.randn(measured.shape, generator=torch.Generator().manual_seed(2)) * (1 + 1j)
    away = (body.abs() > 0.3) & (phase < 1e-3)
    found = {}
    for least in (0.0, 3.0):
        network = PrimalDual(dataclasses.replace(SMALL_GUIDED, closing=((1.5, least),) * 4)).eval()
        with torch.inference_mode():
            image = network(measured, operator, reference=body[None])[0]
        turned = (image * body.conj()).angle()
        found[least] = float(turned[n // 2 - 3, n // 2 + 4]), float(turned[away].square().mean().sqrt())
    assert found[3.0][0] > 0.6
    assert found[3.0][1] < 0.4 * found[0.0][1]


def test_what_cannot_change_stays_and_the_change_beside_it_is_sharp():
    """Half of a heated spot is fat: told so, the network leaves it and finds the other half up to the border."""
    n, body, phase, operator, _ = _heated_body(5.0)
    still = torch.zeros(n, n, dtype=torch.bool)
    still[:, n // 2 + 4 :] = True
    heated = torch.where(still, torch.zeros_like(phase), phase)
    measured = operator.forward((body * torch.polar(torch.ones(n, n), heated))[None])
    torch.manual_seed(1)
    network = PrimalDual(dataclasses.replace(SMALL_GUIDED, iterations=3, closing=((4.0, 0.0),) * 8)).eval()
    torch.nn.init.constant_(network.step, 0.1)
    errors = {}
    for told in (None, still[None]):
        with torch.inference_mode():
            image = network(measured, operator, reference=body[None], still=told)[0]
        turned = (image * body.conj()).angle()
        inside = body.abs() > 0.3
        border = inside & (heated > 0.5)
        border[:, : n // 2] = False
        errors[told is not None] = float((turned - heated)[border].mean())
        if told is not None:
            torch.testing.assert_close(image[still], body[still].to(image.dtype), atol=1e-5, rtol=0)
    assert abs(errors[True]) < 0.5 * abs(errors[False])
    assert errors[False] < -0.1
