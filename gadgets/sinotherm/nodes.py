"""Targets that a Gadgetron starts: ``<execute name="sinotherm.nodes" target="…" type="python"/>``.

Gadgetron runs ``python -m gadgetron PORT sinotherm.nodes TARGET``. The ``gadgetron`` package connects,
reads configuration and header, and calls the target; from then on the socket is ours: end of file,
time-outs and failures are noticed and reported as ERROR, which the package does not do. What goes wrong
before that (a header that it cannot parse, an end of file before the configuration) is the package's.
The last CLOSE is the package's as well.

Only the standard library is imported here, so that a missing dependency can be reported like any
other failure.
"""

import logging
import socket
import struct
import time
from typing import Any, Final

__all__ = ["radial_thermometry", "reconstruct", "thermometry"]

logger = logging.getLogger(__name__)

_ERROR: Final = struct.Struct("<HQ")
_ERROR_ID: Final = 8
_CLOSE: Final = b"\x04\x00"
_QUIET_S: Final = 1.0
_DRAIN_S: Final = 60.0


def reconstruct(connection: Any) -> None:
    """Acquisitions in, images out."""
    _run("reconstruct", connection)


def thermometry(connection: Any) -> None:
    """Complex images in (from any reconstruction), temperature maps out."""
    _run("thermometry", connection)


def radial_thermometry(connection: Any) -> None:
    """Acquisitions in, images and temperature maps out."""
    _run("radial_thermometry", connection)


def _run(target: str, connection: Any) -> None:
    sock: socket.socket = connection.socket.socket
    try:
        from sinotherm.pipelines.doors import open_target
        from sinotherm.wire.connection import Connection, ScanRequest, converse
    except ImportError as error:
        _report(sock, f"sinotherm cannot be loaded: {error}; install it into the Python that Gadgetron starts.")
        raise SystemExit(1) from error
    raw = connection.raw_bytes
    request = ScanRequest(config=raw.config.decode("utf-8", "backslashreplace"), header_xml=raw.header)
    outcome = converse(Connection(sock), open_target(target), parent=True, request=request, close=False)
    if outcome.error is not None:
        raise SystemExit(1)


def _report(sock: socket.socket, text: str) -> None:
    """Send ERROR and read on until the parent's CLOSE, without knowing where messages end.

    Closing with unread input would reset the connection and lose the report.
    """
    logger.error("%s", text)
    raw = text.encode("utf-8", "backslashreplace")
    try:
        sock.sendall(_ERROR.pack(_ERROR_ID, len(raw)) + raw)
        sock.settimeout(_QUIET_S)
        until, tail = time.monotonic() + _DRAIN_S, b""
        while time.monotonic() < until:
            try:
                block = sock.recv(1 << 16)
            except TimeoutError:
                if tail == _CLOSE:
                    break
                continue
            if not block:
                break
            tail = (tail + block)[-len(_CLOSE) :]
        sock.settimeout(None)
    except OSError as error:
        logger.error("the parent is gone: %s", error)  # noqa: TRY400
