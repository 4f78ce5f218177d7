import threading

import numpy as np
import pytest

from operator_checks import direct_sum, relative_error
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError, SpokeError
from sinotherm.operators import backprojection
from sinotherm.operators.backprojection import BackProjector, interleave_coils
from sinotherm.operators.crew import Crew
from sinotherm.operators.density import parallel_shift, radial_weights, readout_weights
from sinotherm.operators.nufft import radial_points

pytestmark = pytest.mark.kernel


def spokes(n_coils: int, n_spokes: int, n_readout: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    data = random.standard_normal((n_coils, n_spokes, n_readout, 2)).astype(np.float32)
    return data.view(np.complex64)[..., 0], random.uniform(-7, 7, n_spokes)


def truth(data, angles, sampling, shape, shifts=None, **rules) -> np.ndarray:
    weights = radial_weights(angles, sampling, **rules)
    if shifts is not None:
        # Spokes are weighed one by one as they come: by what runs along each.
        gap = radial_weights(angles, sampling)[0, 0] / readout_weights(sampling)[0]
        weights = gap * readout_weights(sampling, offset=parallel_shift(angles, shifts), **rules)
    points = radial_points(angles, sampling, shifts).reshape(-1, 2)
    return direct_sum(points, (data * weights).reshape(len(data), -1), shape)


@pytest.mark.parametrize("n_coils", [1, 3])
@pytest.mark.parametrize("centre", [12.0, 11.5, 12.8, 9.0])
@pytest.mark.parametrize("shifted", [False, True])
def test_equals_the_direct_sum_on_white_data(n_coils: int, centre: float, shifted: bool) -> None:
    sampling = RadialSampling(n_readout=24, spacing=1 / 24, centre=centre)
    data, angles = spokes(n_coils, 5, 24)
    shifts = np.random.default_rng(1).normal(0, 0.008, (5, 2)) if shifted else None
    projector = BackProjector((11, 10), n_coils, sampling)
    projector.add_batch(data, angles, np.full(5, np.pi / 5), shifts)
    expected = truth(data, angles, sampling, (11, 10), shifts)
    assert relative_error(projector.coil_images(), expected) < 5e-4
    projector.reset()
    assert not projector.image.any()
    for index in range(5):
        shift = (0.0, 0.0) if shifts is None else tuple(shifts[index])
        projector.add(data[:, index], angles[index], shift=shift)
    assert relative_error(projector.coil_images(np.pi / 5), expected) < 5e-4


def test_filters_and_the_centre_rule_are_those_of_the_weights() -> None:
    sampling = RadialSampling(n_readout=24, spacing=1 / 24, centre=12.0)
    data, angles = spokes(2, 3, 24)
    projector = BackProjector((12, 12), 2, sampling, radial_filter="hann", centre="exact")
    projector.add_batch(data, angles, np.full(3, np.pi / 3))
    expected = truth(data, angles, sampling, (12, 12), radial_filter="hann", centre="exact")
    assert relative_error(projector.coil_images(), expected) < 5e-4


def test_images_wider_than_the_detector_repeat_as_the_sum_does() -> None:
    # Without readout oversampling the corners lie beyond the period of the spoke's transform.
    sampling = RadialSampling(n_readout=12, spacing=1 / 12, centre=6.0)
    data, angles = spokes(1, 3, 12)
    projector = BackProjector((12, 24), 1, sampling)
    projector.add_batch(data, angles, np.full(3, np.pi / 3))
    assert relative_error(projector.coil_images(), truth(data, angles, sampling, (12, 24))) < 5e-4


def test_the_preview_is_close_on_a_smooth_object() -> None:
    sampling = RadialSampling(n_readout=32, spacing=1 / 32, centre=16.0)
    _, angles = spokes(1, 6, 32)
    smooth = np.exp(-((sampling.positions / 0.1) ** 2)).astype(np.complex64)
    data = np.broadcast_to(smooth, (1, 6, 32)).copy()
    preview = BackProjector((8, 8), 1, sampling, taps="linear")
    preview.add_batch(data, angles)
    exact = BackProjector((8, 8), 1, sampling)
    exact.add_batch(data, angles)
    assert 1e-4 < relative_error(preview.coil_images(), exact.coil_images()) < 2e-2


def test_order_does_not_matter_and_subtraction_undoes() -> None:
    sampling = RadialSampling(n_readout=24, spacing=1 / 24, centre=12.0)
    data, angles = spokes(2, 9, 24)
    window = BackProjector((12, 12), 2, sampling)
    for index in range(9):
        window.add(data[:, index], angles[index])
    for index in (0, 1, 2):
        window.subtract(data[:, index], angles[index])
    batch = BackProjector((12, 12), 2, sampling)
    order = np.array([7, 3, 8, 5, 4, 6])
    batch.add_batch(data[:, order], angles[order])
    assert relative_error(window.coil_images(), batch.coil_images()) < 1e-6


def test_combinations_are_those_of_the_coil_images() -> None:
    sampling = RadialSampling(n_readout=24, spacing=1 / 24, centre=12.0)
    data, angles = spokes(3, 4, 24)
    projector = BackProjector((6, 7), 3, sampling)
    projector.add_batch(data, angles)
    images = projector.coil_images(0.3)
    maps = spokes(3, 6, 7, seed=4)[0]
    combined = projector.combine(interleave_coils(maps, 4), 0.3)
    np.testing.assert_allclose(combined, np.sum(maps.conj() * images, 0), rtol=1e-4, atol=1e-6)
    rss = projector.root_sum_of_squares(0.3)
    np.testing.assert_allclose(rss, np.sqrt(np.sum(np.abs(images) ** 2, 0)), rtol=1e-5)
    assert combined.dtype == rss.dtype == images.dtype == np.complex64


def test_threads_give_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = RadialSampling(n_readout=80, spacing=1 / 80, centre=40.0)
    data, angles = spokes(1, 20, 80)
    data, angles = data[:, :2], angles[:2]
    alone = BackProjector((40, 8), 1, sampling, threads=1)
    alone.add_batch(data, angles)
    monkeypatch.setattr(backprojection, "_WORK_FOR_THREADS", 0)
    monkeypatch.setattr(backprojection.crew, "size", 2)
    together = BackProjector((40, 8), 1, sampling, threads=2)
    for _ in range(2):
        together.reset()
        together.add_batch(data, angles)
        np.testing.assert_array_equal(together.coil_images(), alone.coil_images())
    np.testing.assert_array_equal(together.root_sum_of_squares(), alone.root_sum_of_squares())


def test_a_task_that_fails_in_a_thread_is_reported() -> None:
    crew = Crew()
    crew.size = 2
    both = threading.Barrier(2, timeout=10)

    def task(number: int) -> None:
        both.wait()
        if threading.current_thread().name.startswith("kernels"):
            raise ValueError("in a thread")

    with pytest.raises(ValueError, match="in a thread"):
        crew.run(task, 2, 2)


def test_spokes_that_do_not_fit_are_refused() -> None:
    projector = BackProjector((4, 4), 2, RadialSampling(n_readout=8, spacing=1 / 8, centre=4.0))
    with pytest.raises(SpokeError, match="2 coils"):
        projector.add(np.zeros((3, 8), np.complex64), 0.0)
    with pytest.raises(SpokeError, match="8 samples"):
        projector.add(np.zeros((2, 9), np.complex64), 0.0)
    for angle in (np.nan, np.inf):
        with pytest.raises(SpokeError, match="not finite"):
            projector.add(np.zeros((2, 8), np.complex64), angle)


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 6, 6), (3, 6, 7), (5, 6, 7)])
def test_maps_of_another_shape_are_refused(shape: tuple[int, int, int]) -> None:
    projector = BackProjector((6, 7), 4, RadialSampling(n_readout=24, spacing=1 / 24, centre=12.0))
    with pytest.raises(DataError, match=r"\(6, 7, 4\) is needed"):
        projector.combine(interleave_coils(np.ones(shape, np.complex64)))
