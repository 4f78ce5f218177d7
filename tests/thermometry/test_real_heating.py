"""A real heating of a phantom by focused ultrasound at 3 T, digitised from a rendered film: regression only."""

from pathlib import Path

import numpy as np
import pytest

from sinotherm.core.physics import degc_per_radian
from sinotherm.thermometry.drift import DriftEstimator
from sinotherm.thermometry.phase import TemporalUnwrapper, complex_product


@pytest.mark.data
def test_slope_of_the_published_temperature_on_our_phase(shared_data: Path) -> None:
    with np.load(shared_data / "thermometry_hifu_siemens3T" / "siemens3T_hifu_phantom_digitised.npz") as film:
        magnitude = film["magnitude"].astype(np.float32)
        images = (magnitude * np.exp(1j * film["phase"].astype(np.float64))).astype(np.complex64)
        panel = film["temperature_panel"].astype(np.float64)
        row, column = film["hot_rc"]
    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    distance = np.hypot(y - row, x - column)
    focus = distance <= 1.0
    estimator = DriftEstimator(
        magnitude=magnitude[0],
        mask=(distance >= 20.0) & (distance <= 30.0),
        order=0,
        one_sided=False,
        min_voxels=100,
        max_condition=10.0,
    )
    unwrapper = TemporalUnwrapper()
    course = []
    for image in images:
        product = complex_product(image[None, None], images[0][None, None])
        phase, _ = unwrapper.update(product, np.ones(product.shape, bool), np.zeros(product.shape, bool))
        fit = estimator.fit(product[0], phase[0], 1.0)
        assert not fit.problem
        course.append((phase[0] - fit.field_degc)[focus].mean())
    slope, _ = np.polyfit(course, panel[:, focus].mean(axis=1), 1)
    assert slope == pytest.approx(-11.9, abs=0.6)
    # Heating lowers the phase on this scanner: phase_sign is +1. Its echo time is not stated: 1/slope gives it.
    expected = degc_per_radian(larmor_hz=123.2e6, echo_time_s=0.0115, prf_coefficient=-9.4e-9, phase_sign=1)
    assert slope == pytest.approx(expected, rel=0.1)
