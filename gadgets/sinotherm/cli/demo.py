"""``sinotherm demo``: the whole chain on a simulated hyperthermia scan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["command"]


def command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for what it leaves.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Another body, heating, field and noise.", min=0)] = 0,
    accelerated: Annotated[
        bool, typer.Option(help="Then the same scene at R = 10: gridding and PDUNet side by side.")
    ] = True,
    keep_scan: Annotated[bool, typer.Option("--keep-scan", help="Keep the scans (0.7 GB) beside the images.")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures here as well.")] = None,
) -> None:
    """Simulate a hyperthermia scan, stream it through the server, and judge the maps by the truth.

    Leaves report.json, images.h5 (MRD) and overview.png in DIR, and accelerated.h5 and accelerated.png.
    """
    import logging
    import sys
    from dataclasses import replace
    from time import monotonic

    from rich.console import Console

    from sinotherm.cli.progress import counted
    from sinotherm.core.record import figures_record, writable, write_record
    from sinotherm.evaluation import demonstration
    from sinotherm.evaluation.pictures import overview, side_by_side
    from sinotherm.evaluation.tables import command_line

    start_s = monotonic()
    output.mkdir(parents=True, exist_ok=True)
    records = [output / "report.json", *([json] if json is not None else [])]
    for path in records:
        writable(path)
    protocol = replace(demonstration.DEMO, seed=seed)
    # The log of a clean run is a page that hides the table; warnings stay, and --verbose shows all.
    log = logging.getLogger("sinotherm")
    level = log.level
    if log.getEffectiveLevel() >= logging.INFO:
        log.setLevel(logging.WARNING)
    fast = None
    try:
        found = demonstration.demonstrate(output, protocol, watch=counted)
        if accelerated:
            fast = demonstration.accelerated(output, replace(demonstration.ACCELERATED, seed=seed), watch=counted)
    finally:
        log.setLevel(level)
        if not keep_scan and output.is_dir():
            for scan in ("scan.h5", "accelerated_scan.h5"):
                (output / scan).unlink(missing_ok=True)
    figures = found.figures
    overview(
        found,
        output / "overview.png",
        title=f"Simulated hyperthermia through Sinotherm: {protocol.field_strength_t:g} T, {protocol.matrix}², "
        f"{protocol.n_coils} coils, {protocol.spokes} spokes a frame, SNR {protocol.snr:g}, seed {seed}",
    )
    pictures = [output / "overview.png"]
    if fast is not None:
        figures["accelerated"] = fast.figures
        pictures.append(output / "accelerated.png")
        side_by_side(
            fast,
            pictures[-1],
            title=f"The same scene from {fast.figures['spokes_per_frame']} spokes a frame, one frame, seed {seed}",
        )
    figures["wall_s"] = round(monotonic() - start_s, 2)
    record = figures_record(command_line(), figures)
    for path in records:
        write_record(path, record)
    Console(file=sys.stdout).print(_table(figures))
    typer.echo(", ".join(map(str, (*pictures, output / "images.h5", output / "report.json"))))


def _table(figures: dict[str, Any]) -> "Table":
    """Return the figures as a table with what each is asked to be."""
    from rich.table import Table

    rmse, sigma = figures["tumour_rmse_degC"], figures["tumour_sigma_degC"]
    latency = " / ".join(f"{figures['latency_ms'][key]:.1f}" for key in ("p50", "p95", "max"))
    rows: tuple[tuple[str, str, str], ...] = (
        ("RMSE per tumour voxel", f"{rmse:.3f} °C", f"≤ {1.2 * sigma:.3f} °C (1.2 σ)"),
        ("bias", f"{figures['tumour_bias_degC']:+.3f} °C", "within ± 0.1 °C"),
        ("predicted σ", f"{sigma:.3f} °C", "0.3 to 0.8 °C"),
        ("tumour voxels", f"{figures['tumour_voxels']}", "≥ 300"),
        ("peak heating", f"{figures['peak_heating_degC']:.1f} °C", "≥ 7 °C above 37 °C"),
        ("frames received", f"{figures['frames_received']} of {figures['frames_expected']}", "all"),
        ("last readout to map", f"{latency} ms", "(p50 / p95 / max)"),
        ("wall time", f"{figures['wall_s']:.1f} s", "< 60 s on two cores" if "accelerated" not in figures else ""),
    )
    if "accelerated" in figures:
        fast = figures["accelerated"]
        counts = f"{fast['pdunet']['frames_received']} of {fast['frames_expected']}, {fast['guard_trips']}"
        for name, key, asked in (("gridding", "gridding", ""), ("PDUNet", "pdunet", "RMSE ≤ 0.35, bias ± 0.05 °C")):
            errors = f"{fast[key]['tumour_rmse_degC']:.3f}, {fast[key]['tumour_bias_degC']:+.3f} °C"
            rows += ((f"{name}, {fast['spokes_per_frame']} spokes", errors, asked),)
        rows += (("its frames, guard trips", counts, "all, none"),)
    table = Table(title="Simulated hyperthermia, judged by its truth", title_justify="left")
    table.add_column("figure")
    table.add_column("found", justify="right")
    table.add_column("asked for")
    for row in rows:
        table.add_row(*row)
    return table
