"""Stage: CG-SENSE, or SENSE with total variation, frame by frame."""

import logging
import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from pydantic import field_validator
from scipy.ndimage import gaussian_filter

from sinotherm.core.arrays import ComplexArray, FloatArray
from sinotherm.core.scan import Frame, FrameImage, Item, MetaValue, ScanHeader, Spoke
from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import BaselineError
from sinotherm.frames.assembly import geometry_text
from sinotherm.frames.calibration import calibration_facts, check_stored, enough_spokes, stored_estimate
from sinotherm.operators.coils import PlaneImages, adaptive_maps, maps_name
from sinotherm.operators.density import readout_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import IterativeImage, grid_size, iterate_cg, sample_weights
from sinotherm.reconstruction.sense_normal import SenseNormal
from sinotherm.reconstruction.total_variation import iterate_tv
from sinotherm.stages.gridding import forget_left

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)

_REPLICA_BLUR: Final = 2.0
"""Pixels over which the variance of pseudo-replicas is averaged: few replicas make a grainy map."""


class Settings(StageSettings):
    """Iterative reconstruction."""

    regularisation: Literal["l2", "tv"] = setting("l2", "Penalty on the image's energy, or on its total variation.")
    strength: float = setting(0.0, "Its strength relative to the data; 0: 1e-3 for l2, 3e-4 for tv.", ge=0.0, le=1.0)
    iterations: int = setting(12, "Iterations (l2), or rounds of three (tv); they regularise too.", ge=1, le=1000)
    density: float = setting(
        0.5, "Exponent of the sample weights: 0 least noise and slow, 1 ramp and fastest.", ge=0.0, le=1.0
    )
    corner: float = setting(
        0.2,
        "With l2, spatial frequency beyond which less detail is expected where spokes are sparse; 0: nowhere.",
        unit="cycles per pixel",
        ge=0.0,
        le=1.0,
    )
    grid: float = setting(
        0.0,
        "Side of the grid relative to the image, 1 or more, cropped last; 0: as far as the coils see.",
        ge=0.0,
        le=2.0,
    )
    maps_spokes: int = setting(
        64, "Spokes that the coil maps are made of at least; the first frames wait for them.", ge=1
    )
    maps_block: int = setting(9, "Side of the block that a coil map's voxel is made of.", unit="pixels", ge=1, le=63)
    time_budget: float = setting(
        0.0, "No iteration but the first begins after this time; 0: no bound.", unit="s", ge=0.0
    )
    warm_start: bool = setting(
        False,
        "Start from the last frame: fewer iterations, but frames are then not independent of each other, and there is "
        "no noise map.",
    )
    replicas: int = setting(
        8, "Pseudo-replicas behind the noise map, made once a slice; 0: no noise map, and no uncertainty.", ge=0, le=256
    )

    @field_validator("grid")
    @classmethod
    def _holds_the_image(cls, value: float) -> float:
        if 0.0 < value < 1.0:
            raise ValueError("the image does not fit into a smaller grid; give 1 to 2, or 0")
        return value


@dataclass(slots=True, kw_only=True)
class _Plane:
    """What is frozen for one slice, and what the next frame of it may use."""

    waiting: list[Frame] = field(default_factory=list)
    maps: PlaneImages = field(default_factory=lambda: np.empty((0, 0, 0), np.complex64))
    name: str = ""
    noise_sd: FloatArray | None = None
    noise_rounds: int = 0
    amplitude: float | None = None
    key: bytes = b""
    normal: SenseNormal | None = None
    last: dict[int, ComplexArray] = field(default_factory=dict)


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Yield the image of every frame; spokes end here.

    The first frames of a slice wait until there are enough spokes for coil maps. Maps, grid, noise map
    and the scale of the total variation then hold for the scan. Those of a stored baseline serve at once. Of planes
    that slices have left only the last ones are kept.

    Raises
    ------
    BaselineError
        The stored baseline's maps are of another number of coils, or of a smaller image.
    """
    planes: dict[tuple[int, str], _Plane] = {}
    beginning: dict[tuple[int, str], _Plane] = {}
    for item in items:
        if isinstance(item, Spoke):
            continue
        if not isinstance(item, Frame):
            yield item
            continue
        place = (item.slice, geometry_text(item.header))
        if place not in planes:
            plane = beginning.setdefault(place, _Plane())
            plane.waiting.append(item)
            stored = stored_estimate(scan, "coil_maps", slice_=item.slice)
            if stored is None and not enough_spokes(plane.waiting, settings.maps_spokes):
                continue
            del beginning[place]
            if (yield from _released(plane, scan, settings)):
                planes[place] = plane
                forget_left(planes, place)
        else:
            forget_left(planes, place)
            yield _image(planes[place], item, scan, settings)
    while beginning:
        # What is made of one is not kept for the next.
        plane = beginning.pop(next(iter(beginning)))
        logger.warning("coil maps from %d spokes only: the scan ended", sum(f.n_spokes for f in plane.waiting))
        yield from _released(plane, scan, settings)


def _released(plane: _Plane, scan: ScanHeader, settings: Settings) -> Generator[Item, None, bool]:
    """Yield the images of the frames that waited; return whether the plane's maps are made of any signal."""
    signal = _calibrate(plane, scan, settings)
    waiting, plane.waiting = plane.waiting, []
    for frame in waiting:
        yield _image(plane, frame, scan, settings)
    if not signal:
        logger.warning(
            "slice %d: %d frames hold zeros only; the next make the coil maps", waiting[0].slice, len(waiting)
        )
    return signal


def _strength(settings: Settings) -> float:
    return settings.strength or {"l2": 1e-3, "tv": 3e-4}[settings.regularisation]


def _side(scan: ScanHeader) -> int:
    return max(scan.recon.matrix[:2])


def _calibrate(plane: _Plane, scan: ScanHeader, settings: Settings) -> bool:
    """Make or take the coil maps; return whether there was any signal to make them from."""
    first = [frame for frame in plane.waiting if frame.echo == plane.waiting[0].echo]
    maps = stored_estimate(scan, "coil_maps", slice_=first[0].slice)
    if maps is None:
        maps = _coil_maps(first, scan, settings)
    else:
        check_stored("coils", maps.shape[:1], (len(first[0].spokes[0].data),))
        if maps.shape[-1] < _side(scan):
            raise BaselineError(
                f"the stored baseline's grid of {maps.shape[-1]} pixels is smaller than this scan's image of "
                f"{_side(scan)}: take a new baseline."
            )
        amplitude = stored_estimate(scan, "tv_amplitude", slice_=first[0].slice)
        plane.amplitude = None if amplitude is None else float(amplitude[0])
        # A map of frames that begin from nothing is none of those that begin from the last one.
        plane.noise_sd = None if settings.warm_start else stored_estimate(scan, "noise_sd", slice_=first[0].slice)
        rounds = stored_estimate(scan, "noise_rounds", slice_=first[0].slice)
        plane.noise_rounds = 0 if rounds is None else int(rounds[0])
    plane.maps, plane.name = maps, maps_name(maps)
    logger.info(
        "slice %d: coil maps %s on a grid of %d for an image of %d",
        *(first[0].slice, plane.name, maps.shape[-1], _side(scan)),
    )
    return any(spoke.data.any() for frame in first for spoke in frame.spokes)


def _coil_maps(first: Sequence[Frame], scan: ScanHeader, settings: Settings) -> PlaneImages:
    """Return maps from all spokes of these frames, at the resolution that they sample densely."""
    data = np.concatenate([frame.data() for frame in first], axis=1)
    angles = np.concatenate([frame.angles() for frame in first])
    shifts = np.concatenate([frame.shifts() for frame in first])
    sampling, matrix = first[0].sampling, _side(scan)
    if settings.grid > 0.0:
        side = 2 * math.ceil(settings.grid * matrix / 2.0)
    else:
        side = grid_size(data, angles, sampling, matrix)
    radius = np.abs(sampling.positions)
    dense = min(0.5, max(len(angles) / (math.pi * side), 4.0 / side))
    window = np.where(radius < dense, np.cos(np.pi / 2.0 * np.minimum(radius / dense, 1.0)) ** 2, 0.0)
    weights = (readout_weights(sampling, centre="area") * window * math.pi / len(angles)).astype(np.float32)
    plan = FinufftPlan((side, side), len(data)).set_points(radial_points(angles, sampling, shifts).reshape(-1, 2))
    images = plan.adjoint((data * weights).astype(np.complex64).reshape(len(data), -1))
    logger.info("coil maps from %d spokes", len(angles))
    return adaptive_maps(images, settings.maps_block)


def _solve(
    plane: _Plane, frame: Frame, data: ComplexArray, settings: Settings, start: ComplexArray | None = None
) -> IterativeImage:
    deadline = time.perf_counter() + (settings.time_budget or math.inf)
    angles, shifts, sampling = frame.angles(), frame.shifts(), frame.sampling
    key = angles.tobytes() + shifts.tobytes()
    if plane.normal is None or key != plane.key:
        # A partial echo is filled with zeros, which nobody measured.
        weights = sample_weights(angles, sampling, settings.density, shifts) * np.any(data, axis=(0, 1))
        plane.normal = SenseNormal(angles, sampling, plane.maps, shifts=shifts, weights=weights)
        # An empty frame's operator is zero, and must not stay for a frame of the same angles.
        plane.key = key if weights.any() else b""
    if settings.regularisation == "l2":
        return iterate_cg(
            plane.normal,
            data,
            regularisation=_strength(settings),
            corner=settings.corner,
            iterations=settings.iterations,
            tolerance=1e-6,
            start=start,
            deadline=deadline,
        )
    found = iterate_tv(
        plane.normal,
        data,
        strength=_strength(settings),
        iterations=settings.iterations,
        start=start,
        amplitude=plane.amplitude,
        deadline=deadline,
    )
    if plane.amplitude is None:
        plane.amplitude = float(np.percentile(np.abs(found.image), 99.0)) or None
    return found


def _noise_sd(plane: _Plane, frame: Frame, scan: ScanHeader, settings: Settings) -> FloatArray:
    """Return the SD of the real part per voxel by pseudo-replicas, float32 (y, x).

    Robson et al. 2008, 10.1002/mrm.21728: differences between images with and without added noise.
    """
    rng = np.random.default_rng(0)
    data = frame.data()
    clean = _solve(plane, frame, data, settings).image
    variance = np.zeros(clean.shape)
    for _ in range(settings.replicas):
        noise = rng.standard_normal((2, *data.shape), dtype=np.float32)
        noisy = _solve(plane, frame, data + (noise[0] + 1j * noise[1]).astype(np.complex64), settings).image
        variance += np.abs(noisy - clean) ** 2 / 2.0
    smooth = gaussian_filter(variance / settings.replicas, _REPLICA_BLUR)
    return _cropped(np.sqrt(smooth), scan).astype(np.float32)


def _cropped(image: FloatArray | ComplexArray, scan: ScanHeader) -> FloatArray | ComplexArray:
    """Cut the image (y, x) out of the grid; pixel n//2 stays the centre."""
    side = image.shape[-1]
    columns, rows = scan.recon.matrix[:2]
    top, left = side // 2 - rows // 2, side // 2 - columns // 2
    return image[..., top : top + rows, left : left + columns]


def _noise_map_note(plane: _Plane, settings: Settings) -> str:
    if plane.noise_sd is not None:
        return f"{settings.replicas} pseudo-replicas"
    return "none: frames begin from the last one" if settings.warm_start else "none"


def _image(plane: _Plane, frame: Frame, scan: ScanHeader, settings: Settings) -> FrameImage:
    start = plane.last.get(frame.echo) if settings.warm_start else None
    found = _solve(plane, frame, frame.data(), settings, start)
    plane.last[frame.echo] = found.image
    if not found.in_time:
        logger.warning(
            "frame %d: the time budget of %g s ended the reconstruction after %d of %d iterations",
            *(frame.number, settings.time_budget, found.rounds, settings.iterations),
        )
    # A map of other iterations than this frame had must not call it too certain: noise grows with the
    # iterations of l2, and shrinks with the rounds of tv.
    rounds = settings.iterations if found.in_time else found.rounds
    more = rounds - plane.noise_rounds if settings.regularisation == "l2" else plane.noise_rounds - rounds
    # Without a noise scan the data's noise is not 1, and nothing is known of the image's.
    known = all(spoke.noise_known for spoke in frame.spokes) and found.image.any()
    # A warm start carries the noise of the frames before on, which replicas of one frame do not show.
    mapped = settings.replicas > 0 and not settings.warm_start
    if mapped and known and (plane.noise_sd is None or more > 0):
        unhurried = settings.model_copy(update={"iterations": rounds, "time_budget": 0.0})
        plane.noise_sd, plane.noise_rounds = _noise_sd(plane, frame, scan, unhurried), rounds
    meta: dict[str, MetaValue] = {
        "method": "cg_sense",
        "regularisation": settings.regularisation,
        "regularisation_strength": _strength(settings),
        "iterations": found.iterations,
        "residual": round(found.residual, 6),
        "within_time_budget": found.in_time,
        "coil_maps": plane.name,
        "grid": found.image.shape[-1],
        "noise_map": _noise_map_note(plane, settings),
    }
    sampling = frame.sampling
    estimates = {**frame.spokes[-1].estimates, "coil_maps": plane.maps}
    if plane.amplitude is not None:
        estimates["tv_amplitude"] = np.array([plane.amplitude])
    if plane.noise_sd is not None:
        estimates |= {"noise_sd": plane.noise_sd, "noise_rounds": np.array([plane.noise_rounds])}
    return FrameImage(
        data=np.ascontiguousarray(_cropped(found.image, scan), dtype=np.complex64)[None, None],
        number=frame.number,
        slice=frame.slice,
        echo=frame.echo,
        noise_sd=None if plane.noise_sd is None else plane.noise_sd[None],
        spokes=frame.spokes,
        fingerprint={
            "method": " ".join(
                [
                    "cg_sense",
                    settings.regularisation,
                    *(f"{value:g}" for value in (_strength(settings), settings.density, settings.corner)),
                ]
            ),
            "iterations": str(settings.iterations),
            "coils": str(len(plane.maps)),
            "coil_maps": plane.name,
            "sampling": f"{sampling.n_readout} x {sampling.spacing:.6g} about {sampling.centre:.6g}",
            "spokes": str(frame.n_spokes),
            "geometry": geometry_text(frame.header),
            **calibration_facts(frame.spokes[-1]),
        },
        estimates=estimates,
        footprint=frame.footprint,
        header=frame.header,
        received_s=frame.received_s,
        meta={**frame.meta, **meta},
    )
