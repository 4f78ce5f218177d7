"""``sinotherm node``: a warm external node that a Gadgetron dials (``<connect>``)."""

from typing import Annotated

import typer

__all__ = ["command"]


def command(
    target: Annotated[str, typer.Argument(help="reconstruct, thermometry or radial_thermometry.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; Gadgetron's XML names it.")] = 18000,
    scans: Annotated[int, typer.Option(help="Scans at the same time.", min=1)] = 4,
    queue_mib: Annotated[int, typer.Option(help="Readouts that may wait, MiB a scan.", min=1)] = 1024,
    silence_s: Annotated[float, typer.Option(help="Silence within a scan after which it is given up, s.")] = 600.0,
) -> None:
    """Wait for a Gadgetron that connects to us, scan after scan, with everything loaded.

    In its XML: <external><connect address="localhost" port="18000"/><configuration/></external>; the
    properties of <configuration> are the stage.setting values.
    """
    from sinotherm.cli.listening import listen
    from sinotherm.pipelines.compose import compose
    from sinotherm.pipelines.doors import open_target
    from sinotherm.wire.connection import Patience
    from sinotherm.wire.server import Server

    # An unknown target or a missing dependency is an error now, not at the first scan.
    compose(target, {})
    patience = Patience(queue_bytes=queue_mib << 20, silence_s=silence_s)
    listen(Server(open_target(target), host=host, port=port, parent=True, scans=scans, patience=patience))
