"""A pelvis 1.4 times the field of view: what the outside costs inside it, with and without an extended grid.

    python benchmarks/physics_large_body.py DATA/pelvis_prostatex/pelvis_prostatex.h5 docs/images/large_body.jpg

DATA: `pelvis_prostatex` (PROSTATEx, doi:10.7937/K9TCIA.2017.MURS5CL; see its SOURCE.md). The body is 358
pixels wide, the image 256; eight smooth coils and a smooth phase are simulated. NRMSE in the disc of
256 pixels, in the second column of the same scan with all signal outside that disc removed.
"""

import sys
from pathlib import Path

import h5py
import numpy as np

from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.evaluation.metrics import fit_scale
from sinotherm.operators.coils import combine
from sinotherm.operators.density import radial_weights
from sinotherm.operators.fourier import fft2, ifft2
from sinotherm.operators.nufft import ACCURATE, FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import cg_sense, grid_size

N, BODY, WIDE, COILS = 256, 358, 512, 8
SAMPLING = RadialSampling(n_readout=512, spacing=1 / 512, centre=256.0)
ROW, COLUMN = np.mgrid[:WIDE, :WIDE] - WIDE // 2


def cropped(image, side):
    first = image.shape[-1] // 2 - side // 2
    return image[..., first : first + side, first : first + side]


def scene(path):
    with h5py.File(path) as file:
        image = file["ProstateX-0000/4_t2tsetra"][9].astype(np.complex128)
    body = np.maximum(ifft2(cropped(fft2(image), BODY)).real, 0)
    whole = np.pad(body / np.percentile(body, 99.5), (WIDE - BODY) // 2)
    whole = whole * np.exp(1j * (0.5 * np.sin(COLUMN / 80) + 0.004 * ROW))
    turns = 2 * np.pi * np.arange(COILS)[:, None, None] / COILS
    distance = (COLUMN - 0.75 * BODY * np.cos(turns)) ** 2 + (ROW - 0.75 * BODY * np.sin(turns)) ** 2
    maps = np.exp(-distance / (2 * (0.55 * BODY) ** 2) + 1j * turns)
    return whole, (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)


def measured(image, maps, angles):
    plan = FinufftPlan((WIDE, WIDE), COILS, dtype=np.complex128, accuracy=ACCURATE)
    samples = plan.set_points(radial_points(angles, SAMPLING).reshape(-1, 2)).forward(maps * image)
    return samples.reshape(COILS, len(angles), -1).astype(np.complex64)


def fbp(data, angles, maps, radial_filter):
    weights = radial_weights(angles, SAMPLING, centre="exact", radial_filter=radial_filter).astype(np.float32)
    plan = FinufftPlan((N, N), COILS).set_points(radial_points(angles, SAMPLING).reshape(-1, 2))
    return combine(plan.adjoint((data * weights).reshape(COILS, -1)), cropped(maps, N))


def cg(data, angles, maps, side):
    return cropped(cg_sense(data, angles, SAMPLING, cropped(maps, side)).image, N)


def main(path: Path, picture: Path) -> None:
    import matplotlib.pyplot as plt

    whole, maps = scene(path)
    inside = np.hypot(ROW, COLUMN) < N / 2
    disc, true = cropped(inside, N), cropped(whole, N)

    def nrmse(image):
        found, reference = image[disc], true[disc]
        return np.linalg.norm(fit_scale(found, reference) * found - reference) / np.linalg.norm(reference)

    print("| spokes | reconstruction | NRMSE | outside removed | ratio |\n|---|---|---|---|---|")
    shown = {}
    for n_spokes in (402, 201, 64, 32):
        angles = spoke_angles("uniform180" if n_spokes == 402 else "golden", n_spokes)
        data = [measured(image, maps, angles) for image in (whole, whole * inside)]
        side = grid_size(data[0], angles, SAMPLING, N)
        methods = {
            "FBP, ramp": lambda d, a=angles: fbp(d, a, maps, "ramp"),
            "FBP, Hann": lambda d, a=angles: fbp(d, a, maps, "hann"),
            f"CG-SENSE, grid {N}": lambda d, a=angles: cg(d, a, maps, N),
            f"CG-SENSE, grid {side}": lambda d, a=angles, g=side: cg(d, a, maps, g),
        }
        for name, method in methods.items():
            images = [method(d) for d in data]
            errors = [nrmse(image) for image in images]
            print(f"| {n_spokes} | {name} | {errors[0]:.4f} | {errors[1]:.4f} | {errors[0] / errors[1]:.2f} |")
            if n_spokes == 64 and "Hann" not in name:
                shown[f"{name}: {errors[0]:.3f}"] = images[0]

    figure, axes = plt.subplots(1, 4, figsize=(12.5, 3.5))
    for axis, (title, image) in zip(axes, {"body in the field of view": true, **shown}.items(), strict=True):
        axis.imshow(np.abs(image), cmap="gray", vmin=0, vmax=0.9)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout(pad=0.6)
    figure.savefig(picture, dpi=85, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
