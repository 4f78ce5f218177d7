"""Offline replay: how much faster than the scanner a recorded scan becomes images.

The chain is the one that `sinotherm recon` runs; the file is read in blocks, and frames that arrive as a
whole are back-projected or gridded in one batch.
"""

import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from sinotherm.bench.scan import NETWORK_ALONE, bench_scan
from sinotherm.frames.header import scan_header
from sinotherm.pipelines.compose import compose
from sinotherm.wire.codec import Decoder
from sinotherm.wire.file import AcquisitionWriter, MrdFile
from sinotherm.wire.messages import Readout

__all__ = ["Replay", "record_scan", "replay", "rows"]


def record_scan(path: Path, *, coils: int, spokes: int, frames: int, repetition_time_s: float) -> None:
    """Write an MRD file of one frame again and again, with running counters."""
    scan = bench_scan(coils=coils, spokes=spokes, repetition_time_s=repetition_time_s)
    decoder = Decoder()
    readouts = [part for raw in scan.readouts for part in decoder.feed(raw) if isinstance(part, Readout)]
    with AcquisitionWriter(path, scan.header_xml) as writer:
        for number in range(frames):
            for place, readout in enumerate(readouts):
                readout.header.scan_counter = number * spokes + place
                readout.header.idx.repetition = number
                writer.append(readout)
            writer.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replay took: after the first frame, in which the scan is calibrated and code compiled.

    Attributes
    ----------
    readouts, images
        Readouts after the first frame, and all images.
    wall_s, cpu_s
        Time from the first image to the last, and processor time of all threads.
    growth_bytes
        Growth of the process's largest memory after the first tenth of the scan.
    """

    readouts: int
    images: int
    wall_s: float
    cpu_s: float
    growth_bytes: int


def replay(path: Path, method: str = "fbp") -> Replay:
    """Reconstruct a file and forget the images; a network's are the only ones of their frames, and not checked."""
    settings = {"reconstruction": {"method": method}, "publish": {"endpoint": ""}}
    chain = compose("reconstruct", settings | ({"pdunet": NETWORK_ALONE} if method == "pdunet" else {}))
    n_images, wall_s, cpu_s, early = 0, perf_counter(), process_time(), 0
    with MrdFile(path) as file:
        total = file.n_readouts
        scan = scan_header(file.header_xml)
        per_frame = scan.spokes_per_frame or total
        for _ in chain(scan, file.items()):
            n_images += 1
            if n_images == 1:
                wall_s, cpu_s = perf_counter(), process_time()
            if n_images == max(2, total // per_frame // 10):
                early = _largest_memory()
    return Replay(
        readouts=total - per_frame,
        images=n_images,
        wall_s=perf_counter() - wall_s,
        cpu_s=process_time() - cpu_s,
        growth_bytes=_largest_memory() - early,
    )


def _largest_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rows(
    *,
    coils: int = 8,
    spokes: Sequence[int] = (32, 64, 128),
    frames: int = 60,
    repetition_time_s: float = 3e-3,
    method: str = "fbp",
) -> list[dict[str, Any]]:
    """Return one row a number of spokes: speed relative to the scanner and growth of the memory.

    Parameters
    ----------
    coils, spokes, repetition_time_s
        Of the scans; 256 × 256 pixels, 512 samples a readout.
    frames
        Frames of each scan; the first one is not timed.
    method
        Stage that reconstructs; ``pdunet``: the shipped network for imaging, alone.
    """
    found = []
    for number in spokes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scan.h5"
            record_scan(path, coils=coils, spokes=number, frames=frames, repetition_time_s=repetition_time_s)
            took = replay(path, method)
        found.append(
            {
                "method": method,
                "coils": coils,
                "spokes": number,
                "frames": took.images,
                "us_per_readout": round(1e6 * took.wall_s / took.readouts, 1),
                "cpu_us_per_readout": round(1e6 * took.cpu_s / took.readouts, 1),
                "faster_than_scanner": round(took.readouts * repetition_time_s / took.wall_s, 2),
                "memory_growth_MiB": round(took.growth_bytes / 2**20, 1),
            }
        )
    return found
