import socket

import pytest

from sinotherm.bench import scanner
from sinotherm.bench.ingest import rows
from sinotherm.bench.scanner import accepted, scanning
from sinotherm.errors import WireError


def test_rows_hold_the_ratios_of_the_goal() -> None:
    found = rows(coils=2, readouts=64, rounds=1)
    ingest = {row["chain"]: row for row in found if row["measure"] == "ingest"}
    files = {row["chain"]: row for row in found if row["measure"] == "file"}
    assert list(ingest) == ["loopback floor", "sinotherm", "gadgetron readers"]
    assert list(files) == ["sinotherm", "ismrmrd read_acquisition"]
    assert ingest["loopback floor"]["throughput_to_floor"] == 1.0
    assert ingest["gadgetron readers"]["cpu_to_gadgetron_readers"] == 1.0
    assert files["ismrmrd read_acquisition"]["speed_to_read_acquisition"] == 1.0
    for row in ingest.values():
        assert row["wall_us_per_readout"] > 0
        assert row["speed_to_read_acquisition"] is None


def test_a_scanner_that_fails_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(WireError, match="scanner ended with code 1"), scanning(port, b"", []):
        pass
    assert "ConnectionRefusedError" in capfd.readouterr().err


def test_a_scanner_that_never_connects_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanner, "_START_S", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(WireError, match=r"has not connected within 0\.05 s"),
    ):
        accepted(listener)


def test_a_scanner_does_not_outlive_its_measurement() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = scanning(listener.getsockname()[1], b"x", [])
        context.__enter__()
        sock, _ = listener.accept()
        assert sock.recv(1) == b"x"
        # The scanner waits for our answer; a failure here must not wait for it.
        assert context.__exit__(KeyError, KeyError("stop"), None) is False
        assert sock.recv(3) in (b"", b"\x04\x00")
        sock.close()
