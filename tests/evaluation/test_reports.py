import json

import pytest

from sinotherm.evaluation.reports import report


def test_whoever_stops_an_evaluation_keeps_the_rows_that_are_ready(tmp_path):
    def results():
        yield {"dataset": "heads", "ssim_mean": 0.5}, []
        yield {"dataset": "pelves", "ssim_mean": 0.25}, []
        raise KeyboardInterrupt

    record = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        report(results(), "radial", again=None, output=None, json=record)
    assert [row["dataset"] for row in json.loads(record.read_text())["results"]] == ["heads", "pelves"]
