from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_checks import adjoint_mismatch, direct_sum, direct_transform, random_complex, relative_error
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError, SettingsError
from sinotherm.operators.nufft import ACCURATE, FinufftPlan, Nufft, radial_points

SAMPLING = RadialSampling(n_readout=24, spacing=1 / 24, centre=11.5)


def scattered(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, 2))


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 20), st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_equals_the_direct_sum_in_both_directions(rows: int, columns: int, n: int, seed: int) -> None:
    points = scattered(n, seed)
    operator = Nufft(points, (rows, columns), accuracy=1e-12)
    x, y = random_complex((3, rows, columns)), random_complex((2, 2, n))
    np.testing.assert_allclose(operator(x).numpy(), direct_transform(points, x.numpy()), atol=1e-9)
    np.testing.assert_allclose(operator.adjoint(y).numpy(), direct_sum(points, y.numpy(), (rows, columns)), atol=1e-9)
    assert adjoint_mismatch(operator) < 1e-10


@pytest.mark.parametrize(
    ("backend", "bound", "dtype"),
    [
        # The gridding kernels exist in single precision.
        ("gridded", 5e-4, torch.complex64),
        *(
            (backend, bound, dtype)
            for backend, bound in (("finufft", 1e-3), ("sparse", 1e-4), ("torchkbnufft", 1e-3))
            for dtype in (torch.complex64, torch.complex128)
        ),
    ],
)
def test_backends_agree_with_the_direct_sum(backend: str, bound: float, dtype: torch.dtype) -> None:
    angles = np.arange(7) * 1.1
    shifts = np.random.default_rng(0).normal(0, 0.02, (7, 2))
    operator = Nufft.radial(angles, SAMPLING, (12, 10), shifts=shifts, backend=backend)
    points = radial_points(angles, SAMPLING, shifts).reshape(-1, 2)
    x, y = random_complex((2, 12, 10), dtype), random_complex((3, 7, 24), dtype)
    assert operator(x).dtype == dtype
    assert relative_error(operator(x).numpy().reshape(2, -1), direct_transform(points, x.numpy())) < bound
    assert relative_error(operator.adjoint(y).numpy(), direct_sum(points, y.numpy().reshape(3, -1), (12, 10))) < bound
    assert adjoint_mismatch(operator, (2,), dtype) < (5e-5 if dtype == torch.complex64 else 1e-10)


@pytest.mark.parametrize("backend", ["finufft", "sparse", "torchkbnufft"])
def test_each_item_of_a_batch_may_have_its_own_points(backend: str) -> None:
    angles = np.random.default_rng(1).uniform(0, 3, (3, 4))
    together = Nufft.radial(angles, SAMPLING, (12, 12), backend=backend)
    x = random_complex((3, 2, 12, 12))
    for item in range(3):
        alone = Nufft.radial(angles[item], SAMPLING, (12, 12), backend=backend)
        torch.testing.assert_close(together(x)[item], alone(x[item]))
        torch.testing.assert_close(together.adjoint(together(x))[item], alone.adjoint(alone(x[item])))
    with pytest.raises(DataError, match="3 sets of points"):
        together(x[:2])


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 50), st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_sparse_matrices_are_accurate_and_adjoint_at_any_size(rows: int, columns: int, n: int, seed: int) -> None:
    points = scattered(n, seed)
    operator = Nufft(points, (rows, columns), backend="sparse")
    x = random_complex((2, rows, columns))
    scale = np.linalg.norm(x.numpy()) * np.sqrt(n)
    assert np.linalg.norm(operator(x).numpy() - direct_transform(points, x.numpy())) < 1e-4 * scale
    assert adjoint_mismatch(operator) < 1e-10


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("backend", ["auto", "torchkbnufft"])
def test_cuda_agrees_with_the_direct_sum(backend: str) -> None:
    points = scattered(500)
    operator = Nufft(points, (31, 48), backend=backend)
    x, y = random_complex((2, 31, 48), torch.complex64), random_complex((3, 500), torch.complex64)
    assert relative_error(operator(x.cuda()).cpu().numpy(), direct_transform(points, x.numpy())) < 1e-3
    assert relative_error(operator.adjoint(y.cuda()).cpu().numpy(), direct_sum(points, y.numpy(), (31, 48))) < 1e-3
    values = x.cuda().requires_grad_()
    (gradient,) = torch.autograd.grad(operator(values).abs().square().sum(), values)
    torch.testing.assert_close(gradient, 2 * operator.adjoint(operator(values.detach())), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("backend", ["finufft", "sparse"])
@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_are_those_of_the_dense_matrix(adjoint: bool, backend: str) -> None:
    operator = Nufft(scattered(5), (3, 4), accuracy=1e-12, backend=backend)
    operator = operator.H if adjoint else operator
    x = random_complex((2, *operator.domain_shape)).requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,), atol=1e-6)
    assert torch.autograd.gradgradcheck(operator, (x,), atol=1e-6)


def test_plan_keeps_points_and_writes_in_place() -> None:
    points = scattered(30)
    plan = FinufftPlan((8, 6), 2, dtype=np.complex128, accuracy=1e-9).set_points(points)
    images = random_complex((2, 8, 6)).numpy()
    samples = np.empty((2, 30), np.complex128)
    assert plan.forward(images, samples) is samples
    np.testing.assert_allclose(samples, direct_transform(points, images), atol=1e-6)
    out = np.empty_like(images)
    assert plan.set_points(points).adjoint(samples, out) is out
    np.testing.assert_allclose(out, direct_sum(points, samples, (8, 6)), atol=1e-6)
    other = scattered(20, 3)
    np.testing.assert_allclose(plan.set_points(other).forward(images), direct_transform(other, images), atol=1e-6)
    single = FinufftPlan((8, 6), accuracy=ACCURATE).set_points(points)
    assert relative_error(single.adjoint(samples[:1]), direct_sum(points, samples[:1], (8, 6))) < 1e-5


def test_threads_do_not_share_a_plan() -> None:
    points = [scattered(40, seed) for seed in range(4)]
    x = random_complex((1, 16, 16))
    truth = [direct_transform(p, x.numpy()) for p in points]

    def work(index: int) -> float:
        own = index % 4
        return relative_error(Nufft(points[own], (16, 16), accuracy=1e-9)(x).numpy(), truth[own])

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(40))) < 1e-6


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="points of shape"):
        Nufft(np.zeros((3, 3)), (4, 4))
    with pytest.raises(DataError, match="points of shape"):
        Nufft(np.zeros((3, 2)), (4, 4), batched=True)
    with pytest.raises(SettingsError, match="accuracy"):
        FinufftPlan((4, 4), accuracy=0.5)


@pytest.mark.parametrize("shape", [(1, 2), (2,), (4, 2), (5, 3), (5,)])
def test_every_spoke_has_its_own_shift_or_none_has(shape: tuple[int, ...]) -> None:
    sampling = RadialSampling(n_readout=8, spacing=1 / 8, centre=4.0)
    with pytest.raises(DataError, match=r"\(5, 2\) is needed, one a spoke"):
        radial_points(np.zeros(5), sampling, np.zeros(shape))


def test_shifts_of_several_sets_go_with_angles_of_one() -> None:
    sampling = RadialSampling(n_readout=8, spacing=1 / 8, centre=4.0)
    shifts = np.random.default_rng(0).normal(0, 0.01, (3, 5, 2))
    together = radial_points(np.arange(5.0), sampling, shifts)
    for item in range(3):
        np.testing.assert_array_equal(together[item], radial_points(np.arange(5.0), sampling, shifts[item]))
