import itertools
import math

import numpy as np
import pytest
import torch

from operator_checks import adjoint_mismatch
from sinotherm.errors import DataError
from sinotherm.operators import fan_beam
from sinotherm.operators.fan_beam import FanBeam, FanBeamGeometry


def _small(views=7):
    geometry = FanBeamGeometry(
        n_pixels=16, source_distance=30.0, detector_distance=12.0, n_detectors=33, detector_spacing=1.2
    )
    return FanBeam(geometry, np.arange(views) * 2 * math.pi / views + 0.1)


def _disc(n, radius, x, y):
    """Disc on pixels, averaged over 8×8 points a pixel."""
    fine = (np.arange(8 * n) + 0.5) / 8 - 0.5 - n // 2
    inside = (fine[None, :] - x) ** 2 + (fine[:, None] - y) ** 2 < radius**2
    return inside.reshape(n, 8, n, 8).mean(axis=(1, 3))


def test_adjoint_is_exact():
    assert adjoint_mismatch(_small(), dtype=torch.float64) < 1e-12


@pytest.mark.parametrize("limit", [False, True])
def test_gradients_are_the_transposes(limit):
    operator = _small(3)
    image = torch.randn(16, 16, dtype=torch.float64, requires_grad=True)
    sinogram = torch.randn(3, 33, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator, (image,))
    assert torch.autograd.gradcheck(lambda s: operator.filtered_back_projection(s, limit=limit), (sinogram,))


def test_matrices_take_the_place_of_kernels_that_cannot_be_compiled(monkeypatch):
    """Both directions of both pairs."""
    image = torch.randn(2, 16, 16, requires_grad=True)
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(fan_beam, "has_kernels", lambda compiled=compiled: compiled)
        operator = _small()
        sinogram = operator(image)
        back = operator.filtered_back_projection(sinogram)
        (gradient,) = torch.autograd.grad(back.square().sum(), image)
        results.append((sinogram.detach(), back.detach(), gradient))
    for kernel, matrix in zip(*results, strict=True):
        torch.testing.assert_close(matrix, kernel, rtol=1e-4, atol=1e-4 * float(kernel.abs().max()))


def test_projections_of_a_disc_are_its_chords():
    geometry = FanBeamGeometry(n_pixels=64, source_distance=100.0, detector_distance=40.0, n_detectors=151)
    angles = np.array([0.0, 0.7, 2.0, 4.4])
    x, y, radius = 9.0, -5.0, 14.0
    measured = FanBeam(geometry, angles)(torch.from_numpy(_disc(64, radius, x, y))).numpy()
    u = np.arange(151) - 75.0
    for beta, row in zip(angles, measured, strict=True):
        source = 100.0 * np.array([math.cos(beta), math.sin(beta)])
        direction = -140.0 * np.array([math.cos(beta), math.sin(beta)])[:, None] + np.outer(
            [-math.sin(beta), math.cos(beta)], u
        )
        direction /= np.linalg.norm(direction, axis=0)
        to_centre = np.array([x, y]) - source
        distance = np.abs(to_centre[0] * direction[1] - to_centre[1] * direction[0])
        chord = 2 * np.sqrt(np.maximum(radius**2 - distance**2, 0))
        inner = np.abs(distance - radius) > 1.5
        np.testing.assert_allclose(row[inner], chord[inner], atol=0.35)


def test_filtered_back_projection_restores_the_amplitude():
    geometry = FanBeamGeometry(n_pixels=64, source_distance=100.0, detector_distance=40.0, n_detectors=151)
    operator = FanBeam(geometry, FanBeamGeometry.sparse_views(180, 1))
    disc = torch.from_numpy(_disc(64, 18.0, 4.0, -6.0))
    image = operator.filtered_back_projection(operator(disc), hann=False).numpy()
    inside = _disc(64, 14.0, 4.0, -6.0) == 1
    assert abs(image[inside].mean() - 1) < 0.01
    outside = (_disc(64, 22.0, 4.0, -6.0) == 0) & (_disc(64, 30.0, 0.0, 0.0) == 1)
    assert abs(image[outside].mean()) < 0.01


def test_limited_weights_make_the_correction_converge():
    geometry = FanBeamGeometry(n_pixels=64, source_distance=100.0, detector_distance=40.0, n_detectors=151)
    operator = FanBeam(geometry, FanBeamGeometry.sparse_views(360, 30))
    measured = operator(torch.from_numpy(_disc(64, 18.0, 4.0, -6.0)))
    image = operator.filtered_back_projection(measured)
    residuals = []
    for _ in range(6):
        residual = measured - operator(image)
        residuals.append(float(residual.norm()))
        image = image + operator.filtered_back_projection(residual, limit=True)
    assert all(b < a for a, b in itertools.pairwise(residuals))


def test_sparse_views_leave_a_last_gap_of_eight_degrees():
    views = FanBeamGeometry.sparse_views()
    gaps = np.degrees(FanBeam(FanBeamGeometry(), views).gaps)
    assert len(views) == 23
    np.testing.assert_allclose(gaps[1:-1], 16.0)
    np.testing.assert_allclose(gaps[[0, -1]], 12.0)
    assert math.isclose(gaps.sum(), 360.0)


def test_source_inside_the_image_is_refused():
    with pytest.raises(DataError, match="outside the image"):
        FanBeam(FanBeamGeometry(source_distance=100.0), np.zeros(1))


@pytest.mark.parametrize("kernel", ["_project", "_spread", "_gather", "_scatter"])
def test_sparse_matrices_do_what_the_kernels_do(kernel):
    """A GPU runs the matrices."""
    fan = FanBeam(FanBeamGeometry(n_pixels=48, source_distance=60.0, n_detectors=95), np.arange(0, 6.2, 0.7))
    inputs, outputs = fan.domain_shape, fan.range_shape
    if kernel in ("_spread", "_gather"):
        inputs, outputs = outputs, inputs
    rays = fan._rays() if kernel in ("_project", "_spread") else (fan.geometry.source_distance, fan._spacing)
    values = torch.randn((2, *inputs), generator=torch.Generator().manual_seed(0))
    body = getattr(fan_beam, kernel)
    expected = fan._run(body, values, outputs, *rays)
    matrix = fan._matrix(body, values.device)
    torch.testing.assert_close((matrix @ values.flatten(1).T).T.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_projects_as_the_cpu_does():
    fan = FanBeam(FanBeamGeometry(n_pixels=48, source_distance=60.0, n_detectors=95), np.arange(0, 6.2, 0.7))
    image = torch.rand((2, 48, 48), generator=torch.Generator().manual_seed(0))
    sinogram = fan(image)
    torch.testing.assert_close(fan(image.cuda()).cpu(), sinogram, rtol=1e-4, atol=1e-3)
    back = fan.filtered_back_projection(sinogram.cuda(), limit=True).cpu()
    torch.testing.assert_close(back, fan.filtered_back_projection(sinogram, limit=True), rtol=1e-4, atol=1e-4)
