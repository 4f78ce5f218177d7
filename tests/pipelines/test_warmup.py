import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import SettingsError, WeightsError
from sinotherm.operators import backprojection
from sinotherm.operators.backprojection import BackProjector
from sinotherm.pipelines import warmup
from sinotherm.pipelines.compose import compose
from sinotherm.pipelines.registry import STAGES, stage_module
from sinotherm.pipelines.warmup import warm_up
from sinotherm.pipelines.xml import Step


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_SCANS", ((3, 16, 0.0),))
    monkeypatch.setattr(warmup, "_compile", lambda *_: None)


def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list into which the warm-up's images go."""
    images: list[Any] = []
    run = warmup.Pipeline.run

    def watched(self: Any, *arguments: Any) -> Any:
        for item in run(self, *arguments):
            images.append(item)
            yield item

    monkeypatch.setattr(warmup.Pipeline, "run", watched)
    return images


@pytest.mark.parametrize("target", ["radial_thermometry", "thermometry"])
def test_the_whole_chain_runs_and_leaves_nothing(
    quick: None, target: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = made(monkeypatch)
    values = {
        "thermometry": {"log": str(tmp_path / "log"), "baseline_rule": "stored", "baseline_file": "nowhere.h5"},
        "publish": {"endpoint": "tcp://nowhere"},
    }
    if target == "radial_thermometry":
        values |= {"delay": {"mode": "off"}, "frames": {"spokes": "402"}}
    with caplog.at_level("INFO"):
        warm_up([Step(target=target, values=values)])
    series = {int(image.image_series_index) for image in images if hasattr(image, "image_series_index")}
    assert 3 in series  # temperature
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "warming up: " in caplog.text
    assert "warm after " in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("sinotherm").getEffectiveLevel() != logging.CRITICAL


def test_settings_of_this_machine_are_left_out_and_those_of_the_method_kept() -> None:
    values = {
        stage: {name: "x" for name, field in stage_module(stage).Settings.model_fields.items() if field}
        for stage in ("thermometry", "publish", "frames", "spokes")
    }
    values |= {"reconstruction": {"method": "cg_sense"}, "cg_sense": {"iterations": "3", "maps_spokes": "500"}}
    tamed = warmup._tamed(Step(target="radial_thermometry", values=values))
    chain = compose("radial_thermometry", tamed)
    settings = {name: one for name, _, one in chain.stages}
    assert settings["cg_sense"].iterations == 3  # type: ignore[attr-defined]
    assert settings["cg_sense"].maps_spokes == 1  # type: ignore[attr-defined]
    assert "x" not in {value for named in tamed.values() for value in named.values()}
    for stage, named in tamed.items():
        if stage in STAGES and stage != "publish":
            stage_module(stage).Settings.refuse_foreign(stage, named)
    assert tamed["publish"] == {"endpoint": ""}


@pytest.mark.parametrize(
    ("error", "ends"),
    [(SettingsError("no network"), True), (WeightsError("no network"), True), (ValueError("odd"), False)],
)
def test_a_wrong_setting_ends_the_start_and_other_failures_do_not(
    error: Exception, ends: bool, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(warmup, "_run", fail)
    steps = [Step(target="reconstruct", values={"compression": {"method": "off"}})]
    if ends:
        with pytest.raises(type(error), match="no network"):
            warm_up(steps)
    else:
        warm_up(steps)
        assert "the warm-up failed: the first scan will wait for what it loads" in caplog.text
    assert logging.getLogger("sinotherm").getEffectiveLevel() != logging.CRITICAL


@pytest.mark.parametrize("part", ["kernels", "readouts"])
def test_what_is_gone_through_can_be_ended_between_two_of_its_parts(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An interrupt within an import or a compiler would be swallowed there, or taken for a failed warm-up."""
    monkeypatch.setattr(warmup, "_SCANS", ((3, 16, 0.0),))
    n_before = {"kernels": 1, "readouts": len(warmup._PROJECTED) + 20}[part]
    gone: list[Any] = []

    def checked(items: Any) -> Any:
        for item in items:
            if len(gone) == n_before:
                raise KeyboardInterrupt
            gone.append(item)
            yield item

    steps = [Step(target="reconstruct", values={"reconstruction": {"method": "gridding"}})]
    with pytest.raises(KeyboardInterrupt):
        warm_up(steps, checked)
    assert len(gone) == n_before
    assert "failed" not in caplog.text
    assert logging.getLogger("sinotherm").getEffectiveLevel() != logging.CRITICAL


@pytest.mark.parametrize("n_coils", [1, 2, 3, 7])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.002, 0.001)])
def test_no_spoke_needs_another_kernel(n_coils: int, shift: tuple[float, float], monkeypatch: Any) -> None:
    """The kernels are compiled by number of coils; a scan meets those that are there already."""
    warmup._compile(8)
    missing = []
    for name in ("_accumulator", "_turning_accumulator"):
        known = getattr(backprojection, name)
        misses = known.cache_info().misses

        def counted(*key: int, known: Any = known, misses: int = misses) -> Any:
            kernel = known(*key)
            missing.extend([key] * (known.cache_info().misses - misses))
            missing.extend([key] * (not getattr(kernel, "signatures", True)))
            return kernel

        monkeypatch.setattr(backprojection, name, counted)
    projector = BackProjector((16, 16), n_coils, RadialSampling(n_readout=32, spacing=1 / 32, centre=16.0))
    projector.add(np.ones((n_coils, 32), np.complex64), 0.3, shift=shift)
    assert missing == []
