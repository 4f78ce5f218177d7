import csv
import json
import logging
import os
import warnings

import numpy as np
import pytest

from sinotherm.evaluation.images import EvaluationSlice
from sinotherm.evaluation.metrics import ImageScores
from sinotherm.evaluation.reports import report


def test_whoever_stops_an_evaluation_keeps_the_rows_that_are_ready(tmp_path):
    def results():
        yield {"dataset": "heads", "ssim_mean": 0.5}, []
        yield {"dataset": "pelves", "ssim_mean": 0.25}, []
        raise KeyboardInterrupt

    record = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        report(results(), "radial", again=None, output=tmp_path, json=record)
    assert [row["dataset"] for row in json.loads(record.read_text())["results"]] == ["heads", "pelves"]
    with (tmp_path / "radial.csv").open() as table:
        assert [row["dataset"] for row in csv.DictReader(table)] == ["heads", "pelves"]
    assert (tmp_path / "radial.md").read_text().count("| pelves |") == 1


def _result(dataset, person="anna"):
    score = ImageScores(ssim=0.5, ssim_whole=0.5, psnr=20.0, nrmse=0.1, phase_rmse_rad=0.1)
    one = EvaluationSlice(dataset=dataset, person=person, name="t1[0]", image=np.eye(8, dtype=np.float32))
    return {"dataset": dataset, "method": "fbp"}, [(one, score)]


def _again(_names):
    return lambda _row, image, _place: (image.astype(np.complex64), {"fbp": image.astype(np.complex64)})


def test_names_of_any_bytes_and_letters_are_printed_written_and_drawn(tmp_path, capsys):
    """Latin-1 on the disk, what looks like mathematics, and letters that the figures' font lacks."""
    names = [os.fsdecode(b"M\xfcller"), "a$_$b", "患者"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report([_result(name, name) for name in names], "radial", again=_again, output=tmp_path, json=None)
    assert (tmp_path / "radial.png").stat().st_size > 1000
    for text in (capsys.readouterr().out, *((tmp_path / f"radial.{kind}").read_text() for kind in ("csv", "md"))):
        assert all(name in text for name in ("M\\udcfcller", "a$_$b", "患者"))


def test_a_figure_of_many_sets_shows_the_first(tmp_path, caplog, monkeypatch):
    from matplotlib.image import imread

    monkeypatch.setattr("sinotherm.evaluation.reports._MOST_SETS", 1)
    caplog.set_level(logging.INFO)
    heights = []
    for number in (1, 2):
        results = [_result(f"set{index}") for index in range(number)]
        report(results, "radial", again=_again, output=tmp_path, json=None)
        heights.append(imread(tmp_path / "radial.png").shape[0])
    assert heights[0] == heights[1]
    (told,) = [text for text in caplog.messages if "shows" in text]
    assert told.endswith("radial.png shows the first 1 of 2 sets")
