"""The MRD stream as bytes, without I/O: what goes into a socket, and what comes out of one.

The decoder owns the buffer that a socket fills; nothing is allocated for a length before it was
checked, and nothing larger than what has really arrived.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import ismrmrd
import numpy as np

from sinotherm.core.documents import without_nul
from sinotherm.errors import DataError, PeerGoneError, ProtocolError
from sinotherm.wire.messages import (
    ACQUISITION_HEADER_BYTES,
    CONFIG_NAME_BYTES,
    IMAGE_DTYPES,
    IMAGE_HEADER_BYTES,
    WAVEFORM_HEADER_BYTES,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Message,
    MessageId,
    Query,
    Readout,
    Response,
    Text,
    Waveform,
    image_from_parts,
    image_pixels,
    written_meta,
)

__all__ = ["Decoder", "Limits", "encode"]

Buffer: TypeAlias = bytes | memoryview
"""Bytes as sockets take them."""

_ID: Final = struct.Struct("<H")
_UINT32: Final = struct.Struct("<I")
_UINT64: Final = struct.Struct("<Q")
_QUERY: Final = struct.Struct("<QQQ")
_RESPONSE: Final = struct.Struct("<QQ")
# number_of_samples, active_channels and trajectory_dimensions of an acquisition, counted from its id.
_READOUT_SHAPE: Final = struct.Struct("<2x34xH2xH136xH")
_READOUT_START: Final = _ID.size + ACQUISITION_HEADER_BYTES
_WAVEFORM_START: Final = _ID.size + WAVEFORM_HEADER_BYTES
_IMAGE_START: Final = _ID.size + IMAGE_HEADER_BYTES + _UINT64.size
_TEXT_START: Final = _ID.size + _QUERY.size
"""The most that a message has before its text."""

_INSTEAD: Final = {
    MessageId.DICOM: "ask for MRD images (an ImageWriter among the top-level writers), not DICOM",
    MessageId.DEPENDENCY_QUERY: "connect without a dependency query; there is no storage of dependencies here",
    MessageId.RECON_DATA: "put our node before the gadget that makes recon data, so that it gets acquisitions",
    MessageId.IMAGE_ARRAY: "put ImageArraySplit before our node, so that it gets images (1022)",
    MessageId.NDARRAY: "send the array as an image (1022)",
    MessageId.BUCKET: "put our node before AcquisitionAccumulateTrigger, so that it gets acquisitions (1008)",
    MessageId.BUNDLE: "send the messages one by one, not as a bundle",
}


_Size: TypeAlias = Callable[[int, int], int]
"""Start and number of bytes that are there → size of the message, or of the part that tells its size."""

_Build: TypeAlias = Callable[[int, int], Message]
"""Start and size → the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of what a peer may announce; each is checked before memory is taken.

    Attributes
    ----------
    text_bytes
        Config, header, text, error, query and image attributes.
    message_bytes
        Any message.
    coils
        Channels of a readout or image; 1024 is what MRD's channel mask can name.
    trajectory_dimensions
        Values of the trajectory a sample.
    """

    text_bytes: int = 16 << 20
    message_bytes: int = 1 << 30
    coils: int = 1024
    trajectory_dimensions: int = 16


def _text(raw: bytes | bytearray) -> tuple[str, bool]:
    """Return the text before its NUL and whether there was one."""
    terminated = raw.endswith(b"\0")
    return raw.rstrip(b"\0").decode("utf-8", "backslashreplace"), terminated


class Decoder:
    """Bytes in, messages out.

    A socket fills `space` and says how much with `received`; `messages` then yields what is complete.
    The readouts and images that it yields own their arrays.

    Parameters
    ----------
    limits
        Bounds of what the peer may announce.
    block_bytes
        Size of the receive buffer; it grows for a larger message, as its bytes arrive, and shrinks after it.

    Attributes
    ----------
    closed
        Whether CLOSE has come.
    confined
        Whether no message may be larger than one of text; for a peer that has no scan.
    """

    def __init__(self, *, limits: Limits | None = None, block_bytes: int = 512 << 10) -> None:
        self.limits = limits or Limits()
        self.closed = self.confined = False
        self._block_bytes = block_bytes
        self._buffer = bytearray(block_bytes)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._need = _ID.size
        self._received_s = float("nan")
        self._shape = (0, 0, 0)
        self._kinds: dict[int, tuple[_Size, _Build]] = {
            MessageId.CONFIG_FILE: (lambda *_: _ID.size + CONFIG_NAME_BYTES, self._config_file),
            MessageId.CONFIG_TEXT: (self._size_text, self._config_text),
            MessageId.HEADER: (self._size_text, self._header),
            MessageId.CLOSE: (lambda *_: _ID.size, self._close),
            MessageId.TEXT: (self._size_text, self._plain_text),
            MessageId.QUERY: (partial(self._size_long, offset=2 * _UINT64.size), self._query),
            MessageId.RESPONSE: (partial(self._size_long, offset=_UINT64.size), self._response),
            MessageId.ERROR: (partial(self._size_long, offset=0), self._error),
            MessageId.ACQUISITION: (self._size_readout, self._readout),
            MessageId.IMAGE: (self._size_image, self._image),
            MessageId.WAVEFORM: (self._size_waveform, self._waveform),
        }

    def space(self) -> memoryview:
        """Return the free part of the receive buffer, never empty."""
        filled = self._end - self._start
        if filled == 0:
            self._start = self._end = 0
            if len(self._buffer) > self._block_bytes:
                self._replace_buffer(self._block_bytes)
        elif self._start and self._start + self._need > len(self._buffer):
            self._view[:filled] = self._view[self._start : self._end]
            self._start, self._end = 0, filled
        if self._end == len(self._buffer):
            self._replace_buffer(min(2 * len(self._buffer), max(self._need, len(self._buffer) + 1)))
        return self._view[self._end :]

    def _replace_buffer(self, size: int) -> None:
        filled = self._end - self._start
        buffer = bytearray(size)
        buffer[:filled] = self._view[self._start : self._end]
        self._buffer, self._view = buffer, memoryview(buffer)
        self._start, self._end = 0, filled

    def forget(self) -> None:
        """Give back the memory of what was received; nothing more can be."""
        self._view = memoryview(b"")
        self._buffer = bytearray()
        self._start = self._end = 0

    def received(self, n_bytes: int, *, at_s: float = float("nan")) -> None:
        """Take note that ``n_bytes`` of `space` were filled at ``at_s`` (monotonic clock, s)."""
        self._end += n_bytes
        self._received_s = at_s

    def feed(self, data: bytes | bytearray | memoryview, *, at_s: float = float("nan")) -> Iterator[Message]:
        """Take ``data`` and yield the messages that it completes.

        Raises
        ------
        ProtocolError, DataError
            As `messages`.
        """
        rest = memoryview(data)
        while len(rest):
            space = self.space()
            n_bytes = min(len(space), len(rest))
            space[:n_bytes] = rest[:n_bytes]
            self.received(n_bytes, at_s=at_s)
            rest = rest[n_bytes:]
            yield from self.messages()

    def messages(self) -> Iterator[Message]:
        """Yield the messages that are complete; bytes after CLOSE are ignored.

        Raises
        ------
        ProtocolError
            A message id is unknown or not taken here, or a length exceeds its bound.
        DataError
            An image's attributes are not MRD meta XML.
        """
        kinds, bound = self._kinds, self.limits.message_bytes
        what_to_do = "the stream is damaged, or the bound must be raised"
        if self.confined:
            bound = self.limits.text_bytes + _TEXT_START
            what_to_do = "there is no scan yet: send config, header, data, CLOSE"
        while not self.closed:
            start = self._start
            available = self._end - start
            if available < self._need:
                return
            (number,) = _ID.unpack_from(self._buffer, start)
            if number not in kinds:
                raise self._unknown(number)
            size, build = kinds[number]
            need = size(start, available)
            if need > bound:
                raise ProtocolError(
                    f"message {number} ({MessageId(number).name}) of {need} bytes: the bound is {bound}; {what_to_do}."
                )
            if available < need:
                self._need = need
                return
            self._need = _ID.size
            self._start = start + need
            yield build(start, need)
        self._start = self._end = 0

    def end(self) -> None:
        """Take note that the peer sends nothing more.

        Raises
        ------
        PeerGoneError
            There was no CLOSE, or the last message is incomplete.
        """
        if self.closed:
            return
        filled = self._end - self._start
        if filled == 0:
            raise PeerGoneError("the peer closed the connection without CLOSE: the scan is not complete.")
        raise PeerGoneError(
            f"the peer closed the connection within a message, {filled} of at least {self._need} bytes arrived: "
            "the scan is not complete."
        )

    @staticmethod
    def _unknown(number: int) -> ProtocolError:
        known = ", ".join(str(int(other)) for other in MessageId if other not in _INSTEAD)
        if number in _INSTEAD:
            name = MessageId(number).name
            return ProtocolError(f"message {number} ({name}) is not taken here: {_INSTEAD[MessageId(number)]}.")
        return ProtocolError(
            f"message id {number} is unknown (known: {known}); it has no length, so the rest of the stream cannot "
            "be read: check that the peer speaks MRD streaming (version 1)."
        )

    def _bounded(self, what: str, value: int, bound: int) -> int:
        if value > bound:
            raise ProtocolError(f"{what} {value}: the bound is {bound}; the stream is damaged, or not MRD.")
        return value

    def _size_text(self, start: int, available: int) -> int:
        begin = _ID.size + _UINT32.size
        if available < begin:
            return begin
        (length,) = _UINT32.unpack_from(self._buffer, start + _ID.size)
        return begin + self._bounded("bytes of text", length, self.limits.text_bytes)

    def _size_long(self, start: int, available: int, offset: int) -> int:
        begin = _ID.size + offset + _UINT64.size
        if available < begin:
            return begin
        (length,) = _UINT64.unpack_from(self._buffer, start + _ID.size + offset)
        return begin + self._bounded("bytes of text", length, self.limits.text_bytes)

    def _size_readout(self, start: int, available: int) -> int:
        if available < _READOUT_START:
            return _READOUT_START
        samples, coils, dims = self._shape = _READOUT_SHAPE.unpack_from(self._buffer, start)
        if coils > self.limits.coils or dims > self.limits.trajectory_dimensions:
            self._bounded("coils of a readout:", coils, self.limits.coils)
            self._bounded("trajectory dimensions of a readout:", dims, self.limits.trajectory_dimensions)
        return _READOUT_START + samples * (4 * dims + 8 * coils)

    def _size_waveform(self, start: int, available: int) -> int:
        if available < _WAVEFORM_START:
            return _WAVEFORM_START
        head = ismrmrd.WaveformHeader.from_buffer(self._buffer, start + _ID.size)
        return _WAVEFORM_START + 4 * head.channels * head.number_of_samples

    def _size_image(self, start: int, available: int) -> int:
        if available < _IMAGE_START:
            return _IMAGE_START
        head = ismrmrd.ImageHeader.from_buffer(self._buffer, start + _ID.size)
        (attributes,) = _UINT64.unpack_from(self._buffer, start + _IMAGE_START - _UINT64.size)
        dtype = IMAGE_DTYPES.get(head.data_type)
        if dtype is None:
            raise ProtocolError(f"image of data_type {head.data_type}: MRD knows 1 to {max(IMAGE_DTYPES)}.")
        pixels = self._bounded("channels of an image:", head.channels, self.limits.coils)
        for length in head.matrix_size:
            pixels *= length
        self._bounded("bytes of image attributes", attributes, self.limits.text_bytes)
        return _IMAGE_START + int(attributes) + pixels * dtype.itemsize

    def _bytes(self, start: int, stop: int) -> bytes:
        return bytes(self._view[start:stop])

    def _config_file(self, start: int, size: int) -> ConfigFile:
        name, _, _ = self._bytes(start + _ID.size, start + size).partition(b"\0")
        return ConfigFile(name=name.decode("utf-8", "backslashreplace"))

    def _config_text(self, start: int, size: int) -> ConfigText:
        text, terminated = _text(self._bytes(start + _ID.size + _UINT32.size, start + size))
        return ConfigText(text=text, terminated=terminated)

    def _plain_text(self, start: int, size: int) -> Text:
        text, terminated = _text(self._bytes(start + _ID.size + _UINT32.size, start + size))
        return Text(text=text, terminated=terminated)

    def _header(self, start: int, size: int) -> Header:
        raw = self._bytes(start + _ID.size + _UINT32.size, start + size)
        xml = without_nul(raw)
        return Header(xml=xml, terminated=len(xml) < len(raw))

    def _close(self, *_: int) -> Close:
        self.closed = True
        return Close()

    def _query(self, start: int, size: int) -> Query:
        reserved, correlation, _ = _QUERY.unpack_from(self._buffer, start + _ID.size)
        text, _ = _text(self._bytes(start + _ID.size + _QUERY.size, start + size))
        return Query(correlation=correlation, text=text, reserved=reserved)

    def _response(self, start: int, size: int) -> Response:
        correlation, _ = _RESPONSE.unpack_from(self._buffer, start + _ID.size)
        text, _ = _text(self._bytes(start + _ID.size + _RESPONSE.size, start + size))
        return Response(correlation=correlation, text=text)

    def _error(self, start: int, size: int) -> Error:
        text, _ = _text(self._bytes(start + _ID.size + _UINT64.size, start + size))
        return Error(text=text)

    def _readout(self, start: int, size: int) -> Readout:
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(self._buffer, start + _ID.size)
        samples, coils, dims = self._shape
        # One copy of trajectory and data together: the buffer is used again, and samples on the wire
        # stand at odd places, where compiled kernels cannot use them.
        arrays = self._buffer[start + _READOUT_START : start + size]
        return Readout(
            header=head,
            data=np.ndarray((coils, samples), np.complex64, arrays, 4 * samples * dims),
            trajectory=np.ndarray((samples, dims), np.float32, arrays),
            received_s=self._received_s,
        )

    def _image(self, start: int, size: int) -> Any:
        head = ismrmrd.ImageHeader.from_buffer_copy(self._buffer, start + _ID.size)
        (length,) = _UINT64.unpack_from(self._buffer, start + _IMAGE_START - _UINT64.size)
        begin = start + _IMAGE_START
        attributes = self._bytes(begin, begin + length)
        columns, rows, planes = head.matrix_size
        shape = (head.channels, planes, rows, columns)
        pixels = self._buffer[begin + length : start + size]
        array = np.ndarray(shape, IMAGE_DTYPES[head.data_type], pixels)
        return image_from_parts(head, attributes, array, received_s=self._received_s)

    def _waveform(self, start: int, size: int) -> Any:
        head = ismrmrd.WaveformHeader.from_buffer_copy(self._buffer, start + _ID.size)
        samples = self._bytes(start + _WAVEFORM_START, start + size)
        return Waveform(head, data=np.ndarray((head.channels, head.number_of_samples), "<u4", samples))


def _encode_text(number: MessageId, raw: bytes, terminated: bool) -> list[Buffer]:
    raw = raw + b"\0" if terminated else raw
    return [_ID.pack(number) + _UINT32.pack(len(raw)) + raw]


def _encode_readout(readout: Readout) -> list[Buffer]:
    head = readout.header
    coils, samples = readout.data.shape
    shape = (head.active_channels, head.number_of_samples, head.number_of_samples, head.trajectory_dimensions)
    if shape != (coils, samples, *readout.trajectory.shape):
        raise DataError(
            f"readout {head.scan_counter}: data {readout.data.shape} (coil, sample) and trajectory "
            f"{readout.trajectory.shape} do not fit its header, which says {shape}: make the header of the arrays."
        )
    return [
        _ID.pack(MessageId.ACQUISITION) + bytes(head),
        np.ascontiguousarray(readout.trajectory, np.float32).tobytes(),
        np.ascontiguousarray(readout.data, np.complex64).reshape(-1).view(np.uint8).data,
    ]


def _encode_image(image: Any) -> list[Buffer]:
    pixels = image_pixels(image)
    attributes = written_meta(image.meta)
    head = image.getHead()
    head.attribute_string_len = len(attributes)
    start = _ID.pack(MessageId.IMAGE) + bytes(head) + _UINT64.pack(len(attributes)) + attributes
    return [start, pixels.reshape(-1).view(np.uint8).data]


def encode(message: Message) -> list[Buffer]:
    """Return the bytes of a message as buffers to be sent one after the other, without copying its arrays.

    Raises
    ------
    DataError
        Arrays do not fit their header, a name is too long, or nobody knows how to write the message.
    """
    match message:
        case Readout():
            return _encode_readout(message)
        case Image():
            return _encode_image(message)
        case Waveform():
            data = np.ascontiguousarray(message.data, np.uint32)
            return [_ID.pack(MessageId.WAVEFORM) + bytes(message.getHead()) + data.tobytes()]
        case ConfigFile():
            raw = message.name.encode()
            if len(raw) >= CONFIG_NAME_BYTES:
                raise DataError(f"config name of {len(raw)} bytes: the bound is {CONFIG_NAME_BYTES - 1}.")
            return [_ID.pack(MessageId.CONFIG_FILE) + raw.ljust(CONFIG_NAME_BYTES, b"\0")]
        case ConfigText():
            return _encode_text(MessageId.CONFIG_TEXT, message.text.encode(), message.terminated)
        case Header():
            return _encode_text(MessageId.HEADER, message.xml, message.terminated)
        case Text():
            return _encode_text(MessageId.TEXT, message.text.encode(), message.terminated)
        case Query():
            raw = message.text.encode()
            start = _QUERY.pack(message.reserved, message.correlation, len(raw))
            return [_ID.pack(MessageId.QUERY) + start + raw]
        case Response():
            raw = message.text.encode()
            return [_ID.pack(MessageId.RESPONSE) + _RESPONSE.pack(message.correlation, len(raw)) + raw]
        case Error():
            raw = message.text.encode()
            return [_ID.pack(MessageId.ERROR) + _UINT64.pack(len(raw)) + raw]
        case Close():
            return [_ID.pack(MessageId.CLOSE)]
    raise DataError(f"nothing is known about sending a {type(message).__name__}.")
