"""PD and PDUNet as published, parameter for parameter: the comparators.

Adler and Öktem 2018, 10.1109/TMI.2018.2799231 (PD); Ernst et al. 2021, arXiv:2112.13443 (PDUNet and PD).
Real images and magnitude sinograms of one coil; known weak points (plain circular angle wrap, magnitude
projections) are kept on purpose.
"""

import itertools
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PaperArchitecture", "PaperPrimalDual", "RealOperator"]


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

    primal: Literal["convolutions", "unet"] = "unet"
    n_primal: int = 4
    n_dual: int = 5
    iterations: int = 2
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
