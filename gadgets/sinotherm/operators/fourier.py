"""Centred, unitary Fourier transforms, for numpy arrays and torch tensors alike.

Index n//2 of an axis of n elements is zero in both domains, for even and odd n, so that
``X[k] = Σ_x f[x]·exp(−2πi (k − n//2)(x − n//2)/n)/√n``.
"""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sinotherm.core.arrays import ComplexArray

__all__ = ["fft1", "fft2", "ifft1", "ifft2"]

Array = TypeVar("Array", ComplexArray, Tensor)


def _transform(x: Array, axes: tuple[int, ...], *, inverse: bool) -> Array:
    if isinstance(x, Tensor):
        function = torch.fft.ifftn if inverse else torch.fft.fftn
        moved = torch.fft.ifftshift(x, dim=axes)
        return torch.fft.fftshift(function(moved, dim=axes, norm="ortho"), dim=axes)
    # scipy keeps complex64, and transforms several rows at once in a vector register.
    import scipy.fft

    transform = scipy.fft.ifftn if inverse else scipy.fft.fftn
    spectrum = transform(np.fft.ifftshift(x, axes=axes), axes=axes, norm="ortho", overwrite_x=True)
    return np.fft.fftshift(spectrum, axes=axes)


def fft1(x: Array, axis: int = -1) -> Array:
    """Return the centred unitary transform along one axis; shape and precision are kept."""
    return _transform(x, (axis,), inverse=False)


def ifft1(x: Array, axis: int = -1) -> Array:
    """Return the inverse (and adjoint) of `fft1`."""
    return _transform(x, (axis,), inverse=True)


def fft2(x: Array) -> Array:
    """Return the centred unitary transform of the last two axes (y, x)."""
    return _transform(x, (-2, -1), inverse=False)


def ifft2(x: Array) -> Array:
    """Return the inverse (and adjoint) of `fft2`."""
    return _transform(x, (-2, -1), inverse=True)
