from types import SimpleNamespace

import numpy as np
import pytest

from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import FrameImage, Spoke
from sinotherm.thermometry.gaps import FrameCount

SAMPLING = RadialSampling(n_readout=4, spacing=0.25, centre=2.0)


def _image(number: int, first: int | None = None, *, repetition: int | None = None, step: int = 1) -> FrameImage:
    """Return an image whose eight spokes count from ``first`` on, or whose header has a repetition, or neither."""
    counts = [] if first is None else [first + step * place for place in range(8)]
    return FrameImage(
        data=np.zeros((1, 1, 4, 4), np.complex64),
        number=number,
        header=None if repetition is None else SimpleNamespace(repetition=repetition),
        spokes=tuple(
            Spoke(data=np.zeros((1, 4), np.complex64), sampling=SAMPLING, angle_rad=0.0, index=count)
            for count in counts
        ),
    )


@pytest.mark.parametrize("counter", ["spokes", "repetition", "number"])
def test_missing_frames_are_counted(counter: str) -> None:
    count = FrameCount(3.0)
    for number, place in enumerate((0, 1, 2, 5, 6, 7)):
        image = {
            "spokes": _image(number, 100 + 20 * place),
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
