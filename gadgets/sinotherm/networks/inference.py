"""Networks at run time: reduced precision, warm-up, operators kept between frames, the guard's residuals."""

import copy
import hashlib
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from sinotherm.core.arrays import ComplexArray, FrameData, MaskArray, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import Sinogram
from sinotherm.errors import DataError, SettingsError, WeightsError
from sinotherm.networks.blocks import DualBlock
from sinotherm.networks.fused import FusedDualBlock, FusedUNet, fusable
from sinotherm.networks.guard import (
    Guard,
    Verdict,
    estimate_snr,
    held_out_spokes,
    noise_energy,
    relative_residual,
)
from sinotherm.networks.primal_dual import PrimalDual
from sinotherm.networks.radial import RadialSinogram, SinogramBackend, upsample
from sinotherm.networks.unet import UNet
from sinotherm.networks.weights import load_network
from sinotherm.operators.backend import Device, choose_device, has_bfloat16
from sinotherm.operators.coils import adaptive_maps
from sinotherm.operators.density import readout_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points

__all__ = [
    "Device",
    "Precision",
    "RadialReconstructor",
    "Runtime",
    "Symmetries",
    "choose_device",
    "choose_precision",
    "estimate_maps",
    "sped_up",
]

logger = logging.getLogger(__name__)

Precision: TypeAlias = Literal["auto", "bfloat16", "float32"]
Runtime: TypeAlias = Literal["torch", "openvino"]
Symmetries: TypeAlias = Literal[1, 2, 4, 8]

FEWEST_GUARDED: Final = 8

_KEPT_MODELS: Final = 16
"""Compiled blocks: those of four networks, or of one network for four sizes."""


def estimate_maps(
    samples: FrameData, sampling: RadialSampling, angles: SpokeAngles, side: int, *, shifts: SpokeShifts | None = None
) -> ComplexArray:
    """Return coil maps, complex64 (coil, side, side), Σ|s|² = 1, from the part of k-space that is sampled densely.

    Parameters
    ----------
    samples
        complex64 (coil, spoke, readout).
    sampling, angles
        Where the samples lie on every spoke; rad, float64 (spoke,).
    side
        Pixels.
    shifts
        cycles per pixel, (spoke, 2).
    """
    if len(samples) == 1:
        return np.ones((1, side, side), dtype=np.complex64)
    radius = np.abs(sampling.positions)
    dense = min(0.5, max(len(angles) / (math.pi * side), 4.0 / side))
    window = np.where(radius < dense, np.cos(np.pi / 2.0 * np.minimum(radius / dense, 1.0)) ** 2, 0.0)
    weights = (readout_weights(sampling, centre="area") * window * math.pi / len(angles)).astype(np.float32)
    plan = FinufftPlan((side, side), len(samples))
    plan.set_points(radial_points(angles, sampling, shifts).reshape(-1, 2))
    return adaptive_maps(plan.adjoint((samples * weights).astype(np.complex64).reshape(len(samples), -1)))


@cache
def _openvino_core() -> Any:
    """Return the one core of this process.

    OpenVINO's CPU plugin gives the thread a signal stack, and frees it with the last core that uses the
    plugin: the next signal would end the process.
    """
    import openvino

    return openvino.Core()


class _CompiledModels:
    """What OpenVINO has compiled in this process, used last at the end: it takes seconds, and a scan would wait."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._models: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def request(self, key: tuple[Any, ...], compiled: Callable[[], Any]) -> Any:
        """Return a request of one's own to the model of this key, which is compiled where there is none yet."""
        with self._lock:
            self._models[key] = self._models.pop(key) if key in self._models else compiled()
            model = self._models[key]
            while len(self._models) > self._size:
                self._models.popitem(last=False)
        return model.create_infer_request()


_compiled_models = _CompiledModels(_KEPT_MODELS)


class _OpenVinoBlock(nn.Module):
    """A primal block compiled by OpenVINO for the shape of its input; the same signature as `UNet`."""

    def __init__(self, block: nn.Module, *, precision: Precision, threads: int) -> None:
        super().__init__()
        self.block = block
        self.multiple = block.multiple
        self.memory_out = block.memory_out
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        weights = hashlib.sha256(repr(block).encode())
        for value in block.state_dict().values():
            weights.update(value.numpy().tobytes())
        self._kind = (weights.hexdigest(), *self._settings.values())
        self._requests: dict[tuple[int, ...], Any] = {}

    def forward(self, image: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        inputs = [image] if memory is None else [image, memory.float()]
        shape = tuple(image.shape)
        if shape not in self._requests:
            self._requests[shape] = _compiled_models.request((*self._kind, shape), lambda: self._compile(inputs))
        answers = self._requests[shape].infer([value.contiguous().numpy() for value in inputs])
        correction = torch.from_numpy(np.array(answers[0]))
        return correction, torch.from_numpy(np.array(answers[1])) if self.memory_out else None

    def _compile(self, inputs: list[Tensor]) -> Any:
        import openvino

        block = self.block

        class Traced(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = block

            def forward(self, *values: Tensor) -> Any:
                correction, kept = self.block(*values)
                return correction if kept is None else (correction, kept)

        model = openvino.convert_model(Traced().eval(), example_input=tuple(inputs))
        model.reshape({index: list(value.shape) for index, value in enumerate(inputs)})
        return _openvino_core().compile_model(model, "CPU", self._settings)


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the precision; ``auto``: bfloat16 where the device computes in it."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16(device) else "float32"


def sped_up(network: PrimalDual, *, precision: Precision = "auto", runtime: Runtime = "torch") -> PrimalDual:
    """Return a copy whose blocks run in the given precision; operators and sums stay in single precision.

    In bfloat16 blocks become fused ones where `fused.fusable` says so; elsewhere, on CUDA, or with layers that have
    none, they run eagerly.

    Raises
    ------
    SettingsError
        OpenVINO is asked for and is not installed.
    """
    network = copy.deepcopy(network).eval()
    if network.architecture.layers == "complex":
        # Their parts are mixed anew in every layer; they stay as they are.
        return network
    device = next(network.parameters()).device
    precision, on_cpu = choose_precision(precision, device), device.type == "cpu"
    if runtime == "openvino" and on_cpu:
        try:
            import openvino  # noqa: F401
        except ImportError:
            raise SettingsError("runtime openvino is not installed: pip install 'sinotherm[openvino]'.") from None
        network.primal = nn.ModuleList(
            _OpenVinoBlock(block, precision=precision, threads=torch.get_num_threads()) for block in network.primal
        )
    if precision == "float32":
        return network
    if fusable() and on_cpu:
        network.primal = nn.ModuleList(FusedUNet(b) if isinstance(b, UNet) else b for b in network.primal)
        network.dual = nn.ModuleList(FusedDualBlock(b) if isinstance(b, DualBlock) else b for b in network.dual)
    for block in network.primal:
        if not isinstance(block, _OpenVinoBlock):
            block.to(torch.bfloat16)
    for block in network.dual:
        if not isinstance(block, FusedDualBlock):
            # The first layer takes the whole sinogram, whose rounding error the ramp filter would
            # amplify; it stays in single precision, which costs next to nothing.
            for layer in list(block.convolutions)[1:]:  # type: ignore[arg-type]
                layer.to(torch.bfloat16)
    return network


class RadialReconstructor:
    """A radial network with its card and guard, ready for frame after frame.

    Parameters
    ----------
    weights
        Name of shipped weights or path of a file.
    device, precision, runtime
        Where and how its blocks run.
    operators
        What computes T and T⁺; the fastest by default.
    symmetries
        Over how many symmetries of the square the image blocks' corrections are averaged: 1, 2, 4 or 8.

    Attributes
    ----------
    precision
        In which its blocks run.

    Raises
    ------
    WeightsError
        The weights are missing, altered, or not of a radial network.
    """

    def __init__(
        self,
        weights: str | Path = "pdunet-radial",
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        runtime: Runtime = "torch",
        operators: SinogramBackend | None = None,
        symmetries: Symmetries = 1,
    ) -> None:
        self.device = choose_device(device)
        fastest: SinogramBackend = "fused" if self.device.type == "cpu" else "auto"
        self._backend: SinogramBackend = operators or fastest
        network, self.card = load_network(weights, self.device)
        if not isinstance(network, PrimalDual) or self.card.geometry != "radial":
            raise WeightsError(
                f"weights {weights} are a {self.card.network} network for {self.card.geometry} data: "
                "a primal-dual network for radial data is needed."
            )
        self.precision = choose_precision(precision, self.device)
        self.network = sped_up(network, precision=self.precision, runtime=runtime)
        self.network.symmetries = symmetries
        self.guard = Guard(self.card)
        self._operators: dict[str, tuple[tuple[Any, ...], RadialSinogram]] = {}
        self._maps: tuple[ComplexArray, Tensor] | None = None

    @property
    def guided(self) -> bool:
        """Whether the network reconstructs the change since a reference image."""
        return self.network.architecture.reference

    def _device_maps(self, maps: ComplexArray) -> Tensor:
        if self._maps is None or self._maps[0] is not maps:
            self._maps = (maps, torch.from_numpy(np.ascontiguousarray(maps)).to(self.device))
        return self._maps[1]

    def _operator(
        self, use: str, sampling: RadialSampling, angles: SpokeAngles, maps: ComplexArray, shifts: SpokeShifts | None
    ) -> RadialSinogram:
        """Return the operator of these spokes; the same spokes as last time cost nothing."""
        key = (sampling, maps.shape, angles.tobytes(), None if shifts is None else shifts.tobytes())
        tensor = self._device_maps(maps)
        if use not in self._operators or self._operators[use][0] != key:
            self._operators[use] = (
                key,
                RadialSinogram(
                    sampling, angles, n_pixels=maps.shape[-1], maps=tensor, shifts=shifts, backend=self._backend
                ),
            )
        return self._operators[use][1].with_maps(tensor)

    def warm_up(self, sampling: RadialSampling, angles: SpokeAngles, maps: ComplexArray) -> None:
        """Run once on nothing, so that plans, kernels and compiled blocks exist before the first frame."""
        samples = np.zeros((len(maps), len(angles), sampling.n_readout), dtype=np.complex64)
        reference = maps[0] if self.guided else None
        self.reconstruct(samples, sampling, angles, maps, reference=reference)
        logger.info("network %s is warm on %s", self.card.name, self.device)

    def reconstruct(
        self,
        samples: FrameData,
        sampling: RadialSampling,
        angles: SpokeAngles,
        maps: ComplexArray,
        *,
        shifts: SpokeShifts | None = None,
        reference: ComplexArray | None = None,
        still: MaskArray | None = None,
        use: str = "frame",
    ) -> tuple[ComplexArray, RadialSinogram]:
        """Return the image, complex64 (y, x), in units of the object, and its operator.

        Parameters
        ----------
        samples
            complex64 (coil, spoke, readout), in order of acquisition.
        sampling, angles
            Where the samples lie on every spoke; rad, float64 (spoke,).
        maps
            complex64 (coil, y, x), Σ|s|² = 1.
        shifts
            cycles per pixel, (spoke, 2).
        reference
            Pre-heating image, complex64 (y, x), turned by the drift since: a reference-guided network needs
            it, and reconstructs the change.
        still
            bool (y, x): what of the reference cannot change, as in `PrimalDual.forward`.
        use
            Slot of the kept operator.

        Raises
        ------
        DataError
            The network is guided and there is no reference, or the other way round; or the shapes do not go
            together.
        """
        if self.guided != (reference is not None):
            needs = "needs a reference image" if self.guided else "takes no reference image"
            raise DataError(f"network {self.card.name} {needs}: use weights that fit the task.")
        coils, spokes, size = len(maps), len(angles), maps.shape[-1]
        needed = {
            "samples": (samples, (coils, spokes, sampling.n_readout)),
            "maps": (maps, (coils, size, size)),
            "shifts": (shifts, (spokes, 2)),
            "reference": (reference, (size, size)),
            "still": (still, (size, size)),
        }
        for name, (given, shape) in needed.items():
            if given is not None and given.shape != shape:
                raise DataError(
                    f"{name} of shape {given.shape} with {spokes} angles and maps of shape {maps.shape}: {shape} is "
                    "needed."
                )
        guide = None if reference is None else torch.from_numpy(np.ascontiguousarray(reference, np.complex64))
        kept = None if still is None else torch.from_numpy(np.ascontiguousarray(still, bool))
        operator = self._operator(use, sampling, angles, maps, shifts)
        with torch.inference_mode():
            measured = operator.order(torch.from_numpy(samples).to(self.device)[None])
            image = self.network(
                measured,
                operator,
                reference=None if guide is None else guide.to(self.device)[None],
                still=None if kept is None else kept.to(self.device)[None],
            )[0]
        return image.cpu().numpy(), operator

    def full_sinogram(self, samples: FrameData, image: ComplexArray, operator: RadialSinogram) -> Sinogram:
        """Return the sinogram with as many angles as the image has rows times π/2: the Nyquist number.

        Parameters
        ----------
        samples
            complex64 (coil, spoke, readout), in order of acquisition.
        image, operator
            As `reconstruct` made them of the samples.
        """
        with torch.inference_mode():
            measured = operator.order(torch.from_numpy(samples).to(self.device)[None])
            shown = torch.from_numpy(image).to(self.device)[None]
            full = upsample(shown, operator, measured, round(math.pi / 2.0 * image.shape[-1]))
            # The network's projections are means over the readout; a line integral has the samples' spacing.
            data = full.sinogram[0] * (operator.sampling.n_readout * operator.sampling.spacing)
        return Sinogram(data=data.cpu().numpy(), angles=full.angles, measured=full.measured)

    def check(
        self,
        samples: FrameData,
        sampling: RadialSampling,
        angles: SpokeAngles,
        maps: ComplexArray,
        image: ComplexArray,
        operator: RadialSinogram,
        *,
        fov_m: float,
        frame: int = 0,
        shifts: SpokeShifts | None = None,
        reference: ComplexArray | None = None,
        still: MaskArray | None = None,
        residuals: bool = True,
    ) -> Verdict:
        """Return the guard's verdict on an image of `reconstruct`.

        With ``residuals`` the network runs a second time, without every eighth spoke.

        Raises
        ------
        WeightsError
            The card has no limits for residuals.
        """
        data = torch.from_numpy(samples)
        noise = noise_energy(data, sampling)
        size = maps.shape[-1]
        snr = estimate_snr(torch.from_numpy(image), float(noise), sampling)
        verdict = self.guard.range_verdict(
            spokes=len(angles), coils=len(samples), pixels=size, fov_m=fov_m, snr=min(snr, 1e9)
        )
        if verdict.trips or not residuals or len(angles) < FEWEST_GUARDED:
            return verdict
        found = self.residuals(
            samples,
            sampling,
            angles,
            maps,
            image,
            operator,
            frame=frame,
            shifts=shifts,
            reference=reference,
            still=still,
        )
        judged = self.guard.residual_verdict(spokes=len(angles), **found)
        return Verdict(trips=judged.trips, reason=judged.reason, numbers={**verdict.numbers, **judged.numbers})

    def residuals(
        self,
        samples: FrameData,
        sampling: RadialSampling,
        angles: SpokeAngles,
        maps: ComplexArray,
        image: ComplexArray,
        operator: RadialSinogram,
        *,
        frame: int = 0,
        shifts: SpokeShifts | None = None,
        reference: ComplexArray | None = None,
        still: MaskArray | None = None,
    ) -> dict[str, float]:
        """Return the guard's two residuals: ``held_out`` (RMS over left-out spokes) and ``spoke`` (largest used)."""
        data = torch.from_numpy(samples)
        noise = noise_energy(data, sampling)
        with torch.inference_mode():
            shown = torch.from_numpy(image).to(self.device)[None]
            own = relative_residual(data, operator.restore(operator.forward(shown))[0].cpu(), noise)
        # By θ mod π, so that what is left out is spread evenly.
        places = operator.order_index.cpu().numpy()
        left = np.sort(places[held_out_spokes(len(angles), frame)])
        kept = np.setdiff1d(np.arange(len(angles)), left)
        part = None if shifts is None else shifts[kept]
        rest = None if shifts is None else shifts[left]
        guess, _ = self.reconstruct(
            np.ascontiguousarray(samples[:, kept]),
            sampling,
            angles[kept],
            maps,
            shifts=part,
            reference=reference,
            still=still,
            use="kept",
        )
        unseen = self._operator("held out", sampling, angles[left], maps, rest)
        with torch.inference_mode():
            predicted = unseen.restore(unseen.forward(torch.from_numpy(guess).to(self.device)[None]))[0].cpu()
        held_out = relative_residual(data[:, torch.from_numpy(left)], predicted, noise)
        return {"held_out": float(held_out.square().mean().sqrt()), "spoke": float(own.max())}
