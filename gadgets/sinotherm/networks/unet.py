"""U-Net of the image space, on a 2×2 space-to-depth image."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sinotherm.networks.blocks import convolutions

__all__ = ["ImageBlock", "UNet"]


class UNet(nn.Module):
    """U-Net that returns a correction to an image and a few features to remember.

    Works on a 2×2 space-to-depth image: four pixels become channels, so that the first level costs a
    quarter and sees twice as far (Ronneberger et al. 2015, 10.1007/978-3-319-24574-4_28, for the U).

    Parameters
    ----------
    channels_in, channels_out
        Real full-resolution channels of input and output.
    features
        Width of each level, finest first; each level halves the grid.
    memory_in, memory_out
        Channels on the space-to-depth grid that come from, and go to, the other iterations.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        features: Sequence[int] = (32, 64, 128, 128),
        memory_in: int = 0,
        memory_out: int = 0,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.memory_out = memory_out
        widths = [4 * channels_in + memory_in, *features]
        self.down = nn.ModuleList(convolutions(n_in, n_out, (n_out,)) for n_in, n_out in itertools.pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(deep, fine, 1) for fine, deep in itertools.pairwise(features))
        self.merge = nn.ModuleList(convolutions(2 * width, width, (width,)) for width in features[:-1])
        self.head = nn.Conv2d(features[0], 4 * channels_out + memory_out, 1)
        # Starts as "no correction".
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    @property
    def multiple(self) -> int:
        """Rows and columns of the image must be a multiple of this."""
        return int(2 ** len(self.features))

    def forward(self, image: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the correction (batch, channel, y, x) and the memory (batch, channel, y/2, x/2).

        Parameters
        ----------
        image
            Real (batch, channel, y, x), y and x multiples of `multiple`.
        memory
            As returned by the iteration before.
        """
        values = functional.pixel_unshuffle(image, 2)
        if memory is not None:
            values = torch.cat([values, memory.to(values.dtype)], dim=1)
        values = values.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            values = block(functional.avg_pool2d(values, 2) if level else values)
            skips.append(values)
        for level in reversed(range(len(self.up))):
            # The 1×1 convolution commutes with the interpolation and is four times cheaper before it.
            values = functional.interpolate(
                self.up[level](values), scale_factor=2, mode="bilinear", align_corners=False
            )
            values = self.merge[level](torch.cat([values, skips[level]], dim=1))
        values = self.head(values)
        if not self.memory_out:
            return functional.pixel_shuffle(values, 2), None
        split = values.shape[1] - self.memory_out
        return functional.pixel_shuffle(values[:, :split], 2), values[:, split:]


class ImageBlock(nn.Module):
    """Three 3×3 convolutions on the image (PD), with the interface of `UNet`; there is no memory.

    Parameters
    ----------
    channels_in, channels_out
        Real channels.
    features
        Width of the hidden layers.
    """

    multiple = 1
    memory_out = 0

    def __init__(self, channels_in: int, channels_out: int, *, features: int = 32) -> None:
        super().__init__()
        self.hidden = convolutions(channels_in, features, (features,))
        self.head = nn.Conv2d(features, channels_out, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the correction (batch, channel, y, x)."""
        return self.head(self.hidden(image)), memory
