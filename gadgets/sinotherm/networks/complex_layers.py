"""Complex-valued layers and blocks, on real tensors (batch, part, channel, y, x); part 0 is real, part 1 imaginary.

A complex convolution is a real one with weights [[A, −B], [B, A]], so that every precision and device of
real convolutions serves it. Trabelsi et al. 2018, arXiv:1705.09792.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sinotherm.networks.blocks import AngleWrap, pad_angles

__all__ = [
    "ComplexConvolution",
    "ComplexConvolutions",
    "ComplexDualBlock",
    "ComplexImageBlock",
    "ComplexUNet",
    "to_parts",
]


def to_parts(channels: Tensor) -> Tensor:
    """Return (batch, 2·n, y, x) with alternating real and imaginary parts as (batch, 2, n, y, x)."""
    batch, n, *size = channels.shape
    return channels.reshape(batch, n // 2, 2, *size).transpose(1, 2)


class ComplexConvolution(nn.Module):
    """Complex 2D convolution.

    Parameters
    ----------
    n_in, n_out, kernel
        Complex channels and side of the kernel.
    padding
        Zeros around (y, x).
    """

    def __init__(self, n_in: int, n_out: int, kernel: int = 3, *, padding: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.padding = (kernel // 2, kernel // 2) if padding is None else padding
        # He initialisation: half of the variance for each part.
        deviation = math.sqrt(1.0 / (n_in * kernel**2))
        self.real = nn.Parameter(deviation * torch.randn(n_out, n_in, kernel, kernel))
        self.imaginary = nn.Parameter(deviation * torch.randn(n_out, n_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(2, n_out))

    def forward(self, values: Tensor) -> Tensor:
        """Return (batch, 2, n_out, y, x)."""
        rows = [
            torch.cat([self.real, -self.imaginary], dim=1),
            torch.cat([self.imaginary, self.real], dim=1),
        ]
        answer = functional.conv2d(values.flatten(1, 2), torch.cat(rows), self.bias.flatten(), padding=self.padding)
        return answer.unflatten(1, (2, -1))


class ComplexConvolutions(nn.Module):
    """Complex 3×3 convolutions with CReLU (a leaky ReLU of each part) after each, or between them.

    Parameters
    ----------
    widths
        Complex channels, input first.
    last
        Whether the last convolution has an activation too.
    """

    def __init__(self, widths: Sequence[int], *, last: bool = True) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(ComplexConvolution(a, b) for a, b in itertools.pairwise(widths))
        self.last = last

    def forward(self, values: Tensor) -> Tensor:
        """Return (batch, 2, channel, y, x)."""
        for index, convolution in enumerate(self.convolutions):
            values = convolution(values)
            if self.last or index + 1 < len(self.convolutions):
                values = functional.leaky_relu(values, 0.1)
        return values


class ComplexDualBlock(nn.Module):
    """Complex convolutions over (angle, detector), as `sinotherm.networks.blocks.DualBlock`.

    Parameters
    ----------
    n_complex, n_real
        Complex and real channels of the input; real ones follow and become complex with a zero part.
    features, layers, wrap
        As there.
    """

    def __init__(
        self, n_complex: int, n_real: int, *, features: int = 16, layers: int = 3, wrap: AngleWrap = "mirror"
    ) -> None:
        super().__init__()
        self.wrap: AngleWrap = wrap
        self.n_complex = n_complex
        widths = [n_complex + n_real, *[features] * (layers - 1), 1]
        self.convolutions = nn.ModuleList(
            ComplexConvolution(a, b, padding=(0, 1)) for a, b in itertools.pairwise(widths)
        )
        _silence(self.convolutions[-1])

    def forward(self, channels: Tensor) -> Tensor:
        """Return the correction, real (batch, 2, angle, detector), of (batch, channel, angle, detector)."""
        values = pad_angles(channels, len(self.convolutions), self.wrap)
        parts = to_parts(values[:, : 2 * self.n_complex])
        known = values[:, 2 * self.n_complex :]
        values = torch.cat([parts, torch.stack([known, torch.zeros_like(known)], dim=1)], dim=2)
        for index, convolution in enumerate(self.convolutions):
            values = convolution(values)
            if index + 1 < len(self.convolutions):
                values = functional.leaky_relu(values, 0.1)
        return values[:, :, 0]


class ComplexUNet(nn.Module):
    """U-Net of complex convolutions on a 2×2 space-to-depth image, as `sinotherm.networks.unet.UNet`.

    Parameters
    ----------
    n_in
        Complex images of the input.
    features
        Complex width of each level, finest first.
    memory_in, memory_out
        Real channels from and to the other iterations, half of them imaginary parts.
    """

    def __init__(
        self,
        n_in: int,
        *,
        features: Sequence[int] = (16, 32, 64, 64),
        memory_in: int = 0,
        memory_out: int = 0,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.memory_out = memory_out
        widths = [4 * n_in + memory_in // 2, *features]
        self.down = nn.ModuleList(ComplexConvolutions((a, b, b)) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(ComplexConvolution(b, a, 1) for a, b in itertools.pairwise(features))
        self.merge = nn.ModuleList(ComplexConvolutions((2 * width, width, width)) for width in features[:-1])
        self.head = ComplexConvolution(features[0], 4 + memory_out // 2, 1)
        _silence(self.head)

    @property
    def multiple(self) -> int:
        """Rows and columns of the image must be a multiple of this."""
        return int(2 ** len(self.features))

    def forward(self, image: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the correction (batch, 2, y, x) and the memory; arguments as those of `UNet`."""
        values = to_parts(image)
        values = functional.pixel_unshuffle(values, 2)
        if memory is not None:
            values = torch.cat([values, memory.to(values.dtype).unflatten(1, (2, -1))], dim=2)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                values = functional.avg_pool2d(values.flatten(1, 2), 2).unflatten(1, (2, -1))
            values = block(values)
            skips.append(values)
        for level in reversed(range(len(self.up))):
            values = self.up[level](values).flatten(1, 2)
            values = functional.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)
            values = self.merge[level](torch.cat([values.unflatten(1, (2, -1)), skips[level]], dim=2))
        values = self.head(values)
        correction = functional.pixel_shuffle(values[:, :, :4], 2)[:, :, 0]
        return correction, values[:, :, 4:].flatten(1, 2) if self.memory_out else None


class ComplexImageBlock(nn.Module):
    """Three complex 3×3 convolutions on the image (PD), with the interface of `ComplexUNet`."""

    multiple = 1
    memory_out = 0

    def __init__(self, n_in: int, *, features: int = 32) -> None:
        super().__init__()
        self.convolutions = ComplexConvolutions((n_in, features, features, 1), last=False)
        _silence(self.convolutions.convolutions[-1])

    def forward(self, image: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the correction (batch, 2, y, x); there is no memory."""
        return self.convolutions(to_parts(image))[:, :, 0], memory


def _silence(layer: nn.Module) -> None:
    """Let a block start as "no correction"."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
