"""PD and PDUNet as published, parameter for parameter: the comparators.

Adler and Öktem 2018, 10.1109/TMI.2018.2799231 (PD); Ernst et al. 2021, arXiv:2112.13443 (PDUNet and PD).
Real images and magnitude sinograms of one coil; known weak points (plain circular angle wrap, magnitude
projections) are kept on purpose.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Protocol, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sinotherm.core.arrays import SpokeAngles
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError
from sinotherm.networks.checks import ConfigDict, Field
from sinotherm.networks.radial import RadialSinogram
from sinotherm.operators.density import radial_weights

__all__ = ["MagnitudeSinogram", "PaperArchitecture", "PaperPrimalDual", "RealOperator"]


_Count: TypeAlias = Annotated[int, Field(ge=1)]


class RealOperator(Protocol):
    """T and T⁺ of the papers on real tensors."""

    def forward(self, image: Tensor) -> Tensor:
        """T: (batch, y, x) → sinogram (batch, angle, detector)."""

    def inverse(self, sinogram: Tensor) -> Tensor:
        """T⁺: Hann-windowed filtered back-projection, in units of the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperArchitecture:
    """Which of the two published networks.

    Attributes
    ----------
    primal
        ``convolutions`` (PD) or ``unet`` (PDUNet).
    n_primal, n_dual, iterations
        5, 5, 10 for PD; 4, 5, 2 for PDUNet.
    start
        Image at the start: zeros (PD) or the filtered back-projection (PDUNet).
    """

    # Checked where it is read from a card.
    __pydantic_config__ = ConfigDict(extra="forbid")

    primal: Literal["convolutions", "unet"] = "unet"
    n_primal: _Count = 4
    n_dual: _Count = 5
    iterations: _Count = 2
    start: Literal["zero", "fbp"] = "fbp"

    @classmethod
    def pd(cls) -> Self:
        """Return the original learned primal-dual network."""
        return cls(primal="convolutions", n_primal=5, n_dual=5, iterations=10, start="zero")

    @classmethod
    def pdunet(cls) -> Self:
        """Return the PDUNet."""
        return cls()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the model card."""
        return asdict(self)


class _DualConvolutions(nn.Module):
    """Three 3×3 convolutions, 32 features; circular along the angle, replicated along the detector."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(n_in, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, n_out, 3)])
        self.activations = nn.ModuleList([nn.PReLU(), nn.PReLU()])

    def forward(self, values: Tensor) -> Tensor:
        for index, convolution in enumerate(self.convolutions):
            values = functional.pad(
                functional.pad(values, (0, 0, 1, 1), mode="circular"), (1, 1, 0, 0), mode="replicate"
            )
            values = convolution(values)
            if index < len(self.activations):
                values = self.activations[index](values)
        return values


def _primal_convolutions(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, 32, 3, padding=1),
        nn.PReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.PReLU(),
        nn.Conv2d(32, n_out, 3, padding=1),
    )


def _level(n_in: int, n_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a in (n_in, n_out):
        layers += [nn.Conv2d(a, n_out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers)


class _PaperUNet(nn.Module):
    """Depth 4, 32-64-128-256 features, average pooling, bilinear up-sampling and 1×1 convolution."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        self.down = nn.ModuleList(_level(a, b) for a, b in zip((n_in, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(_level(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], n_out, 1)

    def forward(self, values: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for index, level in enumerate(self.down):
            values = level(functional.avg_pool2d(values, 2) if index else values)
            skips.append(values)
        for index in reversed(range(len(self.up))):
            values = functional.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)
            values = self.merge[index](torch.cat([self.up[index](values), skips[index]], dim=1))
        return self.head(values)


class PaperPrimalDual(nn.Module):
    """h ← h + w_d·D([h, T(mean f), g]); f ← f + w_p·P([f, T⁺(mean h)]); output mean f."""

    def __init__(self, architecture: PaperArchitecture | None = None) -> None:
        super().__init__()
        self.architecture = a = architecture or PaperArchitecture()
        primal = _PaperUNet if a.primal == "unet" else _primal_convolutions
        self.dual = nn.ModuleList(_DualConvolutions(a.n_dual + 2, a.n_dual) for _ in range(a.iterations))
        self.primal = nn.ModuleList(primal(a.n_primal + 1, a.n_primal) for _ in range(a.iterations))
        self.dual_weight = nn.Parameter(torch.ones(a.iterations, a.n_dual))
        self.primal_weight = nn.Parameter(torch.zeros(a.iterations, a.n_primal))

    @property
    def n_parameters(self) -> int:
        """Number of learned values."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, measured: Tensor, operator: RealOperator) -> Tensor:
        """Return the image, float32 (batch, y, x), of a magnitude sinogram (batch, angle, detector).

        The sinogram is normalised to zero mean and unit SD per sample; images are expected with their
        99th percentile near 1.
        """
        a = self.architecture
        mean = measured.mean(dim=(1, 2), keepdim=True)
        deviation = measured.std(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        g = ((measured - mean) / deviation)[:, None]
        h = g.new_zeros((len(g), a.n_dual, *g.shape[2:]))
        start = operator.inverse(measured)
        image = start if a.start == "fbp" else torch.zeros_like(start)
        f = image[:, None].repeat(1, a.n_primal, 1, 1)
        for k in range(a.iterations):
            projected = ((operator.forward(f.mean(dim=1)) - mean) / deviation)[:, None]
            h = h + self.dual_weight[k, :, None, None] * self.dual[k](torch.cat([h, projected, g], dim=1))
            back = operator.inverse(h.mean(dim=1) * deviation + mean)[:, None]
            f = f + self.primal_weight[k, :, None, None] * self.primal[k](torch.cat([f, back], dim=1))
        return f.mean(dim=1)


class MagnitudeSinogram:
    """T and T⁺ of the papers for radial MRI: parallel-beam projections of a real image, one coil.

    The sinogram has the detector length of the papers, the image's diagonal (363 bins for 256 pixels);
    T⁺ weights all spokes alike and tapers the ramp with a Hann window.

    Parameters
    ----------
    sampling, angles
        Samples on a spoke and spoke angles, rad, (spoke,).
    n_pixels
        Rows and columns of the image.
    device
        Where it works.
    """

    def __init__(
        self, sampling: RadialSampling, angles: SpokeAngles, *, n_pixels: int, device: torch.device | str = "cpu"
    ) -> None:
        self._radial = RadialSinogram(sampling, angles, n_pixels=n_pixels, equal=True, device=device)
        order = self._radial.order_index.cpu().numpy()
        weights = radial_weights(angles, sampling, weights="equal", radial_filter="hann", centre="area")[order]
        self._radial.weights = torch.from_numpy(weights.astype(np.float32)).to(device)
        length = math.ceil(n_pixels * math.sqrt(2.0))
        length += 1 - length % 2
        self._start = sampling.n_readout // 2 - length // 2
        self._end = sampling.n_readout - self._start - length

    def _crop(self, sinogram: Tensor) -> Tensor:
        return sinogram[..., self._start : sinogram.shape[-1] - self._end]

    def measured(self, samples: Tensor) -> Tensor:
        """Return magnitude projections (batch, spoke, detector) of samples (batch, 1, spoke, readout).

        Raises
        ------
        DataError
            There is more than one coil.
        """
        if samples.shape[1] != 1:
            raise DataError(f"samples of {samples.shape[1]} coils: the papers' networks know one; combine them before.")
        return self._crop(self._radial.order(samples)[:, 0].abs())

    def forward(self, image: Tensor) -> Tensor:
        """T: float32 (batch, y, x) → (batch, spoke, detector)."""
        return self._crop(self._radial.forward(torch.complex(image, torch.zeros_like(image)))[:, 0].real)

    def inverse(self, sinogram: Tensor) -> Tensor:
        """T⁺: (batch, spoke, detector) → float32 (batch, y, x)."""
        padded = functional.pad(sinogram, (self._start, self._end))
        return self._radial.inverse(torch.complex(padded, torch.zeros_like(padded))[:, None]).real
