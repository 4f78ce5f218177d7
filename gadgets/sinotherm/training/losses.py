"""Losses of the complex networks."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["complex_l1", "image_loss", "phase_loss", "structural_similarity"]


def complex_l1(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean modulus of the difference of complex (batch, y, x); smooth at zero."""
    difference = image - target
    return (difference.real.square() + difference.imag.square() + 1e-8).sqrt().mean()


def structural_similarity(image: Tensor, target: Tensor, window: int = 7) -> Tensor:
    """Return the map of structural similarity of real (batch, y, x), uniform window, range = target's maximum.

    Wang et al. 2004, 10.1109/TIP.2003.819861; sample covariances, as scikit-image computes them.
    """
    c1 = (0.01 * target.amax(dim=(1, 2), keepdim=True)).square()
    c2 = (0.03 * target.amax(dim=(1, 2), keepdim=True)).square()
    stack = torch.stack([image, target, image * image, target * target, image * target], dim=1)
    mean = functional.avg_pool2d(stack, window, stride=1)
    mu_x, mu_y = mean[:, 0], mean[:, 1]
    unbiased = window**2 / (window**2 - 1)
    var_x = (mean[:, 2] - mu_x.square()) * unbiased
    var_y = (mean[:, 3] - mu_y.square()) * unbiased
    covariance = (mean[:, 4] - mu_x * mu_y) * unbiased
    return ((2 * mu_x * mu_y + c1) * (2 * covariance + c2)) / (
        (mu_x.square() + mu_y.square() + c1) * (var_x + var_y + c2)
    )


def phase_loss(image: Tensor, target: Tensor, importance: Tensor | None = None) -> Tensor:
    """Return the mean phase error where |r| is above 5 % of its maximum, rad, of voxels and of means over regions.

    The error is |sin ∠(f, r)|, which the proportional shift turns into temperature for small angles:
    |ΔT| = |Δφ|/(2π·γ̄·|α|·B0·TE). A modulus above half the target's does not change it: an image gains nothing
    by being darker where its phase is noisy. Noise averages out over regions of 4² and 16² pixels, and what is
    left there is bias.

    Parameters
    ----------
    image, target
        complex (batch, y, x).
    importance
        Weight of each voxel, (batch, y, x); 1 by default.
    """
    modulus = target.abs()
    body = (modulus > 0.05 * modulus.amax(dim=(1, 2), keepdim=True)).to(modulus.dtype)
    if importance is not None:
        body = body * importance
    length = (image.real.square() + image.imag.square() + 1e-12).sqrt()
    scale = modulus * torch.maximum(length, 0.5 * modulus)
    error = (image * target.conj()).imag * (body / scale.clamp_min(1e-6))
    parts = torch.stack([error, body], dim=1)
    total = parts.new_zeros(())
    for side in (1, 4, 16):
        mean, share = functional.avg_pool2d(parts, side).unbind(dim=1)
        total = total + (mean.square() + 1e-8).sqrt().sum() / share.sum()
    return total / 3


def image_loss(
    image: Tensor,
    target: Tensor,
    *,
    ssim_weight: float = 0.1,
    phase_weight: float = 0.0,
    importance: Tensor | None = None,
) -> Tensor:
    """Return complex L1 + ``ssim_weight``·(1 − SSIM of the modulus) + ``phase_weight``·`phase_loss`.

    In the similarity the body counts four times as much as the background.
    """
    loss = complex_l1(image, target)
    if phase_weight > 0:
        loss = loss + phase_weight * phase_loss(image, target, importance)
    if ssim_weight == 0:
        return loss
    modulus = (image.real.square() + image.imag.square() + 1e-10).sqrt()
    truth = target.abs()
    similarity = structural_similarity(modulus, truth)
    body = (functional.avg_pool2d(truth, 7, stride=1) > 0.05 * truth.amax(dim=(1, 2), keepdim=True)).to(
        similarity.dtype
    )
    weight = 0.5 + 1.5 * body
    return loss + ssim_weight * ((1 - similarity) * weight).sum() / weight.sum()
