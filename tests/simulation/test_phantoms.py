import math

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinotherm.errors import DataError, SettingsError
from sinotherm.simulation.phantoms import (
    SCENES,
    TISSUES,
    Ellipse,
    anatomy_of_image,
    coverage,
    ellipse_kspace,
    gradient_echo,
    image_of_file,
    scene_named,
)


def blob(**changes):
    values = {"name": "blob", "tissue": "muscle", "x_m": 0.01, "y_m": -0.02, "a_m": 0.05, "b_m": 0.03, "angle_rad": 0.4}
    return Ellipse(**(values | changes))


@given(
    x=st.floats(-0.04, 0.04), y=st.floats(-0.04, 0.04), a=st.floats(0.02, 0.05), b=st.floats(0.02, 0.05),
    angle=st.floats(-3.2, 3.2), kx=st.floats(-0.05, 0.05), ky=st.floats(-0.05, 0.05),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_exact_kspace_equals_the_sum_over_a_fine_raster(x, y, a, b, angle, kx, ky):
    """At low k a raster of tiny pixels is as good as the continuous ellipse."""
    shape = blob(x_m=x, y_m=y, a_m=a, b_m=b, angle_rad=angle)
    n, fov = 512, 0.256
    part = coverage(shape, n, fov)
    axis = np.arange(n) - n // 2
    direct = np.exp(-2j * np.pi * ky * axis) @ part @ np.exp(-2j * np.pi * kx * axis)
    exact = ellipse_kspace(shape, np.array([kx, ky]), pixel_m=fov / n)
    area = math.pi * a * b / (fov / n) ** 2
    assert abs(exact - direct) < 1e-3 * area


def test_exact_kspace_at_zero_is_the_area_in_pixels():
    shape = blob()
    found = ellipse_kspace(shape, np.zeros((3, 2)), pixel_m=1e-3)
    np.testing.assert_allclose(found, math.pi * 50.0 * 30.0, rtol=1e-9)


def test_coverage_is_the_area_and_only_the_edge_is_mixed():
    part = coverage(blob(), 128, 0.256)
    assert part.sum() == pytest.approx(math.pi * 0.05 * 0.03 / 0.002**2, rel=1e-3)
    assert 0.0 <= part.min() <= part.max() <= 1.0
    assert np.count_nonzero((part > 0) & (part < 1)) < 0.25 * np.count_nonzero(part)


@pytest.mark.parametrize("name", SCENES)
def test_ellipses_are_nested_and_do_not_overlap(name):
    """What exact k-space by difference to the parent takes for granted, for any person."""
    for seed in range(3):
        scene = SCENES[name].varied(np.random.default_rng(seed))
        own = scene.fractions(512)
        assert sum(own.values()).max() <= 1.0 + 1e-5
        parts = {part.name: coverage(part, 512, scene.fov_m) for part in scene.ellipses}
        for part in scene.ellipses:
            if part.inside is not None:
                assert np.all(parts[part.name] <= parts[part.inside] + 1e-6), part.name
        for parent in {part.inside for part in scene.ellipses}:
            total = sum(parts[part.name] for part in scene.ellipses if part.inside == parent)
            assert total.max() <= 1.0 + 1e-6, parent


@pytest.mark.parametrize("name", SCENES)
def test_scene_kspace_equals_the_sum_over_its_raster(name):
    scene = SCENES[name]
    n = 512
    times = {"echo_time_s": 0.0191, "repetition_time_s": 0.025, "flip_angle_rad": 0.26}
    amplitudes = {tissue: gradient_echo(TISSUES[tissue], **times) for tissue in TISSUES}
    anatomy = scene.rasterise(n, **times)
    k = np.array([[0.0, 0.0], [0.01, -0.02], [-0.03, 0.005]])
    axis = np.arange(n) - n // 2
    image = anatomy.water + anatomy.fat
    direct = [np.exp(-2j * np.pi * ky * axis) @ image @ np.exp(-2j * np.pi * kx * axis) for kx, ky in k]
    np.testing.assert_allclose(scene.kspace(k, amplitudes, matrix=n), direct, atol=1e-3 * image.sum())


def test_hyperthermia_scene_is_fit_for_figures():
    anatomy = SCENES["hyperthermia"].rasterise(256, echo_time_s=0.0191, repetition_time_s=0.025, flip_angle_rad=0.26)
    assert anatomy.matrix == 256
    assert anatomy.tumour.sum() >= 300
    assert np.all(anatomy.body[anatomy.tumour])
    assert not np.any(anatomy.fat_mask & anatomy.tumour)
    assert np.all(anatomy.water[anatomy.cold] == 0.0)
    assert np.all(anatomy.fat[anatomy.cold] > 0.0)
    no_fat = SCENES["hyperthermia"].rasterise(
        256, echo_time_s=0.0191, repetition_time_s=0.025, flip_angle_rad=0.26, fat=False
    )
    assert 0 < no_fat.cold.sum() < anatomy.cold.sum()
    np.testing.assert_array_equal(no_fat.water, anatomy.water)


def test_persons_differ_only_in_the_target():
    scene = SCENES["brain"]
    other = scene.varied(np.random.default_rng(3))
    changed = [old.name for old, new in zip(scene.ellipses, other.ellipses, strict=True) if old != new]
    assert changed == ["tumour"]


def test_signal_is_that_of_a_spoiled_gradient_echo():
    water = TISSUES["csf"]
    long = gradient_echo(water, echo_time_s=0.0, repetition_time_s=1e3, flip_angle_rad=math.pi / 2)
    assert long == pytest.approx(water.proton_density)
    decayed = gradient_echo(water, echo_time_s=water.t2_star_s, repetition_time_s=1e3, flip_angle_rad=math.pi / 2)
    assert decayed == pytest.approx(long / math.e)


def test_image_as_object():
    n = 128
    y, x = np.mgrid[:n, :n] - n // 2
    radius = np.hypot(x / 52, y / 40)
    image = np.where(radius < 1, np.where(radius > 0.88, 1.0, 0.4), 0.0)
    anatomy = anatomy_of_image(image, SCENES["hyperthermia"])
    assert anatomy.body.sum() == pytest.approx(np.count_nonzero(radius < 1), rel=0.02)
    assert 0.3 < anatomy.fat_mask.sum() / np.count_nonzero((radius > 0.88) & (radius < 1)) <= 1.05
    np.testing.assert_allclose((anatomy.water + anatomy.fat), image, atol=1e-6)
    assert anatomy.tumour.any()
    assert not np.any(anatomy.water * anatomy.fat)
    plain = anatomy_of_image(image, SCENES["hyperthermia"], fat=False)
    assert not plain.fat_mask.any()


def test_objects_that_cannot_be():
    with pytest.raises(DataError, match="square"):
        anatomy_of_image(np.ones((4, 5)), SCENES["brain"])
    image = np.zeros((64, 64))
    image[2:12, 2:12] = 1.0
    with pytest.raises(DataError, match="lies outside"):
        anatomy_of_image(image, SCENES["brain"])
    with pytest.raises(SettingsError, match="known scenes: hyperthermia, hifu, brain"):
        scene_named("knee")


def test_image_of_a_file(tmp_path):
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        file["person/series"] = np.arange(3 * 16 * 16).reshape(3, 16, 16)
        file["single"] = np.ones((16, 16))
        file["spoilt"] = np.full((16, 16), np.nan)
    assert image_of_file(str(path), 32).shape == (32, 32)
    third = image_of_file(f"{path}:person/series:2", 16)
    assert third.argmax() == 255
    assert image_of_file(f"{path}:single", 16).max() == pytest.approx(1.0)
    with pytest.raises(DataError, match=r"slice 3 .* 0 to 2"):
        image_of_file(f"{path}:person/series:3", 16)
    with pytest.raises(DataError, match=r"no dataset 'other'; in the file: person/series, single, spoilt"):
        image_of_file(f"{path}:other", 16)
    with pytest.raises(DataError, match="slice 0 of spoilt is empty or not finite"):
        image_of_file(f"{path}:spoilt", 16)
    with pytest.raises(DataError, match="does not exist"):
        image_of_file(str(tmp_path / "nothing.h5"), 16)


@pytest.mark.data
def test_pelvis_of_the_shared_data_is_an_object(shared_data):
    image = image_of_file(str(shared_data / "pelvis_prostatex" / "pelvis_prostatex.h5"), 128)
    anatomy = anatomy_of_image(image, SCENES["hyperthermia"])
    assert anatomy.tumour.sum() > 50
    assert anatomy.fat_mask.any()
