"""From MRD readouts to spokes: which readouts count, where their samples lie, and at which angle."""

import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import ismrmrd
import numpy as np

from sinotherm.core.arrays import FloatArray, SpokeData
from sinotherm.core.geometry import (
    GOLDEN_ANGLE,
    TINY_GOLDEN_ORDER,
    AngleSchedule,
    RadialSampling,
    spoke_angles,
    tiny_golden_angle,
)
from sinotherm.core.scan import Estimates, MetaValue, ScanHeader, Spoke
from sinotherm.errors import HeaderError, SpokeError
from sinotherm.frames.clock import StampClock
from sinotherm.frames.header import RADIAL_TRAJECTORIES
from sinotherm.frames.schedule import RunningCount
from sinotherm.frames.whitening import WhitenedReadout
from sinotherm.wire.messages import Readout

__all__ = ["AngleCounter", "AngleSource", "SpokeReader", "TrajectoryUnit", "trajectory_scale"]

logger = logging.getLogger(__name__)

AngleSource: TypeAlias = Literal[
    "auto", "trajectory", "user_float", "golden", "tiny_golden", "uniform180", "uniform360", "raga"
]
AngleCounter: TypeAlias = Literal["auto", "running", "received", "encoding", "scan"]
TrajectoryUnit: TypeAlias = Literal["auto", "cycles", "encoded_fov", "recon_fov", "radians"]

_FLAGS: Final = {
    "noise": ismrmrd.ACQ_IS_NOISE_MEASUREMENT,
    "parallel calibration": ismrmrd.ACQ_IS_PARALLEL_CALIBRATION,
    "navigator": ismrmrd.ACQ_IS_NAVIGATION_DATA,
    "phase correction": ismrmrd.ACQ_IS_PHASECORR_DATA,
    "HP feedback": ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
    "dummy": ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    "RT feedback": ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
    "surface coil correction": ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    "phase stabilization reference": ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    "phase stabilization": ismrmrd.ACQ_IS_PHASE_STABILIZATION,
}
_NO_ESTIMATES: Final[Estimates] = {}
_NO_IMAGE: Final = sum(1 << (bit - 1) for bit in _FLAGS.values())
_LAST_OF_ALL: Final = sum(1 << (bit - 1) for bit in (ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT))
_LAST: Final = 1 << (ismrmrd.ACQ_LAST_IN_SLICE - 1) | _LAST_OF_ALL
_REVERSE: Final = 1 << (ismrmrd.ACQ_IS_REVERSE - 1)

_SCHEDULES: Final[tuple[AngleSchedule, ...]] = get_args(AngleSchedule)
_HIGHEST_ORDER: Final = 100
_SQUARE: Final = 0.01
"""Largest relative difference between the sides of a reconstructed pixel."""
_STRAIGHT: Final = 0.05
"""Largest RMS distance of the samples from an equidistant straight line, samples."""
_MISS: Final = 3.0
"""Largest distance at which a spoke may miss k = 0, samples (gradient delays; a Cartesian line misses by more)."""
_STILL: Final = 2e-3
"""Offsets below this are rounding of the trajectory, samples."""
_EDGE: Final = 0.1
"""Largest disagreement at a spoke's end that a common spacing may cause, samples."""


def trajectory_scale(unit: TrajectoryUnit, largest: float, scan: ScanHeader) -> tuple[TrajectoryUnit, float]:
    """Return the unit of a trajectory and the factor to cycles per reconstructed pixel.

    Parameters
    ----------
    unit
        ``cycles`` per encoded pixel (−0.5…0.5), ``radians`` per encoded pixel (−π…π), ``encoded_fov`` or
        ``recon_fov``: multiples of 1/FOV (−N/2…N/2); ``auto``: the one that brings ``largest``
        nearest to 0.5 cycles per pixel, by ratio.
    largest
        Largest |k| of a spoke in the file's unit.
    scan
        Matrix and field of view, encoded and reconstructed.
    """
    encoded = scan.encoded.fov_m[0] / scan.encoded.matrix[0]
    factors: dict[TrajectoryUnit, float] = {
        "cycles": 1.0 / encoded,
        "encoded_fov": 1.0 / scan.encoded.fov_m[0],
        "recon_fov": 1.0 / scan.recon.fov_m[0],
        "radians": 1.0 / (2.0 * math.pi * encoded),
    }
    if unit == "auto":
        unit = min(factors, key=lambda name: abs(math.log(largest * factors[name] * encoded / 0.5)))
    return unit, factors[unit] * scan.pixel_m[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How the samples of readouts of one kind go into a spoke.

    ``sampling``: of the spoke; ``first`` to ``last``: the samples that count; ``offset``: the place of
    the first in the spoke; ``whole``: they fill it. ``fit``, float64 (2, sample): gives mean and slope
    along the readout; ``middle`` and ``spread``: mean and sum of squares of the sample index.
    """

    sampling: RadialSampling
    first: int
    last: int
    offset: int
    whole: bool
    fit: FloatArray
    middle: float
    spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A straight line fitted to a trajectory: slope (kx, ky) a sample, and its mean."""

    slope: tuple[float, float]
    mean: tuple[float, float]
    spacing: float


class SpokeReader:
    """Makes spokes of a scan's readouts.

    Where the samples lie is settled by the first spoke and holds for the scan; readouts of other
    lengths are placed by their centre.

    Parameters
    ----------
    scan
        The scan's header.
    angles
        Where the spoke angles come from; ``auto``: the trajectory if there is one, else the header.
    trajectory_unit
        See `trajectory_scale`.
    counter
        What counts the spokes of a schedule: ``running`` (per slice, partition and echo, lost ones too by
        `RunningCount`), ``received`` (the same without them), ``encoding`` (kspace_encode_step_1) or ``scan``
        (scan_counter from the first spoke); ``auto``: running for golden angles, encoding for the others.
    per_frame
        Spokes over which a uniform or rational schedule repeats; 0: the header's.
    order
        Order of the tiny golden angle; 0: the header's, else 7.
    user_float, user_float_degrees
        Which ``user_float`` holds the angle, and whether it is in degrees.
    tick_s
        Length of a tick of the acquisition time stamp, s.

    Attributes
    ----------
    kept_out
        Readouts that are no part of an image, by kind.
    notices
        What the console should be told of the readouts; who tells it takes it out.
    n_elsewhere, n_missing, n_repeated
        Readouts of other encodings, and those that are missing or came again by the scan counter.
    """

    def __init__(
        self,
        scan: ScanHeader,
        *,
        angles: AngleSource = "auto",
        trajectory_unit: TrajectoryUnit = "auto",
        counter: AngleCounter = "auto",
        per_frame: int = 0,
        order: int = 0,
        user_float: int = 0,
        user_float_degrees: bool = False,
        tick_s: float = 2.5e-3,
    ) -> None:
        self._scan = scan
        self._source = angles
        self._assumed = self._chosen = False
        self._unit: TrajectoryUnit = trajectory_unit
        self._scale = 0.0
        self._counter = counter
        self._per_frame = per_frame or scan.spokes_per_frame or 0
        self._order = order
        self._user_float, self._degrees = user_float, user_float_degrees
        self._clock = StampClock(tick_s)
        self._layouts: dict[tuple[int, ...], _Layout] = {}
        self._sampling: RadialSampling | None = None
        self._n_coils = scan.n_coils
        self._streams: Counter[tuple[int, int, int]] = Counter()
        self._table: list[float] = []
        self._first_counter = 0
        self._running = RunningCount(self._per_frame)
        self._last_header: Any = None
        self._last_spoke: Any = None
        self._calibration: dict[str, MetaValue] = {}
        self.kept_out: Counter[str] = Counter()
        self.notices: list[str] = []
        self.n_elsewhere = 0
        self.n_missing = 0
        self.n_repeated = 0

    @property
    def sampling(self) -> RadialSampling | None:
        """Where the samples of every spoke lie; ``None`` before the first one."""
        return self._sampling

    @property
    def angle_source(self) -> AngleSource:
        """Where the angles come from; ``auto`` before the first spoke."""
        return self._source

    @property
    def trajectory_unit(self) -> TrajectoryUnit:
        """Unit of the trajectory; ``auto`` where none was seen."""
        return self._unit

    def read(self, readout: Readout) -> Spoke | None:
        """Return the spoke of a readout, or ``None`` if it is no part of an image.

        Raises
        ------
        HeaderError
            The pixels of the reconstructed space are not square.
        SpokeError
            The readout does not fit the scan, is not radial, holds values that are not finite, or there is
            no way to derive its angle.
        """
        header = readout.header
        if not self._follows(header):
            return None
        flags = header.flags
        if flags & _NO_IMAGE:
            kind = next(kind for kind, bit in _FLAGS.items() if flags >> (bit - 1) & 1)
            self.kept_out[kind] += 1
            return None
        if header.encoding_space_ref != self._scan.encoding_space:
            self.kept_out[f"encoding space {header.encoding_space_ref}"] += 1
            if not self.n_elsewhere:
                self.notices.append(
                    f"readout {header.scan_counter} belongs to encoding space {header.encoding_space_ref}: it and all "
                    f"like it are in no image; those of encoding space {self._scan.encoding_space} are, the header's "
                    "first radial one"
                )
            self.n_elsewhere += 1
            return None
        data, trajectory = readout.data, readout.trajectory
        n_coils, n_samples = data.shape
        if n_coils != self._n_coils:
            self._coils(header, n_coils)
        energy = np.vdot(data, data)
        if not math.isfinite(energy.real):
            raise SpokeError(
                f"readout {header.scan_counter} holds values that are not finite: "
                "NaN and infinity cannot be reconstructed; look at the converter or the receiver."
            )
        key = (n_samples, trajectory.shape[1], header.discard_pre, header.discard_post, header.center_sample)
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = self._lay_out(header, n_samples, trajectory)
        sampling = layout.sampling
        idx = header.idx
        stream = (idx.slice, self._partition(header), idx.contrast)
        if self._source == "trajectory":
            angle, shift = self._measured(header, trajectory, layout)
        else:
            angle, shift = self._scheduled(header, idx, stream), (0.0, 0.0)
        self._streams[stream] += 1
        self._last_spoke = header
        return Spoke(
            data=self._place(data, layout),
            sampling=sampling,
            angle_rad=angle,
            shift=shift,
            slice=stream[0],
            partition=stream[1],
            echo=stream[2],
            repetition=idx.repetition,
            time_s=self._time(header.acquisition_time_stamp),
            index=header.scan_counter,
            last=bool(flags & _LAST),
            last_of_all=bool(flags & _LAST_OF_ALL),
            header=header,
            received_s=readout.received_s,
            waiting=readout.waiting,
            noise_known=isinstance(readout, WhitenedReadout),
            calibration=self._calibration,
            estimates=readout.estimates if isinstance(readout, WhitenedReadout) else _NO_ESTIMATES,
        )

    def _follows(self, header: Any) -> bool:
        """Count gaps and repetitions of the scan counter; False for a readout that came before."""
        last, self._last_header = self._last_header, header
        if last is None:
            return True
        step = header.scan_counter - last.scan_counter
        # Without a second value the counter is one that nobody counts.
        if step == 1 or (header.scan_counter == 0 and last.scan_counter == 0):
            return True
        if step > 1:
            if not self.n_missing:
                logger.warning(
                    "scan_counter jumps from %d to %d: %d readouts are missing",
                    *(last.scan_counter, header.scan_counter, step - 1),
                )
            self.n_missing += step - 1
            self._note(readouts_missing=self.n_missing)
            return True
        same = bytes(header) == bytes(last)
        if not self.n_repeated:
            logger.warning(
                "scan_counter goes from %d to %d: %s",
                *(last.scan_counter, header.scan_counter, "the readout came twice" if same else "out of order"),
            )
        self.n_repeated += 1
        self._note(readouts_repeated=self.n_repeated)
        return not same

    def _note(self, **values: MetaValue) -> None:
        """Write into the calibration of the coming spokes; those that left keep theirs."""
        self._calibration = {**self._calibration, **values}

    def _coils(self, header: Any, n_coils: int) -> None:
        if not n_coils:
            raise SpokeError(
                f"readout {header.scan_counter} has active_channels = 0, and so no data: a spoke needs 1 or more; "
                "correct the converter or the sequence that sends it."
            )
        if self._sampling is not None:
            raise SpokeError(
                f"readout {header.scan_counter} has {n_coils} channels, the first spoke had {self._n_coils}: "
                "the number of coils cannot change within a scan."
            )
        if self._n_coils is not None:
            logger.info("the header states %d channels, the readouts have %d: theirs count", self._n_coils, n_coils)
        self._n_coils = n_coils

    def _partition(self, header: Any) -> int:
        """Return the place of a readout among the partitions of its slab."""
        n, offset = self._scan.n_partitions, self._scan.partition_offset
        partition: int = header.idx.kspace_encode_step_2 + offset
        if not 0 <= partition < n:
            raise SpokeError(
                f"readout {header.scan_counter} has kspace_encode_step_2 = {partition - offset}: by the header it lies "
                f"between {max(0, -offset)} and {n - 1 - offset}; correct the limits and centre of "
                "kspace_encoding_step_2 and the encoded matrix z, or the converter that wrote them."
            )
        return partition

    # Where the samples lie

    def _lay_out(self, header: Any, n_samples: int, trajectory: FloatArray) -> _Layout:
        first, last = header.discard_pre, n_samples - header.discard_post
        if last - first < 2:
            raise SpokeError(
                f"readout {header.scan_counter}: {n_samples} samples less discard_pre {header.discard_pre} and "
                f"discard_post {header.discard_post} leave {max(last - first, 0)}; at least 2 are needed."
            )
        self._choose_source(header, trajectory)
        self._check_pixel()
        if self._source == "trajectory":
            spacing, centre = self._measured_sampling(header, trajectory, first, last)
        else:
            spacing, centre = self._stated_sampling(header, n_samples, first, last)
        # The reconstructed grid holds nothing beyond half a cycle per pixel.
        reach = 0.5 / spacing + 0.51
        kept_first, kept_last = max(first, math.ceil(centre - reach)), min(last, math.floor(centre + reach) + 1)
        if kept_last - kept_first < 2:
            raise SpokeError(
                f"readout {header.scan_counter}: its centre {centre:.1f} lies outside its samples {first}-{last - 1}; "
                "correct center_sample, discard_pre and discard_post, or give a trajectory."
            )
        if kept_last - kept_first < last - first:
            logger.info("samples %d to %d of %d to %d are used", kept_first, kept_last - 1, first, last - 1)
        first, last = kept_first, kept_last
        if self._sampling is None:
            self._sampling = self._full(header, first, last, centre, spacing)
        sampling = self._sampling
        if abs(spacing - sampling.spacing) * sampling.n_readout / 2 > _EDGE * sampling.spacing:
            raise SpokeError(
                f"readout {header.scan_counter} has a sample spacing of {spacing:.6g} cycles per pixel, the first "
                f"spoke {sampling.spacing:.6g}: the spacing cannot change within a scan."
            )
        offset = round(sampling.centre - centre) + first
        if offset < 0 or offset + last - first > sampling.n_readout:
            cut_first, cut_last = max(0, -offset), max(0, offset + last - first - sampling.n_readout)
            first, last, offset = first + cut_first, last - cut_last, offset + cut_first
        index = np.arange(last - first, dtype=np.float64)
        middle = float(index.mean())
        spread = float(np.sum((index - middle) ** 2))
        return _Layout(
            sampling=sampling,
            first=first,
            last=last,
            offset=offset,
            whole=last - first == sampling.n_readout,
            fit=np.stack((np.full(len(index), 1.0 / len(index)), (index - middle) / spread)),
            middle=middle + offset,
            spread=spread,
        )

    def _full(self, header: Any, first: int, last: int, centre: float, spacing: float) -> RadialSampling:
        """Return the sampling of the full spoke: a partial echo is filled up symmetrically."""
        left, right = centre - first, last - 1 - centre
        if abs(left - right) <= 1.0 + _STILL:
            sampling = RadialSampling(n_readout=last - first, spacing=spacing, centre=left)
        else:
            half = max(math.ceil(left - _STILL), math.floor(right + _STILL) + 1)
            padding = half - math.ceil(left - _STILL)
            sampling = RadialSampling(n_readout=2 * half, spacing=spacing, centre=left + padding)
            logger.info(
                "asymmetric echo: %d samples with their centre at %.1f, filled with zeros to %d",
                *(last - first, left, sampling.n_readout),
            )
        if self._source == "trajectory" and header.center_sample and abs(header.center_sample - centre) > 1.0:
            logger.info("center_sample is %d, the trajectory's centre %.2f counts", header.center_sample, centre)
        logger.info(
            "spokes of %d samples, spacing 1/%.4g cycles per pixel, centre at %.2f; angles from %s",
            *(sampling.n_readout, 1.0 / spacing, sampling.centre, self._described()),
        )
        self._note(spoke_angles=self._described())
        return sampling

    def _described(self) -> str:
        if self._source == "trajectory":
            return f"trajectory ({self._unit})"
        if self._source == "user_float":
            return f"user_float[{self._user_float}]"
        order = f" of order {self._order}" if self._source == "tiny_golden" else ""
        return f"schedule {self._source}{order}{' (assumed)' if self._assumed else ''}, counter {self._counter}"

    def _check_pixel(self) -> None:
        # One spacing of the samples holds at every angle.
        x, y = self._scan.pixel_m
        if abs(x - y) > _SQUARE * max(x, y):
            (columns, rows, _), fov = self._scan.recon.matrix, self._scan.recon.fov_m
            raise HeaderError(
                f"reconstructed pixels of {1e3 * x:.4g} x {1e3 * y:.4g} mm ({columns} x {rows} over "
                f"{1e3 * fov[0]:g} x {1e3 * fov[1]:g} mm): their sides may differ by {_SQUARE:.0%}; correct matrixSize "
                "or fieldOfView_mm of the header's reconSpace."
            )

    def _stated_sampling(self, header: Any, n_samples: int, first: int, last: int) -> tuple[float, float]:
        """Return spacing and centre as the headers state them."""
        encoded = self._scan.encoded
        spacing = self._scan.pixel_m[0] / encoded.fov_m[0]
        n_kept, centre = last - first, header.center_sample
        if centre == 0 and n_samples >= encoded.matrix[0]:
            # Converters leave center_sample empty; a whole spoke has its centre in the middle.
            centre = first + n_kept // 2 if n_kept >= encoded.matrix[0] else n_samples // 2
        # What is discarded is no part of the spoke, or the part that an asymmetric echo lacks: the centre tells.
        reach = 2 * max(centre - first, last - centre)
        n_whole = min(n_kept, n_samples, key=lambda n: abs(n - reach))
        cropped = encoded.matrix[0] * self._scan.recon.fov_m[0] / encoded.fov_m[0]
        if abs(n_whole - reach) <= 2 and abs(n_whole - cropped) <= 1 and cropped < 0.75 * encoded.matrix[0]:
            logger.warning(
                "%d samples around their centre for an encoded matrix of %d, as many as the field of view of the image "
                "takes: the readout oversampling is taken for removed before; correct the header's encodedSpace",
                *(n_whole, encoded.matrix[0]),
            )
            return self._scan.pixel_m[0] / self._scan.recon.fov_m[0], float(centre)
        if n_whole > encoded.matrix[0]:
            logger.info(
                "%d samples for an encoded matrix of %d: taken as readout oversampling that the header leaves out",
                *(n_whole, encoded.matrix[0]),
            )
            spacing *= encoded.matrix[0] / n_whole
        return spacing, float(centre)

    def _measured_sampling(self, header: Any, trajectory: FloatArray, first: int, last: int) -> tuple[float, float]:
        """Return spacing and centre of the first spoke's trajectory, and settle the unit."""
        dims = trajectory.shape[1]
        if dims not in (2, 3):
            raise SpokeError(
                f"readout {header.scan_counter} has a trajectory of {dims} dimensions: "
                "2 (kx, ky), or 3 with a weight or a constant kz, are radial."
            )
        points = trajectory[first:last].astype(np.float64)
        if not np.all(np.isfinite(points)):
            raise SpokeError(f"readout {header.scan_counter} has a trajectory with values that are not finite.")
        largest = float(np.hypot(points[:, 0], points[:, 1]).max())
        if largest == 0.0:
            raise SpokeError(
                f"readout {header.scan_counter} has a trajectory of zeros: leave it out and set spokes.angles, "
                "or write the sample positions."
            )
        if dims == 3 and points[0, 2] * points[-1, 2] < 0.0:
            raise SpokeError(
                f"readout {header.scan_counter} runs from kz = {points[0, 2]:.3g} to {points[-1, 2]:.3g}: 3D radial is "
                "not supported; stacks of stars have a constant kz."
            )
        if self._scale == 0.0:
            asked = self._unit
            self._unit, self._scale = trajectory_scale(asked, largest, self._scan)
            logger.info(
                "trajectory up to %.4g: unit %s (%s)",
                *(largest, self._unit, "detected" if asked == "auto" else "as set"),
            )
            reach = largest * self._scale
            expected = 0.5 * self._scan.pixel_m[0] * self._scan.encoded.matrix[0] / self._scan.encoded.fov_m[0]
            if not 0.6 < reach / expected < 1.6:
                logger.warning(
                    "the trajectory reaches %.3g cycles per pixel where the header's matrix asks for %.3g: "
                    "if the image has the wrong size, set spokes.trajectory_unit",
                    *(reach, expected),
                )
        index = np.arange(last - first, dtype=np.float64)
        index -= index.mean()
        fit = np.stack((np.full(last - first, 1.0 / (last - first)), index / np.sum(index**2)))
        line = self._line(header, trajectory[first:last], fit, float(np.sum(index**2)))
        along = (line.mean[0] * line.slope[0] + line.mean[1] * line.slope[1]) / line.spacing**2
        return line.spacing, (first + last - 1) / 2 - along

    def _line(self, header: Any, points: FloatArray, fit: FloatArray, spread: float) -> _Line:
        """Return the equidistant straight line through a spoke's positions, cycles per pixel."""
        k = points[:, :2].astype(np.float64)
        (mean_x, mean_y), (slope_x, slope_y) = (fit @ k).tolist()
        n = len(k)
        squares = float(np.vdot(k, k))
        rest = squares - n * (mean_x**2 + mean_y**2) - spread * (slope_x**2 + slope_y**2)
        step = math.hypot(slope_x, slope_y)
        # Written so that NaN fails too.
        if not (step > 0.0 and rest <= n * (_STRAIGHT * step) ** 2 + 1e-12 * squares):
            raise SpokeError(
                f"readout {header.scan_counter} is not a spoke: its samples do not lie on a straight line at equal "
                "distances; only radial trajectories are reconstructed."
            )
        scale = self._scale
        return _Line(
            slope=(slope_x * scale, slope_y * scale), mean=(mean_x * scale, mean_y * scale), spacing=step * scale
        )

    def _measured(self, header: Any, trajectory: FloatArray, layout: _Layout) -> tuple[float, tuple[float, float]]:
        """Return angle and shift of a spoke from its trajectory."""
        sampling = layout.sampling
        line = self._line(header, trajectory[layout.first : layout.last], layout.fit, layout.spread)
        if abs(line.spacing - sampling.spacing) * sampling.n_readout / 2 > _EDGE * sampling.spacing:
            raise SpokeError(
                f"readout {header.scan_counter} has a sample spacing of {line.spacing:.6g} cycles per pixel, the first "
                f"spoke {sampling.spacing:.6g}: the spacing cannot change within a scan."
            )
        ahead = (layout.middle - sampling.centre) * sampling.spacing / line.spacing
        shift_x, shift_y = line.mean[0] - ahead * line.slope[0], line.mean[1] - ahead * line.slope[1]
        miss = math.hypot(shift_x, shift_y) / sampling.spacing
        if miss > _MISS:
            raise SpokeError(
                f"readout {header.scan_counter} passes k = 0 at a distance of {miss:.1f} samples: a spoke passes "
                "through it; only radial trajectories are reconstructed."
            )
        angle = math.atan2(line.slope[1], line.slope[0])
        return angle, (shift_x, shift_y) if miss > _STILL else (0.0, 0.0)

    def _place(self, data: SpokeData, layout: _Layout) -> SpokeData:
        sampling = layout.sampling
        if layout.whole:
            if data.shape[1] == sampling.n_readout:
                return data
            return np.ascontiguousarray(data[:, layout.first : layout.last])
        spoke = np.zeros((len(data), sampling.n_readout), dtype=np.complex64)
        spoke[:, layout.offset : layout.offset + layout.last - layout.first] = data[:, layout.first : layout.last]
        return spoke

    # At which angle

    def _choose_source(self, header: Any, trajectory: FloatArray) -> None:
        """Settle where the angles come from, at the first spoke."""
        has_trajectory = trajectory.shape[1] > 0
        if self._source == "trajectory" and not has_trajectory:
            raise SpokeError(
                f"readout {header.scan_counter} has no trajectory: write one for every spoke, or set spokes.angles."
            )
        if has_trajectory and self._chosen:
            raise SpokeError(
                f"readout {header.scan_counter} has a trajectory, and the first spoke had none, so that the angles are "
                f"those of the schedule {self._source}: write one for every spoke, or set spokes.angles."
            )
        if self._source != "auto":
            self._prepare(header)
            return
        self._chosen = not has_trajectory
        self._source = "trajectory" if has_trajectory else self._stated_source(header)
        self._prepare(header)

    def _stated_source(self, header: Any) -> AngleSchedule:
        """Return the schedule that the scan's header names."""
        kind, name = self._scan.trajectory, self._scan.user_parameters.get("angle_schedule")
        if kind not in RADIAL_TRAJECTORIES:
            raise SpokeError(
                f"readout {header.scan_counter} has no trajectory and the header says {kind or 'nothing'!r}: no way to "
                "derive the angles; if the scan is radial, set spokes.angles (golden, uniform180, user_float, …)."
            )
        named = next((schedule for schedule in _SCHEDULES if schedule == name), None)
        if named is not None:
            return named
        if kind == "goldenangle":
            return "golden"
        if name is not None:
            raise SpokeError(
                f"the header's user parameter angle_schedule is {str(name)[:40]!r}: known are {', '.join(_SCHEDULES)}; "
                "set spokes.angles, or give trajectories."
            )
        logger.warning(
            "the readouts have no trajectory and the header says no more than 'radial': angles equidistant over 180 "
            "degrees, the same in every frame (uniform180), are assumed; set spokes.angles, or name the schedule in "
            "the header's user parameter angle_schedule (%s)",
            ", ".join(_SCHEDULES),
        )
        self._assumed = True
        return "uniform180"

    def _stated_order(self) -> int:
        """Return the order of the tiny golden angle that the scan's header names."""
        order = self._scan.user_parameters.get("tiny_golden_order")
        if order is None:
            logger.warning(
                "the header has no user parameter tiny_golden_order: %d is assumed; set spokes.tiny_golden_order",
                TINY_GOLDEN_ORDER,
            )
            return TINY_GOLDEN_ORDER
        if isinstance(order, str) or order != int(order) or not 1 <= order <= _HIGHEST_ORDER:
            raise SpokeError(
                f"the header's user parameter tiny_golden_order is {str(order)[:40]!r}: it must be a whole number from "
                f"1 to {_HIGHEST_ORDER}; set spokes.tiny_golden_order."
            )
        return int(order)

    def _prepare(self, header: Any) -> None:
        if self._source in ("trajectory", "user_float") or self._layouts:
            return
        if self._counter == "auto":
            self._counter = "running" if self._source in ("golden", "tiny_golden") else "encoding"
        if self._source == "tiny_golden" and not self._order:
            self._order = self._stated_order()
        self._first_counter = header.scan_counter
        if self._source in ("uniform180", "uniform360", "raga"):
            if not self._per_frame:
                raise SpokeError(
                    f"angles of the schedule {self._source} need the spokes of a frame, and the header's encoding "
                    "limits do not state them: set spokes.per_frame, or give trajectories."
                )
            self._table = spoke_angles(self._source, self._per_frame).tolist()

    def _scheduled(self, header: Any, idx: Any, stream: tuple[int, int, int]) -> float:
        """Return the angle that the schedule or the header's ``user_float`` states."""
        if self._source == "user_float":
            angle = header.user_float[self._user_float]
            if not math.isfinite(angle):
                raise SpokeError(f"readout {header.scan_counter}: user_float[{self._user_float}] is {angle}.")
            angle = math.radians(angle) if self._degrees else angle
        else:
            angle = self._angle(self._count(header, idx, stream))
        return angle + math.pi if header.flags & _REVERSE else angle

    def _angle(self, count: int) -> float:
        if self._table:
            return self._table[count % len(self._table)]
        step = GOLDEN_ANGLE if self._source == "golden" else tiny_golden_angle(self._order)
        return math.fmod(count * step, 2.0 * math.pi)

    def _count(self, header: Any, idx: Any, stream: tuple[int, int, int]) -> int:
        if self._counter == "scan":
            return header.scan_counter - self._first_counter
        if self._counter == "running":
            return self._run(header, idx, stream)
        if self._counter == "received":
            return self._streams[stream]
        count = idx.kspace_encode_step_1
        last = self._last_spoke
        if count == 0 and last is not None and self._streams[stream] == 1 and len(self._streams) == 1:
            other = last.idx
            if other.kspace_encode_step_1 == 0 and other.average == idx.average and other.repetition == idx.repetition:
                raise SpokeError(
                    f"readouts {last.scan_counter} and {header.scan_counter} both carry kspace_encode_step_1 = 0: it "
                    "does not count the spokes; set spokes.counter = running, or give trajectories."
                )
        return count

    def _run(self, header: Any, idx: Any, stream: tuple[int, int, int]) -> int:
        """Return the place of a spoke in a schedule that goes on with every spoke, lost ones too."""
        told = self._running.n_unproven
        count = self._running.next(
            stream,
            idx.kspace_encode_step_1,
            idx.repetition,
            readout=header.scan_counter,
            n_missing=self.n_missing,
            n_others=self.kept_out.total(),
        )
        if self._running.n_unproven and not told:
            self.notices.append(
                f"{self._running.n_unproven} readouts are missing before readout {header.scan_counter}, and no counter "
                f"proves how many of them were spokes, whose angles are left out: {count} are taken to lie before it; "
                "if the images turn, give trajectories, or count the spokes in kspace_encode_step_1"
            )
        return count

    # When

    def _time(self, stamp: int) -> float:
        """Return the time of a stamp, s, carried over midnight; NaN while no stamp was ever given."""
        return math.nan if stamp == 0 and not self._clock.running else self._clock.time_s(stamp)
