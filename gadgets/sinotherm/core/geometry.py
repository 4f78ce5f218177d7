"""Radial geometry: where the samples of a spoke lie, and how spokes follow each other.

Conventions of the whole package: a spoke at angle θ samples k = κ·(cos θ, sin θ), where the first
component belongs to the image column x and the second to the row y; κ is in cycles per pixel of the
reconstructed grid; data = Σ_x f(x)·exp(−2πi k·x), pixel n//2 being x = 0. The projection at the
same angle θ has its detector axis s along (cos θ, sin θ): spoke angle and projection angle are equal.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np

from sinotherm.core.arrays import FloatArray, SpokeAngles
from sinotherm.errors import SettingsError

__all__ = [
    "GOLDEN_ANGLE",
    "TINY_GOLDEN_ORDER",
    "AngleSchedule",
    "RadialSampling",
    "angular_gaps",
    "angular_order",
    "spoke_angles",
    "tiny_golden_angle",
]

GOLDEN_ANGLE: Final = math.pi * (math.sqrt(5.0) - 1.0) / 2.0
"""Golden-angle increment, rad (111.246117975°). Winkelmann et al. 2007, 10.1109/TMI.2006.885337."""

TINY_GOLDEN_ORDER: Final = 7
"""Order of the tiny golden angle where none is given."""

AngleSchedule: TypeAlias = Literal["uniform180", "uniform360", "golden", "tiny_golden", "raga"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RadialSampling:
    """Positions of the samples on a spoke.

    Attributes
    ----------
    n_readout
        Samples on a spoke, readout oversampling included.
    spacing
        Distance of neighbouring samples, cycles per pixel of the reconstructed grid
        (1/(2N) for a twofold oversampled readout of an N×N image).
    centre
        Sample index (may be fractional) at which the spoke crosses k = 0.
    """

    n_readout: int
    spacing: float
    centre: float

    @property
    def positions(self) -> FloatArray:
        """κ of every sample, float64 (readout,), cycles per pixel."""
        return (np.arange(self.n_readout) - self.centre) * self.spacing


def tiny_golden_angle(order: int) -> float:
    """Return the increment of the tiny golden angle of this order in rad, π/(τ + order − 1).

    Order 1 is the golden angle's π/τ. Wundrak et al. 2015, 10.1109/TMI.2014.2382572.

    Raises
    ------
    SettingsError
        The order is below 1.
    """
    if order < 1:
        raise SettingsError(f"tiny golden angle of order {order}: the order must be 1 or more.")
    return math.pi / ((1.0 + math.sqrt(5.0)) / 2.0 + order - 1)


def spoke_angles(
    schedule: AngleSchedule,
    n_spokes: int,
    *,
    first: int = 0,
    per_frame: int | None = None,
    order: int = TINY_GOLDEN_ORDER,
) -> SpokeAngles:
    """Return the angles of ``n_spokes`` spokes of a schedule, rad, float64 (spoke,).

    Parameters
    ----------
    schedule
        ``uniform180``/``uniform360``: equidistant over a half or full turn, the same in every frame.
        ``golden``: 111.246° increments; ``tiny_golden``: of the given order; ``raga``: rational
        approximation of the golden angle on ``per_frame`` equidistant angles over 180°, which
        repeats exactly. Scholand et al. 2025, 10.1002/mrm.30247.
    first
        Counter of the first spoke since the start of the scan.
    per_frame
        Spokes of a frame; needed by all but the golden schedules; defaults to ``n_spokes``.
    order
        Order of the tiny golden angle.

    Raises
    ------
    SettingsError
        The schedule is unknown, a frame has no spoke, or the order is below 1.
    """
    if schedule not in get_args(AngleSchedule):
        raise SettingsError(f"schedule {schedule!r}: give one of {', '.join(get_args(AngleSchedule))}.")
    count = np.arange(first, first + n_spokes, dtype=np.float64)
    period = n_spokes if per_frame is None else per_frame
    if schedule == "golden":
        return count * GOLDEN_ANGLE
    if schedule == "tiny_golden":
        return count * tiny_golden_angle(order)
    if period < 1:
        raise SettingsError(f"{period} spokes a frame: a frame needs at least one spoke.")
    if schedule == "raga":
        # The step closest to the golden angle that visits all angles before it repeats.
        step = min(
            (s for s in range(1, period + 1) if math.gcd(s, period) == 1),
            key=lambda s: abs(s / period - GOLDEN_ANGLE / math.pi),
        )
        return (count * step % period) * (math.pi / period)
    turn = math.pi if schedule == "uniform180" else 2.0 * math.pi
    return (count % period) * (turn / period)


def angular_order(angles: SpokeAngles) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of the spokes by θ mod π, and which of them run backwards.

    Returns
    -------
    order
        int64 (spoke,): ``angles[order] % π`` ascends.
    flipped
        bool (spoke,), in the order of acquisition: True where θ mod 2π ≥ π, so that the spoke (and
        its detector axis) must be reversed to stand at θ mod π.
    """
    # An angle a rounding error below a half turn stands at 0 of the next one.
    half_turns = np.floor(np.asarray(angles, dtype=np.float64) / math.pi + 1e-9)
    folded = np.maximum(angles - half_turns * math.pi, 0.0)
    return np.argsort(folded, kind="stable"), half_turns.astype(np.int64) % 2 == 1


def angular_gaps(angles: SpokeAngles) -> FloatArray:
    """Return the angle that each spoke stands for, rad, float64 (spoke,); they add up to π.

    Half the distance to each neighbour by θ mod π; spokes at the same place share it equally.
    """
    n = len(angles)
    if n == 1:
        return np.array([math.pi])
    order, _ = angular_order(angles)
    half_turns = np.floor(np.asarray(angles, dtype=np.float64) / math.pi + 1e-9)
    folded = np.maximum(angles - half_turns * math.pi, 0.0)[order]
    starts = np.flatnonzero(np.r_[True, np.diff(folded) > 1e-9])
    places, counts = folded[starts], np.diff(np.r_[starts, n])
    if len(places) == 1:
        share = np.array([math.pi])
    else:
        ring = np.r_[places[-1] - math.pi, places, places[0] + math.pi]
        share = (ring[2:] - ring[:-2]) / 2.0
    gaps = np.empty(n)
    gaps[order] = np.repeat(share / counts, counts)
    return gaps
