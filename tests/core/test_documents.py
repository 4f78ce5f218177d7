import tracemalloc

import pytest

from sinotherm.core.documents import MAX_DEPTH, MAX_ELEMENTS, parse_document, without_nul
from sinotherm.errors import DataError


def test_a_document_becomes_its_root():
    root = parse_document(b"\n<a x='1'><b>text</b><c/></a>", "it")
    assert (root.tag, root.get("x"), [child.tag for child in root], root[0].text) == ("a", "1", ["b", "c"], "text")
    deepest = b"<a>" * MAX_DEPTH + b"</a>" * MAX_DEPTH
    assert parse_document(deepest, "it").tag == "a"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("nul", [b"", b"\0", b"\0\0\0"])
def test_a_nul_that_ends_a_text_is_no_part_of_the_document(encoding, nul):
    raw = "<a>µ</a>".encode(encoding)
    assert without_nul(raw + nul) == raw
    assert without_nul(nul) == b""


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", r"the header \(0 bytes\) is not XML: no element found"),
        (b"nonsense", r"the header \(8 bytes\) is not XML: syntax error"),
        (b"<a><b></a>", "is not XML: mismatched tag"),
        (b"<a", "is not XML"),
        (b"<?xml version='1.0' encoding='nonsense'?><a/>", "is not XML: unknown encoding"),
        (b"<a>\0</a>", "is not XML: not well-formed"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "is refused: DTDForbidden.*needs no DTD or entities"),
        (b"<a>" * (MAX_DEPTH + 1), f"elements {MAX_DEPTH + 1} deep, .* a depth of {MAX_DEPTH}"),
        (b"<a>" + b"<b/>" * MAX_ELEMENTS, f"{MAX_ELEMENTS + 1} so far: .* {MAX_ELEMENTS} elements"),
        (b"<a>" + b" " * 4000 + b"</a>", "the header has 4007 bytes: the bound is 4000"),
    ],
)
def test_what_is_not_within_the_bounds_is_refused(raw, words):
    with pytest.raises(DataError, match=words):
        parse_document(raw, "the header", max_bytes=4000 if len(raw) < 5000 else 1 << 24)


def test_the_bounds_hold_before_memory_is_taken():
    raw = b"<a>" * 5_000_000
    tracemalloc.start()
    with pytest.raises(DataError, match="deep"):
        parse_document(raw, "the header")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # BytesIO shares the bytes; the parser reads them in blocks.
    assert peak < 8_000_000
