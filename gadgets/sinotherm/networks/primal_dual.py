"""The primal-dual family: an exchangeable operator, a dual block on the measurement, a primal block on the image.

Adler and Öktem 2018, 10.1109/TMI.2018.2799231 (learned primal-dual); Ernst et al. 2021, arXiv:2112.13443
(PDUNet); Khatun et al. 2025, 10.1038/s41598-025-96071-x (Fourier PD and PDUNet).
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from sinotherm.errors import SettingsError
from sinotherm.networks.blocks import AngleWrap, DualBlock, WholeBlock, as_complex, as_real
from sinotherm.networks.checks import ConfigDict, Field
from sinotherm.networks.complex_layers import ComplexDualBlock, ComplexImageBlock, ComplexUNet
from sinotherm.networks.unet import ImageBlock, UNet

__all__ = ["Architecture", "MeasurementOperator", "PrimalDual"]

_MIRRORED: Final = ((), (-1,), (-2,), (-2, -1))
"""Axes that are mirrored; with the transposes of these four the square has eight symmetries."""

_GAUSSIAN_MAD: Final = 1.4826
"""Standard deviation of a normal distribution relative to its median absolute deviation."""


_WRAPS: Final[Mapping[str, AngleWrap]] = {"radial": "mirror", "cartesian": "none", "fan-beam": "circular"}
"""What lies beyond the first and the last angle of each geometry, as `pad_angles` says."""

_Count: TypeAlias = Annotated[int, Field(ge=1)]
_NotNegative: TypeAlias = Annotated[int, Field(ge=0)]


class MeasurementOperator(Protocol):
    """What the networks need to know of a measurement.

    The dual space is (batch, coil, angle, detector) complex: sinograms, or Cartesian k-space lines.
    """

    def forward(self, image: Tensor) -> Tensor:
        """T: image (batch, y, x) → dual (batch, coil, angle, detector)."""

    def inverse(self, dual: Tensor) -> Tensor:
        """T⁺: dual → image, filtered and coil-combined, in units of the object."""

    def update(self, dual: Tensor) -> Tensor:
        """T⁺ weighted such that image + update(g − T image) converges."""

    def normal(self, image: Tensor) -> Tensor:
        """Return update(T image), the normal operator."""

    def context(self) -> Tensor:
        """Real (channel, angle, 1): what the dual block should know of each angle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything that fixes the shape of a network; stored in its model card.

    Attributes
    ----------
    iterations
        Primal blocks; a dual block stands before each but the first.
    primal
        ``unet`` (PDUNet) or ``convolutions`` (PD: three 3×3 on the image, as wide as the first feature).
    layers
        ``real``: two-channel layers; ``complex``: complex-valued layers, features then being complex.
    primal_features
        Widths of the U-Net's levels.
    dual_features, dual_layers
        Width and depth of the dual block.
    memory
        Feature channels passed from one primal block to the next.
    start
        Conjugate-gradient iterations on the operator's normal equations before the first block, where
        there is more than one coil; 0, and with one coil: the image starts as T⁺ of the measurement.
    reference
        Whether a reference image (pre-heating baseline) enters the primal blocks.
    closing
        Rounds of a guided network after the last block, (SD of a neighbourhood in pixels, least z-score) each: the
        phase that the residual still shows over such neighbourhoods turns the image. See `PrimalDual.settled`.
    wrap
        What lies beyond the first and the last angle of the dual space.
    context
        Context channels of the dual space.
    """

    # Checked where it is read from a card.
    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    iterations: _Count = 3
    primal: Literal["unet", "convolutions"] = "unet"
    layers: Literal["real", "complex"] = "real"
    primal_features: Annotated[tuple[_Count, ...], Field(min_length=1)] = (32, 64, 128, 128)
    dual_features: _Count = 24
    dual_layers: _Count = 3
    memory: _NotNegative = 16
    start: _NotNegative = 0
    reference: bool = False
    closing: tuple[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(ge=0)]], ...] = ()
    wrap: AngleWrap = "mirror"
    context: _NotNegative = 1

    def check_geometry(self, geometry: str) -> None:
        """Check that `wrap` is what a geometry's angles ask for; weights that were trained otherwise stay as they are.

        Raises
        ------
        SettingsError
            It is not: the dual blocks would learn from neighbours that are none.
        """
        if self.wrap != _WRAPS[geometry]:
            raise SettingsError(f"wrap = {self.wrap!r} of a network for {geometry} data: give {_WRAPS[geometry]!r}.")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the model card."""
        return asdict(self)


class PrimalDual(nn.Module):
    """Primal-dual network on complex data with any operator, number of coils, angles and pixels.

    One complex scalar, taken from the measurement, normalises a frame and is put back at the end:
    f(c·y) = c·f(y) for every complex c. Operators run in single precision; with ``reduced`` the blocks
    run in bfloat16, and only their corrections carry its rounding. With ``symmetries`` 2, 4 or 8 the image
    blocks' corrections are means over so many reflections and transposes of the image: errors that depend on
    how the image lies cancel, in so many times the blocks' time.
    """

    def __init__(self, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.architecture = a = architecture or Architecture()
        images = [1 + a.reference] + [2 + a.reference] * (a.iterations - 1)
        self.primal = nn.ModuleList(_primal_block(a, k, n) for k, n in enumerate(images))
        self.dual = nn.ModuleList(_dual_block(a) for _ in range(a.iterations - 1))
        # A change is smooth and an update is not: a guided network takes it in through its blocks only.
        self.step = nn.Parameter(torch.full((a.iterations - 1,), 0.0 if a.reference else 1.0))
        self.reduced: torch.dtype | None = None
        self.symmetries = 1

    @property
    def n_parameters(self) -> int:
        """Number of learned values."""
        return sum(p.numel() for p in self.parameters())

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.reduced is None:
            return nullcontext()
        return torch.autocast(device.type, self.reduced)

    @torch.no_grad()
    def _started(self, measured: Tensor, operator: MeasurementOperator) -> Tensor:
        """Return the first image: T⁺ of the measurement, or a few conjugate gradients on TᴴWT f = TᴴW g.

        With several coils the missing spokes are mostly known after these; one coil gains nothing.
        """
        if self.architecture.start == 0 or measured.shape[1] == 1:
            return operator.inverse(measured)
        rest = operator.update(measured)
        image = torch.zeros_like(rest)
        direction, energy = rest, rest.abs().square().sum(dim=(1, 2), keepdim=True)
        for _ in range(self.architecture.start):
            applied = operator.normal(direction)
            curvature = (direction.conj() * applied).real.sum(dim=(1, 2), keepdim=True)
            step = energy / curvature.clamp_min(torch.finfo(energy.dtype).tiny)
            image, rest = image + step * direction, rest - step * applied
            following = rest.abs().square().sum(dim=(1, 2), keepdim=True)
            direction = rest + following / energy.clamp_min(torch.finfo(energy.dtype).tiny) * direction
            energy = following
        return image

    def _correct(self, index: int, images: list[Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return a block's correction, complex64 (batch, y, x), and its memory, which lies as its images did."""
        if self.symmetries == 1:
            return self._corrected(index, images, memory)
        transposed = self.symmetries > len(_MIRRORED)
        mirrored = _MIRRORED[: self.symmetries]
        lying = [torch.cat([image.flip(axes) for axes in mirrored]) for image in images]
        if transposed:
            lying = [torch.cat([image, image.transpose(-2, -1)]) for image in lying]
        corrections, memory = self._corrected(index, lying, memory)
        if transposed:
            upright, turned = corrections.chunk(2)
            corrections = (upright + turned.transpose(-2, -1)) / 2
        parts = corrections.chunk(len(mirrored))
        return torch.stack([part.flip(axes) for part, axes in zip(parts, mirrored, strict=True)]).mean(dim=0), memory

    def _corrected(self, index: int, images: list[Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        block: Any = self.primal[index]
        if isinstance(block, WholeBlock):
            return block(images, memory)
        rows, columns = images[0].shape[-2:]
        bottom, right = -rows % block.multiple, -columns % block.multiple
        channels = torch.cat([as_real(image) for image in images], dim=1)
        if bottom or right:
            channels = functional.pad(channels, (0, right, 0, bottom))
        with self._precision(channels.device):
            correction, memory = block(channels.to(_dtype_of(block)), memory)
        return as_complex(correction)[..., :rows, :columns], memory

    def _refine(self, index: int, residual: Tensor, measured: Tensor, context: Tensor) -> Tensor:
        block = self.dual[index]
        if isinstance(block, WholeBlock):
            return block(residual, measured, context)
        batch, coils, angles, detector = residual.shape
        flat = residual.reshape(batch * coils, angles, detector)
        known = context.to(flat.real.dtype).expand(-1, angles, detector)
        channels = torch.cat(
            [
                as_real(flat),
                as_real(measured.reshape(flat.shape)),
                known.expand(batch * coils, -1, -1, -1),
            ],
            dim=1,
        )
        with self._precision(channels.device):
            correction = block(channels.to(_dtype_of(block)))
        return residual + as_complex(correction).reshape(residual.shape)

    def forward(
        self,
        measured: Tensor,
        operator: MeasurementOperator,
        reference: Tensor | None = None,
        initial: Tensor | None = None,
        still: Tensor | None = None,
    ) -> Tensor:
        """Return the image, complex64 (batch, y, x), in units of the object.

        Parameters
        ----------
        measured
            complex64 (batch, coil, angle, detector) in the operator's order.
        operator
            The measurement; its T and T⁺ run in single precision.
        reference
            Pre-heating image, complex64 (batch, y, x), for a reference-guided network, which then
            reconstructs the change.
        initial
            The first image where it is at hand already.
        still
            bool (batch, y, x): what of the reference cannot change (fat, whose phase heat does not turn); a guided
            network then looks for the change elsewhere, up to its very border.
        """
        if reference is not None:
            return self._changed(measured, operator, reference, still)
        image = self._started(measured, operator) if initial is None else initial
        scale = intensity_scale(image)
        image = image / scale[:, None, None]
        measured = measured / scale[:, None, None, None]
        correction, memory = self._correct(0, [image], None)
        image = image + correction
        context = operator.context()
        for index in range(1, self.architecture.iterations):
            residual = measured - operator.forward(image)
            update = operator.update(self._refine(index - 1, residual, measured, context))
            correction, memory = self._correct(index, [image, update], memory)
            image = image + self.step[index - 1] * update + correction
        return image * scale[:, None, None]

    def _changed(
        self, measured: Tensor, operator: MeasurementOperator, reference: Tensor, still: Tensor | None
    ) -> Tensor:
        """Return reference + change: what both scans have in common never enters the blocks.

        The blocks work in the frame of the reference's phase and their answer is multiplied by the
        reference: a heated tissue turns, f = r·exp(iφ), so that what they have to find is as smooth as
        the heat, whatever the anatomy. Beside the change c they see |r| and Im(c)·|r|/(|r|² + ε), the
        phase that it means.
        """
        scale = intensity_scale(reference)
        before = reference / scale[:, None, None]
        measured = measured / scale[:, None, None, None]
        modulus = before.abs()
        turn = before / modulus.clamp_min(torch.finfo(modulus.dtype).tiny)
        free = torch.ones_like(modulus) if still is None else (~still).to(modulus.dtype)
        back, gain = turn.conj(), free * (before + 0.05 * turn)
        change = operator.inverse(measured - operator.forward(before)) * back
        guide = torch.complex(modulus, change.imag * modulus / (modulus.square() + 0.01))
        correction, memory = self._correct(0, [change, guide], None)
        image = before + gain * correction
        context = operator.context()
        for index in range(1, self.architecture.iterations):
            residual = measured - operator.forward(image)
            update = operator.update(self._refine(index - 1, residual, measured, context))
            correction, memory = self._correct(index, [(image - before) * back, update * back, guide], memory)
            image = image + free * self.step[index - 1] * update + gain * correction
        if not self.training:
            image = self.settled(image, measured, operator, free)
        return image * scale[:, None, None]

    @torch.no_grad()
    def settled(self, image: Tensor, measured: Tensor, operator: MeasurementOperator, free: Tensor) -> Tensor:
        """Return an image turned by the phase that its residual still shows.

        Blocks that were trained on examples shrink what is rare in them. The least-squares phase of the
        residual over a Gaussian neighbourhood, φ = G∗Im(T⁺(g − T f)·f*) / G∗|f|², has no such preference. Over
        wide neighbourhoods even few spokes are a full set, so that it is unbiased and has little noise. Over
        narrow ones it is noise nearly everywhere: φ counts by 1 − (least/z)², the non-negative garrote (Breiman
        1995, 10.1080/00401706.1995.10484371), z being φ over its SD, of which the body's median tells the scale.
        Where ``free`` (batch, y, x) is 0 and not 1 the image stays, and has no part in its neighbours' means.
        """
        for width, least in self.architecture.closing:
            update = operator.update(measured - operator.forward(image))
            energy = free * image.abs().square()
            taps = _gaussian(width, energy)
            shown, weight = _smoothed(torch.stack([free * (update * image.conj()).imag, energy], dim=1), taps).unbind(
                dim=1
            )
            floor = 1e-3 * weight.amax(dim=(1, 2), keepdim=True)
            phase = shown / (weight + floor).clamp_min(torch.finfo(weight.dtype).tiny)
            if least > 0:
                # White noise of an image has in the sum the variance G²∗|f|².
                spread = _smoothed(energy[:, None], taps.square())[:, 0]
                score = shown.abs() / (spread + 1e-3 * spread.amax(dim=(1, 2), keepdim=True)).sqrt()
                body = torch.where(weight > 10 * floor, score, torch.nan).flatten(1)
                scale = _GAUSSIAN_MAD * body.nanmedian(dim=1).values[:, None, None]
                phase = phase * (1 - (least * scale / score.clamp_min(torch.finfo(score.dtype).tiny)).square()).relu()
            image = image * torch.polar(torch.ones_like(phase), free * phase)
        return image


def intensity_scale(image: Tensor) -> Tensor:
    """Return one complex scalar per image, (batch,), that rotates and scales with it.

    Its modulus is the 99th percentile of the modulus; its phase that of Σ f·|f|, the intensity-weighted
    mean. An all-zero image has the scale 1.
    """
    modulus = image.abs().flatten(1)
    rank = max(1, round(0.99 * modulus.shape[1]))
    top = modulus.kthvalue(rank, dim=1).values
    mean = (image.flatten(1) * modulus).sum(dim=1)
    length = mean.abs()
    phase = torch.where(length > 0, mean / length.clamp_min(torch.finfo(length.dtype).tiny), torch.ones_like(mean))
    return torch.where(top > 0, top, torch.ones_like(top)) * phase


def _gaussian(width: float, like: Tensor) -> Tensor:
    """Return the taps of a Gaussian of this standard deviation, pixels; their sum is 1."""
    reach = math.ceil(3 * width)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device) / width).square())
    return taps / taps.sum()


def _smoothed(images: Tensor, taps: Tensor) -> Tensor:
    """Return real images (batch, channel, y, x) convolved with the taps in both directions; zero beyond the edges."""
    channels, reach = images.shape[1], len(taps) // 2
    kernel = taps.expand(channels, 1, 1, -1)
    rows = functional.conv2d(images, kernel, padding=(0, reach), groups=channels)
    return functional.conv2d(rows, kernel.transpose(2, 3), padding=(reach, 0), groups=channels)


def _primal_block(a: Architecture, index: int, images: int) -> nn.Module:
    if a.primal == "convolutions":
        width = a.primal_features[0]
        if a.layers == "complex":
            return ComplexImageBlock(images, features=width)
        return ImageBlock(2 * images, 2, features=width)
    memory_in, memory_out = a.memory if index else 0, a.memory if index + 1 < a.iterations else 0
    if a.layers == "complex":
        return ComplexUNet(images, features=a.primal_features, memory_in=memory_in, memory_out=memory_out)
    return UNet(2 * images, 2, features=a.primal_features, memory_in=memory_in, memory_out=memory_out)


def _dual_block(a: Architecture) -> nn.Module:
    if a.layers == "complex":
        return ComplexDualBlock(2, a.context, features=a.dual_features, layers=a.dual_layers, wrap=a.wrap)
    return DualBlock(4 + a.context, features=a.dual_features, layers=a.dual_layers, wrap=a.wrap)


def _dtype_of(block: nn.Module) -> torch.dtype:
    """Return the precision of a block's weights: what its input must have."""
    return next(block.parameters()).dtype
