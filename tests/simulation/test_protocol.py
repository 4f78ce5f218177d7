import math

import pytest

from sinotherm.errors import SettingsError
from sinotherm.simulation.protocol import Protocol


def test_echo_time_must_fit_the_repetition_time():
    with pytest.raises(
        SettingsError, match=r"TE = 19.1 ms does not fit TR = 20 ms .* must lie between 1.55 and 18.25 ms"
    ):
        Protocol(repetition_time_s=20e-3)
    with pytest.raises(SettingsError, match="does not fit"):
        Protocol(echo_time_s=1.5e-3)
    fast = Protocol(repetition_time_s=3e-3, echo_time_s=1.3e-3, pixel_bandwidth_hz=1000.0)
    assert fast.readout_s == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matrix", 8),
        ("n_coils", 0),
        ("snr", math.nan),
        ("peak_degc", -1.0),
        ("heating_width_m", 0.0),
        ("delay_y", 11.0),
        ("frame_interval_s", 3601.0),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(SettingsError, match=f"{name} = .* must lie between"):
        Protocol(**{name: value})


def test_other_refusals():
    with pytest.raises(SettingsError, match="phase_sign = 0"):
        Protocol(phase_sign=0)
    with pytest.raises(SettingsError, match="5 baseline and 6 cooling frames in a scan of 10"):
        Protocol(frames=10, baseline_frames=5, cooling_frames=6)
    with pytest.raises(SettingsError, match=r"frame_interval_s = 10 s: a frame of 402 spokes, TR 25 ms, takes 10.05 s"):
        Protocol(frame_interval_s=10.0)
    with pytest.raises(SettingsError, match=r"n_coils = 8 \(needed: 1\)"):
        Protocol(kspace="analytic")


def test_derived_values():
    protocol = Protocol(matrix=128, spokes=10, frames=20)
    assert protocol.n_readout == 256
    assert protocol.dwell_s == pytest.approx(2e-3 / 256)
    assert protocol.sampling.positions[[0, 128]] == pytest.approx([-0.5, 0.0])
    assert protocol.larmor_hz == pytest.approx(63.866e6, rel=1e-5)
    assert protocol.frame_s == pytest.approx(0.25)
    assert protocol.n_readouts == 32 + 40 + 200
    assert protocol.heating == ("rf", 0.085)
    assert Protocol(scene="hifu", heating_width_m=0.003).heating == ("ultrasound", 0.003)
    assert protocol.repeats
    assert not Protocol(schedule="golden").repeats
