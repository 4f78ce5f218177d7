"""Motion: whether the body still lies where it lay in the baseline."""

from dataclasses import dataclass

import numpy as np

from sinotherm.core.arrays import FloatArray

__all__ = ["Motion", "MotionWatch"]

BLOCK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """What a frame's magnitude says about motion.

    Attributes
    ----------
    correlation
        Correlation of its magnitude with the baseline's, both averaged over blocks, so that noise tells little.
    shift_px
        Shift (x, y) of the edges, pixels; a lower bound beyond one pixel.
    """

    correlation: float
    shift_px: tuple[float, float]

    @property
    def distance_px(self) -> float:
        """Length of the shift, pixels."""
        return float(np.hypot(*self.shift_px))


class MotionWatch:
    """Compares the magnitude of each frame of a slice with the baseline's.

    The shift is the least-squares solution of m_t − m_0 = −d·∇m_0 over the steepest twentieth of the
    baseline's voxels: the edges. Lucas and Kanade 1981 (IJCAI).

    Parameters
    ----------
    magnitude
        float (y, x): magnitude of the baseline.
    """

    def __init__(self, magnitude: FloatArray) -> None:
        self._reference = magnitude.astype(np.float64)
        self._small = self._blocks(self._reference)
        dy, dx = np.gradient(self._reference, axis=0), np.gradient(self._reference, axis=1)
        steepness = np.hypot(dx, dy)
        self._edges = np.nonzero(steepness >= np.percentile(steepness, 95.0))
        self._slopes = np.stack([dx[self._edges], dy[self._edges]], axis=1)
        self._solve = np.linalg.pinv(self._slopes)

    @staticmethod
    def _blocks(values: FloatArray) -> FloatArray:
        ny, nx = (n - n % BLOCK for n in values.shape)
        means = values[:ny, :nx].reshape(ny // BLOCK, BLOCK, nx // BLOCK, BLOCK).mean(axis=(1, 3), dtype=np.float64)
        return means - means.mean()

    def compare(self, magnitude: FloatArray) -> Motion:
        """Return the motion of a frame of this magnitude, float (y, x)."""
        small = self._blocks(magnitude)
        norm = np.sqrt(np.vdot(small, small) * np.vdot(self._small, self._small))
        correlation = float(np.vdot(small, self._small) / norm) if norm > 0.0 else 0.0
        now = magnitude[self._edges]
        before = self._reference[self._edges]
        # One factor for a change of the signal as a whole, which is not motion.
        power = float(np.vdot(magnitude, magnitude))
        gain = np.vdot(self._reference, magnitude) / power if power > 0.0 else 0.0
        x, y = self._solve @ (before - gain * now)
        return Motion(correlation=correlation, shift_px=(float(x), float(y)))
