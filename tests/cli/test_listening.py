"""``serve`` and ``node`` within the process: where they listen, and how they end."""

import os
import signal
import socket
import sys
import threading
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mrd_peers import CLOSE, config_name, converse, free_port, text_message
from sinotherm.cli import node, serve
from sinotherm.cli.listening import listen
from sinotherm.errors import SettingsError, WireError
from sinotherm.wire.server import Server


def run(command: Any, *arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def run_until(number: signal.Signals, parts: list[bytes], command: Any, *arguments: str) -> tuple[Any, Any]:
    """Run what listens, hold a conversation with it, then send the signal; return the result and what was answered."""
    port = free_port()
    answers: list[Any] = []
    over = threading.Event()

    def client() -> None:
        try:
            answers.append(converse(port, parts))
        finally:
            # However it went: what listens would listen forever.
            if not over.is_set():
                os.kill(os.getpid(), number)

    thread = threading.Thread(target=client, daemon=True)
    thread.start()
    try:
        result = run(command, *arguments, "--no-warm-up", "--port", str(port))
    finally:
        over.set()
    thread.join()
    return result, answers[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_listens_until_it_is_told_to_end(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    interval_s = sys.getswitchinterval()
    parts = [config_name("../../etc/passwd"), text_message(3, b"<nothing/>"), CLOSE]
    with caplog.at_level("INFO"):
        result, answer = run_until(number, parts, serve.command, "--set", "publish.endpoint=")
    assert result.exit_code == 0
    assert "listening on 127.0.0.1:" in caplog.text
    assert f"{number.name}: no new scans" in caplog.text
    assert answer[0][0] == 5
    assert b"a bare name" in answer[0][1]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert sys.getswitchinterval() == interval_s


def test_a_node_reports_to_its_parent() -> None:
    parts = [text_message(2, b"<configuration/>"), text_message(3, b"<nothing/>"), CLOSE]
    result, answer = run_until(signal.SIGTERM, parts, node.command, "thermometry")
    assert result.exit_code == 0
    assert [number for number, _ in answer] == [8]


@pytest.mark.parametrize("left", [0, 2])
def test_a_process_whose_scans_still_compute_ends_at_once(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    monkeypatch.setattr(Server, "run", lambda _: left)
    server = Server(lambda _: iter, port=0)
    with server._listener:
        listen(server)
    assert codes == ([1] if left else [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", [(serve.command,), (node.command, "thermometry")], ids=["serve", "node"])
def test_a_signal_in_the_warm_up_ends_the_start(
    command: tuple[Any, ...], number: signal.Signals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where an interrupt would be swallowed, as it is within imports and compiled code that calls Python."""
    begun: list[int] = []

    def swallowing(*_: Any) -> None:
        begun.append(1)
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            begun.append(2)

    monkeypatch.setattr("sinotherm.pipelines.warmup._run", swallowing)
    monkeypatch.setattr("sinotherm.pipelines.warmup._compile", lambda *_: None)
    monkeypatch.setattr("sinotherm.pipelines.warmup._SCANS", ((3, 16, 0.0),))
    monkeypatch.setattr(Server, "run", lambda _: pytest.fail("it listens"))
    app = typer.Typer()
    app.command()(command[0])
    result = CliRunner().invoke(app, [*command[1:], "--port", str(free_port())])
    assert result.exit_code != 0
    assert begun == [1]
    assert "listening" not in caplog.text


@pytest.mark.parametrize("command", [(serve.command,), (node.command, "thermometry")], ids=["serve", "node"])
def test_a_port_that_is_taken_is_told_before_the_warm_up(
    command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinotherm.pipelines.warmup.warm_up", lambda *_: pytest.fail("it warms up"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(WireError, match="cannot listen on"):
        run(*command, "--port", str(taken.getsockname()[1]))


def test_what_cannot_start_says_so() -> None:
    with pytest.raises(SettingsError, match="unknown target 'nonsense'"):
        run(node.command, "nonsense")
    with pytest.raises(WireError, match="port 70000"):
        run(serve.command, "--no-warm-up", "--port", "70000")
    with pytest.raises(SettingsError, match=r"write stage.setting=value"):
        run(serve.command, "--set", "frames")
    with pytest.raises(SettingsError, match=r"unknown setting thermometry\.phase_sing"):
        run(serve.command, "--set", "thermometry.phase_sing=1")
    assert "does not exist" in run(serve.command, "--pipelines", "/nonexistent").output
    for silence_s in ("-1", "0", "nan", "inf"):
        for command in ((serve.command,), (node.command, "thermometry")):
            with pytest.raises(SettingsError, match=f"silence_s = {float(silence_s)}: it must be above 0 and finite"):
                run(*command, "--silence-s", silence_s)
