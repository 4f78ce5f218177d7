import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinotherm.core.physics import FAT_SHIFT, PRF_COEFFICIENT
from sinotherm.errors import SettingsError
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import STEPS_PER_FRAME, Scan, chebyshev_nodes, interpolation_weights, ranked


def scan(**changes):
    values = {
        "matrix": 24, "n_coils": 3, "spokes": 6, "frames": 4, "baseline_frames": 1, "cooling_frames": 1,
        "snr": math.inf, "noise_scans": 4, "dummy_scans": 3, "repetition_time_s": 0.1, "seed": 5,
    }  # fmt: skip
    return Scan(protocol=Protocol(**(values | changes)))


def direct_sample(made, frame, spoke, sample, coil):
    """The signal equation, voxel by voxel, at one sample of one spoke."""
    protocol, anatomy = made.protocol, made.anatomy
    within = spoke * protocol.repetition_time_s
    interval = protocol.frame_interval_s or protocol.spokes * protocol.repetition_time_s
    start = frame * interval + within
    time = protocol.echo_time_s + (sample - protocol.matrix) * protocol.dwell_s
    nodes = np.linspace(0.0, 1.0, STEPS_PER_FRAME + 1)
    between = interpolation_weights(nodes, np.array([within / interval]))
    change = np.zeros(anatomy.body.shape)
    first = STEPS_PER_FRAME * frame
    change[anatomy.body] = (between @ made.heating[first : first + STEPS_PER_FRAME + 1])[0]
    offset = made.field_hz + made.drift.frequency(np.array([start]))[0]
    turn = 2j * np.pi * protocol.phase_sign * time
    water = anatomy.water * np.exp(turn * (offset + protocol.larmor_hz * PRF_COEFFICIENT * change))
    fat = anatomy.fat * np.exp(turn * (offset + protocol.larmor_hz * FAT_SHIFT))
    kx, ky = made.positions(made.angles(frame))[spoke, sample]
    axis = np.arange(protocol.matrix) - protocol.matrix // 2
    wave = np.exp(-2j * np.pi * (kx * axis[None, :] + ky * axis[:, None]))
    return np.sum((water + fat) * made.coils.maps[coil] * wave)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "golden"},
        {"frame_interval_s": 5.0},
        {"phase_sign": -1, "drift_order_space": 2, "field_hz": 60.0, "pixel_bandwidth_hz": 100.0},
        {"delay_x": 1.3, "delay_y": -0.7},
        {"scene": "hifu", "peak_degc": 25.0, "schedule": "uniform360"},
        {"scene": "brain", "fat": False, "drift_order_time": 0},
    ],
    ids=["pelvis", "golden", "pauses", "field", "delay", "hifu", "brain"],
)
def test_samples_are_the_signal_equation_to_1e_4(changes):
    made = scan(**changes)
    random = np.random.default_rng(0)
    found, expected = [], []
    for number, data in enumerate(made.frames()):
        assert data.dtype == np.complex64
        for _ in range(20):
            spoke, sample, coil = random.integers(6), random.integers(48), random.integers(3)
            found.append(data[coil, spoke, sample])
            expected.append(direct_sample(made, number, spoke, sample, coil))
    error = np.abs(np.array(found) - np.array(expected))
    assert np.linalg.norm(error) <= 1e-4 * np.linalg.norm(expected)


def test_exact_shapes_have_each_its_own_frequency():
    """Water and fat on resonances of their own and a uniform drift: no grid, no segments."""
    made = scan(
        n_coils=1, field_hz=0.0, peak_degc=0.0, drift_order_space=0, kspace="analytic", scene="brain", frames=2,
    )  # fmt: skip
    protocol = made.protocol
    data = list(made.frames())[1][0]
    k = made.positions(made.angles(1))
    start = (6 + np.arange(6)) * protocol.repetition_time_s
    time = protocol.echo_time_s + (np.arange(48) - 24) * protocol.dwell_s
    drift = made.drift.course(start)[:, 0]
    from sinotherm.simulation.phantoms import TISSUES, gradient_echo

    expected = np.zeros((6, 48), complex)
    for name, tissue in TISSUES.items():
        signal = gradient_echo(
            tissue, echo_time_s=protocol.echo_time_s, repetition_time_s=0.1, flip_angle_rad=protocol.flip_angle_rad
        )
        alone = {other: float(other == name) * signal for other in TISSUES}
        for part, shift in ((1.0 - tissue.fat, 0.0), (tissue.fat, FAT_SHIFT * protocol.larmor_hz)):
            phase = 2j * np.pi * (drift[:, None] + shift) * time
            expected += part * made.scene.kspace(k, alone, matrix=24) * np.exp(phase)
    np.testing.assert_allclose(data, expected, atol=2e-5 * np.abs(expected).max())


def test_exact_shapes_agree_with_the_fine_grid():
    """The same scan on a grid of 256 pixels differs by the edges' partial volumes only, at low k."""
    settings = {
        "n_coils": 1, "field_hz": 0.0, "peak_degc": 0.0, "drift_order_space": 0, "frames": 1, "baseline_frames": 0,
        "cooling_frames": 0, "matrix": 256, "fat": False,
    }  # fmt: skip
    exact = next(scan(**settings, kspace="analytic").frames())
    grid = next(scan(**settings).frames())
    low = slice(256 - 60, 256 + 60)
    assert np.abs(exact - grid)[..., low].max() < 2e-3 * np.abs(grid).max()


def test_an_image_has_no_exact_shapes():
    with pytest.raises(SettingsError, match="no exact shapes"):
        Scan(
            protocol=Protocol(n_coils=1, field_hz=0.0, peak_degc=0.0, drift_order_space=0, kspace="analytic"),
            image=np.ones((256, 256)),
        )


def test_an_image_is_the_object():
    y, x = np.mgrid[:24, :24] - 12
    image = (np.hypot(x, y) < 9).astype(float)
    made = Scan(protocol=Protocol(matrix=24, frames=1, baseline_frames=0, cooling_frames=0, fat=False), image=image)
    np.testing.assert_allclose(made.anatomy.water, image)
    np.testing.assert_allclose(np.abs(made.signal()[0]), image, atol=1e-6)


def test_peak_window_and_course_of_the_heating():
    made = scan(frames=6, baseline_frames=2, cooling_frames=2, peak_degc=7.5)
    peaks = [np.nanmax(made.temperature_change(number)) for number in range(6)]
    assert peaks[:2] == [0.0, 0.0]
    assert max(peaks) == pytest.approx(7.5, rel=1e-5)
    assert peaks[2] < peaks[3] < peaks[4] > peaks[5] > 0.0
    assert np.nanmin(made.temperature(0)) == np.nanmax(made.temperature(0)) == 37.0
    assert np.isnan(made.temperature(3)[0, 0])
    # The window is the mean over the spokes, each at its own time.
    nodes = np.linspace(0.0, 1.0, STEPS_PER_FRAME + 1)
    each = interpolation_weights(nodes, np.arange(6) / 6) @ made.heating[8:13]
    np.testing.assert_allclose(made.temperature_change(2)[made.anatomy.body], each.mean(axis=0), atol=1e-5)


def test_pauses_between_frames_pass_in_the_body_too():
    focus = {"scene": "hifu", "frames": 12, "peak_degc": 5.0}
    quick, slow = scan(**focus), scan(**focus, frame_interval_s=60.0)
    assert slow.protocol.interval_s == 60.0
    assert slow.protocol.duration_s == pytest.approx(quick.protocol.duration_s + 11 * 59.4)
    # The drift reaches the same size at the scan's end.
    end = np.array([12 * 60.0])
    np.testing.assert_allclose(slow.drift.frequency(end), quick.drift.frequency(end / 100.0), atol=1e-9)
    # While heat has the time to spread, what is hottest is less of all that is heated; a frame lasts 0.6 s of 60.
    spread = [one.heating[-1].mean() / one.heating[-1].max() for one in (quick, slow)]
    assert spread[1] > 1.1 * spread[0]
    first = slow.heating[4 : 4 + STEPS_PER_FRAME + 1]
    early = np.nanmax(slow.temperature_change(1))
    assert early < 0.02 * first.max()


def test_no_heating():
    made = scan(peak_degc=0.0)
    assert not np.any(made.heating)
    never = scan(frames=4, baseline_frames=2, cooling_frames=2)
    assert not np.any(never.heating)


def test_noise_gives_the_stated_snr_in_the_sense_combination():
    """Direct reconstruction of 402 noise spokes with the ramp, whitened and SENSE-combined."""
    made = scan(matrix=32, n_coils=4, snr=40.0, spokes=402, frames=1, baseline_frames=0, cooling_frames=0)
    protocol, sampling = made.protocol, made.protocol.sampling
    random = np.random.default_rng(1)
    place = np.argwhere(made.anatomy.tumour)[:6] - 16
    k = made.positions(made.angles(0))
    weights = sampling.spacing * np.abs(sampling.positions) * np.pi / 402
    white = np.linalg.inv(np.linalg.cholesky(made.coils.noise_covariance))
    maps = np.einsum("ij,jyx->iyx", white, made.coils.maps)
    values = []
    for _ in range(12):
        noise = np.einsum("ij,jsr->isr", white, made.noise(random, 402))
        for y, x in place:
            c = maps[:, y + 16, x + 16]
            wave = np.exp(2j * np.pi * (k[..., 0] * x + k[..., 1] * y)) * weights
            values.append(np.sum(wave * np.einsum("i,isr->sr", c.conj(), noise)) / np.linalg.norm(c))
    noise_sd = np.sqrt(np.mean(np.abs(values) ** 2) / 2)
    signal = np.median(((made.anatomy.water + made.anatomy.fat) * np.linalg.norm(maps, axis=0))[made.anatomy.tumour])
    assert signal / noise_sd == pytest.approx(40.0, rel=0.2)
    assert protocol.snr == 40.0


def test_noise_has_the_covariance_of_the_coils():
    made = scan(n_coils=4, snr=10.0)
    noise = made.noise(np.random.default_rng(2), 2000).reshape(4, -1)
    found = noise @ noise.conj().T / noise.shape[1] / (2 * made.noise_sd**2)
    np.testing.assert_allclose(found, made.coils.noise_covariance, atol=0.02)


def test_preparation_precedes_the_steady_state():
    made = scan(dummy_scans=8, spokes=6)
    noise, dummies = made.preparation()
    first = next(made.frames())
    assert noise.shape == (3, 0, 48)
    strength = np.abs(dummies[:, :6]).sum(axis=(0, 2)) / np.abs(first).sum(axis=(0, 2))
    assert np.all(np.diff(strength) < 0)
    assert strength[-1] > 1.0
    assert scan(snr=10.0).preparation()[0].shape == (3, 4, 48)
    empty = scan(snr=10.0, dummy_scans=0, noise_scans=0).preparation()
    assert [part.shape[1] for part in empty] == [0, 0]


def test_seed_decides_everything_and_parts_are_independent():
    data = [next(scan(snr=20.0, seed=seed).frames()) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(data[0], data[1])
    assert np.abs(data[0] - data[2]).max() > 0
    one, other = scan(seed=1), scan(seed=1, drift_hz=5.0)
    np.testing.assert_array_equal(one.coils.maps, other.coils.maps)
    np.testing.assert_allclose(other.drift.coefficients, 2.5 * one.drift.coefficients)


@given(st.integers(1, 6), st.floats(-1.0, 1.0))
def test_interpolation_is_exact_for_polynomials(n, point):
    nodes = np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1)
    weights = interpolation_weights(nodes, np.array([point, nodes[0]]))
    for power in range(n):
        np.testing.assert_allclose(weights @ nodes**power, np.array([point, nodes[0]]) ** power, atol=1e-9)


@given(st.floats(0.0, 20.0))
def test_chebyshev_nodes_hold_their_tolerance(bound):
    nodes = chebyshev_nodes(1.0, bound, tolerance=1e-4)
    points = np.linspace(-1.0, 1.0, 301)
    found = interpolation_weights(nodes, points) @ np.exp(1j * bound * nodes)
    assert np.abs(found - np.exp(1j * bound * points)).max() <= 1e-4


@pytest.mark.parametrize("columns", [6, 60])
def test_ranked_basis_holds_the_columns(columns):
    """Also where the first sketch is too small."""
    random = np.random.default_rng(0)
    rank = min(columns, 25)
    make = lambda *shape: random.standard_normal(shape) + 1j * random.standard_normal(shape)  # noqa: E731
    matrix = (make(90, rank) @ make(rank, columns)).astype(np.complex64)
    basis, coefficients = ranked(matrix)
    assert basis.shape == (90, rank)
    np.testing.assert_allclose(basis @ coefficients, matrix, atol=1e-4 * np.abs(matrix).max())
