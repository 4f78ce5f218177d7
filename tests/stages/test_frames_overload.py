import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest

from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import EncodingSpace, Frame, ScanHeader, Spoke
from sinotherm.stages.frames import Settings, stage

SAMPLING = RadialSampling(n_readout=8, spacing=0.125, centre=4)
SPACE = EncodingSpace(matrix=(4, 4, 1), fov_m=(0.2, 0.2, 0.01))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial")
TR_S = 0.01


def spokes(n: int, *, stamped: bool = True) -> Iterator[Spoke]:
    spoke = Spoke(data=np.ones((1, 8), np.complex64), sampling=SAMPLING, angle_rad=0.0)
    for index in range(n):
        received_s = 100.0 + index * TR_S if stamped else math.nan
        yield dataclasses.replace(spoke, angle_rad=0.3 * index, index=index, received_s=received_s)


def frames(policy: str, monkeypatch: pytest.MonkeyPatch, *, busy_s: float, stamped: bool = True) -> list[Frame]:
    """Run the stage before a reconstruction that takes ``busy_s`` a frame of 40 ms."""
    now = 100.0

    def clock() -> float:
        return now

    monkeypatch.setattr("sinotherm.stages.frames.monotonic", clock)
    settings = Settings.parse("frames", {"by": "count", "spokes": "4", "overload": policy})
    made = []

    def arriving() -> Iterator[Spoke]:
        nonlocal now
        for spoke in spokes(48, stamped=stamped):
            now = max(now, spoke.received_s)
            yield spoke

    for item in stage(arriving(), SCAN, settings):
        if isinstance(item, Frame):
            made.append(item)
            now += busy_s
    return made


def test_every_frame_is_made_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [frame.number for frame in frames("every", monkeypatch, busy_s=0.1)] == list(range(12))


def test_whole_frames_are_skipped_for_the_latest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = frames("latest", monkeypatch, busy_s=0.1)
    numbers = [frame.number for frame in made]
    # A frame takes 2.5 times its own duration: about every third is made, none in part.
    assert len(made) <= 6
    assert numbers[0] == 0
    assert numbers == sorted(set(numbers))
    assert all(frame.n_spokes == 4 for frame in made)
    assert made[-1].meta["frames_skipped"] == numbers[-1] + 1 - len(made) > 0
    assert "is skipped: the next one has been received" in caplog.text


def test_a_chain_that_keeps_up_skips_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = frames("latest", monkeypatch, busy_s=0.03)
    assert [frame.meta["frames_skipped"] for frame in made] == [0] * 12


def test_a_file_is_never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(frames("latest", monkeypatch, busy_s=10.0, stamped=False)) == 12
