"""Gradient delay, estimated from the spokes themselves.

Late gradients move every spoke as a whole: sample i of the spoke at angle θ was acquired at
k = κ_i·n − Δ·D·n with n = (cos θ, sin θ), Δ the sample spacing and D the symmetric matrix
((x, xy), (xy, y)) of the delays in samples (dwell times of the readout), positive where the
gradient lags. Peters et al. 2003, Magn. Reson. Med. 50:1 (per axis); Rosenzweig et al.
2019, 10.1002/mrm.27506 (ellipse).
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, FrameData, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import SpokeError

__all__ = ["DelayModel", "GradientDelay", "opposed_delay", "opposed_pairs", "ring_delay"]

DelayModel: TypeAlias = Literal["isotropic", "anisotropic"]

SEARCH: Final = 5.0
"""Largest delay looked for, samples."""
_OVERSAMPLING: Final = 8
_MARGIN: Final = 16
_MAX_PAIRS: Final = 1000
_MOST_COILS: Final = 4
_COARSE_PAIRS: Final = 120
_LEAST_SINE: Final = 0.35
_COARSE_STEPS: Final = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
_STARTS: Final = 24
_REACH: Final = 12.0
_MOST_SPOKES: Final = 64
_CLEARANCE: Final = 3
_RIDGE: Final = 1e-6
_LEAST_ENERGY: Final = 0.02
"""Energy near k = 0, relative to the median spoke's, below which a spoke was not measured or holds noise only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientDelay:
    """Delay of the gradients, in samples of the readout; positive = late.

    Attributes
    ----------
    x, y, xy
        Elements of the symmetric matrix D.
    mismatch
        RMS difference of the values that should agree, relative to the RMS signal there; NaN where
        the delay was given.
    refused
        The estimate that was taken for a failure, and why; empty where the delay is what was estimated or given.
    """

    x: float
    y: float
    xy: float = 0.0
    mismatch: float = math.nan
    refused: str = ""

    def shift(self, angle_rad: float, sampling: RadialSampling) -> tuple[float, float]:
        """Return the k-space offset (kx, ky) of a spoke, cycles per pixel: −Δ·D·n."""
        cosine, sine = math.cos(angle_rad), math.sin(angle_rad)
        return (
            -sampling.spacing * (self.x * cosine + self.xy * sine),
            -sampling.spacing * (self.xy * cosine + self.y * sine),
        )


def ring_delay(
    data: FrameData,
    angles: SpokeAngles,
    sampling: RadialSampling,
    *,
    model: DelayModel = "anisotropic",
    shifts: SpokeShifts | None = None,
) -> GradientDelay:
    """Return the delay with which all spokes agree where they intersect (RING).

    Two spokes that are not parallel cross once, and there they have measured the same value in
    every coil. Rosenzweig et al. find each crossing by itself and fit the delays to the crossings;
    here the three delays are fitted to the measured values of all crossings at once (a coarse search,
    then Gauss-Newton), which uses every pair with the weight that its signal deserves.
    Rosenzweig, Holme and Uecker 2019, 10.1002/mrm.27506.

    At the crossings a single coil is flat and says little, so what was found is refined on all samples around
    k = 0: there the spokes are denser than an object of this extent needs, and only with the right delays
    does one small image explain them all (Ianni and Grissom 2016, 10.1002/mrm.25951, for the central part).

    Parameters
    ----------
    data
        complex64 (coil, spoke, readout), whitened; all of one slice and partition.
    angles
        float64 (spoke,), rad; any schedule with spokes that are not all parallel.
    sampling
        Where the samples lie on every spoke.
    model
        ``isotropic``: x = y and xy = 0.
    shifts
        float64 (spoke, 2), cycles per pixel: where the trajectory states the spokes; the delay comes on top.

    Raises
    ------
    SpokeError
        There are no spokes that cross at a useful angle, or no signal.
    """
    data, angles, shifts = _with_signal(data, angles, sampling, shifts)
    pairs = _crossing_pairs(np.asarray(angles))
    if len(pairs) < 2:
        raise SpokeError(f"{len(angles)} spokes without two crossings: give the gradient delay or turn it off.")
    stated = _in_samples(shifts, len(angles), sampling)
    virtual = _few_coils(data, sampling)
    values, slopes = _centre_of_spokes(virtual, sampling)
    basis = _basis(model)
    coarse = _Crossings(values, slopes, angles, stated, pairs[:: max(1, len(pairs) // _COARSE_PAIRS)], basis)
    grid = np.array(list(itertools.product(*([_COARSE_STEPS] * len(basis)))))
    order = np.argsort([coarse.mismatch(delays) for delays in grid])
    # A single coil has side minima: several starts, the best end counts.
    ends = [coarse.refine(grid[start]) for start in order[:_STARTS]]
    crossings = _Crossings(values, slopes, angles, stated, pairs, basis)
    found = crossings.refine(min(ends, key=coarse.mismatch))
    found = _CentralFit(virtual, angles, stated, sampling, basis, extent=_extent(data)).refine(found)
    x, y, xy = found @ basis
    return GradientDelay(x=float(x), y=float(y), xy=float(xy), mismatch=crossings.mismatch(found))


def opposed_pairs(angles: SpokeAngles, *, tolerance: float = 1e-3) -> list[tuple[int, int]]:
    """Return the pairs (i, j) of spokes at θ and θ + 180°, each spoke used once.

    Parameters
    ----------
    angles
        float64 (spoke,), rad.
    tolerance
        Largest deviation from 180°, rad.
    """
    folded = np.mod(np.asarray(angles, dtype=np.float64), 2.0 * math.pi)
    free = set(range(len(folded)))
    pairs = []
    for first in range(len(folded)):
        if first not in free:
            continue
        others = [j for j in free if abs(math.remainder(folded[j] - folded[first] - math.pi, 2 * math.pi)) < tolerance]
        if others:
            pairs.append((first, min(others)))
            free -= {first, min(others)}
    return pairs


def opposed_delay(
    data: FrameData,
    angles: SpokeAngles,
    sampling: RadialSampling,
    *,
    model: DelayModel = "anisotropic",
    shifts: SpokeShifts | None = None,
    tolerance: float = 1e-3,
) -> GradientDelay:
    """Return the delay from the phase slope between projections of spokes at θ and θ + 180°.

    Their projections are equal but for exp(±2πi d s), d the delay along the spoke, so the product
    P(θ)·conj(P(θ + 180°)) summed over coils is a spectrum whose line lies at 2d. A common phase
    (B0 eddy currents) does not matter. Block and Uecker 2011, Proc. ISMRM 19:2816; the offset across
    the spoke is neglected, which biases unequal x and y towards each other: `ring_delay` does not.

    Parameters
    ----------
    data, angles, sampling, model, shifts
        As in `ring_delay`; the schedule must contain opposed spokes.
    tolerance
        Largest deviation from 180°, rad.

    Raises
    ------
    SpokeError
        Fewer opposed pairs than the model needs (1 isotropic, 3 anisotropic), or no signal.
    """
    data, angles, shifts = _with_signal(data, angles, sampling, shifts)
    pairs = opposed_pairs(angles, tolerance=tolerance)
    needed = 1 if model == "isotropic" else 3
    if len(pairs) < needed:
        raise SpokeError(f"{len(pairs)} pairs of opposed spokes; {needed} are needed: use the ring method.")
    # Positions in samples; the detector grid in cycles per sample covers the readout's bandwidth.
    positions = np.arange(sampling.n_readout) - sampling.centre
    detector = (np.arange(sampling.n_readout) - sampling.n_readout // 2) / sampling.n_readout
    towards = np.exp(2j * math.pi * np.outer(positions, detector))
    first, second = np.array(pairs).T
    product = np.sum((data[:, first] @ towards) * np.conj(data[:, second] @ np.conj(towards)), axis=0)
    search = np.arange(-SEARCH, SEARCH + 1e-9, 1.0 / 64.0)
    # Late by d: P(θ) carries exp(+2πi d s), its opposite exp(−2πi d s).
    spectrum = np.abs(product @ np.exp(-4j * math.pi * np.outer(detector, search)))
    peak = np.clip(np.argmax(spectrum, axis=1), 1, len(search) - 2)
    rows = np.arange(len(pairs))
    left, middle, right = (spectrum[rows, peak + k] for k in (-1, 0, 1))
    along = search[peak] + 0.5 * (left - right) / np.minimum(left - 2 * middle + right, -1e-30) / 64.0
    directions = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    ahead = np.sum(_in_samples(shifts, len(angles), sampling) * directions, axis=-1)
    along += 0.5 * (ahead[first] + ahead[second])
    basis = _basis(model)
    theta = np.asarray(angles)[first]
    design = np.stack((np.cos(theta) ** 2, np.sin(theta) ** 2, np.sin(2 * theta)), axis=1) @ basis.T
    weight = np.sqrt(middle / middle.max())
    found = np.linalg.lstsq(design * weight[:, None], along * weight, rcond=None)[0]
    x, y, xy = found @ basis
    # The line's height is below the sum of magnitudes as far as the two projections disagree.
    agreement = float(np.sum(middle) / max(float(np.sum(np.abs(product))), 1e-30))
    mismatch = math.sqrt(max(0.0, 1.0 - agreement))
    return GradientDelay(x=float(x), y=float(y), xy=float(xy), mismatch=mismatch)


def _basis(model: DelayModel) -> FloatArray:
    """Return the free directions in (x, y, xy), float64 (parameter, 3)."""
    return np.array([[1.0, 1.0, 0.0]]) if model == "isotropic" else np.eye(3)


def _in_samples(shifts: SpokeShifts | None, n_spokes: int, sampling: RadialSampling) -> FloatArray:
    """Return the stated shifts in samples, float64 (spoke, 2); zeros where none are stated."""
    return np.zeros((n_spokes, 2)) if shifts is None else np.asarray(shifts, dtype=np.float64) / sampling.spacing


def _with_signal(
    data: FrameData, angles: SpokeAngles, sampling: RadialSampling, shifts: SpokeShifts | None
) -> tuple[FrameData, SpokeAngles, SpokeShifts | None]:
    """Return data, angles and shifts of the spokes that hold a signal: one of zeros agrees with no other."""
    near = _near(data, sampling)
    energy = np.sum(np.abs(near) ** 2, axis=(0, 2))
    if not energy.any():
        raise SpokeError("the spokes carry no signal near k = 0: give the gradient delay or turn its estimation off.")
    kept = energy > _LEAST_ENERGY * np.median(energy[energy > 0.0])
    return data[:, kept], np.asarray(angles)[kept], None if shifts is None else np.asarray(shifts)[kept]


def _near(data: FrameData, sampling: RadialSampling) -> FrameData:
    """Return the samples around k = 0, (coil, spoke, sample)."""
    middle = round(sampling.centre)
    return data[:, :, max(0, middle - _MARGIN) : middle + _MARGIN]


def _crossing_pairs(angles: SpokeAngles) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return at most `_MAX_PAIRS` pairs that cross at a useful angle, int64 (pair, 2)."""
    first, second = np.triu_indices(len(angles), k=1)
    useful = np.abs(np.sin(angles[first] - angles[second])) >= _LEAST_SINE
    pairs = np.stack((first[useful], second[useful]), axis=1)
    # Strided, so that every spoke and every crossing angle stays represented.
    return pairs[:: max(1, math.ceil(len(pairs) / _MAX_PAIRS))]


def _centre_of_spokes(data: FrameData, sampling: RadialSampling) -> tuple[ComplexArray, ComplexArray]:
    """Return values and slopes (per sample) on a fine grid round k = 0, complex128 (coil, spoke, fine).

    The grid spans ± `_MARGIN` samples in steps of 1/`_OVERSAMPLING`, by zero-padding the projections.
    """
    n = sampling.n_readout
    frequencies = np.fft.fftfreq(n)
    fine = np.arange(-_MARGIN * _OVERSAMPLING, _MARGIN * _OVERSAMPLING + 1) / _OVERSAMPLING + sampling.centre
    kernel = np.exp(2j * math.pi * np.outer(frequencies, fine)) / n
    projections = np.fft.fft(data, axis=-1)
    return projections @ kernel, projections @ (2j * math.pi * frequencies[:, None] * kernel)


def _few_coils(data: FrameData, sampling: RadialSampling) -> ComplexArray:
    """Return virtual coils (coil, spoke, readout): few hold the strong signal near k = 0 that tells delays apart."""
    near = _near(data, sampling).reshape(len(data), -1)
    _, vectors = np.linalg.eigh(near @ near.conj().T)
    return np.tensordot(vectors[:, ::-1][:, :_MOST_COILS].conj().T, data, axes=1)


def _extent(data: FrameData) -> float:
    """Return the radius of the object relative to the readout's whole field of view, at most 1/2."""
    n = data.shape[-1]
    energy = np.sum(np.abs(np.fft.ifft(data, axis=-1)) ** 2, axis=(0, 1))
    radius = np.abs(np.fft.fftfreq(n))
    order = np.argsort(radius, kind="stable")
    noise = float(np.median(energy[order][-max(1, n // 8) :]))
    inside = np.cumsum(np.maximum(energy[order] - 1.5 * noise, 0.0))
    if inside[-1] <= 0.0:
        return 0.5
    edge = float(radius[order][np.searchsorted(inside, 0.9995 * inside[-1])])
    return min(0.5, 1.05 * edge + 1.0 / n)


class _CentralFit:
    """How well one small image of each coil explains the samples around k = 0, as a function of the delays."""

    def __init__(
        self,
        data: ComplexArray,
        angles: SpokeAngles,
        stated: FloatArray,
        sampling: RadialSampling,
        basis: FloatArray,
        *,
        extent: float,
    ) -> None:
        order = np.argsort(np.mod(angles, math.pi), kind="stable")
        kept = order[:: math.ceil(len(angles) / _MOST_SPOKES)]
        # Farther out the spokes are sparser than the object needs.
        reach = min(_REACH, len(kept) / (2.0 * math.pi * extent))
        first, last = math.ceil(sampling.centre - reach), math.floor(sampling.centre + reach)
        index = np.arange(max(0, first), min(sampling.n_readout - 1, last) + 1)
        values = data[:, kept][:, :, index]
        self._values = values.reshape(len(values), -1).T.astype(np.complex128)
        chosen = np.asarray(angles)[kept]
        self._direction = np.repeat(np.stack((np.cos(chosen), np.sin(chosen)), axis=-1), len(index), axis=0)
        self._stated = np.tile(index - sampling.centre, len(kept))[:, None] * self._direction
        self._stated += np.repeat(stated[kept], len(index), axis=0)
        half = math.ceil(reach) + _CLEARANCE
        axis = (np.arange(2 * half) - half + 0.5) / (2 * half)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        # At least the pixels around the middle: an object may be smaller than one.
        within = np.hypot(x, y) <= max(extent, 1.0 / (2 * half))
        self._place = np.stack((x[within], y[within]))
        # (parameter, sample, 2): where each delay moves each sample, k = κ·n + s − D·n.
        self._moves = -np.einsum("pk,kij,sj->psi", basis, _ELEMENTS, self._direction)

    def refine(self, delays: FloatArray, iterations: int = 5) -> FloatArray:
        """Return the least-squares delays near ``delays``: variable projection, Gauss-Newton.

        With fewer than two samples for each pixel an image explains nearly anything: the delays stay.
        """
        from scipy.linalg import cho_factor, cho_solve

        if len(self._values) < 2 * self._place.shape[1]:
            return delays
        for _ in range(iterations):
            points = self._stated + np.einsum("p,psi->si", delays, self._moves)
            model = np.exp(-2j * math.pi * (points @ self._place))
            normal = model.conj().T @ model
            normal[np.diag_indices_from(normal)] += _RIDGE * len(model)
            factor = cho_factor(normal)
            image = cho_solve(factor, model.conj().T @ self._values)
            rest = self._values - model @ image
            turned = [model @ (-2j * math.pi * axis[:, None] * image) for axis in self._place]
            columns = []
            for move in self._moves:
                column = move[:, :1] * turned[0] + move[:, 1:] * turned[1]
                columns.append((column - model @ cho_solve(factor, model.conj().T @ column)).ravel())
            jacobian = np.stack(columns, axis=1)
            step = np.linalg.lstsq(
                np.real(jacobian.conj().T @ jacobian), np.real(jacobian.conj().T @ rest.ravel()), rcond=1e-9
            )[0]
            delays = np.clip(delays + step * min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12)), -SEARCH, SEARCH)
            if np.abs(step).max() < 1e-3:
                break
        return delays


class _Crossings:
    """Values of pairs of spokes at their crossings as a function of the delays."""

    def __init__(
        self,
        values: ComplexArray,
        slopes: ComplexArray,
        angles: SpokeAngles,
        stated: FloatArray,
        pairs: np.ndarray[Any, np.dtype[np.int64]],
        basis: FloatArray,
    ) -> None:
        self._values, self._slopes = values, slopes
        self._first, self._second = pairs.T
        one = np.stack((np.cos(angles[self._first]), np.sin(angles[self._first])))
        two = np.stack((np.cos(angles[self._second]), np.sin(angles[self._second])))
        # κ₁·n₁ + s₁ − D·n₁ = κ₂·n₂ + s₂ − D·n₂ (in samples), so κ₁·n₁ − κ₂·n₂ = D·(n₁ − n₂) − (s₁ − s₂).
        moved = np.einsum("pk,kij,jn->pin", basis, _ELEMENTS, one - two)
        # The last row is no delay: it counts once, whatever they are.
        moved = np.concatenate((moved, (stated[self._second] - stated[self._first]).T[None]))
        sine = one[0] * two[1] - one[1] * two[0]
        self._along_first = (moved[:, 0] * two[1] - moved[:, 1] * two[0]) / sine
        self._along_second = (moved[:, 0] * one[1] - moved[:, 1] * one[0]) / sine

    def _at(self, spokes: Any, positions: FloatArray) -> tuple[ComplexArray, ComplexArray]:
        """Return values (cubic Hermite) and slopes (linear) at these positions, each (coil, pair)."""
        place = np.clip((positions + _MARGIN) * _OVERSAMPLING, 0.0, self._values.shape[-1] - 1.001)
        below = place.astype(np.int64)
        t = place - below
        v0, v1 = self._values[:, spokes, below], self._values[:, spokes, below + 1]
        m0, m1 = self._slopes[:, spokes, below], self._slopes[:, spokes, below + 1]
        bend = ((1 - t) * m0 - t * m1) / _OVERSAMPLING - (1 - 2 * t) * (v1 - v0)
        return v0 + t * (v1 - v0) + t * (1 - t) * bend, m0 + t * (m1 - m0)

    def _pair(self, delays: FloatArray) -> tuple[tuple[ComplexArray, ComplexArray], tuple[ComplexArray, ComplexArray]]:
        factors = np.append(delays, 1.0)
        return (
            self._at(self._first, factors @ self._along_first),
            self._at(self._second, factors @ self._along_second),
        )

    def mismatch(self, delays: FloatArray) -> float:
        """Return the RMS difference relative to the RMS signal at the crossings."""
        (one, _), (two, _) = self._pair(delays)
        signal = float(np.sum(np.abs(one) ** 2) + np.sum(np.abs(two) ** 2))
        return math.sqrt(float(np.sum(np.abs(one - two) ** 2)) / max(signal, 1e-30))

    def refine(self, delays: FloatArray, iterations: int = 12) -> FloatArray:
        """Return the least-squares delays near ``delays``: Gauss-Newton, steps of a sample at most."""
        for _ in range(iterations):
            (one, slope_one), (two, slope_two) = self._pair(delays)
            jacobian = np.stack(
                [
                    slope_one * first - slope_two * second
                    for first, second in zip(self._along_first[:-1], self._along_second[:-1], strict=True)
                ]
            ).reshape(len(delays), -1)
            normal = np.real(np.conj(jacobian) @ jacobian.T)
            gradient = np.real(np.conj(jacobian) @ (one - two).ravel())
            step = np.linalg.lstsq(normal, -gradient, rcond=1e-9)[0]
            step *= min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
            delays = np.clip(delays + step, -SEARCH, SEARCH)
            if np.abs(step).max() < 1e-5:
                break
        return delays


_ELEMENTS: Final = np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
"""How (x, y, xy) enter the matrix D, float64 (element, 2, 2)."""
