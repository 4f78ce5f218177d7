"""Which implementation does a transform: the one place that decides."""

import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from sinotherm.errors import SettingsError

if TYPE_CHECKING:
    import torch

__all__ = ["Device", "backends", "choose_device", "frame_backend", "has_bfloat16", "has_kernels", "nufft_backend"]

Device: TypeAlias = Literal["auto", "cpu", "cuda"]

_BFLOAT16: Final = "_is_mkldnn_bf16_supported"


def choose_device(device: Device) -> "torch.device":
    """Return the device; ``auto`` is CUDA where there is one.

    Raises
    ------
    SettingsError
        The device is none of these, or CUDA is asked for and there is none.
    """
    import torch

    if device not in get_args(Device):
        raise SettingsError(f"device {device!r}: give one of {', '.join(get_args(Device))}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("device cuda: PyTorch finds no CUDA device here; use auto or cpu.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def has_bfloat16(device: "torch.device") -> bool:
    """Return whether a device computes in bfloat16; emulated it is four to ten times slower than single precision."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.mkldnn, _BFLOAT16) and bool(getattr(torch.ops.mkldnn, _BFLOAT16)())


@cache
def has_kernels() -> bool:
    """Return whether the compiled kernels can run here: a machine that only trains may have neither of their needs."""
    return find_spec("numba") is not None and find_spec("scipy") is not None


def frame_backend(n_coils: int, n_spokes: int) -> Literal["back-projection", "gridded"]:
    """Return the faster adjoint of a whole frame of radial spokes on the CPU.

    Back-projection's time grows with the spokes and hardly with the coils that fill a vector; gridding's is
    that of its grids' transforms, one a coil. At 256 pixels and 16 spokes back-projection takes 0.7 of
    gridding's time for 8 coils and 0.6 for 16, at 64 spokes 1.3 and 1.2.
    """
    return "back-projection" if n_coils >= 8 and n_spokes <= 40 else "gridded"


def nufft_backend(device: str, *, single: bool, accuracy: float) -> Literal["gridded", "finufft", "sparse"]:
    """Return the fastest NUFFT of tensors on a device that has the accuracy.

    On the CPU the gridding kernels take 0.41 to 0.67 of tuned finufft's time for 1 to 16 coils and 16 to 402
    spokes; they exist in single precision and for one accuracy. On an H100 the sparse matrices take 0.2 ms for 8
    coils and 34 spokes, torchkbnufft 7.6 (forward) and 21.4 ms (adjoint). They also serve single precision on a CPU
    without numba.
    """
    if device != "cpu" or (single and not has_kernels()):
        return "sparse"
    from sinotherm.operators.gridded import ACCURACY

    return "gridded" if single and accuracy >= ACCURACY else "finufft"


def backends() -> Mapping[str, str]:
    """Return what is used for what on this machine, for ``sinotherm doctor``."""
    import torch

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    nufft = "gridding kernels (numba) on the CPU, finufft for double precision"
    nufft = f"sparse matrices on {cuda}, {nufft}" if cuda else f"{nufft} (no CUDA device)"
    return {
        "spoke by spoke": f"back-projection kernel (numba), {len(os.sched_getaffinity(0))} cores",
        "whole frames": "gridding kernels (numba), one task a coil; few spokes of many coils: back-projection kernel",
        "NUFFT with gradients": nufft,
    }
