import pytest

from sinotherm.wire.messages import quoted


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" 37 °C, µ and a b\\n \n", "37 °C, µ and a b\\n"),
        ("a\r\nb\x1b[31m\0\x85\u202e\ud800", r"a\r\nb\x1b[31m\x00\x85\u202e\ud800"),
        ("x" * 500, "x" * 500),
        ("x" * 1700, "x" * 500 + " … (1200 characters more)"),
        ("", ""),
    ],
)
def test_what_a_peer_wrote_stays_one_line_of_the_log(text: str, line: str) -> None:
    assert quoted(text) == line
