import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinotherm.core.geometry import (
    GOLDEN_ANGLE,
    RadialSampling,
    angular_gaps,
    angular_order,
    spoke_angles,
    tiny_golden_angle,
)
from sinotherm.errors import SettingsError


def test_positions_count_from_the_centre():
    sampling = RadialSampling(n_readout=4, spacing=0.25, centre=1.5)
    np.testing.assert_allclose(sampling.positions, [-0.375, -0.125, 0.125, 0.375])


def test_golden_angle_and_its_variants():
    assert math.degrees(GOLDEN_ANGLE) == pytest.approx(111.24611797)
    assert math.degrees(tiny_golden_angle(1)) == pytest.approx(111.24611797)
    # Wundrak et al. 2015, table 1.
    assert math.degrees(tiny_golden_angle(2)) == pytest.approx(68.7538, abs=1e-4)
    assert math.degrees(tiny_golden_angle(7)) == pytest.approx(23.6281, abs=1e-4)
    with pytest.raises(SettingsError, match="order 0"):
        tiny_golden_angle(0)


def test_schedules():
    np.testing.assert_allclose(spoke_angles("uniform180", 4), np.pi * np.array([0, 1, 2, 3]) / 4)
    np.testing.assert_allclose(spoke_angles("uniform360", 4), np.pi * np.array([0, 1, 2, 3]) / 2)
    np.testing.assert_allclose(spoke_angles("golden", 2, first=3), GOLDEN_ANGLE * np.array([3, 4]))
    np.testing.assert_allclose(spoke_angles("tiny_golden", 2, order=5), [0, tiny_golden_angle(5)])
    np.testing.assert_allclose(spoke_angles("uniform180", 3, first=3, per_frame=4), np.pi * np.array([3, 0, 1]) / 4)
    with pytest.raises(SettingsError, match=r"schedule 'goldn': give one of uniform180, .*golden"):
        spoke_angles("goldn", 4)
    with pytest.raises(SettingsError, match="0 spokes a frame"):
        spoke_angles("raga", 3, per_frame=0)


@given(st.integers(1, 60))
def test_raga_visits_every_angle_once_and_steps_almost_golden(n):
    angles = spoke_angles("raga", 2 * n, per_frame=n)
    np.testing.assert_allclose(angles[:n], angles[n:])
    np.testing.assert_allclose(np.sort(angles[:n]), np.arange(n) * math.pi / n, atol=1e-12)
    if n >= 5:
        assert abs((angles[1] - angles[0]) % math.pi - GOLDEN_ANGLE) < 2 * math.pi / n


@given(st.lists(st.integers(-2000, 2000).map(lambda n: n / 100), min_size=1, max_size=30))
def test_order_sorts_by_direction_and_says_who_runs_backwards(values):
    angles = np.array(values)
    order, flipped = angular_order(angles)
    assert sorted(order) == list(range(len(angles)))
    # Cosine and sine know the direction without any folding.
    line = np.stack((np.cos(angles), np.sin(angles)), 1) * np.where(flipped, -1.0, 1.0)[:, None]
    assert np.all(line[:, 1] >= 0.0)
    place = np.arctan2(line[:, 1], line[:, 0])[order]
    assert np.all(np.diff(place) > -1e-6)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_gaps_share_the_half_turn(values):
    gaps = angular_gaps(np.array(values))
    assert gaps.sum() == pytest.approx(math.pi)
    assert np.all(gaps > 0)


def test_gaps_of_known_angles():
    np.testing.assert_allclose(angular_gaps(np.array([1.0])), [math.pi])
    np.testing.assert_allclose(angular_gaps(spoke_angles("uniform180", 5)), math.pi / 5)
    np.testing.assert_allclose(angular_gaps(np.array([0.3, 0.3 + math.pi])), [math.pi / 2, math.pi / 2])
    # By hand: directions 0, 0.2 and 1 of a turn of pi.
    np.testing.assert_allclose(
        angular_gaps(np.array([1.0, 0.0, 0.2 + math.pi])), [(math.pi - 0.2) / 2, (math.pi - 0.8) / 2, 0.5]
    )
    # A rounding error below a half turn stands at 0, not at the other end.
    gaps = angular_gaps(np.array([math.pi - 1e-12, math.pi / 2]))
    np.testing.assert_allclose(gaps, math.pi / 2)
