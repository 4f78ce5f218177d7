import json
from importlib.resources import files

import h5py
import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from sinotherm.cli.evaluate import app
from sinotherm.errors import DataError, SettingsError, WeightsError
from sinotherm.evaluation.ct import METHODS, evaluate, methods
from sinotherm.networks.paper import PaperArchitecture, PaperPrimalDual
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import save_network
from sinotherm.simulation.image_sets import attenuation
from untrained import card_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lungs")
    y, x = np.mgrid[:128, :128] - 64
    body = np.where((x / 50) ** 2 + (y / 35) ** 2 < 1, 40, -1000)
    body[(x - 15) ** 2 + y**2 < 200] = -850
    with h5py.File(folder / "lungs.h5", "w") as file:
        file["anna"] = np.stack([body, body[:, ::-1]]).astype(np.int16)
        file["bert"] = body.T.astype(np.int16)
    return folder


def test_more_views_are_better(data):
    (few, _), (many, _) = (next(iter(evaluate(data, sparsity=n, names=("fbp",)))) for n in (16, 2))
    assert (few["views"], many["views"]) == (23, 180)
    assert (few["n_people"], few["n_slices"]) == (2, 3)
    assert few["ssim_mean"] < many["ssim_mean"]
    assert few["nrmse_mean"] > 2 * many["nrmse_mean"]
    assert many["nrmse_mean"] < 0.1


def test_command_writes_a_record_that_fits_its_schema(data, tmp_path):
    record = tmp_path / "ct.json"
    arguments = ["ct", "--data", str(data), "--methods", "fbp", "-o", str(tmp_path), "--json", str(record)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    schema = json.loads(files("sinotherm").joinpath("schemas/evaluate_ct.json").read_text())
    jsonschema.validate(json.loads(record.read_text()), schema)
    assert "| fbp | 16 | 23 |" in (tmp_path / "ct.md").read_text()
    assert (tmp_path / "ct.png").stat().st_size > 5000


def test_only_hounsfield_units_are_ct(data, tmp_path, caplog):
    """A brain or a picture from 0 to 1 would get a score of nothing."""
    with h5py.File(tmp_path / "heads.h5", "w") as file:
        file["carl"] = np.random.default_rng(0).integers(0, 900, (2, 64, 64))
    with pytest.raises(DataError, match=r"Hounsfield units: air near -1000 .* carl carl \(\d+ to \d+\) is not"):
        next(iter(evaluate(tmp_path, names=("fbp",))))
    # Beside CT it is left out.
    (tmp_path / "lungs.h5").write_bytes((data / "lungs.h5").read_bytes())
    rows = [row for row, _ in evaluate(tmp_path, names=("fbp",))]
    assert [(row["dataset"], row["n_people"]) for row in rows] == [("lungs", 2)]
    assert "heads: 1 series are left out" in caplog.text


def test_slices_that_are_not_finite_or_empty_cost_only_themselves(data, tmp_path, caplog):
    with h5py.File(data / "lungs.h5") as file:
        images = file["anna"][()].astype(np.float32)
    images[0, 5, 5] = np.nan
    with h5py.File(tmp_path / "lungs.h5", "w") as file:
        file["anna"] = np.concatenate([images, np.full((1, 128, 128), -1000, dtype=np.float32)])
    ((row, scores),) = evaluate(tmp_path, names=("fbp",))
    assert (row["n_people"], row["n_slices"], scores[0][0].name) == (1, 1, "anna[1]")
    assert np.isfinite(row["ssim_mean"])
    assert "1 of 3 slices of anna hold values that are not finite" in caplog.text


def test_padding_below_air_is_air():
    image = np.full((64, 64), -1000.0)
    padded = image.copy()
    padded[:8] = -3024.0
    np.testing.assert_allclose(attenuation(padded, 32), attenuation(image, 32), atol=0.03)


def test_unknown_methods_and_missing_weights_are_named(monkeypatch, tmp_path):
    with pytest.raises(SettingsError, match="known: fbp"):
        methods(["astra"])
    monkeypatch.setattr("sinotherm.networks.weights.SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match=r"pdunet-ct\.safetensors does not exist"):
        methods(["pdunet-ct"])


def test_networks_start_from_the_filtered_back_projection(data, monkeypatch, tmp_path):
    monkeypatch.setattr("sinotherm.networks.weights.SHIPPED", tmp_path)
    ours = PrimalDual(Architecture(iterations=1, primal_features=(4, 8), dual_features=4, wrap="circular"))
    networks = {"pdunet-ct": ours, "pdunet-paper-ct": PaperPrimalDual(PaperArchitecture.pdunet())}
    for name, network in networks.items():
        save_network(network, tmp_path / f"{name}.safetensors", card_of(network, name=name, geometry="fan-beam"))
    rows = {row["method"]: row for row, _ in evaluate(data, sparsity=36, names=METHODS)}
    assert set(rows) == set(METHODS)
    for name in networks:
        assert rows[name]["nrmse_mean"] == pytest.approx(rows["fbp"]["nrmse_mean"], abs=1e-3)
