"""Byte streams of real programs (Gadgetron, its client, FIRE), replayed and written again."""

from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from mrd_peers import recorded, split
from sinotherm.errors import PeerGoneError
from sinotherm.wire.codec import Decoder, encode
from sinotherm.wire.file import MrdFile
from sinotherm.wire.messages import Close, ConfigFile, ConfigText, Error, Header, MessageId, Readout, Text

pytestmark = pytest.mark.data

STREAMS = [
    "client_to_server",
    "client_to_server_named",
    "connect_client_to_server",
    "error_client_to_server",
    "error_external_to_gadgetron",
    "error_first_external_to_gadgetron",
    "error_first_server_to_client",
    "error_server_to_client",
    "external_to_gadgetron",
    "fire_client_to_server",
    "fire_configtext_client_to_server",
    "fire_savedataonly_client_to_server",
    "fire_savedataonly_server_to_client",
    "fire_server_to_client",
    "gadgetron_to_external",
    "server_to_client",
]
IDS = {
    ConfigFile: MessageId.CONFIG_FILE,
    ConfigText: MessageId.CONFIG_TEXT,
    Header: MessageId.HEADER,
    Close: MessageId.CLOSE,
    Text: MessageId.TEXT,
    Error: MessageId.ERROR,
    Readout: MessageId.ACQUISITION,
    ismrmrd.Image: MessageId.IMAGE,
    ismrmrd.Waveform: MessageId.WAVEFORM,
}


def written(message: Any) -> bytes:
    return b"".join(bytes(part) for part in encode(message))


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_are_read_and_written_byte_by_byte(shared_data: Path, name: str) -> None:
    raw = recorded(shared_data, f"{name}.bin")
    expected = split(raw)
    decoder = Decoder()
    messages = list(decoder.feed(raw))
    decoder.end()
    assert [IDS[type(message)] for message in messages] == [number for number, _ in expected]
    for message, (number, bytes_) in zip(messages, expected, strict=True):
        if name == "server_to_client" and number == MessageId.IMAGE:
            # Gadgetron's writer lays out meta in its own way; all else is the same.
            (again,) = Decoder().feed(written(message))
            assert again.meta == message.meta
            assert written(message)[2:196] == bytes_[2:196]
            assert written(message)[-message.data.nbytes :] == bytes_[-message.data.nbytes :]
        else:
            assert written(message) == bytes_


@pytest.mark.parametrize("name", STREAMS)
def test_every_truncation_is_noticed(shared_data: Path, name: str) -> None:
    raw = recorded(shared_data, f"{name}.bin")
    ends = np.cumsum([len(part) for _, part in split(raw)])
    whole = 0
    decoder = Decoder()
    for at, byte in enumerate(raw):
        # The stream up to here is all that comes; a decoder must say so without disturbing what it has.
        with pytest.raises(PeerGoneError):
            decoder.end()
        whole += len(list(decoder.feed(raw[at : at + 1])))
        assert whole == np.searchsorted(ends, at + 1, side="right"), byte
    decoder.end()


@pytest.mark.parametrize("step", [1, 7, 341, 1110, 4096])
def test_splits_do_not_matter(shared_data: Path, step: int) -> None:
    raw = recorded(shared_data, "client_to_server.bin")
    decoder = Decoder(block_bytes=64)
    messages = [message for at in range(0, len(raw), step) for message in decoder.feed(raw[at : at + step])]
    assert b"".join(written(message) for message in messages) == raw


def test_streams_hold_the_scan_of_the_file(shared_data: Path) -> None:
    with MrdFile(shared_data / "wire" / "tiny_radial.h5") as file:
        items = list(file.items())
        header = file.header_xml
    messages = list(Decoder().feed(recorded(shared_data, "client_to_server.bin")))
    assert isinstance(messages[1], Header)
    assert messages[1].xml == header
    # The C++ client puts the waveform where its time stamp belongs, and so do we.
    assert [written(item) for item in items] == [written(message) for message in messages[2:-1]]


def test_gadgetrons_error_is_a_text_for_the_client(shared_data: Path) -> None:
    texts = [
        message.text
        for message in Decoder().feed(recorded(shared_data, "error_server_to_client.bin"))
        if isinstance(message, Text)
    ]
    assert len(texts) == 1
    assert "ERROR: Errors received: \nsinotherm test: deliberate failure" in texts[0]
    console = (shared_data / "wire" / "error_client_console.txt").read_text()
    assert "deliberate failure" in console
