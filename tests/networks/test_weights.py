import hashlib
import json
import re
import socket

import pytest
import torch
from safetensors.torch import save

from bare_machine import run_bare
from sinotherm.errors import WeightsError
from sinotherm.networks.paper import PaperArchitecture, PaperPrimalDual
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import SHIPPED, GuardLimits, ModelCard, ValidRange, load_network, save_network

SMALL = Architecture(iterations=2, primal_features=(4, 8), dual_features=4, memory=2)


def _save(folder, network=None, name="tiny", **changes):
    network = network or PrimalDual(SMALL)
    family = "primal-dual" if isinstance(network, PrimalDual) else "paper"
    card = ModelCard(
        name=name,
        network=family,
        geometry="radial",
        sha256="",
        architecture=network.architecture.as_dict(),
        valid=ValidRange(spokes=(21, 128)),
        guard=GuardLimits(spokes=(21, 128), held_out=(0.3, 0.2), spoke=(0.5, 0.4)),
        data={"sets": ["a", "b"]},
        training={"hours": 1.5},
        metrics={"ssim": 0.9, "32 spokes": {"heads fbp": {"ssim": 0.7, "nrmse": 0.2}}},
        notes=("trained on simulated scans",),
        **changes,
    )
    path = folder / f"{name}.safetensors"
    return path, save_network(network, path, card), network


@pytest.mark.parametrize("network", [PrimalDual(SMALL), PaperPrimalDual(PaperArchitecture.pd())])
def test_weights_return_in_half_precision_with_their_card(tmp_path, network):
    path, card, network = _save(tmp_path, network)
    loaded, found = load_network(path)
    assert found == ModelCard.parse(card.as_json())
    assert not loaded.training
    for (name, value), other in zip(network.state_dict().items(), loaded.state_dict().values(), strict=True):
        torch.testing.assert_close(value.half().float(), other, msg=name)


def test_the_card_is_readable(tmp_path):
    path, card, _ = _save(tmp_path)
    text = path.with_suffix(".md").read_text()
    assert card.sha256 in text
    assert "| spokes | 21, 128 |" in text
    assert "trained on simulated scans" in text
    assert "### 32 spokes\n\n| | ssim | nrmse |\n|---|---|---|\n| heads fbp | 0.7 | 0.2 |" in text


def test_the_card_of_the_default_network_names_the_real_frames_beyond_its_range():
    card = ModelCard.parse((SHIPPED / "pdunet-radial.json").read_text(encoding="utf-8"))
    assert (SHIPPED / "pdunet-radial.md").read_text(encoding="utf-8") == card.as_markdown()
    assert any("288" in note and "docs/reconstruction.md#real-frames-of-30-spokes" in note for note in card.notes)


def test_an_altered_file_is_refused(tmp_path):
    path, _, _ = _save(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="altered"):
        load_network(path)


def test_missing_file_card_and_name_are_named(tmp_path):
    path, _, _ = _save(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"tiny\.json does not exist"):
        load_network(path)
    with pytest.raises(WeightsError, match=r"nothing\.safetensors does not exist"):
        load_network("nothing")


MISFITS = [
    ({"network": "other"}, "network = 'other'"),
    ({"geometry": "spherical"}, "geometry = 'spherical'"),
    ({"name": ["a"]}, "name"),
    ({"valid": {"spokes": [21]}}, r"valid\.spokes\.1"),
    ({"valid": {"spokes": ["a", "b"]}}, r"valid\.spokes\.0"),
    ({"valid": {"spokes": [128, 21]}}, r"valid\.spokes.*lowest comes first"),
    ({"valid": {"snr": [float("nan"), 1e9]}}, r"valid\.snr\.0"),
    ({"valid": {"slices": [1, 2]}}, r"valid\.slices"),
    ({"guard": {"spokes": [21, 32], "held_out": [0.1], "spoke": [0.1, 0.1]}}, "one limit of each kind"),
    ({"guard": {"spokes": [32, 21], "held_out": [0.1, 0.1], "spoke": [0.1, 0.1]}}, "must ascend"),
    ({"guard": {"spokes": [21], "held_out": ["x"], "spoke": [0.1]}}, r"guard\.held_out\.0"),
    ({"guard": {"spokes": [21], "held_out": [float("inf")], "spoke": [0.1]}}, r"guard\.held_out\.0"),
    ({"change_error": [-1, 0.9]}, r"change_error\.0 = -1"),
    ({"change_error": [0.02, float("nan")]}, r"change_error\.1 = nan"),
    ({"architecture": {"iterations": 3, "primal_features": [4, 8], "dual_features": 4}}, "do not fit"),
    ({"architecture": [1]}, "architecture"),
    ({"architecture": {"depth": 3}}, "depth"),
    ({"architecture": {"iterations": 0}}, "iterations = 0"),
    ({"architecture": {"start": "x"}}, "start = 'x'"),
    ({"architecture": {"primal": "foo"}}, "primal = 'foo'"),
    ({"architecture": {"wrap": "foo"}}, "wrap = 'foo'"),
    ({"architecture": {"primal_features": []}}, "primal_features"),
    ({"architecture": {"primal_features": [-4]}}, r"primal_features\.0 = -4"),
    ({"network": "paper", "architecture": {"n_dual": -1}}, "n_dual = -1"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_a_card_that_does_not_fit_is_refused(tmp_path, change, message):
    path, card, _ = _save(tmp_path)
    values = json.loads(card.as_json()) | change
    path.with_suffix(".json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=rf"tiny\.[\s\S]*{message}"):
        load_network(path)


def test_cards_are_checked_without_pydantic(tmp_path):
    """Shipped ones are read; what does not fit is refused, and its place is named."""
    path, card, _ = _save(tmp_path)
    texts = [json.dumps(json.loads(card.as_json()) | change) for change, _ in MISFITS]
    texts += ["", "[]", "{}", '{"name": ', json.dumps({"valid": {"spokes": 1}})]
    patterns = [message for _, message in MISFITS]
    patterns += ["not a model card"] * 2 + ["missing.*'name'.*'sha256'", "not a model card", r"valid\.spokes = 1"]
    (tmp_path / "texts").write_text(json.dumps(texts))
    found = run_bare(CHECK, path, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    refusals = json.loads(found.stdout)
    assert len(refusals) == len(texts)
    for pattern, refusal in zip(patterns, refusals, strict=True):
        assert re.search(pattern, refusal), (pattern, refusal)


CHECK = """
import json
from pathlib import Path

from sinotherm.errors import WeightsError
from sinotherm.networks.weights import SHIPPED, load_network

for file in SHIPPED.glob("*.safetensors"):
    load_network(file)
path, refusals = Path(sys.argv[1]), []
load_network(path)
for text in json.loads(Path("texts").read_text()):
    path.with_suffix(".json").write_text(text)
    try:
        load_network(path)
    except WeightsError as error:
        refusals.append(str(error))
assert "pydantic" not in sys.modules
print(json.dumps(refusals))
"""


@pytest.mark.parametrize("missing", ["valid", "guard", "sha256"])
def test_a_card_states_range_and_limits(missing):
    values = json.loads((SHIPPED / "pdunet-radial.json").read_text(encoding="utf-8"))
    del values[missing]
    with pytest.raises(WeightsError, match=f"{missing} = .*: Field required"):
        ModelCard.parse(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"valid": {}, "guard": {}}', b'{"name": "\xe9"}'])
def test_what_is_not_a_card_is_refused(text):
    with pytest.raises(WeightsError, match="not a model card"):
        ModelCard.parse(text)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    path, card, _ = _save(tmp_path)
    path.write_bytes(b"nonsense")
    values = json.loads(card.as_json()) | {"sha256": hashlib.sha256(b"nonsense").hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_network(path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path, card, network = _save(tmp_path)
    tensors = network.state_dict()
    tensors["step"][0] = float("nan")
    path.write_bytes(save(tensors))
    values = json.loads(card.as_json()) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"tiny\.safetensors: weight step is not finite"):
        load_network(path)


def test_diverged_and_oversized_weights_are_not_written(tmp_path):
    network = PrimalDual(SMALL)
    with torch.no_grad():
        network.step[0] = float("inf")
    with pytest.raises(WeightsError, match="not finite"):
        _save(tmp_path, network)
    with pytest.raises(WeightsError, match="exceed"):
        _save(tmp_path, PrimalDual(Architecture(primal_features=(32, 64, 128, 256))))


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.safetensors")), ids=lambda file: file.stem)
def test_shipped_weights_load_without_a_network_connection(file, monkeypatch):
    def refuse(*_):
        raise AssertionError("no connection is allowed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    network, card = load_network(file.stem)
    assert card.name == file.stem
    assert file.stat().st_size <= 8_000_000
    assert all(torch.isfinite(p).all() for p in network.parameters())
    if isinstance(network, PrimalDual):
        network.architecture.check_geometry(card.geometry)
