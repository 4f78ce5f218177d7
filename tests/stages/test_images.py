import dataclasses
import logging
import math
import time

import ismrmrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import (
    EncodingSpace,
    Frame,
    FrameImage,
    FrameStatistics,
    NoReading,
    ScanHeader,
    Spoke,
    TemperatureMap,
)
from sinotherm.frames.images import META_PREFIX
from sinotherm.pipelines.compose import compose
from sinotherm.stages import complex_images
from sinotherm.stages.images import Settings, stage
from sinotherm.wire.file import ImageWriter
from sinotherm.wire.messages import Readout

SPACE = EncodingSpace(matrix=(6, 4, 1), fov_m=(0.3, 0.2, 0.005))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial")
RNG = np.random.default_rng(9)


def reference():
    head = ismrmrd.AcquisitionHeader()
    head.measurement_uid = 42
    head.acquisition_time_stamp = 40050
    head.physiology_time_stamp[0] = 7
    head.position[:] = (1.5, -2.5, 10.0)
    head.read_dir[:] = (0.6, 0.8, 0.0)
    head.phase_dir[:] = (-0.8, 0.6, 0.0)
    head.slice_dir[:] = (0.0, 0.0, 1.0)
    head.patient_table_position[2] = -1200.0
    head.idx.average, head.idx.set, head.idx.phase = 1, 2, 3
    head.user_int[0], head.user_float[1] = 5, 0.25
    return head


def image(**change):
    data = (RNG.standard_normal((1, 1, 4, 6)) + 1j * RNG.standard_normal((1, 1, 4, 6))).astype(np.complex64)
    values = {"data": data, "number": 3, "slice": 2, "echo": 1, "header": reference(), "footprint": (1.0, 2.0, 3.0)}
    return FrameImage(**(values | change))


def spoke(index):
    sampling = RadialSampling(n_readout=8, spacing=0.125, centre=4.0)
    return Spoke(data=np.zeros((1, 8), np.complex64), sampling=sampling, angle_rad=0.0, index=index)


def temperature_map(**change):
    shape = (1, 4, 6)
    values = {
        "change_degc": np.full(shape, 2.04, np.float32),
        "temperature_degc": np.full(shape, 39.04, np.float32),
        "sigma_degc": np.full(shape, 0.436, np.float32),
        "cem43_min": np.full(shape, 12.34, np.float32),
        "validity": np.zeros(shape, np.uint16),
        "number": 3,
        "header": reference(),
    }
    return TemperatureMap(**(values | change))


def run(items, scan=SCAN, **values):
    return list(stage(iter(items), scan, Settings(**values)))


def received(made):
    """The image as a receiver that knows nothing of ours reads it."""
    return ismrmrd.Image.from_bytes(made.to_bytes())


def value_of(made):
    return made.data.astype(np.float64) * float(made.meta["RescaleSlope"]) + float(made.meta["RescaleIntercept"])


def test_header_is_that_of_the_reference_readout():
    (made,) = run([image()])
    head = received(made).getHead()
    assert (head.version, head.measurement_uid, head.acquisition_time_stamp) == (1, 42, 40050)
    assert list(head.matrix_size) == [6, 4, 1]
    assert list(head.field_of_view) == pytest.approx([300.0, 200.0, 5.0])
    assert list(head.position) == [1.5, -2.5, 10.0]
    assert list(head.read_dir) == pytest.approx([0.6, 0.8, 0.0])
    assert list(head.phase_dir) == pytest.approx([-0.8, 0.6, 0.0])
    assert list(head.patient_table_position) == [0.0, 0.0, -1200.0]
    assert list(head.physiology_time_stamp) == [7, 0, 0]
    assert (head.average, head.set, head.phase) == (1, 2, 3)
    assert (head.slice, head.contrast, head.repetition) == (2, 1, 3)
    assert (head.user_int[0], head.user_float[1]) == (5, 0.25)
    assert (head.image_type, head.image_series_index, head.image_index) == (ismrmrd.IMTYPE_MAGNITUDE, 1, 1)


def test_each_series_counts_its_images():
    made = run([image(), temperature_map(), image(number=4), temperature_map(number=4)])
    assert [one.image_series_index for one in made] == [1, 3, 4, 5, 6] * 2
    assert [one.image_index for one in made] == [1] * 5 + [2] * 5
    assert [one.repetition for one in made] == [3] * 5 + [4] * 5


def test_frames_that_the_scanner_lost_are_told_by_the_scan_counter():
    """The repetition counts the frames that were made."""
    lost = [image(number=n, spokes=(spoke(first), spoke(first + 63))) for n, first in ((0, 2_000_000), (1, 2_000_640))]
    made = [received(one) for one in run(lost, magnitude=False, complex_images=True)]
    assert [one.repetition for one in made] == [0, 1]
    made.append(received(run([image()], magnitude=False, complex_images=True)[0]))
    made[-1].meta = ismrmrd.Meta({META_PREFIX + "scan_counter": "many"})
    again = list(complex_images.stage(iter(made), SCAN, complex_images.Settings()))
    assert [one.meta.get("scan_counter") for one in again] == [2_000_031.5, 2_000_671.5, None]


def test_what_only_accompanies_another_image_has_series_of_its_own():
    companion = {"beside": "pdunet"}
    made = run([image(meta=companion), image(), temperature_map(meta=companion), temperature_map()])
    assert [one.image_series_index for one in made] == [11, 1, 13, 14, 15, 16, 3, 4, 5, 6]
    assert [one.image_index for one in made] == [1] * 10


def test_research_images_are_in_units_of_the_object():
    item = image()
    magnitude, complex_image = run([item], complex_images=True)
    np.testing.assert_allclose(magnitude.data, np.abs(item.data), rtol=1e-6)
    assert magnitude.data.dtype == np.float32
    assert complex_image.image_series_index == 2
    assert complex_image.image_type == ismrmrd.IMTYPE_COMPLEX
    np.testing.assert_array_equal(received(complex_image).data, item.data)
    assert run([item], magnitude=False) == []


def test_coils_that_were_not_combined():
    data = (RNG.standard_normal((3, 1, 4, 6)) + 0j).astype(np.complex64)
    magnitude, complex_image = run([image(data=data)], complex_images=True)
    np.testing.assert_allclose(magnitude.data[0], np.sqrt((np.abs(data) ** 2).sum(0)), rtol=1e-6)
    assert complex_image.channels == 3


def test_the_console_scale_is_fixed_by_the_first_image(caplog):
    bright = image()
    dim = dataclasses.replace(bright, data=bright.data * np.float32(0.1))
    glaring = dataclasses.replace(bright, data=bright.data * np.float32(100))
    made = run([bright, dim, glaring, glaring], format="console")
    assert {one.meta["RescaleSlope"] for one in made} == {made[0].meta["RescaleSlope"]}
    slope = float(made[0].meta["RescaleSlope"])
    for item, one in zip((bright, dim), made, strict=False):
        assert one.data.dtype == np.uint16
        np.testing.assert_allclose(value_of(one), np.abs(item.data), atol=0.51 * slope)
    assert made[0].data.max() == 2047
    assert made[2].data.max() == 65535
    assert caplog.text.count("set images.scale") == 1
    (given,) = run([bright], format="console", scale=0.01)
    assert given.meta["RescaleSlope"] == "0.01"
    assert run([dataclasses.replace(bright, data=bright.data * 0)], format="console")[0].data.max() == 0


def test_maps_for_research():
    item = temperature_map()
    item.temperature_degc[0, 1, 2] = np.nan
    item.validity[0, 1, 2] = NoReading.SIGNAL | NoReading.DRIFT
    temperature, sigma, dose, validity = run([item])
    np.testing.assert_array_equal(temperature.data[0], item.temperature_degc)
    assert temperature.image_type == ismrmrd.IMTYPE_REAL
    np.testing.assert_array_equal(sigma.data[0], item.sigma_degc)
    np.testing.assert_array_equal(dose.data[0], item.cem43_min)
    assert validity.data.dtype == np.uint16
    assert validity.data[0, 0, 1, 2] == 0b1001
    for one in (temperature, sigma, dose, validity):
        assert one.meta["DataRole"] == one.meta["GADGETRON_DataRole"] == "Quantitative"
        assert (one.meta["RescaleSlope"], one.meta["RescaleIntercept"]) == ("1", "0")
    assert temperature.meta[META_PREFIX + "unit"] == "degC"
    assert dose.meta[META_PREFIX + "unit"] == "min"


@given(st.lists(st.one_of(st.floats(-99.75, 6000.0, width=32), st.just(math.nan)), min_size=24, max_size=24))
def test_console_temperature_keeps_a_tenth_of_a_degree_and_no_reading(values):
    celsius = np.array(values, np.float32).reshape(1, 4, 6)
    made = run([temperature_map(temperature_degc=celsius)], format="console")[0]
    lost = np.isnan(celsius)
    assert made.data.dtype == np.uint16
    assert (made.meta["RescaleSlope"], made.meta["RescaleIntercept"]) == ("0.1", "-100")
    assert np.array_equal(made.data[0] == 0, lost)
    np.testing.assert_allclose(value_of(made)[0][~lost], celsius[~lost], atol=0.0505)


def test_console_limits():
    item = temperature_map(
        temperature_degc=np.array([-500.0, 1e9, 37.0, np.nan] * 6, np.float32).reshape(1, 4, 6),
        sigma_degc=np.array([0.004, 0.006, 1e9, np.nan] * 6, np.float32).reshape(1, 4, 6),
        cem43_min=np.array([0.0, 240.0, np.inf, np.nan] * 6, np.float32).reshape(1, 4, 6),
        validity=np.full((1, 4, 6), 255, np.uint16),
    )
    temperature, sigma, dose, validity = run([item], format="console")
    assert temperature.data.ravel()[:4].tolist() == [1, 65535, 1370, 0]
    assert sigma.data.ravel()[:4].tolist() == [0, 1, 65535, 65535]
    assert dose.data.ravel()[:4].tolist() == [0, 2400, 65535, 65535]
    assert validity.data.ravel()[0] == 255
    assert validity.meta["RescaleSlope"] == "1"
    assert {one.image_type for one in (temperature, sigma, dose, validity)} == {ismrmrd.IMTYPE_MAGNITUDE}


def test_without_body_temperature_there_is_change_and_no_dose():
    made = run([temperature_map(temperature_degc=None, cem43_min=None)])
    assert [one.image_series_index for one in made] == [3, 4, 6]
    np.testing.assert_allclose(made[0].data, 2.04, rtol=1e-6)
    assert made[0].meta["SeriesDescription"] == "SINOTHERM_temperature_change"


def test_meta_speaks_three_dialects():
    temperature = received(run([temperature_map()], format="console")[0])
    meta = temperature.meta
    assert meta["ImageComments"] == meta["ImageComment"] == meta["GADGETRON_ImageComment"]
    assert (
        meta["SeriesDescription"]
        == meta["SequenceDescriptionAdditional"]
        == meta["GADGETRON_SeqDescription"]
        == "SINOTHERM_temperature"
    )
    assert meta["ImageProcessingHistory"] == meta["GADGETRON_ImageProcessingHistory"]
    assert meta["ImageProcessingHistory"][0] == "SINOTHERM"
    # Gadgetron: stored = ratio · value + offset; 37 degC is stored as 1370.
    assert float(meta["GADGETRON_ScaleRatio"]) * 37.0 + float(meta["GADGETRON_ScaleOffset"]) == pytest.approx(1370.0)
    assert (float(meta["WindowCenter"]), float(meta["WindowWidth"])) == (40.5, 11.0)
    assert (float(meta["GADGETRON_WindowCenter"]), float(meta["GADGETRON_WindowWidth"])) == (1405.0, 110.0)
    assert meta["LUTFileName"] == meta["GADGETRON_ColorMap"]
    assert meta["Keep_image_geometry"] == "1"
    assert [float(value) for value in meta["ImageRowDir"]] == pytest.approx([0.6, 0.8, 0.0])
    assert [float(value) for value in meta["ImageColumnDir"]] == pytest.approx([-0.8, 0.6, 0.0])


def test_meta_says_how_the_image_was_made_in_ascii():
    item = image(
        meta={
            "method": "fbp (Hann)",
            "gradient_delay_samples": (0.5, -0.25),
            "setting frames.by": "count",
            "note": "σ < 1 °C & µ → x",
            "ok": True,
        }
    )
    made = received(run([item])[0])
    made.attribute_string.encode("ascii")
    assert made.meta[META_PREFIX + "method"] == "fbp (Hann)"
    assert made.meta[META_PREFIX + "gradient_delay_samples"] == ["0.5", "-0.25"]
    assert made.meta[META_PREFIX + "setting_frames.by"] == "count"
    assert made.meta[META_PREFIX + "note"] == "sigma < 1 degC & u ? x"
    assert made.meta[META_PREFIX + "ok"] == "True"
    assert made.meta[META_PREFIX + "frame"] == "3"
    assert [float(value) for value in made.meta[META_PREFIX + "footprint_s"]] == [1.0, 2.0, 3.0]
    assert float(made.meta[META_PREFIX + "lag_s"]) == 1.0
    assert made.meta["ImageProcessingHistory"][2:] == ["fbp", "(Hann)"]


def test_latency_is_stated_where_the_clock_is_known():
    assert META_PREFIX + "latency_ms" not in run([image()])[0].meta
    (made,) = run([image(received_s=time.monotonic() - 1.0)])
    assert float(made.meta[META_PREFIX + "latency_ms"]) >= 1000.0


def test_without_stamps_and_header():
    (made,) = run([image(header=None, footprint=(math.nan,) * 3)])
    assert META_PREFIX + "footprint_s" not in made.meta
    assert "ImageRowDir" not in made.meta
    assert list(made.field_of_view) == pytest.approx([300.0, 200.0, 5.0])


def test_foreign_geometry_is_kept():
    head = ismrmrd.ImageHeader()
    head.field_of_view[:] = (111.0, 112.0, 113.0)
    head.position[0] = 4.0
    head.average = 6
    (made,) = run([image(header=head)])
    assert list(made.field_of_view) == [111.0, 112.0, 113.0]
    assert made.position[0] == 4.0
    assert made.average == 6
    # None stated: regions go by the header's then, and so does the scale of the maps.
    head.field_of_view[:] = (0.0, 112.0, float("nan"))
    (made,) = run([image(header=head)])
    assert list(made.field_of_view) == pytest.approx([300.0, 112.0, 5.0])


def test_planes_of_a_slab_have_their_own_position():
    recon = EncodingSpace(matrix=(6, 4, 8), fov_m=(0.3, 0.2, 0.04))
    scan = dataclasses.replace(SCAN, recon=recon, n_partitions=8)
    first, centre = run([image(slice=0), image(slice=4)], scan)
    assert list(centre.position) == [1.5, -2.5, 10.0]
    assert list(first.position) == pytest.approx([1.5, -2.5, 10.0 - 4 * 5.0])
    assert centre.field_of_view[2] == pytest.approx(5.0)


def test_planes_are_as_far_apart_as_those_that_are_made():
    """A reconstructed matrix beyond the partitions asks for an interpolation that is not made."""
    encoded = EncodingSpace(matrix=(6, 4, 8), fov_m=(0.3, 0.2, 0.08))
    recon = EncodingSpace(matrix=(6, 4, 16), fov_m=(0.3, 0.2, 0.08))
    scan = dataclasses.replace(SCAN, encoded=encoded, recon=recon, n_partitions=8)
    first, centre, last, next_slab = run([image(slice=i) for i in (0, 4, 7, 8)], scan)
    assert [one.position[2] for one in (first, centre, last, next_slab)] == pytest.approx([-30.0, 10.0, 40.0, -30.0])
    assert first.field_of_view[2] == pytest.approx(10.0)


@pytest.mark.parametrize("n_partitions", [1, 4])
def test_an_off_centre_oblique_scan_keeps_its_place(n_partitions):
    """What the scanner has demodulated to the position stays in the middle of the image, whatever the position."""
    space = EncodingSpace(matrix=(16, 16, n_partitions), fov_m=(0.16, 0.16, 0.008 * n_partitions))
    scan = ScanHeader(
        encoded=space, recon=space, trajectory="radial", n_partitions=n_partitions, spokes_per_frame=16, n_coils=1
    )
    items = []
    for number in range(16 * n_partitions):
        head = reference()
        head.position[:] = (31.5, -42.5, 110.0)
        head.slice_dir[:] = (0.0, -0.6, 0.8)
        head.number_of_samples, head.active_channels = 16, 1
        head.scan_counter = number
        head.idx.kspace_encode_step_1, head.idx.kspace_encode_step_2 = number % 16, number // 16
        head.idx.average = 0
        items.append(
            Readout(header=head, data=np.ones((1, 16), np.complex64), trajectory=np.zeros((16, 0), np.float32))
        )
    values = {"spokes": {"angles": "uniform180"}, "delay": {"mode": "off"}}
    made = list(compose("reconstruct", values)(scan, iter(items)))
    assert len(made) == n_partitions
    for plane, one in enumerate(made):
        away = 8.0 * (plane - n_partitions // 2)
        assert list(one.position) == pytest.approx([31.5, -42.5 - 0.6 * away, 110.0 + 0.8 * away])
        assert list(one.read_dir) == pytest.approx([0.6, 0.8, 0.0])
        assert list(one.phase_dir) == pytest.approx([-0.8, 0.6, 0.0])
        assert list(one.slice_dir) == pytest.approx([0.0, -0.6, 0.8])
        assert list(one.field_of_view) == pytest.approx([160.0, 160.0, 8.0])
    brightest = np.stack([one.data[0, 0] for one in made])
    assert np.unravel_index(brightest.argmax(), brightest.shape) == (n_partitions // 2, 8, 8)


def spokes(n):
    sampling = RadialSampling(n_readout=8, spacing=1 / 8, centre=4.0)
    data = (RNG.standard_normal((n, 2, 8)) + 1j * RNG.standard_normal((n, 2, 8))).astype(np.complex64)
    return tuple(Spoke(data=data[i], sampling=sampling, angle_rad=0.5 * i) for i in range(n))


def test_sinograms_on_request(caplog):
    items = [image(spokes=spokes(3)), image(spokes=spokes(2)), image()]
    made = run(items, sinograms=True)
    assert [one.image_series_index for one in made] == [1, 7, 1, 1]
    assert made[1].data.shape == (2, 1, 3, 8)
    assert made[1].meta[META_PREFIX + "spoke_angles_rad"] == ["0.0", "0.5", "1.0"]
    # Eight elements of 50 mm, a pixel each, beside six pixels of an image.
    assert [list(one.field_of_view) for one in made[:2]] == [
        pytest.approx(fov) for fov in ([300, 200, 5], [400, 200, 5])
    ]
    # Oracle: p(s) = spacing · Σ data · exp(+2πi κ s), detector pixel n//2 at s = 0.
    positions, s = items[0].spokes[0].sampling.positions, np.arange(8) - 4
    for i, spoke in enumerate(items[0].spokes):
        direct = spoke.data @ np.exp(2j * np.pi * np.outer(positions, s)) / 8
        np.testing.assert_allclose(made[1].data[:, 0, i], direct, atol=1e-5)
    assert "has 2 spokes, the series has 3" in caplog.text


def test_only_images_and_strangers_leave():
    spoke = spokes(1)[0]
    statistics = FrameStatistics(number=0)
    with_logging = logging.getLogger()
    out = run([spoke, Frame(spokes=(spoke,), number=0), statistics, "text", with_logging])
    assert out == ["text", with_logging]


def test_meta_is_written_as_ismrmrd_writes_it():
    meta = run([image(meta={"a<b": "x & y"})])[0].meta
    assert ismrmrd.Meta.deserialize(meta.serialize()) == ismrmrd.Meta.deserialize(ismrmrd.Meta.serialize(meta))


def foreign(series, value=1.0, dtype=np.float32):
    made = ismrmrd.Image.from_array(np.full((1, 1, 4, 6), value, dtype), transpose=False)
    made.image_series_index, made.image_index = series, 7
    made.meta = ismrmrd.Meta(ImageComment="theirs")
    return made


def test_images_that_pass_leave_the_series_of_ours(caplog):
    theirs = [foreign(series) for series in (0, 1, 8, 9, 11, 18, 19, 1001, 2001, 65001, 1)]
    out = run([theirs[0], image(), *theirs[1:]], format="console")
    assert [one.image_series_index for one in out] == [0, 1, 1001, 1008, 9, 1011, 1018, 19, 2001, 3001, 65001, 1001]
    assert [one.image_series_index for one in theirs[:3]] == [0, 1, 8]
    moved = received(out[2])
    np.testing.assert_array_equal(moved.data, theirs[1].data)
    assert moved.data.dtype == np.float32
    assert (moved.image_index, moved.meta["ImageComment"]) == (7, "theirs")
    assert caplog.text.count("image series 1 of another reconstruction is passed on as series 1001") == 1


@pytest.mark.parametrize("layout", ["research", "console"])
def test_magnitudes_beside_complex_images_do_not_end_the_file(tmp_path, layout):
    complex_image = ismrmrd.Image.from_array(np.ones((1, 1, 4, 6), np.complex64), transpose=False)
    items = complex_images.stage(
        iter([foreign(1, dtype=np.uint16), complex_image] * 2), SCAN, complex_images.Settings()
    )
    with ImageWriter(tmp_path / "maps.h5", b"<ismrmrdHeader/>") as writer:
        for one in stage(items, SCAN, Settings(format=layout)):
            writer.append(one)
    assert writer.counts == {1: 2, 1001: 2}
