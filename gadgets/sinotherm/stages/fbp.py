"""Stage: reconstructs frames by filtered back-projection, spoke by spoke while they are acquired."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

import numpy as np

from sinotherm.core.arrays import ComplexArray
from sinotherm.core.scan import Frame, Item, ScanHeader, Spoke
from sinotherm.core.settings import setting
from sinotherm.errors import SpokeError
from sinotherm.operators.backprojection import BackProjector, Taps
from sinotherm.operators.density import lone_factors, perpendicular_shift
from sinotherm.stages.gridding import CoilMaps, Coils, CoilSource, FrameImager, Gridder, LinearSettings, image_shape

__all__ = ["RunningImage", "Settings", "stage"]

logger = logging.getLogger(__name__)

REFRESH: Final = 4096
"""Spokes taken away before a running sum is replaced by one without their rounding errors."""

LATE_S: Final = 0.05
"""A spoke that has waited so long is left to its frame: batches take a third of the time a spoke."""
_WIDE_MISS: Final = 0.5
"""Samples beside k = 0: one makes back-projection's error half as large again."""


class Settings(LinearSettings):
    """Filtered back-projection."""

    taps: Taps = setting(
        "optimal",
        "Interpolation: four optimal taps (3e-4 of the direct sum), or linear for previews, never for phase.",
    )


@dataclass(frozen=True, slots=True)
class _Projected:
    """The running sum of a back-projector times a factor, as coil images."""

    projector: BackProjector
    scale: float

    def coil_images(self) -> ComplexArray:
        return self.projector.coil_images(self.scale)

    def combined(self, maps: CoilMaps) -> ComplexArray:
        return self.projector.combine(maps.interleaved, self.scale)

    def root_sum_of_squares(self) -> ComplexArray:
        return self.projector.root_sum_of_squares(self.scale)


class RunningImage:
    """Coil images of one slice and echo that follow the spokes.

    The sum holds spokes with weight 1; π/S comes with the combination. A frame's spokes are compared
    with those that the sum holds, so the image is that of the frame whatever was guessed before.

    Parameters
    ----------
    spoke
        The first spoke: coils and sampling of all others.
    shape
        Image (y, x) in pixels.
    settings
        Filter, weights, taps.
    """

    def __init__(self, spoke: Spoke, shape: tuple[int, int], settings: Settings) -> None:
        self._settings = settings
        self._shape = shape
        self._sampling = spoke.sampling
        self._n_coils = len(spoke.data)
        self._sum = self._projector()
        self._held: dict[int, Spoke] = {}
        self._gridder = Gridder(shape, settings)
        self._previous: dict[int, Spoke] = {}
        self._slides = False
        self._window = 0
        self._ended = False
        self._taken_away = 0
        self._fresh: BackProjector | None = None
        self._fresh_held: dict[int, Spoke] = {}

    def _projector(self) -> BackProjector:
        settings = self._settings
        return BackProjector(
            self._shape,
            self._n_coils,
            self._sampling,
            radial_filter=settings.filter,
            centre=settings.centre,
            taps=settings.taps,
        )

    def add(self, spoke: Spoke) -> None:
        """Add a spoke that just came; in a sliding window the oldest one leaves."""
        self._check(spoke)
        if self._ended and not self._slides:
            self._clear()
        self._ended = False
        self._sum.add(spoke.data, spoke.angle_rad, shift=spoke.shift)
        self._held[id(spoke)] = spoke
        if self._slides and len(self._held) > self._window:
            oldest = self._held.pop(next(iter(self._held)))
            self._sum.subtract(oldest.data, oldest.angle_rad, shift=oldest.shift)
            self._taken_away += 1
        if self._taken_away >= REFRESH:
            self._renew(spoke)

    def _renew(self, spoke: Spoke) -> None:
        """Build a second sum from new spokes only; once it holds the whole window it takes over."""
        if self._fresh is None:
            self._fresh = self._projector()
        self._fresh.add(spoke.data, spoke.angle_rad, shift=spoke.shift)
        self._fresh_held[id(spoke)] = spoke
        if len(self._fresh_held) >= len(self._held):
            if self._fresh_held.keys() == self._held.keys():
                self._sum, self._fresh = self._fresh, self._sum
                self._taken_away = 0
            self._fresh.reset()
            self._fresh_held = {}

    def frame(self, frame: Frame) -> CoilSource:
        """Return the coil images of exactly the spokes of this frame."""
        for spoke in frame.spokes:
            self._check(spoke)
        wanted = {id(spoke): spoke for spoke in frame.spokes}
        missing = [spoke for key, spoke in wanted.items() if key not in self._held]
        extra = [spoke for key, spoke in self._held.items() if key not in wanted]
        source: CoilSource
        lone = lone_factors(frame.angles(), self._sampling, frame.measured(), self._settings.weights)
        if np.any(lone != 1.0):
            # How often a ring of k-space was measured is known with the frame.
            source = Coils(self._gridder.coil_images(frame))
            self._clear()
        elif len(wanted) < frame.n_spokes:
            # A spoke that stands there twice has no place in a running sum.
            source = Coils(self._whole(frame).coil_images())
            self._clear()
        elif (
            self._settings.weights == "gaps"
            or 2 * (len(missing) + len(extra)) > frame.n_spokes
            or (extra and self._taken_away >= REFRESH)
        ):
            source = self._whole(frame)
            self._held = dict(wanted)
        else:
            self._change(missing, 1.0)
            self._change(extra, -1.0)
            self._taken_away += len(extra)
            self._held = dict(wanted)
            source = _Projected(self._sum, math.pi / frame.n_spokes)
        self._slides = not self._previous.keys().isdisjoint(wanted)
        self._window = frame.n_spokes
        self._previous = wanted
        self._ended = True
        return source

    def _whole(self, frame: Frame) -> CoilSource:
        """Reconstruct a frame at once."""
        self._clear()
        # Frames that may also come spoke by spoke stay with the kernel: a scan has the same pixels however it comes.
        if self._settings.weights == "gaps":
            return Coils(self._gridder.coil_images(frame))
        self._sum.add_batch(frame.data(), frame.angles(), None, frame.shifts())
        return _Projected(self._sum, math.pi / frame.n_spokes)

    def _change(self, spokes: Sequence[Spoke], sign: float) -> None:
        if spokes:
            self._sum.add_batch(
                np.stack([spoke.data for spoke in spokes], axis=1),
                np.array([spoke.angle_rad for spoke in spokes]),
                np.full(len(spokes), sign),
                np.array([spoke.shift for spoke in spokes]),
            )

    def _clear(self) -> None:
        self._sum.reset()
        self._held = {}
        self._taken_away = 0
        self._fresh_held = {}
        if self._fresh is not None:
            self._fresh.reset()

    def _check(self, spoke: Spoke) -> None:
        same = spoke.sampling is self._sampling or spoke.sampling == self._sampling
        if not same or len(spoke.data) != self._n_coils:
            raise SpokeError(
                f"spoke {spoke.index} has {len(spoke.data)} coils and {spoke.sampling}; the first of this slice had "
                f"{self._n_coils} and {self._sampling}: they cannot change within a scan."
            )


def _check_centre(frame: Frame) -> None:
    """Warn where spokes miss the centre of k-space sideways, as unequal delays or the trajectory say."""
    across = float(np.abs(perpendicular_shift(frame.angles(), frame.shifts())).max()) / frame.sampling.spacing
    if across > _WIDE_MISS:
        logger.warning(
            "echo %d: spokes miss the centre of k-space by up to %.1f samples; filtered back-projection, "
            "which weighs each spoke by itself, is wrong there: take reconstruction.method = gridding or cg_sense",
            *(frame.echo, across),
        )


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Swallow spokes and frames, yield the frames' images.

    Spokes that arrive one by one are added at once, so that little is left to do when the last one
    comes. Those of a file, of a stack of stars and with ``weights = gaps`` wait for their frame, and so
    do those that come to this stage late, because it is behind or because they were held back; and those of the
    first frame of a slice and echo, which takes no memory for an image before it is known to be one.
    """
    shape = image_shape(scan)
    imager = FrameImager(scan, "fbp", settings)
    running: dict[tuple[int, int], RunningImage] = {}
    checked: set[int] = set()
    early = scan.n_partitions == 1 and settings.weights == "equal"
    for item in items:
        if isinstance(item, Spoke | Frame):
            key = (item.slice, item.echo)
            if isinstance(item, Frame):
                if key not in running:
                    running[key] = RunningImage(item.spokes[0], shape, settings)
                # With weights = gaps the frame is gridded, and its weights know.
                if item.echo not in checked and settings.weights == "equal":
                    checked.add(item.echo)
                    _check_centre(item)
                yield from imager.images(item, running[key].frame(item))
            elif early and key in running and monotonic() - item.received_s < LATE_S:  # a file's NaN compares false
                running[key].add(item)
        else:
            yield item
    yield from imager.rest()
