"""Regions of interest: circles, polygons and mask files, as texts in the settings and as masks on the grid.

A region text is one or more shapes joined by ``+`` (their union):

- ``circle:x,y,r`` and ``polygon:x1,y1,x2,y2,x3,y3,…``: in pixels, (0, 0) the centre of the first
  pixel, x the column and y the row; with ``mm`` at the end in millimetres from the image's centre
  (pixel n//2), along the same axes;
- ``file:mask.npy`` or ``file:masks.h5:/dataset`` (or the bare name of such a file): an array (y, x)
  or (slice, y, x), true where it is not zero.

Several named regions are ``name=shape`` joined by ``;``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from sinotherm.core.arrays import MaskArray
from sinotherm.errors import SettingsError

__all__ = ["NAMES_A_FILE", "check_region", "named_regions", "region_mask"]

_FILES: Final = (".npy", ".h5", ".hdf5")

_LIKE: Final = "e.g. circle:128,120,15 or polygon:90,80,120,80,105,110"

NAMES_A_FILE: Final = "|".join(["file:", *(suffix.replace(".", r"\.") for suffix in _FILES)])
"""Regular expression that is found in every region text that names a file."""


def _numbers(text: str, shape: str) -> np.ndarray:
    """Return the numbers of a shape as they are written, float64 (n,)."""
    try:
        numbers = np.array([float(part) for part in text.strip().removesuffix("mm").split(",")])
    except ValueError:
        raise SettingsError(f"region {shape}:{text!r}: write numbers separated by commas, {_LIKE}.") from None
    if not np.isfinite(numbers).all():
        raise SettingsError(f"region {shape}:{text!r}: all numbers must be finite.")
    if shape == "circle" and (len(numbers) != 3 or numbers[2] <= 0.0):
        raise SettingsError(f"region circle:{text!r}: give x, y and a radius above 0.")
    if shape == "polygon" and (len(numbers) < 6 or len(numbers) % 2):
        raise SettingsError(f"region polygon:{text!r}: give x and y of three corners or more.")
    return numbers


def _coordinates(text: str, shape: str, pixel_m: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Return the numbers of a shape in pixels, float64 (n,): x and y in turn, and a circle's radii along them last."""
    numbers = _numbers(text, shape)
    if shape == "circle":
        # Pixels that are not square make an ellipse of it.
        numbers = numbers[[0, 1, 2, 2]]
    if not text.strip().endswith("mm"):
        return numbers
    scale = 1e-3 / np.array(pixel_m)
    if shape == "circle":
        return np.concatenate([numbers[:2] * scale + np.array([size[1] // 2, size[0] // 2]), numbers[2:] * scale])
    return np.ravel(numbers.reshape(-1, 2) * scale + np.array([size[1] // 2, size[0] // 2]))


def _circle(text: str, pixel_m: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    x0, y0, along_x, along_y = _coordinates(text, "circle", pixel_m, size)
    y, x = np.ogrid[: size[0], : size[1]]
    # Slack for rounding only: a radius of 1 takes the centre and its four neighbours.
    return (x - x0) ** 2 + ((y - y0) * (along_x / along_y)) ** 2 <= along_x**2 + 1e-9


def _polygon(text: str, pixel_m: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    corners = _coordinates(text, "polygon", pixel_m, size).reshape(-1, 2)
    y, x = np.ogrid[: size[0], : size[1]]
    inside = np.zeros(size, dtype=bool)
    # Even-odd rule: a ray along +x crosses the outline an odd number of times from inside.
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = ((y0 <= y) & (y < y1)) | ((y1 <= y) & (y < y0))
        inside ^= crosses & (x <= x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def _dataset(path: Path, dataset: str) -> np.ndarray:
    import h5py

    with h5py.File(path, "r") as store:
        found = store.get(dataset) if dataset else None
        if not isinstance(found, h5py.Dataset):
            known: list[str] = []
            store.visititems(lambda key, node: known.append(f"/{key}") if isinstance(node, h5py.Dataset) else None)
            raise SettingsError(
                f"mask file {str(path)!r} has no dataset {dataset!r}: "
                f"write {path}:/dataset with one of {', '.join(known)}."
            )
        return np.asarray(found[()])


def _from_file(text: str, shape: tuple[int, int, int]) -> MaskArray:
    name, _, dataset = text.partition(":")
    path = Path(name)
    if not path.is_file():
        raise SettingsError(f"mask file {name!r} does not exist: give a .npy file, or an .h5 file as file.h5:/dataset.")
    try:
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _dataset(path, dataset)
    except (OSError, ValueError, EOFError) as error:
        raise SettingsError(
            f"mask file {name!r} cannot be read as .npy or .h5 ({type(error).__name__}): write it anew."
        ) from error
    values = np.asarray(values)
    if values.shape == shape[1:]:
        values = np.broadcast_to(values, shape)
    if values.shape != shape:
        raise SettingsError(
            f"mask file {name!r} has the shape {values.shape}: "
            f"the images are (slice, y, x) = {shape}; give that or {shape[1:]}."
        )
    return values != 0


def _shapes(text: str) -> Iterator[tuple[str, str]]:
    """Yield kind (circle, polygon or file) and description of each shape of a region text."""
    for part in map(str.strip, text.split("+")):
        kind, _, rest = part.partition(":")
        if kind in ("circle", "polygon") or (kind == "file" and rest.strip()):
            yield kind, rest
        elif kind.endswith(_FILES):
            yield "file", part
        else:
            raise SettingsError(
                f"region {part!r}: write circle:x,y,r or polygon:x1,y1,x2,y2,x3,y3 (pixels from the first one, or "
                "with mm at the end from the image's centre), or file:mask.npy, or file:masks.h5:/dataset."
            )


def check_region(text: str) -> None:
    """Check how a region text is written; files are not opened, and where the images lie is not known yet.

    Raises
    ------
    SettingsError
        The text is not a region.
    """
    for kind, rest in _shapes(text):
        if kind != "file":
            _numbers(rest, kind)


def region_mask(text: str, shape: tuple[int, int, int], pixel_m: tuple[float, float]) -> MaskArray:
    """Return the mask of a region text, bool (slice, y, x).

    Parameters
    ----------
    text
        One or more shapes joined by ``+``; see the module's docstring.
    shape
        (slice, y, x) of the images.
    pixel_m
        Size of a pixel (x, y), m.

    Raises
    ------
    SettingsError
        The text is not a region, a file is missing or does not fit, or no voxel lies inside.
    """
    mask = np.zeros(shape, dtype=bool)
    for kind, rest in _shapes(text):
        if kind == "circle":
            mask |= _circle(rest, pixel_m, shape[1:])
        elif kind == "polygon":
            mask |= _polygon(rest, pixel_m, shape[1:])
        else:
            mask |= _from_file(rest, shape)
    if not mask.any():
        raise SettingsError(f"region {text!r} holds no voxel of the image (slice, y, x) = {shape}.")
    return mask


def named_regions(text: str) -> Mapping[str, str]:
    """Return the region texts of ``name=shape;name=shape`` by name.

    Raises
    ------
    SettingsError
        A part has no name, or a name stands twice.
    """
    regions: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, equals, shape = part.partition("=")
        name = name.strip()
        if not (equals and name and shape.strip()):
            raise SettingsError(f"region {part!r}: write name=shape, e.g. tumour=circle:128,120,15.")
        if name in regions:
            raise SettingsError(f"region {name!r} stands twice: give each region a name of its own.")
        regions[name] = shape.strip()
    return regions
