"""``sinotherm qa``: acceptance of a scanner, from its own scans."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Accept a scanner: figures of its own scans, each with a limit.")

Scan = Annotated[Path, typer.Argument(metavar="FILE", help="MRD file of a radial scan.")]
Spokes = Annotated[int, typer.Option("--spokes", help="Spokes from the start of the scan to judge on.", min=8)]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here as well.")]


@app.command()
def delay(scan: Scan, spokes: Spokes = 256, json: Json = None) -> None:
    """Print the gradient delays of a scan and of its parts; exit code 1 if one is beyond its limit."""
    from sinotherm.evaluation.acceptance import run_delay

    if not run_delay(scan, n_spokes=spokes, json=json):
        raise typer.Exit(1)


@app.command()
def coils(scan: Scan, spokes: Spokes = 256, json: Json = None) -> None:
    """Print each coil's noise, noise correlation and streaks; exit code 1 if one is beyond its limit."""
    from sinotherm.evaluation.acceptance import run_coils

    if not run_coils(scan, n_spokes=spokes, json=json):
        raise typer.Exit(1)
