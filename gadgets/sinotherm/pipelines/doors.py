"""What the doors open: work on a scan, from what its peer asks for.

The server and the nodes know requests and items; this is where a request becomes a pipeline.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sinotherm.frames.header import scan_header
from sinotherm.pipelines.compose import check_values, compose, fire_parameters, load_pipeline, merged, refuse_foreign
from sinotherm.pipelines.xml import Values, parse_properties
from sinotherm.wire.connection import OpenScan, Process, ScanRequest

__all__ = ["open_pipeline", "open_target"]


def open_pipeline(directories: Sequence[Path] = (), values: Values | None = None) -> OpenScan:
    """Return what opens the pipeline that a client asks for, by name or document.

    Parameters
    ----------
    directories
        Folders that are searched for it before the installed ones.
    values
        Settings of this server, for the pipelines that have their stage; what comes in the console's JSON wins,
        and its stages must be there.

    Raises
    ------
    SettingsError
        A setting of this server is unknown or out of range.
    """
    own = values or {}
    check_values(own)

    def open_scan(request: ScanRequest) -> Process:
        name, sent = fire_parameters(request.parameters) if request.parameters else (None, {})
        refuse_foreign(sent)
        pipeline = load_pipeline(name or request.config, directories).with_values(sent, general=own)
        scan = scan_header(request.header_xml)
        pipeline.check(scan)
        return partial(pipeline.run, scan)

    return open_scan


def open_target(target: str, values: Values | None = None) -> OpenScan:
    """Return what opens one of our targets with the properties that a Gadgetron parent sends.

    Parameters
    ----------
    target
        Its name.
    values
        Settings of this node; what the parent sends wins.
    """

    def open_scan(request: ScanRequest) -> Process:
        sent = parse_properties(request.config)
        refuse_foreign(sent)
        chain = compose(target, merged(values or {}, sent))
        scan = scan_header(request.header_xml)
        chain.check(scan)
        return partial(chain, scan)

    return open_scan
