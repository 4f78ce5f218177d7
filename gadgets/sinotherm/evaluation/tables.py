"""Tables of results: on the terminal, as CSV and as Markdown; and how figures beside them are written."""

import csv
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["command_line", "print_row", "printable", "table_cell", "write_figure", "write_table"]


def command_line() -> str:
    """Return the command as the user can type it again, its options with it."""
    return shlex.join(["sinotherm", *sys.argv[1:]])


def printable(text: str, encoding: str = "utf-8") -> str:
    """Return a text with escapes for what an encoding lacks, as of names that are no UTF-8 on the disk."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def table_cell(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def print_row(cells: Sequence[str]) -> None:
    """Write one row of a Markdown table to stdout, as soon as it is known."""
    sys.stdout.write(printable("| " + " | ".join(cells) + " |\n", sys.stdout.encoding or "utf-8"))
    sys.stdout.flush()


def write_table(rows: Sequence[Mapping[str, Any]], folder: Path, name: str) -> None:
    """Write rows as ``NAME.csv`` and as a Markdown table ``NAME.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as out:
        writer = csv.DictWriter(out, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(table_cell(row[column]) for column in columns) + " |" for row in rows]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")


def write_figure(figure: "Figure", file: Path) -> None:
    """Write a figure; letters of a name that its font lacks are boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(file, dpi=120)
