"""The guard: whether a network is within its range and its image explains the measurement.

Two residuals are formed on the sinogram. Every eighth spoke is left out, the network reconstructs from
the others, and its image must predict the spokes that it never saw; and the shown image must explain
every spoke that it was made from. Both are relative, and free of the expected noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import WeightsError
from sinotherm.networks.weights import ModelCard

__all__ = ["Guard", "Verdict", "estimate_snr", "held_out_spokes", "relative_residual"]

LEAVE_OUT: Final = 8
NOISE_BAND: Final = 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the guard trips, why, and the numbers it saw."""

    trips: bool
    reason: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


def held_out_spokes(n_spokes: int, frame: int = 0) -> np.ndarray:
    """Return which spokes (by θ mod π) are left out, bool (spoke,): every eighth, moving on by one a frame."""
    return np.arange(n_spokes) % LEAVE_OUT == (LEAVE_OUT // 2 + frame) % LEAVE_OUT


def noise_energy(samples: Tensor, sampling: RadialSampling) -> Tensor:
    """Return the noise energy E|n|² of a sample, float (), from the edge of k-space.

    The median over the samples beyond |κ| = 0.45: there noise outweighs all but sharp edges, and the
    median of an exponential is its mean times ln 2.
    """
    edge = torch.from_numpy(np.abs(sampling.positions) > NOISE_BAND * sampling.spacing * sampling.n_readout)
    energy = samples[..., edge.to(samples.device)].abs().square().flatten()
    return energy.median() / float(np.log(2.0))


def relative_residual(samples: Tensor, predicted: Tensor, noise: Tensor) -> Tensor:
    """Return √((‖d − p‖² − n·E)/(‖d‖² − n·E)) of each spoke, (spoke,), at most 10.

    Parameters
    ----------
    samples, predicted
        complex64 (coil, spoke, readout).
    noise
        E: noise energy of a sample.
    """
    expected = noise * samples.shape[0] * samples.shape[-1]
    energy = samples.abs().square().sum(dim=(0, 2))
    left = (samples - predicted).abs().square().sum(dim=(0, 2))
    # Where there is no signal above the noise nothing was predicted: the residual counts as whole.
    floor = 0.01 * expected + torch.finfo(energy.dtype).tiny
    signal = torch.maximum(energy - expected, floor)
    error = torch.maximum(left - expected, torch.zeros_like(left))
    ratio = torch.sqrt(error / signal)
    return torch.where(energy - expected > floor, ratio, torch.ones_like(ratio)).clamp_max(10.0)


def estimate_snr(image: Tensor, noise: float, sampling: RadialSampling) -> float:
    """Return the SNR of the evaluation protocol from an image and the noise energy of a sample.

    Median modulus over the body (above 5 % of the maximum) over the SD of the real part in the combined
    reconstruction of 402 spokes.
    """
    modulus = image.abs()
    body = modulus[modulus > 0.05 * modulus.max()]
    if len(body) == 0 or noise <= 0:
        return 0.0 if len(body) == 0 else float("inf")
    weights = sampling.spacing * np.abs(sampling.positions) * (np.pi / 402)
    deviation = (noise / 2) ** 0.5 * (402 * float(np.square(weights).sum())) ** 0.5
    return float(body.median()) / deviation


class Guard:
    """Compares a frame with the network's model card.

    Parameters
    ----------
    card
        Ranges and limits.
    """

    def __init__(self, card: ModelCard) -> None:
        self.card = card

    def require_limits(self) -> None:
        """Check that there are limits to compare residuals with.

        Raises
        ------
        WeightsError
            The card has none.
        """
        if not self.card.guard.spokes:
            raise WeightsError(
                f"the model card of {self.card.name} has no guard limits, so that no residual would ever trip: set "
                "them by sinotherm train CONFIG --package, or do without a guard (pdunet.guard = false)."
            )

    def range_verdict(self, *, spokes: int, coils: int, pixels: int, fov_m: float, snr: float) -> Verdict:
        """Return whether a frame lies outside what the network was trained on."""
        numbers = {
            "spokes": float(spokes),
            "coils": float(coils),
            "pixels": float(pixels),
            "fov_m": fov_m,
            "snr": snr,
        }
        for name, value in numbers.items():
            low, high = getattr(self.card.valid, name)
            if not low <= value <= high:
                return Verdict(
                    trips=True,
                    reason=f"{name} {value:.4g} outside {low:g} to {high:g} of {self.card.name}",
                    numbers=numbers,
                )
        return Verdict(trips=False, numbers=numbers)

    def residual_verdict(self, *, spokes: int, held_out: float, spoke: float) -> Verdict:
        """Return whether the residuals exceed the limits set on validation people.

        Raises
        ------
        WeightsError
            As `require_limits`.
        """
        self.require_limits()
        numbers = {"held_out": held_out, "spoke": spoke}
        for name, value in numbers.items():
            limit = float(np.interp(spokes, self.card.guard.spokes, getattr(self.card.guard, name)))
            if not value <= limit:
                return Verdict(
                    trips=True, reason=f"{name} residual {value:.3g} above its limit {limit:.3g}", numbers=numbers
                )
        return Verdict(trips=False, numbers=numbers)
