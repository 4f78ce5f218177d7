import dataclasses
import logging

import numpy as np
import pytest

from operator_checks import direct_sum, relative_error
from sinotherm.core.geometry import GOLDEN_ANGLE, RadialSampling
from sinotherm.core.scan import EncodingSpace, Frame, ScanHeader, Spoke
from sinotherm.errors import SpokeError
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import radial_points
from sinotherm.stages import fbp, gridding

pytestmark = pytest.mark.kernel

N, READOUT = 8, 16
SAMPLING = RadialSampling(n_readout=READOUT, spacing=1 / READOUT, centre=7.5)
SPACE = EncodingSpace(matrix=(N, N, 1), fov_m=(0.2, 0.2, 0.005))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="goldenangle", n_coils=2)


NOW = 1e12
"""A time of reception that stays in the future of any monotonic clock: such a spoke is never late."""


def live(n_spokes: int, *, n_coils: int = 2, seed: int = 0, **changes) -> list[Spoke]:
    random = np.random.default_rng(seed)
    values = random.standard_normal((n_spokes, n_coils, READOUT, 2)).astype(np.float32).view(np.complex64)[..., 0]
    return [
        Spoke(data=values[i], sampling=SAMPLING, angle_rad=i * GOLDEN_ANGLE, index=i, **{"received_s": NOW, **changes})
        for i in range(n_spokes)
    ]


def in_frames(spokes: list[Spoke], window: int, stride: int) -> list[Spoke | Frame]:
    items: list[Spoke | Frame] = []
    number = 0
    for last, spoke in enumerate(spokes, 1):
        items.append(spoke)
        if last >= window and (last - window) % stride == 0:
            items.append(Frame(spokes=tuple(spokes[last - window : last]), number=number))
            number += 1
    return items


def truth(frame: Frame, **rules) -> np.ndarray:
    """The coil images by the definition: (coil, y, x)."""
    weights = radial_weights(frame.angles(), frame.sampling, shifts=frame.shifts(), **{"centre": "exact", **rules})
    points = radial_points(frame.angles(), frame.sampling, frame.shifts()).reshape(-1, 2)
    return direct_sum(points, (frame.data() * weights).reshape(len(frame.data()), -1), (N, N))


def images(items, *, module=fbp, scan=SCAN, **values):
    settings = module.Settings.parse("x", {"combine": "none", **values})
    return list(module.stage(iter(items), scan, settings))


@pytest.mark.parametrize("received", [NOW, 0.0, float("nan")], ids=["live", "late", "file"])
@pytest.mark.parametrize(("window", "stride"), [(6, 6), (6, 1), (6, 2), (6, 4), (4, 7)])
def test_every_frame_is_its_direct_sum_however_the_windows_lie(received: float, window: int, stride: int) -> None:
    items = in_frames(live(31, received_s=received), window, stride)
    frames = [item for item in items if isinstance(item, Frame)]
    out = images(items)
    assert [image.number for image in out] == [frame.number for frame in frames]
    for image, frame in zip(out, frames, strict=True):
        assert relative_error(image.data[:, 0], truth(frame)) < 5e-4


@pytest.mark.parametrize("module", [fbp, gridding])
@pytest.mark.parametrize(
    "values", [{"weights": "gaps"}, {"filter": "hann"}, {"centre": "area"}], ids=lambda values: next(iter(values))
)
def test_settings_reach_the_weights(module, values: dict[str, str]) -> None:
    items = in_frames(live(12), 6, 3)
    rules = {"radial_filter" if name == "filter" else name: value for name, value in values.items()}
    frames = [item for item in items if isinstance(item, Frame)]
    for image, frame in zip(images(items, module=module, **values), frames, strict=True):
        assert relative_error(image.data[:, 0], truth(frame, **rules)) < 1e-3


@pytest.mark.parametrize("module", [fbp, gridding])
def test_gradient_delays_move_the_spokes(module) -> None:
    random = np.random.default_rng(5)
    spokes = [dataclasses.replace(s, shift=tuple(random.normal(0, 0.005, 2))) for s in live(6)]
    (image,) = images(in_frames(spokes, 6, 6), module=module)
    assert relative_error(image.data[:, 0], truth(Frame(spokes=tuple(spokes), number=0))) < 1e-3


def test_order_of_the_spokes_does_not_matter() -> None:
    spokes = live(6)
    turned = [spokes[i] for i in (3, 0, 5, 2, 4, 1)]
    (one,), (other,) = (images(in_frames(order, 6, 6)) for order in (spokes, turned))
    assert relative_error(other.data, one.data) < 1e-6


def test_a_frame_of_spokes_that_never_passed_is_made_at_once() -> None:
    # As a stack of stars sends them, or a frame that another stage has put together anew.
    spokes, others = live(6), live(6, seed=1)
    frame = Frame(spokes=tuple(others), number=3)
    (image,) = images([*spokes, frame])
    assert relative_error(image.data[:, 0], truth(frame)) < 5e-4
    twice = Frame(spokes=(*others, others[0]), number=4)
    again = Frame(spokes=tuple(others), number=5)
    out = images([frame, twice, again])
    for image, wanted in zip(out, (frame, twice, again), strict=True):
        assert relative_error(image.data[:, 0], truth(wanted)) < 5e-4


def test_rounding_does_not_pile_up_in_a_long_sliding_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fbp, "REFRESH", 5)
    swaps = []
    renew = fbp.RunningImage._renew

    def watched(self, spoke) -> None:
        before = self._sum
        renew(self, spoke)
        swaps.append(self._sum is not before)

    monkeypatch.setattr(fbp.RunningImage, "_renew", watched)
    items = in_frames(live(60), 4, 1)
    frames = [item for item in items if isinstance(item, Frame)]
    for image, frame in zip(images(items), frames, strict=True):
        assert relative_error(image.data[:, 0], truth(frame)) < 5e-4
    assert sum(swaps) >= 3
    # From a file there is no latency to save: then it is made anew at once.
    items = in_frames(live(40, received_s=float("nan")), 8, 1)
    frames = [item for item in items if isinstance(item, Frame)]
    for image, frame in zip(images(items), frames, strict=True):
        assert relative_error(image.data[:, 0], truth(frame)) < 5e-4


def test_slices_and_echoes_do_not_mix() -> None:
    parts = {(s, e): live(5, seed=10 * s + e, slice=s, echo=e) for s in (0, 1) for e in (0, 1)}
    items = [spoke for together in zip(*parts.values(), strict=True) for spoke in together]
    frames = [Frame(spokes=tuple(spokes), number=0, slice=s, echo=e) for (s, e), spokes in parts.items()]
    out = images([*items, *frames])
    for image, frame in zip(out, frames, strict=True):
        assert (image.slice, image.echo) == (frame.slice, frame.echo)
        assert relative_error(image.data[:, 0], truth(frame)) < 5e-4


def test_frames_weighted_by_their_gaps_are_gridded() -> None:
    items = in_frames(live(14, received_s=float("nan")), 8, 8)
    frames = [item for item in items if isinstance(item, Frame)]
    for image, frame in zip(images(items, weights="gaps"), frames, strict=True):
        assert relative_error(image.data[:, 0], truth(frame, weights="gaps")) < 1e-3


def test_a_scan_has_the_same_pixels_from_a_file_and_spoke_by_spoke() -> None:
    n_spokes = 100  # more than gridding would need to be the faster one
    spokes = live(2 * n_spokes)
    stored = [dataclasses.replace(spoke, received_s=float("nan")) for spoke in spokes]
    for early, late in zip(
        images(in_frames(spokes, n_spokes, n_spokes)), images(in_frames(stored, n_spokes, n_spokes)), strict=True
    ):
        np.testing.assert_allclose(early.data, late.data, rtol=0, atol=1e-6 * abs(late.data).max())


def test_the_preview_is_near() -> None:
    spokes = live(6)
    flat = [dataclasses.replace(s, data=np.exp(-((SAMPLING.positions / 0.1) ** 2))[None].astype("c8")) for s in spokes]
    (image,) = images(in_frames(flat, 6, 6), taps="linear")
    assert 1e-5 < relative_error(image.data[:, 0], truth(Frame(spokes=tuple(flat), number=0))) < 3e-2


def test_spokes_that_change_are_refused() -> None:
    spokes = live(3)
    other = dataclasses.replace(spokes[1], sampling=dataclasses.replace(SAMPLING, centre=8.0))
    first = Frame(spokes=tuple(spokes), number=0)
    with pytest.raises(SpokeError, match="cannot change within a scan"):
        images([first, other])
    with pytest.raises(SpokeError, match="cannot change within a scan"):
        images([Frame(spokes=(spokes[0], other), number=0)])
    with pytest.raises(SpokeError, match="has 3 coils"):
        images([first, *live(1, n_coils=3)])


def test_what_is_not_a_spoke_passes_in_its_place() -> None:
    spokes = live(6)
    items = ["waveform", *in_frames(spokes, 6, 6), "text"]
    out = images(items)
    assert out[0] == "waveform"
    assert out[2] == "text"
    assert len(out) == 3


def test_spokes_are_added_when_they_come_and_late_ones_with_their_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    added = []
    add = fbp.RunningImage.add
    monkeypatch.setattr(fbp.RunningImage, "add", lambda self, spoke: added.append(spoke.index) or add(self, spoke))
    spokes = [dataclasses.replace(s, received_s=0.0) if s.index in (7, 10) else s for s in live(12)]
    _, image = images(in_frames(spokes, 6, 6))
    assert added == [6, 8, 9, 11]
    assert relative_error(image.data[:, 0], truth(Frame(spokes=tuple(spokes[6:]), number=0))) < 5e-4


def test_only_a_frame_takes_the_memory_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter of something else in idx.slice would take one for every spoke."""
    made = []
    build = fbp.RunningImage.__init__
    monkeypatch.setattr(fbp.RunningImage, "__init__", lambda self, *given: made.append(given) or build(self, *given))
    (image,) = images([*in_frames(live(6), 6, 6), *(dataclasses.replace(s, slice=s.index) for s in live(6)[1:])])
    assert image.slice == 0
    assert len(made) == 1


def test_a_miss_of_the_centre_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def moved(x: float, y: float) -> list[Spoke | Frame]:
        spokes = [
            dataclasses.replace(s, shift=(-x * np.cos(s.angle_rad) / READOUT, -y * np.sin(s.angle_rad) / READOUT))
            for s in live(40)
        ]
        return in_frames(spokes, 20, 20)

    for module, values in ((fbp, {"weights": "gaps"}), (gridding, {})):
        images(moved(2.0, -1.0), module=module, **values)
    images(moved(2.0, 2.0))
    assert "miss" not in caplog.text
    with caplog.at_level(logging.WARNING):
        images(moved(2.0, -1.0))
    assert caplog.text.count("miss the centre of k-space by up to 1.5 samples") == 1
