import json

import h5py
import numpy as np
import pytest

from sinotherm.errors import DataError, FileFormatError
from sinotherm.evaluation.images import default_split, magnitude_slices
from sinotherm.simulation.image_sets import prepare, read_series, resample


@pytest.fixture
def folder(tmp_path):
    """Two sets and a split: one HDF5 with two people, one that is not magnitude MR."""
    random = np.random.default_rng(0)
    (tmp_path / "heads").mkdir()
    (tmp_path / "ct_lungs").mkdir()
    with h5py.File(tmp_path / "heads" / "heads.h5", "w") as file:
        file["anna/t1"] = random.integers(1, 900, (5, 24, 30)).astype(np.uint16)
        file["anna/deep/t2"] = random.random((20, 20))
        file["anna/names"] = np.array([1, 2, 3])
        file["bert/t1"] = np.stack([np.zeros((16, 16)), random.random((16, 16))])
    with h5py.File(tmp_path / "ct_lungs" / "lungs.h5", "w") as file:
        file["carl"] = random.random((2, 16, 16))
    splits = {"heads": {"train": ["anna"], "val": ["bert"]}, "ct_lungs": {"train": [], "val": ["carl"]}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    return tmp_path


@pytest.mark.parametrize("shape", [(32, 32), (31, 32), (20, 33)])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_resampling_keeps_band_limited_images(shape, size):
    """A Gaussian bump far from the edges is the same Gaussian on any grid."""
    side = max(shape)
    y, x = (np.arange(n) - n // 2 for n in shape)
    image = np.exp(-(y[:, None] ** 2 + (x[None] - 1.0) ** 2) / (2 * 3.0**2))
    axis = (np.arange(size) - size // 2) * side / size
    expected = np.exp(-(axis[:, None] ** 2 + (axis[None] - 1.0) ** 2) / (2 * 3.0**2))
    np.testing.assert_allclose(resample(image, size), expected, atol=2e-2 if size == 16 else 5e-3)


def test_prepared_images_have_their_bright_end_at_one():
    image = prepare(np.random.default_rng(1).random((40, 50)) * 700, 32)
    assert image.shape == (32, 32)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert np.percentile(image, 99.5) == pytest.approx(1, abs=1e-3)


def test_an_empty_image_stays_empty():
    assert not prepare(np.zeros((8, 8)), 8).any()


def test_only_people_of_the_split_and_sets_of_the_kind_are_read(folder):
    val = magnitude_slices(folder, size=16)
    assert {(one.dataset, one.person) for one in val} == {("heads", "bert")}
    assert len(val) == 1  # the empty slice is left out
    every = magnitude_slices(folder, split="all", size=16)
    assert {one.name.split("[")[0] for one in every if one.person == "anna"} == {"t1", "deep/t2"}
    assert len(every) == 5 + 1 + 1
    assert default_split(folder) == default_split(folder / "heads") == "val"


def test_few_slices_of_a_person_are_spread(folder):
    few = magnitude_slices(folder, split="all", per_person=2, size=16)
    assert [one.name for one in few if one.person == "anna"] == ["t1[1]", "t1[2]"]


def test_a_folder_without_splits_is_read_whole(tmp_path):
    from matplotlib.image import imsave

    imsave(tmp_path / "one.png", np.random.default_rng(0).random((12, 14)), cmap="gray")
    series = list(read_series(tmp_path))
    assert [(one.person, one.images.shape) for one in series] == [("one", (1, 12, 14))]
    assert default_split(tmp_path) == "all"


def test_nifti_slices_are_rows_of_y_and_columns_of_x(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "head.nii.gz")
    (series,) = read_series(tmp_path)
    assert series.person == "head"
    np.testing.assert_array_equal(series.images, volume.transpose(2, 1, 0))


def test_what_cannot_be_read_is_an_error(tmp_path, folder):
    with pytest.raises(DataError, match="does not exist"):
        list(read_series(tmp_path / "nothing"))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a").mkdir()
    with pytest.raises(DataError, match=r"no images"):
        list(read_series(empty / "a", split="all"))
    bad = tmp_path / "bad" / "deep" / "down"
    bad.mkdir(parents=True)
    (bad / "broken.h5").write_bytes(b"no")
    with pytest.raises(FileFormatError, match="not a readable HDF5"):
        list(read_series(bad))
    with pytest.raises(DataError, match="only --split all"):
        list(read_series(bad, split="val"))
