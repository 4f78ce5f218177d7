"""The messages of MRD streaming: ids, payload layouts and the values that stand for them.

Little endian; a message is a uint16 id and its payload. Images and waveforms travel as
``ismrmrd.Image`` and ``ismrmrd.Waveform``; a readout is ours, because the arrays of
``ismrmrd.Acquisition`` cannot be given without a copy and it knows no clock.
"""

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias

import ismrmrd
import numpy as np
from jaxtyping import Complex64, Float32

from sinotherm.core.documents import parse_document
from sinotherm.errors import DataError

__all__ = [
    "ACQUISITION_HEADER_BYTES",
    "CONFIG_NAME_BYTES",
    "IMAGE_DTYPES",
    "IMAGE_HEADER_BYTES",
    "WAVEFORM_HEADER_BYTES",
    "AcquisitionHeader",
    "Close",
    "ConfigFile",
    "ConfigText",
    "Error",
    "Header",
    "Image",
    "Message",
    "MessageId",
    "Query",
    "Readout",
    "Response",
    "Text",
    "Waveform",
    "image_from_parts",
    "image_pixels",
    "parse_meta",
    "quoted",
    "written_meta",
]

CONFIG_NAME_BYTES: Final = 1024
ACQUISITION_HEADER_BYTES: Final = ctypes.sizeof(ismrmrd.AcquisitionHeader)
IMAGE_HEADER_BYTES: Final = ctypes.sizeof(ismrmrd.ImageHeader)
WAVEFORM_HEADER_BYTES: Final = ctypes.sizeof(ismrmrd.WaveformHeader)

IMAGE_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    ismrmrd.DATATYPE_USHORT: np.dtype("<u2"),
    ismrmrd.DATATYPE_SHORT: np.dtype("<i2"),
    ismrmrd.DATATYPE_UINT: np.dtype("<u4"),
    ismrmrd.DATATYPE_INT: np.dtype("<i4"),
    ismrmrd.DATATYPE_FLOAT: np.dtype("<f4"),
    ismrmrd.DATATYPE_DOUBLE: np.dtype("<f8"),
    ismrmrd.DATATYPE_CXFLOAT: np.dtype("<c8"),
    ismrmrd.DATATYPE_CXDOUBLE: np.dtype("<c16"),
}
"""Pixels of an image on the wire and in files by ``data_type`` (ismrmrd-python holds type 4 as int64)."""


AcquisitionHeader = ismrmrd.AcquisitionHeader
Image = ismrmrd.Image
Waveform = ismrmrd.Waveform


class MessageId(IntEnum):
    """Ids of MRD streaming as Gadgetron, FIRE and their clients use them."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    QUERY = 6
    RESPONSE = 7
    ERROR = 8
    ACQUISITION = 1008
    DICOM = 1018
    DEPENDENCY_QUERY = 1019
    IMAGE = 1022
    RECON_DATA = 1023
    IMAGE_ARRAY = 1024
    WAVEFORM = 1026
    NDARRAY = 1030
    BUCKET = 1050
    BUNDLE = 1051


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """Name of a pipeline; on the wire 1024 bytes, padded with NUL."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigText:
    """A pipeline as XML text, or (FIRE) its name.

    ``terminated``: the length counts a trailing NUL, as FIRE writes it.
    """

    text: str
    terminated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The scan's MRD XML header as it came, without a trailing NUL (``terminated`` as in `ConfigText`)."""

    xml: bytes
    terminated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text: FIRE's JSON after the header, or a line for the console (``terminated`` as in `ConfigText`)."""

    text: str
    terminated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A question to the other side, answered by the `Response` of the same correlation id."""

    correlation: int
    text: str
    reserved: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The answer to the `Query` of the same correlation id."""

    correlation: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """The peer's report of its failure."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Nothing follows in this direction."""


@dataclass(slots=True, kw_only=True, eq=False)
class Readout:
    """One MRD acquisition; to be treated as frozen (freezing it would cost a fifth of the decoder's time).

    Attributes
    ----------
    header
        ``ismrmrd.AcquisitionHeader`` with flags, counters, stamps and geometry.
    data
        complex64 (coil, sample), contiguous.
    trajectory
        float32 (sample, dimension); no dimension where the header must say where the samples lie.
    received_s
        Monotonic clock at its last byte, s; NaN from a file.
    waiting
        Messages that had been received after it when work on it began; 0 from a file.
    """

    header: Any
    data: Complex64[np.ndarray, "coil sample"]
    trajectory: Float32[np.ndarray, "sample dimension"]
    received_s: float = math.nan
    waiting: int = 0


Message: TypeAlias = ConfigFile | ConfigText | Header | Text | Query | Response | Error | Close | Readout | Any
"""What the codec reads and writes; ``Any`` stands for `Image` and `Waveform`, which mypy does not know."""


def quoted(text: str, *, bound: int = 500) -> str:
    """Return what a peer wrote as it may stand in a log: so many characters, in one line, without controls."""
    text = text.strip()
    line = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text[:bound]
    )
    return line if len(text) <= bound else f"{line} … ({len(text) - bound} characters more)"


def parse_meta(attributes: bytes) -> Any:
    """Return the ``ismrmrd.Meta`` of an image's attribute string.

    C++ gadgets count a trailing NUL; values stay texts; a name with several values becomes a list.

    Raises
    ------
    DataError
        The attributes are not MRD meta XML.
    """
    meta = ismrmrd.Meta()
    text = attributes.rstrip(b"\0")
    if not text:
        return meta
    root = parse_document(text, "the MRD meta XML of an image")
    if root.tag != "ismrmrdMeta":
        raise DataError(f"image attributes begin with <{root.tag}>: MRD meta XML begins with <ismrmrdMeta>.")
    values: dict[str, list[str]] = {}
    for entry in root.findall("meta"):
        name = (entry.findtext("name") or "").strip()
        values.setdefault(name, []).extend(value.text or "" for value in entry.findall("value"))
    meta.update({name: texts[0] if len(texts) == 1 else texts for name, texts in values.items()})
    return meta


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _element(name: str, value: Any) -> str:
    text = _escaped(str(value))
    return f"<{name}>{text}</{name}>" if text else f"<{name} />"


def written_meta(meta: Mapping[str, Any]) -> bytes:
    """Return an ``ismrmrd.Meta`` as MRD meta XML, byte by byte as the package writes it, at a fifth of its time."""
    if not meta:
        return b""
    entries = []
    for name, value in meta.items():
        values = value if isinstance(value, list) else [value]
        entries.append(f"<meta>{_element('name', name)}{''.join([_element('value', part) for part in values])}</meta>")
    return f"<?xml version='1.0' encoding='UTF-8'?>\n<ismrmrdMeta>{''.join(entries)}</ismrmrdMeta>".encode()


def image_from_parts(header: Any, attributes: bytes, pixels: np.ndarray, *, received_s: float = math.nan) -> Any:
    """Return an ``ismrmrd.Image`` that holds ``pixels`` without a copy.

    Parameters
    ----------
    header
        ``ismrmrd.ImageHeader``.
    attributes
        Its meta as MRD meta XML.
    pixels
        (channel, z, y, x) of the type that the header says; int32 is widened to int64, the only
        form in which ismrmrd-python holds it.
    received_s
        Monotonic clock at its last byte, s, which the image keeps as an attribute; NaN from a file.
    """
    if pixels.dtype == np.int32:
        pixels = pixels.astype(np.int64)
    image = ismrmrd.Image(header, meta=parse_meta(attributes), data=pixels)
    image.received_s = received_s
    return image


def image_pixels(image: Any) -> np.ndarray:
    """Return an image's pixels as they travel, contiguous (channel, z, y, x).

    Raises
    ------
    DataError
        The pixels are not of the type that the header says, or do not fit into 32 bits.
    """
    dtype = IMAGE_DTYPES.get(image.data_type)
    pixels = image.data
    if image.data_type == ismrmrd.DATATYPE_INT and pixels.dtype.kind == "i":
        bounds = np.iinfo(np.int32)
        if pixels.size and (pixels.min() < bounds.min or pixels.max() > bounds.max):
            raise DataError(
                f"pixels from {pixels.min()} to {pixels.max()} do not fit into the int32 of an MRD image: "
                "send them as float32."
            )
        pixels = pixels.astype(dtype)
    if pixels.dtype != dtype:
        raise DataError(
            f"pixels are {pixels.dtype} and the image header says data_type {image.data_type} ({dtype}): "
            "make the image of the array itself."
        )
    return np.ascontiguousarray(pixels)
