"""Which implementation does a transform: the one place that decides."""

import os
from collections.abc import Mapping
from typing import Literal, TypeAlias

from sinotherm.operators.gridded import ACCURACY

__all__ = ["AdjointBackend", "adjoint_backend", "backends", "nufft_backend"]

AdjointBackend: TypeAlias = Literal["kernel", "finufft"]


def adjoint_backend(n_coils: int, n_spokes: int) -> AdjointBackend:
    """Return the faster adjoint of a whole frame on the CPU.

    The back-projection kernel costs so much a spoke; finufft pays for the FFTs of all coils first and then
    half as much a spoke. They break even at the spokes below, measured on an x86 server with AVX-512
    (`sinotherm bench operators`); both grow alike with the image.
    """
    return "kernel" if n_spokes <= 10 + 17 * n_coils else "finufft"


def nufft_backend(device: str, *, single: bool, accuracy: float) -> Literal["gridded", "finufft", "sparse"]:
    """Return the fastest NUFFT of tensors on a device that has the accuracy.

    On the CPU the gridding kernels take less than half of finufft's time, for one coil and for many,
    for 16 spokes and for 402; they exist in single precision and for one accuracy. On an H100 the sparse
    matrices take 0.2 ms for 8 coils and 34 spokes, torchkbnufft 6 (forward) and 39 ms (adjoint).
    """
    if device != "cpu":
        return "sparse"
    return "gridded" if single and accuracy >= ACCURACY else "finufft"


def backends() -> Mapping[str, str]:
    """Return what is used for what on this machine, for ``sinotherm doctor``."""
    import torch

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    nufft = "gridding kernels (numba) on the CPU, finufft for double precision"
    nufft = f"sparse matrices on {cuda}, {nufft}" if cuda else f"{nufft} (no CUDA device)"
    table = ", ".join(f"{adjoint_backend(coils, spokes)} at C{coils} S{spokes}" for coils, spokes in _SHOWN)
    return {
        "spoke by spoke": f"back-projection kernel (numba), {len(os.sched_getaffinity(0))} cores",
        "whole frames": table,
        "NUFFT with gradients": nufft,
    }


_SHOWN = ((1, 64), (8, 32), (8, 402), (16, 64))
