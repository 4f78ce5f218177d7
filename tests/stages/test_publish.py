import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mrd_peers import free_port
from sinotherm.core.scan import EncodingSpace, FrameImage, FrameStatistics, ScanHeader, TemperatureMap
from sinotherm.stages.publish import Settings, stage
from sinotherm.wire.feed import FeedMessage, Publisher, Subscriber, shared_publisher

SPACE = EncodingSpace(matrix=(4, 4, 1), fov_m=(0.2, 0.2, 0.01))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial", measurement_id="1_2", protocol="heat")
PLANE = np.ones((1, 4, 4), np.float32)
IMAGE = FrameImage(data=np.ones((1, 1, 4, 4), np.complex64), number=3, meta={"spokes": np.int64(8)})
TEMPERATURE = TemperatureMap(
    change_degc=PLANE, sigma_degc=0.5 * PLANE, validity=np.zeros((1, 4, 4), np.uint16), number=3
)
STATISTICS = FrameStatistics(number=3, regions=({"region": "tumour", "t50_degc": 43.0},), alarms=("too hot",))


@pytest.fixture
def settings() -> Settings:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    return Settings.parse("publish", {"endpoint": endpoint})


def published(items: list[Any], settings: Settings, n_messages: int) -> dict[str, FeedMessage]:
    found: dict[str, FeedMessage] = {}
    publisher = shared_publisher(settings.endpoint)
    with Subscriber(settings.endpoint) as subscriber:
        until = time.monotonic() + 10
        while not publisher.topics and time.monotonic() < until:
            time.sleep(0.01)
        assert list(stage(iter(items), SCAN, settings)) == items
        while len(found) < n_messages and (message := subscriber.receive(within_s=5)) is not None:
            found[message.topic] = message
    publisher.close()
    return found


def test_images_maps_and_statistics_are_published_and_passed_on(settings: Settings) -> None:
    image = dataclasses.replace(IMAGE, received_s=time.monotonic() - 0.25)
    full = dataclasses.replace(
        TEMPERATURE, temperature_degc=37 + PLANE, cem43_min=2 * PLANE, received_s=image.received_s
    )
    found = published(["foreign", image, full, STATISTICS], settings, 7)
    assert sorted(found) == [
        "dose",
        "image",
        "statistics",
        "temperature",
        "temperature_change",
        "temperature_sigma",
        "validity",
    ]
    header = found["image"].header
    assert (header["number"], header["measurement_id"], header["protocol"]) == (3, "1_2", "heat")
    assert header["meta"] == {"spokes": 8}
    assert 250 <= header["latency_ms"] < 60_000
    for topic, array in (("image", image.data), ("temperature", full.temperature_degc), ("dose", full.cem43_min)):
        np.testing.assert_array_equal(found[topic].array, array)
    assert found["temperature_sigma"].header["unit"] == "degC"
    assert found["statistics"].header["regions"] == [{"region": "tumour", "t50_degc": 43.0}]
    assert found["statistics"].header["alarms"] == ["too hot"]
    assert found["statistics"].header["latency_ms"] >= 250


def test_what_goes_beside_a_network_has_topics_of_its_own(settings: Settings) -> None:
    items = [
        dataclasses.replace(item, meta={"method": method} | beside)
        for method, beside in (("gridding", {"beside": "pdunet"}), ("pdunet", {}))
        for item in (IMAGE, TEMPERATURE, STATISTICS)
    ]
    found = published(items, settings, 10)
    assert len(found) == 10
    for topic, message in found.items():
        assert message.header["meta"]["method"] == ("gridding" if topic.endswith("_beside") else "pdunet")


def test_maps_that_do_not_exist_are_not_published(settings: Settings) -> None:
    found = published([TEMPERATURE], settings, 3)
    assert sorted(found) == ["temperature_change", "temperature_sigma", "validity"]
    assert found["validity"].header["latency_ms"] is None


def test_a_scan_that_stops_is_published_while_it_stands(settings: Settings) -> None:
    publisher = shared_publisher(settings.endpoint)
    with Subscriber(settings.endpoint, topics=("alarm",)) as subscriber:
        until = time.monotonic() + 10
        while not publisher.topics and time.monotonic() < until:
            time.sleep(0.01)
        heard: list[FeedMessage | None] = []

        def scan() -> Iterator[FrameStatistics]:
            yield dataclasses.replace(STATISTICS, patience_s=60.0)
            yield dataclasses.replace(STATISTICS, patience_s=0.05)
            heard.append(subscriber.receive(within_s=10))
            yield dataclasses.replace(STATISTICS, patience_s=0.5)

        assert len(list(stage(scan(), SCAN, settings))) == 3
        # A scan that has ended is not waited for.
        heard.append(subscriber.receive(within_s=1.0))
    publisher.close()
    assert heard[0] is not None
    assert heard[0].header["alarms"] == ["stale frame: no map for 0.1 s"]
    assert heard[0].header["protocol"] == "heat"
    assert heard[1] is None


def test_scans_that_share_a_feed_are_told_apart_and_end(settings: Settings) -> None:
    publisher = shared_publisher(settings.endpoint)
    with Subscriber(settings.endpoint) as subscriber:
        until = time.monotonic() + 10
        while not publisher.topics and time.monotonic() < until:
            time.sleep(0.01)
        one, two = (stage(iter([IMAGE, STATISTICS]), SCAN, settings) for _ in range(2))
        for scan in (one, two, one):
            next(scan)
        one.close()
        list(two)
        found = [subscriber.receive(within_s=5) for _ in range(6)]
    publisher.close()
    kinds: dict[str, list[str]] = {}
    for message in found:
        assert message is not None
        kinds.setdefault(message.header["run"], []).append(message.topic)
    assert list(kinds.values()) == [["image", "statistics", "end"]] * 2
    assert len({run.partition("-")[0] for run in kinds}) == 1


def test_without_an_endpoint_nothing_listens() -> None:
    off = Settings.parse("publish", {"endpoint": ""})
    assert list(stage(iter([IMAGE, 1]), SCAN, off)) == [IMAGE, 1]


def test_a_feed_that_cannot_open_does_not_stop_the_scan(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Publisher(endpoint):
        taken = Settings.parse("publish", {"endpoint": endpoint})
        assert list(stage(iter([IMAGE]), SCAN, taken)) == [IMAGE]
    assert "no live feed: cannot listen on" in caplog.text
