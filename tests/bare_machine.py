"""A machine with the standard library, torch, numpy and safetensors alone, as far as imports go."""

import subprocess
import sys
from pathlib import Path

_PRELUDE = """
import sys
from importlib.machinery import PathFinder

OWN = "sinotherm torch torchgen functorch numpy safetensors"
OF_TORCH = "typing_extensions sympy mpmath networkx jinja2 markupsafe filelock fsspec triton"
# What stands there already is the start of the interpreter, and of its measurement of coverage.
allowed = {*sys.stdlib_module_names, *OWN.split(), *OF_TORCH.split(), *(name.partition(".")[0] for name in sys.modules)}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        # An underscore: parts of the standard library that it does not list.
        return super().find_spec(name, path, target) if top in allowed or top.startswith("_") else None


sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
assert Bare in sys.meta_path
"""


def run_bare(code: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder without any other package."""
    script = folder / "bare.py"
    script.write_text(_PRELUDE + code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=240
    )
