import csv
import json
import math
from importlib.resources import files

import h5py
import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from operator_checks import direct_transform, relative_error
from sinotherm.cli.evaluate import app
from sinotherm.errors import SettingsError, WeightsError
from sinotherm.evaluation.metrics import body_mask, score
from sinotherm.evaluation.radial import METHODS, evaluate, methods, run, simulate_scan
from sinotherm.networks.paper import PaperArchitecture, PaperPrimalDual
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import save_network
from untrained import card_of


def _image(n=32):
    y, x = np.mgrid[:n, :n] - n // 2
    body = (x / (0.38 * n)) ** 2 + (y / (0.3 * n)) ** 2 < 1
    return (body * (0.7 + 0.3 * np.cos(x / 3.0) * np.sin(y / 4.0))).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    with h5py.File(folder / "people.h5", "w") as file:
        for name in ("anna", "bert"):
            file[f"{name}/t1"] = np.stack([_image(48) * (1 + i) for i in range(2)])
    return folder


def test_the_scan_is_the_fourier_transform_of_the_truth():
    scan = simulate_scan(_image(), setting="paper", coils=1, angles="golden", spokes=5)
    points = scan.sampling.positions[None, :, None] * np.stack([np.cos(scan.angles), np.sin(scan.angles)], -1)[:, None]
    expected = direct_transform(points.reshape(-1, 2), scan.truth).reshape(1, 5, -1)
    assert relative_error(scan.samples, expected) < 1e-5
    assert scan.noise_sd == 0
    assert not scan.truth.imag.any()


def test_the_snr_is_that_of_402_combined_spokes():
    scan = simulate_scan(_image(), setting="real", coils=4, angles="uniform", spokes=402, snr=20.0, seed=3)
    clean = simulate_scan(_image(), setting="real", coils=4, angles="uniform", spokes=402, snr=1e9, seed=3)
    np.testing.assert_allclose(np.sum(np.abs(scan.maps) ** 2, axis=0), 1, atol=1e-5)
    gridding = methods(["gridding"])["gridding"]
    noise = (gridding(scan) - gridding(clean)).real
    signal = np.median(np.abs(scan.truth)[body_mask(np.abs(scan.truth))])
    assert signal / noise.std() == pytest.approx(20, rel=0.1)
    assert np.angle(scan.truth[16, 8:24]).std() > 0.01


def test_a_mostly_dark_object_is_scanned_with_noise_too():
    y, x = np.mgrid[:64, :64] - 32
    distance = np.hypot(x, y)
    ring, disc = ((distance < 26) & (distance > 24)).astype(np.float32), (distance < 26).astype(np.float32)
    dark, bright = (
        simulate_scan(image, setting="real", coils=1, angles="uniform", spokes=8).noise_sd for image in (ring, disc)
    )
    assert dark == bright > 0


def test_linear_methods_restore_the_amplitude():
    scan = simulate_scan(_image(), setting="paper", coils=1, angles="uniform", spokes=100)
    for name, reconstruct in methods(["fbp", "gridding"]).items():
        image = reconstruct(scan)
        assert np.vdot(image, scan.truth).real / np.vdot(image, image).real == pytest.approx(1, abs=0.05), name


def test_more_total_variation_makes_smoother_images():
    scan = simulate_scan(_image(), setting="real", coils=1, angles="golden", spokes=20)
    weak, strong = (methods(["cg-sense-tv"], tv_strength=s)["cg-sense-tv"](scan) for s in (1e-4, 3e-2))
    assert np.abs(np.diff(strong)).sum() < 0.9 * np.abs(np.diff(weak)).sum()


def test_unknown_methods_and_missing_weights_are_named(monkeypatch, tmp_path):
    with pytest.raises(SettingsError, match="known: fbp"):
        methods(["bart"])
    monkeypatch.setattr("sinotherm.networks.weights.SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match=r"pdunet-paper\.safetensors does not exist"):
        methods(["pdunet-paper"])
    with pytest.raises(SettingsError, match="one coil"):
        simulate_scan(_image(), setting="paper", coils=8, angles="uniform", spokes=32)


def test_rows_are_means_over_people(data):
    rows = list(evaluate(data, names=("fbp",), coils=(1,), spokes=(16, 32)))
    assert [(row["spokes"], row["n_people"], row["n_slices"], row["split"]) for row, _ in rows] == [
        (16, 2, 4, "all"),
        (32, 2, 4, "all"),
    ]
    assert rows[0][0]["ssim_mean"] < rows[1][0]["ssim_mean"]
    row, scores = rows[0]
    assert row["nrmse_mean"] == pytest.approx(np.mean([value.nrmse for _, value in scores]))


def test_command_writes_table_figure_and_a_record_that_fits_its_schema(data, tmp_path):
    record = tmp_path / "radial.json"
    arguments = ["radial", "--data", str(data), "--methods", "fbp,gridding", "--setting", "real", "--coils", "2"]
    arguments += ["--spokes", "24", "--per-person", "1", "-o", str(tmp_path / "out"), "--json", str(record)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("| gridding |") == 1
    found = json.loads(record.read_text())
    schema = json.loads(files("sinotherm").joinpath("schemas/evaluate_radial.json").read_text())
    jsonschema.validate(found, schema)
    assert [row["method"] for row in found["results"]] == ["fbp", "gridding"]
    with (tmp_path / "out" / "radial.csv").open() as table:
        assert math.isclose(
            float(next(csv.DictReader(table))["ssim_mean"]), found["results"][0]["ssim_mean"], rel_tol=1e-9
        )
    assert (tmp_path / "out" / "radial.md").read_text().startswith("| dataset |")
    assert (tmp_path / "out" / "radial.png").stat().st_size > 5000


def test_the_figure_shows_each_set(data, tmp_path):
    from matplotlib.image import imread

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.h5").write_bytes((data / "people.h5").read_bytes())
    run(tmp_path, names=("fbp",), per_person=1, output=tmp_path / "out")
    run(tmp_path / "one", names=("fbp",), per_person=1, output=tmp_path / "single")
    both, single = (imread(tmp_path / name / "radial.png").shape for name in ("out", "single"))
    assert (both[0], both[1]) == (2 * single[0], single[1])


@pytest.mark.parametrize("arguments", [["--spokes", "a"], ["--setting", "other"], ["--angles", "random"]])
def test_wrong_options_are_refused(data, arguments):
    result = CliRunner().invoke(app, ["radial", "--data", str(data), "--methods", "fbp", *arguments])
    assert isinstance(result.exception, SettingsError)


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """Weights of every network method, as training starts from them."""
    monkeypatch.setattr("sinotherm.networks.weights.SHIPPED", tmp_path)
    small = {"iterations": 2, "primal_features": (4, 8), "dual_features": 4, "memory": 2}
    networks = {
        "pdunet-radial": PrimalDual(Architecture(**small)),
        "fourier-pdunet": PrimalDual(Architecture(**small, wrap="none")),
        "pd-paper": PaperPrimalDual(PaperArchitecture.pd()),
        "pdunet-paper": PaperPrimalDual(PaperArchitecture.pdunet()),
    }
    for name, network in networks.items():
        geometry = "cartesian" if name.startswith("fourier") else "radial"
        card = card_of(network, name=name, geometry=geometry)
        save_network(network, tmp_path / f"{name}.safetensors", card)


def test_every_method_reconstructs(untrained):
    scan = simulate_scan(_image(), setting="paper", coils=1, angles="uniform", spokes=24)
    found = {name: score(reconstruct(scan), scan.truth) for name, reconstruct in methods(METHODS).items()}
    assert set(found) == set(METHODS)
    # Untrained: ours is data consistency, PDUNet the filtered back-projection, PD nothing at all.
    assert found["pdunet"].nrmse < found["gridding"].nrmse
    assert found["pdunet-paper"].nrmse == pytest.approx(found["fbp"].nrmse, abs=0.02)
    assert found["pd-paper"].nrmse == pytest.approx(1)
    assert found["cg-sense-tv"].nrmse < found["fbp"].nrmse
    # A mask takes away error outside the body only.
    assert found["cg-sense-tv-masked"].nrmse < found["cg-sense-tv"].nrmse
    assert found["cg-sense-tv-masked"].ssim_whole > found["cg-sense-tv"].ssim_whole
    assert found["cg-sense-tv-masked"].ssim == pytest.approx(found["cg-sense-tv"].ssim, abs=0.02)
    assert found["fourier-pdunet"].nrmse < 0.3


def test_methods_that_cannot_do_a_case_are_left_out(untrained, data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("sinotherm.evaluation.radial.METHODS", ("fbp", "pdunet-paper", "fourier-pdunet"))
    rows = run(data, setting="real", coils=(1, 2), spokes=(24, 5), per_person=1, output=tmp_path / "out")
    assert [(row["coils"], row["spokes"], row["method"]) for row in rows] == [
        (1, 24, "fbp"),
        (1, 24, "pdunet-paper"),
        (1, 24, "fourier-pdunet"),
        (1, 5, "fbp"),
        (1, 5, "pdunet-paper"),
        (2, 24, "fbp"),
        (2, 24, "fourier-pdunet"),
        (2, 5, "fbp"),
    ]
    assert "pdunet-paper cannot do 2 coils and 24 spokes: it knows the real image of one coil only" in caplog.text
    assert (tmp_path / "out" / "radial.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("name", "coils", "spokes", "message"),
    [("pdunet-paper", 8, 24, "one coil only"), ("fourier-pdunet", 1, 5, "10 to 256 are needed")],
)
def test_a_named_method_that_cannot_do_a_case_is_an_error(untrained, data, name, coils, spokes, message):
    with pytest.raises(SettingsError, match=message):
        next(evaluate(data, setting="real", coils=(coils,), spokes=(spokes,), names=("fbp", name)))
