"""What the README and the documents promise exists and runs."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sinotherm.cli.__main__ import COMMANDS, GROUPS
from sinotherm.core.scan import EncodingSpace, FrameImage, ScanHeader
from sinotherm.pipelines.registry import pipeline_names
from sinotherm.simulation.mrd import simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def test_commands_of_the_readme_exist() -> None:
    named = set(re.findall(r"sinotherm ([a-z]+) ?", README)) & {*COMMANDS, *GROUPS}
    assert {"demo", "serve", "node", "recon", "info", "send", "watch", "simulate", "doctor"} <= named


def test_every_pipeline_stands_in_the_readme() -> None:
    assert all(f"`{name}`" in README for name in pipeline_names())


def test_the_library_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "MrdFile(" in block)
    monkeypatch.chdir(tmp_path)
    sizes = {"matrix": 32, "n_coils": 2, "spokes": 64, "frames": 2, "baseline_frames": 1, "cooling_frames": 0}
    simulate(Scan(protocol=Protocol(**sizes)), Path("scan.h5"))
    exec(code, {})
    assert "Image" in capsys.readouterr().out.split()


@pytest.mark.data
def test_files_of_the_shared_data_that_documents_name_exist(shared_data: Path) -> None:
    named = {path for document in DOCUMENTS for path in re.findall(r"DATA/([\w/.-]+\.h5)", document.read_text("utf-8"))}
    assert named
    assert not [path for path in named if not (shared_data / path).exists()]


def test_the_stage_of_the_readme_smooths_images_and_passes_on_the_rest() -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "def stage" in block)
    assert len(code.strip().splitlines()) <= 24
    module = ModuleType("smoothing")
    exec(code, module.__dict__)
    space = EncodingSpace(matrix=(8, 8, 1), fov_m=(0.2, 0.2, 0.01))
    point = np.zeros((1, 1, 8, 8), np.complex64)
    point[0, 0, 4, 4] = 1j
    settings = module.Settings.parse("smoothing", {"width": "0.5"})
    scan = ScanHeader(encoded=space, recon=space, trajectory="radial")
    image, other = module.stage(iter([FrameImage(data=point, number=0), "text"]), scan, settings)
    assert other == "text"
    assert 0.0 < image.data[0, 0, 4, 5].imag < image.data[0, 0, 4, 4].imag < 1.0
