"""Two scans of 2,000 frames through the whole chain with a reference-guided network: one clean, one with every fault.

    OMP_NUM_THREADS=1 python benchmarks/thermometry_long_scan.py benchmarks/thermometry_long_scan.json [FRAMES]

64 x 64 pixels, 2 coils, 40 golden-angle spokes a frame; gridding and an untrained network beside each
other, both with thermometry. The record tells the memory after a tenth of the scan and at its end, the
latency (last readout in -> last map out) of the first and of the last fifth, and the alarms: a clean scan
raises none, and in the other one each fault raises its own.
"""

import logging
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import ismrmrd
import numpy as np
import torch

from sinotherm.core.geometry import spoke_angles
from sinotherm.core.physics import PRF_COEFFICIENT, radian_per_degc
from sinotherm.core.record import figures_record, write_record
from sinotherm.core.scan import FrameStatistics
from sinotherm.frames.header import scan_header
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.weights import GuardLimits, ModelCard, ValidRange, save_network
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.pipelines.compose import compose
from sinotherm.simulation.mrd import header_xml
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan
from sinotherm.wire.messages import Readout

FRAMES = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
BASELINE, NOISE_SCANS = 10, 64
SETTLING = 10
"""Frames in which voxels whose phase jumped find back to their neighbours' branch."""
PROTOCOL = Protocol(
    matrix=64, n_coils=2, spokes=40, frames=FRAMES, baseline_frames=BASELINE, schedule="golden", peak_degc=0.0
)
SNR = 60.0
TICKS_PER_READOUT = PROTOCOL.repetition_time_s / 2.5e-3
TUBE_PLACES = ((0.8, 0.75), (-0.8, 0.75), (0.8, -0.75))
Y, X = (np.mgrid[:64, :64] - 32) / 32.0
BODY = np.clip(8.0 * (1.0 - np.hypot(X / 0.8, Y / 0.7)), 0.0, 1.0)
TUBES = sum(np.clip(8.0 * (2.6 / 32.0 - np.hypot(X - x, Y - y)) * 4.0, 0.0, 1.0) for x, y in TUBE_PLACES)
SPOT = np.exp(-(X**2 + Y**2) / 0.06)
PLATEAU = np.hypot(X, Y) < 0.4
PER_DEGC = radian_per_degc(
    larmor_hz=PROTOCOL.larmor_hz, echo_time_s=PROTOCOL.echo_time_s, prf_coefficient=PRF_COEFFICIENT, phase_sign=1
)
SETTINGS: dict[str, dict[str, str]] = {
    "reconstruction": {"method": "pdunet"},
    "thermometry": {
        "phase_sign": "1",
        "baseline_frames": str(BASELINE),
        "body_temperature_degc": "37",
        "regions": "tumour=circle:32,32,4",
        "alarm_temperature_degc": "43",
        "alarm_dose_min": "2",
        "drift_min_voxels": "20",
        "cold_mask": "+".join(f"circle:{32 + 32 * x:g},{32 + 32 * y:g},2.2" for x, y in TUBE_PLACES),
        "alarm_wrap": "0.05",
    },
    "frames": {"by": "index"},
    "publish": {"endpoint": ""},
}


def _at(share: float, count: int) -> range:
    return range(round(share * FRAMES), round(share * FRAMES) + count)


# Fault -> frames that have it; the dose stays reached, and a jump of the phase by almost half a turn is hot too.
FAULTS: dict[str, Sequence[int]] = {
    "signal lost": _at(0.2, 3),
    "motion": _at(0.25, 3),
    "network guard": _at(0.3, 3),
    "stale frame": _at(0.35, 1),
    "drift fit failed": _at(0.4, 3),
    "baseline": _at(0.45, 1),
    "over-temperature": [*_at(0.6, 40), *_at(0.9, 3)],
    "dose reached": range(round(0.6 * FRAMES), FRAMES),
    "wrap risk": _at(0.9, 3),
    # The tumour of frames that moved, and of those whose phase may have gone either way.
    "no reading": [*_at(0.25, 3), *_at(0.9, 3)],
}


def coil_maps() -> np.ndarray:
    maps = np.stack([np.exp(-((X - 0.6) ** 2 + Y**2) / 1.5), np.exp(-((X + 0.6) ** 2 + Y**2) / 1.5 + 0.5j)])
    return (maps / np.sqrt((np.abs(maps) ** 2).sum(axis=0))).astype(np.complex64)


class Scanner:
    """Makes the readouts of a scan, frame by frame, and notes when each frame's last one left."""

    def __init__(self, *, faults: bool) -> None:
        self._faults = FAULTS if faults else {}
        self._random = np.random.default_rng(0)
        self._plan = FinufftPlan((64, 64), 2)
        self._maps = coil_maps()
        weights = radial_weights(spoke_angles("golden", 40), PROTOCOL.sampling, weights="gaps", centre="exact")
        self._level = SNR * np.sqrt(float(np.sum(weights**2)))
        self.sent_s = [0.0] * FRAMES
        self._counter = 0

    def _has(self, fault: str, number: int) -> bool:
        return number in self._faults.get(fault, ())

    def _image(self, number: int) -> np.ndarray:
        """Return the object in a frame: a drift of up to 0.5 rad, breathing by a twentieth of a pixel, faults."""
        drift = 0.5 * np.sin(2.0 * np.pi * number / FRAMES) * (1.0 + 0.3 * X - 0.2 * Y)
        if self._has("wrap risk", number):
            heat = 2.9 / abs(PER_DEGC) * PLATEAU
        else:
            heat = 11.0 * SPOT * self._has("over-temperature", number)
        body = BODY if self._has("drift fit failed", number) else BODY + 0.8 * TUBES
        factor = 0.3 if self._has("signal lost", number) else 1.0
        return factor * self._level * body * np.exp(1j * (drift + PER_DEGC * heat))

    def _frame(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        angles = spoke_angles("golden", 40, first=40 * number)
        points = np.ascontiguousarray(radial_points(angles, PROTOCOL.sampling).reshape(-1, 2))
        image = (self._maps * self._image(number)).astype(np.complex64)
        data = self._plan.set_points(points).forward(image).reshape(2, 40, -1)
        direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        along = direction[:, None, :] * PROTOCOL.sampling.positions[None, :, None]
        shift = 2.5 if self._has("motion", number) else 0.05 * np.sin(number)
        data = data * np.exp(-2j * np.pi * shift * along[..., 0])
        if self._has("network guard", number):
            data[:, 7] *= np.exp(2.5j)
        return data + self._noise(data.shape), along.astype(np.float32)

    def _noise(self, shape: tuple[int, ...]) -> np.ndarray:
        parts = self._random.standard_normal((2, *shape))
        return parts[0] + 1j * parts[1]

    def _readout(self, data: np.ndarray, trajectory: np.ndarray, frame: int, flags: int) -> Any:
        head = ismrmrd.AcquisitionHeader()
        head.version = 1
        head.number_of_samples = data.shape[-1]
        head.available_channels = head.active_channels = len(data)
        head.center_sample = PROTOCOL.matrix
        head.trajectory_dimensions = trajectory.shape[1]
        head.sample_time_us = 1e6 * PROTOCOL.dwell_s
        head.read_dir[0] = head.phase_dir[1] = head.slice_dir[2] = 1.0
        head.scan_counter = self._counter
        late = 10 * 40 if "stale frame" in self._faults and frame >= self._faults["stale frame"][0] else 0
        head.acquisition_time_stamp = round((self._counter + late) * TICKS_PER_READOUT)
        head.idx.repetition = frame
        head.flags = flags
        self._counter += 1
        return Readout(header=head, data=np.ascontiguousarray(data, dtype=np.complex64), trajectory=trajectory)

    def readouts(self) -> Iterator[Any]:
        nothing = np.zeros((PROTOCOL.n_readout, 0), dtype=np.float32)
        for _ in range(NOISE_SCANS):
            noise = self._noise((2, PROTOCOL.n_readout))
            yield self._readout(noise, nothing, 0, 1 << (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1))
        for number in range(FRAMES):
            data, along = self._frame(number)
            # One spoke less: the angle scheme is no longer the baseline's.
            count = 39 if self._has("baseline", number) else 40
            for spoke in range(count):
                last = 1 << (ismrmrd.ACQ_LAST_IN_REPETITION - 1) if spoke == count - 1 else 0
                self.sent_s[number] = perf_counter()
                yield self._readout(data[:, spoke], along[spoke], number, last)


def untrained(folder: Path) -> Path:
    """Save a small guided network that corrects nothing: steps of data consistency from the reference."""
    torch.manual_seed(0)
    network = PrimalDual(Architecture(iterations=3, primal_features=(8, 16), dual_features=4, memory=4, reference=True))
    card = ModelCard(
        name="untrained",
        network="primal-dual",
        geometry="radial",
        sha256="",
        architecture=network.architecture.as_dict(),
        valid=ValidRange(spokes=(21, 128), pixels=(32, 256), snr=(1.0, 1e9)),
        guard=GuardLimits(spokes=(40,), held_out=(0.7,), spoke=(0.7,)),
    )
    path = folder / "untrained.safetensors"
    save_network(network, path, card)
    return path


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def run(weights: Path, *, faults: bool) -> dict[str, Any]:
    """Run one scan and return its figures."""
    scanner = Scanner(faults=faults)
    scan = scan_header(header_xml(Scan(protocol=PROTOCOL)))
    chain = compose("radial_thermometry", SETTINGS | {"pdunet": {"network": str(weights)}})
    items: Iterator[Any] = scanner.readouts()
    latency, maps = np.full(FRAMES, np.nan), 0
    raised: dict[str, set[int]] = {}
    memory: dict[str, float] = {}

    def watched(items: Iterator[Any]) -> Iterator[Any]:
        nonlocal maps
        for item in items:
            if isinstance(item, FrameStatistics):
                maps += 1
                latency[item.number] = perf_counter() - scanner.sent_s[item.number]
                for text in item.alarms:
                    raised.setdefault(text.partition(":")[0], set()).add(item.number)
                if item.number == FRAMES // 10:
                    memory["rss_tenth_MiB"] = round(resident_mib(), 1)
            yield item

    for name, module, settings in chain.stages:
        items = module.stage(items, scan, settings)
        if name == "thermometry":
            items = watched(items)
    begin = perf_counter()
    for _ in items:
        pass
    taken = perf_counter() - begin
    memory["rss_end_MiB"] = round(resident_mib(), 1)
    fifth = FRAMES // 5
    first, last = latency[2 * BASELINE : fifth], latency[-fifth:]
    expected = {name: set(frames) for name, frames in FAULTS.items()} if faults else {}
    stray = {
        name: sorted(number for number in numbers if not set(range(number - SETTLING, number + 1)) & expected[name])
        if name in expected
        else sorted(numbers)
        for name, numbers in raised.items()
    }
    return {
        "faults": faults,
        "frames": FRAMES,
        "maps": maps,
        **memory,
        "latency_p50_first_fifth_ms": round(1e3 * float(np.median(first)), 3),
        "latency_p50_last_fifth_ms": round(1e3 * float(np.median(last)), 3),
        "frames_per_s": round(FRAMES / taken, 1),
        "alarms_raised": {name: [min(numbers), max(numbers), len(numbers)] for name, numbers in raised.items()},
        "faults_without_alarm": sorted(
            name for name, frames in expected.items() if not frames & raised.get(name, set())
        ),
        "alarms_without_their_fault": {name: numbers for name, numbers in stray.items() if numbers},
    }


def main(record: Path) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = untrained(Path(folder))
        found = [run(weights, faults=faults) for faults in (False, True)]
    for row in found:
        print(row)
    write_record(record, figures_record(f"python {' '.join(sys.argv)}", found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
