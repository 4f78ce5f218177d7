"""What the README and the documents promise exists and runs."""

import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sinotherm.cli.__main__ import COMMANDS, GROUPS
from sinotherm.core.scan import EncodingSpace, FrameImage, ScanHeader
from sinotherm.frames.header import scan_header
from sinotherm.pipelines.compose import fire_parameters, load_pipeline, parse_assignments
from sinotherm.pipelines.registry import pipeline_names
from sinotherm.simulation.mrd import simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan
from sinotherm.thermometry.audit import COLUMNS
from sinotherm.wire.file import MrdFile

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def test_the_source_distribution_holds_what_the_documents_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS[:2]]
    links = {link for text in texts for link in re.findall(r"\]\(([^):#]+)[):#]", text)}
    links |= set(re.findall(r"-c (\S+\.txt)", README)) | {"tests"}
    assert {f"/{Path(link).parts[0]}" for link in links if "//" not in link} <= set(packed)


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
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]


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


@pytest.fixture(scope="module")
def small_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    sizes = {"matrix": 32, "n_coils": 3, "spokes": 51, "frames": 4, "baseline_frames": 2, "cooling_frames": 0}
    simulate(Scan(protocol=Protocol(**sizes, snr=100.0)), path)
    return path


def documented(section: str) -> set[str]:
    """Return the names in a section of the page about what comes out."""
    page = (ROOT / "docs" / "mrd-output.md").read_text(encoding="utf-8")
    return set(re.findall(r"`([\w.]+)`", page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]))


SHOWN = "images.complex_images=true images.sinograms=true compression.coils=2 "
MAPS = "thermometry.baseline_frames=2 thermometry.body_temperature_degc=37 "


@pytest.mark.parametrize(
    ("pipeline", "settings"),
    [
        ("radial_fbp", SHOWN),
        ("radial_thermometry", SHOWN + MAPS + "reconstruction.method=gridding"),
        ("radial_thermometry", MAPS + "reconstruction.method=cg_sense cg_sense.replicas=2"),
        ("radial_thermometry", MAPS + "reconstruction.method=pdunet pdunet.guard=false pdunet.sinogram=true"),
        ("radial_thermometry", MAPS + "reconstruction.method=pdunet"),
    ],
)
def test_what_comes_out_stands_on_its_page(
    small_scan: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str, settings: str
) -> None:
    sent: list[tuple[str, Mapping[str, Any]]] = []
    feed = SimpleNamespace(publish=lambda topic, header, array=None: sent.append((topic, header)))
    monkeypatch.setattr("sinotherm.stages.publish.shared_publisher", lambda endpoint: feed)
    chain = load_pipeline(pipeline).with_values(parse_assignments(settings.split()))
    with MrdFile(small_scan) as file:
        items = list(chain.run(scan_header(file.header_xml), file.items()))
        again = load_pipeline("thermometry").with_values(parse_assignments(["thermometry.baseline_frames=2"]))
        if "complex" in settings and pipeline == "radial_thermometry":
            items += list(again.run(scan_header(file.header_xml), iter(items)))
    names = {name.removeprefix("sinotherm_") for item in items for name in getattr(item, "meta", {})}
    own = {name for name in names if name[0].islower() and not name.startswith("setting_")}
    assert {"product", "frame", "method"} <= own <= documented("The meta")
    assert {topic.removesuffix("_beside") for topic, _ in sent} <= documented("The feed")
    assert {name for _, header in sent for name in header} <= documented("The feed")


def test_columns_and_schemas_stand_on_their_page() -> None:
    assert set(COLUMNS) <= documented("The audit log")
    schemas = {path.name for path in files("sinotherm.schemas").iterdir() if path.name.endswith(".json")}
    assert schemas == {name for name in documented("The JSON records") if name.endswith(".json")}


def test_the_parameters_of_a_console_are_taken() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "gadgetron.md").read_text(encoding="utf-8"), re.S)
    name, values = fire_parameters(text)
    assert name is not None
    assert load_pipeline(name).with_values(values).chains[0].values["images.format"] == "console"
