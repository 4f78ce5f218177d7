"""Which implementation does the adjoint of a frame: the one place that decides."""

import os
from collections.abc import Mapping
from typing import Literal, TypeAlias

__all__ = ["AdjointBackend", "adjoint_backend", "backends"]

AdjointBackend: TypeAlias = Literal["kernel", "finufft"]


def adjoint_backend(n_coils: int, n_spokes: int) -> AdjointBackend:
    """Return the faster adjoint of a whole frame on the CPU.

    The back-projection kernel costs so much a spoke; finufft pays for the FFTs of all coils first and then
    half as much a spoke. They break even at the spokes below, measured on an x86 server with AVX-512
    (`sinotherm bench operators`); both grow alike with the image.
    """
    return "kernel" if n_spokes <= 10 + 17 * n_coils else "finufft"


def backends() -> Mapping[str, str]:
    """Return what is used for what on this machine, for ``sinotherm doctor``."""
    import torch

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    nufft = f"torchkbnufft on {cuda}, finufft on the CPU" if cuda else "finufft on the CPU (no CUDA device)"
    table = ", ".join(f"{adjoint_backend(coils, spokes)} at C{coils} S{spokes}" for coils, spokes in _SHOWN)
    return {
        "spoke by spoke": f"back-projection kernel (numba), {len(os.sched_getaffinity(0))} cores",
        "whole frames": table,
        "NUFFT with gradients": nufft,
    }


_SHOWN = ((1, 64), (8, 32), (8, 402), (16, 64))
