import numpy as np
import pytest
import scipy.optimize
import torch

from direct_radial import dense_sense, ellipse_image, unit_maps
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import DataError
from sinotherm.reconstruction.cg_sense import cg_sense
from sinotherm.reconstruction.sense_normal import SenseNormal
from sinotherm.reconstruction.total_variation import Strengths, minimise, tv_sense


def problem(n, n_spokes, n_coils=2, noise=0.0):
    rng = np.random.default_rng(1)
    angles = spoke_angles("golden", n_spokes)
    sampling = RadialSampling(n_readout=2 * n, spacing=1 / (2 * n), centre=float(n))
    maps = unit_maps(n_coils, n)
    data = (dense_sense(angles, sampling, maps) @ ellipse_image(n).ravel()).reshape(n_coils, n_spokes, -1)
    data = data + noise * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape))
    return data.astype(np.complex64), angles, sampling, maps


def total_variation(image, smooth=0.0):
    down, along = np.zeros_like(image), np.zeros_like(image)
    down[:-1], along[:, :-1] = np.diff(image, axis=0), np.diff(image, axis=1)
    return np.sum(np.sqrt(np.abs(down) ** 2 + np.abs(along) ** 2 + smooth**2) - smooth)


def test_admm_reaches_the_minimum_that_another_solver_finds():
    n = 12
    data, angles, sampling, maps = problem(n, 5, noise=0.3)
    normal = SenseNormal(angles, sampling, maps)
    right = normal.right_hand_side(data)
    basis = torch.eye(n * n, dtype=torch.complex64).reshape(-1, n, n)
    matrix = np.stack([normal(image).numpy().ravel() for image in basis], axis=1)
    b, strength = right.numpy().ravel().astype(complex), 3e-3

    def objective(image, smooth=0.0):
        flat = image.ravel()
        fit = 0.5 * np.vdot(flat, matrix @ flat).real - np.vdot(b, flat).real
        return fit + strength * total_variation(image, smooth)

    def packed(values):
        image = (values[: n * n] + 1j * values[n * n :]).reshape(n, n)
        smooth = 1e-4
        down, along = np.zeros_like(image), np.zeros_like(image)
        down[:-1], along[:, :-1] = np.diff(image, axis=0), np.diff(image, axis=1)
        length = np.sqrt(np.abs(down) ** 2 + np.abs(along) ** 2 + smooth**2)
        down, along = down / length, along / length
        slope = np.zeros_like(image)
        slope[1:] += down[:-1]
        slope[:-1] -= down[:-1]
        slope[:, 1:] += along[:, :-1]
        slope[:, :-1] -= along[:, :-1]
        gradient = matrix @ image.ravel() - b + strength * slope.ravel()
        return objective(image, smooth), np.r_[gradient.real, gradient.imag]

    best = scipy.optimize.minimize(packed, np.zeros(2 * n * n), jac=True, method="L-BFGS-B", options={"maxiter": 3000})
    reference = (best.x[: n * n] + 1j * best.x[n * n :]).reshape(n, n)
    series, _ = minimise([normal], [right], Strengths(space=strength), amplitude=1.0, iterations=300)
    found = series[0].numpy()
    assert objective(found) <= objective(reference) + 1e-3 * abs(objective(reference))
    assert np.linalg.norm(found - reference) < 0.02 * np.linalg.norm(reference)


def test_fewer_streaks_than_without():
    n = 48
    data, angles, sampling, maps = problem(n, 14, n_coils=4)
    true = ellipse_image(n)

    def error(image):
        return np.linalg.norm(image - true) / np.linalg.norm(true)

    plain = cg_sense(data, angles, sampling, maps, iterations=12).image
    flat = tv_sense(data, angles, sampling, maps)
    assert error(flat.image) < 0.75 * error(plain)
    assert flat.in_time
    assert flat.residual < 0.1
    warm = tv_sense(data, angles, sampling, maps, start=flat.image, amplitude=1.0, iterations=4)
    assert error(warm.image) < 1.05 * error(flat.image)
    assert warm.iterations < flat.iterations


def test_time_term_ties_frames_together():
    n = 24
    frames = [problem(n, 8, noise=4.0)]
    data, angles, sampling, maps = frames[0]
    other = spoke_angles("golden", 8, first=8)
    more = (dense_sense(other, sampling, maps) @ ellipse_image(n).ravel()).reshape(data.shape).astype(np.complex64)
    normals = [SenseNormal(a, sampling, maps) for a in (angles, other)]
    rights = [normal.right_hand_side(d) for normal, d in zip(normals, (data, more), strict=True)]
    free, _ = minimise(normals, rights, Strengths(space=1e-4))
    tied, rounds = minimise(normals, rights, Strengths(space=1e-4, time=3e-2), iterations=20)
    assert rounds == 20
    assert (tied[1] - tied[0]).abs().sum() < 0.3 * (free[1] - free[0]).abs().sum()
    true = ellipse_image(n)
    assert np.linalg.norm(tied[0].numpy() - true) < np.linalg.norm(free[0].numpy() - true)


def test_nothing_to_do():
    data, angles, sampling, maps = problem(16, 5)
    normal = SenseNormal(angles, sampling, maps)
    right = normal.right_hand_side(data)
    _, rounds = minimise([normal], [right], Strengths())
    assert rounds == 0
    empty = tv_sense(0 * data, angles, sampling, maps)
    assert not empty.image.any()
    assert empty.in_time
    assert empty.iterations == 0
    stopped = tv_sense(data, angles, sampling, maps, time_budget_s=0.0)
    assert not stopped.in_time
    assert (stopped.rounds, stopped.iterations) == (1, 9)
    with pytest.raises(DataError, match="first guess"):
        tv_sense(data, angles, sampling, maps, start=np.zeros((3, 3), np.complex64))
