"""``sinotherm evaluate``: reconstructions and thermometry scored on people, with one protocol for every table."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sinotherm.core.record import whole_numbers, writable, writable_folder

if TYPE_CHECKING:
    from sinotherm.simulation.image_sets import Split

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Score reconstructions and thermometry on image sets.")

Data = Annotated[Path, typer.Option("--data", help="Folder or file of images: HDF5, NIfTI, PNG or NumPy.")]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="train, val or all; by default val where splits.json lies beside the data."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Folder for the CSV, the Markdown table and the figure.", callback=writable_folder
    ),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="File for the figures, with machine and versions beside them.", callback=writable),
]
PerPerson = Annotated[int | None, typer.Option("--per-person", help="At most so many slices of a person.", min=1)]


def _choice(value: str | None, name: str, choices: tuple[str, ...]) -> str | None:
    from sinotherm.errors import SettingsError

    if value is not None and value not in choices:
        raise SettingsError(f"{name} {value!r}: one of {', '.join(choices)} is needed.")
    return value


def _split(value: str | None) -> "Split | None":
    return cast("Split | None", _choice(value, "--split", ("train", "val", "all")))


@app.command()
def radial(
    data: Data = Path("data"),
    split: SplitOption = None,
    setting: Annotated[str, typer.Option(help="paper: one coil, real object, no noise; real: coils, phase, noise.")] = (
        "paper"
    ),
    coils: Annotated[str, typer.Option(help="Numbers of coils, with commas between.")] = "1",
    angles: Annotated[str, typer.Option(help="uniform, golden, or uniform,golden.")] = "uniform",
    spokes: Annotated[str, typer.Option(help="Spokes of a frame; R_paper = 512 / spokes.")] = "32",
    snr: Annotated[float, typer.Option(help="SNR of the real setting.", min=0.1)] = 30.0,
    methods: Annotated[
        str | None, typer.Option(help="Methods, with commas between; by default all that can do the case.")
    ] = None,
    network: Annotated[
        str, typer.Option(help="Weights of method pdunet: a shipped name or a .safetensors file with its card.")
    ] = "pdunet-radial",
    tv_strength: Annotated[
        float, typer.Option("--tv-strength", help="Strength of method cg-sense-tv, for all numbers of spokes.", min=0.0)
    ] = 2e-3,
    per_person: PerPerson = None,
    output: Output = None,
    json: Json = None,
) -> None:
    """Score reconstructions of accelerated radial imaging: SSIM in the body, PSNR, NRMSE and phase error."""
    from sinotherm.errors import SettingsError
    from sinotherm.evaluation.radial import run

    schemes = angles.split(",")
    if not {"uniform", "golden"}.issuperset(schemes):
        raise SettingsError(f"--angles {angles!r}: uniform, golden, or uniform,golden is needed.")
    run(
        data,
        split=_split(split),
        setting=_choice(setting, "--setting", ("paper", "real")),
        coils=whole_numbers(coils, "--coils"),
        angles=schemes,
        spokes=whole_numbers(spokes, "--spokes"),
        snr=snr,
        names=tuple(methods.split(",")) if methods else None,
        network=network,
        tv_strength=tv_strength,
        per_person=per_person,
        output=output,
        json=json,
    )


@app.command()
def ct(
    data: Data = Path("data"),
    split: SplitOption = None,
    sparsity: Annotated[int, typer.Option(help="Every so many-th of 360 views is kept.", min=1)] = 16,
    methods: Annotated[str | None, typer.Option(help="Methods, with commas between; by default all.")] = None,
    output: Output = None,
    json: Json = None,
) -> None:
    """Score reconstructions of sparse fan-beam CT."""
    from sinotherm.evaluation.ct import METHODS, run

    run(
        data,
        split=_split(split),
        sparsity=sparsity,
        names=tuple(methods.split(",")) if methods else METHODS,
        output=output,
        json=json,
    )


@app.command()
def cartesian(
    data: Data = Path("data"),
    split: SplitOption = None,
    acceleration: Annotated[float, typer.Option(help="R: every R-th line on average.", min=1.0, max=20.0)] = 10.0,
    coils: Annotated[int, typer.Option(help="Number of coils.", min=1)] = 8,
    snr: Annotated[float, typer.Option(help="SNR of the fully sampled image.", min=0.1)] = 30.0,
    methods: Annotated[str | None, typer.Option(help="Methods, with commas between; by default all.")] = None,
    per_person: PerPerson = None,
    output: Output = None,
    json: Json = None,
) -> None:
    """Score reconstructions of accelerated Cartesian imaging: the Fourier network beside CG-SENSE."""
    from sinotherm.evaluation.cartesian import METHODS, run

    run(
        data,
        split=_split(split),
        acceleration=acceleration,
        coils=coils,
        snr=snr,
        names=tuple(methods.split(",")) if methods else METHODS,
        per_person=per_person,
        output=output,
        json=json,
    )


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def thermo(context: typer.Context) -> None:
    """Score accelerated thermometry on simulated heated series (--help for its options)."""
    # Its options live with the evaluation itself, which is too heavy to import for --help of the others.
    inner = typer.Typer(add_completion=False)
    inner.command()(importlib.import_module("sinotherm.evaluation.thermo").command)
    # Without a mode of its own it returns the exit code, that of an interruption too.
    raise typer.Exit(inner(args=context.args, standalone_mode=False, prog_name="sinotherm evaluate thermo") or 0)
