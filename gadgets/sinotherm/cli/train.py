"""``sinotherm train``: train a network on simulated scans."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

__all__ = ["command"]


def command(
    configuration: Annotated[
        str, typer.Argument(metavar="CONFIG", help="Name of a shipped configuration, or a TOML file.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of the image sets with their splits.json.")] = Path("data"),
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's checkpoint, to the same numbers.")
    ] = False,
    init: Annotated[
        str | None, typer.Option(help="Start from these weights (name or .safetensors) with a fresh optimiser.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all, instead of the configuration's.", min=1)] = None,
    decay: Annotated[int | None, typer.Option(help="Steps of the decay at the end.", min=0)] = None,
    minutes: Annotated[
        float | None, typer.Option(help="End after this time instead of after a number of steps.", min=0.0)
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Scans a step, instead of the configuration's.", min=1)] = None,
    device: Annotated[
        Literal["cpu", "cuda", "auto"],
        typer.Option(help="Where to train; several GPUs: torchrun -m sinotherm.cli.train …"),
    ] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    package: Annotated[
        bool,
        typer.Option(
            "--package", help="Only write the run's best weights with their model card, scores and guard limits."
        ),
    ] = False,
) -> None:
    """Train a network: checkpoints, metrics.csv, validation.csv and pictures go to RUNS/NAME."""
    import torch

    from sinotherm.training.loop import Configuration, load_images, train
    from sinotherm.training.packaging import calibrate_guard, package_run, score_sets

    if threads is not None:
        torch.set_num_threads(threads)
    changes = {"steps": steps, "decay": decay, "minutes": minutes, "batch": batch}
    chosen = Configuration.read(configuration, **{name: value for name, value in changes.items() if value is not None})
    if package:
        run = runs / chosen.name
        held = load_images(data, chosen.data, "val", geometry=chosen.geometry)
        # Whoever stops it keeps the weights that were there, not new ones without a guard.
        with TemporaryDirectory(dir=run if run.is_dir() else None) as folder:
            path = package_run(chosen, run, Path(folder))
            if chosen.geometry == "radial" and chosen.network == "primal-dual":
                calibrate_guard(chosen, path, *held)
            score_sets(chosen, path, data)
            for file in Path(folder).iterdir():
                file.replace(run / file.name)
        typer.echo(run / path.name)
        return
    train(chosen, runs / chosen.name, data, device, resume=resume, init=init)


if __name__ == "__main__":
    typer.run(command)
