"""Stage: reconstructs frames by NUFFT gridding; and what every linear reconstruction of a frame shares."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import Frame, FrameImage, Item, MetaValue, ScanHeader, Spoke
from sinotherm.core.settings import StageSettings, setting
from sinotherm.frames.assembly import geometry_text
from sinotherm.frames.calibration import calibration_facts, check_stored, stored_estimate
from sinotherm.operators.backend import frame_backend
from sinotherm.operators.backprojection import BackProjector, interleave_coils
from sinotherm.operators.coils import adaptive_maps, combine, espirit_maps, maps_name, rss
from sinotherm.operators.density import (
    AngularWeights,
    CentreRule,
    RadialFilter,
    angular_weights,
    lone_factors,
    perpendicular_shift,
    radial_weights,
    resolution,
)
from sinotherm.operators.gridded import GriddedPlan
from sinotherm.operators.nufft import radial_points

__all__ = [
    "CoilMaps",
    "CoilSource",
    "FrameImager",
    "Gridder",
    "LinearSettings",
    "Settings",
    "forget_left",
    "image_shape",
    "stage",
]

logger = logging.getLogger(__name__)

Combination: TypeAlias = Literal["maps", "rss", "none"]
MapMethod: TypeAlias = Literal["adaptive", "espirit"]

_STILL: Final = 1e-6
"""Samples beside k = 0 that are none."""
LEFT: Final = 32
"""Planes that slices have left, of which what is frozen is kept: a plane that moves on and on would take all memory."""


class LinearSettings(StageSettings):
    """Settings that filtered back-projection and gridding share."""

    filter: RadialFilter = setting(
        "ramp", "Radial filter: the ramp, or the ramp under a Hann window (softer, less noise)."
    )
    weights: AngularWeights = setting(
        "equal", "Angle that each spoke stands for: π over their number, or half the gap to both neighbours."
    )
    centre: CentreRule = setting(
        "exact",
        "Weight at the centre of k-space: the exact quadrature, or the classical area of the sample, which leaves a "
        "constant pedestal under the image.",
    )
    combine: Combination = setting(
        "maps",
        "Coil combination: by maps from the first frames (keeps the phase), root sum of squares (magnitude only), or "
        "none (all coils).",
    )
    maps: MapMethod = setting(
        "adaptive",
        "How coil maps are made: adaptive (Walsh) from the images, good down to 16 spokes; or ESPIRiT from the centre "
        "of k-space, which needs 40 or more.",
    )
    maps_frames: int = setting(
        1, "Frames that the coil maps are made of; they are held back until the last of them.", ge=1, le=64
    )


class Settings(LinearSettings):
    """NUFFT gridding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoilMaps:
    """Frozen coil maps: complex64 (coil, y, x), Σ|s|² = 1; the same as (y, x, coil); their name by content."""

    maps: ComplexArray
    interleaved: ComplexArray
    name: str

    @classmethod
    def estimated(cls, images: ComplexArray, method: MapMethod) -> "CoilMaps":
        """Estimate maps from coil images (coil, y, x)."""
        return cls.of(adaptive_maps(images) if method == "adaptive" else espirit_maps(images))

    @classmethod
    def of(cls, maps: ComplexArray) -> "CoilMaps":
        """Return these maps, complex64 (coil, y, x)."""
        return cls(maps=maps, interleaved=interleave_coils(maps), name=maps_name(maps))


class CoilSource(Protocol):
    """Coil images of a frame, in units of the object, and their combinations."""

    def coil_images(self) -> ComplexArray:
        """Return the coil images, complex64 (coil, y, x), that nobody will overwrite."""

    def combined(self, maps: CoilMaps) -> ComplexArray:
        """Return Σ_c conj(s_c)·x_c, complex64 (y, x)."""

    def root_sum_of_squares(self) -> ComplexArray:
        """Return sqrt(Σ_c |x_c|²), complex64 (y, x)."""


@dataclass(frozen=True, slots=True)
class Coils:
    """Coil images (coil, y, x) at hand as a `CoilSource`."""

    images: ComplexArray

    def coil_images(self) -> ComplexArray:
        """Return them."""
        return self.images

    def combined(self, maps: CoilMaps) -> ComplexArray:
        """Return Σ_c conj(s_c)·x_c."""
        return combine(self.images, maps.maps)

    def root_sum_of_squares(self) -> ComplexArray:
        """Return sqrt(Σ_c |x_c|²)."""
        return rss(self.images).astype(np.complex64)


def forget_left(frozen: dict[tuple[int, str], Any], place: tuple[int, str]) -> None:
    """Forget what is frozen for the planes that their slices left longest ago, but for the last `LEFT` of them.

    Parameters
    ----------
    frozen
        By slice and geometry; changed in place.
    place
        Slice and geometry of the present frame.
    """
    frozen[place] = frozen.pop(place)
    newest = {slice_: (slice_, geometry) for slice_, geometry in frozen}
    left = [one for one in frozen if newest[one[0]] != one]
    for one in left[:-LEFT]:
        logger.info("slice %d: the plane at %s is forgotten; if it comes again, its coil maps are made anew", *one)
        del frozen[one]


def image_shape(scan: ScanHeader) -> tuple[int, int]:
    """Return the image (y, x) in pixels that the header asks for."""
    return scan.recon.matrix[1], scan.recon.matrix[0]


class FrameImager:
    """Turns coil images of frames into `FrameImage`: frozen maps, noise, fingerprint, meta.

    Maps are made once per slice and plane, from the mean of its first frames, which are held back until then;
    those of a stored baseline serve at once. Of planes that slices have left only the last `LEFT` are kept.

    Parameters
    ----------
    scan
        The scan's header.
    method
        Name of the reconstruction.
    settings
        Filter, weights, combination.
    """

    def __init__(self, scan: ScanHeader, method: str, settings: LinearSettings) -> None:
        self._scan = scan
        self._method = method
        self._settings = settings
        self._maps: dict[tuple[int, str], CoilMaps] = {}
        self._held: dict[tuple[int, str], list[tuple[Frame, ComplexArray]]] = {}
        self._voxel_m: tuple[float, ...] = ()
        self._noise_map: tuple[float, FloatArray] | None = None

    def images(self, frame: Frame, source: CoilSource) -> Iterator[FrameImage]:
        """Yield the image of this frame, or of all that waited for the maps; nothing while maps are being made."""
        settings = self._settings
        if settings.combine == "none":
            yield self._image(frame, source.coil_images(), None)
        elif settings.combine == "rss":
            yield self._image(frame, source.root_sum_of_squares()[None], None)
        else:
            place = (frame.slice, geometry_text(frame.header))
            maps = self._maps.get(place) or self._stored(place, frame)
            if maps is not None:
                forget_left(self._maps, place)
                yield self._image(frame, source.combined(maps)[None], maps)
                return
            held = self._held.setdefault(place, [])
            waiting = [one for one in self._held if one[0] == frame.slice]
            if len(waiting) > LEFT:
                yield from self._release(waiting[0])
            held.append((frame, source.coil_images()))
            if len(held) >= settings.maps_frames:
                yield from self._release(place)

    def rest(self) -> Iterator[FrameImage]:
        """Yield the frames of a scan that ended before it had enough of them for the maps."""
        for place in list(self._held):
            yield from self._release(place)

    def _release(self, place: tuple[int, str]) -> Iterator[FrameImage]:
        held = self._held.pop(place)
        mean = np.asarray(np.mean([images for _, images in held], axis=0, dtype=np.complex64))
        maps = self._maps[place] = CoilMaps.estimated(mean, self._settings.maps)
        forget_left(self._maps, place)
        logger.info("coil maps of slice %d frozen: %s, of %d frames", place[0], maps.name, len(held))
        for frame, images in held:
            yield self._image(frame, combine(images, maps.maps)[None], maps)

    def _stored(self, place: tuple[int, str], frame: Frame) -> CoilMaps | None:
        """Return the maps of the stored baseline of this slice, or ``None``."""
        maps = stored_estimate(self._scan, "coil_maps", slice_=frame.slice)
        if maps is None:
            return None
        check_stored("coil maps", maps.shape, (len(frame.spokes[0].data), *image_shape(self._scan)))
        found = self._maps[place] = CoilMaps.of(maps)
        logger.info("coil maps of slice %d: %s, of the stored baseline", place[0], found.name)
        return found

    def _image(self, frame: Frame, data: ComplexArray, maps: CoilMaps | None) -> FrameImage:
        settings = self._settings
        if not self._voxel_m:
            width = resolution(frame.sampling, settings.filter)
            self._voxel_m = tuple(round(width * size, 9) for size in self._scan.pixel_m)
        meta: dict[str, MetaValue] = {
            **frame.meta,
            "method": self._method,
            "filter": settings.filter,
            "weights": settings.weights,
            "centre_weight": settings.centre,
            "combine": settings.combine,
            "spokes": frame.n_spokes,
            "effective_voxel_m": self._voxel_m,
        }
        if maps is not None:
            meta |= {"coil_maps": maps.name, "coil_maps_method": settings.maps}
        return FrameImage(
            data=np.ascontiguousarray(data[:, None]),
            number=frame.number,
            slice=frame.slice,
            echo=frame.echo,
            phase_valid=settings.combine != "rss",
            noise_sd=self._noise(frame),
            spokes=frame.spokes,
            fingerprint=self._fingerprint(frame, maps),
            estimates={**frame.spokes[-1].estimates, **({} if maps is None else {"coil_maps": maps.maps})},
            footprint=frame.footprint,
            header=frame.header,
            received_s=frame.received_s,
            meta=meta,
        )

    def _noise(self, frame: Frame) -> FloatArray | None:
        """Return sqrt(Σ w²) over the measured samples, the same in every pixel; ``None`` without a noise scan.

        A gradient delay changes it by less than a thousandth and is left out.
        """
        if not all(spoke.noise_known for spoke in frame.spokes):
            return None
        settings = self._settings
        measured = frame.measured()
        weights = radial_weights(
            frame.angles(),
            frame.sampling,
            weights=settings.weights,
            radial_filter=settings.filter,
            centre=settings.centre,
            measured=measured,
        )
        level = float(np.linalg.norm(weights[:, measured]))
        if self._noise_map is None or self._noise_map[0] != level:
            self._noise_map = level, np.full((1, *image_shape(self._scan)), level, np.float32)
            self._noise_map[1].flags.writeable = False
        return self._noise_map[1]

    def _fingerprint(self, frame: Frame, maps: CoilMaps | None) -> Mapping[str, str]:
        settings, sampling = self._settings, frame.sampling
        facts = {
            "method": f"{self._method} {settings.filter} {settings.weights} {settings.centre} {settings.combine}",
            "coils": str(len(frame.spokes[0].data)),
            "sampling": f"{sampling.n_readout} x {sampling.spacing:.6g} about {sampling.centre:.6g}",
            "spokes": str(frame.n_spokes),
            "geometry": geometry_text(frame.header),
        }
        if maps is not None:
            facts["coil_maps"] = maps.name
        return {**facts, **calibration_facts(frame.spokes[-1])}


class Gridder:
    """Coil images of frames: the whole adjoint at once, by what is fastest for its coils and spokes.

    Parameters
    ----------
    shape
        Image (y, x) in pixels.
    settings
        Filter and weights.
    """

    def __init__(self, shape: tuple[int, int], settings: LinearSettings) -> None:
        self._shape = shape
        self._settings = settings
        self._plan: tuple[bytes, GriddedPlan] | None = None
        self._projector: BackProjector | None = None

    def coil_images(self, frame: Frame) -> ComplexArray:
        """Return complex64 (coil, y, x) in units of the object."""
        data, angles, shifts, measured = frame.data(), frame.angles(), frame.shifts(), frame.measured()
        # Spokes beside k = 0 and partial echoes need weights that back-projection does not know.
        straight = np.abs(perpendicular_shift(angles, shifts)).max() < _STILL * frame.sampling.spacing
        even = not np.any(lone_factors(angles, frame.sampling, measured, self._settings.weights) != 1.0)
        if straight and even and frame_backend(*data.shape[:2]) == "back-projection":
            return self._projected(data, angles, shifts, frame.sampling)
        key = angles.tobytes() + shifts.tobytes() + repr(frame.sampling).encode() + measured.tobytes()
        if self._plan is None or self._plan[0] != key:
            settings = self._settings
            weights = radial_weights(
                angles,
                frame.sampling,
                weights=settings.weights,
                radial_filter=settings.filter,
                centre=settings.centre,
                shifts=shifts,
                measured=measured,
            )
            points = radial_points(angles, frame.sampling, shifts)
            self._plan = key, GriddedPlan(points, self._shape, factors=weights)
        return self._plan[1].adjoint(data.reshape(len(data), -1))

    def _projected(
        self, data: ComplexArray, angles: SpokeAngles, shifts: SpokeShifts, sampling: RadialSampling
    ) -> ComplexArray:
        settings, projector = self._settings, self._projector
        if projector is None or projector.n_coils != len(data) or projector.sampling != sampling:
            projector = self._projector = BackProjector(
                self._shape, len(data), sampling, radial_filter=settings.filter, centre=settings.centre
            )
        projector.reset()
        projector.add_batch(data, angles, angular_weights(angles, settings.weights), shifts)
        return projector.coil_images()


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Swallow spokes and frames, yield the frames' images."""
    gridder = Gridder(image_shape(scan), settings)
    imager = FrameImager(scan, "gridding", settings)
    for item in items:
        if isinstance(item, Frame):
            yield from imager.images(item, Coils(gridder.coil_images(item)))
        elif not isinstance(item, Spoke):
            yield item
    yield from imager.rest()
