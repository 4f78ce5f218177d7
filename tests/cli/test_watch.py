import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mrd_peers import free_port
from sinotherm.cli.watch import command
from sinotherm.wire.feed import Publisher, Subscriber

app = typer.Typer()
app.command()(command)


@pytest.fixture
def feed() -> Iterator[tuple[str, Publisher]]:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Publisher(endpoint) as publisher:
        yield endpoint, publisher


def scan(publisher: Publisher, frames: int) -> None:
    until = time.monotonic() + 20
    while not (publisher.wants("image") and publisher.wants("statistics")) and time.monotonic() < until:
        time.sleep(0.01)
    for number in range(frames):
        latency_ms = float("nan") if number == 0 else 1.26
        publisher.publish("image", {"number": number, "slice": 0, "latency_ms": latency_ms}, np.zeros(3))
        time.sleep(0.05)
        regions = [
            {"region": "muscle", "t50_degC": 38.0},
            {"region": "tumour", "t50_degC": 43.217, "cem43_t50_min": 1.5},
        ][number % 2 :]
        alarms = ("too hot", "drift") if number == 1 else ()
        header = {"number": number, "slice": 0, "latency_ms": latency_ms, "regions": regions, "alarms": alarms}
        publisher.publish("statistics", header)
        if number == 0:
            beside = {"method": "gridding", "beside": "pdunet"}
            publisher.publish("statistics_beside", header | {"regions": regions[1:], "meta": beside})
        time.sleep(0.05)


def watched(endpoint: str, publisher: Publisher, frames: int, *options: str) -> str:
    thread = threading.Thread(target=scan, args=(publisher, frames))
    thread.start()
    result = CliRunner().invoke(app, ["--endpoint", endpoint, *options], catch_exceptions=False)
    thread.join()
    assert result.exit_code == 0
    return result.stdout


def test_frames_are_shown_with_latency_temperature_dose_and_alarms(feed: tuple[str, Publisher]) -> None:
    shown = watched(*feed, 3, "--frames", "3", "--seconds", "20")
    assert "43.22" in shown
    assert "1.50" in shown
    assert "1.3" in shown
    assert "0 gridding" in shown
    assert "too hot;" in shown
    assert "drift" in shown


def test_the_table_keeps_the_latest_and_ends_after_so_many(feed: tuple[str, Publisher]) -> None:
    shown = watched(*feed, 23, "--frames", "22")
    rows = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert rows == [str(number) for number in range(2, 22)]


def test_a_region_that_is_not_there_is_the_first(feed: tuple[str, Publisher]) -> None:
    assert "38.00" in watched(*feed, 1, "--region", "kidney", "--seconds", "1.0")


def test_ctrl_c_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Subscriber, "receive", interrupted)
    result = CliRunner().invoke(app, ["--endpoint", f"tcp://127.0.0.1:{free_port()}"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "latency" in result.stdout
