import pytest
import torch

from operator_checks import adjoint_mismatch
from sinotherm.errors import DataError
from sinotherm.operators.linear import LinearOperator


class Matrix(LinearOperator):
    """A dense matrix: the oracle of the contract."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__((matrix.shape[1],), (matrix.shape[0],))
        self.matrix = matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check(x, self.domain_shape, "vectors")
        return x @ self.matrix.T

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return y @ self.matrix.conj()


def random_matrix(rows: int, columns: int, seed: int = 0) -> Matrix:
    generator = torch.Generator().manual_seed(seed)
    return Matrix(torch.randn(rows, columns, dtype=torch.complex128, generator=generator))


def test_composition_is_the_matrix_product() -> None:
    a, b = random_matrix(3, 4), random_matrix(4, 5, seed=1)
    composed = a @ b
    x = torch.randn(2, 7, 5, dtype=torch.complex128)
    assert composed.domain_shape == (5,)
    assert composed.range_shape == (3,)
    torch.testing.assert_close(composed(x), x @ (a.matrix @ b.matrix).T)
    assert adjoint_mismatch(composed) < 1e-12


def test_adjoint_is_an_operator_and_undoes_itself() -> None:
    a = random_matrix(3, 4)
    assert a.H.domain_shape == (3,)
    assert a.H.range_shape == (4,)
    assert a.H.H is a
    assert adjoint_mismatch(a.H) < 1e-12
    y = torch.randn(4, dtype=torch.complex128)
    torch.testing.assert_close(a.H.adjoint(y), a(y))


def test_shapes_that_do_not_meet_are_refused() -> None:
    with pytest.raises(DataError, match="do not compose"):
        random_matrix(3, 4) @ random_matrix(3, 4)
    with pytest.raises(DataError, match="last axes must be"):
        random_matrix(3, 4)(torch.zeros(2, 5, dtype=torch.complex128))
    with pytest.raises(DataError, match="images of shape"):
        LinearOperator.check(torch.zeros(4), (4, 4), "images")
