import gc
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import TypeGuard

import numpy as np
import pytest

from sinotherm.core.physics import radian_per_degc
from sinotherm.core.scan import EncodingSpace, FrameImage, FrameStatistics, NoReading, ScanHeader, TemperatureMap
from sinotherm.errors import BaselineError, HeaderError, PeerError, PeerGoneError, SettingsError
from sinotherm.stages import thermometry as thermometry_stage
from sinotherm.stages.thermometry import Settings, stage
from sinotherm.thermometry.alarms import Watchdog
from sinotherm.wire.feed import CommandClient
from sinotherm.wire.messages import Text

N = 48
SPACE = EncodingSpace(matrix=(N, N, 1), fov_m=(0.2, 0.2, 0.005))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial", larmor_hz=63.87e6, echo_times_s=(0.019,))
BODY = np.hypot(*(np.mgrid[:N, :N] - N // 2)) < 20


def _image(number: int, *, echo: int = 0, slice_: int = 0) -> FrameImage:
    noise = np.random.default_rng(number).standard_normal((2, N, N)) * 0.01
    return FrameImage(
        data=(BODY + noise[0] + 1j * noise[1]).astype(np.complex64)[None, None],
        number=number,
        echo=echo,
        slice=slice_,
        noise_sd=np.full((1, N, N), 0.01, np.float32),
        footprint=(number, number + 0.5, number + 1.0),
    )


def _settings(**values: str) -> Settings:
    return Settings.parse("thermometry", {"phase_sign": "1", "baseline_frames": "2"} | values)


def _is_statistics(item: object) -> TypeGuard[FrameStatistics]:
    return isinstance(item, FrameStatistics)


def _kinds(items: list[object]) -> list[str]:
    return [item if isinstance(item, str) else type(item).__name__ for item in items]


def test_every_image_is_followed_by_its_map_and_statistics() -> None:
    found = list(stage(iter([_image(0), "waveform", _image(1), _image(2)]), SCAN, _settings()))
    three = ["FrameImage", "TemperatureMap", "FrameStatistics"]
    assert _kinds(found) == [*three, "waveform", *three, *three]
    maps = [item for item in found if isinstance(item, TemperatureMap)]
    assert [np.isfinite(one.change_degc).any() for one in maps] == [False, False, True]


def test_slices_have_baselines_of_their_own() -> None:
    images = [_image(number, slice_=slice_) for number in range(3) for slice_ in (0, 1)]
    maps = [item for item in stage(iter(images), SCAN, _settings()) if isinstance(item, TemperatureMap)]
    assert [(one.number, one.slice) for one in maps] == [(number, slice_) for number in range(3) for slice_ in (0, 1)]
    assert [np.isfinite(one.change_degc).any() for one in maps] == [False] * 4 + [True] * 2


def test_echoes_of_a_frame_make_one_map() -> None:
    scan = replace(SCAN, echo_times_s=(0.008, 0.019))
    images = [_image(number, echo=echo) for number in range(3) for echo in (0, 1)]
    found = list(stage(iter(images), scan, _settings()))
    assert _kinds(found) == ["FrameImage", "FrameImage", "TemperatureMap", "FrameStatistics"] * 3


def test_echoes_that_the_header_announces_but_do_not_come() -> None:
    scan = replace(SCAN, echo_times_s=(0.019, 0.03))
    found = list(stage(iter([_image(number) for number in range(3)]), scan, _settings()))
    assert sum(isinstance(item, TemperatureMap) for item in found) == 3
    alone = list(stage(iter([_image(0)]), scan, _settings()))
    assert _kinds(alone) == ["FrameImage", "TemperatureMap", "FrameStatistics", "Text"]


def _two_echoes(lost: list[tuple[int, int]], *, late: tuple[int, int] | None = None) -> list[object]:
    scan = replace(SCAN, echo_times_s=(0.008, 0.019))
    order = [(n, e) for n in range(8) for e in (0, 1) if (n, e) not in lost]
    if late is not None:
        # After the first image of the next frame.
        order.remove(late)
        order.insert(order.index((late[0] + 1, 0)) + 1, late)
    return list(stage(iter([_image(n, echo=e) for n, e in order]), scan, _settings()))


@pytest.mark.parametrize("lost", [(5, 0), (5, 1), (0, 0), (0, 1), (1, 1)])
def test_a_lost_echo_costs_its_own_frame_only(lost: tuple[int, int]) -> None:
    found = _two_echoes([lost])
    maps = [item for item in found if isinstance(item, TemperatureMap)]
    assert [one.number for one in maps] == list(range(8))
    assert [np.isfinite(one.change_degc).any() for one in maps] == [False] * 2 + [True] * 6
    alarms = {one.number: one.meta["alarms"] for one in maps if one.meta["alarms"]}
    # Before an echo has ever come nobody knows that it will.
    expected = {lost[0]: (f"echo lost: the frame came without echo {lost[1]}",)} if lost[0] else {}
    assert alarms == expected
    statistics = {item.number: item.alarms for item in found if isinstance(item, FrameStatistics) and item.alarms}
    assert statistics == expected
    texts = [item.text for item in found if isinstance(item, Text)]
    assert texts == [f"WRN frame {number}: {alarm[0]}" for number, alarm in expected.items()]


def test_an_echo_that_comes_late_is_no_frame_of_its_own() -> None:
    found = _two_echoes([], late=(5, 1))
    assert [item.number for item in found if isinstance(item, TemperatureMap)] == list(range(8))
    texts = [item.text for item in found if isinstance(item, Text)]
    assert texts == [
        "WRN frame 5: echo lost: the frame came without echo 1",
        "WRN echo lost: echo 1 of frame 5 came after its map was made",
    ]


def test_echoes_that_never_come_hold_up_the_first_frames_only() -> None:
    scan = replace(SCAN, echo_times_s=(0.019, 0.03))
    found = list(stage(iter([_image(number) for number in range(6)]), scan, _settings()))
    one = ["TemperatureMap", "FrameStatistics"]
    assert _kinds(found) == ["FrameImage", *[*one, "FrameImage"] * 3, *one, "FrameImage", *one, "FrameImage", *one]
    assert not any(item.meta["alarms"] for item in found if isinstance(item, TemperatureMap))


@pytest.mark.parametrize(("times", "echo"), [((0.0, 0.019), 0), ((0.019,), 1)])
def test_an_echo_without_a_te_is_refused_at_its_first_image(times: tuple[float, ...], echo: int) -> None:
    with pytest.raises(HeaderError, match=rf"echo {echo} has no TE, or one of 0; .* thermometry.echo_times_s"):
        list(stage(iter([_image(0, echo=echo)]), replace(SCAN, echo_times_s=times), _settings()))
    given = _settings(echo_times_s="0.008,0.019")
    assert list(stage(iter([_image(0, echo=echo)]), replace(SCAN, echo_times_s=times), given))


def test_assumed_sign_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        list(stage(iter(()), SCAN, Settings()))
    assert "phase_sign is not set" in caplog.text


@pytest.mark.parametrize("name", ["baseline.h5", "baseline.npz"])
def test_baseline_is_saved_and_serves_the_next_scan(tmp_path, name: str) -> None:
    path = str(tmp_path / name)
    list(stage(iter([_image(number) for number in range(3)]), SCAN, _settings(baseline_save=path)))
    again = list(stage(iter([_image(7)]), SCAN, _settings(baseline_rule="stored", baseline_file=path)))
    assert np.isfinite(again[1].change_degc).any()
    assert isinstance(again[2], FrameStatistics)
    other = replace(_image(7), meta={"method": "tcr"}, fingerprint={"method": "tcr"})
    beside = list(stage(iter([_image(7), other]), SCAN, _settings(baseline_rule="stored", baseline_file=path)))
    assert not np.isfinite(beside[4].change_degc).any()
    assert "none was taken of this reconstruction" in beside[5].alarms[0]
    with pytest.raises(BaselineError, match="no baseline of slice 1"):
        list(stage(iter([_image(7, slice_=1)]), SCAN, _settings(baseline_rule="stored", baseline_file=path)))


def _seen_by(image: FrameImage, method: str) -> FrameImage:
    return replace(image, meta={"method": method}, fingerprint={"method": method})


def test_a_network_and_gridding_have_baselines_of_their_own() -> None:
    images = [_seen_by(_image(number), method) for number in range(3) for method in ("gridding", "pdunet")]
    found = [item for item in stage(iter(images), SCAN, _settings()) if isinstance(item, TemperatureMap)]
    assert [one.meta["method"] for one in found] == ["gridding", "pdunet"] * 3
    assert [np.isfinite(one.change_degc).any() for one in found] == [False] * 4 + [True] * 2


def test_a_pedestal_under_the_images_is_said(caplog: pytest.LogCaptureFixture) -> None:
    image = _image(0)
    image = replace(image, meta={"method": "fbp", "centre_weight": "area"})
    with caplog.at_level(logging.WARNING):
        list(stage(iter([image]), SCAN, _settings()))
    assert "set fbp.centre=exact" in caplog.text


def test_a_reconstruction_that_comes_late_never_makes_its_baseline_of_heated_frames() -> None:
    """The guard held the network back in the second frame, and a fall-back shows up later."""
    order = ["gridding", "pdunet", "gridding", "gridding", "pdunet", "gridding", "cg_sense", "gridding", "cg_sense"]
    numbers = [0, 0, 1, 2, 2, 3, 3, 4, 4]
    images = [_seen_by(_image(number), method) for number, method in zip(numbers, order, strict=True)]
    items = list(stage(iter(images), SCAN, _settings()))
    maps = [item for item in items if isinstance(item, TemperatureMap)]
    network = [one for one in maps if one.meta["method"] == "pdunet"]
    assert np.isfinite(network[1].change_degc).any()
    assert network[1].meta["baseline_frames"] == (0,)
    late = [one for one in maps if one.meta["method"] == "cg_sense"]
    assert not any(np.isfinite(one.change_degc).any() for one in late)
    assert all("set_baseline" in one.meta["alarms"][0] for one in late)


def test_a_frame_that_the_guard_held_back_is_missing_from_the_network_alone() -> None:
    """Gridding stands in for the network: its own series goes on, the network's has the bit and the alarm."""
    images = []
    for number in range(5):
        gridding, network = (_seen_by(_image(number), method) for method in ("gridding", "pdunet"))
        note = {"guard": "spoke residual", "in_place_of": "pdunet"}
        images.append(replace(gridding, meta=gridding.meta | {"beside": "pdunet"}))
        images.append(replace(gridding, meta=gridding.meta | note) if number in (1, 3) else network)
    found = list(stage(iter(images), SCAN, _settings(baseline_frames="3")))
    maps = [item for item in found if isinstance(item, TemperatureMap)]
    assert [(one.number, one.meta["method"]) for one in maps] == [
        (number, method) for number in range(5) for method in ("gridding", "pdunet")
    ]
    gridding, network = maps[::2], maps[1::2]
    assert all(one.meta["beside"] == "pdunet" for one in gridding)
    assert not any("beside" in one.meta for one in network)
    assert [np.isfinite(one.change_degc).any() for one in gridding] == [False] * 3 + [True] * 2
    assert [np.isfinite(one.change_degc).any() for one in network] == [False] * 4 + [True]
    assert [bool((one.validity == NoReading.GUARD).all()) for one in network] == [False, True, False, True, False]
    assert network[4].meta["baseline_frames"] == (0, 2)
    alarms = [item.alarms for item in found if isinstance(item, FrameStatistics)]
    assert [len(raised) for raised in alarms] == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]


def test_images_that_were_held_back_for_the_network_still_make_its_baseline() -> None:
    order = [(n, "gridding") for n in range(3)] + [(n, "pdunet") for n in range(3)] + [(3, "gridding"), (3, "pdunet")]
    items = [_seen_by(_image(number), method) for number, method in order]
    maps = [item for item in stage(iter(items), SCAN, _settings()) if isinstance(item, TemperatureMap)]
    assert maps[-1].meta["baseline_frames"] == (0, 1)
    assert np.isfinite(maps[-1].change_degc).any()


def test_one_echo_held_back_leaves_no_frame() -> None:
    scan = replace(SCAN, echo_times_s=(0.008, 0.019))
    items = []
    for number in range(4):
        for echo in (0, 1):
            image = _image(number, echo=echo)
            note = {"guard": "spoke", "in_place_of": "pdunet"} if (number, echo) == (2, 1) else {}
            method = "gridding" if note else "pdunet"
            items.append(replace(_seen_by(image, method), meta={"method": method} | note))
    maps = [item for item in stage(iter(items), scan, _settings()) if isinstance(item, TemperatureMap)]
    network = [one for one in maps if one.meta["method"] == "pdunet"]
    assert [one.number for one in network] == [0, 1, 2, 3]
    assert (network[2].validity == NoReading.GUARD).all()
    assert np.isfinite(network[3].change_degc).any()


def test_the_stored_baseline_of_another_reconstruction_is_refused(tmp_path) -> None:
    path = str(tmp_path / "baseline.h5")
    images = [_seen_by(_image(number), "fbp") for number in range(3)]
    list(stage(iter(images), SCAN, _settings(baseline_save=path)))
    with pytest.raises(BaselineError, match=r"method = tcr \(baseline: fbp\)"):
        list(stage(iter([_seen_by(_image(3), "tcr")]), SCAN, _settings(baseline_rule="stored", baseline_file=path)))


def test_unknown_setting_lists_the_known() -> None:
    with pytest.raises(SettingsError, match=r"thermometry\.phase_sign"):
        Settings.parse("thermometry", {"sign": "1"})


def _log(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def test_the_log_tells_the_whole_scan(tmp_path) -> None:
    settings = _settings(log=str(tmp_path), regions="spot=circle:24,24,4")
    scan = replace(SCAN, chain={"frames": {"spokes": 17}, "thermometry": settings.model_dump()})
    list(stage(iter([_image(number) for number in range(4)]), scan, settings))
    lines = _log(tmp_path)
    assert [line["record"] for line in lines] == ["scan", "frame", "frame", "baseline", "frame", "frame", "end"]
    assert lines[0]["settings"]["regions"] == "spot=circle:24,24,4"
    assert lines[0]["chain"] == {"frames": {"spokes": 17}}
    assert lines[3]["frames"] == [0, 1]
    assert lines[4]["regions"][0]["region"] == "spot"


def test_an_alarm_reaches_the_console_once() -> None:
    images = [_image(number) for number in range(7)]
    for number in (4, 5):
        images[number] = replace(images[number], data=(0.1 * images[number].data).astype(np.complex64))
    found = list(stage(iter(images), SCAN, _settings(motion_correlation="0", motion_shift_px="99")))
    texts = [item.text for item in found if isinstance(item, Text)]
    assert len(texts) == 1
    assert texts[0].startswith("WRN frame 4: signal lost")
    alarms = [item.alarms for item in found if isinstance(item, FrameStatistics)]
    assert [len(raised) for raised in alarms] == [0, 0, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("settings", "slices", "said"),
    [
        ({"baseline_frames": "500"}, 1, ["baseline: 3 of 500 frames came; no temperature was made"]),
        ({"baseline_frames": "5", "baseline_skip": "1"}, 1, ["baseline: 2 of 5 frames came; no temperature was made"]),
        (
            {"baseline_rule": "on_command"},
            1,
            ["baseline: none was taken by command; no temperature was made"],
        ),
        (
            {"baseline_frames": "4"},
            2,
            [f"baseline: slice {n}, fbp: 3 of 4 frames came; no temperature was made" for n in (0, 1)],
        ),
        ({"baseline_frames": "3"}, 1, []),
        ({}, 0, ["no images: none with phase came; no temperature was made"]),
    ],
)
def test_a_scan_without_a_complete_baseline_says_so_at_its_end(
    tmp_path, settings: dict[str, str], slices: int, said: list[str]
) -> None:
    images = [
        replace(_image(number, slice_=slice_), meta={"method": "fbp"})
        for number in range(3)
        for slice_ in range(slices)
    ]
    found = list(stage(iter(images), SCAN, _settings(**settings, log=str(tmp_path))))
    assert [item.text for item in found if isinstance(item, Text)] == [f"WRN {text}" for text in said]
    assert not said or isinstance(found[-1], Text)
    assert [line["alarm"] for line in _log(tmp_path) if line["record"] == "alarm"] == said


@pytest.mark.parametrize(
    ("images", "whose"),
    [
        ([("gridding", 0)], ""),
        ([("gridding", 0), ("gridding", 1)], ", slice 1, gridding"),
        ([("gridding", 0), ("pdunet", 0)], ", slice 0, pdunet"),
        ([("", 0), ("", 1)], ", slice 1"),
    ],
)
def test_the_console_is_told_whose_alarm_it_is(images: list[tuple[str, int]], whose: str) -> None:
    items = [_seen_by(_image(n, slice_=slice_), method) for n in range(4) for method, slice_ in images]
    items[-1] = replace(items[-1], data=(0.1 * items[-1].data).astype(np.complex64))
    found = stage(iter(items), SCAN, _settings(motion_correlation="0", motion_shift_px="99"))
    texts = [item.text for item in found if isinstance(item, Text)]
    assert [text.partition(": ")[0] for text in texts] == [f"WRN frame 3{whose}"]


def test_a_map_that_shows_what_has_long_passed_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """One without a reading shows nothing that could be taken for the present."""
    now_s = time.monotonic()
    ages_s = (90.0, 90.0, 0.0, 90.0, 90.0, 0.0)
    images = [replace(_image(number), received_s=now_s - age_s) for number, age_s in enumerate(ages_s)]
    images[4] = replace(images[4], meta={"guard": "range", "in_place_of": ""})
    images.append(replace(_image(6), received_s=math.nan))
    with caplog.at_level(logging.WARNING):
        found = list(stage(iter(images), SCAN, _settings(motion_correlation="0", stale_intervals="60")))
    late = [[text for text in item.alarms if text.startswith("late map")] for item in found if _is_statistics(item)]
    assert [len(texts) for texts in late] == [0, 0, 0, 1, 0, 0, 0]
    assert late[3][0].startswith("late map: it shows the state of 9")
    assert late[3][0].endswith(" s ago, limit 60.0 s")
    assert late[3][0] in [item.meta["alarms"] for item in found if isinstance(item, TemperatureMap)][3]
    assert f"WRN frame 3: {late[3][0]}" in [item.text for item in found if isinstance(item, Text)]
    assert f"frame 3: {late[3][0]}" in caplog.text


def test_each_region_alarms_the_console_and_again_after_it_has_cooled() -> None:
    degc = radian_per_degc(larmor_hz=63.87e6, echo_time_s=0.019, prf_coefficient=-1e-8, phase_sign=1)
    places = {"left is hot": np.s_[20:29, 14:23], "right": np.s_[20:29, 26:35]}
    hot = {"left is hot": (3, 4, 7), "right": (4, 5)}
    images = [_image(number) for number in range(9)]
    for name, numbers in hot.items():
        for number in numbers:
            images[number].data[0, 0][places[name]] *= np.exp(8j * degc)
    settings = _settings(
        body_temperature_degc="37",
        alarm_temperature_degc="43",
        regions="left is hot=circle:18,24,2;right=circle:30,24,2",
        motion_correlation="0",
    )
    texts = [item.text for item in stage(iter(images), SCAN, settings) if isinstance(item, Text)]
    said = [text.partition(" degC")[0].rpartition(" is ")[0] for text in texts]
    assert said == [
        f"WRN frame {number}: over-temperature: T10 of {name}"
        for number, name in ((3, "left is hot"), (4, "right"), (7, "left is hot"))
    ]


def test_commands_are_answered_between_frames(tmp_path) -> None:
    endpoint = f"ipc://{tmp_path}/commands"
    settings = _settings(commands=endpoint, log=str(tmp_path))
    answers: list[object] = []

    def operator() -> None:
        with CommandClient(endpoint) as client:
            answers.append(client.request("body_temperature", degc=36.9))
            try:
                client.request("explode")
            except PeerError as error:
                answers.append(str(error))

    commander = threading.Thread(target=operator)

    def images() -> Iterator[object]:
        for number in range(3):
            yield _image(number)
        commander.start()
        while commander.is_alive():
            yield "heartbeat"
            commander.join(0.01)
        yield _image(3)
        yield _image(4)

    found = list(stage(images(), SCAN, settings))
    maps = [item for item in found if isinstance(item, TemperatureMap)]
    scan = {"measurement_id": "", "run": _log(tmp_path)[0]["run"]}
    assert answers[0] == {"degc": 36.9, "scan": scan}
    assert "known commands" in str(answers[1])
    assert maps[2].temperature_degc is None
    assert maps[3].temperature_degc is not None
    assert maps[3].meta["events"] == ("body_temperature degc=36.9",)
    assert "events" not in maps[4].meta
    records = [line for line in _log(tmp_path) if line["record"] == "command"]
    assert [("refused" in record) for record in records] == [False, True]


def test_the_second_of_two_scans_takes_commands_when_the_first_has_ended(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ipc endpoint would be taken from the first one without an error."""
    monkeypatch.setattr(thermometry_stage, "_AGAIN_S", 0.0)
    endpoint = f"ipc://{tmp_path}/commands"
    answered = threading.Event()

    def images() -> Iterator[object]:
        yield _image(0)
        while not answered.is_set():
            yield "heartbeat"
        yield _image(1)

    first, second = (
        stage(images(), replace(SCAN, measurement_id=name), _settings(commands=endpoint)) for name in ("A", "B")
    )

    def command(scan: Iterator[object], **arguments: str) -> object:
        answers: list[object] = []

        def ask() -> None:
            # What reaches the first scan's socket while that closes has no answer.
            while not answers:
                with CommandClient(endpoint, within_s=2.0) as client, suppress(PeerGoneError):
                    try:
                        answers.append(client.request("mark", text="x", **arguments)["scan"]["measurement_id"])
                    except PeerError as error:
                        answers.append(str(error))

        asking = threading.Thread(target=ask)
        asking.start()
        while asking.is_alive():
            next(scan)
            asking.join(0.01)
        return answers[0]

    next(first)
    text = next(second)
    assert isinstance(text, Text)
    assert text.text.startswith("WRN no commands: scan 'A' (run ")
    assert "2 scans run here" in str(command(first))
    first.close()
    assert command(second) == "B"
    answered.set()
    maps = [item for item in second if isinstance(item, TemperatureMap)]
    assert "no_commands" not in maps[-1].meta


def test_a_scan_that_waits_for_its_commands_is_not_ended_by_their_key(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thermometry_stage, "_AGAIN_S", 0.0)
    settings = _settings(commands=f"ipc://{tmp_path}/commands")
    first = stage(iter(["heartbeat"]), SCAN, settings)
    next(first)
    second = stage(iter([_image(0), _image(1)]), SCAN, settings.model_copy(update={"commands_key_file": "absent"}))
    assert isinstance(next(second), Text)
    first.close()
    maps = [item for item in second if isinstance(item, TemperatureMap)]
    assert "commands_key_file = 'absent'" in maps[-1].meta["no_commands"]


def test_a_baseline_commanded_before_the_first_image_is_taken_of_every_slice(tmp_path) -> None:
    endpoint = f"ipc://{tmp_path}/commands"

    def operator() -> None:
        with CommandClient(endpoint) as client:
            client.request("set_baseline", frames=3)

    def images() -> Iterator[object]:
        commander = threading.Thread(target=operator)
        commander.start()
        while commander.is_alive():
            yield "heartbeat"
            commander.join(0.01)
        for number in range(5):
            yield from (_image(number, slice_=slice_) for slice_ in (0, 1))

    found = list(stage(images(), SCAN, _settings(commands=endpoint, baseline_rule="on_command")))
    maps = [item for item in found if isinstance(item, TemperatureMap)]
    assert [np.isfinite(one.change_degc).any() for one in maps] == [False] * 6 + [True] * 4
    assert all(one.meta["baseline_frames"] == (0, 1, 2) for one in maps[6:])


def test_a_slice_that_lost_frames_takes_a_commanded_baseline_with_the_others(tmp_path) -> None:
    """Its images are numbered as they come; ten frames later the tissue may be heated."""
    endpoint = f"ipc://{tmp_path}/commands"

    def operator() -> None:
        with CommandClient(endpoint) as client:
            client.request("set_baseline", frames=3)

    def images() -> Iterator[object]:
        for frame in range(20):
            if frame == 15:
                commander = threading.Thread(target=operator)
                commander.start()
                while commander.is_alive():
                    yield "heartbeat"
                    commander.join(0.01)
            yield _image(frame)
            if not 4 <= frame < 14:
                own = frame if frame < 4 else frame - 10
                yield replace(_image(frame, slice_=1), number=own, header=SimpleNamespace(repetition=frame))

    found = list(stage(images(), SCAN, _settings(commands=endpoint)))
    maps = [item for item in found if isinstance(item, TemperatureMap)]
    assert {one.meta["baseline_frames"] for one in maps if one.footprint[0] >= 18} == {(15, 16, 17), (5, 6, 7)}


@pytest.mark.parametrize(("begun", "frames"), [(1, (0,)), (2, None), (9, None)])
def test_a_slice_that_begins_late_never_makes_its_baseline_of_heated_frames(
    begun: int, frames: tuple[int, ...] | None
) -> None:
    late = (replace(_image(number, slice_=1), number=number - begun) for number in range(begun, 12))
    images = [image for number in range(12) for image in [_image(number), *([next(late)] if number >= begun else [])]]
    found = list(stage(iter(images), SCAN, _settings()))
    maps = [item for item in found if isinstance(item, TemperatureMap) and item.slice == 1]
    assert np.isfinite(maps[-1].change_degc).any() == (frames is not None)
    assert maps[-1].meta.get("baseline_frames") == frames
    texts = [item.text for item in found if isinstance(item, Text)]
    assert bool(texts) == (frames is None)
    assert not texts or "baseline: none was taken of this reconstruction at the start of the scan" in texts[0]


def test_alarms_that_need_the_body_temperature_are_said_without_it(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    limits = {"alarm_dose_min": "10", "log": str(tmp_path)}
    with caplog.at_level(logging.WARNING):
        watched = {"body_temperature_degc": "37", "regions": "tumour=circle:4,4,2"}
        list(stage(iter([_image(0), _image(1)]), SCAN, _settings(**limits, **watched)))
        assert not caplog.records
        list(stage(iter([_image(0), _image(1)]), SCAN, _settings(**limits)))
    assert "no alarm by thermometry.alarm_dose_min" in caplog.text
    assert [line["alarm"] for line in _log(tmp_path) if line["record"] == "alarm"] == [caplog.records[0].message]


def test_commands_that_cannot_be_taken(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = f"ipc://{tmp_path}/commands"
    with socket.socket() as holder, caplog.at_level(logging.WARNING):
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        found = list(stage(iter(["item", _image(0)]), SCAN, _settings(commands=taken)))
    said, _, _, made, *_ = found
    assert said.text.startswith(f"WRN no commands: cannot listen on {taken}")
    assert f"WRN no commands: {made.meta['no_commands']}" == said.text
    assert "no commands" in caplog.text
    with pytest.raises(SettingsError, match="give a key"):
        list(stage(iter(()), SCAN, _settings(commands="tcp://0.0.0.0:5999")))
    with pytest.raises(SettingsError, match="commands_key_file"):
        list(stage(iter(()), SCAN, _settings(commands=endpoint, commands_key_file=str(tmp_path / "absent"))))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"commands_key_file = '.*binary'.* it must be a text file \(UTF-8\)"):
        list(stage(iter(()), SCAN, _settings(commands=endpoint, commands_key_file=str(tmp_path / "binary"))))
    (tmp_path / "key").write_text("secret\n")
    list(stage(iter(()), SCAN, _settings(commands=f"{endpoint}2", commands_key_file=str(tmp_path / "key"))))


def test_qualification_stands_in_every_map(tmp_path) -> None:
    record = tmp_path / "qa.json"
    record.write_text(json.dumps({"time": "2026-01-02T03:04:05", "command": "sinotherm qa sign", "verdict": "passed"}))
    found = list(stage(iter([_image(0)]), SCAN, _settings(qualified=str(record))))
    assert found[1].meta["last_qualified"] == "2026-01-02T03:04:05 (sinotherm qa sign: passed)"
    assert "unqualified" not in found[1].meta
    other = tmp_path / "sign.json"
    other.write_text(json.dumps({"time": "2026-02-03", "command": "sinotherm qa stability", "verdict": "NOT passed"}))
    both = list(stage(iter([_image(0)]), SCAN, _settings(qualified=f"{record},{other}")))
    dates = "2026-01-02T03:04:05 (sinotherm qa sign: passed); 2026-02-03 (sinotherm qa stability: NOT passed)"
    assert both[2].meta["last_qualified"] == dates
    assert both[2].meta["unqualified"] == "the record did not pass (NOT passed)"
    # Delay and coils give no verdict.
    for text in ("[]", '{"time": "2026-01-02T03:04:05", "command": "sinotherm qa coils"}'):
        record.write_text(text)
        with pytest.raises(SettingsError, match="not a record of `sinotherm qa stability` or `qa sign` with a verdict"):
            list(stage(iter(()), SCAN, _settings(qualified=str(record))))


ALPHA = {"prf_coefficient_ppm_per_degC": -0.0109, "prf_coefficient_se_ppm_per_degC": 0.0001}


@pytest.mark.parametrize(
    ("facts", "settings", "problem"),
    [
        ({"phase_sign": -1}, {}, "the record says phase_sign = -1, the maps are made with 1, heating as cooling"),
        ({"phase_sign": -1}, {"phase_sign": "-1"}, ""),
        (ALPHA, {}, "the record says an alpha of -0.0109 ppm/degC, the maps are made with -0.01"),
        (ALPHA, {"prf_coefficient": "-1.04e-8"}, ""),
        (ALPHA | {"prf_coefficient_se_ppm_per_degC": 0.0003}, {}, ""),
        ({"prf_coefficient_ppm_per_degC": None, "prf_coefficient_se_ppm_per_degC": None}, {}, ""),
        ({"verdict": "NOT passed"}, {}, "the record did not pass (NOT passed)"),
    ],
)
def test_a_record_that_does_not_qualify_the_scan_is_said(
    facts: dict, settings: dict, problem: str, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    record = {"time": "2026-01-02T03:04:05", "command": "sinotherm qa", "verdict": "passed"} | facts
    (tmp_path / "qa.json").write_text(json.dumps(record))
    given = _settings(qualified=str(tmp_path / "qa.json"), log=str(tmp_path), **settings)
    found = list(stage(iter([_image(0), _image(1)]), SCAN, given))
    maps = [item for item in found if isinstance(item, TemperatureMap)]
    assert [one.meta.get("unqualified", "") for one in maps] == [problem] * 2
    said = [f"qualification: {problem}"] if problem else []
    assert [item.text for item in found if isinstance(item, Text)] == [f"WRN {text}" for text in said]
    assert [line["alarm"] for line in _log(tmp_path) if line["record"] == "alarm"] == said
    assert caplog.messages == said


def test_a_doubtful_timing_is_said_once_at_the_start(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    given = _settings(echo_times_s="0.0119", log=str(tmp_path))
    found = list(stage(iter([_image(0), _image(1)]), SCAN, given))
    (said,) = [item.text for item in found if isinstance(item, Text)]
    assert found[0].text == said
    assert said.startswith("WRN timing: thermometry.echo_times_s of echo 0 is 0.0119 s, the header says 0.019 s; ")
    assert [f"WRN {line['alarm']}" for line in _log(tmp_path) if line["record"] == "alarm"] == [said]
    assert [f"WRN {text}" for text in caplog.messages] == [said]


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_thermometry import SCAN, _image, _settings
from sinotherm.stages.thermometry import stage
def images():
    for number in range(1000):
        if number == 6:
            print("six", flush=True)
            time.sleep(60)
        yield _image(number)
settings = _settings(log={folder!r}, log_maps="true", baseline_save={folder!r} + "/baseline.h5")
for item in stage(images(), SCAN, settings):
    pass
"""


def test_a_scan_outlives_the_files_that_it_cannot_write(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sinotherm.stages.thermometry.save_baseline", full)
    (tmp_path / "audit.jsonl").symlink_to("/dev/full")
    settings = _settings(baseline_save=str(tmp_path / "b.h5"), log=str(tmp_path))
    found = list(stage((_image(number) for number in range(6)), SCAN, settings))
    assert sum(isinstance(item, TemperatureMap) for item in found) == 6
    texts = [item.text for item in found if isinstance(item, Text)]
    assert texts == [
        "WRN log not written: [Errno 28] No space left on device; the scan goes on without",
        "WRN baseline not saved: [Errno 28] No space left on device",
    ]


def test_files_that_cannot_be_written_are_refused_before_the_first_image(tmp_path) -> None:
    (tmp_path / "file").touch()
    for name, value in (("baseline_save", tmp_path / "none" / "b.h5"), ("log", tmp_path / "file" / "log")):
        with pytest.raises(SettingsError, match="cannot be written"):
            list(stage(iter([]), SCAN, _settings(**{name: str(value)})))


def test_a_killed_scan_loses_no_finished_map_and_a_restart_goes_on(tmp_path) -> None:
    folder = str(tmp_path / "log")
    script = KILLED.format(tests=os.path.dirname(__file__), folder=folder)  # noqa: PTH120
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().strip() == "six"
        process.send_signal(signal.SIGKILL)
        process.wait()
    lines = _log(tmp_path / "log")
    assert [line["frame"] for line in lines if line["record"] == "frame"] == list(range(6))
    assert lines[-1]["record"] == "frame"
    assert len(list((tmp_path / "log" / "maps").glob("*/*.npz"))) == 6
    again = _settings(log=folder, baseline_rule="stored", baseline_file=f"{folder}/baseline.h5")
    found = list(stage(iter([_image(6)]), SCAN, again))
    assert np.isfinite(found[1].change_degc).any()
    records = [line["record"] for line in _log(tmp_path / "log")]
    assert records[-4:] == ["scan", "frame", "baseline", "end"]


def test_a_baseline_file_that_is_gone_on_with_keeps_the_slices_that_have_not_come(tmp_path) -> None:
    path = str(tmp_path / "baseline.h5")
    images = [_image(number, slice_=slice_) for number in range(3) for slice_ in (0, 1)]
    list(stage(iter(images), SCAN, _settings(baseline_save=path)))
    again = _settings(baseline_save=path, baseline_rule="stored", baseline_file=path)
    list(stage(iter([_image(3)]), SCAN, again))
    list(stage(iter([_image(3, slice_=1)]), SCAN, again))


def test_memory_is_flat_over_a_long_scan() -> None:
    """Every frame looks at what is held; after the baseline it must not grow with the number of frames."""

    def images() -> Iterator[FrameImage]:
        for number in range(240):
            if number == 40:
                tracemalloc.start()
            yield _image(number)

    held = []
    for item in stage(images(), SCAN, _settings(body_temperature_degc="37", sigma="temporal")):
        if isinstance(item, FrameStatistics) and item.number in (60, 239):
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[1] - held[0] < 100_000


def test_a_live_scan_that_stops_is_noticed(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    def images() -> Iterator[FrameImage]:
        for number in range(4):
            times = (0.01 * number, 0.01 * number + 0.005, 0.01 * number + 0.01)
            yield replace(_image(number), footprint=times, received_s=1.0)
        deadline = time.monotonic() + 10.0
        while "no map for 0.0 s" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)

    with caplog.at_level(logging.WARNING):
        list(stage(images(), SCAN, _settings(log=str(tmp_path))))
    alarms = [line["alarm"] for line in _log(tmp_path) if line["record"] == "alarm"]
    assert alarms
    assert alarms[-1].startswith("stale frame")


def test_the_next_map_tells_of_a_stall_that_its_time_stamps_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    notify: list[Callable[[str], object]] = []

    class Dog(Watchdog):
        def __init__(self, notified: Callable[[str], object]) -> None:
            super().__init__(notified)
            notify.append(notified)

    def images() -> Iterator[FrameImage]:
        for number in range(9):
            if number in (4, 7):
                notify[0]("stale frame: no map for 3.0 s")
            # Of the second stall the stamps tell as well.
            later = 50.0 * (number >= 7)
            times = (number + later, number + later + 0.5, number + later + 1.0)
            yield replace(_image(number), footprint=times, received_s=time.monotonic())

    monkeypatch.setattr(thermometry_stage, "Watchdog", Dog)
    found = list(stage(images(), SCAN, _settings()))
    alarms = {item.number: item.alarms for item in found if _is_statistics(item) and item.alarms}
    assert set(alarms) == {4, 7}
    assert [len(texts) for texts in alarms.values()] == [1, 1]
    assert alarms[4][0].startswith("stale frame: no map for ")
    assert alarms[4][0].endswith(" s before this one")
    assert alarms[7][0].startswith("stale frame: no map for 51.0 s, 1.0 s expected")
    texts = [item.text for item in found if isinstance(item, Text)]
    assert texts == [f"WRN frame {number}: {alarms[number][0]}" for number in (4, 7)]


def test_statistics_of_a_live_scan_say_when_the_next_are_due() -> None:
    live = [replace(_image(number), received_s=1.0) for number in range(3)]
    found = [item.patience_s for item in stage(iter(live), SCAN, _settings()) if isinstance(item, FrameStatistics)]
    assert found == [math.inf, 3.0, 3.0]
    stored = stage(iter([_image(number) for number in range(3)]), SCAN, _settings())
    assert {item.patience_s for item in stored if isinstance(item, FrameStatistics)} == {math.inf}
