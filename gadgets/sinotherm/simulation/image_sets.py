"""Image sets as objects of simulated scans: reading, people and splits, one size and scale for all.

A set is any folder or file of images: HDF5 (every numeric dataset of two or three dimensions, last axes
row and column, person = top-level name), NIfTI or PNG (person = file name). Scales and sizes follow the
evaluation protocol: centre padding to a square, Fourier resampling, 99.5th percentile to 1.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import DataError, FileFormatError

__all__ = ["ImageSeries", "Split", "attenuation", "find_splits", "prepare", "read_series", "resample"]

Split = Literal["train", "val", "all"]
SUFFIXES: Final = (".h5", ".hdf5", ".nii", ".nii.gz", ".png")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSeries:
    """Images of one person that belong together.

    Attributes
    ----------
    dataset, person, name
        Set, person and series; slices of one person never count as independent.
    images
        (slice, row, column) as stored.
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
    square = np.maximum(resample(np.asarray(image, dtype=np.float64), size), 0.0)
    scale = float(np.percentile(square, 99.5))
    return (square / (scale if scale > 0 else 1.0)).astype(np.float32)


def attenuation(image: np.ndarray, size: int = 256) -> FloatArray:
    """Return a CT image in Hounsfield units as attenuation relative to water, float32 (size, size), air = 0."""
    return np.maximum(resample(image.astype(np.float64) + 1000.0, size) / 1000.0, 0.0).astype(np.float32)


def find_splits(path: Path) -> dict[str, dict[str, list[str]]] | None:
    """Return the splits of people from ``splits.json`` in ``path`` or the two folders above; ``None`` without one."""
    for folder in (path, path.parent, path.parent.parent):
        file = folder / "splits.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    return None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name.lower().endswith(SUFFIXES))


def _hdf5(file: Path, people: Sequence[str] | None) -> Iterator[tuple[str, str, np.ndarray, Mapping[str, Any]]]:
    import h5py

    try:
        source = h5py.File(file, "r")
    except OSError as error:
        raise FileFormatError(f"{file} is not a readable HDF5 file: {error}") from error
    with source:
        for person in sorted(source):
            if people is not None and person not in people:
                continue
            found: list[tuple[str, Any]] = []
            node = source[person]
            if isinstance(node, h5py.Dataset):
                found.append((person, node))
            else:
                node.visititems(
                    lambda name, item, found=found: (
                        found.append((name, item)) if isinstance(item, h5py.Dataset) else None
                    )
                )
            for name, item in found:
                if item.ndim in (2, 3) and item.dtype.kind in "uif" and min(item.shape[-2:]) > 1:
                    yield person, name, item[()].reshape(-1, *item.shape[-2:]), dict(item.attrs)


def _volume(file: Path) -> np.ndarray:
    if file.name.lower().endswith(".png"):
        from matplotlib.image import imread

        pixels = np.asarray(imread(file))
        return (pixels[..., :3].mean(axis=-1) if pixels.ndim == 3 else pixels)[None]
    import nibabel

    volume = np.asarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
    if volume.ndim == 2:
        return volume.T[None]
    if volume.ndim == 4:
        volume = volume[..., 0]
    # NIfTI stores (x, y, z); here a slice is (row, column) = (y, x).
    return np.moveaxis(volume, -1, 0).swapaxes(1, 2)


def read_series(path: Path, *, split: Split = "all", datasets: Sequence[str] | None = None) -> Iterator[ImageSeries]:
    """Yield the series of a file or folder.

    Parameters
    ----------
    path
        A file, the folder of a set, or a folder with several sets and a ``splits.json``.
    split
        People to read; ``train`` and ``val`` need a ``splits.json``.
    datasets
        Only these sets.

    Raises
    ------
    DataError
        There is no such path, no image, or no splits although a split is asked for.
    """
    if not path.exists():
        raise DataError(f"no images: {path} does not exist.")
    splits = find_splits(path)
    if split != "all" and splits is None:
        raise DataError(f"no splits.json beside {path}: only --split all is possible.")
    found = False
    for file in _files(path):
        known = [part for part in (file.parent.name, file.stem) if splits and part in splits]
        dataset = known[0] if known else (file.parent.name if file.suffix == ".png" else file.name.split(".")[0])
        if datasets is not None and dataset not in datasets:
            continue
        if split != "all" and not known:
            continue
        people = splits[dataset].get(split, []) if splits and known and split != "all" else None
        if file.suffix in (".h5", ".hdf5"):
            for person, name, images, attributes in _hdf5(file, people):
                found = True
                yield ImageSeries(dataset=dataset, person=person, name=name, images=images, attributes=attributes)
        else:
            person = file.name.split(".")[0]
            if people is not None and person not in people:
                continue
            found = True
            yield ImageSeries(dataset=dataset, person=person, name=person, images=_volume(file), attributes={})
    if not found:
        raise DataError(f"no images of split {split} in {path}.")
