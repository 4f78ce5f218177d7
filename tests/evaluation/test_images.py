import json
import logging
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from sinotherm.errors import DataError, FileFormatError
from sinotherm.evaluation.images import attenuation_slices, default_split, magnitude_slices
from sinotherm.simulation.image_sets import prepare, read_series, resample


@pytest.fixture
def folder(tmp_path):
    """Two sets and a split: one HDF5 with two people, one that is not magnitude MR."""
    random = np.random.default_rng(0)
    (tmp_path / "heads").mkdir()
    (tmp_path / "lungs").mkdir()
    with h5py.File(tmp_path / "heads" / "heads.h5", "w") as file:
        file["anna/t1"] = random.integers(1, 900, (5, 24, 30)).astype(np.uint16)
        file["anna/deep/t2"] = random.random((20, 20))
        file["anna/names"] = np.array([1, 2, 3])
        file["bert/t1"] = np.stack([np.zeros((16, 16)), random.random((16, 16))])
    with h5py.File(tmp_path / "lungs" / "lungs.h5", "w") as file:
        file["carl"] = 2000 * random.random((2, 16, 16)) - 1000
    splits = {"heads": {"train": ["anna"], "val": ["bert"]}, "lungs": {"train": [], "val": ["carl"]}}
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


def test_images_of_any_scale_are_the_same_when_prepared():
    image = np.random.default_rng(1).random((20, 24))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factor in (2.0**1023, 2.0**-900):
            np.testing.assert_array_equal(prepare(image * factor, 16), prepare(image, 16))


def test_only_people_of_the_split_and_sets_of_the_kind_are_read(folder):
    val = magnitude_slices(folder, size=16)
    assert {(one.dataset, one.person) for one in val} == {("heads", "bert")}
    assert len(val) == 1  # the empty slice is left out
    every = magnitude_slices(folder, split="all", size=16)
    assert {one.name.split("[")[0] for one in every if one.person == "anna"} == {"t1", "deep/t2"}
    assert len(every) == 5 + 1 + 1
    assert default_split(folder) == default_split(folder / "heads") == "val"


def test_values_say_what_a_set_is_not_its_name(tmp_path, caplog):
    people = {"train": ["anna"], "val": ["bert"]}
    (tmp_path / "splits.json").write_text(json.dumps(dict.fromkeys(["radial_liver", "ct_like", "chest"], people)))
    for name, images in (("radial_liver", _images()), ("ct_like", _images()), ("chest", _images() * 3 - 1024)):
        _hdf5(tmp_path / f"{name}.h5", anna=images, bert=images)
    assert {one.dataset for one in magnitude_slices(tmp_path, size=16)} == {"radial_liver", "ct_like"}
    assert [text.split(":")[0] for text in caplog.messages] == ["chest"]
    caplog.clear()
    assert {(one.dataset, one.person) for one in attenuation_slices(tmp_path, size=16)} == {("chest", "bert")}
    assert [text.split(":")[0] for text in caplog.messages] == ["ct_like", "radial_liver"]
    assert all("Hounsfield units" in text for text in caplog.messages)


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
    volume = np.arange(9 * 8 * 2, dtype=np.float32).reshape(9, 8, 2)
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
    with pytest.raises(DataError, match=r"training and validation need one, .* without by --split all"):
        list(read_series(bad, split="val"))


def _images(count=2):
    return np.random.default_rng(0).integers(1, 900, (count, 24, 20)).astype(np.int16)


def _nifti(path, images=None):
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image((_images() if images is None else images).transpose(2, 1, 0), np.eye(4)), path)


def _hdf5(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, images in content.items():
            file[name.replace("__", "/")] = images


def _png(path):
    from matplotlib.image import imsave

    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, _images(1)[0], cmap="gray")


def _people(path):
    """Set, person and number of slices."""
    found = {}
    for one in magnitude_slices(path, size=16):
        found[one.dataset, one.person] = found.get((one.dataset, one.person), 0) + 1
    return [(*who, count) for who, count in found.items()]


@pytest.mark.parametrize(
    ("files", "person", "slices"),
    [
        (["{}.nii.gz"], "p{}", 2),
        (["{}.NII"], "p{}", 2),
        (["{}.PNG"], "p{}", 1),
        (["{}.h5"], "p{}", 2),
        (["{}/T1.nii.gz", "{}/T2.nii"], "p{}", 4),
        (["{}/{}_t1.nii.gz"], "p{}", 2),
        (["{}/scan/T1.nii", "{}/scan/T2.nii"], "p{}", 4),
        (["{}/slice1.png", "{}/slice2.png"], "p{}", 2),
        (["{}/images.hdf5"], "p{}", 2),
        (["sub-{}_T1w.nii.gz", "sub-{}_T2w.nii.gz"], "sub-p{}", 4),
        (["sub-{}/anat/sub-{}_T1w.nii.gz"], "sub-p{}", 2),
        (["sub-{}/ses-1/anat/sub-{}_ses-1_T1w.nii.gz", "sub-{}/ses-2/anat/sub-{}_ses-2_T1w.nii.gz"], "sub-p{}", 4),
    ],
)
def test_files_of_a_folder_are_its_people(tmp_path, files, person, slices):
    """As many people as there are, not as many sets of one person."""
    folder = tmp_path / "study"
    for number in (1, 2, 3):
        for name in files:
            path = folder / name.format(f"p{number}", f"p{number}")
            if path.suffix.lower() == ".png":
                _png(path)
            elif path.suffix in (".h5", ".hdf5"):
                _hdf5(path, images=_images(), affine=np.eye(4))
            else:
                _nifti(path)
    assert _people(folder) == [("study", person.format(number), slices) for number in (1, 2, 3)]


def test_contrasts_in_the_files_of_people_are_series(tmp_path):
    for name in ("anna", "bert"):
        _hdf5(tmp_path / "study" / f"{name}.h5", t1=_images(), t2=_images(1))
    assert _people(tmp_path / "study") == [("study", "anna", 3), ("study", "bert", 3)]


def test_sets_with_their_people_inside_stay_sets(tmp_path, caplog):
    """The same people's names in two sets, one person alone in a set, and what lies beside."""
    for name in ("heads", "knees"):
        _hdf5(tmp_path / name / f"{name}.h5", **{"sub-01__ax": _images(), "sub-02__ax": _images(3)})
    _hdf5(tmp_path / "pelvis" / "pelvis.h5", carl__t2=_images())
    _hdf5(tmp_path / "lungs" / "lungs.h5", dora=_images() * 3 - 1024, emil=_images() * 3 - 1024)
    _png(tmp_path / "heads" / "contact_sheet.png")
    _png(tmp_path / "ankles" / "fritz.png")
    (tmp_path / "heads" / "SOURCE.md").write_text("a note")
    (tmp_path / "heads" / "scan.dcm").write_bytes(b"")
    (tmp_path / "heads" / "._heads.h5").write_bytes(b"")
    _nifti(tmp_path / "ankles" / "derivatives" / "fritz_dseg.nii")
    assert _people(tmp_path) == [
        ("ankles", "fritz", 1),
        ("heads", "sub-01", 2),
        ("heads", "sub-02", 3),
        ("knees", "sub-01", 2),
        ("knees", "sub-02", 3),
        ("pelvis", "carl", 2),
    ]
    (left_out,) = [text for text in caplog.messages if "files are left out" in text]
    assert all(name in left_out for name in ("contact_sheet.png", "scan.dcm", "fritz_dseg.nii", "3 files"))
    assert "SOURCE.md" not in left_out
    assert "lungs: 2 series are left out, magnitude images" in caplog.text


def test_numpy_files_count_where_a_folder_holds_nothing_else(tmp_path, caplog):
    for person in ("anna", "bert"):
        (tmp_path / "heads" / person).mkdir(parents=True)
        np.save(tmp_path / "heads" / person / "t1.npy", _images(3))
        np.save(tmp_path / "heads" / person / "slice.npy", _images(3)[0])
        np.save(tmp_path / "heads" / person / "complex.npy", _images(3) * 1j)
        np.save(tmp_path / "heads" / person / "angles.npy", np.arange(9.0))
    _png(tmp_path / "ankles" / "fritz.png")
    np.save(tmp_path / "ankles" / "features.npy", _images())
    assert _people(tmp_path) == [("ankles", "fritz", 1), ("heads", "anna", 4), ("heads", "bert", 4)]
    assert "complex.npy is left out: real images are needed, not complex128 of shape" in caplog.text
    assert "1 files are left out" in caplog.text
    assert "features.npy" in caplog.text
    np.save(tmp_path / "odd.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(FileFormatError, match=r"odd\.npy is not a readable NumPy file"):
        list(read_series(tmp_path / "odd.npy"))


def test_people_of_a_split_have_files_or_folders(tmp_path, caplog):
    splits = {"heads": {"train": ["anna"], "val": ["bert", "sub-07"]}, "knees": {"train": ["carl"], "val": ["dora"]}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    for name in ("anna", "bert"):
        _hdf5(tmp_path / "heads" / f"{name}.h5", images=_images())
    _nifti(tmp_path / "heads" / "sub-07" / "anat" / "sub-07_T1w.nii.gz")
    for name in ("carl", "dora"):
        _nifti(tmp_path / "knees" / name / "scan.nii")
    _png(tmp_path / "knees" / "dora" / "preview.png")
    _hdf5(tmp_path / "strangers" / "emil.h5", images=_images())
    assert _people(tmp_path) == [("heads", "bert", 2), ("heads", "sub-07", 2), ("knees", "dora", 2)]
    assert not caplog.text
    # Who is in no list is taken whole.
    assert default_split(tmp_path / "strangers") == "all"
    assert _people(tmp_path / "strangers") == [("emil", "images", 2)]


def test_a_folder_is_named_as_it_stands(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    _png(tmp_path / "study" / "1.2.840.7.png")
    _png(tmp_path / "study" / "1.2.840.8.png")
    assert _people(Path()) == [("study", "1.2.840.7", 1), ("study", "1.2.840.8", 1)]


def test_a_slice_that_is_not_finite_is_left_out_by_name(tmp_path, caplog):
    bad = _images().astype(np.float32)
    bad[0, 3, 3] = np.inf
    spoilt = np.full((24, 20), np.nan, dtype=np.float32)
    _hdf5(tmp_path / "heads.h5", anna=bad, bert=_images(), carl=spoilt)
    assert [(one.person, one.name) for one in magnitude_slices(tmp_path, size=16)] == [
        ("anna", "anna[1]"),
        ("bert", "bert[0]"),
        ("bert", "bert[1]"),
    ]
    assert "heads.h5: 1 of 2 slices of anna hold values that are not finite" in caplog.text
    assert "no slice of carl shows anything" in caplog.text


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((24, 20)), "the slices there are empty"),
        (np.full((24, 20), np.nan), "the slices there are empty"),
        (-1.0 - _images(1)[0], r"no values below 0 .* x x \(-\d+ to -\d+\) is not"),
        (_images(1)[0] * 3.0 - 1024, "sinotherm evaluate ct"),
        (_images(1)[0].astype(np.complex64), "no images of split all"),
        (np.ones(5), "no images of split all"),
        (np.ones((4, 4)), "no images of split all"),
        (np.ones((2, 2, 24, 20)), "no images of split all"),
        (np.ones((0, 24, 20)), "no images of split all"),
    ],
)
def test_nothing_to_score_is_an_error(tmp_path, images, message):
    _hdf5(tmp_path / "set.h5", x=images)
    with pytest.raises(DataError, match=message):
        magnitude_slices(tmp_path, size=16)


def test_a_volume_of_unknown_shape_is_named(tmp_path, caplog):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 2, 2, 3), dtype=np.int16), np.eye(4)), tmp_path / "odd.nii")
    nibabel.save(nibabel.Nifti1Image(_images().T[..., None, None], np.eye(4)), tmp_path / "good.nii")
    assert _people(tmp_path) == [(tmp_path.name, "good", 2)]
    assert "odd.nii is left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "kind"), [("x.nii", "NIfTI"), ("x.nii.gz", "NIfTI"), ("x.png", "PNG"), ("x.H5", "HDF5")]
)
def test_a_damaged_file_is_named(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"nonsense" * 100)
    with pytest.raises(FileFormatError, match=rf"{name} is not a readable {kind} file"):
        list(read_series(tmp_path))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "absent")
    with pytest.raises(FileFormatError, match=f"{name} is not a readable"):
        list(read_series(tmp_path))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"train": ["anna"], "val": []}', '{"heads": {"train": [1], "val": [2]}}']
)
def test_a_foreign_splits_file_is_named(folder, text):
    (folder / "splits.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"splits\.json is not"):
        magnitude_slices(folder)


def test_people_who_train_and_validate_are_named(folder):
    people = {"heads": {"train": ["anna", "bert", "carl"], "val": ["bert", "anna"]}}
    (folder / "splits.json").write_text(json.dumps(people))
    with pytest.raises(FileFormatError, match=r"splits\.json: anna, bert of heads are in both train and val"):
        magnitude_slices(folder)


def test_grey_with_alpha_is_grey(tmp_path):
    from PIL import Image

    grey = (_images(1)[0] // 4).astype(np.uint8)
    opaque = Image.fromarray(np.full_like(grey, 255))
    Image.merge("LA", (Image.fromarray(grey), opaque)).save(tmp_path / "x.png")
    (series,) = read_series(tmp_path)
    np.testing.assert_allclose(series.images[0], grey / 255.0, atol=1e-6)


def test_a_reader_that_is_not_installed_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.nii").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match="reading NIfTI needs nibabel: pip install nibabel"):
        list(read_series(tmp_path))


def test_slices_that_fill_the_range_of_their_integers_are_scored(tmp_path):
    """The difference of the largest and the smallest value does not fit into an int16."""
    image = _images(1)[0]
    image[0, :2] = -400, 32767
    _hdf5(tmp_path / "heads.h5", anna=image)
    assert len(magnitude_slices(tmp_path, size=16)) == 1


def test_masks_inside_a_file_are_left_out_by_name(tmp_path, caplog):
    labels = {"p1__scan1__mask": _images(), "masks__brain": _images(), "p2__T1_dseg": _images()}
    images = {"p1__scan1__t1": _images(), "p2__T1": _images(), "p2__masked": _images()}
    _hdf5(tmp_path / "heads.h5", **labels, **images)
    assert [(one.person, one.name) for one in read_series(tmp_path)] == [
        ("p1", "scan1/t1"),
        ("p2", "T1"),
        ("p2", "masked"),
    ]
    (told,) = caplog.messages
    assert told.endswith("heads.h5: masks, labels and phases are left out: masks/brain, p1/scan1/mask, p2/T1_dseg")
    _hdf5(tmp_path / "only" / "masks.h5", **labels)
    with pytest.raises(DataError, match="no images"):
        list(read_series(tmp_path / "only" / "masks.h5"))
    assert "no masks or phases, are needed; it holds brain int16" in caplog.text
    np.save(tmp_path / "T1_mask.npy", _images())
    with pytest.raises(DataError, match="no images"):
        list(read_series(tmp_path / "T1_mask.npy"))
    assert "its name says mask" in caplog.text


def test_people_without_an_image_of_the_right_kind_are_named(tmp_path, caplog):
    good, small = _images(), np.ones((6, 6))
    wrong = {"bert__t1": good * 1j, "carl__deep__t1": np.ones((2, 2, 24, 20)), "dora": small, "names": np.arange(4)}
    _hdf5(tmp_path / "heads.h5", anna__t1=good, anna__phasors=good * 1j, emil=good[None].astype(np.float16), **wrong)
    assert {one.person for one in read_series(tmp_path)} == {"anna", "emil"}
    (told,) = caplog.messages
    assert "heads.h5: 3 people without real images of two or three dimensions, 8 pixels or more a side" in told
    assert told.endswith("bert/t1 complex128 (2, 24, 20), carl/deep/t1 float64 (2, 2, 24, 20), dora float64 (6, 6)")


@pytest.mark.parametrize("name", ["small.png", "small.nii", "small.npy"])
def test_small_images_are_left_out_of_every_kind_of_file(tmp_path, caplog, name):
    file = tmp_path / name
    if file.suffix == ".png":
        from matplotlib.image import imsave

        imsave(file, _images(1)[0][:7], cmap="gray")
    elif file.suffix == ".nii":
        _nifti(file, _images()[:, :7])
    else:
        np.save(file, _images()[:, :7])
    with pytest.raises(DataError, match="no images"):
        list(read_series(tmp_path))
    assert f"{name} is left out: real images are needed" in caplog.text


def test_people_of_a_split_who_are_not_there_are_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    splits = {"heads": {"train": ["anna", "carl"], "val": ["bert", "dora"], "heldout": ["emil"]}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    for name in ("heads", "knees"):
        _hdf5(tmp_path / name / f"{name}.h5", anna=_images(), bert=_images())
    missing = "1 people whom splits.json lists for heads are not there, or have no images: {}"
    assert {one.dataset for one in magnitude_slices(tmp_path, size=16)} == {"heads"}
    assert caplog.messages[0] == f"{tmp_path}: {missing.format('dora')}"
    assert "knees" not in caplog.text
    caplog.clear()
    magnitude_slices(tmp_path, split="all", size=16)
    assert f"1 files are left out, whose sets splits.json does not list: {Path('knees/knees.h5')}" in caplog.text
    assert "2 people whom splits.json lists for heads are not there, or have no images: carl, dora" in caplog.text
    caplog.clear()
    # The file of one person is not expected to hold the others.
    _hdf5(tmp_path / "heads" / "bert.h5", images=_images())
    assert magnitude_slices(tmp_path / "heads" / "bert.h5", size=16)
    assert "not there" not in caplog.text


def test_lists_of_other_names_are_told(folder, caplog):
    (folder / "splits.json").write_text('{"heads": {"training": ["anna"], "validation": ["bert"]}}')
    with pytest.raises(FileFormatError, match="heads has neither train nor val, but training, validation"):
        magnitude_slices(folder)
    (folder / "splits.json").write_text('{"heads": {"train": ["anna"], "validation": ["bert"]}}')
    with pytest.raises(
        DataError,
        match=r"no images of split val of the sets heads in .*; `sinotherm evaluate` can take .* by --split all",
    ):
        magnitude_slices(folder)
    assert "splits.json has no list val of heads, only train, validation" in caplog.text
