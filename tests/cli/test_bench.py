import gc
import json
import signal
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from sinotherm.cli.bench import app
from sinotherm.errors import SettingsError
from sinotherm.networks.inference import choose_device, choose_precision

STREAM_ROW = {
    "chain": "sinotherm",
    "coils": 8,
    "spokes": 16,
    "network": None,
    "latency_p50_ms": 1.0,
    "latency_p95_ms": 1.5,
    "floor_ms": 0.4,
    "ratio_to_sinotherm": 1.0,
}


def schema() -> Any:
    return json.loads(files("sinotherm").joinpath("schemas/bench.json").read_text())


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_stream_prints_a_table_and_writes_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("sys.argv", ["/bin/sinotherm", "bench", "stream", "--spokes", "16", "--json", "a b.json"])

    def figures(**options: Any) -> dict[str, Any]:
        asked.update(options)
        facts = {"frames": 5, "repetition_time_ms": 3.0, "device": "cpu", "load_before": 0.1, "load_after": 0.2}
        return {**facts, "results": [STREAM_ROW]}

    monkeypatch.setattr("sinotherm.bench.stream.figures", figures)
    result = run("stream", "--coils", "1,8", "--spokes", "16", "--frames", "5", "--json", str(tmp_path / "a.json"))
    assert result.exit_code == 0
    assert "latency_p95_ms" in result.stdout
    assert "load_after: 0.2" in result.stdout
    assert asked["coils"] == [1, 8]
    assert asked["repetition_time_s"] == pytest.approx(3e-3)
    assert "sinotherm" in asked["chains"]
    record = json.loads((tmp_path / "a.json").read_text())
    jsonschema.validate(record, schema())
    assert record["results"] == [STREAM_ROW]
    assert record["command"] == "sinotherm bench stream --spokes 16 --json 'a b.json'"
    run("stream", "--chains", "a, b,")
    assert asked["chains"] == ("a", "b")


def test_rows_with_other_names_are_no_record() -> None:
    record = {"schema": 1, "command": "", "time": "", "machine": {}, "versions": {}}
    jsonschema.validate({**record, "results": [STREAM_ROW]}, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**record, "results": [{**STREAM_ROW, "latency_ms": 1.0}]}, schema())


@pytest.mark.parametrize("text", ["", "a", "8,0", "8;9"])
def test_numbers_are_checked(text: str) -> None:
    with pytest.raises(SettingsError, match="whole numbers above 0"):
        run("stream", "--coils", text)


def test_ingest_is_measured_for_real(tmp_path: Path) -> None:
    result = run("ingest", "--coils", "1", "--readouts", "16", "--rounds", "1", "--json", str(tmp_path / "a.json"))
    assert result.exit_code == 0
    record = json.loads((tmp_path / "a.json").read_text())
    jsonschema.validate(record, schema())
    assert {row["measure"] for row in record["results"]} == {"ingest", "file"}


@pytest.mark.parametrize(
    ("command", "row"),
    [
        (
            "operators",
            {
                "direction": "adjoint",
                "coils": 8,
                "spokes": 16,
                "candidate": "bart",
                "time_ms": None,
                "ratio_to_sinotherm": None,
                "error_to_direct_sum": None,
                "floor_ms": 0.4,
                "note": "not installed",
            },
        ),
        (
            "replay",
            {
                "method": "fbp",
                "coils": 8,
                "spokes": 32,
                "frames": 60,
                "us_per_readout": 150.0,
                "cpu_us_per_readout": 140.0,
                "faster_than_scanner": 20.0,
                "memory_growth_MiB": 0.0,
            },
        ),
    ],
)
def test_other_figures_are_reported_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, row: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {}

    def rows(**options: Any) -> list[dict[str, Any]]:
        asked.update(options)
        return [row]

    monkeypatch.setattr(f"sinotherm.bench.{command}.rows", rows)
    result = run(command, "--spokes", "32", "--json", str(tmp_path / "a.json"))
    assert result.exit_code == 0
    assert asked["spokes"] == [32]
    record = json.loads((tmp_path / "a.json").read_text())
    jsonschema.validate(record, schema())
    assert record["results"] == [row]


def test_network_is_measured_for_real(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    result = run("network", "--coils", "2", "--spokes", "10", "--frames", "1", "--json", str(file))
    assert result.exit_code == 0
    record = json.loads(file.read_text())
    jsonschema.validate(record, schema())
    rows = {row["candidate"]: row for row in record["results"]}
    assert rows["eager float32"]["error_to_correction"] == 0
    # Random layers damp no rounding error; a hundredth is asked of networks in tests/networks/test_inference.py.
    precision = choose_precision("auto", choose_device("cpu"))
    assert 0 < rows[f"sinotherm, torch {precision}"]["error_to_correction"] < 5e-2
    assert rows["pdunet-paper, eager float32"]["coils"] == 1
    # OpenVINO's plugin frees the thread's signal stack when it is unloaded; the next signal ended the process.
    gc.collect()
    before = signal.signal(signal.SIGTERM, lambda *_: taken.append(True))
    taken: list[bool] = []
    signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    assert taken == [True]


def test_network_bench_takes_networks_without_a_reference_only(tmp_path: Path) -> None:
    from sinotherm.networks.paper import PaperPrimalDual
    from sinotherm.networks.weights import GuardLimits, ModelCard, ValidRange, save_network

    paper = PaperPrimalDual()
    path = tmp_path / "paper.safetensors"
    architecture = paper.architecture.as_dict()
    card = ModelCard(
        name="paper",
        network="paper",
        geometry="radial",
        sha256="",
        architecture=architecture,
        valid=ValidRange(),
        guard=GuardLimits(),
    )
    save_network(paper, path, card)
    with pytest.raises(SettingsError, match="primal-dual network for radial data"):
        run("network", "--network", str(path))
