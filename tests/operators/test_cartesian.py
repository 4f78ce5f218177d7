import numpy as np
import pytest

from operator_checks import adjoint_mismatch, direct_transform, random_complex
from sinotherm.errors import DataError, SettingsError
from sinotherm.operators.cartesian import CartesianSense, variable_density_lines


def _operator(n=12, coils=3):
    lines = np.zeros(n, dtype=bool)
    lines[[1, 4, n // 2, n - 2]] = True
    return CartesianSense(lines, random_complex((coils, n, n))), lines


def test_adjoint_is_exact():
    assert adjoint_mismatch(_operator()[0]) < 1e-12


def test_equals_the_fourier_sum_on_measured_lines_and_zero_elsewhere():
    operator, lines = _operator()
    n = 12
    image = random_complex((n, n), seed=5)
    k = (np.arange(n) - n // 2) / n
    points = np.stack(np.meshgrid(k, k), axis=-1).reshape(-1, 2)
    coil_images = (image * operator.maps).numpy()
    expected = direct_transform(points, coil_images).reshape(3, n, n) / n
    measured = operator(image).numpy()
    np.testing.assert_allclose(measured[:, lines], expected[:, lines], atol=1e-12)
    assert not measured[:, ~lines].any()


def test_lines_must_fit_the_maps():
    with pytest.raises(DataError, match="one flag a row"):
        CartesianSense(np.ones(4, dtype=bool), random_complex((2, 6, 6)))


@pytest.mark.parametrize("acceleration", [2.0, 4.0, 10.0])
def test_pattern_has_the_right_number_of_lines_and_its_centre(acceleration):
    lines = variable_density_lines(256, acceleration, np.random.default_rng(1))
    assert lines.sum() == round(256 / acceleration)
    assert lines[123:133].all()
    inner, outer = lines[64:192].sum(), lines.sum() - lines[64:192].sum()
    assert inner > outer


def test_pattern_refuses_an_acceleration_beyond_the_centre():
    with pytest.raises(SettingsError, match="are needed"):
        variable_density_lines(256, 60.0, np.random.default_rng(1))
