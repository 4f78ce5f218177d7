"""What is scanned, and how: the settings of a simulated scan."""

import math
from dataclasses import dataclass, fields
from typing import Final, Literal, TypeAlias

from sinotherm.core.geometry import AngleSchedule, RadialSampling
from sinotherm.core.physics import GAMMA_HZ_PER_T
from sinotherm.errors import SettingsError
from sinotherm.simulation.heating import HeatSource
from sinotherm.simulation.phantoms import SceneName

__all__ = ["KspaceMethod", "Protocol"]

KspaceMethod: TypeAlias = Literal["nufft", "analytic"]

RF_S: Final = 0.25e-3
PREPHASER_S: Final = 0.3e-3
SPOILER_S: Final = 0.5e-3
"""Shortest halves of the sequence: half an RF pulse, the prephasing and the spoiling gradient."""

_HEATING: Final[dict[str, tuple[HeatSource, float]]] = {
    "hyperthermia": ("rf", 0.085),
    "hifu": ("ultrasound", 0.006),
    "brain": ("rf", 0.045),
}

_BOUNDS: Final[dict[str, tuple[float, float, str]]] = {
    "matrix": (16, 1024, "pixels"),
    "n_coils": (1, 64, "coils"),
    "spokes": (2, 10_000, "spokes"),
    "frames": (1, 100_000, "frames"),
    "baseline_frames": (0, 100_000, "frames"),
    "cooling_frames": (0, 100_000, "frames"),
    "repetition_time_s": (1e-3, 10.0, "s"),
    "frame_interval_s": (0.0, 3600.0, "s"),
    "echo_time_s": (0.1e-3, 1.0, "s"),
    "field_strength_t": (0.05, 15.0, "T"),
    "pixel_bandwidth_hz": (50.0, 10_000.0, "Hz per pixel"),
    "flip_angle_rad": (0.01, math.pi / 2, "rad"),
    "snr": (0.1, math.inf, ""),
    "peak_degc": (0.0, 60.0, "°C above body temperature"),
    "heating_width_m": (1e-3, 1.0, "m"),
    "drift_hz": (-1000.0, 1000.0, "Hz"),
    "field_hz": (0.0, 1000.0, "Hz"),
    "delay_x": (-10.0, 10.0, "samples"),
    "delay_y": (-10.0, 10.0, "samples"),
    "noise_scans": (0, 10_000, "readouts"),
    "dummy_scans": (0, 10_000, "readouts"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Settings of a simulated scan, SI.

    Attributes
    ----------
    scene
        Body and heating (`simulation.phantoms.SCENES`).
    matrix, n_coils, spokes, frames
        Pixels of an image's side, receivers, spokes of a frame, frames.
    baseline_frames, cooling_frames
        Frames before the heating is switched on, and after it is switched off.
    schedule
        Order of the angles; all but the golden ones repeat in every frame.
    repetition_time_s, echo_time_s, field_strength_t, flip_angle_rad
        TR, TE, B0 and flip angle.
    frame_interval_s
        From the first spoke of a frame to that of the next; ``None``: frames follow one another. Between them pulses
        go on that nobody records (other slices, say), so that the steady state stays.
    pixel_bandwidth_hz
        Receiver bandwidth per reconstructed pixel, Hz: the readout lasts its inverse.
    snr
        |S| over the SD of the noise's real part in the whitened, SENSE-combined reconstruction of 402
        spokes with the plain ramp, median over the tumour; infinite is a scan without noise.
    peak_degc
        Largest rise of the temperature averaged over a frame, °C.
    heating_width_m
        Full width at half maximum of the power; ``None``: the scene's.
    drift_hz, drift_order_space, drift_order_time
        B0 drift in the body at the end of the scan, and its polynomial orders.
    field_hz
        Largest static off-resonance in the body.
    fat
        Whether fat gives signal.
    delay_x, delay_y
        Gradient delay, samples of the oversampled readout; positive is late.
    phase_sign
        Receiver's convention: +1, the phase of a voxel whose frequency rises grows.
    trajectory
        Whether the sample positions stand in the file; without them the angle follows from the
        counters and the header's user parameters.
    noise_scans, dummy_scans
        Readouts without a pulse (none where the SNR is infinite), and before the steady state.
    kspace
        ``analytic``: exact shapes, one uniform coil, no field map, no heating; drift of order 0 in space.
    seed
        Of everything random.

    Raises
    ------
    SettingsError
        A value is out of range, TE does not fit the readout and TR, a frame does not fit its interval, or
        ``analytic`` is not possible.
    """

    scene: SceneName = "hyperthermia"
    matrix: int = 256
    n_coils: int = 8
    spokes: int = 402
    frames: int = 32
    baseline_frames: int = 10
    cooling_frames: int = 5
    schedule: AngleSchedule = "raga"
    repetition_time_s: float = 25e-3
    frame_interval_s: float | None = None
    echo_time_s: float = 19.1e-3
    field_strength_t: float = 1.5
    pixel_bandwidth_hz: float = 500.0
    flip_angle_rad: float = math.radians(15.0)
    snr: float = 40.0
    peak_degc: float = 8.0
    heating_width_m: float | None = None
    drift_hz: float = 2.0
    drift_order_space: int = 1
    drift_order_time: int = 2
    field_hz: float = 15.0
    fat: bool = True
    delay_x: float = 0.0
    delay_y: float = 0.0
    phase_sign: int = 1
    trajectory: bool = True
    noise_scans: int = 32
    dummy_scans: int = 40
    kspace: KspaceMethod = "nufft"
    seed: int = 0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in _BOUNDS and value is not None:
                low, high, unit = _BOUNDS[entry.name]
                if not low <= value <= high:
                    raise SettingsError(f"{entry.name} = {value} {unit}: it must lie between {low} and {high}.")
        if self.phase_sign not in (-1, 1):
            raise SettingsError(f"phase_sign = {self.phase_sign}: it is +1 or -1 (the receiver's convention).")
        if self.baseline_frames + self.cooling_frames > self.frames:
            raise SettingsError(
                f"{self.baseline_frames} baseline and {self.cooling_frames} cooling frames in a scan of "
                f"{self.frames}: lower them or scan longer."
            )
        self._check_timing()
        if self.kspace == "analytic":
            asked = {
                "n_coils": (self.n_coils, 1),
                "field_hz": (self.field_hz, 0.0),
                "peak_degc": (self.peak_degc, 0.0),
                "drift_order_space": (self.drift_order_space, 0),
            }
            wrong = ", ".join(
                f"{name} = {value} (needed: {only})" for name, (value, only) in asked.items() if value != only
            )
            if wrong:
                raise SettingsError(f"exact shapes need an off-resonance that is constant in each: {wrong}.")

    def _check_timing(self) -> None:
        half = 0.5 * self.readout_s
        earliest = RF_S + PREPHASER_S + half
        latest = self.repetition_time_s - half - SPOILER_S - RF_S
        if not earliest <= self.echo_time_s <= latest:
            raise SettingsError(
                f"TE = {1e3 * self.echo_time_s:g} ms does not fit TR = {1e3 * self.repetition_time_s:g} ms with a "
                f"readout of {1e3 * self.readout_s:g} ms: TE must lie between {1e3 * earliest:.2f} and "
                f"{1e3 * latest:.2f} ms; change TE, TR or the bandwidth."
            )
        if self.interval_s < self.frame_s:
            raise SettingsError(
                f"frame_interval_s = {self.interval_s:g} s: a frame of {self.spokes} spokes, TR "
                f"{1e3 * self.repetition_time_s:g} ms, takes {self.frame_s:g} s; give as much or more."
            )

    @property
    def readout_s(self) -> float:
        """Duration of a readout, s."""
        return 1.0 / self.pixel_bandwidth_hz

    @property
    def n_readout(self) -> int:
        """Samples of a readout, twofold oversampled."""
        return 2 * self.matrix

    @property
    def dwell_s(self) -> float:
        """Time between samples, s."""
        return self.readout_s / self.n_readout

    @property
    def sampling(self) -> RadialSampling:
        """Where the samples of a spoke lie."""
        return RadialSampling(n_readout=self.n_readout, spacing=1.0 / self.n_readout, centre=float(self.matrix))

    @property
    def larmor_hz(self) -> float:
        """Resonance frequency f0, Hz."""
        return GAMMA_HZ_PER_T * self.field_strength_t

    @property
    def frame_s(self) -> float:
        """Duration of a frame, s."""
        return self.spokes * self.repetition_time_s

    @property
    def interval_s(self) -> float:
        """From the first spoke of a frame to that of the next, s."""
        return self.frame_s if self.frame_interval_s is None else self.frame_interval_s

    @property
    def duration_s(self) -> float:
        """Of the scan, from its first readout to the end of its last, s."""
        return self.n_readouts * self.repetition_time_s + (self.frames - 1) * (self.interval_s - self.frame_s)

    @property
    def n_readouts(self) -> int:
        """Readouts of the scan, noise and dummy scans included."""
        return self.first_readout + self.frames * self.spokes

    @property
    def first_readout(self) -> int:
        """Readouts before the first frame."""
        return self.n_noise_scans + self.dummy_scans

    @property
    def n_noise_scans(self) -> int:
        """Noise readouts in the scan: none without noise, since zeros are no noise scan to whiten by."""
        return 0 if math.isinf(self.snr) else self.noise_scans

    @property
    def heating(self) -> tuple[HeatSource, float]:
        """Source of the heat and width (FWHM) of its power, m."""
        source, width = _HEATING[self.scene]
        return source, width if self.heating_width_m is None else self.heating_width_m

    @property
    def repeats(self) -> bool:
        """Whether every frame has the same angles."""
        return self.schedule not in ("golden", "tiny_golden")
