"""The server: scans come in over TCP, one a connection and several at once, and go out as images."""

import logging
import socket
import threading
from time import monotonic
from typing import Final

from sinotherm.errors import WireError
from sinotherm.wire.codec import Limits
from sinotherm.wire.connection import Connection, OpenScan, Patience, Process, ScanRequest, converse

__all__ = ["Server"]

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.1


class Server:
    """Listens for MRD clients, or for Gadgetron parents that dial a warm node.

    Parameters
    ----------
    open_scan
        Returns what works on a scan.
    host, port
        Where to listen; port 0 takes a free one, see `address`.
    parent
        Peers are Gadgetron parents (``<connect>``), not clients.
    scans
        Bound of scans at the same time; one more is refused with a text.
    patience, limits
        As for `Connection`.

    Raises
    ------
    WireError
        The address cannot be listened on.
    """

    def __init__(
        self,
        open_scan: OpenScan,
        *,
        host: str = "127.0.0.1",
        port: int = 9002,
        parent: bool = False,
        scans: int = 4,
        patience: Patience | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._open_scan = open_scan
        self._parent = parent
        self._scans = scans
        self._patience = patience or Patience()
        self._limits = limits or Limits()
        self._stopping = threading.Event()
        self._active: dict[threading.Thread, Connection] = {}
        if not 0 <= port <= 65535:
            raise WireError(f"port {port}: it lies between 0 and 65535.")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family)
        except OSError as error:
            raise WireError(f"cannot listen on {host}:{port} ({error}); choose another --host or --port.") from None
        self._listener.settimeout(_POLL_S)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on."""
        host, port, *_ = self._listener.getsockname()
        return host, port

    def stop(self) -> None:
        """End `run`: scans under way end with the frames finished so far. Safe in a signal handler."""
        self._stopping.set()

    def run(self, *, grace_s: float = 30.0) -> None:
        """Serve until `stop`, then give scans under way ``grace_s`` seconds to end."""
        with self._listener:
            while not self._stopping.is_set():
                try:
                    sock, peer = self._listener.accept()
                except TimeoutError:
                    continue
                except OSError as error:
                    # The client is gone again, or descriptors ran out: neither ends the server.
                    logger.warning("a connection could not be taken: %s", error)
                    self._stopping.wait(_POLL_S)
                    continue
                self._begin(Connection(sock, patience=self._patience, limits=self._limits), f"{peer[0]}:{peer[1]}")
        for connection in self._active.values():
            connection.stop()
        until = monotonic() + grace_s
        for thread in self._active:
            thread.join(max(0.0, until - monotonic()))
            if thread.is_alive():
                logger.error("%s did not end within %g s of the stop", thread.name, grace_s)

    def _begin(self, connection: Connection, peer: str) -> None:
        self._active = {thread: active for thread, active in self._active.items() if thread.is_alive()}
        free = len(self._active) < self._scans
        thread = threading.Thread(
            target=converse,
            args=(connection, self._open_scan if free else self._refuse),
            kwargs={"parent": self._parent},
            name=f"scan from {peer}",
            daemon=True,
        )
        logger.info("%s begins", thread.name)
        if free:
            self._active[thread] = connection
        thread.start()

    def _refuse(self, _: ScanRequest) -> Process:
        raise WireError(f"{self._scans} scans are under way, which is the bound: try again, or raise --scans.")
