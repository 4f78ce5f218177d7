import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from sinotherm.evaluation.metrics import ImageScores, body_mask, body_signal, by_person, fit_scale, people_means, score

RANDOM = np.random.default_rng(0)


def _disc(n=64, radius=20, centre=32):
    y, x = np.mgrid[:n, :n]
    return ((x - centre) ** 2 + (y - centre) ** 2 < radius**2).astype(float)


def _reference():
    return _disc() * (1 + 0.3 * RANDOM.random((64, 64))) * np.exp(0.5j)


def test_a_perfect_image_up_to_one_scalar_is_perfect():
    reference = _reference()
    scores = score((3 - 4j) * reference, reference)
    assert scores.ssim == pytest.approx(1)
    assert scores.ssim_whole == pytest.approx(1)
    assert scores.nrmse == pytest.approx(0, abs=1e-12)
    assert scores.phase_rmse_rad == pytest.approx(0, abs=1e-7)
    assert scores.psnr > 200


def test_an_empty_image_scores_nothing():
    scores = score(np.zeros((64, 64), complex), _reference())
    assert scores.nrmse == pytest.approx(1)
    assert scores.ssim < 0.7


def test_figures_follow_their_definitions():
    reference = _reference()
    image = reference + 0.05 * (RANDOM.standard_normal((64, 64)) + 1j * RANDOM.standard_normal((64, 64)))
    scale = np.vdot(image, reference) / np.vdot(image, image)
    assert fit_scale(image, reference) == pytest.approx(scale)
    fitted = scale * image
    a, b, peak = np.abs(fitted), np.abs(reference), np.abs(reference).max()
    mean_a, mean_b = uniform_filter(a, 7), uniform_filter(b, 7)
    norm = 49 / 48
    var_a = norm * (uniform_filter(a * a, 7) - mean_a**2)
    var_b = norm * (uniform_filter(b * b, 7) - mean_b**2)
    cov = norm * (uniform_filter(a * b, 7) - mean_a * mean_b)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    scores = score(image, reference)
    assert scores.ssim == pytest.approx(ssim[body_mask(b)].mean(), abs=1e-9)
    assert scores.ssim_whole == pytest.approx(ssim[3:-3, 3:-3].mean(), abs=1e-9)
    assert scores.psnr == pytest.approx(10 * np.log10(peak**2 / np.mean((a - b) ** 2)))
    assert scores.nrmse == pytest.approx(np.linalg.norm(fitted - reference) / np.linalg.norm(reference))
    inside = b > 0.05 * peak
    phase = np.angle(fitted[inside] / reference[inside])
    assert scores.phase_rmse_rad == pytest.approx(np.sqrt(np.mean(phase**2)))


def test_body_is_filled_and_dilated_by_five_pixels():
    ring = _disc(radius=20) - _disc(radius=10)
    mask = body_mask(ring)
    assert mask[32, 32]
    row = np.flatnonzero(mask[32])
    assert row[0] == 32 - 19 - 5
    assert row[-1] == 32 + 19 + 5


def test_people_count_not_slices():
    one = ImageScores(ssim=1.0, ssim_whole=1.0, psnr=30.0, nrmse=0.1, phase_rmse_rad=0.1)
    two = ImageScores(ssim=0.0, ssim_whole=0.0, psnr=10.0, nrmse=0.3, phase_rmse_rad=0.3)
    people = by_person([("a", one), ("a", two), ("a", two), ("b", one)])
    assert list(people) == ["a", "b"]
    assert people["a"].ssim == pytest.approx(1 / 3)
    assert people["b"] == one
    assert people_means([("a", one), ("b", two)])["ssim_sd"] == pytest.approx(0.5**0.5)
    assert people_means([("a", one), ("a", two)])["ssim_sd"] is None


def test_the_signal_is_the_median_over_the_body_or_what_shines_in_a_dark_one():
    y, x = np.mgrid[:64, :64] - 32
    distance = np.hypot(x, y)
    disc = np.where(distance < 20, 1.0 + 0.5 * np.cos(x), 0.0)
    assert body_signal(disc) == np.median(disc[body_mask(disc)])
    ring = np.where((distance < 26) & (distance > 24), 2.0, 0.0)
    assert body_signal(ring) == 2.0
