"""What scores of reconstructions leave behind: table, record, and a figure of the worst, median and best slice."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray
from sinotherm.core.record import figures_record, write_record
from sinotherm.evaluation.images import EvaluationSlice
from sinotherm.evaluation.metrics import ImageScores, fit_scale, people_means, score
from sinotherm.evaluation.tables import command_line, print_row, printable, table_cell, write_figure, write_table

__all__ = ["Again", "Result", "report", "set_rows"]

log = logging.getLogger(__name__)

Result: TypeAlias = tuple[dict[str, Any], list[tuple[EvaluationSlice, ImageScores]]]
"""A row of the table, and the scores of the slices behind it."""

Again: TypeAlias = Callable[
    [Sequence[str]], Callable[[Mapping[str, Any], FloatArray, int], tuple[ComplexArray, dict[str, ComplexArray]]]
]
"""From the methods' names: from a row, a slice's image and its place among the set's, the truth and each image."""

_CASE: Final = ("dataset", "coils", "angles", "spokes")
_MOST_SETS: Final = 8
"""Sets of a figure, whose layout takes time with their square."""


def set_rows(
    slices: Sequence[EvaluationSlice],
    methods: Iterable[str],
    images_of: Callable[[FloatArray, int], tuple[ComplexArray, dict[str, ComplexArray]]],
) -> Iterator[tuple[str, str, Result]]:
    """Yield set, method, and means over people with the scores of each slice, set by set.

    Parameters
    ----------
    images_of
        Makes of a slice's image and its place among the set's the truth and the image of each method.
    """
    for dataset in dict.fromkeys(one.dataset for one in slices):
        scores: dict[str, list[tuple[EvaluationSlice, ImageScores]]] = {name: [] for name in methods}
        for index, one in enumerate(one for one in slices if one.dataset == dataset):
            truth, images = images_of(one.image, index)
            for name, image in images.items():
                scores[name].append((one, score(image, truth)))
        for name, found in scores.items():
            yield dataset, name, (people_means([(one.person, value) for one, value in found]), found)


def report(
    results: Iterable[Result], name: str, *, again: Again, output: Path | None, json: Path | None
) -> list[dict[str, Any]]:
    """Print rows as they come, and write them as record and, with a figure, to a folder where these are given.

    Parameters
    ----------
    name
        Of the files in the folder: ``NAME.csv``, ``NAME.md`` and ``NAME.png``.
    again
        Makes the images of the figure.

    Returns
    -------
    list[dict[str, Any]]
        The rows.
    """
    kept: list[Result] = []
    for row, scores in results:
        if not kept:
            print_row(list(row))
        print_row([table_cell(value) for value in row.values()])
        kept.append((row, scores))
        # Whoever stops a long run keeps the rows that are ready.
        if json is not None:
            write_record(json, figures_record(command_line(), [row for row, _ in kept]))
        if output is not None:
            write_table([row for row, _ in kept], output, name)
    if output is not None:
        _figure(kept, output / f"{name}.png", again)
    return [row for row, _ in kept]


def _figure(results: Sequence[Result], file: Path, again: Again) -> None:
    """Draw the worst, median and best slice of the last method of each set, for every method of its last case."""
    from matplotlib.figure import Figure

    last = {row["dataset"]: row for row, _ in results}
    if len(last) > _MOST_SETS:
        log.info("%s shows the first %d of %d sets", file, _MOST_SETS, len(last))
        last = dict(list(last.items())[:_MOST_SETS])
    methods = list(dict.fromkeys(row["method"] for row, _ in results))
    figure = Figure(figsize=(2.4 * (len(methods) + 1), 2.5 * 3 * len(last)), layout="constrained")
    axes = figure.subplots(3 * len(last), len(methods) + 1, squeeze=False)
    for number, row in enumerate(last.values()):
        case = [(r, s) for r, s in results if all(r.get(key) == row.get(key) for key in _CASE)]
        scores = case[-1][1]
        images = again([r["method"] for r, _ in case])
        ranking = sorted(range(len(scores)), key=lambda place: scores[place][1].ssim)
        chosen = [ranking[0], ranking[len(ranking) // 2], ranking[-1]]
        for line, place in zip(axes[3 * number : 3 * number + 3], chosen, strict=True):
            one = scores[place][0]
            truth, found = images(row, one.image, place)
            window = {"cmap": "gray", "vmin": 0.0, "vmax": float(np.percentile(np.abs(truth), 99.5))}
            line[0].imshow(np.abs(truth), **window)
            line[0].set_title(printable(f"{one.person} {one.name} truth"), fontsize=7, parse_math=False)
            # A case may have fewer methods than another one.
            for axis, (r, values) in zip(line[1:], case, strict=False):
                image = found[r["method"]]
                axis.imshow(np.abs(image * fit_scale(image, truth)), **window)
                axis.set_title(f"{r['method']} {values[place][1].ssim:.3f}", fontsize=7)
    for axis in axes.flat:
        axis.set_axis_off()
    write_figure(figure, file)
