"""``sinotherm send``: streams a file to a server as a scanner would."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    scan: Annotated[Path, typer.Argument(metavar="IN.h5", help="MRD file to send.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT.h5", help="MRD file for the images; the first one replaces an existing file."
        ),
    ],
    to: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server.")] = "127.0.0.1:9002",
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="PIPELINE", help="Name of a pipeline, or an XML file to send.")
    ] = "radial_fbp",
    pace: Annotated[
        str, typer.Option(metavar="scanner|fast|N", help="The scanner's pace, as fast as possible, or N times faster.")
    ] = "fast",
    tr: Annotated[
        float | None, typer.Option("--tr", metavar="S", help="TR where neither time stamps nor header tell it, s.")
    ] = None,
    tick_ms: Annotated[float, typer.Option(help="Unit of the time stamps, ms (Siemens: 2.5).")] = 2.5,
    dataset: Annotated[str, typer.Option(help="Group of the scan in the file.")] = "dataset",
) -> None:
    """Stream an MRD file to a server and store the images that come back.

    Ctrl-C and SIGTERM keep the images received so far.
    """
    import functools
    import logging

    from sinotherm.cli.interruption import shielding
    from sinotherm.cli.progress import counted
    from sinotherm.errors import DataError, SettingsError, SinothermError
    from sinotherm.frames.header import scan_header
    from sinotherm.wire.client import connect, paced, stream
    from sinotherm.wire.connection import Patience
    from sinotherm.wire.file import ImageWriter, MrdFile

    host, colon, port = to.rpartition(":")
    if not (colon and port.isdecimal()):
        raise SettingsError(f"--to {to}: write HOST:PORT, for example 127.0.0.1:9002.")
    try:
        speed = {"scanner": 1.0, "fast": float("inf")}[pace] if pace in ("scanner", "fast") else float(pace)
    except ValueError:
        raise SettingsError(f"--pace {pace}: scanner, fast, or a number (times faster than the scanner).") from None
    pipeline = _document(Path(config)) if config.endswith(".xml") and Path(config).is_file() else config
    with MrdFile(scan, dataset=dataset) as file, shielding() as shield:
        repetition_time_s = tr
        if tr is None:
            try:
                repetition_time_s = scan_header(file.header_xml).repetition_time_s
            except SinothermError as error:
                logging.getLogger(__name__).warning("TR is not known: %s", error)
        stamped = speed == float("inf") or file.has_time_stamps
        read = shield.items(file.items())
        items = paced(read, speed, stamped=stamped, repetition_time_s=repetition_time_s, tick_s=tick_ms / 1e3)
        connection = connect(host.strip("[]"), int(port), patience=Patience(tick_s=tick_ms / 1e3))
        with ImageWriter(output, file.header_xml) as writer:
            try:
                store = functools.partial(shield.run, writer.append)
                counted_items = counted(items, total=file.n_readouts + file.n_waveforms, what="readouts")
                stream(connection, pipeline, file.header_xml, counted_items, store)
            finally:
                try:
                    shield.run(writer.close)
                finally:
                    for series, count in sorted(writer.counts.items()):
                        typer.echo(f"series {series}: {count} images")
            if not writer.counts:
                raise DataError(f"{scan}: no image came back from {to}; the server's log says why.")


def _document(path: Path) -> str:
    """Return the text of a pipeline's file; one in another encoding, which it declares, becomes one of UTF-8."""
    from xml.etree.ElementTree import tostring

    from sinotherm.core.documents import parse_document

    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return tostring(parse_document(raw, f"the pipeline {path}"), encoding="unicode")
