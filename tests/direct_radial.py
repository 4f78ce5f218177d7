"""Radial scans by formula, independent of every operator of the package: analytic ellipses and smooth coils."""

import numpy as np
from scipy.special import j1

from sinotherm.core.geometry import RadialSampling, spoke_angles

# (column, row, semi-axis, semi-axis, tilt in rad, intensity), lengths as a fraction of the matrix.
ELLIPSES = (
    (0.0, 0.0, 0.40, 0.32, 0.3, 1.0),
    (0.1, -0.08, 0.10, 0.07, -0.5, 0.6),
    (-0.15, 0.1, 0.06, 0.12, 0.9, -0.5),
    (0.02, 0.18, 0.03, 0.03, 0.0, 0.8),
)


def ellipse_transform(kx, ky, n):
    """Continuous Fourier transform of the ellipses, k in cycles per pixel."""
    total = np.zeros(np.broadcast(kx, ky).shape, dtype=np.complex128)
    for x, y, a, b, tilt, value in ELLIPSES:
        u = n * a * (kx * np.cos(tilt) + ky * np.sin(tilt))
        v = n * b * (-kx * np.sin(tilt) + ky * np.cos(tilt))
        radius = np.maximum(np.hypot(u, v), 1e-9)
        total += value * n * n * a * b * j1(2 * np.pi * radius) / radius * np.exp(-2j * np.pi * n * (kx * x + ky * y))
    return total


def ellipse_image(n, matrix=None):
    """The ellipses on pixel centres, float64 (matrix, matrix), n//2 in the middle."""
    matrix = n if matrix is None else matrix
    row, column = np.mgrid[:matrix, :matrix] - matrix // 2
    image = np.zeros((matrix, matrix))
    for x, y, a, b, tilt, value in ELLIPSES:
        column_0, row_0 = column - n * x, row - n * y
        u = (column_0 * np.cos(tilt) + row_0 * np.sin(tilt)) / (n * a)
        v = (-column_0 * np.sin(tilt) + row_0 * np.cos(tilt)) / (n * b)
        image += value * (u * u + v * v < 1)
    return image


def coil_modes(n_coils, n):
    """Coil sensitivities as sums of plane waves: list of (amplitude, fx, fy) per coil, f in cycles per pixel."""
    if n_coils == 1:
        return [[(1.0, 0.0, 0.0)]]
    coils = []
    for coil in range(n_coils):
        angle = 2 * np.pi * coil / n_coils
        fx, fy = 0.35 / n * np.cos(angle), 0.35 / n * np.sin(angle)
        phase = np.exp(1j * angle)
        # 1 + cosine towards the coil's side, with a phase that differs between coils.
        shift = np.exp(-2j * np.pi * 0.5 * 0.35)
        coils.append([(phase, 0.0, 0.0), (0.45 * phase * shift, fx, fy), (0.45 * phase / shift, -fx, -fy)])
    return coils


def coil_maps(n_coils, n, matrix=None):
    """The same on pixels, complex128 (coil, row, column); root sum of squares is not 1."""
    matrix = n if matrix is None else matrix
    row, column = np.mgrid[:matrix, :matrix] - matrix // 2
    return np.stack(
        [
            sum(amplitude * np.exp(2j * np.pi * (fx * column + fy * row)) for amplitude, fx, fy in modes)
            for modes in coil_modes(n_coils, n)
        ]
    )


def ellipse_scan(n, angles, *, n_coils=1, delay=(0.0, 0.0, 0.0), noise=0.0, seed=0, n_readout=None, centre=None):
    """Return data, complex64 (coil, spoke, readout), and sampling of a twofold oversampled scan.

    ``delay`` = (x, y, xy) in samples, positive = late: sample i lies at κ·n − spacing·D·n.
    """
    n_readout = 2 * n if n_readout is None else n_readout
    sampling = RadialSampling(
        n_readout=n_readout, spacing=1 / (2 * n), centre=n_readout / 2 if centre is None else centre
    )
    x, y, xy = delay
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    kappa = (np.arange(n_readout) - sampling.centre)[None] / (2 * n)
    kx = kappa * cosine - (x * cosine + xy * sine) / (2 * n)
    ky = kappa * sine - (xy * cosine + y * sine) / (2 * n)
    data = np.stack(
        [sum(a * ellipse_transform(kx - fx, ky - fy, n) for a, fx, fy in modes) for modes in coil_modes(n_coils, n)]
    )
    rng = np.random.default_rng(seed)
    data = data + noise * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape))
    return data.astype(np.complex64), sampling


def noise_for_snr(n, snr, n_coils):
    """SD of the real part per sample at which 402 spokes (plain ramp, SENSE combination) have this SNR."""
    kappa = (np.arange(2 * n) - n) / (2 * n)
    weights = 1 / (2 * n) * np.abs(kappa) * np.pi / 402
    rss = np.sqrt((np.abs(coil_maps(n_coils, n)) ** 2).sum(0))
    body = ellipse_image(n) > 0
    return np.median((ellipse_image(n) * rss)[body]) / (snr * np.sqrt(402 * (weights**2).sum()))


def unit_maps(n_coils, n, matrix=None):
    """The coils with a root sum of squares of 1, complex64 (coil, row, column)."""
    maps = coil_maps(n_coils, n, matrix)
    return (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)


def dense_sense(angles, sampling, maps, shifts=None):
    """The SENSE operator as a matrix (coil·spoke·readout, pixel), by the direct sum."""
    size = maps.shape[-1]
    row, column = (axis.ravel() - size // 2 for axis in np.mgrid[:size, :size])
    shifts = np.zeros((len(angles), 2)) if shifts is None else shifts
    kx = (sampling.positions * np.cos(angles)[:, None] + shifts[:, :1]).ravel()
    ky = (sampling.positions * np.sin(angles)[:, None] + shifts[:, 1:]).ravel()
    fourier = np.exp(-2j * np.pi * (kx[:, None] * column + ky[:, None] * row))
    return np.concatenate([fourier * coil.ravel() for coil in maps])


__all__ = [
    "coil_maps",
    "dense_sense",
    "ellipse_image",
    "ellipse_scan",
    "ellipse_transform",
    "noise_for_snr",
    "spoke_angles",
    "unit_maps",
]
