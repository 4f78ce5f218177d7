"""Blocks at run time on x86 processors with bfloat16: convolution and leaky ReLU in one call, weights laid out once.

The layers, their weights and their order are those of `UNet` and `DualBlock`; what differs is that oneDNN
keeps its own layout of the weights, applies the activation while the result is in the cache, and that
images enter and leave the channels-last layout with one copy.
"""

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sinotherm.networks.blocks import DualBlock, pad_angles
from sinotherm.networks.unet import UNet

__all__ = ["FusedDualBlock", "FusedUNet", "fusable"]

_SLOPE = 0.1


@cache
def fusable() -> bool:
    """Return whether PyTorch has the fused convolutions here, and the processor bfloat16."""
    if platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available():
        return False
    names = ("_convolution_pointwise", "_reorder_convolution_weight", "_is_mkldnn_bf16_supported")
    return all(hasattr(torch.ops.mkldnn, name) for name in names) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Convolution:
    """A convolution with its weights in oneDNN's layout, followed by a leaky ReLU or nothing."""

    def __init__(self, layer: nn.Conv2d, *, activated: bool) -> None:
        self._layer = layer
        self._padding = [int(n) for n in layer.padding]
        self._activation: tuple[str, list[float]] = ("leaky_relu", [_SLOPE]) if activated else ("none", [])
        self._weights: dict[torch.Size, Tensor] = {}

    def __call__(self, values: Tensor) -> Tensor:
        weight = self._weights.get(values.shape)
        once = [1, 1]
        if weight is None:
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                self._layer.weight.detach(), self._padding, once, once, 1, list(values.shape)
            )
            self._weights[values.shape] = weight
        name, scalars = self._activation
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            values, weight, self._layer.bias, self._padding, once, once, 1, name, scalars, ""
        )
        return result


def _levels(blocks: nn.ModuleList) -> list[list[_Convolution]]:
    return [
        [_Convolution(layer, activated=True) for layer in block.children() if isinstance(layer, nn.Conv2d)]
        for block in blocks
    ]


class FusedUNet(nn.Module):
    """A `UNet` in bfloat16 for inference, with its signature.

    Parameters
    ----------
    block
        The block; it is turned into bfloat16.
    """

    def __init__(self, block: UNet) -> None:
        super().__init__()
        self.block = block.to(torch.bfloat16).requires_grad_(False)
        self.multiple = block.multiple
        self.memory_out = block.memory_out
        self._down, self._merge = _levels(block.down), _levels(block.merge)
        self._up = [_Convolution(layer, activated=False) for layer in block.up]  # type: ignore[arg-type]
        self._head = _Convolution(block.head, activated=False)

    def forward(self, image: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return correction and memory, bfloat16, as `UNet` does."""
        values = functional.pixel_unshuffle(image, 2)
        kept = 0 if memory is None else memory.shape[1]
        first = torch.empty(
            (values.shape[0], values.shape[1] + kept, *values.shape[2:]),
            dtype=torch.bfloat16,
            memory_format=torch.channels_last,
        )
        first[:, : values.shape[1]] = values
        if memory is not None:
            first[:, values.shape[1] :] = memory
        values = first
        skips: list[Tensor] = []
        for level, block in enumerate(self._down):
            values = functional.avg_pool2d(values, 2) if level else values
            for convolution in block:
                values = convolution(values)
            skips.append(values)
        for level in reversed(range(len(self._up))):
            values = functional.interpolate(
                self._up[level](values), scale_factor=2, mode="bilinear", align_corners=False
            )
            values = torch.cat([values, skips[level]], dim=1)
            for convolution in self._merge[level]:
                values = convolution(values)
        values = self._head(values)
        if not self.memory_out:
            return functional.pixel_shuffle(values, 2), None
        split = values.shape[1] - self.memory_out
        return functional.pixel_shuffle(values[:, :split], 2), values[:, split:]


class FusedDualBlock(nn.Module):
    """A `DualBlock` for inference, all layers but the first in bfloat16.

    The first layer takes the whole sinogram, whose rounding error the ramp filter would amplify.

    Parameters
    ----------
    block
        The block; its layers after the first are turned into bfloat16.
    """

    def __init__(self, block: DualBlock) -> None:
        super().__init__()
        self.block = block.requires_grad_(False)
        layers: list[Any] = list(block.convolutions)
        for layer in layers[1:]:
            layer.to(torch.bfloat16)
        self._convolutions = [
            _Convolution(layer, activated=number + 1 < len(layers)) for number, layer in enumerate(layers)
        ]

    def forward(self, channels: Tensor) -> Tensor:
        """Return the correction, bfloat16 (batch, 2, angle, detector), as `DualBlock` does."""
        detector = channels.shape[-1]
        values = functional.pad(pad_angles(channels, len(self._convolutions), self.block.wrap), (0, detector % 2))
        batch, n, angles, even = values.shape
        # Neighbours in memory become neighbouring channels: one copy makes pairs and layout.
        paired = values.view(batch, n, angles, even // 2, 2).permute(0, 2, 3, 1, 4)
        values = paired.reshape(batch, angles, even // 2, 2 * n).permute(0, 3, 1, 2)
        values = self._convolutions[0](values).to(torch.bfloat16)
        for convolution in self._convolutions[1:]:
            values = convolution(values)
        batch, _, angles, half = values.shape
        values = values.reshape(batch, 2, 2, angles, half).permute(0, 1, 3, 4, 2)
        return values.reshape(batch, 2, angles, 2 * half)[..., :detector]
