"""Slices of an image set, prepared as the evaluation protocol says, with the people they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sinotherm.core.arrays import FloatArray
from sinotherm.simulation.image_sets import Split, find_splits, prepare, read_series

__all__ = ["EvaluationSlice", "default_split", "magnitude_slices"]

NOT_MR: Final = ("ct_", "multicoil", "radial_", "thermometry", "wire")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSlice:
    """One slice: float32 (256, 256), 99.5th percentile at 1, and where it comes from."""

    dataset: str
    person: str
    name: str
    image: FloatArray


def default_split(path: Path) -> Split:
    """Return ``val`` where there is a ``splits.json`` beside the images, else ``all``."""
    return "val" if find_splits(path) is not None else "all"


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
        There are no images.
    """
    splits = find_splits(path)
    datasets: Sequence[str] | None = None
    if splits is not None and (path / "splits.json").is_file():
        datasets = [name for name in splits if not name.startswith(NOT_MR)]
    people: dict[tuple[str, str], list[EvaluationSlice]] = {}
    for series in read_series(path, split=split or default_split(path), datasets=datasets):
        for index, image in enumerate(series.images):
            # Empty slices have no body to score.
            if np.ptp(image) > 0:
                one = EvaluationSlice(
                    dataset=series.dataset,
                    person=series.person,
                    name=f"{series.name}[{index}]",
                    image=prepare(image, size),
                )
                people.setdefault((series.dataset, series.person), []).append(one)
    chosen: list[EvaluationSlice] = []
    for slices in people.values():
        count = len(slices) if per_person is None else min(per_person, len(slices))
        places = np.linspace(0, len(slices) - 1, count + 2)[1:-1] if count < len(slices) else np.arange(count)
        chosen += [slices[round(place)] for place in places]
    return chosen
