"""The ``sinotherm`` command: one module a subcommand, imported light and worked lazily."""

import importlib
import logging
import signal
import sys
from typing import Annotated, Final

import typer

from sinotherm import __version__
from sinotherm.errors import SinothermError

__all__ = ["app", "main"]

COMMANDS: Final = (
    *("demo", "recon", "serve", "send", "node", "info", "simulate", "watch", "command", "doctor", "train"),
)
GROUPS: Final = ("bench", "evaluate", "qa")

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="sinotherm",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Real-time reconstruction of radial MRI and MR thermometry. For research, not a medical device.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sinotherm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step to stderr.")] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def _register() -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"sinotherm.cli.{name}")
        app.command(name)(module.command)
    for name in GROUPS:
        module = importlib.import_module(f"sinotherm.cli.{name}")
        app.add_typer(module.app, name=name)


def main() -> None:
    """Run the command; an error that its user can mend is one line on stderr and exit code 1."""
    _register()
    # Ended like Ctrl-C: what is open gets closed, and images finished so far are kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except (SinothermError, OSError) as error:
        # An OSError is a path that was given: missing, forbidden, a folder, a full disk.
        logger.debug("where it happened", exc_info=True)
        print(f"sinotherm: error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
