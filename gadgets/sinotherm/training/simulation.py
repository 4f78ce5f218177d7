"""Simulated scans for training, made on the fly from magnitude images.

Every step has its own random generator, seeded by (seed, step), so that a run that resumes sees the
same scans as one that never stopped.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sinotherm.core.geometry import GOLDEN_ANGLE, RadialSampling
from sinotherm.networks.cartesian import CartesianLines
from sinotherm.networks.fan_beam import FanBeamSinogram, RealFanBeamSinogram
from sinotherm.networks.paper import MagnitudeSinogram
from sinotherm.networks.radial import RadialSinogram
from sinotherm.operators.cartesian import variable_density_lines
from sinotherm.operators.density import readout_weights
from sinotherm.operators.fan_beam import FanBeam, FanBeamGeometry

__all__ = [
    "Batch",
    "CartesianSimulator",
    "FanBeamSimulator",
    "ObjectSource",
    "PaperRadialSimulator",
    "RadialSimulator",
    "birdcage_maps",
    "noise_scale",
    "smooth_field",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch: objects, measurement and operator.

    Attributes
    ----------
    target
        complex64 (batch, y, x).
    measured
        complex64 (batch, coil, angle, detector); real (batch, angle, detector) for the papers' networks.
    operator
        What the network is called with; it knows the coil maps as a reconstruction would.
    reference
        Pre-heating images, complex64 (batch, y, x), for reference-guided networks.
    """

    target: Tensor
    measured: Tensor
    operator: Any
    reference: Tensor | None = None


def smooth_field(random: torch.Generator, batch: int, size: int, order: int) -> Tensor:
    """Return smooth real fields (batch, size, size), zero mean and unit SD: cubic interpolation of noise."""
    coarse = torch.randn((batch, 1, order, order), generator=random)
    field = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[:, 0]
    field = field - field.mean(dim=(1, 2), keepdim=True)
    return field / field.std(dim=(1, 2), keepdim=True)


def birdcage_maps(random: torch.Generator, batch: int, coils: int, size: int, *, mixed: bool) -> Tensor:
    """Return coil maps, complex64 (batch, coil, size, size), Σ|s|² = 1.

    Loops on a ring around the object; with ``mixed`` a random unitary combination of them, as after
    whitening and coil compression.
    """
    if coils == 1:
        return torch.ones((batch, 1, size, size), dtype=torch.complex64)
    axis = torch.linspace(-1.0, 1.0, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    around = 2 * math.pi * torch.arange(coils) / coils
    jitter = (torch.rand((batch, coils), generator=random) - 0.5) * (2 * math.pi / coils)
    angle = around + jitter + 2 * math.pi * torch.rand((batch, 1), generator=random)
    radius = 0.9 + 0.5 * torch.rand((batch, coils), generator=random)
    width = 0.35 + 0.4 * torch.rand((batch, coils), generator=random)
    dx = x - (radius * angle.cos())[..., None, None]
    dy = y - (radius * angle.sin())[..., None, None]
    modulus = (dx.square() + dy.square() + width.square()[..., None, None]).pow(-1.0)
    turn = 0.8 * torch.atan2(dy, dx + 1e-6) if coils > 8 else torch.zeros_like(modulus)
    tilt = 1.5 * torch.randn((batch, coils, 2), generator=random)
    offset = 2 * math.pi * torch.rand((batch, coils), generator=random)
    phase = turn + tilt[..., 0, None, None] * x + tilt[..., 1, None, None] * y + offset[..., None, None]
    maps = torch.polar(modulus, phase)
    if mixed:
        gauss = torch.randn((batch, coils, coils, 2), generator=random)
        unitary = torch.linalg.qr(torch.view_as_complex(gauss))[0]
        maps = torch.einsum("bij,bjyx->biyx", unitary, maps)
    return maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()


def noise_scale(sampling: RadialSampling, snr: float, signal: float) -> float:
    """Return the SD of the real part of a sample's noise that gives this SNR.

    SNR = signal / SD(real part) in the combined ramp-filtered reconstruction of 402 spokes.
    """
    weights = readout_weights(sampling) * (math.pi / 402)
    return signal / (snr * math.sqrt(402 * float(np.square(weights).sum())))


class ObjectSource(ABC):
    """Draws objects from images; a subclass scans them.

    Parameters
    ----------
    images
        uint16 or float (image, 256, 256); full scale of uint16 is 2.0.
    weights
        Probability of each image.
    batch
        Objects a batch.
    """

    def __init__(self, images: np.ndarray, weights: np.ndarray, *, batch: int) -> None:
        self.images = images
        self.weights = torch.from_numpy(np.asarray(weights, dtype=np.float64))
        self.batch = batch

    @abstractmethod
    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch of scans."""

    def objects(self, random: torch.Generator, size: int) -> Tensor:
        """Return magnitude objects, float32 (batch, size, size), flipped, turned, scaled and shaded at random."""
        chosen = torch.multinomial(self.weights, self.batch, replacement=True, generator=random)
        stack = np.stack([self.images[int(i)] for i in chosen])
        images = torch.from_numpy(stack.astype(np.float32))
        if self.images.dtype == np.uint16:
            images = images * (2.0 / 65535.0)
        result = []
        for image in images:
            draw = torch.rand(8, generator=random)
            if draw[0] < 0.5:
                image = image.flip(-1)
            image = image.rot90(int(draw[1] * 4))
            if draw[2] < 0.5 or size != image.shape[-1]:
                image = self._move(random, image, size, whole=bool(draw[2] >= 0.5))
            if draw[3] < 0.3:
                image = image.clamp_min(0).pow(0.7 + 0.7 * float(draw[4]))
            if draw[5] < 0.4:
                image = image * torch.exp(0.3 * smooth_field(random, 1, size, 4)[0])
            result.append(image / torch.quantile(image.flatten()[::4], 0.99).clamp_min(0.05))
        return torch.stack(result)

    @staticmethod
    def _move(random: torch.Generator, image: Tensor, size: int, *, whole: bool) -> Tensor:
        """Turn, scale and shift; a smaller size is a cut-out unless ``whole``."""
        draw = torch.rand(4, generator=random)
        angle = 0.0 if whole else float(draw[0] - 0.5) * 1.0
        zoom = 1.0 if whole else math.exp(float(draw[1] - 0.5) * 0.5)
        shift = (draw[2:] - 0.5) * (0.0 if whole else 0.2)
        part = 1.0 if whole else size / image.shape[-1] if draw[0] < 0.3 else 1.0
        cos, sin = math.cos(angle) * zoom * part, math.sin(angle) * zoom * part
        theta = torch.tensor([[cos, -sin, float(shift[0])], [sin, cos, float(shift[1])]])
        grid = functional.affine_grid(theta[None], [1, 1, size, size], align_corners=False)
        return functional.grid_sample(image[None, None], grid, mode="bicubic", align_corners=False)[0, 0].clamp_min(0)

    def phases(self, random: torch.Generator, magnitude: Tensor) -> Tensor:
        """Return object phases, rad, (batch, y, x): smooth background, hot spots, fat out of phase."""
        batch, size, _ = magnitude.shape
        strength = 1.5 * torch.rand((batch, 1, 1), generator=random)
        phase = strength * smooth_field(random, batch, size, 4)
        phase = phase + self.heat(random, batch, size)
        draw = torch.rand((batch, 3), generator=random)
        fat = (draw[:, 0] < 0.15)[:, None, None] & (magnitude > (0.5 + 0.4 * draw[:, 1])[:, None, None])
        return phase + fat * (4 * draw[:, 2, None, None] - 2)

    @staticmethod
    def heat(random: torch.Generator, batch: int, size: int) -> Tensor:
        """Return up to three Gaussian phase spots, rad, (batch, y, x), 5 to 40 pixels wide, up to ±2.5 rad."""
        axis = torch.arange(size, dtype=torch.float32) / size - 0.5
        total = torch.zeros((batch, size, size))
        for _ in range(3):
            draw = torch.rand((batch, 4), generator=random)
            amplitude = 5.0 * (draw[:, 0] - 0.5) * (draw[:, 3] < 0.5)
            width = (5 + 35 * torch.rand(batch, generator=random)) / 256
            spot_y = torch.exp(-((axis[None] - 0.7 * (draw[:, 1, None] - 0.5)) ** 2) / (2 * width[:, None] ** 2))
            spot_x = torch.exp(-((axis[None] - 0.7 * (draw[:, 2, None] - 0.5)) ** 2) / (2 * width[:, None] ** 2))
            total = total + amplitude[:, None, None] * spot_y[:, :, None] * spot_x[:, None, :]
        return total

    @classmethod
    def change(cls, random: torch.Generator, batch: int, size: int) -> Tensor:
        """Return the phase between baseline and frame, rad, (batch, y, x): heating, and drift of order 0 to 2."""
        drift = 0.3 * torch.randn((batch, 1, 1), generator=random) * smooth_field(random, batch, size, 3)
        return cls.heat(random, batch, size) + drift + 0.3 * torch.randn((batch, 1, 1), generator=random)


class RadialSimulator(ObjectSource):
    """Makes batches of radial scans.

    Parameters
    ----------
    images, weights, batch
        As in `ObjectSource`; the scans of a batch share the trajectory and the number of coils.
    paper
        Fraction of batches in the paper's setting: one coil, real non-negative object, no noise, mainly
        32 uniform spokes.
    heating
        Whether to return a reference: the object before a local phase change (heating and drift).
    coils, coil_weights, sizes, size_weights
        Numbers of coils and sizes, and how often each is drawn.
    spokes, snr
        Lowest and highest; spokes are drawn evenly in their logarithm.
    """

    def __init__(
        self,
        images: np.ndarray,
        weights: np.ndarray,
        *,
        batch: int,
        paper: float = 0.2,
        heating: bool = False,
        coils: tuple[int, ...] = (1, 4, 8, 12),
        coil_weights: tuple[float, ...] = (0.2, 0.4, 0.3, 0.1),
        spokes: tuple[int, int] = (21, 128),
        snr: tuple[float, float] = (15.0, 60.0),
        sizes: tuple[int, ...] = (256, 192),
        size_weights: tuple[float, ...] = (0.8, 0.2),
    ) -> None:
        super().__init__(images, weights, batch=batch)
        self.paper = paper
        self.heating = heating
        self.coils, self.coil_weights = coils, torch.tensor(coil_weights)
        self.spokes, self.snr = spokes, snr
        self.sizes, self.size_weights = sizes, torch.tensor(size_weights)

    def angles(self, random: torch.Generator, n_spokes: int, *, uniform: bool) -> np.ndarray:
        """Return spoke angles within a half turn, rad: equidistant or golden, at a random start."""
        draw = torch.rand(2, generator=random)
        if uniform:
            first = float(draw[0]) if draw[1] < 0.5 else 0.0
            return (np.arange(n_spokes) + first) * (math.pi / n_spokes)
        first = int(draw[0] * 4000)
        return np.mod((first + np.arange(n_spokes)) * GOLDEN_ANGLE, math.pi)

    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch."""
        draw = torch.rand(8, generator=random)
        paper = bool(draw[0] < self.paper)
        size = 256 if paper else self.sizes[int(torch.multinomial(self.size_weights, 1, generator=random))]
        coils = 1 if paper else self.coils[int(torch.multinomial(self.coil_weights, 1, generator=random))]
        low, high = (math.log(n) for n in self.spokes)
        n_spokes = 32 if paper and draw[1] < 0.7 else round(math.exp(low + float(draw[2]) * (high - low)))
        angles = self.angles(random, n_spokes, uniform=bool(draw[3] < (0.8 if paper else 0.5)))
        sampling = RadialSampling(n_readout=2 * size, spacing=0.5 / size, centre=float(size))
        magnitude = self.objects(random, size)
        maps = birdcage_maps(random, self.batch, coils, size, mixed=bool(draw[4] < 0.5))
        target = magnitude + 0j if paper else torch.polar(magnitude, self.phases(random, magnitude))
        truth = RadialSinogram(sampling, angles, n_pixels=size, maps=maps)
        measured = truth.forward(target)
        snr = self.snr[0] + torch.rand(self.batch, generator=random) * (self.snr[1] - self.snr[0])
        if not paper:
            body = [float(image[image > 0.05 * image.max()].median()) for image in magnitude]
            sd = [noise_scale(sampling, float(s), b) for s, b in zip(snr, body, strict=True)]
            # White noise of n samples is white noise of the sinogram with an n-th of the variance.
            noise = torch.view_as_complex(torch.randn((*measured.shape, 2), generator=random))
            measured = measured + noise * (torch.tensor(sd) / math.sqrt(sampling.n_readout))[:, None, None, None]
        known = maps
        if coils > 1 and draw[5] < 0.3:
            real = smooth_field(random, self.batch * coils, size, 5)
            imaginary = smooth_field(random, self.batch * coils, size, 5)
            error = 0.05 * torch.complex(real, imaginary).reshape(maps.shape)
            known = maps * (1 + error)
            known = known / known.abs().square().sum(dim=1, keepdim=True).sqrt()
        reference = None
        if self.heating:
            reference = target * torch.polar(torch.ones_like(magnitude), -self.change(random, self.batch, size))
            # A baseline is the mean of several full frames: it has noise of its own, but little.
            level = 0.3 * magnitude.mean(dim=(1, 2)) / snr
            noise = torch.view_as_complex(torch.randn((*target.shape, 2), generator=random))
            reference = reference + level[:, None, None] * noise
        return Batch(
            target=target,
            measured=measured,
            operator=truth.with_maps(known),
            reference=reference,
        )


class PaperRadialSimulator(RadialSimulator):
    """The papers' setting for the papers' networks: real object, magnitude projections, 32 uniform spokes."""

    def __init__(self, images: np.ndarray, weights: np.ndarray, *, batch: int, spokes: int = 32) -> None:
        super().__init__(images, weights, batch=batch, paper=1.0, spokes=(spokes, spokes))

    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch; the measurement is real (batch, spoke, detector)."""
        scan = super().sample(random)
        operator: RadialSinogram = scan.operator
        magnitude = MagnitudeSinogram(operator.sampling, operator.angles, n_pixels=256)
        measured = magnitude.measured(operator.restore(scan.measured))
        return Batch(target=scan.target, measured=measured, operator=magnitude)


class CartesianSimulator(ObjectSource):
    """Cartesian scans with variable-density lines, coils, object phase and noise.

    Parameters
    ----------
    images, weights, batch
        As in `ObjectSource`.
    acceleration, snr
        Lowest and highest; the SNR is that of the fully sampled combined image.
    coils
        Numbers of coils, drawn evenly.
    """

    def __init__(
        self,
        images: np.ndarray,
        weights: np.ndarray,
        *,
        batch: int,
        acceleration: tuple[float, float] = (4.0, 12.0),
        snr: tuple[float, float] = (15.0, 60.0),
        coils: tuple[int, ...] = (1, 4, 8),
    ) -> None:
        super().__init__(images, weights, batch=batch)
        self.acceleration, self.snr, self.coils = acceleration, snr, coils

    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch."""
        size = 256
        draw = torch.rand(3, generator=random)
        coils = self.coils[int(draw[0] * len(self.coils))]
        low, high = self.acceleration
        lines = variable_density_lines(
            size, low + float(draw[1]) * (high - low), np.random.default_rng(int(draw[2] * 2**24))
        )
        magnitude = self.objects(random, size)
        target = torch.polar(magnitude, self.phases(random, magnitude))
        operator = CartesianLines(lines, birdcage_maps(random, self.batch, coils, size, mixed=True))
        measured = operator.forward(target)
        snr = self.snr[0] + torch.rand(self.batch, generator=random) * (self.snr[1] - self.snr[0])
        signal = torch.stack([image[image > 0.05 * image.max()].median() for image in magnitude])
        noise = torch.view_as_complex(torch.randn((*measured.shape, 2), generator=random))
        level = (signal / snr)[:, None, None, None]
        measured = measured + level * noise * operator.context()[None].to(level.dtype)
        return Batch(target=target, measured=measured, operator=operator)


class FanBeamSimulator(ObjectSource):
    """Sparse fan-beam CT without noise, as in the first paper.

    Parameters
    ----------
    images, weights, batch
        As in `ObjectSource`.
    sparsity
        Every so many-th of 360 views, drawn evenly.
    paper
        Whether the batch is for a network of the papers (real).
    """

    def __init__(
        self,
        images: np.ndarray,
        weights: np.ndarray,
        *,
        batch: int,
        sparsity: tuple[int, ...] = (16,),
        paper: bool = False,
    ) -> None:
        super().__init__(images, weights, batch=batch)
        self.sparsity, self.paper = sparsity, paper
        self._projectors: dict[int, FanBeam] = {}

    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch."""
        sparsity = self.sparsity[int(torch.randint(len(self.sparsity), (1,), generator=random))]
        if sparsity not in self._projectors:
            views = FanBeamGeometry.sparse_views(360, sparsity)
            self._projectors[sparsity] = FanBeam(FanBeamGeometry(), views)
        projector = self._projectors[sparsity]
        objects = self.objects(random, 256)
        sinogram = projector(objects)
        target = torch.complex(objects, torch.zeros_like(objects))
        if self.paper:
            return Batch(target=target, measured=sinogram, operator=RealFanBeamSinogram(projector))
        operator = FanBeamSinogram(projector)
        return Batch(target=target, measured=operator.forward(target), operator=operator)
