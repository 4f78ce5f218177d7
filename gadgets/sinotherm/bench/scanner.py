"""The scanner of the benchmarks: a process of its own that sends bytes at a pace and takes what comes back."""

import multiprocessing
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Final

from sinotherm.errors import WireError

__all__ = ["accepted", "scanning"]

_COUNTER: Final = struct.Struct("<I")
_COUNTER_AT: Final = 2 + 14
_CLOSE: Final = b"\x04\x00"
_START_S: Final = 60.0
"""Time in which the scanner's process has to start and to connect."""
_GRACE_S: Final = 60.0
"""Time beyond the scan's own in which the other side has to close."""


def _swallow(sock: socket.socket) -> None:
    waste = bytearray(1 << 20)
    while sock.recv_into(waste):
        pass


def _scan(port: int, opening: bytes, readouts: Sequence[bytes], repeats: int, repetition_time_s: float) -> None:
    """Send ``opening``, then the readouts ``repeats`` times over with running scan counters, then CLOSE."""
    messages = [bytearray(readout) for readout in readouts]
    with socket.create_connection(("127.0.0.1", port), timeout=_START_S) as sock:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        swallower = threading.Thread(target=_swallow, args=(sock,), daemon=True)
        swallower.start()
        sock.sendall(opening)
        start_s = monotonic()
        for counter in range(repeats * len(messages)):
            message = messages[counter % len(messages)]
            _COUNTER.pack_into(message, _COUNTER_AT, counter)
            if repetition_time_s:
                wait_s = start_s + (counter + 1) * repetition_time_s - monotonic()
                if wait_s > 0.0:
                    sleep(wait_s)
            sock.sendall(message)
        sock.sendall(_CLOSE)
        swallower.join()


def accepted(listener: socket.socket) -> socket.socket:
    """Return the scanner's connection to a listener.

    Raises
    ------
    WireError
        No scanner has connected in time: its process did not start.
    """
    listener.settimeout(_START_S)
    try:
        sock, _ = listener.accept()
    except TimeoutError:
        raise WireError(
            f"the benchmark's scanner has not connected within {_START_S:g} s: its process starts from a program's "
            'file, whose own work must stand under `if __name__ == "__main__"`.'
        ) from None
    return sock


@contextmanager
def scanning(
    port: int, opening: bytes, readouts: Sequence[bytes], *, repeats: int = 1, repetition_time_s: float = 0.0
) -> Iterator[None]:
    """Run a scanner against ``127.0.0.1:port`` in a process of its own; it ends when the other side closes.

    Parameters
    ----------
    opening
        Config and header as bytes.
    readouts
        Acquisition messages as bytes; their scan counters are set while they are sent.
    repeats
        How often the readouts are sent.
    repetition_time_s
        Time between readouts, s; 0: as fast as they are taken.

    Raises
    ------
    WireError
        The scanner failed.
    """
    # A forked child would inherit the threads' locks of the numerical libraries.
    process = multiprocessing.get_context("spawn").Process(
        target=_scan, args=(port, opening, readouts, repeats, repetition_time_s), daemon=True
    )
    process.start()
    try:
        yield
        process.join(_GRACE_S + repeats * len(readouts) * repetition_time_s)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if process.exitcode:
        raise WireError(f"the benchmark's scanner ended with code {process.exitcode}; its message is above.")
