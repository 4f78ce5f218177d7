import numpy as np
import pytest

from sinotherm.errors import SettingsError
from sinotherm.simulation.heating import Bioheat, absorbed_power
from sinotherm.simulation.phantoms import SCENES

K, RHO_C, W = 0.5, 3.7e6, 2.4e3


def uniform(n, pixel, *, perfusion=W, skin=0.0):
    field = np.ones((n, n), dtype=np.float32)
    return Bioheat(
        conductivity=K * field,
        heat_capacity=RHO_C * field,
        perfusion=perfusion * field,
        body=np.ones((n, n), dtype=bool),
        pixel_m=pixel,
        skin_transfer=skin,
    )


def test_uniform_power_follows_the_exponential_of_perfusion():
    """Without gradients: u = Q/w (1 − exp(−w t/ρc)); then it cools by the same exponential."""
    n, step, power = 6, 5.0, 6e4
    switched = np.r_[np.ones(40), np.zeros(40)]
    found = uniform(n, 2e-3).solve(np.full((n, n), power, np.float32), switched, step_s=step)
    time = step * np.arange(81)
    rate = W / RHO_C
    heated = power / W * -np.expm1(-rate * np.minimum(time, 200.0))
    expected = heated * np.exp(-rate * np.maximum(time - 200.0, 0.0))
    np.testing.assert_allclose(found, np.repeat(expected[:, None], n * n, axis=1), rtol=1e-5, atol=1e-5)


def test_cosine_settles_at_the_conduction_of_its_wavelength():
    """An insulated cosine is an eigenfunction: u = Q/(k q² + w) (1 − exp(−(k q² + w) t/ρc))."""
    n, pixel, step = 48, 1e-3, 1.0
    q = np.pi / (n * pixel)
    x = (np.arange(n) + 0.5) * pixel
    power = np.broadcast_to(1e5 * np.cos(q * x), (n, n)).astype(np.float32)
    found = uniform(n, pixel).solve(power, np.ones(60), step_s=step)[-1].reshape(n, n)
    rate = (K * q**2 + W) / RHO_C
    expected = power / (K * q**2 + W) * -np.expm1(-rate * 60.0)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_steady_state_through_the_skin_carries_all_the_power():
    """In the end what is absorbed leaves through the boundary: h Σ u_edge = Σ Q pixel."""
    n, pixel = 12, 5e-3
    body = uniform(n, pixel, perfusion=0.0, skin=200.0)
    power = np.zeros((n, n), dtype=np.float32)
    power[5:7, 5:7] = 1e4
    end = body.solve(power, np.ones(400), step_s=200.0)[-1].reshape(n, n)
    edges = end[0].sum() + end[-1].sum() + end[:, 0].sum() + end[:, -1].sum()
    assert 200.0 * edges == pytest.approx(float(power.sum()) * pixel, rel=1e-3)


def test_conduction_between_tissues_keeps_the_heat():
    """Insulated and without perfusion no heat is lost, whatever the conductivities."""
    n, pixel = 16, 2e-3
    random = np.random.default_rng(0)
    inside = np.hypot(*(np.mgrid[:n, :n] - n / 2 + 0.5)) < 7
    body = Bioheat(
        conductivity=random.uniform(0.1, 1.0, (n, n)),
        heat_capacity=random.uniform(1e6, 4e6, (n, n)),
        perfusion=np.zeros((n, n)),
        body=inside,
        pixel_m=pixel,
        skin_transfer=0.0,
    )
    power = random.uniform(0, 1e5, (n, n)).astype(np.float32)
    change = body.solve(power, np.ones(10), step_s=3.0)[-1]
    assert float(change @ body.heat_capacity[inside]) == pytest.approx(float(power[inside].sum()) * 30.0, rel=1e-5)


def test_nothing_happens_before_the_switch():
    found = uniform(5, 1e-3).solve(np.ones((5, 5), np.float32), np.array([0.0, 0.0, 1.0]), step_s=1.0)
    np.testing.assert_array_equal(found[:3], 0.0)
    assert np.all(found[3] > 0.0)


def test_sources():
    anatomy = SCENES["hifu"].rasterise(64, echo_time_s=0.013, repetition_time_s=0.03, flip_angle_rad=0.3)
    focal = absorbed_power(anatomy, "ultrasound", width_m=0.012)
    row, column = np.unravel_index(focal.argmax(), focal.shape)
    pixel = anatomy.fov_m / 64
    assert abs((column - 32) * pixel - anatomy.focus_m[0]) <= pixel
    assert abs((row - 32) * pixel - anatomy.focus_m[1]) <= pixel
    diffuse = absorbed_power(anatomy, "rf", width_m=0.1)
    assert diffuse[~anatomy.body].max() < 0.05 * diffuse.max()
    assert np.count_nonzero(diffuse > 0.5 * diffuse.max()) > 10 * np.count_nonzero(focal > 0.5 * focal.max())
    with pytest.raises(SettingsError, match="1 mm or more"):
        absorbed_power(anatomy, "rf", width_m=1e-4)


def test_bioheat_of_an_anatomy_takes_its_maps():
    anatomy = SCENES["brain"].rasterise(32, echo_time_s=0.013, repetition_time_s=0.03, flip_angle_rad=0.3)
    body = Bioheat.of(anatomy)
    assert body.pixel_m == pytest.approx(0.24 / 32)
    # Grey matter: 764 ml/(min kg) of blood of 1050 kg/m3 and 3617 J/(kg K).
    assert body.perfusion.max() == pytest.approx(764e-6 / 60 * 1045 * 1050 * 3617, rel=0.05)
