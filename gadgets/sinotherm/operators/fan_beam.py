"""Fan-beam CT with a flat detector: line integrals, their exact adjoint, and filtered back-projection.

The source stands at R·(cos β, sin β) (column, row) from the isocentre, which is pixel (n//2, n//2); the
detector is R + D away from it, along (−sin β, cos β). Lengths are in pixels. Kak and Slaney 1988,
10.1137/1.9780898719277, chapter 3.4 (equispaced detectors).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import DataError
from sinotherm.operators.backend import has_kernels
from sinotherm.operators.linear import LinearOperator, sparse_matrix

if TYPE_CHECKING or has_kernels():
    from numba import njit, prange
else:
    # The kernels are then names of the matrices that take their place.
    prange = range

    def njit(**_: bool) -> Callable[[Any], Any]:
        """Return what leaves a kernel as it is."""
        return lambda kernel: kernel


__all__ = ["FanBeam", "FanBeamGeometry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FanBeamGeometry:
    """Where source and detector are; the defaults are those of the first paper.

    Attributes
    ----------
    n_pixels
        Rows and columns of the image.
    source_distance, detector_distance
        Source to isocentre (R) and isocentre to detector (D), pixels.
    n_detectors, detector_spacing
        Bins of the detector and their distance, pixels.
    """

    n_pixels: int = 256
    source_distance: float = 400.0
    detector_distance: float = 150.0
    n_detectors: int = 511
    detector_spacing: float = 1.0

    @staticmethod
    def sparse_views(n_views: int = 360, sparsity: int = 16) -> FloatArray:
        """Return the angles β of every ``sparsity``-th of ``n_views`` views over a full turn, rad."""
        return np.arange(0, n_views, sparsity) * (2 * math.pi / n_views)


@njit(cache=True, parallel=True, fastmath=True)
def _project(image: Any, cosine: Any, sine: Any, source: float, total: float, spacing: float, out: Any) -> None:
    """Line integrals by Joseph's method: linear interpolation across the ray's dominant axis."""
    batch, n, _ = image.shape
    views, bins = out.shape[1], out.shape[2]
    half = n // 2
    for job in prange(batch * views):
        b, v = job // views, job % views
        sx, sy = source * cosine[v], source * sine[v]
        for d in range(bins):
            u = (d - bins // 2) * spacing
            dx = -total * cosine[v] - u * sine[v]
            dy = -total * sine[v] + u * cosine[v]
            value = 0.0
            if abs(dx) >= abs(dy):
                slope = dy / dx
                for i in range(n):
                    y = sy + (i - half - sx) * slope + half
                    j = math.floor(y)
                    w = y - j
                    if 0 <= j < n:
                        value += (1.0 - w) * image[b, j, i]
                    if 0 <= j + 1 < n:
                        value += w * image[b, j + 1, i]
                out[b, v, d] = value * math.sqrt(1.0 + slope * slope)
            else:
                slope = dx / dy
                for i in range(n):
                    x = sx + (i - half - sy) * slope + half
                    j = math.floor(x)
                    w = x - j
                    if 0 <= j < n:
                        value += (1.0 - w) * image[b, i, j]
                    if 0 <= j + 1 < n:
                        value += w * image[b, i, j + 1]
                out[b, v, d] = value * math.sqrt(1.0 + slope * slope)


@njit(cache=True, parallel=True, fastmath=True)
def _spread(sinogram: Any, cosine: Any, sine: Any, source: float, total: float, spacing: float, out: Any) -> None:
    """Transpose of `_project`; images in parallel, since rays of one image meet in a pixel."""
    batch, n, _ = out.shape
    views, bins = sinogram.shape[1], sinogram.shape[2]
    half = n // 2
    for b in prange(batch):
        for v in range(views):
            sx, sy = source * cosine[v], source * sine[v]
            for d in range(bins):
                u = (d - bins // 2) * spacing
                dx = -total * cosine[v] - u * sine[v]
                dy = -total * sine[v] + u * cosine[v]
                if abs(dx) >= abs(dy):
                    slope = dy / dx
                    value = sinogram[b, v, d] * math.sqrt(1.0 + slope * slope)
                    for i in range(n):
                        y = sy + (i - half - sx) * slope + half
                        j = math.floor(y)
                        w = y - j
                        if 0 <= j < n:
                            out[b, j, i] += (1.0 - w) * value
                        if 0 <= j + 1 < n:
                            out[b, j + 1, i] += w * value
                else:
                    slope = dx / dy
                    value = sinogram[b, v, d] * math.sqrt(1.0 + slope * slope)
                    for i in range(n):
                        x = sx + (i - half - sy) * slope + half
                        j = math.floor(x)
                        w = x - j
                        if 0 <= j < n:
                            out[b, i, j] += (1.0 - w) * value
                        if 0 <= j + 1 < n:
                            out[b, i, j + 1] += w * value


@njit(cache=True, parallel=True, fastmath=True)
def _gather(filtered: Any, cosine: Any, sine: Any, source: float, spacing: float, out: Any) -> None:
    """Σ_β (R/L)²·q_β(R·t/L): distance-weighted back-projection, bins at the isocentre ``spacing`` apart."""
    batch, n, _ = out.shape
    views, bins = filtered.shape[1], filtered.shape[2]
    half = n // 2
    for job in prange(batch * n):
        b, row = job // n, job % n
        y = row - half
        for column in range(n):
            x = column - half
            value = 0.0
            for v in range(views):
                scale = source / (source - x * cosine[v] - y * sine[v])
                place = (y * cosine[v] - x * sine[v]) * scale / spacing + bins // 2
                j = math.floor(place)
                w = place - j
                if 0 <= j < bins - 1:
                    value += scale * scale * ((1.0 - w) * filtered[b, v, j] + w * filtered[b, v, j + 1])
            out[b, row, column] = value


@njit(cache=True, parallel=True, fastmath=True)
def _scatter(image: Any, cosine: Any, sine: Any, source: float, spacing: float, out: Any) -> None:
    """Transpose of `_gather`."""
    batch, n, _ = image.shape
    views, bins = out.shape[1], out.shape[2]
    half = n // 2
    for job in prange(batch * views):
        b, v = job // views, job % views
        for row in range(n):
            y = row - half
            for column in range(n):
                x = column - half
                scale = source / (source - x * cosine[v] - y * sine[v])
                place = (y * cosine[v] - x * sine[v]) * scale / spacing + bins // 2
                j = math.floor(place)
                w = place - j
                if 0 <= j < bins - 1:
                    value = scale * scale * image[b, row, column]
                    out[b, v, j] += (1.0 - w) * value
                    out[b, v, j + 1] += w * value


class _Linear(torch.autograd.Function):
    """A pair of numpy maps, one the transpose of the other, as a differentiable function."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, apply: Any, transpose: Any) -> Tensor:
        ctx.pair = (transpose, apply)
        return apply(values)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        transpose, apply = ctx.pair
        return _Linear.apply(gradient[0], transpose, apply), None, None


class FanBeam(LinearOperator):
    """Fan-beam projections of real images: (…, y, x) → (…, view, detector), differentiable.

    Compiled kernels on the CPU; on a GPU, and without numba, the same interpolations as sparse matrices, made once.

    Parameters
    ----------
    geometry
        Source, detector and image.
    angles
        β of each view, rad, ascending within one turn, float64 (view,).

    Raises
    ------
    DataError
        The source stands inside the image.
    """

    def __init__(self, geometry: FanBeamGeometry, angles: FloatArray) -> None:
        n, views = geometry.n_pixels, len(angles)
        if geometry.source_distance <= n / math.sqrt(2.0):
            raise DataError(
                f"source at {geometry.source_distance:g} pixels: it must stand outside the image, "
                f"beyond {n / math.sqrt(2.0):.0f}."
            )
        super().__init__((n, n), (views, geometry.n_detectors))
        self.geometry = geometry
        self.angles = np.asarray(angles, dtype=np.float64)
        self._cosine, self._sine = np.cos(self.angles), np.sin(self.angles)
        turn = np.r_[self.angles[-1] - 2 * math.pi, self.angles, self.angles[0] + 2 * math.pi]
        self.gaps = (turn[2:] - turn[:-2]) / 2.0 if views > 1 else np.array([2 * math.pi])
        self._matrices: dict[tuple[Any, torch.device], Tensor] = {}

    def _run(self, kernel: Any, values: Tensor, shape: tuple[int, ...], *arguments: float) -> Tensor:
        lead = values.shape[: values.ndim - 2]
        if values.device.type != "cpu" or not has_kernels():
            columns = values.detach().reshape(-1, math.prod(values.shape[-2:])).T.contiguous()
            return (self._matrix(kernel, values.device) @ columns).T.reshape(*lead, *shape)
        array = np.ascontiguousarray(values.detach().numpy()).reshape(-1, *values.shape[-2:])
        out = np.zeros((len(array), *shape), dtype=array.dtype)
        kernel(array, self._cosine, self._sine, *arguments, out)
        return torch.from_numpy(out.reshape(*lead, *shape))

    def _matrix(self, kernel: Any, device: torch.device) -> Tensor:
        """Return what a kernel does as a sparse matrix, float32 (output, input)."""
        if (kernel, device) not in self._matrices:
            forward = kernel in (_project, _spread)
            rows, columns, values = self._line_weights() if forward else self._back_projection_weights()
            sizes = (math.prod(self.range_shape), math.prod(self.domain_shape))
            if kernel in (_gather, _spread):
                sizes = sizes[::-1]
            if kernel in (_spread, _scatter):
                rows, columns = columns, rows
            by_row = np.argsort(rows * sizes[1] + columns)
            begins = np.searchsorted(rows[by_row], np.arange(sizes[0] + 1)).astype(np.int32)
            parts = begins, columns[by_row].astype(np.int32), values[by_row].astype(np.float32)
            starts, places, entries = (torch.from_numpy(part).to(device) for part in parts)
            self._matrices[kernel, device] = sparse_matrix(starts, places, entries, sizes)
        return self._matrices[kernel, device]

    def _line_weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rays, pixels and weights of `_project`."""
        n, (source, total, spacing) = self.geometry.n_pixels, self._rays()
        half, (views, bins) = n // 2, self.range_shape
        cosine, sine = self._cosine[:, None], self._sine[:, None]
        u = (np.arange(bins) - bins // 2) * spacing
        dx, dy = -total * cosine - u * sine, -total * sine + u * cosine
        steep = np.abs(dx) < np.abs(dy)
        # Across the dominant axis; x and y change places where that is y.
        along, across = np.where(steep, dy, dx), np.where(steep, dx, dy)
        start = np.where(steep, source * sine, source * cosine)[..., None]
        begin = np.where(steep, source * cosine, source * sine)[..., None]
        slope = (across / along)[..., None]
        i = np.arange(n)
        place = begin + (i - half - start) * slope + half
        j = np.floor(place).astype(np.int64)
        length = np.sqrt(1.0 + slope**2)
        found = []
        for neighbour, weight in ((j, 1.0 - (place - j)), (j + 1, place - j)):
            pixel = np.where(steep[..., None], i * n + neighbour, neighbour * n + i)
            inside = (neighbour >= 0) & (neighbour < n)
            rays = np.broadcast_to(np.arange(views * bins).reshape(views, bins, 1), pixel.shape)
            found.append((rays[inside], pixel[inside], (weight * length)[inside]))
        rows, columns, values = zip(*found, strict=True)
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)

    def _back_projection_weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pixels, bins and weights of `_gather`."""
        n, source, (views, bins) = self.geometry.n_pixels, self.geometry.source_distance, self.range_shape
        y, x = np.mgrid[:n, :n] - n // 2
        cosine, sine = self._cosine[:, None, None], self._sine[:, None, None]
        scale = source / (source - x * cosine - y * sine)
        place = (y * cosine - x * sine) * scale / self._spacing + bins // 2
        j = np.floor(place).astype(np.int64)
        inside = (j >= 0) & (j < bins - 1)
        pixel = np.broadcast_to(np.arange(n * n).reshape(n, n), place.shape)[inside]
        cell = (j + np.arange(views)[:, None, None] * bins)[inside]
        weight, share = (scale**2)[inside], (place - j)[inside]
        return (
            np.concatenate([pixel, pixel]),
            np.concatenate([cell, cell + 1]),
            np.concatenate([weight * (1.0 - share), weight * share]),
        )

    def _rays(self) -> tuple[float, float, float]:
        g = self.geometry
        return g.source_distance, g.source_distance + g.detector_distance, g.detector_spacing

    @property
    def _spacing(self) -> float:
        """Distance of the bins' images at the isocentre, pixels."""
        g = self.geometry
        return g.detector_spacing * g.source_distance / (g.source_distance + g.detector_distance)

    def forward(self, x: Tensor) -> Tensor:
        """Return the line integrals of images."""
        self.check(x, self.domain_shape, "images")
        return _Linear.apply(x, self._forward, self._transpose)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ of sinograms."""
        self.check(y, self.range_shape, "sinograms")
        return _Linear.apply(y, self._transpose, self._forward)

    def _forward(self, x: Tensor) -> Tensor:
        return self._run(_project, x, self.range_shape, *self._rays())

    def _transpose(self, y: Tensor) -> Tensor:
        return self._run(_spread, y, self.domain_shape, *self._rays())

    def _back(self, y: Tensor) -> Tensor:
        return self._run(_gather, y, self.domain_shape, self.geometry.source_distance, self._spacing)

    def _back_transpose(self, x: Tensor) -> Tensor:
        return self._run(_scatter, x, self.range_shape, self.geometry.source_distance, self._spacing)

    def filtered_back_projection(self, sinogram: Tensor, *, hann: bool = True, limit: bool = False) -> Tensor:
        """Return the image of sinograms (…, view, detector), differentiable.

        Parameters
        ----------
        hann
            Whether to taper the ramp filter with a Hann window.
        limit
            Whether a gap between views counts as one Nyquist step 1/N (at the frequency in question) at
            most, so that image + FBP(g − A image) converges.
        """
        bins, tau = self.geometry.n_detectors, self._spacing
        kind: dict[str, Any] = {"dtype": sinogram.dtype, "device": sinogram.device}
        u = (torch.arange(bins, **kind) - bins // 2) * tau
        r = self.geometry.source_distance
        gaps = torch.as_tensor(self.gaps, **kind)[:, None]
        size = 2 ** math.ceil(math.log2(2 * bins))
        # The ramp sampled in space (Kak and Slaney, eq. 3.61): no offset at zero frequency.
        taps = np.zeros(size)
        odd = np.arange(1, size // 2, 2)
        taps[0] = 0.25
        taps[odd] = -1.0 / (math.pi * odd) ** 2
        taps[-odd] = taps[odd]
        ramp = np.fft.rfft(taps).real
        frequency = np.fft.rfftfreq(size)
        if hann:
            ramp = ramp * (0.5 + 0.5 * np.cos(2 * math.pi * frequency))
        response = torch.as_tensor(ramp, **kind)[None] * gaps / (2.0 * tau)
        if limit:
            cells = torch.as_tensor(frequency / tau * self.geometry.n_pixels, **kind)[None] * gaps
            response = response / cells.clamp_min(1.0)
        weighted = sinogram * (r / torch.sqrt(r * r + u * u))
        spectrum = torch.fft.rfft(weighted, n=size, dim=-1) * response
        filtered = torch.fft.irfft(spectrum, n=size, dim=-1)[..., :bins]
        return _Linear.apply(filtered, self._back, self._back_transpose)
