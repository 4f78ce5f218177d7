import math

import pytest

from sinotherm.core.physics import GAMMA_HZ_PER_T, PRF_COEFFICIENT, degc_per_radian, radian_per_degc
from sinotherm.errors import SettingsError

USUAL = {"larmor_hz": 63.866e6, "echo_time_s": 19.1e-3, "prf_coefficient": PRF_COEFFICIENT, "phase_sign": 1}


@pytest.mark.parametrize(
    ("field_t", "te_ms", "rad_per_degc"),
    [(1.5, 4.76, 0.0191), (1.5, 19.1, 0.0766), (3.0, 13.0, 0.104), (3.0, 16.0, 0.128)],
)
def test_published_sensitivities(field_t, te_ms, rad_per_degc):
    value = radian_per_degc(**USUAL | {"larmor_hz": field_t * GAMMA_HZ_PER_T, "echo_time_s": te_ms * 1e-3})
    assert -value == pytest.approx(rad_per_degc, rel=5e-3)


def test_the_sign_is_the_receivers():
    assert radian_per_degc(**USUAL) < 0.0
    assert radian_per_degc(**USUAL | {"phase_sign": -1}) == -radian_per_degc(**USUAL)
    assert degc_per_radian(**USUAL) * radian_per_degc(**USUAL) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phase_sign": 0}, "phase_sign = 0"),
        ({"larmor_hz": 0.0}, r"larmor_hz = 0\.0 Hz"),
        ({"echo_time_s": math.nan}, "echo_time_s = nan s"),
        ({"prf_coefficient": -0.01}, "between 1e-09 and 1e-07"),
        ({"prf_coefficient": 0.0}, "between 1e-09 and 1e-07"),
    ],
)
def test_quantities_out_of_range(change, words):
    with pytest.raises(SettingsError, match=words):
        radian_per_degc(**USUAL | change)
