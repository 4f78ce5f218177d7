import subprocess
import sys
from pathlib import Path

from sinotherm.pipelines.documentation import pipeline_reference
from sinotherm.pipelines.registry import STAGES, stage_module

CHECKOUT = Path(__file__).parents[2]


def test_the_reference_is_current():
    written = (CHECKOUT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert written == pipeline_reference(), "run: python -m sinotherm.pipelines.documentation > docs/pipelines.md"


def test_every_shipped_pipeline_is_in_it():
    text = pipeline_reference()
    shipped = [file.stem for file in (CHECKOUT / "pipeline_xml").glob("*.xml")]
    assert len(shipped) >= 4
    assert all(f"| `{name}` |" in text for name in shipped)


def test_every_setting_of_every_stage_is_in_it():
    text = pipeline_reference()
    for stage in STAGES:
        for name in stage_module(stage).Settings.model_fields:
            assert f"`{stage}.{name}`" in text


def test_every_setting_has_a_sentence_and_tables_are_whole():
    for line in pipeline_reference().splitlines():
        if line.startswith("| `") and line.count("|") == 6:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert cells[4].endswith("."), line
        assert not line.startswith("|") or line.count("|") in (3, 4, 6), line


def test_it_is_printed_by_the_module():
    command = [sys.executable, "-m", "sinotherm.pipelines.documentation"]
    printed = subprocess.run(command, capture_output=True, check=True, text=True, encoding="utf-8")
    assert printed.stdout == pipeline_reference()
