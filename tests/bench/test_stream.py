import logging
import math

import numpy as np
import pytest

from sinotherm.bench import stream
from sinotherm.bench.scan import MATRIX, bench_scan
from sinotherm.bench.stream import CHAINS, figures
from sinotherm.errors import SettingsError, WireError
from sinotherm.operators.backprojection import BackProjector

FINUFFT = "gadgetron readers + finufft tuned"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_WARM_UP_S", 0.1)


def test_one_row_a_chain() -> None:
    found = figures(coils=(2,), spokes=(8,), frames=3, chains=(FINUFFT,))
    rows = found["results"]
    assert [row["chain"] for row in rows] == ["sinotherm", FINUFFT]
    assert rows[0]["ratio_to_sinotherm"] == 1.0
    for row in rows:
        assert (row["coils"], row["spokes"], row["network"]) == (2, 8, None)
        assert 0 < row["latency_p50_ms"] <= row["latency_p95_ms"]
        assert row["floor_ms"] == rows[0]["floor_ms"] > 0
    assert found["frames"] == 3
    assert found["repetition_time_ms"] == 3.0


def test_peers_make_the_same_picture_as_we_do() -> None:
    scan = bench_scan(coils=3, spokes=32, repetition_time_s=3e-3)
    run = stream._Run(scan=scan, frames=1, repetition_time_s=0.0, device="cpu", network=None)
    projector = BackProjector((MATRIX, MATRIX), 3, scan.sampling, centre="area")
    projector.add_batch(scan.data, scan.angles)
    ours = projector.coil_images(scale=math.pi / 32)
    finish = stream._finish(run)
    for make in (stream._tuned_finufft, stream._stock_torchkbnufft):
        theirs = make(run)(scan.data)
        assert np.linalg.norm(theirs - ours) < 5e-3 * np.linalg.norm(ours)
        magnitude = finish(scan.data, theirs)
        assert magnitude.dtype == np.float32
        np.testing.assert_allclose(magnitude, np.linalg.norm(theirs, axis=0), rtol=1e-5)


def test_a_loaded_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.31, 0.0, 0.0))
    assert stream._load() == 0.31
    assert "only ratios are worth reading" in caplog.text
    caplog.clear()
    monkeypatch.setattr("os.getloadavg", lambda: (0.3, 0.0, 0.0))
    with caplog.at_level(logging.WARNING):
        stream._load()
    assert caplog.text == ""


def test_unknown_chains_are_named() -> None:
    with pytest.raises(SettingsError, match="unknown chain 'bart'; known chains: sinotherm, "):
        figures(chains=("bart",))


def test_a_device_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sinotherm.bench.stream.bench_scan", None)
    with pytest.raises(SettingsError, match="no CUDA device"):
        figures(device="cuda")


def test_a_chain_that_loses_frames_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHAINS, "sinotherm", lambda run: [1e-3] * (run.frames - 1))
    with pytest.raises(WireError, match=r"sinotherm gave \d+ images of \d+ frames"):
        figures(coils=(1,), spokes=(8,), frames=2, chains=())


def test_the_same_network_runs_in_every_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, str]] = []

    class Network:
        def __init__(self, name: str, **options: str) -> None:
            made.append({"name": name, **options})

        def reconstruct(self, samples: np.ndarray, *_: object) -> tuple[np.ndarray, None]:
            return 1j * np.ones((MATRIX, MATRIX), np.complex64) * len(samples), None

    monkeypatch.setattr(stream, "RadialReconstructor", Network)
    scan = bench_scan(coils=2, spokes=8, repetition_time_s=3e-3)
    run = stream._Run(scan=scan, frames=1, repetition_time_s=0.0, device="cpu", network="pdunet-radial")
    finish = stream._finish(run)
    images = stream._tuned_finufft(run)(scan.data)
    for _ in range(2):
        np.testing.assert_array_equal(finish(scan.data, images), np.full((MATRIX, MATRIX), 2.0, np.float32))
    assert made == [
        {
            "name": "pdunet-radial",
            "device": "cpu",
            "precision": "float32",
            "runtime": "torch",
            "operators": "finufft",
        }
    ]
    configuration = stream._configuration(run, "openvino")
    for name, value in (
        ("pdunet.network", "pdunet-radial"),
        ("pdunet.runtime", "openvino"),
        ("pdunet.beside", "false"),
    ):
        assert f'<property name="{name}" value="{value}"/>' in configuration
