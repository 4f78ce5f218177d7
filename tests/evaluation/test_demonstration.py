import threading
from dataclasses import replace
from time import monotonic

import h5py
import ismrmrd
import numpy as np
import pytest

from sinotherm.errors import DataError
from sinotherm.evaluation.demonstration import (
    DEMO,
    Clock,
    Comparison,
    Demonstration,
    accelerated_figures,
    compare,
    demonstrate,
    point_spread,
    seen_temperature,
)
from sinotherm.evaluation.pictures import overview
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan
from sinotherm.wire.file import ImageWriter, read_images
from sinotherm.wire.messages import Readout

TINY = Protocol(
    matrix=64, n_coils=4, spokes=101, frames=7, baseline_frames=3, cooling_frames=1, snr=40.0, noise_scans=32,
    dummy_scans=2, repetition_time_s=0.1, drift_hz=1.0,
)  # fmt: skip


def test_the_demo_is_the_scan_that_was_asked_for():
    assert (DEMO.matrix, DEMO.n_coils, DEMO.spokes, DEMO.snr) == (256, 8, 402, 40.0)
    assert DEMO.frames >= 30
    assert DEMO.baseline_frames >= 5
    assert DEMO.peak_degc >= 7.0
    assert DEMO.drift_hz != 0.0
    assert DEMO.fat
    assert DEMO.field_strength_t == 1.5
    assert DEMO.echo_time_s == pytest.approx(19.1e-3)
    assert DEMO.repetition_time_s >= 25e-3


def test_point_spread_keeps_what_lies_in_the_disc():
    y, x = np.mgrid[:32, :32] - 16
    window = np.exp(-(x**2 + y**2) / 40.0)
    inside = window * np.exp(2j * np.pi * (0.2 * x + 0.2 * y))
    outside = window * np.exp(2j * np.pi * (0.45 * x + 0.45 * y))
    assert np.abs(point_spread(inside) - inside).max() < 1e-3
    assert np.abs(point_spread(outside)).max() < 0.05


def test_seen_temperature_is_weighted_by_the_signal():
    y, x = np.mgrid[:48, :48] - 24
    body = np.exp(-(((x**2 + y**2) / 14.0**2) ** 3))
    water = body * np.exp(0.05j * x)
    change = np.where(body > 0.1, 5.0, np.nan).astype(np.float32)
    middle = (slice(20, 28), slice(20, 28))
    np.testing.assert_allclose(seen_temperature(change, water, 0 * water)[middle], 5.0, atol=0.02)
    mixed = seen_temperature(change, 0.75 * water, 0.25 * water)[middle]
    np.testing.assert_allclose(mixed, 3.75, atol=0.02)
    assert np.all(seen_temperature(change, 0 * water, 0 * water) == 0.0)


def synthetic(frames=6, seed=0):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :40] - 20
    body, tumour = np.hypot(x / 1.3, y) < 14, np.hypot(x, y) < 6
    truth = 37.0 + np.arange(frames)[:, None, None] * np.exp(-(x**2 + y**2) / 200.0)
    sigma = np.full(truth.shape, 0.5)
    measured = truth + 0.1 + sigma * random.standard_normal(truth.shape)
    measured[:, ~body] = np.nan
    measured[0] = np.nan
    return Comparison(
        magnitude=body.astype(np.float32),
        temperature=measured.astype(np.float32),
        truth=truth.astype(np.float32),
        sigma=sigma.astype(np.float32),
        heated=np.arange(1, frames),
        tumour=tumour,
        body=body,
        time_s=10.0 * (np.arange(frames) + 0.5),
    )


def test_figures_of_known_errors():
    figures = synthetic().figures()
    assert figures["tumour_sigma_degC"] == 0.5
    assert figures["tumour_bias_degC"] == pytest.approx(0.1, abs=0.07)
    assert figures["tumour_rmse_degC"] == pytest.approx(np.hypot(0.5, 0.1), rel=0.1)
    assert figures["tumour_voxels"] == synthetic().tumour.sum()


def test_no_reading_is_no_figure():
    shown = synthetic()
    with pytest.raises(DataError, match="no reading in the tumour in 5 heated frames"):
        replace(shown, temperature=np.full_like(shown.temperature, np.nan)).figures()


def test_percentiles_of_the_tumour():
    measured, truth = synthetic().tumour_percentiles()
    assert np.isnan(measured[0]).all()
    assert truth[0] == pytest.approx([37.0] * 3)
    assert np.all(np.diff(measured[1:], axis=1) > 0)


def test_the_picture_is_drawn(tmp_path):
    shown = synthetic(frames=8)
    figures = shown.figures() | {"latency_ms": {"p50": 3.0, "p95": 5.0, "max": 6.0}}
    demonstration = Demonstration(figures=figures, comparison=shown, latency_ms=np.linspace(2.0, 6.0, 8))
    overview(demonstration, tmp_path / "overview.png", title="a test")
    from matplotlib.image import imread

    picture = imread(tmp_path / "overview.png")
    assert picture.shape[0] > 600
    assert picture.std() > 0.05


def readout(flags):
    header = ismrmrd.AcquisitionHeader()
    header.flags = flags
    return Readout(
        header=header,
        data=np.zeros((1, 2), np.complex64),
        trajectory=np.zeros((2, 0), np.float32),
        received_s=monotonic(),
    )


def test_clock_runs_from_the_last_readout_to_the_next_demand():
    """The map counts as sent when the consumer asks for more."""
    clock = Clock()
    temperature = ismrmrd.Image.from_array(np.zeros((4, 4), np.float32), transpose=False)
    temperature.image_series_index = 3
    other = ismrmrd.Image.from_array(np.zeros((4, 4), np.float32), transpose=False)
    other.image_series_index = 1

    def process(items):
        for item in items:
            if item.header.flags:
                yield other
                yield temperature

    opened = clock.around(lambda request: process)(None)
    gate = threading.Event()
    for image in opened(iter([readout(0), readout(1 << 13), readout(1 << 13)])):
        if image is temperature:
            gate.wait(0.05)
    assert len(clock.received_s) == len(clock.sent_s) == 2
    assert np.all(clock.latency_ms >= 50.0)


def test_missing_series_and_too_many_frames(tmp_path):
    def write(series, count):
        with ImageWriter(tmp_path / "images.h5") as writer:
            for number in series:
                for _ in range(count):
                    image = ismrmrd.Image.from_array(np.zeros((64, 64), np.float32), transpose=False)
                    image.image_series_index = number
                    writer.append(image)

    write([1, 3], 1)
    with pytest.raises(DataError, match=r"series \[4\] did not come back; there are \[1, 3\]"):
        compare(Scan(protocol=TINY), read_images(tmp_path / "images.h5"))
    write([1, 3, 4], 8)
    with pytest.raises(DataError, match="8 temperature maps of a scan of 7 frames"):
        compare(Scan(protocol=TINY), read_images(tmp_path / "images.h5"))


@pytest.mark.slow
def test_small_demonstration_end_to_end(tmp_path):
    """Through server and client: every frame comes back, and the error is what was predicted."""
    found = demonstrate(tmp_path / "demo", TINY)
    figures = found.figures
    assert figures["frames_received"] == figures["frames_expected"] == 7
    assert figures["frames_dropped"] == 0
    assert figures["peak_heating_degC"] == pytest.approx(8.0, abs=1e-3)
    assert 0.2 < figures["tumour_sigma_degC"] < 0.8
    assert figures["tumour_rmse_degC"] <= 1.5 * figures["tumour_sigma_degC"]
    assert abs(figures["tumour_bias_degC"]) < 0.25
    assert len(found.latency_ms) == 7
    assert np.all(found.latency_ms > 0.0)
    with h5py.File(tmp_path / "demo" / "images.h5") as file:
        assert {"image_1", "image_3", "image_4", "image_5", "image_6"} <= set(file["dataset"])
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["images.h5", "scan.h5"]


def test_figures_of_two_methods_and_of_the_guard(tmp_path):
    """The network's series and gridding's are told apart, and a frame held back counts once."""
    scan = Scan(protocol=TINY)
    water, fat = scan.signal()
    with ImageWriter(tmp_path / "images.h5") as writer:
        for number in range(TINY.frames):
            truth = seen_temperature(scan.temperature_change(number), water, fat) + np.float32(37.0)
            held_back = number == 4
            network = np.full_like(truth, np.nan) if held_back else truth + np.float32(0.1)
            bits = np.full(truth.shape, 32 if held_back else 0, np.uint16)
            sigma = np.full_like(truth, 0.2)
            one, other = np.full_like(truth, number), np.full_like(truth, 100 + number)
            maps = {1: one, 3: network, 4: sigma, 6: bits, 11: other, 13: truth + np.float32(1.0), 14: sigma}
            for series, data in maps.items():
                image = ismrmrd.Image.from_array(data, transpose=False)
                image.image_series_index = series
                writer.append(image)
    found = accelerated_figures(scan, tmp_path / "images.h5")
    figures = found.figures
    assert figures["guard_trips"] == 1
    assert figures["pdunet"]["tumour_rmse_degC"] == pytest.approx(0.1, abs=1e-3)
    assert figures["pdunet"]["within_1.96_sigma"] == 1.0
    assert figures["gridding"]["tumour_bias_degC"] == pytest.approx(1.0, abs=1e-3)
    assert figures["gridding"]["within_1.96_sigma"] == 0.0
    assert figures["gridding"]["tumour_sigma_degC"] == pytest.approx(0.2)
    assert found.frame == TINY.frames - TINY.cooling_frames - 1
    # The magnitudes of the frame shown, each from the method's own series.
    for method, value in (("pdunet", found.frame), ("gridding", 100 + found.frame)):
        np.testing.assert_array_equal(found.comparisons[method].magnitude, np.full(truth.shape, value))
