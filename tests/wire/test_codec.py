import struct
from collections.abc import Iterator
from typing import Any

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrd_peers import readout_message, text_message
from sinotherm.errors import DataError, PeerGoneError, ProtocolError
from sinotherm.wire.codec import Decoder, Limits, encode
from sinotherm.wire.messages import (
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Message,
    MessageId,
    Query,
    Readout,
    Response,
    Text,
    written_meta,
)


def written(message: Message) -> bytes:
    return b"".join(bytes(part) for part in encode(message))


def read(raw: bytes, **options: Any) -> list[Message]:
    return list(Decoder(**options).feed(raw))


def readout(*, coils: int = 2, samples: int = 5, dims: int = 2, counter: int = 7) -> Readout:
    rng = np.random.default_rng(counter)
    header = ismrmrd.AcquisitionHeader()
    header.number_of_samples, header.active_channels, header.trajectory_dimensions = samples, coils, dims
    header.scan_counter = counter
    data = rng.standard_normal((coils, samples)) + 1j * rng.standard_normal((coils, samples))
    trajectory = rng.standard_normal((samples, dims)).astype(np.float32)
    return Readout(header=header, data=data.astype(np.complex64), trajectory=trajectory)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)


@given(text=TEXT, terminated=st.booleans(), number=st.integers(0, 2**64 - 1))
def test_texts_survive_the_wire(text: str, terminated: bool, number: int) -> None:
    messages: list[Message] = [
        ConfigFile(name=text),
        ConfigText(text=text, terminated=terminated),
        Header(xml=text.encode(), terminated=terminated),
        Text(text=text, terminated=terminated),
        Query(correlation=number, text=text, reserved=number),
        Response(correlation=number, text=text),
        Error(text=text),
        Close(),
    ]
    assert read(b"".join(written(message) for message in messages)) == messages


def test_layouts_are_those_of_the_description() -> None:
    assert written(ConfigFile(name="a")) == struct.pack("<H1024s", 1, b"a")
    assert written(ConfigText(text="ab")) == struct.pack("<HI2s", 2, 2, b"ab")
    assert written(Header(xml=b"ab", terminated=True)) == struct.pack("<HI3s", 3, 3, b"ab\0")
    assert written(Close()) == struct.pack("<H", 4)
    assert written(Text(text="µ")) == struct.pack("<HI2s", 5, 2, b"\xc2\xb5")
    assert written(Query(correlation=9, text="ab")) == struct.pack("<HQQQ2s", 6, 0, 9, 2, b"ab")
    assert written(Response(correlation=9, text="ab")) == struct.pack("<HQQ2s", 7, 9, 2, b"ab")
    assert written(Error(text="ab")) == struct.pack("<HQ2s", 8, 2, b"ab")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("nul", [b"", b"\0", b"\0\0"])
def test_a_header_is_taken_to_its_last_character(encoding: str, nul: bytes) -> None:
    xml = "<h>µ</h>".encode(encoding)
    assert read(text_message(3, xml + nul)) == [Header(xml=xml, terminated=bool(nul))]


def test_text_that_is_not_utf8_is_shown_escaped() -> None:
    assert read(text_message(5, b"\xb0C\0")) == [Text(text="\\xb0C", terminated=True)]


@settings(max_examples=30)
@given(coils=st.integers(0, 4), samples=st.integers(0, 9), dims=st.integers(0, 3))
def test_readouts_survive_the_wire(coils: int, samples: int, dims: int) -> None:
    sent = readout(coils=coils, samples=samples, dims=dims)
    raw = written(sent)
    package = ismrmrd.Acquisition.from_bytes(raw[2:])
    np.testing.assert_array_equal(package.data, sent.data)
    np.testing.assert_array_equal(package.traj, sent.trajectory)
    (got,) = Decoder().feed(raw, at_s=3.5)
    assert bytes(got.header) == bytes(sent.header)
    np.testing.assert_array_equal(got.data, sent.data)
    np.testing.assert_array_equal(got.trajectory, sent.trajectory)
    assert got.data.flags.aligned
    assert got.data.flags.c_contiguous
    assert got.data.flags.writeable
    assert got.received_s == 3.5


def test_readouts_own_their_arrays() -> None:
    decoder = Decoder(block_bytes=1000)
    first, second = readout(counter=1), readout(counter=2)
    (got,) = decoder.feed(written(first))
    list(decoder.feed(written(second)))
    np.testing.assert_array_equal(got.data, first.data)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(1, "u2"), (2, "i2"), (3, "u4"), (5, "f4"), (6, "f8"), (7, "c8"), (8, "c16")]
)
def test_images_survive_the_wire(kind: int, dtype: str) -> None:
    pixels = np.arange(2 * 1 * 3 * 4).reshape(2, 1, 3, 4).astype(dtype)
    sent = ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=3)
    sent.meta = {"unit": "°C", "list": ["1", "2"], "none": ""}
    raw = written(sent)
    package = ismrmrd.Image.from_bytes(raw[2:])
    assert package.data_type == kind
    np.testing.assert_array_equal(package.data, pixels)
    (got,) = Decoder().feed(raw, at_s=3.5)
    assert got.received_s == 3.5
    assert got.meta == sent.meta
    assert got.data.shape == pixels.shape
    np.testing.assert_array_equal(got.data, pixels)
    assert written(got) == raw


ATTRIBUTE = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)


@given(
    st.dictionaries(ATTRIBUTE, ATTRIBUTE | st.lists(ATTRIBUTE, max_size=3) | st.integers() | st.floats() | st.none())
)
def test_meta_is_written_as_the_package_writes_it(values: dict[str, Any]) -> None:
    meta = ismrmrd.Meta()
    meta.update(values)
    assert written_meta(meta) == meta.serialize().encode()


def int_image(pixels: np.ndarray) -> Any:
    image = ismrmrd.Image.from_array(pixels.astype(np.int64), transpose=False)
    assert image.data_type == ismrmrd.DATATYPE_INT
    return image


def test_int32_images_have_four_bytes_a_pixel() -> None:
    pixels = np.array([[-(2**31), 2**31 - 1, 5]])
    raw = written(int_image(pixels))
    assert raw[-12:] == pixels.astype("<i4").tobytes()
    (got,) = read(raw)
    np.testing.assert_array_equal(got.data[0, 0], pixels)
    assert written(got) == raw
    written(int_image(np.empty((1, 0))))


def test_images_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit into the int32"):
        encode(int_image(np.array([[2**31]])))
    image = ismrmrd.Image.from_array(np.zeros((2, 2), np.float32), transpose=False)
    image._head.data_type = ismrmrd.DATATYPE_USHORT
    with pytest.raises(DataError, match="data_type 1"):
        encode(image)


def test_waveforms_survive_the_wire() -> None:
    sent = ismrmrd.Waveform.from_array(np.arange(6, dtype=np.uint32).reshape(2, 3), waveform_id=1)
    raw = written(sent)
    assert len(raw) == 2 + 40 + 24
    (got,) = read(raw)
    assert got == sent
    assert written(got) == raw


def test_what_cannot_be_written_is_refused() -> None:
    wrong = readout()
    wrong.header.active_channels = 9
    with pytest.raises(DataError, match="make the header of the arrays"):
        encode(wrong)
    with pytest.raises(DataError, match="1023"):
        encode(ConfigFile(name="x" * 1024))
    with pytest.raises(DataError, match="sending a int"):
        encode(3)


def stream() -> list[Message]:
    image = ismrmrd.Image.from_array(np.ones((3, 4), np.float32), transpose=False)
    image.meta = {"a": "b"}
    waveform = ismrmrd.Waveform.from_array(np.ones((1, 2), np.uint32))
    return [
        ConfigFile(name="x"),
        Header(xml=b"<h/>"),
        readout(),
        image,
        waveform,
        Error(text="e"),
        Text(text="t"),
        Close(),
    ]


def test_every_split_point_gives_the_same_messages() -> None:
    raw = b"".join(written(message) for message in stream())
    for at in range(len(raw)):
        decoder = Decoder(block_bytes=64)
        got = [*decoder.feed(raw[:at]), *decoder.feed(raw[at:])]
        assert b"".join(written(message) for message in got) == raw
        decoder.end()


def test_byte_by_byte_and_after_close() -> None:
    raw = b"".join(written(message) for message in stream())
    decoder = Decoder(block_bytes=16)
    got = [message for byte in raw for message in decoder.feed(bytes([byte]))]
    assert [type(message) for message in got] == [type(message) for message in stream()]
    assert decoder.closed
    assert list(decoder.feed(raw)) == []
    decoder.end()


def test_the_buffer_grows_with_what_arrives_and_shrinks_again() -> None:
    decoder = Decoder(block_bytes=100)
    big = written(readout(coils=4, samples=1000))
    assert len(list(decoder.feed(big[:1000]))) == 0
    # What was announced is 20 times larger than what has come.
    assert len(decoder._buffer) <= 2000
    assert len(list(decoder.feed(big[1000:]))) == 1
    decoder.space()
    assert len(decoder._buffer) == 100


def test_the_end_without_close_is_noticed() -> None:
    decoder = Decoder()
    with pytest.raises(PeerGoneError, match="without CLOSE"):
        decoder.end()
    list(decoder.feed(written(readout())[:-1]))
    with pytest.raises(PeerGoneError, match="within a message, 461 of at least 462 bytes"):
        decoder.end()


def hostile() -> Iterator[Any]:
    yield "text", struct.pack("<HI", 3, 2**32 - 1), "bytes of text 4294967295: the bound is"
    yield "query", struct.pack("<HQQQ", 6, 0, 0, 2**64 - 1), "bytes of text"
    yield "response", struct.pack("<HQQ", 7, 0, 2**63), "bytes of text"
    yield "error", struct.pack("<HQ", 8, 2**40), "bytes of text"
    readout_head = readout_message(coils=1, samples=1)
    coils = bytearray(readout_head)
    struct.pack_into("<H", coils, 2 + 38, 65535)
    yield "coils", bytes(coils), "coils of a readout: 65535: the bound is 1024"
    dims = bytearray(readout_head)
    struct.pack_into("<H", dims, 2 + 176, 17)
    yield "trajectory", bytes(dims), "trajectory dimensions of a readout: 17: the bound is 16"
    image = bytearray(written(ismrmrd.Image.from_array(np.ones((1, 1), np.float32), transpose=False)))
    for name, offset, layout, value, match in (
        ("matrix", 18, "<HHH", (65535, 65535, 65535), r"message 1022 \(IMAGE\) of .* bytes: the bound is 1073741824"),
        ("channels", 36, "<H", (2000,), "channels of an image: 2000"),
        ("attributes", 200, "<Q", (2**62,), "bytes of image attributes"),
        ("data type", 4, "<H", (9,), "data_type 9"),
    ):
        changed = bytearray(image)
        struct.pack_into(layout, changed, offset, *value)
        yield name, bytes(changed), match
    waveform = bytearray(written(ismrmrd.Waveform.from_array(np.ones((1, 1), np.uint32))))
    struct.pack_into("<HH", waveform, 2 + 28, 65535, 65535)
    yield "waveform", bytes(waveform), r"message 1026 \(WAVEFORM\)"


@pytest.mark.parametrize(("raw", "match"), [pytest.param(raw, match, id=name) for name, raw, match in hostile()])
def test_hostile_lengths_are_refused_before_memory_is_taken(raw: bytes, match: str) -> None:
    decoder = Decoder(block_bytes=512)
    with pytest.raises(ProtocolError, match=match):
        list(decoder.feed(raw))
    assert len(decoder._buffer) <= 2048


def test_bounds_can_be_changed() -> None:
    assert len(read(text_message(5, b"x" * 10), limits=Limits(text_bytes=10))) == 1
    with pytest.raises(ProtocolError, match="the bound is 9"):
        read(text_message(5, b"x" * 10), limits=Limits(text_bytes=9))


def test_where_there_is_no_scan_nothing_is_larger_than_a_text() -> None:
    limits = Limits(text_bytes=400)
    decoder = Decoder(limits=limits)
    decoder.confined = True
    longest = [text_message(3, b"x" * 400), struct.pack("<HQQQ", 6, 0, 0, 400) + b"x" * 400]
    small, large = (readout_message(coils=1, samples=samples) for samples in (8, 64))
    assert len(list(decoder.feed(b"".join(longest) + small))) == 3
    with pytest.raises(ProtocolError, match=r"1008 .* of 854 bytes: the bound is 426; there is no scan yet"):
        list(decoder.feed(large))
    decoder.confined = False
    assert len(list(decoder.messages())) == 1


def test_what_was_received_is_given_back() -> None:
    decoder = Decoder()
    list(decoder.feed(readout_message(coils=64, samples=60_000)[:-1]))
    decoder.forget()
    assert len(decoder._buffer) == len(decoder._view) == 0
    assert list(decoder.messages()) == []


@pytest.mark.parametrize("number", [0, 9, 999, 1009, 65535])
def test_unknown_ids_end_the_stream(number: int) -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError, match=f"message id {number} is unknown"):
        list(decoder.feed(struct.pack("<H", number) + bytes(100)))
    with pytest.raises(ProtocolError, match="is unknown"):
        list(decoder.messages())


@pytest.mark.parametrize("number", [1018, 1019, 1023, 1024, 1030, 1050, 1051])
def test_ids_that_are_not_taken_say_what_to_do(number: int) -> None:
    with pytest.raises(ProtocolError, match=rf"message {number} \({MessageId(number).name}\) is not taken here: \w+"):
        read(struct.pack("<H", number))


@pytest.mark.parametrize(
    "attributes", [b"<a/>", b"<ismrmrdMeta>", b"\xff", b'<!DOCTYPE a [<!ENTITY b "c">]><ismrmrdMeta/>']
)
def test_bad_attributes_are_refused(attributes: bytes) -> None:
    raw = written(ismrmrd.Image.from_array(np.ones((1, 1), np.float32), transpose=False))
    raw = raw[:200] + struct.pack("<Q", len(attributes)) + attributes + raw[208:]
    with pytest.raises(DataError, match="MRD meta XML"):
        read(raw)


def test_messages_before_a_bad_one_are_delivered() -> None:
    decoder = Decoder()
    messages = decoder.feed(written(readout()) + struct.pack("<H", 77))
    assert isinstance(next(messages), Readout)
    with pytest.raises(ProtocolError, match="77"):
        next(messages)
