"""Single frames of 30 golden-angle spokes of a real cardiac perfusion scan: gridding, CG-SENSE, TV, TCR and PDUNet.

    python benchmarks/physics_cardiac.py DATA docs/images/cardiac_30_spokes.jpg

DATA is the folder `radial_cardiac_perfusion_goldenangle` (MIT licence, see its SOURCE.md). There is no
fully sampled reference of a frame: the picture shows the streaks, and the script prints how much signal
lies in the air beside the body, where streaks are all there is.
"""

import sys
from pathlib import Path

import numpy as np

from sinotherm.core.scan import Frame
from sinotherm.frames.header import scan_header
from sinotherm.networks.inference import RadialReconstructor
from sinotherm.operators.coils import adaptive_maps, combine
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import cg_sense, grid_size
from sinotherm.reconstruction.tcr import tcr
from sinotherm.reconstruction.total_variation import tv_sense
from sinotherm.stages import delay, frames, spokes
from sinotherm.wire.file import MrdFile

SHOWN = (1, 3, 5)


def read(path: Path) -> tuple[list[Frame], int]:
    with MrdFile(path) as file:
        scan = scan_header(file.header_xml)
        items = spokes.stage(file.readouts(), scan, spokes.Settings())
        items = delay.stage(items, scan, delay.Settings())
        items = frames.stage(items, scan, frames.Settings(spokes=30))
        return [item for item in items if isinstance(item, Frame)], scan.recon.matrix[0]


def gridded(data, angles, sampling, shifts, size, window=None):
    weights = radial_weights(angles, sampling, centre="exact", shifts=shifts)
    weights = weights if window is None else weights * window
    plan = FinufftPlan((size, size), len(data)).set_points(radial_points(angles, sampling, shifts).reshape(-1, 2))
    return plan.adjoint((data * weights.astype(np.float32)).reshape(len(data), -1))


def main(folder: Path, picture: Path) -> None:
    import matplotlib.pyplot as plt

    scans, matrix = read(folder / "radial_perfusion_7x30spokes_ismrmrd.h5")
    sampling = scans[0].sampling
    data = np.stack([frame.data() for frame in scans])
    angles = np.stack([frame.angles() for frame in scans])
    shifts = np.stack([frame.shifts() for frame in scans])
    print("gradient delay", scans[0].meta["gradient_delay_samples"], "samples")

    every = (data.swapaxes(0, 1).reshape(3, 210, -1), angles.ravel(), sampling, shifts.reshape(-1, 2))
    side = grid_size(every[0], every[1], sampling, matrix)
    dense = 210 / (np.pi * side)
    window = np.cos(np.pi / 2 * np.minimum(np.abs(sampling.positions) / dense, 1.0)) ** 2
    maps = adaptive_maps(gridded(*every, side, window))
    mean = combine(gridded(*every, side), maps)

    series = list(zip(data, angles, shifts, strict=True))
    rows = {
        "gridding (FBP)": [combine(gridded(d, a, sampling, s, side), maps) for d, a, s in series],
        "CG-SENSE": [cg_sense(d, a, sampling, maps, shifts=s).image for d, a, s in series],
        "SENSE + TV": [
            tv_sense(d, a, sampling, maps, shifts=s, strength=1e-3, iterations=20).image for d, a, s in series
        ],
        "TCR (space and time)": list(
            tcr(data, angles, sampling, maps, shifts=shifts, space=3e-4, time=2e-3, iterations=30)
        ),
    }
    network = RadialReconstructor("pdunet-radial", device="cpu")
    made = [network.reconstruct(np.ascontiguousarray(d), sampling, a, maps, shifts=s) for d, a, s in series]
    rows["PDUNet"] = [image for image, _ in made]
    for number, ((d, a, s), (image, operator)) in enumerate(zip(series, made, strict=True)):
        verdict = network.check(d, sampling, a, maps, image, operator, fov_m=0.3, frame=number, shifts=s)
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in verdict.numbers.items())
        print(f"frame {number}: guard {verdict.reason or 'lets it pass'} ({numbers})")
    crop = slice((side - matrix) // 2, (side + matrix) // 2)
    whole = np.abs(mean)[crop, crop]
    quiet = whole < np.percentile(whole, 12)
    figure, axes = plt.subplots(len(SHOWN), 6, figsize=(15.0, 7.6))
    for column, (name, found) in enumerate(rows.items()):
        images = np.abs(np.stack(found))[:, crop, crop]
        level = np.percentile(images, 99.5)
        streaks = np.mean([np.sqrt(np.mean(image[quiet] ** 2)) for image in images]) / level
        print(f"{name:22s} signal where the mean image is darkest: {100 * streaks:.1f} % of the brightest tissue")
        for row, number in enumerate(SHOWN):
            axes[row, column].imshow(images[number], cmap="gray", vmin=0, vmax=level)
        axes[0, column].set_title(name, fontsize=10)
    for row, number in enumerate(SHOWN):
        axes[row, 5].imshow(whole, cmap="gray", vmin=0, vmax=np.percentile(whole, 99.5))
        axes[row, 0].set_ylabel(f"frame {number}", fontsize=10)
    axes[0, 5].set_title("all 210 spokes (temporal mean)", fontsize=10)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout(pad=0.4)
    figure.savefig(picture, dpi=85, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
