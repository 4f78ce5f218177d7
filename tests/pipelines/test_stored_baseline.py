"""A radial scan that was cut off in mid-scan and goes on with its stored baseline, through the whole chain."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sinotherm.core.scan import NoReading, TemperatureMap
from sinotherm.errors import BaselineError, SettingsError
from sinotherm.frames.header import scan_header
from sinotherm.frames.whitening import is_noise
from sinotherm.pipelines.compose import load_pipeline, parse_assignments
from sinotherm.simulation.mrd import simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan
from sinotherm.wire.file import MrdFile
from sinotherm.wire.messages import Readout

N, FRAMES, BASELINE, CUT = 48, 8, 3, 5
METHODS = ("fbp", "gridding", "cg_sense")
PROTOCOL = {
    "matrix": N, "n_coils": 10, "spokes": 40, "frames": FRAMES, "baseline_frames": BASELINE, "cooling_frames": 0,
    "snr": 60.0, "delay_x": 0.8, "delay_y": 0.5, "dummy_scans": 4, "noise_scans": 8,
}  # fmt: skip


def _simulated(folder: Path, **changes) -> Path:
    path = folder / "scan.h5"
    simulate(Scan(protocol=Protocol(**(PROTOCOL | changes))), path)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    return _simulated(tmp_path_factory.mktemp("scan"))


def _maps(
    path: Path, *settings: str, first: int = 0, last: int = FRAMES, lost: int = 0, noise: bool = True,
    streaky: int | None = None, **header: object,
) -> list[TemperatureMap]:  # fmt: skip
    """Return the maps, as they are after thermometry, of frames ``first`` to ``last`` less the spokes ``lost``.

    The coil ``streaky`` sees something bright beyond the field of view as well.
    """

    def beside(readout: Readout) -> Readout:
        if streaky is None:
            return readout
        data, k = readout.data.copy(), readout.trajectory
        far = np.exp(-2j * np.pi * (40 * k[:, 0] + 10 * k[:, 1]) - (k**2).sum(axis=1) / 0.3)
        data[streaky] += (10 * np.abs(data).max(axis=1).mean() * far).astype(np.complex64)
        return dataclasses.replace(readout, data=data)

    def part(items: Iterator[object]) -> Iterator[object]:
        missing = lost
        for item in items:
            if not isinstance(item, Readout):
                yield item
            elif is_noise(item.header):
                if noise:
                    yield item
            elif first <= item.header.idx.repetition < last:
                missing -= 1
                if missing < 0:
                    yield beside(item)

    values = parse_assignments(["publish.endpoint=", "thermometry.phase_sign=1", *settings])
    (chain,) = load_pipeline("radial_thermometry").with_values(values).chains
    # Its own maps, in float, before the last stage makes MRD images of them.
    bare = type(chain)(target=chain.target, stages=chain.stages[:-2], values=chain.values)
    with MrdFile(path) as file:
        text = file.header_xml.decode()
        for name, value in header.items():
            assert f"<{name}>" in text
            before, _, rest = text.partition(f"<{name}>")
            text = f"{before}<{name}>{value}{rest[rest.index(f'</{name}>') :]}"
        items = bare(scan_header(text), part(iter(file.items())))
        return [item for item in items if isinstance(item, TemperatureMap)]


def _settings(method: str, *more: str) -> list[str]:
    own = ["cg_sense.regularisation=tv", "cg_sense.iterations=4"] if method == "cg_sense" else []
    return [
        f"reconstruction.method={method}", f"thermometry.baseline_frames={BASELINE}",
        "thermometry.body_temperature_degc=37", *own, *more,
    ]  # fmt: skip


def _same_readings(whole: TemperatureMap, rest: TemperatureMap, *, atol: float = 2e-3) -> None:
    """Check the numbers, and that only streaks in the air, which nothing connects to the body, have lost theirs."""
    lost = whole.validity != rest.validity
    assert (rest.validity[lost] == NoReading.WRAP).all()
    assert lost.mean() < 0.1
    assert not lost[:, N // 4 : -N // 4, N // 4 : -N // 4].any()
    kept = np.where(lost, np.nan, whole.change_degc)
    np.testing.assert_allclose(kept, rest.change_degc, atol=atol)


def _stored(path: Path) -> list[str]:
    return ["thermometry.baseline_rule=stored", f"thermometry.baseline_file={path}"]


@pytest.fixture(scope="module")
def baselines(scan, tmp_path_factory) -> dict[str, Path]:
    """Baselines by method, stored by a scan that came no further than its fifth frame."""
    paths = {method: tmp_path_factory.mktemp("baseline") / f"{method}.h5" for method in METHODS}
    for method, path in paths.items():
        _maps(scan, *_settings(method, f"thermometry.baseline_save={path}"), last=CUT)
    return paths


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [True, False])
def test_the_rest_of_a_scan_reads_what_the_whole_scan_would(scan, baselines, method: str, noise: bool) -> None:
    """With gradient delay, coil compression, noise scan and coil maps all estimated, each from the scan's noise."""
    whole = _maps(scan, *_settings(method))[CUT:]
    rest = _maps(scan, *_settings(method), *_stored(baselines[method]), first=CUT, noise=noise)
    assert len(whole) == len(rest) == FRAMES - CUT
    for one, other in zip(whole, rest, strict=True):
        assert np.isfinite(one.change_degc).sum() > 300
        assert one.meta["gradient_delay_samples"] == other.meta["gradient_delay_samples"] != (0.0, 0.0, 0.0)
        assert one.meta["coil_compression_coils"] == other.meta["coil_compression_coils"] == (10, 8)
        assert one.meta["coil_maps"] == other.meta["coil_maps"]
        _same_readings(one, other)
        np.testing.assert_allclose(one.sigma_degc, other.sigma_degc, rtol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_rest_of_a_scan_leaves_the_same_coil_out(tmp_path, method: str) -> None:
    few = _simulated(tmp_path, n_coils=8)
    path = tmp_path / "baseline.h5"
    whole = _maps(few, *_settings(method, f"thermometry.baseline_save={path}"), streaky=3)[CUT:]
    rest = _maps(few, *_settings(method), *_stored(path), first=CUT, noise=False, streaky=3)
    assert len(whole) == len(rest) == FRAMES - CUT
    assert whole[0].meta["streak_prone_coils"] == (3,)
    for one, other in zip(whole, rest, strict=True):
        assert np.isfinite(one.change_degc).sum() > 300
        assert one.meta["coil_compression_coils"] == other.meta["coil_compression_coils"] == (8, 7)
        _same_readings(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_a_frame_of_which_the_beginning_was_lost_has_no_reading(scan, baselines, method: str) -> None:
    whole = _maps(scan, *_settings(method))[CUT:]
    rest = _maps(scan, *_settings(method), *_stored(baselines[method]), first=CUT, lost=17)
    assert len(rest) == len(whole)
    assert (rest[0].validity == int(NoReading.NO_BASELINE)).all()
    assert "spokes = 23 (baseline: 40)" in rest[0].meta["alarms"][0]
    for one, other in zip(whole[1:], rest[1:], strict=True):
        _same_readings(one, other, atol=0.02)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_stored_baseline as test
from sinotherm.thermometry.audit import AuditLog
finished = AuditLog.frame
def frame(self, found, statistics):
    finished(self, found, statistics)
    if found.number == test.CUT - 1:
        print("cut", flush=True)
        sys.stdin.read()
AuditLog.frame = frame
test._maps(Path({scan!r}), *{settings!r})
"""


def test_a_killed_process_goes_on_with_the_baseline_that_it_stored(scan, tmp_path) -> None:
    path, log = tmp_path / "baseline.h5", tmp_path / "log"
    settings = _settings(
        "fbp", f"thermometry.log={log}", "thermometry.log_maps=true", "thermometry.regions=a=circle:24,24,6"
    )
    save = f"thermometry.baseline_save={path}"
    script = KILLED.format(tests=os.path.dirname(__file__), scan=str(scan), settings=[*settings, save])  # noqa: PTH120
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        assert process.stdout.readline().strip() == "cut"
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {file: file.read_bytes() for file in (log / "maps").rglob("*.npz")}
    assert len(before) == CUT
    rest = _maps(scan, *settings, save, *_stored(path), first=CUT)
    assert all(np.isfinite(one.change_degc).any() for one in rest)
    assert {file: file.read_bytes() for file in before} == before
    assert len(list((log / "maps").rglob("*.npz"))) == FRAMES
    lines = [json.loads(line) for line in (log / "audit.jsonl").read_text().splitlines()]
    runs = list(dict.fromkeys(line["run"] for line in lines))
    assert [next(line["record"] for line in lines if line["run"] == run) for run in runs] == ["scan", "scan"]
    assert len(runs) == len({row.rpartition(",")[2] for row in (log / "regions.csv").read_text().splitlines()[1:]}) == 2


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("fbp", {"H1resonanceFrequency_Hz": 63_000_000}, "larmor_hz = 63000000"),
        ("fbp", {"TE": 12.0}, r"echo_time_s = 0\.012"),
        ("gridding", {}, r"method = gridding .*\(baseline: fbp"),
        ("cg_sense", {}, r"method = cg_sense .*\(baseline: fbp"),
    ],
)
def test_another_protocol_is_refused(scan, baselines, method: str, changes: dict, reason: str) -> None:
    settings = [*_settings(method), *_stored(baselines["fbp"])]
    with pytest.raises(BaselineError, match=reason):
        _maps(scan, *settings, first=CUT, **changes)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("fbp.filter=hann", r"method = fbp hann"),
        ("fbp.combine=none", r"method = fbp ramp equal exact none"),
        ("delay.mode=off", "estimated = coil_compression noise_products"),
        ("whitening.mode=off", "estimated = coil_compression gradient_delay "),
        ("compression.method=off", "coils = 10 |coil maps: 8 x 48 x 48, of this scan: 10 x 48 x 48"),
    ],
)
def test_another_way_to_the_image_is_refused(scan, baselines, setting: str, reason: str) -> None:
    with pytest.raises(BaselineError, match=reason):
        _maps(scan, *_settings("fbp", setting), *_stored(baselines["fbp"]), first=CUT)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_coils": 6}, "taken with 10 coils, this scan has 6"),
        ({"n_coils": 6, "noise_scans": 0}, "its coils: 10, of this scan: 6"),
        ({"matrix": 32}, "its coil maps: 8 x 48 x 48, of this scan: 8 x 32 x 32"),
        ({"snr": 30.0}, "times the noise"),
    ],
)
def test_another_receiver_or_matrix_is_refused(baselines, tmp_path, changes: dict, reason: str) -> None:
    other = _simulated(tmp_path, frames=2, baseline_frames=1, **changes)
    with pytest.raises(BaselineError, match=reason):
        _maps(other, *_settings("fbp"), *_stored(baselines["fbp"]))
    if "matrix" in changes:
        with pytest.raises(BaselineError, match="does not fit"):
            _maps(other, *_settings("cg_sense"), *_stored(baselines["cg_sense"]))


def test_a_file_without_the_calibration_asks_for_a_new_baseline(scan, baselines, tmp_path) -> None:
    import h5py

    path = tmp_path / "old.h5"
    path.write_bytes(baselines["fbp"].read_bytes())
    with h5py.File(path, "r+") as file:
        del file["0/estimates"]
        facts = json.loads(file.attrs["facts"])
        del facts["baselines"][0]["fingerprint"]["estimated"]
        file.attrs["facts"] = json.dumps(facts)
    with pytest.raises(BaselineError, match="take a new baseline"):
        _maps(scan, *_settings("fbp"), *_stored(path), first=CUT)


def test_a_network_takes_no_stored_baseline(baselines) -> None:
    settings = [*_settings("pdunet"), *_stored(baselines["fbp"])]
    with pytest.raises(SettingsError, match="reference of their own scan"):
        load_pipeline("radial_thermometry").with_values(parse_assignments(settings))
