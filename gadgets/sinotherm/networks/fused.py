"""Blocks at run time on x86 processors with bfloat16: convolution and leaky ReLU in one call, weights laid out once.

The layers, their weights and their order are those of `UNet` and `DualBlock`; what differs is that oneDNN
keeps its own layout of the weights, applies the activation while the result is in the cache, and that
complex images and sinograms enter and leave the channels-last layout with one compiled copy.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sinotherm.networks.blocks import AngleWrap, DualBlock, WholeBlock, mirror_detector, pad_angles
from sinotherm.networks.unet import UNet
from sinotherm.operators.backend import has_bfloat16
from sinotherm.operators.crew import crew

__all__ = ["FusedDualBlock", "FusedUNet", "fusable"]

_SLOPE = 0.1


@cache
def fusable() -> bool:
    """Return whether PyTorch has the fused convolutions here, and the processor bfloat16."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight")
    return has_bfloat16(torch.device("cpu")) and all(hasattr(torch.ops.mkldnn, name) for name in names)


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


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _unshuffle(image: Any, out: Any, first: int) -> None:
    """Write a complex image (y, x) into out (y/2, x/2, channel) from a channel on, as two `pixel_unshuffle` do."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            place = first + (y % 2) * 2 + x % 2
            value = image[y, x]
            out[y // 2, x // 2, place] = value.real
            out[y // 2, x // 2, place + 4] = value.imag


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _shuffle(channels: Any, out: Any) -> None:
    """Write (y/2, x/2, 8 or more) as complex (y, x); undoes `_unshuffle`."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            place = (y % 2) * 2 + x % 2
            out[y, x] = complex(channels[y // 2, x // 2, place], channels[y // 2, x // 2, place + 4])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _pair(residual: Any, measured: Any, context: Any, rows: Any, places: Any, out: Any) -> None:
    """Write complex (angle, detector) sinograms and context (channel, angle) as out (angle, pair, channel).

    ``rows`` says which angle stands in each row of ``out``: itself, mirrored (its complement), or none (the
    number of angles).
    """
    n_angles, n_detector = residual.shape
    for a in range(len(rows)):
        mirrored = rows[a] < 0
        row = -1 - rows[a] if mirrored else rows[a]
        if row == n_angles or n_detector % 2:
            out[a] = 0.0
        if row == n_angles:
            continue
        for j in range(n_detector):
            at = places[j] if mirrored else j
            one, other, half = residual[row, at], measured[row, at], j % 2
            out[a, j // 2, half] = one.real
            out[a, j // 2, 2 + half] = one.imag
            out[a, j // 2, 4 + half] = other.real
            out[a, j // 2, 6 + half] = other.imag
            for k in range(len(context)):
                out[a, j // 2, 8 + 2 * k + half] = context[k, row]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_pairs(residual: Any, correction: Any, out: Any) -> None:
    """Write residual (angle, detector) + correction (angle, pair, 4)."""
    for a in range(residual.shape[0]):
        for j in range(residual.shape[1]):
            pair, half = correction[a, j // 2], j % 2
            out[a, j] = residual[a, j] + complex(pair[half], pair[2 + half])


@cache
def _padded_rows(n_angles: int, rows: int, wrap: AngleWrap) -> np.ndarray:
    """Return which angle stands in each row after `pad_angles`; see `_pair`."""
    # Of four detector elements the second and the fourth are each other's mirror images.
    marked = torch.arange(1, n_angles + 1)[:, None] * torch.tensor([0, 1, 0, -1])
    padded = pad_angles(marked, rows, wrap)[:, 1].numpy()
    return np.where(padded > 0, padded - 1, np.where(padded < 0, padded, n_angles))


def _array(values: Tensor) -> np.ndarray:
    return values.detach().resolve_conj().contiguous().numpy()


def _last(values: Tensor) -> np.ndarray:
    """Return (batch, channel, y, x) as float32 (batch, y, x, channel)."""
    return values.permute(0, 2, 3, 1).float().contiguous().numpy()


class FusedUNet(WholeBlock):
    """A `UNet` in bfloat16 for inference, on complex images.

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

    def forward(self, images: Sequence[Tensor], memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the correction, complex64 (batch, y, x), and the memory, bfloat16, as `UNet` does.

        Parameters
        ----------
        images
            complex64 (batch, y, x), of one size, whatever it is: zeros beyond it.
        memory
            As returned by the iteration before.
        """
        batch, rows, columns = images[0].shape
        shape = (batch, *(-(-n // self.multiple) * self.multiple // 2 for n in (rows, columns)))
        whole = shape[1:] == (rows // 2, columns // 2)
        unshuffled = (np.empty if whole else np.zeros)((*shape, 8 * len(images)), np.float32)
        arrays = [_array(image) for image in images]
        crew.run(
            lambda n: _unshuffle(arrays[n // batch][n % batch], unshuffled[n % batch], 8 * (n // batch)),
            batch * len(images),
        )
        first = torch.from_numpy(unshuffled).to(torch.bfloat16).permute(0, 3, 1, 2)
        values = first if memory is None else torch.cat([first, memory.to(torch.bfloat16)], dim=1)
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
        correction, shown = np.empty((batch, rows, columns), np.complex64), _last(values[:, :8])
        crew.run(lambda n: _shuffle(shown[n], correction[n]), batch)
        return torch.from_numpy(correction), values[:, 8:] if self.memory_out else None


class FusedDualBlock(WholeBlock):
    """A `DualBlock` for inference on complex sinograms, all layers but the first in bfloat16.

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

    def forward(self, residual: Tensor, measured: Tensor, context: Tensor) -> Tensor:
        """Return the residual and its correction, complex64 (batch, coil, angle, detector).

        Parameters
        ----------
        residual, measured
            complex64 (batch, coil, angle, detector).
        context
            float32 (channel, angle, 1).
        """
        n_angles, detector = residual.shape[-2:]
        residuals, sinograms = (_array(values).reshape(-1, n_angles, detector) for values in (residual, measured))
        known = np.ascontiguousarray(context[..., 0].numpy(), np.float32)
        rows = _padded_rows(n_angles, len(self._convolutions), self.block.wrap)
        places = mirror_detector(torch.arange(detector)).numpy()
        paired = np.empty((len(residuals), len(rows), -(-detector // 2), 8 + 2 * len(known)), np.float32)
        crew.run(lambda n: _pair(residuals[n], sinograms[n], known, rows, places, paired[n]), len(residuals))
        values = self._convolutions[0](torch.from_numpy(paired).permute(0, 3, 1, 2)).to(torch.bfloat16)
        for convolution in self._convolutions[1:]:
            values = convolution(values)
        refined, correction = np.empty_like(residuals), _last(values)
        crew.run(lambda n: _add_pairs(residuals[n], correction[n], refined[n]), len(residuals))
        return torch.from_numpy(refined).reshape(residual.shape)
