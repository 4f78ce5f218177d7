"""``sinotherm recon``: the pipeline on a file, without a socket."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    scan: Annotated[Path, typer.Argument(metavar="IN.h5", help="MRD file.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.h5",
            help="MRD file for the images; the first one replaces an existing file. [default: IN_images.h5]",
        ),
    ] = None,
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", metavar="PIPELINE", help="Name of a pipeline, or an XML file.")
    ] = "radial_fbp",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.SETTING=VALUE", help="Setting; may be repeated.")
    ] = None,
    pipelines: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Folder of pipelines, searched first; may be repeated.", exists=True, file_okay=False
        ),
    ] = None,
    dataset: Annotated[str, typer.Option(help="Group of the scan in the file.")] = "dataset",
) -> None:
    """Reconstruct an MRD file: images of every frame, in the series of the pipeline.

    Ctrl-C, SIGTERM and a file that is damaged in the middle keep the images finished so far.
    """
    from sinotherm.cli.interruption import interruptible
    from sinotherm.cli.progress import counted
    from sinotherm.errors import DataError, SettingsError
    from sinotherm.frames.header import scan_header
    from sinotherm.pipelines.compose import load_pipeline, parse_assignments
    from sinotherm.wire.file import ImageWriter, MrdFile
    from sinotherm.wire.messages import Image, Text

    chain = load_pipeline(pipeline, pipelines or (), local=True).with_values(parse_assignments(settings or ()))
    with MrdFile(scan, dataset=dataset) as file:
        target = output or scan.with_name(f"{scan.stem}_images.h5")
        header = scan_header(file.header_xml)
        if target.exists() and target.samefile(scan):
            raise SettingsError(f"-o {target}: that is the scan itself; give another file.")
        if chain.takes_readouts and not file.n_readouts:
            raise DataError(f"{scan}: no readouts, which {chain.name} takes; complex images go through -p thermometry.")
        with ImageWriter(target, file.header_xml) as writer, interruptible() as checked:
            try:
                items = counted(file.items(), total=file.n_readouts + file.n_waveforms, what="readouts")
                for item in chain.run(header, checked(items)):
                    if isinstance(item, Image):
                        writer.append(item)
                    elif isinstance(item, Text):
                        typer.echo(item.text, err=True)
            finally:
                try:
                    writer.close()
                finally:
                    for series, count in sorted(writer.counts.items()):
                        typer.echo(f"{target}: series {series}, {count} images")
            if not writer.counts:
                raise DataError(f"{scan}: no image came of {file.n_readouts} readouts; the log says what was left out.")
