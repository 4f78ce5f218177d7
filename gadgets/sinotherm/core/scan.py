"""What travels through the chain: the scan's header, spokes, frames, images and temperature maps.

All values are SI and radians; conversion happens where the MRD header is read and where images are
written. Values are frozen; a stage that changes one makes a new one with `dataclasses.replace`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import IntFlag
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.core.arrays import (
    CoilImages,
    ComplexArray,
    FrameData,
    MapArray,
    MaskArray,
    SampleMask,
    SpokeAngles,
    SpokeData,
    SpokeShifts,
    ValidityArray,
)
from sinotherm.core.geometry import RadialSampling

__all__ = [
    "EncodingSpace",
    "Estimates",
    "Frame",
    "FrameImage",
    "FrameStatistics",
    "Item",
    "MetaValue",
    "NoReading",
    "ScanHeader",
    "Sinogram",
    "Spoke",
    "Stage",
    "TemperatureMap",
]

MetaValue: TypeAlias = str | float | int | bool | tuple[str | float | int, ...]

Estimates: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
"""What a scan's calibration estimated from its data, by name: ``noise_covariance``, ``coil_maps`` and others."""

Item: TypeAlias = Any
"""Anything that travels: a readout, waveform, text, `Spoke`, `Frame`, `FrameImage`, `TemperatureMap`, image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingSpace:
    """Matrix (x, y, z) in pixels and field of view (x, y, z) in m of an encoded or reconstructed space."""

    matrix: tuple[int, int, int]
    fov_m: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanHeader:
    """The facts of a scan, SI. ``None`` means that the header is silent.

    Attributes
    ----------
    encoded, recon
        Encoded space (readout oversampling included) and space of the images.
    n_coils
        Receiver channels; ``None`` until the first readout where the header is silent.
    echo_times_s, repetition_time_s, larmor_hz, field_strength_t
        TE per echo (0: not stated; none after the last that is), TR, f0 and B0.
    trajectory
        Kind as the header says it: ``radial``, ``goldenangle``, ``cartesian``, …
    encoding_space
        Index of the encoding that this describes; readouts of other ones are no part of the images.
    relative_noise_bandwidth
        Share of the receiver's bandwidth that its noise fills (for the scaling of noise scans).
    n_slices, spokes_per_frame
        From the encoding limits (1 or ``None`` where silent).
    n_partitions
        Partitions of a stack of stars: the encoded matrix where the limits say that there are several; else 1.
    acquired_partitions
        Of these, the ones that are acquired (partial Fourier); ``None``: all.
    partition_offset
        Place of the partition whose counter is 0; the place ``n_partitions // 2`` is kz = 0.
    user_parameters
        Header's user parameters by name: numbers where they are finite ones and meant as such, else texts.
    waveforms
        Waveform ids that the header announces.
    protocol, measurement_id
        Texts for logs and file names; empty where silent.
    xml
        The raw header.
    estimates
        Not of the header: what the scan of a stored baseline estimated, by slice and echo. It is used as it
        is, because the baseline's phase is that of images made with it; empty: all is estimated anew.
    chain
        Not of the header: every setting of the stages that the scan goes through, by stage, for the audit log.
    """

    encoded: EncodingSpace
    recon: EncodingSpace
    trajectory: str
    encoding_space: int = 0
    n_coils: int | None = None
    relative_noise_bandwidth: float | None = None
    echo_times_s: tuple[float, ...] = ()
    repetition_time_s: float | None = None
    larmor_hz: float | None = None
    field_strength_t: float | None = None
    n_slices: int = 1
    n_partitions: int = 1
    acquired_partitions: int | None = None
    partition_offset: int = 0
    spokes_per_frame: int | None = None
    user_parameters: Mapping[str, str | float] = field(default_factory=dict)
    waveforms: tuple[int, ...] = ()
    protocol: str = ""
    measurement_id: str = ""
    xml: str = ""
    estimates: Mapping[tuple[int, int], Estimates] = field(default_factory=dict, repr=False, compare=False)
    chain: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def pixel_m(self) -> tuple[float, float]:
        """Size of a reconstructed pixel (x, y), m."""
        return self.recon.fov_m[0] / self.recon.matrix[0], self.recon.fov_m[1] / self.recon.matrix[1]

    def pixel_of(self, shape: tuple[int, ...], fov_m: tuple[float, float] | None) -> tuple[float, float]:
        """Return the size of a pixel (x, y), m, of images (…, y, x) of any matrix: foreign ones may be interpolated.

        Parameters
        ----------
        shape
            Shape of the images.
        fov_m
            Field of view (x, y) that they state, m; ``None``: they lie in that of the header.
        """
        ours = self.recon.fov_m[:2]
        # Image headers hold single precision: what is but rounded draws no other regions.
        stated = ours if fov_m is None or np.allclose(fov_m, ours, rtol=1e-6, atol=0.0) else fov_m
        return stated[0] / shape[-1], stated[1] / shape[-2]

    @property
    def n_planes(self) -> int:
        """Images of a slab: the reconstructed matrix, but no more than partitions (planes are not interpolated)."""
        return min(self.recon.matrix[2], self.n_partitions)

    @property
    def plane_m(self) -> float:
        """Distance of the planes of a slab, or thickness of a slice, m."""
        if self.recon.matrix[2] > self.n_partitions > 1:
            return self.encoded.fov_m[2] / self.n_partitions
        return self.recon.fov_m[2] / self.n_planes


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoke:
    """One radial readout, whitened, compressed and cut to the samples that count.

    Attributes
    ----------
    data
        complex64 (coil, readout); a partial echo is filled with zeros to the full spoke.
    sampling
        Where the samples lie.
    angle_rad
        Spoke angle θ.
    shift
        Offset (kx, ky) of the whole spoke in k-space, cycles per pixel (gradient delay); the true
        positions are κ·(cos θ, sin θ) + shift.
    slice, echo, repetition
        Counters of the readout.
    partition
        Place among the partitions of the slab, kz = 0 at ``n_partitions // 2``.
    time_s
        Start of the readout since midnight or scan start, from the time stamp; NaN where there is none.
    index
        Scan counter.
    last
        The readout carries a flag that ends a frame (LAST_IN_REPETITION, LAST_IN_SLICE, LAST_IN_MEASUREMENT).
    last_of_all
        One that ends those of all slices and echoes (LAST_IN_REPETITION, LAST_IN_MEASUREMENT).
    header
        The readout's ``ismrmrd.AcquisitionHeader``: geometry and stamps of the images made from it.
    received_s
        Monotonic clock at its last byte, s; NaN from a file.
    waiting
        Messages that had been received after it when work on it began; 0 from a file.
    noise_known
        A noise scan was used: the SD of the real part of the noise is 1 in every coil.
    calibration
        What the scan's calibration did to it (gradient delay, coil compression); goes into the meta of
        the frame and its images. One mapping is shared by all spokes of a calibration.
    estimates
        What of that was estimated from the data, for a later scan that goes on with it.
    """

    data: SpokeData
    sampling: RadialSampling
    angle_rad: float
    shift: tuple[float, float] = (0.0, 0.0)
    slice: int = 0
    partition: int = 0
    echo: int = 0
    repetition: int = 0
    time_s: float = float("nan")
    index: int = 0
    last: bool = False
    last_of_all: bool = False
    header: Any = None
    received_s: float = float("nan")
    waiting: int = 0
    noise_known: bool = False
    calibration: Mapping[str, MetaValue] = field(default_factory=dict)
    estimates: Estimates = field(default_factory=dict, repr=False, compare=False)

    def changed(self, **changes: Any) -> "Spoke":
        """Return this spoke with some attributes changed: `dataclasses.replace` in a third of its time.

        Two stages change every readout of a scan.
        """
        made = object.__new__(Spoke)
        for name in _SPOKE:
            object.__setattr__(made, name, getattr(self, name))
        for name, value in changes.items():
            object.__setattr__(made, name, value)
        return made


_SPOKE: Final = tuple(one.name for one in fields(Spoke))


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The spokes of one image (one slice and echo; all partitions of a stack of stars).

    Attributes
    ----------
    spokes
        The spokes in order of acquisition; for a stack of stars after the FFT along partitions,
        ``spokes`` are those of one partition plane and ``slice`` its place in the slab.
    number
        Frame counter of this slice and echo, from 0.
    complete
        False for a partial last frame that the policy let through.
    footprint
        (first, centre, last) time of its readouts, s.
    meta
        How it was made so far (policy, spokes) and the calibration of its spokes.
    """

    spokes: tuple[Spoke, ...]
    number: int
    slice: int = 0
    echo: int = 0
    complete: bool = True
    footprint: tuple[float, float, float] = (float("nan"),) * 3
    meta: Mapping[str, MetaValue] = field(default_factory=dict)

    @property
    def n_spokes(self) -> int:
        """Spokes of the frame."""
        return len(self.spokes)

    @property
    def sampling(self) -> RadialSampling:
        """Where the samples lie on each spoke."""
        return self.spokes[0].sampling

    @property
    def header(self) -> Any:
        """Reference acquisition header: the middle spoke's."""
        return self.spokes[len(self.spokes) // 2].header

    @property
    def received_s(self) -> float:
        """Monotonic clock at the last byte of the last readout, s."""
        return self.spokes[-1].received_s

    def data(self) -> FrameData:
        """Return the samples as one array, complex64 (coil, spoke, readout)."""
        return np.stack([spoke.data for spoke in self.spokes], axis=1)

    def angles(self) -> SpokeAngles:
        """Return the spoke angles, rad, float64 (spoke,)."""
        return np.array([spoke.angle_rad for spoke in self.spokes], dtype=np.float64)

    def shifts(self) -> SpokeShifts:
        """Return the k-space offsets, cycles per pixel, float64 (spoke, 2)."""
        return np.array([spoke.shift for spoke in self.spokes], dtype=np.float64).reshape(-1, 2)

    def measured(self) -> SampleMask:
        """Return which samples any spoke holds a signal in, bool (readout,); all where none does.

        What a partial echo lacks was filled with zeros.
        """
        found = np.zeros(self.sampling.n_readout, dtype=np.bool_)
        for spoke in self.spokes:
            found |= spoke.data.any(axis=0)
            if found.all():
                break
        return found if found.any() else ~found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sinogram:
    """The measured projections of a frame, and those of its image at the angles that were not measured.

    Attributes
    ----------
    data
        complex64 (coil, angle, detector), in units of the object times pixels, detector axis along θ mod π.
    angles
        θ mod π of each projection, ascending, rad, (angle,).
    measured
        bool (angle,): which projections were measured.
    """

    data: ComplexArray
    angles: SpokeAngles
    measured: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameImage:
    """A reconstructed frame.

    Attributes
    ----------
    data
        complex64 (coil, slice, y, x) in units of the object; the coil axis is 1 after combination.
        Root-sum-of-squares images are real and carry ``phase_valid=False``.
    number, slice, echo
        Of the frame.
    phase_valid
        Whether the phase may be used for thermometry.
    noise_sd
        float32 (slice, y, x): SD of the real part of the noise per voxel, or ``None`` if unknown.
    reference
        complex64 (coil, slice, y, x): the image whose change was reconstructed, or ``None``.
    change_error
        SD of the error of that change, for each unit of it and of its gradient a voxel.
    held
        bool (slice, y, x): what was taken not to change, fat, and has no reading; ``None``: nothing.
    spokes
        The frame's spokes, for stages that check or refine against the measurement; empty for foreign images.
    sinogram
        The frame's sinogram without gaps, where it was asked for and the image is a network's; or ``None``.
    fingerprint
        What a baseline must agree on: f0, TE, geometry, coils, angle scheme, delays, maps, method.
    estimates
        What was estimated from the scan's data to make it: that of its spokes, and coil maps.
    fov_m
        Field of view (x, y) that a foreign image states, m; ``None``: that of the scan's header.
    footprint, header, received_s
        As in `Frame`.
    meta
        How it was made.
    """

    data: CoilImages
    number: int
    slice: int = 0
    echo: int = 0
    phase_valid: bool = True
    noise_sd: MapArray | None = None
    reference: CoilImages | None = None
    change_error: tuple[float, float] = (0.0, 0.0)
    held: MaskArray | None = None
    spokes: tuple[Spoke, ...] = ()
    sinogram: Sinogram | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    estimates: Estimates = field(default_factory=dict, repr=False, compare=False)
    fov_m: tuple[float, float] | None = None
    footprint: tuple[float, float, float] = (float("nan"),) * 3
    header: Any = None
    received_s: float = float("nan")
    meta: Mapping[str, MetaValue] = field(default_factory=dict)


class NoReading(IntFlag):
    """Reasons why a voxel has no reading: the bits of the validity map; bit 7 is reserved."""

    SIGNAL = 1 << 0
    NOISE = 1 << 1
    WRAP = 1 << 2
    DRIFT = 1 << 3
    MOTION = 1 << 4
    GUARD = 1 << 5
    NO_BASELINE = 1 << 6


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureMap:
    """Temperature of one frame.

    Attributes
    ----------
    change_degc
        float32 (slice, y, x): temperature change to the baseline, °C; NaN = no reading.
    temperature_degc
        The same plus body temperature; ``None`` where no body temperature was stated.
    unfiltered_degc
        Change before the filters in space and time; ``None`` without one.
    sigma_degc
        σ_T, °C (its systematic part by α apart, in ``meta``).
    cem43_min
        Thermal dose, minutes; ``None`` without body temperature.
    validity
        uint16 bits of `NoReading`; 0 = valid.
    fov_m
        As in `FrameImage`.
    """

    change_degc: MapArray
    sigma_degc: MapArray
    validity: ValidityArray
    number: int
    slice: int = 0
    temperature_degc: MapArray | None = None
    unfiltered_degc: MapArray | None = None
    cem43_min: MapArray | None = None
    fov_m: tuple[float, float] | None = None
    footprint: tuple[float, float, float] = (float("nan"),) * 3
    header: Any = None
    received_s: float = float("nan")
    meta: Mapping[str, MetaValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStatistics:
    """Statistics and alarms of one frame, for the feed, the audit log and ``watch``.

    ``regions`` holds one row a region (name, n, min, max, mean, SD, T10, T50, T90, volumes, dose);
    ``alarms`` the texts of the alarms that this frame raised; ``patience_s`` the time within which another
    map of a live scan is due.
    """

    number: int
    slice: int = 0
    time_s: float = float("nan")
    regions: tuple[Mapping[str, MetaValue], ...] = ()
    alarms: tuple[str, ...] = ()
    patience_s: float = float("inf")
    meta: Mapping[str, MetaValue] = field(default_factory=dict)


Stage: TypeAlias = Callable[[Iterator[Item], ScanHeader, Any], Iterator[Item]]
"""``stage(items, scan, settings) -> items``: handles the types that it knows, passes on all others in order."""
