"""Running a server from a command: it says where it listens and ends on SIGTERM or Ctrl-C."""

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sinotherm.wire.server import Server

__all__ = ["listen"]

logger = logging.getLogger(__name__)

_SWITCH_S: Final = 5e-4


def listen(server: "Server") -> None:
    """Run a server until SIGTERM or Ctrl-C; scans under way end with the frames finished so far.

    Where a frame takes longer than the server waits for it, the process ends at once, with exit code 1.
    """

    def stop(number: int, _: Any) -> None:
        logger.info("%s: no new scans, those under way end", signal.Signals(number).name)
        server.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # A thread that computes in Python hands the interpreter to the socket's thread ten times sooner.
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        logger.info("listening on %s:%d", *server.address)
        if server.run():
            # The interpreter's end would stop their threads within compiled code, which aborts the process.
            logging.shutdown()
            os._exit(1)
    finally:
        sys.setswitchinterval(interval_s)
        for number, handler in before.items():
            signal.signal(number, handler)
