"""Complex radial sinogram with coil sensitivities: the operator of the radial networks."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sinotherm.core.arrays import ComplexArray, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling, angular_order
from sinotherm.networks.blocks import mirror_detector
from sinotherm.operators.density import AngularWeights, angular_weights, radial_weights
from sinotherm.operators.nufft import Nufft, NufftBackend, radial_points

if TYPE_CHECKING:
    from sinotherm.operators.gridded import GriddedSinogram

__all__ = ["FullSinogram", "RadialSinogram", "SinogramBackend", "upsample"]

SinogramBackend: TypeAlias = NufftBackend | Literal["fused"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FullSinogram:
    """A sinogram without gaps.

    Attributes
    ----------
    sinogram
        complex64 (batch, coil, angle, detector), detector axis along θ mod π.
    angles
        θ mod π of each projection, ascending, rad, (angle,).
    measured
        bool (angle,): which projections were measured; the others are of the image.
    """

    sinogram: Tensor
    angles: SpokeAngles
    measured: np.ndarray


class RadialSinogram:
    """T: image → complex sinograms of all coils; T⁺: filtered back-projection, coil-combined.

    The sinogram is the 1D inverse Fourier transform of each spoke (Fourier slice theorem), evaluated
    with a non-uniform FFT rather than line integrals, so that it is exact to the NUFFT's accuracy at any
    angle. Inside, spokes stand in the order of θ mod π with the detector axis along θ mod π; `order` and
    `restore` go there and back, so that results do not depend on the order of acquisition.

    Parameters
    ----------
    sampling
        Samples on a spoke.
    angles
        Spoke angles in order of acquisition, rad, (spoke,).
    n_pixels
        Rows and columns of the image; their inverse is the Nyquist step between spokes.
    maps
        complex64 (coil, y, x) or (batch, coil, y, x), Σ|s|² = 1; ``None``: one coil of sensitivity 1.
    shifts
        Offset of each spoke in order of acquisition, cycles per pixel, (spoke, 2).
    equal
        Whether T⁺ weights all spokes alike (π/S) instead of by their angular gaps.
    device
        Where it works; that of the maps by default, or the CPU.
    backend
        Of the NUFFT, or ``fused``: T and T⁺ in one go coil by coil, for the CPU, without gradients.
    """

    def __init__(
        self,
        sampling: RadialSampling,
        angles: SpokeAngles,
        *,
        n_pixels: int,
        maps: Tensor | None = None,
        shifts: SpokeShifts | None = None,
        equal: bool = False,
        device: torch.device | str | None = None,
        backend: SinogramBackend = "auto",
    ) -> None:
        self.maps = maps
        self.sampling, self.angles = sampling, angles
        self.n_spokes = len(angles)
        device = maps.device if device is None and maps is not None else torch.device(device or "cpu")
        order, flipped = angular_order(angles)
        spread: AngularWeights = "equal" if equal else "gaps"
        gaps = angular_weights(angles, spread)
        self.nufft = Nufft.radial(
            np.asarray(angles)[order],
            sampling,
            (n_pixels, n_pixels),
            shifts=None if shifts is None else np.asarray(shifts)[order],
            backend="auto" if backend == "fused" else backend,
        )
        self.order_index = torch.from_numpy(np.ascontiguousarray(order)).to(device)
        self._flipped = torch.from_numpy(flipped[order]).to(device) if flipped.any() else None
        n = sampling.n_readout
        weights = radial_weights(angles, sampling, weights=spread, centre="exact", shifts=shifts)[order]
        kappa = np.abs(sampling.positions)
        self.weights = torch.from_numpy(weights.astype(np.float32)).to(device)
        # Where spokes are sparser than Nyquist, full density compensation makes T⁺T an amplification
        # (12-fold at the edge of k-space with 32 spokes at N = 256); a gap counts as one Nyquist step at most.
        limit = np.minimum(1.0, 1.0 / np.maximum(n_pixels * kappa[None, :] * gaps[order][:, None], 1e-12))
        self.update_weights = torch.from_numpy((weights * limit).astype(np.float32)).to(device)
        self.gaps = torch.from_numpy((gaps[order] * self.n_spokes / math.pi).astype(np.float32)).to(device)
        # A spoke whose centre lies between samples turns into a phase ramp along the detector.
        offset = (n // 2 - sampling.centre) * sampling.spacing
        position = (np.arange(n) - n // 2) / (n * sampling.spacing)
        self._ramp = (
            torch.from_numpy(np.exp(2j * math.pi * offset * position).astype(np.complex64)).to(device)
            if abs(offset) > 1e-9
            else None
        )
        self._fused: GriddedSinogram | None = None
        if backend == "fused":
            from sinotherm.operators import gridded

            moved = None if shifts is None else np.asarray(shifts)[order]
            self._fused = gridded.GriddedSinogram(
                radial_points(np.asarray(angles)[order], sampling, moved),
                (n_pixels, n_pixels),
                centre=sampling.centre,
                mirrored=flipped[order],
            )
            self._weightings = {
                kind: self._fused.weighting(values.numpy())
                for kind, values in (("full", self.weights), ("limited", self.update_weights))
            }
            self._profiles = self._profiles_of(maps)

    def with_maps(self, maps: Tensor | None) -> Self:
        """Return the same measurement with other coil maps; plans and points are shared."""
        other = copy.copy(self)
        if self._fused is not None and maps is not self.maps:
            other._profiles = self._profiles_of(maps)
        other.maps = maps
        return other

    def _profiles_of(self, maps: Tensor | None) -> list[ComplexArray]:
        """Return what images are multiplied with, one for each item of a batch, or one for all."""
        if self._fused is None:
            return []
        plan = self._fused.plan
        if maps is None:
            return [plan.scaling]
        return [plan.profile(item.numpy()) for item in (maps if maps.ndim == 4 else maps[None])]

    def _each(self, batch: Tensor) -> Iterator[tuple[ComplexArray, ComplexArray]]:
        """Yield the items of a batch with their profiles."""
        items = batch.detach().resolve_conj().numpy()
        profiles = self._profiles if len(self._profiles) > 1 else self._profiles * len(items)
        return zip(items, profiles, strict=True)

    def to_sinogram(self, samples: Tensor) -> Tensor:
        """Return the sinograms of samples in this operator's order, both (…, spoke, readout) complex64.

        p(s) = (1/n)·Σ_i d_i·exp(+2πi κ_i s), detector pixel n//2 being s = 0.
        """
        values = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(samples, dim=-1), dim=-1), dim=-1)
        if self._ramp is not None:
            values = values * self._ramp
        return self._mirror(values)

    def to_samples(self, sinogram: Tensor) -> Tensor:
        """Undo `to_sinogram`."""
        values = self._mirror(sinogram)
        if self._ramp is not None:
            values = values * self._ramp.conj()
        return torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(values, dim=-1), dim=-1), dim=-1)

    def _mirror(self, values: Tensor) -> Tensor:
        if self._flipped is None:
            return values
        return torch.where(self._flipped[:, None], mirror_detector(values), values)

    def order(self, samples: Tensor) -> Tensor:
        """Return samples (…, spoke, readout) in order of acquisition as sinograms in this operator's order."""
        return self.to_sinogram(samples[..., self.order_index, :])

    def restore(self, sinogram: Tensor) -> Tensor:
        """Return sinograms of this operator's order as samples in order of acquisition."""
        samples = self.to_samples(sinogram)
        result = torch.empty_like(samples)
        result[..., self.order_index, :] = samples
        return result

    def forward(self, image: Tensor) -> Tensor:
        """T: complex64 (batch, y, x) → (batch, coil, spoke, detector)."""
        if self._fused is not None:
            return torch.from_numpy(np.stack([self._fused.forward(x, profile) for x, profile in self._each(image)]))
        coils = image[:, None] if self.maps is None else image[:, None] * self.maps
        return self.to_sinogram(self.nufft(coils))

    def inverse(self, dual: Tensor) -> Tensor:
        """T⁺: (batch, coil, spoke, detector) → complex64 (batch, y, x), ramp-filtered with the actual gaps."""
        return self._back(dual, "full")

    def update(self, dual: Tensor) -> Tensor:
        """Return T⁺ with the weights limited to Nyquist, so that image + update(g − T image) converges."""
        return self._back(dual, "limited")

    def normal(self, image: Tensor) -> Tensor:
        """Return update(T image): complex64 (batch, y, x) → (batch, y, x)."""
        if self._fused is not None:
            given = self._weightings["limited"]
            return torch.from_numpy(
                np.stack([self._fused.normal(x, profile, given) for x, profile in self._each(image)])
            )
        coils = image[:, None] if self.maps is None else image[:, None] * self.maps
        return self._combined(self.nufft.adjoint(self.nufft(coils) * self.update_weights))

    def _combined(self, coils: Tensor) -> Tensor:
        return coils[:, 0] if self.maps is None else (coils * self.maps.conj()).sum(dim=1)

    def _back(self, dual: Tensor, weighting: Literal["full", "limited"]) -> Tensor:
        if self._fused is not None:
            given = self._weightings[weighting]
            return torch.from_numpy(np.stack([self._fused.back(g, profile, given) for g, profile in self._each(dual)]))
        samples = self.to_samples(dual) * (self.weights if weighting == "full" else self.update_weights)
        return self._combined(self.nufft.adjoint(samples))

    def context(self) -> Tensor:
        """Return the angular gap of each spoke relative to an even spread, (1, spoke, 1)."""
        return self.gaps[None, :, None]


def upsample(image: Tensor, operator: RadialSinogram, measured: Tensor, n_angles: int) -> FullSinogram:
    """Fill the angular gaps of a measurement with projections of an image; measured projections are kept.

    What is missing goes, one after the other, into what is then the widest gap, so that every frame has the same
    number of angles, wherever its spokes lie. Where they lie unevenly, the widest is more than 180°/n_angles.

    Parameters
    ----------
    image
        complex64 (batch, y, x), as a network made it of the measurement.
    operator
        Of the measurement.
    measured
        complex64 (batch, coil, spoke, detector), in the operator's order.
    n_angles
        Angles over 180° of a full set. More spokes than that stay as they are.
    """
    order, _ = angular_order(operator.angles)
    # As in that order, an angle a rounding error below a half turn stands at 0.
    folded = np.maximum(np.mod(operator.angles[order] + 1e-9 * math.pi, math.pi) - 1e-9 * math.pi, 0.0)
    gaps = np.diff(np.append(folded, folded[0] + math.pi))
    parts = np.ones(len(gaps), dtype=np.int64)
    for _ in range(n_angles - len(gaps)):
        parts[np.argmax(gaps / parts)] += 1
    filled = [angle + gap * np.arange(1, n) / n for angle, gap, n in zip(folded, gaps, parts, strict=True)]
    missing = np.mod(np.concatenate(filled), math.pi)
    every = np.concatenate([folded, missing])
    order = np.argsort(every, kind="stable")
    known = (np.arange(len(every)) < len(folded))[order]
    sinogram = measured
    if len(missing):
        places = np.argsort(missing, kind="stable")
        rest = RadialSinogram(operator.sampling, missing[places], n_pixels=image.shape[-1], maps=operator.maps).forward(
            image
        )
        sinogram = measured.new_empty((*measured.shape[:2], len(every), measured.shape[-1]))
        flags = torch.from_numpy(known).to(measured.device)
        sinogram[:, :, flags] = measured
        sinogram[:, :, ~flags] = rest
    return FullSinogram(sinogram=sinogram, angles=every[order], measured=known)
