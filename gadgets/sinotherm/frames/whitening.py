"""Noise whitening: after it the noise of every coil is independent, with SD 1 in its real part."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Final, Self

import ismrmrd
import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray
from sinotherm.core.scan import Estimates
from sinotherm.errors import BaselineError, SpokeError
from sinotherm.wire.messages import Readout

__all__ = ["NoiseScan", "WhitenedReadout", "is_noise"]

logger = logging.getLogger(__name__)

_NOISE: Final = 1 << (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1)
_SMALLEST_EIGENVALUE: Final = 1e-6
_WANTED_SAMPLES: Final = 50
_SAME_NOISE: Final = 1.2
"""Factor between the noise of two scans beyond which what holds for the one is wrong for the other."""


@dataclass(slots=True, kw_only=True, eq=False)
class WhitenedReadout(Readout):
    """A readout whose noise has SD 1 in the real part of every coil, and the noise scan that it was whitened by."""

    estimates: Estimates = field(default_factory=dict)


def is_noise(header: Any) -> bool:
    """Return whether a readout (``ismrmrd.AcquisitionHeader``) is a noise measurement."""
    return bool(header.flags & _NOISE)


class NoiseScan:
    """Covariance of the coils' noise over all noise readouts."""

    def __init__(self) -> None:
        self._sum: ComplexArray | None = None
        self._dwell_us = 0.0
        self.n_samples = 0

    @classmethod
    def of(cls, products: ComplexArray, readout: FloatArray) -> Self:
        """Return the noise scan that had these `estimates`."""
        scan = cls()
        scan._sum, scan._dwell_us, scan.n_samples = products, float(readout[0]), int(readout[1])
        return scan

    @property
    def estimates(self) -> Estimates:
        """Sum of the coils' products, complex128 (coil, coil), sample time, µs, and samples; empty without any."""
        if self._sum is None:
            return {}
        return {
            "noise_products": self._sum,
            "noise_readout": np.array([self._dwell_us, self.n_samples], dtype=np.float64),
        }

    def check_against(self, other: "NoiseScan") -> None:
        """Refuse a noise scan of which this one, measured now, says that it is of another receiver.

        Raises
        ------
        BaselineError
            Another number of coils, or in a coil more than 1.2 times the noise, or less by that.
        """
        if self.n_coils != other.n_coils:
            raise BaselineError(
                f"the stored baseline was taken with {other.n_coils} coils, this scan has {self.n_coils}: "
                "take a new baseline."
            )
        if self._sum is None or other._sum is None or self.n_samples < _WANTED_SAMPLES * self.n_coils:
            return
        here, there = np.diag(self._sum).real / self.n_samples, np.diag(other._sum).real / other.n_samples
        ratios = np.sqrt(np.maximum(here, 1e-300) / np.maximum(there, 1e-300) / self._bandwidth_ratio(other._dwell_us))
        coil = int(np.argmax(np.abs(np.log(ratios))))
        if not 1.0 / _SAME_NOISE < ratios[coil] < _SAME_NOISE:
            raise BaselineError(
                f"coil {coil} has {ratios[coil]:.2g} times the noise that it had when the stored baseline was taken: "
                "its uncertainty would be wrong; take a new baseline."
            )

    @property
    def n_coils(self) -> int:
        """Channels of the noise readouts, 0 before the first."""
        return 0 if self._sum is None else len(self._sum)

    def add(self, readout: Readout) -> None:
        """Add a noise readout.

        Raises
        ------
        SpokeError
            Its channels or its sample time differ from the first noise readout's, or it holds NaN.
        """
        noise = readout.data.astype(np.complex128)
        counter, dwell = readout.header.scan_counter, float(readout.header.sample_time_us)
        if self._sum is None:
            self._sum = np.zeros((len(noise), len(noise)), dtype=np.complex128)
            self._dwell_us = dwell
        if len(noise) != len(self._sum):
            raise SpokeError(
                f"noise readout {counter} has {len(noise)} channels, the first one has {len(self._sum)}: "
                "all noise readouts need the coils of the scan, or set whitening.mode = off."
            )
        if not math.isclose(dwell, self._dwell_us, rel_tol=1e-3):
            raise SpokeError(
                f"noise readout {counter} has a sample time of {dwell:g} us, the first one {self._dwell_us:g} us: "
                "one bandwidth is needed, or set whitening.mode = off."
            )
        if not np.all(np.isfinite(noise)):
            raise SpokeError(
                f"noise readout {counter} holds values that are not finite: "
                "repeat the noise scan, or set whitening.mode = off."
            )
        self._sum = self._sum + noise @ noise.conj().T
        self.n_samples += noise.shape[1]

    def matrix(self, *, dwell_us: float, relative_bandwidth: float = 1.0) -> ComplexArray:
        """Return the matrix that whitens readouts of this sample time, complex64 (coil, coil).

        It is sqrt(2·(t/t_noise)·b)·L⁻¹ with the covariance L·Lᴴ of the noise scan: a readout with
        the sample time t has t_noise/t of its variance, the receiver's filter let the share b of the
        bandwidth through to the noise scan, and the factor 2 gives the real part alone the SD 1.
        Gadgetron's NoiseAdjustGadget; Roemer et al. 1990, 10.1002/mrm.1910160203; Hansen and Kellman
        2015, 10.1002/jmri.24687.

        Parameters
        ----------
        dwell_us
            Sample time of the readouts, µs; 0 where it is not stated: then bandwidths are taken as equal.
        relative_bandwidth
            b.

        Raises
        ------
        SpokeError
            There are too few noise samples for this number of coils, or no noise in them.
        """
        if self._sum is None or self.n_samples < 2 * self.n_coils:
            raise SpokeError(
                f"{self.n_samples} noise samples for {self.n_coils} coils: at least {2 * self.n_coils} are needed; "
                "repeat the noise scan, or set whitening.mode = off."
            )
        if self.n_samples < _WANTED_SAMPLES * self.n_coils:
            logger.warning(
                "%d noise samples for %d coils: the noise level is known to about %.0f %%",
                *(self.n_samples, self.n_coils, 100.0 * math.sqrt(self.n_coils / self.n_samples)),
            )
        lower, singular = self._factor(self._sum)
        if singular:
            logger.warning("the noise covariance is singular (a dead or doubled coil): its smallest values are raised")
        scale = math.sqrt(2.0 * self._bandwidth_ratio(dwell_us) * relative_bandwidth)
        return np.ascontiguousarray(scale * np.linalg.inv(lower), dtype=np.complex64)

    def mixing(self, n_coils: int) -> ComplexArray:
        """Return what makes whitened data those of the coils again, up to a factor, complex128 (coil, coil).

        It is L, each row divided by the SD of its coil's noise, which so has one level in all coils; the
        identity where there is no noise scan.
        """
        if self._sum is None:
            return np.eye(n_coils, dtype=np.complex128)
        lower, _ = self._factor(self._sum)
        return lower / np.linalg.norm(lower, axis=1, keepdims=True)

    def _factor(self, products: ComplexArray) -> tuple[ComplexArray, bool]:
        """Return L, complex128 (coil, coil), and whether eigenvalues of the covariance had to be raised for it."""
        covariance = products / self.n_samples
        values, vectors = np.linalg.eigh(covariance)
        if not values[-1] > 0.0:
            raise SpokeError("the noise scan holds zeros only: repeat it, or set whitening.mode = off.")
        floor = _SMALLEST_EIGENVALUE * values[-1]
        singular = bool(values[0] < floor)
        if singular:
            covariance = (vectors * np.maximum(values, floor)) @ vectors.conj().T
        return np.linalg.cholesky(covariance), singular

    def _bandwidth_ratio(self, dwell_us: float) -> float:
        """Return the variance of this scan's noise relative to that at another sample time; 0: not stated."""
        return dwell_us / self._dwell_us if dwell_us > 0.0 and self._dwell_us > 0.0 else 1.0

    def correlation(self) -> ComplexArray:
        """Return the noise correlation of the coils, complex128 (coil, coil), ones on the diagonal."""
        if self._sum is None:
            return np.zeros((0, 0), dtype=np.complex128)
        sd = np.sqrt(np.maximum(np.diag(self._sum).real, np.finfo(np.float64).tiny))
        return self._sum / np.outer(sd, sd)
