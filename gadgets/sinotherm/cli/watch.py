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
    frames: Annotated[
        int | None, typer.Option(help="End after this many frames; exit code 1 if they did not come.", min=1)
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="End after this time, s.", min=0.0)] = None,
) -> None:
    """Show each frame as it is made: latency, the region's T50 and dose, alarms. Ends with Ctrl-C.

    Each scan has a table of its own, which goes when it has ended and another one begins.
    """
    import sys
    from time import monotonic

    from rich.console import Console
    from rich.live import Live

    from sinotherm.wire.feed import Subscriber

    board = _Board(region, math.inf if frames is None else frames)
    until = math.inf if seconds is None else monotonic() + seconds
    terminal = sys.stdout.isatty()
    with (
        Subscriber(endpoint, topics=("image", "statistics", "alarm", "end")) as feed,
        Live(board.shown(), console=Console(), auto_refresh=False) as live,
    ):
        try:
            while monotonic() < until and not board.full:
                message = feed.receive(within_s=0.2)
                if message is None:
                    continue
                board.take(message.topic, message.header)
                live.update(board.shown(), refresh=terminal)
        except KeyboardInterrupt:
            pass
        live.update(board.shown(), refresh=True)
    if board.empty:
        typer.echo(f"nothing came from {endpoint}: does a scan run, with publish.endpoint there?", err=True)
    if frames is not None and not board.full:
        raise typer.Exit(1)


class _Board:
    """The tables of the scans that run, oldest first; with none that runs, that of the last one.

    A frame counts when nothing more of it comes: at its statistics, else when the next one or the end of
    the scan shows that it has none.
    """

    def __init__(self, region: str, wanted: float) -> None:
        self._region = region
        self._wanted = wanted
        self._scans: dict[str, _Scan] = {}
        self._counted = 0

    @property
    def full(self) -> bool:
        """Whether as many frames have come as are wanted."""
        return self._counted >= self._wanted

    @property
    def empty(self) -> bool:
        """Whether nothing has come."""
        return not self._scans

    def take(self, topic: str, header: Mapping[str, Any]) -> None:
        """Take a message into the table of its scan."""
        run = str(header.get("run", ""))
        if run not in self._scans:
            if topic == "end":
                return
            # Only one process at a time has the endpoint: scans of another one are over, ended or not.
            process = run.partition("-")[0]
            self._scans = {
                other: scan
                for other, scan in self._scans.items()
                if not scan.ended and other.partition("-")[0] == process
            }
            self._scans[run] = _Scan(header)
        scan = self._scans[run]
        scan.stalled = "; ".join(header["alarms"]) if topic == "alarm" else ""
        if topic == "end":
            scan.ended = True
            self._counted += sum(scan.close(slice_, math.inf) for slice_ in list(scan.open))
        elif topic != "alarm":
            place = _place(header)
            if not place[2]:
                self._counted += scan.close(place[1], place[0])
            if self.full:
                return
            scan.note(place, topic, header, self._region)
            if topic == "statistics":
                self._counted += scan.close(place[1], math.inf)

    def shown(self) -> Any:
        """Return what the terminal shows."""
        from rich.console import Group

        return Group(*(scan.table(self._region) for scan in self._scans.values() or [_Scan({})]))


class _Scan:
    """One scan's table, and the frames of its slices that are open, by slice: more of them may come."""

    def __init__(self, header: Mapping[str, Any]) -> None:
        self._title = " ".join(str(header[name]) for name in ("protocol", "measurement_id") if header.get(name))
        self._rows: dict[_Place, dict[str, str]] = {}
        self.open: dict[int, int] = {}
        self.stalled = ""
        self.ended = False

    def close(self, slice_: int, before: float) -> int:
        """Return 1 if a slice's open frame comes before one of this number, which ends it, else 0."""
        if self.open.get(slice_, before) < before:
            del self.open[slice_]
            return 1
        return 0

    def note(self, place: _Place, topic: str, header: Mapping[str, Any], region: str) -> None:
        """Take a message of a frame into its row."""
        if not place[2] and place not in self._rows:
            self.open[place[1]] = place[0]
        row = self._rows.setdefault(place, {})
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
        while len(self._rows) > _ROWS:
            del self._rows[next(iter(self._rows))]

    def table(self, region: str) -> Any:
        """Return the table, its newest row last."""
        from rich.table import Table
        from rich.text import Text

        table = Table("frame", "slice", "latency, ms", f"{region} T50, °C", f"{region} dose, CEM43 min", "alarms")
        title = ", ".join(filter(None, (self._title, "ended" if self.ended else "")))
        table.title = Text(title) if title else None
        table.caption, table.caption_style = Text(self.stalled) if self.stalled else None, "bold red"
        for (number, slice_, method), row in self._rows.items():
            cells = (row.get(name, "–") for name in ("latency", "t50_degc", "cem43_t50_min", "alarms"))
            table.add_row(f"{number} {method}".strip(), str(slice_), *map(Text, cells))
        return table


def _place(header: Mapping[str, Any]) -> _Place:
    meta = header.get("meta", {})
    return int(header["number"]), int(header["slice"]), str(meta.get("method", "")) if "beside" in meta else ""
