"""``sinotherm qa``: acceptance of a scanner, from its own scans."""

from pathlib import Path
from typing import Annotated

import typer

from sinotherm.core.record import writable
from sinotherm.errors import SettingsError

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Accept a scanner: figures of its own scans, each with a limit.")

Scan = Annotated[Path, typer.Argument(metavar="FILE", help="MRD file of a radial scan.")]
Measured = Annotated[Path, typer.Argument(metavar="FILE", help="MRD file of a radial scan, or of complex images.")]
Spokes = Annotated[int, typer.Option("--spokes", help="Spokes from the start of the scan to judge on.", min=8)]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here as well.", callback=writable)
]


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


Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="STAGE.SETTING=VALUE", help="Setting; may be repeated.")
]


def _page(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in (".pdf", ".png"):
        raise SettingsError(f"--report {path}: a name that ends in .pdf or .png is needed.")
    return writable(path)


Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write a page with pictures here, .pdf or .png.", callback=_page),
]


@app.command()
def stability(scan: Measured, settings: Settings = None, report: Report = None, json: Json = None) -> None:
    """Print bias, SD, drift and noise of thermometry on an unheated phantom; exit code 1 beyond a limit."""
    from sinotherm.evaluation.stability import run_stability
    from sinotherm.pipelines.compose import parse_assignments

    if not run_stability(scan, values=parse_assignments(settings or ()), report=report, json=json):
        raise typer.Exit(1)


@app.command()
def sign(
    scan: Measured,
    probe: Annotated[
        Path | None,
        typer.Option(
            help="CSV with time_s (since the file's first readout, noise and dummy scans too) and temperature_degC."
        ),
    ] = None,
    region: Annotated[str | None, typer.Option(help="Where the probe lies, e.g. circle:128,120,3 (pixels).")] = None,
    water: Annotated[str | None, typer.Option(help="Instead of a probe: a region of water beside fat.")] = None,
    fat: Annotated[str | None, typer.Option(help="The fat beside it; the scan has two echoes.")] = None,
    settings: Settings = None,
    report: Report = None,
    json: Json = None,
) -> None:
    """Fit phase sign and alpha to a heating with a probe, or the sign to fat; exit code 1 if it is not sound."""
    from sinotherm.evaluation.sign import run_fat_sign, run_sign
    from sinotherm.pipelines.compose import parse_assignments

    values = parse_assignments(settings or ())
    if probe is not None and region is not None and water is None and fat is None:
        sound = run_sign(scan, probe=probe, region=region, values=values, report=report, json=json)
    elif water is not None and fat is not None and probe is None and region is None and report is None:
        sound = run_fat_sign(scan, water=water, fat=fat, values=values, json=json)
    else:
        raise SettingsError("the sign follows from --probe and --region, or from --water and --fat (without --report).")
    if not sound:
        raise typer.Exit(1)
