import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from sinotherm.thermometry.dose import CAP_DEGC, DoseIntegrator, cem43


def _rate(temperature: float) -> float:
    return (0.5 if temperature >= 43.0 else 0.25) ** (43.0 - min(temperature, CAP_DEGC))


@settings(max_examples=60, deadline=None)
@given(start=st.floats(30.0, 70.0), end=st.floats(30.0, 70.0), duration=st.floats(0.1, 600.0))
def test_linear_course_against_a_numeric_integral(start: float, end: float, duration: float) -> None:
    crossing = [duration * (43.0 - start) / (end - start)] if (start - 43.0) * (end - 43.0) < 0.0 else None
    expected, _ = quad(
        lambda t: _rate(start + (end - start) * t / duration), 0.0, duration, points=crossing, epsrel=1e-10
    )
    assert float(cem43(start, end, duration)) == pytest.approx(expected / 60.0, rel=1e-6)


@pytest.mark.parametrize("start", [41.3, 43.0 - 4e-7, 43.0, 44.0])
@pytest.mark.parametrize("run", [0.0, 1e-9, 9e-7, 1.1e-6, 1e-4])
def test_almost_constant_courses(start: float, run: float) -> None:
    middle = _rate(start + run / 2)
    assert float(cem43(start, start + run, 60.0)) == pytest.approx(middle, rel=1e-4)


def test_constant_43_for_m_minutes_gives_m() -> None:
    dose = DoseIntegrator(np.full(3, 43.0), 0.0, max_gap_frames=3)
    for minute in range(1, 8):
        dose.update(np.full(3, 43.0), 60.0 * minute)
    np.testing.assert_allclose(dose.minutes, 7.0, rtol=1e-12)


def test_both_branches_and_the_cap() -> None:
    assert float(cem43(44.0, 44.0, 60.0)) == pytest.approx(2.0)
    assert float(cem43(42.0, 42.0, 60.0)) == pytest.approx(0.25)
    assert float(cem43(CAP_DEGC + 50.0, CAP_DEGC + 50.0, 60.0)) == pytest.approx(2.0**42)


def test_gaps_are_interpolated_up_to_the_limit_and_bound_the_dose_beyond() -> None:
    dose = DoseIntegrator(np.full(2, 43.0), 0.0, max_gap_frames=2)
    nan = np.nan
    for time, course in enumerate(
        [(43.0, 43.0), (nan, nan), (nan, nan), (43.0, nan), (43.0, nan), (43.0, 43.0), (43.0, 43.0)], start=1
    ):
        dose.update(np.array(course), 60.0 * time)
        if time == 3:
            assert not dose.lower_bound.any()
    np.testing.assert_allclose(dose.minutes, [7.0, 2.0])
    np.testing.assert_array_equal(dose.lower_bound, [False, True])


def test_time_that_runs_backwards_stands_still_or_is_unknown_adds_nothing() -> None:
    dose = DoseIntegrator(np.array([43.0]), 0.0, max_gap_frames=3)
    dose.update(np.array([43.0]), 0.0)
    dose.update(np.array([43.0]), 60.0)
    assert not dose.lower_bound.any()
    dose.update(np.array([43.0]), math.nan)
    dose.update(np.array([43.0]), 120.0, longest_s=150.0)
    assert not dose.lower_bound.any()
    dose.update(np.array([43.0]), 120.0)
    np.testing.assert_allclose(dose.minutes, 2.0)
    assert dose.lower_bound.all()
    dose.lower_bound[:] = False
    dose.update(np.array([43.0]), -86_280.0)
    np.testing.assert_allclose(dose.minutes, 2.0)
    assert dose.lower_bound.all()
    dose.update(np.array([43.0]), -86_220.0)
    np.testing.assert_allclose(dose.minutes, 3.0)


def test_frames_that_never_came_are_a_gap() -> None:
    dose = DoseIntegrator(np.array([43.0]), 0.0, max_gap_frames=3)
    dose.update(np.array([43.0]), 600.0, longest_s=45.0)
    np.testing.assert_allclose(dose.minutes, 0.0)
    assert dose.lower_bound.all()
    assert dose.read.all()


@pytest.mark.parametrize("by", [-2.0, 0.7, 2.0])
def test_a_dose_carried_over_to_another_temperature_is_a_lower_bound(by: float) -> None:
    courses = np.array([np.full(5, 39.0), np.linspace(38.0, 47.0, 5), np.full(5, 46.0), np.full(5, np.nan)])
    carried, right = (DoseIntegrator(np.full(4, 37.0 + shift), 0.0, max_gap_frames=9) for shift in (0.0, by))
    for frame, values in enumerate(courses.T):
        carried.update(values, 60.0 * frame)
        right.update(values + by, 60.0 * frame)
    carried.shift(by)
    # Exact where it lay on one side of 43 °C throughout: above for a rise, below for a fall.
    exact = 2 if by > 0.0 else 0
    assert carried.minutes[exact] == pytest.approx(right.minutes[exact])
    assert (carried.minutes <= right.minutes * (1.0 + 1e-12)).all()
    np.testing.assert_array_equal(carried.lower_bound, [True, True, True, False])
    for dose in (carried, right):
        dose.minutes[:] = 0.0
        dose.update(courses[:, -1] + by, 600.0)
    np.testing.assert_allclose(carried.minutes, right.minutes)
