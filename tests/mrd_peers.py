"""Peers for the protocol tests, written from the description of the wire alone, without Sinotherm's codec."""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PIXEL_BYTES = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4, 6: 8, 7: 8, 8: 16}
CLOSE = struct.pack("<H", 4)


class Peer:
    """Strict reader and writer of messages on a socket or a byte string."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(60)

    def take(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            block = self.sock.recv(n - len(data))
            if not block:
                raise EOFError(f"end of file after {len(data)} of {n} bytes")
            data += block
        return data

    def message(self) -> tuple[int, bytes]:
        """Return id and payload (arrays included, lengths left out for texts)."""
        (number,) = struct.unpack("<H", self.take(2))
        return number, b"".join(self._payload(number))

    def _payload(self, number: int) -> Iterator[bytes]:
        if number == 4:
            return
        if number == 1:
            yield self.take(1024)
        elif number in (2, 3, 5):
            yield self.take(struct.unpack("<I", self.take(4))[0])
        elif number == 7:
            yield self.take(8)
            yield self.take(struct.unpack("<Q", self.take(8))[0])
        elif number == 8:
            yield self.take(struct.unpack("<Q", self.take(8))[0])
        elif number == 1022:
            head = self.take(198)
            length = self.take(8)
            yield head + length
            yield self.take(struct.unpack("<Q", length)[0])
            (kind,) = struct.unpack_from("<H", head, 2)
            x, y, z = struct.unpack_from("<HHH", head, 16)
            (channels,) = struct.unpack_from("<H", head, 34)
            yield self.take(PIXEL_BYTES[kind] * x * y * z * channels)
        elif number == 1026:
            head = self.take(40)
            samples, channels = struct.unpack_from("<HH", head, 28)
            yield head + self.take(4 * samples * channels)
        elif number == 1008:
            head = self.take(340)
            yield head + self.take(readout_bytes(head))
        else:
            raise ValueError(f"unknown id {number}")

    def until_close(self) -> list[tuple[int, bytes]]:
        """Return everything up to CLOSE, which must come."""
        messages = []
        while True:
            number, payload = self.message()
            if number == 4:
                return messages
            messages.append((number, payload))

    def close(self) -> None:
        self.sock.close()


def readout_bytes(head: bytes) -> int:
    samples, _, coils = struct.unpack_from("<HHH", head, 34)
    (dims,) = struct.unpack_from("<H", head, 176)
    return samples * (4 * dims + 8 * coils)


def split(stream: bytes) -> list[tuple[int, bytes]]:
    """Return id and whole bytes of each message of a recorded stream."""
    messages, at = [], 0
    while at < len(stream):
        (number,) = struct.unpack_from("<H", stream, at)
        if number == 1:
            size = 1026
        elif number in (2, 3, 5):
            size = 6 + struct.unpack_from("<I", stream, at + 2)[0]
        elif number == 4:
            size = 2
        elif number == 8:
            size = 10 + struct.unpack_from("<Q", stream, at + 2)[0]
        elif number == 1008:
            size = 342 + readout_bytes(stream[at + 2 : at + 342])
        elif number == 1026:
            samples, channels = struct.unpack_from("<HH", stream, at + 30)
            size = 42 + 4 * samples * channels
        elif number == 1022:
            (kind,) = struct.unpack_from("<H", stream, at + 4)
            x, y, z = struct.unpack_from("<HHH", stream, at + 18)
            (channels,) = struct.unpack_from("<H", stream, at + 36)
            (attributes,) = struct.unpack_from("<Q", stream, at + 200)
            size = 208 + attributes + PIXEL_BYTES[kind] * x * y * z * channels
        else:
            raise ValueError(f"unknown id {number} at {at}")
        messages.append((number, stream[at : at + size]))
        at += size
    return messages


def config_name(name: str) -> bytes:
    return struct.pack("<H", 1) + name.encode().ljust(1024, b"\0")


def text_message(number: int, text: bytes) -> bytes:
    return struct.pack("<HI", number, len(text)) + text


def readout_message(
    *, coils: int, samples: int, dims: int = 0, flags: int = 0, counter: int = 0, stamp: int = 0
) -> bytes:
    head = bytearray(340)
    struct.pack_into("<HQ", head, 0, 1, flags)
    struct.pack_into("<II", head, 14, counter, stamp)
    struct.pack_into("<HHH", head, 34, samples, coils, coils)
    struct.pack_into("<H", head, 176, dims)
    return struct.pack("<H", 1008) + bytes(head) + bytes(samples * (4 * dims + 8 * coils))


def pixels(payload: bytes) -> bytes:
    """Return the pixel bytes of an image's payload."""
    (attributes,) = struct.unpack_from("<Q", payload, 198)
    return payload[206 + attributes :]


def dial(port: int, *, within_s: float = 120.0) -> Peer:
    """Connect to a server that may still be starting: on a machine that is busy, a process takes 20 s to listen."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return Peer(socket.create_connection(("127.0.0.1", port), timeout=60))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def converse(port: int, parts: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """Send what a client or a Gadgetron sends, while reading what comes back up to its CLOSE."""
    peer = dial(port)
    sender = threading.Thread(target=_send, args=(peer.sock, list(parts)), daemon=True)
    sender.start()
    try:
        return peer.until_close()
    finally:
        sender.join(60)
        peer.close()


def _send(sock: socket.socket, parts: list[bytes]) -> None:
    try:
        for part in parts:
            sock.sendall(part)
    except OSError:
        pass


def execute(
    target: str, parts: Iterable[bytes], *, module: str = "sinotherm.nodes", environment: dict[str, str] | None = None
) -> tuple[list[tuple[int, bytes]], int, str]:
    """Be a Gadgetron that starts Python: return what the node sent before CLOSE, its exit code and stderr."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(120)
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "gadgetron", str(port), module, target],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"GADGETRON_EXTERNAL_LOG_LEVEL": "INFO"} | (environment or {}),
        )
        sock, _ = listener.accept()
    peer = Peer(sock)
    sender = threading.Thread(target=_send, args=(sock, list(parts)), daemon=True)
    sender.start()
    try:
        messages = peer.until_close()
    finally:
        sender.join(60)
        peer.close()
    out, err = process.communicate(timeout=60)
    assert out == "", "an external node must not write to stdout"
    return messages, process.returncode, err


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def recorded(folder: Path, name: str) -> bytes:
    return (folder / "wire" / name).read_bytes()
