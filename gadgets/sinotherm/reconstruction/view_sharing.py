"""View sharing (KWIC): contrast from the frame's own spokes, detail from its neighbours' as well.

Song and Dougherty 2000, 10.1002/1522-2594(200012)44:6<825::AID-MRM2>3.0.CO;2-D. Near k = 0 a frame's own
spokes are dense enough; further out as many neighbouring frames join as the sampling theorem asks for.
"""

import math

import numpy as np
from jaxtyping import Complex64, Float64

from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError, SettingsError
from sinotherm.operators.density import readout_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points

__all__ = ["frames_shared", "view_sharing"]


def frames_shared(sampling: RadialSampling, n_spokes: int, matrix: int, most: int) -> np.ndarray:
    """Return how many frames share each sample, odd int64 (readout,).

    At radius κ the sampling theorem asks for π·κ·N spokes over 180°.
    """
    if most < 1 or most % 2 == 0:
        raise SettingsError(f"{most} frames shared at most: give an odd number of 1 or more.")
    needed = np.ceil(math.pi * np.abs(sampling.positions) * matrix / n_spokes)
    return np.minimum(2 * (np.maximum(needed, 1).astype(np.int64) // 2) + 1, most)


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
    data, angles, shifts
        Samples, rad, and cycles per pixel of every frame; neighbouring frames must have other angles
        (golden schedules), or sharing gains nothing.
    matrix
        N, pixels.
    most
        Frames that share the end of the spoke at most, odd. At the ends of the series the window
        is not centred.

    Raises
    ------
    DataError
        The frames of data and angles differ in number.
    """
    n_frames, n_coils, n_spokes = data.shape[:3]
    if angles.shape != (n_frames, n_spokes):
        raise DataError(f"angles of shape {angles.shape}: {(n_frames, n_spokes)} is needed.")
    most = min(most, n_frames if n_frames % 2 else n_frames - 1)
    shared = frames_shared(sampling, n_spokes, matrix, most)
    per_radian = readout_weights(sampling, centre="exact")
    plan = FinufftPlan((matrix, matrix), n_coils)
    images = np.empty((n_frames, n_coils, matrix, matrix), np.complex64)
    for frame in range(n_frames):
        first = min(max(frame - most // 2, 0), n_frames - most)
        window = slice(first, first + most)
        distance = np.abs(np.arange(first, first + most) - frame)
        taken = _taken(distance, shared)
        weights = taken * per_radian * (math.pi / (n_spokes * taken.sum(axis=0)))
        offsets = None if shifts is None else shifts[window].reshape(-1, 2)
        points = radial_points(angles[window].reshape(-1), sampling, offsets).reshape(-1, 2)
        weighted = data[window] * weights[:, None, None, :].astype(np.float32)
        plan.set_points(points).adjoint(weighted.swapaxes(0, 1).reshape(n_coils, -1), out=images[frame])
    return images


def _taken(distance: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Return which frames of a window join at each sample, float64 (frame, readout): the nearest ones."""
    rank = np.argsort(np.argsort(distance, kind="stable"), kind="stable")
    return (rank[:, None] < shared[None, :]).astype(np.float64)
