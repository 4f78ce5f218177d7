import logging

import ismrmrd
import numpy as np
import pytest

from sinotherm.core.scan import EncodingSpace, ScanHeader
from sinotherm.errors import SpokeError
from sinotherm.frames.whitening import NoiseScan, WhitenedReadout
from sinotherm.stages.whitening import Settings, stage
from sinotherm.wire.messages import Readout

SPACE = EncodingSpace(matrix=(64, 64, 1), fov_m=(0.3, 0.3, 0.005))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial")


def readout(data, *, noise=False, dwell=5.0, counter=0):
    acquisition = ismrmrd.Acquisition.from_array(np.asarray(data, np.complex64))
    acquisition.sample_time_us = dwell
    acquisition.scan_counter = counter
    if noise:
        acquisition.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    return Readout(
        header=acquisition.getHead(), data=acquisition.data, trajectory=np.zeros((acquisition.data.shape[1], 0), "f4")
    )


def correlated(rng, mixing, n):
    c = len(mixing)
    return mixing @ (rng.standard_normal((c, n)) + 1j * rng.standard_normal((c, n)))


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def mixing(rng):
    return 3e-4 * (rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)))


def run(items, **settings):
    return list(stage(iter(items), SCAN, Settings(**settings)))


@pytest.mark.parametrize(("dwell", "bandwidth"), [(5.0, 1.0), (10.0, 1.0), (5.0, 0.793), (0.0, 1.0)])
def test_noise_gets_unit_real_sd_and_no_correlation(rng, mixing, dwell, bandwidth):
    """Variance goes as 1/dwell; the noise scan's filter let only the stated share of it through."""
    noise = [readout(np.sqrt(bandwidth) * correlated(rng, mixing, 4096), noise=True) for _ in range(8)]
    shorter = 1.0 if dwell == 0.0 else np.sqrt(5.0 / dwell)
    # The first readout freezes the matrix, the others are whitened by the same.
    scans = [readout(shorter * correlated(rng, mixing, 8192), dwell=dwell) for _ in range(2)]
    out = run([*noise, *scans], relative_bandwidth=bandwidth)
    assert [item is other for item, other in zip(out[:8], noise, strict=True)] == [True] * 8
    assert all(isinstance(item, WhitenedReadout) for item in out[8:])
    white = np.concatenate([item.data for item in out[8:]], axis=1)
    assert white.dtype == np.complex64
    covariance = white @ white.conj().T / white.shape[1]
    np.testing.assert_allclose(covariance, 2.0 * np.eye(4), atol=0.08)
    np.testing.assert_allclose(white.real.std(axis=1), 1.0, atol=0.03)


def test_the_header_states_the_bandwidth(rng, mixing):
    import dataclasses

    scan = dataclasses.replace(SCAN, relative_noise_bandwidth=0.5)
    items = [readout(correlated(rng, mixing, 4096), noise=True), readout(correlated(rng, mixing, 64))]
    by_header = list(stage(iter(items), scan, Settings()))[1].data
    by_default = run(items)[1].data
    np.testing.assert_allclose(by_header, np.sqrt(0.5) * by_default, rtol=1e-5)


def test_the_rest_stays_as_it_was(rng, mixing):
    scan = readout(correlated(rng, mixing, 64))
    out = run(["text", readout(correlated(rng, mixing, 512), noise=True), scan, "end"])
    assert out[0] == "text"
    assert out[3] == "end"
    assert out[2].header is scan.header
    assert out[2].trajectory is scan.trajectory


def test_receipt_stays_with_a_readout(rng, mixing):
    scan = readout(correlated(rng, mixing, 64))
    scan.received_s, scan.waiting = 12.5, 3
    out = run([readout(correlated(rng, mixing, 4096), noise=True), scan])[1]
    assert (out.received_s, out.waiting) == (12.5, 3)


def test_without_a_noise_scan_readouts_pass_and_the_log_says_so(rng, mixing, caplog):
    scan = readout(correlated(rng, mixing, 64))
    with caplog.at_level(logging.INFO):
        assert run([scan]) == [scan]
    assert "SNR is unknown" in caplog.text


def test_off_means_off(rng, mixing):
    items = [readout(correlated(rng, mixing, 512), noise=True), readout(correlated(rng, mixing, 64))]
    assert run(items, mode="off") == items


def test_noise_after_the_first_readout_changes_nothing(rng, mixing, caplog):
    noise = readout(correlated(rng, mixing, 512), noise=True)
    late = readout(100.0 * correlated(rng, mixing, 512), noise=True, counter=7)
    scan = readout(correlated(rng, mixing, 64))
    out = run([noise, scan, late, late, scan])
    np.testing.assert_array_equal(out[1].data, out[4].data)
    assert caplog.text.count("noise readout 7 comes after imaging") == 1


def test_a_dead_coil_does_not_break_the_others(rng, mixing, caplog):
    mixing[2] = 0.0
    data = correlated(rng, mixing, 8192)
    white = run([readout(data, noise=True), readout(data)])[1].data
    assert "singular" in caplog.text
    assert np.abs(white[2]).max() < 1e-12
    np.testing.assert_allclose(white[[0, 1]].real.std(axis=1), 1.0, atol=0.05)


def test_few_samples_are_warned_of(rng, mixing, caplog):
    run([readout(correlated(rng, mixing, 16), noise=True), readout(correlated(rng, mixing, 8))])
    assert "16 noise samples for 4 coils" in caplog.text


def bad(data, **change):
    return [readout(data, noise=True), readout(data, noise=True, **change)]


def test_what_cannot_be_used_is_named(rng, mixing):
    data = correlated(rng, mixing, 512)
    with pytest.raises(SpokeError, match="noise readout 3 has 2 channels, the first one has 4"):
        run([readout(data, noise=True), readout(data[:2], noise=True, counter=3)])
    with pytest.raises(SpokeError, match="readout 9 has 2 channels, the noise scan 4"):
        run([readout(data, noise=True), readout(data[:2], counter=9)])
    with pytest.raises(SpokeError, match="sample time of 2 us, the first one 5 us"):
        run(bad(data, dwell=2.0))
    with pytest.raises(SpokeError, match="not finite"):
        run([readout(np.where(np.arange(512) == 4, np.nan, data), noise=True)])
    with pytest.raises(SpokeError, match="6 noise samples for 4 coils: at least 8"):
        run([readout(data[:, :6], noise=True), readout(data)])
    with pytest.raises(SpokeError, match="zeros only"):
        run([readout(0 * data, noise=True), readout(data)])


def test_correlation_of_the_coils(rng, mixing):
    noise = NoiseScan()
    assert noise.correlation().shape == (0, 0)
    noise.add(readout(correlated(rng, mixing, 32768), noise=True))
    covariance = mixing @ mixing.conj().T
    sd = np.sqrt(np.diag(covariance).real)
    np.testing.assert_allclose(noise.correlation(), covariance / np.outer(sd, sd), atol=0.02)


def test_mixing_undoes_whitening_and_levels_the_noise(rng, mixing, caplog):
    np.testing.assert_array_equal(NoiseScan().mixing(3), np.eye(3))
    noise = NoiseScan()
    noise.add(readout(correlated(rng, mixing, 150), noise=True))
    white = noise.matrix(dwell_us=2.5, relative_bandwidth=0.8)
    caplog.clear()
    back = noise.mixing(4) @ white
    np.testing.assert_allclose(back, np.diag(np.diag(back)), atol=1e-6 * np.abs(back).max())
    np.testing.assert_allclose(np.linalg.norm(noise.mixing(4), axis=1), 1.0)
    assert not caplog.text
