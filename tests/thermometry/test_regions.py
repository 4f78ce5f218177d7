import h5py
import numpy as np
import pytest

from sinotherm.errors import SettingsError
from sinotherm.thermometry.regions import named_regions, region_mask

SHAPE = (1, 40, 50)
PIXEL = (0.002, 0.002)


def test_circle_of_radius_one_takes_the_centre_and_its_four_neighbours() -> None:
    mask = region_mask("circle:20,10,1", SHAPE, PIXEL)
    assert set(zip(*np.nonzero(mask[0]), strict=True)) == {(10, 20), (9, 20), (11, 20), (10, 19), (10, 21)}


def test_millimetres_count_from_the_centre_pixel() -> None:
    np.testing.assert_array_equal(
        region_mask("circle:-10,4,6mm", SHAPE, PIXEL), region_mask("circle:20,22,3", SHAPE, PIXEL)
    )
    np.testing.assert_array_equal(
        region_mask("polygon:-10,-10,10,-10,10,12 mm", SHAPE, PIXEL),
        region_mask("polygon:20,15,30,15,30,26", SHAPE, PIXEL),
    )


def test_a_circle_in_millimetres_is_one_on_pixels_that_are_not_square() -> None:
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    np.testing.assert_array_equal(
        region_mask("circle:3,-8,12mm", SHAPE, (0.001, 0.004))[0], np.hypot(x - 28, 4.0 * (y - 18)) <= 12.0
    )


def test_polygon_agrees_with_matplotlib() -> None:
    from matplotlib.path import Path as Outline

    corners = np.array([[4.3, 3.2], [44.1, 8.7], [30.2, 20.1], [41.7, 36.4], [7.9, 30.6], [15.3, 17.8]])
    mask = region_mask("polygon:" + ",".join(str(value) for value in corners.ravel()), SHAPE, PIXEL)
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    inside = Outline(corners).contains_points(np.c_[x.ravel(), y.ravel()]).reshape(SHAPE[1:])
    np.testing.assert_array_equal(mask[0], inside)


def test_axis_parallel_edges_and_union() -> None:
    mask = region_mask("polygon:1.5,1.5,4.5,1.5,4.5,3.5,1.5,3.5+circle:20,20,1", SHAPE, PIXEL)
    assert mask[0, 2:4, 2:5].all()
    assert mask.sum() == 6 + 5


def test_masks_from_files(tmp_path) -> None:
    plane = np.zeros(SHAPE[1:], dtype=np.uint8)
    plane[3:5, 6:9] = 1
    np.save(tmp_path / "mask.npy", plane)
    with h5py.File(tmp_path / "masks.h5", "w") as store:
        store["group/tumour"] = plane[None]
    for text in (
        f"file:{tmp_path}/mask.npy",
        f"{tmp_path}/mask.npy",
        f"file:{tmp_path}/masks.h5:/group/tumour",
    ):
        np.testing.assert_array_equal(region_mask(text, SHAPE, PIXEL)[0], plane != 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("square:1,2,3", "write circle"),
        ("circle:1,2", "radius above 0"),
        ("circle:1,2,-3", "radius above 0"),
        ("circle:1,2,x", "separated by commas"),
        ("circle:1,2,inf", "finite"),
        ("circle:1,2mm", "radius above 0"),
        ("polygon:1,2,3,4", "three corners"),
        ("polygon:1,2,3,4,5,6,7", "three corners"),
        ("circle:400,400,2", "no voxel"),
        ("file:absent.npy", "does not exist"),
    ],
)
def test_what_is_not_a_region_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        region_mask(text, SHAPE, PIXEL)


def test_mask_files_that_do_not_fit(tmp_path) -> None:
    np.save(tmp_path / "mask.npy", np.ones((3, 3)))
    with pytest.raises(SettingsError, match=r"shape \(3, 3\)"):
        region_mask(f"{tmp_path}/mask.npy", SHAPE, PIXEL)
    with h5py.File(tmp_path / "masks.h5", "w") as store:
        store["group/tumour"] = np.ones(SHAPE)
    for dataset in ("", ":/group", ":/absent"):
        with pytest.raises(SettingsError, match="/group/tumour"):
            region_mask(f"{tmp_path}/masks.h5{dataset}", SHAPE, PIXEL)


@pytest.mark.parametrize("name", ["mask.npy", "mask.h5:/tumour"])
@pytest.mark.parametrize("content", [b"", b"no mask at all"])
def test_mask_files_that_are_none(tmp_path, name: str, content: bytes) -> None:
    (tmp_path / name.partition(":")[0]).write_bytes(content)
    with pytest.raises(SettingsError, match="cannot be read"):
        region_mask(f"file:{tmp_path}/{name}", SHAPE, PIXEL)


def test_named_regions() -> None:
    assert named_regions(" tumour=circle:1,2,3 ; rectum = file:a.npy;") == {
        "tumour": "circle:1,2,3",
        "rectum": "file:a.npy",
    }
    for text in ("circle:1,2,3", "=circle:1,2,3", "tumour="):
        with pytest.raises(SettingsError, match="name=shape"):
            named_regions(text)
    with pytest.raises(SettingsError, match="twice"):
        named_regions("a=circle:1,2,3;a=circle:1,2,4")
