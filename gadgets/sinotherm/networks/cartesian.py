"""Cartesian k-space as the dual space: the operator of the Fourier networks."""

import numpy as np
from torch import Tensor

from sinotherm.operators.cartesian import CartesianSense

__all__ = ["CartesianLines"]


class CartesianLines:
    """T: image → k-space lines of all coils, zero where not measured; T⁺: zero-filled, coil-combined image.

    Khatun et al. 2025, 10.1038/s41598-025-96071-x: centred FFT and its inverse in place of the Radon
    transform. The image stays complex here, since thermometry lives in its phase.

    Parameters
    ----------
    lines
        bool (ky,): measured phase-encoding lines.
    maps
        complex64 (coil, y, x) or (batch, coil, y, x), Σ|s|² = 1.
    """

    def __init__(self, lines: np.ndarray, maps: Tensor) -> None:
        self._sense = CartesianSense(lines, maps)

    def forward(self, image: Tensor) -> Tensor:
        """T: complex64 (batch, y, x) → (batch, coil, ky, kx)."""
        return self._sense(image)

    def inverse(self, dual: Tensor) -> Tensor:
        """T⁺: (batch, coil, ky, kx) → complex64 (batch, y, x)."""
        return self._sense.adjoint(dual)

    def update(self, dual: Tensor) -> Tensor:
        """Return T⁺: a masked unitary transform never amplifies."""
        return self.inverse(dual)

    def normal(self, image: Tensor) -> Tensor:
        """Return T⁺T image."""
        return self.update(self.forward(image))

    def context(self) -> Tensor:
        """Return 1 for each measured line, else 0: (1, ky, 1)."""
        return self._sense.lines[None]
