from typing import Any

import pytest

from sinotherm.core.scan import EncodingSpace, ScanHeader
from sinotherm.errors import SettingsError
from sinotherm.thermometry.settings import ThermometrySettings


def test_settings_come_as_text() -> None:
    found = ThermometrySettings.parse(
        "thermometry",
        {"phase_sign": "-1", "drift_order": "2", "echo_times_s": "0.005,0.015", "prf_coefficient": "-0.0094e-6"},
    )
    assert (found.phase_sign, found.drift_order, found.echo_times_s) == (-1, 2, (0.005, 0.015))
    assert found.prf_coefficient == -9.4e-9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"phase_sign": "0"}, r"phase_sign = '0': .*it is \+1 or -1"),
        ({"neighbours": "2"}, "odd"),
        ({"baseline_rule": "stored"}, "baseline_file"),
        ({"baseline_file": "baseline.h5"}, "with thermometry.baseline_rule = stored only"),
        ({"log_maps": "true"}, "needs thermometry.log"),
        ({"cold_mask": "fat"}, "needs thermometry.fat"),
        ({"baseline_mode": "harmonic"}, "needs thermometry.heated"),
        ({"drift_order": "3"}, "drift_order"),
        ({"alarm_temperature_degc": "nan"}, "finite"),
        ({"regions": "tumour=circel:32,30,4"}, r"thermometry\.regions = .*region 'circel:32,30,4': write circle"),
        ({"regions": "circle:32,30,4"}, "write name=shape"),
        ({"fat": "circle:32,30"}, "radius above 0"),
        ({"heated": "polygon:1,2,3,4"}, "three corners"),
        ({"cold_mask": "autom"}, "write circle"),
        ({"cold_mask": "file:"}, "write circle"),
        ({"prf_coefficient": "1e-8"}, "less than or equal to -0.000000001"),
        ({"prf_coefficient": "-0.01"}, r"prf_coefficient \[1/degC\] = '-0.01': .*greater than or equal to -0.0000001"),
        ({"echo_times_s": "0.008,19.1"}, r"echo_times_s \[s\] = .*between 0 and 1 s"),
        ({"echo_times_s": "-0.019"}, r"echo_times_s \[s\] = .*between 0 and 1 s"),
        ({"larmor_hz": "63.87"}, r"larmor_hz \[Hz\] = '63.87': .*greater than or equal to 100000"),
        ({"unknown": "1"}, "unknown setting thermometry.unknown"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ThermometrySettings.parse("thermometry", values)


def test_regions_are_read_before_there_is_an_image_and_files_are_not_opened() -> None:
    values = {"regions": "a=circle:-3,2,9mm + file:mask.npy; b=masks.h5:/b", "cold_mask": "fat", "fat": "auto"}
    assert ThermometrySettings.parse("thermometry", values).drawings == (
        "circle:-3,2,9mm + file:mask.npy",
        "masks.h5:/b",
    )


@pytest.mark.parametrize(
    ("header", "values", "doubts"),
    [
        ({}, {}, ""),
        ({}, {"echo_times_s": "0.016,0.028", "larmor_hz": "64e6"}, ""),
        (
            {},
            {"echo_times_s": "0.0191,0.019", "larmor_hz": "123.2e6"},
            "thermometry.larmor_hz is 1.232e+08 Hz, the header says 6.387e+07 Hz; "
            "thermometry.echo_times_s of echo 1 is 0.019 s, the header says 0.03 s",
        ),
        ({"echo_times_s": (0.0, 0.03), "larmor_hz": None}, {"echo_times_s": "0.1,0.03", "larmor_hz": "123.2e6"}, ""),
        ({"echo_times_s": (), "larmor_hz": None}, {"echo_times_s": "0.019"}, ""),
        ({"repetition_time_s": 0.03}, {}, ""),
        ({"repetition_time_s": 0.025}, {}, "a TE of 0.03 s is longer than the header's TR of 0.025 s"),
        ({"repetition_time_s": 0.025, "echo_times_s": ()}, {}, ""),
    ],
)
def test_a_timing_unlike_the_headers_is_doubted(header: dict, values: dict[str, str], doubts: str) -> None:
    space = EncodingSpace(matrix=(8, 8, 1), fov_m=(0.1, 0.1, 0.01))
    facts = {"larmor_hz": 63.87e6, "echo_times_s": (0.019, 0.03)} | header
    scan = ScanHeader(encoded=space, recon=space, trajectory="radial", **facts)
    assert ThermometrySettings.parse("thermometry", values).doubtful_timing(scan) == doubts


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, ""),
        (
            {
                "alarm_temperature_degc": 43.0,
                "alarm_dose_min": 10.0,
                "body_temperature_degc": 37.0,
                "regions": "tumour=circle:4,4,2",
            },
            "",
        ),
        ({"alarm_dose_min": 10.0, "body_temperature_degc": 37.0}, "alarm_dose_min without thermometry.regions"),
        ({"alarm_temperature_degc": 43.0}, "alarm_temperature_degc while"),
        (
            {"alarm_dose_min": 10.0, "alarm_temperature_degc": 43.0},
            "alarm_temperature_degc and thermometry.alarm_dose_min",
        ),
    ],
)
def test_alarms_that_heat_does_not_raise_are_named(values: dict[str, Any], named: str) -> None:
    silent = ThermometrySettings.parse("thermometry", values).silent_alarms
    assert named in silent
    assert bool(silent) == bool(named)
