import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_checks import direct_sum
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import SettingsError
from sinotherm.operators.backprojection import BackProjector
from sinotherm.operators.density import central_weights, radial_weights, ramp_shift, readout_weights, resolution
from sinotherm.operators.fbp import FilteredBackProjection
from sinotherm.operators.nufft import ACCURATE, FinufftPlan, radial_points


@given(st.integers(2, 40), st.floats(-0.5, 0.5), st.sampled_from(["equal", "gaps"]))
def test_weights_are_the_area_of_the_disc(n_spokes: int, fraction: float, weights: str) -> None:
    sampling = RadialSampling(n_readout=65, spacing=1 / 65, centre=32 + fraction)
    angles = spoke_angles("golden", n_spokes)
    total = radial_weights(angles, sampling, weights=weights, centre="area").sum()
    # Both halves of each spoke's sector, exactly: no gap and no overlap at the centre.
    outer, inner = (64 - sampling.centre + 0.5) / 65, (sampling.centre + 0.5) / 65
    assert total == pytest.approx(math.pi * (outer**2 + inner**2) / 2, rel=1e-9)


@pytest.mark.parametrize("weights", ["equal", "gaps"])
@pytest.mark.parametrize(("first", "last"), [(0, 128), (16, 128), (63, 128), (0, 101)])
@pytest.mark.parametrize("turn", ["uniform360", "golden"])
def test_partial_echoes_share_the_disc_among_the_sides_that_were_measured(turn, first, last, weights) -> None:
    sampling = RadialSampling(n_readout=128, spacing=1 / 128, centre=63.5)
    angles = spoke_angles(turn, 101)
    measured = (np.arange(128) >= first) & (np.arange(128) < last)
    found = radial_weights(angles, sampling, weights=weights, measured=measured)[:, measured]
    assert found.sum() == pytest.approx(np.pi / 4, rel=1e-3)


def test_a_half_turn_of_partial_echoes_leaves_a_side_empty() -> None:
    sampling = RadialSampling(n_readout=128, spacing=1 / 128, centre=64.0)
    measured = np.arange(128) >= 16
    angles = spoke_angles("uniform180", 101)
    np.testing.assert_array_equal(radial_weights(angles, sampling, measured=measured), radial_weights(angles, sampling))


def test_the_centre_sample_is_a_sector_of_its_disc() -> None:
    sampling = RadialSampling(n_readout=8, spacing=0.1, centre=4.0)
    weights = radial_weights(np.array([0.0, 1.0]), sampling, centre="area")
    assert weights[0, 4] == pytest.approx(0.1**2 * (math.pi / 2) / 4)
    assert weights[1, 6] == pytest.approx(0.1 * 0.2 * math.pi / 2)


def test_every_door_takes_the_exact_rule_where_none_is_named() -> None:
    sampling = RadialSampling(n_readout=8, spacing=0.1, centre=4.0)
    assert readout_weights(sampling)[4] == pytest.approx(0.1**2 * (1 / 4 - 1 / 12))
    for door in (readout_weights, radial_weights, BackProjector, FilteredBackProjection):
        assert inspect.signature(door).parameters["centre"].default == "exact"


@pytest.mark.parametrize(
    ("choice", "known"),
    [
        ({"weights": "gap"}, "equal, gaps"),
        ({"radial_filter": "Hann"}, "ramp, hann"),
        ({"centre": "exat"}, "area, exact"),
    ],
)
def test_a_misspelt_choice_is_not_taken_for_another_one(choice: dict[str, str], known: str) -> None:
    sampling = RadialSampling(n_readout=8, spacing=0.1, centre=4.0)
    ((name, value),) = choice.items()
    with pytest.raises(SettingsError, match=f"{name} '{value}': give one of {known}"):
        radial_weights(np.array([0.0, 1.0]), sampling, **choice)
    if name == "radial_filter":
        with pytest.raises(SettingsError, match="radial_filter 'Hann'"):
            resolution(sampling, "Hann")


def test_a_shift_along_the_spoke_moves_the_ramp_and_one_across_does_not() -> None:
    sampling = RadialSampling(n_readout=16, spacing=1 / 16, centre=8.0)
    late = RadialSampling(n_readout=16, spacing=1 / 16, centre=8.3)
    angles = np.array([0.7])
    along = np.array([[math.cos(0.7), math.sin(0.7)]]) * (-0.3 / 16)
    across = np.array([[-math.sin(0.7), math.cos(0.7)]]) * 0.01
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


def _shifts(angles: np.ndarray, delays: tuple[float, float], spacing: float) -> np.ndarray:
    return -spacing * np.array(delays) * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


@given(st.integers(2, 50), st.floats(-3, 3), st.floats(-3, 3))
def test_the_ramp_is_displaced_by_the_jacobian_of_the_delayed_trajectory(n: int, x: float, y: float) -> None:
    angles = spoke_angles("golden", n)
    spacing, step = 1 / 64, 1e-6
    found = ramp_shift(angles, _shifts(angles, (x, y), spacing))
    # |∂k/∂κ × ∂k/∂θ| at κ by differences of the trajectory itself.
    kappa = 0.3

    def trajectory(theta: np.ndarray) -> np.ndarray:
        along = np.stack([np.cos(theta), np.sin(theta)], axis=-1)
        return kappa * along + _shifts(theta, (x, y), spacing)

    turned = (trajectory(angles + step) - trajectory(angles - step)) / (2 * step)
    area = np.cos(angles) * turned[:, 1] - np.sin(angles) * turned[:, 0]
    np.testing.assert_allclose(kappa + found, area, atol=1e-7)
    if x == y:
        np.testing.assert_allclose(found, -spacing * x, atol=1e-12)


@pytest.mark.parametrize("delays", [(3.0, 0.0), (3.0, -3.0)])
@pytest.mark.parametrize("n_spokes", [34, 150])
def test_gridding_of_unequal_delays_is_nearly_as_good_as_of_none(delays: tuple[float, float], n_spokes: int) -> None:
    n = 96
    sampling = RadialSampling(n_readout=2 * n, spacing=0.5 / n, centre=float(n))
    y, x = np.mgrid[:n, :n] - n // 2
    image = ((x / 30.0) ** 2 + (y / 22.0) ** 2 < 1) * (1.0 + 0.3 * np.cos(x / 4.0)) + 0j
    angles = spoke_angles("golden", n_spokes)

    def error(shifts: np.ndarray) -> float:
        plan = FinufftPlan((n, n), 1, dtype=np.complex128, accuracy=ACCURATE)
        plan.set_points(radial_points(angles, sampling, shifts).reshape(-1, 2))
        weights = radial_weights(angles, sampling, centre="exact", shifts=shifts)
        found = plan.adjoint(plan.forward(image[None]) * weights.reshape(1, -1))[0]
        return float(np.linalg.norm(found - image) / np.linalg.norm(image))

    # Without noise; weights that know each spoke by itself make it 2.3 to 8.9 times.
    assert error(_shifts(angles, delays, sampling.spacing)) < 1.45 * error(np.zeros((n_spokes, 2)))


def test_central_weights_of_spokes_through_the_centre_stay_what_they_are() -> None:
    sampling = RadialSampling(n_readout=128, spacing=1 / 128, centre=64.0)
    angles = spoke_angles("uniform180", 120)
    given_weights = radial_weights(angles, sampling)
    found = central_weights(angles, sampling, np.zeros((120, 2)), given_weights)
    assert found.sum() == pytest.approx(given_weights.sum(), rel=5e-3)
    radius = np.abs(sampling.positions)
    beyond = radius > 0.03
    np.testing.assert_allclose(found[:, beyond], given_weights[:, beyond], rtol=0.1)
    np.testing.assert_array_equal(found[:, radius > 0.2], given_weights[:, radius > 0.2])
