import shutil

import numpy as np
import pytest

from sinotherm.bench import operators

ROW = {
    "direction",
    "coils",
    "spokes",
    "candidate",
    "time_ms",
    "ratio_to_sinotherm",
    "error_to_direct_sum",
    "floor_ms",
    "note",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_BUDGET_S", 0.0)
    monkeypatch.setattr(operators, "_machine_rates", lambda: (1e11, 1e10))


def measured(*candidates: str, **sizes) -> dict[tuple[str, str], dict]:
    table = operators.rows(coils=(2,), spokes=(6,), matrix=32, candidates=("sinotherm", *candidates))
    assert all(set(row) == ROW for row in table)
    return {(row["candidate"], row["direction"]): row for row in table}


def test_ours_and_finufft_are_within_the_stated_error() -> None:
    found = measured("sinotherm back-projection", "finufft tuned", "finufft tuned, eps 1e-3")
    for name in ("sinotherm", "sinotherm back-projection", "finufft tuned"):
        assert found[name, "adjoint"]["error_to_direct_sum"] < 5e-4
    assert found["sinotherm", "forward"]["error_to_direct_sum"] < 5e-4
    assert found["sinotherm", "adjoint"]["ratio_to_sinotherm"] == 1.0
    assert ("sinotherm back-projection", "forward") not in found
    assert found["sinotherm", "adjoint"]["floor_ms"] > 0.0
    assert found["sinotherm", "forward"]["floor_ms"] is None


@pytest.mark.parametrize(
    ("name", "package", "bound"),
    [("torchkbnufft", "torchkbnufft", 2e-3), ("sigpy", "sigpy", 2e-2), ("mri-nufft", "mrinufft", 1e-4)],
)
def test_peers_do_the_same_transform(name: str, package: str, bound: float) -> None:
    pytest.importorskip(package)
    found = measured(name)
    for way in ("adjoint", "forward"):
        assert found[name, way]["error_to_direct_sum"] < bound
        assert found[name, way]["time_ms"] > 0.0


def test_skimage_interpolates_linearly() -> None:
    assert measured("skimage")["skimage", "adjoint"]["error_to_direct_sum"] < 0.4


@pytest.mark.skipif(shutil.which("bart") is None, reason="bart is not on PATH")
def test_bart_does_the_same_transform() -> None:
    found = measured("bart")
    for way in ("adjoint", "forward"):
        assert found["bart", way]["error_to_direct_sum"] < 3e-2


def test_peers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators.shutil, "which", lambda name: None)
    row = measured("bart")["bart", "adjoint"]
    assert row["time_ms"] is None
    assert "apt-get install bart" in row["note"]


def test_the_floor_counts_multiplications_and_bytes() -> None:
    # 4 taps × 2 operations × 16 channels per pixel and spoke, and the image there and back.
    expected = 32 * 32 * 6 * 4 * 2 * 16 / 1e11 + 2 * 32 * 32 * 8 * 8 / 1e10
    assert operators.kernel_floor_ms(8, 6, 32) == pytest.approx(1e3 * expected)


def test_machine_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rates = operators._machine_rates()
    assert all(np.isfinite(rate) and rate > 1e8 for rate in rates)
