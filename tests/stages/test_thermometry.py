import logging
from dataclasses import replace

import numpy as np
import pytest

from sinotherm.core.scan import EncodingSpace, FrameImage, FrameStatistics, ScanHeader, TemperatureMap
from sinotherm.errors import BaselineError, SettingsError
from sinotherm.stages.thermometry import Settings, stage

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
    assert _kinds(alone) == ["FrameImage", "TemperatureMap", "FrameStatistics"]


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
    with pytest.raises(BaselineError, match="no baseline of slice 1"):
        list(stage(iter([_image(7, slice_=1)]), SCAN, _settings(baseline_rule="stored", baseline_file=path)))


def test_unknown_setting_lists_the_known() -> None:
    with pytest.raises(SettingsError, match=r"thermometry\.phase_sign"):
        Settings.parse("thermometry", {"sign": "1"})
