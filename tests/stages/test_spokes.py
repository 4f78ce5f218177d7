import dataclasses
import logging
import math

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinotherm.core.geometry import GOLDEN_ANGLE, TINY_GOLDEN_ORDER, spoke_angles, tiny_golden_angle
from sinotherm.core.scan import EncodingSpace, ScanHeader
from sinotherm.errors import HeaderError, SpokeError
from sinotherm.frames.header import scan_header
from sinotherm.frames.spokes import SpokeReader, trajectory_scale
from sinotherm.frames.whitening import WhitenedReadout
from sinotherm.stages.spokes import Settings, stage
from sinotherm.wire.file import MrdFile
from sinotherm.wire.messages import Readout

ENCODED = EncodingSpace(matrix=(64, 64, 1), fov_m=(0.6, 0.6, 0.005))
RECON = EncodingSpace(matrix=(32, 32, 1), fov_m=(0.3, 0.3, 0.005))
SCAN = ScanHeader(encoded=ENCODED, recon=RECON, trajectory="radial", spokes_per_frame=8)
RNG = np.random.default_rng(5)


def positions(angle, n=64, centre=32.0, spacing=1 / 64, shift=(0.0, 0.0)):
    kappa = (np.arange(n) - centre) * spacing
    return np.stack((kappa * np.cos(angle) + shift[0], kappa * np.sin(angle) + shift[1]), axis=1).astype(np.float32)


def readout(trajectory=None, *, data=None, flags=(), step=0, counter=0, kind=Readout, received_s=math.nan, **head):
    n = head.pop("n", 64 if trajectory is None else len(trajectory))
    if data is None:
        data = (RNG.standard_normal((2, n)) + 1j * RNG.standard_normal((2, n))).astype(np.complex64)
    acquisition = ismrmrd.Acquisition.from_array(data, trajectory)
    acquisition.scan_counter = counter
    acquisition.idx.kspace_encode_step_1 = step
    for name, value in head.items():
        if hasattr(acquisition.idx, name):
            setattr(acquisition.idx, name, value)
        else:
            setattr(acquisition, name, value)
    for flag in flags:
        acquisition.set_flag(flag)
    empty = np.zeros((data.shape[1], 0), np.float32)
    return kind(
        header=acquisition.getHead(),
        data=data,
        trajectory=empty if trajectory is None else trajectory,
        received_s=received_s,
    )


def run(items, scan=SCAN, **values):
    return list(stage(iter(items), scan, Settings(**values)))


def where(spoke):
    """Sample positions as the core defines them, (sample, 2)."""
    kappa = spoke.sampling.positions
    line = np.stack((np.cos(spoke.angle_rad) * kappa, np.sin(spoke.angle_rad) * kappa), axis=1)
    return line + spoke.shift


@given(
    angle=st.floats(-7, 7),
    centre=st.floats(31.0, 32.0),
    delay=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
@settings(max_examples=40, deadline=None)
def test_every_sample_lies_where_the_trajectory_says(angle, centre, delay):
    shift = np.array(delay) / 64
    first, second = (
        positions(0.3, centre=centre),
        positions(angle, centre=centre, shift=shift),
    )
    one, two = run([readout(first), readout(second, counter=1)])
    np.testing.assert_allclose(where(one), first, atol=1e-6)
    np.testing.assert_allclose(where(two), second, atol=1e-4)
    assert one.sampling == two.sampling
    assert one.shift == (0.0, 0.0)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("cycles", 1.0), ("radians", 2 * np.pi), ("encoded_fov", 64.0), ("recon_fov", 32.0)],
)
@pytest.mark.parametrize("stated", [True, False])
def test_units_are_detected_or_taken_as_stated(unit, factor, stated, caplog):
    trajectory = positions(0.7)
    with caplog.at_level(logging.INFO):
        (spoke,) = run([readout(trajectory * np.float32(factor))], trajectory_unit=unit if stated else "auto")
    np.testing.assert_allclose(where(spoke), trajectory, atol=1e-6)
    assert f"unit {unit} ({'as set' if stated else 'detected'})" in caplog.text
    assert spoke.calibration["spoke_angles"] == f"trajectory ({unit})"


def test_a_unit_that_does_not_fit_the_matrix_is_warned_of(caplog):
    run([readout(positions(0.7) * np.float32(32.0))], trajectory_unit="encoded_fov")
    assert "set spokes.trajectory_unit" in caplog.text


def test_other_pixels_than_encoded():
    """κ counts in pixels of the reconstructed grid, which may be finer than the encoded one."""
    scan = dataclasses.replace(SCAN, recon=EncodingSpace(matrix=(64, 64, 1), fov_m=(0.3, 0.3, 0.005)))
    _, scale = trajectory_scale("auto", 0.5, scan)
    assert scale == pytest.approx(0.5)
    (spoke,) = run([readout(positions(0.0))], scan)
    assert spoke.sampling.spacing == pytest.approx(1 / 128)
    (stated,) = run([readout(center_sample=32)], scan)
    # The measured spacing is a fit, whose last digit depends on the processor.
    assert stated.sampling.spacing == pytest.approx(spoke.sampling.spacing, rel=1e-12)
    assert dataclasses.replace(stated.sampling, spacing=spoke.sampling.spacing) == spoke.sampling


@pytest.mark.parametrize(("rows", "height"), [(16, 0.3), (32, 0.15), (32, 0.305)])
def test_pixels_that_are_not_square_are_refused(rows, height):
    scan = dataclasses.replace(SCAN, recon=EncodingSpace(matrix=(32, rows, 1), fov_m=(0.3, height, 0.005)))
    with pytest.raises(HeaderError, match=rf"9\.375 x .* \(32 x {rows} over 300 x .* by 1%; correct .* reconSpace"):
        run([readout(positions(0.0))], scan)


def test_images_need_not_be_square():
    scan = dataclasses.replace(SCAN, recon=EncodingSpace(matrix=(32, 16, 1), fov_m=(0.3, 0.151, 0.005)))
    assert run([readout(positions(0.0))], scan)[0].sampling.spacing == pytest.approx(1 / 64)


def test_samples_beyond_half_a_cycle_are_left_out(caplog):
    scan = dataclasses.replace(SCAN, recon=EncodingSpace(matrix=(16, 16, 1), fov_m=(0.3, 0.3, 0.005)))
    item = readout(positions(0.0))
    with caplog.at_level(logging.INFO):
        (spoke,) = run([item], scan)
    assert spoke.sampling.n_readout == 33
    assert spoke.sampling.spacing == pytest.approx(1 / 32)
    np.testing.assert_array_equal(spoke.data, item.data[:, 16:49])
    assert "samples 16 to 48 of 0 to 63 are used" in caplog.text


@pytest.mark.parametrize("with_trajectory", [True, False])
@pytest.mark.parametrize(
    ("kept", "centre"),
    [(slice(24, 64), 8), (slice(0, 40), 32)],
)
def test_a_partial_echo_is_filled_to_the_full_spoke(with_trajectory, kept, centre, caplog):
    trajectory = positions(1.1)
    item = readout(trajectory[kept] if with_trajectory else None, n=40, center_sample=centre)
    with caplog.at_level(logging.INFO):
        (spoke,) = run([item], angles="auto")
    assert spoke.sampling.n_readout == 64
    assert spoke.sampling.centre == pytest.approx(32.0, abs=1e-4)
    np.testing.assert_array_equal(spoke.data[:, kept], item.data)
    assert np.count_nonzero(spoke.data) == item.data.size
    assert "filled with zeros to 64" in caplog.text


@pytest.mark.parametrize("with_trajectory", [True, False])
def test_discarded_samples_are_left_out(with_trajectory):
    trajectory = np.concatenate((np.full((4, 2), 0.9), positions(0.4), np.full((3, 2), 0.9))).astype(np.float32)
    item = readout(trajectory if with_trajectory else None, n=71, discard_pre=4, discard_post=3, center_sample=36)
    (spoke,) = run([item])
    np.testing.assert_array_equal(spoke.data, item.data[:, 4:68])
    assert spoke.sampling.spacing == pytest.approx(1 / 64)
    assert spoke.sampling.centre == pytest.approx(32.0, abs=1e-4)
    assert spoke.data.flags.c_contiguous


@pytest.mark.parametrize(
    ("n", "pre", "post", "stated", "centre", "whole"),
    [
        # The samples that warm the receiver up stand beside the encoded ones.
        (72, 8, 0, 40, 40, 64),
        (72, 8, 0, 41, 41, 64),
        (72, 8, 0, 0, 40, 64),
        (72, 4, 4, 0, 36, 64),
        # Those before an asymmetric echo are a part of them.
        (64, 16, 0, 32, 32, 64),
        (64, 16, 0, 0, 32, 64),
        # The same where the header leaves the oversampling out.
        (136, 8, 0, 72, 72, 128),
        (136, 8, 0, 0, 72, 128),
        (128, 32, 0, 64, 64, 128),
        (128, 0, 32, 64, 64, 128),
    ],
)
def test_discarded_samples_are_no_oversampling(n, pre, post, stated, centre, whole):
    item = readout(n=n, discard_pre=pre, discard_post=post, center_sample=stated)
    (spoke,) = run([item])
    assert spoke.sampling.spacing == pytest.approx(1 / whole)
    assert spoke.sampling.n_readout == pytest.approx(whole, abs=1)
    assert spoke.data[0, round(spoke.sampling.centre)] == item.data[0, centre]


def test_readouts_of_other_lengths_are_placed_by_their_centre():
    whole, part = positions(0.2), positions(0.9)
    long = positions(0.9, n=80, centre=40.0)
    first, second, third = run([readout(whole), readout(part[10:], counter=1), readout(long, counter=2, data=None)])
    assert first.sampling == second.sampling == third.sampling
    np.testing.assert_array_equal(second.data[:, :10], 0)
    np.testing.assert_allclose(where(second)[10:], part[10:], atol=1e-6)
    assert third.data.shape == (2, 64)
    np.testing.assert_allclose(where(third), part, atol=1e-6)


def test_an_empty_centre_means_the_middle_and_oversampling_is_found(caplog):
    with caplog.at_level(logging.INFO):
        (spoke,) = run([readout(n=128)])
    assert (spoke.sampling.n_readout, spoke.sampling.centre) == (128, 64.0)
    assert spoke.sampling.spacing == pytest.approx(1 / 128)
    assert "readout oversampling" in caplog.text


def test_oversampling_that_was_removed_before_is_found(caplog):
    """The header still speaks of the readout as it was acquired, over twice the field of view."""
    (spoke,) = run([readout(n=32, center_sample=16)])
    assert (spoke.sampling.n_readout, spoke.sampling.centre) == (32, 16.0)
    assert spoke.sampling.spacing == pytest.approx(1 / 32)
    assert "taken for removed before" in caplog.text
    # A partial echo of as many samples is none.
    (spoke,) = run([readout(n=36, center_sample=4)])
    assert spoke.sampling.spacing == pytest.approx(1 / 64)


def test_trajectories_that_begin_late_are_refused():
    with pytest.raises(SpokeError, match=r"readout 1 has a trajectory, and the first spoke had none.*uniform180"):
        run([readout(), readout(positions(0.3), counter=1, step=1)])
    given = run([readout(), readout(positions(0.3), counter=1, step=1)], angles="uniform180")
    assert given[1].angle_rad == pytest.approx(math.pi / 8)


def test_the_third_dimension_is_a_weight_or_a_constant(caplog):
    trajectory = positions(0.6)
    weight = np.abs(np.arange(64) - 32.0)[:, None].astype(np.float32)
    (spoke,) = run([readout(np.hstack((trajectory, weight)))])
    np.testing.assert_allclose(where(spoke), trajectory, atol=1e-6)


def test_the_trajectory_outvotes_center_sample(caplog):
    with caplog.at_level(logging.INFO):
        (spoke,) = run([readout(positions(0.1), center_sample=20)])
    assert spoke.sampling.centre == pytest.approx(32.0, abs=1e-4)
    assert "center_sample is 20, the trajectory's centre 32.00 counts" in caplog.text


class TestSchedules:
    def test_header_says_golden(self):
        scan = dataclasses.replace(SCAN, trajectory="goldenangle")
        items = [readout(counter=i, step=i % 4, slice=i % 2) for i in range(6)]
        spokes = run(items, scan)
        expected = np.repeat(np.arange(3) * GOLDEN_ANGLE, 2) % (2 * np.pi)
        np.testing.assert_allclose([spoke.angle_rad for spoke in spokes], expected)

    def test_a_lost_readout_takes_its_angle_with_it(self):
        items = [readout(counter=i) for i in (3, 4, 7, 9)]
        first, second, notice, *others = run(items, angles="golden")
        assert notice.text.startswith("WRN 2 readouts are missing before readout 7, and no counter proves how many")
        spokes = [first, second, *others]
        expected = np.array([0, 1, 4, 6]) * GOLDEN_ANGLE % (2 * np.pi)
        np.testing.assert_allclose([spoke.angle_rad for spoke in spokes], expected)

    def test_the_encoding_counter_tells_whose_a_lost_readout_was(self):
        navigators = [ismrmrd.ACQ_IS_NAVIGATION_DATA]
        items = [readout(counter=3 * i + s, step=i, slice=s) for i in range(8) for s in range(2)]
        items += [readout(counter=3 * i + 2, flags=navigators) for i in range(8)]
        items.sort(key=lambda item: item.header.scan_counter)
        # A spoke of slice 1, and a navigator.
        del items[13], items[11], items[4]
        spokes = run(items, angles="golden")
        for number, places in enumerate(([0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 3, 5, 6, 7])):
            expected = np.array(places) * GOLDEN_ANGLE % (2 * np.pi)
            found = [spoke.angle_rad for spoke in spokes if spoke.slice == number]
            np.testing.assert_allclose(found, expected)

    def test_a_gap_before_the_first_spoke_does_not_count(self):
        noise = readout(flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        spokes = run([noise, readout(counter=9), readout(counter=10)], angles="golden")
        np.testing.assert_allclose([spoke.angle_rad for spoke in spokes], [0.0, GOLDEN_ANGLE])

    def test_what_was_received_where_no_spoke_is_missing(self):
        items = [readout(counter=i, slice=i % 2) for i in (0, 1, 2, 9, 10, 11)]
        with pytest.raises(SpokeError, match=r"readout 9: 6 readouts are missing.*counter = received"):
            run(items, angles="golden")
        spokes = run(items, angles="golden", counter="received")
        expected = np.repeat(np.arange(3), 2) * GOLDEN_ANGLE % (2 * np.pi)
        np.testing.assert_allclose(sorted(spoke.angle_rad for spoke in spokes), sorted(expected))

    def test_by_scan_counter(self):
        spokes = run([readout(counter=i) for i in (5, 6, 9)], angles="tiny_golden", counter="scan", tiny_golden_order=3)
        np.testing.assert_allclose([s.angle_rad for s in spokes], np.array([0, 1, 4]) * tiny_golden_angle(3))

    @pytest.mark.parametrize("kind", ["radial", "goldenangle"])
    @pytest.mark.parametrize("schedule", ["uniform180", "uniform360", "golden", "tiny_golden", "raga"])
    def test_the_header_names_the_schedule(self, schedule, kind, caplog):
        named = {"angle_schedule": schedule, "tiny_golden_order": 5.0}
        scan = dataclasses.replace(SCAN, trajectory=kind, user_parameters=named)
        spokes = run([readout(counter=i, step=i % 8) for i in range(16)], scan)
        expected = spoke_angles(schedule, 16, per_frame=8, order=5)
        np.testing.assert_allclose(np.exp(1j * np.array([s.angle_rad for s in spokes])), np.exp(1j * expected))
        assert spokes[0].calibration["spoke_angles"].startswith(f"schedule {schedule}")
        assert "assumed" not in caplog.text + spokes[0].calibration["spoke_angles"]

    def test_what_the_header_leaves_open_is_said(self, caplog):
        (spoke,) = run([readout(step=1)])
        assert spoke.calibration["spoke_angles"] == "schedule uniform180 (assumed), counter encoding"
        assert "(uniform180), are assumed; set spokes.angles, or name the schedule" in caplog.text
        caplog.clear()
        run([readout(step=1)], angles="uniform180")
        run([readout(positions(0.0))])
        assert "assumed" not in caplog.text

    def test_a_schedule_that_is_not_known_is_not_guessed(self):
        named = {"angle_schedule": "spiral_phyllotaxis"}
        scan = dataclasses.replace(SCAN, user_parameters=named)
        with pytest.raises(
            SpokeError, match=r"angle_schedule is 'spiral_phyllotaxis': known are .* set spokes\.angles"
        ):
            run([readout()], scan)
        assert run([readout(positions(0.5))], scan)[0].angle_rad == pytest.approx(0.5)
        golden = run([readout(), readout(counter=1)], dataclasses.replace(scan, trajectory="goldenangle"))
        assert golden[1].angle_rad == pytest.approx(GOLDEN_ANGLE)

    def test_order_of_the_tiny_golden_angle(self, caplog):
        def second(order=0, **parameters):
            scan = dataclasses.replace(SCAN, user_parameters=parameters)
            return run([readout(), readout(counter=1)], scan, angles="tiny_golden", tiny_golden_order=order)[1]

        assert second(3, tiny_golden_order=5.0).angle_rad == pytest.approx(tiny_golden_angle(3))
        assert second(tiny_golden_order=5.0).calibration["spoke_angles"].startswith("schedule tiny_golden of order 5,")
        assert not caplog.text
        assert second().angle_rad == pytest.approx(tiny_golden_angle(TINY_GOLDEN_ORDER))
        assert "7 is assumed; set spokes.tiny_golden_order" in caplog.text
        for wrong in (2.5, 0.0, 101.0, "seven"):
            with pytest.raises(SpokeError, match=f"tiny_golden_order is '{wrong}'"):
                second(tiny_golden_order=wrong)

    @pytest.mark.parametrize("schedule", ["auto", "uniform180", "uniform360", "raga"])
    def test_repeating_schedules_go_by_the_encoding_counter(self, schedule):
        spokes = run([readout(counter=i, step=i % 8) for i in range(16)], angles=schedule)
        kind = "uniform180" if schedule == "auto" else schedule
        np.testing.assert_allclose([s.angle_rad for s in spokes], np.tile(spoke_angles(kind, 8), 2))

    def test_a_counter_that_does_not_count_is_named(self):
        with pytest.raises(SpokeError, match=r"readouts 0 and 1 .*kspace_encode_step_1 = 0.*spokes\.counter"):
            run([readout(counter=0), readout(counter=1)])
        again = run([readout(counter=0), readout(counter=1, average=1), readout(counter=2, step=1)])
        assert [spoke.angle_rad for spoke in again] == pytest.approx([0.0, 0.0, np.pi / 8])

    def test_without_limits_the_spokes_of_a_frame_must_be_given(self):
        scan = dataclasses.replace(SCAN, spokes_per_frame=None)
        with pytest.raises(SpokeError, match=r"uniform180 need the spokes of a frame.*spokes\.per_frame"):
            run([readout()], scan)
        assert run([readout(step=1)], scan, per_frame=4)[0].angle_rad == pytest.approx(np.pi / 4)

    def test_angles_in_user_float(self):
        def item(angle):
            made = readout()
            made.header.user_float[2] = angle
            return made

        assert run([item(0.5)], angles="user_float", user_float=2)[0].angle_rad == pytest.approx(0.5)
        (spoke,) = run([item(90.0)], angles="user_float", user_float=2, user_float_degrees=True)
        assert spoke.angle_rad == pytest.approx(np.pi / 2)
        assert spoke.calibration["spoke_angles"] == "user_float[2]"
        with pytest.raises(SpokeError, match=r"user_float\[2\] is nan"):
            run([item(math.nan)], angles="user_float", user_float=2)

    def test_a_reversed_readout_runs_the_other_way(self):
        (spoke,) = run([readout(flags=[ismrmrd.ACQ_IS_REVERSE])], angles="golden")
        assert spoke.angle_rad == pytest.approx(np.pi)

    def test_no_way_to_an_angle(self):
        for kind in ("cartesian", ""):
            scan = dataclasses.replace(SCAN, trajectory=kind)
            with pytest.raises(SpokeError, match=r"no trajectory and the header says .*spokes\.angles"):
                run([readout()], scan)
        with pytest.raises(SpokeError, match="readout 0 has no trajectory"):
            run([readout()], angles="trajectory")


def test_what_is_no_image_is_kept_out_and_counted(caplog):
    flags = [
        ismrmrd.ACQ_IS_NOISE_MEASUREMENT,
        ismrmrd.ACQ_IS_PHASECORR_DATA,
        ismrmrd.ACQ_IS_NAVIGATION_DATA,
        ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
        ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
        ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    ]
    items = [readout(flags=[flag], counter=i) for i, flag in enumerate(flags)]
    items += [readout(counter=6, encoding_space_ref=1), "text", readout(positions(0.0), counter=7)]
    with caplog.at_level(logging.INFO):
        notice, text, spoke = run(items)
    assert notice.text.startswith("WRN readout 6 belongs to encoding space 1: it and all like it are in no image")
    assert text == "text"
    assert spoke.index == 7
    assert "1 spokes; kept out of frames: 1 noise, 1 phase correction, 1 navigator, 1 RT feedback" in caplog.text
    assert "1 dummy, 1 encoding space 1; readouts missing: 0, repeated: 0" in caplog.text


def test_a_scan_of_other_encodings_alone_is_no_success():
    noise = readout(flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    elsewhere = [readout(positions(0.0), counter=1 + i, encoding_space_ref=1) for i in range(3)]
    with pytest.raises(SpokeError, match=r"none of 3 readouts .* of encoding space 0, .* 1 noise, 3 encoding space 1;"):
        run([noise, *elsewhere])
    # A noise measurement by itself is a scan that went well.
    assert run([noise]) == []


@pytest.mark.parametrize("flag", ["SLICE", "REPETITION", "MEASUREMENT"])
def test_flags_that_end_frames(flag):
    (spoke,) = run([readout(positions(0.0), flags=[getattr(ismrmrd, f"ACQ_LAST_IN_{flag}")])])
    assert (spoke.last, spoke.last_of_all) == (True, flag != "SLICE")


def test_counters_flags_and_stamps_travel():
    item = readout(
        positions(0.0),
        flags=[ismrmrd.ACQ_LAST_IN_REPETITION],
        counter=40,
        slice=3,
        contrast=1,
        repetition=2,
        kspace_encode_step_2=5,
        acquisition_time_stamp=400,
        received_s=12.5,
        kind=WhitenedReadout,
    )
    item.waiting = 3
    (spoke,) = run([item], dataclasses.replace(SCAN, n_partitions=8))
    assert (spoke.slice, spoke.echo, spoke.repetition, spoke.partition, spoke.index) == (3, 1, 2, 5, 40)
    assert spoke.last
    assert spoke.noise_known
    assert spoke.received_s == 12.5
    assert spoke.waiting == 3
    assert spoke.time_s == pytest.approx(1.0)
    assert spoke.header is item.header
    (other,) = run([readout(positions(0.0))])
    assert not other.last
    assert not other.noise_known
    assert math.isnan(other.time_s)


def test_partitions_are_counted_from_their_place_in_the_slab():
    slab = dataclasses.replace(SCAN, n_partitions=8, acquired_partitions=6, partition_offset=2)
    items = [readout(positions(0.0), counter=i, kspace_encode_step_2=i) for i in range(6)]
    assert [spoke.partition for spoke in run(items, slab)] == [2, 3, 4, 5, 6, 7]
    with pytest.raises(SpokeError, match=r"readout 9 has kspace_encode_step_2 = 6: by the header .* between 0 and 5"):
        run([readout(positions(0.0), counter=9, kspace_encode_step_2=6)], slab)


def test_partitions_in_a_scan_of_slices_are_refused():
    with pytest.raises(SpokeError, match=r"kspace_encode_step_2 = 1: .* between 0 and 0; correct the limits"):
        run([readout(positions(0.0)), readout(positions(0.1), counter=1, kspace_encode_step_2=1)])


def test_time_goes_on_after_midnight():
    stamps = [34_559_999, 0, 400]
    items = [readout(positions(0.0), counter=i, acquisition_time_stamp=s) for i, s in enumerate(stamps)]
    assert [spoke.time_s for spoke in run(items)] == pytest.approx([86399.9975, 86400.0, 86401.0])
    (spoke,) = run([readout(positions(0.0), acquisition_time_stamp=400)], tick=1e-3)
    assert spoke.time_s == pytest.approx(0.4)


def test_missing_and_repeated_readouts(caplog):
    items = [readout(positions(0.1 * i), counter=i) for i in (0, 1, 4, 5, 8)]
    twice = dataclasses.replace(items[1])
    late = readout(positions(0.9), counter=3)
    spokes = run([items[0], items[1], twice, *items[2:], late])
    assert [spoke.index for spoke in spokes] == [0, 1, 4, 5, 8, 3]
    assert "jumps from 1 to 4: 2 readouts are missing" in caplog.text
    assert "from 1 to 1: the readout came twice" in caplog.text
    assert spokes[0].calibration.get("readouts_missing") is None
    assert spokes[3].calibration["readouts_missing"] == 2
    assert spokes[-1].calibration["readouts_missing"] == 4
    assert spokes[-1].calibration["readouts_repeated"] == 2


def test_a_counter_that_nobody_counts_is_no_fault(caplog):
    assert len(run([readout(positions(0.1 * i)) for i in range(3)])) == 3
    assert "repeated" not in caplog.text


def test_channels(caplog):
    scan = dataclasses.replace(SCAN, n_coils=5)
    with caplog.at_level(logging.INFO):
        run([readout(positions(0.0))], scan)
    assert "header states 5 channels, the readouts have 2" in caplog.text
    three = np.ones((3, 64), np.complex64)
    with pytest.raises(SpokeError, match="readout 1 has 3 channels, the first spoke had 2"):
        run([readout(positions(0.0)), readout(positions(0.0), data=three, counter=1)])


@pytest.mark.parametrize("n_before", [0, 1])
def test_readouts_without_a_channel_are_named(n_before):
    none = readout(positions(0.0), data=np.ones((0, 64), np.complex64), counter=1)
    with pytest.raises(SpokeError, match="readout 1 has active_channels = 0, and so no data"):
        run([*[readout(positions(0.0))] * n_before, none])


def bent(trajectory):
    spiral = np.linspace(0.0, 3.0, len(trajectory))
    return np.stack((spiral * np.cos(4 * spiral), spiral * np.sin(4 * spiral)), axis=1).astype(np.float32) / 6


def with_kz(trajectory):
    return np.hstack((trajectory, np.linspace(-0.5, 0.5, 64, dtype=np.float32)[:, None]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (bent, "readout 1 is not a spoke"),
        (lambda k: np.zeros_like(k), "trajectory of zeros"),
        (lambda k: np.where(k > 0.4, np.nan, k).astype(np.float32), "not finite"),
        (lambda k: k[:, :1], "trajectory of 1 dimensions"),
        (with_kz, "3D radial"),
        (lambda k: k + np.float32([0.0, 0.2]), "readout 1 passes k = 0 at a distance of"),
    ],
)
def test_trajectories_that_are_not_radial(change, words):
    with pytest.raises(SpokeError, match=words):
        run([readout(np.ascontiguousarray(change(positions(0.3))), counter=1)])


def test_later_trajectories_are_looked_at_too():
    first = readout(positions(0.3))
    for change, words in ((lambda k: k * np.float32(0.9), "spacing"), (lambda k: np.full_like(k, np.nan), "straight")):
        with pytest.raises(SpokeError, match=words):
            run([first, readout(change(positions(0.3)), counter=1)])
    with pytest.raises(SpokeError, match="sample spacing of"):
        run([first, readout(positions(0.3, n=32, centre=16, spacing=1 / 32), counter=1)])


def test_data_that_cannot_be_used():
    data = np.ones((2, 64), np.complex64)
    data[1, 5] = np.nan
    with pytest.raises(SpokeError, match="readout 0 holds values that are not finite"):
        run([readout(positions(0.0), data=data)])
    with pytest.raises(SpokeError, match="discard_pre 60 and discard_post 10 leave 0"):
        run([readout(positions(0.0), discard_pre=60, discard_post=10)])
    with pytest.raises(SpokeError, match="centre 500"):
        run([readout(center_sample=500)])


@pytest.mark.data
def test_the_real_scan_has_half_sample_centres(shared_data):
    path = shared_data / "radial_cardiac_perfusion_goldenangle" / "radial_perfusion_7x30spokes_ismrmrd.h5"
    with MrdFile(path) as file:
        scan = scan_header(file.header_xml)
        readouts = list(file.readouts())
    spokes = run(readouts, scan)
    assert len(spokes) == 210
    assert spokes[0].sampling.n_readout == 288
    assert spokes[0].sampling.centre == pytest.approx(143.5, abs=1e-3)
    assert 1 / spokes[0].sampling.spacing == pytest.approx(287, abs=1e-2)
    for item, spoke in zip(readouts[::20], spokes[::20], strict=True):
        np.testing.assert_allclose(where(spoke), item.trajectory, atol=2e-6)
        assert spoke.data is item.data


def test_the_reader_says_what_it_settled():
    reader = SpokeReader(SCAN)
    assert reader.sampling is None
    assert reader.angle_source == "auto"
    reader.read(readout(positions(0.0)))
    assert reader.sampling.n_readout == 64
    assert reader.angle_source == "trajectory"
    assert reader.trajectory_unit == "cycles"
