import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_checks import random_complex
from sinotherm.operators import fourier


def matrix(n: int) -> np.ndarray:
    index = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n)


@given(st.integers(1, 12), st.integers(1, 12))
@settings(deadline=None, max_examples=20)
def test_equals_the_definition_for_odd_and_even_sizes(rows: int, columns: int) -> None:
    x = random_complex((2, rows, columns)).numpy()
    truth = matrix(rows) @ x @ matrix(columns).T
    np.testing.assert_allclose(fourier.fft2(x), truth, atol=1e-12)
    np.testing.assert_allclose(fourier.fft2(torch.from_numpy(x)).numpy(), truth, atol=1e-12)
    np.testing.assert_allclose(fourier.ifft2(fourier.fft2(x)), x, atol=1e-12)
    np.testing.assert_allclose(fourier.fft1(x, axis=1), matrix(rows) @ x, atol=1e-12)
    np.testing.assert_allclose(fourier.ifft1(torch.from_numpy(x)).numpy(), x @ matrix(columns).conj().T, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_keeps_precision_and_leaves_the_input_alone(dtype: type) -> None:
    x = random_complex((4, 5)).numpy().astype(dtype)
    before = x.copy()
    assert fourier.fft2(x).dtype == dtype
    assert fourier.ifft1(x).dtype == dtype
    np.testing.assert_array_equal(x, before)
