"""What delays that differ between x and y cost each reconstruction: python benchmarks/physics_delay.py IMAGES.

One brain, 256 pixels, 4 coils, SNR 20, spokes by the golden angle and uniform over 180°; the true delays are
corrected. Prints NRMSE and its ratio to that without delay.
"""

import itertools
import math
import sys
from pathlib import Path

import numpy as np

from sinotherm.core.geometry import AngleSchedule, RadialSampling, spoke_angles
from sinotherm.evaluation.images import magnitude_slices
from sinotherm.evaluation.metrics import body_mask, score
from sinotherm.evaluation.radial import coil_maps
from sinotherm.operators.coils import combine
from sinotherm.operators.density import radial_weights, readout_weights
from sinotherm.operators.nufft import ACCURATE, FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import cg_sense

N, COILS, SNR = 256, 4, 20.0
SAMPLING = RadialSampling(n_readout=2 * N, spacing=0.5 / N, centre=float(N))


def errors(image: np.ndarray, schedule: AngleSchedule, spokes: int, delays: tuple[float, float]) -> tuple[float, float]:
    """Return the NRMSE of gridding and of CG-SENSE."""
    maps = coil_maps(image, COILS, np.random.default_rng(0))
    angles = spoke_angles(schedule, spokes)
    shifts = -SAMPLING.spacing * np.array(delays) * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    points = radial_points(angles, SAMPLING, shifts).reshape(-1, 2)
    plan = FinufftPlan((N, N), COILS, dtype=np.complex128, accuracy=ACCURATE).set_points(points)
    data = plan.forward((image * maps).astype(np.complex128)).reshape(COILS, spokes, -1)
    random = np.random.default_rng(1)
    voxel = math.sqrt(402 * float(np.square(readout_weights(SAMPLING, centre="area") * (math.pi / 402)).sum()))
    level = float(np.median(image[body_mask(image)])) / (SNR * voxel)
    noise = random.standard_normal((2, *data.shape))
    data = (data + level * (noise[0] + 1j * noise[1])).astype(np.complex64)
    weights = radial_weights(angles, SAMPLING, centre="exact", shifts=shifts)
    fast = FinufftPlan((N, N), COILS).set_points(points)
    gridded = combine(fast.adjoint((data * weights).astype(np.complex64).reshape(COILS, -1)), maps)
    iterated = cg_sense(data, angles, SAMPLING, maps, shifts=shifts).image
    truth = image.astype(np.complex64)
    return score(gridded, truth).nrmse, score(iterated, truth).nrmse


if __name__ == "__main__":
    one = magnitude_slices(Path(sys.argv[1]), per_person=1)[0].image
    schedules: tuple[AngleSchedule, ...] = ("golden", "uniform180")
    for schedule, count in itertools.product(schedules, (34, 64, 201, 402)):
        without = errors(one, schedule, count, (0.0, 0.0))
        for late in ((3.0, 3.0), (3.0, 0.0), (3.0, -3.0)):
            found = errors(one, schedule, count, late)
            ratios = [a / b for a, b in zip(found, without, strict=True)]
            sys.stdout.write(
                f"{count} spokes, {schedule}, x {late[0]:g}, y {late[1]:g}: "
                f"gridding {found[0]:.4f} ({ratios[0]:.2f} x), "
                f"CG-SENSE {found[1]:.4f} ({ratios[1]:.2f} x)\n"
            )
