"""The thermometry of one slice: from its images, frame after frame, to temperature maps and statistics."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from sinotherm.core.arrays import FloatArray, MaskArray, ValidityArray
from sinotherm.core.physics import LARMOR_HZ, LONGEST_ECHO_TIME_S, PRF_COEFFICIENT_SPREAD, degc_per_radian
from sinotherm.core.scan import FrameImage, FrameStatistics, MetaValue, NoReading, ScanHeader, TemperatureMap
from sinotherm.errors import BaselineError, DataError, HeaderError, SinothermError
from sinotherm.thermometry.alarms import AlarmLimits, Observation, StaleWatch, alarms
from sinotherm.thermometry.baseline import Baseline, BaselineBuilder, check_fingerprint, fingerprint_of
from sinotherm.thermometry.dose import DoseIntegrator
from sinotherm.thermometry.drift import periphery_mask
from sinotherm.thermometry.fat import fat_phase, find_fat
from sinotherm.thermometry.gaps import FrameCount
from sinotherm.thermometry.measurement import EchoMeasurement, Reading, magnitude
from sinotherm.thermometry.motion import Motion, MotionWatch
from sinotherm.thermometry.phase import combine_echoes
from sinotherm.thermometry.regions import named_regions, region_mask
from sinotherm.thermometry.settings import ThermometrySettings
from sinotherm.thermometry.statistics import RegionStatistics

__all__ = ["COLD_DEGC", "SliceMonitor", "frequency_and_echo_times"]

logger = logging.getLogger(__name__)

_LIVE: Final = (
    "body_temperature_degc",
    "regions",
    "cold_mask",
    "alarm_temperature_degc",
    "alarm_dose_min",
    "alarm_signal",
    "alarm_wrap",
    "baseline_frames",
    "dose_on_new_baseline",
)
"""Settings that `SliceMonitor.configure` changes during a scan."""
_NO_TIME: Final = "the frame carries no time; give thermometry.frame_interval_s"
_NO_NOISE: Final = "the images state none, and it takes two baseline frames or more to see it (baseline_frames)"
_NO_RING_NOISE: Final = (
    "a reference-guided network states none, and it takes frames before heating to see it: set baseline_mode to mean "
    "or library, or measure the images of a linear reconstruction"
)
_DARK: Final = 5.0
"""Noise SDs which the 99th percentile of an image's magnitude exceeds; that of noise alone lies at 3."""
COLD_DEGC: Final = 1.0
"""Change up to which tissue is taken for unheated when a baseline is renewed."""
_MARGIN: Final = 0.5
"""Share of the limits of signal and uncertainty within which a voxel's reading is no matter of luck."""
_LEAST_PATIENCE_S: Final = 1.0
"""Patience with frames of which only the arrival is known: they may come in bursts."""
_HEATED_GROUP: Final = 5
"""Neighbours in a plane that stand out together; fewer are noise."""


def frequency_and_echo_times(scan: ScanHeader, settings: ThermometrySettings) -> tuple[float, tuple[float, ...]]:
    """Return f0 (Hz) and the TE of each echo (s) that the settings give, else the header.

    Raises
    ------
    HeaderError
        Neither gives them, or the header's cannot be meant.
    """
    larmor_hz = settings.larmor_hz if settings.larmor_hz is not None else scan.larmor_hz
    if larmor_hz is None:
        raise HeaderError("the header states no H1resonanceFrequency_Hz: give thermometry.larmor_hz.")
    echo_times_s = settings.echo_times_s or scan.echo_times_s
    if not echo_times_s:
        raise HeaderError("the header states no TE: give thermometry.echo_times_s.")
    if not LARMOR_HZ[0] <= larmor_hz <= LARMOR_HZ[1]:
        raise HeaderError(
            f"the header states an H1resonanceFrequency_Hz of {larmor_hz:g} Hz: it must lie between {LARMOR_HZ[0]:g} "
            f"and {LARMOR_HZ[1]:g}; correct it, or give thermometry.larmor_hz."
        )
    if max(echo_times_s) > LONGEST_ECHO_TIME_S:
        raise HeaderError(
            f"the header states a TE of {1e3 * max(echo_times_s):g} ms: it must not be above "
            f"{1e3 * LONGEST_ECHO_TIME_S:g}; correct it, or give thermometry.echo_times_s."
        )
    return larmor_hz, echo_times_s


@dataclass(slots=True, kw_only=True)
class _Service:
    """A baseline in service, and what is measured against it.

    Attributes
    ----------
    name
        Of the baseline.
    echoes
        Measurement of each echo.
    body, dark
        bool (slice, y, x): voxels with signal in the baseline; those that never have a reading (no signal, fat).
    outside
        bool (slice, y, x): voxels that a referenceless mode cannot read.
    steady
        bool (slice, y, x): voxels that noise alone cannot take out of the limits of signal and uncertainty.
    level
        Signal below this is noise.
    pixel_m
        Size of a pixel (x, y), m.
    watches
        Those of `motion`, made when first asked for.
    """

    name: str
    echoes: dict[int, EchoMeasurement]
    body: MaskArray
    dark: MaskArray
    outside: MaskArray
    fat: MaskArray
    steady: MaskArray
    level: float
    pixel_m: tuple[float, float]
    watches: dict[tuple[int, int], list[MotionWatch]] = field(default_factory=dict)

    def motion(self, echo: int, chosen: int) -> list[MotionWatch]:
        """Return the watch of each slice plane, against the baseline or the state that was chosen of its library."""
        if (echo, chosen) not in self.watches:
            found = self.echoes[echo]
            library = found.baseline.library
            size = magnitude(library[chosen]) if library else found.magnitude
            self.watches[echo, chosen] = [MotionWatch(plane) for plane in size]
        return self.watches[echo, chosen]

    @property
    def first(self) -> EchoMeasurement:
        """The measurement of the first echo."""
        return next(iter(self.echoes.values()))


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

    Attributes
    ----------
    generation
        How many baselines have been put into service.

    Raises
    ------
    HeaderError
        The header lacks f0 or TE and the settings do not give them.
    """

    def __init__(
        self, scan: ScanHeader, settings: ThermometrySettings, *, stored: Mapping[int, Baseline] | None = None
    ) -> None:
        self._settings = settings
        self._stored = stored
        self._builders: dict[int, BaselineBuilder] = {}
        self._renewal = range(0)
        self._forced = False
        self._notices: list[str] = []
        self._shape: tuple[int, int, int] | None = None
        self._pixel_m = scan.pixel_m
        self._seen = 0
        self._service: _Service | None = None
        self.generation = 0
        self._stale = StaleWatch(settings.stale_intervals)
        self._arrivals = StaleWatch(settings.stale_intervals)
        self._count = FrameCount(settings.stale_intervals)
        self._regions: dict[str, RegionStatistics] = {}
        self._dose: DoseIntegrator | None = None
        self._dose_body_degc = math.nan
        self._late = False
        self._hot: MaskArray = np.zeros((1, 1, 1), dtype=bool)
        self._larmor_hz, self._echo_times = frequency_and_echo_times(scan, settings)
        # A baseline is bound to what it was measured with, whether the header or the settings say it.
        self._scan = replace(scan, larmor_hz=self._larmor_hz, echo_times_s=self._echo_times)
        self._sign = 1 if settings.phase_sign is None else settings.phase_sign

    @property
    def baselines(self) -> Mapping[int, Baseline]:
        """The baselines in use, by echo; empty before there is one."""
        return {} if self._service is None else {echo: one.baseline for echo, one in self._service.echoes.items()}

    @property
    def unmeasured(self) -> str:
        """Why no frame could be measured yet, or an empty text once a baseline serves."""
        if self._service is not None:
            return ""
        settings = self._settings
        if settings.baseline_rule == "on_command" and not (self._builders or self._renewal):
            return "none was taken by command"
        return f"{self._came} of {settings.baseline_frames} frames came"

    @property
    def _came(self) -> int:
        return min((len(builder.images) for builder in self._builders.values()), default=0)

    @property
    def n_heated(self) -> int:
        """Voxels whose last reading is warmer than the baseline beyond doubt, more together than noise makes."""
        from scipy.ndimage import label

        groups, _ = label(self._hot, np.pad(np.ones((1, 3, 3), bool), ((1, 1), (0, 0), (0, 0))))
        sizes = np.bincount(groups.ravel())[1:]
        return int(sizes[sizes >= _HEATED_GROUP].sum())

    @property
    def patience_s(self) -> float:
        """Time without a map after which the scan is stale, s; infinite before the second frame."""
        if math.isfinite(self._stale.patience_s):
            return self._stale.patience_s
        return max(self._arrivals.patience_s, _LEAST_PATIENCE_S)

    # --- changes during the scan ----------------------------------------------------------------

    def renew_baseline(self, frames: range, *, forced: bool = False) -> None:
        """Take a new baseline from these frames (counted as in `frame`); the old one serves until it is complete.

        What came of them by the end must do, if it is half of them. Where their baseline cannot be made, or one of
        them is heated and it is not ``forced``, the next frame has an alarm that says so, and the old one serves on.
        """
        self._builders = {}
        self._renewal, self._forced = frames, forced

    def configure(self, settings: ThermometrySettings) -> None:
        """Change what may change during a scan: body temperature, regions, cold mask, alarm limits.

        Raises
        ------
        SettingsError
            A region text cannot be drawn on these images; nothing is changed then.
        """
        values = {name: getattr(settings, name) for name in _LIVE}
        new = self._settings.model_copy(update=values)
        if self._service is not None:
            service = self._service
            regions = self._drawn(new, service)
            if new.cold_mask != self._settings.cold_mask:
                cold = self._cold_mask(new, service.first.magnitude, service.level, service.fat, service.pixel_m)
                for echo in service.echoes.values():
                    echo.set_cold_mask(cold, one_sided=new.cold_mask == "auto")
            self._regions = regions
        else:
            self._try_drawings(new)
        self._settings = new

    # --- baseline -------------------------------------------------------------------------------

    def _in_window(self, ordinal: int) -> int:
        """Return −1, 0 or 1: the frame comes before, in or after those of which the rule makes the baseline."""
        settings = self._settings
        if settings.baseline_rule != "after_frames" or settings.referenceless:
            return 1
        return (ordinal >= settings.baseline_skip) - 1 + (ordinal >= settings.baseline_skip + settings.baseline_frames)

    def _gather(self, images: Sequence[FrameImage], ordinal: int) -> None:
        """Add a frame to the baseline that is being taken, and put it into service once complete.

        The rule's baseline is made of the first frames of the scan, never of later ones that take the
        place of missing ones: those may be heated.
        """
        settings = self._settings
        heated = 0 if self._forced or ordinal not in self._renewal else self.n_heated
        if heated:
            self._refuse(
                f"{heated} voxels became more than {COLD_DEGC:g} degC warmer than the old one while it was taken."
            )
        if ordinal in self._renewal or not (self._renewal or self._service is not None or self._in_window(ordinal)):
            for image in images:
                builder = BaselineBuilder(settings.baseline_frames, library=settings.baseline_mode == "library")
                self._builders.setdefault(image.echo, builder).add(image, self._time(image))
        if self._builders and all(builder.complete for builder in self._builders.values()):
            self._complete()

    def _complete(self, before: FrameImage | None = None) -> None:
        """Put the baseline of the frames collected into service, or say why a commanded one cannot be."""
        came, asked = self._came, len(self._renewal)
        try:
            if 2 * came < asked:
                raise BaselineError(f"{came} of {asked} frames came.")
            self._finish(before)
        except SinothermError as error:
            if not self._renewal:
                raise
            # The plane was moved while it was taken, say: that ends no scan that goes on without it.
            self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        """Take no commanded baseline, which the next frame tells."""
        self._builders, self._renewal = {}, range(0)
        kept = "there is none" if self._service is None else "the old one serves on"
        self._notices.append(f"new baseline refused: {kept}; {why}")

    def _finish(self, before: FrameImage | None = None) -> None:
        """Put the baseline of the frames collected into service; ``before``: with frames missing up to this one."""
        last = next(iter(self._builders.values())).images[-1]
        made = {echo: builder.build(self._scan) for echo, builder in self._builders.items()}
        service = self._serve(made, last, follows=before is None)
        for echo, builder in self._builders.items():
            service.echoes[echo].use_pre_heating(builder.images, builder.times_s)
        missing = 0 if before is None else before.number - last.number - 1
        self._start(service, last, follows=missing <= self._settings.dose_gap_frames)
        self._builders, self._renewal = {}, range(0)

    def _at_once(self, images: Sequence[FrameImage]) -> _Service | None:
        """Return the service of a scan that needs no frames of its own before it can measure, or ``None``."""
        image = images[0]
        if self._settings.referenceless:
            if image.noise_sd is not None and np.percentile(np.abs(image.data), 99.0) < _DARK * np.median(
                image.noise_sd
            ):
                raise BaselineError("the frame holds noise alone: check the receive chain.")
            # What was heated before the first frame that can serve is not known.
            return self._start(self._serve(self._surroundings(images), image), image, follows=self._seen == 1)
        if self._stored is None:
            return None
        missing = [other.echo for other in images if other.echo not in self._stored]
        if missing:
            raise BaselineError(f"the stored baseline has no echo {missing[0]}: store one of this protocol.")
        for other in images:
            # A scan that goes on in the middle of a frame lacks spokes of that one: it has no reading, the next has.
            facts = {name: fact for name, fact in fingerprint_of(other, self._scan).items() if name != "spokes"}
            check_fingerprint(self._stored[other.echo].fingerprint, facts)
        came = {other.echo for other in images}
        # An echo that this frame lacks comes with the next: what it must agree on but for its TE is checked then.
        stored = {
            echo: baseline
            for echo, baseline in self._stored.items()
            if echo in came or self._has_te_of(baseline, replace(image, echo=echo, fingerprint={}))
        }
        return self._start(self._serve(stored, image, follows=False), image, follows=False)

    def _has_te_of(self, baseline: Baseline, image: FrameImage) -> bool:
        """Whether an echo of this scan has the TE, f0 and shape of a baseline."""
        if image.echo >= len(self._echo_times):
            return False
        try:
            check_fingerprint(baseline.fingerprint, fingerprint_of(image, self._scan))
        except BaselineError:
            return False
        return True

    def _surroundings(self, images: Sequence[FrameImage]) -> dict[int, Baseline]:
        """Return what the referenceless modes have for a baseline, by echo: where the body lies."""
        return {
            image.echo: Baseline(
                data=image.data,
                n_effective=math.inf,
                frames=(),
                noise_sd=image.noise_sd,
                fingerprint=fingerprint_of(image, self._scan),
                estimates=image.estimates,
            )
            for image in images
        }

    def _completed(self, service: _Service, images: Sequence[FrameImage]) -> _Service:
        """Return the service with the echoes that the first frame lacked: the referenceless modes need no more."""
        new = [image for image in images if image.echo not in service.echoes]
        if not (new and self._settings.referenceless):
            return service
        completed = self._serve({**self.baselines, **self._surroundings(new)}, images[0])
        self._regions = self._drawn(self._settings, completed)
        self._service = completed
        return completed

    def _serve(self, baselines: Mapping[int, Baseline], image: FrameImage, *, follows: bool = True) -> _Service:
        """Make ready to measure images like this one against baselines, which they follow directly or do not."""
        settings, pixel = self._settings, self._scan.pixel_of(image.data.shape, image.fov_m)
        # The first echo tells where the body lies, also where the first frame lacked it.
        baselines = dict(sorted(baselines.items()))
        echo, first = next(iter(baselines.items()))
        size = magnitude(first.data)
        shape = (size.shape[0], size.shape[1], size.shape[2])
        level = float(np.percentile(size, 99.0)) * settings.min_signal
        body = size > level
        if not body.any():
            raise BaselineError("the baseline holds no signal, or values that are not finite: check the receive chain.")
        heated = region_mask(settings.heated, shape, pixel) if settings.referenceless else None
        fat = self._fat_mask(first, self._echo_time(echo), size, level, pixel)
        cold = self._cold_mask(settings, size, level, fat, pixel)
        periphery = np.stack([periphery_mask(plane, level, pixel) for plane in size])
        return _Service(
            name=first.name,
            echoes={
                echo: EchoMeasurement(
                    baseline,
                    settings=settings,
                    degc_per_radian=degc_per_radian(
                        larmor_hz=self._larmor_hz,
                        echo_time_s=self._echo_time(echo),
                        prf_coefficient=settings.prf_coefficient,
                        phase_sign=self._sign,
                    ),
                    level=level,
                    cold=cold,
                    periphery=periphery,
                    heated=heated,
                    follows=follows,
                )
                for echo, baseline in baselines.items()
            },
            body=body,
            dark=~body | fat,
            outside=np.zeros(shape, dtype=bool) if heated is None else ~heated,
            fat=fat,
            steady=np.zeros(shape, dtype=bool),
            level=level,
            pixel_m=pixel,
        )

    def _start(self, service: _Service, image: FrameImage, *, follows: bool = True) -> _Service:
        """Put a service into use, with the dose kept or begun anew; ``follows``: nothing lies before its frames."""
        self._regions = self._drawn(self._settings, service)
        old, new = (self._service or service).body.shape, service.body.shape
        if old != new:
            self._notices.append(
                f"dose begun anew: (slice, y, x) = {old} became {new}, and the dose has no voxels there; "
                "add what was reached before, and check the regions"
            )
        if old != new or (self._service is not None and self._settings.dose_on_new_baseline == "reset"):
            self._dose = None
            self._regions = self._drawn(self._settings, service, anew=True)
        self._service = service
        self._hot = np.zeros(service.body.shape, dtype=bool)
        self.generation += 1
        self._late = not follows or old != new
        self._begin_dose(self._time(image))
        baseline = service.first.baseline
        logger.info(
            "baseline %s: frames %s%s, %d voxels with signal",
            service.name,
            ", ".join(map(str, baseline.frames)) or "none",
            f" (left out as outliers: {', '.join(map(str, baseline.rejected))})" if baseline.rejected else "",
            int(service.body.sum()),
        )
        return service

    def _fat_mask(
        self, baseline: Baseline, echo_time_s: float, size: FloatArray, level: float, pixel_m: tuple[float, float]
    ) -> MaskArray:
        text = self._settings.fat
        shape = (size.shape[0], size.shape[1], size.shape[2])
        if not text:
            return np.zeros(shape, dtype=bool)
        if text != "auto":
            return region_mask(text, shape, pixel_m)
        if len(baseline.data) != 1:
            raise DataError(
                f"{len(baseline.data)} coil images: fat is found in combined images only; "
                "give thermometry.fat a region."
            )
        offset = fat_phase(larmor_hz=self._larmor_hz, echo_time_s=echo_time_s, phase_sign=self._sign)
        return np.stack(
            [find_fat(plane, shown, level, offset) for plane, shown in zip(baseline.data[0], size, strict=True)]
        )

    def _cold_mask(
        self,
        settings: ThermometrySettings,
        size: FloatArray,
        level: float,
        fat: MaskArray,
        pixel_m: tuple[float, float],
    ) -> MaskArray:
        if settings.cold_mask == "auto":
            return np.stack([periphery_mask(plane, level, pixel_m) for plane in size])
        shape = (size.shape[0], size.shape[1], size.shape[2])
        given = fat if settings.cold_mask == "fat" else region_mask(settings.cold_mask, shape, pixel_m)
        return given & (size > level)

    def _echo_time(self, echo: int) -> float:
        if echo >= len(self._echo_times):
            raise HeaderError(
                f"echo {echo} has no TE: the header or thermometry.echo_times_s states {len(self._echo_times)}; "
                "give one for each echo."
            )
        return self._echo_times[echo]

    # --- regions and dose -----------------------------------------------------------------------

    def _drawn(
        self, settings: ThermometrySettings, service: _Service, *, anew: bool = False
    ) -> dict[str, RegionStatistics]:
        """Return the regions of the settings; one that has not changed keeps its dose."""
        shape = (service.body.shape[0], service.body.shape[1], service.body.shape[2])
        pixel = service.pixel_m
        # The planes of a slab come singly and are not interpolated; volumes, foreign ones, have those of their matrix.
        scan = self._scan
        singly = scan.n_partitions > 1 and shape[0] == 1
        plane_m = scan.plane_m if singly else scan.recon.fov_m[2] / max(1, scan.recon.matrix[2])
        thickness = settings.slice_thickness_m or plane_m
        voxel_ml = pixel[0] * pixel[1] * thickness * 1e6 if thickness > 0.0 else math.nan
        masks = {name: region_mask(text, shape, pixel) for name, text in named_regions(settings.regions).items()}
        regions = {}
        for name, mask in (masks or {"body": service.body}).items():
            old = self._regions.get(name)
            same = old is not None and not anew and np.array_equal(old.mask, mask)
            regions[name] = old if old is not None and same else RegionStatistics(name, mask, voxel_ml)
            regions[name].voxel_ml = voxel_ml
        return regions

    def _time(self, image: FrameImage) -> float:
        """Return the time of a frame, s: centre of its footprint, else its place in the scan times the interval set.

        NaN without either: when it arrived tells the pace of the transport, and a dose of that would be a guess.
        """
        if math.isfinite(image.footprint[1]):
            return image.footprint[1]
        if self._settings.frame_interval_s is not None:
            return (image.number + self._count.missing) * self._settings.frame_interval_s
        return math.nan

    def _begin_dose(self, time_s: float) -> None:
        """Begin the doses that are not being integrated yet, from body temperature; late ones are lower bounds."""
        body, service = self._settings.body_temperature_degc, self._service
        if body is None or service is None or not math.isfinite(time_s):
            return
        if self._dose is None:
            self._dose = DoseIntegrator(
                np.full(service.body.shape, body),
                time_s,
                max_gap_frames=self._settings.dose_gap_frames,
                lower_bound=self._late,
            )
            self._dose_body_degc = body
        for region in self._regions.values():
            if not region.has_dose:
                region.begin_dose(self._dose)

    def _carry_dose_over(self) -> None:
        """Make the dose one of the body temperature that is set now, and tell where that has changed since it began."""
        body, before = self._settings.body_temperature_degc, self._dose_body_degc
        if self._dose is None or body is None or body == before:
            return
        if self._dose.read.any():
            self._notices.append(
                f"dose carried over: it was that of a body temperature of {before:g} degC, now {body:g}; "
                "what had been reached is shown as the least that it can have been"
            )
        self._dose.shift(body - before)
        for region in self._regions.values():
            region.shift_dose(body - before)
        self._dose_body_degc = body

    @property
    def _longest_s(self) -> float:
        """Longest interval over which dose is added, s."""
        return (self._settings.dose_gap_frames + 1.5) * self._stale.expected_s

    def _advance_dose(self, service: _Service, temperature: FloatArray | None, time_s: float) -> FloatArray | None:
        """Return the dose of every voxel, float32 (slice, y, x), min; NaN outside the body and without any reading."""
        if temperature is None or self._dose is None:
            return None
        self._dose.update(temperature, time_s, longest_s=self._longest_s)
        return np.where(service.body & self._dose.read, self._dose.minutes, np.nan).astype(np.float32)

    # --- one frame ------------------------------------------------------------------------------

    def frame(
        self,
        images: Sequence[FrameImage],
        *,
        notes: Mapping[str, MetaValue] | None = None,
        ordinal: int | None = None,
        withheld: str = "",
    ) -> tuple[TemperatureMap, FrameStatistics]:
        """Take the images of a frame, one an echo; return its map and statistics.

        Parameters
        ----------
        images
            Of one frame.
        notes
            What else the meta shall say: commands since the last frame, the scanner's qualification.
        ordinal
            Which frame of the scan this is, from 0; by default as many as this monitor has seen or missed.
        withheld
            Why the network's guard held the frame back: the images are another reconstruction's, stand in for
            it, and are not measured; no voxel has a reading (bit ``GUARD``).

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
        if self._seen == 0:
            self._check_drawings(image)
        said = notes or {}
        counted = self._count.frame(image)
        ordinal = self._seen + self._count.missing if ordinal is None else ordinal
        self._seen += 1
        stale = self._stale.frame(self._time(image)) or counted
        # The clock of arrival judges no frame; it tells how long to wait for the next.
        self._arrivals.frame(image.received_s)
        if not (self._stale.follows and self._count.follows):
            self._lose()
        waits = self._builders and self._service is None and self._in_window(ordinal) > 0
        if ordinal >= self._renewal.stop if self._renewal else waits:
            # Frames of the window were missing: what came of it must do.
            self._complete(before=image)
        self._carry_dose_over()
        if withheld:
            return self._no_map(image, NoReading.GUARD, Observation(guard=withheld), stale, said)
        service, problem = self._service, ""
        try:
            service = self._at_once(images) if service is None else self._completed(service, images)
        except BaselineError as error:
            if not self._settings.referenceless:
                raise
            # One dark frame at the start: the next one may serve.
            problem = str(error)
        if service is not None:
            problem = self._misfit(service, images)
        elif not (
            problem or self._builders or self._settings.baseline_rule == "on_command" or self._in_window(ordinal) <= 0
        ):
            problem = "none was taken of this reconstruction at the start of the scan; command set_baseline when cold"
        if service is None or problem:
            found = self._no_map(image, NoReading.NO_BASELINE, Observation(baseline_problem=problem), stale, said)
        else:
            found = self._map(service, images, stale, said)
        self._gather(images, ordinal)
        return found

    def _check_drawings(self, image: FrameImage) -> None:
        """Refuse a region that cannot be drawn at the first frame, not when the baseline is complete."""
        self._shape = (image.data.shape[1], image.data.shape[2], image.data.shape[3])
        self._pixel_m = self._scan.pixel_of(self._shape, image.fov_m)
        if image.fov_m is None and self._shape[:0:-1] != self._scan.recon.matrix[:2]:
            logger.warning(
                "the images have %d x %d pixels, the header says %d x %d, and they state no field of view: they are "
                "taken to show all of the header's",
                *(self._shape[2], self._shape[1], *self._scan.recon.matrix[:2]),
            )
        self._try_drawings(self._settings)

    def _try_drawings(self, settings: ThermometrySettings) -> None:
        if self._shape is not None:
            for text in settings.drawings:
                region_mask(text, self._shape, self._pixel_m)

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

    def _no_map(
        self, image: FrameImage, reason: NoReading, seen: Observation, stale: str, notes: Mapping[str, MetaValue]
    ) -> tuple[TemperatureMap, FrameStatistics]:
        """Return the map and statistics of a frame without a single reading; to the dose it is a gap."""
        nothing = np.full(image.data.shape[1:], np.nan, dtype=np.float32)
        self._lose()
        absolute, service, time_s = self._settings.body_temperature_degc is not None, self._service, self._time(image)
        rows: list[Mapping[str, MetaValue]] = []
        dose = nothing
        if service is not None:
            blank = np.full(service.body.shape, np.nan, dtype=np.float32)
            kept = self._advance_dose(service, blank if absolute else None, time_s)
            rows = [
                region.row(blank, blank, absolute=absolute, dose=kept, time_s=time_s, longest_s=self._longest_s)
                for region in self._regions.values()
            ]
            # A frame that does not fit the baseline may have another shape.
            dose = kept if kept is not None and kept.shape == nothing.shape else nothing
        raised = self._raised(image, seen, stale)
        meta = self._provenance(image) | dict(notes) | {"alarms": raised}
        return TemperatureMap(
            change_degc=nothing,
            sigma_degc=nothing,
            validity=np.full(nothing.shape, int(reason), dtype=np.uint16),
            number=image.number,
            slice=image.slice,
            temperature_degc=nothing if absolute else None,
            unfiltered_degc=nothing if self._settings.filtered else None,
            cem43_min=dose if absolute else None,
            fov_m=image.fov_m,
            footprint=image.footprint,
            header=image.header,
            received_s=image.received_s,
            meta=meta,
        ), self._frame_statistics(image, rows, raised, meta)

    def _lose(self) -> None:
        """Say that a frame is missing or has no map: what heats meanwhile may turn by more than can be followed."""
        if self._service is not None:
            for echo in self._service.echoes.values():
                echo.lose()

    def _raised(self, image: FrameImage, seen: Observation, stale: str) -> tuple[str, ...]:
        """Return the alarms of a frame, logged."""
        settings = self._settings
        limits = AlarmLimits(
            temperature_degc=settings.alarm_temperature_degc,
            dose_min=settings.alarm_dose_min,
            signal_share=settings.alarm_signal,
            wrap_share=settings.alarm_wrap,
        )
        notices, self._notices = self._notices, []
        raised = (*alarms(seen, limits), *filter(None, (stale, *notices, self._untimed(image))))
        for text in raised:
            logger.warning("frame %d: %s", image.number, text)
        return raised

    def _untimed(self, image: FrameImage) -> str:
        """Return what there cannot be for want of a time, or an empty text."""
        wanted = {
            "no dose": self._settings.body_temperature_degc is not None,
            "no filter in time": self._settings.temporal != "none",
        }
        lacking = " and ".join(name for name, asked in wanted.items() if asked)
        return f"{lacking}: {_NO_TIME}" if lacking and not math.isfinite(self._time(image)) else ""

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

    def _map(
        self, service: _Service, images: Sequence[FrameImage], stale: str, notes: Mapping[str, MetaValue]
    ) -> tuple[TemperatureMap, FrameStatistics]:
        settings, image, body = self._settings, images[0], service.body
        size = magnitude(np.where(np.isfinite(image.data), image.data, np.complex64(0.0)))
        readings = [service.echoes[other.echo].read(other, self._time(image)) for other in images]
        watches = service.motion(image.echo, readings[0].chosen)
        motion = [watch.compare(plane) for watch, plane in zip(watches, size, strict=True)]
        moved = [self._moved(number, found) if body[number].any() else "" for number, found in enumerate(motion)]
        share = float(np.median(size[body]) / np.median(service.echoes[image.echo].magnitude[body]))
        unusable = [bool(text) or share < settings.alarm_signal for text in moved]
        for other in images:
            service.echoes[other.echo].withdraw(unusable)
        for echo in service.echoes.keys() - {other.echo for other in images}:
            service.echoes[echo].lose()
        change, unfiltered, sigma, of_frame = self._combined(images, readings)
        wrapped = np.logical_or.reduce([reading.wrapped for reading in readings])
        dark = np.logical_or.reduce([service.dark, *(other.held for other in images if other.held is not None)])
        bits = self._validity(service, dark, readings, sigma, wrapped, moved)
        lost = self._lost(service, dark, readings[0].magnitude, service.echoes[image.echo].magnitude, of_frame, bits)
        valid = bits == 0
        change = np.where(valid, change, np.float32(np.nan))
        # What has no reading is as it was last seen; a phase that jumped is heat, as far as anyone knows.
        self._hot = np.where(valid, change > COLD_DEGC + 3.0 * sigma, self._hot | (bits == NoReading.WRAP))
        absolute = settings.body_temperature_degc is not None
        temperature = change + np.float32(settings.body_temperature_degc) if absolute else None
        time_s = self._time(image)
        self._begin_dose(time_s)
        self._late = True
        dose = self._advance_dose(service, temperature, time_s)
        shown = change if temperature is None else temperature
        rows = [
            region.row(shown, sigma, lost, absolute=absolute, dose=dose, time_s=time_s, longest_s=self._longest_s)
            for region in self._regions.values()
        ]
        seen = Observation(
            regions=rows,
            signal_share=share,
            wrap_share=float(wrapped.sum() / body.sum()),
            noise_problem="" if np.isfinite(sigma[body]).any() else self._no_noise(image),
            drift_problem="; ".join(text for reading in readings for text in reading.problems),
            motion="; ".join(filter(None, moved)),
            baseline_problem=self._doubt(images, readings),
        )
        raised = self._raised(image, seen, stale)
        meta = self._provenance(image) | self._quality(readings[0], motion, share) | dict(notes) | {"alarms": raised}
        return TemperatureMap(
            change_degc=change,
            sigma_degc=np.where(body, sigma, np.float32(np.nan)),
            validity=bits,
            number=image.number,
            slice=image.slice,
            temperature_degc=temperature,
            unfiltered_degc=None if unfiltered is None else np.where(valid, unfiltered, np.float32(np.nan)),
            cem43_min=dose,
            fov_m=image.fov_m,
            footprint=image.footprint,
            header=image.header,
            received_s=image.received_s,
            meta=meta,
        ), self._frame_statistics(image, rows, raised, meta)

    def _no_noise(self, image: FrameImage) -> str:
        if not self._settings.referenceless:
            return _NO_NOISE
        return _NO_RING_NOISE if image.reference is not None else "there is no signal in the ring to see it in"

    def _combined(
        self, images: Sequence[FrameImage], readings: Sequence[Reading]
    ) -> tuple[FloatArray, FloatArray | None, FloatArray, FloatArray]:
        """Return change, change before the filters (``None`` without one), σ_T and that of the frame, of all echoes."""
        if len(readings) == 1:
            one = readings[0]
            return one.change, one.unfiltered, np.hypot(one.sigma, one.shared), np.hypot(one.sigma_of_frame, one.shared)
        times = [self._echo_time(image.echo) for image in images]
        # An echo that is not followed shows an earlier phase, one whose state is not known that of another breath.
        none = not any(reading.placed for reading in readings)
        sizes = [
            np.where(reading.followed & (reading.placed or none), reading.magnitude, np.float32(0.0))
            for reading in readings
        ]
        change, weights = combine_echoes([reading.change for reading in readings], sizes, times)
        kept = [reading.unfiltered for reading in readings if reading.unfiltered is not None]
        unfiltered = combine_echoes(kept, sizes, times)[0] if kept else None

        def weighted(parts: Sequence[FloatArray]) -> FloatArray:
            # What has no weight may be infinitely uncertain.
            return np.stack(
                [
                    np.multiply(weight, one, where=weight > 0.0, out=np.zeros_like(weight))
                    for weight, one in zip(weights, parts, strict=True)
                ]
            )

        shared = weighted([one.shared for one in readings]).sum(axis=0)
        sigma, of_frame = (
            np.sqrt(np.square(weighted(noise)).sum(axis=0) + np.square(shared))
            for noise in ([one.sigma for one in readings], [one.sigma_of_frame for one in readings])
        )
        return change, unfiltered, sigma, of_frame

    def _doubt(self, images: Sequence[FrameImage], readings: Sequence[Reading]) -> str:
        """Return what speaks against the state that was chosen of a library.

        The echo that counts most says it, of those whose state is known: a late one has hardly any signal to tell it.
        """
        known = [pair for pair in zip(images, readings, strict=True) if pair[1].placed]
        _, reading = max(
            known or zip(images, readings, strict=True),
            key=lambda pair: float(np.square(self._echo_time(pair[0].echo) * pair[1].magnitude).sum(dtype=np.float64)),
        )
        if reading.match is None or not reading.match.doubt:
            return ""
        return reading.match.doubt if known else f"{reading.match.doubt}; no reading"

    def _moved(self, plane: int, found: Motion) -> str:
        """Return why a plane has moved, or an empty text."""
        settings = self._settings
        if found.correlation < settings.motion_correlation:
            return (
                f"correlation with the baseline {found.correlation:.3f} in plane {plane}, "
                f"limit {settings.motion_correlation:g}"
            )
        if found.distance_px > settings.motion_shift_px:
            return (
                f"edges shifted by {found.distance_px:.2f} pixels in plane {plane}, limit {settings.motion_shift_px:g}"
            )
        return ""

    def _validity(
        self,
        service: _Service,
        dark: MaskArray,
        readings: Sequence[Reading],
        sigma: FloatArray,
        wrapped: MaskArray,
        moved: Sequence[str],
    ) -> ValidityArray:
        """Return the bits of `NoReading`; fat has no reading for want of tissue signal."""
        bits = np.where(dark | ~(readings[0].magnitude > service.level), np.uint16(NoReading.SIGNAL), np.uint16(0))
        followed = np.logical_or.reduce([reading.followed for reading in readings]) | service.outside
        # An uncertainty that is not known is none.
        certain = followed & (sigma <= self._settings.max_sigma_degc)
        bits |= np.where(certain, np.uint16(0), np.uint16(NoReading.NOISE))
        bits |= np.where(wrapped, np.uint16(NoReading.WRAP), np.uint16(0))
        bits |= np.where(service.outside, np.uint16(NoReading.NO_BASELINE), np.uint16(0))
        for reading in readings:
            bits |= np.where(reading.no_drift, np.uint16(NoReading.DRIFT), np.uint16(0))
        if not any(reading.placed for reading in readings):
            bits |= np.uint16(NoReading.NO_BASELINE)
        bits[[bool(text) for text in moved]] |= np.uint16(NoReading.MOTION)
        return bits.astype(np.uint16, copy=False)

    def _lost(
        self,
        service: _Service,
        dark: MaskArray,
        size: FloatArray,
        usual: FloatArray,
        sigma: FloatArray,
        bits: ValidityArray,
    ) -> ValidityArray:
        """Return the bits of the voxels that could be read before, and 0 where none is expected to be.

        At the rim of the body and in fat there never is a reading, and where signal or uncertainty lie at their
        limits (half of them, at the usual signal) noise takes it now and then.
        """
        most = min(self._settings.max_sigma_degc, *(echo.most_sigma_degc for echo in service.echoes.values()))
        with np.errstate(invalid="ignore"):
            # At the usual signal: a bright frame's uncertainty is smaller by chance.
            certain = sigma * np.maximum(size, usual) <= _MARGIN * most * usual
        service.steady |= certain & (_MARGIN * usual > service.level) & ~dark
        weak = np.uint16(NoReading.SIGNAL | NoReading.NOISE)
        expected = (service.steady | ((bits & weak) == 0)) & ~(service.outside | dark)
        return np.where(expected, bits, np.uint16(0))

    def _quality(self, reading: Reading, motion: Sequence[Motion], share: float) -> dict[str, MetaValue]:
        """Return what the map says about how well it was made."""
        meta: dict[str, MetaValue] = {
            "signal_share": round(share, 4),
            "motion_correlation": round(min(found.correlation for found in motion), 4),
            "motion_shift_px": round(max(found.distance_px for found in motion), 3),
        }
        fits = reading.fits
        if fits:
            meta |= {
                "drift_coefficients_degC": tuple(round(value, 5) for fit in fits for value in fit.coefficients_degc),
                "drift_voxels": sum(fit.voxels for fit in fits),
                "drift_condition": round(max(fit.condition for fit in fits), 2),
                "drift_residual_degC": round(max(fit.residual_degc for fit in fits), 4),
                "drift_ok": not any(fit.problem for fit in fits),
            }
        if reading.match is not None:
            meta["baseline_score"] = round(reading.match.score, 5)
        if self._dose is not None:
            meta["dose_lower_bound_voxels"] = int((self._dose.lower_bound & self._dose.read).sum())
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
            "temporal": settings.temporal,
            "baseline_mode": settings.baseline_mode,
        }
        if settings.body_temperature_degc is not None:
            meta["body_temperature_degC"] = settings.body_temperature_degc
        if self._service is not None:
            baseline = self._service.first.baseline
            if not settings.referenceless:
                # A stored baseline is what it was taken as.
                meta["baseline_mode"] = "library" if baseline.library else "mean"
            meta |= {
                "baseline": self._service.name,
                "baseline_frames": baseline.frames,
                "baseline_rejected": baseline.rejected,
            }
            if math.isfinite(baseline.n_effective):
                meta["baseline_effective_frames"] = round(baseline.n_effective, 2)
        return meta
