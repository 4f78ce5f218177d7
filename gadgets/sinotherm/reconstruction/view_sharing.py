"""View sharing (KWIC): contrast from the frame's own spokes, detail from its neighbours' as well.

Song and Dougherty 2000, 10.1002/1522-2594(200012)44:6<825::AID-MRM2>3.0.CO;2-D. Near k = 0 a frame's own
spokes are dense enough; further out as many neighbouring frames join as the sampling theorem asks for.
"""

import math

import numpy as np
from jaxtyping import Complex64, Float64

from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError, SettingsError
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points

__all__ = ["frames_shared", "view_sharing"]


def frames_shared(radius: np.ndarray, n_spokes: int, matrix: int, most: int) -> np.ndarray:
    """Return how many frames share the samples at distances κ ≥ 0 from k = 0, cycles per pixel: odd int64, as radius.

    At radius κ the sampling theorem asks for π·κ·N spokes over 180°.

    Raises
    ------
    SettingsError
        ``most`` is even, or below 1.
    """
    _refuse_even(most)
    needed = np.ceil(math.pi * radius * matrix / n_spokes)
    return np.minimum(2 * (np.maximum(needed, 1).astype(np.int64) // 2) + 1, most)


def _refuse_even(most: int) -> None:
    if most < 1 or most % 2 == 0:
        raise SettingsError(f"{most} frames shared at most: give an odd number of 1 or more.")


def view_sharing(
    data: Complex64[np.ndarray, "frame coil spoke readout"],
    angles: Float64[np.ndarray, "frame spoke"],
    sampling: RadialSampling,
    matrix: int,
    *,
    most: int = 5,
    shifts: Float64[np.ndarray, "frame spoke 2"] | None = None,
) -> Complex64[np.ndarray, "frame coil y x"]:
    """Return the coil images of every frame in units of the object.

    Parameters
    ----------
    data, angles
        Samples and rad of every frame; neighbouring frames must have other angles (golden schedules), or
        sharing gains nothing.
    sampling
        Where the samples lie on every spoke.
    matrix
        N, pixels.
    most
        Frames that share the end of the spoke at most, odd. At the ends of the series the window
        is not centred.
    shifts
        Offsets of the spokes (gradient delay), cycles per pixel: rings and density weights follow the samples.

    Raises
    ------
    DataError
        The frames of data and angles differ in number.
    SettingsError
        ``most`` is even, or below 1.
    """
    # Of few frames an odd number is left, whatever was asked for.
    _refuse_even(most)
    n_frames, n_coils, n_spokes = data.shape[:3]
    if angles.shape != (n_frames, n_spokes):
        raise DataError(f"angles of shape {angles.shape}: {(n_frames, n_spokes)} is needed.")
    most = min(most, n_frames if n_frames % 2 else n_frames - 1)
    plan = FinufftPlan((matrix, matrix), n_coils)
    images = np.empty((n_frames, n_coils, matrix, matrix), np.complex64)
    for frame in range(n_frames):
        first = min(max(frame - most // 2, 0), n_frames - most)
        window = slice(first, first + most)
        nearest = np.argsort(np.abs(np.arange(first, first + most) - frame), kind="stable")
        offsets = None if shifts is None else shifts[window]
        points = radial_points(angles[window], sampling, offsets)
        shared = frames_shared(np.hypot(points[..., 0], points[..., 1]), n_spokes, matrix, most)
        weights = _weights(nearest, shared, angles[window], sampling, offsets)
        weighted = data[window] * weights[:, None].astype(np.float32)
        plan.set_points(points.reshape(-1, 2)).adjoint(weighted.swapaxes(0, 1).reshape(n_coils, -1), out=images[frame])
    return images


def _weights(
    nearest: np.ndarray,
    shared: np.ndarray,
    angles: Float64[np.ndarray, "frame spoke"],
    sampling: RadialSampling,
    shifts: Float64[np.ndarray, "frame spoke 2"] | None,
) -> Float64[np.ndarray, "frame spoke readout"]:
    """Return the density weights of a window: in each ring those of the frames that share it, the nearest ones."""
    weights = np.zeros(shared.shape)
    for n_frames in np.unique(shared):
        taken = nearest[:n_frames]
        offsets = None if shifts is None else shifts[taken].reshape(-1, 2)
        found = radial_weights(angles[taken].reshape(-1), sampling, centre="exact", shifts=offsets)
        weights[taken] = np.where(shared[taken] == n_frames, found.reshape(shared[taken].shape), weights[taken])
    return weights
