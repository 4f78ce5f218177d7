"""Temporally constrained reconstruction (TCR) of a whole series, offline.

Adluru et al. 2007, Magn. Reson. Med. 57:1027; for temperature: Todd et al. 2009, Magn. Reson. Med.
62:406. It uses the frames before and after, and it flattens what changes fast: the dose of a heating
comes out too low (6 to 28 % in Todd et al.), so a dose from TCR images is a lower bound.
"""

import numpy as np
from jaxtyping import Complex64, Float64

from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError
from sinotherm.reconstruction.cg_sense import sample_weights
from sinotherm.reconstruction.sense_normal import SenseNormal
from sinotherm.reconstruction.total_variation import Strengths, minimise

__all__ = ["tcr"]


def tcr(
    data: Complex64[np.ndarray, "frame coil spoke readout"],
    angles: Float64[np.ndarray, "frame spoke"],
    sampling: RadialSampling,
    maps: Complex64[np.ndarray, "coil y x"],
    *,
    shifts: Float64[np.ndarray, "frame spoke 2"] | None = None,
    density: float = 0.5,
    space: float = 1e-4,
    time: float = 1e-3,
    iterations: int = 20,
) -> Complex64[np.ndarray, "frame y x"]:
    """Reconstruct all frames of a series together.

    Parameters
    ----------
    data, angles, shifts
        Samples, rad, and cycles per pixel of every frame.
    sampling
        Where the samples lie on every spoke.
    maps, density
        As in `sinotherm.reconstruction.cg_sense.cg_sense`.
    space, time
        Strengths λ_s and λ_t of `sinotherm.reconstruction.total_variation`.
    iterations
        Rounds of ADMM.

    Raises
    ------
    DataError
        The frames of data and angles differ in number, shapes do not fit, or samples or maps are not finite.
    SettingsError
        The density exponent is out of its bounds.
    """
    if len(data) != len(angles):
        raise DataError(f"{len(data)} frames of data and {len(angles)} of angles: they must be equal.")
    offsets = [None] * len(data) if shifts is None else list(shifts)
    normals = [
        SenseNormal(
            frame_angles,
            sampling,
            maps,
            shifts=frame_shifts,
            weights=sample_weights(frame_angles, sampling, density, frame_shifts),
        )
        for frame_angles, frame_shifts in zip(angles, offsets, strict=True)
    ]
    rights = [normal.right_hand_side(frame) for normal, frame in zip(normals, data, strict=True)]
    series, _ = minimise(normals, rights, Strengths(space=space, time=time), iterations=iterations)
    return series.numpy()
