"""Layers of the primal-dual networks: mirrored angle wrap, convolutional blocks and space-to-depth."""

import itertools
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AngleWrap",
    "DualBlock",
    "WholeBlock",
    "as_complex",
    "as_real",
    "convolutions",
    "mirror_detector",
    "pad_angles",
]

AngleWrap: TypeAlias = Literal["mirror", "circular", "none"]


def as_real(values: Tensor) -> Tensor:
    """Return complex (batch, …) as real (batch, 2, …): real part, imaginary part."""
    return torch.stack([values.real, values.imag], dim=1)


def as_complex(values: Tensor) -> Tensor:
    """Return real (batch, 2, …) as complex (batch, …), in single precision at least."""
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    return torch.complex(values[:, 0].contiguous(), values[:, 1].contiguous())


def mirror_detector(values: Tensor) -> Tensor:
    """Return p(−s) of p(s), detector on the last axis with s = 0 at index n//2.

    On an odd grid this is a plain flip. On an even grid index n//2 is not the middle of the array, so
    the flipped axis is rolled by one: p(θ + π, s) = p(θ, −s).
    """
    flipped = values.flip(-1)
    return flipped.roll(1, dims=-1) if values.shape[-1] % 2 == 0 else flipped


def pad_angles(values: Tensor, rows: int, wrap: AngleWrap) -> Tensor:
    """Pad the angle axis (last but one) on both sides by ``rows`` neighbours.

    Parameters
    ----------
    values
        (…, angle, detector), angles ascending over one half turn (``mirror``) or one full turn
        (``circular``).
    rows
        Angles to add on each side; more than there are is allowed.
    wrap
        ``mirror``: g(θ + π, s) = g(θ, −s), parallel beam over 180°. ``circular``: fan beam over 360°.
        ``none``: zeros (Cartesian lines have no neighbours beyond the edge).
    """
    if wrap == "none":
        return functional.pad(values, (0, 0, rows, rows))
    n = values.shape[-2]
    if rows <= n:
        before, after = values[..., n - rows :, :], values[..., :rows, :]
        if wrap == "mirror":
            before, after = mirror_detector(before), mirror_detector(after)
        return torch.cat([before, values, after], dim=-2)
    turns = -(-rows // n)
    mirrored = mirror_detector(values) if wrap == "mirror" else values
    tiles = [values if turn % 2 == 0 else mirrored for turn in range(-turns, turns + 1)]
    ring = torch.cat(tiles, dim=-2)
    start = turns * n - rows
    return ring[..., start : start + n + 2 * rows, :]


class WholeBlock(nn.Module):
    """A block at run time that takes complex values whole: it brings them into channels, and back, by itself."""


class DualBlock(nn.Module):
    """Convolutions over (angle, detector), shared by all coils.

    The angle axis is padded once with its true neighbours, so that valid convolutions see across
    0°/180°; pairs of detector pixels become channels, which halves the cost at the same support.

    Parameters
    ----------
    channels_in
        Real channels of the input: two for each complex one, and the context channels.
    features
        Width of the hidden layers.
    layers
        Number of 3×3 convolutions, at least two.
    wrap
        What lies beyond the first and the last angle.
    """

    def __init__(self, channels_in: int, *, features: int = 24, layers: int = 3, wrap: AngleWrap = "mirror") -> None:
        super().__init__()
        self.wrap: AngleWrap = wrap
        widths = [2 * channels_in, *[features] * (layers - 1), 4]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 3, padding=(0, 1)) for n_in, n_out in itertools.pairwise(widths)
        )
        # Starts as "no correction": the network begins as plain data consistency.
        for parameter in self.convolutions[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, channels: Tensor) -> Tensor:
        """Return the correction, real (batch, 2, angle, detector), of (batch, channel, angle, detector)."""
        odd = channels.shape[-1] % 2
        values = functional.pad(pad_angles(channels, len(self.convolutions), self.wrap), (0, odd))
        batch, n, angles, detector = values.shape
        values = values.reshape(batch, n, angles, detector // 2, 2).permute(0, 1, 4, 2, 3)
        values = values.reshape(batch, 2 * n, angles, detector // 2).contiguous(memory_format=torch.channels_last)
        for index, convolution in enumerate(self.convolutions):
            # Layers may differ in precision (see `sinotherm.networks.inference`); autocast sees to its own.
            if not torch.is_autocast_enabled(values.device.type):
                values = values.to(next(convolution.parameters()).dtype)
            values = convolution(values)
            if index + 1 < len(self.convolutions):
                values = functional.leaky_relu(values, 0.1, inplace=True)
        batch, _, angles, half = values.shape
        values = values.reshape(batch, 2, 2, angles, half).permute(0, 1, 3, 4, 2)
        return values.reshape(batch, 2, angles, 2 * half)[..., : channels.shape[-1]]


def convolutions(n_in: int, n_out: int, widths: Sequence[int] = ()) -> nn.Sequential:
    """Return 3×3 convolutions with a leaky ReLU after each, sizes kept."""
    sizes = [n_in, *widths, n_out]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)
