"""Heated scans with their truth, for the scores of thermometry."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, MaskArray
from sinotherm.core.physics import BODY_TEMPERATURE_DEGC, PRF_COEFFICIENT, radian_per_degc
from sinotherm.core.scan import EncodingSpace, ScanHeader
from sinotherm.errors import DataError, SettingsError
from sinotherm.evaluation.demonstration import point_spread
from sinotherm.simulation.phantoms import Scene
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import STEPS_PER_FRAME, Scan

__all__ = ["SCENES", "HeatedScan", "Heating", "Series", "frame_interval_s", "heated_scan", "series"]

Heating: TypeAlias = Literal["rf", "focal", "rf-fast"]

SCENES: Final[tuple[Heating, ...]] = ("rf", "focal", "rf-fast")

_BODIES: Final = {"rf": "hyperthermia", "focal": "hifu", "rf-fast": "hyperthermia"}
_WIDTHS_M: Final = {"rf": (0.025, 0.040), "focal": (0.005, 0.015), "rf-fast": (0.025, 0.040)}
_INTERVAL_S: Final = 20.0
"""Of the frames of ``rf``, the longest that a clinic accepts for a map: twenty heat for 6.7 minutes."""
TUMOUR_RADIUS_M: Final = 0.020
FEWEST_VOXELS: Final = 300
"""Of a tumour, at 256 pixels of 400 mm."""
_PLACES: Final = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class HeatedScan(Scan):
    """A simulated scan whose heated region lies anywhere, of an image with phase, heated along any curve.

    Attributes
    ----------
    centre_m
        Centre (x, y) of the heated region; ``None``: the scene's.
    phase
        float (y, x), rad: phase of the object at TE; ``None``: the protocol's static field.
    curve
        Times (s after the last baseline frame) and temperatures (°C) of the hottest pixel, of which the rise since
        time zero counts; ``None``: as the bioheat equation runs.
    """

    centre_m: tuple[float, float] | None = None
    phase: FloatArray | None = None
    curve: tuple[FloatArray, FloatArray] | None = None

    @cached_property
    def scene(self) -> Scene:
        """The scene with its target in its place."""
        base = Scan(protocol=self.protocol).scene
        if self.centre_m is None:
            return base
        old = base.ellipse(base.target)
        x, y = self.centre_m
        new = replace(old, x_m=x, y_m=y, a_m=TUMOUR_RADIUS_M, b_m=TUMOUR_RADIUS_M)
        return replace(base, ellipses=tuple(new if part is old else part for part in base.ellipses))

    @cached_property
    def field_hz(self) -> FloatArray:
        """Static off-resonance, Hz; a given phase is one that it makes at TE."""
        if self.phase is None:
            return Scan(protocol=self.protocol, image=self.image).field_hz
        return self.phase / (2.0 * math.pi * self.protocol.phase_sign * self.protocol.echo_time_s)

    @cached_property
    def heating(self) -> FloatArray:
        """Temperature change of the body's pixels at the ends of the time steps, °C."""
        own = super().heating
        if self.curve is None or not own.any():
            return own
        hottest = own[np.argmax(own.max(axis=1))]
        course = _course(self.protocol, self.curve)
        return (course[:, None] * (hottest / hottest.max())[None]).astype(np.float32)


def _course(protocol: Protocol, curve: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Return the change that a curve makes of the hottest pixel, °C, float64 (step + 1,): 0 during the baseline.

    After the curve's last row its temperature stays.
    """
    steps = STEPS_PER_FRAME * protocol.frames
    times = (np.arange(steps + 1) / STEPS_PER_FRAME - protocol.baseline_frames) * protocol.interval_s
    return np.interp(np.maximum(times, 0.0), *curve) - np.interp(0.0, *curve)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """The whitened data of a heated scan and what they should show.

    Attributes
    ----------
    scan
        The scan.
    data
        complex64 (frame, coil, spoke, readout); noise of SD ``noise_sd`` in the real part.
    angles
        float64 (frame, spoke).
    maps
        complex64 (coil, y, x), Σ_c |s_c|² = 1: the true, whitened ones.
    truth_degc
        float32 (frame, y, x): temperature change averaged over the frame's window, at the scan's point spread.
    full_degc
        float32 (frame, y, x): change that a noise-free, fully sampled scan shows.
    tissue, tumour
        bool (y, x): body without fat, and the heated region.
    """

    scan: HeatedScan
    data: ComplexArray
    angles: FloatArray
    maps: ComplexArray
    truth_degc: FloatArray
    full_degc: FloatArray
    tissue: MaskArray
    tumour: MaskArray

    @property
    def n_baseline(self) -> int:
        """Frames before the heating."""
        return self.scan.protocol.baseline_frames

    @property
    def noise_sd(self) -> float:
        """SD of the real part of a whitened sample's noise."""
        return self.scan.noise_sd

    @property
    def header(self) -> ScanHeader:
        """What the scan's header says."""
        protocol = self.scan.protocol
        side, fov = protocol.matrix, self.scan.anatomy.fov_m
        space = EncodingSpace(matrix=(side, side, 1), fov_m=(fov, fov, 5e-3))
        return ScanHeader(
            encoded=space,
            recon=space,
            trajectory="radial",
            n_coils=protocol.n_coils,
            echo_times_s=(protocol.echo_time_s,),
            larmor_hz=protocol.larmor_hz,
        )


def _place(image: FloatArray, fov_m: float, random: np.random.Generator) -> tuple[float, float]:
    """Return a random centre (x, y), m, around which a tumour lies wholly inside the body and deeper than 25 mm.

    Raises
    ------
    DataError
        The body is too small.
    """
    from scipy import ndimage

    pixel = fov_m / image.shape[0]
    body = ndimage.binary_fill_holes(image > 0.05 * image.max())
    depth = ndimage.distance_transform_edt(np.pad(body, 1))[1:-1, 1:-1] * pixel
    # Holes with no signal cannot be measured.
    signal = ndimage.uniform_filter(image, round(2 * TUMOUR_RADIUS_M / pixel)) > 0.15 * image.max()
    deep = max(TUMOUR_RADIUS_M, min(0.025 + TUMOUR_RADIUS_M, 0.9 * float(depth.max())))
    rows, columns = np.nonzero((depth > deep) & signal & (image > 0.1 * image.max()))
    if len(rows) == 0:
        raise DataError("the object has no room for a tumour of 40 mm: give another image.")
    choice = random.integers(len(rows))
    half = image.shape[0] // 2
    return float((columns[choice] - half) * pixel), float((rows[choice] - half) * pixel)


def frame_interval_s(heating: Heating, spokes: int) -> float:
    """Return the time from a frame's first spoke to that of the next, s.

    Frames of a focus, which ultrasound heats within seconds, follow one another, those of diffuse heat come every
    20 s. The power that people are given takes minutes for a few degrees (a fast applicator: 9 °C in 3 min, Winter et
    al. 2015, 10.1186/s13014-015-0510-9), and conduction smooths what tissues absorb differently meanwhile. ``rf-fast``
    has neither pauses nor, for that reason, much conduction: a step of the power is one of the temperature.
    """
    frame_s = spokes * Protocol().repetition_time_s
    return max(_INTERVAL_S, frame_s) if heating == "rf" else frame_s


def heated_scan(
    image: ComplexArray | FloatArray | None,
    *,
    heating: Heating,
    peak_degc: float | None = None,
    spokes: int,
    seed: int,
    schedule: Any = "uniform180",
    coils: int = 8,
    snr: float = 40.0,
    matrix: int = 256,
    baseline_frames: int = 10,
    heated_frames: int = 20,
    curve: tuple[FloatArray, FloatArray] | None = None,
) -> HeatedScan:
    """Return a heated scan as the evaluation protocol defines it: random place and width, drift and fat on.

    Parameters
    ----------
    image
        Object (y, x), magnitude or complex; ``None``: the ellipses of the scene, heated in its own place.
    heating
        ``rf``: diffuse, widths of 25 to 40 mm; ``focal``: 5 to 15 mm; ``rf-fast``: as ``rf``, within seconds.
    peak_degc
        Highest temperature, °C; 37: not heated. ``None`` where a curve says it.
    spokes, schedule
        Of a frame, and how their angles follow.
    seed
        Of place, width, coils, drift and noise.
    coils, matrix
        Receiver channels; side of the image, pixels.
    snr
        Signal over noise SD of the image of 402 spokes.
    baseline_frames, heated_frames
        Frames before heating, and from its begin on.
    curve
        As in `HeatedScan`; the protocol's ``peak_degc`` is its highest rise within the scan.

    Raises
    ------
    SettingsError
        Both a peak and a curve are given, or neither is, or the curve does not rise within the scan.
    DataError
        The object has no room for the heated region.
    """
    if (peak_degc is None) == (curve is None):
        raise SettingsError("a heated scan has either a peak or a curve of its temperature: give one of them.")
    random = np.random.default_rng([seed, 1])
    low, high = _WIDTHS_M[heating]
    protocol = Protocol(
        scene=_BODIES[heating],  # type: ignore[arg-type]
        matrix=matrix,
        n_coils=coils,
        spokes=spokes,
        frames=baseline_frames + heated_frames,
        baseline_frames=baseline_frames,
        cooling_frames=0,
        schedule=schedule,
        snr=snr,
        peak_degc=0.0 if peak_degc is None else peak_degc - BODY_TEMPERATURE_DEGC,
        frame_interval_s=frame_interval_s(heating, spokes),
        heating_width_m=random.uniform(low, high),
        seed=seed,
    )
    if curve is not None:
        rise = float(_course(protocol, curve).max())
        if rise <= 0.0:
            raise SettingsError(
                f"the heating curve does not rise within the {heated_frames * protocol.interval_s:g} s of the heated "
                "frames, the first of which begins at its time zero: make it rise there, or more frames."
            )
        protocol = replace(protocol, peak_degc=rise)
    if image is None:
        return HeatedScan(protocol=protocol, curve=curve)
    magnitude = np.abs(image).astype(np.float32)
    fov_m = Scan(protocol=protocol).scene.fov_m
    least = FEWEST_VOXELS * (matrix / 256) ** 2
    for _ in range(_PLACES):
        scan = HeatedScan(
            protocol=protocol,
            image=magnitude,
            centre_m=_place(magnitude, fov_m, random),
            phase=np.angle(image) if np.iscomplexobj(image) else None,
            curve=curve,
        )
        # Some places hold hardly anything but fat and air.
        if (_tissue(scan) & scan.anatomy.tumour).sum() >= least:
            break
    return scan


def _tissue(scan: HeatedScan) -> MaskArray:
    """Return the body without fat and without what gives next to no signal, bool (y, x)."""
    anatomy, sensitivity = scan.anatomy, scan.coils.optimal_signal()
    water, fat = anatomy.water * sensitivity, anatomy.fat * sensitivity
    return anatomy.body & ~anatomy.fat_mask & (water > 0.05 * np.percentile(water + fat, 99.0))


def series(scan: HeatedScan) -> Series:
    """Simulate a scan and return its whitened data with the truth.

    Raises
    ------
    DataError
        Nothing of the heated region gives signal.
    """
    protocol, anatomy = scan.protocol, scan.anatomy
    whitening = np.linalg.inv(np.linalg.cholesky(scan.coils.noise_covariance)).astype(np.complex64)
    maps = np.einsum("ij,jyx->iyx", whitening, scan.coils.maps)
    maps = (maps / np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))).astype(np.complex64)
    water, fat = scan.signal()
    # The SENSE combination of whitened coils sees the object times their joint sensitivity.
    sensitivity = scan.coils.optimal_signal().astype(np.float32)
    water, fat = water * sensitivity, fat * sensitivity
    tissue = _tissue(scan)
    tumour = anatomy.tumour & tissue
    if not tumour.any():
        raise DataError("the heated region gives no signal: choose another image or seed.")
    scale = radian_per_degc(
        larmor_hz=protocol.larmor_hz,
        echo_time_s=protocol.echo_time_s,
        prf_coefficient=PRF_COEFFICIENT,
        phase_sign=protocol.phase_sign,
    )
    still = point_spread(water + fat)
    weight = np.where(np.abs(still) > 1e-3 * np.abs(still).max(), still, 1.0)
    truth, full = [], []
    for number in range(protocol.frames):
        change = np.nan_to_num(scan.temperature_change(number))
        truth.append((point_spread(water * change) / weight).real)
        moved = point_spread(water * np.exp(1j * scale * change) + fat)
        full.append(np.angle(moved * weight.conj()) / scale)
    return Series(
        scan=scan,
        data=np.stack([np.einsum("ij,jsk->isk", whitening, frame) for frame in scan.frames()]),
        angles=np.stack([scan.angles(number) for number in range(protocol.frames)]),
        maps=maps,
        truth_degc=np.stack(truth).astype(np.float32),
        full_degc=np.stack(full).astype(np.float32),
        tissue=tissue,
        tumour=tumour,
    )
