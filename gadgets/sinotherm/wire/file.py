"""MRD files (HDF5), read and written in blocks: a hundred times faster than one readout at a time.

Layout as ``ismrmrd.Dataset`` writes it: ``/dataset/xml``, ``/dataset/data`` (head, traj, data),
``/dataset/waveforms`` and ``/dataset/image_<series>/{header,attributes,data}``. Images of a series that are of
another shape or type than its first are in ``image_<series>_1``, ``image_<series>_2`` …
"""

import errno
import fcntl
import logging
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import h5py
import ismrmrd
import numpy as np
from ismrmrd.hdf5 import acquisition_dtype, image_header_dtype, waveform_dtype

from sinotherm.errors import DataError, FileFormatError
from sinotherm.wire.messages import IMAGE_DTYPES, Readout, image_from_parts, image_pixels, parse_meta, written_meta

__all__ = ["AcquisitionWriter", "ImageSeries", "ImageWriter", "MrdFile", "read_images"]

logger = logging.getLogger(__name__)

_BLOCK_BYTES: Final = 4 << 20
_BLOCK_ROWS: Final = 512
_FIRST_ROWS: Final = 4
"""A noise scan may be shorter than what follows it: more than one row says how large rows are."""
_STAMP_ROWS: Final = 4096
_FLUSH_S: Final = 1.0
_IMAGE_TABLES: Final = {"header", "attributes", "data"}
_STORED_COMPLEX: Final = {
    np.dtype("<c8"): np.dtype([("real", "<f4"), ("imag", "<f4")]),
    np.dtype("<c16"): np.dtype([("real", "<f8"), ("imag", "<f8")]),
}
_PIXELS: Final = {*IMAGE_DTYPES.values(), np.dtype("<i8")}
"""Of images; ismrmrd-python writes the integers of type 4 as 64 bits."""
_DAMAGE: Final = (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError)
"""What h5py raises over a damaged file; a name of damaged letters is a ValueError."""
_SERIES_OVERHEAD_BYTES: Final = 1 << 15
_ROW_OVERHEAD_BYTES: Final = 1 << 10
"""More than HDF5 adds to the tables of a series, and to each row: object headers, indices, unused parts of chunks."""
_UNABLE: Final = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOLCK}
"""A file system that cannot make room beforehand, or lock."""


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Raise what h5py raises over a damaged file as a `FileFormatError`."""
    try:
        yield
    except _DAMAGE as error:
        raise FileFormatError(f"{what} cannot be read ({error}); the file is truncated or damaged.") from None


def _open(path: Path) -> Any:
    if path.is_dir():
        raise FileFormatError(f"{path}: a folder; give the MRD file itself.")
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise FileFormatError(f"{path}: no such file.") from None
    except _DAMAGE as error:
        raise FileFormatError(f"{path}: not an HDF5 file, or damaged ({error}); an MRD file is HDF5.") from None


def _check_target(path: Path, n_bytes: int) -> None:
    """Raise `FileFormatError` if a file of this size cannot be written, and leave alone what stands there."""
    if path.is_dir():
        raise FileFormatError(f"{path}: cannot be written, it is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise FileFormatError(f"{path}: cannot be written, there is no folder {path.parent}; make it first.")
    with _creating(path):
        if not path.exists():
            with tempfile.TemporaryFile(dir=path.parent) as nameless:
                _make_room(nameless.fileno(), n_bytes)
            return
        # HDF5 empties a file before it finds that somebody else has locked it.
        with path.open("r+b") as file, _if_able():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _if_able() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNABLE:
            raise


@contextmanager
def _creating(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileFormatError(
            f"{path}: cannot be written ({error}); is it open elsewhere, write-protected, or the disk full?"
        ) from None


def _make_room(handle: int, needed: int) -> None:
    """Raise `OSError` if the disk has no room for a file to grow by so many bytes."""
    size = os.fstat(handle).st_size
    try:
        with _if_able():
            os.posix_fallocate(handle, size, needed)
    finally:
        os.ftruncate(handle, size)


def _group(file: Any, path: Path, name: str) -> Any:
    with _reading(f"{path}: the group /{name}"):
        group = file.get(name)
        found = ", ".join(sorted(file)) or "nothing"
    if not isinstance(group, h5py.Group):
        raise FileFormatError(f"{path}: not an MRD file, it has no group /{name} (in it: {found}).")
    return group


def _headers(heads: np.ndarray, dtype: np.dtype[Any], kind: Any, where: str) -> list[Any]:
    """Return headers of ctypes type ``kind`` from a column of a block."""
    if heads.dtype != dtype:
        if heads.dtype.names != dtype.names:
            raise FileFormatError(f"{where}: header fields {heads.dtype.names} are not those of MRD 1 {dtype.names}.")
        try:
            heads = heads.astype(dtype)
        except (TypeError, ValueError) as error:
            raise FileFormatError(f"{where}: header fields are not those of MRD 1 ({error}).") from None
    # tobytes would write the padding of the waveform header, but only of a contiguous copy.
    packed = bytearray(np.ascontiguousarray(heads).view(np.uint8).data)
    return [kind.from_buffer_copy(packed, start) for start in range(0, len(packed), dtype.itemsize)]


def _holds_arrays(column: np.dtype[Any]) -> bool:
    """Return whether each row of a column is an array of real numbers, of any length or of a fixed one."""
    base = h5py.check_vlen_dtype(column)
    if base is None:
        return column.base.kind in "iuf" and len(column.shape) == 1
    # Of texts, the base is a Python type.
    return isinstance(base, np.dtype) and base.kind in "iuf"


class MrdFile:
    """An MRD file's header, readouts, waveforms and images, read in blocks of a few MB.

    Parameters
    ----------
    path
        The file.
    dataset
        Group that holds the scan.

    Raises
    ------
    FileFormatError
        The file is missing, not HDF5, not MRD, truncated or damaged.
    """

    def __init__(self, path: str | Path, *, dataset: str = "dataset") -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._group = _group(self._file, self.path, dataset)
            self.header_xml: bytes = self._read_header()
            self._readouts = self._table("data", ("head", "traj", "data"))
            self._waveforms, self._waveforms_error = self._waveform_table()
        except FileFormatError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def n_readouts(self) -> int:
        """Readouts in the file, noise and dummy scans included."""
        return 0 if self._readouts is None else len(self._readouts)

    @property
    def n_waveforms(self) -> int:
        """Waveforms in the file; 0 where their table cannot be read."""
        return 0 if self._waveforms is None else len(self._waveforms)

    @property
    def has_time_stamps(self) -> bool:
        """Whether any readout carries a time stamp."""
        for start in range(0, self.n_readouts, _STAMP_ROWS):
            heads = self._rows(self._readouts.fields("head"), start, min(start + _STAMP_ROWS, self.n_readouts))
            if heads["acquisition_time_stamp"].any():
                return True
        return False

    def _read_header(self) -> bytes:
        with _reading(f"{self.path}: the header"):
            xml = self._group["xml"][()] if "xml" in self._group else b""
            if isinstance(xml, np.ndarray):
                xml = xml.flat[0] if xml.size else b""
            header = xml.encode() if isinstance(xml, str) else bytes(xml)
        if not header.strip(b"\0 \r\n"):
            raise FileFormatError(f"{self.path}: not an MRD file, it has no header in {self._group.name}/xml.")
        return header

    def _waveform_table(self) -> tuple[Any, FileFormatError | None]:
        """Return the table, and why it cannot be read: that matters to who wants waveforms only."""
        try:
            return self._table("waveforms", ("head", "data")), None
        except FileFormatError as error:
            logger.warning("no waveforms: %s", error)
            return None, error

    def _table(self, name: str, fields: tuple[str, ...]) -> Any:
        with _reading(f"{self.path}: {self._group.name}/{name}"):
            table = self._group.get(name)
            if table is None:
                return None
            dtype = table.dtype if isinstance(table, h5py.Dataset) and table.ndim == 1 else np.dtype(np.void)
        if not set(fields) <= set(dtype.names or ()):
            raise FileFormatError(f"{self.path}: {self._group.name}/{name} is not a table of {', '.join(fields)}.")
        for field in fields:
            if field != "head" and not _holds_arrays(dtype[field]):
                raise FileFormatError(
                    f"{self.path}: the column {field} of {self._group.name}/{name} is of type {dtype[field]}; MRD has "
                    "an array of numbers in each row there."
                )
        return table

    def _rows(self, table: Any, start: int, stop: int) -> np.ndarray:
        with _reading(f"{self.path}: the rows {start} to {stop - 1}"):
            rows: np.ndarray = table[start:stop]
        return rows

    def _blocks(self, table: Any) -> Iterator[tuple[int, np.ndarray]]:
        start, rows = 0, _FIRST_ROWS
        while start < len(table):
            try:
                block = self._rows(table, start, min(start + rows, len(table)))
            except FileFormatError:
                if rows == 1:
                    raise
                # One bad row fails its whole block: smaller ones save what is good before it.
                rows = max(1, rows // 8)
                continue
            yield start, block
            if start == 0:
                row_bytes = max(row.nbytes for row in block["data"])
                rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(row_bytes, 1)))
            start += len(block)

    def readouts(self) -> Iterator[Readout]:
        """Return the readouts in the order of the file; ``received_s`` is NaN.

        Raises
        ------
        FileFormatError
            A block cannot be read, or an array is not as long as its header says.
        """
        table = self._readouts
        if table is None:
            return
        for start, block in self._blocks(table):
            where = f"{self.path}: readouts from {start}"
            heads = _headers(block["head"], acquisition_dtype["head"], ismrmrd.AcquisitionHeader, where)
            for index, (head, trajectory, data) in enumerate(zip(heads, block["traj"], block["data"], strict=True)):
                coils, samples, dims = head.active_channels, head.number_of_samples, head.trajectory_dimensions
                if data.size != 2 * coils * samples or trajectory.size != samples * dims:
                    raise FileFormatError(
                        f"{self.path}: readout {start + index} holds {data.size} data and {trajectory.size} "
                        f"trajectory values; its header ({coils} coils, {samples} samples, {dims} trajectory "
                        f"dimensions) asks for {2 * coils * samples} and {samples * dims}."
                    )
                yield Readout(
                    header=head,
                    data=data.astype(np.float32, copy=False).view(np.complex64).reshape(coils, samples),
                    trajectory=trajectory.astype(np.float32, copy=False).reshape(samples, dims),
                )

    def waveforms(self) -> Iterator[Any]:
        """Return the waveforms (``ismrmrd.Waveform``) in the order of the file.

        Raises
        ------
        FileFormatError
            The table or a block of it cannot be read, or an array is not as long as its header says.
        """
        table = self._waveforms
        if self._waveforms_error is not None:
            raise self._waveforms_error
        if table is None:
            return
        for start, block in self._blocks(table):
            where = f"{self.path}: waveforms from {start}"
            heads = _headers(block["head"], waveform_dtype["head"], ismrmrd.WaveformHeader, where)
            for index, (head, data) in enumerate(zip(heads, block["data"], strict=True)):
                if data.size != head.channels * head.number_of_samples:
                    raise FileFormatError(
                        f"{self.path}: waveform {start + index} holds {data.size} values; its header "
                        f"({head.channels} channels, {head.number_of_samples} samples) asks for "
                        f"{head.channels * head.number_of_samples}."
                    )
                yield ismrmrd.Waveform(head, data=data)

    def images(self) -> Iterator[Any]:
        """Return the images (``ismrmrd.Image``) of the file's image groups, by their numbers, one after the other.

        Raises
        ------
        FileFormatError
            They cannot be read.
        DataError
            An image's attributes are not MRD meta XML.
        """
        with _reading(f"{self.path}: {self._group.name}"):
            names = sorted(self._group, key=_by_number)
        for name in names:
            with _reading(f"{self.path}: {self._group.name}/{name}"):
                group = self._group[name]
                found = isinstance(group, h5py.Group) and set(group) >= _IMAGE_TABLES
                n_images = len(group["header"]) if found else 0
            for row in range(n_images):
                (head,), (attributes,), (pixels,) = _image_rows(group, self.path, slice(row, row + 1))
                yield image_from_parts(head, attributes, pixels)

    def items(self) -> Iterator[Any]:
        """Return readouts and waveforms merged by time stamp, a waveform after the readouts up to its own stamp.

        A file without readouts is one of images: then those. A waveform that cannot be read ends the
        waveforms; the error comes after the readouts, which do not need them.
        """
        if self._readouts is None:
            yield from self.images()
        late: list[FileFormatError] = []

        def readable() -> Iterator[Any]:
            try:
                yield from self.waveforms()
            except FileFormatError as error:
                late.append(error)

        waveforms = readable()
        waiting = next(waveforms, None)
        for readout in self.readouts():
            while waiting is not None and waiting.time_stamp < readout.header.acquisition_time_stamp:
                yield waiting
                waiting = next(waveforms, None)
            yield readout
        while waiting is not None:
            yield waiting
            waiting = next(waveforms, None)
        if late:
            raise late[0]


def _by_number(name: str) -> list[str | int]:
    """Return the parts of a group's name: numbers in it count as such."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def _image_rows(group: Any, path: Path, rows: slice) -> tuple[list[Any], list[bytes], np.ndarray]:
    """Return headers, attributes and pixels (frame, channel, z, y, x) of some images of a group."""
    with _reading(f"{path}: {group.name}"):
        heads, texts, pixels = group["header"][rows], group["attributes"][rows], group["data"][rows]
        for dtype, stored in _STORED_COMPLEX.items():
            if pixels.dtype == stored:
                pixels = pixels.view(dtype)
        pixels = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
        attributes = [text if isinstance(text, bytes) else str(text).encode() for text in texts]
    if not len(heads) == len(attributes) == len(pixels):
        raise FileFormatError(
            f"{path}: {group.name} holds {len(heads)} headers, {len(attributes)} attributes and {len(pixels)} "
            "images; the file is truncated or damaged."
        )
    if pixels.dtype not in _PIXELS or not 2 <= pixels.ndim <= 5:
        raise FileFormatError(
            f"{path}: {group.name}/data is {pixels.dtype} of {pixels.ndim} axes; images are (frame, channel, z, y, x) "
            f"of {', '.join(sorted(str(dtype) for dtype in _PIXELS))}."
        )
    return _headers(heads, image_header_dtype, ismrmrd.ImageHeader, f"{path}: {group.name}"), attributes, pixels


class _Writer(ABC):
    """An MRD file that grows table by table.

    What stands under its name is replaced when there is something to write: a run that fails before leaves it as it is.

    HDF5 does not survive a write that fails: it tries again at every later chance, and can end the process by a
    segmentation fault. So room on the disk is made sure of before HDF5 writes, and a file of which a write failed
    all the same is closed at once.

    A write that was interrupted (Ctrl-C) is made once more, over what it left: every row has its place.
    """

    def __init__(self, path: str | Path, header_xml: bytes, dataset: str) -> None:
        self.path = Path(path)
        self._header_xml = header_xml
        self._dataset = dataset
        self._file: Any = None
        self._group: Any = None
        _check_target(self.path, self._needed([len(header_xml)]))

    def _begin(self) -> None:
        if self._file is None:
            with _creating(self.path):
                self._file = h5py.File(self.path, "w")
        with self._writing():
            self._make_room([len(self._header_xml)])
            group = self._file.require_group(self._dataset)
            if self._header_xml:
                xml = group.require_dataset("xml", (1,), dtype=h5py.special_dtype(vlen=bytes))
                xml[0] = self._header_xml.partition(b"\0")[0]
            self._file.flush()
        self._group = group

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _write(self) -> None:
        """Hand what was appended so far to HDF5."""

    @property
    @abstractmethod
    def _kept(self) -> str:
        """What of the scan is in the file, in words."""

    def flush(self) -> None:
        """Write what was appended so far to the disk.

        Raises
        ------
        DataError
            It cannot be written; the file is closed, with what there was room for.
        """
        if self._group is None:
            self._begin()
        with self._writing():
            self._write()
            self._file.flush()

    def close(self) -> None:
        """Write what is left and close the file; a second time, or after a failed write, does nothing."""
        if self._file is None or self._file:
            self.flush()
        if self._file:
            self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            # What HDF5 still wants to write goes nowhere: the file stays as the last good flush left it.
            nowhere = os.memfd_create("unwritten")
            os.dup2(nowhere, self._file.id.get_vfd_handle())
            os.close(nowhere)
            self._file.close()
            raise DataError(
                f"{self.path}: cannot be written any more ({error}); {self._kept} in it: make room on the disk, or "
                "name a file on another one."
            ) from None

    def _make_room(self, sizes: Sequence[int], n_series: int = 1) -> None:
        """Raise `OSError` if the disk has no room for rows of these sizes, bytes."""
        _make_room(self._file.id.get_vfd_handle(), self._needed(sizes, n_series))

    @staticmethod
    def _needed(sizes: Sequence[int], n_series: int = 1) -> int:
        return sum(sizes) + len(sizes) * _ROW_OVERHEAD_BYTES + (1 + n_series) * _SERIES_OVERHEAD_BYTES

    @staticmethod
    def _append(table: Any, rows: np.ndarray, start: int) -> None:
        table.resize(start + len(rows), axis=0)
        table[start:] = rows
        # The table would write as it is collected, where an error goes unseen.
        table.flush()

    def _table(self, group: Any, name: str, dtype: Any, shape: tuple[int, ...] = (), rows: int = 64) -> Any:
        if name in group:
            return group[name]
        return group.create_dataset(
            name,
            (0, *shape),
            maxshape=(None, *(n or None for n in shape)),
            dtype=dtype,
            chunks=(rows, *(max(n, 1) for n in shape)),
        )


class AcquisitionWriter(_Writer):
    """Writes an MRD file of readouts and waveforms.

    Parameters
    ----------
    path
        The file; an existing one is replaced.
    header_xml
        The scan's MRD header.
    dataset
        Group of the scan.
    """

    def __init__(self, path: str | Path, header_xml: bytes, *, dataset: str = "dataset") -> None:
        self._readouts: list[Readout] = []
        self._waveforms: list[Any] = []
        self._n_readouts = self._n_waveforms = 0
        super().__init__(path, header_xml, dataset)

    def append(self, item: Any) -> None:
        """Append a `Readout` or an ``ismrmrd.Waveform``."""
        if isinstance(item, Readout):
            self._readouts.append(item)
        else:
            self._waveforms.append(item)
        if len(self._readouts) + len(self._waveforms) >= _BLOCK_ROWS:
            self.flush()

    @property
    def _kept(self) -> str:
        return f"{self._n_readouts} readouts are"

    def _write(self) -> None:
        arrays = [readout.data.nbytes + readout.trajectory.nbytes for readout in self._readouts]
        arrays += [waveform.data.nbytes for waveform in self._waveforms]
        self._make_room(arrays)
        if self._readouts:
            rows = np.empty(len(self._readouts), dtype=acquisition_dtype)
            heads = b"".join(bytes(readout.header) for readout in self._readouts)
            rows["head"] = np.frombuffer(heads, dtype=acquisition_dtype["head"])
            for index, readout in enumerate(self._readouts):
                rows["traj"][index] = np.ascontiguousarray(readout.trajectory, dtype=np.float32).ravel()
                rows["data"][index] = np.ascontiguousarray(readout.data, dtype=np.complex64).view(np.float32).ravel()
            self._append(self._table(self._group, "data", acquisition_dtype), rows, self._n_readouts)
            self._n_readouts += len(rows)
            self._readouts.clear()
        if self._waveforms:
            rows = np.empty(len(self._waveforms), dtype=waveform_dtype)
            heads = b"".join(bytes(waveform.getHead()) for waveform in self._waveforms)
            rows["head"] = np.frombuffer(heads, dtype=waveform_dtype["head"])
            for index, waveform in enumerate(self._waveforms):
                rows["data"][index] = np.ascontiguousarray(waveform.data, dtype=np.uint32).ravel()
            self._append(self._table(self._group, "waveforms", waveform_dtype), rows, self._n_waveforms)
            self._n_waveforms += len(rows)
            self._waveforms.clear()


def _group_name(series: int, layout: int) -> str:
    return f"image_{series}_{layout}" if layout else f"image_{series}"


class _WaitingImage(NamedTuple):
    series: int
    layout: int
    head: bytes
    attributes: bytes
    pixels: np.ndarray

    @property
    def place(self) -> tuple[int, int]:
        return self.series, self.layout

    @property
    def n_bytes(self) -> int:
        return len(self.head) + len(self.attributes) + self.pixels.nbytes


class ImageWriter(_Writer):
    """Writes images into ``image_<series>``; without an image, no file.

    A table holds one shape and type: the images of a series that are of another go into ``image_<series>_1`` and
    so on, with a warning. Images reach the disk at least once a second, so that a killed process loses no finished
    image.

    Parameters
    ----------
    path
        The file; an existing one is replaced.
    header_xml
        The scan's MRD header, if it is to stand beside the images.
    dataset
        Group of the scan.
    """

    def __init__(self, path: str | Path, header_xml: bytes = b"", *, dataset: str = "dataset") -> None:
        self._waiting: list[_WaitingImage] = []
        self._layouts: dict[int, list[tuple[np.dtype[Any], tuple[int, ...]]]] = {}
        self._written: dict[tuple[int, int], int] = {}
        self._waiting_bytes = 0
        self._flushed_s = monotonic()
        super().__init__(path, header_xml, dataset)

    @property
    def counts(self) -> dict[int, int]:
        """Images in the file by series."""
        counts: dict[int, int] = {}
        for (series, _), count in self._written.items():
            counts[series] = counts.get(series, 0) + count
        return counts

    def append(self, image: Any) -> None:
        """Append an ``ismrmrd.Image`` to the series of its header.

        Raises
        ------
        DataError
            Its pixels are not what its header says, or the file cannot be written.
        """
        series = int(image.image_series_index)
        pixels = image_pixels(image)
        layout = (pixels.dtype, pixels.shape)
        layouts = self._layouts.setdefault(series, [])
        if layout not in layouts:
            layouts.append(layout)
            if len(layouts) > 1:
                logger.warning(
                    "image %d of series %d is %s %s and the first was %s %s (channel, z, y, x): it goes into %s",
                    *(image.image_index, series, *layout, *layouts[0], _group_name(series, len(layouts) - 1)),
                )
        head = image.getHead()
        attributes = written_meta(image.meta)
        head.attribute_string_len = len(attributes)
        self._waiting.append(_WaitingImage(series, layouts.index(layout), bytes(head), attributes, pixels))
        self._waiting_bytes += pixels.nbytes
        if self._waiting_bytes >= _BLOCK_BYTES or monotonic() - self._flushed_s >= _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what was appended so far to the disk, as `AcquisitionWriter.flush`."""
        if self._waiting:
            super().flush()

    @property
    def _kept(self) -> str:
        return f"{sum(self.counts.values())} images are"

    def _write(self) -> None:
        batches: dict[tuple[int, int], list[_WaitingImage]] = {}
        for image in self._waiting:
            batches.setdefault(image.place, []).append(image)
        try:
            self._make_room([image.n_bytes for image in self._waiting], len(batches))
        except OSError:
            # As many as there is room for, in the order in which they came.
            while self._waiting:
                self._make_room([self._waiting[0].n_bytes])
                self._write_batch(self._waiting[:1])
                del self._waiting[0]
                self._file.flush()
        else:
            for place, images in batches.items():
                self._write_batch(images)
                self._waiting = [image for image in self._waiting if image.place != place]
        self._waiting_bytes = 0
        self._flushed_s = monotonic()

    def _write_batch(self, images: Sequence[_WaitingImage]) -> None:
        """Append images of one series and layout to its tables."""
        place = images[0].place
        start = self._written.get(place, 0)
        stack = np.stack([image.pixels for image in images])
        stored = _STORED_COMPLEX.get(stack.dtype, stack.dtype)
        group = self._group.require_group(_group_name(*place))
        heads = np.frombuffer(b"".join(image.head for image in images), dtype=image_header_dtype)
        self._append(self._table(group, "header", image_header_dtype), heads, start)
        texts = np.array([image.attributes.decode() for image in images], dtype=object)
        self._append(self._table(group, "attributes", h5py.special_dtype(vlen=str)), texts, start)
        self._append(self._table(group, "data", stored, stack.shape[1:], rows=1), stack.view(stored), start)
        self._written[place] = start + len(images)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSeries:
    """The images of one series.

    Attributes
    ----------
    headers
        ``ismrmrd.ImageHeader`` of each image.
    meta
        ``ismrmrd.Meta`` of each image.
    data
        (frame, channel, z, y, x) of the stored type.
    others
        The images of the series that are of another shape or type, one entry for each.
    """

    headers: tuple[Any, ...]
    meta: tuple[Any, ...]
    data: np.ndarray
    others: tuple["ImageSeries", ...] = ()


def read_images(
    path: str | Path, *, dataset: str = "dataset", problems: list[str] | None = None
) -> dict[int, ImageSeries]:
    """Return the image series of an MRD file by number (groups ``image_<number>``, ``image_<number>_1`` …).

    Parameters
    ----------
    path
        The file.
    dataset
        Group of the scan.
    problems
        Takes a sentence about each series that cannot be read, and that series is left out; ``None``: the
        first such series is an error.

    Raises
    ------
    FileFormatError
        The file is missing, not MRD, or damaged.
    DataError
        An image's attributes are not MRD meta XML.
    """
    path = Path(path)
    found: dict[int, ImageSeries] = {}
    with _open(path) as file:
        group = _group(file, path, dataset)
        with _reading(f"{path}: {group.name}"):
            names = [match for name in group if (match := re.fullmatch(r"image_(\d+)(?:_(\d+))?", name))]
        for name in sorted(names, key=lambda name: (int(name[1]), int(name[2] or 0))):
            try:
                series, number = _series(group, name[0], path), int(name[1])
                first = found.get(number)
                found[number] = replace(first, others=(*first.others, series)) if first else series
            except DataError as error:
                if problems is None:
                    raise
                problems.append(str(error))
    return found


def _series(group: Any, name: str, path: Path) -> ImageSeries:
    where = f"{path}: {group.name}/{name}"
    with _reading(where):
        series = group[name]
        complete = isinstance(series, h5py.Group) and set(series) >= _IMAGE_TABLES
    if not complete:
        raise FileFormatError(f"{where} lacks one of header, attributes, data.")
    heads, attributes, data = _image_rows(series, path, slice(None))
    return ImageSeries(headers=tuple(heads), meta=tuple(parse_meta(text) for text in attributes), data=data)
