"""Statistics of regions of interest, as hyperthermia reports them."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from sinotherm.core.arrays import FloatArray, MaskArray, ValidityArray
from sinotherm.core.scan import MetaValue, NoReading
from sinotherm.thermometry.dose import DoseIntegrator

__all__ = ["RegionStatistics"]

_LOST_SHARE: Final = 0.05
"""Half of the hot tenth for which T10 stands: what is lost beyond it may be what matters."""


class RegionStatistics:
    """Statistics of one region, frame after frame.

    T90 is the temperature that 90 % of the region reaches (its 10th percentile), T50 the median, T10
    the 90th percentile.

    Parameters
    ----------
    name
        Name of the region.
    mask
        bool (slice, y, x).
    voxel_ml
        Volume of a voxel, mL; NaN where the slice thickness is unknown.
    """

    def __init__(self, name: str, mask: MaskArray, voxel_ml: float) -> None:
        self.name = name
        self.mask = mask
        self.voxel_ml = voxel_ml
        self._dose: DoseIntegrator | None = None

    @property
    def has_dose(self) -> bool:
        """Whether the dose of its curves is being integrated."""
        return self._dose is not None

    def begin_dose(self, voxels: DoseIntegrator) -> None:
        """Start the dose of the T50 and T90 curves where those of its voxels are.

        That is body temperature at first. A region that is drawn later goes on from its voxels' last readings: the
        median and the 10th percentile of these and of their doses.
        """
        inside = self.mask & voxels.read if voxels.read[self.mask].any() else self.mask
        temperatures, doses = (np.percentile(of[inside], (50.0, 10.0)) for of in (voxels.last_degc, voxels.minutes))
        self._dose = DoseIntegrator(
            temperatures,
            float(voxels.last_s[inside].max()),
            max_gap_frames=voxels.max_gap_frames,
            minutes=doses,
            lower_bound=bool(voxels.lower_bound[self.mask].any()),
        )

    def shift_dose(self, by_degc: float) -> None:
        """Carry the dose of its curves over to temperatures that all were this much higher, °C."""
        if self._dose is not None:
            self._dose.shift(by_degc)

    def row(
        self,
        values: FloatArray,
        sigma: FloatArray,
        lost: ValidityArray | None = None,
        *,
        absolute: bool,
        dose: FloatArray | None,
        time_s: float,
        longest_s: float = math.inf,
    ) -> Mapping[str, MetaValue]:
        """Return the statistics of a frame; figures without a valid voxel are left out.

        Parameters
        ----------
        values
            float32 (slice, y, x), °C: temperature if ``absolute``, else its change; NaN = no reading.
        sigma
            float32 (slice, y, x), °C: σ_T.
        lost
            uint16 (slice, y, x): bits of the voxels that should have a reading and have none; or ``None``. Where they
            are many, the row says why (``lost``), and the dose of the curves, which the hottest may be missing from,
            is a lower bound from then on.
        dose
            float (slice, y, x), min: CEM43 of every voxel, or ``None``.
        time_s, longest_s
            Time of the frame, s, and longest interval over which dose is added.
        """
        inside = values[self.mask]
        valid = np.isfinite(inside)
        found = inside[valid]
        row: dict[str, MetaValue] = {
            "region": self.name,
            "quantity": "temperature" if absolute else "temperature_change",
            "n": int(valid.sum()),
            "voxels": len(inside),
        }
        curve = np.full(2, math.nan)
        if len(found):
            t90, t50, t10 = (float(value) for value in np.percentile(found, (10.0, 50.0, 90.0)))
            curve = np.array([t50, t90])
            row |= {
                "min_degc": float(found.min()),
                "max_degc": float(found.max()),
                "mean_degc": float(found.mean(dtype=np.float64)),
                "sd_degc": float(found.std(dtype=np.float64)),
                "t10_degc": t10,
                "t50_degc": t50,
                "t90_degc": t90,
                "sigma_degc": float(np.median(sigma[self.mask][valid])),
            }
            if absolute:
                for limit in (41, 43):
                    above = int((found >= limit).sum())
                    row[f"voxels_above_{limit}"] = above
                    if math.isfinite(self.voxel_ml):
                        row[f"volume_above_{limit}_ml"] = above * self.voxel_ml
            gone = np.zeros(0, dtype=np.uint16) if lost is None else lost[self.mask & (lost != 0)]
            if len(gone) > _LOST_SHARE * (len(found) + len(gone)):
                counts = {bit: int(((gone & bit) != 0).sum()) for bit in NoReading}
                row["lost"] = ", ".join(
                    f"{count} {str(bit.name).lower().replace('_', ' ')}" for bit, count in counts.items() if count
                )
        if self._dose is not None:
            self._dose.lower_bound |= "lost" in row
            self._dose.update(curve, time_s, longest_s=longest_s)
            row["cem43_t50_min"], row["cem43_t90_min"] = (float(value) for value in self._dose.minutes)
            row["cem43_lower_bound"] = bool(self._dose.lower_bound.any())
        if dose is not None:
            doses = dose[self.mask]
            doses = doses[np.isfinite(doses)]
            if len(doses):
                row["cem43_median_min"] = float(np.median(doses))
                row["cem43_max_min"] = float(doses.max())
        return row
