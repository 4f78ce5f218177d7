"""Latency of whole chains over a loopback socket: ours and two peers, in the same run.

The clock starts at the last byte of the last readout of a frame and stops when the last byte of its
float32 magnitude image has been handed to the socket; both are read in the process that reconstructs.
"""

import logging
import math
import os
import socket
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from time import monotonic, perf_counter
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.bench.scan import MATRIX, NETWORK_ALONE, BenchScan, bench_scan
from sinotherm.bench.scanner import accepted, scanning
from sinotherm.core.scan import Item
from sinotherm.errors import SettingsError, WireError
from sinotherm.networks.inference import Device, RadialReconstructor, choose_device
from sinotherm.operators.backprojection import BackProjector
from sinotherm.operators.coils import adaptive_maps
from sinotherm.pipelines.doors import open_target
from sinotherm.wire.connection import OpenScan, Process, ScanRequest
from sinotherm.wire.messages import Image, Readout
from sinotherm.wire.server import Server

__all__ = ["CHAINS", "figures"]

logger = logging.getLogger(__name__)

Adjoint: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""complex64 (coil, spoke, readout), density-compensated → coil images, complex64 (coil, y, x)."""

_LOAD: Final = 0.3
_FIRST_FRAMES: Final = 3
_WARM_UP_S: Final = 5.0
"""Time in which a chain calibrates itself (delays, coil maps) and catches up with the scanner."""


def _percentile_ms(latencies_s: Sequence[float], percent: float) -> float:
    return round(1e3 * float(np.percentile(latencies_s, percent)), 4)


def _timed(opening: OpenScan, latencies_s: list[float]) -> OpenScan:
    """Clock the first image after each last readout, from reception to the moment it has been sent."""

    def open_scan(request: ScanRequest) -> Process:
        process = opening(request)

        def work(items: Iterator[Item]) -> Iterator[Item]:
            received_s = float("nan")

            def noted() -> Iterator[Item]:
                nonlocal received_s
                for item in items:
                    if isinstance(item, Readout):
                        received_s = item.received_s
                    yield item

            for item in process(noted()):
                yield item
                # Control comes back when the image has been handed to the socket.
                if isinstance(item, Image):
                    latencies_s.append(monotonic() - received_s)

        return work

    return open_scan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What every chain of a measurement has in common."""

    scan: BenchScan
    frames: int
    repetition_time_s: float
    device: Device
    network: str | None

    def scanning(self, port: int, opening: bytes) -> AbstractContextManager[None]:
        """Run the scanner at its pace."""
        return scanning(
            port, opening, self.scan.readouts, repeats=self.frames, repetition_time_s=self.repetition_time_s
        )


def _configuration(run: _Run, runtime: str) -> str:
    values = {"frames.by": "count", "frames.spokes": str(len(run.scan.angles)), "publish.endpoint": ""}
    if run.network is not None:
        values |= {
            "reconstruction.method": "pdunet",
            "pdunet.network": run.network,
            "pdunet.device": run.device,
            "pdunet.runtime": runtime,
            **{f"pdunet.{name}": value for name, value in NETWORK_ALONE.items()},
        }
    properties = "".join(f'<property name="{name}" value="{value}"/>' for name, value in values.items())
    return f"<configuration>{properties}</configuration>"


def _sinotherm(runtime: str) -> Callable[[_Run], list[float]]:
    """Return our chain, with the network's blocks in this runtime."""

    def chain(run: _Run) -> list[float]:
        latencies_s: list[float] = []
        server = Server(_timed(open_target("reconstruct"), latencies_s), port=0, parent=True)
        thread = threading.Thread(target=server.run, name="server of the benchmark", daemon=True)
        thread.start()
        opening = run.scan.opening(_configuration(run, runtime))
        try:
            # Compiling and importing belong to the start of the process, not to the scan.
            with scanning(server.address[1], opening, run.scan.readouts, repeats=_FIRST_FRAMES):
                pass
            latencies_s.clear()
            with run.scanning(server.address[1], opening):
                pass
        finally:
            server.stop()
            thread.join()
        return latencies_s

    return chain


def _weights(scan: BenchScan) -> np.ndarray:
    """Ramp of equidistant spokes, float32 (readout,)."""
    ramp = np.abs(scan.sampling.positions)
    ramp[scan.sampling.n_readout // 2] = scan.sampling.spacing / 4.0
    return (ramp * scan.sampling.spacing * np.pi / len(scan.angles)).astype(np.float32)


def _points(scan: BenchScan) -> np.ndarray:
    """2π k of every sample, float32 (row and column, sample)."""
    along = 2.0 * np.pi * scan.sampling.positions
    turned = np.stack([np.sin(scan.angles), np.cos(scan.angles)])
    return (turned[:, :, None] * along).reshape(2, -1).astype(np.float32)


def _stock_torchkbnufft(run: _Run) -> Adjoint:
    import torch
    import torchkbnufft

    operator = torchkbnufft.KbNufftAdjoint(im_size=(MATRIX, MATRIX)).to(run.device)
    points, weights = torch.from_numpy(_points(run.scan)).to(run.device), _weights(run.scan)

    def adjoint(data: np.ndarray) -> np.ndarray:
        samples = torch.from_numpy((data * weights).reshape(1, len(data), -1)).to(run.device)
        images: np.ndarray = operator(samples, points)[0].cpu().numpy()
        return images

    return adjoint


def _tuned_finufft(run: _Run) -> Adjoint:
    import finufft

    scan, coils = run.scan, len(run.scan.data)
    plan = finufft.Plan(1, (MATRIX, MATRIX), n_trans=coils, eps=1e-3, isign=1, dtype="complex64", upsampfac=1.25)
    rows, columns = _points(scan)
    plan.setpts(np.ascontiguousarray(rows), np.ascontiguousarray(columns))
    weights, out = _weights(scan), np.empty((coils, MATRIX, MATRIX), np.complex64)

    def adjoint(data: np.ndarray) -> np.ndarray:
        plan.execute((data * weights).reshape(coils, -1), out=out)
        return out

    return adjoint


def _finish(run: _Run) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return what a peer makes of samples and coil images: float32 magnitude (y, x).

    With a network: the same weights, eager and in single precision, with the operators that they were
    trained with.
    """
    if run.network is None:
        return lambda _, images: np.sqrt(np.sum(images.real**2 + images.imag**2, axis=0, dtype=np.float32))
    network = RadialReconstructor(
        run.network,
        device=run.device,
        precision="float32",
        runtime="torch",
        operators="auto" if run.device == "cuda" else "finufft",
    )
    maps: list[np.ndarray] = []

    def finish(samples: np.ndarray, images: np.ndarray) -> np.ndarray:
        if not maps:
            maps.append(adaptive_maps(images))
        image, _ = network.reconstruct(samples, run.scan.sampling, run.scan.angles, maps[0])
        return np.abs(image)

    return finish


def _gadgetron(make: Callable[[_Run], Adjoint]) -> Callable[[_Run], list[float]]:
    """Return the chain that a Python gadget is: the package's readers and writers around an adjoint."""

    def chain(run: _Run) -> list[float]:
        from gadgetron.external.connection import Connection

        adjoint, finish = make(run), _finish(run)
        for _ in range(_FIRST_FRAMES):
            finish(run.scan.data, adjoint(run.scan.data))
        latencies_s: list[float] = []
        spokes: list[np.ndarray] = []
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            run.scanning(listener.getsockname()[1], run.scan.opening("<configuration/>")),
            Connection(accepted(listener)) as connection,
        ):
            received = _stamped(connection.socket)
            for acquisition in connection:
                spokes.append(acquisition.data)
                if len(spokes) == len(run.scan.angles):
                    samples = np.stack(spokes, axis=1)
                    image = finish(samples, adjoint(samples))
                    connection.send(Image.from_array(image, acquisition=acquisition, transpose=False))
                    latencies_s.append(monotonic() - received[0])
                    spokes.clear()
        return latencies_s

    return chain


def _stamped(wrapper: Any) -> list[float]:
    """Note when the package's reader had the last byte of what it read."""
    stamp, read = [0.0], wrapper.read

    def stamped(n_bytes: int) -> bytes:
        data: bytes = read(n_bytes)
        stamp[0] = monotonic()
        return data

    wrapper.read = stamped
    return stamp


OURS: Final = "sinotherm"
TORCH_ALONE: Final = "sinotherm with torch alone"

CHAINS: Final = {
    OURS: _sinotherm("openvino" if find_spec("openvino") else "torch"),
    TORCH_ALONE: _sinotherm("torch"),
    "gadgetron readers + finufft tuned": _gadgetron(_tuned_finufft),
    "gadgetron readers + torchkbnufft stock": _gadgetron(_stock_torchkbnufft),
}


def _floor_ms(scan: BenchScan) -> float:
    """Return the time of back-projecting all spokes of a frame with the compiled kernel alone, ms."""
    projector = BackProjector(shape=(MATRIX, MATRIX), sampling=scan.sampling, n_coils=len(scan.data), centre="area")
    times_s = []
    for _ in range(30):
        projector.reset()
        start_s = perf_counter()
        projector.add_batch(scan.data, scan.angles)
        times_s.append(perf_counter() - start_s)
    return round(1e3 * statistics.median(times_s[5:]), 4)


def _load() -> float:
    load = os.getloadavg()[0]
    if load > _LOAD:
        logger.warning("the load of this machine is %.2f, above %.1f: only ratios are worth reading", load, _LOAD)
    return round(load, 2)


def figures(
    *,
    coils: Sequence[int] = (8,),
    spokes: Sequence[int] = (16, 64),
    frames: int = 200,
    repetition_time_s: float = 3e-3,
    device: Device = "cpu",
    network: str | None = None,
    chains: Sequence[str] = tuple(CHAINS),
) -> dict[str, Any]:
    """Return the latencies of the chains, one row each, with the load before and after.

    Parameters
    ----------
    coils, spokes
        Receiver coils and spokes of a frame; every pair is measured. 256² pixels, 512 samples.
    frames
        Frames that count, after a warm-up.
    repetition_time_s
        TR of the scanner, s.
    device
        Where networks, and torchkbnufft, run.
    network
        Name of the network, or ``None``.
    chains
        Which of `CHAINS`; ours is always among them, because the ratios are to it.

    Raises
    ------
    SettingsError
        A chain is unknown, or there is no such device.
    WireError
        A chain did not give an image of every frame.
    """
    unknown = [name for name in chains if name not in CHAINS]
    if unknown:
        raise SettingsError(f"unknown chain {unknown[0]!r}; known chains: {', '.join(CHAINS)}.")
    choose_device(device)
    names = [name for name in dict.fromkeys((OURS, *chains)) if network is not None or name != TORCH_ALONE]
    before = _load()
    rows: list[dict[str, Any]] = []
    for n_coils in coils:
        for n_spokes in spokes:
            warm_up = math.ceil(_WARM_UP_S / (n_spokes * repetition_time_s))
            run = _Run(
                scan=bench_scan(coils=n_coils, spokes=n_spokes, repetition_time_s=repetition_time_s),
                frames=warm_up + frames,
                repetition_time_s=repetition_time_s,
                device=device,
                network=network,
            )
            rows += _rows(run, names, warm_up)
    return {
        "frames": frames,
        "repetition_time_ms": 1e3 * repetition_time_s,
        "device": device,
        "load_before": before,
        "load_after": _load(),
        "results": rows,
    }


def _rows(run: _Run, names: Sequence[str], warm_up: int) -> list[dict[str, Any]]:
    floor_ms = _floor_ms(run.scan)
    measured: dict[str, list[float]] = {}
    for name in names:
        logger.info("%s, %d coils, %d spokes", name, len(run.scan.data), len(run.scan.angles))
        latencies_s = CHAINS[name](run)
        if len(latencies_s) != run.frames:
            raise WireError(f"{name} gave {len(latencies_s)} images of {run.frames} frames; the log says why.")
        measured[name] = latencies_s[warm_up:]
    ours_s = statistics.median(measured[OURS])
    return [
        {
            "chain": name,
            "coils": len(run.scan.data),
            "spokes": len(run.scan.angles),
            "network": run.network,
            "latency_p50_ms": _percentile_ms(latencies_s, 50),
            "latency_p95_ms": _percentile_ms(latencies_s, 95),
            "floor_ms": floor_ms,
            "ratio_to_sinotherm": round(statistics.median(latencies_s) / ours_s, 3),
        }
        for name, latencies_s in measured.items()
    ]
