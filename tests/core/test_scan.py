import dataclasses
import math

import numpy as np
import pytest

from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import EncodingSpace, Frame, NoReading, ScanHeader, Spoke

SAMPLING = RadialSampling(n_readout=4, spacing=0.25, centre=2.0)


def spoke(index, **change):
    data = np.full((2, 4), index, np.complex64)
    return Spoke(**{"data": data, "sampling": SAMPLING, "angle_rad": 0.5 * index, "index": index} | change)


def test_pixels_of_the_reconstructed_space():
    encoded = EncodingSpace(matrix=(8, 8, 1), fov_m=(0.4, 0.4, 0.005))
    recon = EncodingSpace(matrix=(4, 2, 1), fov_m=(0.2, 0.3, 0.005))
    header = ScanHeader(encoded=encoded, recon=recon, trajectory="radial")
    assert header.pixel_m == pytest.approx((0.05, 0.15))
    with pytest.raises(dataclasses.FrozenInstanceError):
        header.trajectory = "spiral"


def test_pixels_of_images_of_another_matrix():
    space = EncodingSpace(matrix=(4, 2, 1), fov_m=(0.7 / 3.0, 0.3, 0.005))
    header = ScanHeader(encoded=space, recon=space, trajectory="radial")
    assert header.pixel_of((1, 1, 2, 4), None) == header.pixel_m
    assert header.pixel_of((1, 1, 2, 4), (float(np.float32(0.7 / 3.0)), 0.3)) == header.pixel_m
    assert header.pixel_of((4, 8), None) == pytest.approx((0.7 / 24.0, 0.075))
    assert header.pixel_of((4, 8), (0.4, 0.2)) == pytest.approx((0.05, 0.05))


def test_a_changed_spoke_is_the_same_otherwise():
    before = spoke(3, time_s=1.5, header=object(), calibration={"a": 1})
    after = before.changed(shift=(0.1, 0.2), waiting=2)
    wanted = dataclasses.replace(before, shift=(0.1, 0.2), waiting=2)
    assert all(getattr(after, one.name) is getattr(wanted, one.name) for one in dataclasses.fields(Spoke)[4:])
    assert after.data is before.data
    assert (after.shift, before.shift) == ((0.1, 0.2), (0.0, 0.0))
    with pytest.raises(AttributeError, match="angle"):
        before.changed(angle=1.0)


def test_a_frame_is_its_spokes():
    spokes = tuple(spoke(i, header=f"header {i}", received_s=float(i), shift=(0.1 * i, -0.1)) for i in range(4))
    frame = Frame(spokes=spokes, number=7)
    assert frame.n_spokes == 4
    assert frame.sampling is SAMPLING
    assert frame.header == "header 2"
    assert frame.received_s == 3.0
    assert frame.data().shape == (2, 4, 4)
    assert frame.data().dtype == np.complex64
    np.testing.assert_array_equal(frame.data()[1, :, 0], [0, 1, 2, 3])
    np.testing.assert_allclose(frame.angles(), [0.0, 0.5, 1.0, 1.5])
    np.testing.assert_allclose(frame.shifts(), [[0.0, -0.1], [0.1, -0.1], [0.2, -0.1], [0.3, -0.1]])
    assert math.isnan(frame.footprint[1])


def test_bits_of_the_validity_map_are_those_of_the_contract():
    names = ["SIGNAL", "NOISE", "WRAP", "DRIFT", "MOTION", "GUARD", "NO_BASELINE"]
    assert [(bit.name, bit.value) for bit in NoReading] == [(name, 1 << i) for i, name in enumerate(names)]
