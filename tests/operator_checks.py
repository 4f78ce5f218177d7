"""Laws that every linear operator obeys, for the tests of any package."""

import numpy as np
import torch


def random_complex(shape: tuple[int, ...], dtype: torch.dtype = torch.complex128, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def adjoint_mismatch(operator, batch: tuple[int, ...] = (2,), dtype: torch.dtype = torch.complex128) -> float:
    """|⟨A x, y⟩ − ⟨x, Aᴴ y⟩| / (‖A x‖·‖y‖) on random data."""
    x = random_complex((*batch, *operator.domain_shape), dtype, seed=1)
    y = random_complex((*batch, *operator.range_shape), dtype, seed=2)
    image, back = operator(x).to(torch.complex128), operator.adjoint(y).to(torch.complex128)
    assert image.shape == y.shape
    assert back.shape == x.shape
    left = torch.sum(image * y.to(torch.complex128).conj())
    right = torch.sum(x.to(torch.complex128) * back.conj())
    return float(torch.abs(left - right) / (torch.linalg.vector_norm(image) * torch.linalg.vector_norm(y)))


def direct_sum(points: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """f(x) = Σ_m values_m·exp(+2πi k_m·x) by the definition: (…, sample) → (…, y, x)."""
    rows, columns = (np.arange(n) - n // 2 for n in shape)
    by_row = np.exp(2j * np.pi * np.outer(rows, points[:, 1]))
    by_column = np.exp(2j * np.pi * np.outer(points[:, 0], columns))
    return np.einsum("...m,ym,mx->...yx", values.astype(np.complex128), by_row, by_column, optimize=True)


def direct_transform(points: np.ndarray, image: np.ndarray) -> np.ndarray:
    """s_m = Σ_x f(x)·exp(−2πi k_m·x) by the definition: (…, y, x) → (…, sample)."""
    rows, columns = (np.arange(n) - n // 2 for n in image.shape[-2:])
    by_row = np.exp(-2j * np.pi * np.outer(points[:, 1], rows))
    by_column = np.exp(-2j * np.pi * np.outer(points[:, 0], columns))
    return np.einsum("...yx,my,mx->...m", image.astype(np.complex128), by_row, by_column, optimize=True)


def relative_error(measured: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(np.ravel(measured - truth)) / np.linalg.norm(np.ravel(truth)))
