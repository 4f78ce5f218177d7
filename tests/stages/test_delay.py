import dataclasses
import logging
import re

import numpy as np
import pytest

from direct_radial import ellipse_scan
from sinotherm.core.geometry import spoke_angles
from sinotherm.core.scan import EncodingSpace, ScanHeader, Spoke
from sinotherm.errors import SettingsError
from sinotherm.frames.calibration import calibration_facts
from sinotherm.stages.delay import Settings, stage

N = 64


def header(**changes):
    space = EncodingSpace(matrix=(N, N, 1), fov_m=(0.3, 0.3, 0.005))
    return ScanHeader(encoded=space, recon=space, trajectory="radial", **changes)


def scan(n_spokes, delay, *, n_coils=3, **spoke):
    angles = spoke_angles("golden", n_spokes)
    data, sampling = ellipse_scan(N, angles, n_coils=n_coils, delay=delay)
    return [
        Spoke(data=data[:, i], sampling=sampling, angle_rad=float(angle), index=i, **spoke)
        for i, angle in enumerate(angles)
    ]


def run(items, scan_header=None, **values):
    return list(stage(iter(items), scan_header or header(), Settings(**values)))


def shift_of(spoke, delay):
    x, y, xy = delay
    c, s = np.cos(spoke.angle_rad), np.sin(spoke.angle_rad)
    return -spoke.sampling.spacing * np.array([x * c + xy * s, xy * c + y * s])


@pytest.mark.parametrize(
    ("facts", "values"), [({"spokes_per_frame": 20}, {}), ({}, {"spokes": 20}), ({}, {}), ({}, {"method": "ring"})]
)
def test_first_frame_decides_for_the_whole_scan(facts, values):
    delay = (1.2, -0.8, 0.3)
    spokes = scan(50, delay)
    out = run(["text", *spokes, "end"], header(**facts), **values)
    assert out[0] == "text"
    assert out[-1] == "end"
    assert [s.index for s in out[1:-1]] == list(range(50))
    for spoke in out[1:-1]:
        np.testing.assert_allclose(spoke.shift, shift_of(spoke, delay), atol=0.02 * spoke.sampling.spacing)
        assert spoke.calibration["gradient_delay_source"] == "ring"
    np.testing.assert_allclose(out[1].calibration["gradient_delay_samples"], delay, atol=0.02)


def test_nothing_waits_after_the_first_frame():
    taken = []

    def source():
        for spoke in scan(40, (1.0, 1.0, 0.0)):
            taken.append(spoke.index)
            yield spoke

    out = stage(source(), header(spokes_per_frame=16), Settings())
    assert next(out).index == 0
    assert taken == list(range(16))
    assert [next(out).index for _ in range(15)] == list(range(1, 16))
    assert next(out).index == 16
    assert taken[-1] == 16


@pytest.mark.parametrize("sign", ["flag", "repetition"])
def test_frame_ends_by_flag_or_repetition(sign):
    first = scan(24, (2.0, 2.0, 0.0))
    later = scan(24, (0.0, 0.0, 0.0), repetition=1)
    if sign == "flag":
        first[-1] = dataclasses.replace(first[-1], last=True)
    out = run(first + later)
    np.testing.assert_allclose(out[-1].calibration["gradient_delay_samples"], (2.0, 2.0, 0.0), atol=0.02)


def test_each_echo_has_its_own_delay():
    even, odd = scan(24, (1.0, 1.0, 0.0), echo=0), scan(24, (-1.0, -1.0, 0.0), echo=1)
    out = run([s for pair in zip(even, odd, strict=True) for s in pair], header(spokes_per_frame=20))
    assert out[0].calibration["gradient_delay_samples"][0] == pytest.approx(1.0, abs=0.02)
    assert out[1].calibration["gradient_delay_samples"][0] == pytest.approx(-1.0, abs=0.02)


def test_given_and_off():
    spokes = scan(3, (0.0, 0.0, 0.0))
    assert run(spokes, mode="off") == spokes
    (one, *_) = run(spokes, mode="given", given="0.5")
    np.testing.assert_allclose(one.shift, shift_of(one, (0.5, 0.5, 0.0)))
    assert one.calibration["gradient_delay_source"] == "given"
    (_, two, _) = run(spokes, mode="given", given=(0.5, 1.0, 0.2))
    np.testing.assert_allclose(two.shift, shift_of(two, (0.5, 1.0, 0.2)))
    with pytest.raises(SettingsError, match=r"delay\.given"):
        run(spokes, mode="given")
    with pytest.raises(SettingsError, match=r"delay\.given is taken with delay\.mode = given only"):
        Settings.parse("delay", {"given": "0.5"})
    with pytest.raises(SettingsError, match=r"delay\.given .*finite"):
        Settings.parse("delay", {"mode": "given", "given": "0.5,nan"})


def test_what_cannot_be_estimated_is_said_and_left_alone(caplog):
    parallel = [dataclasses.replace(s, angle_rad=0.2) for s in scan(6, (0.0, 0.0, 0.0))]
    with caplog.at_level(logging.WARNING):
        out = run(parallel)
    assert "no gradient delay applied" in caplog.text
    assert out[0].calibration["gradient_delay_refused"].startswith("no estimate: ")
    np.testing.assert_allclose([s.shift for s in out], 0.0)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        out = run(scan(24, (4.2, 4.2, 0.0)))
    assert "above delay.limit = 3.5" in caplog.text
    # It shall not look like a delay that was measured and is none, nor change what a stored baseline is bound to.
    refused = r"x 4\.2\d, y 4\.2\d, xy -?0\.0\d samples: above delay\.limit = 3\.5"
    assert re.fullmatch(refused, out[0].calibration["gradient_delay_refused"])
    assert "gradient_delay_refused" not in calibration_facts(out[0])
    assert "gradient_delay_refused" not in run(scan(24, (0.0, 0.0, 0.0)))[0].calibration
    np.testing.assert_allclose([s.shift for s in out], 0.0)
    # Nor may it in a scan that goes on with what this one estimated.
    later = run(scan(24, (4.2, 4.2, 0.0)), header(estimates={(0, 0): out[0].estimates}))
    assert later[0].calibration["gradient_delay_refused"] == "no estimate in the scan of the stored baseline"
    good = run(scan(24, (1.0, 1.0, 0.0)))[0].estimates
    assert (
        "gradient_delay_refused" not in run(scan(24, (1.0, 1.0, 0.0)), header(estimates={(0, 0): good}))[0].calibration
    )


@pytest.mark.parametrize("method", ["ring", "opposed"])
def test_noise_has_no_delay(method, caplog):
    """It would be applied to all frames that follow."""
    angles = spoke_angles("uniform360", 32)
    _, sampling = ellipse_scan(N, angles[:1])
    for seed in range(3):
        random = np.random.default_rng(seed)
        noise = random.standard_normal((3, 32, sampling.n_readout, 2)).view(np.complex128)[..., 0].astype(np.complex64)
        spokes = [Spoke(data=noise[:, i], sampling=sampling, angle_rad=float(a)) for i, a in enumerate(angles)]
        caplog.clear()
        (first, *_) = run(spokes, method=method, limit=5.0)
        assert first.shift == (0.0, 0.0)
        assert first.calibration["gradient_delay_samples"] == (0.0, 0.0, 0.0)
        assert "holds little more than noise" in caplog.text
        assert "samples: spokes still differ by " in first.calibration["gradient_delay_refused"]


def stated(spokes, delay):
    return [dataclasses.replace(s, shift=tuple(shift_of(s, delay))) for s in spokes]


def test_the_estimate_comes_on_top_of_what_the_trajectory_states():
    delay, known = (2.0, -1.0, 0.2), (1.5, -0.2, -0.1)
    spokes = scan(40, delay)
    for model in ("anisotropic", "isotropic"):
        right = run(stated(spokes, delay), model=model)
        assert right[0].calibration["gradient_delay_samples"] == (0.0, 0.0, 0.0)
        for spoke in right:
            np.testing.assert_allclose(spoke.shift, shift_of(spoke, delay), atol=1e-12)
    part = run(stated(spokes, known))
    np.testing.assert_allclose(part[0].calibration["gradient_delay_samples"], (0.5, -0.8, 0.3), atol=0.02)
    for spoke in part:
        np.testing.assert_allclose(spoke.shift, shift_of(spoke, delay), atol=0.02 * spoke.sampling.spacing)
    (one, *_) = run(stated(spokes, known), mode="given", given=(0.5, -0.8, 0.3))
    np.testing.assert_allclose(one.shift, shift_of(one, delay))


@pytest.mark.parametrize("values", [{"method": "opposed"}, {"limit": 0.1}, {"mode": "given", "given": "0"}])
def test_no_delay_leaves_spokes_where_the_trajectory_states_them(values):
    known = (1.5, -0.2, -0.1)
    for spoke in run(stated(scan(24, (2.0, -1.0, 0.2)), known), **values):
        np.testing.assert_allclose(spoke.shift, shift_of(spoke, known))
        assert spoke.calibration["gradient_delay_samples"] == (0.0, 0.0, 0.0)


def test_opposed_spokes():
    angles = spoke_angles("uniform360", 32)
    data, sampling = ellipse_scan(N, angles, n_coils=3, delay=(1.5, 1.5, 0.0))
    spokes = [Spoke(data=data[:, i], sampling=sampling, angle_rad=float(a)) for i, a in enumerate(angles)]
    out = run(spokes, method="opposed", model="isotropic")
    assert out[0].calibration["gradient_delay_samples"] == pytest.approx((1.5, 1.5, 0.0), abs=0.05)


def test_strongest_partition_decides():
    strong = scan(24, (1.0, 1.0, 0.0), partition=1)
    weak = [dataclasses.replace(s, data=s.data * 1e-3) for s in scan(24, (-2.0, -2.0, 0.0), partition=0)]
    out = run([s for pair in zip(weak, strong, strict=True) for s in pair], header(spokes_per_frame=24, n_partitions=2))
    assert out[0].calibration["gradient_delay_samples"][0] == pytest.approx(1.0, abs=0.02)


def test_what_cannot_be_told_from_none_is_none():
    (first, *_) = run(scan(24, (0.012, 0.004, 0.0)))
    assert first.shift == (0.0, 0.0)
    (first, *_) = run(scan(24, (1.01, 1.0, 0.004)))
    x, y, xy = first.calibration["gradient_delay_samples"]
    assert x == y == pytest.approx(1.005, abs=0.01)
    assert xy == 0.0


def test_empty_stream():
    assert run([]) == []
    assert run(["only text"]) == ["only text"]
