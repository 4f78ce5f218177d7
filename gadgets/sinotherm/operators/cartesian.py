"""Cartesian Fourier sampling with coil sensitivities, and the line patterns of accelerated scans."""

import math

import numpy as np
import torch
from torch import Tensor

from sinotherm.errors import DataError, SettingsError
from sinotherm.operators.fourier import fft2, ifft2
from sinotherm.operators.linear import LinearOperator

__all__ = ["CartesianSense", "variable_density_lines"]


class CartesianSense(LinearOperator):
    """Images → k-space lines of every coil; lines that were not measured are zero.

    (A f)_c = M·F(s_c·f) with the centred unitary F, so that Aᴴ is the zero-filled, coil-combined image.

    Parameters
    ----------
    lines
        bool (ky,): which phase-encoding lines (rows of k-space, index n//2 is k = 0) were measured.
    maps
        complex (coil, y, x) coil sensitivities, or with a leading batch axis.

    Raises
    ------
    DataError
        The lines do not fit the maps.
    """

    lines: Tensor
    maps: Tensor

    def __init__(self, lines: np.ndarray | Tensor, maps: Tensor) -> None:
        mask = torch.as_tensor(lines, dtype=torch.bool, device=maps.device)
        if mask.shape != maps.shape[-2:-1]:
            raise DataError(f"{tuple(mask.shape)} lines for images of {maps.shape[-2]} rows: give one flag a row.")
        super().__init__(tuple(maps.shape[-2:]), tuple(maps.shape[-3:]))
        self.register_buffer("lines", mask[:, None].to(maps.real.dtype))
        self.register_buffer("maps", maps)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, coil, ky, kx) of images (…, y, x)."""
        self.check(x, self.domain_shape, "images")
        return fft2(x[..., None, :, :] * self.maps) * self.lines

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the zero-filled image (…, y, x) of k-space (…, coil, ky, kx)."""
        self.check(y, self.range_shape, "k-space")
        return (ifft2(y * self.lines) * self.maps.conj()).sum(dim=-3)


def variable_density_lines(
    n_lines: int, acceleration: float, random: np.random.Generator, *, centre: float = 0.04, power: float = 2.0
) -> np.ndarray:
    """Return a random choice of lines, bool (n_lines,), denser towards k = 0.

    Parameters
    ----------
    acceleration
        R: ``round(n_lines / R)`` lines are measured.
    centre
        Fraction of lines around k = 0 that are always measured.
    power
        The density falls as (1 − |k|/k_max)^power.

    Raises
    ------
    SettingsError
        The acceleration leaves fewer lines than the centre needs.
    """
    wanted = round(n_lines / acceleration)
    core = max(2, round(centre * n_lines))
    if not core <= wanted <= n_lines:
        raise SettingsError(
            f"acceleration {acceleration:g} leaves {wanted} of {n_lines} lines: {core} to {n_lines} are needed."
        )
    distance = np.abs(np.arange(n_lines) - n_lines // 2) / math.ceil(n_lines / 2)
    chosen = np.zeros(n_lines, dtype=bool)
    start = n_lines // 2 - core // 2
    chosen[start : start + core] = True
    density = np.where(chosen, 0.0, np.maximum(1.0 - distance, 1e-3) ** power)
    more = random.choice(n_lines, size=wanted - core, replace=False, p=density / density.sum())
    chosen[more] = True
    return chosen
