"""``sinotherm command``: a command to a running scan."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

__all__ = ["command"]

_NAMES: Final = ("set_baseline", "body_temperature", "region", "cold_mask", "thresholds", "mark", "status")
"""As `sinotherm.thermometry.commands.COMMANDS`, whose import would hold up the command by a second."""


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The command.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Its arguments: numbers, true and false as in JSON, else text."),
    ] = None,
    scan: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Measurement id or run of the scan that is meant; needed where several run."),
    ] = None,
    endpoint: Annotated[
        str, typer.Option(help="ZeroMQ endpoint of the scan: its thermometry.commands.")
    ] = "tcp://127.0.0.1:5561",
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of the key: the scan's thermometry.commands_key_file.")
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="S", help="Wait so long for the answer, s.", min=0.0)] = 10.0,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Send a command to a running scan and print its answer; a refusal ends with exit code 1.

    Commands: set_baseline, body_temperature, region, cold_mask, thresholds, mark, status.
    """
    from json import dumps

    from sinotherm.errors import SettingsError
    from sinotherm.wire.feed import CommandClient

    if name not in _NAMES:
        raise SettingsError(f"unknown command {name!r}; known commands: {', '.join(_NAMES)}.")
    try:
        key = "" if key_file is None else key_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--key-file {key_file}: {error}.") from None
    meant = {} if scan is None else {"scan": scan}
    with CommandClient(endpoint, key=key, within_s=timeout) as client:
        answer = client.request(name, **{**_parsed(arguments or ()), **meant})
    print(dumps(answer) if json else "\n".join(_lines(answer)) or "done")  # noqa: T201


def _parsed(arguments: Iterable[str]) -> dict[str, Any]:
    """Return the arguments by name: JSON where they are, else text."""
    import json

    from sinotherm.errors import SettingsError

    found: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not (key and equals) or key in found:
            raise SettingsError(f"argument {argument!r}: write KEY=VALUE, each key once.")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _lines(answer: Mapping[str, Any], above: str = "") -> Iterator[str]:
    import json

    for name, value in answer.items():
        if isinstance(value, dict) and value:
            yield from _lines(value, f"{above}{name}.")
        else:
            yield f"{above}{name} = {value if isinstance(value, str) else json.dumps(value)}"
