import dataclasses
import inspect

import numpy as np
import pytest
import torch

from direct_radial import coil_maps, ellipse_image, ellipse_scan
from sinotherm.core.geometry import angular_order, spoke_angles
from sinotherm.core.scan import EncodingSpace, Frame, FrameImage, ScanHeader, Spoke
from sinotherm.errors import SettingsError, SpokeError, WeightsError
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import GuardLimits, ValidRange, save_network
from sinotherm.operators.fourier_slice import FourierSlice
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import cg_sense
from sinotherm.stages import cg_sense as stages_cg_sense
from sinotherm.stages import images as stages_images
from sinotherm.stages.pdunet import Settings, stage
from sinotherm.thermometry.drift import periphery_mask
from sinotherm.thermometry.fat import fat_phase
from sinotherm.thermometry.regions import region_mask
from sinotherm.thermometry.settings import ThermometrySettings
from untrained import card_of

N, COILS = 48, 4


def header(matrix=(N, N, 1)):
    space = EncodingSpace(matrix=matrix, fov_m=(0.3, 0.3, 0.005))
    return ScanHeader(encoded=space, recon=space, trajectory="radial", n_coils=COILS, spokes_per_frame=32)


def frame(number=0, n_spokes=32, change=lambda data: data, received_s=float("nan"), **values):
    angles = spoke_angles("golden", n_spokes, first=number * n_spokes)
    data, sampling = ellipse_scan(N, angles, n_coils=COILS, noise=1.0, seed=number)
    data = change(data).astype(np.complex64)
    spokes = tuple(
        Spoke(data=data[:, i], sampling=sampling, angle_rad=float(a), header="head", received_s=received_s)
        for i, a in enumerate(angles)
    )
    return Frame(spokes=spokes, number=number, meta={"spokes": n_spokes}, footprint=(0.0, 1.0, 2.0), **values)


LIMITS = GuardLimits(spokes=(16, 64), held_out=(0.6, 0.6), spoke=(0.6, 0.6))


def untrained(folder, *, limits=LIMITS, **changes):
    """Save a network that corrects nothing: it does two steps of data consistency."""
    torch.manual_seed(0)
    network = PrimalDual(Architecture(iterations=3, primal_features=(4, 8), dual_features=4, memory=2, **changes))
    valid = ValidRange(spokes=(16, 64), coils=(1, 8), pixels=(32, 64), snr=(3.0, 1e9))
    card = card_of(network, valid=valid, guard=limits)
    path = folder / "tiny.safetensors"
    save_network(network, path, card)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("guided"), reference=True)


def run(weights, items, scan=None, **values):
    return list(stage(iter(items), scan or header(), Settings(network=str(weights), **values)))


def apart(image, other):
    """Return how far images are apart, relative to the norm of the other.

    What several threads add up depends on which comes first, and CG and the fit of the drift make 1e-7 of it up to
    1e-3. A pixel, or a hash of all, cannot be compared.
    """
    return np.linalg.norm(image - other) / np.linalg.norm(other)


def modulus_error(image):
    true = ellipse_image(N) * np.sqrt((np.abs(coil_maps(COILS, N)) ** 2).sum(0))
    body = true > 0
    return np.linalg.norm((np.abs(image) - true)[body]) / np.linalg.norm(true[body])


def test_gridding_goes_beside_the_network(weights):
    out = run(weights, [frame(0), "text", frame(1), frame(2)])
    assert out[0] == "text"  # the first frame waits for the coil maps
    images = out[1:]
    assert [(image.number, image.meta["method"]) for image in images] == [
        (n, method) for n in range(3) for method in ("gridding", "pdunet")
    ]
    for image in images:
        assert isinstance(image, FrameImage)
        assert image.data.shape == (1, 1, N, N)
        assert image.data.dtype == np.complex64
        assert "guard" not in image.meta
        assert image.header == "head"
        assert len(image.spokes) == 32
        assert image.footprint == (0.0, 1.0, 2.0)
        assert image.meta["coil_maps"] == images[0].meta["coil_maps"]
    gridding, network = images[0], images[1]
    assert modulus_error(network.data[0, 0]) < modulus_error(gridding.data[0, 0])
    assert network.meta["network"] == "tiny"
    assert len(network.meta["network_weights"]) == 12
    assert 0 < network.meta["guard_held_out"] < 0.6
    assert network.fingerprint["method"] != gridding.fingerprint["method"]
    assert network.fingerprint == images[3].fingerprint


def test_gridding_beside_keeps_the_amplitude_of_partial_echoes(weights):
    """What one spoke lacks others have measured, half as densely."""

    def partial(data):
        data = data.copy()
        data[..., :40] = 0.0
        return data

    whole, part = (
        run(weights, [frame(n_spokes=201, change=change)], guard=False)[0] for change in (lambda data: data, partial)
    )
    assert (whole.meta["method"], part.meta["method"]) == ("gridding", "gridding")
    scale = np.vdot(whole.data, part.data) / np.vdot(whole.data, whole.data)
    assert abs(scale - 1.0) < 0.01


def test_the_mean_over_symmetries_is_noted_and_no_baseline_of_another_mean_fits_it(weights):
    scan = [frame(0), frame(1)]
    plain = run(weights, scan, beside=False, guard=False)[0]
    mean = run(weights, scan, beside=False, guard=False, symmetries="8")[0]
    assert (plain.meta["network_symmetries"], mean.meta["network_symmetries"]) == (1, 8)
    assert plain.fingerprint["method"] != mean.fingerprint["method"]
    # Blocks that correct nothing have nothing to average.
    np.testing.assert_allclose(mean.data, plain.data, atol=1e-4 * np.abs(plain.data).max())


@pytest.mark.parametrize("reference", [False, True])
def test_frames_of_a_file_are_those_of_a_scanner_in_the_same_order(weights, guided, reference):
    file = guided if reference else weights
    values = {"reference_frames": 3} if reference else {}
    recorded = run(file, [frame(0), frame(1), "text", *(frame(n) for n in range(2, 12))], **values)
    live = run(file, [frame(0, received_s=1.0), *(frame(n, received_s=1.0) for n in range(1, 12))], **values)
    # A guided network's images wait for its reference.
    assert recorded.index("text") == (2 if reference else 4)
    recorded.remove("text")
    assert [(i.number, i.meta["method"]) for i in recorded] == [(i.number, i.meta["method"]) for i in live]
    for one, other in zip(recorded, live, strict=True):
        # Frames that follow each other are 2e-2 apart.
        assert apart(one.data, other.data) < (5e-3 if reference else 1e-5)
        assert one.meta.keys() == other.meta.keys()
        assert one.fingerprint.keys() == other.fingerprint.keys()
        # Names by content: those of two runs need not agree.
        assert all(
            one.fingerprint[k] == other.fingerprint[k] for k in one.fingerprint.keys() - {"coil_maps", "reference"}
        )


def test_a_frame_of_a_scanner_leaves_before_the_next_is_asked_for(weights):
    asked = []

    def items():
        for number in range(4):
            asked.append(number)
            yield frame(number, received_s=1.0)

    made = stage(items(), header(), Settings(network=str(weights), beside=False))
    # Two frames make the coil maps.
    assert [next(made).number for _ in range(3)] == [0, 1, 2]
    assert asked == [0, 1, 2]


def test_an_error_comes_after_the_images_of_the_frames_before_it(weights):
    def damaged():
        yield from (frame(n) for n in range(5))
        raise SpokeError("damaged")

    found = []
    with pytest.raises(SpokeError, match="damaged"):
        found.extend(image.number for image in stage(damaged(), header(), Settings(network=str(weights), beside=False)))
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("reference", [False, True])
def test_the_sinogram_without_gaps_goes_to_series_8(weights, guided, reference):
    def corrupt(data):
        data[:, 5] *= np.exp(2.5j)
        return data

    items = [frame(n, change=corrupt if n == 3 else lambda data: data) for n in range(5)]
    made = run(guided if reference else weights, items, sinogram=True, reference_frames=3)
    made = [dataclasses.replace(image, header=None) for image in made]
    sent = list(stages_images.stage(iter(made), header(), stages_images.Settings(sinograms=True)))
    full = {image.repetition: image for image in sent if image.image_series_index == 8}
    # None where the guard trips.
    assert sorted(full) == [0, 1, 2, 4]
    network = {image.number: image for image in made if image.meta["method"] == "pdunet"}
    for number, image in full.items():
        assert image.data.shape == (COILS, 1, 75, 2 * N)  # 75 = 48 · π/2
        # Twice the image: as many elements, as large as its pixels.
        assert image.field_of_view[0] == pytest.approx(600.0)
        assert image.meta["sinotherm_product"] == "sinogram_full"
        angles = np.array(image.meta["sinotherm_sinogram_angles_rad"], dtype=float)
        measured = np.array(image.meta["sinotherm_sinogram_measured"], dtype=int)
        assert (np.diff(angles) > 0.0).all()
        assert np.diff(np.append(angles, angles[0] + np.pi)).max() < 1.3 * np.pi / 75
        order, backwards = angular_order(items[number].angles())
        np.testing.assert_allclose(angles[measured], np.mod(items[number].angles(), np.pi)[order], atol=1e-6)
        found = FourierSlice(items[number].sampling)(torch.from_numpy(items[number].data())).numpy()
        turned = np.roll(found[..., ::-1], 1, axis=-1)
        expected = np.where(backwards[:, None], turned, found)[:, order]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(image.data[:, 0, measured], expected, atol=1e-5 * scale)
        # What was not measured is of the image: nearly what a scan without noise would have measured there.
        others = np.setdiff1d(np.arange(75), measured)
        clean = FourierSlice(items[number].sampling)(
            torch.from_numpy(ellipse_scan(N, angles[others], n_coils=COILS)[0])
        ).numpy()
        assert np.linalg.norm(image.data[:, 0, others] - clean) < 0.1 * np.linalg.norm(clean)
        assert network[number].sinogram.data.dtype == np.complex64
    assert all(image.sinogram is None for image in run(weights, items[:2]))


def test_spokes_end_here_and_the_rest_passes(weights):
    one = frame(0)
    out = run(weights, [*one.spokes, one, None], beside=False, guard=False)
    assert out[0] is None
    assert [image.meta["method"] for image in out[1:]] == ["pdunet"]


@pytest.mark.parametrize("fallback", ["gridding", "cg_sense"])
def test_noise_alone_trips_the_guard_and_the_fallback_takes_over(weights, fallback):
    random = np.random.default_rng(0)

    def noise(data):
        return random.standard_normal(data.shape) + 1j * random.standard_normal(data.shape)

    bad = [frame(n, change=noise) for n in range(2)]
    out = run(weights, bad, fallback=fallback, beside=False)
    assert [image.meta["method"] for image in out] == [fallback, fallback]
    assert all(image.meta["guard"] for image in out)


def test_cg_sense_takes_over_by_the_defaults_of_its_stage():
    defaults, taken = stages_cg_sense.Settings(), inspect.signature(cg_sense).parameters
    assert defaults.regularisation == "l2"
    for name in ("density", "corner", "iterations"):
        assert taken[name].default == getattr(defaults, name)


def test_a_corrupted_spoke_trips_the_guard(weights):
    def corrupt(data):
        data[:, 5] *= np.exp(2.5j)
        return data

    out = run(weights, [frame(0), frame(1), frame(2, change=corrupt)])
    by_number = {image.number: image.meta for image in out}
    assert "guard" not in by_number[1]
    assert "spoke residual" in by_number[2]["guard"]
    assert by_number[2]["method"] == "gridding"
    assert by_number[2]["in_place_of"] == "pdunet"
    # What goes beside goes on, whatever the guard says.
    assert [image.number for image in out if image.meta.get("beside") == "pdunet"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([frame(0, n_spokes=100)], "spokes 100 outside"),
        ([frame(0, n_spokes=8), frame(1, n_spokes=8)], "spokes 8 outside"),
    ],
)
def test_out_of_range_trips_the_guard(weights, items, reason):
    (image, *_) = run(weights, items, beside=False)
    assert reason in image.meta["guard"]


@pytest.mark.parametrize("factor", [30.0, 1e-3j])
def test_scaled_and_rotated_frames_do_not_trip_and_give_the_scaled_image(weights, factor):
    plain = run(weights, [frame(0), frame(1)], beside=False, precision="float32")
    changed = run(weights, [frame(n, change=lambda d: factor * d) for n in range(2)], beside=False, precision="float32")
    assert [image.meta["method"] for image in changed] == ["pdunet", "pdunet"]
    for a, b in zip(plain, changed, strict=True):
        # By the norm: in the outermost corner the gridding's deapodisation enlarges rounding a thousandfold.
        assert np.linalg.norm(b.data - factor * a.data) < 1e-3 * abs(factor) * np.linalg.norm(a.data)


def test_a_network_without_limits_runs_without_its_guard_only(tmp_path):
    unlimited = untrained(tmp_path, limits=GuardLimits())
    with pytest.raises(WeightsError, match="no guard limits"):
        run(unlimited, [frame(0), frame(1)])
    out = run(unlimited, [frame(0), frame(1)], guard=False)
    assert [image.meta["method"] for image in out] == ["gridding", "pdunet"] * 2


def test_residuals_may_be_checked_now_and_then(weights):
    out = run(weights, [frame(n) for n in range(4)], beside=False, guard_every=2)
    assert ["guard_held_out" in image.meta for image in out] == [True, False, True, False]


def test_rectangular_images_are_cut_out_of_the_square(weights):
    scan = header(matrix=(N, N - 12, 1))
    out = run(weights, [frame(0), frame(1)], scan)
    square = run(weights, [frame(0), frame(1)])
    assert out[1].data.shape == (1, 1, N - 12, N)
    assert apart(out[1].data, square[1].data[:, :, 6:-6]) < 1e-5


def test_a_short_scan_still_gives_its_images(weights):
    out = run(weights, [frame(0, n_spokes=20)], maps_spokes=1000)
    assert [image.meta["method"] for image in out] == ["gridding", "pdunet"]


def test_a_guided_network_waits_for_its_reference(guided):
    out = run(guided, [frame(n) for n in range(5)], reference_frames=3)
    shown = [(image.number, image.meta["method"]) for image in out]
    # Gridding goes at once (after the coil maps), the network's images of the first frames when all three are there.
    assert shown[:3] == [(0, "gridding"), (1, "gridding"), (2, "gridding")]
    assert shown[3:6] == [(0, "pdunet"), (1, "pdunet"), (2, "pdunet")]
    assert shown[6:] == [(n, method) for n in (3, 4) for method in ("gridding", "pdunet")]
    network = [image for image in out if image.meta["method"] == "pdunet"]
    assert len({image.meta["reference"] for image in network}) == 1
    assert network[0].fingerprint["reference"] == network[0].meta["reference"]
    assert all(image.reference.shape == image.data.shape for image in network)
    # A frame of the reference is the change of one that it has no part in.
    assert not np.array_equal(network[0].reference, network[3].reference)
    np.testing.assert_array_equal(network[3].reference, network[4].reference)
    assert all(max(map(abs, image.meta["reference_drift_rad"])) < 0.03 for image in network)
    assert "guard" not in network[-1].meta
    errors = [modulus_error(image.data[0, 0]) for image in (out[-2], out[-1])]
    assert errors[1] < errors[0]


def test_the_reference_follows_the_drift(guided):
    def drifted(data):
        return data * np.exp(0.4j)

    items = [frame(0), frame(1), frame(2, change=drifted)]
    last = run(guided, items, reference_frames=2)[-1]
    assert last.meta["reference_drift_rad"] == pytest.approx((0.4, 0.0, 0.0), abs=0.03)
    still = run(guided, items, reference_frames=2, drift_order=-1)[-1]
    assert still.meta["reference_drift_rad"] == ()
    # Both show the drift: the reference decides only how much of it the network has to find.
    first = run(guided, items, reference_frames=2)[3]
    turn = np.angle(np.vdot(first.data, last.data))
    assert turn == pytest.approx(0.4, abs=0.03)


FAT = "polygon:4,4,44,4,44,16,4,16"


def imaged(number, turn, n_spokes=64, echo=0):
    """Return a frame of the ellipses, multiplied by ``turn`` (y, x)."""
    angles = spoke_angles("golden", n_spokes, first=number * n_spokes)
    _, sampling = ellipse_scan(N, angles, n_coils=COILS)
    plan = FinufftPlan((N, N), COILS)
    plan.set_points(np.ascontiguousarray(radial_points(angles, sampling).reshape(-1, 2)))
    image = (coil_maps(COILS, N) * ellipse_image(N) * turn).astype(np.complex64)
    data = plan.forward(image).reshape(COILS, n_spokes, -1)
    spokes = tuple(
        Spoke(data=data[:, i], sampling=sampling, angle_rad=float(a), header="head") for i, a in enumerate(angles)
    )
    return Frame(spokes=spokes, number=number, echo=echo, footprint=(0.0, 1.0, 2.0))


def with_thermometry(scan, **values):
    settings = ThermometrySettings(**{"phase_sign": 1, **values})
    return dataclasses.replace(scan, chain={"thermometry": settings.model_dump()})


Y, X = np.mgrid[:N, :N] - N // 2
HEAT = np.exp(0.8j * np.exp(-((X - 2.0) ** 2 + (Y + 4.0) ** 2) / 30.0))
"""Half of it within `FAT`."""


@pytest.fixture(scope="module")
def closing(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("closing"), reference=True, closing=((3.0, 0.0),) * 4)


@pytest.mark.parametrize("matrix", [(N, N, 1), (N, N - 12, 1)])
def test_what_thermometry_takes_for_fat_is_held_still(closing, matrix):
    """In its place on the images, whatever square the network works on; elsewhere the change is found."""
    scan = header(matrix)
    mask = region_mask(FAT, (1, matrix[1], matrix[0]), scan.pixel_m)
    items = [imaged(0, 1.0), imaged(1, 1.0), imaged(2, HEAT)]
    shown = {}
    for name, one in (("fat", with_thermometry(scan, fat=FAT, cold_mask="circle:24,30,3")), ("none", scan)):
        last = run(closing, items, one, reference_frames=2, guard=False)[-1]
        drift = last.meta["reference_drift_rad"][0]
        shown[name] = np.angle(last.data[0] * last.reference[0].conj()) - drift
        assert last.meta["reference_fat_voxels"] == (int(mask.sum()) if name == "fat" else 0)
        if name == "fat":
            np.testing.assert_array_equal(last.held, mask)
        else:
            assert last.held is None
    bright = np.abs(last.data[0]) > 0.3 * np.abs(last.data[0]).max()
    assert np.abs(shown["fat"][mask & bright]).max() < 0.1
    assert shown["none"][mask & bright].max() > 0.3
    assert shown["fat"][~mask & bright].max() > 0.3


@pytest.mark.parametrize(
    ("changes", "options"),
    [({"cold_mask": "fat"}, {}), ({"drift_order": 2}, {}), ({}, {"drift_order": -1}), ({"drift_order": 0}, {})],
)
def test_fat_that_tells_the_drift_is_not_held_still(closing, changes, options, caplog):
    """Where the maps fit more to it than the guide has, a drift of 4 degC would be shown as heat."""
    scan = with_thermometry(header(), fat=FAT, **changes)
    last = run(closing, [imaged(n, 1.0) for n in range(3)], scan, reference_frames=2, guard=False, **options)[-1]
    held = changes == {"drift_order": 0}
    assert (last.held is not None) == held
    assert ("fat is not held still" in caplog.text) != held


@pytest.mark.parametrize("cold_mask", ["auto", "polygon:4,4,24,4,24,16,4,16"])
def test_what_tells_the_drift_is_not_held_still(closing, cold_mask):
    """Oil tubes, and the fat of the rim: showing no more than the guide knows, they would show heat as drift."""
    scan = with_thermometry(header(), fat=FAT, cold_mask=cold_mask)
    last = run(closing, [imaged(n, 1.0) for n in range(3)], scan, reference_frames=2, guard=False)[-1]
    fat = region_mask(FAT, (1, N, N), scan.pixel_m)
    if cold_mask == "auto":
        size = np.abs(last.reference[0, 0])
        cold = periphery_mask(size, 0.05 * np.percentile(size, 99.0), scan.pixel_m)
    else:
        cold = region_mask(cold_mask, (1, N, N), scan.pixel_m)
    assert 20 < (fat & ~cold).sum() < fat.sum() - 20
    # The frame's own reference outlines the rim a little otherwise than that of all frames.
    assert (last.held ^ (fat & ~cold)).sum() < 5


def test_fat_is_found_by_its_phase(closing):
    """As thermometry finds it, by the f0, TE and sign that hold for its maps, once for all echoes."""
    scan = with_thermometry(header(), fat="auto", phase_sign=-1, larmor_hz=63.87e6, echo_times_s=(0.019, 0.022))
    offset = fat_phase(larmor_hz=63.87e6, echo_time_s=0.019, phase_sign=-1)
    inset = (np.abs(ellipse_image(N)) > 0.3) & (np.hypot(Y - 4, X - 5) < 6)
    own = np.where(inset, 2.0 * np.exp(1j * offset), 1.0)
    items = [imaged(number, own, echo=echo) for number in range(3) for echo in (0, 1)]
    *_, first, second = (image for image in run(closing, items, scan, reference_frames=2, beside=False, guard=False))
    found = first.meta["reference_fat_voxels"]
    assert found == pytest.approx(inset.sum(), rel=0.5)
    assert found > 20
    np.testing.assert_array_equal(first.held, second.held)


def test_frames_of_the_reference_that_are_missing_are_not_made_up_for(guided):
    items = [frame(n) for n in (0, 1, 4, 5)]
    out = run(guided, items, reference_frames=3)
    shown = [(image.number, image.meta["method"]) for image in out]
    assert shown.index((0, "pdunet")) > shown.index((4, "gridding"))
    without = run(guided, items, reference_frames=2)
    # One frame more makes another of 1e-2.
    assert apart(out[-1].reference, without[-1].reference) < 3e-3


@pytest.mark.parametrize("bad", ["a spoke", "noise"])
def test_a_bad_frame_has_no_part_in_the_reference_of_the_others(guided, caplog, bad):
    def spoil(data):
        if bad == "a spoke":
            data[:, 5] *= 3.0
            return data
        noise = np.random.default_rng(0).standard_normal((2, *data.shape))
        return np.abs(data).max() / 4.0 * (noise[0] + 1j * noise[1])

    caplog.set_level("INFO")
    out = run(guided, [frame(0), frame(1), frame(2, change=spoil), *map(frame, (3, 4, 5))], reference_frames=5)
    assert "reference of echo 0 from 4 of 5 frames (left out as outliers: 2)" in caplog.text
    shown = [image for image in out if "beside" not in image.meta]
    assert [image.number for image in shown] == [0, 1, 2, 3, 4, 5]
    assert [image.meta.get("in_place_of") for image in shown] == [None, None, "pdunet", None, None, None]
    assert {image.meta["reference_rejected"] for image in shown} == {(2,)}
    without = run(guided, [frame(n) for n in (0, 1, 3, 4, 5)], reference_frames=5)
    # With the bad frame it is another by 3e-2 or more, and so are the images.
    assert apart(shown[-1].reference, without[-1].reference) < 3e-3
    assert without[-1].meta["reference_rejected"] == ()
    assert apart(shown[-1].data, without[-1].data) < 3e-3


def test_frames_may_be_left_out_of_the_reference(guided):
    out = run(guided, [frame(n) for n in range(4)], reference_frames=2, reference_skip=1)
    network = [image for image in out if image.meta["method"] == "pdunet"]
    assert [image.number for image in network] == [0, 1, 2, 3]
    assert (
        network[0].meta["reference"]
        != run(guided, [frame(n) for n in range(4)], reference_frames=2)[-1].meta["reference"]
    )


def test_a_scan_that_ends_before_the_reference_still_gives_its_images(guided, caplog):
    out = run(guided, [frame(n) for n in range(2)], reference_frames=4)
    assert [image.meta["method"] for image in out] == ["gridding", "gridding", "pdunet", "pdunet"]
    assert "reference from 2 frames only" in caplog.text
    skipped = run(guided, [frame(n) for n in range(2)], reference_frames=4, reference_skip=3)
    assert len(skipped) == 4


def test_echoes_have_references_of_their_own(guided):
    items = [frame(n, echo=echo, change=lambda d, echo=echo: d * 1j**echo) for n in range(3) for echo in (0, 1)]
    out = run(guided, items, reference_frames=2)
    network = [image for image in out if image.meta["method"] == "pdunet"]
    assert [(image.number, image.echo) for image in network] == [(n, echo) for n in range(3) for echo in (0, 1)]
    assert network[0].meta["reference"] != network[1].meta["reference"]
    assert network[4].meta["reference"] == network[0].meta["reference"]


def test_the_guard_watches_a_guided_network(guided):
    def corrupt(data):
        data[:, 5] *= np.exp(2.5j)
        return data

    out = run(guided, [frame(0), frame(1), frame(2, change=corrupt), frame(3)], reference_frames=2)
    assert [image.meta.get("in_place_of") for image in out if "beside" not in image.meta] == [
        None,
        None,
        "pdunet",
        None,
    ]


def test_missing_weights_and_device_are_named():
    with pytest.raises(WeightsError, match=r"nothing\.safetensors does not exist"):
        run("nothing", [])
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="no CUDA device"):
            run("nothing", [], device="cuda")
