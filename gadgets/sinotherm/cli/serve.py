"""``sinotherm serve``: the embedded server."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for the whole network, :: with IPv6 too.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 9002,
    pipelines: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Folder of pipelines, searched first; may be repeated.", exists=True, file_okay=False
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.SETTING=VALUE",
            help="Setting for every scan whose pipeline has the stage, unless the console's parameters say otherwise; "
            "may be repeated.",
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
    """Serve MRD clients: gadgetron_ismrmrd_client, FIRE and OpenRecon consoles, `sinotherm send`.

    One scan a connection, several at once. The client names a pipeline or sends its XML. SIGTERM ends
    the scans under way with the frames finished so far; after 30 s it ends those that still compute, and exits with 1.

    First a tiny simulated scan goes through radial_thermometry with the settings of --set, so that a patient's
    finds everything loaded and compiled; who connects meanwhile waits.
    """
    from sinotherm.cli.interruption import interruptible

    with interruptible() as checked:
        from sinotherm.cli.listening import listen
        from sinotherm.pipelines.compose import compose, load_pipeline, merged, parse_assignments
        from sinotherm.pipelines.doors import open_pipeline
        from sinotherm.pipelines.warmup import warm_up
        from sinotherm.pipelines.xml import Step
        from sinotherm.wire.connection import Patience
        from sinotherm.wire.server import Server

        # What is wrong or missing is an error now, not at the first scan, and not after the warm-up.
        compose("radial_thermometry", {})
        values, folders = parse_assignments(settings or ()), pipelines or ()
        open_scan = open_pipeline(folders, values)
        patience = Patience(queue_bytes=queue_mib << 20, silence_s=silence_s)
        server = Server(open_scan, host=host, port=port, scans=scans, patience=patience)
        if warm:
            steps = load_pipeline("radial_thermometry", folders).steps
            warm_up([Step(target=step.target, values=merged(step.values, values)) for step in steps], checked)
    listen(server)
