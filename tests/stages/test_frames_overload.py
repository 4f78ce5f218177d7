import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import EncodingSpace, Frame, ScanHeader, Spoke
from sinotherm.stages.frames import Settings, stage
from sinotherm.wire.messages import Text

SAMPLING = RadialSampling(n_readout=8, spacing=0.125, centre=4)
SPACE = EncodingSpace(matrix=(4, 4, 1), fov_m=(0.2, 0.2, 0.01))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial")
SPOKE = Spoke(data=np.ones((1, 8), np.complex64), sampling=SAMPLING, angle_rad=0.0)


class Scanner:
    """Sends a spoke every 10 ms to a reconstruction that takes ``busy`` ms a frame; ``pause`` ms after spoke 24."""

    def __init__(self, *, busy: int, n: int = 48, slices: int = 1, pause: int = 0) -> None:
        self.now, self.busy = 0, busy
        self.spokes = [
            (10 * index + (pause if index >= 24 else 0), dataclasses.replace(SPOKE, index=index, slice=index % slices))
            for index in range(n)
        ]

    def arriving(self) -> Iterator[Spoke]:
        for index, (at, spoke) in enumerate(self.spokes):
            self.now = max(self.now, at)
            waiting = sum(other <= self.now for other, _ in self.spokes[index + 1 :])
            yield dataclasses.replace(spoke, waiting=waiting)

    def run(self, **values: str) -> list[tuple[int, Any]]:
        """Return when the stage gave what it gave, spokes left out."""
        settings = Settings.parse("frames", {"overload": "latest", **(values or {"by": "count", "spokes": "4"})})
        found = []
        for item in stage(self.arriving(), SCAN, settings):
            if not isinstance(item, Spoke):
                found.append((self.now, item))
            if isinstance(item, Frame):
                self.now += self.busy
        return found


def frames(found: list[tuple[int, Any]]) -> list[Frame]:
    return [item for _, item in found if isinstance(item, Frame)]


def numbers(found: list[tuple[int, Any]]) -> list[int]:
    return [frame.number for frame in frames(found)]


def test_every_frame_is_made_however_late() -> None:
    found = Scanner(busy=100).run(overload="every", by="count", spokes="4")
    assert [item.number for _, item in found] == list(range(12))


def test_whole_frames_are_skipped_for_the_latest(caplog: pytest.LogCaptureFixture) -> None:
    # A frame takes 2.5 times its own duration; the last one is always made.
    found = Scanner(busy=100).run()
    assert numbers(found) == [0, 2, 5, 7, 10, 11]
    assert all(frame.n_spokes == 4 for frame in frames(found))
    assert [frame.meta["frames_skipped"] for frame in frames(found)] == [0, 1, 3, 4, 6, 6]
    assert "frame 4 is skipped: the next one has been received" in caplog.text
    texts = [(place, item.text) for place, (_, item) in enumerate(found) if isinstance(item, Text)]
    assert [place for place, _ in texts] == [1, len(found) - 1]
    assert texts[0][1].startswith("WRN overload: frame 1 is skipped, and others may be")
    assert texts[1][1] == "WRN overload: 6 of 12 frames were skipped"


def test_a_frame_that_none_follows_is_made_without_waiting() -> None:
    """The scanner pauses while a frame is behind its time: it is the latest, and the pause may be long."""
    found = Scanner(busy=100, pause=10_000).run()
    assert numbers(found)[:4] == [0, 2, 5, 6]
    assert next(at for at, item in found if isinstance(item, Frame) and item.number == 5) < 500


def test_the_next_window_overtakes_one(caplog: pytest.LogCaptureFixture) -> None:
    assert numbers(Scanner(busy=50, n=24).run(window="8", stride="2")) == [0, 2, 5, 7, 8]


def test_slices_are_skipped_each_for_itself() -> None:
    found = Scanner(busy=100, slices=2).run()
    made = {index: [frame.number for frame in frames(found) if frame.slice == index] for index in (0, 1)}
    assert len(made[0] + made[1]) < 12
    for one in made.values():
        assert one == sorted(set(one))
        assert one[-1] == 5


def test_a_chain_that_keeps_up_skips_nothing() -> None:
    found = Scanner(busy=30).run()
    assert [item.meta["frames_skipped"] for _, item in found] == [0] * 12


def test_a_file_is_never_late() -> None:
    spokes = (dataclasses.replace(SPOKE, index=index) for index in range(48))
    settings = Settings.parse("frames", {"by": "count", "spokes": "4", "overload": "latest"})
    assert sum(isinstance(item, Frame) for item in stage(spokes, SCAN, settings)) == 12
