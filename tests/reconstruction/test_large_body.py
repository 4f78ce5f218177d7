"""A body 1.4 times the field of view must cost little inside it."""

import h5py
import numpy as np
import pytest

from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.operators.coils import combine
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import cg_sense, grid_size

N, BODY, WIDE, COILS = 128, 180, 256, 4
SAMPLING = RadialSampling(n_readout=2 * N, spacing=1 / (2 * N), centre=float(N))
ROW, COLUMN = np.mgrid[:WIDE, :WIDE] - WIDE // 2


def cropped(image, side):
    first = image.shape[-1] // 2 - side // 2
    return image[..., first : first + side, first : first + side]


@pytest.fixture(scope="module")
def scene(shared_data):
    with h5py.File(shared_data / "pelvis_prostatex" / "pelvis_prostatex.h5") as file:
        image = file["ProstateX-0000/4_t2tsetra"][9].astype(np.float64)
    spectrum = cropped(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image))), BODY)
    body = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum))).real
    first = WIDE // 2 - BODY // 2
    whole = np.zeros((WIDE, WIDE), np.complex128)
    whole[first : first + BODY, first : first + BODY] = np.maximum(body, 0) / np.percentile(body, 99.5)
    whole *= np.exp(1j * (0.5 * np.sin(COLUMN / 40) + 0.008 * ROW))
    turns = 2 * np.pi * np.arange(COILS) / COILS
    places = 0.75 * BODY * np.stack((np.cos(turns), np.sin(turns)))[..., None, None]
    distance = (COLUMN - places[0]) ** 2 + (ROW - places[1]) ** 2
    maps = np.exp(-distance / (2 * (0.55 * BODY) ** 2) + 1j * turns[:, None, None])
    maps /= np.sqrt((np.abs(maps) ** 2).sum(0))
    return whole, maps.astype(np.complex64)


def measured(image, maps, angles):
    plan = FinufftPlan((WIDE, WIDE), COILS, dtype=np.complex128, accuracy=1e-6)
    points = radial_points(angles, SAMPLING).reshape(-1, 2)
    return plan.set_points(points).forward(maps * image).reshape(COILS, len(angles), -1).astype(np.complex64)


def error(found, image):
    inside = np.hypot(*cropped(np.stack((ROW, COLUMN)), N)) < N / 2
    true = cropped(image, N)
    return np.linalg.norm((found - true)[inside]) / np.linalg.norm(true[inside])


def both(scene, angles, reconstruct):
    whole, maps = scene
    inner = whole * (np.hypot(ROW, COLUMN) < N / 2)
    return [error(reconstruct(measured(image, maps, angles), maps), whole) for image in (whole, inner)]


@pytest.mark.data
def test_back_projection_of_a_full_set_of_spokes(scene):
    angles = spoke_angles("uniform180", 201)

    def fbp(data, maps):
        weights = radial_weights(angles, SAMPLING, centre="exact").astype(np.float32)
        plan = FinufftPlan((N, N), COILS).set_points(radial_points(angles, SAMPLING).reshape(-1, 2))
        return combine(plan.adjoint((data * weights).reshape(COILS, -1)), cropped(maps, N))

    with_outside, without = both(scene, angles, fbp)
    assert with_outside <= 1.1 * without


@pytest.mark.data
@pytest.mark.parametrize("n_spokes", [32, 64])
def test_cg_sense_on_the_extended_grid(scene, n_spokes):
    angles = spoke_angles("golden", n_spokes)
    data = measured(scene[0], scene[1], angles)
    side = grid_size(data, angles, SAMPLING, N)
    assert side >= BODY

    def iterate(data, maps, side=side):
        return cropped(cg_sense(data, angles, SAMPLING, cropped(maps, side)).image, N)

    with_outside, without = both(scene, angles, iterate)
    assert with_outside <= 1.1 * without
    # On the image's own grid the outside is forced into the image.
    forced, _ = both(scene, angles, lambda data, maps: iterate(data, maps, N))
    assert forced > 1.2 * with_outside
