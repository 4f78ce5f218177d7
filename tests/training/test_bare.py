"""Training on a machine with the standard library, torch, numpy and safetensors alone."""

import csv
import json

import h5py
import numpy as np
import pytest
import torch

from bare_machine import run_bare
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import save_network
from sinotherm.simulation.image_sets import read_series
from sinotherm.training import __main__, loop
from sinotherm.training.loop import load_images
from untrained import card_of

CONFIG = """
name = "tiny"
steps = 2
decay = 1
warmup = 1
batch = 2
checkpoint = 1
validate = 2
reduced = false
average = 0.5

[data]
heads = 1.0

[architecture]
iterations = 2
primal_features = [4, 8]
dual_features = 4
memory = 2
start = 1

[simulation]
paper = 0.0
sizes = [32]
size_weights = [1.0]
spokes = [8, 12]
coils = [2]
coil_weights = [1.0]
"""
SMALL_SCANS = {"real": {"spokes": (8, 8), "coils": (2,), "coil_weights": (1.0,)}}
TRAIN = f"""
from sinotherm.training import __main__, loop

loop.validation_kinds = lambda _: {SMALL_SCANS!r}
__main__.main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same set as HDF5 and, made of it as the docs say, as NumPy files."""
    folder = tmp_path_factory.mktemp("data")
    full, bare = folder / "full", folder / "bare"
    y, x = np.mgrid[:40, :40] - 20
    body = ((x / 16) ** 2 + (y / 12) ** 2 < 1) * (500 + 200 * np.cos(x / 2))
    (full / "heads").mkdir(parents=True)
    with h5py.File(full / "heads" / "heads.h5", "w") as file:
        for person in ("anna", "bert"):
            file[f"{person}/t1"] = np.stack([body, body[::-1], np.zeros_like(body)]).astype(np.uint16)
    splits = json.dumps({"heads": {"train": ["anna"], "val": ["bert"]}})
    (full / "splits.json").write_text(splits)
    for series in read_series(full):
        place = bare / series.dataset / series.person
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / series.name.replace("/", "_"), series.images)
    (bare / "splits.json").write_text(splits)
    return full, bare


@pytest.fixture
def given(data, tmp_path):
    (tmp_path / "tiny.toml").write_text(CONFIG)
    return [tmp_path / "tiny.toml", "--data", data[1]]


def _losses(run):
    with (run / "metrics.csv").open() as table:
        return [float(row["loss"]) for row in csv.DictReader(table)]


def test_numpy_files_are_the_images_that_they_were_made_of(data):
    full, bare = (load_images(folder, {"heads": 1.0}, "train", 32) for folder in data)
    assert len(full[0]) == 2
    for one, other in zip(full, bare, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_run_starts_and_goes_on_as_with_everything(given, data, tmp_path, monkeypatch, capsys):
    """The NUFFT is another one, so the last digits may differ."""
    first = run_bare(TRAIN, *given, "--threads", 1, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    more = ["--resume", "--steps", "4", "--device", "auto"]
    second = run_bare(TRAIN, *given, *more, folder=tmp_path)
    assert second.returncode == 0, second.stderr
    assert torch.load(tmp_path / "runs" / "tiny" / "last.pt", weights_only=True)["step"] == 4

    monkeypatch.setattr(loop, "validation_kinds", lambda _: SMALL_SCANS)
    here = ["--data", str(data[0]), "--runs", str(tmp_path / "here")]
    __main__.main([str(given[0]), *here])
    with pytest.raises(SystemExit, match="1"):
        __main__.main([str(given[0]), *here])
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert refusal.startswith("python -m sinotherm.training: error: ")
    assert "holds a run already" in refusal
    __main__.main([str(given[0]), *here, *more])
    found = _losses(tmp_path / "runs" / "tiny")
    assert len(found) == 4
    np.testing.assert_allclose(found, _losses(tmp_path / "here" / "tiny"), rtol=2e-3)


@pytest.mark.slow
def test_a_run_starts_from_weights_whose_card_is_right(given, tmp_path):
    network = PrimalDual(Architecture(iterations=2, primal_features=(4, 8), dual_features=4, memory=2, start=1))
    save_network(network, tmp_path / "given.safetensors", card_of(network, name="given", change_error=(0.5, 0.25)))
    init = ["--init", tmp_path / "given.safetensors"]
    started = run_bare(TRAIN, *given, *init, folder=tmp_path)
    assert started.returncode == 0, started.stderr
    kept = torch.load(tmp_path / "runs" / "tiny" / "last.pt", weights_only=True)["origin"]
    assert kept == {"weights": "given", "change_error": [0.5, 0.25], "licence": "not stated"}
    values = json.loads((tmp_path / "given.json").read_text())
    (tmp_path / "given.json").write_text(json.dumps(values | {"change_error": [-0.5, 0.25]}))
    refused = run_bare(TRAIN, *given, *init, "--runs", tmp_path / "other", folder=tmp_path)
    assert refused.returncode == 1
    assert "given.json: not a model card: change_error.0 = -0.5: at least 0 is needed." in refused.stderr


def test_no_threads_are_an_error(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["pdunet-radial", "--threads", "0"])
    assert "--threads 0: it must be at least 1" in capsys.readouterr().err
