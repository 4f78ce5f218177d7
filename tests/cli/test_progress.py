import io

import pytest

from sinotherm.cli import progress
from sinotherm.cli.progress import counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted(range(3), total=3, what="readouts")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("later_s", [0.0, 100.0])
def test_a_bar_comes_after_a_while(monkeypatch: pytest.MonkeyPatch, later_s: float) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "_LATER_S", later_s)
    assert list(counted(range(30), total=30, what="readouts")) == list(range(30))
    assert ("readouts" in terminal.getvalue()) == (later_s == 0.0)
