import math

import numpy as np
import pytest

from sinotherm.core.scan import NoReading
from sinotherm.thermometry.dose import DoseIntegrator
from sinotherm.thermometry.statistics import RegionStatistics

MASK = np.zeros((1, 10, 10), bool)
MASK[0, 2:7, 2:6] = True
SIGMA = np.full((1, 10, 10), 0.4, np.float32)


def _values() -> np.ndarray:
    values = np.full((1, 10, 10), 99.0, np.float32)
    values[MASK] = np.linspace(40.0, 44.0, 20)
    return values


def test_figures_of_a_region() -> None:
    values = _values()
    inside = values[MASK].astype(float)
    row = RegionStatistics("tumour", MASK, 0.01).row(values, SIGMA, absolute=True, dose=None, time_s=0.0)
    assert row["region"] == "tumour"
    assert row["quantity"] == "temperature"
    assert (row["n"], row["voxels"]) == (20, 20)
    for name, expected in {
        "min_degc": 40.0,
        "max_degc": 44.0,
        "mean_degc": inside.mean(),
        "sd_degc": inside.std(),
        "t10_degc": np.percentile(inside, 90),
        "t50_degc": np.median(inside),
        "t90_degc": np.percentile(inside, 10),
        "sigma_degc": 0.4,
        "voxels_above_41": (inside >= 41).sum(),
        "volume_above_43_ml": 0.01 * (inside >= 43).sum(),
    }.items():
        assert row[name] == pytest.approx(expected, abs=1e-5), name
    assert row["t90_degc"] < row["t50_degc"] < row["t10_degc"]
    assert "cem43_t50_min" not in row


def test_voxels_without_reading_do_not_count() -> None:
    values = _values()
    values[0, 2] = np.nan
    row = RegionStatistics("tumour", MASK, math.nan).row(values, SIGMA, absolute=True, dose=None, time_s=0.0)
    assert (row["n"], row["voxels"]) == (16, 20)
    assert row["min_degc"] == pytest.approx(values[MASK][4])
    assert "volume_above_41_ml" not in row
    empty = RegionStatistics("tumour", MASK, 0.01).row(
        np.full_like(values, np.nan), SIGMA, absolute=True, dose=np.full_like(values, np.nan), time_s=0.0
    )
    assert set(empty) == {"region", "quantity", "n", "voxels"}


@pytest.mark.parametrize(("gone", "why"), [(1, None), (2, "1 noise, 2 wrap")])
def test_readings_lost_are_named_and_make_the_dose_a_lower_bound(gone: int, why: str | None) -> None:
    region = RegionStatistics("tumour", MASK, 0.01)
    region.begin_dose(DoseIntegrator(np.full((1, 10, 10), 43.0), 0.0, max_gap_frames=9))
    values, lost = _values(), np.zeros((1, 10, 10), np.uint16)
    lost[0, 0] = NoReading.DRIFT
    lost[0, 2, 2 : 2 + gone] = NoReading.WRAP
    lost[0, 2, 2] |= NoReading.NOISE
    values[lost != 0] = np.nan
    row = region.row(values, SIGMA, lost, absolute=True, dose=None, time_s=60.0)
    assert row["n"] == 20 - gone
    assert row.get("lost") == why
    for later in (row, region.row(_values(), SIGMA, absolute=True, dose=None, time_s=120.0)):
        assert later["cem43_lower_bound"] is bool(why)
    nothing = region.row(np.full_like(values, np.nan), SIGMA, lost, absolute=True, dose=None, time_s=180.0)
    assert "lost" not in nothing


def test_change_has_no_isotherms() -> None:
    row = RegionStatistics("tumour", MASK, 0.01).row(_values() - 37, SIGMA, absolute=False, dose=None, time_s=0.0)
    assert row["quantity"] == "temperature_change"
    assert "voxels_above_41" not in row


def test_dose_of_the_curves_and_of_the_voxels() -> None:
    region = RegionStatistics("tumour", MASK, 0.01)
    region.begin_dose(DoseIntegrator(np.full((1, 10, 10), 43.0), 0.0, max_gap_frames=0))
    values = np.full((1, 10, 10), 43.0, np.float32)
    dose = np.full((1, 10, 10), np.nan, np.float32)
    dose[0, 2:4, 2:4] = [[1.0, 2.0], [3.0, 10.0]]
    row = region.row(values, SIGMA, absolute=True, dose=dose, time_s=120.0)
    assert row["cem43_t50_min"] == pytest.approx(2.0)
    assert row["cem43_t90_min"] == pytest.approx(2.0)
    assert row["cem43_lower_bound"] is False
    assert (row["cem43_median_min"], row["cem43_max_min"]) == (2.5, 10.0)
    row = region.row(np.full_like(values, np.nan), SIGMA, absolute=True, dose=dose, time_s=180.0)
    assert row["cem43_lower_bound"] is True


def test_a_region_that_is_drawn_late_goes_on_from_its_voxels() -> None:
    start, values = np.full((1, 10, 10), 37.0), np.full((1, 10, 10), 43.0, np.float32)
    voxels = DoseIntegrator(start, 0.0, max_gap_frames=0)
    rows = []
    early, late = RegionStatistics("early", MASK, 0.01), RegionStatistics("late", MASK, 0.01)
    for time_s in (300.0, 360.0, 420.0):
        for region in (early, late) if time_s > 300.0 else (early,):
            if not region.has_dose:
                region.begin_dose(voxels)
        voxels.update(values, time_s)
        rows = [region.row(values, SIGMA, absolute=True, dose=None, time_s=time_s) for region in (early, late)]
    assert rows[0]["cem43_t50_min"] > 2.0
    for row in rows:
        assert row["cem43_t50_min"] == row["cem43_t90_min"] == pytest.approx(rows[0]["cem43_t50_min"])
        assert row["cem43_lower_bound"] is False
