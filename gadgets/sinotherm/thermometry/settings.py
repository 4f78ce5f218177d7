"""Settings of the thermometry stage."""

from collections.abc import Collection
from typing import Final, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from sinotherm.core.physics import LARMOR_HZ, LONGEST_ECHO_TIME_S, PRF_COEFFICIENT, PRF_COEFFICIENT_SIZE
from sinotherm.core.scan import ScanHeader
from sinotherm.core.settings import EVERY_VALUE, StageSettings, setting
from sinotherm.errors import SettingsError
from sinotherm.thermometry.regions import NAMES_A_FILE, check_region, named_regions, region_mask

__all__ = ["ThermometrySettings"]

_NOT_DRAWN: Final = {"cold_mask": ("auto", "fat"), "fat": ("", "auto"), "heated": ("",)}
"""Values that are words, not regions."""
_UNLIKE: Final = 0.2
"""Share of the header's f0 or TE by which the settings' may differ without a word."""


class ThermometrySettings(StageSettings):
    """Settings of the thermometry stage."""

    phase_sign: int | None = setting(
        None,
        "Receiver's phase convention: +1 where heating lowers the phase of tissue (Siemens, Philips), "
        "-1 where it raises it (GE); unset: +1, with a warning.",
        ge=-1,
        le=1,
    )
    prf_coefficient: float = setting(
        PRF_COEFFICIENT,
        "PRF coefficient alpha of the tissue; -0.01 ppm is -1e-8.",
        unit="1/degC",
        ge=-PRF_COEFFICIENT_SIZE[1],
        le=-PRF_COEFFICIENT_SIZE[0],
    )
    echo_times_s: tuple[float, ...] = setting(
        (), "Echo times instead of the header's, one an echo, each 1 s at most.", unit="s"
    )
    larmor_hz: float | None = setting(
        None, "Larmor frequency instead of the header's.", unit="Hz", ge=LARMOR_HZ[0], le=LARMOR_HZ[1]
    )
    body_temperature_degc: float | None = setting(
        None,
        "Temperature of the body before heating; unset: temperature change only, no dose.",
        unit="degC",
        ge=0.0,
        le=45.0,
    )

    baseline_frames: int = setting(5, "Pre-heating frames in the baseline.", ge=1, le=1000)
    baseline_skip: int = setting(0, "Frames at the start that are left out of it (steady state not reached).", ge=0)
    baseline_rule: Literal["after_frames", "on_command", "stored"] = setting(
        "after_frames",
        "When the baseline is taken: after the first frames, on command only, or stored from an earlier scan.",
    )
    baseline_file: str = setting("", "Stored baseline (.h5 or .npz) of the rule 'stored'.", local=EVERY_VALUE)
    baseline_save: str = setting("", "File (.h5 or .npz) to which a finished baseline is saved.", local=EVERY_VALUE)

    baseline_mode: Literal["mean", "library", "polynomial", "harmonic"] = setting(
        "mean",
        "What a frame is compared with: the mean of the pre-heating frames, the most similar one of them, or its own "
        "phase round the heated region, continued into it by a polynomial or a harmonic function (referenceless).",
    )
    heated: str = setting(
        "", "Region that may be heated, for the referenceless modes: a region text.", local=NAMES_A_FILE
    )
    background_order: int = setting(3, "Order of the polynomial of the referenceless mode.", ge=1, le=6)
    dose_on_new_baseline: Literal["keep", "reset"] = setting(
        "keep", "What happens to the dose when the baseline is renewed."
    )

    neighbours: int = setting(1, "Odd width of the window over which complex products are summed, pixels.", ge=1, le=15)

    temporal: Literal["none", "trend"] = setting(
        "none",
        "Filter in time: trend follows the rate of heating of every voxel, and believes a frame that departs from it "
        "by more than noise does. With log_maps the map before it is kept as well.",
    )

    drift_order: int = setting(1, "Order of the drift polynomial; -1: no drift correction.", ge=-1, le=2)
    cold_mask: str = setting(
        "auto",
        "Tissue that is not heated: auto (periphery of the body), fat, or a region text (circle:, polygon:, file:).",
        local=NAMES_A_FILE,
    )
    drift_min_voxels: int = setting(100, "Fewest cold voxels for a drift fit.", ge=1)
    drift_max_condition: float = setting(1e4, "Largest condition number of a drift fit.", gt=1.0)
    drift_hold_frames: int = setting(5, "Frames for which the last good drift fit is kept when fits fail.", ge=0)
    fat: str = setting(
        "",
        "Fat, which does not shift and has no reading: a region text, or auto (by phase and brightness); empty: none. "
        "A reference-guided network holds it still.",
        local=NAMES_A_FILE,
    )

    sigma: Literal["auto", "formula", "temporal"] = setting(
        "auto",
        "Uncertainty by formula from the image noise (linear reconstructions) or from the pre-heating frames' "
        "temporal SD (networks); auto: by formula where the images state their noise, and at least the temporal SD "
        "where each frame lies on other spokes.",
    )
    max_sigma_degc: float = setting(
        3.0,
        "Voxels of a larger uncertainty have no reading; one of more than 0.4 rad of phase never has.",
        unit="degC",
        gt=0.0,
    )
    min_signal: float = setting(
        0.05, "Voxels below this share of the 99th percentile of the baseline have no reading.", ge=0.0, lt=1.0
    )

    dose_gap_frames: int = setting(3, "Longest gap over which the dose is interpolated, frames.", ge=0)
    frame_interval_s: float | None = setting(
        None, "Time between frames where they carry no time stamps.", unit="s", gt=0.0
    )

    motion_correlation: float = setting(
        0.9, "Frames whose magnitude correlates less with the baseline's have moved: no reading.", ge=0.0, le=1.0
    )
    motion_shift_px: float = setting(
        0.7, "Frames whose edges are shifted by more have moved: no reading.", unit="pixels", gt=0.0
    )

    regions: str = setting(
        "",
        "Regions of interest: name=shape;name=shape, e.g. tumour=circle:128,120,15 in pixels from the first one, or "
        "tumour=circle:0,-12,24mm from the image's centre; empty: the whole body.",
        local=NAMES_A_FILE,
    )
    slice_thickness_m: float | None = setting(None, "Slice thickness instead of the header's.", unit="m", gt=0.0)

    alarm_temperature_degc: float | None = setting(
        None, "Alarm when a region's T10 exceeds this; without regions, that of the whole body.", unit="degC"
    )
    alarm_dose_min: float | None = setting(
        None,
        "Alarm when the CEM43 of a region's T90 curve reaches this; without regions, that of the whole body.",
        unit="min",
        gt=0.0,
    )
    alarm_signal: float = setting(
        0.5, "Alarm when the body's signal falls below this share of the baseline's.", ge=0.0, le=1.0
    )
    alarm_wrap: float = setting(
        0.02, "Alarm when this share of the body is in doubt about its phase wrap.", ge=0.0, le=1.0
    )
    stale_intervals: float = setting(3.0, "Alarm when no map came for this many frame intervals.", gt=1.0)

    log: str = setting("", "Folder of the audit log (audit.jsonl and regions.csv); empty: none.", local=EVERY_VALUE)
    log_maps: bool = setting(False, "Keep every map beside the audit log, whatever becomes of the connection.")
    qualified: tuple[str, ...] = setting(
        (),
        "Records of `sinotherm qa stability` and `qa sign` (JSON) that qualify the scanner; every map has their dates.",
        local=EVERY_VALUE,
    )
    commands: str = setting(
        "", "ZeroMQ endpoint on which commands are taken, e.g. tcp://127.0.0.1:5561; empty: none.", local=EVERY_VALUE
    )
    commands_key_file: str = setting(
        "", "File with the key of the commands; needed unless the endpoint is loopback.", local=EVERY_VALUE
    )

    @field_validator("phase_sign")
    @classmethod
    def _signed(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("it is +1 or -1")
        return value

    @field_validator("echo_times_s")
    @classmethod
    def _in_seconds(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.0 <= time_s <= LONGEST_ECHO_TIME_S for time_s in value):
            raise ValueError(f"an echo time lies between 0 and {LONGEST_ECHO_TIME_S:g} s")
        return value

    @field_validator("neighbours")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("the window must be odd")
        return value

    @field_validator("regions", "cold_mask", "fat", "heated")
    @classmethod
    def _drawable(cls, value: str, info: ValidationInfo) -> str:
        """Refuse a region that nobody can draw before a scan begins, not at its first image."""
        try:
            for text in named_regions(value).values() if info.field_name == "regions" else (value,):
                if text not in _NOT_DRAWN.get(str(info.field_name), ()):
                    check_region(text)
        except SettingsError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "ThermometrySettings":
        if self.baseline_rule == "stored" and not self.baseline_file:
            raise ValueError("thermometry.baseline_rule = stored needs thermometry.baseline_file")
        # After a breakdown the first frames that come would become the baseline, hot as they are.
        if self.baseline_file and self.baseline_rule != "stored":
            raise ValueError("thermometry.baseline_file is taken with thermometry.baseline_rule = stored only")
        if self.log_maps and not self.log:
            raise ValueError("thermometry.log_maps keeps maps beside the audit log: it needs thermometry.log")
        if self.cold_mask == "fat" and not self.fat:
            raise ValueError("thermometry.cold_mask = fat needs thermometry.fat")
        if self.referenceless and not self.heated:
            raise ValueError(f"thermometry.baseline_mode = {self.baseline_mode} needs thermometry.heated")
        return self

    @property
    def referenceless(self) -> bool:
        """Whether frames are compared with their own surroundings."""
        return self.baseline_mode in ("polynomial", "harmonic")

    @property
    def filtered(self) -> bool:
        """Whether the maps are filtered in space or in time: those before it are then kept too."""
        return self.neighbours > 1 or self.temporal != "none"

    @property
    def drawings(self) -> tuple[str, ...]:
        """The region texts that are drawn on the images."""
        masks = (self.cold_mask, self.fat, self.heated if self.referenceless else "")
        return (*named_regions(self.regions).values(), *(text for text in masks if text not in ("", "auto", "fat")))

    def check_drawings(self, scan: ScanHeader, *, known: Collection[str] = ()) -> None:
        """Draw the regions, but for those that are ``known``, on images as the header announces them.

        Raises
        ------
        SettingsError
            One cannot be drawn: it holds no voxel, or its file is missing or does not fit.
        """
        columns, rows, _ = scan.recon.matrix
        for text in self.drawings:
            if text not in known:
                # The planes of a slab are images of their own.
                region_mask(text, (1, rows, columns), scan.pixel_m)

    @property
    def silent_alarms(self) -> str:
        """Which alarms are set and are not raised by heat, or hardly, and why; empty where there is none."""
        limits = [name for name in ("alarm_temperature_degc", "alarm_dose_min") if getattr(self, name) is not None]
        names = " and ".join(f"thermometry.{name}" for name in limits)
        if limits and self.body_temperature_degc is None:
            return (
                f"no alarm by {names} while thermometry.body_temperature_degc is not set: without it there is only the "
                "change of temperature, and no dose; set it, or command body_temperature"
            )
        if limits and not self.regions:
            return (
                f"{names} without thermometry.regions: T10 and T90 are those of the whole body, of which a tumour is "
                "a small part; draw regions, or command region"
            )
        return ""

    def doubtful_timing(self, scan: ScanHeader) -> str:
        """Return what makes one doubt f0 or TE: not like the header's, or longer than TR; empty where nothing does."""
        pairs = [("larmor_hz", "Hz", self.larmor_hz, scan.larmor_hz)]
        for echo, (given, stated) in enumerate(zip(self.echo_times_s, scan.echo_times_s, strict=False)):
            pairs.append((f"echo_times_s of echo {echo}", "s", given, stated or None))
        doubts = [
            f"thermometry.{name} is {given:g} {unit}, the header says {stated:g} {unit}"
            for name, unit, given, stated in pairs
            if given is not None and stated is not None and abs(given - stated) > _UNLIKE * stated
        ]
        longest = max(self.echo_times_s or scan.echo_times_s, default=0.0)
        if scan.repetition_time_s is not None and longest > scan.repetition_time_s:
            doubts.append(f"a TE of {longest:g} s is longer than the header's TR of {scan.repetition_time_s:g} s")
        return "; ".join(doubts)
