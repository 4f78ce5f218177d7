"""``python -m sinotherm.training``: trains as ``sinotherm train`` does, with torch, numpy and safetensors alone."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sinotherm.errors import SinothermError
from sinotherm.training.loop import Configuration, train

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error that its user can mend is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m sinotherm.training",
        description="Train a network: checkpoints, metrics.csv and validation.csv go to RUNS/NAME.",
    )
    add = parser.add_argument
    add("configuration", metavar="CONFIG", help="Name of a shipped configuration, or a TOML file.")
    add("--data", type=Path, default=Path("data"), help="Folder of the image sets with their splits.json.")
    add("--runs", type=Path, default=Path("runs"), help="Folder of the runs.")
    add("--resume", action="store_true", help="Go on from the run's checkpoint, to the same numbers.")
    add("--init", help="Start from these weights (name or .safetensors) with a fresh optimiser.")
    add("--steps", type=int, help="Steps in all, instead of the configuration's.")
    add("--decay", type=int, help="Steps of the decay at the end.")
    add("--minutes", type=float, help="End after this time instead of after a number of steps.")
    add("--batch", type=int, help="Scans a step, instead of the configuration's.")
    add("--device", choices=("cpu", "cuda", "auto"), default="cpu", help="Where to train.")
    add("--threads", type=int, help="CPU threads.")
    given = parser.parse_args(arguments)
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads {given.threads}: it must be at least 1.")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    changes = {name: getattr(given, name) for name in ("steps", "decay", "minutes", "batch")}
    try:
        chosen = Configuration.read(
            given.configuration, **{name: value for name, value in changes.items() if value is not None}
        )
        train(chosen, given.runs / chosen.name, given.data, given.device, resume=given.resume, init=given.init)
    except (SinothermError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
