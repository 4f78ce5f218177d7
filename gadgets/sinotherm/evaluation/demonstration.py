"""The demonstration: a simulated hyperthermia scan through a real server, judged by its truth.

The scan goes over the loopback as a scanner would send it, many times faster. What comes back is
compared with the simulated temperature at the same point spread and averaged over the same window.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32, Float64

from sinotherm.core.physics import BODY_TEMPERATURE_DEGC
from sinotherm.core.scan import NoReading
from sinotherm.errors import DataError
from sinotherm.pipelines.doors import open_pipeline
from sinotherm.simulation.mrd import simulate
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan
from sinotherm.wire.client import connect, paced, stream
from sinotherm.wire.connection import OpenScan, Process, ScanRequest
from sinotherm.wire.file import ImageSeries, ImageWriter, MrdFile, read_images
from sinotherm.wire.messages import Image, Readout
from sinotherm.wire.server import Server

__all__ = [
    "ACCELERATED",
    "DEMO",
    "PACE",
    "Acceleration",
    "Clock",
    "Comparison",
    "Demonstration",
    "accelerated",
    "accelerated_figures",
    "compare",
    "demonstrate",
    "point_spread",
    "seen_temperature",
]

logger = logging.getLogger(__name__)

DEMO: Final = Protocol()
"""The scan: 256², 8 coils, 402 spokes a frame, SNR 40 in the tumour, 1.5 T, TE 19.1 ms, fat and drift."""
ACCELERATED: Final = Protocol(spokes=40, frames=40, baseline_frames=30, cooling_frames=2, schedule="golden")
"""The same scene at R = 10: 40 golden-angle spokes a frame, 30 baseline frames for the network's reference."""
PACE: Final = 25.0
"""How many times faster than the scanner the scan is sent, at most."""

PIPELINE: Final = "radial_thermometry"
MAGNITUDE, TEMPERATURE, UNCERTAINTY, VALIDITY = 1, 3, 4, 6
BESIDE: Final = 10
"""Added to the number of a series that goes beside the network's."""

_WARM_FRAMES: Final = 5
_SPARE: Final = 1.4
_REST_S: Final = 60.0
_LOOK_S: Final = 0.05
_SWITCH_S: Final = 5e-4
_LAST_IN_REPETITION: Final = 1 << 13


@dataclass(slots=True, kw_only=True)
class Clock:
    """Takes the time from the last readout of a frame received to its temperature map handed to the socket.

    Attributes
    ----------
    received_s
        Monotonic clock at the last byte of the last readout of each frame.
    sent_s
        The same when the temperature map of each frame was on the socket.
    calibrated
        Set when the first map was sent.
    """

    received_s: list[float] = field(default_factory=list)
    sent_s: list[float] = field(default_factory=list)
    calibrated: threading.Event = field(default_factory=threading.Event)

    @property
    def latency_ms(self) -> Float64[np.ndarray, "frame"]:
        """Time from the one to the other of each frame, ms."""
        return 1e3 * (np.array(self.sent_s) - np.array(self.received_s[: len(self.sent_s)]))

    def around(self, open_scan: OpenScan) -> OpenScan:
        """Return the same opener, timed."""

        def open_timed(request: ScanRequest) -> Process:
            process = open_scan(request)
            return lambda items: self._sent(process(self._arriving(items)))

        return open_timed

    def _arriving(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, Readout) and item.header.flags & _LAST_IN_REPETITION:
                self.received_s.append(item.received_s)
            yield item

    def _sent(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            # The consumer comes back for more when the image is on the socket.
            yield item
            if isinstance(item, Image) and item.image_series_index == TEMPERATURE:
                self.sent_s.append(monotonic())
                self.calibrated.set()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Measured temperature beside the truth, for the frames that came back.

    Attributes
    ----------
    magnitude
        float32 (y, x), mean over the frames.
    temperature, truth, sigma
        float32 (frame, y, x), °C: measured, true at the same point spread, and predicted uncertainty.
    heated
        int (frame,): frames after the baseline, over which figures are taken.
    tumour, body
        bool (y, x).
    time_s
        float64 (frame,): centre of each frame.
    """

    magnitude: Float32[np.ndarray, "y x"]
    temperature: Float32[np.ndarray, "frame y x"]
    truth: Float32[np.ndarray, "frame y x"]
    sigma: Float32[np.ndarray, "frame y x"]
    heated: np.ndarray
    tumour: Bool[np.ndarray, "y x"]
    body: Bool[np.ndarray, "y x"]
    time_s: Float64[np.ndarray, "frame"]

    def figures(self) -> dict[str, Any]:
        """Return RMSE, bias and predicted σ per voxel of the tumour over the heated frames, °C.

        Raises
        ------
        DataError
            There is no reading in the tumour.
        """
        error = (self.temperature - self.truth)[self.heated][:, self.tumour]
        sigma = self.sigma[self.heated][:, self.tumour]
        valid = np.isfinite(error)
        if not valid.any():
            raise DataError(f"no reading in the tumour in {len(self.heated)} heated frames: see the log of the server.")
        return {
            "tumour_rmse_degC": round(float(np.sqrt(np.mean(error[valid] ** 2))), 4),
            "tumour_bias_degC": round(float(np.mean(error[valid])), 4),
            "tumour_sigma_degC": round(float(np.sqrt(np.mean(sigma[valid].astype(np.float64) ** 2))), 4),
            "tumour_voxels": int(valid.any(axis=0).sum()),
        }

    def tumour_percentiles(self) -> tuple[Float64[np.ndarray, "frame 3"], Float64[np.ndarray, "frame 3"]]:
        """Return T90, T50 and T10 (10th, 50th and 90th percentile) of the tumour, measured and true, °C."""

        def percentiles(frame: Float32[np.ndarray, "y x"]) -> Float64[np.ndarray, "3"]:
            values = frame[self.tumour & np.isfinite(frame)]
            return np.percentile(values, (10, 50, 90)) if values.size else np.full(3, np.nan)

        return np.stack([percentiles(f) for f in self.temperature]), np.stack([percentiles(f) for f in self.truth])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demonstration:
    """What the demonstration left behind.

    Attributes
    ----------
    figures
        The keys of ``report.json``.
    comparison
        Maps and curves, for the picture.
    latency_ms
        float64 (frame,).
    """

    figures: dict[str, Any]
    comparison: Comparison
    latency_ms: Float64[np.ndarray, "frame"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Acceleration:
    """What the accelerated part of the demonstration left behind.

    Attributes
    ----------
    figures
        The key ``accelerated`` of ``report.json``.
    comparisons
        By method, ``gridding`` and ``pdunet``; the magnitude is that of the frame shown.
    magnitude
        float32 (y, x): the object at the scan's point spread, as an array of coils sees it.
    frame
        Number of the frame shown, the last heated one.
    """

    figures: dict[str, Any]
    comparisons: Mapping[str, Comparison]
    magnitude: Float32[np.ndarray, "y x"]
    frame: int


def point_spread(image: np.ndarray) -> np.ndarray:
    """Return an image as a radial scan of Nyquist density sees it: what lies in the disc |k| ≤ 0.5.

    Parameters
    ----------
    image
        complex (y, x), square.
    """
    n = image.shape[0]
    k = np.fft.fftfreq(2 * n)
    disc = np.hypot(k[:, None], k[None, :]) <= 0.5
    padded = np.fft.fft2(image, s=(2 * n, 2 * n))
    return np.fft.ifft2(padded * disc)[:n, :n]


def seen_temperature(
    change: Float32[np.ndarray, "y x"], water: np.ndarray, fat: np.ndarray
) -> Float32[np.ndarray, "y x"]:
    """Return the temperature change that a noise-free scan shows, °C, float32 (y, x).

    A voxel's phase is that of the signal in its point spread, so the change is weighted by the signal that
    shifts: Re[(P ∗ S_w ΔT)/(P ∗ (S_w + S_f))], P the point spread, S_w and S_f water and fat.

    Parameters
    ----------
    change
        True change, °C; NaN outside of the body.
    water, fat
        Complex signal before heating, (y, x).
    """
    heated = point_spread(water * np.nan_to_num(change))
    signal = point_spread(water + fat)
    scale = np.abs(signal).max()
    quiet = np.abs(signal) <= 1e-3 * scale
    return np.where(quiet, 0.0, (heated / np.where(quiet, 1.0, signal)).real).astype(np.float32)


@contextmanager
def _serving(open_scan: OpenScan) -> Iterator[tuple[str, int]]:
    """Run a server on a free port of the loopback; yields its address."""
    server = Server(open_scan, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, name="server of the demonstration", daemon=True)
    # As `sinotherm serve` does, and more so with the client in the same process.
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    thread.start()
    try:
        yield server.address
    finally:
        server.stop()
        thread.join(60.0)
        sys.setswitchinterval(interval_s)


def _settings(protocol: Protocol) -> dict[str, dict[str, str]]:
    """Return what an operator tells the server of the scan."""
    return {
        "thermometry": {
            "phase_sign": str(protocol.phase_sign),
            "body_temperature_degc": str(BODY_TEMPERATURE_DEGC),
            "baseline_frames": str(protocol.baseline_frames),
            "drift_order": str(protocol.drift_order_space),
        },
    }


def _send(
    scan: Path,
    images: Path,
    address: tuple[str, int],
    items: Callable[[Iterator[Any]], Iterator[Any]],
) -> None:
    """Send what ``items`` makes of a scan's readouts, and store the images."""
    with MrdFile(scan) as file, ImageWriter(images, file.header_xml) as writer:
        stream(connect(*address), PIPELINE, file.header_xml, items(file.items()), writer.append)


def _warmed_pace(scan: Path, images: Path, protocol: Protocol) -> float:
    """Send the first frames as fast as possible; return a pace at which the server need not hold the client back.

    Compilation and imports, for which no scan should wait, are done after it as well.
    """
    clock = Clock()
    settings = _settings(protocol)
    settings["thermometry"]["baseline_frames"] = "1"
    most = protocol.first_readout + _WARM_FRAMES * protocol.spokes
    with _serving(clock.around(open_pipeline(values=settings))) as address:
        _send(scan, images, address, lambda items: islice(items, most))
    if len(clock.sent_s) < 2:
        return PACE
    # The first frames are held back for the calibration; the last one shows what a frame takes.
    return min(PACE, protocol.frame_s / (_SPARE * (clock.sent_s[-1] - clock.sent_s[-2])))


def _like_a_scanner(items: Iterator[Any], protocol: Protocol, pace: float, clock: Clock) -> Iterator[Any]:
    """Yield the readouts at their pace, with one rest after the first frame until its map is there.

    The calibration takes as long at any pace; at the scanner's own the second frame hides it.
    """
    yield from paced(islice(items, protocol.first_readout + protocol.spokes), pace)
    clock.calibrated.wait(_REST_S)
    yield from paced(items, pace)


def _resting_after_the_baseline(items: Iterator[Any], protocol: Protocol, clock: Clock) -> Iterator[Any]:
    """Yield the readouts, with a rest after the baseline until its maps are there, then as the network can follow.

    A guided network makes the images of all frames before heating at once, when the last of them is there.
    """
    yield from paced(islice(items, protocol.first_readout + protocol.baseline_frames * protocol.spokes), PACE)
    begin_s = monotonic()
    while len(clock.sent_s) < protocol.baseline_frames and monotonic() < begin_s + _REST_S:
        sleep(_LOOK_S)
    taken_s = (monotonic() - begin_s) / protocol.baseline_frames
    yield from paced(items, min(PACE, protocol.frame_s / (_SPARE * taken_s)))


def _unwatched(items: Iterator[Any], **_: Any) -> Iterator[Any]:
    return items


def _watched(items: Iterator[Any], protocol: Protocol, watch: Callable[..., Iterator[Any]], what: str) -> Iterator[Any]:
    return watch(items, total=protocol.n_readouts, what=f"readouts {what}, {protocol.spokes} a frame")


def _simulate(scan: Scan, path: Path, watch: Callable[..., Iterator[Any]]) -> None:
    simulate(scan, path, watch=lambda items: _watched(items, scan.protocol, watch, "simulated"))


def demonstrate(
    folder: Path,
    protocol: Protocol = DEMO,
    *,
    pace: float | None = None,
    watch: Callable[..., Iterator[Any]] = _unwatched,
) -> Demonstration:
    """Simulate a scan, stream it through a server and compare the maps with the truth.

    Leaves ``images.h5`` and the scan (``scan.h5``) in the folder.

    Parameters
    ----------
    folder
        Where to; made if it does not exist.
    protocol
        The scan.
    pace
        How many times faster than the scanner; ``None``: `PACE`, or slower where this machine cannot follow.
    watch
        A progress bar: takes items, ``total`` and ``what``, and gives the items.

    Raises
    ------
    PeerError
        The server reported a failure.
    DataError
        No map or no reading came back.
    """
    start_s = monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    scan, path, images = Scan(protocol=protocol), folder / "scan.h5", folder / "images.h5"
    _simulate(scan, path, watch)
    speed = _warmed_pace(path, images, protocol) if pace is None else pace
    logger.info("the scan is sent %.1f times faster than the scanner would", speed)
    clock = Clock()
    with _serving(clock.around(open_pipeline(values=_settings(protocol)))) as address:
        pacing = partial(_like_a_scanner, protocol=protocol, pace=speed, clock=clock)
        _send(path, images, address, lambda items: _watched(pacing(items), protocol, watch, "sent"))
    comparison = compare(scan, read_images(images))
    latency_ms = clock.latency_ms
    received = len(comparison.temperature)
    p50, p95, longest = (round(float(value), 3) for value in np.percentile(latency_ms, (50, 95, 100)))
    figures = comparison.figures() | {
        "snr": protocol.snr,
        "n_coils": protocol.n_coils,
        "matrix": protocol.matrix,
        "spokes_per_frame": protocol.spokes,
        "peak_heating_degC": round(float(np.nanmax([scan.temperature_change(n) for n in range(protocol.frames)])), 3),
        "seed": protocol.seed,
        "latency_ms": {"p50": p50, "p95": p95, "max": longest},
        "frames_expected": protocol.frames,
        "frames_received": received,
        "frames_dropped": protocol.frames - received,
        "wall_s": round(monotonic() - start_s, 2),
    }
    return Demonstration(figures=figures, comparison=comparison, latency_ms=latency_ms)


def accelerated(
    folder: Path,
    protocol: Protocol = ACCELERATED,
    *,
    watch: Callable[..., Iterator[Any]] = _unwatched,
) -> Acceleration:
    """Stream an accelerated scan through a server with the network; compare it and gridding with the truth.

    Leaves ``accelerated.h5`` (images) and the scan (``accelerated_scan.h5``) in the folder.

    Parameters
    ----------
    folder
        Where to; made if it does not exist.
    protocol
        The scan.
    watch
        As in `demonstrate`.

    Raises
    ------
    PeerError
        The server reported a failure.
    DataError
        No map or no reading came back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scan, path, images = Scan(protocol=protocol), folder / "accelerated_scan.h5", folder / "accelerated.h5"
    _simulate(scan, path, watch)
    settings, clock = _settings(protocol) | {"reconstruction": {"method": "pdunet"}}, Clock()
    # Time runs faster than a scanner's: while the network makes the baseline's images, 60 frames would pass.
    settings["thermometry"]["stale_intervals"] = "1000"
    with _serving(clock.around(open_pipeline(values=settings))) as address:
        pacing = partial(_resting_after_the_baseline, protocol=protocol, clock=clock)
        _send(path, images, address, lambda items: _watched(pacing(items), protocol, watch, "sent"))
    return accelerated_figures(scan, images)


def accelerated_figures(scan: Scan, images: Path) -> Acceleration:
    """Return the figures and the maps of an accelerated scan's images, as `accelerated` does.

    Raises
    ------
    DataError
        A series is missing, or a method has no reading in the tumour.
    """
    protocol, series = scan.protocol, read_images(images)
    offsets = {"gridding": BESIDE, "pdunet": 0}
    comparisons = {method: compare(scan, series, offset=offset) for method, offset in offsets.items()}
    tripped = ((series[VALIDITY].data[:, 0, 0] & NoReading.GUARD) != 0).any(axis=(1, 2))
    figures: dict[str, Any] = {
        "spokes_per_frame": protocol.spokes,
        "frames_expected": protocol.frames,
        "baseline_frames": protocol.baseline_frames,
        "guard_trips": int(tripped.sum()),
    }
    for method, shown in comparisons.items():
        error = (shown.temperature - shown.truth)[shown.heated][:, shown.tumour]
        sigma = shown.sigma[shown.heated][:, shown.tumour]
        valid = np.isfinite(error)
        figures[method] = shown.figures() | {
            "within_1.96_sigma": round(float(np.mean(np.abs(error[valid]) <= 1.96 * sigma[valid])), 4),
            "frames_received": len(shown.temperature),
        }
    frame = protocol.frames - protocol.cooling_frames - 1
    water, fat = scan.signal()
    return Acceleration(
        figures=figures,
        comparisons={
            method: replace(shown, magnitude=series[MAGNITUDE + offsets[method]].data[frame, 0, 0])
            for method, shown in comparisons.items()
        },
        magnitude=(np.abs(point_spread(water + fat)) * scan.coils.optimal_signal()).astype(np.float32),
        frame=frame,
    )


def compare(scan: Scan, series: Mapping[int, ImageSeries], *, offset: int = 0) -> Comparison:
    """Return the maps that came back beside the truth of their scan.

    Parameters
    ----------
    scan, series
        The simulated scan, and what came back, from `read_images`.
    offset
        Added to the numbers of the series: `BESIDE` for what goes beside a network's.

    Raises
    ------
    DataError
        A series is missing, or there are more maps than frames.
    """
    magnitude, temperature, sigma = (number + offset for number in (MAGNITUDE, TEMPERATURE, UNCERTAINTY))
    missing = [number for number in (magnitude, temperature, sigma) if number not in series]
    if missing:
        raise DataError(f"series {missing} did not come back; there are {sorted(series)}.")
    protocol = scan.protocol
    frames = len(series[temperature].data)
    if frames > protocol.frames:
        raise DataError(f"{frames} temperature maps of a scan of {protocol.frames} frames.")
    water, fat = scan.signal()
    truth = np.stack(
        [
            seen_temperature(scan.temperature_change(number), water, fat) + np.float32(BODY_TEMPERATURE_DEGC)
            for number in range(frames)
        ]
    )
    return Comparison(
        magnitude=series[magnitude].data[:, 0, 0].mean(axis=0),
        temperature=series[temperature].data[:, 0, 0],
        truth=truth,
        sigma=series[sigma].data[:, 0, 0],
        heated=np.arange(protocol.baseline_frames, frames),
        tumour=scan.anatomy.tumour,
        body=scan.anatomy.body,
        time_s=np.arange(frames) * protocol.interval_s + 0.5 * protocol.frame_s,
    )
