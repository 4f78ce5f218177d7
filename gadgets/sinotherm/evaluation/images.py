"""Slices of an image set, prepared as the evaluation protocol says, with the people they belong to."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import DataError
from sinotherm.simulation.image_sets import (
    ImageSeries,
    Split,
    attenuation,
    find_splits,
    is_label,
    prepare,
    read_series,
    set_of,
)

__all__ = ["EvaluationSlice", "attenuation_slices", "default_split", "magnitude_slices", "spread"]

log = logging.getLogger(__name__)

T = TypeVar("T")

NOT_MR: Final = ("ct_", "multicoil", "radial_", "thermometry", "wire")
AIR_HU: Final = -500.0
"""A CT image has air below it and tissue above 0."""
LEAST_NEGATIVE: Final = -0.1
"""Resampling leaves small values below 0 in magnitude images, in parts of the largest one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSlice:
    """One slice, float32 (256, 256), and where it comes from.

    A magnitude image has its 99.5th percentile at 1; CT is attenuation relative to water.
    """

    dataset: str
    person: str
    name: str
    image: FloatArray


def default_split(path: Path) -> Split:
    """Return ``val`` where a ``splits.json`` beside the images tells their people apart, else ``all``."""
    splits = find_splits(path)
    if splits is None or not ((path / "splits.json").is_file() or set_of(path, splits)):
        return "all"
    return "val"


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """Return at most so many items, spread evenly; ``None`` for all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, count + 2)[1:-1]]


def magnitude_slices(
    path: Path, *, split: Split | None = None, per_person: int | None = None, size: int = 256
) -> list[EvaluationSlice]:
    """Return the slices of the magnitude MR sets in a folder.

    Parameters
    ----------
    path
        Folder or file of images. Of a folder with a ``splits.json`` only its MR sets are read.
    split
        People to take; by default as `default_split`.
    per_person
        At most so many slices of a person, spread evenly; ``None`` for all.

    Raises
    ------
    DataError
        There are no images, or none is a magnitude image with signal.
    """

    def fits(series: ImageSeries) -> bool:
        return not _is_hounsfield(series.images) and series.images.min() >= LEAST_NEGATIVE * series.images.max()

    needed = "magnitude images, which have no values below 0 (CT: `sinotherm evaluate ct`)"
    people = _slices(path, split, lambda name: not name.startswith(NOT_MR), fits, needed, lambda i: prepare(i, size))
    return [one for slices in people for one in spread(slices, per_person)]


def attenuation_slices(path: Path, *, split: Split | None = None, size: int = 256) -> list[EvaluationSlice]:
    """Return the slices of the CT sets in a folder, as attenuation relative to water.

    Parameters
    ----------
    path
        Folder or file of images in Hounsfield units. Of a folder with a ``splits.json`` only its sets ``ct_…`` are
        read.
    split
        People to take; by default as `default_split`.

    Raises
    ------
    DataError
        There are no images, or none is in Hounsfield units.
    """
    needed = "Hounsfield units: air near -1000 (a minimum below -500), tissue near 0 (a maximum above 0)"
    people = _slices(
        path,
        split,
        lambda name: name.startswith("ct_"),
        lambda series: _is_hounsfield(series.images),
        needed,
        lambda image: attenuation(image, size),
    )
    return [one for slices in people for one in slices]


def _is_hounsfield(images: np.ndarray) -> bool:
    return bool(images.min() < AIR_HU and images.max() > 0)


def _slices(
    path: Path,
    split: Split | None,
    of_kind: Callable[[str], bool],
    fits: Callable[[ImageSeries], bool],
    needed: str,
    ready: Callable[[np.ndarray], FloatArray],
) -> list[list[EvaluationSlice]]:
    """Return the slices of each person, made ready; what does not fit or is empty is left out with a warning.

    Parameters
    ----------
    of_kind
        Whether to read a set of ``splits.json``, by its name.
    fits, needed
        Whether a series is of the kind that is scored, and what that is, in words.
    """
    splits = find_splits(path)
    datasets: Sequence[str] | None = None
    if splits is not None and (path / "splits.json").is_file():
        datasets = [name for name in splits if of_kind(name)]
    people: dict[tuple[str, str], list[EvaluationSlice]] = defaultdict(list)
    refused: dict[str, list[str]] = defaultdict(list)
    for series in read_series(path, split=split or default_split(path), datasets=datasets):
        who = f"{series.person} {series.name} ({series.images.min():g} to {series.images.max():g})"
        if is_label(series.name) or not fits(series):
            refused[series.dataset].append(who)
            continue
        slices = people[series.dataset, series.person]
        for index, image in enumerate(series.images):
            # Empty slices have no body to score.
            if np.ptp(image) > 0 and (made := ready(image)).any():
                name = f"{series.name}[{index}]"
                slices.append(EvaluationSlice(dataset=series.dataset, person=series.person, name=name, image=made))
    for dataset, series_names in refused.items():
        log.warning(
            "%s: %d series are left out, which are not %s: %s",
            dataset,
            len(series_names),
            needed,
            ", ".join([*series_names[:5]] + ["…"] * (len(series_names) > 5)),
        )
    for dataset in dict.fromkeys(name for name, _ in people):
        all_of = [person for name, person in people if name == dataset]
        empty = [person for person in all_of if not people[dataset, person]]
        if shown := [person for person in all_of if person not in empty]:
            log.info("%s: %d people: %s", dataset, len(shown), ", ".join(shown))
        if empty:
            log.warning("%s: no slice of %s shows anything; left out", dataset, ", ".join(empty))
    found = [slices for slices in people.values() if slices]
    if not found:
        seen = next((f"; {names[0]} is not" for names in refused.values()), "; the slices there are empty")
        raise DataError(f"nothing to score in {path}: {needed}, are needed{seen}.")
    return found
