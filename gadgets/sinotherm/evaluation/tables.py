"""Tables of results: on the terminal, as CSV and as Markdown."""

import csv
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["command_line", "print_row", "table_cell", "write_table"]


def command_line() -> str:
    """Return the command as the user can type it again, its options with it."""
    return shlex.join(["sinotherm", *sys.argv[1:]])


def table_cell(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def print_row(cells: Sequence[str]) -> None:
    """Write one row of a Markdown table to stdout, as soon as it is known."""
    sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


def write_table(rows: Sequence[Mapping[str, Any]], folder: Path, name: str) -> None:
    """Write rows as ``NAME.csv`` and as a Markdown table ``NAME.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(table_cell(row[column]) for column in columns) + " |" for row in rows]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
