"""Stage: reconstructs frames with a primal-dual network, with the gridding image beside it and a guard over it."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.core.scan import Frame, FrameImage, Item, MetaValue, ScanHeader, Spoke
from sinotherm.core.settings import StageSettings, setting
from sinotherm.networks.guard import Verdict
from sinotherm.networks.inference import Device, Precision, RadialReconstructor, Runtime, estimate_maps
from sinotherm.operators.coils import PlaneImages, combine, maps_name
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import cg_sense

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)

WARM_SPOKES: Final = 34


class Settings(StageSettings):
    """The network."""

    network: str = setting(
        "pdunet-radial",
        "Name of shipped weights, or path of a .safetensors file with its card.",
        # Whatever is not the bare name of shipped weights.
        local=r"[^A-Za-z0-9_-]",
    )
    device: Device = setting("auto", "Where it runs: CUDA if there is one, or the one that is named.")
    precision: Precision = setting(
        "bfloat16", "Precision of the network's blocks; operators are always in single precision."
    )
    runtime: Runtime = setting("torch", "What runs the blocks on a CPU: PyTorch, or OpenVINO (an extra).")
    guard: bool = setting(True, "Check the network's range and the residual of held-out spokes.")
    guard_every: int = setting(1, "Check the residuals of every so many-th frame; the range always.", ge=1)
    fallback: Literal["gridding", "cg_sense"] = setting(
        "gridding", "What takes the network's place when the guard trips."
    )
    beside: bool = setting(True, "Send the gridding image of every frame before the network's.")
    maps_spokes: int = setting(
        64, "Spokes that the coil maps are made of at least; the first frames wait for them.", ge=1
    )


@dataclass(slots=True, kw_only=True)
class _Plane:
    """What is frozen for one slice."""

    waiting: list[Frame] = field(default_factory=list)
    maps: PlaneImages = field(default_factory=lambda: np.empty((0, 0, 0), np.complex64))
    name: str = ""
    plan: FinufftPlan | None = None


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Yield the images of every frame: gridding (``beside``), then the network's; spokes end here.

    Where the guard trips, the fallback's image takes the place of the network's, and its meta says why
    (``guard``). The first frames of a slice wait until there are enough spokes for coil maps.
    """
    network = RadialReconstructor(
        settings.network, device=settings.device, precision=settings.precision, runtime=settings.runtime
    )
    _warm_up(network, scan)
    planes: dict[int, _Plane] = {}
    for item in items:
        if isinstance(item, Spoke):
            continue
        if not isinstance(item, Frame):
            yield item
            continue
        plane = planes.setdefault(item.slice, _Plane())
        if plane.name:
            yield from _images(network, plane, item, scan, settings)
            continue
        plane.waiting.append(item)
        if _enough(plane.waiting, settings.maps_spokes):
            yield from _released(network, plane, scan, settings)
    for plane in planes.values():
        if plane.waiting:
            logger.warning("coil maps from %d spokes only: the scan ended", sum(f.n_spokes for f in plane.waiting))
            yield from _released(network, plane, scan, settings)


def _side(scan: ScanHeader) -> int:
    return max(scan.recon.matrix[:2])


def _warm_up(network: RadialReconstructor, scan: ScanHeader) -> None:
    """Run once before the first frame, on what the header announces."""
    side = _side(scan)
    sampling = RadialSampling(n_readout=2 * side, spacing=0.5 / side, centre=float(side))
    coils = min(scan.n_coils or 8, 8)
    maps = np.full((coils, side, side), 1 / math.sqrt(coils), dtype=np.complex64)
    angles = spoke_angles("golden", scan.spokes_per_frame or WARM_SPOKES)
    network.warm_up(sampling, angles, maps)


def _enough(frames: list[Frame], n_spokes: int) -> bool:
    first = [frame for frame in frames if frame.echo == frames[0].echo]
    if sum(frame.n_spokes for frame in first) >= n_spokes:
        return True
    # More of the same angles would not add anything.
    last = first[-1]
    return len(first) > 1 and last.n_spokes == first[0].n_spokes and np.allclose(last.angles(), first[0].angles())


def _released(
    network: RadialReconstructor, plane: _Plane, scan: ScanHeader, settings: Settings
) -> Iterator[FrameImage]:
    plane.maps = _coil_maps(plane.waiting, _side(scan))
    plane.name = maps_name(plane.maps)
    logger.info("slice %d: coil maps %s", plane.waiting[0].slice, plane.name)
    waiting, plane.waiting = plane.waiting, []
    for frame in waiting:
        yield from _images(network, plane, frame, scan, settings)


def _coil_maps(frames: list[Frame], side: int) -> PlaneImages:
    """Return maps from all waiting spokes of the first echo."""
    first = [frame for frame in frames if frame.echo == frames[0].echo]
    return estimate_maps(
        np.concatenate([frame.data() for frame in first], axis=1),
        first[0].sampling,
        np.concatenate([frame.angles() for frame in first]),
        side,
        shifts=np.concatenate([frame.shifts() for frame in first]),
    )


def _images(
    network: RadialReconstructor, plane: _Plane, frame: Frame, scan: ScanHeader, settings: Settings
) -> Iterator[FrameImage]:
    data, angles, shifts = frame.data(), frame.angles(), frame.shifts()
    moved = shifts if shifts.any() else None
    start = time.perf_counter()
    image, operator = network.reconstruct(data, frame.sampling, angles, plane.maps, shifts=moved)
    if not np.isfinite(image).all():
        image = np.zeros_like(image)
    taken_s = time.perf_counter() - start
    verdict = Verdict(trips=False)
    if settings.guard:
        verdict = network.check(
            data,
            frame.sampling,
            angles,
            plane.maps,
            image,
            operator,
            fov_m=max(scan.recon.fov_m[:2]),
            frame=frame.number,
            shifts=moved,
            residuals=frame.number % settings.guard_every == 0,
        )
    note: dict[str, MetaValue] = {
        "network": network.card.name,
        "network_weights": network.card.sha256[:12],
        **{f"guard_{name}": round(value, 5) for name, value in verdict.numbers.items()},
    }
    if verdict.trips:
        note["guard"] = verdict.reason
        logger.warning("frame %d: guard: %s; %s takes over", frame.number, verdict.reason, settings.fallback)
    gridded = verdict.trips and settings.fallback == "gridding"
    if settings.beside or gridded:
        meta = note if gridded else {}
        yield _gridding(plane, frame, scan, meta)
    if not verdict.trips:
        meta = {"network_seconds": round(taken_s, 4), "network_precision": settings.precision, **note}
        yield _frame_image(plane, frame, scan, image, "pdunet", network.card.sha256[:12], None, meta)
    elif not gridded:
        found = cg_sense(data, angles, frame.sampling, plane.maps, shifts=moved)
        yield _frame_image(plane, frame, scan, found.image, "cg_sense", "l2", None, note)


def _gridding(plane: _Plane, frame: Frame, scan: ScanHeader, note: Mapping[str, MetaValue]) -> FrameImage:
    """Return the gridding image of the same spokes and maps: ramp filter, weights by the angular gaps."""
    data, angles, shifts = frame.data(), frame.angles(), frame.shifts()
    side = _side(scan)
    weights = radial_weights(angles, frame.sampling, weights="gaps", centre="exact", shifts=shifts).astype(np.float32)
    if plane.plan is None or plane.plan.n_transforms != len(data):
        plane.plan = FinufftPlan((side, side), len(data))
    plane.plan.set_points(radial_points(angles, frame.sampling, shifts).reshape(-1, 2))
    images = plane.plan.adjoint((data * weights).astype(np.complex64).reshape(len(data), -1))
    level = None
    if all(spoke.noise_known for spoke in frame.spokes):
        acquired = np.any(data[0], axis=0)
        level = np.full((side, side), math.sqrt(float(np.sum(weights[:, acquired] ** 2))), np.float32)
    meta = {"filter": "ramp", "weights": "gaps", "centre_weight": "exact", **note}
    return _frame_image(plane, frame, scan, combine(images, plane.maps), "gridding", "ramp gaps", level, meta)


def _frame_image(
    plane: _Plane,
    frame: Frame,
    scan: ScanHeader,
    image: ComplexArray,
    method: str,
    variant: str,
    noise_sd: FloatArray | None,
    meta: Mapping[str, MetaValue],
) -> FrameImage:
    noise = None if noise_sd is None else np.ascontiguousarray(_cropped(noise_sd, scan)[None])
    return FrameImage(
        data=np.ascontiguousarray(_cropped(image, scan), dtype=np.complex64)[None, None],
        number=frame.number,
        slice=frame.slice,
        echo=frame.echo,
        noise_sd=noise,
        spokes=frame.spokes,
        fingerprint={
            "method": f"{method} {variant}",
            "coil_maps": plane.name,
            "gradient_delay": str(frame.meta.get("gradient_delay_samples", "none")),
            "spokes": str(frame.n_spokes),
            "sampling": str(frame.sampling),
        },
        footprint=frame.footprint,
        header=frame.header,
        received_s=frame.received_s,
        meta={**frame.meta, "method": method, "spokes": frame.n_spokes, "coil_maps": plane.name, **meta},
    )


def _cropped(image: FloatArray | ComplexArray, scan: ScanHeader) -> FloatArray | ComplexArray:
    """Cut the image (y, x) out of the square; pixel n//2 stays the centre."""
    side = image.shape[-1]
    columns, rows = scan.recon.matrix[:2]
    top, left = side // 2 - rows // 2, side // 2 - columns // 2
    return image[..., top : top + rows, left : left + columns]
