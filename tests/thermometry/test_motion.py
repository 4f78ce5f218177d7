import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from sinotherm.thermometry.motion import MotionWatch

RANDOM = np.random.default_rng(7)
Y, X = np.mgrid[:96, :90]
BODY = gaussian_filter((np.hypot((X - 45) / 35, (Y - 48) / 28) < 1) * (1.0 + 0.5 * (np.hypot(X - 30, Y - 50) < 9)), 1.2)


def test_a_still_body_with_noise_does_not_move() -> None:
    found = MotionWatch(BODY).compare(1.3 * BODY + 0.02 * RANDOM.standard_normal(BODY.shape))
    assert found.correlation > 0.99
    assert found.distance_px < 0.1


@pytest.mark.parametrize(("dx", "dy"), [(0.5, 0.0), (0.0, -0.6), (0.4, 0.3)])
def test_small_shifts_are_measured(dx: float, dy: float) -> None:
    found = MotionWatch(BODY).compare(shift(BODY, (dy, dx), order=3))
    np.testing.assert_allclose(found.shift_px, (dx, dy), atol=0.1)
    assert found.distance_px == pytest.approx(np.hypot(dx, dy), abs=0.1)


def test_large_motion_and_darkness() -> None:
    watch = MotionWatch(BODY)
    # Much of the body lies where it lay: with their means left in, the two would correlate by 0.61.
    assert watch.compare(np.roll(BODY, 25, axis=1)).correlation < 0.5
    dark = watch.compare(np.zeros_like(BODY))
    assert dark.correlation == 0.0
    assert np.isfinite(dark.distance_px)
