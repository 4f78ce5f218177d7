"""Stage: reconstructs frames with a primal-dual network, with the gridding image beside it and a guard over it.

A reference-guided network reconstructs the change since the first frames, whose spokes together make its
reference image; the drift of the field and the shift of the body up to each frame are taken into it first.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeVar

import numpy as np

from sinotherm.core.arrays import CoilImages, ComplexArray, FloatArray, FrameData, MaskArray, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.core.scan import Frame, FrameImage, Item, MetaValue, ScanHeader, Sinogram, Spoke
from sinotherm.core.settings import StageSettings, setting
from sinotherm.frames.calibration import enough_spokes
from sinotherm.networks.guard import Verdict
from sinotherm.networks.inference import Device, Precision, RadialReconstructor, Runtime, Symmetries, estimate_maps
from sinotherm.networks.workers import Workers
from sinotherm.operators.coils import PlaneImages, combine, maps_name
from sinotherm.operators.crew import crew
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import cg_sense
from sinotherm.thermometry.drift import periphery_mask
from sinotherm.thermometry.fat import fat_at_echo
from sinotherm.thermometry.guide import Guide, belonging
from sinotherm.thermometry.monitor import frequency_and_echo_times
from sinotherm.thermometry.regions import region_mask
from sinotherm.thermometry.settings import ThermometrySettings

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)

WARM_SPOKES: Final = 34

_Plane = TypeVar("_Plane", bound="np.ndarray[Any, Any]")
_Made: TypeAlias = Item | Callable[[], FrameImage]
"""What leaves the stage, or what waits for it."""


class Settings(StageSettings):
    """The network."""

    network: str = setting(
        "pdunet-radial",
        "Name of shipped weights, or path of a .safetensors file with its card. With thermometry: pdunet-thermo "
        "unless set.",
        # Whatever is not the bare name of shipped weights.
        local=r"[^A-Za-z0-9_-]",
    )
    device: Device = setting("auto", "Where it runs: CUDA if there is one, or the one that is named.")
    precision: Precision = setting(
        "auto",
        "Precision of the network's blocks; auto: bfloat16 where the processor or GPU computes in it. Operators are "
        "always in single precision.",
    )
    runtime: Runtime = setting("torch", "What runs the blocks on a CPU: PyTorch, or OpenVINO (an extra).")
    symmetries: Symmetries = setting(
        1,
        "Reflections and transposes of the image over which the image blocks' corrections are averaged: more are more "
        "exact, in so many times the blocks' time.",
    )
    guard: bool = setting(True, "Check the network's range and the residual of held-out spokes.")
    guard_every: int = setting(1, "Check the residuals of every so many-th frame; the range always.", ge=1)
    fallback: Literal["gridding", "cg_sense"] = setting(
        "gridding",
        "What takes the network's place when the guard trips: gridding as beside, or CG-SENSE (l2) by its defaults on "
        "the image's own grid, whatever cg_sense.* says.",
    )
    beside: bool = setting(
        True,
        "Send the gridding image of every frame before the network's; temperature maps need it. Ramp filter, weights "
        "by the angular gaps, exact centre, whatever gridding.* says.",
    )
    sinogram: bool = setting(
        False,
        "Send the sinogram without gaps beside every image of the network (series 8): the measured spokes, and "
        "projections of the image at the angles between them.",
    )
    maps_spokes: int = setting(
        64, "Spokes that the coil maps are made of at least; the first frames wait for them.", ge=1
    )
    reference_frames: int = setting(
        5,
        "Frames before heating of which a reference-guided network's reference is made; the network's images of "
        "them wait for the last. With thermometry: as many as its baseline unless set.",
        ge=1,
        le=1000,
    )
    reference_skip: int = setting(
        0, "Frames at the start that are left out of the reference. With thermometry: as its baseline unless set.", ge=0
    )
    drift_order: int = setting(
        1,
        "Order of the drift that the reference follows, with shifts of the body; -1: it stays as it is. With "
        "thermometry: as its drift, 1 at least, unless set.",
        ge=-1,
        le=2,
    )


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Yield the images of every frame: gridding (``beside``), then the network's; spokes end here.

    Where the guard trips, the fallback's image takes the place of the network's, and its meta says why
    (``guard``) and whose place it is (``in_place_of``). The first frames of a slice wait until there are
    enough spokes for coil maps; a guided network's images of them until its reference is complete.

    Raises
    ------
    WeightsError
        The weights cannot be used, or the guard is on and their card has no limits for it.
    """
    build = partial(
        RadialReconstructor,
        settings.network,
        device=settings.device,
        precision=settings.precision,
        runtime=settings.runtime,
        symmetries=settings.symmetries,
    )
    network = build()
    if settings.guard:
        network.guard.require_limits()
    _warm_up(network, scan)
    # On a GPU one frame is enough; OpenVINO shares out its threads itself.
    several = network.device.type == "cpu" and settings.runtime == "torch"
    workers = Workers(network, build, crew.size if several else 1)
    slices: dict[int, _Slice] = {}
    queue = _Queue(4 * workers.size)
    try:
        for item in items:
            if isinstance(item, Frame):
                if item.slice not in slices:
                    slices[item.slice] = _Slice(network, workers, scan, settings)
                yield from queue.put(slices[item.slice].add(item))
            elif not isinstance(item, Spoke):
                yield from queue.put([item])
        for one in slices.values():
            yield from queue.put(one.finish())
    except (Exception, KeyboardInterrupt):
        yield from queue.rest()
        raise
    else:
        yield from queue.rest()
    finally:
        workers.close()


class _Queue:
    """What leaves the stage, in order; some of it is still worked on.

    Parameters
    ----------
    most
        So many wait at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[_Made] = deque()

    def put(self, made: Iterable[_Made]) -> Iterator[Item]:
        """Take what was made; yield what is ready, and wait where too many do."""
        for one in made:
            self._waiting.append(one)
            yield from self._leaving(self._most)

    def rest(self) -> Iterator[Item]:
        """Wait for all that is left, and yield it."""
        return self._leaving(0)

    def _leaving(self, most: int) -> Iterator[Item]:
        while self._waiting and (len(self._waiting) > most or not callable(self._waiting[0])):
            one = self._waiting.popleft()
            yield one() if callable(one) else one


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


class _Slice:
    """The frames of one slice: what is frozen for it, and what waits for that."""

    def __init__(self, network: RadialReconstructor, workers: Workers, scan: ScanHeader, settings: Settings) -> None:
        self._network = network
        self._workers = workers
        self._scan = scan
        self._settings = settings
        self._waiting: list[Frame] = []
        self._held: list[Frame] = []
        self._first: int | None = None
        self._maps: PlaneImages = np.empty((0, 0, 0), np.complex64)
        self._maps_name = ""
        self._thermometry = ThermometrySettings.parse("thermometry", scan.chain.get("thermometry", {}))
        self._guides: dict[int, Guide] = {}
        self._rejected: dict[int, tuple[int, ...]] = {}
        self._plan: FinufftPlan | None = None

    # --- what is frozen --------------------------------------------------------------------------

    def add(self, frame: Frame) -> Iterator[_Made]:
        """Take a frame; yield the images that can be made now."""
        self._waiting.append(frame)
        if self._maps_name or enough_spokes(self._waiting, self._settings.maps_spokes):
            yield from self._released()

    def finish(self) -> Iterator[_Made]:
        """Yield the images of what still waits at the end of the scan."""
        if self._waiting:
            logger.warning("coil maps from %d spokes only: the scan ended", sum(f.n_spokes for f in self._waiting))
            yield from self._released()
        if self._held:
            logger.warning("reference from %d frames only: the scan ended", len(self._held))
            yield from self._guided()

    def _released(self) -> Iterator[_Made]:
        """Yield the images of the frames that waited for the coil maps."""
        waiting, self._waiting = self._waiting, []
        if not self._maps_name:
            self._maps = _coil_maps(waiting, _side(self._scan))
            self._maps_name = maps_name(self._maps)
            logger.info("slice %d: coil maps %s", waiting[0].slice, self._maps_name)
        for frame in waiting:
            if self._settings.beside:
                yield self._gridding(frame, {"beside": "pdunet"})
            if not self._network.guided or frame.echo in self._guides:
                yield self._begun(frame)
                continue
            self._held.append(frame)
            if self._reference_complete(frame):
                yield from self._guided()

    def _reference_complete(self, frame: Frame) -> bool:
        """Whether the last of the reference's frames has come, of every echo.

        Frames count by their number: one that was skipped is not made up for by a later one, which may
        be heated.
        """
        if self._first is None:
            self._first = frame.number
        last = self._first + self._settings.reference_skip + self._settings.reference_frames - 1
        newest = {held.echo: held.number for held in self._held}
        return all(number >= last for number in newest.values())

    def _guided(self) -> Iterator[_Made]:
        """Make the reference of each echo; yield the network's images of the frames held.

        It is made of all spokes of the frames that belong together; a frame that is left out is guided by it too.
        """
        held, self._held = self._held, []
        begin = held[0].number if self._first is None else self._first
        start = begin + self._settings.reference_skip
        before: dict[tuple[int, int], Guide] = {}
        still: MaskArray | None = None
        for echo in dict.fromkeys(frame.echo for frame in held):
            own = [frame for frame in held if frame.echo == echo]
            used = [frame for frame in own if start <= frame.number < start + self._settings.reference_frames] or own
            kept, whole, others = belonging(used, self._together, self._unexplained)
            numbers = [frame.number for frame in kept]
            rejected = tuple(frame.number for frame in used if frame.number not in numbers)
            # As thermometry does: found once, in the first echo, which must have a TE.
            still = self._fat(whole) if echo == held[0].echo else still
            self._guides[echo], self._rejected[echo] = self._guide(whole, still), rejected
            # What a stray frame makes of drift and motion must not reach the frames after it.
            before |= {(number, echo): self._guide(whole, still) for number in rejected}
            before |= {(number, echo): self._guide(one, still) for number, one in zip(numbers, others, strict=True)}
            (logger.warning if rejected else logger.info)(
                "slice %d: reference of echo %d from %d of %d frames%s",
                *(used[0].slice, echo, len(kept), len(used)),
                f" (left out as outliers: {', '.join(map(str, rejected))})" if rejected else "",
            )
        for frame in held:
            yield self._begun(frame, before.get((frame.number, frame.echo)))

    def _together(self, frames: Sequence[Frame]) -> ComplexArray:
        """Return the CG-SENSE image of the spokes of all frames."""
        data, angles, shifts = _together(frames)
        found = cg_sense(data, angles, frames[0].sampling, self._maps, shifts=shifts if shifts.any() else None)
        return found.image

    def _unexplained(self, frame: Frame, reference: ComplexArray) -> FloatArray:
        """Return the norm of what a reference leaves of each spoke of a frame, (spoke,)."""
        data = frame.data()
        predicted = self._planned(frame).forward(self._maps * reference).reshape(data.shape)
        residual: FloatArray = np.linalg.norm(data - predicted, axis=(0, 2))
        return residual

    def _planned(self, frame: Frame) -> FinufftPlan:
        """Return the plan, set to the points of a frame."""
        if self._plan is None or self._plan.n_transforms != len(self._maps):
            self._plan = FinufftPlan((_side(self._scan),) * 2, len(self._maps))
        self._plan.set_points(radial_points(frame.angles(), frame.sampling, frame.shifts()).reshape(-1, 2))
        return self._plan

    def _guide(self, reference: ComplexArray, still: MaskArray | None) -> Guide:
        order = self._settings.drift_order
        return Guide(reference, self._maps, pixel_m=self._scan.pixel_m, order=order, still=still)

    def _fat(self, reference: ComplexArray) -> MaskArray | None:
        """Return what thermometry takes for fat, bool (y, x), which heat does not turn; ``None``: nothing is held.

        What is held still has no reading in the maps: nobody is shown as cold what was wrongly taken for fat. It shows
        no more of the drift than the guide knows; what tells the maps their drift is not held.
        """
        scan, settings = self._scan, self._thermometry
        if not settings.fat:
            return None
        if settings.cold_mask == "fat" or self._settings.drift_order < settings.drift_order:
            logger.warning(
                "fat is not held still: the maps' drift (thermometry.cold_mask = %s, drift_order = %d) needs it "
                "(pdunet.drift_order = %d)",
                *(settings.cold_mask, settings.drift_order, self._settings.drift_order),
            )
            return None
        shown = _cropped(reference, scan)
        if settings.fat == "auto":
            larmor_hz, echo_times_s = frequency_and_echo_times(scan, settings)
            fat = fat_at_echo(
                shown,
                min_signal=settings.min_signal,
                larmor_hz=larmor_hz,
                echo_time_s=echo_times_s[0],
                phase_sign=1 if settings.phase_sign is None else settings.phase_sign,
            )
        else:
            fat = region_mask(settings.fat, (1, *shown.shape), scan.pixel_m)[0]
        if settings.cold_mask == "auto":
            size = np.abs(shown)
            cold = periphery_mask(size, settings.min_signal * float(np.percentile(size, 99.0)), scan.pixel_m)
        else:
            cold = region_mask(settings.cold_mask, (1, *shown.shape), scan.pixel_m)[0]
        found = np.zeros(reference.shape, dtype=bool)
        _cropped(found, scan)[...] = fat & ~cold
        return found if found.any() and not found.all() else None

    # --- images ----------------------------------------------------------------------------------

    def _begun(self, frame: Frame, own: Guide | None = None) -> _Made:
        """Begin a frame; return its image, or what waits for it where other frames can be begun meanwhile.

        A frame of the reference has a guide of its ``own``, in which it has no part.
        """
        settings, maps, fov_m = self._settings, self._maps, max(self._scan.recon.fov_m[:2])
        data, angles, shifts = frame.data(), frame.angles(), _moved(frame)
        start = time.perf_counter()
        guide = own or self._guides.get(frame.echo)
        reference = None if guide is None else guide.turned(data, frame.sampling, angles, shifts=shifts)
        still = None if guide is None else guide.still
        turned_s = time.perf_counter() - start

        def answer(network: RadialReconstructor) -> _Answer:
            start = time.perf_counter()
            image, operator = network.reconstruct(
                data, frame.sampling, angles, maps, shifts=shifts, reference=reference, still=still
            )
            if not np.isfinite(image).all():
                image = np.zeros_like(image)
            taken_s = turned_s + time.perf_counter() - start
            verdict = Verdict(trips=False)
            if settings.guard:
                verdict = network.check(
                    data,
                    frame.sampling,
                    angles,
                    maps,
                    image,
                    operator,
                    fov_m=fov_m,
                    frame=frame.number,
                    shifts=shifts,
                    reference=reference,
                    still=still,
                    residuals=frame.number % settings.guard_every == 0,
                )
            wanted = settings.sinogram and not verdict.trips
            full = network.full_sinogram(data, image, operator) if wanted else None
            return _Answer(image=image, verdict=verdict, taken_s=taken_s, sinogram=full)

        facts: dict[str, str] = {}
        note: dict[str, MetaValue] = {}
        if guide is not None:
            facts = {"reference": self._guides[frame.echo].name}
            note = {
                **facts,
                "reference_rejected": self._rejected[frame.echo],
                "reference_drift_rad": tuple(round(value, 5) for value in guide.drift_rad),
                "reference_shift_px": tuple(round(value, 3) for value in guide.shift_px),
                "reference_fat_voxels": 0 if still is None else int(still.sum()),
            }
        # Frames of a file have no time at which they came: the next ones are there already.
        live = not math.isnan(frame.received_s)
        pending = self._workers.begin(answer, alone=live)
        before = None if guide is None else guide.reference
        if live:
            return self._image(frame, pending(), note, facts, before, still)
        return lambda: self._image(frame, pending(), note, facts, before, still)

    def _image(
        self,
        frame: Frame,
        answer: "_Answer",
        guided: Mapping[str, MetaValue],
        facts: Mapping[str, str],
        reference: ComplexArray | None,
        still: MaskArray | None,
    ) -> FrameImage:
        """Return the network's image of a frame, or what stands in for it."""
        card, settings, verdict = self._network.card, self._settings, answer.verdict
        note: dict[str, MetaValue] = {
            "network": card.name,
            "network_weights": card.sha256[:12],
            **{f"guard_{name}": round(value, 5) for name, value in verdict.numbers.items()},
            **guided,
        }
        if not verdict.trips:
            meta = {
                "network_seconds": round(answer.taken_s, 4),
                "network_precision": self._network.precision,
                "network_symmetries": settings.symmetries,
                **note,
            }
            variant = f"{card.sha256[:12]} mean of {settings.symmetries}"
            shown = self._frame_image(frame, answer.image, "pdunet", variant, None, meta, facts)
            shown = replace(shown, sinogram=answer.sinogram)
            if reference is None:
                return shown
            held = None if still is None else _cropped(still, self._scan)[None]
            return replace(shown, reference=self._planes(reference), change_error=card.change_error, held=held)
        note |= {"guard": verdict.reason, "in_place_of": "pdunet"}
        logger.warning("frame %d: guard: %s; %s takes over", frame.number, verdict.reason, settings.fallback)
        if settings.fallback == "gridding":
            return self._gridding(frame, note)
        found = cg_sense(frame.data(), frame.angles(), frame.sampling, self._maps, shifts=_moved(frame))
        return self._frame_image(frame, found.image, "cg_sense", "l2", None, note)

    def _gridding(self, frame: Frame, note: Mapping[str, MetaValue]) -> FrameImage:
        """Return the gridding image of the same spokes and maps: ramp filter, weights by the angular gaps."""
        data, angles, shifts = frame.data(), frame.angles(), frame.shifts()
        side = _side(self._scan)
        measured = frame.measured()
        weights = radial_weights(
            angles, frame.sampling, weights="gaps", centre="exact", shifts=shifts, measured=measured
        ).astype(np.float32)
        images = self._planned(frame).adjoint((data * weights).astype(np.complex64).reshape(len(data), -1))
        level = None
        if all(spoke.noise_known for spoke in frame.spokes):
            level = np.full((side, side), math.sqrt(float(np.sum(weights[:, measured] ** 2))), np.float32)
        meta = {"filter": "ramp", "weights": "gaps", "centre_weight": "exact", **note}
        return self._frame_image(frame, combine(images, self._maps), "gridding", "ramp gaps", level, meta)

    def _planes(self, image: ComplexArray) -> CoilImages:
        """Return an image (y, x) as the reconstructed matrix, complex64 (coil, slice, y, x)."""
        return np.ascontiguousarray(_cropped(image, self._scan), dtype=np.complex64)[None, None]

    def _frame_image(
        self,
        frame: Frame,
        image: ComplexArray,
        method: str,
        variant: str,
        noise_sd: FloatArray | None,
        meta: Mapping[str, MetaValue],
        facts: Mapping[str, str] | None = None,
    ) -> FrameImage:
        scan = self._scan
        noise = None if noise_sd is None else np.ascontiguousarray(_cropped(noise_sd, scan)[None])
        return FrameImage(
            data=self._planes(image),
            number=frame.number,
            slice=frame.slice,
            echo=frame.echo,
            noise_sd=noise,
            spokes=frame.spokes,
            fingerprint={
                "method": f"{method} {variant}",
                "coil_maps": self._maps_name,
                "gradient_delay": str(frame.meta.get("gradient_delay_samples", "none")),
                "spokes": str(frame.n_spokes),
                "sampling": str(frame.sampling),
                **(facts or {}),
            },
            footprint=frame.footprint,
            header=frame.header,
            received_s=frame.received_s,
            meta={**frame.meta, "method": method, "spokes": frame.n_spokes, "coil_maps": self._maps_name, **meta},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """A network's image, complex64 (y, x), the guard's verdict on it, the time of the image alone, s; its sinogram."""

    image: ComplexArray
    verdict: Verdict
    taken_s: float
    sinogram: Sinogram | None


def _moved(frame: Frame) -> SpokeShifts | None:
    """Return the shifts of a frame's spokes; ``None`` where none is moved."""
    shifts = frame.shifts()
    return shifts if shifts.any() else None


def _together(frames: Sequence[Frame]) -> tuple[FrameData, SpokeAngles, SpokeShifts]:
    """Return samples, angles and shifts of all spokes of the frames."""
    return (
        np.concatenate([frame.data() for frame in frames], axis=1),
        np.concatenate([frame.angles() for frame in frames]),
        np.concatenate([frame.shifts() for frame in frames]),
    )


def _coil_maps(frames: Sequence[Frame], side: int) -> PlaneImages:
    """Return maps from all waiting spokes of the first echo."""
    first = [frame for frame in frames if frame.echo == frames[0].echo]
    data, angles, shifts = _together(first)
    return estimate_maps(data, first[0].sampling, angles, side, shifts=shifts)


def _cropped(image: _Plane, scan: ScanHeader) -> _Plane:
    """Cut the image (y, x) out of the square; pixel n//2 stays the centre."""
    side = image.shape[-1]
    columns, rows = scan.recon.matrix[:2]
    top, left = side // 2 - rows // 2, side // 2 - columns // 2
    shown: Any = image[..., top : top + rows, left : left + columns]
    return shown
