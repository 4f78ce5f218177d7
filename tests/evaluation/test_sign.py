import json
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from sinotherm.cli.qa import app
from sinotherm.core.scan import FrameImage, TemperatureMap
from sinotherm.errors import DataError, HeaderError, SettingsError
from sinotherm.evaluation.sign import fit_sign, read_probe, sign_by_fat
from sinotherm.simulation.mrd import simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan
from sinotherm.wire.file import ImageWriter
from sinotherm.wire.messages import Image

MASK = np.zeros((1, 8, 8), bool)
MASK[0, 3:5, 3:5] = True
TIMES = np.linspace(0.0, 300.0, 61)
PROBE = 21.0 + 8.0 * (1.0 - np.exp(-TIMES / 120.0))


def _maps(factor: float, noise: float = 0.05) -> list[TemperatureMap]:
    random = np.random.default_rng(0)
    maps = []
    for number in range(20):
        centre = 15.0 * number + 7.5
        change = factor * (np.interp(centre, TIMES, PROBE) - 21.0) + noise * random.standard_normal((1, 8, 8))
        maps.append(
            TemperatureMap(
                change_degc=change.astype(np.float32),
                sigma_degc=np.ones((1, 8, 8), np.float32),
                validity=np.zeros((1, 8, 8), np.uint16),
                number=number,
                footprint=(1000.0 + 15 * number, 1000.0 + centre, 1000.0 + 15 * number + 15),
            )
        )
    return maps


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("coefficient", [-0.0094e-6, -0.0103e-6])
def test_sign_and_coefficient_are_found(sign: int, coefficient: float) -> None:
    maps = _maps(sign * coefficient / -0.01e-6)
    for empty in maps[:2]:
        empty.change_degc[:] = np.nan
    found = fit_sign(maps, MASK, TIMES, PROBE)
    assert found.phase_sign == sign
    assert found.prf_coefficient == pytest.approx(coefficient, rel=0.01)
    assert abs(found.prf_coefficient - coefficient) < 4 * found.prf_coefficient_se
    assert found.problems == []


@pytest.mark.parametrize("first_s", [990.0, 990.0 + 86_400.0])
def test_probe_times_count_from_the_first_readout(first_s: float) -> None:
    expected = fit_sign(_maps(1.0), MASK, TIMES, PROBE)
    found = fit_sign(_maps(1.0), MASK, TIMES + 10.0, PROBE, first_s=first_s)
    assert found.prf_coefficient == pytest.approx(expected.prf_coefficient, rel=1e-9)


@pytest.mark.parametrize("covered", [slice(0, 31), slice(30, 61), slice(15, 46)])
def test_frames_outside_of_the_log_are_left_out(covered: slice, caplog) -> None:
    expected = fit_sign(_maps(1.0), MASK, TIMES, PROBE)
    found = fit_sign(_maps(1.0), MASK, TIMES[covered], PROBE[covered])
    assert len(found.map_degc) == len(found.probe_degc) == 10
    assert "10 of 20 frames lie outside" in caplog.text
    assert found.prf_coefficient == pytest.approx(expected.prf_coefficient, rel=0.02)
    assert found.heating_degc == np.ptp(found.probe_degc) < expected.heating_degc


def test_every_frame_counts_the_same_voxels(caplog) -> None:
    maps = _maps(1.0)
    for one in maps:
        # Half of the region heats more than the probe, and loses its readings once it is hot.
        one.change_degc[0, 3] *= 1.15
        one.change_degc[0, 4] *= 0.85
        if one.number >= 14:
            one.change_degc[0, 3] = np.nan
    found = fit_sign(maps, MASK, TIMES, PROBE)
    assert found.prf_coefficient == pytest.approx(-0.01e-6, rel=0.01)
    assert len(found.map_degc) == 14
    assert "6 of 20 frames lack a voxel of the region" in caplog.text
    maps = _maps(1.0)
    for one in maps:
        one.change_degc[0, 3 if one.number % 2 else 4] = np.nan
    with pytest.raises(DataError, match="20 frames have a reading at the probe, 0 of them in all voxels that most"):
        fit_sign(maps, MASK, TIMES, PROBE)


def test_voxels_that_come_and_go_cost_no_frames() -> None:
    maps = _maps(1.0)
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 2:6, 2:6] = True
    for one in maps:
        # A void of signal beside the probe: three voxels have readings in two frames of three.
        one.change_degc[0, 2, 2 + one.number % 3] = np.nan
    found = fit_sign(maps, mask, TIMES, PROBE)
    assert len(found.map_degc) == 20
    assert found.prf_coefficient == pytest.approx(-0.01e-6, rel=0.01)


def test_a_log_of_another_time_tells_nothing() -> None:
    with pytest.raises(DataError, match=r"covers 0 to 10 s.* at 7.5 to 292.5 s .*: 1 are within it, 3 are needed"):
        fit_sign(_maps(1.0), MASK, TIMES[:3], PROBE[:3])
    untimed = [replace(one, footprint=(math.nan,) * 3) for one in _maps(1.0)]
    with pytest.raises(DataError, match="record the scan with time stamps"):
        fit_sign(untimed, MASK, TIMES, PROBE)


def test_what_is_not_to_be_trusted() -> None:
    cold = fit_sign(_maps(1.0), MASK, TIMES, np.full_like(TIMES, 21.0))
    assert "heating of 0.0 degC" in cold.problems[0]
    assert "alpha nan" in cold.problems[-1]
    assert cold.stated_sign is None
    loose = fit_sign(_maps(1.0, noise=20.0), MASK, TIMES, PROBE)
    assert any("correlation" in text for text in loose.problems)
    assert loose.stated_sign is None
    wrong = fit_sign(_maps(0.3), MASK, TIMES, PROBE)
    assert any("check the probe's place" in text for text in wrong.problems)
    # Of another size, but up and down with the probe.
    assert wrong.stated_sign == 1
    with pytest.raises(DataError, match="2 frames have a reading"):
        fit_sign(_maps(1.0)[:2], MASK, TIMES, PROBE)


def test_probe_files(tmp_path) -> None:
    path = tmp_path / "probe.csv"
    path.write_text("time_s,temperature_degC\n0,21.5\n2.5,22\n")
    np.testing.assert_array_equal(read_probe(path), [[0.0, 2.5], [21.5, 22.0]])
    path.write_text("time_s,temperature_degC\n0,21.5\n2.5,22\n", encoding="utf-8-sig")
    np.testing.assert_array_equal(read_probe(path), [[0.0, 2.5], [21.5, 22.0]])
    for text, message in (
        ("", r"no column time_s and temperature_degC in its first line \[\]"),
        ("time_s\n0\n1\n", "no column temperature_degC"),
        ("time_s;temperature_degC\n0;37\n", "comma between"),
        ("time_s,temperature_degC\n0\n1,2\n", "is no number"),
        ("time_s,temperature_degC\n0,nan\n1,2\n", "finite"),
        ("time_s,temperature_degC\n0,37\n", "two rows or more"),
        ("time_s,temperature_degC\n3,37\n2,38\n", "rising"),
        ("time_s,temperature_degC\n" + 200_000 * "1", "CSV"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_probe(path)
    for text in ("time,temp\n0,1\n", "time_s,temperature_degC\n0,warm\n", "time_s,temperature_degC\n1,2\n0,3\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="time_s"):
            read_probe(path)
    with pytest.raises(DataError, match="probe"):
        read_probe(tmp_path / "absent.csv")


def _refused(arguments: list[str], folder: Path, schema: str) -> None:
    """A verdict that refuses leaves no sign to be read."""
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "| phase_sign | – |" in refused.stdout
    record = json.loads((folder / "qa.json").read_text())
    jsonschema.validate(record, json.loads((files("sinotherm.schemas") / schema).read_text()))
    assert record["phase_sign"] is None


@pytest.mark.parametrize("sign", [-1, 1])
def test_command_on_a_simulated_scan(tmp_path, sign: int) -> None:
    protocol = Protocol(
        matrix=48, n_coils=2, spokes=60, frames=10, baseline_frames=3, cooling_frames=0, noise_scans=64, dummy_scans=0,
        phase_sign=sign, snr=200.0,
    )  # fmt: skip
    scan = Scan(protocol=protocol)
    simulate(scan, tmp_path / "scan.h5")
    y, x = (round(float(place.mean())) for place in np.nonzero(scan.anatomy.tumour))
    noise_s = protocol.noise_scans * protocol.repetition_time_s
    rows = [
        f"{noise_s + (n + 0.5) * protocol.frame_s},{scan.temperature(n)[y - 1 : y + 2, x - 1 : x + 2].mean()}"
        for n in range(10)
    ]
    (tmp_path / "probe.csv").write_text("time_s,temperature_degC\n" + "\n".join(rows))
    arguments = [
        "sign", str(tmp_path / "scan.h5"), "--probe", str(tmp_path / "probe.csv"), "--region", f"circle:{x},{y},1.5",
        "--set", "thermometry.drift_min_voxels=20", "--set", "thermometry.baseline_frames=3",
        "--json", str(tmp_path / "qa.json"), "--report", str(tmp_path / "qa.png"),
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "qa.json").read_text())
    jsonschema.validate(record, json.loads((files("sinotherm.schemas") / "qa_sign.json").read_text()))
    assert record["phase_sign"] == sign
    assert record["prf_coefficient_ppm_per_degC"] == pytest.approx(-0.01, rel=0.06)
    assert f"thermometry.phase_sign={sign}" in result.stdout
    assert "time_s = 0 is 10:00:00.000 by the scan's time stamps" in result.stdout
    assert (tmp_path / "qa.png").stat().st_size > 1000
    (tmp_path / "probe.csv").write_text("time_s,temperature_degC\n0,21\n100,21\n")
    _refused(arguments, tmp_path, "qa_sign.json")


LARMOR_HZ = 63.87e6
WATER, FAT = (np.zeros((1, 16, 16), bool) for _ in range(2))
WATER[0, 4:12, 2:8], FAT[0, 4:12, 8:14] = True, True


def _echoes(sign: int, echo_times_s: tuple[float, float], frames: int = 2) -> list[FrameImage]:
    """Return two echoes of water beside fat in a field that rises by 20 Hz over the image; coils turn the phase."""
    random = np.random.default_rng(0)
    field_hz = np.linspace(-10.0, 10.0, 16)[None, :, None] + (-3.4e-6 * LARMOR_HZ) * FAT
    images = []
    for number in range(frames):
        for echo, time_s in enumerate(echo_times_s):
            phase = 0.7 + sign * 2.0 * np.pi * field_hz * time_s
            noise = 0.05 * random.standard_normal((2, 1, 16, 16))
            data = (WATER + 0.8 * FAT) * np.exp(1j * phase) + noise[0] + 1j * noise[1]
            images.append(FrameImage(data=data.astype(np.complex64)[None], number=number, echo=echo))
    return images


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("echo_times_s", [(3.0e-3, 4.3e-3), (5.0e-3, 19.1e-3)])
def test_fat_tells_the_sign(sign: int, echo_times_s: tuple[float, float]) -> None:
    found = sign_by_fat(
        _echoes(sign, echo_times_s), water=WATER, fat=FAT, larmor_hz=LARMOR_HZ, echo_times_s=echo_times_s
    )
    assert found.phase_sign == sign
    assert found.problems == []
    assert found.offset_rad == pytest.approx(sign * found.expected_rad, abs=0.05)
    assert found.n_frames == 2


def test_when_fat_tells_nothing() -> None:
    both = {"water": WATER, "fat": FAT, "larmor_hz": LARMOR_HZ}
    opposed = (3.0e-3, 3.0e-3 + 0.5 / (3.4e-6 * LARMOR_HZ))
    found = sign_by_fat(_echoes(1, opposed), **both, echo_times_s=opposed)
    assert "nearly the same phase" in found.problems[0]
    times = (3.0e-3, 4.3e-3)
    watery = sign_by_fat(_echoes(1, times), **(both | {"fat": WATER}), echo_times_s=times)
    assert "fits neither" in watery.problems[0]
    with pytest.raises(DataError, match="two echoes"):
        sign_by_fat(_echoes(1, times)[::2], **both, echo_times_s=times)
    for stated, told in (((0.0, 4.3e-3), "state 0, 0.0043 s"), ((3.0e-3,), "state 0.003 s")):
        with pytest.raises(DataError, match=f"TE above 0, header or settings {told}: give thermometry.echo_times_s"):
            sign_by_fat(_echoes(1, times), **both, echo_times_s=stated)
    dark = [FrameImage(data=0 * image.data, number=image.number, echo=image.echo) for image in _echoes(1, times)]
    with pytest.raises(DataError, match="no signal"):
        sign_by_fat(dark, **both, echo_times_s=times)


HEADER = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>16</x><y>16</y><z>1</z></matrixSize>
<fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>16</x><y>16</y><z>1</z></matrixSize>
<fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits/><trajectory>radial</trajectory></encoding>
<sequenceParameters><TE>3.0</TE><TE>4.3</TE></sequenceParameters></ismrmrdHeader>"""


REGIONS = ("--water", "polygon:2,4,7,4,7,11,2,11", "--fat", "polygon:8,4,13,4,13,11,8,11")


def _write(path: Path, images: Sequence[FrameImage], header: str = HEADER, series: int = 1) -> None:
    with ImageWriter(path, header.encode()) as writer:
        for image in images:
            made = Image.from_array(image.data)
            made.contrast, made.image_series_index, made.repetition = image.echo, series, image.number
            made.field_of_view[:] = (400.0, 400.0, 5.0)
            writer.append(made)


def test_command_with_fat(tmp_path) -> None:
    path = tmp_path / "echoes.h5"
    _write(path, _echoes(-1, (3.0e-3, 4.3e-3)))
    arguments = ["sign", str(path), *REGIONS]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "qa.json")])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "qa.json").read_text())
    jsonschema.validate(record, json.loads((files("sinotherm.schemas") / "qa_sign_fat.json").read_text()))
    assert record["phase_sign"] == -1
    assert "thermometry.phase_sign=-1" in result.stdout
    # In millimetres of the field of view that the images state, not of the header's.
    arguments[-3:] = ["polygon:-150,-100,-25,-100,-25,75,-150,75mm", "--fat", "polygon:0,-100,125,-100,125,75,0,75mm"]
    same = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "mm.json")])
    assert same.exit_code == 0, same.output
    assert json.loads((tmp_path / "mm.json").read_text())["offset_rad"] == record["offset_rad"]
    arguments[-1] = arguments[-3]
    _refused([*arguments, "--json", str(tmp_path / "qa.json")], tmp_path, "qa_sign_fat.json")
    mixed = CliRunner().invoke(app, [*arguments, "--region", "circle:1,1,1"])
    assert isinstance(mixed.exception, SettingsError)


def test_fat_is_judged_by_the_frequency_and_echo_times_of_the_settings(tmp_path) -> None:
    path = tmp_path / "echoes.h5"
    # By the header's second TE fat gains -4.9 rad on water, which is +1.4 rad, instead of -1.8 rad.
    _write(path, _echoes(1, (3.0e-3, 4.3e-3)), HEADER.replace("4.3", "6.6"))
    assert "phase_sign=-1" in CliRunner().invoke(app, ["sign", str(path), *REGIONS]).stdout
    stated = CliRunner().invoke(app, ["sign", str(path), *REGIONS, "--set", "thermometry.echo_times_s=0.003,0.0043"])
    assert stated.exit_code == 0, stated.output
    assert "phase_sign=1" in stated.stdout
    silent = HEADER.replace("H1resonanceFrequency_Hz>63870000", "H1resonanceFrequency_Hz>0")
    _write(tmp_path / "silent.h5", _echoes(1, (3.0e-3, 4.3e-3)), silent)
    arguments = ["sign", str(tmp_path / "silent.h5"), *REGIONS]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, HeaderError)
    assert "give thermometry.larmor_hz" in str(refused.exception)
    cured = CliRunner().invoke(app, [*arguments, "--set", "thermometry.larmor_hz=63.87e6"])
    assert cured.exit_code == 0, cured.output
    assert "phase_sign=1" in cured.stdout
