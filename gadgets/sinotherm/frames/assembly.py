"""Spokes into frames: by count, by counters, by flags, or in a sliding window."""

import ctypes
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import ismrmrd
import numpy as np

from sinotherm.core.arrays import FloatArray
from sinotherm.core.scan import Frame, MetaValue, ScanHeader, Spoke
from sinotherm.errors import SettingsError, SpokeError
from sinotherm.frames.partitions import planes

__all__ = ["FrameAssembler", "FrameRule", "PartialPolicy", "geometry_text"]

logger = logging.getLogger(__name__)

FrameRule: TypeAlias = Literal["auto", "count", "index", "flags", "window"]
PartialPolicy: TypeAlias = Literal["drop", "emit"]

MAX_BYTES: Final = 8 << 30
"""Bound of the images that a scan keeps of all its slices and echoes, and of the spokes that wait for their frames."""
_MEASURED: Final = 64
"""Bytes a pixel that thermometry keeps of each slice, and of each of its echoes."""

_GEOMETRY_START: Final = ismrmrd.AcquisitionHeader.position.offset
_GEOMETRY_BYTES: Final = ismrmrd.AcquisitionHeader.patient_table_position.offset - _GEOMETRY_START
_SAME_MM: Final = 0.01
_SAME_DIRECTION: Final = 1e-4
"""Positions (mm) and directions that differ by no more are the same plane, rounded otherwise."""


def geometry_text(header: Any) -> str:
    """Return position (mm) and directions of an MRD header, and of an image its field of view (mm), to 0.001.

    Zeros have no sign: rounded otherwise, it is the same plane. Empty without a header.
    """
    names = ("position", "read_dir", "phase_dir", "slice_dir", "field_of_view")
    return " ".join(f"{round(value, 3) + 0.0:.3f}" for name in names for value in getattr(header, name, ()))


def _geometry(header: Any) -> bytes:
    """Return position and directions of a readout as they stand in its header; empty without one."""
    return b"" if header is None else ctypes.string_at(ctypes.addressof(header) + _GEOMETRY_START, _GEOMETRY_BYTES)


def _moved(one: bytes, other: bytes) -> bool:
    """Whether two geometries are of different planes."""
    if one == other or not (one and other):
        return one != other
    apart: FloatArray = np.abs(np.frombuffer(one, np.float32) - np.frombuffer(other, np.float32))
    # Written so that NaN is elsewhere.
    return not (apart[:3].max() <= _SAME_MM and apart[3:].max() <= _SAME_DIRECTION)


def _part(header: Any) -> tuple[int, int]:
    """Return the counters of set and cardiac phase of a readout; zeros without a header."""
    return (0, 0) if header is None else (header.idx.set, header.idx.phase)


@dataclass(slots=True, kw_only=True)
class _Stream:
    """The spokes of one slice and echo that wait for their frame.

    ``late``: they begin where the plane changed, in the middle of a frame; ``ended``: the flag of another stream's
    readout said that the repetition is over.
    """

    spokes: list[Spoke] = field(default_factory=list)
    geometry: bytes = b""
    part: tuple[int, int] = (0, 0)
    short: bool = False
    late: bool = False
    ended: bool = False
    number: int = 0
    usual: int = 0
    longest: int = 0
    fresh: int = 0
    full: bool = False


class FrameAssembler:
    """Collects spokes per slice and echo and says when a frame is complete.

    Parameters
    ----------
    scan
        The scan's header.
    by
        ``count``: after ``n_spokes`` spokes; ``index``: when the repetition counter changes;
        ``flags``: with a readout that is the last in slice, repetition or measurement; ``window``: the
        last ``window`` spokes after every ``stride`` ones; ``auto``: as the header and the readouts say,
        whichever comes first (or by what is given here).
    n_spokes
        Spokes per frame (and partition); 0: the header's.
    window, stride
        Spokes of a sliding window, and spokes between two of them (0: as many as the window).
    n_partitions
        Partitions that are acquired of each stack; 0: the header's.
    partial
        What happens to a frame that the end of the scan or a change of the plane cuts short.

    Raises
    ------
    SettingsError
        The rule needs a number that neither the settings nor the header give.
    """

    def __init__(
        self,
        scan: ScanHeader,
        *,
        by: FrameRule = "auto",
        n_spokes: int = 0,
        window: int = 0,
        stride: int = 0,
        n_partitions: int = 0,
        partial: PartialPolicy = "drop",
    ) -> None:
        self._scan = scan
        self._stack = scan.n_partitions > 1
        chosen: FrameRule = by
        if by == "auto" and (window or n_spokes):
            chosen = "window" if window else "count"
        wanted = n_spokes or scan.spokes_per_frame or 0
        if chosen == "count" and not wanted:
            raise SettingsError(
                "frames.by = count needs the spokes of a frame, and the header's encoding limits do not state them: "
                "set frames.spokes."
            )
        if chosen == "window" and not window:
            raise SettingsError("frames.by = window needs the spokes of a window: set frames.window.")
        if chosen == "window" and self._stack:
            raise SettingsError(
                f"a sliding window over a stack of {scan.n_partitions} partitions is not supported: "
                "set frames.by = count, index or flags."
            )
        self.rule: FrameRule = chosen
        self._acquired = n_partitions or scan.acquired_partitions or scan.n_partitions
        self._expected = wanted * self._acquired if chosen in ("count", "index", "auto") else 0
        self._count = 0 if chosen == "index" else self._expected
        # Flags of a stack may end each of its partitions; a known count is the better sign.
        self._flags = chosen == "flags" or (chosen == "auto" and not (self._stack and self._count))
        # Whether they do, the first one tells.
        self._flag_each: bool | None = None
        self._repetitions = chosen in ("index", "auto")
        self._window, self._stride = window, stride or window
        self._partial = partial
        self._streams: dict[tuple[int, int], _Stream] = {}
        self._slices: set[int] = set()
        self._n_waiting = 0
        self._parts_noted = False
        self.n_frames = 0
        self.n_dropped_spokes = 0
        logger.info("frames by %s", self.described())
        self._check_planes()

    def _check_planes(self) -> None:
        encoded, scan = self._scan.encoded, self._scan
        if not self._stack or encoded.matrix[2] != scan.n_partitions:
            return
        distance = encoded.fov_m[2] / scan.n_partitions
        if abs(scan.plane_m - distance) > 0.01 * distance:
            logger.warning(
                "planes are %.3g mm apart by the header's reconSpace and %.3g mm by its encodedSpace: the first is "
                "written into the images; correct the header if it is wrong",
                *(1e3 * scan.plane_m, 1e3 * distance),
            )

    def described(self) -> str:
        """Return the rule in words, for the log and the image meta."""
        if self.rule == "window":
            return f"window of {self._window} spokes every {self._stride}"
        ends = [
            *([f"{self._count} spokes"] if self._count else []),
            *(["flags"] if self._flags else []),
            *(["repetition counter"] if self._repetitions else []),
        ]
        return " or ".join(ends)

    def add(self, spoke: Spoke) -> Iterator[Spoke | Frame]:
        """Yield what leaves with this spoke: frames that it shows to be over, itself, the frame that it completes.

        Spokes of a stack of stars are held back and leave, transformed along the partitions, plane by
        plane before the plane's frame.

        Raises
        ------
        SpokeError
            The scan's images, or the spokes of frames that nothing ends, need more memory than there is a bound for;
            there are more slices than the header states; or readouts of several sets or cardiac phases take turns
            within frames.
        """
        key = (spoke.slice, spoke.echo)
        stream = self._streams.get(key)
        if stream is None:
            self._check_stream(spoke)
            stream = self._streams[key] = _Stream()
        if self._n_waiting * spoke.data.nbytes > MAX_BYTES:
            raise SpokeError(
                f"{self._n_waiting} spokes of {spoke.data.nbytes} bytes wait for their frames, the bound is {MAX_BYTES}"
                " bytes: nothing ends the frames; set frames.by and frames.spokes."
            )
        before = len(stream.spokes)
        geometry = _geometry(spoke.header)
        if stream.spokes:
            if _moved(geometry, stream.geometry):
                logger.info("the plane of slice %d changes at readout %d", spoke.slice, spoke.index)
                yield from self._cut(stream)
                stream.late = True
            elif (stream.ended and not spoke.last) or (
                self._repetitions and spoke.repetition != stream.spokes[0].repetition
            ):
                yield from self._cut(stream) if stream.late else self._close(stream)
        part = _part(spoke.header)
        if part != stream.part and (stream.spokes or stream.number):
            yield from self._turn(stream, spoke, part)
        if not stream.spokes or self.rule == "window":
            stream.geometry = geometry
        stream.part = part
        stream.spokes.append(spoke)
        if not self._stack:
            yield spoke
        if self.rule == "window":
            yield from self._slide(stream)
        elif self._count and len(stream.spokes) >= self._count:
            yield from self._close(stream)
        elif self._flags and self._ends(stream, spoke):
            yield from self._cut(stream) if stream.late else self._close(stream)
            if spoke.last_of_all and not self._count:
                # Their own last spokes may come yet, with flags of their own.
                for other in self._streams.values():
                    other.ended = bool(other.spokes)
        self._n_waiting += len(stream.spokes) - before

    def _ends(self, stream: _Stream, spoke: Spoke) -> bool:
        """Whether a spoke's flags end its frame."""
        if not spoke.last or spoke.last_of_all or not self._stack:
            return spoke.last
        n_partitions = len({one.partition for one in stream.spokes})
        if self._flag_each is None:
            self._flag_each = n_partitions == 1
        return not self._flag_each or n_partitions >= self._acquired

    def _turn(self, stream: _Stream, spoke: Spoke, part: tuple[int, int]) -> Iterator[Spoke | Frame]:
        """End the running frame where set or cardiac phase change, unless the settings say what ends frames.

        Counters that only tell frames apart do no harm; images of readouts that take turns would be the sum of
        different ones.
        """
        n = len(stream.spokes)
        short = 0 < 2 * n < max(stream.usual or self._expected, 3)
        mixed = stream.short and short if self._repetitions else part in {_part(held.header) for held in stream.spokes}
        words = f"from set {stream.part[0]}, phase {stream.part[1]} to set {part[0]}, phase {part[1]}"
        if mixed:
            raise SpokeError(
                f"readout {spoke.index} goes {words} again within a frame: readouts that take turns are parts of "
                "different images, and one image of all would be their sum; give each set and phase a scan (file) of "
                "its own, or write 0 into idx.set and idx.phase where they tell no images apart."
            )
        if not self._parts_noted:
            self._parts_noted = True
            logger.warning(
                "readout %d goes %s: frames of all sets and phases follow each other in one series, and thermometry "
                "compares them all with one baseline; give each a scan of its own if they differ by more than time",
                *(spoke.index, words),
            )
        if n and self._repetitions:
            yield from self._cut(stream) if short else self._close(stream)
            stream.short = short

    def _check_stream(self, spoke: Spoke) -> None:
        """Refuse a slice or echo that nobody announced, or whose images are too much beside those of the others.

        Its first readout brings images that are far larger than itself: a counter of something else in idx.slice
        would take all memory. Of each slice and echo the running sum is kept, of each slice the coil maps twice.
        """
        scan = self._scan
        self._slices.add(spoke.slice)
        n_slices, n_streams, n_coils = len(self._slices), len(self._streams) + 1, len(spoke.data)
        # One slice is what converters write that know none.
        if n_slices > scan.n_slices > 1:
            raise SpokeError(
                f"readout {spoke.index} has idx.slice = {spoke.slice}, and is of slice number {n_slices} of a scan "
                f"that has {scan.n_slices} by the header: correct its limits of slice, or the counter."
            )
        columns, rows, _ = scan.recon.matrix
        n_planes = scan.n_planes if self._stack else 1
        measured = _MEASURED if "thermometry" in scan.chain else 0
        need = n_planes * rows * columns * (n_streams * (8 * n_coils + measured) + n_slices * (16 * n_coils + measured))
        if need > MAX_BYTES:
            raise SpokeError(
                f"images of {n_coils} coils with {n_planes} x {rows} x {columns} pixels for {n_slices} slices, "
                f"{n_streams} with all echoes, take {need} bytes, the bound is {MAX_BYTES}: correct the "
                "header's matrix, or write 0 into idx.slice and idx.contrast where they count something else, or "
                "compress the coils (compression.method = svd)."
            )

    def finish(self) -> Iterator[Spoke | Frame]:
        """Yield what the end of the scan leaves of frames, by the policy for partial ones."""
        for stream in self._streams.values():
            if stream.spokes:
                yield from self._end(stream)

    def _end(self, stream: _Stream) -> Iterator[Spoke | Frame]:
        if self.rule != "window" and not self._expected and not stream.number:
            logger.info("nothing ends a frame before the scan does: all %d spokes are one", len(stream.spokes))
            yield from self._close(stream)
        else:
            yield from self._cut(stream)

    def _slide(self, stream: _Stream) -> Iterator[Frame]:
        del stream.spokes[: -self._window]
        stream.fresh += 1
        if len(stream.spokes) == self._window and (stream.fresh >= self._stride or not stream.full):
            yield self._frame(stream, stream.spokes)
            stream.fresh, stream.full = 0, True

    def _cut(self, stream: _Stream) -> Iterator[Spoke | Frame]:
        """End the running frame early."""
        windowed = 0 if stream.full else self._window
        expected = windowed if self.rule == "window" else stream.longest or self._expected
        n = len(stream.spokes)
        if n >= expected and self.rule != "window":
            yield from self._close(stream)
            return
        if n < expected and self._partial == "emit":
            logger.warning("partial frame of %d of %d spokes: emitted (frames.partial = emit)", n, expected)
            yield from self._close(stream, complete=False)
            stream.usual = expected
        elif n < expected:
            logger.warning("partial frame of %d of %d spokes: dropped (frames.partial = drop)", n, expected)
            self.n_dropped_spokes += n
        elif stream.fresh:
            logger.info("%d spokes after the last window are in no other frame", stream.fresh)
        stream.spokes, stream.fresh, stream.full, stream.late, stream.ended = [], 0, False, False, False

    def _close(self, stream: _Stream, *, complete: bool = True) -> Iterator[Spoke | Frame]:
        spokes, stream.spokes, stream.short, stream.late, stream.ended = stream.spokes, [], False, False, False
        expected = stream.usual or self._expected
        if complete and expected and len(spokes) != expected:
            logger.warning("frame %d has %d spokes where %d were expected", stream.number, len(spokes), expected)
        stream.usual = len(spokes)
        if complete:
            # The header's count may be wrong, and a frame that lost spokes is no measure of the others.
            stream.longest = max(stream.longest, len(spokes))
        if not self._stack:
            yield self._frame(stream, spokes, complete=complete)
            return
        number = stream.number
        for plane in planes(spokes, self._scan.n_partitions, self._scan.n_planes, self._acquired):
            yield from plane
            stream.number = number
            yield self._frame(stream, plane, complete=complete, footprint=_footprint(spokes))

    def _frame(
        self,
        stream: _Stream,
        spokes: Sequence[Spoke],
        *,
        complete: bool = True,
        footprint: tuple[float, float, float] | None = None,
    ) -> Frame:
        last = spokes[-1]
        meta: dict[str, MetaValue] = {"frame_rule": self.described(), "spokes": len(spokes)}
        if not complete:
            meta["partial_frame"] = True
        frame = Frame(
            spokes=tuple(spokes),
            number=stream.number,
            slice=last.slice,
            echo=last.echo,
            complete=complete,
            footprint=_footprint(spokes) if footprint is None else footprint,
            meta={**meta, **last.calibration},
        )
        stream.number += 1
        self.n_frames += 1
        return frame


def _footprint(spokes: Sequence[Spoke]) -> tuple[float, float, float]:
    """Return first, centre and last time of the spokes that have one, s."""
    times = [spoke.time_s for spoke in (spokes[0], spokes[-1]) if not math.isnan(spoke.time_s)]
    if not times:
        return math.nan, math.nan, math.nan
    return times[0], (times[0] + times[-1]) / 2.0, times[-1]
