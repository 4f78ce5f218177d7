import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from sinotherm import __version__
from sinotherm.cli import __main__ as cli
from sinotherm.errors import SettingsError

HEAVY = {"numpy", "torch", "scipy", "numba", "ismrmrd", "h5py", "matplotlib", "zmq", "finufft", "skimage"}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a command that raises what it is told to into the program, and call it."""
    app = typer.Typer(pretty_exceptions_enable=False)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(cli, "_register", lambda: None)
    monkeypatch.setattr(sys, "argv", ["sinotherm"])
    before = signal.getsignal(signal.SIGTERM)

    def call(work: Any) -> Any:
        app.command()(work)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    yield call
    signal.signal(signal.SIGTERM, before)


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "sinotherm.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["recon", "--help"], ["bench", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['sinotherm', *{arguments!r}]\n"
        "from sinotherm.cli.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('MODULES', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    shown, _, modules = done.stdout.partition("MODULES ")
    assert "Usage" in shown
    assert not HEAVY & set(modules.split())


def test_every_command_has_help_that_is_whole() -> None:
    root = typer.main.get_command(cli.app)
    if not getattr(root, "commands", None):
        cli._register()
        root = typer.main.get_command(cli.app)
    found = 0

    def check(name: str, node: Any) -> None:
        nonlocal found
        assert node.help, name
        for parameter in node.params:
            assert parameter.help, f"{name} {parameter.name}"
            assert parameter.help.strip().endswith((".", "]", "…")), f"{name} {parameter.name}: {parameter.help!r}"
            found += 1
        for sub, child in getattr(node, "commands", {}).items():
            check(f"{name} {sub}", child)

    check("sinotherm", root)
    assert found > 60


def test_the_help_shows_defaults_that_are_no_values() -> None:
    shown = " ".join(run("recon", "--help", env={"COLUMNS": "200", "PATH": ""}).stdout.split())
    assert "[default: IN_images.h5]" in shown
    assert "[default: radial_fbp]" in shown


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SettingsError("frames.spokes = 0: at least 1."), "sinotherm: error: frames.spokes = 0: at least 1.\n"),
        (
            PermissionError(13, "Permission denied", "out.json"),
            "sinotherm: error: [Errno 13] Permission denied: 'out.json'\n",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    command: Any, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    def work() -> None:
        raise error

    assert command(work) == 1
    assert capsys.readouterr().err == line


def test_what_he_cannot_mend_is_a_traceback(command: Any) -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command(work)


def test_sigterm_ends_like_ctrl_c(command: Any) -> None:
    closed = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)
        finally:
            closed.append(True)

    assert command(work) not in (0, None)
    assert closed


def test_an_unknown_command() -> None:
    done = run("recno")
    assert done.returncode == 2
    assert "No such command 'recno'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"sinotherm {__version__}\n")


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sinotherm.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_it_says_what_it_does_only_when_asked() -> None:
    assert run().stdout.count("Usage") == 1


def test_verbose_shows_where_an_error_happened(tmp_path: Path) -> None:
    assert "Traceback" not in run("info", str(tmp_path)).stderr
    assert "Traceback" in run("-v", "info", str(tmp_path)).stderr
