"""A progress bar on stderr, for work that takes longer than two seconds."""

import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Final, TypeVar

__all__ = ["counted"]

_T = TypeVar("_T")
_LATER_S: Final = 2.0


def counted(items: Iterable[_T], *, total: int, what: str) -> Iterator[_T]:
    """Yield items; after two seconds, and if stderr is a terminal, show how many there were.

    Parameters
    ----------
    total
        How many there will be.
    what
        Their name, plural.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(what, total=total)
    start_s, shown = monotonic(), False
    try:
        for number, item in enumerate(items, start=1):
            yield item
            if not shown and monotonic() - start_s > _LATER_S:
                progress.start()
                shown = True
            progress.update(task, completed=number)
    finally:
        progress.stop()
