"""Threads that share out the tasks of the compiled kernels."""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["Crew", "crew"]


class Crew:
    """Threads that share out tasks one by one.

    The caller works too and waits only for tasks that have begun, so that a thread that the machine
    does not run holds nothing up: what it has not taken, others do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._limits = threading.local()
        self.size = max(1, min(8, len(os.sched_getaffinity(0))))

    def limit(self, threads: int) -> None:
        """Let tasks of the calling thread run on so many threads at most, its own among them."""
        self._limits.threads = threads

    def run(self, task: Callable[[int], None], n_tasks: int, threads: int | None = None) -> None:
        """Call ``task`` with each number below ``n_tasks``, on so many threads at most (``None``: all)."""
        most: int = getattr(self._limits, "threads", self.size)
        helpers = min(most if threads is None else threads, n_tasks, most) - 1
        numbers = itertools.count()

        def work() -> None:
            while (number := next(numbers)) < n_tasks:
                task(number)

        if helpers < 1:
            work()
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.size, thread_name_prefix="kernels")
        futures = [self._pool.submit(work) for _ in range(helpers)]
        work()
        for future in futures:
            if not future.cancel():
                future.result()

    def by_rows(self, work: Callable[[tuple[int, int]], None], n_rows: int, threads: int | None = None) -> None:
        """Call ``work`` with the first row and the one after the last of bands of rows, two for each thread."""
        n_threads = self.size if threads is None else threads
        height = -(-n_rows // (2 * n_threads if n_threads > 1 else 1))
        self.run(
            lambda number: work((number * height, min((number + 1) * height, n_rows))), -(-n_rows // height), threads
        )


crew = Crew()
"""The one crew of the process: kernels that call one another's threads would only wait."""
