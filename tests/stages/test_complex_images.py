import math
from dataclasses import replace

import ismrmrd
import numpy as np
import pytest

from sinotherm.core.scan import EncodingSpace, FrameImage, ScanHeader
from sinotherm.errors import DataError
from sinotherm.stages import images as images_stage
from sinotherm.stages.complex_images import Settings, stage
from sinotherm.wire.messages import Readout, Text

SPACE = EncodingSpace(matrix=(6, 4, 1), fov_m=(0.3, 0.2, 0.005))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial")


def image(dtype=np.complex64, meta=None, **head):
    rng = np.random.default_rng(1)
    data = (rng.standard_normal((2, 1, 4, 6)) * 5).astype(np.float32)
    if np.dtype(dtype).kind == "c":
        data = data + 1j * rng.standard_normal((2, 1, 4, 6))
    made = ismrmrd.Image.from_array(data.astype(dtype), transpose=False)
    made.meta = meta or ismrmrd.Meta()
    for name, value in head.items():
        setattr(made, name, value)
    return made


def run(items, **values):
    return list(stage(iter(items), SCAN, Settings(**values)))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_images_become_ours(dtype):
    item = image(dtype, slice=2, contrast=1, acquisition_time_stamp=400, image_series_index=9)
    item.field_of_view[:] = (300.0, 200.0, 5.0)
    (made,) = run([item])
    assert isinstance(made, FrameImage)
    assert made.data.dtype == np.complex64
    np.testing.assert_array_equal(made.data, item.data.astype(np.complex64))
    assert (made.number, made.slice, made.echo) == (0, 2, 1)
    assert made.footprint == pytest.approx((1.0, 1.0, 1.0))
    assert made.phase_valid
    assert made.noise_sd is None
    assert made.meta == {"method": "foreign_9", "source_series": 9}
    assert made.fingerprint["method"] == "foreign_9"
    assert made.fingerprint["coils"] == "2"
    assert "300.000" in made.fingerprint["geometry"]
    assert made.fov_m == pytest.approx((0.3, 0.2))


@pytest.mark.parametrize("size", [0.0, math.nan, math.inf, -1.0])
def test_a_field_of_view_that_is_none_is_not_taken(size):
    item = image()
    item.field_of_view[:] = (300.0, size, 5.0)
    (made,) = run([item])
    assert made.fov_m is None


def test_frames_count_per_slice_and_contrast():
    items = [image(slice=s, contrast=c) for _ in range(2) for s in range(2) for c in range(2)]
    made = run(items)
    assert [(one.slice, one.echo, one.number) for one in made] == [
        *[(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)],
        *[(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)],
    ]


def ours(product="complex", **meta):
    return ismrmrd.Meta({f"sinotherm_{name}": value for name, value in {"product": product, **meta}.items()})


def test_every_series_is_a_reconstruction_of_its_own(caplog):
    """Gridding's images go beside the network's, whose first ones come late; a sinogram is no frame."""
    beside, sinogram = ours(beside="pdunet"), ours("sinogram")
    items = [image(image_series_index=12, repetition=n, meta=beside) for n in range(3)]
    items += [image(image_series_index=2, repetition=n, meta=ours()) for n in range(3)]
    items += [image(image_series_index=7, repetition=3, meta=sinogram), image(np.float32, meta=ours("temperature"))]
    items += [image(image_series_index=2, repetition=3, meta=ours())]
    made = run(items)
    assert made[6:8] == items[6:8]
    frames = [one for one in made if isinstance(one, FrameImage)]
    assert [(one.meta["method"], one.number) for one in frames] == [
        *[("foreign_12", n) for n in range(3)],
        *[("foreign_2", n) for n in range(4)],
    ]
    assert [one.meta.get("beside") for one in frames] == ["pdunet"] * 3 + [None] * 4
    assert "come beside" not in caplog.text


def test_a_second_series_goes_beside_and_a_third_one_passes_unmeasured(caplog):
    """Maps of two of them would stand in one series, with one baseline's times and another's pixels."""
    made = run([image(image_series_index=series, repetition=n) for n in range(3) for series in (5, 6, 7)])
    (told,) = (one for one in made if isinstance(one, Text))
    assert "series 7 are passed on as they are" in told.text
    assert "here of series 5 and 6; send series 7 as a scan of its own" in told.text
    frames = [one for one in made if isinstance(one, FrameImage)]
    assert [(one.meta["method"], one.number, one.meta.get("beside")) for one in frames] == [
        (f"foreign_{series}", n, beside) for n in range(3) for series, beside in ((5, None), (6, "foreign_5"))
    ]
    assert [one.image_series_index for one in made if isinstance(one, ismrmrd.Image)] == [7] * 3
    assert caplog.text.count("series 6 come beside those of series 5") == 1
    assert caplog.text.count("series 7 are passed on") == 1


def test_what_our_own_node_sent_beside_takes_the_place_beside():
    beside = ours(beside="pdunet")
    made = run([image(image_series_index=series, meta=beside if series > 10 else ours()) for series in (12, 13, 2, 4)])
    assert [one.meta["method"] for one in made if isinstance(one, FrameImage)] == ["foreign_12", "foreign_2"]
    told = [one.text for one in made if isinstance(one, Text)]
    assert ["here of series 12;" in told[0], "here of series 2 and 12;" in told[1]] == [True, True]


def test_what_was_held_back_or_has_no_phase_stays_so():
    """Else gridding's image in the network's place would be measured against the network's baseline."""
    items = [ours(), ours(in_place_of="pdunet", guard="residual"), ours(in_place_of="pdunet")]
    found = [one.meta for one in run([image(image_series_index=2, meta=meta) for meta in items])]
    assert "in_place_of" not in found[0]
    assert [(one["method"], one["in_place_of"], one["guard"]) for one in found[1:]] == [
        ("foreign_2", "foreign_2", "residual"),
        ("foreign_2", "foreign_2", "held back"),
    ]
    whole = FrameImage(data=np.ones((1, 1, 4, 6), np.complex64), number=0)
    sent = [whole, replace(whole, phase_valid=False, meta={"in_place_of": "pdunet", "guard": "range"})]
    settings = images_stage.Settings(magnitude=False, complex_images=True)
    again = run(images_stage.stage(iter(sent), SCAN, settings))
    assert [one.phase_valid for one in again] == [True, False]
    assert again[1].meta["guard"] == "range"


STAMPED = {"by repetition": (1, 0), "by stamp": (0, 4000), "by order": (0, 0)}


def echo_images(order, per_repetition, per_stamp):
    """Return images of (frame, contrast), which differ in repetition or stamp or neither."""
    return [
        image(
            contrast=c, repetition=n * per_repetition, acquisition_time_stamp=n * per_stamp + c + 1 if per_stamp else 0
        )
        for n, c in order
    ]


@pytest.mark.parametrize("marks", STAMPED.values(), ids=STAMPED)
@pytest.mark.parametrize("lost", [(0, 0), (0, 1), (3, 0), (3, 1)])
def test_a_lost_echo_moves_no_other(lost, marks):
    order = [(n, c) for n in range(6) for c in (0, 1) if (n, c) != lost]
    assert [(one.number, one.echo) for one in run(echo_images(order, *marks))] == order


@pytest.mark.parametrize("marks", [(1, 0), (0, 4000)])
def test_echoes_of_two_frames_never_make_one(marks):
    """Without counter and stamp nothing tells this from a whole frame."""
    order = [(n, c) for n in range(6) for c in (0, 1) if (n, c) not in ((3, 1), (4, 0))]
    assert [(one.number, one.echo) for one in run(echo_images(order, *marks))] == order


@pytest.mark.parametrize("marks", [(1, 0), (0, 4000)])
def test_echoes_may_come_in_any_order(marks):
    order = [(0, 0), (0, 1), (1, 1), (1, 0), (2, 1), (2, 0), (3, 0), (3, 1)]
    assert [(one.number, one.echo) for one in run(echo_images(order, *marks))] == order


def test_time_goes_on_after_midnight():
    stamps = [34_556_000, 34_559_999, 0, 400, 34_559_999, 800]
    times = [one.footprint[1] for one in run([image(acquisition_time_stamp=stamp) for stamp in stamps])]
    assert times == pytest.approx([86390.0, 86399.9975, np.nan, 86401.0, 86399.9975, 86402.0], nan_ok=True)


def test_acquisitions_are_told_where_they_belong():
    readout = Readout(
        header=ismrmrd.AcquisitionHeader(scan_counter=7),
        data=np.zeros((1, 2), np.complex64),
        trajectory=np.zeros((2, 0), np.float32),
    )
    with pytest.raises(DataError, match=r"readout 7 came where complex images are awaited: .* radial_thermometry"):
        run([readout])


def test_an_image_that_came_alive_keeps_the_time_of_its_receipt():
    live = image()
    live.received_s = 12.5
    assert [one.received_s for one in run([live, image()])] == pytest.approx([12.5, np.nan], nan_ok=True)
    # One that another node of this process made came with its last readout.
    settings = images_stage.Settings(magnitude=False, complex_images=True)
    assert [one.received_s for one in run(images_stage.stage(iter(run([live])), SCAN, settings))] == [12.5]


def test_no_stamp_and_another_tick():
    assert np.isnan(run([image()])[0].footprint[1])
    assert run([image(acquisition_time_stamp=400)], tick=1e-3)[0].footprint[1] == pytest.approx(0.4)


def test_images_without_phase_and_the_rest_pass(caplog):
    items = [image(np.float32, image_series_index=3), "text", image(np.uint16)]
    assert run(items) == items
    assert caplog.text.count("image series 3 is float32 and has no phase") == 1


def test_an_image_without_pixels_passes_and_ends_no_scan(caplog):
    empty = ismrmrd.Image.from_array(np.zeros((1, 1, 0, 0), np.complex64), transpose=False)
    empty.image_series_index = 2
    found = run([image(), empty, image(), empty])
    assert found[1] is found[3] is empty
    assert [one.number for one in found[::2]] == [0, 1]
    assert caplog.text.count("image series 2 has an image without pixels: passed on as it is") == 1


def test_geometry_survives_the_way_through():
    item = image(slice=1)
    item.position[:] = (1.0, 2.0, 3.0)
    item.field_of_view[:] = (301.0, 201.0, 6.0)
    (made,) = images_stage.stage(iter(run([item])), SCAN, images_stage.Settings(magnitude=False, complex_images=True))
    np.testing.assert_array_equal(made.data, item.data)
    assert list(made.position) == [1.0, 2.0, 3.0]
    assert list(made.field_of_view) == [301.0, 201.0, 6.0]
    assert made.slice == 1
