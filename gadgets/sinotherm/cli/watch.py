"""``sinotherm watch``: the live feed in a terminal."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import typer

__all__ = ["command"]

_ROWS = 20
_Place: TypeAlias = tuple[int, int, str]
"""Frame, slice, and the reconstruction where it goes beside another one."""


def command(
    endpoint: Annotated[str, typer.Option(help="ZeroMQ endpoint of the feed.")] = "tcp://127.0.0.1:5560",
    region: Annotated[str, typer.Option(help="Region whose T50 and dose are shown.")] = "tumour",
    frames: Annotated[int | None, typer.Option(help="End after this many frames.", min=1)] = None,
    seconds: Annotated[float | None, typer.Option(help="End after this time, s.", min=0.0)] = None,
) -> None:
    """Show each frame as it is made: latency, the region's T50 and dose, alarms. Ends with Ctrl-C."""
    import sys
    from time import monotonic

    from rich.console import Console
    from rich.live import Live

    from sinotherm.wire.feed import Subscriber

    rows: dict[_Place, dict[str, str]] = {}
    seen, stalled = 0, ""
    until = math.inf if seconds is None else monotonic() + seconds
    terminal = sys.stdout.isatty()
    with (
        Subscriber(endpoint, topics=("image", "statistics", "alarm")) as feed,
        Live(_table(rows, region), console=Console(), auto_refresh=False) as live,
    ):
        try:
            while monotonic() < until and (frames is None or seen < frames):
                message = feed.receive(within_s=0.2)
                if message is None:
                    continue
                if message.topic == "alarm":
                    stalled = "; ".join(message.header["alarms"])
                else:
                    stalled = ""
                    seen += _note(rows, message.topic, message.header, region)
                live.update(_table(rows, region, stalled), refresh=terminal)
        except KeyboardInterrupt:
            pass
        live.update(_table(rows, region, stalled), refresh=True)


def _note(rows: dict[_Place, dict[str, str]], topic: str, header: Mapping[str, Any], region: str) -> int:
    """Take a message into the table and return how many frames it adds."""
    meta = header.get("meta", {})
    place = (int(header["number"]), int(header["slice"]), str(meta.get("method", "")) if "beside" in meta else "")
    new = all(known[:2] != place[:2] for known in rows)
    row = rows.setdefault(place, {})
    if header.get("latency_ms") is not None:
        row["latency"] = f"{header['latency_ms']:.1f}"
    if topic.startswith("statistics"):
        regions = header["regions"]
        chosen = next((part for part in regions if part.get("region") == region), regions[0] if regions else {})
        change = "+" if chosen.get("quantity") == "temperature_change" else ""
        for name, sign in (("t50_degc", change), ("cem43_t50_min", "")):
            row.pop(name, None)
            if chosen.get(name) is not None:
                row[name] = f"{chosen[name]:{sign}.2f}"
        row["alarms"] = "; ".join(header["alarms"])
    while len(rows) > _ROWS:
        del rows[next(iter(rows))]
    return int(new)


def _table(rows: Mapping[_Place, Mapping[str, str]], region: str, stalled: str = "") -> Any:
    from rich.table import Table

    table = Table("frame", "slice", "latency, ms", f"{region} T50, °C", f"{region} dose, CEM43 min", "alarms")
    table.caption, table.caption_style = stalled or None, "bold red"
    for (number, slice_, method), row in rows.items():
        cells = (row.get(name, "–") for name in ("latency", "t50_degc", "cem43_t50_min", "alarms"))
        table.add_row(f"{number} {method}".strip(), str(slice_), *cells)
    return table
