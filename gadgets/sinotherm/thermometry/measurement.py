"""The temperature change of one echo of a slice: phase difference, drift and uncertainty, frame after frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.ndimage import binary_erosion

from sinotherm.core.arrays import CoilImages, ComplexArray, FloatArray, MaskArray
from sinotherm.core.scan import FrameImage
from sinotherm.errors import DataError
from sinotherm.thermometry.background import Background
from sinotherm.thermometry.baseline import OUTLIER_FACTOR, Baseline, effective_frames
from sinotherm.thermometry.drift import DriftEstimator, DriftFit
from sinotherm.thermometry.library import Library, Match, correlation
from sinotherm.thermometry.noise import sigma_by_formula, sigma_of_change, temporal_phase_sd
from sinotherm.thermometry.phase import TemporalUnwrapper, complex_product
from sinotherm.thermometry.settings import ThermometrySettings
from sinotherm.thermometry.trend import TrendFilter

__all__ = ["EchoMeasurement", "Reading", "magnitude"]

_CERTAIN_RAD: Final = 0.4
_SAME_RAD: Final = 1e-3
_ROUNDING: Final = 1e-6
_MOST_HELD: Final = 0.25
"""Share of a cold mask that a network may hold still, where it shows no other drift than its guide found: of the mask
that the scan began with it holds none, but for the border."""
_FALL_SD: Final = 2.0
"""Standard deviations of its noise by which a voxel's signal falls before that counts."""


def magnitude(image: CoilImages) -> FloatArray:
    """Return the root sum of squares over the coils, float32 (slice, y, x)."""
    return np.sqrt(np.einsum("czyx,czyx->zyx", image, image.conj()).real)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Temperature change of one frame and echo.

    Attributes
    ----------
    change, unfiltered, sigma, sigma_of_frame
        float32 (slice, y, x), °C: change, the same before the filters in space and time (``None`` without one), its
        noise (NaN: not known), and that of the frame alone, before the filter in time.
    shared
        float32 (slice, y, x), °C: what of σ_T is no noise and the same in every echo.
    magnitude
        float32 (slice, y, x): of the image.
    followed, wrapped, no_drift
        bool (slice, y, x): the change is of this frame's phase, not of an earlier one; the branch of the phase is in
        doubt; there is no drift fit to correct with.
    fits, problems
        Drift fit of each slice plane, and what went wrong.
    chosen, match
        Place of the baseline chosen from a library, and how; 0 and ``None`` without one.
    placed
        Whether it is known what the echo is measured against: of a library, in which state it is.
    """

    change: FloatArray
    unfiltered: FloatArray | None
    sigma: FloatArray
    sigma_of_frame: FloatArray
    shared: FloatArray
    magnitude: FloatArray
    followed: MaskArray
    wrapped: MaskArray
    no_drift: MaskArray
    fits: Sequence[DriftFit]
    problems: Sequence[str]
    chosen: int
    match: Match | None
    placed: bool


class EchoMeasurement:
    """Measures the frames of one echo against a baseline, or against their own surroundings.

    Parameters
    ----------
    baseline
        The baseline; in the referenceless modes the first frame, whose magnitude alone counts.
    settings
        The stage's settings.
    degc_per_radian
        °C that 1 rad stands for.
    level
        Signal below this has no phase.
    cold
        bool (slice, y, x): tissue that is not heated.
    periphery
        bool (slice, y, x): outer part of the body, which tells the state of a library where ``cold`` is too small.
    heated
        bool (slice, y, x): region that may be heated, for the referenceless modes.
    follows
        Whether its frames follow directly on the baseline's.
    """

    def __init__(
        self,
        baseline: Baseline,
        *,
        settings: ThermometrySettings,
        degc_per_radian: float,
        level: float,
        cold: MaskArray,
        periphery: MaskArray,
        heated: MaskArray | None,
        follows: bool = True,
    ) -> None:
        self.baseline = baseline
        self.magnitude = magnitude(baseline.data)
        self._settings = settings
        self._scale = degc_per_radian
        # One a plane: a plane whose drift is not known keeps no other from being followed.
        self._unwrappers = [
            TemporalUnwrapper(known=follows and heated is None, drifts=heated is None) for _ in self.magnitude
        ]
        self._trends = [TrendFilter(plane.shape) for plane in self.magnitude if settings.temporal == "trend"]
        self._chosen = 0
        self._backgrounds: list[Background | None] = []
        self._ring_noise = np.full((len(self.magnitude), 1, 1), np.nan, dtype=np.float32)
        self._trusted = self.magnitude > level
        self._level, self._periphery = level, periphery
        if heated is not None:
            harmonic = settings.baseline_mode == "harmonic"
            order = settings.background_order
            # A plane that the region leaves out has nothing to read.
            self._backgrounds = [
                Background(plane, harmonic=harmonic, order=order) if plane.any() else None for plane in heated
            ]
            self._trusted = self._trusted & heated
            # Where the background was fitted on, the rim of the region differs from it by its own heat alone.
            self._rim = heated & ~binary_erosion(heated, np.ones((1, 3, 3), bool), iterations=2)
        self.set_cold_mask(cold, one_sided=settings.cold_mask == "auto")

    def set_cold_mask(self, cold: MaskArray, *, one_sided: bool) -> None:
        """Fit the drift in another mask from now on; filters in time begin anew, for their course had another drift."""
        settings = self._settings
        for trend in self._trends:
            trend.begin()
        self._anchors = self._rim if self._backgrounds else cold
        self._cold = cold
        self._drift = [
            DriftEstimator(
                magnitude=plane,
                mask=mask,
                order=settings.drift_order,
                one_sided=one_sided,
                min_voxels=settings.drift_min_voxels,
                max_condition=settings.drift_max_condition,
            )
            for plane, mask in zip(self.magnitude, cold, strict=True)
            # The surroundings of a referenceless reading drift with it.
            if settings.drift_order >= 0 and not self._backgrounds
        ]
        self._library = (
            Library(
                self.baseline.library,
                tissue=self._trusted,
                cold=(cold, self._periphery),
                order=settings.drift_order,
            )
            if self.baseline.library
            else None
        )
        self._last_good: list[DriftFit | None] = [None] * len(self._drift)
        self._held = [0] * len(self._drift)

    def use_pre_heating(self, frames: Sequence[FrameImage], times_s: Sequence[float]) -> None:
        """Take the noise from the temporal SD of the baseline's own frames where no formula tells it.

        That is so for images that do not state their noise, and for frames that each lie on other spokes,
        whose streaks differ: the formula holds for noise alone. A frame that is a change of a reference is
        compared with it: those of the baseline have each their own, and the differences between references
        are no part of the error of a later frame. One of a library is compared with the most similar other one, as
        later ones are: breathing is no part of their error, and each of the two has half of the variance.

        A filter in time begins with these frames, which come with their times, s.
        """
        method = self._settings.sigma
        by_time = method == "temporal" or (
            method == "auto" and (frames[-1].noise_sd is None or not _same_spokes(frames))
        )
        by_time = by_time and len(self.baseline.frames) >= 2
        if not (by_time or self._trends):
            return
        products: list[ComplexArray] = []
        library, shared = self._library, np.float32(1.0)
        timed = [
            (image, time_s)
            for image, time_s in zip(frames, times_s, strict=True)
            if image.number not in self.baseline.rejected
        ]
        used, taken = [image for image, _ in timed], []
        matches: Sequence[Match] = ()
        if library is not None and frames[-1].reference is None:
            shared = np.float32(math.sqrt(0.5))
            matches = library.others
            apart = [
                1.0 - correlation(image.data, self.baseline.library[match.place])
                for image, match in zip(used, matches, strict=True)
            ]
            # One that is like no other was a state of its own: what parts it from the rest is no noise.
            most = max(OUTLIER_FACTOR**2 * float(np.median(apart)), _ROUNDING)
            alike = [one <= most for one in apart]
        for place, image in enumerate(used):
            if matches and not alike[place]:
                continue
            against = self.baseline.library[matches[place].place] if matches else image.reference
            product = complex_product(image.data, self.baseline.data if against is None else against)
            phase = np.angle(product)
            for plane, estimator in enumerate(self._drift):
                fit = estimator.fit(product[plane], phase[plane], self._scale)
                product[plane] *= np.exp(np.complex64(-1j / self._scale) * fit.field_degc)
            products.append(product)
            taken.append(timed[place])
        # What is held still does not scatter, and tells nothing of the noise beside it.
        free = self._trusted & ~np.logical_or.reduce([_held(image) for image in used])
        if by_time:
            sd = shared * temporal_phase_sd(products, free)
            self.baseline = replace(self.baseline, phase_sd_rad=sd)
        if self._trends:
            self._learn_trend(products, taken, free)

    def _learn_trend(
        self, products: Sequence[ComplexArray], taken: Sequence[tuple[FrameImage, float]], valid: MaskArray
    ) -> None:
        """Begin the filters in time with the pre-heating frames, of which the products have no drift any more."""
        images = [image for image, _ in taken]
        # Those of a library are each compared with another one: all of the variance is the frame's own.
        n_effective = 1.0 if self.baseline.library else self.baseline.n_effective
        variance = np.square(np.fmax(*self._sigmas(images[-1], self.magnitude, n_effective)))
        variance *= np.float32(1.0) if self.baseline.library else _own_share(n_effective)
        scale, independent = np.float32(self._scale), effective_frames(images)
        for plane, trend in enumerate(self._trends):
            frames = [
                (np.angle(product[plane]) * scale, time_s) for product, (_, time_s) in zip(products, taken, strict=True)
            ]
            trend.learn(frames, variance[plane], valid[plane], independent)

    def lose(self) -> None:
        """Frames are missing between the last one and the next: what it shows may be a turn away."""
        for unwrapper in self._unwrappers:
            unwrapper.lose()

    @property
    def most_sigma_degc(self) -> float:
        """σ_T up to which a voxel is followed, °C: noise alone makes a phase jump that is more uncertain."""
        return _CERTAIN_RAD * abs(self._scale)

    def withdraw(self, planes: Sequence[bool]) -> None:
        """Forget the last frame in these planes: it has moved there, say, and later ones may not go on from it."""
        for unwrapper, lost in zip(self._unwrappers, planes, strict=True):
            if lost:
                unwrapper.withdraw()
        for trend, lost in zip(self._trends, planes, strict=False):
            if lost:
                trend.withdraw()

    def read(self, image: FrameImage, time_s: float = math.nan) -> Reading:
        """Return the temperature change of a frame; a filter in time needs its time, s."""
        data = image.data
        if not np.isfinite(data).all():
            # What is not a number is no signal.
            data = np.where(np.isfinite(data), data, np.complex64(0.0))
        reference, fitted, n_effective, match = self._reference(data)
        placed = match is None or match.found
        scale = np.float32(self._scale)
        product = complex_product(data, reference)
        size = magnitude(data)
        by_formula, by_time = self._sigmas(image, size, n_effective)
        trusted = self._trusted & (size > self._level) & (np.fmax(by_formula, by_time) <= self.most_sigma_degc)
        planes = [np.s_[plane : plane + 1] for plane in range(len(product))]
        found = [
            unwrapper.update(product[plane], trusted[plane], self._anchors[plane])
            for unwrapper, plane in zip(self._unwrappers, planes, strict=True)
        ]
        phase, wrapped = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        held = _held(image)
        field, variance, no_drift, fits, problems = self._drift_field(product, phase, held)
        for unwrapper, plane in zip(self._unwrappers, planes, strict=True):
            if no_drift[plane].any() or not placed:
                unwrapper.withdraw()
        unfiltered: FloatArray | None = None
        change: FloatArray = phase * scale - field
        if self._settings.neighbours > 1:
            # The branch of every voxel is known: only its angle is replaced by the neighbourhood's.
            smooth = complex_product(data, reference, neighbours=self._settings.neighbours)
            unfiltered, change = change, (phase + np.angle(smooth * np.exp(-1j * phase))) * scale - field
        # What is subtracted is uncertain too, most of all far from where it was fitted. The formula knows nothing of
        # it; the scatter of the pre-heating frames, each with a fit of its own, holds it already.
        sigma = np.fmax(np.sqrt(by_formula**2 + variance + fitted * scale**2), by_time)
        of_frame, shared = sigma, np.zeros_like(change)
        if self._trends:
            unfiltered = change if unfiltered is None else unfiltered
            valid = trusted & ~wrapped & ~no_drift & ~held & placed
            change, sigma, shared = self._followed(change, sigma, valid, n_effective, time_s)
        if any(image.change_error):
            shared = np.hypot(shared, sigma_of_change(change, self._trusted, *image.change_error))
        return Reading(
            change=change.astype(np.float32, copy=False),
            unfiltered=unfiltered,
            sigma=sigma,
            sigma_of_frame=of_frame,
            shared=shared,
            magnitude=size,
            followed=trusted,
            wrapped=wrapped,
            no_drift=no_drift,
            fits=fits,
            problems=problems,
            chosen=self._chosen,
            match=match,
            placed=placed,
        )

    def _followed(
        self, change: FloatArray, sigma: FloatArray, valid: MaskArray, n_effective: float, time_s: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return change, noise and what is none after the filters in time, °C; the baseline's part of it stays."""
        known = np.isfinite(sigma)
        own = np.where(known, np.square(sigma) * _own_share(n_effective), np.float32(0.0))
        parts = [
            trend.update(change[plane], own[plane], valid[plane], time_s) for plane, trend in enumerate(self._trends)
        ]
        filtered, variance, hidden = (np.stack(arrays) for arrays in zip(*parts, strict=True))
        noise = np.sqrt(np.where(known, variance - hidden + np.square(sigma) - own, sigma))
        return filtered, noise, np.sqrt(hidden)

    def _reference(self, data: CoilImages) -> tuple[CoilImages, FloatArray | np.float32, float, Match | None]:
        """Return what a frame is compared with, its variance where it is fitted, its independent frames, and the match.

        Variance in rad²; the match is that of a library.
        """
        baseline, exact = self.baseline, np.float32(0.0)
        if self._backgrounds:
            reference, variance = np.zeros_like(data), np.zeros(data.shape[1:], dtype=np.float32)
            for plane, background in enumerate(self._backgrounds):
                if background is not None:
                    reference[:, plane], variance[plane], self._ring_noise[plane] = background.reference(data[:, plane])
            return reference, variance, math.inf, None
        if self._library is None:
            return baseline.data, exact, baseline.n_effective, None
        match = self._library.match(data)
        best = match.place
        if best != self._chosen:
            between = complex_product(baseline.library[self._chosen], baseline.library[best])
            for plane, unwrapper in enumerate(self._unwrappers):
                unwrapper.rebase(between[plane : plane + 1])
            self._chosen = best
        return baseline.library[best], exact, 1.0, match

    def _drift_field(
        self, product: ComplexArray, phase: FloatArray, held: MaskArray
    ) -> tuple[FloatArray, FloatArray, MaskArray, list[DriftFit], list[str]]:
        """Return the drift, °C, its variance, where there is none to be had, the fits, and what went wrong."""
        field = np.zeros(phase.shape, dtype=np.float32)
        variance = np.zeros(phase.shape, dtype=np.float32)
        missing = np.zeros(phase.shape, dtype=bool)
        fits: list[DriftFit] = []
        problems: list[str] = []
        for plane, background in enumerate(self._backgrounds):
            if background is not None and not product[plane].any():
                missing[plane] = True
                problems.append("no signal in the ring round the heated region: draw it inside tissue; no reading")
        for plane, estimator in enumerate(self._drift):
            if not self._trusted[plane].any():
                # An end plane without a body in it has no drift, and its neighbours need none of it.
                continue
            if np.count_nonzero(self._cold[plane] & held[plane]) > _MOST_HELD * np.count_nonzero(self._cold[plane]):
                missing[plane] = True
                problems.append(
                    "the network holds the cold mask still, as fat, so that it tells nothing of the drift: draw it "
                    "elsewhere, or set it before the scan; no reading"
                )
                continue
            fit = estimator.fit(product[plane], phase[plane], self._scale)
            fits.append(fit)
            if not fit.problem:
                self._last_good[plane], self._held[plane] = fit, 0
                field[plane], variance[plane] = fit.field_degc, estimator.variance(fit)
                continue
            self._held[plane] += 1
            kept = self._last_good[plane]
            if kept is not None and self._held[plane] <= self._settings.drift_hold_frames:
                field[plane], variance[plane] = kept.field_degc, estimator.variance(kept)
                problems.append(f"{fit.problem}; the last good fit is kept ({self._held[plane]} frames old)")
            else:
                missing[plane] = True
                problems.append(f"{fit.problem}; no reading")
        return field, variance, missing, fits, problems

    def _sigmas(self, image: FrameImage, size: FloatArray, n_effective: float) -> tuple[FloatArray, FloatArray]:
        """Return σ_T of frame and baseline by formula and by time, °C; NaN where it is not known.

        The larger one counts: frames that share spokes (sliding windows) scatter less than their noise. By time
        it is σ_φ·sqrt((|S_0|/|S|)² + 1/N_eff)/|dφ/dT|, σ_φ the SD of the phase over the baseline's frames: the
        noise of the phase goes with 1/|S| (Conturo and Smith 1990, 10.1002/mrm.1910150308). The ratio is 1 at
        least. Without a baseline the noise is what the background left of the ring, where the images state none.

        Raises
        ------
        DataError
            The formula is asked for and the image states no noise.
        """
        baseline, method = self.baseline, self._settings.sigma
        temporal = np.full(size.shape, np.nan, dtype=np.float32)
        if method != "formula" and baseline.phase_sd_rad is not None:
            # The noise stays where the signal falls: by more than the noise itself makes it (as large along the signal
            # as across it, where it turns the phase). A brighter frame may be a louder one: it gains nothing.
            low = size < self.magnitude * (np.float32(1.0) - np.float32(_FALL_SD) * baseline.phase_sd_rad)
            with np.errstate(divide="ignore", invalid="ignore"):
                fallen = np.where(low, self.magnitude / size, np.float32(1.0))
            spread = np.sqrt(fallen**2 + np.float32(1.0 / n_effective))
            temporal = baseline.phase_sd_rad * spread * np.float32(abs(self._scale))
        stated = None if method == "temporal" else image.noise_sd
        if stated is None and method != "formula":
            if not self._backgrounds or image.reference is not None:
                # A guided network's error is none that a ring of its image shows.
                return np.full(size.shape, np.nan, dtype=np.float32), temporal
            stated = np.broadcast_to(self._ring_noise, size.shape)
        if stated is None:
            raise DataError(
                "the images state no noise: whiten them (a noise scan), or set thermometry.sigma to temporal or auto."
            )
        formula = sigma_by_formula(
            signal=size,
            noise_sd=stated,
            baseline_signal=self.magnitude,
            baseline_noise_sd=stated if baseline.noise_sd is None else baseline.noise_sd,
            n_effective=n_effective,
            degc_per_radian=self._scale,
        )
        return formula, temporal


def _held(image: FrameImage) -> MaskArray:
    """Return what a network held still, bool (slice, y, x)."""
    return np.zeros(image.data.shape[1:], dtype=bool) if image.held is None else image.held


def _own_share(n_effective: float) -> np.float32:
    """Return the share of a variance that is the frame's own; the rest is that of a baseline of so many frames."""
    return np.float32(1.0 / (1.0 + 1.0 / n_effective))


def _same_spokes(frames: Sequence[FrameImage]) -> bool:
    """Whether all frames lie on the same spokes, or do not say on which."""
    angles = [np.sort([(spoke.angle_rad + _SAME_RAD) % math.pi for spoke in frame.spokes]) for frame in frames]
    return all(one.shape == angles[0].shape and np.allclose(one, angles[0], atol=_SAME_RAD) for one in angles)
