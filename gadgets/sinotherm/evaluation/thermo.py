"""``evaluate thermo``: accelerated thermometry of heated series, scored against the truth.

Only the standard library and typer at module level: the command line imports this for its help.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sinotherm.core.record import whole_numbers, writable, writable_folder

if TYPE_CHECKING:
    from sinotherm.core.arrays import ComplexArray, FloatArray, MaskArray
    from sinotherm.evaluation.heated_scans import Heating, Series
    from sinotherm.evaluation.thermal_methods import Temperatures

__all__ = ["command", "figures", "rows"]

logger = logging.getLogger(__name__)

_DISC_M: Final = 0.010
_SPOT_DEGC: Final = (0.5, 2.0)
"""Range of the injected hot spots; tissue above it counts as heated, below a fifth of it as not."""
_LEAST_VOXELS: Final = 100
_MOST_COLUMNS: Final = 16
"""Sets and scenes of a figure, whose layout takes time with their square."""
_CASE: Final = ("dataset", "split", "scene", "peak_degC", "method", "spokes")
_UNHEATED_DEGC: Final = 37.0
_PEAKS_DEGC: Final = (37.0, 39.0, 44.0, 46.0, 50.0)


def _dose_errors(measured: "FloatArray", truth: "FloatArray", interval_s: float) -> tuple[float, float]:
    """Return the error of CEM43 of the T50 and of the T90 curve, percent.

    Parameters
    ----------
    measured, truth
        float (frame, voxel), °C absolute.
    """
    import numpy as np

    from sinotherm.thermometry.dose import cem43

    def doses(values: "FloatArray") -> "FloatArray":
        curves = np.percentile(values, (50.0, 10.0), axis=1)
        return cem43(curves[:, :-1], curves[:, 1:], interval_s).sum(axis=1)

    error = 100.0 * (doses(measured) / doses(truth) - 1.0)
    return float(error[0]), float(error[1])


def _disc_extreme(mean_change: "FloatArray", tissue: "MaskArray", pixel_m: float) -> float:
    """Return the largest |mean| of a map over a disc of 10 mm that lies wholly in tissue, °C."""
    import numpy as np
    from scipy.signal import fftconvolve

    radius = 0.5 * _DISC_M / pixel_m
    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = (np.hypot(x, y) <= radius).astype(np.float64)
    share = fftconvolve(tissue.astype(np.float64), disc, mode="same") / disc.sum()
    total = fftconvolve(np.where(tissue, mean_change, 0.0), disc, mode="same") / disc.sum()
    whole = share > 1.0 - 1e-6
    return float(np.abs(total[whole]).max()) if whole.any() else float(np.abs(total).max())


def _recovery_slope(change: "FloatArray", truth: "FloatArray") -> float | None:
    """Return the slope of measured over true change of the voxels that truly rise by 0.5 to 2 °C, (frame, voxel).

    A series of peak 39 °C is an injected hot spot of 2 °C: all it holds counts.
    """
    import numpy as np

    used = (truth >= _SPOT_DEGC[0]) & (truth <= _SPOT_DEGC[1])
    if used.sum() < _LEAST_VOXELS or np.ptp(truth[used]) < 0.5 * (_SPOT_DEGC[1] - _SPOT_DEGC[0]):
        return None
    return float(np.polyfit(truth[used].astype(np.float64), change[used].astype(np.float64), 1)[0])


def _coverages(error: "FloatArray", sigma: "FloatArray", truth: "FloatArray") -> dict[str, float | None]:
    """Return the share of errors within 1.96 σ_T in tissue that is heated and that is not, each (frame, voxel)."""
    import numpy as np

    known = np.isfinite(sigma)
    covered = np.abs(error) <= 1.96 * sigma
    found = {}
    for name, place in (("heated", truth >= _SPOT_DEGC[0]), ("unheated", truth < 0.2 * _SPOT_DEGC[0])):
        used = known & place
        found[f"coverage95_{name}"] = float(covered[used].mean()) if used.sum() >= _LEAST_VOXELS else None
    return found


def figures(found: "Series", measured: "Temperatures", noise_floor_degc: float) -> dict[str, Any]:
    """Return the figures of one series by one method, as `reference` defines them; ``None``: does not apply.

    Parameters
    ----------
    found, measured
        The series, and what the method shows of its heated frames.
    noise_floor_degc
        σ_T of gridding at these spokes in the tumour, by formula.

    Raises
    ------
    DataError
        No voxel of the tumour has a reading in every frame.
    """
    import numpy as np

    from sinotherm.errors import DataError

    protocol = found.scan.protocol
    truth, full = found.truth_degc[found.n_baseline :], found.full_degc[found.n_baseline :]
    change = measured.change
    inside = found.tumour & np.isfinite(change).all(axis=0)
    tissue = found.tissue & np.isfinite(change).all(axis=0)
    if not inside.any():
        raise DataError("no voxel of the tumour has a reading in every frame: there is nothing to score.")
    error = (change - truth)[:, inside].astype(np.float64)
    to_full = (change - full)[:, inside].astype(np.float64)
    sigma = measured.sigma[:, inside]
    heated = protocol.peak_degc > 0.0
    row: dict[str, Any] = {
        "n_frames": len(change),
        "tumour_voxels": int(inside.sum()),
        "tumour_bias_degC": float(error.mean()),
        "tumour_rmse_degC": math.sqrt(float(np.mean(error**2))),
        "tumour_diff_of_means_degC": float(np.abs(to_full.mean(axis=1)).mean()),
        "tumour_mean_abs_diff_degC": float(np.abs(to_full).mean()),
        "body_mean_abs_error_degC": float(np.abs((change - truth)[:, tissue]).mean()),
        "noise_floor_degC": noise_floor_degc,
        "cem43_t50_error_percent": None,
        "cem43_t90_error_percent": None,
        "dice43": None,
        "false_heating_degC": None,
        "recovery_slope": _recovery_slope(change[:, inside], truth[:, inside]),
        "coverage95": float(np.mean(np.abs(error) <= 1.96 * sigma)) if np.isfinite(sigma).all() else None,
        **_coverages((change - truth)[:, tissue], measured.sigma[:, tissue], truth[:, tissue]),
        "ms_per_frame": measured.ms_per_frame,
    }
    row["tumour_worst_bias_degC"] = abs(row["tumour_bias_degC"])
    if not heated:
        pixel = found.scan.anatomy.fov_m / protocol.matrix
        row["false_heating_degC"] = _disc_extreme(change.mean(axis=0), tissue, pixel)
        return row
    absolute, true = change[:, inside] + _UNHEATED_DEGC, truth[:, inside] + _UNHEATED_DEGC
    row["cem43_t50_error_percent"], row["cem43_t90_error_percent"] = _dose_errors(absolute, true, protocol.interval_s)
    hot, truly_hot = absolute >= 43.0, true >= 43.0
    if truly_hot.any():
        row["dice43"] = float(2.0 * (hot & truly_hot).sum() / (hot.sum() + truly_hot.sum()))
    return row


def _mean(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures over series: mean; RMSE: root mean square; extremes: largest; counts: sum."""
    import numpy as np

    merged: dict[str, Any] = {}
    for name in values[0]:
        found = [row[name] for row in values if row[name] is not None]
        if not found:
            merged[name] = None
        elif name == "tumour_rmse_degC":
            merged[name] = math.sqrt(float(np.mean(np.square(found))))
        elif name in ("n_frames", "tumour_voxels"):
            merged[name] = int(np.sum(found))
        elif name in ("false_heating_degC", "tumour_worst_bias_degC"):
            merged[name] = float(np.max(found))
        else:
            merged[name] = float(np.mean(found))
    return merged


def _objects(
    data: Path | None, split: Any, per_person: int | None, people: int | None, matrix: int
) -> Iterator[tuple[str, str, "Sequence[tuple[str, ComplexArray | FloatArray | None]]"]]:
    """Yield data set, split, and its (person, object) pairs; without data the scenes' own ellipses.

    Raises
    ------
    DataError
        There is nothing usable in the data.
    SettingsError
        A split of complex images is wanted.
    """
    if data is None:
        yield "simulation", "all", [("ellipses", None)]
        return
    from sinotherm.errors import SettingsError
    from sinotherm.evaluation.images import default_split, magnitude_slices

    complex_objects = _complex_objects(data, per_person, people, matrix)
    if complex_objects:
        if split not in (None, "all"):
            raise SettingsError(f"--split {split}: the complex images of {data} have no splits; leave it out.")
        yield data.stem, "all", complex_objects
        return
    slices = magnitude_slices(data, split=split, per_person=per_person, size=matrix)
    for dataset in dict.fromkeys(one.dataset for one in slices):
        names = list(dict.fromkeys(one.person for one in slices if one.dataset == dataset))[:people]
        chosen = [one for one in slices if one.dataset == dataset and one.person in names]
        yield dataset, split or default_split(data), [(one.person, one.image) for one in chosen]


def _complex_objects(
    path: Path, per_person: int | None, people: int | None, matrix: int
) -> "list[tuple[str, ComplexArray]]":
    """Return the complex 2D images of an HDF5 file with their people, cut or padded in k-space to ``matrix``².

    Raises
    ------
    FileFormatError
        The file cannot be read.
    DataError
        It holds complex images, but none that shows anything and is finite.
    """
    import numpy as np

    from sinotherm.errors import DataError
    from sinotherm.evaluation.images import spread
    from sinotherm.simulation.image_sets import SMALLEST, readable, some_of

    if path.suffix.lower() not in (".h5", ".hdf5") or not path.is_file():
        return []
    import h5py

    stored: dict[str, list[ComplexArray]] = {}
    others: dict[str, str] = {}

    def visit(name: str, node: Any) -> None:
        shape = [n for n in getattr(node, "shape", None) or () if n != 1]
        if not isinstance(node, h5py.Dataset) or len(shape) < 2:
            return
        person = name.split("/")[0]
        if node.dtype.kind == "c" and len(shape) < 4 and min(shape[-2:]) >= SMALLEST:
            stored.setdefault(person, []).extend(node[()].reshape(-1, *shape[-2:]))
        else:
            others.setdefault(person, f"{name} {node.dtype} {node.shape}")

    with readable(path, "HDF5"), h5py.File(path, "r") as store:
        store.visititems(visit)
    if stored and (lost := [text for person, text in others.items() if person not in stored]):
        logger.warning(
            "%s: %d people without complex images of two or three dimensions, %d pixels or more a side, are left "
            "out: %s",
            *(path, len(lost), SMALLEST, some_of(lost)),
        )
    found: list[tuple[str, ComplexArray]] = []
    for person, images in list(stored.items())[:people]:
        good = [image for image in images if np.isfinite(image).all() and image.any()]
        if len(good) < len(images):
            logger.warning(
                "%s: %d of %d images of %s are empty or not finite and are left out",
                path,
                len(images) - len(good),
                len(images),
                person,
            )
        found.extend((person, _resampled(image, matrix)) for image in spread(good, per_person))
    if stored and not found:
        raise DataError(f"{path}: its complex images are empty or not finite; a baseline with signal is needed.")
    if found:
        used = dict.fromkeys(person for person, _ in found)
        logger.info("%s: %d people: %s", path.stem, len(used), ", ".join(used))
    return found


def _resampled(image: "ComplexArray", matrix: int) -> "ComplexArray":
    """Return a complex image, made square, at ``matrix``² pixels; its amplitude is kept."""
    import numpy as np

    side = max(image.shape)
    square = np.zeros((side, side), dtype=np.complex64)
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(square)))
    result = np.zeros((matrix, matrix), dtype=np.complex64)
    n = min(side, matrix)
    source, target = side // 2 - n // 2, matrix // 2 - n // 2
    result[target : target + n, target : target + n] = spectrum[source : source + n, source : source + n]
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(result))).astype(np.complex64) * np.float32(
        (matrix / side) ** 2
    )


def rows(
    data: Path | None = None,
    *,
    split: Any = None,
    scenes: "Sequence[Heating]" = ("rf", "focal"),
    peaks_degc: Sequence[float] | None = None,
    spokes: Sequence[int] = (201, 100, 50, 40, 25),
    names: Sequence[str] | None = None,
    seeds: int = 3,
    first_seed: int = 0,
    coils: int = 8,
    snr: float = 40.0,
    matrix: int = 256,
    baseline_frames: int = 30,
    frames: int = 20,
    per_person: int | None = 1,
    people: int | None = None,
    temperature: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each data set, scene, peak, number of spokes and method.

    Each row is the mean over the objects and seeds; every method sees the same objects, places, drift
    and noise level. With a curve (``temperature``) its highest rise within the scan makes the one peak.

    Raises
    ------
    SettingsError
        A method, scene or split is unknown, both peaks and a curve are given, or the curve does not rise in time.
    DataError
        The data or the curve cannot be used, or no object has room for the heated region.
    WeightsError
        A network's weights are missing; the message names the file.
    """
    import numpy as np

    from sinotherm.errors import DataError, SettingsError
    from sinotherm.evaluation.heated_scans import SCENES, heated_scan, series
    from sinotherm.evaluation.sign import read_probe
    from sinotherm.evaluation.thermal_methods import METHODS, gridding_noise_sd, method_named, temperatures

    unknown = [scene for scene in scenes if scene not in SCENES]
    if unknown:
        raise SettingsError(f"unknown scene {unknown[0]!r}; known scenes, with commas between: {', '.join(SCENES)}.")
    if split not in (None, "train", "val", "all"):
        raise SettingsError(f"unknown split {split!r}; known splits: train, val, all.")
    methods = [method_named(name) for name in (METHODS if names is None else names)]
    curve = None if temperature is None else read_probe(temperature, "--temperature")
    peaks: Sequence[float | None] = peaks_degc or _PEAKS_DEGC
    if curve is not None:
        if peaks_degc is not None:
            raise SettingsError(
                "--peaks and --temperature exclude each other: the curve says its peak itself; leave one of them out."
            )
        peaks = (None,)
        _tell_lengths(curve, frames, scenes, spokes)
    for dataset, chosen_split, objects in _objects(data, split, per_person, people, matrix):
        for scene, peak, count in product(scenes, peaks, spokes):
            scores: dict[str, list[dict[str, Any]]] = {method.name: [] for method in methods}
            for index, (person, image) in enumerate(objects):
                for seed in range(first_seed, first_seed + seeds):
                    try:
                        made = {
                            schedule: series(
                                heated_scan(
                                    image,
                                    heating=scene,
                                    peak_degc=peak,
                                    spokes=count,
                                    seed=1000 * index + seed,
                                    schedule=schedule,
                                    coils=coils,
                                    snr=snr,
                                    matrix=matrix,
                                    baseline_frames=baseline_frames,
                                    heated_frames=frames,
                                    curve=curve,
                                )
                            )
                            for schedule in dict.fromkeys(method.schedule for method in methods)
                        }
                    except DataError as error:
                        # One slice without room for the tumour does not cost the others their scores.
                        logger.warning("%s, %s, %s, seed %d is left out: %s", dataset, person, scene, seed, error)
                        continue
                    shown: dict[str, Temperatures] = {}
                    for method in methods:
                        found = made[method.schedule]
                        measured = shown[method.base] = temperatures(found, method, shown.get(method.base))
                        floor = _noise_floor(found, gridding_noise_sd(found))
                        scores[method.name].append(figures(found, measured, floor))
            if not all(scores.values()):
                raise DataError(
                    f"{dataset}: no object has room for the tumour of the scene {scene}: give other images."
                )
            for method in methods:
                settings = ", ".join(f"{key} {value}" for key, value in method.settings.items()) or "none"
                logger.info("%s: settings %s", method.name, settings)
                yield {
                    "dataset": dataset,
                    "split": chosen_split,
                    "scene": scene,
                    "peak_degC": float(np.round(_UNHEATED_DEGC + found.scan.protocol.peak_degc, 3)),
                    "method": method.name,
                    "spokes": count,
                    **_mean(scores[method.name]),
                }


def _tell_lengths(
    curve: "tuple[FloatArray, FloatArray]", frames: int, scenes: "Sequence[Heating]", spokes: Sequence[int]
) -> None:
    """Warn where a heating curve goes on after the last frame."""
    from sinotherm.evaluation.heated_scans import frame_interval_s

    for scene, count in product(scenes, spokes):
        lasts_s = frames * frame_interval_s(scene, count)
        if curve[0][-1] > lasts_s:
            logger.warning(
                "the curve lasts %g s, the heated frames of %s with %d spokes %g s: the rest of it is left out; "
                "--frames makes more of them",
                *(curve[0][-1], scene, count, lasts_s),
            )


def _noise_floor(found: "Series", noise_sd: float) -> float:
    """Return the median σ_T of gridding in the tumour, °C: frame and mean of the baseline frames."""
    import numpy as np

    from sinotherm.core.physics import PRF_COEFFICIENT, degc_per_radian

    protocol = found.scan.protocol
    signal = (found.scan.anatomy.water * found.scan.coils.optimal_signal())[found.tumour]
    scale = degc_per_radian(
        larmor_hz=protocol.larmor_hz, echo_time_s=protocol.echo_time_s, prf_coefficient=PRF_COEFFICIENT, phase_sign=1
    )
    return float(np.median(noise_sd / signal) * math.sqrt(1.0 + 1.0 / found.n_baseline) * abs(scale))


def _picture(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw RMSE and bias in the tumour against the spokes, one line a method, one column a scene."""
    from matplotlib.figure import Figure

    from sinotherm.evaluation.tables import printable, write_figure

    scenes = list(dict.fromkeys((row["dataset"], row["scene"]) for row in results))
    if len(scenes) > _MOST_COLUMNS:
        logger.info("%s shows the first %d of %d sets and scenes", path, _MOST_COLUMNS, len(scenes))
        scenes = scenes[:_MOST_COLUMNS]
    figure = Figure(figsize=(4.5 * len(scenes), 7.0), layout="constrained")
    axes = figure.subplots(2, len(scenes), squeeze=False)
    for column, place in enumerate(scenes):
        here = [row for row in results if (row["dataset"], row["scene"]) == place]
        for method in dict.fromkeys(row["method"] for row in here):
            own = [row for row in here if row["method"] == method]
            counts = sorted({row["spokes"] for row in own})
            for line, name in enumerate(("tumour_rmse_degC", "tumour_bias_degC")):
                values = [
                    sum(row[name] for row in own if row["spokes"] == count) / sum(row["spokes"] == count for row in own)
                    for count in counts
                ]
                axes[line][column].plot(counts, values, "o-", label=method)
                axes[line][column].set(xlabel="spokes of a frame", ylabel=name.replace("_", " "))
        axes[0][column].set_title(printable(" ".join(place)), parse_math=False)
        axes[0][column].set_yscale("log")
    axes[0][0].legend()
    write_figure(figure, path)


def _numbers(text: str, option: str) -> list[float]:
    from sinotherm.errors import SettingsError

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not (numbers and all(map(math.isfinite, numbers))):
        raise SettingsError(f"{option} {text!r}: numbers with commas between are needed.")
    return numbers


def _earlier(path: Path | None) -> list[dict[str, Any]]:
    """Return the rows of a record that is to be added to.

    Raises
    ------
    SettingsError
        No file is named, or it is no record of this command.
    """
    from json import loads

    from sinotherm.errors import SettingsError

    if path is None:
        raise SettingsError("--append adds to the file of --json: name one.")
    if not path.is_file():
        return []
    try:
        return [dict(row) for row in loads(path.read_text(encoding="utf-8"))["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"--append: {path} is no record of `sinotherm evaluate thermo` ({error!r}).") from error


def _merged(earlier: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the earlier rows, those of the same case replaced, and the new ones.

    Raises
    ------
    SettingsError
        The earlier rows have other figures.
    """
    from sinotherm.errors import SettingsError

    if any(row.keys() != results[0].keys() for row in earlier):
        raise SettingsError("--append: the rows of the --json file have other figures: begin a new one.")
    cases = {tuple(row[name] for name in _CASE) for row in results}
    return [*(row for row in earlier if tuple(row[name] for name in _CASE) not in cases), *results]


def command(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Magnitude images, or an HDF5 file of complex baselines; without it the scenes' ellipses."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="train, val or all of the image sets.")] = None,
    temperature: Annotated[
        Path | None,
        typer.Option(
            help="Heating curve of the hottest voxel, instead of --peaks: CSV, time_s from the end of the baseline "
            "and temperature_degC, of which the rise counts."
        ),
    ] = None,
    scenes: Annotated[
        str,
        typer.Option(help="rf (diffuse, a frame every 20 s), focal, rf-fast (diffuse within seconds), with commas."),
    ] = "rf,focal",
    peaks: Annotated[
        str | None,
        typer.Option(help="Highest temperatures, °C; 37 is not heated. By default 37,39,44,46,50.", show_default=False),
    ] = None,
    spokes: Annotated[str, typer.Option(help="Spokes of a frame; R_nyquist = 402 / spokes.")] = "201,100,50,40,25",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, with commas between, each with -trend at its end too; by default gridding, cg-sense-tv, "
            "tcr, view-sharing, kspace-hybrid, pdunet and pdunet-fat-trend."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Places, drifts and noises of each case.", min=1)] = 3,
    first_seed: Annotated[int, typer.Option("--first-seed", help="First of the seeds.", min=0)] = 0,
    snr: Annotated[float, typer.Option(help="SNR of 402 spokes in the tumour.", min=1.0)] = 40.0,
    coils: Annotated[int, typer.Option(help="Receiver coils.", min=1, max=64)] = 8,
    matrix: Annotated[int, typer.Option(help="Pixels of an image's side.", min=32, max=512)] = 256,
    frames: Annotated[int, typer.Option(help="Heated frames of a series.", min=3)] = 20,
    per_person: Annotated[
        int | None, typer.Option("--per-person", help="At most so many slices of a person.", min=1)
    ] = 1,
    people: Annotated[int | None, typer.Option(help="At most so many people of a data set.", min=1)] = None,
    baseline_frames: Annotated[
        int, typer.Option("--baseline-frames", help="Frames before the heating.", min=2, max=1000)
    ] = 30,
    append: Annotated[
        bool, typer.Option("--append", help="Keep the rows of the --json file; those of the same case are replaced.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the CSV, the Markdown table and the figure.", callback=writable_folder
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="File for the figures, with machine and versions.", callback=writable),
    ] = None,
) -> None:
    """Score accelerated thermometry on heated series: bias, RMSE, dose, isotherm and false heating in the tumour."""
    from sinotherm.core.record import figures_record, write_record
    from sinotherm.evaluation.tables import command_line, print_row, table_cell, write_table

    earlier = _earlier(json) if append else []
    results: list[dict[str, Any]] = []
    for row in rows(
        data,
        split=split,
        scenes=scenes.split(","),  # type: ignore[arg-type]
        peaks_degc=None if peaks is None else _numbers(peaks, "--peaks"),
        spokes=whole_numbers(spokes, "--spokes"),
        names=methods.split(",") if methods else None,
        seeds=seeds,
        first_seed=first_seed,
        coils=coils,
        snr=snr,
        matrix=matrix,
        baseline_frames=baseline_frames,
        frames=frames,
        per_person=per_person,
        people=people,
        temperature=temperature,
    ):
        if not results:
            print_row(list(row))
            print_row(["---"] * len(row))
        results.append(row)
        print_row([table_cell(value) for value in row.values()])
        # Whoever stops a long run keeps the rows that are ready.
        if json is not None:
            write_record(json, figures_record(command_line(), _merged(earlier, results)))
        if output is not None:
            write_table(_merged(earlier, results), output, "thermo")
    if output is not None:
        _picture(_merged(earlier, results), output / "thermo.png")
