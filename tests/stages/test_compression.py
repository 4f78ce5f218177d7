import dataclasses
import logging

import numpy as np
import pytest

from direct_radial import ellipse_scan
from sinotherm.core.geometry import spoke_angles
from sinotherm.core.scan import EncodingSpace, ScanHeader, Spoke
from sinotherm.errors import BaselineError
from sinotherm.stages.compression import Settings, stage

N = 32


def staged(items, *, estimates=None, **values):
    space = EncodingSpace(matrix=(N, N, 1), fov_m=(0.3, 0.3, 0.005))
    header = ScanHeader(encoded=space, recon=space, trajectory="radial", spokes_per_frame=12, estimates=estimates or {})
    return stage(iter(items), header, Settings(**values))


def run(items, **values):
    return list(staged(items, **values))


def scan(n_spokes=24, n_coils=12, streaky=None):
    angles = spoke_angles("golden", n_spokes)
    data, sampling = ellipse_scan(N, angles, n_coils=n_coils, noise=1.0)
    if streaky is not None:
        # A coil that sees a point beyond the field of view and little else.
        kappa = sampling.positions
        data[streaky] = 0.01 * data[streaky] + 2000 * np.exp(-2j * np.pi * 0.8 * N * kappa * np.cos(angles)[:, None])
    return [
        Spoke(data=data[:, i], sampling=sampling, angle_rad=float(a), index=i, calibration={"other": 1})
        for i, a in enumerate(angles)
    ]


@pytest.mark.parametrize("method", ["svd", "region"])
def test_compression_is_decided_once_and_named(method):
    spokes = scan()
    out = run(["text", *spokes], method=method, coils=5)
    assert out[0] == "text"
    assert [s.index for s in out[1:]] == list(range(24))
    assert all(s.data.shape == (5, 2 * N) and s.data.dtype == np.complex64 for s in out[1:])
    note = out[-1].calibration
    assert note["other"] == 1
    assert note["coil_compression"] == method
    assert note["coil_compression_coils"] == (12, 5)
    assert 0.9 < note["coil_compression_energy"] <= 1.0
    # One matrix for all: the first and last spokes map by the same linear map.
    inputs = np.concatenate([s.data for s in spokes], axis=1)
    outputs = np.concatenate([s.data for s in out[1:]], axis=1)
    matrix = outputs @ np.linalg.pinv(inputs)
    np.testing.assert_allclose(matrix @ inputs, outputs, atol=1e-3 * np.abs(outputs).max())
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(5), atol=1e-2)


def test_number_by_energy():
    (first, *_) = run(scan(), coils=0, energy=0.9)
    assert len(first.data) < 12
    assert first.calibration["coil_compression_energy"] >= 0.9
    (first, *_) = run(scan(), method="region", coils=0)
    assert len(first.data) == 6


def test_few_coils_and_off_change_nothing():
    spokes = scan(n_coils=4)
    assert run(spokes, streak_limit=0.0) == spokes
    single = scan(n_coils=1)
    assert run(single) == single
    many = scan()
    assert run(many, method="off") == many
    assert run([]) == []


def whitened(spokes, seed=0):
    """The spokes with coupled coils and noise, whitened as by a noise scan, and the factor of its covariance."""
    n_coils = len(spokes[0].data)
    rng = np.random.default_rng(seed)
    coupling = np.eye(n_coils) + 0.3 * rng.standard_normal((n_coils, n_coils))
    products = (coupling @ coupling.T).astype(np.complex128) * 1000
    estimates = {"noise_products": products, "noise_readout": np.array([5.0, 1000])}
    factor = np.linalg.cholesky(products / 1000)
    return [
        dataclasses.replace(s, data=np.linalg.solve(factor, s.data).astype(np.complex64), estimates=estimates)
        for s in spokes
    ], factor


@pytest.mark.parametrize(("n_coils", "left"), [(4, 3), (8, 7), (12, 8)])
@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("method", ["svd", "region"])
def test_streak_prone_coil_is_left_out_as_if_it_were_not_there(n_coils, left, white, method, caplog):
    spokes, factor = scan(n_coils=n_coils, streaky=3), np.eye(n_coils)
    if white:
        spokes, factor = whitened(spokes)
    with caplog.at_level(logging.WARNING):
        out = run(spokes, method=method)
    assert f"coils 3 of {n_coils} are left out" in caplog.text
    note = out[0].calibration
    assert note["streak_prone_coils"] == (3,)
    assert note["coil_compression_coils"] == (n_coils, left)
    matrix = out[0].estimates["coil_compression"]
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(left), atol=1e-5)
    # Nothing of it is left, whatever it sees.
    np.testing.assert_allclose(matrix @ np.linalg.inv(factor)[:, 3], 0.0, atol=1e-5)
    np.testing.assert_array_equal(out[-1].data, matrix @ spokes[-1].data)
    kept = run(spokes, method=method, streak_limit=0.0)
    assert "streak_prone_coils" not in kept[0].calibration
    assert len(kept[0].data) == min(n_coils, 8)


def test_the_plane_with_the_most_signal_tells(caplog):
    spokes = scan(streaky=3, n_coils=8)
    weak = [dataclasses.replace(s, data=1e-3 * s.data[::-1], slice=1) for s in spokes]
    (first, *_) = run([s for pair in zip(weak, spokes, strict=True) for s in pair])
    assert first.calibration["streak_prone_coils"] == (3,)


@pytest.mark.parametrize("white", [False, True])
def test_a_scan_without_streaks_keeps_its_data_and_says_that_it_has_none(white):
    spokes = scan(n_coils=8)
    if white:
        spokes, _ = whitened(spokes)
    for one, other in zip(run(["text", *spokes])[1:], spokes, strict=True):
        assert one.data is other.data
        assert one.estimates is other.estimates
        assert one.calibration == {**other.calibration, "streak_prone_coils": ()}
    assert run(scan())[0].calibration["streak_prone_coils"] == ()
    assert all(one is other for one, other in zip(run(spokes, streak_limit=0.0), spokes, strict=True))


@pytest.mark.parametrize("spokes", [0, 4])
@pytest.mark.parametrize("interleaved", [True, False])
def test_every_slice_has_a_part_in_what_is_kept(interleaved, spokes):
    """The first slice is seen by other coils than the second."""
    first, second = (
        [dataclasses.replace(s, slice=number, data=s.data * seen[:, None].astype(np.complex64)) for s in scan(12)]
        for number, seen in enumerate((np.arange(12) < 6, np.arange(12) >= 6))
    )
    order = [s for pair in zip(first, second, strict=True) for s in pair] if interleaved else [*first, *second]
    space = EncodingSpace(matrix=(N, N, 1), fov_m=(0.3, 0.3, 0.005))
    header = ScanHeader(encoded=space, recon=space, trajectory="radial", spokes_per_frame=12, n_slices=2)
    taken = []

    def live():
        for one in [*order, *order]:
            taken.append(one)
            yield one

    out = stage(live(), header, Settings(coils=8, streak_limit=0.0, spokes=spokes))
    made = [next(out)]
    assert len(taken) == (24 if not spokes else 2 * spokes if interleaved else 12 + spokes)
    made += out
    for number in range(2):
        before, after = (
            sum(float(np.vdot(s.data, s.data).real) for s in found if s.slice == number)
            for found in ([*order, *order], made)
        )
        assert after > 0.9 * before


def test_slices_that_never_come_hold_nothing_back_beyond_the_second_frame():
    space = EncodingSpace(matrix=(N, N, 1), fov_m=(0.3, 0.3, 0.005))
    header = ScanHeader(encoded=space, recon=space, trajectory="radial", spokes_per_frame=12, n_slices=9)
    taken = []

    def live():
        for one in scan():
            taken.append(one)
            yield one

    next(stage(live(), header, Settings(coils=5)))
    assert len(taken) == 13


def test_how_long_spokes_wait():
    taken = []

    def live(spokes):
        for spoke in spokes:
            taken.append(spoke.index)
            yield spoke

    few, many = scan(n_coils=8), scan()
    for spokes, values, waited in (
        (few, {}, 12),
        (scan(n_coils=8, streaky=3), {}, 12),
        (few, {"streak_limit": 0.0}, 1),
        (few, {"estimates": {(0, 0): {}}}, 1),
        (few, {"method": "off"}, 1),
        (many, {"streak_limit": 0.0}, 12),
    ):
        taken.clear()
        for number, spoke in enumerate(staged(live(spokes), **values)):
            assert spoke.index == number
            assert len(taken) == max(waited, number + 1)


def test_what_comes_before_the_first_spoke_does_not_wait():
    def live():
        yield "text"
        raise AssertionError("asked for more before the text was out")

    assert next(staged(live())) == "text"


def test_a_stored_baseline_tells_which_coils_are_left_out(caplog):
    spokes = scan(n_coils=8, streaky=3)
    whole = run(spokes)
    estimates = {(0, 0): whole[0].estimates}
    caplog.clear()
    rest = run(spokes[12:], estimates=estimates)
    assert not caplog.text
    for one, other in zip(rest, whole[12:], strict=True):
        np.testing.assert_array_equal(one.data, other.data)
        assert one.calibration["coil_compression_coils"] == other.calibration["coil_compression_coils"] == (8, 7)
    # One without such a coil keeps them all.
    assert run(spokes, estimates={(0, 0): {"other": np.ones(1)}}) == spokes
    with pytest.raises(BaselineError, match="its coils: 8, of this scan: 6"):
        run(scan(n_coils=6), estimates=estimates)
