import numpy as np
import pytest

from direct_radial import dense_sense, ellipse_image, unit_maps
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import DataError
from sinotherm.reconstruction.cg_sense import cg_sense
from sinotherm.reconstruction.tcr import tcr

N, FRAMES, SPOKES = 32, 5, 9
SAMPLING = RadialSampling(n_readout=2 * N, spacing=1 / (2 * N), centre=float(N))


def series():
    true = np.repeat(ellipse_image(N)[None].astype(complex), FRAMES, axis=0)
    true[:, 10:13, 18:21] *= np.linspace(1.0, 1.6, FRAMES)[:, None, None]
    angles = spoke_angles("golden", FRAMES * SPOKES).reshape(FRAMES, SPOKES)
    maps = unit_maps(4, N)
    scans = [dense_sense(a, SAMPLING, maps) @ frame.ravel() for a, frame in zip(angles, true, strict=True)]
    data = np.stack(scans).reshape(FRAMES, 4, SPOKES, -1)
    return true, data.astype(np.complex64), angles, maps


def test_series_has_fewer_errors_than_its_frames_alone():
    true, data, angles, maps = series()
    found = tcr(data, angles, SAMPLING, maps)
    assert found.shape == true.shape
    assert found.dtype == np.complex64
    alone = np.stack([cg_sense(d, a, SAMPLING, maps).image for d, a in zip(data, angles, strict=True)])
    assert np.linalg.norm(found - true) < 0.6 * np.linalg.norm(alone - true)
    # The small bright spot still rises.
    course = np.abs(found[:, 10:13, 18:21]).mean(axis=(1, 2))
    assert np.all(np.diff(course) > 0)


def test_shifts_are_honoured_and_frames_must_agree():
    _, data, angles, maps = series()
    shifts = np.full((FRAMES, SPOKES, 2), 0.01)
    moved = tcr(data, angles, SAMPLING, maps, shifts=shifts, iterations=2)
    assert not np.allclose(moved, tcr(data, angles, SAMPLING, maps, iterations=2), atol=1e-3)
    with pytest.raises(DataError, match="5 frames of data and 4 of angles"):
        tcr(data, angles[:4], SAMPLING, maps)
