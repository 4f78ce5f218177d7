import math
from types import SimpleNamespace

import numpy as np
import pytest

from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import FrameImage, Spoke
from sinotherm.thermometry.gaps import FrameCount, ScanCount

SAMPLING = RadialSampling(n_readout=4, spacing=0.25, centre=2.0)


def _image(
    number: int,
    first: int | None = None,
    *,
    repetition: int | None = None,
    step: int = 1,
    time_s: float = math.nan,
    scan_counter: float | None = None,
) -> FrameImage:
    """Return an image whose eight spokes count from ``first`` on, or whose header has a repetition, or neither."""
    counts = [] if first is None else [first + step * place for place in range(8)]
    return FrameImage(
        data=np.zeros((1, 1, 4, 4), np.complex64),
        number=number,
        footprint=(time_s,) * 3,
        meta={} if scan_counter is None else {"scan_counter": scan_counter},
        header=None if repetition is None else SimpleNamespace(repetition=repetition),
        spokes=tuple(
            Spoke(data=np.zeros((1, 4), np.complex64), sampling=SAMPLING, angle_rad=0.0, index=count)
            for count in counts
        ),
    )


@pytest.mark.parametrize("counter", ["spokes", "scan counter", "repetition", "number"])
def test_missing_frames_are_counted(counter: str) -> None:
    count = FrameCount(3.0)
    for number, place in enumerate((0, 1, 2, 5, 6, 7)):
        image = {
            "spokes": _image(number, 100 + 20 * place),
            # Another node of ours: its repetition counts the frames that it made.
            "scan counter": _image(number, repetition=number, scan_counter=20.0 * place),
            "repetition": _image(number, repetition=4 + place),
            "number": _image(place),
        }[counter]
        assert count.frame(image) == ""
        assert count.follows == (number != 3)
    # The numbers themselves leave frames out: what is timed by them needs no more.
    assert count.missing == (0 if counter == "number" else 2)


def test_many_missing_frames_are_an_alarm() -> None:
    count = FrameCount(3.0)
    texts = [count.frame(_image(number, 8 * place)) for number, place in enumerate((0, 1, 5, 6))]
    assert texts == ["", "", "stale frame: 3 frames are missing before this one, limit 3 intervals", ""]


def test_a_few_readouts_are_no_frame() -> None:
    count = FrameCount(3.0)
    for number, first in enumerate((0, 8, 16, 27, 35)):
        count.frame(_image(number, first))
        assert count.follows
    assert count.missing == 0


def test_a_counter_that_begins_again_tells_of_no_missing_frames_but_follows_nothing() -> None:
    count = FrameCount(3.0)
    for number, first in enumerate((80, 88, 0, 8)):
        assert count.frame(_image(number, first)) == ""
        assert count.follows == (number != 2)
    assert count.missing == 0


def test_a_counter_that_nobody_counts_tells_nothing() -> None:
    count = FrameCount(3.0)
    for number in range(4):
        assert count.frame(_image(number, 0, step=0)) == ""
        assert count.follows


def test_time_stamps_tell_where_nobody_counts() -> None:
    count = FrameCount(3.0)
    for number, place in enumerate((0, 1, 2, 5, 6)):
        count.frame(_image(number, repetition=0, time_s=1000.0 + 10.0 * place))
        assert count.follows == (number != 3)
    assert count.missing == 2
    # Who begins to count knows it better.
    for number, place in enumerate((7, 8, 9), 5):
        count.frame(_image(number, repetition=place, time_s=1000.0 + 100.0 * place))
    assert count.missing == 2


CLOCKS = {
    "time and repetition": {"time": True, "counts": True},
    "time": {"time": True, "counts": False},
    "repetition": {"time": False, "counts": True},
    "order": {"time": False, "counts": False},
}


def _of(number: int, frame: int, place: int = 0, *, time: bool, counts: bool) -> FrameImage:
    """Return the image of a slice's ``number``-th frame, the ``frame``-th of the scan; slices share its time."""
    time_s = 500.0 + 2.0 * frame + 0.25 * place if time else math.nan
    return _image(number, repetition=frame if counts else 0, time_s=time_s)


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
@pytest.mark.parametrize("begun", [0, 1, 7])
def test_a_stream_begins_where_the_scan_is(begun: int, clock: dict[str, bool]) -> None:
    """Eight slices of which the last one begins later."""
    count = ScanCount()
    for frame in range(12):
        for slice_ in range(8):
            if slice_ < 7 or frame >= begun:
                number = frame if slice_ < 7 else frame - begun
                assert count.place(slice_, _of(number, frame, slice_, **clock)) == frame


@pytest.mark.parametrize("clock", ["time and repetition", "time", "repetition"])
def test_a_stream_that_lags_behind_begins_with_its_own_frames(clock: str) -> None:
    """A network's first images come when gridding's have long gone on; a file may hold one series after the other."""
    count = ScanCount()
    assert [count.place("gridding", _of(n, n, **CLOCKS[clock])) for n in range(20)] == list(range(20))
    assert [count.place("network", _of(n, n, **CLOCKS[clock])) for n in range(20)] == list(range(20))
    assert [count.place("late", _of(n, 3 + n, **CLOCKS[clock])) for n in range(4)] == [3, 4, 5, 6]


def test_a_reconstruction_that_counts_from_its_own_start_begins_by_time() -> None:
    count = ScanCount()
    for frame in range(10):
        count.place(2, _image(frame, repetition=frame, time_s=float(frame)))
    assert count.place(3, _image(0, repetition=0, time_s=9.1)) == 9


@pytest.mark.parametrize("clock", ["time and repetition", "time", "repetition"])
def test_a_stream_that_lost_frames_stays_with_the_others(clock: str) -> None:
    count, number = ScanCount(), 0
    for frame in range(30):
        assert count.place(0, _of(frame, frame, **CLOCKS[clock])) == frame
        if not 6 <= frame < 16:
            assert count.place(1, _of(number, frame, 1, **CLOCKS[clock])) == frame
            number += 1


@pytest.mark.parametrize("clock", ["time and repetition", "time", "repetition"])
def test_what_is_awaited_of_a_stream_is_later_than_all_that_came(clock: str) -> None:
    """Of one that lags, has not come in this frame, lacks frames just now, or comes at every fifth frame only."""
    count, clocks = ScanCount(), CLOCKS[clock]
    for frame in range(22):
        count.place("first", _of(frame, frame, 0, **clocks))
        if frame < 21:
            count.place("last", _of(frame, frame, 3, **clocks))
        if frame < 6:
            count.place("lags", _of(frame, frame, 0, **clocks))
        if frame < 16:
            count.place("lost", _of(frame, frame, 1, **clocks))
        if frame % 5 == 0:
            count.place("slow", _of(frame // 5, frame, 0, **clocks))
    awaited = {stream: count.awaited(stream) for stream in ("first", "last", "lags", "lost", "slow")}
    # Time alone tells which of two slices comes first in a frame.
    last = 21 if clocks["time"] and not clocks["counts"] else 22
    assert awaited == {"first": 22, "last": last, "lags": 22, "lost": 21 if last == 21 else 22, "slow": 5}


def test_a_counter_that_begins_again_holds_nothing_up() -> None:
    count = ScanCount()
    for frame, repetition in enumerate((65534, 65535, 0, 1)):
        for stream in (0, 1):
            count.place(stream, _image(frame, repetition=repetition))
    assert [count.awaited(stream) for stream in (0, 1)] == [4, 4]
    # Nor does one that counts something else.
    count.place(2, _image(0, repetition=9000))
    count.place(2, _image(1, repetition=9001))
    assert count.awaited(2) == count.awaited(0) == 5
