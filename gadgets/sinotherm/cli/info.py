"""``sinotherm info``: what is in an MRD file, in a screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from sinotherm.core.scan import ScanHeader
    from sinotherm.wire.file import MrdFile

__all__ = ["command", "describe"]

_SILENT: Final = "not stated"
_MEASURED: Final = 2
"""Series of complex images that `stages.complex_images` measures."""


def command(
    scan: Annotated[Path, typer.Argument(metavar="FILE", help="MRD file.")],
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures here as well.")] = None,
    dataset: Annotated[str, typer.Option(help="Group of the scan in the file.")] = "dataset",
) -> None:
    """Say what is in an MRD file and what will be reconstructed of it.

    Frames are counted as the shipped pipelines count them, without any --set.
    """
    import shlex
    import sys

    from rich.console import Console
    from rich.table import Table

    from sinotherm.core.record import figures_record, write_record

    figures = describe(scan, dataset=dataset)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(figures):
        table.add_row(name, text)
    Console(highlight=False, markup=False, emoji=False).print(table)
    if json is not None:
        write_record(json, figures_record(shlex.join(["sinotherm", *sys.argv[1:]]), figures))


def describe(path: Path, *, dataset: str = "dataset") -> dict[str, Any]:
    """Return the figures of an MRD file; ``None`` where header and readouts are silent.

    Raises
    ------
    FileFormatError, HeaderError
        It is no MRD file, or its header cannot be read.
    """
    from sinotherm.frames.header import scan_header
    from sinotherm.wire.file import MrdFile

    with MrdFile(path, dataset=dataset) as file:
        header = scan_header(file.header_xml)
        figures = {"file": path.name} | _stated(header) | _counted(file, header)
    problems: list[str] = []
    return figures | {"image_series": _series(path, dataset, problems), "image_problems": problems}


def _stated(scan: ScanHeader) -> dict[str, Any]:
    """Return what the header states."""

    def rounded(values: tuple[float, ...], digits: int) -> list[float]:
        return [round(1e3 * value, digits) for value in values]

    return {
        "protocol": scan.protocol or None,
        "matrix": list(scan.recon.matrix),
        "fov_mm": rounded(scan.recon.fov_m, 3),
        "encoded_matrix": list(scan.encoded.matrix),
        "encoded_fov_mm": rounded(scan.encoded.fov_m, 3),
        "trajectory_stated": scan.trajectory or None,
        "echo_times_ms": rounded(scan.echo_times_s, 4),
        "repetition_time_ms": None if scan.repetition_time_s is None else round(1e3 * scan.repetition_time_s, 4),
        "field_strength_T": scan.field_strength_t,
        "larmor_Hz": scan.larmor_hz,
        "slices_stated": scan.n_slices,
        "partitions_stated": scan.n_partitions,
        "spokes_per_frame_stated": scan.spokes_per_frame,
    }


def _counted(file: MrdFile, scan: ScanHeader) -> dict[str, Any]:
    """Return what the readouts hold; the first one that cannot be used ends the counting of spokes."""
    import dataclasses
    import math

    from sinotherm.cli.progress import counted
    from sinotherm.core.scan import Frame
    from sinotherm.errors import SinothermError
    from sinotherm.frames.assembly import FrameAssembler
    from sinotherm.frames.spokes import SpokeReader
    from sinotherm.frames.whitening import is_noise

    reader, assembler = SpokeReader(scan), FrameAssembler(scan)
    frames: list[int] = []
    n_spokes = noise_samples = 0
    places: set[tuple[int, int]] = set()
    dwell_us = first_s = last_s = math.nan
    coils = scan.n_coils
    problem: str | None = None
    try:
        for readout in counted(file.readouts(), total=file.n_readouts, what="readouts"):
            if is_noise(readout.header):
                noise_samples += readout.data.shape[1]
            spoke = reader.read(readout)
            if spoke is None:
                continue
            n_spokes += 1
            coils, dwell_us = len(readout.data), readout.header.sample_time_us
            places.add((spoke.slice, spoke.echo))
            first_s = spoke.time_s if math.isnan(first_s) else first_s
            last_s = spoke.time_s
            # One sample will do for counting, however long a frame is.
            light = dataclasses.replace(spoke, data=spoke.data[:1, :1].copy())
            frames += [item.n_spokes for item in assembler.add(light) if isinstance(item, Frame)]
        frames += [item.n_spokes for item in assembler.finish() if isinstance(item, Frame)]
    except SinothermError as error:
        problem = str(error)
    sampling = reader.sampling
    return {
        "readouts": file.n_readouts,
        "waveforms": file.n_waveforms,
        "coils": coils,
        "noise_readouts": reader.kept_out["noise"],
        "noise_samples": noise_samples,
        "other_readouts": {kind: count for kind, count in reader.kept_out.items() if kind != "noise"},
        "readouts_missing": reader.n_missing,
        "readouts_repeated": reader.n_repeated,
        "spokes": n_spokes,
        "samples_per_spoke": None if sampling is None else sampling.n_readout,
        "sample_spacing_cycles_per_pixel": None if sampling is None else round(sampling.spacing, 9),
        "sample_centre": None if sampling is None else round(sampling.centre, 4),
        "dwell_us": round(dwell_us, 4) if dwell_us > 0.0 else None,
        "spoke_angles": None if sampling is None else reader.angle_source,
        "trajectory_unit": None if reader.trajectory_unit == "auto" else reader.trajectory_unit,
        "slices": len({slice_ for slice_, _ in places}),
        "echoes": len({echo for _, echo in places}),
        "duration_s": None if math.isnan(first_s) else round(last_s - first_s, 4),
        "frame_rule": assembler.described(),
        "frames": len(frames),
        "spokes_per_frame": sorted(set(frames)),
        "spokes_left_over": assembler.n_dropped_spokes,
        "problem": problem,
    }


def _series(path: Path, dataset: str, problems: list[str]) -> list[dict[str, Any]]:
    from sinotherm.wire.file import read_images

    return [
        {
            "series": number,
            "images": len(series.data),
            "shape": list(series.data.shape[1:]),
            "type": str(series.data.dtype),
            "product": next((meta.get("sinotherm_product") for meta in series.meta), None),
        }
        for number, first in sorted(read_images(path, dataset=dataset, problems=problems).items())
        for series in (first, *first.others)
    ]


def _list(values: list[Any], unit: str = "") -> str:
    return f"{', '.join(f'{value:g}' for value in values)}{unit}" if values else _SILENT


def _value(value: float | None, unit: str) -> str:
    return _SILENT if value is None else f"{value:g} {unit}"


def _size(matrix: list[int], fov_mm: list[float]) -> str:
    pixels = " x ".join(str(n) for n in matrix if n > 1) or "1"
    return f"{pixels} pixels, {' x '.join(f'{length:g}' for length in fov_mm)} mm"


def _rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the table: name and text of each row."""
    n = figures["spokes"]
    unit = figures["trajectory_unit"]
    stated = figures["trajectory_stated"] or _SILENT
    angles = figures["spoke_angles"]
    if n == 0:
        source = "no spokes"
    elif unit is not None:
        source = f"angles from the trajectory, detected unit: {unit}"
    else:
        source = f"no trajectory; angles: {angles}"
    others = ", ".join(f"{count} {kind}" for kind, count in figures["other_readouts"].items())
    noise = f"{figures['noise_readouts']} ({figures['noise_samples']} samples)" if figures["noise_readouts"] else "none"
    rows = [
        ("file", figures["file"]),
        ("protocol", figures["protocol"] or _SILENT),
        ("image", _size(figures["matrix"], figures["fov_mm"])),
        ("encoded", _size(figures["encoded_matrix"], figures["encoded_fov_mm"])),
        ("trajectory", f"{stated}; {source}"),
        ("readouts", f"{figures['readouts']}: {n} spokes, noise: {noise}" + (f", {others}" if others else "")),
        ("coils", _SILENT if figures["coils"] is None else str(figures["coils"])),
        ("gaps", f"{figures['readouts_missing']} readouts missing, {figures['readouts_repeated']} repeated"),
    ]
    if n:
        rows += [
            (
                "spoke",
                f"{figures['samples_per_spoke']} samples, centre at {figures['sample_centre']:g}, spacing "
                f"1/{1 / figures['sample_spacing_cycles_per_pixel']:.5g} cycles per pixel, "
                f"sample time {_value(figures['dwell_us'], 'us')}",
            ),
            ("slices, echoes", f"{figures['slices']}, {figures['echoes']}"),
            ("duration", "no time stamps" if figures["duration_s"] is None else f"{figures['duration_s']:g} s"),
        ]
    rows += [
        ("TE", _list(figures["echo_times_ms"], " ms")),
        ("TR", _value(figures["repetition_time_ms"], "ms")),
        ("B0", f"{_value(figures['field_strength_T'], 'T')}; f0: {_value(figures['larmor_Hz'], 'Hz')}"),
        ("waveforms", str(figures["waveforms"])),
    ]
    for series in figures["image_series"]:
        shape = " x ".join(str(length) for length in series["shape"])
        rows.append((f"series {series['series']}", f"{series['images']} images, {shape} {series['type']}"))
    rows += [("unreadable", problem) for problem in figures["image_problems"]]
    return [*rows, ("will be", _outlook(figures))]


def _outlook(figures: dict[str, Any]) -> str:
    """Return what the shipped pipelines will make of it."""
    problem = figures["problem"]
    # The thermometry pipeline refuses a file that holds readouts as well.
    if not figures["readouts"] and (found := _complex_series(figures)):
        return "; ".join([f"temperature maps of the complex images ({found}): -p thermometry", *_lacking(figures)])
    if problem is not None and not figures["frames"]:
        return f"not reconstructed: {problem}"
    if not figures["frames"]:
        return "nothing: there is no complete frame of spokes"
    per_frame = " or ".join(str(count) for count in figures["spokes_per_frame"])
    parts = [f"{figures['frames']} images of {per_frame} spokes (a frame ends by {figures['frame_rule']})"]
    if problem is not None:
        parts.append(f"it ends there: {problem}")
    if figures["spokes_left_over"]:
        parts.append(f"{figures['spokes_left_over']} spokes are left over")
    if not figures["noise_readouts"]:
        parts.append("no noise scan: SNR and predicted temperature uncertainty are unknown")
    return "; ".join([*parts, *_lacking(figures)])


def _complex_series(figures: dict[str, Any]) -> str:
    found = dict.fromkeys(
        str(one["series"])
        for one in figures["image_series"]
        # A sinogram is complex, but no image of the body.
        if one["type"].startswith("complex") and not str(one["product"]).startswith("sinogram")
    )
    measured, others = list(found)[:_MEASURED], list(found)[_MEASURED:]
    said = f"series {', '.join(measured)}" if measured else ""
    return f"{said}; without maps: {', '.join(others)}" if others else said


def _lacking(figures: dict[str, Any]) -> list[str]:
    """Return what thermometry needs and the header does not state."""
    missing = [name for name, found in (("TE", figures["echo_times_ms"]), ("f0", figures["larmor_Hz"])) if not found]
    return [f"thermometry needs {' and '.join(missing)}, which the header does not state"] if missing else []
