"""Figures of merit of images, as the evaluation protocol defines them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray

__all__ = ["ImageScores", "body_mask", "body_signal", "by_person", "fit_scale", "people_means", "score"]

WINDOW = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScores:
    """Scores of one image against its reference, after one least-squares scalar.

    Attributes
    ----------
    ssim, ssim_whole
        Structural similarity of the modulus, mean over the body mask and over the whole image.
    psnr
        Peak signal-to-noise ratio of the modulus, dB; peak = maximum of the reference.
    nrmse
        ‖f − r‖/‖r‖ of the complex image.
    phase_rmse_rad
        RMS phase difference where the reference is above 5 % of its maximum, rad.
    """

    ssim: float
    ssim_whole: float
    psnr: float
    nrmse: float
    phase_rmse_rad: float


def body_mask(reference: FloatArray) -> np.ndarray:
    """Return the body, bool (y, x): above 5 % of the maximum, holes filled, dilated by 5 pixels.

    Parameters
    ----------
    reference
        Modulus of the reference image, (y, x).
    """
    from scipy.ndimage import binary_dilation, binary_fill_holes, generate_binary_structure

    signal = reference > 0.05 * reference.max()
    cross = generate_binary_structure(2, 1)
    return binary_dilation(binary_fill_holes(signal), structure=cross, iterations=5)


def body_signal(reference: FloatArray) -> float:
    """Return the signal of an SNR: the median over the body, or over what shines in a body that is mostly dark.

    Parameters
    ----------
    reference
        Modulus of the reference image, (y, x).
    """
    body = reference[body_mask(reference)]
    signal = 0.05 * float(reference.max())
    median = float(np.median(body))
    # A median next to nothing would make a scan next to free of noise.
    return median if median > signal else float(np.median(body[body > signal]))


def fit_scale(image: ComplexArray, reference: ComplexArray) -> complex:
    """Return the complex scalar a that minimises ‖a·f − r‖²; 0 for an empty image."""
    energy = float(np.vdot(image, image).real)
    return complex(np.vdot(image, reference)) / energy if energy > 0 else 0j


def score(image: ComplexArray, reference: ComplexArray) -> ImageScores:
    """Return the scores of a complex image, both (y, x).

    SSIM: scikit-image, uniform 7 × 7 window, data range = maximum of the reference.
    """
    from skimage.metrics import structural_similarity

    image = np.asarray(image, dtype=np.complex128)
    reference = np.asarray(reference, dtype=np.complex128)
    image = image * fit_scale(image, reference)
    truth, modulus = np.abs(reference), np.abs(image)
    peak = float(truth.max())
    _, similarity = structural_similarity(modulus, truth, win_size=WINDOW, data_range=peak, full=True)  # type: ignore[no-untyped-call]
    error = float(np.mean((modulus - truth) ** 2))
    signal = truth > 0.05 * peak
    phase = np.angle(image[signal] * reference[signal].conj())
    return ImageScores(
        ssim=float(similarity[body_mask(truth)].mean()),
        # The outermost pixels have no full window; scikit-image leaves them out of its mean too.
        ssim_whole=float(similarity[WINDOW // 2 : -(WINDOW // 2), WINDOW // 2 : -(WINDOW // 2)].mean()),
        psnr=float(10 * np.log10(peak**2 / error)) if error > 0 else float("inf"),
        nrmse=float(np.linalg.norm(image - reference) / np.linalg.norm(reference)),
        phase_rmse_rad=float(np.sqrt(np.mean(phase**2))),
    )


def by_person(scores: Sequence[tuple[str, ImageScores]]) -> dict[str, ImageScores]:
    """Return the mean scores of each person's slices: people are independent, slices are not."""
    grouped: dict[str, list[ImageScores]] = {}
    for person, one in scores:
        grouped.setdefault(person, []).append(one)
    names = ImageScores.__dataclass_fields__
    return {
        person: ImageScores(**{name: float(np.mean([getattr(one, name) for one in many])) for name in names})
        for person, many in grouped.items()
    }


def people_means(scores: Sequence[tuple[str, ImageScores]]) -> dict[str, Any]:
    """Return the columns that every table of images has: numbers of people and slices, means over people.

    One person has no SD: ``None``.
    """
    people = list(by_person(scores).values())
    ssim = [one.ssim for one in people]
    return {
        "n_people": len(people),
        "n_slices": len(scores),
        "ssim_mean": float(np.mean(ssim)),
        "ssim_sd": float(np.std(ssim, ddof=1)) if len(ssim) > 1 else None,
        "ssim_whole_mean": float(np.mean([one.ssim_whole for one in people])),
        "psnr_mean": float(np.mean([one.psnr for one in people])),
        "nrmse_mean": float(np.mean([one.nrmse for one in people])),
        "phase_rmse_rad_mean": float(np.mean([one.phase_rmse_rad for one in people])),
    }
