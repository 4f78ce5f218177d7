import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from sinotherm.cli.train import command
from sinotherm.errors import DataError, FileFormatError, SettingsError, WeightsError
from sinotherm.networks.weights import SHIPPED, ModelCard, load_network, save_network
from sinotherm.training import packaging
from sinotherm.training.loop import (
    CONFIGS,
    Configuration,
    Trainer,
    build_network,
    build_simulator,
    load_images,
    own_device,
    train,
    validation_scores,
)
from sinotherm.training.losses import complex_l1, image_loss, phase_loss, structural_similarity
from sinotherm.training.packaging import package_run, valid_range

CONFIG = """
name = "tiny"
steps = 6
decay = 2
warmup = 2
batch = 2
checkpoint = 2
validate = 4
reduced = false

[data]
heads = 1.0

[architecture]
iterations = 2
primal_features = [4, 8]
dual_features = 4
memory = 2

[simulation]
sizes = [32]
size_weights = [1.0]
spokes = [8, 12]
coils = [1, 2]
coil_weights = [0.5, 0.5]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[:40, :40] - 20
    body = ((x / 16) ** 2 + (y / 12) ** 2 < 1) * (500 + 200 * np.cos(x / 2))
    (folder / "heads").mkdir()
    with h5py.File(folder / "heads" / "heads.h5", "w") as file:
        for person in ("anna", "bert"):
            file[f"{person}/t1"] = np.stack([body, body[::-1], np.zeros_like(body)]).astype(np.uint16)
    (folder / "splits.json").write_text(json.dumps({"heads": {"train": ["anna"], "val": ["bert"]}}))
    return folder


@pytest.fixture
def small(monkeypatch):
    """Validation on small scans."""
    kinds = {"real": {"spokes": (8, 8), "paper": 0.0, "coils": (2,), "coil_weights": (1.0,)}}
    monkeypatch.setattr("sinotherm.training.loop.validation_kinds", lambda _: kinds)


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(CONFIG)
    return file


def _state(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("reduced", ["true", "false"])
def test_blocks_train_in_bfloat16_only_where_it_is_computed(data, config, tmp_path, monkeypatch, able, reduced):
    monkeypatch.setattr("sinotherm.training.loop.has_bfloat16", lambda device: able)
    config.write_text(CONFIG.replace("reduced = false", f"reduced = {reduced}"))
    trainer = Trainer(Configuration.read(config), tmp_path / "run", data)
    assert trainer.model.reduced is (torch.bfloat16 if able and reduced == "true" else None)


def test_a_resumed_run_ends_in_the_same_numbers(data, config, tmp_path, small):
    configuration = Configuration.read(config)
    whole = Trainer(configuration, tmp_path / "a" / "run", data)
    whole.run()
    first = Trainer(configuration, tmp_path / "b" / "run", data)
    first.run(until=2)
    second = Trainer(configuration, tmp_path / "b" / "run", data)
    second.resume()
    assert second.step == 2
    second.run()
    for (name, a), b in zip(_state(whole).items(), _state(second).values(), strict=True):
        assert torch.equal(a, b), name
    for name, value in whole.average.items():
        assert torch.equal(value, second.average[name]), name
    with (tmp_path / "a" / "run" / "metrics.csv").open() as table:
        assert [row["step"] for row in csv.DictReader(table)] == ["2", "4", "6"]
    with (tmp_path / "a" / "run" / "validation.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["step"] for row in rows] == ["4", "6"]
    assert 0 < float(rows[0]["real_ssim"]) < 1
    assert len(list((tmp_path / "a" / "run").glob("step_*.png"))) == 2


@pytest.mark.parametrize("left", [b"", b"4,0.1,0.2\r\n", b"4,0.1,0.2\r\n1"])
def test_rows_beyond_the_checkpoint_are_written_once(data, config, tmp_path, small, left):
    """A run may be killed between its row and its checkpoint, or within the row."""
    run = tmp_path / "run"
    Trainer(Configuration.read(config), run, data).run(until=2)
    with (run / "metrics.csv").open("ab") as table:
        table.write(left)
    (run / "validation.csv").write_bytes(b"step,cpu_hours\r\n4,0.1\r\n")
    again = Trainer(Configuration.read(config), run, data)
    again.resume()
    again.run()
    for name, steps in (("metrics.csv", ["2", "4", "6"]), ("validation.csv", ["4", "6"])):
        with (run / name).open() as table:
            rows = list(csv.DictReader(table))
        assert [row["step"] for row in rows] == steps
        assert all(None not in row and None not in row.values() for row in rows)
    # Without a checkpoint the run starts anew.
    (run / "last.pt").unlink()
    Trainer(Configuration.read(config), run, data).run(until=2)
    with (run / "metrics.csv").open() as table:
        assert [row["step"] for row in csv.DictReader(table)] == ["2"]


def test_every_seed_and_step_draws_scans_of_its_own(data, config, tmp_path, small):
    """All that is random in them, on a CPU too."""
    drawn = []
    for seed in (1, 2, 2**32 - 1):
        trainer = Trainer(Configuration.read(config, seed=seed), tmp_path / str(seed), data)
        scan = trainer.simulator.sample

        def noted(random, scan=scan):
            twin = torch.Generator()
            twin.set_state(random.get_state())
            drawn.append(tuple(torch.randn(5, generator=twin).tolist()))
            return scan(random)

        trainer.simulator.sample = noted
        trainer.run(until=2)
    assert len(set(drawn)) == len(drawn) == 6


def test_half_written_images_are_never_read(data, config, tmp_path, small, monkeypatch):
    def torn(file, **arrays):
        file.write_bytes(b"PK")
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(np, "savez", torn)
        with pytest.raises(KeyboardInterrupt):
            Trainer(Configuration.read(config), tmp_path / "first", data).run()
    Trainer(Configuration.read(config), tmp_path / "second", data).run()


def _heads(folder, pixels):
    (folder / "heads").mkdir(parents=True)
    with h5py.File(folder / "heads" / "heads.h5", "w") as file:
        for person in ("anna", "bert"):
            file[f"{person}/t1"] = pixels[None]
    (folder / "splits.json").write_text(json.dumps({"heads": {"train": ["anna"], "val": ["bert"]}}))
    return folder


def _round(scale=1.0):
    y, x = np.mgrid[:32, :32] - 16
    return ((x**2 + y**2 < 144) * (1.0 + 0.5 * np.cos(scale * x))).astype(np.float32)


def test_other_images_are_never_taken_for_those_that_were_prepared(config, tmp_path, small):
    configuration = Configuration.read(config)
    one, other = _heads(tmp_path / "one", _round()), _heads(tmp_path / "other", _round(0.3))
    runs = tmp_path / "runs"
    first = Trainer(configuration, runs / "a", one).simulator.images
    assert not torch.equal(Trainer(configuration, runs / "b", other).simulator.images, first)
    assert torch.equal(Trainer(configuration, runs / "c", one).simulator.images, first)
    assert len(list(runs.glob("images_train_*"))) == 2
    with h5py.File(one / "heads" / "heads.h5", "a") as file:
        file["anna/t1"][:] = _round(0.3)
    os.utime(one / "heads" / "heads.h5", (1, 1))
    assert not torch.equal(Trainer(configuration, runs / "d", one).simulator.images, first)
    (one / "splits.json").write_text(json.dumps({"heads": {"train": ["bert"], "val": ["anna"]}}))
    assert torch.equal(Trainer(configuration, runs / "e", one).simulator.images, first)
    with pytest.raises(DataError, match="does not exist"):
        Trainer(configuration, runs / "f", tmp_path / "nowhere").run()


def test_a_changed_file_deep_inside_a_set_is_seen(config, tmp_path, small):
    """As a person's folders hold it (``SET/PERSON/anat/t1.h5``); a file of no set changes nothing."""
    folder = _heads(tmp_path / "data", _round())
    (folder / "heads" / "heads.h5").unlink()
    for person, scale in (("anna", 1.0), ("bert", 0.3)):
        (folder / "heads" / person / "anat").mkdir(parents=True)
        with h5py.File(folder / "heads" / person / "anat" / "t1.h5", "w") as file:
            file["t1"] = _round(scale)
    configuration, runs, changed = Configuration.read(config), tmp_path / "runs", folder / "heads" / "anna" / "anat"
    first = Trainer(configuration, runs / "a", folder).simulator.images
    (folder / "notes.md").write_text("none of the set's")
    assert torch.equal(Trainer(configuration, runs / "b", folder).simulator.images, first)
    assert len(list(runs.glob("images_train_*"))) == 1
    with h5py.File(changed / "t1.h5", "w") as file:
        file["t1"] = _round(0.3)
    os.utime(changed / "t1.h5", (1, 1))
    assert not torch.equal(Trainer(configuration, runs / "c", folder).simulator.images, first)
    (changed / "t2.h5").symlink_to(tmp_path / "absent")
    with pytest.raises(FileFormatError, match=r"t2\.h5 is not a readable HDF5 file"):
        Trainer(configuration, runs / "d", folder).run()


def test_images_that_cannot_be_learnt_from_are_refused(config, tmp_path):
    torn = _round()
    torn[5, 5] = np.nan
    with pytest.raises(DataError, match=r"of the sets haeds in .* sets there: heads"):
        load_images(_heads(tmp_path / "named", _round()), {"haeds": 1.0}, "train")
    with pytest.raises(DataError, match=r"no images of split train in .* of the sets heads"):
        load_images(_heads(tmp_path / "torn", torn), {"heads": 1.0}, "train")
    whole = _heads(tmp_path / "whole", _round())
    with pytest.raises(DataError, match="of the sets haeds"):
        load_images(whole, {"heads": 0.5, "haeds": 0.5}, "train")


def test_masks_are_no_images_and_the_range_of_integers_is_no_bound(tmp_path, caplog):
    folder = _heads(tmp_path, _round())
    image = np.where(_round() > 0, 32767, 0).astype(np.int16)
    image[0, 0] = -20
    with h5py.File(folder / "heads" / "heads.h5", "w") as file:
        file["anna/t1"], file["anna/scan/mask"], file["masks/anna"] = image, image, image
    images, _ = load_images(folder, {"heads": 1.0}, "train")
    assert len(images) == 1
    assert "masks, labels and phases are left out: anna/scan/mask" in caplog.text


def test_images_of_another_kind_are_refused(config, tmp_path, small):
    """Hounsfield units of a set of any name are for fan beams only, and magnitudes for all else."""
    lungs, heads = _heads(tmp_path / "lungs", 1000 * _round() - 1000), _heads(tmp_path / "heads", _round())
    (attenuation,), _ = load_images(lungs, {"heads": 1.0}, "train", geometry="fan-beam")
    # 500 HU; water is 1, and full scale 2.
    assert attenuation[128, 128] * (2 / 65535) == pytest.approx(1.5, abs=0.02)
    with pytest.raises(DataError, match=r"anna t1 of heads .* radial scans are made of magnitude images"):
        load_images(lungs, {"heads": 1.0}, "train")
    with pytest.raises(DataError, match=r"\(0 to 1\.5\) cannot be used: fan-beam scans are made of Hounsfield units"):
        load_images(heads, {"heads": 1.0}, "train", geometry="fan-beam")
    # What was prepared for one kind is none for the other.
    configuration = Configuration.read(config)
    assert len(Trainer(configuration, tmp_path / "runs" / "a", heads).simulator.images) == 1
    circular = {**configuration.architecture, "wrap": "circular"}
    other = dataclasses.replace(configuration, geometry="fan-beam", architecture=circular, simulation={})
    with pytest.raises(DataError, match="fan-beam scans"):
        Trainer(other, tmp_path / "runs" / "b", heads).run()


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(data, config, tmp_path, small, monkeypatch):
    trainer = Trainer(Configuration.read(config), tmp_path / "run", data)
    trainer.run(until=2)
    with monkeypatch.context() as broken:
        broken.setattr("sinotherm.training.loop.image_loss", lambda image, *_, **__: image.abs().sum() * math.nan)
        with pytest.raises(DataError, match="the loss is not finite at step 4"):
            trainer.run()
    again = Trainer(Configuration.read(config), tmp_path / "run", data)
    again.resume()
    assert again.step == 2
    with monkeypatch.context() as broken:
        broken.setattr("sinotherm.training.loop.validation_scores", lambda *_: {"ssim": math.nan})
        with pytest.raises(DataError, match="a score of the validation scans real is not finite at step 4"):
            again.run()
    again.resume()
    assert again.step == 2


def test_training_lowers_the_loss(data, config, tmp_path, small):
    configuration = Configuration.read(config, steps=60, decay=20, validate=1000, learning_rate=5e-3)
    trainer = Trainer(configuration, tmp_path / "run", data)
    before = validation_scores(trainer.model, trainer.scenes["real"])
    losses = []
    trainer.run(report=lambda _, loss: losses.append(loss))
    assert len(losses) == 60
    assert validation_scores(trainer.model, trainer.scenes["real"])["nrmse"] < 0.96 * before["nrmse"]


def test_command_trains_resumes_packages_and_starts_from_weights(data, config, tmp_path, small, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    app = typer.Typer()
    app.command()(command)
    runs = tmp_path / "runs"
    arguments = [str(config), "--data", str(data), "--runs", str(runs)]
    result = CliRunner().invoke(app, [*arguments, "--steps", "4", "--decay", "1"])
    assert result.exit_code == 0, result.output
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, SettingsError)
    assert CliRunner().invoke(app, [*arguments, "--resume", "--threads", "1"]).exit_code == 0
    packaged = CliRunner().invoke(app, [*arguments, "--package"])
    assert packaged.exit_code == 0, packaged.output
    _, card = load_network(runs / "tiny" / "tiny.safetensors")
    assert card.valid.spokes == (8, 12)
    assert card.valid.pixels == (32, 32)
    assert card.guard.spokes == (8, 9, 10, 12)
    assert all(0 < limit < 15 for limit in (*card.guard.held_out, *card.guard.spoke))
    assert 0 < card.metrics["real, by set"]["heads"]["ssim"] < 1
    assert card.training["steps_in_all"] == 6
    assert 0 < card.metrics["real_ssim"] < 1
    assert card.metrics.keys() == {"real, by set", *(f"real_{name}" for name in card.metrics["real, by set"]["heads"])}
    monkeypatch.setattr("sinotherm.training.packaging.calibrate_guard", stopped)
    (runs / "tiny" / "tiny.safetensors").rename(runs / "tiny.safetensors")
    before = {file.name for file in (runs / "tiny").iterdir()}
    assert CliRunner().invoke(app, [*arguments, "--package"]).exit_code != 0
    assert {file.name for file in (runs / "tiny").iterdir()} == before
    (runs / "tiny.safetensors").rename(runs / "tiny" / "tiny.safetensors")
    nowhere = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "nowhere"), "--package"])
    assert "no weights in" in str(nowhere.exception)
    elsewhere = [str(config), "--data", str(data), "--runs", str(tmp_path / "other")]
    weights = ["--init", str(runs / "tiny" / "tiny.safetensors"), "--steps", "2", "--decay", "1"]
    assert CliRunner().invoke(app, [*elsewhere, *weights]).exit_code == 0
    # What there is to begin with is looked at before images are prepared for minutes.
    unprepared = [str(config), "--data", str(data), "--runs", str(tmp_path / "unprepared")]
    for begin, reason in (("--resume",), "nothing to resume"), (("--init", "absent"), "absent"):
        result = CliRunner().invoke(app, [*unprepared, *begin])
        assert isinstance(result.exception, WeightsError)
        assert reason in str(result.exception)
    assert not list((tmp_path / "unprepared").glob("images_*"))
    both = CliRunner().invoke(app, [*elsewhere, *weights, "--resume"])
    assert isinstance(both.exception, SettingsError)


def test_weights_that_do_not_fit_are_refused(data, config, tmp_path, small):
    configuration = Configuration.read(config, steps=2, decay=1)
    Trainer(configuration, tmp_path / "run", data).run()
    path = package_run(configuration, tmp_path / "run")
    wide = Configuration.read(config, architecture={"iterations": 2, "primal_features": [8, 8]})
    with pytest.raises(WeightsError, match=r"do not fit tiny: they have .*primal_features = \[4, 8\], not \[8, 8\]\.$"):
        Trainer(wide, tmp_path / "wide", data).start_from(path)


def test_what_is_packaged_is_what_was_trained(data, config, tmp_path, small):
    Trainer(Configuration.read(config, steps=2, decay=1), tmp_path / "run", data).run()
    for changes in (
        {"architecture": {"iterations": 2, "primal_features": [8, 8]}},
        {"simulation": {"sizes": [32], "size_weights": [1.0]}},
        {"data": {"necks": 1.0}},
    ):
        with pytest.raises(SettingsError, match=f"{next(iter(changes))} was"):
            package_run(Configuration.read(config, **changes), tmp_path / "run")
    # How it was trained is the run's to say.
    path = package_run(Configuration.read(config, batch=7), tmp_path / "run")
    assert load_network(path)[1].training["batch"] == 2


def test_the_error_of_a_change_is_never_lost(data, config, tmp_path, small):
    config.write_text(CONFIG.replace("memory = 2", "memory = 2\nreference = true") + "heating = true\npaper = 0.0\n")
    configuration = Configuration.read(config, steps=2, decay=1)
    fresh = Trainer(configuration, tmp_path / "fresh", data)
    fresh.run()
    path = package_run(configuration, tmp_path / "fresh")
    card = load_network(path)[1]
    assert card.licence == "not stated"
    assert card.change_error == (1.0, 1.0)
    assert "not fitted" in card.notes[-1]
    save_network(load_network(path)[0], path, dataclasses.replace(card, change_error=(0.02, 0.9)))
    on = Trainer(configuration, tmp_path / "on", data)
    on.start_from(path)
    on.run(until=1)
    on.save()
    again = Trainer(configuration, tmp_path / "on", data)
    again.resume()
    again.run()
    card = load_network(package_run(configuration, tmp_path / "on"))[1]
    assert card.change_error == (0.02, 0.9)
    assert card.notes[-1] == "The error of a change is that of tiny, from which the training started."


def test_a_card_states_who_was_trained_on_not_who_a_set_of_this_name_has(data, config, tmp_path, small, monkeypatch):
    configuration = Configuration.read(config, steps=2, decay=1)
    Trainer(configuration, tmp_path / "run", data).run()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["people"] == {"heads": ["anna"]}

    def card(run="run"):
        return load_network(package_run(configuration, tmp_path / run))[1]

    assert card().data == {"heads": "not stated; people: 1"}
    known = hashlib.sha256(b"anna bert").hexdigest()[:12]
    monkeypatch.setitem(packaging.SETS, "heads", (known, "CC0: two heads"))
    assert (card().licence, card().data) == ("not stated", {"heads": "not stated; people: 1"})
    monkeypatch.setitem(packaging.SETS, "heads", (hashlib.sha256(b"anna").hexdigest()[:12], "CC0: one head"))
    assert (card().licence, card().data) == ("CC-BY-4.0", {"heads": "CC0: one head"})
    # Weights to start from have seen people of their own.
    path = tmp_path / "run" / "tiny.safetensors"
    for licence in ("CC-BY-4.0", "not stated"):
        save_network(load_network(path)[0], path, dataclasses.replace(card(), licence=licence))
        on = Trainer(configuration, tmp_path / licence, data)
        on.start_from(path)
        on.run()
        assert card(licence).licence == licence
    # A run of an earlier version kept nobody.
    (tmp_path / "run" / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "people"}))
    assert (card().licence, card().data) == ("not stated", {"heads": "not stated"})


def test_a_run_that_goes_on_elsewhere_has_seen_the_people_of_both(data, config, tmp_path, small):
    configuration = Configuration.read(config, checkpoint=1, validate=1)
    Trainer(configuration, tmp_path / "run", data).run(until=1)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    (other / "splits.json").write_text(json.dumps({"heads": {"train": ["bert"], "val": ["anna"]}}))
    again = Trainer(configuration, tmp_path / "run", other)
    again.resume()
    again.run(until=2)
    assert again.people == {"heads": ["anna", "bert"]}


def test_a_card_says_which_of_its_metrics_lie_outside_of_its_range(data, config, tmp_path, small):
    configuration = Configuration.read(config, steps=2, decay=1)
    Trainer(configuration, tmp_path / "run", data).run()
    note = load_network(package_run(configuration, tmp_path / "run"))[1].notes[1]
    assert "outside of the card's range" in note
    assert "real8 of 256 pixels, real8 of 8 coils, real8 of 32 spokes" in note
    assert "real1 of 1 coils" not in note


def test_weights_can_be_read_by_whom_the_other_files_can(data, config, tmp_path, small):
    Trainer(Configuration.read(config, steps=2, decay=1), tmp_path / "run", data).run()
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "run").iterdir()}
    assert len(modes) == 1


def test_a_run_that_is_over_says_so(data, config, tmp_path, small, caplog):
    train(Configuration.read(config, steps=2, decay=1), tmp_path / "run", data)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()}
    for steps in (1, 2):
        caplog.clear()
        train(Configuration.read(config, steps=steps, decay=1), tmp_path / "run", tmp_path / "nowhere", resume=True)
        assert f"the run is at step 2 already, of {steps} in all" in caplog.text
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()} == before


def test_a_card_claims_no_more_than_was_trained(data, config, tmp_path, small):
    Trainer(Configuration.read(config, steps=2, decay=1), tmp_path / "run", data).run()
    narrow = Configuration.read(config, valid={"spokes": [9, 12]})
    assert load_network(package_run(narrow, tmp_path / "run"))[1].valid.spokes == (9, 12)
    with pytest.raises(SettingsError, match="claims coils 1 to 8 and trains 1 to 2"):
        package_run(Configuration.read(config, valid={"coils": [1, 8]}), tmp_path / "run")
    with pytest.raises(SettingsError, match="may claim spokes, coils and pixels"):
        Configuration.read(config, valid={"snr": [1, 2]})


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.json")), ids=lambda file: file.stem)
def test_shipped_cards_state_what_their_configurations_train(file):
    card = ModelCard.parse(file.read_text())
    assert valid_range(Configuration.read(file.stem)) == card.valid
    assert card.as_json() == file.read_text()
    assert card.as_markdown() == file.with_suffix(".md").read_text()
    assert any("docs/" in note for note in card.notes)


def test_nothing_to_resume_or_package_is_an_error(data, config, tmp_path, small):
    configuration = Configuration.read(config)
    with pytest.raises(WeightsError, match="nothing to resume"):
        Trainer(configuration, tmp_path / "run", data).resume()
    with pytest.raises(WeightsError, match="no weights"):
        package_run(configuration, tmp_path / "run")


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.toml")))
def test_shipped_configurations_build(name):
    configuration = Configuration.read(name)
    assert configuration.name == name
    network = build_network(configuration)
    assert network.n_parameters * 2 < 8_000_000
    build_simulator(configuration, np.ones((1, 8, 8)), np.ones(1))


def test_wrong_configurations_are_refused(config, tmp_path):
    with pytest.raises(SettingsError, match=r"shipped ones: .*pdunet-radial"):
        Configuration.read("nothing")
    config.write_text(CONFIG.replace("batch", "batches"))
    with pytest.raises(SettingsError, match="unknown settings"):
        Configuration.read(config)
    config.write_text(CONFIG.replace("decay = 2", ""))
    with pytest.raises(SettingsError, match="decay"):
        Configuration.read(config)
    settings = {"architecture": {"deep": 1}, "simulation": {"far": 1}}
    configuration = Configuration(name="a", data={"heads": 1.0}, steps=1, decay=1, **settings)
    with pytest.raises(SettingsError, match="deep"):
        build_network(configuration)
    with pytest.raises(SettingsError, match="far"):
        build_simulator(configuration, np.ones((1, 8, 8)), np.ones(1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 6", 'steps = 6\ngeometry = "spherical"', r"geometry = 'spherical'; it must be one of 'radial', "),
        ("steps = 6", "steps = 6\nnetwork = 'paper'\ngeometry = 'cartesian'", "radial and fan-beam data only"),
        ("steps = 6", "steps = 'many'", "steps = 'many'; it must be int"),
        ("steps = 6", "steps = 6.5", r"steps = 6\.5; it must be int"),
        ("steps = 6", "steps = ", "not a TOML file"),
        ("decay = 2", "decay = 7", "decay = 7 is more than steps = 6"),
        ("decay = 2", "decay = -1", "decay = -1; it must be at least 0"),
        ("checkpoint = 2", "checkpoint = 0", "checkpoint = 0; it must be at least 1"),
        ("steps = 6", "steps = 6\nseed = -1", "seed = -1; it must be at least 0"),
        ("steps = 6", "steps = 6\nseed = 4294967296", "it must be at most 4294967295"),
        ("steps = 6", "steps = 6\nlearning_rate = -1.0", "learning_rate = -1; it must be above 0"),
        ("steps = 6", "steps = 6\naverage = 2.0", r"average = 2\.0; it must be at most 1"),
        ("steps = 6", "steps = 6\nweight_decay = -1.0", r"weight_decay = -1\.0; it must be at least 0"),
        ('"tiny"', '"a/tiny"', "name = 'a/tiny'; it must be the name of a folder"),
        ('"tiny"', '".."', r"name = '\.\.'; it must be"),
        ("heads = 1.0", "", r"\[data\] is empty; name a set"),
        ("steps = 6", "steps = 6\nvalid = {spokes = [64, 21]}", "the lowest of each must be no more than the highest"),
        ("heads = 1.0", "heads = 0.0", "every share must be above 0"),
        ("heads = 1.0", "heads = 'all'", r"data = .*; it must be dict\[str, float\]"),
        ("memory = 2", 'wrap = "mirorr"', "wrap = 'mirorr'; it must be one of 'mirror', 'circular', 'none'"),
        ("memory = 2", 'wrap = "circular"', "wrap = 'circular' of a network for radial data: give 'mirror'"),
        (
            "batch = 2",
            'batch = 2\ngeometry = "fan-beam"',
            "wrap = 'mirror' of a network for fan-beam data: give 'circular'",
        ),
        (
            "batch = 2",
            'batch = 2\ngeometry = "cartesian"',
            "wrap = 'mirror' of a network for cartesian data: give 'none'",
        ),
        ("memory = 2", "memory = true", "memory = True; it must be int"),
        ("memory = 2", "reference = true", "go together"),
        ("memory = 2", "memory = -1", "memory = -1; it must be at least 0"),
        ("memory = 2", "start = -1", "start = -1; it must be at least 0"),
        ("memory = 2", "context = 2", "context = 2; every geometry's measurement has 1 channel"),
        ("memory = 2", "dual_layers = 1", "dual_layers = 1; it must be at least 2"),
        ("memory = 2", "closing = [[6.0, 0.0]]", r"closing = \(\(6\.0, 0\.0\),\); it needs a reference"),
        ("[4, 8]", "[]", r"primal_features = \(\); there must be some"),
        ("[4, 8]", "[4, 0]", "each at least 1"),
        ("[4, 8]", "4", r"primal_features = 4; it must be tuple\[int, \.\.\.\]"),
        ("[8, 12]", "[8]", r"spokes = \[8\]; it must be tuple\[int, int\]"),
        ("[8, 12]", "[12, 8]", r"spokes = \(12, 8\); the lowest"),
        ("[0.5, 0.5]", "[0.5, 0.3, 0.2]", r"coils = \(1, 2\) with coil_weights = \(0\.5, 0\.3, 0\.2\)"),
        ("size_weights = [1.0]", "size_weights = [-1.0]", "needs a weight"),
        ("[32]", "[4]", r"sizes = \(4,\) with .*: each must be at least 8"),
        ("[8, 12]", "[8, 12]\nsnr = [0.0, 0.0]", r"snr = \(0\.0, 0\.0\); the lowest must be at least 1"),
        ("[8, 12]", "[8, 12]\nsnr = [60.0, 15.0]", "and the highest no less"),
        ("[8, 12]", "[8, 12]\npaper = 2.0", "paper = 2; it is a fraction, from 0 to 1"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_read(config, old, new, message):
    assert old in CONFIG
    config.write_text(CONFIG.replace(old, new))
    with pytest.raises(SettingsError, match=message):
        Configuration.read(config)


@pytest.mark.parametrize(
    ("geometry", "setting", "message"),
    [
        ("fan-beam", "sparsity = [0]", r"sparsity = \(0,\); there must be some, each from 1 to 360"),
        ("fan-beam", "sparsity = []", "there must be some"),
        ("cartesian", "acceleration = [0.5, 2.0]", r"acceleration = \(0\.5, 2\.0\); the lowest must be at least 1"),
        ("cartesian", "acceleration = [4.0, 200.0]", "acceleration 200 leaves 1 of 256 lines"),
        ("cartesian", "snr = [-10.0, -5.0]", r"snr = \(-10\.0, -5\.0\)"),
        ("cartesian", "coils = [0, 4]", r"coils = \(0, 4\)"),
    ],
)
def test_a_wrong_setting_of_the_other_geometries_is_refused(config, geometry, setting, message):
    wrap = "circular" if geometry == "fan-beam" else "none"
    text = CONFIG[: CONFIG.index("[simulation]")].replace("memory = 2", f'wrap = "{wrap}"')
    config.write_text(f'geometry = "{geometry}"\n{text}[simulation]\n{setting}\n')
    with pytest.raises(SettingsError, match=message):
        Configuration.read(config)


def test_a_run_goes_on_with_its_own_settings_only(data, config, tmp_path, small):
    Trainer(Configuration.read(config), tmp_path / "run", data).run(until=2)
    for changes, message in (
        ({"batch": 1}, "batch was 2 and is 1"),
        ({"seed": 2}, "seed was 1 and is 2"),
        ({"learning_rate": 2e-3}, r"learning_rate was 0\.001 and is 0\.002"),
        ({"architecture": {"iterations": 2, "primal_features": [4]}}, "architecture was"),
    ):
        with pytest.raises(SettingsError, match=message):
            Trainer(Configuration.read(config, **changes), tmp_path / "run", data).resume()
    longer = Configuration.read(config, steps=8, decay=3, minutes=1, validate=2, checkpoint=1)
    free = Trainer(longer, tmp_path / "run", data)
    free.resume()
    assert free.step == 2
    # One of an older version that did not know the seed.
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del state["configuration"]["seed"]
    torch.save(state, tmp_path / "run" / "last.pt")
    Trainer(Configuration.read(config, seed=2), tmp_path / "run", data).resume()


@pytest.mark.parametrize(
    "damaged",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: np.random.default_rng(0).bytes(3000),
        lambda whole: _pickled({"state_dict": {}}),
        lambda whole: _pickled([1, 2]),
    ],
    ids=["empty", "truncated", "random", "foreign", "list"],
)
def test_a_checkpoint_that_cannot_be_read_is_named(data, config, tmp_path, small, damaged):
    Trainer(Configuration.read(config), tmp_path / "run", data).run(until=2)
    file = tmp_path / "run" / "last.pt"
    file.write_bytes(damaged(file.read_bytes()))
    with pytest.raises(WeightsError, match=r"last\.pt is no checkpoint that can be read .*another --runs folder"):
        Trainer(Configuration.read(config), tmp_path / "run", data).resume()


def _pickled(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_the_learning_rate_rises_stays_and_falls():
    configuration = Configuration(name="a", data={"b": 1.0}, steps=100, decay=40, warmup=10, learning_rate=1.0)
    assert configuration.rate(0) == pytest.approx(0.1)
    assert configuration.rate(9) == configuration.rate(60) == 1.0
    assert configuration.rate(80) == pytest.approx(0.5)
    assert configuration.rate(100) == pytest.approx(0.0)


def test_similarity_equals_scikit_image():
    from skimage.metrics import structural_similarity as oracle

    random = np.random.default_rng(0)
    truth = random.random((20, 24))
    image = truth + 0.1 * random.standard_normal((20, 24))
    _, expected = oracle(image, truth, win_size=7, data_range=truth.max(), full=True)
    found = structural_similarity(torch.from_numpy(image)[None], torch.from_numpy(truth)[None])[0]
    np.testing.assert_allclose(found, expected[3:-3, 3:-3], atol=1e-9)


def test_losses_vanish_for_the_truth_and_follow_their_definitions():
    random = torch.Generator().manual_seed(0)
    target = torch.view_as_complex(torch.randn((2, 24, 24, 2), generator=random)) + 3
    assert float(image_loss(target, target, phase_weight=1.0)) < 1e-3
    image = target * np.exp(0.01j)
    assert float(phase_loss(image, target)) == pytest.approx(0.01, rel=0.02)
    # The modulus has no part in it: neither a wrong one costs anything, nor does a darker image gain.
    assert float(phase_loss(0.6 * target, target)) < 1e-3
    assert float(phase_loss(0.6 * image, target)) == pytest.approx(0.01, rel=0.02)
    half = torch.ones((2, 24, 24))
    half[:, :12] = 3.0
    wrong = torch.where(half > 1, image, target)
    # Only the part that counts three times is wrong, by 0.01 rad.
    assert float(phase_loss(wrong, target, half)) == pytest.approx(0.75 * 0.01, rel=0.1)
    assert float(complex_l1(image, target)) == pytest.approx(float((image - target).abs().mean()), rel=0.02)
    assert float(image_loss(image, target, ssim_weight=0)) == pytest.approx(float(complex_l1(image, target)))


def _two_processes(data, config, tmp_path, before="", **changes):
    """Train in two processes; return (losses, weights) of each."""
    script = f"""
import os, time, torch
from pathlib import Path
from types import SimpleNamespace
import sinotherm.training.loop as loop
loop.validation_kinds = lambda _: {{"real": {{"spokes": (8, 8), "paper": 0.0}}}}
run = Path({str(tmp_path)!r}) / f"rank{{os.environ['RANK']}}" / "run"
trainer = loop.Trainer(loop.Configuration.read({str(config)!r}, **{changes!r}), run, Path({str(data)!r}))
losses = []
{before}
trainer.run(report=lambda _, loss: losses.append(loss))
torch.save((losses, trainer.model.state_dict()), run / "end.pt")
torch.distributed.destroy_process_group()
"""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(number), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **port, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(tmp_path / f"rank{rank}" / "run" / "end.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_several_processes_share_gradients(data, config, tmp_path):
    """Two processes draw different scans and end with the same weights."""
    (losses, first), (other, second) = _two_processes(data, config, tmp_path, steps=3, decay=1)
    assert losses != other
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name)


@pytest.mark.slow
def test_several_processes_end_together_by_the_first_ones_clock(data, config, tmp_path):
    clocks = """
readings = iter(range(1000))
loop.time = SimpleNamespace(
    monotonic=lambda: next(readings) * (1.0 + 2.0 * trainer.rank), process_time=time.process_time
)
"""
    (losses, first), (other, second) = _two_processes(data, config, tmp_path, clocks, minutes=6 / 60)
    # Six ticks of the first; the other's clock goes three times as fast.
    assert len(losses) == len(other) == 5
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name)


def test_every_process_takes_a_gpu_of_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert own_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("cuda") == torch.device("cuda", 1)
    assert taken == [torch.device("cuda", 1)]
    assert own_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SettingsError, match="one process a GPU"):
        own_device("cuda")


def test_a_gpu_that_is_not_there_is_told(monkeypatch, tmp_path, config):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="finds no CUDA device"):
        Trainer(config, tmp_path / "run", tmp_path, "cuda")
    assert own_device("auto") == torch.device("cpu")
