import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.core.physics import radian_per_degc
from sinotherm.core.scan import EncodingSpace, FrameImage, FrameStatistics, NoReading, ScanHeader, Spoke, TemperatureMap
from sinotherm.errors import BaselineError, DataError, HeaderError, SettingsError
from sinotherm.thermometry.baseline import Baseline
from sinotherm.thermometry.drift import periphery_mask
from sinotherm.thermometry.fat import fat_phase
from sinotherm.thermometry.monitor import SliceMonitor
from sinotherm.thermometry.settings import ThermometrySettings

N = 64
SPACE = EncodingSpace(matrix=(N, N, 1), fov_m=(0.2, 0.2, 0.005))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial", larmor_hz=63.87e6, echo_times_s=(0.019,))
SD = 0.01
Y, X = (np.mgrid[:N, :N] - N // 2) / (N / 2)
BODY = np.hypot(X / 0.8, Y / 0.7) < 1.0
HEAT = 6.0 * np.exp(-((X - 0.1) ** 2 + (Y + 0.1) ** 2) / 0.02) * BODY
RIM = np.hypot(X / 0.45, Y / 0.4) > 1.0
HOT = np.hypot(X - 0.1, Y + 0.1) < 0.1
PER_DEGC = radian_per_degc(larmor_hz=63.87e6, echo_time_s=0.019, prf_coefficient=-1e-8, phase_sign=1)
COILS = np.stack([np.exp(1j * X), 0.5 * np.exp(2j * Y)])[:, None]


class Series:
    """Frames of a body that is heated from frame ``start`` on, with a drift of the first order."""

    def __init__(self, *, sign: int = 1, start: int = 4, coils: bool = False, seed: int = 0, noise: float = SD) -> None:
        self.random = np.random.default_rng(seed)
        self.sign, self.start, self.coils, self.noise = sign, start, coils, noise

    def heat(self, number: int) -> np.ndarray:
        return HEAT * max(0.0, number - self.start + 1) / 5

    def image(
        self, number: int, *, te: float = 0.019, echo: int = 0, signal: np.ndarray = BODY, **changes
    ) -> FrameImage:
        phase = self.sign * PER_DEGC * (te / 0.019) * (self.heat(number) + 0.3 * number * (1.0 + X - 0.5 * Y))
        data = (signal * np.exp(1j * (phase + 0.4 * X)))[None, None] * (COILS if self.coils else 1.0)
        shape = data.shape
        data = data + self.noise * (self.random.standard_normal(shape) + 1j * self.random.standard_normal(shape))
        options = {
            "noise_sd": np.full((1, N, N), self.noise, np.float32),
            "footprint": (10.0 * number, 10.0 * number + 5.0, 10.0 * number + 10.0),
        } | changes
        return FrameImage(data=data.astype(np.complex64), number=number, echo=echo, **options)


def _settings(**values) -> ThermometrySettings:
    return ThermometrySettings.parse(
        "thermometry",
        {"phase_sign": 1, "baseline_frames": 4, "body_temperature_degc": 37.0, "regions": "hot=circle:35,29,3"}
        | values,
    )


def _run(
    monitor: SliceMonitor, series: Series, frames: range, **changes
) -> list[tuple[TemperatureMap, FrameStatistics]]:
    return [monitor.frame([series.image(number, **changes)]) for number in frames]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("coils", [False, True])
def test_temperature_of_heated_tissue(sign: int, coils: bool) -> None:
    series = Series(sign=sign, coils=coils)
    monitor = SliceMonitor(SCAN, _settings(phase_sign=sign))
    assert monitor.baselines == {}
    for number, (found, statistics) in enumerate(_run(monitor, series, range(10))):
        assert found.number == statistics.number == number
        if number < 4:
            assert np.isnan(found.temperature_degc).all()
            assert (found.validity == NoReading.NO_BASELINE).all()
            assert statistics.regions == ()
            continue
        errors = (found.temperature_degc[0] - 37.0 - series.heat(number))[HOT]
        assert abs(errors.mean()) < 0.15
        assert found.temperature_degc.dtype == found.sigma_degc.dtype == found.cem43_min.dtype == np.float32
        assert found.validity.dtype == np.uint16
        np.testing.assert_array_equal(np.isnan(found.temperature_degc), found.validity != 0)
        assert statistics.regions[0]["region"] == "hot"
        assert statistics.alarms == ()
    assert found.meta["baseline_frames"] == (0, 1, 2, 3)
    assert found.meta["drift_ok"] is True
    assert set(monitor.baselines) == {0}


def test_predicted_uncertainty_is_the_scatter() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(drift_order="1"))
    scores = []
    for number, (found, _) in enumerate(_run(monitor, series, range(14))):
        if number >= 4:
            error = found.temperature_degc[0] - 37.0 - series.heat(number)
            scores.append((error / found.sigma_degc[0])[found.validity[0] == 0])
    assert 0.9 < np.concatenate(scores).std() < 1.1


def test_a_frame_that_the_guard_held_back_has_no_reading_and_is_a_gap_to_the_dose() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(dose_gap_frames=1))
    before, _ = _run(monitor, series, range(8))[-1]
    for number in (8, 9):
        found, statistics = monitor.frame([series.image(number)], withheld="residual above bound")
        assert (found.validity == NoReading.GUARD).all()
        assert np.isnan(found.temperature_degc).all()
        np.testing.assert_array_equal(found.cem43_min, before.cem43_min)
        assert statistics.alarms == ("network guard: residual above bound",)
        assert statistics.regions[0]["region"] == "hot"
    assert statistics.regions[0]["cem43_lower_bound"] is True
    after, _ = monitor.frame([series.image(10)])
    assert np.isfinite(after.temperature_degc).any()
    assert after.meta["dose_lower_bound_voxels"] > 0


def test_a_frame_held_back_is_no_part_of_the_baseline() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings())
    for number in range(6):
        found, _ = monitor.frame([series.image(number)], withheld="out of range" if number in (0, 2) else "")
    assert found.meta["baseline_frames"] == (1, 3)


@pytest.mark.parametrize("golden", [False, True])
def test_streaks_that_differ_from_frame_to_frame_are_in_the_uncertainty(golden: bool) -> None:
    """A pattern of twice the noise stands in for the streaks; on the same spokes it cancels."""
    series, sampling = Series(start=99), RadialSampling(n_readout=4, spacing=0.25, centre=2.0)
    monitor = SliceMonitor(SCAN, _settings(baseline_frames=8, drift_order=1))
    scores = []
    for number in range(16):
        angles = spoke_angles("golden" if golden else "uniform180", 6, first=6 * number if golden else 0)
        streaks = 2 * SD * np.random.default_rng(number if golden else 0).standard_normal((2, N, N))
        spokes = tuple(
            Spoke(data=np.zeros((1, 4), np.complex64), sampling=sampling, angle_rad=angle, index=6 * number + place)
            for place, angle in enumerate(angles)
        )
        image = series.image(number, spokes=spokes)
        data = image.data * (1.0 + streaks[0] + 1j * streaks[1]).astype(np.complex64)
        found, _ = monitor.frame([replace(image, data=data)])
        if number >= 8:
            scores.append((found.change_degc[0] / found.sigma_degc[0])[found.validity[0] == 0])
    assert 0.9 < np.concatenate(scores).std() < 1.1


def test_without_body_temperature_there_is_only_change() -> None:
    monitor = SliceMonitor(SCAN, _settings(body_temperature_degc=None, regions=""))
    found, statistics = _run(monitor, Series(), range(6))[-1]
    assert found.temperature_degc is None
    assert found.cem43_min is None
    assert np.nanmax(found.change_degc) < 10.0
    assert statistics.regions[0]["region"] == "body"
    assert statistics.regions[0]["quantity"] == "temperature_change"
    assert "body_temperature_degC" not in found.meta


def test_dose_grows_and_is_a_lower_bound_after_a_long_gap() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(dose_gap_frames=1))
    _run(monitor, series, range(8))
    dark = [series.image(number) for number in (8, 9)]
    for image in dark:
        found, statistics = monitor.frame([replace(image, data=0 * image.data)])
        assert (found.validity & NoReading.SIGNAL).all()
        assert any(text.startswith("signal lost") for text in statistics.alarms)
    found, statistics = monitor.frame([series.image(10)])
    assert found.meta["dose_lower_bound_voxels"] > 0
    assert statistics.regions[0]["cem43_lower_bound"] is True
    assert np.nanmax(found.cem43_min) > 0.02


def test_dose_of_a_late_beginning_and_of_clocks_that_jump() -> None:
    series = Series()
    late = SliceMonitor(SCAN, _settings(body_temperature_degc=None))
    _run(late, series, range(8))
    late.configure(_settings())
    found, statistics = late.frame([series.image(8)])
    assert statistics.regions[0]["cem43_lower_bound"] is True
    assert np.isnan(found.cem43_min[0][~BODY]).all()
    late.configure(_settings(regions="hot=circle:36,29,3"))
    assert late.frame([series.image(9)])[1].regions[0]["cem43_lower_bound"] is True

    monitor = SliceMonitor(SCAN, _settings())
    _run(monitor, series, range(9))
    _, before = monitor.frame([series.image(9)])
    _, after = monitor.frame([series.image(10, footprint=(0.0, 5.0, 10.0))])
    assert any(text.startswith("time stamps") for text in after.alarms)
    assert after.regions[0]["cem43_t50_min"] == before.regions[0]["cem43_t50_min"]
    assert after.regions[0]["cem43_lower_bound"] is True
    monitor.configure(_settings(regions="hot=circle:36,29,3"))
    _, redrawn = monitor.frame([series.image(11, footprint=(10.0, 15.0, 20.0))])
    assert redrawn.regions[0]["cem43_t50_min"] > 0.5 * before.regions[0]["cem43_t50_min"] > 0.0


@pytest.mark.parametrize("still", [0, 6])
def test_a_clock_that_stands_still_is_an_alarm_and_its_dose_a_lower_bound(still: int) -> None:
    series, monitor = Series(), SliceMonitor(SCAN, _settings())
    found = [monitor.frame([series.image(n, footprint=(0.0, 10.0 * min(n, still), 90.0))])[1] for n in range(9)]
    for number, statistics in enumerate(found):
        assert [text.partition(":")[0] for text in statistics.alarms] == ["time stamps"] * (number > still)
    assert found[-1].regions[0]["cem43_lower_bound"] is True


def test_a_region_drawn_in_mid_scan_has_the_dose_of_one_that_was_there() -> None:
    series, texts = Series(start=5), ("hot=circle:35,29,3", "far=circle:14,32,3")
    always, late = (SliceMonitor(SCAN, _settings(body_temperature_degc=42.0, regions=text)) for text in texts)
    for number in range(10):
        image = series.image(number)
        if number == 7:
            late.configure(_settings(body_temperature_degc=42.0))
        rows = [monitor.frame([image])[1].regions[:1] for monitor in (always, late)]
    ours, drawn = (row["cem43_t50_min"] for (row,) in rows)
    # A frame lasts 10 s: half a minute and more at up to 48 degC.
    assert drawn == pytest.approx(ours, rel=0.05)
    assert drawn > 3.0
    assert rows[1][0]["cem43_lower_bound"] is False


@pytest.mark.parametrize(("numbers", "late"), [((0, 1, 2, 4), False), ((0, 1, 2, 30), True), ((0, 30), True)])
def test_the_dose_begins_where_a_baseline_of_too_few_frames_ended(numbers: tuple[int, ...], late: bool) -> None:
    series, monitor = Series(start=99), SliceMonitor(SCAN, _settings(body_temperature_degc=43.0))
    for number in numbers:
        found, statistics = monitor.frame([series.image(number)], ordinal=number)
    assert found.meta["baseline_frames"] == numbers[:-1]
    row = statistics.regions[0]
    assert row["cem43_lower_bound"] is late
    if not late:
        assert row["cem43_t50_min"] == pytest.approx(20.0 / 60.0, rel=0.1)


def test_frames_that_moved_leave_no_wrong_turns() -> None:
    series = Series(noise=0.003)
    monitor = SliceMonitor(replace(SCAN, larmor_hz=127.74e6), _settings())
    _run(monitor, series, range(6))
    random = np.random.default_rng(1)
    ramps = random.uniform(-40.0, 40.0, (5, 2))
    for number, (along, down) in enumerate(ramps, start=6):
        image = series.image(number)
        moved = np.roll(image.data * np.exp(1j * (along * X + down * Y)), 9, axis=-1).astype(np.complex64)
        found, _ = monitor.frame([replace(image, data=moved)])
        assert (found.validity & NoReading.MOTION).all()
    for number in range(11, 14):
        found, _ = monitor.frame([series.image(number)])
        valid = found.validity[0] == 0
        assert valid[HOT].all()
        assert np.abs(found.change_degc[0] - series.heat(number) / 2)[valid].max() < 3.0


def test_time_from_the_interval_or_no_dose(caplog: pytest.LogCaptureFixture) -> None:
    unknown = {"footprint": (math.nan,) * 3}
    timed = SliceMonitor(SCAN, _settings(frame_interval_s=10.0))
    assert _run(timed, Series(), range(6), **unknown)[-1][0].cem43_min is not None
    with caplog.at_level(logging.WARNING):
        silent = SliceMonitor(SCAN, _settings())
        found = _run(silent, Series(), range(6), **unknown)
    assert found[-1][0].cem43_min is None
    assert all(statistics.alarms[0].startswith("no dose: the frame carries no time") for _, statistics in found)
    assert "frame_interval_s" in caplog.text
    assert (
        _run(SliceMonitor(SCAN, _settings(body_temperature_degc=None)), Series(), range(1), **unknown)[0][1].alarms
        == ()
    )


@pytest.mark.parametrize(("interval_s", "patience_s"), [(2.0, 6.0), (0.01, 1.0)])
def test_when_a_frame_arrived_is_no_time_of_its_dose(interval_s: float, patience_s: float) -> None:
    """It tells how long to wait for the next: what comes in a burst is waited for no less than a second."""
    series, monitor = Series(), SliceMonitor(SCAN, _settings())
    for number, place in enumerate((0, 1, 2, 3, 60, 61)):
        received_s = 10.0 + interval_s * place
        image = replace(series.image(number), footprint=(math.nan,) * 3, received_s=received_s)
        found, statistics = monitor.frame([image])
        # An arrival that comes late is the transport's.
        assert [text.partition(":")[0] for text in statistics.alarms] == ["no dose"]
    assert found.cem43_min is None
    assert monitor.patience_s == pytest.approx(patience_s)


def _counted(image: FrameImage, *, counter: str, number: int) -> FrameImage:
    """Return an image without a time whose place in the scan its number tells no more, or tells alone."""
    place, sampling = image.number, RadialSampling(n_readout=4, spacing=0.25, centre=2.0)
    changes = {
        "spokes": {
            "spokes": tuple(
                Spoke(data=np.zeros((1, 4), np.complex64), sampling=sampling, angle_rad=0.0, index=8 * place + spoke)
                for spoke in range(8)
            ),
            "number": number,
        },
        "repetition": {"header": SimpleNamespace(repetition=place), "number": number},
        "number": {},
    }[counter]
    return replace(image, footprint=(math.nan,) * 3, **changes)


@pytest.mark.parametrize("counter", ["spokes", "repetition", "number"])
def test_heat_that_comes_while_frames_are_missing_is_read_without_time_stamps(counter: str) -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(drift_order=1))
    for number, place in enumerate((*range(7), 57, 58)):
        found, statistics = monitor.frame([_counted(series.image(place), counter=counter, number=number)])
        stale = [text for text in statistics.alarms if "missing" in text]
        assert stale == (
            ["stale frame: 50 frames are missing before this one, limit 3 intervals"] if place == 57 else []
        )
    assert series.heat(58)[HOT].max() * abs(PER_DEGC) > 1.25 * math.pi
    errors = (found.temperature_degc[0] - 37.0 - series.heat(58))[HOT]
    assert np.isfinite(errors).all()
    assert np.abs(errors).max() < 1.0


def test_missing_frames_count_in_the_time_from_the_interval() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(frame_interval_s=10.0))
    for number, place in enumerate((*range(7), 17)):
        _, statistics = monitor.frame([_counted(series.image(place), counter="spokes", number=number)])
        assert statistics.time_s == 10.0 * place
    assert statistics.regions[0]["cem43_lower_bound"]
    assert any(text.startswith("stale frame: no map for 110.0 s") for text in statistics.alarms)


def test_frames_after_missing_ones_take_no_place_in_the_baseline() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings())
    for number, place in enumerate((0, 1, 2, 5, 6)):
        found, _ = monitor.frame([_counted(series.image(place), counter="spokes", number=number)])
    assert found.meta["baseline_frames"] == (0, 1, 2)
    assert abs((found.temperature_degc[0] - 37.0 - series.heat(6))[HOT].mean()) < 0.3


def test_fat_has_no_reading_and_can_be_the_reference() -> None:
    rim = BODY & (np.hypot(X / 0.65, Y / 0.55) > 1.0)
    text = "circle:32,8,2+circle:32,55,3+circle:9,32,3+circle:54,32,3"
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(fat=text, cold_mask="fat", drift_min_voxels=50))
    found, _ = _run(monitor, series, range(8))[-1]
    assert found.validity[0, 32, 9] == NoReading.SIGNAL
    assert rim[32, 9]
    assert abs((found.temperature_degc[0] - 37.0 - series.heat(7))[HOT].mean()) < 0.2


@pytest.mark.parametrize("commanded", [False, True])
def test_a_cold_mask_that_is_held_still_tells_no_drift(commanded: bool) -> None:
    """What the network does not look for there may have turned by any drift: there is no reading, and it says why."""
    cold = "polygon:14,22,50,22,50,28,14,28"
    settings = _settings(cold_mask="auto" if commanded else cold, drift_order="1")
    monitor, series = SliceMonitor(SCAN, settings), Series(start=99)
    held = (Y < -0.1)[None] & BODY
    for number in range(7):
        if number == 5 and commanded:
            monitor.configure(settings.model_copy(update={"cold_mask": cold}))
        found, statistics = monitor.frame([series.image(number, held=held)])
    assert (found.validity[0][BODY] & NoReading.DRIFT).all()
    assert any("the network holds the cold mask still" in text for text in statistics.alarms)
    free, _ = monitor.frame([series.image(7)])
    assert np.isfinite(free.change_degc).any()


def test_what_a_network_held_still_tells_nothing_of_the_noise_beside_it() -> None:
    held = ((X > -0.1) & BODY)[None]
    monitors = [SliceMonitor(SCAN, _settings(sigma="temporal", baseline_frames=12, drift_order="-1")) for _ in range(2)]
    random = np.random.default_rng(4)
    for number in range(13):
        noise = SD * (random.standard_normal((1, 1, N, N)) + 1j * random.standard_normal((1, 1, N, N)))
        images = (BODY + noise).astype(np.complex64), (BODY + np.where(held, 0.0, noise)).astype(np.complex64)
        (free, _), (found, _) = (
            monitor.frame([FrameImage(data=data, number=number, held=still, footprint=(number, number, number))])
            for monitor, data, still in zip(monitors, images, (None, held), strict=True)
        )
    beside = BODY & (X <= -0.1) & (X > -0.2) & (np.abs(Y) < 0.4)
    np.testing.assert_allclose(np.median(found.sigma_degc[0][beside]), np.median(free.sigma_degc[0][beside]), rtol=0.1)


def test_what_is_no_noise_does_not_average_over_echoes() -> None:
    shown = {}
    for n_echoes in (1, 4):
        times = tuple(0.019 + 1e-4 * echo for echo in range(n_echoes))
        monitor = SliceMonitor(replace(SCAN, echo_times_s=times), _settings(drift_order="-1"))
        series = Series(noise=1e-5)
        for number in range(9):
            found, _ = monitor.frame(
                [series.image(number, te=te, echo=echo, change_error=(0.1, 0.0)) for echo, te in enumerate(times)]
            )
        shown[n_echoes] = found
    sigma = shown[1].sigma_degc[0][HOT]
    assert sigma.min() > 0.5
    np.testing.assert_allclose(shown[4].sigma_degc[0][HOT], sigma, rtol=0.01)


def test_what_a_network_held_still_has_no_reading_and_is_no_loss() -> None:
    """Wherever it lies in this frame, of whichever echo: it would be shown as cold."""
    scan = replace(SCAN, echo_times_s=(0.010, 0.019))
    series, monitor = Series(), SliceMonitor(scan, _settings(regions="hot=circle:35,29,5"))
    for number in range(10):
        held = np.roll(HOT, number % 3, axis=1)[None]
        echoes = [series.image(number, te=te, echo=echo) for echo, te in enumerate(scan.echo_times_s)]
        found, statistics = monitor.frame([echoes[0], replace(echoes[1], held=held)])
        if number >= 4:
            assert (found.validity[held] == NoReading.SIGNAL).all()
            assert np.isnan(found.change_degc[held]).all()
            assert np.isfinite(found.change_degc[0][BODY & ~held[0] & (np.hypot(X, Y) < 0.5)]).mean() > 0.95
            assert statistics.alarms == ()


def test_given_cold_mask_and_no_drift_correction() -> None:
    series = Series()
    given = SliceMonitor(SCAN, _settings(cold_mask="circle:14,32,6+circle:50,32,6+circle:32,50,5"))
    found, _ = _run(given, series, range(8))[-1]
    assert abs((found.temperature_degc[0] - 37.0 - series.heat(7))[HOT].mean()) < 0.2
    plain = SliceMonitor(SCAN, _settings(drift_order=-1))
    found, _ = _run(plain, series, range(8))[-1]
    assert abs((found.temperature_degc[0] - 37.0 - series.heat(7))[HOT].mean()) > 1.0
    assert "drift_ok" not in found.meta


def test_failed_drift_fits_keep_the_last_good_one_for_a_while() -> None:
    series = Series(noise=1e-4)
    monitor = SliceMonitor(
        SCAN, _settings(drift_hold_frames=2, motion_correlation=0.0, motion_shift_px=99, alarm_signal=0)
    )
    _run(monitor, series, range(6))
    alarms = []
    for number in range(6, 9):
        image = series.image(number)
        image.data[0, 0][RIM] = np.nan
        found, statistics = monitor.frame([image])
        alarms.append(statistics.alarms)
        valid = found.validity[0][HOT] == 0
        assert valid.all() == (number < 8)
    assert all("drift fit failed" in " ".join(raised) for raised in alarms)
    assert "1 frames old" in " ".join(alarms[0])
    assert "no reading" in " ".join(alarms[2])
    assert found.validity[0][HOT].all()
    assert (found.validity[0][HOT] & NoReading.DRIFT).all()


def test_a_jump_is_flagged_as_a_wrap() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(alarm_wrap=0.001))
    _run(monitor, series, range(6))
    image = series.image(6)
    image.data[..., 20:24, 20:24] *= np.exp(2.9j)
    found, statistics = monitor.frame([image])
    assert (found.validity[0, 21:23, 21:23] & NoReading.WRAP).all()
    assert np.isnan(found.temperature_degc[0, 21:23, 21:23]).all()
    assert any(text.startswith("wrap risk") for text in statistics.alarms)


def test_a_focus_that_cannot_be_read_is_an_alarm_of_its_region() -> None:
    """Its hottest voxels are missing from T10, which lies below the limit, and are few in the body."""
    focus = 34.0 * np.exp(-((X - 0.1) ** 2 + (Y + 0.1) ** 2) / (2 * (1.5 / 32) ** 2))
    scan, per_degc = replace(SCAN, larmor_hz=123.2e6, echo_times_s=(0.016,)), PER_DEGC * 123.2 / 63.87 * 0.016 / 0.019
    series = Series(start=99)
    monitor = SliceMonitor(scan, _settings(alarm_temperature_degc=55.0))
    _run(monitor, series, range(6))
    for number in (6, 7):
        image = series.image(number)
        image.data[...] *= np.exp(1j * per_degc * focus)
        found, statistics = monitor.frame([image])
        row = statistics.regions[0]
        wrapped = int((found.validity[0][HOT] & NoReading.WRAP > 0).sum())
        assert statistics.alarms == (f"readings lost: hot is down to {29 - wrapped} of 29 voxels ({wrapped} wrap)",)
        assert row["t10_degc"] < 55.0 < 37.0 + np.percentile(focus[HOT], 90)
        assert row["cem43_lower_bound"] is True


@pytest.mark.parametrize("share", [0.3, 0.01])
def test_tissue_that_loses_its_signal_is_an_alarm_of_its_region(share: float) -> None:
    series, monitor = Series(start=99, noise=0.08), SliceMonitor(SCAN, _settings())
    _run(monitor, series, range(6))
    image = series.image(6)
    image.data[..., 27:31, 33:37] *= share
    _, statistics = monitor.frame([image])
    kinds = [text.partition(":")[0] for text in statistics.alarms]
    assert kinds == ["readings lost"]
    assert "noise" in statistics.alarms[0]


@pytest.mark.parametrize("mode", ["mean", "harmonic"])
def test_what_a_region_never_could_read_is_no_alarm(mode: str) -> None:
    """It lies partly outside of the body, in fat, in dim tissue whose uncertainty is at its limit, and elsewhere."""
    rim = "rim=circle:10,32,8;fat=circle:20,20,6;dim=circle:44,44,6;part=circle:46,29,8"
    settings = _settings(
        regions=rim,
        fat="circle:18,18,5",
        baseline_mode=mode,
        heated="circle:35,29,11" if mode == "harmonic" else "",
        max_sigma_degc=2.0,
    )
    series, monitor = Series(start=99, noise=0.04), SliceMonitor(SCAN, settings)
    dim = 0.2 + 0.8 * (np.hypot(X - 12 / 32, Y - 12 / 32) > 0.2)
    raised, counts = [], []
    for number in range(30):
        image, noise = series.image(number), series.random.standard_normal((2, N, N))
        data = image.data * dim + 0.04 * np.sqrt(1.0 - dim**2) * (noise[0] + 1j * noise[1])
        _, statistics = monitor.frame([replace(image, data=data.astype(np.complex64))])
        raised += [text for text in statistics.alarms if text.startswith("readings lost")]
        counts += [(row["n"], row["voxels"]) for row in statistics.regions[:2]]
    assert raised == []
    assert all(n < voxels for n, voxels in counts)


def test_tissue_too_noisy_to_be_followed_now_and_then_is_no_reading_lost() -> None:
    scan = replace(SCAN, echo_times_s=(0.06,))
    monitor = SliceMonitor(scan, _settings(regions="dim=circle:35,29,2"))
    found = _run(monitor, Series(start=99, noise=0.1), range(24), te=0.06, signal=np.where(HOT, 0.35, BODY))
    assert not any(text.startswith("readings lost") for _, statistics in found for text in statistics.alarms)
    assert min(statistics.regions[0]["n"] for _, statistics in found[4:]) < found[-1][1].regions[0]["voxels"]


def test_noise_outside_of_the_body_is_no_reading_lost() -> None:
    """In images of SNR 5 it has more signal than the limit, and an uncertainty that its luck in a frame hides."""
    scan = replace(SCAN, larmor_hz=123.2e6, echo_times_s=(0.025,))
    series, settings = Series(start=99, noise=0.2), _settings(regions="out=circle:4,32,8", baseline_frames=10)
    monitor = SliceMonitor(scan, settings)
    found = _run(monitor, series, range(36), noise_sd=None)
    assert [text for _, statistics in found for text in statistics.alarms if text.startswith("readings lost")] == []
    assert found[-1][1].regions[0]["n"] > 40


def test_neighbours_smooth_and_the_unfiltered_map_is_kept() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(neighbours=3))
    found, _ = _run(monitor, series, range(8))[-1]
    cold = (HEAT < 0.01) & (np.hypot(X / 0.7, Y / 0.6) < 1.0)
    assert np.nanstd(found.change_degc[0][cold]) < 0.5 * np.nanstd(found.unfiltered_degc[0][cold])
    plain, _ = _run(SliceMonitor(SCAN, _settings()), Series(), range(8))[-1]
    assert plain.unfiltered_degc is None
    both = (found.validity == 0) & (plain.validity == 0)
    np.testing.assert_array_equal(found.unfiltered_degc[both], plain.change_degc[both])
    assert found.unfiltered_degc.dtype == np.float32


def test_the_unfiltered_map_of_two_echoes_is_that_of_no_filter() -> None:
    scan = replace(SCAN, echo_times_s=(0.010, 0.019))
    maps = []
    for neighbours in (3, 1):
        series, monitor = Series(), SliceMonitor(scan, _settings(neighbours=neighbours))
        for number in range(8):
            echoes = [series.image(number, te=te, echo=echo) for echo, te in enumerate(scan.echo_times_s)]
            found, _ = monitor.frame(echoes)
        maps.append(found)
    smooth, plain = maps
    assert plain.unfiltered_degc is None
    both = (smooth.validity == 0) & (plain.validity == 0)
    assert both.sum() > 500
    np.testing.assert_array_equal(smooth.unfiltered_degc[both], plain.change_degc[both])


def test_the_filter_in_time_follows_the_heating_with_less_noise() -> None:
    """The uncertainty is that of what is shown, before heating and in it, and the map without the filter is kept."""
    settings = {"baseline_frames": 30, "regions": ""}
    scores, errors, means = [], [], []
    both = [SliceMonitor(SCAN, _settings(**settings, temporal=how)) for how in ("trend", "none")]
    series = Series(start=60)
    for number in range(90):
        image = series.image(number)
        (found, statistics), (plain, _) = (monitor.frame([image]) for monitor in both)
        if number < 30:
            assert found.unfiltered_degc is not None
            assert np.isnan(found.unfiltered_degc).all()
            continue
        assert statistics.alarms == ()
        valid = (found.validity == 0) & (plain.validity == 0)
        np.testing.assert_array_equal(found.unfiltered_degc[valid], plain.change_degc[valid])
        assert np.median(found.sigma_degc[valid]) < np.median(plain.sigma_degc[valid])
        error = found.change_degc - series.heat(number)
        scores.append((error / found.sigma_degc)[valid])
        errors.append([np.square(one.change_degc - series.heat(number))[valid].mean() for one in (found, plain)])
        means.append(error[0][HOT].mean())
    assert found.meta["temporal"] == "trend"
    assert plain.meta["temporal"] == "none"
    filtered, unfiltered = np.sqrt(np.mean(errors, axis=0))
    assert filtered < 0.75 * unfiltered
    for part in (scores[:30], scores[30:]):
        assert np.mean(np.abs(np.concatenate(part)) < 1.96) == pytest.approx(0.95, abs=0.03)
    assert abs(np.mean(means[30:])) < 0.03
    assert np.abs(means).max() < 0.15


@pytest.mark.parametrize("dropped", ["motion", "guard"])
def test_a_frame_that_is_no_reading_is_no_part_of_the_course(dropped: str) -> None:
    series, kept = Series(start=99), []
    for without in (True, False):
        monitor = SliceMonitor(SCAN, _settings(temporal="trend"))
        _run(monitor, Series(start=99), range(10))
        if not without:
            image = series.image(10)
            turned = image.data * np.exp(1j * PER_DEGC * 5.0 * HOT)
            moved = np.roll(turned, 9, axis=-1) if dropped == "motion" else turned
            withheld = "residual above bound" if dropped == "guard" else ""
            found, _ = monitor.frame([replace(image, data=moved.astype(np.complex64))], withheld=withheld)
            assert found.validity.all()
        last = Series(start=99, seed=5).image(11)
        kept.append(monitor.frame([last])[0])
    valid = (kept[0].validity == 0) & (kept[1].validity == 0)
    assert valid[0][HOT].all()
    np.testing.assert_array_equal(kept[0].change_degc[valid], kept[1].change_degc[valid])


def test_a_filter_in_time_without_times_is_none_and_says_so() -> None:
    unknown = {"footprint": (math.nan,) * 3}
    found = [
        _run(SliceMonitor(SCAN, _settings(temporal=how)), Series(), range(8), **unknown)[-1]
        for how in ("trend", "none")
    ]
    (trend, statistics), (plain, _) = found
    assert statistics.alarms[0].startswith("no dose and no filter in time: the frame carries no time")
    np.testing.assert_allclose(trend.change_degc, plain.change_degc, atol=1e-4)
    change = _settings(temporal="trend", body_temperature_degc=None)
    _, statistics = _run(SliceMonitor(SCAN, change), Series(), range(1), **unknown)[0]
    assert statistics.alarms[0].startswith("no filter in time:")


@pytest.mark.parametrize("planes", [1, 2])
def test_the_filter_in_time_outlives_power_that_is_switched(planes: int) -> None:
    """Also in foreign images, which are exactly zero outside of the body, and where one plane of a volume heats."""
    monitor = SliceMonitor(SCAN, _settings(temporal="trend", baseline_frames=10))
    series, still = Series(start=99), Series(start=99, seed=7)
    for number in range(50):
        heat = 8.0 * HOT * (20 <= number < 35)
        image = series.image(number)
        hot = (image.data * np.exp(1j * PER_DEGC * heat) * BODY).astype(np.complex64)
        image = replace(image, data=hot)
        found, statistics = monitor.frame([_volume([image, *[still.image(number)] * (planes - 1)])])
        if number < 10:
            continue
        assert statistics.alarms == ()
        for plane, true in enumerate((heat, np.zeros_like(heat))[:planes]):
            valid = found.validity[plane] == 0
            assert valid[HOT].all()
            assert np.abs(found.change_degc[plane] - true)[HOT].max() < 6.0 * 0.15
            scores = ((found.change_degc[plane] - true) / found.sigma_degc[plane])[valid & BODY]
            assert np.mean(np.abs(scores) < 1.96) > 0.9


def _of(data: np.ndarray, number: int, *, lasts_s: float = 10.0) -> FrameImage:
    """Return the frame of an image (y, x), of which one begins every 10 s."""
    return FrameImage(
        data=data.astype(np.complex64)[None, None],
        number=number,
        noise_sd=np.full((1, N, N), SD, np.float32),
        footprint=(10.0 * number, 10.0 * number + lasts_s / 2.0, 10.0 * number + lasts_s),
    )


@pytest.mark.parametrize("frames", [4, 10, 30])
def test_windows_that_slide_make_the_filter_in_time_no_surer_than_a_frame(frames: int) -> None:
    """Noise that frames share does not average out, and their baseline hides a part of it."""
    monitor = SliceMonitor(SCAN, _settings(temporal="trend", baseline_frames=frames))
    noise = np.random.default_rng(3).standard_normal((frames + 24, N, N, 2)) @ (1.0, 1j) * SD * 2.0
    covered = []
    for number in range(frames + 20):
        data = BODY * np.exp(0.4j * X) + noise[number : number + 4].mean(axis=0)
        found, _ = monitor.frame([_of(data, number, lasts_s=40.0)])
        if number >= frames + 5:
            valid = found.validity[0] == 0
            covered.append(np.mean(np.abs(found.change_degc[0] / found.sigma_degc[0])[valid] < 1.96))
    assert np.mean(covered) > 0.92


@pytest.mark.parametrize(("mode", "most"), [("mean", 0.98), ("library", 1.0)])
def test_the_filtered_uncertainty_covers_breathing(mode: str, most: float) -> None:
    """A library's states take turns, and their noise averages out too; that is not counted, for breath may be held."""
    monitor = SliceMonitor(SCAN, _settings(temporal="trend", baseline_frames=30, baseline_mode=mode, drift_order=0))
    covered = []
    for number in range(70):
        breath = 0.2 * math.sin(2.0 * math.pi * number / 5.0) * (mode == "library")
        phase = PER_DEGC * 3.0 * breath * X
        random = np.random.default_rng(number)
        data = BODY * np.exp(1j * phase) + SD * (random.standard_normal((N, N, 2)) @ (1.0, 1j))
        found, _ = monitor.frame([_of(data, number)])
        if number >= 35:
            valid = found.validity[0] == 0
            covered.append(np.mean(np.abs(found.change_degc[0] / found.sigma_degc[0])[valid] < 1.96))
    assert 0.92 < np.mean(covered) <= most


def test_a_filter_in_time_loses_no_readings_that_are_none() -> None:
    """What is followed now and then is no reading expected, however certain the filter makes it."""
    alarms = {}
    for how in ("trend", "none"):
        series = Series(start=99, noise=0.27)
        monitor = SliceMonitor(SCAN, _settings(temporal=how, baseline_frames=10, max_sigma_degc=10.0))
        alarms[how] = [text for _, found in _run(monitor, series, range(50)) for text in found.alarms]
    assert len(alarms["trend"]) <= len(alarms["none"])


def test_the_times_before_heating_are_those_at_which_the_frames_came() -> None:
    """Of frames without a time, of which some are missing, the course has the gaps where they were."""
    monitor = SliceMonitor(SCAN, _settings(temporal="trend", baseline_frames=4, frame_interval_s=10.0))
    seen = []
    series = Series(start=99)
    for place in (0, 1, 3, 4):
        image = _counted(replace(series.image(place)), counter="spokes", number=len(seen))
        seen.append(image.number)
        monitor.frame([image])
    learned = monitor._service.first._trends[0]
    assert learned._time_s == 40.0


def test_another_cold_mask_begins_the_course_anew() -> None:
    changes = {}
    for how in ("trend", "none"):
        series, monitor = Series(start=99), SliceMonitor(SCAN, _settings(temporal=how, baseline_frames=10))
        _run(monitor, series, range(20))
        monitor.configure(_settings(temporal=how, baseline_frames=10, cold_mask="circle:32,45,6"))
        changes[how] = _run(monitor, series, range(20, 21))[0][0]
    both = (changes["trend"].validity == 0) & (changes["none"].validity == 0)
    np.testing.assert_allclose(changes["trend"].change_degc[both], changes["none"].change_degc[both], atol=1e-4)


def test_two_echoes_are_filtered_in_time_each() -> None:
    scan, errors = replace(SCAN, echo_times_s=(0.010, 0.019)), []
    for how in ("trend", "none"):
        series, monitor = Series(noise=0.03), SliceMonitor(scan, _settings(temporal=how))
        for number in range(16):
            echoes = [series.image(number, te=te, echo=echo) for echo, te in enumerate(scan.echo_times_s)]
            found, _ = monitor.frame(echoes)
        errors.append((found.change_degc[0] - series.heat(15))[found.validity[0] == 0].std())
    assert errors[0] < 0.8 * errors[1]


def test_a_frame_without_a_reading_has_no_unfiltered_one_either() -> None:
    for neighbours in (3, 1):
        series, monitor = Series(), SliceMonitor(SCAN, _settings(neighbours=neighbours))
        found, _ = _run(monitor, series, range(2))[-1]
        if neighbours == 1:
            assert found.unfiltered_degc is None
        else:
            assert np.isnan(found.unfiltered_degc).all()


@pytest.mark.parametrize("fov_m", [None, (0.2, 0.2), (0.4, 0.1)])
def test_volumes_and_millimetres_are_those_of_the_images(fov_m, caplog) -> None:
    """Foreign images of twice the header's matrix, which state its field of view, another one, or none."""
    n = 2 * N
    across, down = (size / n for size in fov_m or (0.2, 0.2))
    y, x = (np.mgrid[:n, :n] - n // 2) * np.array([down, across])[:, None, None]
    body, disc = np.hypot(x / (60 * across), y / (60 * down)) < 1.0, np.hypot(x, y) <= 0.0201
    random = np.random.default_rng(5)
    monitor = SliceMonitor(SCAN, _settings(regions="hot=circle:0,0,20.1mm", drift_order=0))
    for number in range(6):
        data = body * np.exp(1j * PER_DEGC * 8.0 * disc * (number >= 4))
        data = data + SD * (random.standard_normal((n, n)) + 1j * random.standard_normal((n, n)))
        image = FrameImage(
            data=data.astype(np.complex64)[None, None], number=number, noise_sd=np.full((1, n, n), SD), fov_m=fov_m
        )
        found, statistics = monitor.frame([image])
    (row,) = statistics.regions
    assert row["voxels"] == disc.sum()
    assert row["volume_above_43_ml"] == pytest.approx(disc.sum() * across * down * 0.005 * 1e6)
    assert found.fov_m == fov_m
    assert ("state no field of view" in caplog.text) == (fov_m is None)
    # The rim in which the drift is fitted has its width in millimetres as well.
    rim = periphery_mask(body.astype(float), 0.05, (across, down))
    assert found.meta["drift_voxels"] == pytest.approx(rim.sum(), rel=0.2)
    monitor.configure(_settings(regions="hot=circle:0,0,20.1mm;other=circle:0,0,10mm", cold_mask="circle:40,0,12mm"))
    found, statistics = monitor.frame([replace(image, number=6)])
    assert statistics.regions[1]["voxels"] == (np.hypot(x, y) <= 0.01 + 1e-9).sum()
    assert found.meta["drift_voxels"] == pytest.approx((np.hypot(x - 0.04, y) <= 0.012).sum(), rel=0.2)


def test_a_new_baseline_of_another_field_of_view_has_other_volumes() -> None:
    series, volumes = Series(start=99), []
    monitor = SliceMonitor(SCAN, _settings(body_temperature_degc=44.0))
    for number in range(10):
        if number == 5:
            monitor.renew_baseline(range(5, 9))
        _, statistics = monitor.frame([series.image(number, fov_m=(0.2, 0.2) if number < 5 else (0.4, 0.2))])
        volumes += [row["volume_above_43_ml"] for row in statistics.regions]
    assert volumes[-1] == pytest.approx(2.0 * volumes[0])


@pytest.mark.parametrize("began", [39.0, 35.0])
def test_a_body_temperature_commanded_anew_carries_the_dose_over(began: float) -> None:
    series = Series(noise=1e-4)
    right, changed = (SliceMonitor(SCAN, _settings(body_temperature_degc=value)) for value in (37.0, began))
    for number in range(12):
        if number == 8:
            # What is put right before the next frame changes nothing.
            changed.configure(_settings(body_temperature_degc=41.0))
            changed.configure(_settings(body_temperature_degc=37.0))
        image = series.image(number)
        (expected, rows), (found, statistics) = (one.frame([image]) for one in (right, changed))
        told = [text for text in statistics.alarms if text.startswith("dose carried over: ")]
        assert len(told) == (number == 8)
        assert all(f"body temperature of {began:g} degC, now 37;" in text for text in told)
    read = np.isfinite(expected.cem43_min[0])
    assert read.any()
    assert (found.cem43_min[0] <= expected.cem43_min[0] * 1.001)[read].all()
    assert found.meta["dose_lower_bound_voxels"] == read.sum()
    assert expected.meta["dose_lower_bound_voxels"] == 0
    row, exact = statistics.regions[0], rows.regions[0]
    assert row["cem43_lower_bound"] is True
    assert 0.3 < row["cem43_t50_min"] / exact["cem43_t50_min"] < 1.0 + 1e-9


def test_a_body_temperature_commanded_before_the_first_reading_is_that_of_the_dose() -> None:
    series = Series(noise=1e-4)
    right, changed = (SliceMonitor(SCAN, _settings(body_temperature_degc=value)) for value in (37.0, 39.0))
    for number in range(9):
        if number == 4:
            changed.configure(_settings(body_temperature_degc=37.0))
        image = series.image(number)
        (expected, _), (found, statistics) = (one.frame([image]) for one in (right, changed))
        assert statistics.alarms == ()
    np.testing.assert_array_equal(found.cem43_min, expected.cem43_min)
    assert found.meta["dose_lower_bound_voxels"] == 0


def test_noise_of_foreign_images_from_the_pre_heating_frames() -> None:
    series = Series(start=30)
    series.start = 30
    monitor = SliceMonitor(SCAN, _settings(baseline_frames=30))
    found, _ = _run(monitor, series, range(31), noise_sd=None)[-1]
    known, _ = _run(SliceMonitor(SCAN, _settings(baseline_frames=30)), Series(start=30), range(31))[-1]
    ratio = found.sigma_degc[0][BODY] / known.sigma_degc[0][BODY]
    assert np.nanmedian(ratio) == pytest.approx(1.0, abs=0.05)


def test_changes_of_different_references_scatter_by_their_own_noise_only() -> None:
    series, random, frames = Series(start=30), np.random.default_rng(5), 30
    # They agree in the tissue that tells the drift: of what differs there its fit is uncertain.
    references = [BODY * np.exp(0.2j * ~RIM * random.standard_normal((N, N))) for _ in range(5)]
    clean = [
        replace(image, data=image.data * reference)
        for image, reference in ((series.image(n, noise_sd=None), references[n % 5]) for n in range(frames))
    ]
    monitor = SliceMonitor(SCAN, _settings(baseline_frames=frames))
    own = [
        replace(image, reference=references[n % 5][None, None].astype(np.complex64)) for n, image in enumerate(clean)
    ]
    later = series.image(frames, noise_sd=None)
    found = [monitor.frame([image])[0] for image in (*own, later)][-1]
    blind = SliceMonitor(SCAN, _settings(baseline_frames=frames))
    mixed = [blind.frame([image])[0] for image in (*clean, later)][-1]
    known, _ = _run(SliceMonitor(SCAN, _settings(baseline_frames=frames)), Series(start=30), range(frames + 1))[-1]
    assert np.nanmedian(found.sigma_degc[0][BODY] / known.sigma_degc[0][BODY]) == pytest.approx(1.0, abs=0.05)
    assert np.nanmedian(mixed.sigma_degc[0][HOT]) > 5 * np.nanmedian(found.sigma_degc[0][HOT])


def test_tissue_that_lost_signal_is_as_uncertain_as_it_scatters() -> None:
    series = Series(start=99, noise=0.02)
    monitor = SliceMonitor(SCAN, _settings(baseline_frames=10, max_sigma_degc=9.0, drift_order=0))
    scores: dict[str, list[np.ndarray]] = {"dim": [], "as before": []}
    for number in range(16):
        time = (10.0 * number, 10.0 * number + 5.0, 10.0 * number + 10.0)
        image = series.image(0, noise_sd=None, footprint=time)
        data = image.data - np.where(HOT & (number >= 10), 0.8, 0.0).astype(np.float32) * np.exp(0.4j * X)
        found, _ = monitor.frame([replace(image, data=data.astype(np.complex64), number=number)])
        for name, place in (("dim", HOT), ("as before", BODY & ~HOT)):
            if number >= 10:
                assert (found.validity[0][HOT] == 0).all()
                scores[name].append((found.change_degc[0] / found.sigma_degc[0])[place & (found.validity[0] == 0)])
    assert 0.8 < np.concatenate(scores["dim"]).std() < 1.1
    assert 0.9 < np.concatenate(scores["as before"]).std() < 1.1


@pytest.mark.parametrize("states", [True, False])
def test_uncertainty_far_from_a_cold_mask_on_one_side(states: bool) -> None:
    series = Series(start=99)
    mask = "polygon:7,16,16,16,16,48,7,48"
    monitor = SliceMonitor(SCAN, _settings(cold_mask=mask, baseline_frames=8, drift_order=1))
    scores, sigmas = [], []
    changes = {} if states else {"noise_sd": None}
    for number, (found, _) in enumerate(_run(monitor, series, range(48), **changes)):
        if number >= 8:
            scores.append((found.change_degc[0] / found.sigma_degc[0])[found.validity[0] == 0])
            sigmas.append([np.median(found.sigma_degc[0][place & BODY]) for place in (X < -0.6, X > 0.6)])
    assert 0.8 < np.concatenate(scores).std() < 1.1
    near, far = np.mean(sigmas, axis=0)
    assert far > (1.5 if states else 1.2) * near


def test_a_network_states_the_error_of_large_changes() -> None:
    monitor = SliceMonitor(SCAN, _settings())
    plain, _ = _run(SliceMonitor(SCAN, _settings()), Series(), range(9))[-1]
    found, _ = _run(monitor, Series(), range(9), change_error=(0.1, 0.0))[-1]
    np.testing.assert_array_equal(found.change_degc, plain.change_degc)
    added = np.sqrt(found.sigma_degc[0][HOT] ** 2 - plain.sigma_degc[0][HOT] ** 2)
    assert np.median(added) == pytest.approx(0.1 * np.median(HEAT[HOT]), rel=0.1)


def test_noise_that_is_not_known() -> None:
    one = SliceMonitor(SCAN, _settings(baseline_frames=1))
    found, statistics = _run(one, Series(start=1), range(3), noise_sd=None)[-1]
    assert any(text.startswith("noise not known") for text in statistics.alarms)
    assert np.isnan(found.sigma_degc).all()
    assert (found.validity & NoReading.NOISE).all()
    assert np.isnan(found.change_degc).all()
    none = SliceMonitor(SCAN, _settings())
    found, statistics = _run(none, Series(), range(6), noise_sd=np.zeros((1, N, N), np.float32))[-1]
    assert any(text.startswith("noise not known") for text in statistics.alarms)
    assert (found.validity & NoReading.NOISE).all()
    demanding = SliceMonitor(SCAN, _settings(sigma="formula", baseline_frames=1))
    with pytest.raises(DataError, match="state no noise"):
        _run(demanding, Series(), range(2), noise_sd=None)


def test_temporal_noise_leaves_out_rejected_frames() -> None:
    series = Series(start=9)
    monitor = SliceMonitor(SCAN, _settings(sigma="temporal", baseline_frames=6))
    images = [series.image(number) for number in range(7)]
    images[2] = replace(images[2], data=np.roll(images[2].data, 5, axis=-1))
    found = [monitor.frame([image])[0] for image in images][-1]
    assert found.meta["baseline_rejected"] == (2,)
    assert np.nanmedian(found.sigma_degc[0][HOT]) < 0.7


def test_a_stored_baseline_measures_from_the_first_frame() -> None:
    series = Series()
    first = SliceMonitor(SCAN, _settings())
    _run(first, series, range(4))
    second = SliceMonitor(SCAN, _settings(), stored=first.baselines)
    found, _ = second.frame([series.image(6)])
    assert abs((found.temperature_degc[0] - 37.0 - series.heat(6))[HOT].mean()) < 0.15
    with pytest.raises(BaselineError, match="larmor_hz"):
        SliceMonitor(replace(SCAN, larmor_hz=64e6), _settings(), stored=first.baselines).frame([series.image(6)])
    with pytest.raises(BaselineError, match="no echo 1"):
        SliceMonitor(SCAN, _settings(), stored=first.baselines).frame([series.image(6, echo=1)])


@pytest.mark.parametrize("changes", [{"echo_times_s": (0.01,)}, {"larmor_hz": 64.9e6}])
def test_a_stored_baseline_is_bound_to_what_the_settings_gave(changes: dict[str, object]) -> None:
    silent, given = replace(SCAN, larmor_hz=None, echo_times_s=()), {"larmor_hz": 63.87e6, "echo_times_s": (0.019,)}
    first = SliceMonitor(silent, _settings(**given))
    _run(first, Series(), range(4))
    SliceMonitor(silent, _settings(**given), stored=first.baselines).frame([Series().image(5)])
    with pytest.raises(BaselineError, match=next(iter(changes)).removesuffix("s_s")):
        SliceMonitor(silent, _settings(**given | changes), stored=first.baselines).frame([Series().image(5)])


def test_a_change_in_mid_scan_stops_the_readings() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings())
    _run(monitor, series, range(5), fingerprint={"method": "fbp"})
    found, statistics = monitor.frame([series.image(5, fingerprint={"method": "gridding"})])
    assert (found.validity == NoReading.NO_BASELINE).all()
    assert "method = gridding" in statistics.alarms[0]
    _, statistics = monitor.frame([series.image(6, echo=1, fingerprint={"method": "fbp"})])
    assert statistics.alarms == ("baseline: echo 1 has no baseline",)
    found, statistics = monitor.frame([series.image(7, fingerprint={"method": "fbp"})])
    assert np.isfinite(found.temperature_degc[0][HOT]).all()


def test_frames_skipped_and_baseline_on_command_only() -> None:
    monitor = SliceMonitor(SCAN, _settings(baseline_skip=2, baseline_frames=2))
    found = [pair[0] for pair in _run(monitor, Series(), range(5))]
    assert [np.isfinite(one.change_degc).any() for one in found] == [False] * 4 + [True]
    assert found[-1].meta["baseline_frames"] == (2, 3)
    waiting = SliceMonitor(SCAN, _settings(baseline_rule="on_command"))
    assert not np.isfinite(_run(waiting, Series(), range(6))[-1][0].change_degc).any()


def test_two_echoes_are_combined() -> None:
    scan = replace(SCAN, echo_times_s=(0.008, 0.019))
    series = Series(noise=0.05)
    both, one = SliceMonitor(scan, _settings()), SliceMonitor(scan, _settings())
    for number in range(8):
        pair = [series.image(number, te=0.008), series.image(number, echo=1)]
        found, _ = both.frame(pair)
        alone, _ = one.frame(pair[1:])
    cold = HEAT < 0.01
    assert abs((found.temperature_degc[0] - 37.0 - series.heat(7))[HOT].mean()) < 0.25
    assert np.nanmedian(found.sigma_degc) < np.nanmedian(alone.sigma_degc)
    assert np.nanstd(found.change_degc[0][cold]) < np.nanstd(alone.change_degc[0][cold])
    with pytest.raises(HeaderError, match="echo 2 has no TE"):
        _run(SliceMonitor(scan, _settings()), series, range(4), echo=2)


@pytest.mark.parametrize("echo_times_s", [(0.06,), (0.02, 0.06)])
def test_tissue_too_noisy_to_be_followed_is_not_shown_as_it_was(echo_times_s: tuple[float, ...]) -> None:
    """12 °C in steps of 1.2; the signal of the last echo is about twice its noise, that of the one before six times."""
    monitor = SliceMonitor(replace(SCAN, echo_times_s=echo_times_s), _settings())
    series = Series(noise=0.08)
    errors, read = [], []
    for number in range(14):
        images = []
        for echo, te in enumerate(echo_times_s):
            dim = 0.18 if te == echo_times_s[-1] else 0.5
            images.append(series.image(number, te=te, echo=echo, signal=np.where(HOT, dim, BODY)))
        if len(images) > 1:
            images[1].data[..., 29, 35] = 0.0
        found, _ = monitor.frame(images)
        if number >= 10:
            valid = HOT & (found.validity[0] == 0)
            assert ((found.validity[0][HOT & ~valid] & (NoReading.NOISE | NoReading.WRAP)) > 0).all()
            assert np.isfinite(found.sigma_degc[0][HOT]).all()
            errors.append((found.change_degc[0] - series.heat(number))[valid])
            read.append(valid[HOT].mean())
    assert abs(np.concatenate(errors).mean()) < 1.0
    if len(echo_times_s) == 1:
        assert np.mean(read) < 0.5
    else:
        assert np.mean(read) > 0.9
        assert valid[29, 35]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(HeaderError, match="larmor_hz"):
        SliceMonitor(replace(SCAN, larmor_hz=None), _settings())
    with pytest.raises(HeaderError, match="echo_times_s"):
        SliceMonitor(replace(SCAN, echo_times_s=()), _settings())
    # One in MHz and one in µs.
    with pytest.raises(HeaderError, match=r"of 63.87 Hz: .* give thermometry.larmor_hz"):
        SliceMonitor(replace(SCAN, larmor_hz=63.87), _settings())
    with pytest.raises(HeaderError, match=r"a TE of 19100 ms: .* above 1000; .* give thermometry.echo_times_s"):
        SliceMonitor(replace(SCAN, echo_times_s=(0.008, 19.1)), _settings())
    with pytest.raises(DataError, match="no phase"):
        SliceMonitor(SCAN, _settings()).frame([Series().image(0, phase_valid=False)])
    overridden = SliceMonitor(
        replace(SCAN, larmor_hz=None, echo_times_s=()), _settings(larmor_hz=63.87e6, echo_times_s=(0.019,))
    )
    found, _ = _run(overridden, Series(), range(6))[-1]
    assert found.meta["larmor_hz"] == 63.87e6


def test_stale_frames_and_the_guard_raise_alarms(caplog: pytest.LogCaptureFixture) -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings())
    _run(monitor, series, range(6))
    _, statistics = monitor.frame([series.image(20)], withheld="residual above bound")
    assert {text.split(":")[0] for text in statistics.alarms} == {"stale frame", "network guard"}
    assert "network guard: residual above bound" in caplog.text


def test_volume_needs_a_slice_thickness() -> None:
    flat = replace(SPACE, fov_m=(0.2, 0.2, 0.0))
    monitor = SliceMonitor(replace(SCAN, recon=flat), _settings())
    _, statistics = _run(monitor, Series(), range(6))[-1]
    assert "volume_above_41_ml" not in statistics.regions[0]
    monitor = SliceMonitor(replace(SCAN, recon=flat), _settings(slice_thickness_m=0.01))
    _, statistics = _run(monitor, Series(), range(6))[-1]
    assert "volume_above_41_ml" in statistics.regions[0]


def test_planes_of_a_slab_are_as_thick_as_its_partitions() -> None:
    """The recon matrix may announce twice the planes (zero filling), which are not made."""
    slab, filled = EncodingSpace(matrix=(N, N, 8), fov_m=(0.2, 0.2, 0.04)), {"body_temperature_degc": 42.0}
    scan = replace(SCAN, encoded=slab, recon=replace(slab, matrix=(N, N, 16)), n_partitions=8)
    for header, thickness in ((scan, 0.005), (replace(scan, n_partitions=1), 0.0025)):
        row = _run(SliceMonitor(header, _settings(**filled)), Series(start=4), range(8))[-1][1].regions[0]
        voxel_ml = 1e6 * (0.2 / N) ** 2 * thickness
        assert row["volume_above_43_ml"] == pytest.approx(row["voxels_above_43"] * voxel_ml)
        assert row["voxels_above_43"] > 5


def test_planes_of_a_foreign_volume_are_those_of_its_matrix() -> None:
    """It is interpolated along the slab where the header says so: twice the planes of half the thickness."""
    slab = EncodingSpace(matrix=(N, N, 1), fov_m=(0.2, 0.2, 0.01))
    scan = replace(SCAN, encoded=slab, recon=replace(slab, matrix=(N, N, 4)), n_partitions=2)
    monitor, series = SliceMonitor(scan, _settings(body_temperature_degc=42.0)), Series(start=4)
    for number in range(8):
        _, statistics = monitor.frame([_volume([series.image(number)] * 4)])
    row = statistics.regions[0]
    assert row["voxels_above_43"] > 5
    assert row["volume_above_43_ml"] == pytest.approx(row["voxels_above_43"] * 1e6 * (0.2 / N) ** 2 * 0.0025)


def test_baseline_of_stored_noise() -> None:
    """A stored baseline without noise map is taken to be as noisy as the frame."""
    series = Series()
    first = SliceMonitor(SCAN, _settings())
    _run(first, series, range(4))
    bare: dict[int, Baseline] = {0: replace(first.baselines[0], noise_sd=None)}
    found, _ = SliceMonitor(SCAN, _settings(), stored=bare).frame([series.image(5)])
    assert np.nanmedian(found.sigma_degc) == pytest.approx(SD * math.sqrt(1.25) / abs(PER_DEGC), rel=0.05)


@pytest.mark.parametrize("mode", ["polynomial", "harmonic"])
def test_referenceless_modes_read_the_heated_region_only(mode: str) -> None:
    series = Series(noise=0.005)
    monitor = SliceMonitor(SCAN, _settings(baseline_mode=mode, heated="circle:35,29,11", background_order=3))
    found, statistics = _run(monitor, series, range(8))[-1]
    assert abs((found.temperature_degc[0] - 37.0 - series.heat(7))[HOT].mean()) < 0.4
    assert found.validity[0, 32, 50] == NoReading.NO_BASELINE
    assert statistics.alarms == ()
    assert found.meta["baseline_mode"] == mode
    assert "baseline_effective_frames" not in found.meta


@pytest.mark.parametrize("mode", ["polynomial", "harmonic"])
def test_a_plane_without_a_heated_region_has_no_reading_and_ends_no_scan(mode: str, tmp_path) -> None:
    series = Series(noise=0.005)
    mask = np.zeros((3, N, N), bool)
    mask[1] = np.hypot(X - 0.1, Y + 0.1) < 0.34
    np.save(tmp_path / "mask.npy", mask)
    monitor = SliceMonitor(SCAN, _settings(baseline_mode=mode, heated=f"file:{tmp_path}/mask.npy", regions=""))
    for number in range(8):
        images = [series.image(number) for _ in range(3)]
        volume = np.concatenate([image.data for image in images], axis=1)
        noise = np.concatenate([image.noise_sd for image in images])
        found, statistics = monitor.frame([replace(images[0], data=volume, noise_sd=noise)])
        assert statistics.alarms == ()
    assert (found.validity[[0, 2]] & NoReading.NO_BASELINE).all()
    assert not found.validity[1][mask[1]].any()
    assert abs((found.change_degc[1] - series.heat(7))[HOT].mean()) < 0.4


@pytest.mark.parametrize("mode", ["polynomial", "harmonic"])
@pytest.mark.parametrize("sigma", ["auto", "temporal"])
def test_without_baseline_the_ring_tells_the_noise_of_images_that_state_none(mode: str, sigma: str) -> None:
    settings = _settings(baseline_mode=mode, heated="circle:35,29,11", background_order=2, sigma=sigma)
    monitor, series, scores = SliceMonitor(SCAN, settings), Series(start=0, noise=0.03), []
    for number in range(10):
        signal = BODY * (1.0 - 0.4 * Y)
        found, statistics = monitor.frame([series.image(number, signal=signal, noise_sd=None)])
        assert statistics.alarms == ()
        valid = found.validity[0] == 0
        assert valid[HOT].all()
        cool = valid & (HEAT < 0.05)
        scores.append((found.change_degc[0] / found.sigma_degc[0])[cool])
    assert 0.85 < np.concatenate(scores).std() < 1.1


def test_without_baseline_a_ring_tells_nothing_of_a_guided_network() -> None:
    series = Series(start=0)
    monitor = SliceMonitor(SCAN, _settings(baseline_mode="polynomial", heated="circle:35,29,11"))
    image = series.image(0, noise_sd=None)
    found, statistics = monitor.frame([replace(image, reference=series.image(0).data)])
    assert not np.isfinite(found.change_degc).any()
    assert any("noise not known: a reference-guided network states none" in text for text in statistics.alarms)
    # Nor do images of which the formula is asked for, and which do not state their noise.
    with pytest.raises(DataError, match="state no noise"):
        SliceMonitor(SCAN, _settings(baseline_mode="polynomial", heated="circle:35,29,11", sigma="formula")).frame(
            [image]
        )


def test_without_baseline_a_dark_ring_tells_no_noise() -> None:
    series = Series(start=0)
    monitor = SliceMonitor(SCAN, _settings(baseline_mode="polynomial", heated="circle:35,29,11"))
    monitor.frame([series.image(0, noise_sd=None)])
    image = series.image(1, noise_sd=None)
    found, statistics = monitor.frame([replace(image, data=np.where(HOT, image.data, np.complex64(0.0)))])
    assert not np.isfinite(found.change_degc).any()
    assert "noise not known: there is no signal in the ring to see it in" in statistics.alarms


@pytest.mark.parametrize("mode", ["polynomial", "harmonic"])
def test_referenceless_modes_read_a_region_that_is_hot_for_the_most_part(mode: str) -> None:
    series = Series(noise=0.005)
    heat = 54.0 * np.exp(-((np.hypot(X, Y) / 0.28) ** 8))
    image = series.image(0)
    image = replace(image, data=(image.data * np.exp(1j * PER_DEGC * heat)).astype(np.complex64))
    monitor = SliceMonitor(SCAN, _settings(baseline_mode=mode, heated="circle:32,32,12", regions="hot=circle:32,32,3"))
    found, statistics = monitor.frame([image])
    assert statistics.regions[0]["t50_degc"] == pytest.approx(91.0, abs=0.5)
    assert np.nanmax(np.abs(found.temperature_degc[0] - 37.0 - heat)) < 2.0


@pytest.mark.parametrize("what", ["zero", "not finite", "ring"])
def test_a_referenceless_frame_without_surroundings_has_no_reading_and_ends_no_scan(what: str) -> None:
    series, heated = Series(noise=0.005), np.hypot(X - 0.1, Y + 0.1) < 0.36
    monitor = SliceMonitor(SCAN, _settings(baseline_mode="harmonic", heated="circle:35,29,11"))
    found = []
    for number in range(4):
        image = series.image(number)
        if number == 2:
            image.data[...] *= {"zero": 0.0, "not finite": np.nan, "ring": heated}[what]
        found.append(monitor.frame([image]))
    read = [int((one.validity == 0).sum()) for one, _ in found]
    assert read[2] == 0
    assert read[3] == read[0] > 100
    assert any("no signal in the ring round the heated region" in text for text in found[2][1].alarms)
    assert found[3][1].alarms == ()


@pytest.mark.parametrize("what", ["zero", "one pixel is not finite", "noise"])
def test_a_referenceless_scan_begins_with_the_first_frame_that_has_signal(what: str) -> None:
    series = Series(noise=0.005)
    monitor = SliceMonitor(SCAN, _settings(baseline_mode="harmonic", heated="circle:35,29,11"))
    image = series.image(0)
    match what:
        case "zero":
            image.data[...] = 0.0
        case "noise":
            image.data[...] = series.random.standard_normal(image.data.shape) * 0.005
        case _:
            image.data[..., 3, 3] = np.nan
    found, statistics = monitor.frame([image])
    assert (found.validity == NoReading.NO_BASELINE).all()
    assert [text.partition(":")[0] for text in statistics.alarms] == ["baseline"]
    for number in range(1, 4):
        found, statistics = monitor.frame([series.image(number)])
        assert not found.validity[0][HOT].any()
        assert statistics.alarms == ()
    # Heating may have begun in the frame that could not be read.
    assert statistics.regions[0]["cem43_lower_bound"] is True


@pytest.mark.parametrize("lacking", [0, 1])
@pytest.mark.parametrize(
    "changes", [{}, {"baseline_mode": "polynomial", "heated": "circle:35,29,14", "background_order": 2}]
)
def test_an_echo_that_the_first_frame_lacks_is_measured_when_it_comes(lacking: int, changes: dict) -> None:
    """With a stored baseline and without any, a scan is as one whose first frame was whole."""
    times = (0.01, 0.019)
    scan = replace(SCAN, echo_times_s=times)

    def images(series: Series, number: int, *echoes: int) -> list[FrameImage]:
        # The later echo is weaker: it must not tell where the body lies.
        return [series.image(number, te=times[echo], echo=echo, signal=BODY * (1.0, 0.6)[echo]) for echo in echoes]

    first, series = SliceMonitor(scan, _settings(**changes)), Series()
    for number in range(4):
        first.frame(images(series, number, 0, 1))
    stored = None if changes else first.baselines
    found = []
    for echoes in ((0, 1), (1 - lacking,)):
        monitor, series = SliceMonitor(scan, _settings(**changes), stored=stored), Series(seed=5)
        whole = images(series, 6, 0, 1)
        held, statistics = monitor.frame([image for image in whole if image.echo in echoes])
        assert np.isfinite(held.change_degc[0][HOT]).all()
        assert statistics.alarms == ()
        found.append(monitor.frame(images(series, 7, 0, 1)))
        assert list(monitor.baselines) == [0, 1]
        assert monitor.generation == 1
    (one, told), (other, also_told) = found
    assert told.alarms == also_told.alarms == ()
    np.testing.assert_array_equal(one.validity, other.validity)
    np.testing.assert_allclose(one.change_degc, other.change_degc, atol=1e-5)
    assert told.regions[0]["n"] == also_told.regions[0]["n"] == told.regions[0]["voxels"]


@pytest.mark.parametrize("echo_times_s", [(0.019, 0.03), (0.019,)])
def test_a_stored_echo_of_another_te_does_not_serve(echo_times_s: tuple[float, ...]) -> None:
    scan, series = replace(SCAN, echo_times_s=(0.019, 0.025)), Series()
    first = SliceMonitor(scan, _settings())
    for number in range(4):
        first.frame([series.image(number), series.image(number, te=0.025, echo=1)])
    second = SliceMonitor(replace(SCAN, echo_times_s=echo_times_s), _settings(), stored=first.baselines)
    second.frame([series.image(6)])
    assert list(second.baselines) == [0]
    _, statistics = second.frame([series.image(7), series.image(7, te=0.03, echo=1)])
    assert statistics.alarms == ("baseline: echo 1 has no baseline",)


def test_a_dark_echo_that_comes_late_serves_no_referenceless_scan() -> None:
    scan = replace(SCAN, echo_times_s=(0.01, 0.019))
    monitor = SliceMonitor(scan, _settings(baseline_mode="polynomial", heated="circle:35,29,14"))
    series = Series()
    late = series.image(0, te=0.019, echo=1)
    monitor.frame([late])
    dark = replace(series.image(1, te=0.01), data=np.full_like(late.data, np.nan))
    found, statistics = monitor.frame([dark, series.image(1, te=0.019, echo=1)])
    assert not np.isfinite(found.change_degc).any()
    assert "baseline: echo 0 has no baseline" in statistics.alarms
    found, statistics = monitor.frame([series.image(2, te=0.01), series.image(2, te=0.019, echo=1)])
    assert np.isfinite(found.change_degc[0][HOT]).all()


def test_library_takes_the_most_similar_frame() -> None:
    """The phase breathes by 1 rad across the body; the library holds each state."""
    series = Series(start=4)
    monitor = SliceMonitor(
        SCAN,
        _settings(
            baseline_mode="library",
            motion_correlation=0.0,
            cold_mask="circle:8,32,2+circle:56,32,2+circle:32,11,2+circle:32,53,2",
            drift_min_voxels=20,
        ),
    )
    scores = []
    for number in range(9):
        image = series.image(number)
        breath = np.exp(1j * (number // 2 % 2) * X**2 * 2.0)
        found, _ = monitor.frame([replace(image, data=(image.data * breath).astype(np.complex64))])
        if number >= 4:
            scores.append(found.meta["baseline_score"])
            assert abs((found.temperature_degc[0] - 37.0 - series.heat(number))[HOT].mean()) < 0.35
    assert min(scores) > 0.6


def test_a_late_echo_that_tells_no_state_takes_no_reading_of_the_others() -> None:
    """Of TE 80 ms and T2* 20 ms hardly any signal is left to tell the state of breathing by."""
    scan = replace(SCAN, echo_times_s=(0.01, 0.02, 0.08))
    series = Series(start=8)
    monitor = SliceMonitor(scan, _settings(baseline_mode="library", baseline_frames=8))
    for number in range(12):
        breath = np.sin(2.0 * np.pi * number / 4.0) * Y**3
        images = [
            series.image(number, te=te, echo=echo, signal=BODY * np.exp(-te / 0.02) * np.exp(1j * breath * te / 0.02))
            for echo, te in enumerate(scan.echo_times_s)
        ]
        if number == 11:
            # What no echo can place has no reading.
            images = [replace(one, data=one.data * np.exp(2j * (Y > 0) * (X > 0))) for one in images]
        found, statistics = monitor.frame(images)
        if 8 <= number < 11:
            assert (found.validity[0][HOT] == 0).all()
            assert abs((found.temperature_degc[0] - 37.0 - series.heat(number))[HOT].mean()) < 0.3
            assert statistics.alarms == ()


@pytest.mark.parametrize("stated", [True, False])
def test_library_reads_a_rare_state_of_breathing_against_itself(stated: bool) -> None:
    """Every fifth frame lies 2 pixels higher and has another field; noise by formula, or by the library's frames."""
    large = gaussian_filter(np.hypot(*((np.mgrid[:96, :96] - 48) / 24)) < 1, 1.0)
    large = large * (1 + 0.4 * np.sin(np.mgrid[:96, :96][0] / 3) * np.cos(np.mgrid[:96, :96][1] / 4))
    states = [shift(large, (dy, 0.0), order=3)[16:80, 16:80] * np.exp(0.8j * dy * Y**3) for dy in (0.0, 2.0)]
    series = Series(start=10)
    monitor = SliceMonitor(SCAN, _settings(baseline_mode="library", baseline_frames=10, drift_order=-1))
    for number in range(16):
        signal = states[number % 5 == 2] * np.exp(-0.3j * PER_DEGC * number * (1.0 + X - 0.5 * Y))
        image = series.image(number, signal=signal, **({} if stated else {"noise_sd": None}))
        found, statistics = monitor.frame([image])
        if number >= 10:
            valid = found.validity[0] == 0
            errors = found.change_degc[0] - series.heat(number) / np.where(BODY, 1.0, np.inf)
            assert valid[HOT].all()
            assert 0.8 < (errors / found.sigma_degc[0])[valid].std() < 1.1
            assert found.meta["motion_shift_px"] < 0.1
            assert statistics.alarms == ()
    assert found.meta["baseline_frames"] == tuple(range(10))
    assert found.meta["baseline_rejected"] == ()
    # What lies as in no frame of the library is motion still.
    image = series.image(16, signal=np.roll(states[0], 3, axis=1))
    found, statistics = monitor.frame([image])
    assert not np.isfinite(found.change_degc).any()
    assert any(text.startswith("motion: ") for text in statistics.alarms)


@pytest.mark.parametrize(("stored", "mask"), [(False, "auto"), (True, "auto"), (False, "circle:32,12,2")])
@pytest.mark.parametrize("echo_times_s", [(0.019,), (0.008, 0.019)])
def test_heat_chooses_no_state_of_a_library(stored: bool, mask: str, echo_times_s: tuple[float, ...]) -> None:
    """It turns the phase as breathing does; in all tissue, states that cancel half of it are more like the frame."""
    heat = 12.0 * np.exp(-(X**2 + Y**2) / 0.08) * BODY
    scan = replace(SCAN, echo_times_s=echo_times_s)
    changes = {"baseline_mode": "library", "baseline_frames": 10, "cold_mask": mask, "drift_min_voxels": 5}
    settings = _settings(**changes, drift_order=0 if mask != "auto" else 1)
    monitor, series = SliceMonitor(scan, settings), Series(start=99)
    scores = []
    for number in range(20):
        change = heat * (number >= 10)
        breath = 0.4 * math.sin(0.4 * math.pi * number) * (X**2 * 1.5 + Y**3)
        images = []
        for echo, te in enumerate(echo_times_s):
            turned = te / 0.019 * (PER_DEGC * (change - 0.3 * number * (1.0 + X - 0.5 * Y)) + breath)
            images.append(series.image(number, te=te, echo=echo, signal=BODY * np.exp(1j * turned)))
        if number == 10 and stored:
            monitor = SliceMonitor(scan, settings, stored=monitor.baselines)
        found, statistics = monitor.frame(images)
        if number >= 10:
            assert statistics.alarms == ()
            valid = found.validity[0] == 0
            assert valid[HOT].all()
            errors = found.change_degc[0] - change
            assert abs(errors[HOT].mean()) < 0.3
            scores.append((errors / found.sigma_degc[0])[valid])
    assert 0.75 < np.concatenate(scores).std() < 1.1


@pytest.mark.parametrize(("taken", "set_now"), [("library", "mean"), ("mean", "library")])
def test_a_stored_baseline_is_used_as_what_it_was_taken(taken: str, set_now: str) -> None:
    series, first = Series(), SliceMonitor(SCAN, _settings(baseline_mode=taken))
    found, _ = _run(first, series, range(5))[-1]
    assert found.meta["baseline_mode"] == taken
    second = SliceMonitor(SCAN, _settings(baseline_mode=set_now), stored=first.baselines)
    found, _ = second.frame([series.image(5)])
    assert found.meta["baseline_mode"] == taken
    assert ("baseline_score" in found.meta) is (taken == "library")


@pytest.mark.parametrize("temporal", ["none", "trend"])
def test_a_state_that_the_library_lacks_is_told_and_soon_has_no_reading(temporal: str) -> None:
    series = Series(start=99)
    monitor = SliceMonitor(SCAN, _settings(baseline_mode="library", baseline_frames=6, temporal=temporal))
    for number in range(10):
        depth = {6: 0.1, 7: 1.5, 8: 0.1}.get(number, 0.0)
        found, statistics = monitor.frame([series.image(number, signal=BODY * np.exp(1j * depth * 2.0 * X**2))])
        told = [text for text in statistics.alarms if text.startswith("baseline: the cold tissue is less like")]
        assert bool(told) is (depth > 0.0)
        assert all(text.endswith("; no reading") is (depth > 1.0) for text in told)
        if number >= 6:
            assert (found.validity & NoReading.NO_BASELINE).any() == (depth > 1.0)
            assert np.isfinite(found.change_degc[0][HOT]).any() == (depth < 1.0)
            assert found.meta["baseline_score"] < 0.7 or depth == 0.0
    assert abs(found.change_degc[0][HOT].mean()) < 0.3


def test_one_frame_of_a_library_that_is_like_no_other_is_no_noise() -> None:
    sigma = []
    for rare in (0.0, 3.0):
        series = Series(start=10)
        monitor = SliceMonitor(SCAN, _settings(baseline_mode="library", baseline_frames=10, drift_order=-1))
        for number in range(11):
            state = series.image(number).data * np.exp(1j * rare * (number == 4) * X**2 * Y)
            found, statistics = monitor.frame(
                [replace(series.image(number, noise_sd=None), data=state.astype(np.complex64))]
            )
        assert statistics.alarms == ()
        assert (found.validity[0] == 0)[HOT].all()
        sigma.append(float(np.median(found.sigma_degc[0][HOT])))
    assert sigma[1] == pytest.approx(sigma[0], rel=0.15)


def test_motion_takes_the_reading() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings())
    _run(monitor, series, range(6))
    for moved, word in ((2, "edges shifted"), (12, "correlation")):
        image = series.image(6)
        found, statistics = monitor.frame([replace(image, data=np.roll(image.data, moved, axis=-1))])
        assert (found.validity & NoReading.MOTION).all()
        assert any(text.startswith("motion: ") and word in text for text in statistics.alarms)


def _volume(planes: list[FrameImage]) -> FrameImage:
    data = np.concatenate([plane.data for plane in planes], axis=1)
    return replace(planes[0], data=data, noise_sd=np.full(data.shape[1:], SD, np.float32))


def test_an_end_plane_without_body_takes_no_reading_from_the_others() -> None:
    series, monitor = Series(), SliceMonitor(SCAN, _settings())
    for number in range(8):
        full, empty = series.image(number), series.image(number)
        empty.data[...] -= BODY * empty.data
        found, statistics = monitor.frame([_volume([full, empty])])
    assert statistics.alarms == ()
    assert not found.validity[0][BODY].any()
    assert (found.validity[1] & NoReading.SIGNAL).all()
    assert not (found.validity & (NoReading.MOTION | NoReading.DRIFT)).any()
    assert found.meta["drift_ok"] is True


def test_motion_is_judged_plane_by_plane() -> None:
    series, monitor = Series(), SliceMonitor(SCAN, _settings())
    for number in range(7):
        planes = [series.image(number) for _ in range(3)]
        if number == 6:
            planes[1] = replace(planes[1], data=np.roll(planes[1].data, 3, axis=-1))
        found, statistics = monitor.frame([_volume(planes)])
    assert [bool((plane & NoReading.MOTION).all()) for plane in found.validity] == [False, True, False]
    assert not found.validity[[0, 2]][:, HOT].any()
    assert [text for text in statistics.alarms if text.startswith("motion") and "plane 1" in text]


def test_fat_is_found_and_masked() -> None:
    fat = BODY & (np.hypot(X / 0.62, Y / 0.52) > 1.0)
    offset = fat_phase(larmor_hz=63.87e6, echo_time_s=0.019, phase_sign=1)
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(fat="auto"))
    for number in range(6):
        image = series.image(number)
        data = image.data * np.where(fat, 1.5 * np.exp(1j * offset), 1.0)
        found, _ = monitor.frame([replace(image, data=data.astype(np.complex64))])
    assert (found.validity[0][fat] & NoReading.SIGNAL).mean() > 0.7
    assert not found.validity[0][HOT].any()
    with pytest.raises(DataError, match="2 coil images"):
        _run(SliceMonitor(SCAN, _settings(fat="auto")), Series(coils=True), range(4))


def test_renewed_baseline_keeps_or_resets_the_dose() -> None:
    for choice in ("keep", "reset"):
        series = Series()
        monitor = SliceMonitor(
            SCAN, _settings(dose_on_new_baseline=choice, baseline_frames=2, regions="hot=circle:35,29,3")
        )
        _run(monitor, series, range(10))
        assert monitor.generation == 1
        before, _ = monitor.frame([series.image(10)])
        assert monitor.n_heated > 10
        monitor.renew_baseline(range(11, 13))
        series.start = 99
        maps = _run(monitor, series, range(11, 15))
        assert monitor.generation == 2
        assert maps[-1][0].meta["baseline_frames"] == (11, 12)
        after = float(np.nanmax(maps[-1][0].cem43_min))
        assert abs(np.nanmean(maps[-1][0].change_degc[0][HOT])) < 0.3
        assert (after > 0.5 * float(np.nanmax(before.cem43_min))) == (choice == "keep")


@pytest.mark.parametrize("rule", ["after_frames", "on_command"])
def test_a_plane_that_is_moved_while_a_baseline_is_renewed_ends_no_scan(rule: str) -> None:
    series = Series(start=99)
    monitor = SliceMonitor(SCAN, _settings(baseline_rule=rule))
    _run(monitor, series, range(6), fingerprint={"geometry": "A"})
    monitor.renew_baseline(range(6, 10))
    _run(monitor, series, range(6, 8), fingerprint={"geometry": "A"})
    _run(monitor, series, range(8, 10), fingerprint={"geometry": "B"})
    found, statistics = _run(monitor, series, range(10, 11), fingerprint={"geometry": "A"})[0]
    served = rule == "after_frames"
    assert np.isfinite(found.change_degc).any() == served
    assert monitor.generation == served
    kept = "the old one serves on" if served else "there is none"
    refused = [text for text in statistics.alarms if text.startswith(f"new baseline refused: {kept}")]
    assert "geometry = B (baseline: A)" in refused[0]
    monitor.renew_baseline(range(11, 15))
    found, statistics = _run(monitor, series, range(11, 16), fingerprint={"geometry": "B"})[-1]
    assert np.isfinite(found.change_degc).any()
    assert statistics.alarms == ()


@pytest.mark.parametrize(("held_back", "served"), [(range(6, 11), False), (range(8, 10), True)])
def test_a_commanded_baseline_is_made_of_its_own_frames_or_not_at_all(held_back: range, served: bool) -> None:
    """What comes later may be heated."""
    series, monitor = Series(start=10), SliceMonitor(SCAN, _settings())
    found = []
    for number in range(16):
        if number == 6:
            monitor.renew_baseline(range(6, 10))
        found.append(monitor.frame([series.image(number)], withheld="residual" if number in held_back else ""))
    assert found[10][0].meta["baseline_frames"] == ((6, 7) if served else (0, 1, 2, 3))
    notices = [text for _, statistics in found for text in statistics.alarms if text.startswith("new baseline refused")]
    assert notices == [] if served else ["new baseline refused: the old one serves on; 0 of 4 frames came."]
    assert abs((found[-1][0].change_degc[0] - series.heat(15))[HOT].mean()) < 0.3


@pytest.mark.parametrize("forced", [False, True])
def test_a_commanded_baseline_is_refused_once_the_tissue_is_heated(forced: bool) -> None:
    """Heated after the command: the new baseline would show it as unheated."""
    series, monitor = Series(start=7), SliceMonitor(SCAN, _settings())
    found = []
    for number in range(13):
        if number == 6:
            monitor.renew_baseline(range(6, 10), forced=forced)
        found.append(monitor.frame([series.image(number)]))
    refused = [(place, text) for place, (_, stats) in enumerate(found) for text in stats.alarms if "refused" in text]
    shown = found[-1][0].change_degc[0][HOT].mean()
    if forced:
        assert refused == []
        assert found[-1][0].meta["baseline_frames"] == (6, 7, 8, 9)
        assert shown < 0.8 * series.heat(12)[HOT].mean()
    else:
        ((place, text),) = refused
        assert place < 10
        assert text.startswith("new baseline refused: the old one serves on; ")
        assert text.endswith(" voxels became more than 1 degC warmer than the old one while it was taken.")
        assert abs(shown - series.heat(12)[HOT].mean()) < 0.3


def test_a_baseline_commanded_after_frames_were_missing_is_made_of_the_next_ones() -> None:
    """Frames are numbered as they come; the repetition tells that some were missing, and so may time."""
    series, monitor = Series(start=99), SliceMonitor(SCAN, _settings())
    for number in range(14):
        repetition = number + (20 if number > 6 else 0)
        if number == 9:
            monitor.renew_baseline(range(9, 13))
        image = series.image(repetition, header=SimpleNamespace(repetition=repetition))
        found, statistics = monitor.frame([replace(image, number=number)], ordinal=number)
    assert found.meta["baseline_frames"] == (9, 10, 11, 12)
    assert statistics.alarms == ()


@pytest.mark.parametrize("last", ["moved", "dark", "not finite", "held back"])
def test_what_was_heated_when_it_was_last_read_counts_as_heated(last: str) -> None:
    series, monitor = Series(), SliceMonitor(SCAN, _settings())
    assert monitor.n_heated == 0
    _run(monitor, series, range(10))
    heated = monitor.n_heated
    assert heated > 100
    image = series.image(10)
    match last:
        case "moved":
            image = replace(image, data=np.roll(image.data, 3, axis=-1))
        case "dark":
            image.data[...] *= 0.001
        case "not finite":
            image.data[...] = np.nan
    found, _ = monitor.frame([image], withheld="residual" if last == "held back" else "")
    assert found.validity.all()
    assert monitor.n_heated == heated


def test_what_may_have_gone_a_turn_counts_as_heated() -> None:
    series, monitor = Series(start=99), SliceMonitor(SCAN, _settings())
    _run(monitor, series, range(6))
    image = series.image(6)
    image.data[..., HOT] *= np.exp(2.9j)
    found, _ = monitor.frame([image])
    assert monitor.n_heated == int((found.validity[0][HOT] == NoReading.WRAP).sum()) > 10


def test_a_small_focus_counts_as_heated_and_noise_does_not() -> None:
    focus = 15.0 * np.exp(-((X - 0.1) ** 2 + (Y + 0.1) ** 2) / (2 * (1.0 / 32) ** 2))
    series, monitor = Series(start=99, noise=0.05), SliceMonitor(SCAN, _settings())
    for number in range(40):
        assert monitor.n_heated == 0
        image = series.image(number)
        if number == 39:
            image.data[...] *= np.exp(1j * PER_DEGC * focus)
        monitor.frame([image])
    assert 5 <= monitor.n_heated < 20


def test_a_first_baseline_that_cannot_be_made_ends_the_scan() -> None:
    monitor, series = SliceMonitor(SCAN, _settings(baseline_frames=2)), Series()
    monitor.frame([series.image(0, fingerprint={"geometry": "A"})])
    with pytest.raises(BaselineError, match="geometry = B"):
        monitor.frame([series.image(1, fingerprint={"geometry": "B"})])


def test_a_new_baseline_of_another_matrix_begins_the_doses_anew_and_says_so() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(baseline_frames=2, dose_on_new_baseline="keep"))
    _run(monitor, series, range(8))
    monitor.renew_baseline(range(8, 10), forced=True)
    series.start = 99
    found = []
    for number in range(8, 12):
        image = series.image(number)
        inner = slice(4, N - 4)
        small = replace(image, data=image.data[..., inner, inner].copy(), noise_sd=image.noise_sd[:, inner, inner])
        found.append(monitor.frame([small]))
    alarms = [[text.partition(":")[0] for text in statistics.alarms] for _, statistics in found]
    assert alarms == [["baseline"], ["baseline"], ["dose begun anew"], []]
    assert "(1, 64, 64) became (1, 56, 56)" in found[2][1].alarms[0]
    assert float(np.nanmax(found[3][0].cem43_min)) < 0.01
    assert found[3][1].regions[0]["cem43_t50_min"] < 0.01


def test_a_region_drawn_before_the_baseline_is_checked_on_the_images() -> None:
    monitor = SliceMonitor(SCAN, _settings())
    monitor.frame([Series().image(0)])
    for changes in ({"regions": "off=circle:900,900,2"}, {"cold_mask": "circle:900,900,2"}):
        with pytest.raises(SettingsError, match="no voxel"):
            monitor.configure(_settings(**changes))
    found, _ = _run(monitor, Series(), range(1, 6))[-1]
    assert found.meta["cold_mask"] == "auto"


def test_changes_during_the_scan() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(body_temperature_degc=None))
    monitor.configure(_settings(body_temperature_degc=None, alarm_temperature_degc=30.0))
    _run(monitor, series, range(6))
    monitor.configure(_settings(body_temperature_degc=36.5, alarm_temperature_degc=30.0))
    found, statistics = monitor.frame([series.image(6)])
    np.testing.assert_allclose((found.temperature_degc - found.change_degc)[0][HOT], 36.5, atol=1e-4)
    assert statistics.alarms[0].startswith("over-temperature: T10 of hot")
    monitor.configure(
        _settings(cold_mask="circle:14,32,6+circle:50,32,6", regions="hot=circle:35,29,3;rim=circle:12,32,3")
    )
    _, statistics = monitor.frame([series.image(7)])
    assert [row["region"] for row in statistics.regions] == ["hot", "rim"]
    assert statistics.regions[0]["cem43_t50_min"] > statistics.regions[1]["cem43_t50_min"]
    with pytest.raises(SettingsError, match="no voxel"):
        monitor.configure(_settings(regions="off=circle:900,900,2"))
    _, statistics = monitor.frame([series.image(8)])
    assert [row["region"] for row in statistics.regions] == ["hot", "rim"]


def test_a_baseline_without_signal_is_refused() -> None:
    dark = replace(Series().image(0), data=np.zeros((1, 1, N, N), np.complex64))
    with pytest.raises(BaselineError, match="no signal"):
        SliceMonitor(SCAN, _settings(baseline_frames=1)).frame([dark])


CAUSES = {
    "over-temperature": {"alarm_temperature_degc": 40.0},
    "dose reached": {"alarm_dose_min": 1e-3},
    "signal lost": {},
    "drift fit failed": {},
    "motion": {},
    "wrap risk": {},
    "readings lost": {},
    "no dose": {},
    "time stamps": {},
    "network guard": {},
    "stale frame": {},
    "baseline": {},
}


@pytest.mark.parametrize("alarm", CAUSES)
def test_every_alarm_is_raised_by_its_cause_and_none_without(alarm: str) -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(**CAUSES[alarm]))
    clean = [statistics.alarms for _, statistics in _run(monitor, series, range(5))]
    assert clean == [()] * 5
    image = series.image(9 if alarm == "stale frame" else 7 if "dose" in alarm or "over" in alarm else 5)
    data = image.data.copy()
    match alarm:
        case "signal lost":
            data *= 0.3
        case "drift fit failed":
            data[..., RIM] = 0.0
        case "motion":
            data = np.roll(data, 3, axis=-1)
        case "wrap risk":
            data[..., 24:34, 24:34] *= np.exp(2.9j)
        case "readings lost":
            data[..., 27:30, 34:37] *= np.exp(2.9j)
        case "no dose" | "time stamps":
            image = replace(image, footprint=(40.0, 45.0 if alarm == "time stamps" else math.nan, 50.0))
        case "baseline":
            image = replace(image, fingerprint={"shape": "other"})
    withheld = "residual" if alarm == "network guard" else ""
    _, statistics = monitor.frame([replace(image, data=data.astype(np.complex64))], withheld=withheld)
    assert alarm in {text.partition(":")[0] for text in statistics.alarms}


@pytest.mark.parametrize("name", ["regions", "cold_mask", "fat"])
def test_what_cannot_be_drawn_is_refused_at_the_first_frame(name: str) -> None:
    text = "circle:900,900,3"
    monitor = SliceMonitor(SCAN, _settings(**{name: f"far={text}" if name == "regions" else text}))
    with pytest.raises(SettingsError, match="no voxel"):
        monitor.frame([Series().image(0)])


def test_a_plane_that_lies_still_is_followed_on_while_another_moves() -> None:
    """The flank of the focus is too steep for space to tell its turns: time alone can."""
    focus = np.exp(-((32 * X - 3) ** 2 + (32 * Y + 3) ** 2) / 4.5)
    series = Series(start=99)
    monitor = SliceMonitor(SCAN, _settings())
    for number in range(14):
        heat = 8.0 * max(0, number - 3) * focus
        planes = [series.image(number, signal=BODY * np.exp(1j * PER_DEGC * heat)) for _ in range(2)]
        if number == 12:
            planes[1] = replace(planes[1], data=np.roll(planes[1].data, 3, axis=-1))
        found, statistics = monitor.frame([_volume(planes)])
        assert any(text.startswith("motion: ") for text in statistics.alarms) == (number == 12)
    hottest = np.s_[0, 29, 35]
    assert found.change_degc[hottest] == pytest.approx(80.0, abs=2.0)
    assert np.isnan(found.change_degc[1, 29, 35])


def test_planes_of_a_slab_have_drifts_of_their_own() -> None:
    first, second = Series(seed=1), Series(seed=2)
    monitor = SliceMonitor(SCAN, _settings())
    for number in range(8):
        lower, upper = first.image(number), second.image(number)
        extra = np.exp(1j * PER_DEGC * 0.5 * number)
        data = np.concatenate([lower.data, upper.data * extra], axis=1).astype(np.complex64)
        noise = np.full((2, N, N), SD, np.float32)
        found, statistics = monitor.frame([replace(lower, data=data, noise_sd=noise)])
    assert found.temperature_degc.shape == (2, N, N)
    for plane in found.temperature_degc:
        assert abs((plane - 37.0 - first.heat(7))[HOT].mean()) < 0.2
    assert len(found.meta["drift_coefficients_degC"]) == 6
    assert statistics.regions[0]["voxels"] == 2 * 29


def test_a_plane_without_a_drift_fit_costs_the_others_nothing() -> None:
    series = Series()
    monitor = SliceMonitor(SCAN, _settings(drift_order=0))
    focus = np.exp(-((X - 0.1) ** 2 + (Y + 0.1) ** 2) / 0.0044)
    small = np.hypot(X / 0.2, Y / 0.2) < 1.0
    for number in range(22):
        image = replace(series.image(0), number=number, footprint=series.image(number).footprint)
        # Too steep to be followed in space; in time it is.
        heat = 5.0 * max(0, number - 3) * focus
        upper = image.data * np.exp(1j * PER_DEGC * heat)
        data = np.concatenate([upper, image.data * np.where(small, 1.0, 0.0)], axis=1).astype(np.complex64)
        found, statistics = monitor.frame([replace(image, data=data, noise_sd=np.full((2, N, N), SD, np.float32))])
    assert any(text.startswith("drift fit failed") for text in statistics.alarms)
    assert not found.validity[0][HOT].any()
    assert np.abs(found.change_degc[0] - heat)[HOT].max() < 1.5
    assert (found.validity[1][small] & NoReading.DRIFT).all()
