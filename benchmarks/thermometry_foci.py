"""What a reference-guided network and gridding show of narrow foci: the error at their hottest voxels.

    python benchmarks/thermometry_foci.py DATA benchmarks/thermometry_foci.json

DATA: the image sets with their `splits.json`; one slice of one validation person of each. 40 spokes, at golden
angles for the network and the same in each frame for gridding, 8 coils, SNR 40, 30 baseline frames and 5 with a
Gaussian focus of 9 °C, at three places a person.
The truth is at the scan's point spread; its hottest voxels are those above nine tenths of its maximum.
"""

import logging
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sinotherm.core.record import figures_record, write_record
from sinotherm.evaluation.heated_scans import HeatedScan, heated_scan, series
from sinotherm.evaluation.images import magnitude_slices
from sinotherm.evaluation.thermal_methods import method_named, temperatures
from sinotherm.simulation.scan import STEPS_PER_FRAME

MATRIX, PEAK_DEGC, WIDTHS_PX, PLACES, BASELINE, HEATED = 256, 9.0, (6.0, 9.0), 3, 30, 5
METHODS = ("gridding", "pdunet")


@dataclass(frozen=True, kw_only=True, eq=False)
class Focus(HeatedScan):
    """A scan in which a Gaussian focus is there at once and stays."""

    width_px: float

    @cached_property
    def heating(self):
        """Temperature change of the body's pixels at the ends of the time steps, °C."""
        pixel = self.anatomy.fov_m / MATRIX
        rows, columns = np.nonzero(self.anatomy.body)
        x, y = (value / pixel + MATRIX // 2 for value in self.centre_m)
        focus = PEAK_DEGC * np.exp(-4 * np.log(2) * ((columns - x) ** 2 + (rows - y) ** 2) / self.width_px**2)
        steps = np.arange(STEPS_PER_FRAME * (BASELINE + HEATED) + 1)
        return np.outer(steps > STEPS_PER_FRAME * BASELINE, focus).astype(np.float32)


def error_at_the_hottest(image, width_px, seed, method):
    """Return mean error (°C) over the hottest voxels and the frames, and the truth's maximum."""
    drawn = heated_scan(
        image,
        heating="focal",
        peak_degc=46.0,
        spokes=40,
        seed=seed,
        schedule=method.schedule,
        matrix=MATRIX,
        baseline_frames=BASELINE,
        heated_frames=HEATED,
    )
    scan = Focus(protocol=drawn.protocol, image=drawn.image, centre_m=drawn.centre_m, width_px=width_px)
    found = series(scan)
    # The first heated frame has the focus from its second step on.
    truth, shown = found.truth_degc[BASELINE + 1 :], temperatures(found, method).change[1:]
    mean = truth.mean(axis=0)
    hottest = (mean > 0.9 * mean[found.tumour].max()) & found.tumour
    return float((shown - truth)[:, hottest].mean()), float(mean[hottest].max())


def main(data: Path, record: Path) -> None:
    logging.disable(logging.WARNING)
    found, methods = [], [method_named(name) for name in METHODS]
    slices = magnitude_slices(data, split="val", per_person=1, size=MATRIX)
    for dataset in dict.fromkeys(one.dataset for one in slices):
        image = next(one.image for one in slices if one.dataset == dataset)
        for width in WIDTHS_PX:
            for method in methods:
                figures = [error_at_the_hottest(image, width, seed, method) for seed in range(PLACES)]
                errors, peaks = zip(*figures, strict=True)
                found.append(
                    {
                        "dataset": dataset,
                        "method": method.name,
                        "width_px": width,
                        "true_peak_degC": round(float(np.mean(peaks)), 2),
                        "error_at_the_hottest_degC": round(float(np.mean(errors)), 2),
                        "worst_error_degC": round(min(errors), 2),
                    }
                )
                print(found[-1], flush=True)
    write_record(record, figures_record(f"python {sys.argv[0]} DATA {record}", found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
