import numpy as np
import pytest

from direct_radial import ellipse_scan
from sinotherm.core.geometry import spoke_angles
from sinotherm.core.scan import EncodingSpace, ScanHeader, Spoke
from sinotherm.stages.compression import Settings, stage

N = 32


def run(items, **values):
    space = EncodingSpace(matrix=(N, N, 1), fov_m=(0.3, 0.3, 0.005))
    header = ScanHeader(encoded=space, recon=space, trajectory="radial", spokes_per_frame=12)
    return list(stage(iter(items), header, Settings(**values)))


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
    assert run(spokes) == spokes
    many = scan()
    assert run(many, method="off") == many
    assert run([]) == []


def test_streak_prone_coil_is_named_and_counts_less():
    spokes = scan(streaky=3)
    (first, *_) = run(spokes, coils=6)
    assert first.calibration["streak_prone_coils"] == (3,)
    (other, *_) = run(spokes, coils=6, streak_limit=0.0)
    assert "streak_prone_coils" not in other.calibration
