"""``sinotherm node``: a warm external node that a Gadgetron dials (``<connect>``)."""

from typing import Annotated

import typer

__all__ = ["command"]


def command(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="reconstruct, thermometry or radial_thermometry.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; Gadgetron's XML names it.")] = 18000,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.SETTING=VALUE",
            help="Setting for every scan, unless Gadgetron's XML says otherwise; may be repeated.",
        ),
    ] = None,
    scans: Annotated[int, typer.Option(help="Scans at the same time.", min=1)] = 4,
    queue_mib: Annotated[int, typer.Option(help="What may wait to be worked on, MiB a scan.", min=1)] = 1024,
    silence_s: Annotated[float, typer.Option(help="Silence within a scan after which it is given up, s.")] = 600.0,
    warm: Annotated[
        bool,
        typer.Option("--warm-up/--no-warm-up", help="Run a tiny simulated scan before the first: seconds."),
    ] = True,
) -> None:
    """Wait for a Gadgetron that connects to us, scan after scan, with everything loaded.

    A tiny simulated scan goes first, so that a patient's finds everything loaded and compiled; who connects meanwhile
    waits.

    In its XML: `<external><connect address="localhost" port="18000"/><configuration/></external>`; the
    properties of `<configuration>` are the stage.setting values. Those that name files, folders or
    endpoints are taken from --set only.
    """
    from sinotherm.cli.interruption import interruptible

    with interruptible() as checked:
        from sinotherm.cli.listening import listen
        from sinotherm.pipelines.compose import compose, parse_assignments
        from sinotherm.pipelines.doors import open_target
        from sinotherm.pipelines.warmup import warm_up
        from sinotherm.pipelines.xml import Step
        from sinotherm.wire.connection import Patience
        from sinotherm.wire.server import Server

        # An unknown target or setting or a missing dependency is an error now, not at the first scan; a port that
        # another process has, not after the warm-up.
        values = parse_assignments(settings or ())
        compose(target, values)
        patience = Patience(queue_bytes=queue_mib << 20, silence_s=silence_s)
        open_scan = open_target(target, values)
        server = Server(open_scan, host=host, port=port, parent=True, scans=scans, patience=patience)
        if warm:
            warm_up([Step(target=target, values=values)], checked)
    listen(server)
