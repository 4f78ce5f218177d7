import dataclasses
import logging
import math

import ismrmrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import EncodingSpace, Frame, ScanHeader, Spoke
from sinotherm.errors import SettingsError, SpokeError
from sinotherm.frames.header import scan_header
from sinotherm.stages import spokes as spokes_stage
from sinotherm.stages.frames import Settings, stage
from sinotherm.wire.file import MrdFile
from sinotherm.wire.messages import Text

SPACE = EncodingSpace(matrix=(8, 8, 1), fov_m=(0.2, 0.2, 0.01))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial")
SAMPLING = RadialSampling(n_readout=8, spacing=1 / 8, centre=4.0)


def spoke(index=0, **change):
    values = {
        "data": np.full((2, 8), index, np.complex64),
        "sampling": SAMPLING,
        "angle_rad": 0.1 * index,
        "index": index,
        "time_s": 10.0 + index,
        "received_s": 100.0 + index,
    }
    return Spoke(**(values | change))


def run(items, scan=SCAN, **values):
    return list(stage(iter(items), scan, Settings(**values)))


def frames(items, scan=SCAN, **values):
    return [item for item in run(items, scan, **values) if isinstance(item, Frame)]


def frames_if_any(items, n, **values):
    """Return the frames, of which there should be n; where there is none, that must be said."""
    if n or not items:
        return frames(items, **values)
    with pytest.raises(SpokeError, match=f"none of {len(items)} spokes is in an image"):
        run(items, **values)
    return []


def indices(found):
    return [[one.index for one in frame.spokes] for frame in found]


def test_spokes_pass_and_the_frame_follows_its_last_one():
    items = [spoke(i) for i in range(4)]
    out = run(["text", *items], spokes=2)
    assert out[0] == "text"
    assert [type(item) for item in out[1:]] == [Spoke, Spoke, Frame] * 2
    assert out[1] is items[0]
    assert out[3].spokes == (items[0], items[1])
    assert out[3].number == 0
    assert out[6].number == 1
    assert out[6].footprint == (12.0, 12.5, 13.0)
    assert out[6].received_s == 103.0
    assert out[6].complete
    assert out[6].meta["frame_rule"] == "2 spokes"
    assert out[6].meta["spokes"] == 2


@given(n=st.integers(0, 40), per_frame=st.integers(1, 12))
def test_by_count_every_spoke_is_in_one_frame(n, per_frame):
    items = [spoke(i, repetition=i // 5, last=i % 3 == 0) for i in range(n)]
    whole = n // per_frame * per_frame
    found = frames_if_any(items, whole, by="count", spokes=per_frame)
    assert [index for frame in indices(found) for index in frame] == list(range(whole))
    assert all(frame.n_spokes == per_frame for frame in found)


@given(n=st.integers(0, 40), window=st.integers(1, 12), stride=st.integers(0, 9))
def test_windows_hold_the_last_spokes(n, window, stride):
    ends = range(window, n + 1, stride or window)
    found = frames_if_any([spoke(i) for i in range(n)], len(ends), window=window, stride=stride)
    assert indices(found) == [list(range(end - window, end)) for end in ends]
    assert [frame.number for frame in found] == list(range(len(found)))


def test_auto_takes_the_header_then_flags_then_repetitions():
    items = [spoke(i, repetition=i // 6, last=i in (3,)) for i in range(12)]
    with_limits = dataclasses.replace(SCAN, spokes_per_frame=6)
    assert indices(frames(items, with_limits)) == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11]]
    assert indices(frames(items[:4] + items[6:])) == [[0, 1, 2, 3], [6, 7, 8, 9, 10, 11]]


def test_a_lost_spoke_does_not_shift_the_frames_after_it(caplog):
    scan = dataclasses.replace(SCAN, spokes_per_frame=4)
    items = [spoke(i, repetition=i // 4) for i in range(12) if i != 2]
    assert indices(frames(items, scan)) == [[0, 1, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert "frame 0 has 3 spokes where 4 were expected" in caplog.text


def test_by_flags_only():
    items = [spoke(i, repetition=i, last=i in (2, 4)) for i in range(5)]
    assert indices(frames(items, dataclasses.replace(SCAN, spokes_per_frame=2), by="flags")) == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("key", ["slice", "echo"])
def test_the_last_readout_of_a_repetition_ends_the_frames_of_all_slices_and_echoes(key):
    items = [spoke(i, **{key: i % 2}, last=i % 6 == 5, last_of_all=i % 6 == 5) for i in range(12)]
    assert sorted(indices(frames(items, by="flags"))) == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    # Of a frame that lost a spoke, and of slices that have not as many.
    assert sorted(indices(frames([one for one in items if one.index != 2], by="flags")))[0] == [0, 4]
    # Each with a flag of its own: the first one takes no spoke from the other, whatever it lost.
    flagged = [spoke(i, **{key: i % 2}, last=i % 6 > 3, last_of_all=i % 6 > 3) for i in range(12) if i != 2]
    assert sorted(indices(frames(flagged, by="flags"))) == [[0, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    items = [spoke(i, **{key: i % 2}, last=i % 6 > 3, last_of_all=i % 6 > 3) for i in range(12)]
    assert sorted(indices(frames(items, by="flags"))) == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]


def test_by_repetition_index():
    items = [spoke(i, repetition=i // 3, last=True) for i in range(6)]
    assert indices(frames(items, by="index")) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("by", "stated"), [("index", 2), ("index", 5), ("auto", 5)])
def test_repetitions_outvote_a_header_that_is_wrong(by, stated, caplog):
    scan = dataclasses.replace(SCAN, spokes_per_frame=stated)
    found = frames([spoke(i, repetition=i // 3) for i in range(9)], scan, by=by)
    assert indices(found) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert all(frame.complete for frame in found)
    assert f"frame 0 has 3 spokes where {stated} were expected" in caplog.text
    assert caplog.text.count("were expected") == 1
    cut = frames([spoke(i, repetition=i // 3) for i in range(8)], scan, by=by)
    assert indices(cut) == [[0, 1, 2], [3, 4, 5]]
    assert "partial frame of 2 of 3 spokes: dropped" in caplog.text


def test_a_frame_that_lost_spokes_is_no_measure_of_whole_ones(caplog):
    scan = dataclasses.replace(SCAN, spokes_per_frame=4)
    items = [spoke(i, repetition=i // 4) for i in range(11) if i not in (5, 6, 7)]
    assert indices(frames(items, scan)) == [[0, 1, 2, 3], [4]]
    assert "partial frame of 3 of 4 spokes: dropped" in caplog.text


def test_slices_and_echoes_are_frames_of_their_own():
    items = [spoke(i, slice=i % 2, echo=i // 2 % 2) for i in range(16)]
    found = frames(items, spokes=2)
    assert indices(found) == [[0, 4], [1, 5], [2, 6], [3, 7], [8, 12], [9, 13], [10, 14], [11, 15]]
    assert [(frame.slice, frame.echo, frame.number) for frame in found[:5]] == [
        *[(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1)]
    ]


@pytest.mark.parametrize("policy", ["drop", "emit"])
def test_a_partial_frame_at_the_end_is_never_silent(policy, caplog):
    found = frames([spoke(i) for i in range(5)], spokes=3, partial=policy)
    assert [frame.complete for frame in found] == ([True] if policy == "drop" else [True, False])
    assert "partial frame of 2 of 3 spokes" in caplog.text
    assert f"frames.partial = {policy}" in caplog.text
    if policy == "emit":
        assert found[1].meta["partial_frame"] is True


def test_without_any_sign_the_whole_scan_is_one_frame(caplog):
    with caplog.at_level(logging.INFO):
        (frame,) = frames([spoke(i) for i in range(5)])
    assert frame.n_spokes == 5
    assert frame.complete
    assert "all 5 spokes are one" in caplog.text


def test_after_flagged_frames_the_rest_is_partial(caplog):
    items = [spoke(i, last=i == 2) for i in range(5)]
    assert indices(frames(items)) == [[0, 1, 2]]
    assert "partial frame of 2 of 3 spokes: dropped" in caplog.text
    whole = [spoke(i, last=i == 2) for i in range(6)]
    assert indices(frames(whole)) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("policy", "n"), [("drop", 0), ("emit", 1)])
def test_a_window_that_never_fills(policy, n):
    assert len(frames_if_any([spoke(i) for i in range(3)], n, window=4, partial=policy)) == n


def test_a_scan_of_which_no_frame_is_complete_does_not_end_as_if_all_went_well():
    """A clean end without images would be that of a scan that measured noise alone."""
    items = [spoke(i) for i in range(3)]
    with pytest.raises(SpokeError, match=r"none of 3 spokes .* frames end by 4 spokes; .* frames\.partial = emit"):
        run(items, spokes=4)
    assert run(["text"], spokes=4) == ["text"]


def test_the_console_is_told_of_spokes_that_are_in_no_image():
    *_, told = run([spoke(i) for i in range(5)], spokes=3)
    assert told.text == (
        "WRN 2 of 5 spokes are in no image: the scan or a plane ended before their frames were complete "
        "(frames.partial = drop)"
    )
    for values in ({"spokes": 3, "partial": "emit"}, {"spokes": 5}, {"window": 3, "stride": 1}):
        assert not [item for item in run([spoke(i) for i in range(5)], **values) if isinstance(item, Text)]


def header(x):
    made = ismrmrd.AcquisitionHeader()
    made.position[0] = x
    made.slice_dir[2] = 1.0
    return made


def test_a_new_plane_begins_a_new_frame(caplog):
    items = [spoke(i, header=header(0.0 if i < 5 else 7.0)) for i in range(8)]
    with caplog.at_level(logging.INFO):
        assert indices(frames(items, spokes=3)) == [[0, 1, 2], [5, 6, 7]]
        assert "plane of slice 0 changes at readout 5" in caplog.text
        assert indices(frames(items, window=3, stride=1)) == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [5, 6, 7]]
        assert indices(frames(items, window=3, stride=2)) == [[0, 1, 2], [2, 3, 4], [5, 6, 7]]
        assert indices(frames(items, window=4, stride=2)) == [[0, 1, 2, 3]]
    assert "1 spokes after the last window are in no other frame" in caplog.text


def test_a_plane_that_is_rounded_otherwise_is_the_same():
    items = [spoke(i, header=header(1e-4 * i)) for i in range(6)]
    assert indices(frames(items, spokes=3)) == [[0, 1, 2], [3, 4, 5]]
    items = [spoke(i, header=header(float("nan") if i == 4 else 0.0)) for i in range(9)]
    assert indices(frames(items, spokes=3)) == [[0, 1, 2], [5, 6, 7]]


@pytest.mark.parametrize("by", ["flags", "index"])
def test_what_a_new_plane_leaves_of_a_frame_is_partial(by, caplog):
    """And no measure of whole frames."""
    items = [
        spoke(
            i,
            header=header(0.0 if i < 6 else 7.0),
            **({"last": i % 4 == 3} if by == "flags" else {"repetition": i // 4}),
        )
        for i in range(16)
    ]
    scan = dataclasses.replace(SCAN, spokes_per_frame=4)
    assert indices(frames(items, scan, by=by)) == [[0, 1, 2, 3], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert caplog.text.count("partial frame of 2 of 4 spokes: dropped") == 2


def part(set_=0, phase=0):
    made = ismrmrd.AcquisitionHeader()
    made.idx.set, made.idx.phase = set_, phase
    return made


@pytest.mark.parametrize("field", ["set_", "phase"])
@pytest.mark.parametrize("values", [{}, {"by": "index"}, {"spokes": 8}, {"window": 8}, {"by": "flags"}])
def test_sets_and_phases_that_take_turns_are_no_image(field, values):
    scan = dataclasses.replace(SCAN, spokes_per_frame=8)
    items = [spoke(i, header=part(**{field: i % 2})) for i in range(16)]
    with pytest.raises(SpokeError, match=r"readout 2 goes from set \d, phase \d to set 0, phase 0 again.*idx\.set"):
        run(items, scan, **values)


@pytest.mark.parametrize("scan", [SCAN, dataclasses.replace(SCAN, spokes_per_frame=4)])
@pytest.mark.parametrize("field", ["set_", "phase"])
def test_sets_and_phases_that_follow_each_other_are_frames_and_said_once(field, scan, caplog):
    items = [spoke(i, header=part(**{field: i // 4 % 2})) for i in range(16)]
    assert indices(frames(items, scan)) == [list(range(i, i + 4)) for i in range(0, 16, 4)]
    assert caplog.text.count("follow each other in one series") == 1


def test_a_set_that_lost_spokes_does_not_shift_the_frames_after_it(caplog):
    scan = dataclasses.replace(SCAN, spokes_per_frame=4)
    lost = [spoke(i, header=part(i // 4)) for i in range(16) if i not in (1, 4, 5, 6)]
    assert indices(frames(lost, scan)) == [[0, 2, 3], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert "frame 0 has 3 spokes where 4 were expected" in caplog.text
    assert "partial frame of 1 of 3 spokes: dropped" in caplog.text


def test_a_stride_needs_a_window():
    with pytest.raises(SettingsError, match=r"frames\.stride is taken with frames\.window only"):
        Settings.parse("frames", {"spokes": "8", "stride": "2"})


@pytest.mark.parametrize("values", [{"spokes": 6}, {"window": 6}, {"window": 6, "stride": 3}])
def test_counts_and_windows_that_are_asked_for_go_across_sets(values, caplog):
    """Some count frames in ``set``."""
    items = [spoke(i, header=part(i // 4)) for i in range(24)]
    assert indices(frames(items, **values)) == indices(frames([spoke(i) for i in range(24)], **values))
    assert caplog.text.count("goes from set 0, phase 0 to set 1, phase 0") == 1


def test_calibration_goes_into_the_meta():
    items = [spoke(i, calibration={"readouts_missing": 3}) for i in range(2)]
    assert frames(items, spokes=2)[0].meta["readouts_missing"] == 3


def test_without_stamps_there_is_no_footprint():
    (frame,) = frames([spoke(i, time_s=math.nan) for i in range(2)], spokes=2)
    assert all(math.isnan(value) for value in frame.footprint)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"by": "count"}, r"frames\.spokes"), ({"by": "window"}, r"frames\.window")],
)
def test_rules_that_lack_a_number(values, words):
    with pytest.raises(SettingsError, match=words):
        run([], **values)


class TestStacksOfStars:
    N = 6
    SPACE3 = EncodingSpace(matrix=(8, 8, 6), fov_m=(0.2, 0.2, 0.06))
    RECON3 = EncodingSpace(matrix=(8, 8, 4), fov_m=(0.2, 0.2, 0.04))
    SCAN3 = ScanHeader(encoded=SPACE3, recon=RECON3, trajectory="radial", n_partitions=6, spokes_per_frame=3)

    @pytest.fixture
    def volume(self):
        rng = np.random.default_rng(3)
        shape = (self.N, 3, 2, 8)
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)

    def acquire(self, volume, order=None):
        """Direct sum over z of every spoke, kz inside or outside the loop over angles."""
        z = np.arange(self.N) - self.N // 2
        kernel = np.exp(-2j * np.pi * np.outer(z, z) / self.N) / np.sqrt(self.N)
        data = np.einsum("pz,zsci->psci", kernel, volume).astype(np.complex64)
        pairs = order or [(p, s) for p in range(self.N) for s in range(3)]
        return [
            spoke(i, data=data[p, s], partition=p, angle_rad=0.4 * s, last=s == 2) for i, (p, s) in enumerate(pairs)
        ]

    @pytest.mark.parametrize("angles_outside", [True, False])
    def test_planes_leave_after_the_slab(self, volume, angles_outside):
        order = [(p, s) for s in range(3) for p in range(6)] if angles_outside else None
        out = run(self.acquire(volume, order), self.SCAN3)
        found = [item for item in out if isinstance(item, Frame)]
        assert [type(item) for item in out] == [Spoke, Spoke, Spoke, Frame] * 4
        assert [frame.slice for frame in found] == [0, 1, 2, 3]
        assert {frame.number for frame in found} == {0}
        for plane, frame in enumerate(found):
            np.testing.assert_allclose(frame.data(), volume[plane + 1].transpose(1, 0, 2), atol=1e-5)
            assert frame.spokes == tuple(out[4 * plane : 4 * plane + 3])
            np.testing.assert_allclose(frame.angles(), [0.0, 0.4, 0.8])
            assert frame.footprint == (10.0, 18.5, 27.0)
            assert frame.received_s == 117.0

    @pytest.mark.parametrize("values", [{}, {"by": "flags"}])
    def test_a_flag_of_each_partition_ends_no_slab(self, volume, values):
        """Where nobody says how many spokes a partition has."""
        scan = dataclasses.replace(self.SCAN3, spokes_per_frame=None)
        once = self.acquire(volume)
        twice = [dataclasses.replace(one, index=one.index + 18) for one in once]
        found = frames([*once, *twice], scan, **values)
        assert [(frame.slice, frame.number) for frame in found] == [(s, n) for n in range(2) for s in range(4)]
        np.testing.assert_allclose(found[0].data(), volume[1].transpose(1, 0, 2), atol=1e-5)

    def test_a_flag_of_the_slab_ends_it_whatever_partitions_it_has(self, volume):
        order = [(p, s) for s in range(3) for p in range(1, 5)]
        items = [dataclasses.replace(one, last=one.index == 11) for one in self.acquire(volume, order)]
        again = [dataclasses.replace(one, index=one.index + 12) for one in items]
        scan = dataclasses.replace(self.SCAN3, spokes_per_frame=None)
        assert len(frames([*items, *again], scan, by="flags")) == 8

    def test_a_second_slab_and_the_next_number(self, volume):
        items = self.acquire(volume)
        again = [dataclasses.replace(one, index=one.index + 18) for one in items]
        other = [dataclasses.replace(one, slice=1) for one in items]
        found = frames([*items, *again, *other], self.SCAN3)
        assert [(frame.slice, frame.number) for frame in found] == [
            *[(s, 0) for s in range(4)],
            *[(s, 1) for s in range(4)],
            *[(s, 0) for s in range(4, 8)],
        ]

    def test_partial_fourier_counts_as_zero(self, volume, caplog):
        z = np.arange(self.N) - self.N // 2
        flat = np.broadcast_to(volume[:1], volume.shape)
        kernel = np.exp(-2j * np.pi * np.outer(z, z) / self.N) / np.sqrt(self.N)
        seen = [(p, s) for p in range(1, 6) for s in range(3)]
        with caplog.at_level(logging.INFO):
            found = frames(self.acquire(flat, seen), self.SCAN3, partitions=5)
        kspace = np.einsum("pz,zsci->psci", kernel, flat)
        kspace[0] = 0
        # With five of six partitions the SD of the noise stays 1.
        expected = np.einsum("zp,psci->zsci", kernel.conj().T, kspace) * np.sqrt(6 / 5)
        np.testing.assert_allclose(found[0].data(), expected[1].transpose(1, 0, 2), atol=1e-5)
        assert "3 of 18 spokes of the stack were not acquired" in caplog.text

    @pytest.mark.parametrize(("stated", "sd"), [(0, math.sqrt(4 / 6)), (4, 1.0), (2, 1.0)])
    def test_noise_keeps_its_sd_where_the_scan_says_how_many_partitions_it_acquires(self, stated, sd):
        rng = np.random.default_rng(5)
        noise = rng.standard_normal((self.N, 3, 2, 400, 2)).view(np.complex128)[..., 0].astype(np.complex64)
        items = [
            spoke(3 * p + s, data=noise[p, s], partition=p, angle_rad=0.4 * s) for p in range(2, 6) for s in range(3)
        ]
        found = frames(items, self.SCAN3, partitions=stated, by="flags")
        data = np.stack([frame.data() for frame in found])
        assert data.real.std() == pytest.approx(sd, rel=0.02)

    def test_partitions_that_are_acquired_make_a_frame(self, volume, caplog):
        scan = dataclasses.replace(self.SCAN3, acquired_partitions=4)
        seen = [(p, s) for p in range(2, 6) for s in range(3)]
        once = self.acquire(volume, seen)
        twice = [dataclasses.replace(one, index=one.index + 12) for one in once]
        assert [(frame.slice, frame.number) for frame in frames([*once, *twice], scan)] == [
            (plane, number) for number in range(2) for plane in range(4)
        ]
        assert not caplog.text
        # The header claims all partitions, and the repetition counter tells better.
        twice = [dataclasses.replace(one, repetition=1) for one in twice]
        assert len(frames([*once, *twice], self.SCAN3)) == 8
        assert "frame 0 has 12 spokes where 18 were expected" in caplog.text

    def test_planes_are_not_interpolated(self, volume):
        fine = EncodingSpace(matrix=(8, 8, 12), fov_m=(0.2, 0.2, 0.06))
        found = frames(self.acquire(volume), dataclasses.replace(self.SCAN3, recon=fine))
        assert [frame.slice for frame in found] == list(range(6))
        for plane, frame in enumerate(found):
            np.testing.assert_allclose(frame.data(), volume[plane].transpose(1, 0, 2), atol=1e-5)

    def test_planes_that_the_header_gives_two_distances_are_warned_of(self, caplog):
        run([], self.SCAN3)
        assert not caplog.text
        thick = EncodingSpace(matrix=(8, 8, 4), fov_m=(0.2, 0.2, 0.06))
        run([], dataclasses.replace(self.SCAN3, recon=thick))
        assert "planes are 15 mm apart by the header's reconSpace and 10 mm by its encodedSpace" in caplog.text

    def test_a_lost_spoke_of_a_partition_is_zero(self, volume):
        seen = [(p, s) for p in range(6) for s in range(3) if (p, s) != (2, 0)]
        found = frames(self.acquire(volume, seen), self.SCAN3, partial="emit")
        assert len(found) == 4
        assert not found[0].complete
        np.testing.assert_allclose(found[0].data()[:, 1:], volume[1].transpose(1, 0, 2)[:, 1:], atol=1e-5)

    def test_what_is_no_stack_of_stars(self, volume):
        items = self.acquire(volume)
        turned = [dataclasses.replace(one, angle_rad=one.angle_rad + 0.1 * one.partition) for one in items]
        with pytest.raises(SpokeError, match="rotated partitions"):
            frames(turned, self.SCAN3)
        outside = [dataclasses.replace(items[0], partition=6), *items[1:]]
        with pytest.raises(SpokeError, match=r"has partition 6: .* 0 to 5"):
            frames(outside, self.SCAN3)
        with pytest.raises(SettingsError, match="sliding window over a stack of 6"):
            frames(items, self.SCAN3, window=3)


@pytest.mark.data
@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, [30] * 7), ({"by": "count", "spokes": 210}, [210]), ({"by": "flags"}, [30] * 7), ({"by": "index"}, [30] * 7)],
)
def test_the_real_scan(shared_data, values, expected):
    path = shared_data / "radial_cardiac_perfusion_goldenangle" / "radial_perfusion_7x30spokes_ismrmrd.h5"
    with MrdFile(path) as file:
        scan = scan_header(file.header_xml)
        spokes = list(spokes_stage.stage(file.readouts(), scan, spokes_stage.Settings()))
    found = frames(spokes, scan, **values)
    assert [frame.n_spokes for frame in found] == expected
    assert all(frame.complete for frame in found)


@pytest.mark.data
def test_the_tiny_scan(shared_data):
    with MrdFile(shared_data / "wire" / "tiny_radial.h5") as file:
        scan = scan_header(file.header_xml)
        items = list(spokes_stage.stage(file.items(), scan, spokes_stage.Settings()))
    found = frames(items, scan)
    assert [frame.n_spokes for frame in found] == [8, 8]
    assert [frame.number for frame in found] == [0, 1]
    assert found[0].footprint == pytest.approx((100.1, 100.1 + 0.0875, 100.1 + 0.175))


def test_memory_is_bounded_before_it_is_taken(monkeypatch):
    wide = dataclasses.replace(SCAN, recon=EncodingSpace(matrix=(4096, 4096, 1), fov_m=(0.3, 0.3, 0.01)))
    data = np.broadcast_to(np.zeros(1, np.complex64), (100, 8))
    with pytest.raises(
        SpokeError, match=r"images of 100 coils with 1 x 4096 x 4096 pixels .* take 40265318400 bytes, the bound"
    ):
        run([spoke(data=data)], wide, spokes=2)
    # 128 bytes a spoke: ten spokes may wait, whatever has left before. An image of one pixel is none of the matter.
    monkeypatch.setattr("sinotherm.frames.assembly.MAX_BYTES", 1280)
    tiny = dataclasses.replace(SCAN, recon=EncodingSpace(matrix=(1, 1, 1), fov_m=(0.2, 0.2, 0.01)))
    many = [spoke(n) for n in range(40)]
    assert len(frames(many, tiny, spokes=10)) == 4
    assert len(frames(many, tiny, by="window", window=9, stride=1)) == 32
    ended = [spoke(n, slice=n % 2, last=n % 8 == 7, last_of_all=n % 8 == 7) for n in range(40)]
    assert len(frames(ended, tiny, by="flags")) == 10
    with pytest.raises(SpokeError, match=r"11 spokes of 128 bytes wait .* set frames.by and frames.spokes"):
        run(many, tiny, spokes=40)


@pytest.mark.parametrize(
    ("chain", "key", "n"),
    # 64 pixels of 2 coils: 1 KiB of sums for each slice and echo, 2 of maps for each slice; 4 KiB more for each of them
    # where they are measured.
    [({}, "slice", 6), ({}, "echo", 18), ({"thermometry": {}}, "slice", 1), ({"thermometry": {}}, "echo", 2)],
)
def test_all_slices_and_echoes_together_are_bounded(monkeypatch, chain, key, n):
    """A counter of something else in idx.slice takes an image for every readout."""
    monkeypatch.setattr("sinotherm.frames.assembly.MAX_BYTES", 20 << 10)
    scan = dataclasses.replace(SCAN, chain=chain)
    assert len(frames([spoke(i, **{key: i}) for i in range(n)], scan, spokes=1)) == n
    with pytest.raises(SpokeError, match=rf"{n + 1} with all echoes, take .* write 0 into idx\.slice and idx"):
        run([spoke(i, **{key: i}) for i in range(n + 1)], scan, spokes=1)


def test_planes_of_a_slab_count_as_slices_do(monkeypatch):
    """Each has a running image of its own."""
    monkeypatch.setattr("sinotherm.frames.assembly.MAX_BYTES", 20 << 10)
    slab = EncodingSpace(matrix=(8, 8, 8), fov_m=(0.2, 0.2, 0.08))
    scan = dataclasses.replace(SCAN, encoded=slab, recon=slab, n_partitions=8, spokes_per_frame=1)
    with pytest.raises(
        SpokeError, match=r"2 coils with 8 x 8 x 8 pixels for 1 slices, 1 with all echoes, take 24576 bytes"
    ):
        run([spoke()], scan)


def test_more_slices_than_the_header_states_are_refused():
    scan = dataclasses.replace(SCAN, n_slices=3)
    # Counted from 2 on, as the limits may say.
    assert len(frames([spoke(i, slice=2 + i % 3) for i in range(6)], scan, spokes=2)) == 3
    with pytest.raises(
        SpokeError, match=r"readout 3 has idx\.slice = 7, and is of slice number 4 of a scan that has 3"
    ):
        run([spoke(i, slice=(0, 1, 2, 7)[i]) for i in range(4)], scan, spokes=2)
