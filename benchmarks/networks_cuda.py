"""NUFFT pair and network frame on a CUDA device: python benchmarks/networks_cuda.py [RECORD.json].

Random data of the sizes that matter; medians of repeated runs, synchronised before each reading of the clock.
Needs no image sets and no weights.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.networks.inference import sped_up
from sinotherm.networks.paper import MagnitudeSinogram, PaperArchitecture, PaperPrimalDual
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.radial import RadialSinogram
from sinotherm.operators.nufft import Nufft

N = 256
SAMPLING = RadialSampling(n_readout=2 * N, spacing=0.5 / N, centre=float(N))


def median_ms(call: Callable[[], Any], repeats: int = 60) -> float:
    """Return the median time of a call, ms."""
    taken = []
    for number in range(repeats + 8):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if number >= 8:
            taken.append(1e3 * (time.perf_counter() - start))
    return round(float(np.median(taken)), 2)


def nufft_rows() -> list[dict[str, Any]]:
    """Return a row for each number of spokes, of images and each backend."""
    rows = []
    for spokes in (34, 128):
        angles = spoke_angles("golden", spokes)
        for images in (8, 128):
            data = torch.randn(images, N, N, dtype=torch.complex64, device="cuda")
            for backend in ("sparse", "torchkbnufft"):
                operator = Nufft.radial(angles, SAMPLING, (N, N), backend=backend)
                samples = operator(data)
                rows.append(
                    {
                        "spokes": spokes,
                        "images": images,
                        "backend": backend,
                        "forward_ms": median_ms(lambda o=operator, d=data: o(d), 10),
                        "adjoint_ms": median_ms(lambda o=operator, s=samples: o.adjoint(s), 10),
                    }
                )
    return rows


def network_row(coils: int = 8, spokes: int = 34) -> dict[str, Any]:
    """Return times of a frame from samples on the host to the image on the host, and of the paper's PDUNet."""
    torch.manual_seed(0)
    network = PrimalDual(Architecture(iterations=4, primal_features=(32, 64, 112, 112))).cuda().eval()
    network.to(memory_format=torch.channels_last)
    maps = torch.randn(coils, N, N, dtype=torch.complex64, device="cuda")
    maps = maps / maps.abs().square().sum(0).sqrt()
    angles = spoke_angles("golden", spokes)
    operator = RadialSinogram(SAMPLING, angles, n_pixels=N, maps=maps)
    samples = torch.randn(1, coils, spokes, 2 * N, dtype=torch.complex64).pin_memory()
    fast = sped_up(network, precision="bfloat16")
    paper = PaperPrimalDual(PaperArchitecture.pdunet()).cuda().eval()
    magnitude = MagnitudeSinogram(SAMPLING, angles, n_pixels=N, device="cuda")
    measured = magnitude.measured(samples[:, :1].cuda())
    with torch.inference_mode():
        return {
            "coils": coils,
            "spokes": spokes,
            "float32_ms": median_ms(lambda: network(operator.order(samples.cuda()), operator).cpu()),
            "bfloat16_ms": median_ms(lambda: fast(operator.order(samples.cuda()), operator).cpu()),
            "pdunet_paper_float32_ms": median_ms(lambda: paper(measured, magnitude)),
        }


if __name__ == "__main__":
    found = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "nufft": nufft_rows(),
        "network": network_row(),
    }
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
