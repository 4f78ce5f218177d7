import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinotherm.errors import SpokeError
from sinotherm.frames.schedule import RunningCount

PERIOD = 8


def acquired(n_slices, n_frames, navigators, unsent=0):
    """Yield (slice, or None for a navigator, step, place in the schedule) of every readout of a scan.

    Before every frame but the first so many readouts that nobody sends.
    """
    for frame in range(n_frames):
        yield from [(-1, 0, 0)] * (unsent if frame else 0)
        for step in range(PERIOD):
            if navigators and step % 4 == 1:
                yield None, 0, 0
            for number in range(n_slices):
                yield number, step, frame * PERIOD + step


def counted(readouts, received=lambda number: True, period=PERIOD, constant=False, repetitions=False):
    """Return (counted, true) places of the spokes that were received, and what counted them."""
    count, last, missing, others, found = RunningCount(period), None, 0, 0, []
    for number, (stream, step, place) in enumerate(readouts):
        if stream == -1 or not received(number):
            continue
        missing += 0 if last is None else number - last - 1
        last = number
        if stream is None:
            others += 1
            continue
        step = 0 if constant else step
        repetition = place // PERIOD if repetitions else 0
        got = count.next(stream, step, repetition, readout=number, n_missing=missing, n_others=others)
        found.append((got, place))
    return found, count


@settings(deadline=None)
@given(
    n_slices=st.integers(1, 3),
    navigators=st.booleans(),
    known=st.booleans(),
    lost=st.lists(st.tuples(st.integers(3, 95), st.integers(1, 3)), max_size=2),
)
def test_the_step_tells_which_spokes_were_lost(n_slices, navigators, known, lost):
    readouts = list(acquired(n_slices, 4, navigators))
    gone = {number for first, n in lost for number in range(first, first + n)}
    # Whoever has no period by the header learns it from the first frame.
    if not known:
        gone = {number for number in gone if number > len(readouts) // 3}
    found, _ = counted(readouts, lambda number: number not in gone, period=PERIOD if known else 0)
    assert [got for got, _ in found] == [true for _, true in found]


@pytest.mark.parametrize("n_slices", [1, 2])
def test_what_never_was_ours_takes_no_angle(n_slices):
    """Navigators filtered on the way, or the readouts of another slice."""
    readouts = list(acquired(n_slices, 4, navigators=True))
    ours = {number for number, (stream, _, _) in enumerate(readouts) if stream == n_slices - 1}
    found, count = counted(readouts, ours.__contains__)
    assert [got for got, _ in found] == [true for _, true in found]
    assert count.n_unproven == 0


def test_without_a_step_all_that_is_missing_were_spokes():
    found, count = counted(acquired(1, 3, navigators=False), lambda number: number not in (5, 6, 17), constant=True)
    assert [got for got, _ in found] == [true for _, true in found]
    assert count.n_unproven == 3


def test_long_gaps_of_one_stream_are_counted_in_full_frames():
    found, count = counted(acquired(1, 6, navigators=False), lambda number: not 10 <= number < 31)
    assert [got for got, _ in found] == [true for _, true in found]
    assert count.n_unproven == 21


@pytest.mark.parametrize(
    ("n_slices", "navigators", "constant", "gone"),
    [
        (2, False, True, range(9, 10)),
        (1, True, True, range(9, 10)),
        # More than a frame of each slice.
        (2, False, False, range(9, 29)),
        # More than a frame, and what is missing beyond it is no whole number of them.
        (1, True, False, range(11, 23)),
    ],
)
def test_what_nothing_tells_is_an_error(n_slices, navigators, constant, gone):
    with pytest.raises(SpokeError, match=r"nothing tells which of them were spokes.*trajectories"):
        counted(acquired(n_slices, 5, navigators), lambda number: number not in gone, constant=constant)


@pytest.mark.parametrize("n_slices", [1, 2])
@pytest.mark.parametrize("unsent", [5, 8, 20])
def test_what_is_missing_between_the_frames_takes_no_angle_where_repetitions_are_counted(n_slices, unsent):
    readouts = list(acquired(n_slices, 4, navigators=True, unsent=unsent))
    found, _ = counted(readouts, repetitions=True)
    assert [got for got, _ in found] == [true for _, true in found]
    # Nor do those that are missing besides hide it.
    found, _ = counted(readouts, lambda number: number not in (17, 18), repetitions=True)
    assert [got for got, _ in found] == [true for _, true in found]


@settings(deadline=None)
@given(
    n_slices=st.integers(1, 3),
    navigators=st.booleans(),
    sent=st.booleans(),
    unsent=st.sampled_from([0, 3, PERIOD, PERIOD + 5]),
    period=st.sampled_from([0, PERIOD]),
    repetitions=st.booleans(),
    lost=st.lists(st.tuples(st.integers(5, 95), st.integers(1, 9)), max_size=3),
)
def test_no_angle_is_wrong_without_a_word(n_slices, navigators, sent, unsent, period, repetitions, lost):
    readouts = [
        (-1, 0, 0) if one[0] is None and not sent else one for one in acquired(n_slices, 4, navigators, unsent=unsent)
    ]
    gone = {number for first, n in lost for number in range(first, first + n)}
    try:
        found, count = counted(readouts, lambda number: number not in gone, period=period, repetitions=repetitions)
    except SpokeError:
        # The norm: the header says how many spokes a frame has, repetitions are counted, and little is missing.
        assert not (period and repetitions and len(gone) < PERIOD)
        return
    assert count.n_unproven or all(got == true for got, true in found)


@pytest.mark.parametrize("lost", [1, 3, 7])
def test_a_step_that_begins_anew_within_repetitions_tells_no_more_than_it_can(lost):
    """Segments of four."""
    readouts = [(0, place % 4, place) for place in range(40)]
    for first in range(9, 20):
        found, _ = counted(readouts, lambda number, first=first: not first <= number < first + lost, repetitions=True)
        assert [got for got, _ in found] == [true for _, true in found]


def test_a_header_that_is_wrong_is_no_proof_against_the_scan_counter():
    for first in range(1, 30):
        readouts = acquired(1, 5, navigators=False)
        found, _ = counted(readouts, lambda number, first=first: number not in (first, first + 1), period=19)
        assert [got for got, _ in found] == [true for _, true in found]


def test_a_step_that_only_seemed_to_count_is_an_error():
    """Each spoke twice, of which the second one was lost at once."""
    count = RunningCount(PERIOD)
    for number, missing, step in ((0, 0, 0), (2, 1, 1)):
        count.next(0, step, 0, readout=number, n_missing=missing, n_others=0)
    with pytest.raises(SpokeError, match="does not count the spokes, though it seemed to"):
        count.next(0, 1, 0, readout=3, n_missing=1, n_others=0)


def test_what_is_ahead_of_another_slice_is_not_taken_for_lost_on_no_evidence():
    count = RunningCount(0)
    assert count.next(0, 0, 0, readout=0, n_missing=0, n_others=0) == 0
    # A step that counts over the slices, and a readout that was not sent.
    assert count.next(1, 1, 0, readout=2, n_missing=1, n_others=0) == 0


def test_a_step_that_begins_anew_after_other_numbers_counts_nothing():
    steps = [0, 1, 2, 3, 0, 1, 0, 1, 2]
    count = RunningCount(4)
    for number, step in enumerate(steps):
        count.next(0, step, 0, readout=number, n_missing=0, n_others=0)
    assert count.next(0, 5, 0, readout=11, n_missing=2, n_others=0) == 11
    assert count.n_unproven == 2


def test_both_counters_together_tell_that_more_than_spokes_is_missing():
    count = RunningCount(PERIOD)
    for number in range(4):
        count.next(0, number, 0, readout=number, n_missing=0, n_others=0)
    # Three are missing, and the step says that two of them were spokes: what is missing later on need be none either.
    assert count.next(0, 6, 0, readout=7, n_missing=3, n_others=0) == 6
    with pytest.raises(SpokeError, match="nothing tells"):
        count.next(0, 7, 0, readout=16, n_missing=11, n_others=0)
    assert count.n_unproven == 0
