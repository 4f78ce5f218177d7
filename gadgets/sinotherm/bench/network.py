"""The network stage alone: the fast path against the same weights run eagerly, in one run.

From samples in memory to the image, operators included, set-up of operators and weights not: they are made
once a scan. All candidates take turns, so that what else the machine does meets them alike. Errors are
relative to the learned correction, what the eager network changes of its operator's T⁺.
"""

import importlib.util
import logging
import os
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from sinotherm.bench.operators import MATRIX, radial_problem
from sinotherm.errors import SettingsError
from sinotherm.networks.inference import Device, Runtime, choose_device, choose_precision, estimate_maps, sped_up
from sinotherm.networks.paper import MagnitudeSinogram, PaperPrimalDual
from sinotherm.networks.primal_dual import Architecture, PrimalDual
from sinotherm.networks.radial import RadialSinogram, SinogramBackend
from sinotherm.networks.weights import load_network

__all__ = ["EAGER", "PAPER", "figures", "random_network"]

logger = logging.getLogger(__name__)

EAGER: Final = "eager float32"
PAPER: Final = "pdunet-paper, eager float32"
_ARCHITECTURE: Final = Architecture(iterations=4, primal_features=(32, 64, 112, 112), dual_features=24, memory=16)


def random_network(architecture: Architecture = _ARCHITECTURE) -> PrimalDual:
    """Return a network whose random corrections are of the image's size, as no trained network's are larger."""
    torch.manual_seed(0)
    network = PrimalDual(architecture)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.1)
    blocks: list[Any] = [*network.primal, *network.dual]
    for block in blocks[: architecture.iterations]:
        nn.init.normal_(block.head.weight, std=0.02)
    for block in blocks[architecture.iterations :]:
        nn.init.normal_(block.convolutions[-1].weight, std=0.01)
    return network.eval()


def _network(name: str | None, device: torch.device) -> PrimalDual:
    if name is None:
        return random_network().to(device)
    network, card = load_network(name, device)
    if not isinstance(network, PrimalDual) or card.geometry != "radial" or network.architecture.reference:
        raise SettingsError(f"network {name}: a primal-dual network for radial data without a reference is needed.")
    return network


def _candidates(
    name: str | None, device: torch.device, coils: int, spokes: int
) -> tuple[dict[str, Callable[[], Tensor]], Tensor]:
    """Return a call for each candidate, and T⁺ of the measurement."""
    scan = radial_problem(MATRIX, coils, spokes)
    maps = torch.from_numpy(estimate_maps(scan.data, scan.sampling, scan.angles, MATRIX)).to(device)
    network = _network(name, device)

    def operator(backend: SinogramBackend) -> RadialSinogram:
        return RadialSinogram(scan.sampling, scan.angles, n_pixels=MATRIX, maps=maps, backend=backend)

    cpu = device.type == "cpu"
    plain, fast = operator("finufft" if cpu else "auto"), operator("fused" if cpu else "auto")
    measured = plain.order(torch.from_numpy(scan.data).to(device)[None])
    calls: dict[str, Callable[[], Tensor]] = {EAGER: lambda: network(measured, plain)}
    runtimes: tuple[Runtime, ...] = ("torch",)
    if cpu and importlib.util.find_spec("openvino") is not None:
        runtimes += ("openvino",)
    precision = choose_precision("auto", device)
    for runtime in runtimes:
        quick = sped_up(network, precision=precision, runtime=runtime)
        calls[f"sinotherm, {runtime} {precision}"] = lambda quick=quick: quick(measured, fast)  # type: ignore[misc]
    if not cpu:
        mixed = _network(name, device)
        mixed.reduced = torch.bfloat16
        calls["autocast bfloat16"] = lambda: mixed(measured, fast)
        return calls, plain.inverse(measured)
    paper = PaperPrimalDual().eval()
    magnitude = MagnitudeSinogram(scan.sampling, scan.angles, n_pixels=MATRIX)
    projections = magnitude.measured(torch.from_numpy(scan.data[None, :1]))
    calls[PAPER] = lambda: paper(projections, magnitude)
    return calls, plain.inverse(measured)


def figures(
    *, coils: int = 8, spokes: int = 34, frames: int = 30, device: Device = "cpu", network: str | None = None
) -> dict[str, Any]:
    """Return the figures: times of each candidate with its error, and the load before and after.

    Parameters
    ----------
    coils, spokes
        Of a frame; `PAPER` takes one coil.
    frames
        Calls of each candidate that count, after two to warm up.
    device
        Where all run.
    network
        Name of shipped weights or path of a file; ``None``: random weights of the shipped architecture.

    Raises
    ------
    SettingsError
        The weights are of another kind of network, or the device is missing.
    WeightsError
        The weights are missing.
    """
    place = choose_device(device)
    before = round(os.getloadavg()[0], 2)
    times_s: dict[str, list[float]] = {}
    with torch.inference_mode():
        calls, start = _candidates(network, place, coils, spokes)
        images = {name: call() for name, call in calls.items()}
        for call in calls.values():
            call()
        for _ in range(frames):
            for name, call in calls.items():
                times_s.setdefault(name, []).append(_seconds(call, place))
    correction = torch.linalg.vector_norm(images[EAGER] - start)
    medians_s = {name: statistics.median(values) for name, values in times_s.items()}
    rows = [
        {
            "candidate": name,
            "coils": 1 if name == PAPER else coils,
            "spokes": spokes,
            "weights": None if name == PAPER else network,
            "time_p50_ms": round(1e3 * medians_s[name], 3),
            "time_p95_ms": round(1e3 * float(np.percentile(values, 95)), 3),
            "ratio_to_eager": round(medians_s[name] / medians_s[EAGER], 3),
            "ratio_to_paper": round(medians_s[name] / medians_s[PAPER], 3) if PAPER in medians_s else None,
            "error_to_correction": None
            if name == PAPER
            else float(torch.linalg.vector_norm(images[name] - images[EAGER]) / correction),
        }
        for name, values in times_s.items()
    ]
    return {
        "frames": frames,
        "device": place.type,
        "load_before": before,
        "load_after": round(os.getloadavg()[0], 2),
        "results": rows,
    }


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    start = perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start
