"""Ctrl-C and SIGTERM that take effect between two items, not within a write to a file."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["interruptible"]

_T = TypeVar("_T")


@contextmanager
def interruptible() -> Iterator[Callable[[Iterable[_T]], Iterator[_T]]]:
    """Give what wraps items: it raises `KeyboardInterrupt` before the next one, once a signal has come.

    HDF5 calls Python while it writes and swallows what is raised there, so an interrupt at that moment
    would be lost. A second signal interrupts at once.
    """
    came = False

    def note(*_: Any) -> None:
        nonlocal came
        came = True
        for number in before:
            signal.signal(number, signal.default_int_handler)

    def checked(items: Iterable[_T]) -> Iterator[_T]:
        for item in items:
            if came:
                raise KeyboardInterrupt
            yield item

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield checked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
