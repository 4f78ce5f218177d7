"""What both linear reconstructions do with coil images: maps, noise, fingerprint, meta."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from operator_checks import direct_sum, direct_transform, relative_error
from sinotherm.core.geometry import GOLDEN_ANGLE, RadialSampling
from sinotherm.core.scan import EncodingSpace, Frame, FrameImage, ScanHeader, Spoke
from sinotherm.operators.coils import espirit_maps
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import radial_points
from sinotherm.stages import fbp, gridding

pytestmark = pytest.mark.kernel

N, READOUT, SPOKES, COILS = 12, 24, 20, 3
SAMPLING = RadialSampling(n_readout=READOUT, spacing=1 / READOUT, centre=12.0)
SCAN = ScanHeader(
    encoded=EncodingSpace(matrix=(READOUT, READOUT, 1), fov_m=(0.4, 0.4, 0.005)),
    recon=EncodingSpace(matrix=(N, N - 2, 1), fov_m=(0.24, 0.2, 0.005)),
    trajectory="goldenangle",
)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A soft blob with a phase, and coil sensitivities with Σ|s|² = 1, (y, x) and (coil, y, x)."""
    y, x = np.meshgrid(np.arange(N - 2) - 5, np.arange(N) - 6, indexing="ij")
    maps = np.stack([np.exp(1j * c + 0.05 * (x * np.cos(2 * c) + y * np.sin(2 * c))) for c in range(COILS)])
    return np.exp(-(x**2 + y**2) / 8) * np.exp(0.1j * x), maps / np.sqrt(np.sum(np.abs(maps) ** 2, 0))


def frame(number: int = 0, *, turn: float = 0.0, noise: float = 0.0, seed: int = 0, **changes) -> Frame:
    image, maps = scene()
    angles = (np.arange(SPOKES) + number * SPOKES) * GOLDEN_ANGLE
    samples = direct_transform(radial_points(angles, SAMPLING).reshape(-1, 2), maps * image * np.exp(1j * turn))
    random = np.random.default_rng(seed)
    samples = samples + noise * (random.standard_normal(samples.shape) + 1j * random.standard_normal(samples.shape))
    data = samples.reshape(COILS, SPOKES, READOUT).astype(np.complex64)
    spokes = tuple(
        Spoke(data=data[:, i], sampling=SAMPLING, angle_rad=angles[i], index=number * SPOKES + i, **changes)
        for i in range(SPOKES)
    )
    return Frame(spokes=spokes, number=number, meta={"frame_rule": "20 spokes"}, footprint=(0.0, 1.0, 2.0))


def run(module, frames: list[Frame], **values) -> list[FrameImage]:
    return list(module.stage(iter(frames), SCAN, module.Settings.parse("x", values)))


both = pytest.mark.parametrize("module", [fbp, gridding])


@both
def test_combined_images_keep_amplitude_and_phase_differences(module) -> None:
    first, second = run(module, [frame(0), frame(1, turn=0.3)])
    assert first.data.shape == (1, 1, N - 2, N)
    assert first.data.dtype == np.complex64
    assert first.phase_valid
    truth, _ = scene()
    inside = np.abs(truth) > 0.5
    assert np.abs(first.data[0, 0])[inside] == pytest.approx(np.abs(truth)[inside], abs=0.1)
    difference = np.angle(second.data * first.data.conj())[0, 0]
    assert np.median(difference[inside]) == pytest.approx(0.3, abs=0.02)
    # Frozen: the second frame is combined with the maps of the first.
    assert first.meta["coil_maps"] == second.meta["coil_maps"] == second.fingerprint["coil_maps"]


def test_espirit_maps_combine_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    # The scene is smaller than the region that ESPIRiT takes from an image of a usual size.
    monkeypatch.setattr(gridding, "espirit_maps", lambda images: espirit_maps(images, calibration=9, kernel=3))
    (image,) = run(gridding, [frame()], maps="espirit")
    truth, _ = scene()
    inside = np.abs(truth) > 0.5
    assert np.abs(image.data[0, 0])[inside] == pytest.approx(np.abs(truth)[inside], abs=0.15)
    assert image.meta["coil_maps_method"] == "espirit"


@both
def test_frames_wait_for_the_maps_and_leave_in_order(module) -> None:
    frames = [frame(number, seed=number, noise=0.1) for number in range(4)]
    assert [image.number for image in run(module, frames, maps_frames=3)] == [0, 1, 2, 3]
    waiting = iter([*frames[:2], "marker", frames[2]])
    out = list(module.stage(waiting, SCAN, module.Settings.parse("x", {"maps_frames": "3"})))
    assert out[0] == "marker"
    # A scan that ends before has fewer for its maps.
    assert [image.number for image in run(module, frames[:2], maps_frames=3)] == [0, 1]


@both
def test_root_sum_of_squares_has_no_phase(module) -> None:
    (image,) = run(module, [frame()], combine="rss")
    (coils,) = run(module, [frame()], combine="none")
    assert not image.phase_valid
    assert coils.data.shape == (COILS, 1, N - 2, N)
    np.testing.assert_allclose(image.data[0], np.sqrt(np.sum(np.abs(coils.data) ** 2, 0)), rtol=1e-4)


@both
@pytest.mark.parametrize("values", [{}, {"filter": "hann"}, {"weights": "gaps"}])
def test_the_noise_is_the_one_predicted(module, values: dict[str, str]) -> None:
    random = np.random.default_rng(3)
    quiet = frame(noise_known=True)
    (reference,) = run(module, [quiet], combine="none", **values)
    deviations = []
    for _ in range(12):
        noise = random.standard_normal((COILS, SPOKES, READOUT, 2)).astype(np.float32).view(np.complex64)[..., 0]
        noisy = tuple(dataclasses.replace(s, data=s.data + noise[:, i]) for i, s in enumerate(quiet.spokes))
        (image,) = run(module, [dataclasses.replace(quiet, spokes=noisy)], combine="none", **values)
        deviations.append((image.data - reference.data).real)
    assert image.noise_sd is not None
    assert image.noise_sd.shape == (1, N - 2, N)
    assert image.noise_sd.dtype == np.float32
    assert np.std(deviations) == pytest.approx(image.noise_sd[0, 0, 0], rel=0.06)


@both
def test_without_a_noise_scan_the_noise_is_unknown(module) -> None:
    assert run(module, [frame()])[0].noise_sd is None


def cut(whole: Frame, kept: np.ndarray) -> Frame:
    """The frame with partial echoes (or, where nothing is kept, without signal)."""
    return dataclasses.replace(whole, spokes=tuple(dataclasses.replace(s, data=s.data * kept) for s in whole.spokes))


def half_turn(whole: Frame) -> Frame:
    """The frame's spokes all between 0 and 180 degrees."""
    spokes = tuple(dataclasses.replace(s, angle_rad=np.mod(s.angle_rad, np.pi)) for s in whole.spokes)
    return dataclasses.replace(whole, spokes=spokes)


def test_zeros_of_a_partial_echo_carry_no_noise() -> None:
    kept = np.arange(READOUT) >= 8
    whole = half_turn(frame(noise_known=True))
    (image,), (full,) = run(gridding, [cut(whole, kept)]), run(gridding, [whole])
    weights = radial_weights(whole.angles(), SAMPLING, centre="exact")
    assert image.noise_sd[0, 0, 0] == pytest.approx(np.sqrt(np.sum(weights[:, kept] ** 2)))
    assert image.noise_sd[0, 0, 0] < full.noise_sd[0, 0, 0]


@both
def test_spokes_without_signal_say_nothing_about_the_noise(module) -> None:
    """They must not make the noise of the frames after them zero: every voxel would be certain."""
    whole = frame(noise_known=True)
    first = dataclasses.replace(whole.spokes[0], data=np.zeros_like(whole.spokes[0].data))
    damaged = dataclasses.replace(whole, spokes=(first, *whole.spokes[1:]))
    empty = cut(whole, np.zeros(READOUT))
    levels = [image.noise_sd[0, 0, 0] for image in run(module, [damaged, empty, whole])]
    np.testing.assert_allclose(levels, run(module, [whole])[0].noise_sd[0, 0, 0])


@pytest.mark.slow
@both
@pytest.mark.parametrize("values", [{}, {"weights": "gaps"}])
@pytest.mark.parametrize("first", [8, 12])
def test_partial_echoes_over_a_full_turn_keep_amplitude_and_resolution(module, first: int, values) -> None:
    random = np.random.default_rng(4)
    image, maps = scene()
    angles = np.arange(48) * (2 * np.pi / 48)
    samples = direct_transform(radial_points(angles, SAMPLING).reshape(-1, 2), maps * image)
    data = samples.reshape(COILS, 48, READOUT).astype(np.complex64)
    spokes = [Spoke(data=data[:, i], sampling=SAMPLING, angle_rad=angles[i], noise_known=True) for i in range(48)]
    full = Frame(spokes=tuple(spokes), number=0)
    kept = np.arange(READOUT) >= first
    (whole,), (part,) = (run(module, [f], combine="none", **values) for f in (full, cut(full, kept)))
    # Without the sample at -0.5 cycles per pixel, which has no opposite.
    assert relative_error(part.data, whole.data) < 0.02
    noise = random.standard_normal((40, COILS, 48, READOUT, 2)).astype(np.float32).view(np.complex64)[..., 0]
    noisy = [
        dataclasses.replace(
            full, spokes=tuple(dataclasses.replace(s, data=kept * draw[:, i]) for i, s in enumerate(full.spokes))
        )
        for draw in noise
    ]
    deviations = [image.data.real for image in run(module, noisy, combine="none", **values)]
    assert np.std(deviations) == pytest.approx(part.noise_sd[0, 0, 0], rel=0.06)


@both
def test_images_say_how_they_were_made(module) -> None:
    note = {"gradient_delay": "0.1 0.2", "readouts_missing": 3}
    one = frame(calibration=note, received_s=7.0)
    (image,) = run(module, [one])
    name = module.__name__.rsplit(".", 1)[-1]
    assert image.meta["method"] == name
    assert image.meta["spokes"] == SPOKES
    assert image.meta["frame_rule"] == "20 spokes"
    assert image.meta["effective_voxel_m"] == pytest.approx((1.4101 * 0.02, 1.4101 * 0.02), rel=1e-3)
    assert image.footprint == (0.0, 1.0, 2.0)
    assert image.received_s == 7.0
    assert image.spokes == one.spokes
    assert image.fingerprint["method"].startswith(name)
    assert image.fingerprint["coils"] == "3"
    assert image.fingerprint["gradient_delay"] == "0.1 0.2"
    assert "readouts_missing" not in image.fingerprint


class Header:
    """The part of an acquisition header that says where the plane is."""

    def __init__(self, z: float) -> None:
        self.position = (0.0, 0.0, z)
        self.read_dir, self.phase_dir, self.slice_dir = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def test_a_plane_that_moves_gets_maps_of_its_own() -> None:
    frames = [frame(0, header=Header(0.0)), frame(1, header=Header(10.0), noise=0.5)]
    first, second = run(fbp, frames)
    assert first.fingerprint["geometry"] != second.fingerprint["geometry"]
    assert first.meta["coil_maps"] != second.meta["coil_maps"]


def test_planes_that_were_left_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plane that moves on and on would take all memory; the slice beside it keeps its maps."""
    monkeypatch.setattr(gridding, "LEFT", 2)
    imager = gridding.FrameImager(SCAN, "gridding", gridding.Settings())
    made = []
    monkeypatch.setattr(gridding, "adaptive_maps", lambda images: made.append(1) or np.ones_like(images) / len(images))

    def image(x: float, slice_: int = 0) -> None:
        source = gridding.Coils(np.ones((COILS, N - 2, N), np.complex64))
        list(imager.images(dataclasses.replace(frame(header=Header(x)), slice=slice_), source))

    image(0.0, slice_=1)
    for x in (1.0, 2.0, 3.0, 2.0, 4.0):
        image(x)
    assert len(made) == 5
    assert len(imager._maps) == 4
    for x in (2.0, 3.0, 4.0):
        image(x)
    image(0.0, slice_=1)
    assert len(made) == 5
    image(1.0)
    assert len(made) == 6


def test_frames_of_planes_that_moved_on_wait_for_the_maps_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gridding, "LEFT", 2)
    settings = gridding.Settings(maps_frames=2)
    moving = [frame(x, header=Header(float(x))) for x in range(4)]
    out = gridding.stage(iter([*moving, "end"]), SCAN, settings)
    assert [item if isinstance(item, str) else item.number for item in out] == [0, 1, "end", 2, 3]


def test_a_plane_that_is_rounded_otherwise_stays() -> None:
    first, second = run(fbp, [frame(0, header=Header(1e-9)), frame(1, header=Header(-1e-9), noise=0.5)])
    assert first.fingerprint["geometry"] == second.fingerprint["geometry"]
    assert first.meta["coil_maps"] == second.meta["coil_maps"]


def test_gridding_and_back_projection_agree() -> None:
    for values in ({"combine": "none"}, {"combine": "none", "filter": "hann"}):
        (one,), (other,) = (run(module, [frame(noise=1.0)], **values) for module in (fbp, gridding))
        assert relative_error(one.data, other.data) < 1e-3


@pytest.mark.parametrize("delay", [(0.0, 0.0), (0.3, 0.3), (0.6, -0.2)])
def test_the_choice_of_a_kernel_does_not_show(delay: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the delays of x and y differ, spokes miss the centre, and gridding is the one that serves."""
    given = frame(noise=1.0)
    moved = tuple(
        dataclasses.replace(
            s, shift=(delay[0] * np.cos(s.angle_rad) / READOUT, delay[1] * np.sin(s.angle_rad) / READOUT)
        )
        for s in given.spokes
    )
    given = dataclasses.replace(given, spokes=moved)
    images = {}
    for backend in ("gridded", "back-projection"):
        monkeypatch.setattr(gridding, "frame_backend", lambda n_coils, n_spokes, backend=backend: backend)
        (images[backend],) = run(gridding, [given], combine="none", weights="gaps", filter="hann")
    difference = relative_error(images["back-projection"].data, images["gridded"].data)
    assert difference < 1e-3
    assert (difference < 2e-6) == (delay[0] != delay[1])


def test_a_change_of_coils_makes_a_new_plan() -> None:
    fewer = dataclasses.replace(
        frame(1), spokes=tuple(dataclasses.replace(s, data=s.data[:2]) for s in frame(1).spokes)
    )
    out = run(gridding, [frame(0), fewer], combine="none")
    assert [len(image.data) for image in out] == [3, 2]
    weights = radial_weights(fewer.angles(), SAMPLING, centre="exact")
    points = radial_points(fewer.angles(), SAMPLING).reshape(-1, 2)
    truth = direct_sum(points, (fewer.data() * weights).reshape(2, -1), (N - 2, N))
    assert relative_error(out[1].data[:, 0], truth) < 1e-3


@pytest.mark.slow
@pytest.mark.data
@both
def test_the_real_scan_equals_its_reference(module, shared_data: Path) -> None:
    """210 spokes of a real golden-angle scan against the direct sum that lies beside it (inner 144²)."""
    import h5py

    folder = shared_data / "radial_cardiac_perfusion_goldenangle"
    reference = np.load(folder / "reference_direct_sum.npz")["coil_images_210_spokes"][:, 72:216, 72:216]
    with h5py.File(folder / "radial_perfusion_7x30spokes_ismrmrd.h5") as file:
        table = file["dataset/data"][:]
    ends = table[0]["traj"].reshape(288, -1)[[0, -1], :2]
    sampling = RadialSampling(n_readout=288, spacing=float(np.hypot(*(ends[1] - ends[0]))) / 287, centre=143.5)
    spokes = []
    for row in table:
        trajectory = row["traj"].reshape(288, -1)
        first = trajectory[-1, :2] - trajectory[0, :2]
        data = row["data"].view(np.complex64).reshape(-1, 288)
        spokes.append(Spoke(data=data, sampling=sampling, angle_rad=float(np.arctan2(first[1], first[0]))))
    space = EncodingSpace(matrix=(144, 144, 1), fov_m=(0.144, 0.144, 0.01))
    scan = ScanHeader(encoded=space, recon=space, trajectory="goldenangle")
    settings = module.Settings.parse("x", {"combine": "none", "centre": "area"})
    (image,) = module.stage(iter([Frame(spokes=tuple(spokes), number=0)]), scan, settings)
    # The reference has weight |k| / S; here π/S per spoke and the sample spacing count as well.
    assert relative_error(image.data[:, 0] / (np.pi * sampling.spacing), reference) < 1e-3
