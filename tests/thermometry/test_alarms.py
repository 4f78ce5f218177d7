import math
import threading

import pytest

from sinotherm.thermometry.alarms import AlarmLimits, Observation, StaleWatch, Watchdog, alarms, subject

ROW = {"region": "rectum", "quantity": "temperature", "t10_degc": 45.2, "cem43_t90_min": 12.0}
LIMITS = AlarmLimits(temperature_degc=45.0, dose_min=10.0)


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (
            Observation(regions=[ROW | {"cem43_t90_min": 1.0}]),
            "over-temperature: T10 of rectum is 45.2 degC, limit 45.0",
        ),
        (Observation(regions=[ROW | {"t10_degc": 40.0}]), "dose reached: CEM43 T90 of rectum is 12.0 min, limit 10.0"),
        (Observation(signal_share=0.2), "signal lost: 20 %"),
        (Observation(wrap_share=0.1), "wrap risk: the phase of 10.0 %"),
        (Observation(noise_problem="one frame"), "noise not known: one frame"),
        (Observation(drift_problem="3 cold voxels"), "drift fit failed: 3 cold voxels"),
        (Observation(motion="edge moved"), "motion: edge moved"),
        (Observation(regions=[{"region": "rectum", "n": 0}]), "no reading: rectum"),
        (
            Observation(regions=[{"region": "rectum", "n": 20, "voxels": 29, "lost": "9 wrap"}]),
            "readings lost: rectum is down to 20 of 29 voxels (9 wrap)",
        ),
        (Observation(guard="residual"), "network guard: residual"),
        (Observation(baseline_problem="f0"), "baseline: f0"),
    ],
)
def test_each_cause_raises_its_alarm(seen: Observation, text: str) -> None:
    raised = alarms(seen, LIMITS)
    assert len(raised) == 1
    assert raised[0].startswith(text)
    assert raised[0].isascii()


@pytest.mark.parametrize(
    ("seen", "limits"),
    [
        (Observation(), LIMITS),
        (Observation(regions=[ROW]), AlarmLimits()),
        (Observation(regions=[{"region": "a", "quantity": "temperature"}]), LIMITS),
        (Observation(regions=[ROW | {"quantity": "temperature_change", "cem43_t90_min": "none"}]), LIMITS),
    ],
)
def test_nothing_is_raised_without_cause(seen: Observation, limits: AlarmLimits) -> None:
    assert alarms(seen, limits) == ()


def test_what_an_alarm_is_about() -> None:
    lost = {"n": 1, "voxels": 2, "lost": "1 wrap"}
    rows = [ROW | {"region": "rim"}, ROW | {"region": "what is left: 2"} | lost]
    found = alarms(Observation(regions=rows, motion="edge is gone"), LIMITS)
    assert [subject(text) for text in found] == [
        "over-temperature: T10 of rim",
        "dose reached: CEM43 T90 of rim",
        "over-temperature: T10 of what is left: 2",
        "readings lost: what is left: 2",
        "dose reached: CEM43 T90 of what is left: 2",
        "motion",
    ]


def test_maps_that_stay_away() -> None:
    watch = StaleWatch(3.0)
    assert [watch.frame(t) for t in (0.0, 10.0, 20.0, 49.0)] == [""] * 4
    assert watch.frame(80.0).startswith("stale frame: no map for 31.0 s, 10.0 s expected")
    assert watch.frame(float("nan")) == ""
    assert watch.frame(40.0).startswith("time stamps: this frame lies 40.0 s before the last one")
    assert watch.frame(40.0) == "time stamps: this frame has the time of the last one"
    assert watch.frame(50.0) == ""


def test_one_stamp_too_early_makes_no_later_frame_late() -> None:
    watch = StaleWatch(3.0)
    times = [0.0, 10.0, 20.0, 21.0, 30.0, 40.0, 50.0, 60.0]
    assert not any(watch.frame(time) for time in times)
    assert watch.expected_s == 10.0
    assert watch.follows
    watch.frame(80.0)
    assert not watch.follows


def test_patience_is_known_from_the_second_frame_on() -> None:
    watch = StaleWatch(3.0)
    watch.frame(0.0)
    assert math.isinf(watch.patience_s)
    watch.frame(10.0)
    assert watch.patience_s == 30.0


def test_the_watchdog_speaks_when_nothing_comes() -> None:
    said: list[str] = []
    heard = threading.Event()

    def notify(text: str) -> None:
        said.append(text)
        heard.set()

    with Watchdog(notify) as dog:
        dog.expect(60.0)
        dog.expect(0.01)
        assert heard.wait(10.0)
        dog.expect(60.0)
    assert said == ["stale frame: no map for 0.0 s"]
