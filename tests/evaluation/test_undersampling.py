import shutil

import numpy as np
import pytest

from direct_radial import dense_sense, ellipse_image, unit_maps
from sinotherm.errors import SettingsError
from sinotherm.evaluation import undersampling
from sinotherm.evaluation.undersampling import compare, radial_samples

N = 48


def images():
    return (unit_maps(4, N) * ellipse_image(N) * np.exp(0.3j)).astype(np.complex64)


@pytest.fixture
def few(monkeypatch):
    """One setting a method: the table is under test, not the tuning."""
    short = {
        name: (method, strengths[1:2] or strengths, iterations[1:2] or iterations)
        for name, (method, strengths, iterations) in undersampling.METHODS.items()
    }
    monkeypatch.setattr(undersampling, "METHODS", short)
    monkeypatch.setattr(undersampling, "_REPEATS", 1)


def test_samples_are_the_direct_sum():
    samples = radial_samples(images(), 5)
    ones = np.ones((1, N, N), np.complex64)
    matrix = dense_sense(samples.angles, samples.sampling, ones)
    expected = np.stack([matrix @ coil.ravel() for coil in images()]).reshape(4, 5, -1)
    np.testing.assert_allclose(samples.data, expected, atol=1e-4 * np.abs(expected).max())


def test_rows_of_our_methods(few):
    rows = {row["method"]: row for row in compare(images(), 14, ("gridding", "cg_sense", "cg_sense tv"))}
    assert rows["cg_sense tv"]["nrmse"] < rows["cg_sense"]["nrmse"] < rows["gridding"]["nrmse"]
    assert rows["cg_sense"]["ssim"] > rows["gridding"]["ssim"]
    assert all(row["seconds"] > 0 and row["spokes"] == 14 for row in rows.values())


def test_setting_of_least_error_is_taken(monkeypatch):
    monkeypatch.setattr(undersampling, "_REPEATS", 1)
    true = images()

    def method(samples, strength, iterations):
        return samples.reference + strength

    monkeypatch.setattr(undersampling, "METHODS", {"fake": (method, (1.0, 0.1, 5.0), (1,))})
    (row,) = compare(true, 3, ("fake",))
    assert row["strength"] == 0.1


def test_peers_see_the_same_samples(few):
    pytest.importorskip("sigpy")
    names = ("cg_sense", "sigpy l2") + (("bart pics l2",) if shutil.which("bart") else ())
    rows = [row["nrmse"] for row in compare(images(), 24, names)]
    assert max(rows) < 0.15


def test_missing_methods_are_errors(few, monkeypatch):
    with pytest.raises(SettingsError, match="unknown method 'magic'"):
        list(compare(images(), 3, ("magic",)))
    monkeypatch.setattr(undersampling.shutil, "which", lambda name: None)
    with pytest.raises(SettingsError, match="bart is not on the PATH"):
        list(compare(images(), 3, ("bart pics l2",)))
