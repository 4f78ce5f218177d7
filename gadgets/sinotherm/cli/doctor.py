"""``sinotherm doctor``: what is installed, what will be used, and what is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import typer

__all__ = ["Finding", "command", "examine"]

_EXTRAS: Final = {
    "openvino": "faster networks on the CPU",
    "train": "NIfTI images in training and evaluation",
    "bench": "peers for `sinotherm bench`",
}
_STYLES: Final = {"ok": "green", "note": "yellow", "bad": "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: ``ok``, worth a ``note``, or ``bad``: something needed is missing."""

    what: str
    state: Literal["ok", "note", "bad"]
    text: str


def command() -> None:
    """Say what is installed, which devices and backends will be used, and what is wrong.

    Exit code 1 if something that is needed is missing.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = list(examine())
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in found:
            table.add_row(finding.what, Text(finding.state, style=_STYLES[finding.state]), Text(finding.text))
        console.print(table)
    else:
        # Whoever searches the output for a path must find it in one piece.
        width = max(len(finding.what) for finding in found)
        for finding in found:
            typer.echo(f"{finding.what:<{width}}  {finding.state:<4}  {finding.text}")
    if bad := sum(finding.state == "bad" for finding in found):
        typer.echo(f"{bad} of these must be put right before scans can be reconstructed.")
        raise typer.Exit(1)
    typer.echo("Everything that is needed is there.")


def examine() -> Iterator[Finding]:
    """Yield what was found, one after the other."""
    yield _python()
    yield from _packages()
    yield from _devices()
    yield from _pipelines()
    yield from _surroundings()


def _python() -> Finding:
    import sys

    version = ".".join(str(part) for part in sys.version_info[:3])
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    advice = "" if fits else "; 3.11 to 3.13 is needed: make the environment with one of them"
    return Finding(what="Python", state="ok" if fits else "bad", text=f"{version}, {sys.executable}{advice}")


def _packages() -> Iterator[Finding]:
    """Yield Sinotherm, what it needs, and its extras."""
    import re
    from importlib.metadata import PackageNotFoundError, requires, version

    yield Finding(what="sinotherm", state="ok", text=version("sinotherm"))
    needed: list[tuple[str, str, str]] = []
    for requirement in requires("sinotherm") or ():
        match = re.fullmatch(r"([\w.-]+)(?:>=([\w.]+))?(?:\s*;\s*extra == ['\"](\w+)['\"])?", requirement)
        if match is not None:
            needed.append((match[1], match[2] or "0", match[3] or ""))
    found: dict[str, str | None] = {}
    for name, _, _ in needed:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    for name, least, extra in needed:
        if extra:
            continue
        installed = found[name]
        if installed is None:
            yield Finding(what=name, state="bad", text=f"not installed: pip install '{name}>={least}'")
        elif _parts(installed) < _parts(least):
            yield Finding(what=name, state="bad", text=f"{installed} is too old: pip install '{name}>={least}'")
        else:
            yield Finding(what=name, state="ok", text=installed)
    for extra, purpose in _EXTRAS.items():
        names = [name for name, _, of in needed if of == extra]
        missing = [name for name in names if found[name] is None]
        if missing:
            text = f"not installed ({', '.join(missing)}); for {purpose}: pip install 'sinotherm[{extra}]'"
            yield Finding(what=f"extra {extra}", state="note", text=text)
        else:
            text = f"{', '.join(f'{name} {found[name]}' for name in names)}: {purpose}"
            yield Finding(what=f"extra {extra}", state="ok", text=text)


def _parts(version: str) -> tuple[int, ...]:
    import re

    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _devices() -> Iterator[Finding]:
    """Yield processor and GPU, and what runs on them."""
    from sinotherm.core.record import machine

    this = machine()
    yield Finding(
        what="processor",
        state="ok",
        text=f"{this['processor']}, {this['cores']} cores, {this['memory_GiB']} GiB, load {this['load_1min']}",
    )
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(what="torch", state="bad", text=f"cannot be loaded: {error}; install it again")
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding(what="GPU", state="ok", text=f"{names}; CUDA {torch.version.cuda}")
    else:
        yield Finding(what="GPU", state="ok", text="none that CUDA can use: everything runs on the processor")
    broken = [found for module in ("numba", "finufft") if (found := _broken(module)) is not None]
    yield from broken
    if not broken:
        from sinotherm.operators.backend import backends

        for what, used in backends().items():
            yield Finding(what=what, state="ok", text=used)


def _broken(module: str) -> Finding | None:
    """Return what keeps a compiled package from loading on this machine, if anything does."""
    import importlib

    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        return Finding(what=module, state="bad", text=f"cannot be loaded: {error}; install it again")
    return None


def _pipelines() -> Iterator[Finding]:
    """Yield every pipeline that a client can ask for."""
    from sinotherm.errors import SettingsError
    from sinotherm.pipelines.compose import load_pipeline
    from sinotherm.pipelines.registry import find_pipeline, pipeline_names

    names = pipeline_names()
    if not names:
        yield Finding(
            what="pipelines", state="bad", text="none found: install sinotherm again, or give --pipelines DIR"
        )
    for name in names:
        try:
            load_pipeline(name)
        except SettingsError as error:
            # The folder may be Gadgetron's own, whose pipelines are C++.
            foreign = "sinotherm.nodes" not in find_pipeline(name).read_text(encoding="utf-8", errors="replace")
            yield Finding(what=f"pipeline {name}", state="note" if foreign else "bad", text=str(error))
        else:
            yield Finding(what=f"pipeline {name}", state="ok", text=str(find_pipeline(name)))


def _surroundings() -> Iterator[Finding]:
    """Yield what Gadgetron, the server and the compiler of networks would meet."""
    import shutil
    import socket
    import sys
    from pathlib import Path

    gadgetron, python = shutil.which("gadgetron"), shutil.which("python")
    if python is not None and Path(python).parent.resolve() == Path(sys.executable).parent.resolve():
        yield Finding(what="Gadgetron's Python", state="ok", text=f"{python}, this one")
    else:
        text = (
            f"Gadgetron starts the first `python` on PATH ({python or 'there is none'}), which is not this one: put "
            f"{Path(sys.executable).parent} first on its PATH, or let it connect to `sinotherm node`"
        )
        yield Finding(what="Gadgetron's Python", state="note", text=text)
    yield Finding(
        what="Gadgetron", state="ok", text=gadgetron or "not on this machine; `sinotherm serve` does without it"
    )
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 9002))
        except OSError as error:
            text = f"cannot be taken ({error}): a server may run already; else give `sinotherm serve` another --port"
            yield Finding(what="port 9002", state="note", text=text)
        else:
            yield Finding(what="port 9002", state="ok", text="free for `sinotherm serve`")
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    yield Finding(
        what="C++ compiler",
        state="ok",
        text=f"{compiler}: torch can compile networks" if compiler else "none: networks run without torch.compile",
    )
