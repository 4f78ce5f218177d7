import numpy as np
import pytest

from direct_radial import dense_sense, ellipse_image, unit_maps
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import DataError
from sinotherm.reconstruction.kspace_hybrid import kspace_hybrid

N = 32
SAMPLING = RadialSampling(n_readout=2 * N, spacing=1 / (2 * N), centre=float(N))


def scene(sign=-1, n_spokes=10, noise=0.02):
    rng = np.random.default_rng(5)
    baseline = (ellipse_image(N) * np.exp(0.5j)).astype(np.complex64)
    row, column = np.mgrid[:N, :N] - N // 2
    spot = 0.8 * np.exp(-((row + 2) ** 2 + (column - 4) ** 2) / (2 * 2.0**2)) * (np.abs(baseline) > 0)
    drift = 0.2 + 0.1 * column / N
    maps = unit_maps(4, N)
    angles = spoke_angles("golden", n_spokes)
    heated = baseline * np.exp(1j * (sign * spot + drift))
    data = (dense_sense(angles, SAMPLING, maps) @ heated.ravel()).reshape(4, n_spokes, -1)
    data += noise * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape))
    return data.astype(np.complex64), angles, maps, baseline, sign * spot, drift


@pytest.mark.parametrize("sign", [-1, 1])
def test_focal_heating_and_drift_are_told_apart(sign):
    data, angles, maps, baseline, spot, drift = scene(sign)
    found = kspace_hybrid(data, angles, SAMPLING, maps, baseline, sign=sign)
    body = np.abs(baseline) > 0
    assert np.sqrt(np.mean((found.heating - spot)[body] ** 2)) < 0.05
    assert np.abs(found.heating[14, 20] - spot[14, 20]) < 0.1
    assert np.abs(found.drift - drift)[body].max() < 0.03
    assert found.heating.dtype == np.float32
    # The sign is a constraint: no voxel has the other one.
    assert np.all(sign * found.heating >= 0.0)
    assert found.iterations > 10


def test_unheated_frame_has_no_heating():
    data, angles, maps, baseline, _, _ = scene()
    cold = (dense_sense(angles, SAMPLING, maps) @ baseline.ravel()).reshape(data.shape).astype(np.complex64)
    found = kspace_hybrid(cold, angles, SAMPLING, maps, baseline, drift_order=0)
    assert np.abs(found.heating).max() < 0.02
    assert np.abs(found.drift).max() < 0.01


def test_baseline_must_fit():
    data, angles, maps, baseline, _, _ = scene()
    with pytest.raises(DataError, match="baseline of shape"):
        kspace_hybrid(data, angles, SAMPLING, maps, baseline[:-1])
    with pytest.raises(DataError, match="empty"):
        kspace_hybrid(data, angles, SAMPLING, maps, 0 * baseline)
