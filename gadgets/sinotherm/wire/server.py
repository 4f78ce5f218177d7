"""The server: scans come in over TCP, one a connection and several at once, and go out as images."""

import logging
import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from sinotherm.errors import WireError
from sinotherm.wire.codec import Limits
from sinotherm.wire.connection import Connection, OpenScan, Patience, converse, tell

__all__ = ["Server"]

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_FAREWELL_S: Final = 3.0
"""Within this time those that are left behind are told, all at once: one that takes nothing holds up no other."""
_OPENING: Final = 32
"""Connections beyond the scans: they have yet to say what they want, or are being refused."""


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
        Bound of scans at the same time; one more is refused with a text. A scan counts from its header on, so that
        connections which say nothing take no scan's place, and until its last image has been sent.
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
        self._scanning: set[threading.Thread] = set()
        self._admitting = threading.Lock()
        if not 0 <= port <= 65535:
            raise WireError(f"port {port}: it lies between 0 and 65535.")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            # Whoever listens on every address expects that IPv4 is among them.
            both = host == "::" and socket.has_dualstack_ipv6()
            self._listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
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

    def run(self, *, grace_s: float = 30.0) -> int:
        """Serve until `stop`, then give scans under way ``grace_s`` seconds to end.

        Returns
        -------
        int
            Scans that did not: their peers are told and left, their threads still compute.
        """
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
        late = {thread: connection for thread, connection in self._active.items() if thread.is_alive()}
        overdue = WireError(
            f"the server was stopped and a frame took more than {grace_s:g} s: the images finished so far were sent."
        )
        leaving = []
        for thread, connection in late.items():
            logger.error("%s did not end within %g s of the stop", thread.name, grace_s)
            leaving.append(threading.Thread(target=self._leave, args=(connection, overdue), daemon=True))
            leaving[-1].start()
        until = monotonic() + _FAREWELL_S
        for leaver in leaving:
            leaver.join(max(0.0, until - monotonic()))
        return len(late)

    def _leave(self, connection: Connection, error: WireError) -> None:
        tell(connection, error, parent=self._parent)
        connection.close()

    def _begin(self, connection: Connection, peer: str) -> None:
        self._active = {thread: active for thread, active in self._active.items() if thread.is_alive()}
        if (n_open := len(self._active)) >= self._scans + _OPENING:
            logger.warning("%s is refused: %d connections are open, most of them without a scan", peer, n_open)
            bound = WireError(f"{n_open} connections are open, which is the bound: close those without a scan.")
            tell(connection, bound, parent=self._parent)
            connection.stop()
            connection.close()
            return
        thread = threading.Thread(
            target=converse,
            args=(connection, self._open_scan),
            kwargs={"parent": self._parent, "admit": self._admit},
            name=f"scan from {peer}",
            daemon=True,
        )
        self._active[thread] = connection
        thread.start()

    def _admit(self) -> Callable[[], None]:
        """Give the scan of this thread a place, and return what gives it back; the end of the thread does, too."""
        with self._admitting:
            self._scanning = {thread for thread in self._scanning if thread.is_alive()}
            if len(self._scanning) >= self._scans:
                raise WireError(f"{self._scans} scans are under way, which is the bound: try again, or raise --scans.")
            self._scanning.add(threading.current_thread())
        logger.info("%s begins", threading.current_thread().name)
        return self._release

    def _release(self) -> None:
        with self._admitting:
            self._scanning.discard(threading.current_thread())
