"""Image sets as objects of simulated scans: reading, people and splits, one size and scale for all.

A set is any folder or file of images: HDF5 (every real dataset of two or three dimensions, last axes row
and column), NIfTI, PNG, or NumPy (``.npy``, last axes as of HDF5), which needs nothing but numpy to be read. Scales
and sizes follow the evaluation protocol: centre padding to a square, Fourier resampling, 99.5th percentile to 1.

Who is who, where no ``splits.json`` says it:

- An HDF5 file by itself is a set; its top-level names are the people. So is one among others if it has several
  top-level groups, or if none of its top-level names comes again in another file and it has several, or its folder
  to itself.
- Every other file is one person's. A name that begins with ``sub-LABEL`` (BIDS) says whose. Otherwise people
  have folders of their own where files of different folders share their names (``p1/T1.nii``, ``p2/T1.nii``;
  ``p1/p1_T1.nii``); else the folder is the set, and each file a person.
"""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import DataError, FileFormatError

__all__ = [
    "HOUNSFIELD",
    "MAGNITUDE",
    "SMALLEST",
    "ImageSeries",
    "Split",
    "attenuation",
    "files_of",
    "find_splits",
    "is_hounsfield",
    "is_label",
    "is_magnitude",
    "prepare",
    "read_series",
    "readable",
    "resample",
    "set_of",
    "shows_something",
    "some_of",
]

log = logging.getLogger(__name__)

Split = Literal["train", "val", "all"]
HDF5: Final = (".h5", ".hdf5")
SUFFIXES: Final = (*HDF5, ".nii", ".nii.gz", ".png", ".npy")
FOR_WANT: Final = {".png": 1, ".npy": 2}
"""What counts only in a folder that holds nothing better: PNG without HDF5 and NIfTI, NumPy without any of them."""
NOTES: Final = (".json", ".md", ".txt", ".tsv", ".csv", ".bval", ".bvec")
"""What lies beside images to describe them."""
SMALLEST: Final = 8
"""Rows and columns of an image; below lie matrices of coordinates and the like."""
LOWEST_HU: Final = -1024.0
"""Scanners fill what lies outside of their circle with still lower values."""
AIR_HU: Final = -500.0
"""A CT image has air below it and tissue above 0."""
LEAST_NEGATIVE: Final = -0.1
"""Resampling leaves small values below 0 in magnitude images, in parts of the largest one."""
HOUNSFIELD: Final = "Hounsfield units: air near -1000 (a minimum below -500), tissue near 0 (a maximum above 0)"
MAGNITUDE: Final = "magnitude images, which have no values below 0"

_SUBJECT: Final = re.compile(r"sub-[0-9A-Za-z]+")
_LABEL: Final = re.compile(
    r"(?:^|[/._-])(?:d?seg|probseg|segmentations?|masks?|labels?(?:tr|ts)?|phase(?:diff)?)(?=/|$)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSeries:
    """Images of one person that belong together.

    Attributes
    ----------
    dataset, person, name
        Set, person and series; slices of one person never count as independent.
    images
        (slice, row, column) as stored; a slice with a value that is not finite is all zero.
    attributes
        What the file says about them.
    """

    dataset: str
    person: str
    name: str
    images: np.ndarray
    attributes: Mapping[str, Any]


def resample(image: np.ndarray, size: int) -> FloatArray:
    """Pad an image to a square and resample it to ``size``² through its Fourier transform.

    Parameters
    ----------
    image
        Real (row, column).
    size
        Rows and columns of the result.

    Returns
    -------
    FloatArray
        Float64 (size, size); the mean is preserved.
    """
    rows, columns = image.shape
    side = max(rows, columns)
    top, left = side // 2 - rows // 2, side // 2 - columns // 2
    square = np.zeros((side, side))
    square[top : top + rows, left : left + columns] = image
    if side == size:
        return square
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(square)))
    kept = min(side, size)
    source, target = side // 2 - kept // 2, size // 2 - kept // 2
    result = np.zeros((size, size), dtype=np.complex128)
    result[target : target + kept, target : target + kept] = spectrum[source : source + kept, source : source + kept]
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(result))).real
    return image * (size / side) ** 2


def prepare(image: np.ndarray, size: int = 256) -> FloatArray:
    """Return a magnitude image as the evaluation protocol wants it: float32 (size, size), 99.5 % point at 1."""
    values = np.asarray(image, dtype=np.float64)
    # A power of two changes no digit, and what is nearly the largest of all numbers has a finite sum.
    values = np.ldexp(values, -int(np.frexp(np.abs(values).max())[1]))
    square = np.maximum(resample(values, size), 0.0)
    scale = float(np.percentile(square, 99.5))
    return (square / (scale if scale > 0 else 1.0)).astype(np.float32)


def attenuation(image: np.ndarray, size: int = 256) -> FloatArray:
    """Return a CT image in Hounsfield units as attenuation relative to water, float32 (size, size), air = 0."""
    water = np.maximum(image.astype(np.float64), LOWEST_HU) + 1000.0
    return np.maximum(resample(water, size) / 1000.0, 0.0).astype(np.float32)


def find_splits(path: Path) -> dict[str, dict[str, list[str]]] | None:
    """Return the splits of people from ``splits.json`` in ``path`` or the two folders above; ``None`` without one.

    Raises
    ------
    FileFormatError
        The file does not hold sets with lists of people, a set has neither ``train`` nor ``val``, or people of it are
        in both.
    """
    path = path.absolute()
    for folder in (path, path.parent, path.parent.parent):
        file = folder / "splits.json"
        if not file.is_file():
            continue
        with readable(file, "JSON"):
            splits = json.loads(file.read_text(encoding="utf-8"))
        sets = splits.values() if isinstance(splits, dict) and splits else [None]
        if not all(isinstance(part, dict) and all(map(_is_names, part.values())) for part in sets):
            raise FileFormatError(
                f'{file} is not {{"SET": {{"train": [PEOPLE], "val": [PEOPLE]}}}} with names in quotation marks: '
                "correct it, or give it another name."
            )
        for name, part in splits.items():
            if not part.keys() & {"train", "val"}:
                raise FileFormatError(
                    f"{file}: {name} has neither train nor val, but {', '.join(part) or 'nothing'}: name its lists so."
                )
            both = set(part.get("train", [])) & set(part.get("val", []))
            if both:
                raise FileFormatError(
                    f"{file}: {', '.join(sorted(both))} of {name} are in both train and val, where scores would be "
                    "those of people whom a network has seen: take them out of one."
                )
        return splits
    return None


def _is_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def set_of(file: Path, splits: Collection[str]) -> str | None:
    """Return the set of ``splits.json`` that a file or folder is of: by its own name or that of a folder it is in."""
    file = file.absolute()
    names = (file.parent.name, _stem(file), file.name, *(folder.name for folder in file.parents[1:]))
    return next((name for name in names if name in splits), None)


def is_hounsfield(images: np.ndarray) -> bool:
    """Return whether images are CT, by their values; see `HOUNSFIELD`."""
    return bool(images.min() < AIR_HU and images.max() > 0)


def is_magnitude(images: np.ndarray) -> bool:
    """Return whether images are magnitudes, by their values; see `MAGNITUDE`."""
    return bool(not is_hounsfield(images) and images.min() >= LEAST_NEGATIVE * images.max())


def shows_something(image: np.ndarray) -> bool:
    """Return whether an image is more than one value; the difference of two may be too large for its integers."""
    return bool(image.max() > image.min())


def some_of(names: Collection[str]) -> str:
    """Return the first five names, for the log."""
    return ", ".join([*list(names)[:5]] + ["…"] * (len(names) > 5))


def files_of(path: Path, sets: Collection[str]) -> list[Path]:
    """Return the files of images that `read_series` takes for these sets of ``splits.json``."""
    splits = find_splits(path) or {}
    return [file for file in _files(path.absolute())[0] if set_of(file, splits) in sets]


def is_label(name: str) -> bool:
    """Return whether a name, or a group it is in, says mask, segmentation, label or phase: no images of tissue."""
    return _LABEL.search(name) is not None


@contextmanager
def readable(file: Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader raise into an error that names the file.

    Raises
    ------
    FileFormatError
        The file cannot be read.
    DataError
        The reader is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise DataError(f"{file}: reading {kind} needs {error.name}: pip install {error.name}.") from error
    except Exception as error:
        raise FileFormatError(f"{file} is not a readable {kind} file: {error}") from error


def _stem(file: Path) -> str:
    """Return a file's name without the suffix of its kind; other dots may belong to the name."""
    found = next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), file.suffix)
    return file.name.removesuffix(file.name[len(file.name) - len(found) :])


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of images, and those that may have been meant as such but are left out."""
    if not path.is_dir():
        return [path], []
    found: list[Path] = []
    others: list[Path] = []
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        # A link whose target is missing stays in: reading it says so.
        if any(part.startswith(".") for part in parts) or (file.is_dir() and not file.is_symlink()):
            continue
        image = file.name.lower().endswith(SUFFIXES)
        if image and not any(is_label(part) or part == "derivatives" for part in (*parts[:-1], _stem(file))):
            found.append(file)
        elif image or file.suffix.lower() not in ("", *NOTES):
            others.append(file)
    ranks = {file: FOR_WANT.get(file.suffix.lower(), 0) for file in found}
    best: dict[Path, int] = {}
    for file, rank in ranks.items():
        best[file.parent] = min(best.get(file.parent, rank), rank)
    beside = [file for file in found if ranks[file] > best[file.parent]]
    return [file for file in found if ranks[file] == best[file.parent]], [*others, *beside]


def _owners(path: Path, files: Sequence[Path]) -> Iterator[tuple[Path, str, str | None]]:
    """Yield each file with its set and its person; ``None``: the people are in the file."""
    inside = {file: {(top, top == name) for top, name, _ in _hdf5(file, ())} for file in files if _is_hdf5(file)}
    files = [file for file in files if inside.get(file) != set()]
    counts = Counter(name for names in inside.values() for name, _ in names)
    folders = Counter(file.parent for file, names in inside.items() if names)
    sets = {
        file
        for file, names in inside.items()
        if folders.total() == 1
        or sum(not plain for _, plain in names) > 1
        or (all(counts[name] == 1 for name, _ in names) and (len(names) > 1 or folders[file.parent] == 1))
    }
    lone = [file for file in files if file not in sets]
    # A name that comes again in another folder is not a person's.
    homes: dict[str, set[Path]] = defaultdict(set)
    for file in lone:
        homes[_ending(file)].add(file.parent)
    shared = {file.parent for file in lone if len(homes[_ending(file)]) > 1}
    names = Counter(
        folder.name for folder in {f for file in lone for f in file.parents if f != path and f.is_relative_to(path)}
    )
    for file in files:
        folder, subject = file.parent, _SUBJECT.match(_stem(file))
        if file in sets:
            yield file, _stem(file), None
        elif not path.is_dir():
            yield file, _stem(file), _stem(file)
        elif subject:
            while folder != path and subject[0] in folder.relative_to(path).parts:
                folder = folder.parent
            yield file, folder.name, subject[0]
        elif folder in shared:
            while folder != path and names[folder.name] > 1:
                folder = folder.parent
            yield (file, path.name, _stem(file)) if folder == path else (file, folder.parent.name, folder.name)
        else:
            yield file, folder.name, _stem(file)


def _ending(file: Path) -> str:
    """Return a file's name without its folder's in front."""
    return _stem(file).removeprefix(file.parent.name)


def _is_hdf5(file: Path) -> bool:
    return file.suffix.lower() in HDF5


def _are_images(shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
    """Return whether an array (slice, row, column) or (row, column) is one of real images."""
    return len(shape) in (2, 3) and dtype.kind in "uif" and min(shape[-2:]) >= SMALLEST and 0 not in shape


def _hdf5(
    file: Path, people: Collection[str] | None, *, named: bool = False
) -> Iterator[tuple[str, str, tuple[np.ndarray, Mapping[str, Any]] | None]]:
    """Yield top-level name, name below it or the same, and for these people (``None``: all) images and attributes.

    Parameters
    ----------
    named
        Whether the top-level names are people, so that those of them who have no image are told.
    """
    import h5py

    found: list[tuple[str, str, Any]] = []
    with readable(file, "HDF5"):
        source = h5py.File(file, "r")
    with source:
        with readable(file, "HDF5"):
            for top in sorted(source):
                node = source[top]
                if isinstance(node, h5py.Dataset):
                    found.append((top, top, node))
                else:
                    node.visititems(
                        lambda name, item, top=top: (
                            found.append((top, name, item)) if isinstance(item, h5py.Dataset) else None
                        )
                    )
        seen: set[str] = set()
        labels: list[str] = []
        others: dict[str, str] = {}
        for top, name, item in found:
            path = name if name == top else f"{top}/{name}"
            shape = tuple(n for n in item.shape or () if n != 1)
            asked = people is None or top in people
            # Vectors and texts go along with images.
            if len(shape) < 2:
                continue
            if is_label(path):
                labels += [path] * asked
            elif _are_images(shape, item.dtype):
                seen.add(top)
                content = None
                if asked:
                    with readable(file, "HDF5"):
                        content = item[()].reshape(-1, *shape[-2:]), dict(item.attrs)
                yield top, name, content
            elif asked:
                others.setdefault(top, f"{path} {_kind(item)}")
        if not seen:
            log.warning(
                "%s is left out: real images of two or three dimensions, no masks or phases, are needed; it holds %s",
                file,
                ", ".join(f"{name} {_kind(item)}" for _, name, item in found[:5]) or "nothing",
            )
            return
        if labels:
            log.warning("%s: masks, labels and phases are left out: %s", file, some_of(labels))
        if named and (lost := [text for top, text in others.items() if top not in seen]):
            log.warning(
                "%s: %d people without real images of two or three dimensions, %d pixels or more a side, are left "
                "out: %s",
                *(file, len(lost), SMALLEST, some_of(lost)),
            )


def _kind(item: Any) -> str:
    """Return type and shape of a dataset, for the log."""
    return f"{'records' if item.dtype.names else item.dtype} {item.shape}"


def _volume(file: Path) -> np.ndarray | None:
    """Return the slices of a file that is no HDF5, (slice, row, column); ``None`` if its shape is none of images."""
    if file.name.lower().endswith(".npy"):
        with readable(file, "NumPy"):
            images = np.asarray(np.load(file, allow_pickle=False))
        return _checked(images, file, images)
    if file.name.lower().endswith(".png"):
        with readable(file, "PNG"):
            from matplotlib.image import imread

            pixels = np.asarray(imread(file))
        if pixels.ndim == 3:
            # Grey with alpha has two channels, colour three or four.
            pixels = pixels[..., : 3 if pixels.shape[-1] > 2 else 1].mean(axis=-1)
        return _checked(pixels, file, pixels)
    with readable(file, "NIfTI"):
        import nibabel

        stored = np.asarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
    volume = stored.reshape(*stored.shape[:3], *(n for n in stored.shape[3:] if n > 1))
    if volume.ndim == 2:
        volume = volume[..., None]
    if volume.ndim == 4 and volume.size:
        volume = volume[..., 0]
    # NIfTI stores (x, y, z); here a slice is (row, column) = (y, x).
    return _checked(volume.T, file, stored)


def _checked(images: np.ndarray, file: Path, stored: np.ndarray) -> np.ndarray | None:
    """Return images as (slice, row, column); ``None``, with a warning, if the stored array holds none."""
    if _are_images(images.shape, images.dtype):
        return images.reshape(-1, *images.shape[-2:])
    log.warning(
        "%s is left out: real images are needed, not %s of shape %s; %d pixels or more a side",
        *(file, stored.dtype, stored.shape, SMALLEST),
    )
    return None


def _finite(images: np.ndarray, file: Path, person: str) -> np.ndarray:
    """Return the images with those emptied that hold a value that is not finite."""
    good = np.isfinite(images).all(axis=(1, 2))
    if good.all():
        return images
    log.warning(
        "%s: %d of %d slices of %s hold values that are not finite and are left out; where they stand for no signal, "
        "write 0 in the file",
        file,
        len(good) - good.sum(),
        len(good),
        person,
    )
    return np.where(good[:, None, None], images, 0)


def _file_series(file: Path, dataset: str, person: str | None, people: Collection[str] | None) -> Iterator[ImageSeries]:
    """Yield the series of a file that belong to these people (``None``: to all)."""
    if not _is_hdf5(file):
        # In a folder such files are left out already.
        if is_label(_stem(file)):
            log.warning("%s is left out: its name says mask, label or phase", file)
            return
        images = _volume(file)
        if images is not None and person is not None:
            yield ImageSeries(
                dataset=dataset,
                person=person,
                name=_stem(file),
                images=_finite(images, file, person),
                attributes={},
            )
        return
    for top, below, content in _hdf5(file, people if person is None else None, named=person is None):
        if content is not None:
            yield ImageSeries(
                dataset=dataset,
                person=person or top,
                name=below if person is None or below == top else f"{top}/{below}",
                images=_finite(content[0], file, person or top),
                attributes=content[1],
            )


def read_series(path: Path, *, split: Split = "all", datasets: Sequence[str] | None = None) -> Iterator[ImageSeries]:
    """Yield the series of a file or folder.

    Parameters
    ----------
    path
        A file, the folder of a set, or a folder with several sets. What is named as mask, label or phase is left
        out (`is_label`), inside HDF5 files too; of a folder, hidden files, ``derivatives``, and PNG and NumPy files
        beside better ones (`FOR_WANT`).
    split
        People to read; ``train`` and ``val`` need a ``splits.json``.
    datasets
        Only these sets.

    Raises
    ------
    DataError
        There is no such path, no image, or no splits although a split is asked for.
    FileFormatError
        A file cannot be read.
    """
    if not path.exists():
        raise DataError(f"no images: {path} does not exist.")
    path = path.absolute()
    splits = find_splits(path)
    if split != "all" and splits is None:
        raise DataError(
            f"no splits.json beside {path}: training and validation need one, which names the people of each set, "
            '{"SET": {"train": [PEOPLE], "val": [PEOPLE]}}; `sinotherm evaluate` can do without by --split all.'
        )
    splits = splits or {}
    # Whoever asks for what splits.json names does not mean anything else that lies there.
    listed_only = split != "all" or (datasets is not None and set(datasets) <= splits.keys())
    files, others = _files(path)
    if others and not listed_only:
        log.warning(
            "%s: %d files are left out, which are no HDF5, NIfTI, PNG or NumPy images, or lie beside better ones, "
            "masks or labels: %s",
            path,
            len(others),
            some_of([str(file.relative_to(path)) for file in others]),
        )
    known = {file: name for file in files if (name := set_of(file, splits)) is not None}
    rest = [] if listed_only else [file for file in files if file not in known]
    if listed_only and split == "all" and (unlisted := [file for file in files if file not in known]):
        log.info(
            "%s: %d files are left out, whose sets splits.json does not list: %s",
            *(path, len(unlisted), some_of([str(file.relative_to(path)) for file in unlisted])),
        )
    owners = {file: (dataset, person) for file, dataset, person in _owners(path, rest)}
    found: set[tuple[str, str]] = set()
    for file in files:
        people = None
        if file in known:
            dataset = known[file]
            if datasets is not None and dataset not in datasets:
                continue
            listed = {one for part in splits[dataset].values() for one in part}
            subject = _SUBJECT.match(_stem(file))
            names = (_stem(file), subject[0] if subject else "", *(folder.name for folder in file.parents))
            person = next((name for name in names if name in listed), None)
            people = None if split == "all" else splits[dataset].get(split, [])
            if not _is_hdf5(file):
                person = person or _stem(file)
            if people is not None and person is not None and person not in people:
                continue
        elif file in owners:
            dataset, person = owners[file]
            if datasets is not None and dataset not in datasets:
                continue
        else:
            continue
        for series in _file_series(file, dataset, person, people):
            found.add((series.dataset, series.person))
            yield series
    _tell_missing(path, splits, split, datasets, found)
    if not found:
        there = sorted({*known.values(), *(dataset for dataset, _ in owners.values())})
        asked = "" if datasets is None else f" of the sets {', '.join(datasets)}"
        sets = "" if datasets is None else f"; sets there: {some_of(there) or 'none'}"
        hint = "" if split == "all" else "; `sinotherm evaluate` can take whoever is there, by --split all"
        raise DataError(f"no images of split {split}{asked} in {path}: HDF5, NIfTI, PNG or NumPy are read{sets}{hint}.")


def _tell_missing(
    path: Path,
    splits: Mapping[str, Mapping[str, Sequence[str]]],
    split: Split,
    datasets: Sequence[str] | None,
    found: Collection[tuple[str, str]],
) -> None:
    """Warn of people whom ``splits.json`` lists for this split and who are not among those that were found."""
    lists = ("train", "val") if split == "all" else (split,)
    for name, part in splits.items():
        # One person's file or folder does not hold the others.
        whole = (path / "splits.json").is_file() or _stem(path) == name
        if not whole or (datasets is not None and name not in datasets):
            continue
        if split != "all" and split not in part:
            log.warning("%s: splits.json has no list %s of %s, only %s", path, split, name, ", ".join(part))
        lost = [who for which in lists for who in part.get(which, ()) if (name, who) not in found]
        if lost:
            log.warning(
                "%s: %d people whom splits.json lists for %s are not there, or have no images: %s",
                *(path, len(lost), name, some_of(lost)),
            )
