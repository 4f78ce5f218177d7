import pytest
import torch

from sinotherm.networks.complex_layers import (
    ComplexConvolution,
    ComplexConvolutions,
    ComplexDualBlock,
    ComplexUNet,
    to_parts,
)


def _parts(values):
    return torch.stack([values.real, values.imag], dim=1)


def _complex(parts):
    return torch.complex(parts[:, 0], parts[:, 1])


@pytest.mark.parametrize("kernel", [1, 3])
def test_complex_convolution_equals_torchs_own(kernel):
    layer = ComplexConvolution(3, 5, kernel).double()
    torch.nn.init.normal_(layer.bias)
    oracle = torch.nn.Conv2d(3, 5, kernel, padding=kernel // 2, dtype=torch.complex128)
    with torch.no_grad():
        oracle.weight.copy_(torch.complex(layer.real, layer.imaginary))
        oracle.bias.copy_(torch.complex(layer.bias[0], layer.bias[1]))
    values = torch.randn(2, 3, 7, 6, dtype=torch.complex128)
    torch.testing.assert_close(_complex(layer(_parts(values))), oracle(values))


def test_without_bias_a_convolution_commutes_with_a_global_phase():
    layer = ComplexConvolution(2, 4)
    values = torch.randn(1, 2, 8, 8, dtype=torch.complex64)
    turned = _complex(layer(_parts(values * 1j)))
    torch.testing.assert_close(turned, 1j * _complex(layer(_parts(values))))


def test_alternating_channels_become_parts():
    values = torch.randn(2, 3, 4, 4, dtype=torch.complex64)
    channels = torch.view_as_real(values).permute(0, 1, 4, 2, 3).reshape(2, 6, 4, 4)
    torch.testing.assert_close(_complex(to_parts(channels)), values)


def test_activation_follows_the_last_convolution_only_on_request():
    torch.manual_seed(0)
    with_last, without = ComplexConvolutions((1, 2)), ComplexConvolutions((1, 2), last=False)
    without.load_state_dict(with_last.state_dict())
    values = torch.randn(1, 2, 1, 6, 6)
    plain = without(values)
    torch.testing.assert_close(with_last(values), torch.where(plain > 0, plain, 0.1 * plain))


def test_blocks_start_as_no_correction_and_keep_sizes():
    dual = ComplexDualBlock(2, 1, features=4)
    answer = dual(torch.randn(3, 5, 7, 17))
    assert answer.shape == (3, 2, 7, 17)
    assert not answer.any()
    network = ComplexUNet(2, features=(4, 8), memory_in=6, memory_out=4)
    correction, memory = network(torch.randn(2, 4, 16, 24), torch.randn(2, 6, 8, 12))
    assert correction.shape == (2, 2, 16, 24)
    assert memory.shape == (2, 4, 8, 12)
    assert not correction.any()
