import dataclasses
import math
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mrd_peers import free_port
from sinotherm.cli.watch import command
from sinotherm.core.scan import EncodingSpace, FrameImage, FrameStatistics, ScanHeader
from sinotherm.stages.publish import Settings, stage
from sinotherm.thermometry.dose import DoseIntegrator
from sinotherm.thermometry.statistics import RegionStatistics
from sinotherm.wire.feed import FeedMessage, Publisher, Subscriber, shared_publisher

app = typer.Typer()
app.command()(command)


SPACE = EncodingSpace(matrix=(4, 4, 1), fov_m=(0.2, 0.2, 0.01))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial")
SHAPE = (1, 4, 4)


def row(name: str, degc: float, *, absolute: bool = True) -> Mapping[str, Any]:
    """Return a row as thermometry makes it, an hour at 1.5 CEM43 min behind it."""
    statistics = RegionStatistics(name, np.ones(SHAPE, bool), 1.0)
    values = np.full(SHAPE, degc, np.float32)
    if absolute:
        statistics.begin_dose(DoseIntegrator(np.full(SHAPE, 43.0), 0.0, max_gap_frames=3))
        statistics.row(np.full(SHAPE, 43.0, np.float32), values, absolute=True, dose=None, time_s=90.0)
    return statistics.row(values, values, absolute=absolute, dose=None, time_s=90.001)


def items(frames: int) -> Iterator[FrameImage | FrameStatistics]:
    """Yield what comes to the feed; after the last frame the scan stands still for a while."""
    for number in range(frames):
        received_s = float("nan") if number == 0 else time.monotonic() - 1000.0
        yield FrameImage(data=np.zeros((1, *SHAPE), np.complex64), number=number, received_s=received_s)
        time.sleep(0.05)
        regions = (row("muscle", 38.0), row("tumour", 43.217), row("change", 2.5, absolute=False))[number % 2 :]
        alarms = ("too hot", "drift") if number == 1 else ()
        patience_s = 0.2 if number == frames - 1 else math.inf
        found = FrameStatistics(number=number, regions=regions, alarms=alarms, patience_s=patience_s)
        yield found
        if number == 0:
            yield dataclasses.replace(found, regions=regions[1:], meta={"method": "gridding", "beside": "pdunet"})
        time.sleep(0.05)
    time.sleep(1.0)


def scan(publisher: Publisher, endpoint: str, frames: int) -> None:
    until = time.monotonic() + 20
    while publisher.topics < 4 and time.monotonic() < until:
        time.sleep(0.01)
    list(stage(items(frames), SCAN, Settings.parse("publish", {"endpoint": endpoint})))


def watched(frames: int, *options: str) -> str:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    publisher = shared_publisher(endpoint)
    thread = threading.Thread(target=scan, args=(publisher, endpoint, frames))
    thread.start()
    result = CliRunner().invoke(app, ["--endpoint", endpoint, *options], catch_exceptions=False)
    thread.join()
    publisher.close()
    assert result.exit_code == 0
    return result.stdout


def test_frames_are_shown_with_latency_temperature_dose_and_alarms() -> None:
    shown = watched(3, "--frames", "3", "--seconds", "20")
    assert "43.22" in shown
    assert "1.50" in shown
    assert "10000" in shown
    assert "0 gridding" in shown
    assert "too hot;" in shown
    assert "drift" in shown


def test_a_change_of_temperature_is_no_temperature() -> None:
    assert "+2.50" in watched(1, "--seconds", "1.0", "--region", "change")


def test_a_scan_that_stands_still_is_shown_until_it_goes_on() -> None:
    assert "stale frame: no map for 0.2 s" in watched(1, "--seconds", "1.0")
    assert "stale frame" not in watched(2, "--frames", "2", "--seconds", "20")


def test_the_table_keeps_the_latest_and_ends_after_so_many() -> None:
    shown = watched(23, "--frames", "22")
    rows = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert rows == [str(number) for number in range(2, 22)]


def test_a_region_that_is_not_there_is_the_first() -> None:
    assert "38.00" in watched(1, "--region", "kidney", "--seconds", "1.0")


def image(run: str, number: int, **more: Any) -> FeedMessage:
    return FeedMessage(
        topic="image", header={"run": run, "protocol": f"scan {run}", "number": number, "slice": 0} | more, array=None
    )


def figures(run: str, number: int, degc: float, **more: Any) -> FeedMessage:
    regions = [{"region": "tumour", "t50_degc": degc}]
    header = image(run, number).header | {"regions": regions, "alarms": []} | more
    return FeedMessage(topic="statistics_beside" if "meta" in more else "statistics", header=header, array=None)


def end(run: str) -> FeedMessage:
    return FeedMessage(topic="end", header={"run": run}, array=None)


def told(monkeypatch: pytest.MonkeyPatch, messages: list[FeedMessage], *options: str) -> tuple[str, list[list[str]]]:
    """Return what is shown of messages, and frame and T50 of each row."""
    waiting = iter(messages)

    def receive(*_: Any, **__: Any) -> FeedMessage:
        try:
            return next(waiting)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(Subscriber, "receive", receive)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    shown = CliRunner().invoke(app, ["--endpoint", endpoint, *options], catch_exceptions=False).stdout
    cells = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines() if line.startswith("│")]
    return shown, [[row[1], row[4]] for row in cells]


@pytest.mark.parametrize("ends", [[end("p-0")], []], ids=["ended", "killed"])
def test_a_second_scan_has_a_table_without_the_rows_of_the_first(
    monkeypatch: pytest.MonkeyPatch, ends: list[FeedMessage]
) -> None:
    first = [message for number in range(30) for message in (image("p-0", number), figures("p-0", number, 44.0))]
    run = "p-1" if ends else "q-0"
    second = [image(run, 0), figures(run, 0, 37.0), image(run, 1)]
    shown, rows = told(monkeypatch, [*first, *ends, *second])
    assert rows == [["0", "37.00"], ["1", "–"]]
    assert f"scan {run}" in shown
    assert "scan p-0" not in shown
    shown, rows = told(monkeypatch, [*first, *ends])
    assert rows[-1] == ["29", "44.00"]
    assert ("scan p-0, ended" in shown) is bool(ends)


def test_two_scans_at_the_same_time_have_a_table_each(monkeypatch: pytest.MonkeyPatch) -> None:
    alarm = FeedMessage(topic="alarm", header={"run": "p-0", "alarms": ["stale frame: [1]"]}, array=None)
    both = [figures("p-0", 0, 44.0), figures("p-1", 0, 37.0), alarm, figures("p-1", 1, 38.0)]
    shown, rows = told(monkeypatch, both)
    assert rows == [["0", "44.00"], ["0", "37.00"], ["1", "38.00"]]
    assert "stale frame: [1]" in shown
    assert told(monkeypatch, [*both, end("p-1"), end("p-2")])[1] == rows


def test_the_last_frame_is_shown_with_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = {"meta": {"method": "gridding", "beside": "pdunet"}}
    heated = [
        message
        for number in range(4)
        for message in (
            *(image("p-0", number), image("p-0", number, **beside)),
            *(figures("p-0", number, 40.0, **beside), figures("p-0", number, 44.0)),
        )
    ]
    _, rows = told(monkeypatch, heated, "--frames", "2")
    assert rows == [["0", "44.00"], ["0 gridding", "40.00"], ["1", "44.00"], ["1 gridding", "40.00"]]


def test_without_thermometry_the_next_frame_or_the_end_shows_that_one_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [image("p-0", number) for number in range(3)]
    assert told(monkeypatch, images, "--frames", "2")[1] == [["0", "–"], ["1", "–"]]
    begun = image("p-1", 0)
    assert told(monkeypatch, [*images, end("p-0"), begun], "--frames", "3")[1] == [["0", "–"], ["1", "–"], ["2", "–"]]


def test_ctrl_c_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Subscriber, "receive", interrupted)
    result = CliRunner().invoke(app, ["--endpoint", f"tcp://127.0.0.1:{free_port()}"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "latency" in result.stdout


def test_a_feed_from_which_nothing_comes_is_told() -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    for arguments, code in ((["--frames", "1"], 1), ([], 0)):
        result = CliRunner().invoke(app, ["--endpoint", endpoint, "--seconds", "0", *arguments])
        assert result.exit_code == code
        assert f"nothing came from {endpoint}" in result.stderr
