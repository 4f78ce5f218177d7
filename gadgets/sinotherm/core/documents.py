"""XML that a peer or a file brings: read within bounds, without DTD and entities."""

from io import BytesIO
from typing import Any, Final
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from sinotherm.errors import DataError

__all__ = ["MAX_DEPTH", "MAX_ELEMENTS", "parse_document", "without_nul"]

MAX_DEPTH: Final = 64
MAX_ELEMENTS: Final = 200_000


def without_nul(raw: bytes) -> bytes:
    """Return an XML document without the NUL that some writers count in."""
    text = raw.rstrip(b"\0")
    # In little-endian UTF-16 the last character has a zero of its own.
    return text + b"\0" if text[:2] == b"\xff\xfe" or text[1:2] == b"\0" else text


def parse_document(raw: bytes, what: str, *, max_bytes: int = 16 << 20) -> Any:
    """Return the root element of an XML document.

    Parameters
    ----------
    raw
        The document.
    what
        What it is, for the message.
    max_bytes
        Bound of its length; depth and number of elements have bounds of their own, checked while it is
        read, because a few MB of tags become a tree of GB.

    Raises
    ------
    DataError
        It is longer, deeper or of more elements than the bounds, is not XML, or has a DTD.
    """
    if len(raw) > max_bytes:
        raise DataError(f"{what} has {len(raw)} bytes: the bound is {max_bytes}.")
    depth = elements = 0
    root: Any = None
    try:
        for event, element in iterparse(BytesIO(raw), events=("start", "end"), forbid_dtd=True):
            if event == "end":
                depth -= 1
                continue
            root = element if root is None else root
            depth, elements = depth + 1, elements + 1
            if depth > MAX_DEPTH or elements > MAX_ELEMENTS:
                raise DataError(
                    f"{what} has elements {depth} deep, {elements} so far: the bounds are a depth of {MAX_DEPTH} and "
                    f"{MAX_ELEMENTS} elements."
                )
    except DefusedXmlException as error:
        raise DataError(f"{what} is refused: {error}; it needs no DTD or entities.") from None
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{what} ({len(raw)} bytes) is not XML: {error}.") from None
    return root
