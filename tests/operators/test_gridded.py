import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_checks import direct_sum, direct_transform, random_complex, relative_error
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import DataError
from sinotherm.operators.gridded import GriddedPlan, GriddedSinogram
from sinotherm.operators.nufft import Nufft, radial_points


def points_of(n_spokes: int, n_readout: int, centre: float) -> np.ndarray:
    sampling = RadialSampling(n_readout=n_readout, spacing=1 / n_readout, centre=centre)
    return radial_points(spoke_angles("golden", n_spokes), sampling)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 30), st.floats(0, 1), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_equals_the_direct_sum_and_its_transpose(rows: int, columns: int, n: int, wide: float, seed: int) -> None:
    # Points reach beyond half a cycle, where they wrap, and so across the seam of the grid.
    points = np.random.default_rng(seed).uniform(-0.5 - wide, 0.5 + wide, (n, 2))
    plan = GriddedPlan(points, (rows, columns))
    x = random_complex((2, rows, columns), torch.complex64, seed).numpy()
    y = random_complex((2, n), torch.complex64, seed + 1).numpy()
    samples, images = plan.forward(x), plan.adjoint(y)
    scale_of_samples = np.linalg.norm(x) * np.sqrt(n)
    scale_of_images = np.linalg.norm(y) * np.sqrt(rows * columns)
    assert np.linalg.norm(samples - direct_transform(points, x)) < 5e-4 * scale_of_samples
    assert np.linalg.norm(images - direct_sum(points, y, (rows, columns))) < 5e-4 * scale_of_images
    mismatch = abs(np.vdot(samples, y) - np.vdot(x, images))
    assert mismatch < 5e-5 * scale_of_samples * np.linalg.norm(y)


@pytest.mark.parametrize("shape", [(256, 256), (96, 131)])
def test_white_data_are_within_the_stated_accuracy(shape: tuple[int, int]) -> None:
    points = points_of(11, 2 * max(shape), float(max(shape))).reshape(-1, 2)
    plan = GriddedPlan(points, shape)
    x = random_complex((1, *shape), torch.complex64).numpy()
    y = random_complex((1, len(points)), torch.complex64).numpy()
    some = np.arange(0, len(points), 17)
    assert relative_error(plan.forward(x)[:, some], direct_transform(points[some], x)) < 2.5e-4
    assert relative_error(plan.adjoint(y), direct_sum(points, y, shape)) < 2.5e-4


def test_many_spokes_of_a_smooth_object_leave_its_background_dark() -> None:
    # Their errors add up in the corners of the image, where the grid is least accurate.
    place = np.arange(64) - 32
    image = np.exp(-0.5 * (place[:, None] ** 2 + place**2) / 8.0**2)[None].astype(np.complex128)
    points = points_of(101, 128, 64.0).reshape(-1, 2)
    weighted = direct_transform(points, image) * np.hypot(points[:, 0], points[:, 1])
    found = GriddedPlan(points, (64, 64)).adjoint(weighted.astype(np.complex64))
    assert relative_error(found, direct_sum(points, weighted, (64, 64))) < 1e-4


def test_edge_of_k_space_crosses_the_seam() -> None:
    points = np.array([[-0.5, 0.0], [0.5, 0.5], [0.49, -0.5], [0.0, 0.5], [1.5, -2.5]])
    plan = GriddedPlan(points, (24, 18))
    x = random_complex((1, 24, 18), torch.complex64).numpy()
    y = random_complex((1, 5), torch.complex64).numpy()
    assert relative_error(plan.forward(x), direct_transform(points, x)) < 5e-4
    assert relative_error(plan.adjoint(y), direct_sum(points, y, (24, 18))) < 5e-4


def test_gradient_of_each_is_the_other_and_inference_mode_is_fine() -> None:
    points = points_of(5, 24, 12.0)
    operator = Nufft(points, (12, 10), backend="gridded")
    x = random_complex((2, 12, 10), torch.complex64).requires_grad_()
    y = random_complex((2, 5, 24), torch.complex64)
    # d/dx̄ of Re⟨A x, y⟩, as torch writes it, is Aᴴ y.
    (operator(x) * y.conj()).sum().real.backward()
    torch.testing.assert_close(x.grad, operator.adjoint(y))
    z = y.clone().requires_grad_()
    (operator.adjoint(z) * x.detach().conj()).sum().real.backward()
    torch.testing.assert_close(z.grad, operator(x.detach()))
    with torch.inference_mode():
        torch.testing.assert_close(operator(x), operator(x.detach()))


def test_several_sets_of_points_and_automatic_choice() -> None:
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 20, 2))
    x = random_complex((3, 2, 16, 16), torch.complex64)
    together = Nufft(points, (16, 16), batched=True)(x)
    for item in range(3):
        alone = Nufft(points[item], (16, 16), backend="gridded")(x[item])
        torch.testing.assert_close(together[item], alone)


def test_other_precisions_are_refused() -> None:
    operator = Nufft(points_of(3, 16, 8.0), (8, 8), backend="gridded")
    with pytest.raises(DataError, match="complex64 on the CPU"):
        operator(random_complex((8, 8)))


def test_maps_of_another_shape_are_refused() -> None:
    plan = GriddedPlan(np.zeros((1, 2)), (8, 8))
    with pytest.raises(DataError, match="coil maps of shape"):
        plan.profile(np.ones((2, 8, 9), np.complex64))


def test_arrays_of_another_shape_are_refused() -> None:
    points = points_of(3, 16, 8.0)
    plan = GriddedPlan(points, (8, 6))
    images, samples = np.ones((2, 8, 6), np.complex64), np.ones((2, 48), np.complex64)
    for call in (
        lambda: plan.forward(np.ones((2, 80, 80), np.complex64)),
        lambda: plan.forward(images[0]),
        lambda: plan.forward(images, samples[:1]),
        lambda: plan.adjoint(samples[:, :5]),
        lambda: plan.adjoint(samples, images[:1]),
        lambda: GriddedPlan(points, (8, 6), factors=np.ones(5)),
    ):
        with pytest.raises(DataError, match="is needed"):
            call()
    with pytest.raises(DataError, match="not finite"):
        GriddedPlan(np.full((5, 2), np.nan), (8, 6))


def test_arrays_that_do_not_fit_a_sinogram_are_refused() -> None:
    points = points_of(3, 16, 8.0)
    operator = GriddedSinogram(points, (8, 6), centre=8.0, mirrored=np.zeros(3, bool))
    profile = operator.plan.profile(np.ones((2, 8, 6), np.complex64))
    weighting = operator.weighting(np.ones((3, 16)))
    image, sinograms = np.ones((8, 6), np.complex64), np.ones((2, 3, 16), np.complex64)
    assert operator.forward(image, profile).shape == sinograms.shape
    for call in (
        lambda: operator.forward(image[:4], profile),
        lambda: operator.forward(image, profile[:, :4]),
        lambda: operator.normal(image[:4], profile, weighting),
        lambda: operator.normal(image, profile[:, :4], weighting),
        lambda: operator.normal(image, profile, weighting[:9]),
        lambda: operator.back(sinograms[:1], profile, weighting),
        lambda: operator.back(sinograms, profile[:, :4], weighting),
        lambda: operator.back(sinograms, profile, weighting[:9]),
        lambda: GriddedSinogram(points, (8, 6), centre=8.0, mirrored=np.zeros(2, bool)),
    ):
        with pytest.raises(DataError, match="is needed"):
            call()


@pytest.mark.parametrize(("n_readout", "centre"), [(24, 12.0), (25, 12.0), (24, 11.3), (25, 13.1)])
def test_sinogram_is_the_definition_and_its_adjoint_the_transpose(n_readout: int, centre: float) -> None:
    points = points_of(6, n_readout, centre)
    mirrored = np.arange(6) % 2 == 1
    operator = GriddedSinogram(points, (12, 12), centre=centre, mirrored=mirrored)
    maps = random_complex((3, 12, 12), torch.complex64).numpy()
    profile = operator.plan.profile(maps)
    image = random_complex((12, 12), torch.complex64, 1).numpy()
    samples = direct_transform(points.reshape(-1, 2), maps * image).reshape(3, 6, n_readout)
    turns = np.outer(np.arange(n_readout) - centre, np.arange(n_readout) - n_readout // 2) / n_readout
    expected = samples @ np.exp(2j * np.pi * turns) / n_readout
    flip = np.arange(n_readout)[::-1] if n_readout % 2 else -np.arange(n_readout) % n_readout
    expected[:, mirrored] = expected[:, mirrored][..., flip]
    found = operator.forward(image, profile)
    assert relative_error(found, expected) < 5e-4
    weights = np.random.default_rng(0).uniform(0.5, 2.0, (6, n_readout))
    back = operator.back(found, profile, operator.weighting(weights))
    direct = direct_sum(points.reshape(-1, 2), (samples * weights).reshape(3, -1), (12, 12))
    assert relative_error(back, (maps.conj() * direct).sum(axis=0)) < 1e-3
