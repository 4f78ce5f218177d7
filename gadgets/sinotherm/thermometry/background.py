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
from sinotherm.thermometry.noise import coverage_factor, uncertainty_of_fit, variance_of_fit

__all__ = ["Background"]

RING_PX: Final = 6
_STEPS: Final = 4
_SIGNAL: Final = 0.2
"""Share of the ring's brightest pixels (90 %) below which a pixel shows air, whose phase says nothing."""
_LEAST: Final = 1e-12
_LEAST_POWER: Final = 1e-300


def _harmonics(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return real and imaginary part of (x + iy)ⁿ, n ≤ 3, float64 (term, …); the grid's own Laplacian of each is 0."""
    z = x + 1j * y
    powers = [z**n for n in range(1, 4)]
    return np.stack([np.ones_like(x), *(part for power in powers for part in (power.real, power.imag))])


def _signal(ring: ComplexArray) -> float:
    """Return the magnitude that pixels with signal exceed, by those of the ring."""
    return _SIGNAL * float(np.percentile(np.abs(ring), 90.0))


class Background:
    """Phase of the unheated image inside one region of a slice.

    Parameters
    ----------
    heated
        bool (y, x): region that may be heated; not empty.
    harmonic
        False: polynomial of ``order`` through the ring. Rieke et al. 2004, 10.1002/mrm.20124.
        True: the field obeys Laplace's equation where the susceptibility is uniform; solved from the
        region's border. Salomir et al. 2012, 10.1109/TMI.2011.2168421.
    order
        Order of the polynomial; the harmonic mode takes out the harmonic ones up to the third before it solves.

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
        inner = ndimage.binary_dilation(heated, iterations=1)
        self._ring = ndimage.binary_dilation(inner, iterations=RING_PX) & ~inner
        rows, columns = np.nonzero(heated)
        self._centre = np.array([columns.mean(), rows.mean()])
        self._scale = max(np.ptp(columns), np.ptp(rows)) / 2.0 + RING_PX
        y, x = np.mgrid[: heated.shape[0], : heated.shape[1]]
        x, y = (x - self._centre[0]) / self._scale, (y - self._centre[1]) / self._scale
        self._terms = _harmonics(x, y) if harmonic else monomials(x, y, order)
        self._both_x = self._ring[:, 1:] & self._ring[:, :-1]
        self._both_y = self._ring[1:] & self._ring[:-1]
        steps = (np.diff(self._terms, axis=2)[:, self._both_x], np.diff(self._terms, axis=1)[:, self._both_y])
        # The first term is the constant.
        self._rises = np.concatenate(steps, axis=1)[1:].T
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

    def reference(self, image: CoilImages) -> tuple[ComplexArray, FloatArray, float]:
        """Return |x|·exp(i·background) inside the region and 0 outside, the variance of the background, and the noise.

        complex64 (1, y, x), float32 (y, x), rad², and the SD of the real part of the image's noise, in its unit, from
        what the polynomial leaves of the ring's phase, σ² = mean(|x|²·φ²)·n/(n − t) over n pixels, t terms: a field
        that it does not follow counts as noise too. The harmonic function is a mean over the border, wide inside
        and narrow near the rim, and what the polynomial lacks it puts back: no variance is stated. In white and in
        smooth noise (SD of the kernel up to 2 pixels), in regions of 5 to 19 pixels radius, the scatter was 0.79 to
        1.04 of that of the image alone.

        Without signal in the ring there is no background, and it is 0 everywhere; the noise is NaN.

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
            return np.zeros_like(image), np.zeros(plane.shape, dtype=np.float32), math.nan
        phase = self._polynomial(plane)
        flattened = plane[self._ring] * np.exp(-1j * phase[self._ring])
        variance = np.zeros(phase.shape, dtype=np.float32)
        if self._laplace is None:
            variance[self._heated] = self._variance(flattened)
        else:
            phase = phase + self._harmonic(plane * np.exp(-1j * phase))
        inside = np.where(self._heated, np.abs(plane) * np.exp(1j * phase), 0.0)
        return inside[None].astype(np.complex64), variance, self._noise(flattened)

    def _noise(self, flattened: ComplexArray) -> float:
        used = flattened[np.abs(flattened) > _signal(flattened)]
        freedom = len(used) - len(self._terms)
        if freedom < 1:
            return math.nan
        power = np.square(np.abs(used) * np.angle(used)).sum(dtype=np.float64)
        return coverage_factor(freedom) * math.sqrt(float(power) / freedom)

    def _polynomial(self, plane: ComplexArray) -> FloatArray:
        """Fit the ring's phase: its steps from pixel to pixel first, then what these leave of it.

        Over the ring it may turn often, as long as the steps stay below half a turn and what they leave does.
        """
        plane = plane.astype(np.complex128)
        ring = plane[self._ring]
        ends = [(plane[:, :-1][self._both_x], plane[:, 1:][self._both_x])]
        ends.append((plane[:-1][self._both_y], plane[1:][self._both_y]))
        before, after = (np.concatenate(parts) for parts in zip(*ends, strict=True))
        power = np.abs(before) ** 2, np.abs(after) ** 2
        # The step's variance is the sum of those of its ends.
        root = np.sqrt(power[0] * power[1] / np.maximum(power[0] + power[1], _LEAST_POWER))
        coefficients = np.zeros(len(self._terms))
        coefficients[1:] = np.linalg.lstsq(
            self._rises * root[:, None], np.angle(after * before.conj()) * root, rcond=None
        )[0]
        coefficients[0] = np.angle(np.sum(np.abs(ring) * ring * np.exp(-1j * (self._design @ coefficients))))
        root = np.abs(ring)
        for _ in range(_STEPS):
            residual = np.angle(ring * np.exp(-1j * (self._design @ coefficients)))
            coefficients += np.linalg.lstsq(self._design * root[:, None], residual * root, rcond=None)[0]
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
        # The border is noise as well: its complex neighbours outside of the region steady it. They lie further out,
        # so that a slope would shift it: the polynomial has taken out the most.
        outer = np.where(self._heated, 0.0, flattened)
        smooth = uniform_filter(outer.real, 3) + 1j * uniform_filter(outer.imag, 3)
        # Where the region reaches over the skin the polynomial stands: the phase of air would be carried inside.
        seen = np.abs(flattened[border]) > _signal(flattened[self._ring])
        values = np.where(seen, np.angle(smooth[border]), 0.0)
        field = np.zeros(flattened.shape)
        field[border] = values
        field[self._heated] = factors.solve(link @ values)
        return np.clip(field, -math.pi, math.pi)
