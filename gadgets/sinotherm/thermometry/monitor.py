"""The thermometry of one slice: from its images, frame after frame, to temperature maps and statistics."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, MaskArray, ValidityArray
from sinotherm.core.physics import PRF_COEFFICIENT_SPREAD, degc_per_radian
from sinotherm.core.scan import FrameImage, FrameStatistics, MetaValue, NoReading, ScanHeader, TemperatureMap
from sinotherm.errors import BaselineError, DataError, HeaderError
from sinotherm.thermometry.alarms import AlarmLimits, Observation, StaleWatch, alarms
from sinotherm.thermometry.baseline import Baseline, BaselineBuilder, check_fingerprint, fingerprint_of
from sinotherm.thermometry.dose import DoseIntegrator
from sinotherm.thermometry.drift import DriftEstimator, DriftFit, periphery_mask
from sinotherm.thermometry.noise import coverage_factor, sigma_by_formula, temporal_phase_sd
from sinotherm.thermometry.phase import TemporalUnwrapper, combine_echoes, complex_product
from sinotherm.thermometry.regions import named_regions, region_mask
from sinotherm.thermometry.settings import ThermometrySettings
from sinotherm.thermometry.statistics import RegionStatistics

__all__ = ["SliceMonitor"]

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Echo:
    """What one echo carries from frame to frame."""

    baseline: Baseline
    magnitude: FloatArray
    degc_per_radian: float
    drift: list[DriftEstimator]
    unwrapper: TemporalUnwrapper
    last_good: list[DriftFit | None]
    held: list[int]


@dataclass(slots=True, kw_only=True)
class _Service:
    """A baseline in service, and what is measured against it."""

    name: str
    echoes: dict[int, _Echo]
    body: MaskArray
    fat: MaskArray | None
    level: float
    regions: list[RegionStatistics]
    dose: DoseIntegrator | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """Temperature change of one frame and echo."""

    change: FloatArray
    unfiltered: FloatArray
    sigma: FloatArray
    magnitude: FloatArray
    wrapped: MaskArray
    no_drift: MaskArray
    fits: list[DriftFit]
    problems: list[str]


class SliceMonitor:
    """Thermometry of one slice counter, all of its echoes.

    Parameters
    ----------
    scan
        The scan's header.
    settings
        The stage's settings.
    stored
        Baselines of an earlier scan by echo, or ``None``.

    Raises
    ------
    HeaderError
        The header lacks f0 or TE and the settings do not give them.
    """

    def __init__(
        self, scan: ScanHeader, settings: ThermometrySettings, *, stored: Mapping[int, Baseline] | None = None
    ) -> None:
        self._scan = scan
        self._settings = settings
        self._stored = stored
        self._builders: dict[int, BaselineBuilder] = {}
        self._service: _Service | None = None
        self._to_skip = settings.baseline_skip
        self._stale = StaleWatch(settings.stale_intervals)
        self._limits = AlarmLimits(
            temperature_degc=settings.alarm_temperature_degc,
            dose_min=settings.alarm_dose_min,
            signal_share=settings.alarm_signal,
            wrap_share=settings.alarm_wrap,
        )
        larmor = settings.larmor_hz if settings.larmor_hz is not None else scan.larmor_hz
        if larmor is None:
            raise HeaderError("the header states no H1resonanceFrequency_Hz: give thermometry.larmor_hz.")
        self._larmor_hz = larmor
        self._echo_times = settings.echo_times_s or scan.echo_times_s
        if not self._echo_times:
            raise HeaderError("the header states no TE: give thermometry.echo_times_s.")
        self._sign = 1 if settings.phase_sign is None else settings.phase_sign

    @property
    def baselines(self) -> Mapping[int, Baseline]:
        """The baselines in use, by echo; empty before there is one."""
        return {} if self._service is None else {echo: state.baseline for echo, state in self._service.echoes.items()}

    # --- baseline -------------------------------------------------------------------------------

    def _collect(self, images: Sequence[FrameImage]) -> _Service | None:
        """Use the frames of a scan without baseline; return the service if these can be measured already."""
        if self._stored is not None:
            missing = [image.echo for image in images if image.echo not in self._stored]
            if missing:
                raise BaselineError(f"the stored baseline has no echo {missing[0]}: store one of this protocol.")
            for image in images:
                check_fingerprint(self._stored[image.echo].fingerprint, fingerprint_of(image, self._scan))
            self._service = self._install({image.echo: self._stored[image.echo] for image in images}, images[0])
            return self._service
        if self._settings.baseline_rule != "after_frames":
            return None
        if self._to_skip > 0:
            self._to_skip -= 1
            return None
        for image in images:
            self._builders.setdefault(image.echo, BaselineBuilder(self._settings.baseline_frames)).add(image)
        if all(builder.complete for builder in self._builders.values()):
            built = {echo: builder.build(self._scan) for echo, builder in self._builders.items()}
            frames = {echo: builder.images for echo, builder in self._builders.items()}
            self._builders = {}
            self._service = self._install(built, images[0], frames)
        return None

    def _install(
        self,
        baselines: Mapping[int, Baseline],
        image: FrameImage,
        frames: Mapping[int, Sequence[FrameImage]] | None = None,
    ) -> _Service:
        """Put baselines into service; ``frames`` are those that they were made of, for the temporal noise."""
        settings, pixel = self._settings, self._scan.pixel_m
        first = next(iter(baselines.values()))
        magnitude = first.magnitude
        shape = (magnitude.shape[0], magnitude.shape[1], magnitude.shape[2])
        level = float(np.percentile(magnitude, 99.0)) * settings.min_signal
        body = magnitude > level
        fat = region_mask(settings.fat, shape, pixel) if settings.fat else None
        cold = self._cold_mask(magnitude, level, fat)
        echoes = {echo: self._echo(echo, baseline, cold) for echo, baseline in baselines.items()}
        for echo, taken in (frames or {}).items():
            state = echoes[echo]
            by_time = settings.sigma == "temporal" or (settings.sigma == "auto" and taken[-1].noise_sd is None)
            if by_time and len(state.baseline.frames) > 1:
                state.baseline = replace(state.baseline, phase_sd_rad=self._pre_heating_sd(state, taken))
        thickness = settings.slice_thickness_m or self._scan.recon.fov_m[2] / max(1, self._scan.recon.matrix[2])
        voxel_ml = pixel[0] * pixel[1] * thickness * 1e6 if thickness > 0.0 else math.nan
        texts = named_regions(settings.regions)
        regions = [RegionStatistics(name, region_mask(text, shape, pixel), voxel_ml) for name, text in texts.items()]
        service = _Service(
            name=first.name,
            echoes=echoes,
            body=body,
            fat=fat,
            level=level,
            regions=regions or [RegionStatistics("body", body, voxel_ml)],
        )
        self._start_dose(service, self._time(image))
        logger.info(
            "baseline %s: frames %s%s, %d voxels with signal",
            service.name,
            ", ".join(map(str, first.frames)),
            f" (left out as outliers: {', '.join(map(str, first.rejected))})" if first.rejected else "",
            int(body.sum()),
        )
        return service

    def _cold_mask(self, magnitude: FloatArray, level: float, fat: MaskArray | None) -> MaskArray:
        text = self._settings.cold_mask
        if text == "auto":
            return np.stack([periphery_mask(plane, level, self._scan.pixel_m) for plane in magnitude])
        shape = (magnitude.shape[0], magnitude.shape[1], magnitude.shape[2])
        given = fat if text == "fat" and fat is not None else region_mask(text, shape, self._scan.pixel_m)
        return given & (magnitude > level)

    def _echo(self, echo: int, baseline: Baseline, cold: MaskArray) -> _Echo:
        settings, magnitude = self._settings, baseline.magnitude
        estimators = [
            DriftEstimator(
                magnitude=plane,
                mask=mask,
                order=settings.drift_order,
                one_sided=settings.cold_mask == "auto",
                min_voxels=settings.drift_min_voxels,
                max_condition=settings.drift_max_condition,
            )
            for plane, mask in zip(magnitude, cold, strict=True)
            if settings.drift_order >= 0
        ]
        return _Echo(
            baseline=baseline,
            magnitude=magnitude,
            degc_per_radian=degc_per_radian(
                larmor_hz=self._larmor_hz,
                echo_time_s=self._echo_time(echo),
                prf_coefficient=settings.prf_coefficient,
                phase_sign=self._sign,
            ),
            drift=estimators,
            unwrapper=TemporalUnwrapper(),
            last_good=[None] * len(magnitude),
            held=[0] * len(magnitude),
        )

    def _echo_time(self, echo: int) -> float:
        if echo >= len(self._echo_times):
            raise HeaderError(
                f"echo {echo} has no TE: the header or thermometry.echo_times_s states {len(self._echo_times)}; "
                "give one for each echo."
            )
        return self._echo_times[echo]

    def _pre_heating_sd(self, state: _Echo, frames: Sequence[FrameImage]) -> FloatArray:
        """Return the temporal SD of the phase over the baseline's own frames, drift taken out, rad."""
        products: list[ComplexArray] = []
        for image in frames:
            if image.number in state.baseline.rejected:
                continue
            product = complex_product(image.data, state.baseline.data)
            phase = np.angle(product)
            for plane, estimator in enumerate(state.drift):
                fit = estimator.fit(product[plane], phase[plane], state.degc_per_radian)
                product[plane] *= np.exp(np.complex64(-1j / state.degc_per_radian) * fit.field_degc)
            products.append(product)
        return temporal_phase_sd(products) * np.float32(coverage_factor(len(products)))

    # --- dose -----------------------------------------------------------------------------------

    def _time(self, image: FrameImage) -> float:
        """Return the time of a frame, s: centre of its footprint, else its number times the interval set."""
        if math.isfinite(image.footprint[1]):
            return image.footprint[1]
        if self._settings.frame_interval_s is not None:
            return image.number * self._settings.frame_interval_s
        return image.received_s

    def _start_dose(self, service: _Service, time_s: float) -> None:
        body = self._settings.body_temperature_degc
        if body is None:
            return
        if not math.isfinite(time_s):
            logger.warning("no dose: frames carry no time; give thermometry.frame_interval_s")
            return
        gap = self._settings.dose_gap_frames
        service.dose = DoseIntegrator(np.full(int(service.body.sum()), body), time_s, max_gap_frames=gap)
        for region in service.regions:
            region.reset_dose(body, time_s, max_gap_frames=gap)

    # --- one frame ------------------------------------------------------------------------------

    def frame(self, images: Sequence[FrameImage]) -> tuple[TemperatureMap, FrameStatistics]:
        """Take the images of a frame, one an echo; return its map and statistics.

        Raises
        ------
        DataError
            The images carry no phase.
        BaselineError
            A stored baseline does not fit this scan.
        """
        image = images[0]
        if not all(other.phase_valid for other in images):
            raise DataError(
                "the images carry no phase (root sum of squares): "
                "thermometry needs a phase-preserving coil combination."
            )
        stale = self._stale.frame(self._time(image))
        service, problem = self._service, ""
        if service is None:
            service = self._collect(images)
        else:
            problem = self._misfit(service, images)
        if service is None or problem:
            return self._no_map(image, problem, stale)
        return self._map(service, images, stale)

    def _misfit(self, service: _Service, images: Sequence[FrameImage]) -> str:
        """Return why the baseline does not fit these images (f0 changed in mid-scan …), or an empty text."""
        for image in images:
            if image.echo not in service.echoes:
                return f"echo {image.echo} has no baseline"
            try:
                check_fingerprint(service.echoes[image.echo].baseline.fingerprint, fingerprint_of(image, self._scan))
            except BaselineError as error:
                return str(error)
        return ""

    def _no_map(self, image: FrameImage, problem: str, stale: str) -> tuple[TemperatureMap, FrameStatistics]:
        nothing = np.full(image.data.shape[1:], np.nan, dtype=np.float32)
        seen = Observation(baseline_problem=problem)
        raised = (*alarms(seen, self._limits), *filter(None, (stale,)))
        meta = self._provenance(image) | {"alarms": raised}
        absolute = self._settings.body_temperature_degc is not None
        return TemperatureMap(
            change_degc=nothing,
            sigma_degc=nothing,
            validity=np.full(nothing.shape, int(NoReading.NO_BASELINE), dtype=np.uint16),
            number=image.number,
            slice=image.slice,
            temperature_degc=nothing if absolute else None,
            unfiltered_degc=nothing,
            cem43_min=nothing if absolute else None,
            footprint=image.footprint,
            header=image.header,
            received_s=image.received_s,
            meta=meta,
        ), self._frame_statistics(image, (), raised, meta)

    def _frame_statistics(
        self,
        image: FrameImage,
        rows: Sequence[Mapping[str, MetaValue]],
        raised: tuple[str, ...],
        meta: Mapping[str, MetaValue],
    ) -> FrameStatistics:
        return FrameStatistics(
            number=image.number,
            slice=image.slice,
            time_s=self._time(image),
            regions=tuple(rows),
            alarms=raised,
            meta=meta,
        )

    def _read(self, service: _Service, image: FrameImage) -> _Reading:
        """Return the temperature change of one echo."""
        state = service.echoes[image.echo]
        scale = np.float32(state.degc_per_radian)
        product = complex_product(image.data, state.baseline.data)
        magnitude = np.sqrt(np.einsum("czyx,czyx->zyx", image.data, image.data.conj()).real)
        trusted = (magnitude > service.level) & (state.magnitude > service.level)
        phase, wrapped = state.unwrapper.update(product, trusted)
        field, no_drift, fits, problems = self._drift_field(state, product, phase)
        unfiltered = change = phase * scale - field
        if self._settings.neighbours > 1:
            # The branch of every voxel is known: only its angle is replaced by the neighbourhood's.
            smooth = complex_product(image.data, state.baseline.data, neighbours=self._settings.neighbours)
            change = (phase + np.angle(smooth * np.exp(-1j * phase))) * scale - field
        return _Reading(
            change=change.astype(np.float32, copy=False),
            unfiltered=unfiltered,
            sigma=self._sigma(state, image, magnitude),
            magnitude=magnitude,
            wrapped=wrapped,
            no_drift=no_drift,
            fits=fits,
            problems=problems,
        )

    def _drift_field(
        self, state: _Echo, product: ComplexArray, phase: FloatArray
    ) -> tuple[FloatArray, MaskArray, list[DriftFit], list[str]]:
        """Return the drift, °C, where there is none to be had, the fits, and what went wrong."""
        field = np.zeros(phase.shape, dtype=np.float32)
        missing = np.zeros(phase.shape, dtype=bool)
        fits: list[DriftFit] = []
        problems: list[str] = []
        for plane, estimator in enumerate(state.drift):
            fit = estimator.fit(product[plane], phase[plane], state.degc_per_radian)
            fits.append(fit)
            if not fit.problem:
                state.last_good[plane], state.held[plane] = fit, 0
                field[plane] = fit.field_degc
                continue
            state.held[plane] += 1
            kept = state.last_good[plane]
            if kept is not None and state.held[plane] <= self._settings.drift_hold_frames:
                field[plane] = kept.field_degc
                problems.append(f"{fit.problem}; the last good fit is kept ({state.held[plane]} frames old)")
            else:
                missing[plane] = True
                problems.append(f"{fit.problem}; no reading")
        return field, missing, fits, problems

    def _sigma(self, state: _Echo, image: FrameImage, magnitude: FloatArray) -> FloatArray:
        """Return σ_T of one echo, °C; NaN where it is not known."""
        baseline, method = state.baseline, self._settings.sigma
        if method == "temporal" or (method == "auto" and image.noise_sd is None):
            if baseline.phase_sd_rad is None:
                return np.full(magnitude.shape, np.nan, dtype=np.float32)
            factor = abs(state.degc_per_radian) * math.sqrt(1.0 + 1.0 / baseline.n_effective)
            return baseline.phase_sd_rad * np.float32(factor)
        if image.noise_sd is None:
            raise DataError(
                "the images state no noise: whiten them (a noise scan), or set thermometry.sigma to temporal or auto."
            )
        return sigma_by_formula(
            signal=magnitude,
            noise_sd=image.noise_sd,
            baseline_signal=state.magnitude,
            baseline_noise_sd=image.noise_sd if baseline.noise_sd is None else baseline.noise_sd,
            n_effective=baseline.n_effective,
            degc_per_radian=state.degc_per_radian,
        )

    def _map(
        self, service: _Service, images: Sequence[FrameImage], stale: str
    ) -> tuple[TemperatureMap, FrameStatistics]:
        settings, image, body = self._settings, images[0], service.body
        readings = [self._read(service, other) for other in images]
        change, unfiltered, sigma = readings[0].change, readings[0].unfiltered, readings[0].sigma
        if len(readings) > 1:
            times = [self._echo_time(other.echo) for other in images]
            sizes = [reading.magnitude for reading in readings]
            change, weights = combine_echoes([reading.change for reading in readings], sizes, times)
            unfiltered, _ = combine_echoes([reading.unfiltered for reading in readings], sizes, times)
            sigma = np.sqrt(
                sum((weight * reading.sigma) ** 2 for weight, reading in zip(weights, readings, strict=True))
            )
        magnitude, before = readings[0].magnitude, service.echoes[image.echo].magnitude
        wrapped = np.logical_or.reduce([reading.wrapped for reading in readings])
        no_drift = np.logical_or.reduce([reading.no_drift for reading in readings])
        dark = (magnitude <= service.level) | (before <= service.level)
        if service.fat is not None:
            dark |= service.fat
        validity = self._validity(dark, sigma, wrapped, no_drift)
        valid = validity == 0
        change = np.where(valid, change, np.float32(np.nan))
        unfiltered = np.where(valid, unfiltered, np.float32(np.nan))
        absolute = settings.body_temperature_degc is not None
        temperature = change + np.float32(settings.body_temperature_degc) if absolute else None
        time_s = self._time(image)
        dose = self._advance_dose(service, temperature, time_s)
        shown = change if temperature is None else temperature
        rows = [region.row(shown, sigma, absolute=absolute, dose=dose, time_s=time_s) for region in service.regions]
        problems = [text for reading in readings for text in reading.problems]
        share = float(np.median(magnitude[body]) / np.median(before[body]))
        seen = Observation(
            regions=rows,
            signal_share=share,
            wrap_share=float(wrapped.sum() / body.sum()),
            drift_problem="; ".join(problems),
            guard=str(image.meta.get("guard", "")),
        )
        raised = (*alarms(seen, self._limits), *filter(None, (stale,)))
        for text in raised:
            logger.warning("frame %d: %s", image.number, text)
        meta = self._provenance(image) | self._quality(readings, share, service.dose) | {"alarms": raised}
        return TemperatureMap(
            change_degc=change,
            sigma_degc=np.where(body, sigma, np.float32(np.nan)),
            validity=validity,
            number=image.number,
            slice=image.slice,
            temperature_degc=temperature,
            unfiltered_degc=unfiltered,
            cem43_min=dose,
            footprint=image.footprint,
            header=image.header,
            received_s=image.received_s,
            meta=meta,
        ), self._frame_statistics(image, rows, raised, meta)

    def _validity(self, dark: MaskArray, sigma: FloatArray, wrapped: MaskArray, no_drift: MaskArray) -> ValidityArray:
        """Return the bits of `NoReading`; fat has no reading for want of tissue signal."""
        bits = np.where(dark, np.uint16(NoReading.SIGNAL), np.uint16(0))
        bits |= np.where(sigma > self._settings.max_sigma_degc, np.uint16(NoReading.NOISE), np.uint16(0))
        bits |= np.where(wrapped, np.uint16(NoReading.WRAP), np.uint16(0))
        bits |= np.where(no_drift, np.uint16(NoReading.DRIFT), np.uint16(0))
        return bits.astype(np.uint16, copy=False)

    @staticmethod
    def _advance_dose(service: _Service, temperature: FloatArray | None, time_s: float) -> FloatArray | None:
        """Return the dose of every voxel, float32 (slice, y, x), min; NaN outside the body."""
        if temperature is None or service.dose is None:
            return None
        service.dose.update(temperature[service.body], time_s)
        dose = np.full(temperature.shape, np.nan, dtype=np.float32)
        dose[service.body] = service.dose.minutes
        return dose

    def _quality(
        self, readings: Sequence[_Reading], signal_share: float, dose: DoseIntegrator | None
    ) -> dict[str, MetaValue]:
        """Return what the map says about how well it was made."""
        meta: dict[str, MetaValue] = {"signal_share": round(signal_share, 4)}
        fits = readings[0].fits
        if fits:
            meta |= {
                "drift_coefficients_degC": tuple(round(value, 5) for fit in fits for value in fit.coefficients_degc),
                "drift_voxels": sum(fit.voxels for fit in fits),
                "drift_condition": round(max(fit.condition for fit in fits), 2),
                "drift_residual_degC": round(max(fit.residual_degc for fit in fits), 4),
                "drift_ok": not any(fit.problem for fit in fits),
            }
        if dose is not None:
            meta["dose_lower_bound_voxels"] = int(dose.lower_bound.sum())
        return meta

    def _provenance(self, image: FrameImage) -> dict[str, MetaValue]:
        """Return how the map was made, beside what the image says of itself."""
        settings = self._settings
        meta: dict[str, MetaValue] = dict(image.meta) | {
            "prf_coefficient_per_degC": settings.prf_coefficient,
            "systematic_percent": 100.0 * PRF_COEFFICIENT_SPREAD,
            "phase_sign": self._sign,
            "larmor_hz": self._larmor_hz,
            "echo_times_s": tuple(self._echo_times),
            "drift_order": settings.drift_order,
            "cold_mask": settings.cold_mask,
            "sigma_method": settings.sigma,
            "neighbours": settings.neighbours,
        }
        if settings.body_temperature_degc is not None:
            meta["body_temperature_degC"] = settings.body_temperature_degc
        if self._service is not None:
            baseline = next(iter(self._service.echoes.values())).baseline
            meta |= {
                "baseline": self._service.name,
                "baseline_frames": baseline.frames,
                "baseline_rejected": baseline.rejected,
                "baseline_effective_frames": round(baseline.n_effective, 2),
            }
        return meta
