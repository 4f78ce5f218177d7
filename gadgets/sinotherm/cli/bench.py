"""``sinotherm bench``: timings against named peers in the same run."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sinotherm.core.record import writable

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Time whole chains, ingest and operators against peers in the same run.")

Json = Annotated[
    Path | None, typer.Option("--json", help="File for the figures, with machine and versions.", callback=writable)
]


def _integers(text: str, name: str) -> list[int]:
    from sinotherm.errors import SettingsError

    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise SettingsError(f"{name} {text!r}: whole numbers above 0 with commas between are needed.")
    return values


def _report(title: str, figures: dict[str, Any], json: Path | None) -> None:
    """Print the rows as a table, and write the record if asked for."""
    from rich.console import Console
    from rich.table import Table

    from sinotherm.core.record import figures_record, write_record
    from sinotherm.evaluation.tables import command_line

    rows = figures["results"]
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*("–" if value is None else str(value) for value in row.values()))
    Console(width=max(100, 14 * len(rows[0]))).print(table)
    for name, value in figures.items():
        if name != "results":
            typer.echo(f"{name}: {value}")
    if json is not None:
        write_record(json, figures_record(command_line(), figures))


@app.command()
def stream(
    coils: Annotated[str, typer.Option(help="Receiver coils, with commas between.")] = "8",
    spokes: Annotated[str, typer.Option(help="Spokes of a frame, with commas between.")] = "16,64",
    frames: Annotated[int, typer.Option(help="Frames that count, after the warm-up.", min=1)] = 200,
    tr: Annotated[float, typer.Option(help="TR of the scanner, ms.", min=0.1)] = 3.0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where networks run.")] = "cpu",
    network: Annotated[str | None, typer.Option(help="Name of a network; the same weights in every chain.")] = None,
    chains: Annotated[str | None, typer.Option(help="Peers, with commas between; by default all.")] = None,
    json: Json = None,
) -> None:
    """Time from the last readout of a frame to its image in the socket: our chain and two peers, over the loopback."""
    from sinotherm.bench.stream import CHAINS, figures

    found = figures(
        coils=_integers(coils, "--coils"),
        spokes=_integers(spokes, "--spokes"),
        frames=frames,
        repetition_time_s=1e-3 * tr,
        device=device,
        network=network,
        chains=tuple(CHAINS) if chains is None else tuple(part.strip() for part in chains.split(",") if part.strip()),
    )
    _report("stream", found, json)


@app.command()
def ingest(
    coils: Annotated[int, typer.Option(help="Receiver coils.", min=1)] = 8,
    readouts: Annotated[int, typer.Option(help="Readouts a round.", min=16)] = 4000,
    rounds: Annotated[int, typer.Option(help="Rounds, taken in turn; medians are given.", min=1)] = 5,
    json: Json = None,
) -> None:
    """Time how readouts are taken from a socket and from a file, against the loopback's floor and the packages."""
    from sinotherm.bench.ingest import rows

    _report("ingest", {"results": rows(coils=coils, readouts=readouts, rounds=rounds)}, json)


@app.command()
def operators(
    coils: Annotated[str, typer.Option(help="Receiver coils, with commas between.")] = "1,8,16",
    spokes: Annotated[str, typer.Option(help="Spokes of a frame, with commas between.")] = "16,32,64,402",
    json: Json = None,
) -> None:
    """Time adjoint and forward operators against named peers, with their error against a direct sum."""
    from sinotherm.bench.operators import rows

    found = rows(coils=_integers(coils, "--coils"), spokes=_integers(spokes, "--spokes"))
    _report("operators", {"results": found}, json)


@app.command()
def replay(
    coils: Annotated[int, typer.Option(help="Receiver coils.", min=1)] = 8,
    spokes: Annotated[str, typer.Option(help="Spokes of a frame, with commas between.")] = "32,64,128",
    frames: Annotated[int, typer.Option(help="Frames of each scan.", min=3)] = 60,
    method: Annotated[str, typer.Option(help="Stage that reconstructs: fbp, gridding, pdunet …")] = "fbp",
    json: Json = None,
) -> None:
    """Time how much faster than the scanner a recorded scan becomes images, and whether memory stays flat."""
    from sinotherm.bench.replay import rows

    found = rows(coils=coils, spokes=_integers(spokes, "--spokes"), frames=frames, method=method)
    _report("replay", {"results": found}, json)


@app.command()
def network(
    coils: Annotated[int, typer.Option(help="Receiver coils.", min=1)] = 8,
    spokes: Annotated[int, typer.Option(help="Spokes of a frame.", min=2)] = 34,
    frames: Annotated[int, typer.Option(help="Calls of each candidate that count, after the warm-up.", min=1)] = 30,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the networks run.")] = "cpu",
    network: Annotated[str | None, typer.Option(help="Name or file of weights; by default random ones.")] = None,
    json: Json = None,
) -> None:
    """Time the network stage: our fast path, the same weights run eagerly, and PDUNet as published."""
    from sinotherm.bench.network import figures

    _report("network", figures(coils=coils, spokes=spokes, frames=frames, device=device, network=network), json)
