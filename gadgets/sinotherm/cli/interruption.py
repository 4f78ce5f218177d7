"""Ctrl-C and SIGTERM that take effect between two items, not within a read or write of a file."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["Shield", "interruptible", "shielding"]

_T = TypeVar("_T")


@contextmanager
def interruptible() -> Iterator[Callable[[Iterable[_T]], Iterator[_T]]]:
    """Give what wraps items: it raises `KeyboardInterrupt` before the next one, once a signal has come.

    HDF5 calls Python while it writes and swallows what is raised there, as imports and compilers do, so an interrupt
    at that moment would be lost. A second signal interrupts at once.
    """
    came = False

    def note(*_: Any) -> None:
        nonlocal came
        came = True
        for number in before:
            signal.signal(number, signal.default_int_handler)

    def check() -> None:
        nonlocal came
        if came:
            came = False
            raise KeyboardInterrupt

    def checked(items: Iterable[_T]) -> Iterator[_T]:
        for item in items:
            check()
            yield item
        check()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield checked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # Not before: a signal between the two would be lost.
    check()


class Shield:
    """Runs what no signal interrupts; see `shielding`."""

    def __init__(self) -> None:
        self._within = self._came = False

    def note(self, *_: Any) -> None:
        """Take a signal: at once, or when what runs is done."""
        if self._came or not self._within:
            raise KeyboardInterrupt
        self._came = True

    def run(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Return what the function returns; raises `KeyboardInterrupt` after it if a signal came meanwhile."""
        self._within = True
        try:
            result = function(*arguments)
        finally:
            self._within, came, self._came = False, self._came, False
        if came:
            raise KeyboardInterrupt
        return result

    def items(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield the items, each made within `run`."""
        iterator, over = iter(items), object()
        while (item := self.run(next, iterator, over)) is not over:
            yield item


@contextmanager
def shielding() -> Iterator[Shield]:
    """Give what runs reads and writes of HDF5 files to their end; anywhere else a signal interrupts at once.

    For a command that may wait long for its peer, where `interruptible` would wait for the next item as well.
    A second signal within the same read or write interrupts it.
    """
    shield = Shield()
    before = {number: signal.signal(number, shield.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield shield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
