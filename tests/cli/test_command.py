import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import zmq
from typer.testing import CliRunner

from mrd_peers import free_port
from sinotherm.cli.command import _NAMES, command
from sinotherm.errors import PeerError, PeerGoneError, ProtocolError, SettingsError
from sinotherm.thermometry.commands import COMMANDS
from sinotherm.wire.feed import CommandServer

app = typer.Typer()
app.command()(command)

Taken = list[tuple[str, Mapping[str, Any]]]


@pytest.fixture
def scan() -> Iterator[tuple[str, Taken]]:
    """Answer as a scan does between its frames."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    taken: Taken = []
    ended = threading.Event()

    def handle(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
        taken.append((name, arguments))
        if name == "body_temperature":
            raise SettingsError("body temperature 90: at most 45 degC.")
        return {} if name == "mark" else {"settings": {"regions": "a=b", "cold": None}, "streams": [[0, "gridding"]]}

    def answer() -> None:
        with CommandServer(endpoint, key="secret") as server:
            while not ended.is_set():
                server.poll(handle)
                time.sleep(0.005)

    thread = threading.Thread(target=answer)
    thread.start()
    yield endpoint, taken
    ended.set()
    thread.join()


@pytest.fixture
def key(tmp_path: Path) -> str:
    (tmp_path / "key").write_text("secret\n")
    return str(tmp_path / "key")


def sent(endpoint: str, key: str, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--endpoint", endpoint, "--key-file", key], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_an_answer_is_printed_as_text_or_json(scan: tuple[str, Taken], key: str) -> None:
    assert sent(scan[0], key, "status").splitlines() == [
        "settings.regions = a=b",
        "settings.cold = null",
        'streams = [[0, "gridding"]]',
    ]
    assert json.loads(sent(scan[0], key, "status", "--json"))["streams"] == [[0, "gridding"]]
    assert sent(scan[0], key, "mark", "text=probe moved") == "done\n"


def test_values_are_json_where_they_are(scan: tuple[str, Taken], key: str) -> None:
    values = ["degc=-36.9", "frames=10", "force=true", "shape=circle:128,120,15", "text=a = b", "command=x"]
    sent(scan[0], key, "thresholds", *values)
    expected = {"degc": -36.9, "frames": 10, "force": True, "shape": "circle:128,120,15", "text": "a = b"}
    assert scan[1] == [("thresholds", expected | {"command": "x"})]


def test_the_scan_that_is_meant_is_named_as_text(scan: tuple[str, Taken], key: str) -> None:
    sent(scan[0], key, "mark", "text=x", "--scan", "0123")
    sent(scan[0], key, "mark", "text=x")
    assert scan[1] == [("mark", {"text": "x", "scan": "0123"}), ("mark", {"text": "x"})]


@pytest.mark.parametrize("arguments", [["degc"], ["=3"], ["degc=3", "degc=4"], ["degc=NaN"]])
def test_what_is_no_argument_is_not_sent(scan: tuple[str, Taken], key: str, arguments: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"KEY=VALUE|not finite"):
        sent(scan[0], key, "body_temperature", *arguments)
    assert scan[1] == []


def test_a_refusal_is_an_error(scan: tuple[str, Taken], key: str) -> None:
    with pytest.raises(PeerError, match="body_temperature was refused: body temperature 90: at most 45"):
        sent(scan[0], key, "body_temperature", "degc=90")
    Path(key).write_text("other")
    with pytest.raises(PeerError, match="the key is wrong"):
        sent(scan[0], key, "mark", "text=x")
    with pytest.raises(SettingsError, match="--key-file"):
        sent(scan[0], "nowhere", "mark")


def test_no_answer_says_that_the_command_may_be_carried_out_yet(key: str) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(PeerGoneError, match=r"within 0\.1 s: .* ask for its status"):
        sent(endpoint, key, "status", "--timeout", "0.1")


@pytest.mark.parametrize("answer", [b"{", b"[]", b"{}", b'{"ok": true, "result": 1}'])
def test_what_is_no_answer_is_said(key: str, answer: bytes) -> None:
    with zmq.Context.instance().socket(zmq.REP) as sock:
        port = sock.bind_to_random_port("tcp://127.0.0.1")

        def reply() -> None:
            sock.recv()
            sock.send(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(ProtocolError, match="is no answer to a command"):
            sent(f"tcp://127.0.0.1:{port}", key, "status")
        thread.join()


def test_an_unknown_command_is_not_waited_for() -> None:
    assert set(_NAMES) == set(COMMANDS)
    with pytest.raises(SettingsError, match="unknown command 'foo'; known commands: set_baseline"):
        CliRunner().invoke(app, ["foo", "--endpoint", "no endpoint at all"], catch_exceptions=False)


def test_every_command_stands_in_the_help() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert all(name in shown for name in COMMANDS)
