from typing import Literal

import pytest
from pydantic import Field, ValidationError

from sinotherm.core.settings import EVERY_VALUE, NOT_EMPTY, StageSettings, setting
from sinotherm.errors import SettingsError


class Settings(StageSettings):
    spokes: int = setting(30, "Spokes of a frame.", ge=1, lt=100)
    order: tuple[int, ...] = setting((), "Orders.", max_length=3)
    mode: Literal["auto", "off"] = setting("auto", "How.")
    on: bool = setting(True, "Whether.")
    width: float = setting(0.5, "Width.", unit="m", gt=0.0, le=1.0)
    plain: int = Field(default=1)
    parts: Literal[1, 2, 4] = setting(1, "One of some numbers.")
    needed: int | None = setting(None, "Without a default value of its own.")
    limit: float | None = setting(None, "A limit without bounds.")
    times: tuple[float, ...] = setting((), "Times.")


def test_text_becomes_values():
    made = Settings.parse("stage", {"spokes": "34", "order": "0, 1,2,", "mode": "off", "on": "False", "width": "1e-2"})
    assert (made.spokes, made.order, made.mode, made.on, made.width) == (34, (0, 1, 2), "off", False, 0.01)
    assert Settings.parse("stage", {"order": (1, 2)}).order == (1, 2)
    assert Settings.parse("stage", {"parts": " 4"}).parts == Settings.parse("stage", {"parts": 4}).parts == 4


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().spokes = 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"spoke": "1"}, r"unknown setting stage\.spoke; known settings of this stage: stage\.spokes, stage\.order"),
        ({"spokes": "0"}, r"stage\.spokes = '0': .*greater than or equal to 1"),
        ({"spokes": "many"}, r"stage\.spokes = 'many'"),
        ({"width": "7"}, r"stage\.width \[m\] = '7': .*less than or equal to 1"),
        ({"mode": "on"}, r"stage\.mode = 'on': .*'auto' or 'off'"),
        ({"parts": "3"}, r"stage\.parts = '3': .*1, 2 or 4"),
        ({"order": "1,x"}, r"stage\.order = 'x'"),
        ({"limit": "nan"}, r"stage\.limit = 'nan': .*finite"),
        ({"limit": float("-inf")}, r"stage\.limit = -inf: .*finite"),
        ({"times": "1,inf"}, r"stage\.times = 'inf': .*finite"),
        ({"spokes": "0", "width": "7"}, r"stage\.spokes.*; stage\.width"),
    ],
)
def test_what_is_wrong_is_named_with_its_bound(values, words):
    with pytest.raises(SettingsError, match=words):
        Settings.parse("stage", values)


def test_a_stage_without_settings():
    class Nothing(StageSettings):
        pass

    with pytest.raises(SettingsError, match="known settings of this stage: none"):
        Nothing.parse("stage", {"a": 1})
    assert Nothing.rows("stage") == []


def test_units():
    assert Settings.unit("width") == "m"
    assert Settings.unit("spokes") == ""
    assert Settings.unit("plain") == ""
    assert Settings.unit("nothing") == ""


def test_rows_for_the_documentation():
    class Needed(StageSettings):
        needed: int = Field(description="No default.")

    rows = {row[0]: row for row in Settings.rows("stage")}
    assert rows["stage.spokes"] == ("stage.spokes", "30", "", "≥ 1, < 100", "Spokes of a frame.")
    assert rows["stage.width"] == ("stage.width", "0.5", "m", "> 0.0, ≤ 1.0", "Width.")
    assert rows["stage.mode"][3] == "auto / off"
    assert rows["stage.plain"][4] == ""
    assert Needed.rows("s") == [("s.needed", "", "", "", "No default.")]


class Named(StageSettings):
    file: str = setting("", "A file.", local=EVERY_VALUE)
    endpoint: str = setting("", "An endpoint or none.", local=NOT_EMPTY)
    region: str = setting("", "A region.", local=r"file:|\.npy")
    free: str = setting("", "Anything.")
    plain: str = Field(default="")


@pytest.mark.parametrize(
    "values",
    [{"file": "a"}, {"file": ""}, {"endpoint": "\n"}, {"region": "circle:1,2,3+file:a"}, {"region": "a.npy"}],
)
def test_files_and_endpoints_are_refused_from_a_peer(values):
    name = next(iter(values))
    with pytest.raises(SettingsError, match=rf"stage\.{name} = .* network peer: .* --set stage\.{name}=… of sinotherm"):
        Named.refuse_foreign("stage", values)


def test_other_values_are_not():
    values = {"endpoint": "", "region": "circle:1,2,3", "free": "file:a", "plain": "file:a", "unknown": "file:a"}
    Named.refuse_foreign("stage", values)
    rows = {row[0]: row[4] for row in Named.rows("stage")}
    assert rows["stage.file"] == "A file. Local."
    assert rows["stage.free"] == "Anything."
