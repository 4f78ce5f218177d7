import inspect
import json
import logging
import math
from importlib.resources import files
from types import SimpleNamespace

import h5py
import jsonschema
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from sinotherm.errors import DataError, FileFormatError, SettingsError, WeightsError
from sinotherm.evaluation.heated_scans import Series, heated_scan, series
from sinotherm.evaluation.thermal_methods import METHODS, SETTINGS, Temperatures, method_named, temperatures
from sinotherm.evaluation.thermo import command, figures, rows
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import save_network
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.reconstruction.cg_sense import cg_sense
from untrained import card_of

SMALL = {"matrix": 64, "coils": 3, "baseline_frames": 4, "frames": 4, "seeds": 1}


def _disc(n: int = 64) -> np.ndarray:
    y, x = np.mgrid[:n, :n] - n // 2
    return (np.hypot(x / 27, y / 24) < 1).astype(np.float32)


@pytest.fixture(scope="module")
def found() -> Series:
    scan = heated_scan(
        None, heating="rf", peak_degc=46.0, spokes=100, seed=0, matrix=64, coils=3, baseline_frames=4, heated_frames=6
    )
    return series(scan)


def _perfect(found: Series, **changes) -> Temperatures:
    truth = found.truth_degc[found.n_baseline :]
    return Temperatures(**({"change": truth, "sigma": np.full_like(truth, 0.1), "ms_per_frame": 1.0} | changes))


def test_the_truth_scores_perfectly(found: Series) -> None:
    row = figures(found, _perfect(found), 0.5)
    assert row["tumour_bias_degC"] == row["tumour_rmse_degC"] == row["body_mean_abs_error_degC"] == 0.0
    assert row["cem43_t50_error_percent"] == pytest.approx(0.0, abs=1e-6)
    assert row["dice43"] == 1.0
    assert row["coverage95"] == 1.0
    assert row["recovery_slope"] is None or row["recovery_slope"] == pytest.approx(1.0)
    # The fully sampled, noise-free map is the truth at the same point spread, but for partial volumes.
    assert row["tumour_diff_of_means_degC"] < 0.05
    assert row["n_frames"] == 6


def test_known_errors_are_scored_as_such(found: Series) -> None:
    truth = found.truth_degc[found.n_baseline :]
    random = np.random.default_rng(0)
    noisy = truth + 0.3 + 0.4 * random.standard_normal(truth.shape).astype(np.float32)
    row = figures(found, _perfect(found, change=noisy, sigma=np.full_like(truth, np.nan)), 0.5)
    assert row["tumour_bias_degC"] == pytest.approx(0.3, abs=0.05)
    assert row["tumour_rmse_degC"] == pytest.approx(0.5, abs=0.05)
    assert row["coverage95"] is None
    half = figures(found, _perfect(found, change=0.5 * truth), 0.5)
    assert half["cem43_t50_error_percent"] < -50
    assert half["dice43"] == 0.0


def test_a_spot_that_is_shrunk_is_seen_in_the_slope_and_in_the_heated_coverage() -> None:
    scan = heated_scan(
        None, heating="focal", peak_degc=39.0, spokes=60, seed=0, matrix=64, coils=3, baseline_frames=4,
        heated_frames=12, snr=100.0,
    )  # fmt: skip
    found = series(scan)
    truth = found.truth_degc[found.n_baseline :]
    assert truth[:, found.tumour].max() == pytest.approx(2.0, abs=0.6)
    noise = 0.05 * np.random.default_rng(1).standard_normal(truth.shape)
    for share in (1.0, 0.7):
        measured = _perfect(found, change=share * truth + 0.02 + noise, sigma=np.full_like(truth, 0.055))
        row = figures(found, measured, 0.5)
        assert row["recovery_slope"] == pytest.approx(share, abs=0.03)
        assert row["coverage95_unheated"] == pytest.approx(0.95, abs=0.03)
        assert (row["coverage95_heated"] > 0.9) == (share == 1.0)


def test_gridding_of_a_dense_series_is_unbiased(found: Series) -> None:
    measured = temperatures(found, method_named("gridding"))
    row = figures(found, measured, 0.5)
    assert abs(row["tumour_bias_degC"]) < 0.1
    assert row["tumour_rmse_degC"] < 1.5 * np.median(measured.sigma[:, found.tumour])
    assert row["coverage95"] == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize("name", ["cg-sense-tv", "tcr", "view-sharing", "kspace-hybrid", "gridding-trend"])
def test_comparators_follow_the_heating(name: str) -> None:
    method = method_named(name)
    scan = heated_scan(
        None, heating="focal", peak_degc=50.0, spokes=50, seed=1, schedule=method.schedule, matrix=48, coils=3,
        baseline_frames=4, heated_frames=5, snr=100.0,
    )  # fmt: skip
    found = series(scan)
    row = figures(found, temperatures(found, method), 0.5)
    assert abs(row["tumour_bias_degC"]) < 0.5
    assert row["ms_per_frame"] > 0


class _Linear:
    """Stands in for the network: the reference, and the least-squares image of what the frame has beyond it."""

    card = SimpleNamespace(change_error=(0.0, 0.0))

    def __init__(self, weights: str) -> None:
        assert weights == "pdunet-thermo"

    def reconstruct(self, data, sampling, angles, maps, *, reference, still=None):
        plan = FinufftPlan(reference.shape, len(maps))
        plan.set_points(np.ascontiguousarray(radial_points(angles, sampling).reshape(-1, 2)))
        beyond = data - plan.forward(maps * reference).reshape(data.shape)
        return reference + cg_sense(beyond, angles, sampling, maps).image, None


def test_a_network_is_given_the_baseline_as_it_drifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinotherm.networks.inference.RadialReconstructor", _Linear)
    method = method_named("pdunet")
    options = {"heating": "rf", "peak_degc": 44.0, "spokes": 40, "matrix": 64, "coils": 3, "snr": 200.0}
    found = series(heated_scan(None, seed=3, schedule=method.schedule, baseline_frames=8, heated_frames=4, **options))
    row = figures(found, temperatures(found, method), 0.5)
    plain = figures(found, temperatures(found, method_named("gridding")), 0.5)
    assert abs(row["tumour_bias_degC"]) < 0.15
    assert row["tumour_rmse_degC"] < plain["tumour_rmse_degC"]
    assert row["coverage95_unheated"] == pytest.approx(0.95, abs=0.05)


def test_an_untrained_guided_network_runs_through(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = PrimalDual(Architecture(iterations=2, primal_features=(4, 8), dual_features=4, memory=2, reference=True))
    save_network(network, tmp_path / "tiny.safetensors", card_of(network))
    monkeypatch.setitem(SETTINGS, "pdunet", {"weights": str(tmp_path / "tiny.safetensors")})
    (row,) = rows(None, scenes=("focal",), peaks_degc=(39.0,), spokes=(50,), names=("pdunet",), **SMALL)
    assert row["method"] == "pdunet"
    assert math.isfinite(row["tumour_rmse_degC"])
    assert row["coverage95_unheated"] is not None


def test_fat_that_is_found_is_held_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what the phase of the reference tells, nearly all of the fat and next to nothing else."""
    held = []

    class Watched(_Linear):
        def reconstruct(self, *given, still=None, **named):
            held.append(still)
            return super().reconstruct(*given, **named)

    monkeypatch.setattr("sinotherm.networks.inference.RadialReconstructor", Watched)
    y, x = np.mgrid[:96, :96] - 48
    distance = np.hypot(x / 40, y / 36)
    image = ((distance < 1) * np.where(distance > 0.8, 2.0, 1.0)).astype(np.float32)
    scan = heated_scan(
        image, heating="rf", peak_degc=44.0, spokes=60, seed=4, schedule="golden", matrix=96, coils=3,
        baseline_frames=5, heated_frames=2, snr=200.0,
    )  # fmt: skip
    found = series(scan)
    temperatures(found, method_named("pdunet"))
    assert held == [None] * 7
    held.clear()
    temperatures(found, method_named("pdunet-fat"))
    true = scan.anatomy.fat_mask
    assert len(held) == 7
    for still in held:
        assert (still & true).sum() > 0.5 * true.sum()
        assert (still & ~true).sum() < 0.1 * true.sum()


def test_the_filter_in_time_takes_the_images_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinotherm.networks.inference.RadialReconstructor", _Linear)
    made = []
    monkeypatch.setattr(_Linear, "reconstruct", lambda *given, inner=_Linear.reconstruct, **named: (
        made.append(1), inner(*given, **named)
    )[1])  # fmt: skip
    options = SMALL | {"baseline_frames": 30, "frames": 10}
    found = list(
        rows(None, scenes=("focal",), peaks_degc=(46.0,), spokes=(40,), names=("pdunet", "pdunet-trend"), **options)
    )
    assert len(made) == 40
    plain, filtered = found
    assert [row["method"] for row in found] == ["pdunet", "pdunet-trend"]
    assert filtered["tumour_rmse_degC"] < 0.95 * plain["tumour_rmse_degC"]
    assert filtered["ms_per_frame"] == plain["ms_per_frame"]


def test_what_is_missing_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("sinotherm.networks.weights.SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match="pdunet-thermo"):
        method_named("pdunet")
    with pytest.raises(SettingsError, match=r"known methods: gridding, .*, pdunet, pdunet-fat, each with -trend"):
        method_named("magic")
    with pytest.raises(SettingsError, match="known scenes"):
        next(iter(rows(None, scenes=("steam",), **SMALL)))  # type: ignore[arg-type]


def test_the_help_names_the_methods_of_the_default() -> None:
    text = inspect.signature(command).parameters["methods"].annotation.__metadata__[0].help
    named = text.partition("by default ")[2].removesuffix(".").replace(" and ", ", ").split(", ")
    assert named == list(METHODS)


def test_places_are_random_and_lie_in_the_body() -> None:
    image = _disc()
    places = [
        heated_scan(image, heating="rf", peak_degc=44.0, spokes=20, seed=seed, matrix=64).centre_m for seed in range(4)
    ]
    assert len(set(places)) == 4
    scan = heated_scan(image, heating="rf", peak_degc=44.0, spokes=20, seed=0, matrix=64)
    assert scan.anatomy.tumour.sum() > 0
    with pytest.raises(DataError, match="no room"):
        heated_scan(np.eye(64, dtype=np.float32), heating="rf", peak_degc=44.0, spokes=20, seed=0, matrix=64)


def test_diffuse_heat_takes_minutes_and_foci_seconds() -> None:
    options = {"peak_degc": 46.0, "spokes": 20, "seed": 0, "matrix": 64, "baseline_frames": 2}
    slow, focal, fast = (heated_scan(_disc(), heating=kind, **options) for kind in ("rf", "focal", "rf-fast"))
    assert [scan.protocol.interval_s for scan in (slow, focal, fast)] == [20.0, 0.5, 0.5]
    assert heated_scan(_disc(), heating="rf", **options | {"spokes": 1000}).protocol.interval_s == 25.0
    assert slow.centre_m == fast.centre_m
    assert slow.protocol.heating == fast.protocol.heating
    assert slow.heating.max(axis=1)[-1] == pytest.approx(fast.heating.max(axis=1)[-1], rel=0.02)
    # What the tumour absorbs more than its surroundings makes a step that conduction has the time to smooth.
    tumour = fast.anatomy.tumour
    border = np.argwhere(tumour[:, :-1] & ~tumour[:, 1:])
    steps = []
    for scan in (slow, fast):
        change = scan.temperature_change(21)
        steps.append(np.mean([change[y, x] - change[y, x + 1] for y, x in border]))
    assert steps[0] < 0.9 * steps[1]


def test_people_without_room_for_the_tumour_cost_only_themselves(tmp_path, caplog) -> None:
    with h5py.File(tmp_path / "heads.h5", "w") as file:
        file["anna"], file["bert"] = _disc(), np.eye(64)
    options = SMALL | {"scenes": ("rf",), "peaks_degc": (46.0,), "spokes": (40,), "names": ("gridding",)}
    (row,) = rows(tmp_path, **options)
    assert row["n_frames"] == 4
    assert "heads, bert, rf, seed 0 is left out: the object has no room" in caplog.text
    with h5py.File(tmp_path / "heads.h5", "w") as file:
        file["bert"] = np.eye(64)
    with pytest.raises(DataError, match="heads: no object has room"):
        list(rows(tmp_path, **options))


def test_complex_baselines_are_taken_by_person(tmp_path, caplog) -> None:
    phase = np.exp(1j * np.linspace(-1, 1, 64))[None, :]
    file_name = tmp_path / "heads.H5"
    with h5py.File(file_name, "w") as file:
        file["anna"] = np.stack([_disc() * phase] * 3)
        file["bert/map"] = np.stack([np.zeros((64, 64)) * phase, _disc() * phase, np.nan * phase * _disc()])
        file["bert/matrix"] = np.eye(4) * 1j
    options = SMALL | {"scenes": ("rf",), "peaks_degc": (46.0,), "spokes": (40,), "names": ("gridding",)}
    assert [row["n_frames"] for row in rows(file_name, **options)] == [8]
    assert [row["n_frames"] for row in rows(file_name, **options, people=1)] == [4]
    assert "2 of 3 images of bert are empty or not finite" in caplog.text
    with h5py.File(file_name, "w") as file:
        file["anna"] = np.zeros((64, 64)) * phase
    with pytest.raises(DataError, match="its complex images are empty or not finite"):
        next(iter(rows(file_name, **options)))
    file_name.write_bytes(b"no")
    with pytest.raises(FileFormatError, match=r"heads\.H5 is not a readable HDF5 file"):
        next(iter(rows(file_name, **options)))


def test_people_of_complex_baselines_are_told(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    baseline = _disc().astype(np.complex64)
    with h5py.File(tmp_path / "heads.h5", "w") as file:
        file["anna/deep"], file["bert"], file["carl/t1"] = baseline, baseline[None, None], _disc()
        file["anna/mask"] = _disc()
    options = SMALL | {"scenes": ("rf",), "peaks_degc": (46.0,), "spokes": (40,), "names": ("gridding",)}
    (row,) = rows(tmp_path / "heads.h5", **options)
    assert row["n_frames"] == 2 * 4
    assert "heads: 2 people: anna, bert" in caplog.text
    assert "heads.h5: 1 people without complex images" in caplog.text
    assert "are left out: carl/t1 float32 (64, 64)\n" in caplog.text
    with pytest.raises(SettingsError, match=r"--split val: the complex images of .*heads\.h5 have no splits"):
        next(iter(rows(tmp_path / "heads.h5", split="val", **options)))


def test_a_curve_or_split_that_cannot_be_used_is_refused(tmp_path) -> None:
    curve = tmp_path / "curve.csv"
    curve.write_text("time_s,temperature_degC\n2,37\n1,40\n")
    with pytest.raises(DataError, match="rising time_s"):
        next(iter(rows(None, temperature=curve, **SMALL)))
    with pytest.raises(SettingsError, match="known splits: train, val, all"):
        next(iter(rows(None, split="test", **SMALL)))


def test_object_phase_and_foreign_curve() -> None:
    image = _disc() * np.exp(1j * np.linspace(-1, 1, 64))[None, :]
    curve = (np.array([-1.0, 0.0, 2.0, 5.0]), np.array([36.0, 37.0, 37.0, 43.0]))
    scan = heated_scan(
        image,
        heating="rf-fast",
        spokes=20,
        seed=0,
        matrix=64,
        baseline_frames=4,
        heated_frames=6,
        curve=curve,
    )
    water, _ = scan.signal()
    inside = scan.anatomy.water > 0
    np.testing.assert_allclose(np.angle(water * image.conj())[inside], 0.0, atol=1e-4)
    # The baseline lasts 2 s, the heated frames 3 s: the curve's last 2 s come too late.
    hottest = scan.heating.max(axis=1)
    assert not hottest[: 4 * 8 + 1].any()
    assert hottest[-1] == scan.protocol.peak_degc == pytest.approx(2.0, rel=1e-4)
    common = {"heating": "rf-fast", "spokes": 20, "seed": 0, "matrix": 64, "baseline_frames": 4}
    with pytest.raises(SettingsError, match=r"does not rise within the 2 s of the heated frames"):
        heated_scan(image, heated_frames=4, curve=curve, **common)
    for both in ({}, {"peak_degc": 44.0, "curve": curve}):
        with pytest.raises(SettingsError, match="give one of them"):
            heated_scan(image, **common, **both)


def test_a_curve_makes_its_own_peak(tmp_path, caplog) -> None:
    (tmp_path / "curve.csv").write_text("time_s,temperature_degC\n0,37\n1,39\n60,49\n")
    options = SMALL | {"scenes": ("rf-fast",), "spokes": (40, 20), "names": ("gridding",)}
    with pytest.raises(SettingsError, match="exclude each other"):
        next(iter(rows(None, temperature=tmp_path / "curve.csv", peaks_degc=(44.0,), **options)))
    long, short = rows(None, temperature=tmp_path / "curve.csv", **options)
    # 4 frames of 40 and of 20 spokes, 25 ms each.
    assert long["peak_degC"] == pytest.approx(39.0 + 3.0 * 10 / 59, abs=1e-3)
    assert short["peak_degC"] == pytest.approx(39.0 + 1.0 * 10 / 59, abs=1e-3)
    assert "lasts 60 s, the heated frames of rf-fast with 40 spokes 4 s" in caplog.text
    assert "with 20 spokes 2 s" in caplog.text


def _stopped(row):
    yield row
    raise KeyboardInterrupt


def test_command_writes_table_figure_and_record(tmp_path, monkeypatch) -> None:
    app = typer.Typer()
    app.command()(command)
    arguments = [
        "--scenes", "rf", "--peaks", "37,46", "--spokes", "40", "--methods", "gridding", "--seeds", "2",
        "--matrix", "64", "--coils", "3", "--frames", "4", "-o", str(tmp_path), "--json", str(tmp_path / "thermo.json"),
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "thermo.json").read_text())
    jsonschema.validate(record, json.loads((files("sinotherm.schemas") / "evaluate_thermo.json").read_text()))
    cold, hot = record["results"]
    assert cold["false_heating_degC"] >= 0.0
    assert cold["dice43"] is None
    assert hot["false_heating_degC"] is None
    assert hot["n_frames"] == 8
    assert (tmp_path / "thermo.csv").is_file()
    assert (tmp_path / "thermo.png").stat().st_size > 1000
    again = [*arguments[:3], "46", *arguments[4:], "--append"]
    again[again.index("gridding")] = "view-sharing"
    assert CliRunner().invoke(app, again).exit_code == 0
    assert CliRunner().invoke(app, again).exit_code == 0
    merged = json.loads((tmp_path / "thermo.json").read_text())["results"]
    assert [row["method"] for row in merged] == ["gridding", "gridding", "view-sharing"]
    # Whoever stops a long run keeps the table of the rows that are ready.
    (tmp_path / "thermo.csv").unlink()
    monkeypatch.setattr("sinotherm.evaluation.thermo.rows", lambda *_, **__: _stopped(merged[0]))
    assert CliRunner().invoke(app, ["-o", str(tmp_path)]).exit_code != 0
    assert (tmp_path / "thermo.csv").read_text().count("gridding") == 1
    wrong = CliRunner().invoke(app, ["--peaks", "hot"])
    assert isinstance(wrong.exception, SettingsError)


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "name one"), ("[]", "no record"), ('{"results": [{"spokes": 3}]}', "other figures")]
)
def test_what_cannot_be_added_to(tmp_path, text, reason) -> None:
    app = typer.Typer()
    app.command()(command)
    arguments = [
        "--scenes", "rf", "--peaks", "37", "--spokes", "40", "--methods", "gridding", "--seeds", "1", "--matrix", "48",
        "--coils", "2", "--frames", "3", "--baseline-frames", "3", "--append",
    ]  # fmt: skip
    if text is not None:
        (tmp_path / "old.json").write_text(text)
        arguments += ["--json", str(tmp_path / "old.json")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SettingsError)
    assert reason in str(result.exception)


def test_images_and_complex_baselines_as_objects(tmp_path) -> None:
    with h5py.File(tmp_path / "magnitude.h5", "w") as store:
        store["person1/slices"] = (100 * _disc(80))[None]
        store["person2/slices"] = (100 * _disc(80))[None]
    with h5py.File(tmp_path / "complex.h5", "w") as store:
        store["person2"] = (_disc(80) * np.exp(0.3j)).astype(np.complex64)[:, :70]
    (tmp_path / "curve.csv").write_text("time_s,temperature_degC\n0,37\n1,37\n4,41\n")
    options = {"scenes": ("rf",), "peaks_degc": (44.0,), "spokes": (40,), "names": ("gridding",), **SMALL}
    (magnitude,) = rows(tmp_path / "magnitude.h5", **options)
    assert magnitude["split"] == "all"
    assert magnitude["n_frames"] == 2 * 4
    (one,) = rows(tmp_path / "magnitude.h5", people=1, **options)
    assert one["n_frames"] == 4
    del options["peaks_degc"]
    (complex_,) = rows(tmp_path / "complex.h5", temperature=tmp_path / "curve.csv", **options)
    assert complex_["dataset"] == "complex"
