import json
from dataclasses import replace
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from sinotherm.cli.qa import app
from sinotherm.core.scan import TemperatureMap
from sinotherm.errors import DataError
from sinotherm.evaluation.stability import _page, stability
from sinotherm.simulation.mrd import simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan


def _maps(*, sd: float = 0.3, drift_per_h: float = 0.0, field_per_h: float = 5.0, minutes: float = 12.0, **meta):
    random = np.random.default_rng(0)
    n = 40
    times = np.linspace(0.0, 60.0 * minutes, n + 1)
    values = {
        "gradient_delay_samples": (0.1, -0.2, 0.0),
        "gradient_delay_source": "ring",
        "gradient_delay_mismatch": 0.01,
        "streak_prone_coils": (),
    } | meta
    for number in range(n):
        hours = times[number] / 3600.0
        change = (sd * random.standard_normal((1, 20, 20)) + drift_per_h * hours).astype(np.float32)
        change[0, :3] = np.nan
        yield TemperatureMap(
            change_degc=change,
            sigma_degc=np.full((1, 20, 20), 0.3, np.float32),
            validity=np.isnan(change).astype(np.uint16),
            number=number,
            footprint=(times[number], times[number], times[number + 1]),
            meta=values | {"drift_coefficients_degC": (field_per_h * hours, 0.0, 0.0)},
        )


def _row(found, name):
    return next(row for row in found.rows if row["figure"] == name)


def test_a_stable_scanner_passes():
    found = stability(list(_maps()))
    assert found.passed, found.rows
    assert _row(found, "temporal_sd_degC")["value"] == pytest.approx(0.3, abs=0.02)
    assert _row(found, "z_score_sd")["value"] == pytest.approx(1.0, abs=0.02)
    assert _row(found, "field_drift_degC_per_h")["value"] == pytest.approx(5.0)
    assert _row(found, "gradient_delay_samples")["value"] == 0.2


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"sd": 0.6}, "temporal_sd_degC"),
        ({"sd": 0.6}, "z_score_sd"),
        ({"drift_per_h": 3.0}, "residual_drift_degC_per_h"),
        ({"drift_per_h": 3.0}, "bias_degC"),
        ({"field_per_h": 50.0}, "field_drift_degC_per_h"),
        ({"field_per_h": float("nan")}, "field_drift_degC_per_h"),
        ({"minutes": 5.0}, "duration_min"),
        ({"gradient_delay_samples": (1.5, 0.0, 0.0)}, "gradient_delay_samples"),
        ({"gradient_delay_samples": (1.5, 0.0, 0.0), "gradient_delay_source": "given"}, "gradient_delay_samples"),
        ({"streak_prone_coils": (3,)}, "streak_prone_coils"),
        ({"streak_prone_coils": 3}, "streak_prone_coils"),
    ],
)
def test_each_limit_fails_by_its_cause(changes, figure):
    found = stability(list(_maps(**changes)))
    assert not found.passed
    assert not _row(found, figure)["passed"]


def test_a_phantom_that_moved_away_does_not_pass_on_the_frames_before():
    maps = list(_maps())
    for one in maps[:5] + maps[9:]:
        one.change_degc[:] = np.nan
    found = stability(maps)
    assert _row(found, "frames_without_reading_percent")["value"] == pytest.approx(100.0 * 31 / 35)
    assert _row(found, "duration_min")["value"] == pytest.approx(12.0 * 9 / 40)
    assert not found.passed
    few = list(_maps())
    few[20].change_degc[:] = np.nan
    assert stability(few).passed


def _without(maps, *names):
    return [replace(one, meta={name: value for name, value in one.meta.items() if name not in names}) for one in maps]


@pytest.mark.parametrize("figure", ["gradient_delay_samples", "streak_prone_coils"])
def test_what_nobody_looked_for_is_not_judged(figure):
    found = stability(_without(_maps(), figure))
    assert (_row(found, figure)["value"], _row(found, figure)["passed"]) == (None, None)
    assert found.passed


def test_an_estimate_of_the_delay_that_failed_does_not_pass():
    # The delay stage leaves the spokes where they are then, and says so by zeros without a mismatch.
    found = stability(_without(_maps(gradient_delay_samples=(0.0, 0.0, 0.0)), "gradient_delay_mismatch"))
    row = _row(found, "gradient_delay_samples")
    assert (row["value"], row["passed"]) == (None, False)
    assert not found.passed
    given = _maps(gradient_delay_samples=(0.3,), gradient_delay_source="given")
    assert _row(stability(_without(given, "gradient_delay_mismatch")), "gradient_delay_samples")["value"] == 0.3


def test_what_cannot_be_judged():
    with pytest.raises(DataError, match="2 frames with readings"):
        stability(list(_maps())[:2])
    torn = list(_maps())
    torn[4].change_degc[:] = np.nan
    torn[4].change_degc[0, 0, 0] = 1.0
    with pytest.raises(DataError, match="every frame"):
        stability(torn)
    untimed = [replace(one, footprint=(float("nan"),) * 3) for one in _maps()]
    with pytest.raises(DataError, match="40 of 40 frames carry no time stamp"):
        stability(untimed)


def test_the_page_counts_minutes_from_the_start(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda _, *values, **options: drawn.append(values[0]))
    maps = [replace(one, footprint=tuple(36_000.0 + time_s for time_s in one.footprint)) for one in _maps(minutes=12.0)]
    _page(stability(maps), tmp_path / "qa.png", "title")
    for minutes in drawn[:2]:
        assert minutes[0] == 0.0
        assert 10.0 < minutes[-1] <= 12.0


def test_command_writes_record_and_page(tmp_path):
    protocol = Protocol(
        matrix=32,
        n_coils=2,
        spokes=24,
        frames=8,
        baseline_frames=8,
        cooling_frames=0,
        peak_degc=0.0,
        noise_scans=64,
        dummy_scans=0,
    )
    simulate(Scan(protocol=protocol), tmp_path / "scan.h5")
    arguments = [
        "stability", str(tmp_path / "scan.h5"), "--json", str(tmp_path / "qa.json"),
        "--report", str(tmp_path / "qa.pdf"),
        "--set", "thermometry.drift_min_voxels=20", "--set", "thermometry.baseline_frames=3",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert "duration_min" in result.stdout
    record = json.loads((tmp_path / "qa.json").read_text())
    jsonschema.validate(record, json.loads((files("sinotherm.schemas") / "qa_stability.json").read_text()))
    assert record["verdict"] == "NOT passed"
    assert (tmp_path / "qa.pdf").read_bytes().startswith(b"%PDF")
