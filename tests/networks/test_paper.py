import pytest
import torch
from torch import nn

from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import DataError
from sinotherm.networks.paper import MagnitudeSinogram, PaperArchitecture, PaperPrimalDual


class Identity:
    """T and T⁺ that keep the size, so that the recurrence can be written down by hand."""

    def forward(self, image):
        return 2.0 * image

    def inverse(self, sinogram):
        return 0.5 * sinogram


def _shapes(module, kind):
    return [tuple(layer.weight.shape) for layer in module.modules() if isinstance(layer, kind)]


DUAL = [(32, 7, 3, 3), (32, 32, 3, 3), (5, 32, 3, 3)]
PD_PRIMAL = [(32, 6, 3, 3), (32, 32, 3, 3), (5, 32, 3, 3)]
UNET_DOWN = [
    (32, 5, 3, 3),
    (32, 32, 3, 3),
    (64, 32, 3, 3),
    (64, 64, 3, 3),
    (128, 64, 3, 3),
    (128, 128, 3, 3),
    (256, 128, 3, 3),
    (256, 256, 3, 3),
]
UNET_UP = [(32, 64, 1, 1), (64, 128, 1, 1), (128, 256, 1, 1)]
UNET_MERGE = [
    (32, 64, 3, 3),
    (32, 32, 3, 3),
    (64, 128, 3, 3),
    (64, 64, 3, 3),
    (128, 256, 3, 3),
    (128, 128, 3, 3),
]


def _count(shapes):
    total = 0
    for shape in shapes:
        size = 1
        for n in shape:
            size *= n
        total += size + shape[0]
    return total


def test_pd_layer_by_layer():
    network = PaperPrimalDual(PaperArchitecture.pd())
    assert len(network.dual) == len(network.primal) == 10
    for dual, primal in zip(network.dual, network.primal, strict=True):
        assert _shapes(dual, nn.Conv2d) == DUAL
        assert _shapes(primal, nn.Conv2d) == PD_PRIMAL
        assert len(_shapes(dual, nn.PReLU)) == len(_shapes(primal, nn.PReLU)) == 2
    assert network.dual_weight.shape == network.primal_weight.shape == (10, 5)
    assert network.n_parameters == 10 * (_count(DUAL) + _count(PD_PRIMAL) + 4 + 10)


def test_pdunet_layer_by_layer():
    network = PaperPrimalDual(PaperArchitecture.pdunet())
    assert len(network.dual) == len(network.primal) == 2
    norms = 2 * (32 + 64 + 128 + 256 + 32 + 64 + 128)
    for dual, primal in zip(network.dual, network.primal, strict=True):
        assert _shapes(dual, nn.Conv2d) == DUAL
        assert _shapes(primal, nn.Conv2d) == [*UNET_DOWN, *UNET_UP, *UNET_MERGE, (4, 32, 1, 1)]
        assert sum(shape[0] for shape in _shapes(primal, nn.BatchNorm2d)) == norms
    unet = _count([*UNET_DOWN, *UNET_UP, *UNET_MERGE, (4, 32, 1, 1)]) + 2 * norms
    assert network.n_parameters == 2 * (_count(DUAL) + 2 + unet + 9)
    assert 3.55e6 < network.n_parameters < 3.7e6


@pytest.mark.parametrize("architecture", [PaperArchitecture.pd(), PaperArchitecture.pdunet()])
def test_starts_at_its_start_image(architecture):
    """w_p starts at 0: an untrained network returns zeros (PD) or the filtered back-projection (PDUNet)."""
    network = PaperPrimalDual(architecture).eval()
    assert torch.equal(network.dual_weight, torch.ones_like(network.dual_weight))
    sinogram = torch.rand(2, 16, 16)
    image = network(sinogram, Identity())
    expected = 0.5 * sinogram if architecture.start == "fbp" else torch.zeros_like(sinogram)
    torch.testing.assert_close(image, expected)


def test_forward_pass_follows_the_published_recurrence():
    architecture = PaperArchitecture(primal="convolutions", n_primal=2, n_dual=3, iterations=2, start="zero")
    network = PaperPrimalDual(architecture).eval()
    nn.init.normal_(network.primal_weight)
    nn.init.normal_(network.dual_weight)
    y = torch.rand(2, 16, 16)
    mean, deviation = y.mean(dim=(1, 2), keepdim=True), y.std(dim=(1, 2), keepdim=True)
    g = (y - mean) / deviation
    h, f = torch.zeros(2, 3, 16, 16), torch.zeros(2, 2, 16, 16)
    for k in range(2):
        t = (2 * f.mean(1) - mean) / deviation
        h = h + network.dual_weight[k][:, None, None] * network.dual[k](torch.cat([h, t[:, None], g[:, None]], 1))
        b = 0.5 * (h.mean(1) * deviation + mean)
        f = f + network.primal_weight[k][:, None, None] * network.primal[k](torch.cat([f, b[:, None]], 1))
    torch.testing.assert_close(network(y, Identity()), f.mean(1))


def test_dual_padding_is_circular_along_the_angle_and_replicated_along_the_detector():
    block = PaperPrimalDual(PaperArchitecture.pd()).dual[0]
    for convolution in block.convolutions:
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    first, second, third = block.convolutions
    with torch.no_grad():
        first.weight[0, 0, 0, 0] = 1.0  # takes the neighbour one angle up and one detector pixel left
        second.weight[0, 0, 1, 1] = 1.0
        third.weight[0, 0, 1, 1] = 1.0
    values = torch.rand(1, 7, 6, 5)
    expected = values[0, 0].roll(1, dims=0)
    expected = torch.cat([expected[:, :1], expected[:, :-1]], dim=1)
    torch.testing.assert_close(block(values)[0, 0], expected)


def test_magnitude_projections_are_those_of_one_coil():
    sampling = RadialSampling(n_readout=64, spacing=0.5 / 32, centre=32.0)
    operator = MagnitudeSinogram(sampling, spoke_angles("uniform180", 4), n_pixels=32)
    assert operator.measured(torch.ones((1, 1, 4, 64), dtype=torch.complex64)).shape == (1, 4, 47)
    with pytest.raises(DataError, match="2 coils"):
        operator.measured(torch.ones((1, 2, 4, 64), dtype=torch.complex64))
