"""Density compensation of radial samples: the area of k-space that each sample stands for."""

import math
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from sinotherm.core.arrays import FloatArray, SampleMask, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling, angular_gaps
from sinotherm.errors import SettingsError

__all__ = [
    "MOST_ACROSS",
    "AngularWeights",
    "CentreRule",
    "RadialFilter",
    "angular_weights",
    "central_weights",
    "lone_factors",
    "parallel_shift",
    "perpendicular_shift",
    "radial_weights",
    "ramp_shift",
    "readout_weights",
    "resolution",
]

RadialFilter: TypeAlias = Literal["ramp", "hann"]
AngularWeights: TypeAlias = Literal["equal", "gaps"]
CentreRule: TypeAlias = Literal["area", "exact"]

MOST_ACROSS: Final = 0.25
"""Samples by which a spoke may miss the centre of k-space sideways before its weights are made anew."""
_WIDEST_GAP: Final = 2.0 * math.pi / 3.0
"""Largest gap between spokes, rad, up to which they are taken to look in all directions of a full turn."""
_ROUNDS: Final = 10
_LEAST_DENSITY: Final = 1e-3


def _refuse_unknown(what: str, given: str, known: Any) -> None:
    """Raise a `SettingsError` for what is none of the known choices: it would be taken for another one."""
    if given not in get_args(known):
        raise SettingsError(f"{what} {given!r}: give one of {', '.join(get_args(known))}.")


def readout_weights(
    sampling: RadialSampling,
    radial_filter: RadialFilter = "ramp",
    *,
    centre: CentreRule = "exact",
    offset: float | FloatArray = 0.0,
) -> FloatArray:
    """Return the weights of the samples of one spoke per radian of spoke angle, float64 (…, readout).

    A sample at radius κ stands for the ring sector between κ ± Δκ/2: Δκ·|κ| per radian, and
    κ² + Δκ²/4 where the sector holds the centre of k-space (Δκ²/4 at κ = 0). With a weight of 0
    there the image would lose its mean.

    Parameters
    ----------
    sampling
        Where the samples lie.
    radial_filter
        ``ramp``; or ``hann``: the ramp times (1 + cos(πκ/κ_max))/2.
    centre
        ``area``: the classical weights above. They treat the signal as constant over a sample, which
        adds π·Δκ²/12·Σ_x f(x) to every pixel of an image made of them (2.6 % of the object where it
        fills 40 % of a 256² image). ``exact``: Δκ²/12 less at κ = 0, shared by the two samples next
        to it: the Euler-Maclaurin term of ∫|κ|·g(κ) dκ for a smooth g, which removes that pedestal.
    offset
        Shift of the samples along the spoke (gradient delay), cycles per pixel; axes of its own lead.

    Raises
    ------
    SettingsError
        The filter or the rule of the centre is unknown.
    """
    _refuse_unknown("radial_filter", radial_filter, RadialFilter)
    _refuse_unknown("centre", centre, CentreRule)
    radius = np.abs(sampling.positions + np.asarray(offset)[..., None])
    half = sampling.spacing / 2.0
    weights = np.where(radius >= half, sampling.spacing * radius, radius**2 + half**2)
    if centre == "exact":
        weights = weights - sampling.spacing**2 / 12.0 * np.maximum(1.0 - radius / sampling.spacing, 0.0)
    if radial_filter == "hann":
        edge = sampling.n_readout * sampling.spacing / 2.0
        weights = weights * (0.5 + 0.5 * np.cos(np.pi * np.minimum(radius / edge, 1.0)))
    return weights


def parallel_shift(angles: SpokeAngles, shifts: SpokeShifts) -> FloatArray:
    """Return the part of each spoke's shift that runs along the spoke, cycles per pixel, (…, spoke)."""
    return np.cos(angles) * shifts[..., 0] + np.sin(angles) * shifts[..., 1]


def perpendicular_shift(angles: SpokeAngles, shifts: SpokeShifts) -> FloatArray:
    """Return by how much each spoke misses the centre of k-space, to its left, cycles per pixel, (…, spoke)."""
    return np.cos(angles) * shifts[..., 1] - np.sin(angles) * shifts[..., 0]


def ramp_shift(angles: SpokeAngles, shifts: SpokeShifts) -> FloatArray:
    """Return by how much the ramp of each spoke is displaced, cycles per pixel, (spoke,).

    Samples k = κ·n + d(θ) stand for |∂k/∂κ × ∂k/∂θ| = |κ + n⊥·∂d/∂θ|. A delay of the gradients is linear in the
    direction, d = M·n, so that ∂d/∂θ = M·n⊥: where the delays of x and y differ, the ramp of a spoke along x is
    displaced by the delay of y. What is not linear in n counts along the spoke.
    """
    along = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    shifts = np.asarray(shifts, dtype=np.float64)
    matrix, _, rank, _ = np.linalg.lstsq(along, shifts, rcond=1e-6)
    if rank < along.shape[1]:
        return np.asarray(np.sum(along * shifts, axis=-1))
    return np.asarray(np.sum(across * (across @ matrix) + along * (shifts - along @ matrix), axis=-1))


def angular_weights(angles: SpokeAngles, weights: AngularWeights) -> FloatArray:
    """Return the angle that each spoke stands for, rad, float64 (spoke,); see `radial_weights`, errors too."""
    _refuse_unknown("weights", weights, AngularWeights)
    return np.full(len(angles), math.pi / len(angles)) if weights == "equal" else angular_gaps(angles)


def lone_factors(
    angles: SpokeAngles, sampling: RadialSampling, measured: SampleMask, weights: AngularWeights
) -> FloatArray:
    """Return what partial echoes multiply the weights by, float64 (spoke or 1, readout).

    Where a spoke was measured on one side of k = 0 only, a ring of k-space is left to half as many samples, each of
    which stands for twice the angle: for its gaps over the full turn where ``weights`` is ``gaps``. That holds for
    spokes in all directions of a full turn. Those of a half turn leave a side of k-space empty, which no weights make
    good: factors of 1, as in a scan of full spokes.

    Parameters
    ----------
    angles, sampling, weights
        As in `radial_weights`.
    measured
        bool (readout,): the samples of every spoke that were measured.
    """
    if measured.all():
        return np.ones((1, sampling.n_readout))
    opposite = np.floor(2.0 * sampling.centre + 0.5 - np.arange(sampling.n_readout)).astype(np.int64)
    inside = (opposite >= 0) & (opposite < sampling.n_readout)
    # A full spoke of an even length has one sample more on one side.
    lone = measured & inside & ~measured[np.where(inside, opposite, 0)]
    directions = np.sort(np.mod(angles, 2.0 * math.pi))
    if not lone.any() or np.diff(directions, append=directions[0] + 2.0 * math.pi).max() > _WIDEST_GAP:
        return np.ones((1, sampling.n_readout))
    # θ/2 has the neighbours mod π that θ has mod 2π.
    turn = 2.0 * angular_weights(np.asarray(angles) / 2.0, weights) / angular_weights(angles, weights)
    return np.where(lone, turn[:, None], 1.0)


def radial_weights(
    angles: SpokeAngles,
    sampling: RadialSampling,
    *,
    weights: AngularWeights = "equal",
    radial_filter: RadialFilter = "ramp",
    centre: CentreRule = "exact",
    shifts: SpokeShifts | None = None,
    measured: SampleMask | None = None,
) -> FloatArray:
    """Return density weights, float64 (spoke, readout), so that f(x) = Σ w·s·exp(+2πi k·x) keeps the amplitude.

    Parameters
    ----------
    angles
        Spoke angles, rad.
    sampling
        Where the samples lie on each spoke.
    weights
        ``equal``: each spoke stands for π/S; ``gaps``: for half the angular distance to its neighbours.
    radial_filter, centre
        As in `readout_weights`.
    shifts
        Offsets of the spokes, cycles per pixel, (spoke, 2); their part along the spoke displaces the ramp. Where any
        spoke misses the centre sideways by more than a quarter of a sample, the ramp follows the Jacobian
        (`ramp_shift`) and the weights around the centre are made anew (`central_weights`).
    measured
        Samples that were measured, bool (readout,), where echoes are partial: see `lone_factors`.

    Raises
    ------
    SettingsError
        The weights, the filter or the rule of the centre are unknown.
    """
    if measured is not None and not measured.all():
        whole = radial_weights(
            angles, sampling, weights=weights, radial_filter=radial_filter, centre=centre, shifts=shifts
        )
        return whole * lone_factors(angles, sampling, measured, weights)
    gaps = angular_weights(angles, weights)
    rule: dict[str, Any] = {"radial_filter": radial_filter, "centre": centre}
    if shifts is None:
        return gaps[:, None] * readout_weights(sampling, **rule)
    if np.abs(perpendicular_shift(angles, shifts)).max() <= MOST_ACROSS * sampling.spacing:
        return gaps[:, None] * readout_weights(sampling, offset=parallel_shift(angles, shifts), **rule)
    found = gaps[:, None] * readout_weights(sampling, offset=ramp_shift(angles, shifts), **rule)
    return central_weights(angles, sampling, shifts, found)


def central_weights(
    angles: SpokeAngles, sampling: RadialSampling, shifts: SpokeShifts, weights: FloatArray
) -> FloatArray:
    """Return density weights, float64 (spoke, readout), made anew where spokes miss the centre of k-space.

    Where neighbours cross, no spoke's own sector tells the area of a sample. Pipe and Menon 1999,
    10.1002/(SICI)1522-2594(199901)41:1<179::AID-MRM25>3.0.CO;2-V: w ← w/(C∗w), until what all samples stand
    for adds up to 1 at each of them. C is a jinc², the transform of the overlap of two discs half as wide as
    the field of view that the readout resolves. Only where spokes lie as close as that, within
    S/(π·matrix) of the centre and a quarter of its edge, and blended into the given weights outside.

    Parameters
    ----------
    angles, sampling, shifts
        As in `radial_weights`.
    weights
        float64 (spoke, readout), cycles² per pixel²: those of spokes through the centre.
    """
    from sinotherm.operators.nufft import FinufftPlan, radial_points

    points = radial_points(angles, sampling, shifts)
    edge = 0.5 * sampling.n_readout * sampling.spacing
    reach = min(0.25 * edge, 2.0 * len(angles) * sampling.spacing / math.pi)
    radius = np.hypot(points[..., 0], points[..., 1])
    near = radius < 1.5 * reach
    # The neighbourhood of the centre is an image of its own, with pixels as large as its k-space is small.
    scale = 0.45 / (1.5 * reach)
    radius_px = 0.5 / (sampling.spacing * scale)
    side = 2 * math.ceil(radius_px)
    place = np.arange(side) - side // 2
    distance = np.minimum(np.hypot(place[:, None], place) / radius_px, 1.0)
    overlap = (np.arccos(distance) - distance * np.sqrt(1.0 - distance**2)) * (2.0 / math.pi)
    overlap = overlap.astype(np.float32)
    plan = FinufftPlan((side, side), 1).set_points(points[near] * scale)
    given = weights[near] * scale**2
    blend = np.clip((radius[near] - reach) / (0.5 * reach), 0.0, 1.0)
    found = given
    for _ in range(_ROUNDS):
        density = plan.forward(plan.adjoint(found[None].astype(np.complex64)) * overlap)[0].real
        found = blend * given + (1.0 - blend) * found / np.maximum(density, _LEAST_DENSITY)
    result = weights.copy()
    result[near] = found / scale**2
    return result


def resolution(sampling: RadialSampling, radial_filter: RadialFilter = "ramp") -> float:
    """Return the full width at half maximum of the point spread function, pixels.

    h(r) = 2π ∫ H(κ)·J₀(2πκr)·κ dκ up to κ_max, H the window; without one, h ∝ J₁(a)/a with
    a = 2πκ_max·r and the width is 0.7051/κ_max (1.41 pixels at κ_max = 1/2).

    Raises
    ------
    SettingsError
        The filter is unknown.
    """
    from scipy.optimize import brentq
    from scipy.special import j0

    _refuse_unknown("radial_filter", radial_filter, RadialFilter)
    edge = sampling.n_readout * sampling.spacing / 2.0
    nodes, quadrature = np.polynomial.legendre.leggauss(64)
    radius = (nodes + 1.0) * edge / 2.0
    window = 0.5 + 0.5 * np.cos(np.pi * radius / edge) if radial_filter == "hann" else np.ones_like(radius)
    weights = quadrature * radius * window
    half = brentq(lambda r: weights @ j0(2.0 * np.pi * radius * r) / weights.sum() - 0.5, 0.0, 0.7 / edge)
    return 2.0 * float(half)
