"""Slices of an image set, prepared as the evaluation protocol says, with the people they belong to."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import DataError
from sinotherm.simulation.image_sets import (
    HOUNSFIELD,
    MAGNITUDE,
    Split,
    attenuation,
    find_splits,
    is_hounsfield,
    is_magnitude,
    prepare,
    read_series,
    set_of,
    shows_something,
    some_of,
)

__all__ = ["EvaluationSlice", "attenuation_slices", "default_split", "magnitude_slices", "spread"]

log = logging.getLogger(__name__)

T = TypeVar("T")


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
    """Return the slices of magnitude images in a folder.

    Parameters
    ----------
    path
        Folder or file of images. Of a folder with a ``splits.json`` only its sets are read.
    split
        People to take; by default as `default_split`.
    per_person
        At most so many slices of a person, spread evenly; ``None`` for all.
    size
        Side, pixels, to which they are brought.

    Raises
    ------
    DataError
        There are no images, or none is a magnitude image with signal.
    """
    needed = f"{MAGNITUDE} (CT: `sinotherm evaluate ct`)"
    people = _slices(path, split, is_magnitude, needed, lambda image: prepare(image, size))
    return [one for slices in people for one in spread(slices, per_person)]


def attenuation_slices(path: Path, *, split: Split | None = None, size: int = 256) -> list[EvaluationSlice]:
    """Return the slices of CT in a folder, as attenuation relative to water.

    Parameters
    ----------
    path
        Folder or file of images in Hounsfield units. Of a folder with a ``splits.json`` only its sets are read.
    split
        People to take; by default as `default_split`.
    size
        Side, pixels, to which they are brought.

    Raises
    ------
    DataError
        There are no images, or none is in Hounsfield units.
    """
    people = _slices(path, split, is_hounsfield, HOUNSFIELD, lambda image: attenuation(image, size))
    return [one for slices in people for one in slices]


def _slices(
    path: Path,
    split: Split | None,
    fits: Callable[[np.ndarray], bool],
    needed: str,
    ready: Callable[[np.ndarray], FloatArray],
) -> list[list[EvaluationSlice]]:
    """Return the slices of each person, made ready; what does not fit or is empty is left out with a warning.

    Parameters
    ----------
    fits, needed
        Whether the images of a series are of the kind that is scored, and what that is, in words.
    """
    splits = find_splits(path)
    datasets: Sequence[str] | None = None
    if splits is not None and (path / "splits.json").is_file():
        datasets = list(splits)
    people: dict[tuple[str, str], list[EvaluationSlice]] = defaultdict(list)
    refused: dict[str, list[str]] = defaultdict(list)
    for series in read_series(path, split=split or default_split(path), datasets=datasets):
        who = f"{series.person} {series.name} ({series.images.min():g} to {series.images.max():g})"
        if not fits(series.images):
            refused[series.dataset].append(who)
            continue
        slices = people[series.dataset, series.person]
        for index, image in enumerate(series.images):
            # Empty slices have no body to score.
            if shows_something(image) and (made := ready(image)).any():
                name = f"{series.name}[{index}]"
                slices.append(EvaluationSlice(dataset=series.dataset, person=series.person, name=name, image=made))
    for dataset, series_names in refused.items():
        log.warning(
            "%s: %d series are left out, %s are needed: %s",
            dataset,
            len(series_names),
            needed,
            some_of(series_names),
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
