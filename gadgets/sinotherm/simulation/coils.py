"""Receiver coils round the body: sensitivities by the law of Biot and Savart, and their correlated noise."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Complex64, Complex128, Float64

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import SettingsError

__all__ = ["CoilArray", "coil_array"]

MAX_COILS: Final = 64
_SEGMENTS: Final = 32
_FORMER: Final = 1.25
_WIRE_M: Final = 0.005
_ROW_M: Final = 0.05
_SHARED_NOISE: Final = 0.5
_FIRST_ROW: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoilArray:
    """Coils of a scan.

    Attributes
    ----------
    maps
        complex64 (coil, y, x): sensitivity; the root sum of squares has its median in the body at 1.
    noise_covariance
        complex128 (coil, coil): E[n nᴴ] of the noise up to the scan's noise level; a mean diagonal of 1.
    """

    maps: Complex64[np.ndarray, "coil y x"]
    noise_covariance: Complex128[np.ndarray, "coil coil"]

    def optimal_signal(self) -> Float64[np.ndarray, "y x"]:
        """Return what unit magnetisation gives in the SENSE combination of whitened coils, sqrt(cᴴ Ψ⁻¹ c).

        The noise of that combination has the level of the scan in each voxel. Roemer et al. 1990,
        10.1002/mrm.1910160203.
        """
        white = np.linalg.solve(np.linalg.cholesky(self.noise_covariance), self.maps.reshape(len(self.maps), -1))
        return np.sqrt(np.sum(np.abs(white) ** 2, axis=0)).reshape(self.maps.shape[1:])


def coil_array(
    n_coils: int,
    *,
    body: Bool[np.ndarray, "y x"],
    fov_m: float,
    random: np.random.Generator,
) -> CoilArray:
    """Return coils on an elliptical former round the body.

    Each coil is a circular loop that faces the body; its sensitivity is the transverse field
    B1⁻ = Bx − i·By of a unit current (reciprocity: Hoult 2000, 10.1002/1099-0534(2000)12:4<173::AID-CMR1>3.0.CO;2-Q),
    summed over straight segments of wire. Above 16 coils there are two rows along z. Half of the noise
    comes from the body and is shared by coils that see the same tissue (Roemer et al. 1990,
    10.1002/mrm.1910160203), half from each coil.

    Parameters
    ----------
    n_coils
        1 to 64; a single coil is a body coil of uniform sensitivity.
    body
        bool (y, x), where the coils must receive.
    fov_m
        Field of view, m.
    random
        Gains, phases and small displacements.

    Raises
    ------
    SettingsError
        The number of coils is out of range.
    """
    if not 1 <= n_coils <= MAX_COILS:
        raise SettingsError(f"{n_coils} coils: there must be 1 to {MAX_COILS}.")
    matrix = body.shape[0]
    if n_coils == 1:
        return CoilArray(maps=np.ones((1, matrix, matrix), np.complex64), noise_covariance=np.eye(1, dtype=complex))
    axis = (np.arange(matrix) - matrix // 2) * (fov_m / matrix)
    inside = np.flatnonzero(body.any(axis=0)), np.flatnonzero(body.any(axis=1))
    centre = [axis[index].mean() for index in inside]
    half = [_FORMER * 0.5 * np.ptp(axis[index]) + _WIRE_M for index in inside]
    rows = 1 if n_coils <= _FIRST_ROW else 2
    in_row = math.ceil(n_coils / rows)
    maps = np.empty((n_coils, matrix, matrix), dtype=np.complex128)
    for coil in range(n_coils):
        row, place = divmod(coil, in_row)
        angle = 2.0 * math.pi * (place + 0.5 * row + random.uniform(-0.1, 0.1)) / in_row
        position = np.array(
            [
                centre[0] + half[0] * math.cos(angle),
                centre[1] + half[1] * math.sin(angle),
                (2 * row - 1) * _ROW_M * (rows - 1),
            ]
        )
        # The normal of the ellipse, so that the loop lies flat on the former.
        normal = np.array([math.cos(angle) / half[0], math.sin(angle) / half[1], 0.0])
        # Neighbours overlap by a quarter, as in arrays that are decoupled by overlap.
        radius = 0.6 * 2.0 * math.pi * math.sqrt(half[0] * half[1]) / max(in_row, 6)
        maps[coil] = _loop_field(axis, position, normal / np.linalg.norm(normal), radius)
        maps[coil] *= np.exp(2j * math.pi * random.uniform()) * random.uniform(0.8, 1.25)
    maps /= np.median(np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))[body])
    seen = maps[:, body]
    shared = seen @ seen.conj().T
    strength = np.sqrt(np.diag(shared).real)
    correlation = shared / np.outer(strength, strength)
    gains = random.uniform(0.8, 1.25, n_coils)
    covariance = np.outer(gains, gains) * (_SHARED_NOISE * correlation + (1.0 - _SHARED_NOISE) * np.eye(n_coils))
    return CoilArray(
        maps=maps.astype(np.complex64),
        noise_covariance=covariance * n_coils / np.trace(covariance).real,
    )


def _loop_field(axis: FloatArray, position: FloatArray, normal: FloatArray, radius: float) -> np.ndarray:
    """Return Bx − i·By in the plane z = 0 of a unit current in a circular loop, complex128 (y, x), in μ0/4π."""
    first = np.cross(normal, (0.0, 0.0, 1.0))
    second = np.cross(normal, first)
    turn = 2.0 * np.pi * (np.arange(_SEGMENTS) + 0.5) / _SEGMENTS
    wire = position + radius * (np.outer(np.cos(turn), first) + np.outer(np.sin(turn), second))
    pieces = (2.0 * np.pi * radius / _SEGMENTS) * (np.outer(-np.sin(turn), first) + np.outer(np.cos(turn), second))
    x, y = axis[None, :], axis[:, None]
    field = np.zeros((len(axis), len(axis)), dtype=np.complex128)
    for point, piece in zip(wire, pieces, strict=True):
        dx, dy, dz = x - point[0], y - point[1], -point[2]
        # The wire has a thickness: no singularity where it crosses the image.
        cube = (dx**2 + dy**2 + dz**2 + _WIRE_M**2) ** -1.5
        field += (piece[1] * dz - piece[2] * dy) * cube - 1j * (piece[2] * dx - piece[0] * dz) * cube
    return field
