"""A simulated heated scan through the whole chain with a reference-guided network, gridding beside it."""

import numpy as np
import pytest
import torch

from sinotherm.core.scan import NoReading
from sinotherm.evaluation.demonstration import point_spread
from sinotherm.frames.header import scan_header
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import GuardLimits, ValidRange, save_network
from sinotherm.pipelines.compose import load_pipeline, parse_assignments
from sinotherm.simulation.mrd import simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan
from sinotherm.wire.file import MrdFile
from untrained import card_of

BASELINE, FRAMES, N = 4, 10, 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A guided network that corrects nothing: steps of data consistency from the reference."""
    torch.manual_seed(0)
    network = PrimalDual(Architecture(iterations=4, primal_features=(4, 8), dual_features=4, memory=2, reference=True))
    torch.nn.init.ones_(network.step)
    card = card_of(
        network,
        valid=ValidRange(spokes=(16, 128), coils=(1, 12), pixels=(32, 256), snr=(1.0, 1e9)),
        guard=GuardLimits(spokes=(16, 128), held_out=(0.9, 0.9), spoke=(0.9, 0.9)),
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_network(network, path, card)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    protocol = Protocol(
        matrix=N, n_coils=4, spokes=60, frames=FRAMES, baseline_frames=BASELINE, cooling_frames=0, schedule="golden",
        snr=100.0, peak_degc=8.0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    made = Scan(protocol=protocol)
    simulate(made, path)
    return path, made


def _series(path, weights, *settings):
    values = parse_assignments(
        [
            "reconstruction.method=pdunet", f"pdunet.network={weights}", "publish.endpoint=",
            "thermometry.phase_sign=1", f"thermometry.baseline_frames={BASELINE}",
            "thermometry.body_temperature_degc=37", "compression.method=off", *settings,
        ]
    )  # fmt: skip
    pipeline = load_pipeline("radial_thermometry").with_values(values)
    series = {}
    with MrdFile(path) as file:
        for item in pipeline.run(scan_header(file.header_xml), iter(file.items())):
            if hasattr(item, "image_series_index"):
                series.setdefault(item.image_series_index, []).append(item)
    return series


def _text(image, name):
    return image.meta["sinotherm_" + name]


def test_network_and_gridding_have_maps_in_series_of_their_own(scan, weights) -> None:
    path, made = scan
    series = _series(path, weights)
    assert sorted(series) == [1, 3, 4, 5, 6, 11, 13, 14, 15, 16]
    for number, images in series.items():
        assert [int(_text(image, "frame")) for image in images] == list(range(FRAMES))
        assert {_text(image, "method") for image in images} == {"gridding" if number > 10 else "pdunet"}
    # Each is measured against its own baseline.
    names = {number: _text(series[number][-1], "baseline") for number in (3, 13)}
    assert names[3] != names[13]
    water, fat = made.signal()
    still = point_spread(water + fat)
    truth = (point_spread(water * np.nan_to_num(made.temperature_change(FRAMES - 1))) / np.where(
        np.abs(still) > 0.05 * np.abs(still).max(), still, 1.0
    )).real  # fmt: skip
    inside = made.anatomy.tumour
    for number in (3, 13):
        change = series[number][-1].data[0, 0] - 37.0
        assert np.isfinite(change[inside]).all()
        assert (change - truth)[inside].mean() == pytest.approx(0.0, abs=0.25)


def test_a_trip_of_the_guard_is_in_the_validity_of_the_networks_maps(scan, weights) -> None:
    path, _ = scan
    series = _series(path, weights, "frames.spokes=140", "frames.by=count")
    n_frames = len(series[1])
    assert n_frames == FRAMES * 60 // 140
    assert [len(images) for images in series.values()] == [n_frames] * len(series)
    for valid, temperature in zip(series[6], series[3], strict=True):
        assert (valid.data == int(NoReading.GUARD)).all()
        assert np.isnan(temperature.data).all()
        assert "spokes 140 outside" in _text(valid, "guard")
    assert {_text(image, "in_place_of") for image in series[1]} == {"pdunet"}
