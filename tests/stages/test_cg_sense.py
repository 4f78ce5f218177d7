import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from direct_radial import coil_maps, ellipse_image, ellipse_scan, noise_for_snr
from sinotherm.core.geometry import spoke_angles
from sinotherm.core.scan import EncodingSpace, Frame, FrameImage, ScanHeader, Spoke
from sinotherm.errors import SettingsError
from sinotherm.stages.cg_sense import Settings, stage

N, COILS = 48, 5
ALONG = (1.0, 0.0, 0.0)
HEAD = SimpleNamespace(position=(0.0, 0.0, 0.0), read_dir=ALONG, phase_dir=ALONG, slice_dir=ALONG)


def header(matrix=(N, N, 1)):
    space = EncodingSpace(matrix=matrix, fov_m=(0.3, 0.3, 0.005))
    return ScanHeader(encoded=space, recon=space, trajectory="radial")


def frames(n_frames, n_spokes=24, schedule="golden", noise=0.0, **changes):
    out = []
    for number in range(n_frames):
        angles = spoke_angles(schedule, n_spokes, first=number * n_spokes)
        data, sampling = ellipse_scan(N, angles, n_coils=COILS, noise=noise, seed=number)
        spokes = tuple(
            Spoke(data=data[:, i], sampling=sampling, angle_rad=float(a), header=HEAD, noise_known=noise > 0)
            for i, a in enumerate(angles)
        )
        out.append(Frame(spokes=spokes, number=number, meta={"spokes": n_spokes}, footprint=(0.0, 1.0, 2.0), **changes))
    return out


def run(items, scan=None, **values):
    values = {"replicas": 0} | values
    return list(stage(iter(items), scan or header(), Settings(**values)))


def modulus_error(image):
    true = ellipse_image(N) * np.sqrt((np.abs(coil_maps(COILS, N)) ** 2).sum(0))
    body = true > 0
    return np.linalg.norm((np.abs(image) - true)[body]) / np.linalg.norm(true[body])


@pytest.mark.parametrize("values", [{}, {"regularisation": "tv", "iterations": 6}, {"density": 1.0, "iterations": 6}])
def test_images_of_frames_are_quantitative(values):
    (first, second, third) = run(frames(3), **values)
    for number, image in enumerate((first, second, third)):
        assert isinstance(image, FrameImage)
        assert image.number == number
        assert image.data.shape == (1, 1, N, N)
        assert image.data.dtype == np.complex64
        assert modulus_error(image.data[0, 0]) < 0.2
        assert image.meta["method"] == "cg_sense"
        assert image.meta["spokes"] == 24
        assert image.header is HEAD
        assert len(image.spokes) == 24
        assert image.footprint == (0.0, 1.0, 2.0)
    assert first.fingerprint == third.fingerprint
    assert first.meta["coil_maps"] == third.meta["coil_maps"]
    assert first.noise_sd is None
    unknown = run(frames(2), replicas=2)[0]
    assert unknown.noise_sd is None
    assert unknown.meta["noise_map"] == "none"


def test_first_frames_wait_for_enough_spokes_and_later_ones_do_not():
    taken = []

    def source():
        for frame in frames(5):
            taken.append(frame.number)
            yield from frame.spokes
            yield frame

    out = stage(source(), header(), Settings(maps_spokes=48, replicas=0))
    assert next(out).number == 0
    assert taken == [0, 1]
    assert [image.number for image in out] == [1, 2, 3, 4]


def test_angles_that_repeat_are_not_waited_for():
    same = frames(1, schedule="uniform180") * 4
    out = run([same[0], "text", same[1], same[2]], maps_spokes=1000)
    assert out[0] == "text"
    assert len(out) == 4
    (lonely,) = run(same[:1], maps_spokes=1000)
    assert modulus_error(lonely.data[0, 0]) < 0.2


def test_noise_map_is_the_spread_of_the_images():
    noise = 1.0
    scans = frames(24, n_spokes=32, schedule="uniform180", noise=noise)
    images = run(scans, replicas=6, iterations=6)
    stack = np.stack([image.data[0, 0] for image in images])
    spread = np.sqrt((stack.real.var(0, ddof=1) + stack.imag.var(0, ddof=1)) / 2)
    body = ellipse_image(N) > 0
    assert np.median(images[0].noise_sd[0][body] / spread[body]) == pytest.approx(1.0, abs=0.1)
    assert images[0].noise_sd.shape == (1, N, N)
    assert noise_for_snr(N, 20.0, COILS) > 0


def test_partial_echo_is_not_taken_for_measured_zeros():
    whole = frames(2, n_spokes=40)
    cut = np.arange(2 * N) < 20

    def partial(spoke):
        return dataclasses.replace(spoke, data=np.where(cut, 0, spoke.data))

    short = [dataclasses.replace(f, spokes=tuple(partial(s) for s in f.spokes)) for f in whole]
    assert modulus_error(run(short)[0].data[0, 0]) < 1.2 * modulus_error(run(whole)[0].data[0, 0])


def test_a_new_plane_gets_its_own_maps():
    moved = SimpleNamespace(position=(0.0, 0.0, 9.0), read_dir=ALONG, phase_dir=ALONG, slice_dir=ALONG)
    (one,) = frames(1, n_spokes=64)
    two = dataclasses.replace(
        one, spokes=tuple(dataclasses.replace(s, data=s.data[::-1], header=moved) for s in one.spokes)
    )
    images = run(
        [one, two, dataclasses.replace(two, spokes=tuple(dataclasses.replace(s, header=None) for s in two.spokes))]
    )
    assert images[0].meta["coil_maps"] != images[1].meta["coil_maps"]
    assert images[0].fingerprint["geometry"] != images[1].fingerprint["geometry"]
    assert images[2].fingerprint["geometry"] == ""


def test_planes_that_were_left_long_ago_are_forgotten(monkeypatch):
    """A plane that moves on and on would take all memory."""
    monkeypatch.setattr("sinotherm.stages.gridding.LEFT", 1)
    made = []
    monkeypatch.setattr(
        "sinotherm.stages.cg_sense._coil_maps",
        lambda first, *_: made.append(first[0].number) or np.full((COILS, N, N), COILS**-0.5, np.complex64),
    )

    def at(number, x):
        (frame,) = frames(1)
        head = SimpleNamespace(**{**vars(HEAD), "position": (x, 0.0, 0.0)})
        spokes = tuple(dataclasses.replace(one, header=head) for one in frame.spokes)
        return dataclasses.replace(frame, spokes=spokes, number=number)

    items = [at(number, x) for number, x in enumerate((0.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0))]
    assert [image.number for image in run(items, maps_spokes=1, iterations=1)] == list(range(7))
    assert made == [0, 1, 4, 6]


def test_warm_start_and_time_budget():
    scans = frames(3)
    cold, warm = (run(scans, iterations=3, warm_start=warm)[2] for warm in (False, True))
    assert modulus_error(warm.data[0, 0]) < modulus_error(cold.data[0, 0])


def test_frames_that_begin_from_the_last_one_have_no_noise_map():
    cold, warm = (run(frames(2, noise=1.0), warm_start=warm, replicas=2) for warm in (False, True))
    assert cold[1].noise_sd is not None
    for image in warm:
        assert image.noise_sd is None
        assert image.meta["noise_map"] == "none: frames begin from the last one"
    stored = dataclasses.replace(header(), estimates={(0, 0): cold[1].estimates})
    (later, *_) = run(frames(1, noise=1.0), stored, warm_start=True, replicas=2)
    assert later.meta["coil_maps"] == cold[1].meta["coil_maps"]
    assert later.noise_sd is None


@pytest.mark.parametrize("values", [{}, {"warm_start": True}, {"regularisation": "tv"}])
def test_a_time_budget_that_is_too_short_still_gives_images(values, caplog):
    scans = frames(3, n_spokes=48)
    hurried = run(scans, iterations=50, time_budget=1e-9, **values)
    for image in hurried:
        assert not image.meta["within_time_budget"]
        assert image.meta["iterations"] == (9 if values.get("regularisation") == "tv" else 1)
        assert modulus_error(image.data[0, 0]) < 0.5
    assert "frame 2: the time budget of 1e-09 s ended the reconstruction after 1 of 50 iterations" in caplog.text


@pytest.mark.parametrize("values", [{}, {"regularisation": "tv"}])
def test_noise_map_is_of_the_iterations_that_a_frame_had(values):
    scans = frames(2, n_spokes=48, noise=1.0)
    hurried = run(scans, replicas=3, iterations=20, time_budget=1e-9, **values)[1]
    few = run(scans, replicas=3, iterations=1, **values)[1]
    many = run(scans, replicas=3, iterations=20, **values)[1]
    np.testing.assert_allclose(hurried.noise_sd, few.noise_sd, rtol=1e-3)
    ratio = np.median(many.noise_sd) / np.median(few.noise_sd)
    assert ratio < 0.9 if values else ratio > 1.1


@pytest.mark.parametrize("regularisation", ["l2", "tv"])
def test_noise_map_is_made_again_for_a_frame_of_more_noise(monkeypatch, regularisation):
    clock, ticks = [0.0], [0.9]

    def now():
        clock[0] += ticks[0]
        return clock[0]

    monkeypatch.setattr("time.perf_counter", now)

    def paced():
        for number, frame in enumerate(frames(4, n_spokes=64, noise=1.0)):
            ticks[0] = usual if number != 2 else 0.5 - usual / 2
            yield frame

    usual = 0.4 if regularisation == "l2" else 0.12
    images = list(stage(paced(), header(), Settings(regularisation=regularisation, replicas=2, time_budget=1.0)))
    counts = [image.meta["iterations"] for image in images]
    levels = [float(np.median(image.noise_sd)) for image in images]
    assert counts[0] == counts[1] == counts[3] != counts[2]
    assert levels[0] == levels[1] < levels[2] == levels[3]


@pytest.mark.parametrize("values", [{}, {"regularisation": "tv"}])
def test_empty_frames_give_empty_images_and_do_no_harm(values, caplog):
    whole = frames(2, n_spokes=64, schedule="uniform180", noise=1.0)

    def emptied(frame):
        return dataclasses.replace(
            frame, spokes=tuple(dataclasses.replace(s, data=np.zeros_like(s.data)) for s in frame.spokes)
        )

    empty, later = run([emptied(whole[0]), whole[1]], replicas=2, **values)
    assert not empty.data.any()
    assert empty.noise_sd is None
    assert empty.meta["within_time_budget"]
    assert empty.meta["residual"] == 0.0
    assert "1 frames hold zeros only; the next make the coil maps" in caplog.text
    assert "time budget" not in caplog.text
    (expected,) = run(whole[1:], replicas=2, **values)
    # By the norm, as threads round differently from run to run: to 5e-6. Maps of other frames: 1e-4.
    assert np.linalg.norm(later.data - expected.data) < 3e-5 * np.linalg.norm(expected.data)
    # In the middle, angles that repeat.
    first, gap, last = run([whole[0], emptied(whole[0]), whole[0]], replicas=2, **values)
    assert not gap.data.any()
    np.testing.assert_allclose(last.data, first.data, rtol=1e-2, atol=1e-2)


def test_a_grid_smaller_than_the_image_is_refused():
    for grid in ("0.5", "0.99"):
        with pytest.raises(SettingsError, match=r"cg_sense.grid = .*give 1 to 2, or 0"):
            Settings.parse("cg_sense", {"grid": grid})
    assert Settings.parse("cg_sense", {"grid": "1"}).grid == 1.0


def test_grid_takes_up_what_lies_outside_the_image():
    # The image shows the inner part of the object only.
    small = 32
    scan = header((small, small, 1))
    (auto, *_) = run(frames(2), scan)
    (forced, *_) = run(frames(2), scan, grid=1.0)
    assert auto.meta["grid"] > small
    assert forced.meta["grid"] == small
    true = ellipse_image(N) * np.sqrt((np.abs(coil_maps(COILS, N)) ** 2).sum(0))
    inner = slice(N // 2 - small // 2, N // 2 + small // 2)

    def error(image):
        return np.linalg.norm(np.abs(image.data[0, 0]) - true[inner, inner])

    assert error(auto) < 0.8 * error(forced)


def test_rectangular_images_and_slices():
    one, two = frames(1, n_spokes=64), frames(1, n_spokes=64, slice=1)
    images = run(one + two, header((N, 40, 1)))
    assert [image.slice for image in images] == [0, 1]
    assert images[0].data.shape == (1, 1, 40, N)
    whole = run(one)[0]
    np.testing.assert_allclose(images[0].data[0, 0], whole.data[0, 0, 4:44], atol=1e-4)


def test_scale_of_total_variation_is_frozen():
    dark = frames(2, n_spokes=64)
    spokes = (dataclasses.replace(spoke, data=spoke.data * 0.1) for spoke in dark[1].spokes)
    faint = [dataclasses.replace(dark[1], spokes=tuple(spokes))]
    settings = {"regularisation": "tv", "iterations": 4, "strength": 3e-3}
    alone = run(faint, **settings)[0].data
    after = run([dark[0], *faint], **settings)[1].data
    assert not np.allclose(alone, after, rtol=0.05)
