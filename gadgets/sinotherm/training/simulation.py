"""Simulated scans for training, made on the fly from magnitude images, on the CPU or on the GPU that trains.

Every step has its own random generator, seeded by (seed, step, process), so that a run that resumes sees the
same scans as one that never stopped. The generator's device is where the scans are made; what decides
their shapes is drawn on the CPU from the same seed, so that nothing waits for the GPU.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sinotherm.core.geometry import GOLDEN_ANGLE, RadialSampling
from sinotherm.errors import SettingsError
from sinotherm.networks.cartesian import CartesianLines
from sinotherm.networks.fan_beam import FanBeamSinogram, RealFanBeamSinogram
from sinotherm.networks.paper import MagnitudeSinogram
from sinotherm.networks.radial import RadialSinogram
from sinotherm.operators.cartesian import variable_density_lines
from sinotherm.operators.density import readout_weights
from sinotherm.operators.fan_beam import FanBeam, FanBeamGeometry
from sinotherm.simulation.image_sets import SMALLEST

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
    coarse = torch.randn((batch, 1, order, order), generator=random, device=random.device)
    field = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[:, 0]
    field = field - field.mean(dim=(1, 2), keepdim=True)
    return field / field.std(dim=(1, 2), keepdim=True)


def birdcage_maps(random: torch.Generator, batch: int, coils: int, size: int, *, mixed: bool) -> Tensor:
    """Return coil maps, complex64 (batch, coil, size, size), Σ|s|² = 1.

    Loops on a ring around the object; with ``mixed`` a random unitary combination of them, as after
    whitening and coil compression.
    """
    device = random.device
    if coils == 1:
        return torch.ones((batch, 1, size, size), dtype=torch.complex64, device=device)
    axis = torch.linspace(-1.0, 1.0, size, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    around = 2 * math.pi * torch.arange(coils, device=device) / coils
    jitter, radius, width, offset = torch.rand((4, batch, coils), generator=random, device=device)
    angle = around + (jitter - 0.5) * (2 * math.pi / coils)
    angle = angle + 2 * math.pi * torch.rand((batch, 1), generator=random, device=device)
    radius, width = 0.9 + 0.5 * radius, 0.35 + 0.4 * width
    dx = x - (radius * angle.cos())[..., None, None]
    dy = y - (radius * angle.sin())[..., None, None]
    modulus = (dx.square() + dy.square() + width.square()[..., None, None]).pow(-1.0)
    turn = 0.8 * torch.atan2(dy, dx + 1e-6) if coils > 8 else torch.zeros_like(modulus)
    tilt = 1.5 * torch.randn((batch, coils, 2), generator=random, device=device)
    phase = turn + tilt[..., 0, None, None] * x + tilt[..., 1, None, None] * y
    maps = torch.polar(modulus, phase + 2 * math.pi * offset[..., None, None])
    if mixed:
        gauss = _numbers(random, 1).standard_normal((2, batch, coils, coils))
        unitary = np.linalg.qr(gauss[0] + 1j * gauss[1])[0].astype(np.complex64)
        maps = torch.einsum("bij,bjyx->biyx", torch.from_numpy(unitary).to(device), maps)
    return maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()


def _numbers(random: torch.Generator, part: int) -> np.random.Generator:
    """Return a generator of plain numbers with the same seed, one for each part of a scan."""
    return np.random.default_rng([random.initial_seed(), part])


def _white(random: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Return complex white noise of SD 1 in each part."""
    return torch.view_as_complex(torch.randn((*shape, 2), generator=random, device=random.device))


def _body_median(magnitude: Tensor) -> Tensor:
    """Return the median over the body of each image, (batch,)."""
    body = magnitude > 0.05 * magnitude.amax(dim=(1, 2), keepdim=True)
    return torch.where(body, magnitude, torch.nan).flatten(1).nanmedian(dim=1).values


def noise_scale(sampling: RadialSampling, snr: float, signal: float) -> float:
    """Return the SD of the real part of a sample's noise that gives this SNR.

    SNR = signal / SD(real part) in the combined ramp-filtered reconstruction of 402 spokes.
    """
    weights = readout_weights(sampling, centre="area") * (math.pi / 402)
    return signal / (snr * math.sqrt(402 * float(np.square(weights).sum())))


def _refuse_outside(name: str, span: tuple[float, float], least: float) -> None:
    """Raise a `SettingsError` where a lowest and a highest value are none."""
    if not least <= span[0] <= span[1]:
        raise SettingsError(f"{name} = {span}; the lowest must be at least {least:g}, and the highest no less.")


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
    device
        Where the images are kept; the generators must live there.
    """

    def __init__(self, images: np.ndarray, weights: np.ndarray, *, batch: int, device: str = "cpu") -> None:
        scale = 2.0 / 65535.0 if images.dtype == np.uint16 else 1.0
        self.images = torch.empty(images.shape, dtype=torch.float16, device=device)
        for place, image in enumerate(images):
            self.images[place] = torch.from_numpy(image * np.float32(scale))
        self.weights = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self.batch = batch

    @abstractmethod
    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch of scans."""

    def objects(self, random: torch.Generator, size: int) -> Tensor:
        """Return magnitude objects, float32 (batch, size, size), flipped, turned, scaled and shaded at random."""
        numbers, device = _numbers(random, 2), random.device
        chosen = numbers.choice(len(self.weights), self.batch, p=self.weights)
        images = self.images[torch.from_numpy(chosen).to(device)].float()
        places = np.stack([self._placement(numbers, size / images.shape[-1]) for _ in range(self.batch)])
        theta = torch.from_numpy(places.astype(np.float32)).to(device)
        grid = functional.affine_grid(theta, [self.batch, 1, size, size], align_corners=False)
        images = functional.grid_sample(images[:, None], grid, mode="bicubic", align_corners=False)[:, 0]
        draw = numbers.random((3, self.batch)).astype(np.float32)
        contrast = torch.from_numpy(np.where(draw[0] < 0.3, 0.7 + 0.7 * draw[1], 1.0).astype(np.float32)).to(device)
        shading = torch.from_numpy(np.where(draw[2] < 0.4, np.float32(0.3), np.float32(0.0))).to(device)
        images = images.clamp_min(0).pow(contrast[:, None, None])
        images = images * torch.exp(shading[:, None, None] * smooth_field(random, self.batch, size, 4))
        bright = torch.quantile(images.flatten(1)[:, ::4], 0.99, dim=1)
        return images / bright.clamp_min(0.05)[:, None, None]

    @staticmethod
    def _placement(numbers: np.random.Generator, reduction: float) -> np.ndarray:
        """Return a transform of coordinates, (2, 3): quarter turns and flips; half are turned, scaled and shifted.

        A smaller image is the whole object, or, of a third of those that are moved, a cut-out.
        """
        draw = numbers.random(8)
        quarter, flip = math.pi / 2 * int(draw[0] * 4), -1.0 if draw[1] < 0.5 else 1.0
        moved = draw[2] < 0.5
        angle = quarter + (draw[3] - 0.5 if moved else 0.0)
        zoom = math.exp(0.5 * (draw[4] - 0.5)) if moved else 1.0
        if moved and draw[5] < 0.3:
            zoom *= reduction
        shift = (draw[6:] - 0.5) * (0.2 if moved else 0.0)
        cos, sin = round(math.cos(angle), 12) * zoom, round(math.sin(angle), 12) * zoom
        return np.array([[flip * cos, -sin, shift[0]], [flip * sin, cos, shift[1]]])

    def phases(self, random: torch.Generator, magnitude: Tensor) -> Tensor:
        """Return object phases, rad, (batch, y, x): smooth background, hot spots, fat out of phase."""
        batch, size, _ = magnitude.shape
        strength = 1.5 * torch.rand((batch, 1, 1), generator=random, device=random.device)
        phase = strength * smooth_field(random, batch, size, 4)
        phase = phase + self.heat(random, batch, size)
        draw = torch.rand((batch, 3), generator=random, device=random.device)
        fat = (draw[:, 0] < 0.15)[:, None, None] & (magnitude > (0.5 + 0.4 * draw[:, 1])[:, None, None])
        return phase + fat * (4 * draw[:, 2, None, None] - 2)

    @staticmethod
    def heat(random: torch.Generator, batch: int, size: int) -> Tensor:
        """Return up to three Gaussian phase spots, rad, (batch, y, x): SD 2 to 32 of 256 pixels, up to ±2 rad."""
        axis = torch.arange(size, dtype=torch.float32, device=random.device) / size - 0.5
        total = torch.zeros((batch, size, size), device=random.device)
        for number in range(3):
            draw = torch.rand((batch, 6), generator=random, device=random.device)
            amplitude = 4.0 * (draw[:, 0] - 0.5) * (draw[:, 1] < (0.8, 0.4, 0.2)[number])
            width = 2.0 ** (1.0 + 4.0 * draw[:, 2]) / 256
            # Ellipses of up to 1.5 to 1.
            ratio = 1.5 ** (draw[:, 3] - 0.5)
            spot_y = torch.exp(-((axis[None] - 0.7 * (draw[:, 4, None] - 0.5)) / (width * ratio)[:, None]).square() / 2)
            spot_x = torch.exp(-((axis[None] - 0.7 * (draw[:, 5, None] - 0.5)) / (width / ratio)[:, None]).square() / 2)
            total = total + amplitude[:, None, None] * spot_y[:, :, None] * spot_x[:, None, :]
        return total

    @staticmethod
    def focus(random: torch.Generator, near_edge: Tensor) -> Tensor:
        """Return up to three foci of ultrasound, rad, (batch, y, x): SD 1.2 to 5 pixels, half below ±0.3, all ±1.2 rad.

        They are as narrow on a small grid as on a large one: what a network has to learn is a number of pixels.

        Parameters
        ----------
        near_edge
            bool (batch, y, x): where two in five of them lie; the others lie anywhere in the middle 70 %.
        """
        batch, size, _ = near_edge.shape
        axis = torch.arange(size, dtype=torch.float32, device=random.device) - size / 2
        chosen = torch.multinomial(near_edge.flatten(1).float() + 1e-6, 3, generator=random)
        total = torch.zeros((batch, size, size), device=random.device)
        for number, share in enumerate((0.7, 0.5, 0.3)):
            draw = torch.rand((batch, 6), generator=random, device=random.device)
            signed = 2.0 * draw[:, 0] - 1.0
            amplitude = 1.2 * signed * signed.abs() * (draw[:, 1] < share)
            width = 1.2 * 4.2 ** draw[:, 2]
            edge = draw[:, 5] < 0.4
            row = torch.where(edge, chosen[:, number] // size - size / 2, 0.7 * size * (draw[:, 3] - 0.5))
            column = torch.where(edge, chosen[:, number] % size - size / 2, 0.7 * size * (draw[:, 4] - 0.5))
            distance_y = (axis[None] - row[:, None]) / width[:, None]
            distance_x = (axis[None] - column[:, None]) / width[:, None]
            spot = torch.exp(-0.5 * (distance_y.square()[:, :, None] + distance_x.square()[:, None, :]))
            total = total + amplitude[:, None, None] * spot
        return total

    @classmethod
    def change(cls, random: torch.Generator, magnitude: Tensor) -> Tensor:
        """Return the phase between baseline and frame, rad, (batch, y, x): heating, and drift of order 0 to 2.

        Fat does not heat: in half of the objects what lies within 4 to 7 % of the edge (of these in two thirds only
        what is bright there), in a tenth what is bright. Not more often, or a network learns that bright tissue
        stays cold.
        """
        batch, size, _ = magnitude.shape
        device = random.device
        reach = float(_numbers(random, 4).uniform(0.04, 0.07)) * size
        body = magnitude > 0.05 * magnitude.amax(dim=(1, 2), keepdim=True)
        near_edge = body & _near(~body, 2.0 * reach)
        heat = cls.heat(random, batch, size) + cls.focus(random, near_edge)
        heat = heat * (1.0 + 0.1 * smooth_field(random, batch, size, 8))
        draw = torch.rand((batch, 5, 1, 1), generator=random, device=device)
        bright = (draw[:, 0] < 0.1) & (magnitude > 0.5 + 0.4 * draw[:, 1])
        least = torch.where(draw[:, 3] < 0.67, 0.2 + 0.5 * draw[:, 4], torch.zeros_like(draw[:, 4]))
        shell = (draw[:, 2] < 0.5) & _near(~body, reach) & (magnitude > least)
        heat = torch.where(bright | shell, torch.zeros_like(heat), heat)
        size_of_drift = 0.15 * torch.randn((2, batch, 1, 1), generator=random, device=device)
        return heat + size_of_drift[0] * smooth_field(random, batch, size, 3) + size_of_drift[1]


def _near(mask: Tensor, pixels: float) -> Tensor:
    """Return what lies within so many pixels, along rows and along columns, of a bool mask (batch, y, x)."""
    side = 2 * round(pixels) + 1
    wide = functional.max_pool2d(mask[:, None].float(), (1, side), 1, (0, side // 2))
    return functional.max_pool2d(wide, (side, 1), 1, (side // 2, 0))[:, 0] > 0.5


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
        Lowest and highest; spokes are drawn from sixteen numbers, even in their logarithm.

    Raises
    ------
    SettingsError
        Numbers and how often they are drawn do not go together, or a setting is out of its bounds.
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
        device: str = "cpu",
    ) -> None:
        super().__init__(images, weights, batch=batch, device=device)
        drawn = (("coil", coils, coil_weights, 1), ("size", sizes, size_weights, SMALLEST))
        for name, numbers, often, least in drawn:
            if len(numbers) != len(often) or min(numbers, default=0) < least or min(often) <= 0:
                raise SettingsError(
                    f"{name}s = {numbers} with {name}_weights = {often}: each must be at least {least} and needs a "
                    "weight above 0."
                )
        if not 0 <= paper <= 1:
            raise SettingsError(f"paper = {paper:g}; it is a fraction, from 0 to 1.")
        _refuse_outside("spokes", spokes, 1)
        _refuse_outside("snr", snr, 1)
        self.paper = paper
        self.heating = heating
        self.coils, self.coil_weights = coils, np.array(coil_weights) / sum(coil_weights)
        # Sixteen numbers in all: a GPU's libraries look for the fastest kernel once for each.
        self.counts = np.unique(np.round(np.geomspace(*spokes, 16)).astype(int))
        self.snr = snr
        self.sizes, self.size_weights = sizes, np.array(size_weights) / sum(size_weights)

    @staticmethod
    def angles(numbers: np.random.Generator, n_spokes: int, *, uniform: bool) -> np.ndarray:
        """Return spoke angles within a half turn, rad: equidistant or golden, at a random start."""
        draw = numbers.random(2)
        if uniform:
            first = draw[0] if draw[1] < 0.5 else 0.0
            return (np.arange(n_spokes) + first) * (math.pi / n_spokes)
        first = int(draw[0] * 4000)
        return np.mod((first + np.arange(n_spokes)) * GOLDEN_ANGLE, math.pi)

    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch."""
        numbers, device = _numbers(random, 0), random.device
        draw = numbers.random(6)
        paper = bool(draw[0] < self.paper)
        size = 256 if paper else int(numbers.choice(self.sizes, p=self.size_weights))
        coils = 1 if paper else int(numbers.choice(self.coils, p=self.coil_weights))
        n_spokes = 32 if paper and draw[1] < 0.7 else int(numbers.choice(self.counts))
        angles = self.angles(numbers, n_spokes, uniform=bool(draw[3] < (0.8 if paper else 0.5)))
        sampling = RadialSampling(n_readout=2 * size, spacing=0.5 / size, centre=float(size))
        magnitude = self.objects(random, size)
        maps = birdcage_maps(random, self.batch, coils, size, mixed=bool(draw[4] < 0.5))
        target = magnitude + 0j if paper else torch.polar(magnitude, self.phases(random, magnitude))
        truth = RadialSinogram(sampling, angles, n_pixels=size, maps=maps)
        measured = truth.forward(target)
        snr = self.snr[0] + torch.rand(self.batch, generator=random, device=device) * (self.snr[1] - self.snr[0])
        # SD of the noise of a voxel of 402 spokes.
        level = _body_median(magnitude) / snr
        if not paper:
            # White noise of n samples is white noise of the sinogram with an n-th of the variance.
            sd = level * (noise_scale(sampling, 1.0, 1.0) / math.sqrt(sampling.n_readout))
            measured = measured + sd[:, None, None, None] * _white(random, measured.shape)
        known = maps
        if coils > 1 and draw[5] < 0.3:
            real = smooth_field(random, self.batch * coils, size, 5)
            imaginary = smooth_field(random, self.batch * coils, size, 5)
            error = 0.05 * torch.complex(real, imaginary).reshape(maps.shape)
            known = maps * (1 + error)
            known = known / known.abs().square().sum(dim=1, keepdim=True).sqrt()
        reference = None
        if self.heating:
            target, reference = self._guided(random, target, level, n_spokes)
        return Batch(
            target=target,
            measured=measured,
            operator=truth.with_maps(known),
            reference=reference,
        )

    def _guided(self, random: torch.Generator, image: Tensor, level: Tensor, n_spokes: int) -> tuple[Tensor, Tensor]:
        """Return what a guided network shall make of the measurement of an image, and its reference.

        The reference is the mean of several frames before the heating and has their noise. A temperature
        is the change since then: the same noise belongs to the target, turned as the tissue is.
        """
        numbers, device = _numbers(random, 3), random.device
        turn = torch.polar(torch.ones_like(image.abs()), self.change(random, image.abs()))
        frames = torch.from_numpy(numbers.uniform(5.0, 30.0, self.batch).astype(np.float32)).to(device)
        noise = (level * torch.sqrt(402.0 / (frames * n_spokes)))[:, None, None] * _white(random, image.shape)
        before = image * turn.conj()
        if numbers.random() < 0.15:
            before = _shifted(before, numbers.uniform(-1.5, 1.5, 2))
        return image + noise * turn, before + noise


def _shifted(images: Tensor, pixels: np.ndarray) -> Tensor:
    """Return images moved by a fraction of a pixel (row, column) through their Fourier transform."""
    rows, columns = (torch.fft.fftfreq(n, device=images.device) for n in images.shape[-2:])
    phase = -2 * math.pi * (float(pixels[0]) * rows[:, None] + float(pixels[1]) * columns[None])
    return torch.fft.ifft2(torch.fft.fft2(images) * torch.polar(torch.ones_like(phase), phase))


class PaperRadialSimulator(RadialSimulator):
    """The papers' setting for the papers' networks: real object, magnitude projections, 32 uniform spokes."""

    def __init__(
        self, images: np.ndarray, weights: np.ndarray, *, batch: int, spokes: int = 32, device: str = "cpu"
    ) -> None:
        super().__init__(images, weights, batch=batch, paper=1.0, spokes=(spokes, spokes), device=device)

    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch; the measurement is real (batch, spoke, detector)."""
        scan = super().sample(random)
        operator: RadialSinogram = scan.operator
        magnitude = MagnitudeSinogram(operator.sampling, operator.angles, n_pixels=256, device=random.device)
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

    Raises
    ------
    SettingsError
        A setting is out of its bounds, or an acceleration leaves too few lines.
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
        device: str = "cpu",
    ) -> None:
        super().__init__(images, weights, batch=batch, device=device)
        _refuse_outside("acceleration", acceleration, 1)
        _refuse_outside("snr", snr, 1)
        if min(coils, default=0) < 1:
            raise SettingsError(f"coils = {coils}; there must be some numbers, each at least 1.")
        variable_density_lines(256, acceleration[1], np.random.default_rng(0))
        self.acceleration, self.snr, self.coils = acceleration, snr, coils

    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch."""
        size, numbers = 256, _numbers(random, 0)
        coils = int(numbers.choice(self.coils))
        lines = variable_density_lines(size, numbers.uniform(*self.acceleration), numbers)
        magnitude = self.objects(random, size)
        target = torch.polar(magnitude, self.phases(random, magnitude))
        operator = CartesianLines(lines, birdcage_maps(random, self.batch, coils, size, mixed=True))
        measured = operator.forward(target)
        draw = torch.rand(self.batch, generator=random, device=random.device)
        snr = self.snr[0] + draw * (self.snr[1] - self.snr[0])
        level = (_body_median(magnitude) / snr)[:, None, None, None]
        measured = measured + level * _white(random, measured.shape) * operator.context()[None]
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

    Raises
    ------
    SettingsError
        There are no views of a sparsity.
    """

    def __init__(
        self,
        images: np.ndarray,
        weights: np.ndarray,
        *,
        batch: int,
        sparsity: tuple[int, ...] = (16,),
        paper: bool = False,
        device: str = "cpu",
    ) -> None:
        super().__init__(images, weights, batch=batch, device=device)
        if not sparsity or not all(1 <= every <= 360 for every in sparsity):
            raise SettingsError(f"sparsity = {sparsity}; there must be some, each from 1 to 360.")
        self.sparsity, self.paper = sparsity, paper
        self._projectors: dict[int, FanBeam] = {}

    def sample(self, random: torch.Generator) -> Batch:
        """Return one batch."""
        sparsity = int(_numbers(random, 0).choice(self.sparsity))
        if sparsity not in self._projectors:
            views = FanBeamGeometry.sparse_views(360, sparsity)
            self._projectors[sparsity] = FanBeam(FanBeamGeometry(), views)
        projector = self._projectors[sparsity]
        objects = self.objects(random, 256)
        sinogram = projector(objects)
        target = torch.complex(objects, torch.zeros_like(objects))
        if self.paper:
            return Batch(target=target, measured=sinogram, operator=RealFanBeamSinogram(projector))
        operator = FanBeamSinogram(projector, random.device)
        return Batch(target=target, measured=operator.forward(target), operator=operator)
