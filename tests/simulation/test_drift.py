import numpy as np
import pytest

from sinotherm.errors import SettingsError
from sinotherm.simulation.drift import FieldDrift, polynomial_terms, random_drift, static_field


@pytest.fixture
def body():
    y, x = np.mgrid[:32, :32] - 16
    return (x / 13) ** 2 + (y / 9) ** 2 < 1


def test_polynomials_and_their_course_are_exact():
    coefficients = np.array([[1.0, 0.5], [2.0, 0.0], [-3.0, 1.0]])
    drift = FieldDrift(coefficients=coefficients, duration_s=10.0, matrix=8)
    found = drift.frequency(np.array([0.0, 5.0, 10.0]))
    np.testing.assert_array_equal(found[0], 0.0)
    row, column = 6, 1
    x, y = (column - 4) / 4, (row - 4) / 4
    at_half = (0.5 + 0.125) + 1.0 * x + (-1.5 + 0.25) * y
    assert found[1][row, column] == pytest.approx(at_half)
    assert found[2][row, column] == pytest.approx(1.5 + 2.0 * x - 2.0 * y)


def test_terms_are_monomials_by_degree():
    terms = polynomial_terms(6, 2)
    x, y = np.meshgrid(np.arange(-3, 3) / 3, np.arange(-3, 3) / 3)
    for term, expected in zip(terms, (x**0, x, y, x * x, x * y, y * y), strict=True):
        np.testing.assert_allclose(term, expected, atol=1e-15)


@pytest.mark.parametrize("order_space", [0, 1, 2])
@pytest.mark.parametrize("order_time", [1, 2])
def test_random_drift_reaches_its_amplitude_at_the_end(order_space, order_time, body):
    drift = random_drift(
        3.0, order_space=order_space, order_time=order_time, duration_s=60.0, body=body, random=np.random.default_rng(1)
    )
    assert len(drift.terms) == (1, 3, 6)[order_space]
    end = drift.frequency(np.array([60.0]))[0]
    assert np.abs(end[body]).max() == pytest.approx(3.0)
    half = drift.frequency(np.array([30.0]))[0]
    np.testing.assert_allclose(half, end * {1: 0.5, 2: 0.375}[order_time], atol=1e-12)


def test_no_order_in_time_is_no_drift(body):
    drift = random_drift(3.0, order_space=1, order_time=0, duration_s=60.0, body=body, random=np.random.default_rng(1))
    np.testing.assert_array_equal(drift.frequency(np.array([60.0])), 0.0)


@pytest.mark.parametrize("orders", [(3, 1), (1, 3), (-1, 0)])
def test_orders_out_of_range(orders, body):
    with pytest.raises(SettingsError, match="must be 0, 1 or 2"):
        random_drift(
            1.0, order_space=orders[0], order_time=orders[1], duration_s=1.0, body=body,
            random=np.random.default_rng(0),
        )  # fmt: skip


def test_static_field_is_bounded_in_the_body(body):
    field = static_field(12.0, body=body, random=np.random.default_rng(2))
    assert np.abs(field).max() == pytest.approx(12.0)
    np.testing.assert_array_equal(field[~body], 0.0)
    np.testing.assert_array_equal(static_field(0.0, body=body, random=np.random.default_rng(2)), 0.0)
