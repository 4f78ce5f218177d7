"""``serve`` and ``node`` within the process: where they listen, and how they end."""

import os
import signal
import sys
import threading
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mrd_peers import CLOSE, config_name, converse, free_port, text_message
from sinotherm.cli import node, serve
from sinotherm.errors import SettingsError, WireError


def run(command: Any, *arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_listens_until_it_is_told_to_end(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    answers: list[Any] = []
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    interval_s = sys.getswitchinterval()

    def client() -> None:
        header = text_message(3, b"<nothing/>")
        answers.append(converse(port, [config_name("../../etc/passwd"), header, CLOSE]))
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=client)
    thread.start()
    with caplog.at_level("INFO"):
        result = run(serve.command, "--port", str(port), "--set", "publish.endpoint=")
    thread.join()
    assert result.exit_code == 0
    assert f"listening on 127.0.0.1:{port}" in caplog.text
    assert f"{number.name}: no new scans" in caplog.text
    assert answers[0][0][0] == 5
    assert b"a bare name" in answers[0][0][1]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert sys.getswitchinterval() == interval_s


def test_a_node_reports_to_its_parent() -> None:
    port = free_port()
    answers: list[Any] = []

    def parent() -> None:
        answers.append(converse(port, [text_message(2, b"<configuration/>"), text_message(3, b"<nothing/>"), CLOSE]))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=parent)
    thread.start()
    result = run(node.command, "thermometry", "--port", str(port))
    thread.join()
    assert result.exit_code == 0
    assert [number for number, _ in answers[0]] == [8]


def test_what_cannot_start_says_so() -> None:
    with pytest.raises(SettingsError, match="unknown target 'nonsense'"):
        run(node.command, "nonsense")
    with pytest.raises(WireError, match="port 70000"):
        run(serve.command, "--port", "70000")
    with pytest.raises(SettingsError, match=r"write stage.setting=value"):
        run(serve.command, "--set", "frames")
    with pytest.raises(SettingsError, match=r"unknown setting thermometry\.phase_sing"):
        run(serve.command, "--set", "thermometry.phase_sing=1")
    assert "does not exist" in run(serve.command, "--pipelines", "/nonexistent").output
    for silence_s in ("-1", "0", "nan", "inf"):
        for command in ((serve.command,), (node.command, "thermometry")):
            with pytest.raises(SettingsError, match=f"silence_s = {float(silence_s)}: it must be above 0 and finite"):
                run(*command, "--silence-s", silence_s)
