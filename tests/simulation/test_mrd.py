import h5py
import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest

from sinotherm.core.geometry import GOLDEN_ANGLE
from sinotherm.errors import FileFormatError
from sinotherm.frames.header import scan_header
from sinotherm.frames.spokes import SpokeReader
from sinotherm.simulation.mrd import header_xml, readouts, simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan


def scan(**changes):
    values = {
        "matrix": 16, "n_coils": 2, "spokes": 5, "frames": 3, "baseline_frames": 1, "cooling_frames": 0,
        "noise_scans": 4, "dummy_scans": 3, "seed": 7, "frame_interval_s": 0.5,
    }  # fmt: skip
    return Scan(protocol=Protocol(**(values | changes)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    made = scan()
    watched = []

    def watch(items):
        for item in items:
            watched.append(item)
            yield item

    figures = simulate(made, path, watch=watch)
    assert len(watched) == figures["readouts"] == 4 + 3 + 15
    return made, path, figures


def test_file_reads_with_ismrmrd(written):
    made, path, _ = written
    with ismrmrd.File(path, "r") as file:
        header = file["dataset"].header
        acquisitions = list(file["dataset"].acquisitions)
    assert len(acquisitions) == 22
    flags = [acquisition.flags for acquisition in acquisitions]
    assert flags[:4] == [1 << 18] * 4
    assert flags[4:7] == [1 << 26] * 3
    assert flags[7] == 1 << 12
    assert flags[11] == 1 << 13
    assert flags[21] == (1 << 13) | (1 << 24)
    assert [a.idx.repetition for a in acquisitions[7:]] == [0] * 5 + [1] * 5 + [2] * 5
    assert [a.idx.kspace_encode_step_1 for a in acquisitions[7:12]] == [0, 1, 2, 3, 4]
    assert [a.scan_counter for a in acquisitions] == list(range(22))
    stamps = [a.acquisition_time_stamp for a in acquisitions]
    # A tick is 2.5 ms: TR 25 ms, and a frame begins 0.5 s after the last.
    assert set(np.diff(stamps[:12])) == {10}
    assert [stamp - stamps[7] for stamp in stamps[7::5]] == [0, 200, 400]
    assert stamps[0] == 10 * 3600 * 400
    for acquisition, angle in zip(acquisitions[7:12], made.angles(0), strict=True):
        assert acquisition.data.shape == (2, 32)
        assert acquisition.center_sample == 16
        assert acquisition.sample_time_us == pytest.approx(62.5)
        k = np.arange(-16, 16) / 32
        np.testing.assert_allclose(acquisition.traj, np.outer(k, (np.cos(angle), np.sin(angle))), atol=1e-7)
    assert acquisitions[0].traj.size == 0

    encoding = header.encoding[0]
    assert (encoding.encodedSpace.matrixSize.x, encoding.encodedSpace.matrixSize.y) == (32, 16)
    assert encoding.encodedSpace.fieldOfView_mm.x == pytest.approx(800.0)
    assert (encoding.reconSpace.matrixSize.x, encoding.reconSpace.matrixSize.y) == (16, 16)
    assert encoding.reconSpace.fieldOfView_mm.x == pytest.approx(400.0)
    assert encoding.trajectory == ismrmrd.xsd.trajectoryType.RADIAL
    assert encoding.encodingLimits.kspace_encoding_step_1.maximum == 4
    assert encoding.encodingLimits.repetition.maximum == 2
    assert [pytest.approx(19.1)] == header.sequenceParameters.TE
    assert [pytest.approx(25.0)] == header.sequenceParameters.TR
    assert header.acquisitionSystemInformation.receiverChannels == 2
    assert header.acquisitionSystemInformation.systemFieldStrength_T == pytest.approx(1.5)
    assert header.experimentalConditions.H1resonanceFrequency_Hz == pytest.approx(63.866e6, rel=1e-4)
    strings = {p.name: p.value for p in header.userParameters.userParameterString}
    assert strings == {"angle_schedule": "raga"}


def test_truth_stands_beside_it(written):
    made, path, figures = written
    with h5py.File(path) as file:
        truth = file["truth"]
        assert truth["temperature"].shape == (3, 16, 16)
        np.testing.assert_array_equal(truth["temperature"][2], made.temperature(2))
        assert truth["temperature"].attrs["unit"] == "degC"
        for name in ("magnitude", "field", "drift", "water", "fat", "coil_maps", "noise_covariance", "time"):
            assert truth[name].attrs["axes"]
        assert truth["coil_maps"].shape == (2, 16, 16)
        for mask in ("body", "fat", "tumour", "cold"):
            assert truth["masks"][mask].dtype == bool
        assert truth.attrs["peak_heating_degC"] == pytest.approx(8.0, rel=1e-4)
        assert truth.attrs["body_temperature_degC"] == 37.0
    assert figures["peak_heating_degC"] == pytest.approx(8.0, abs=1e-3)
    assert figures["duration_s"] == pytest.approx(22 * 0.025 + 2 * (0.5 - 0.125))
    with h5py.File(path) as file:
        assert list(file["truth/time"]) == pytest.approx([0.0625, 0.5625, 1.0625])
    assert figures["snr"] == 40.0


def test_without_trajectory_and_with_golden_angles():
    made = scan(trajectory=False, schedule="golden", snr=float("inf"))
    items = list(readouts(made))
    assert all(item.trajectory.shape == (32, 0) for item in items)
    assert all(item.header.trajectory_dimensions == 0 for item in items)
    stored = list(readouts(scan(schedule="golden")))[-1].trajectory
    angle = 14 * GOLDEN_ANGLE
    np.testing.assert_allclose(stored[-1], 15 / 32 * np.array([np.cos(angle), np.sin(angle)]), atol=1e-6)


@pytest.mark.parametrize("schedule", ["uniform180", "uniform360", "golden", "tiny_golden", "raga"])
def test_without_trajectories_the_header_tells_the_angles(schedule, caplog):
    def angles(**changes):
        made = scan(schedule=schedule, **changes)
        reader = SpokeReader(scan_header(header_xml(made)))
        return [spoke.angle_rad for item in readouts(made) if (spoke := reader.read(item)) is not None]

    measured, told = np.array(angles()), np.array(angles(trajectory=False))
    np.testing.assert_allclose(np.exp(1j * told), np.exp(1j * measured), atol=1e-5)
    assert "assumed" not in caplog.text


def test_header_names_the_golden_angle(tmp_path):
    figures = simulate(scan(schedule="golden", snr=float("inf"), frames=1, baseline_frames=0), tmp_path / "golden.h5")
    assert figures["snr"] is None
    assert figures["readouts"] == 3 + 5
    with ismrmrd.File(tmp_path / "golden.h5", "r") as file:
        assert file["dataset"].header.encoding[0].trajectory == ismrmrd.xsd.trajectoryType.GOLDENANGLE


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be written"):
        simulate(scan(), tmp_path / "no" / "scan.h5")
