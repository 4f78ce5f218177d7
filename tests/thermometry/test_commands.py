from typing import Any

import pytest

from sinotherm.core.scan import EncodingSpace, ScanHeader
from sinotherm.errors import SettingsError, WireError
from sinotherm.thermometry.commands import COMMANDS, CommandBook, CommandedScan
from sinotherm.thermometry.settings import ThermometrySettings

SPACE = EncodingSpace(matrix=(48, 32, 1), fov_m=(0.24, 0.16, 0.005))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial")


class Monitor:
    """Stands in for a slice's monitor."""

    def __init__(self) -> None:
        self.renewed = self.n_heated = 0
        self.frames = range(0)
        self.forced = False
        self.settings: list[ThermometrySettings] = []

    def renew_baseline(self, frames: range, *, forced: bool = False) -> None:
        self.renewed += 1
        self.frames, self.forced = frames, forced

    def configure(self, settings: ThermometrySettings) -> None:
        if "off" in settings.regions:
            raise SettingsError("region off holds no voxel")
        self.settings.append(settings)


@pytest.fixture
def monitor() -> Monitor:
    return Monitor()


@pytest.fixture
def log() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def book(monitor: Monitor, log: list[tuple[str, Any]]) -> CommandBook:
    monitors: Any = {(0, "fbp"): monitor}
    return CommandBook(SCAN, ThermometrySettings(), monitors, lambda record, facts: log.append((record, facts)))


def told(book: CommandBook, name: str, /, **arguments: Any) -> dict[str, Any]:
    """Return what is answered, beside the names of the scan."""
    answer = dict(book.handle(name, arguments))
    assert set(answer.pop("scan")) == {"measurement_id", "run"}
    return answer


def test_baseline(book: CommandBook, monitor: Monitor) -> None:
    assert told(book, "set_baseline") == {"frames": 5, "dose": "keep"}
    assert told(book, "set_baseline", frames=8, dose="reset") == {"frames": 8, "dose": "reset"}
    assert monitor.renewed == 2
    assert monitor.settings[-1].baseline_frames == 8
    assert monitor.frames == range(8)
    assert not monitor.forced


def test_a_baseline_of_heated_tissue_is_refused_unless_forced(book: CommandBook, monitor: Monitor) -> None:
    monitor.n_heated = 200
    for arguments in ({}, {"force": False}, {"force": "yes"}):
        with pytest.raises(SettingsError, match="200 voxels are more than 1 degC warmer"):
            book.handle("set_baseline", arguments | {"frames": 8})
    assert (monitor.renewed, book.settings.baseline_frames) == (0, 5)
    assert book.handle("set_baseline", {"frames": 8, "force": True})["frames"] == 8
    assert monitor.renewed == 1
    assert monitor.forced
    assert book.forced


def test_body_temperature_and_thresholds(book: CommandBook) -> None:
    assert told(book, "body_temperature", degc=36.6) == {"degc": 36.6}
    assert book.settings.body_temperature_degc == 36.6
    answer = told(book, "thresholds", temperature_degc=44.0, wrap=0.1)
    assert "of the whole body" in answer.pop("warning")
    assert answer == {"temperature_degc": 44.0, "dose_min": None, "signal": 0.5, "wrap": 0.1}


def test_thresholds_that_no_alarm_can_reach_are_answered_with_a_warning(book: CommandBook) -> None:
    assert "body_temperature_degc is not set" in str(book.handle("thresholds", {"temperature_degc": 44.0})["warning"])
    assert "warning" not in book.handle("thresholds", {"temperature_degc": None})


@pytest.fixture
def early() -> CommandBook:
    """Before the first image: no stream is there yet."""
    return CommandBook(SCAN, ThermometrySettings(regions="cold=file:mask.npy"), {}, lambda record, facts: None)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("region", {"name": "a", "shape": "foo"}, "region 'foo'"),
        ("region", {"name": "a", "shape": "circle:10,40,3"}, r"no voxel of the image .* = \(1, 32, 48\)"),
        ("region", {"name": "b=foo;a", "shape": "circle:10,10,3"}, "region name 'b=foo;a': write up to 64 letters"),
        ("cold_mask", {"shape": "circle:9999,9999,3"}, "no voxel"),
    ],
)
def test_what_the_images_cannot_hold_is_refused_before_the_first(
    early: CommandBook, name: str, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        early.handle(name, arguments)
    assert early.settings.regions == "cold=file:mask.npy"
    assert early.settings.cold_mask == "auto"
    # The user's own file is looked at with the first image.
    assert early.handle("region", {"name": "a", "shape": "circle:40,10,3"})["regions"].keys() == {"cold", "a"}


def test_a_baseline_commanded_before_the_first_image_holds_for_every_stream(early: CommandBook) -> None:
    assert not early.owes_baseline((9, "fbp"), 0)
    early = CommandBook(SCAN, ThermometrySettings(baseline_skip=1), {}, lambda record, facts: None)
    early.handle("set_baseline", {"frames": 2})
    owed = [[early.owes_baseline((slice_, "fbp"), frame) for slice_ in range(3)] for frame in range(4)]
    assert owed == [[False] * 3, [True] * 3, [False] * 3, [False] * 3]
    # Images that were held back for the network come late, and are of the same frames.
    assert [early.owes_baseline((0, "pdunet"), frame) for frame in range(4)] == [False, True, False, False]


def test_a_stream_that_comes_too_late_owes_no_baseline(monitor: Monitor) -> None:
    monitors: Any = {(0, "fbp"): monitor}
    book = CommandBook(SCAN, ThermometrySettings(), monitors, lambda record, facts: None)
    assert not any(book.owes_baseline((0, "fbp"), frame) for frame in range(10))
    assert not book.owes_baseline((2, "fbp"), 9)
    book.handle("set_baseline", {"frames": 3})
    assert monitor.frames == book.renewal == range(10, 13)
    assert [book.owes_baseline((0, "fbp"), frame) for frame in range(10, 20)] == [False] * 10
    assert book.owes_baseline((0, "tcr"), 12)
    assert not book.owes_baseline((0, "cg_sense"), 13)
    assert not book.owes_baseline((1, "fbp"), 19)


@pytest.mark.parametrize("name", ["", "a;b", "a=b", "a\nWRN b", "\x1b[2J", " a", "a ", "a" * 65, "a\n"])
def test_a_region_has_a_name_that_says_nothing_else(book: CommandBook, name: str) -> None:
    with pytest.raises(SettingsError, match=r"region name .*: write up to 64 letters, digits, spaces, _ and -"):
        book.handle("region", {"name": name, "shape": "circle:1,2,3"})
    assert book.settings.regions == ""


@pytest.mark.parametrize("shape", ["circle:1,2,3;b=circle:1,2,3", "circle:1,2,\n3", "circle:1,2,3 \x85"])
def test_a_region_has_one_shape_in_one_line(book: CommandBook, shape: str) -> None:
    with pytest.raises(SettingsError, match="region"):
        book.handle("region", {"name": "a", "shape": shape})
    assert book.settings.regions == ""


def test_names_of_regions(book: CommandBook) -> None:
    for name in ("a", "left lobe-2", "Tumör_1", "x" * 64):
        assert name in book.handle("region", {"name": name, "shape": "circle:1,2,3"})["regions"]


def test_a_region_of_any_name_that_the_user_gave_it_can_be_removed() -> None:
    book = CommandBook(SCAN, ThermometrySettings(regions="a/b=circle:20,10,3"), {}, lambda record, facts: None)
    assert book.handle("region", {"name": "a/b"})["regions"] == {}


def test_regions_and_cold_mask(book: CommandBook) -> None:
    book.handle("region", {"name": "tumour", "shape": "circle:1,2,3"})
    book.handle("region", {"name": "rectum", "shape": "circle:4,5,6"})
    assert book.settings.regions == "tumour=circle:1,2,3;rectum=circle:4,5,6"
    assert told(book, "region", name="tumour") == {"regions": {"rectum": "circle:4,5,6"}}
    assert told(book, "cold_mask", shape="circle:1,1,9") == {"shape": "circle:1,1,9"}


def test_every_command_is_logged_and_told_to_the_next_image(book: CommandBook, log: list[tuple[str, Any]]) -> None:
    assert told(book, "mark", text="power on") == {"text": "power on"}
    book.handle("body_temperature", {"degc": 37.5})
    assert book.handle("status", {})["streams"] == [(0, "fbp")]
    assert book.take_events() == ("mark text=power on", "body_temperature degc=37.5")
    assert book.take_events() == ()
    assert [facts["command"] for _, facts in log] == ["mark", "body_temperature"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("explode", {}, "known commands: " + ", ".join(COMMANDS)),
        ("mark", {"words": "x"}, "no argument 'words'; it has: text"),
        ("status", {"verbose": True}, "it has: none"),
        ("mark", {}, "needs the argument 'text'"),
        ("body_temperature", {"degc": 99.0}, "body_temperature_degc"),
        ("set_baseline", {"frames": 0}, "baseline_frames"),
        ("region", {"name": "off", "shape": "circle:900,900,1"}, "no voxel"),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(
    book: CommandBook, log: list[tuple[str, Any]], name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        book.handle(name, arguments)
    assert book.settings == ThermometrySettings()
    assert book.take_events() == ()
    assert message.split(":")[0] in log[-1][1]["refused"]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("region", {"name": "tumour", "shape": "file:mask.npy"}),
        ("region", {"name": "tumour", "shape": "circle:1,2,3;other=masks.h5:/tumour"}),
        ("region", {"name": "other=file:mask;tumour", "shape": "circle:1,2,3"}),
        ("cold_mask", {"shape": "circle:1,2,3+mask.npy"}),
    ],
)
def test_commands_open_no_files(
    book: CommandBook, monitor: Monitor, log: list[tuple[str, Any]], command: str, arguments: dict[str, str]
) -> None:
    with pytest.raises(SettingsError, match="refused from a network peer"):
        book.handle(command, arguments)
    assert not monitor.settings
    assert "refused" in log[-1][1]


def test_commands_keep_the_files_that_the_user_named(monitor: Monitor) -> None:
    settings = ThermometrySettings(regions="rectum=file:mask.npy", log="folder", cold_mask="file:cold.npy")
    book = CommandBook(SCAN, settings, {(0, "fbp"): monitor}, lambda record, facts: None)  # type: ignore[dict-item]
    book.handle("region", {"name": "tumour", "shape": "circle:1,2,3"})
    assert book.settings.regions == "rectum=file:mask.npy;tumour=circle:1,2,3"
    assert book.settings.log == "folder"


def test_a_command_reaches_no_other_scan_than_the_one_meant(log: list[tuple[str, Any]]) -> None:
    def book_of(scan: CommandedScan) -> CommandBook:
        return CommandBook(SCAN, ThermometrySettings(), {}, lambda record, facts: log.append((record, facts)), scan)

    first, second = (CommandedScan("tcp://x", measurement_id=name, run=f"run{name}") for name in ("A", "B"))
    namesake = CommandedScan("tcp://x", measurement_id="B", run="other")
    elsewhere = CommandedScan("tcp://y", measurement_id="A", run="runY")
    with second:
        with first, elsewhere:
            first.claim()
            with pytest.raises(WireError, match=r"scan 'A' \(run runA\) takes those on tcp://x until it ends"):
                second.claim()
            elsewhere.claim()
            book = book_of(first)
            with pytest.raises(SettingsError, match=r"2 scans run here: .* 'A' \(run runA\) now; 'B' \(run runB\)"):
                book.handle("mark", {"text": "x"})
            with pytest.raises(SettingsError, match=r"commands reach scan 'A' .* 'B' is none of its own names"):
                book.handle("mark", {"text": "x", "scan": "B"})
            assert [set(facts) for _, facts in log] == [{"command", "arguments", "refused"}] * 2
            assert book.handle("mark", {"text": "x", "scan": "A"})["scan"] == {"measurement_id": "A", "run": "runA"}
            assert book.take_events() == ("mark text=x",)
            # To ask who listens harms nobody.
            assert book.handle("status", {})["scan"]["run"] == "runA"
            assert book_of(elsewhere).handle("mark", {"text": "x"})["scan"]["run"] == "runY"
        second.claim()
        assert book_of(second).handle("mark", {"text": "x"})["scan"]["measurement_id"] == "B"
        with namesake, pytest.raises(SettingsError, match="'B' is none of its own names"):
            book_of(second).handle("mark", {"text": "x", "scan": "B"})
        assert book_of(second).handle("mark", {"text": "x", "scan": "B"})
