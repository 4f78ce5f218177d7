"""Thermometry without a baseline: the phase before heating is inferred from what surrounds the heating.

Both modes take the phase of the very image in a ring round the region that is heated: a polynomial
through the ring, or the harmonic function with the border's values. Drift and motion between frames
drop out; heating that reaches the ring does not.
"""

import math
from typing import Any, Final

import numpy as np

from sinotherm.core.arrays import CoilImages, ComplexArray, FloatArray, MaskArray
from sinotherm.errors import DataError, SettingsError
from sinotherm.thermometry.drift import monomials
from sinotherm.thermometry.noise import uncertainty_of_fit, variance_of_fit

__all__ = ["Background"]

RING_PX: Final = 6
_STEPS: Final = 4
_LEAST: Final = 1e-12


class Background:
    """Phase of the unheated image inside one region of a slice.

    Parameters
    ----------
    heated
        bool (y, x): region that may be heated.
    harmonic
        False: polynomial of ``order`` through the ring. Rieke et al. 2004, 10.1002/mrm.20124.
        True: the field obeys Laplace's equation where the susceptibility is uniform; solved from the
        region's border. Salomir et al. 2012, 10.1109/TMI.2011.2168421.
    order
        Order of the polynomial; the harmonic mode takes out the first order before it solves.

    Raises
    ------
    SettingsError
        The region touches the image's border, so that no ring surrounds it.
    """

    def __init__(self, heated: MaskArray, *, harmonic: bool, order: int) -> None:
        from scipy import ndimage

        if heated[[0, -1], :].any() or heated[:, [0, -1]].any():
            raise SettingsError(
                "the heated region touches the border of the image: draw it so that a ring surrounds it."
            )
        self._heated = heated
        self._order = 1 if harmonic else order
        inner = ndimage.binary_dilation(heated, iterations=1)
        self._ring = ndimage.binary_dilation(inner, iterations=RING_PX) & ~inner
        rows, columns = np.nonzero(heated)
        self._centre = np.array([columns.mean(), rows.mean()])
        self._scale = max(np.ptp(columns), np.ptp(rows)) / 2.0 + RING_PX
        y, x = np.mgrid[: heated.shape[0], : heated.shape[1]]
        self._terms = monomials((x - self._centre[0]) / self._scale, (y - self._centre[1]) / self._scale, self._order)
        self._design = np.ascontiguousarray(self._terms[:, self._ring].T)
        self._inside = self._terms[:, heated].astype(np.float32)
        self._frame = ndimage.find_objects(self._ring.astype(np.int8))[0]
        self._laplace = self._factorised() if harmonic else None

    def _factorised(self) -> tuple[Any, Any, tuple[np.ndarray, ...]]:
        """Return the factors of Laplace's equation inside, its link to the border, and the border's pixels."""
        from scipy import ndimage, sparse
        from scipy.sparse.linalg import splu

        border = ndimage.binary_dilation(self._heated) & ~self._heated
        inside = np.full(self._heated.shape, -1)
        outside = np.full(self._heated.shape, -1)
        n, m = int(self._heated.sum()), int(border.sum())
        inside[self._heated], outside[border] = np.arange(n), np.arange(m)
        here = inside[self._heated]
        rows, columns, links, ends = [], [], [], []
        place = np.nonzero(self._heated)
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            there = (place[0] + dy, place[1] + dx)
            within = inside[there] >= 0
            rows.append(here[within])
            columns.append(inside[there][within])
            links.append(here[~within])
            ends.append(outside[there][~within])
        off = sparse.coo_array((np.ones(sum(map(len, rows))), (np.concatenate(rows), np.concatenate(columns))), (n, n))
        link = sparse.coo_array((np.ones(sum(map(len, links))), (np.concatenate(links), np.concatenate(ends))), (n, m))
        factors = splu((4.0 * sparse.eye_array(n) - off).tocsc())
        return factors, link.tocsr(), np.nonzero(border)

    def reference(self, image: CoilImages) -> tuple[ComplexArray, FloatArray]:
        """Return |x|·exp(i·background) inside the region and 0 outside, and the variance of the background.

        complex64 (1, y, x), and float32 (y, x), rad². The harmonic function is a mean over the border, wide inside
        and narrow near the rim, and what the first order lacks it puts back: no variance is stated. In white and in
        smooth noise (SD of the kernel up to 2 pixels) the scatter was 0.83 to 1.01 of that of the image alone.

        Without signal in the ring there is no background, and it is 0 everywhere.

        Parameters
        ----------
        image
            complex64 (coil, y, x): one slice; the coils must be combined.

        Raises
        ------
        DataError
            There is more than one coil.
        """
        if len(image) != 1:
            raise DataError(f"{len(image)} coil images: referenceless thermometry needs combined coils.")
        plane = image[0]
        if not plane[self._ring].any():
            return np.zeros_like(image), np.zeros(plane.shape, dtype=np.float32)
        phase = self._polynomial(plane)
        variance = np.zeros(phase.shape, dtype=np.float32)
        if self._laplace is None:
            variance[self._heated] = self._variance(plane[self._ring] * np.exp(-1j * phase[self._ring]))
        else:
            phase = phase + self._harmonic(plane * np.exp(-1j * phase))
        inside = np.where(self._heated, np.abs(plane) * np.exp(1j * phase), 0.0)
        return inside[None].astype(np.complex64), variance

    def _polynomial(self, plane: ComplexArray) -> FloatArray:
        """Fit the ring's phase, rising in order from its mean gradient, so that no unwrapping is needed."""
        weights = np.where(self._ring, np.abs(plane) ** 2, 0.0)[self._ring]
        both_x = self._ring[:, 1:] & self._ring[:, :-1]
        both_y = self._ring[1:] & self._ring[:-1]
        slope_x = np.angle(np.vdot(plane[:, :-1][both_x], plane[:, 1:][both_x]))
        slope_y = np.angle(np.vdot(plane[:-1][both_y], plane[1:][both_y]))
        coefficients = np.zeros(len(self._terms))
        coefficients[1:3] = slope_x * self._scale, slope_y * self._scale
        start = np.einsum("t,tyx->yx", coefficients, self._terms)
        coefficients[0] = np.angle(
            np.sum(np.abs(plane[self._ring]) * plane[self._ring] * np.exp(-1j * start[self._ring]))
        )
        design = self._terms[:, self._ring].T
        for order in range(1, self._order + 1):
            used = (order + 1) * (order + 2) // 2
            weighted = design[:, :used] * np.sqrt(weights)[:, None]
            for _ in range(_STEPS):
                residual = np.angle(plane[self._ring] * np.exp(-1j * (design @ coefficients)))
                coefficients[:used] += np.linalg.lstsq(weighted, residual * np.sqrt(weights), rcond=None)[0]
        return np.einsum("t,tyx->yx", coefficients, self._terms)

    def _variance(self, flattened: ComplexArray) -> FloatArray:
        """Return the variance of the polynomial inside, (voxel,), rad², from what it leaves of the ring, (voxel,)."""
        power = np.abs(flattened) ** 2
        used = power > 0.0
        prior, residual = power[used] / power[used].mean(), np.angle(flattened[used])
        sd = math.sqrt(max(float(np.mean(prior * residual**2)), _LEAST)) / np.sqrt(prior)
        places = self._ring[self._frame].copy()
        places[places] = used
        root = uncertainty_of_fit(
            self._design[used], residual, sd, prior=prior, kept=np.ones(len(prior)), places=places
        )
        return variance_of_fit(self._inside, root)

    def _harmonic(self, flattened: ComplexArray) -> FloatArray:
        """Solve Laplace's equation inside, from the phases of the border."""
        from scipy.ndimage import uniform_filter

        factors, link, border = self._laplace  # type: ignore[misc]
        # The border is noise as well: its complex neighbours outside of the region steady it.
        outer = np.where(self._heated, 0.0, flattened)
        smooth = uniform_filter(outer.real, 3) + 1j * uniform_filter(outer.imag, 3)
        values = np.angle(smooth[border])
        field = np.zeros(flattened.shape)
        field[border] = values
        field[self._heated] = factors.solve(link @ values)
        return np.clip(field, -math.pi, math.pi)
