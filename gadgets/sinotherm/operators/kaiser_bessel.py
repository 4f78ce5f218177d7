"""NUFFT as FFT and sparse matrix: Kaiser-Bessel interpolation on an oversampled grid, any device, differentiable.

The interpolation of one set of points is a sparse real matrix that all images of a batch share. On a GPU
this is a few large kernels where table interpolation is many small ones; the matrix of a new set of
points is made on the device itself. Beatty, Nishimura and Pauly 2005, 10.1109/TMI.2004.837310 (β);
Jackson et al. 1991, 10.1109/42.97598 (Kaiser-Bessel kernel and its transform).
"""

import math
from typing import Any, Final

import torch
from torch import Tensor

from sinotherm.operators.linear import sparse_matrix

__all__ = ["SparseNufft"]

OVERSAMPLING: Final = 1.5
WIDTH: Final = 6
"""Grid points across the kernel: 1e-5 relative error at this oversampling, below single precision's sums."""


class SparseNufft:
    """The NUFFT pair of one set of points: s_m = Σ_x f(x)·exp(−2πi k_m·x) and its adjoint, no scale factor.

    Parameters
    ----------
    points
        Positions in cycles per pixel (kx, ky), float64 (sample, 2); the matrices live on their device.
    shape
        Image (y, x) in pixels; pixel n//2 is x = 0.
    dtype
        Real precision of the data: float32 or float64; the accuracy is the same.
    """

    def __init__(self, points: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> None:
        self.shape = shape
        # A multiple of 16 suits every FFT library, and an even grid turns the centring into signs.
        self._grid = (_grid_size(shape[0]), _grid_size(shape[1]))
        device = points.device
        along_y, place_y = _interpolation(points[:, 1], self._grid[0])
        along_x, place_x = _interpolation(points[:, 0], self._grid[1])
        values = (along_y[:, :, None] * along_x[:, None, :]).to(dtype).flatten()
        columns = (place_y[:, :, None] * self._grid[1] + place_x[:, None, :]).flatten()
        n_points, n_cells = len(points), self._grid[0] * self._grid[1]
        rows = torch.arange(0, len(values) + 1, WIDTH * WIDTH, device=device)
        self._matrix = sparse_matrix(rows, columns, values, (n_points, n_cells))
        ordered, order = torch.sort(columns, stable=True)
        starts = torch.searchsorted(ordered, torch.arange(n_cells + 1, device=device))
        whose = torch.div(order, WIDTH * WIDTH, rounding_mode="floor")
        self._transposed = sparse_matrix(starts, whose, values[order], (n_cells, n_points))
        scale_y = _deapodisation(shape[0], self._grid[0], device)
        scale_x = _deapodisation(shape[1], self._grid[1], device)
        self._scale = (scale_y[:, None] * scale_x[None, :]).to(dtype)
        self._corner = (self._grid[0] // 2 - shape[0] // 2, self._grid[1] // 2 - shape[1] // 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return samples, complex (image, sample), of images, complex (image, y, x); differentiable."""
        return _Transform.apply(images, self, False)

    def adjoint(self, samples: Tensor) -> Tensor:
        """Return images, complex (image, y, x), of samples, complex (image, sample); differentiable."""
        return _Transform.apply(samples, self, True)

    def _interpolate(self, images: Tensor) -> Tensor:
        top, left = self._corner
        grid = images.new_zeros((len(images), *self._grid))
        grid[:, top : top + self.shape[0], left : left + self.shape[1]] = images * self._scale
        spectrum = torch.view_as_real(torch.fft.fft2(grid)).permute(1, 2, 0, 3)
        samples = self._matrix @ spectrum.reshape(self._grid[0] * self._grid[1], -1)
        return torch.view_as_complex(samples.reshape(len(samples), -1, 2)).T.contiguous()

    def _spread(self, samples: Tensor) -> Tensor:
        top, left = self._corner
        columns = torch.view_as_real(samples.resolve_conj().T.contiguous())
        spectrum = self._transposed @ columns.reshape(len(columns), -1)
        spectrum = torch.view_as_complex(spectrum.reshape(*self._grid, -1, 2)).permute(2, 0, 1).contiguous()
        grid = torch.fft.ifft2(spectrum, norm="forward")
        return grid[:, top : top + self.shape[0], left : left + self.shape[1]] * self._scale


class _Transform(torch.autograd.Function):
    """Forward or adjoint; the gradient of either is the other."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, nufft: SparseNufft, adjoint: bool) -> Tensor:
        ctx.settings = (nufft, adjoint)
        return nufft._spread(values) if adjoint else nufft._interpolate(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        nufft, adjoint = ctx.settings
        return _Transform.apply(gradients[0], nufft, not adjoint), None, None


def _grid_size(pixels: int) -> int:
    return max(16, math.ceil(OVERSAMPLING * pixels / 16) * 16)


def _shape_parameter(oversampling: float) -> float:
    """Return Beatty's β."""
    return math.pi * math.sqrt((WIDTH / oversampling) ** 2 * (oversampling - 0.5) ** 2 - 0.8)


def _interpolation(frequency: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return kernel values and grid indices, both (sample, WIDTH), along one axis.

    The sign (−1)^q undoes that the image's centre stands at grid // 2 when the FFT takes index 0 for it.
    """
    position = frequency.double() * grid
    first = torch.ceil(position - WIDTH / 2)
    index = first[:, None] + torch.arange(WIDTH, device=frequency.device)
    distance = (position[:, None] - index) / (WIDTH / 2)
    beta = _shape_parameter(OVERSAMPLING)
    values = torch.special.i0(beta * (1 - distance.square()).clamp_min(0).sqrt())
    place = index.long()
    return values * (1 - 2 * torch.remainder(place, 2)), torch.remainder(place, grid)


def _deapodisation(pixels: int, grid: int, device: torch.device) -> Tensor:
    """Return 1 / transform of the kernel at each pixel, float64 (pixel,)."""
    position = (torch.arange(pixels, dtype=torch.float64, device=device) - pixels // 2) / grid
    root = (_shape_parameter(OVERSAMPLING) ** 2 - (math.pi * WIDTH * position).square()).sqrt()
    return root / (WIDTH * torch.sinh(root))
