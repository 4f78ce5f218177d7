"""The contract of a linear operator: forward, exact adjoint, shapes, composition."""

import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sinotherm.errors import DataError

__all__ = ["Adjoint", "Composition", "LinearOperator", "sparse_matrix"]


class LinearOperator(nn.Module, ABC):
    """A linear map A of tensors; leading batch axes are free.

    Subclasses set `domain_shape` and `range_shape` (the trailing axes that the operator needs) and
    implement `forward` and `adjoint`, so that ⟨A x, y⟩ = ⟨x, Aᴴ y⟩ with ⟨a, b⟩ = Σ a·conj(b).
    """

    def __init__(self, domain_shape: tuple[int, ...], range_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.domain_shape = tuple(domain_shape)
        self.range_shape = tuple(range_shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return A x: (…, *domain_shape) → (…, *range_shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᴴ y: (…, *range_shape) → (…, *domain_shape)."""

    @property
    def H(self) -> "LinearOperator":  # noqa: N802 (Aᴴ, as the field writes it)
        """The adjoint as an operator."""
        return Adjoint(self)

    def __matmul__(self, other: "LinearOperator") -> "LinearOperator":
        """Return the composition: ``(A @ B)(x) = A(B(x))``."""
        return Composition(self, other)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return A x, as `torch.nn.Module` calls it."""
        result: Tensor = super().__call__(*args, **kwargs)
        return result

    @staticmethod
    def check(x: Tensor, shape: tuple[int, ...], what: str) -> None:
        """Raise `DataError` unless the last axes of ``x`` have this shape."""
        if tuple(x.shape[x.ndim - len(shape) :]) != tuple(shape) or x.ndim < len(shape):
            raise DataError(f"{what} of shape {tuple(x.shape)}: its last axes must be {tuple(shape)}.")


class Adjoint(LinearOperator):
    """Aᴴ of an operator A."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.range_shape, operator.domain_shape)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        """Return Aᴴ x."""
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A y."""
        return self.operator(y)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """The operator itself."""
        return self.operator


class Composition(LinearOperator):
    """A ∘ B; the range of B must be the domain of A.

    Raises
    ------
    DataError
        The shapes do not meet.
    """

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if inner.range_shape != outer.domain_shape:
            raise DataError(
                f"operators do not compose: the inner one ends in {inner.range_shape}, the outer one starts from "
                f"{outer.domain_shape}; they must be equal."
            )
        super().__init__(inner.domain_shape, outer.range_shape)
        self.outer = outer
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return A(B x)."""
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return Bᴴ(Aᴴ y)."""
        return self.inner.adjoint(self.outer.adjoint(y))


def sparse_matrix(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a sparse matrix in compressed rows, on the device of its parts.

    Parameters
    ----------
    starts
        Where each row begins among the entries, and their number, (row + 1,).
    columns, values
        Of the entries, row by row, (entry,).
    shape
        Rows and columns.
    """
    with warnings.catch_warnings():
        # The format has been called a beta for years; checks of what is right by construction cost time.
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
