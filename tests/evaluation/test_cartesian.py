import json
from importlib.resources import files

import h5py
import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from sinotherm.cli.evaluate import app
from sinotherm.errors import SettingsError, WeightsError
from sinotherm.evaluation.cartesian import METHODS, evaluate, methods
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import save_network
from untrained import card_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    y, x = np.mgrid[:64, :64] - 32
    body = ((x / 26) ** 2 + (y / 20) ** 2 < 1) * (600 + 300 * np.cos(x / 3) * np.sin(y / 4))
    with h5py.File(folder / "heads.h5", "w") as file:
        file["anna"] = np.stack([body, body[:, ::-1]]).astype(np.uint16)
        file["bert"] = body.T.astype(np.uint16)
    return folder


def test_coils_unfold_what_zero_filling_leaves(data):
    rows = {row["method"]: row for row, _ in evaluate(data, acceleration=3.0, snr=200.0, names=METHODS[:2])}
    assert (rows["cg-sense"]["n_people"], rows["cg-sense"]["n_slices"]) == (2, 3)
    assert rows["cg-sense"]["nrmse_mean"] < 0.5 * rows["zero-filled"]["nrmse_mean"]
    assert rows["cg-sense"]["ssim_mean"] > rows["zero-filled"]["ssim_mean"] + 0.05


def test_a_network_that_corrects_nothing_is_data_consistency(data, monkeypatch, tmp_path):
    monkeypatch.setattr("sinotherm.networks.weights.SHIPPED", tmp_path)
    network = PrimalDual(Architecture(iterations=4, primal_features=(4, 8), dual_features=4, wrap="none"))
    card = card_of(network, name="fourier-pdunet", geometry="cartesian")
    save_network(network, tmp_path / "fourier-pdunet.safetensors", card)
    rows = {row["method"]: row for row, _ in evaluate(data, acceleration=3.0, snr=200.0, per_person=1)}
    assert rows["cg-sense"]["nrmse_mean"] < rows["fourier-pdunet"]["nrmse_mean"] < rows["zero-filled"]["nrmse_mean"]


def test_command_writes_a_record_that_fits_its_schema(data, tmp_path):
    record = tmp_path / "cartesian.json"
    arguments = [
        "--data",
        str(data),
        "--methods",
        "zero-filled",
        "-o",
        str(tmp_path),
        "--json",
        str(record),
    ]
    result = CliRunner().invoke(app, ["cartesian", *arguments])
    assert result.exit_code == 0, result.output
    schema = json.loads(files("sinotherm").joinpath("schemas/evaluate_cartesian.json").read_text())
    jsonschema.validate(json.loads(record.read_text()), schema)
    assert "| all | zero-filled | 10.0000 | 8 | 30.0000 | 2 | 3 |" in (tmp_path / "cartesian.md").read_text()
    assert (tmp_path / "cartesian.png").stat().st_size > 5000


def test_unknown_methods_and_missing_weights_are_named(monkeypatch, tmp_path):
    with pytest.raises(SettingsError, match="known: zero-filled"):
        methods(["grappa"])
    monkeypatch.setattr("sinotherm.networks.weights.SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match=r"fourier-pdunet\.safetensors does not exist"):
        methods(["fourier-pdunet"])
