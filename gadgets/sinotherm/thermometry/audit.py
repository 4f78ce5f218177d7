"""The audit log of a scan: every setting, baseline, frame, command and alarm, as it happens.

``audit.jsonl`` has one JSON object a line, ``regions.csv`` one row a frame and region. Each frame is
on disk before the next is begun: a process that is killed loses nothing that was finished, and the
last line says how far it came. A restart appends, and scans at the same time share a folder: each line, row and
folder of maps has the name of its run, the time at which it began, and no run touches what another one wrote.
"""

import csv
import fcntl
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO

import numpy as np

from sinotherm.core.scan import FrameStatistics, TemperatureMap
from sinotherm.wire.feed import plain

__all__ = ["AuditLog"]

_LOCK_S: Final = 1.0
_LOCK_TRIES: Final = 20

COLUMNS: Final = (
    "frame", "slice", "method", "time_s", "region", "quantity", "n", "voxels", "min_degc", "max_degc", "mean_degc",
    "sd_degc", "t10_degc", "t50_degc", "t90_degc", "sigma_degc", "voxels_above_41", "voxels_above_43",
    "volume_above_41_ml", "volume_above_43_ml", "cem43_t50_min", "cem43_t90_min", "cem43_lower_bound",
    "cem43_median_min", "cem43_max_min", "alarms", "run",
)  # fmt: skip


class AuditLog:
    """Writes the log of one scan.

    Parameters
    ----------
    folder
        Where the files are; made if missing, appended to if there.
    keep_maps
        Whether each map is kept as well, as ``maps/RUN/frame_000012_slice0.npz``; one that goes beside another
        reconstruction's as ``maps/RUN/frame_000012_slice0_gridding.npz``.

    Attributes
    ----------
    run
        Name of this run: the time at which the log was opened, UTC.
    problem
        Why the last line could not be written, and is not in the log; empty if it is. A scan outlives its log.
    """

    def __init__(self, folder: Path, *, keep_maps: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._maps = folder / "maps" / self.run if keep_maps else None
        if self._maps is not None:
            self._maps.mkdir(parents=True)
        self.problem = ""
        self._lock = threading.Lock()
        self._lines = _appended(folder / "audit.jsonl")
        self._table = _appended(folder / "regions.csv", first=",".join(COLUMNS) + "\r\n")
        self._rows = csv.DictWriter(self._table, COLUMNS, extrasaction="ignore")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.write("end", {"reason": "complete" if error is None else f"{type(error).__name__}: {error}"})
        for file in (self._lines, self._table):
            # What no disk took, it does not take now.
            with suppress(OSError):
                file.close()

    def write(self, record: str, facts: Mapping[str, Any]) -> None:
        """Write a line."""
        written = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"record": record, "written": written, "run": self.run, **plain(facts)}
        # The watchdog writes from its own thread.
        with self._lock:
            try:
                self._lines.write(json.dumps(line, allow_nan=False) + "\n")
                self._lines.flush()
                self.problem = ""
            except OSError as error:
                self.problem = str(error)

    def frame(self, found: TemperatureMap, statistics: FrameStatistics) -> None:
        """Write a finished frame: its map first, so that the log never names one that is not there."""
        place = {
            "frame": statistics.number,
            "slice": statistics.slice,
            "method": statistics.meta.get("method", ""),
            "time_s": statistics.time_s,
        }
        alarms = "; ".join(statistics.alarms)
        rows = [plain({**place, **row, "alarms": alarms, "run": self.run}) for row in statistics.regions]
        try:
            self._keep(found)
            self._rows.writerows(rows)
            self._table.flush()
        except OSError as error:
            self.problem = str(error)
            return
        self.write(
            "frame",
            {**place, "regions": statistics.regions, "alarms": statistics.alarms, "meta": statistics.meta},
        )

    def _keep(self, found: TemperatureMap) -> None:
        if self._maps is None:
            return
        beside = f"_{found.meta.get('method')}" if "beside" in found.meta else ""
        path = self._maps / f"frame_{found.number:06d}_slice{found.slice}{beside}.npz"
        arrays = {
            name: values
            for name in ("change_degc", "unfiltered_degc", "temperature_degc", "sigma_degc", "cem43_min", "validity")
            if (values := getattr(found, name)) is not None
        }
        partial = path.with_suffix(".part.npz")
        try:
            np.savez(partial, **arrays)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _appended(path: Path, first: str = "") -> TextIO:
    """Open a file to append lines to; one that a killed run left unfinished is ended first, a new one gets its first.

    Of scans that begin at the same time one does so.
    """
    file = path.open("a", encoding="utf-8", newline="")
    # A full disk, or one that knows no locks, is no reason to have no log: what could not be written waits.
    # Nor is a lock that somebody else keeps a reason to wait for long.
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(_LOCK_S / _LOCK_TRIES)
        except OSError:
            break
    with suppress(OSError):
        if not file.seek(0, os.SEEK_END):
            file.write(first)
        else:
            with path.open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read(1) != b"\n":
                    file.write("\n")
        file.flush()
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    return file
