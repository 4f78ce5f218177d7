import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_checks import direct_sum
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.operators.density import radial_weights, readout_weights, resolution
from sinotherm.operators.nufft import radial_points


@given(st.integers(2, 40), st.floats(-0.5, 0.5), st.sampled_from(["equal", "gaps"]))
def test_weights_are_the_area_of_the_disc(n_spokes: int, fraction: float, weights: str) -> None:
    sampling = RadialSampling(n_readout=65, spacing=1 / 65, centre=32 + fraction)
    angles = spoke_angles("golden", n_spokes)
    total = radial_weights(angles, sampling, weights=weights).sum()
    # Both halves of each spoke's sector, exactly: no gap and no overlap at the centre.
    outer, inner = (64 - sampling.centre + 0.5) / 65, (sampling.centre + 0.5) / 65
    assert total == pytest.approx(math.pi * (outer**2 + inner**2) / 2, rel=1e-9)


def test_the_centre_sample_is_a_sector_of_its_disc() -> None:
    sampling = RadialSampling(n_readout=8, spacing=0.1, centre=4.0)
    weights = radial_weights(np.array([0.0, 1.0]), sampling)
    assert weights[0, 4] == pytest.approx(0.1**2 * (math.pi / 2) / 4)
    assert weights[1, 6] == pytest.approx(0.1 * 0.2 * math.pi / 2)


def test_a_shift_along_the_spoke_moves_the_ramp_and_one_across_does_not() -> None:
    sampling = RadialSampling(n_readout=16, spacing=1 / 16, centre=8.0)
    late = RadialSampling(n_readout=16, spacing=1 / 16, centre=8.3)
    angles = np.array([0.7])
    along = np.array([[math.cos(0.7), math.sin(0.7)]]) * (-0.3 / 16)
    across = np.array([[-math.sin(0.7), math.cos(0.7)]]) * 0.02
    np.testing.assert_allclose(radial_weights(angles, sampling, shifts=along), radial_weights(angles, late), atol=1e-15)
    np.testing.assert_allclose(
        radial_weights(angles, sampling, shifts=across), radial_weights(angles, sampling), atol=1e-15
    )


def test_hann_falls_to_zero_at_the_edge() -> None:
    sampling = RadialSampling(n_readout=64, spacing=1 / 64, centre=32.0)
    ratio = readout_weights(sampling, "hann") / readout_weights(sampling)
    assert ratio[32] == pytest.approx(1.0)
    assert ratio[0] == pytest.approx(0.0)
    assert ratio[48] == pytest.approx(0.5)


@pytest.mark.parametrize(("radial_filter", "expected"), [("ramp", 1.4101), ("hann", None)])
def test_resolution_is_the_width_of_the_measured_point_spread(radial_filter: str, expected: float | None) -> None:
    sampling = RadialSampling(n_readout=64, spacing=1 / 64, centre=31.5)
    width = resolution(sampling, radial_filter)
    if expected is not None:
        assert width == pytest.approx(expected, abs=1e-3)
    angles = spoke_angles("uniform180", 128)
    weights = radial_weights(angles, sampling, radial_filter=radial_filter)
    # The point spread at half that width, by the definition: shift the object by it.
    points = radial_points(angles, sampling).reshape(-1, 2)
    moved = weights.ravel() * np.exp(2j * np.pi * points[:, 0] * width / 2)
    peak = direct_sum(points, weights.ravel(), (1, 1))[0, 0].real
    assert direct_sum(points, moved, (1, 1))[0, 0].real / peak == pytest.approx(0.5, abs=0.01)
