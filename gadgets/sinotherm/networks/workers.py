"""Networks side by side: where frames wait in a file, each processor core takes a frame of its own.

Two cores that share a frame wait for each other at every layer; with a frame each they do not.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from sinotherm.networks.inference import RadialReconstructor
from sinotherm.operators.crew import crew

__all__ = ["Workers"]

_T = TypeVar("_T")


class Workers:
    """Threads with a network each, of which every one works on a single core.

    Parameters
    ----------
    first
        The network of whoever asks.
    build
        Returns a network like it, for a worker.
    size
        How many workers; 1: work is done by whoever asks.
    """

    def __init__(self, first: RadialReconstructor, build: Callable[[], RadialReconstructor], size: int) -> None:
        self.size = size
        self._first = first
        self._build = build
        self._own = threading.local()
        self._pool: ThreadPoolExecutor | None = None

    def begin(self, work: Callable[[RadialReconstructor], _T], *, alone: bool) -> Callable[[], _T]:
        """Begin work on a network and return what waits for its result; ``alone``: it is done at once, by all cores."""
        if alone or self.size == 1:
            result = work(self._first)
            return lambda: result
        if self._pool is None:
            self._pool = self._started()
        return self._pool.submit(lambda: work(self._own.network)).result

    def close(self) -> None:
        """Wait for what has begun, and forget the rest."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _started(self) -> ThreadPoolExecutor:
        # Not ``first``: a network keeps its operators between frames and belongs to one thread.
        networks = [self._build() for _ in range(self.size)]
        everyone = threading.Barrier(self.size)

        def start() -> None:
            torch.set_num_threads(1)
            crew.limit(1)
            self._own.network = networks.pop()

        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.size, thread_name_prefix="networks", initializer=start)
        for waiting in [pool.submit(everyone.wait) for _ in range(self.size)]:
            waiting.result()
        # PyTorch takes the last number that any thread gave for the one of threads to come.
        torch.set_num_threads(threads)
        return pool
