"""The signal of a scan, and the truth behind it.

Signal of a coil c at time t after the pulse of a spoke that starts at time T:

    s(k, t) = Σ_x c(x) exp(−2πi k·x) [ρ_w(x) exp(2πi ς (Δf + f0 α ΔT) t) + ρ_f(x) exp(2πi ς (Δf + f0 δ) t)]

with Δf(x, T) the static field and its drift (Hz), ΔT(x, T) the heating (°C), δ the chemical shift of fat
and ς = ±1 the receiver's phase sign. Phase accrues during the readout: t = TE + (i − i_centre)·dwell.
T2* decay during the readout and the change of T1 by heat are left out.

The images behind all samples of a scan differ little from each other: polynomials through a few nodes
in T and t interpolate them to 3e-5, and a singular value decomposition expands the nodes into a few
images, each of which is transformed once (time segmentation with optimal basis: Fessler et al. 2005,
10.1109/TSP.2005.853152). Fat's shift is one number; its phase is applied to the samples and is exact.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Complex64, Float32, Float64

from sinotherm.core.arrays import ComplexArray, FloatArray, FrameData, SpokeAngles
from sinotherm.core.geometry import spoke_angles
from sinotherm.core.physics import BODY_TEMPERATURE_DEGC, FAT_SHIFT, PRF_COEFFICIENT
from sinotherm.errors import SettingsError
from sinotherm.simulation.coils import CoilArray, coil_array
from sinotherm.simulation.drift import FieldDrift, random_drift, static_field
from sinotherm.simulation.heating import Bioheat, absorbed_power
from sinotherm.simulation.phantoms import TISSUES, Anatomy, Scene, anatomy_of_image, gradient_echo, scene_named
from sinotherm.simulation.protocol import Protocol

__all__ = ["Scan", "chebyshev_nodes", "interpolation_weights", "ranked"]

logger = logging.getLogger(__name__)

SNR_SPOKES: Final = 402
"""Spokes of the reconstruction in which the SNR is stated."""
STEPS_PER_FRAME: Final = 4
"""Steps of the bioheat equation, and degree of the polynomials in time, from a frame to the next."""

_TOLERANCE: Final = 3e-5
_MOST_FRAMES: Final = 64
_FIRST_SKETCH: Final = 16
_CACHED_SPOKES: Final = 16


def interpolation_weights(nodes: FloatArray, points: FloatArray) -> Float64[np.ndarray, "point node"]:
    """Return the weights of Lagrange's interpolation polynomial, float64 (point, node).

    Berrut and Trefethen 2004, 10.1137/S0036144502417715.
    """
    difference = nodes[:, None] - nodes[None, :]
    np.fill_diagonal(difference, 1.0)
    barycentric = 1.0 / difference.prod(axis=1)
    distance = points[:, None] - nodes[None, :]
    hit = np.abs(distance) <= 1e-14 * (np.ptp(nodes) or 1.0)
    weights = barycentric / np.where(hit, 1.0, distance)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.where(hit.any(axis=1, keepdims=True), hit.astype(np.float64), weights)


def chebyshev_nodes(half_width: float, bound: float, *, tolerance: float = _TOLERANCE) -> FloatArray:
    """Return nodes on [−h, h] that interpolate exp(iωτ), |ω| ≤ bound, to the tolerance.

    The error of n Chebyshev nodes is at most (ωh)^n/(2^(n−1) n!).
    """
    phase, n = abs(bound) * half_width, 1
    while phase**n / (2.0 ** (n - 1) * math.factorial(n)) > tolerance:
        n += 1
    return half_width * np.cos(np.pi * (np.arange(n) + 0.5) / n)


def ranked(
    columns: ComplexArray, *, tolerance: float = _TOLERANCE
) -> tuple[Complex64[np.ndarray, "row rank"], Complex64[np.ndarray, "rank column"]]:
    """Return the smallest basis that holds the columns to the tolerance, and their coefficients.

    Randomised singular value decomposition (Halko et al. 2011, 10.1137/090771806): the columns are
    smooth functions of two parameters, their singular values fall geometrically.

    Parameters
    ----------
    columns
        complex64 (row, column).
    tolerance
        Singular values below this part of the largest are dropped.
    """
    random = np.random.default_rng(0)
    n = columns.shape[1]
    size = min(n, _FIRST_SKETCH)
    while True:
        sketch = random.standard_normal((n, size), dtype=np.float32)
        frame, _ = np.linalg.qr(columns @ sketch)
        left, values, right = np.linalg.svd(frame.conj().T @ columns, full_matrices=False)
        rank = int(np.count_nonzero(values > tolerance * values[0]))
        if rank < size or size == min(columns.shape):
            return frame @ left[:, :rank], values[:rank, None] * right[:rank]
        size = min(2 * size, *columns.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Component:
    """Samples of one chemical species in a block of frames.

    Attributes
    ----------
    basis
        complex64 (rank, coil, spoke, readout): k-space of each image of the basis.
    courses
        complex64 (rank, node in time, node in the readout).
    within
        float64 (readout, node in the readout): interpolation in the readout.
    phase
        complex64 (readout,): the exact phase of the chemical shift.
    """

    basis: Complex64[np.ndarray, "rank coil spoke readout"]
    courses: Complex64[np.ndarray, "rank time segment"]
    within: Float64[np.ndarray, "readout segment"]
    phase: Complex64[np.ndarray, "readout"]

    def add_to(self, data: FrameData, first_node: int, between: Float64[np.ndarray, "spoke node"]) -> None:
        """Add the samples of the spokes whose nodes in time begin at ``first_node``."""
        pieces = self.courses[:, first_node : first_node + between.shape[1]]
        readout = (self.within.T * self.phase).astype(np.complex64)
        times = between.astype(np.complex64)
        # A few spokes at a time stay in the processor's cache.
        for start in range(0, len(between), _CACHED_SPOKES):
            part = slice(start, min(start + _CACHED_SPOKES, len(between)))
            for image, piece in zip(self.basis, pieces, strict=True):
                data[:, part] += image[:, part] * (times[part] @ piece @ readout)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A simulated scan: its parts, made when first asked for, and its frames.

    Attributes
    ----------
    protocol
        Its settings.
    image
        float (y, x), square of side ``matrix``: a magnitude image as object in place of the scene's ellipses.
    """

    protocol: Protocol
    image: FloatArray | None = None
    _seeds: Mapping[str, np.random.SeedSequence] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.image is not None and self.protocol.kspace == "analytic":
            raise SettingsError("an image has no exact shapes: take kspace = nufft for it.")
        # Each part has a stream of its own: changing one setting leaves the others as they were.
        parts = ("scene", "coils", "drift", "field", "noise")
        streams = np.random.SeedSequence(self.protocol.seed).spawn(len(parts))
        object.__setattr__(self, "_seeds", dict(zip(parts, streams, strict=True)))

    def random(self, part: str) -> np.random.Generator:
        """Return the generator of a part of the scan, from its start."""
        return np.random.default_rng(self._seeds[part])

    @cached_property
    def scene(self) -> Scene:
        """The scene, a little different for each seed."""
        return scene_named(self.protocol.scene).varied(self.random("scene"))

    @cached_property
    def anatomy(self) -> Anatomy:
        """The body on the reconstructed grid."""
        if self.image is not None:
            return anatomy_of_image(self.image, self.scene, fat=self.protocol.fat)
        return self.scene.rasterise(
            self.protocol.matrix,
            echo_time_s=self.protocol.echo_time_s,
            repetition_time_s=self.protocol.repetition_time_s,
            flip_angle_rad=self.protocol.flip_angle_rad,
            fat=self.protocol.fat,
        )

    @cached_property
    def coils(self) -> CoilArray:
        """Coil maps and noise covariance."""
        return coil_array(
            self.protocol.n_coils,
            body=self.anatomy.body,
            fov_m=self.anatomy.fov_m,
            random=self.random("coils"),
        )

    @cached_property
    def field_hz(self) -> Float64[np.ndarray, "y x"]:
        """Static off-resonance, Hz."""
        return static_field(self.protocol.field_hz, body=self.anatomy.body, random=self.random("field"))

    @cached_property
    def drift(self) -> FieldDrift:
        """Drift of the field, 0 at the first spoke of the first frame."""
        return random_drift(
            self.protocol.drift_hz,
            order_space=self.protocol.drift_order_space,
            order_time=self.protocol.drift_order_time,
            duration_s=self.protocol.frames * self.protocol.interval_s,
            body=self.anatomy.body,
            random=self.random("drift"),
        )

    @cached_property
    def heating(self) -> Float32[np.ndarray, "time pixel"]:
        """Temperature change of the body's pixels at the ends of the time steps, °C; four steps a frame."""
        protocol = self.protocol
        steps = STEPS_PER_FRAME * protocol.frames
        if protocol.peak_degc == 0.0:
            return np.zeros((steps + 1, int(self.anatomy.body.sum())), dtype=np.float32)
        switched = np.zeros(steps)
        on = STEPS_PER_FRAME * protocol.baseline_frames
        switched[on : steps - STEPS_PER_FRAME * protocol.cooling_frames] = 1.0
        source, width_m = protocol.heating
        power = absorbed_power(self.anatomy, source, width_m=width_m)
        # The equation is linear: solve for a power that lies in the right range, then scale.
        course = Bioheat.of(self.anatomy).solve(power * 1e5, switched, step_s=protocol.interval_s / STEPS_PER_FRAME)
        peak = max(float(self._window(course, number).max()) for number in range(protocol.frames))
        return course * np.float32(protocol.peak_degc / peak) if peak > 0.0 else course

    @cached_property
    def _between(self) -> Float64[np.ndarray, "spoke node"]:
        """Interpolation from the nodes of a frame to the start of each spoke."""
        nodes = np.linspace(0.0, self.protocol.interval_s, STEPS_PER_FRAME + 1)
        return interpolation_weights(nodes, np.arange(self.protocol.spokes) * self.protocol.repetition_time_s)

    def _window(self, course: Float32[np.ndarray, "time pixel"], number: int) -> Float32[np.ndarray, "pixel"]:
        first = STEPS_PER_FRAME * number
        return self._between.mean(axis=0).astype(np.float32) @ course[first : first + STEPS_PER_FRAME + 1]

    def temperature_change(self, number: int) -> Float32[np.ndarray, "y x"]:
        """Return ΔT averaged over the spokes of a frame, °C, float32 (y, x); NaN outside of the body."""
        result = np.full(self.anatomy.body.shape, np.nan, dtype=np.float32)
        result[self.anatomy.body] = self._window(self.heating, number)
        return result

    def temperature(self, number: int) -> Float32[np.ndarray, "y x"]:
        """Return the temperature averaged over the spokes of a frame, °C, float32 (y, x)."""
        return self.temperature_change(number) + np.float32(BODY_TEMPERATURE_DEGC)

    def signal(self) -> tuple[Complex64[np.ndarray, "y x"], Complex64[np.ndarray, "y x"]]:
        """Return the complex images of water and fat at TE before drift and heat, complex64 (y, x)."""
        sign, echo = self.protocol.phase_sign, self.protocol.echo_time_s
        turn = np.exp(2j * np.pi * sign * echo * self.field_hz)
        shift = np.exp(2j * np.pi * sign * echo * FAT_SHIFT * self.protocol.larmor_hz)
        return (self.anatomy.water * turn).astype(np.complex64), (self.anatomy.fat * turn * shift).astype(np.complex64)

    @cached_property
    def noise_sd(self) -> float:
        """SD of the real part of a sample's noise that gives the stated SNR, before the coils' covariance."""
        if math.isinf(self.protocol.snr):
            return 0.0
        sampling = self.protocol.sampling
        weights = sampling.spacing * np.abs(sampling.positions) * (math.pi / SNR_SPOKES)
        voxel = math.sqrt(SNR_SPOKES * float(np.sum(weights**2)))
        signal = (self.anatomy.water + self.anatomy.fat) * self.coils.optimal_signal()
        return float(np.median(signal[self.anatomy.tumour])) / (self.protocol.snr * voxel)

    def noise(self, random: np.random.Generator, n_spokes: int) -> FrameData:
        """Return noise with the coils' covariance, complex64 (coil, spoke, readout)."""
        shape = (self.protocol.n_coils, n_spokes * self.protocol.n_readout * 2)
        mixing = (self.noise_sd * np.linalg.cholesky(self.coils.noise_covariance)).astype(np.complex64)
        white = random.standard_normal(shape, dtype=np.float32).view(np.complex64)
        return (mixing @ white).reshape(self.protocol.n_coils, n_spokes, self.protocol.n_readout)

    def angles(self, number: int) -> SpokeAngles:
        """Return the spoke angles of a frame, rad, float64 (spoke,)."""
        spokes = self.protocol.spokes
        return spoke_angles(self.protocol.schedule, spokes, first=number * spokes, per_frame=spokes)

    def positions(self, angles: SpokeAngles) -> Float64[np.ndarray, "spoke readout 2"]:
        """Return where the samples are acquired, gradient delay included, cycles per pixel (x, y)."""
        direction = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
        late = self.protocol.sampling.spacing * np.array([self.protocol.delay_x, self.protocol.delay_y])
        return (self.protocol.sampling.positions[:, None] * direction[:, None, :]) - late * direction[:, None, :]

    def frames(self) -> Iterator[FrameData]:
        """Return the frames in order, with noise, complex64 (coil, spoke, readout); the next is made meanwhile."""
        made = self._frames()
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(next, made, None)
            while (data := coming.result()) is not None:
                coming = ahead.submit(next, made, None)
                yield data

    def _frames(self) -> Iterator[FrameData]:
        # The stream of the preparation is left behind.
        random = self.random("noise").spawn(1)[0]
        for block in self._blocks():
            components = self._components(block) if block.start else self._first_components
            for number in block:
                data = self.noise(random, self.protocol.spokes)
                for component in components:
                    component.add_to(data, STEPS_PER_FRAME * (number - block.start), self._between)
                yield data
        # Some hundred MB that nobody needs any more.
        self.__dict__.pop("_first_components", None)

    def preparation(self) -> tuple[FrameData, FrameData]:
        """Return noise scans and dummy scans, each complex64 (coil, readout number, readout).

        A dummy scan repeats the first spokes while the magnetisation approaches its steady state,
        S_n = S + (S_0 − S)(cos α exp(−TR/T1))^n.
        """
        protocol, random = self.protocol, self.random("noise")
        noise = self.noise(random, protocol.n_noise_scans)
        muscle = TISSUES["muscle"]
        left = math.exp(-protocol.repetition_time_s / muscle.t1_s)
        steady = (1.0 - left) / (1.0 - left * math.cos(protocol.flip_angle_rad))
        decay = left * math.cos(protocol.flip_angle_rad)
        count = min(protocol.dummy_scans, protocol.spokes)
        start = np.zeros((count, STEPS_PER_FRAME + 1))
        start[:, 0] = 1.0
        clean = np.zeros((protocol.n_coils, count, protocol.n_readout), dtype=np.complex64)
        if count:
            for component in self._first_components:
                component.add_to(clean, 0, start)
        place = np.arange(protocol.dummy_scans)
        strength = (1.0 + (1.0 / steady - 1.0) * decay**place).astype(np.float32)
        dummies = clean[:, place % max(count, 1)] * strength[:, None]
        return noise, dummies + self.noise(random, protocol.dummy_scans)

    def _blocks(self) -> Iterator[range]:
        """Return runs of frames that share their angles."""
        size = _MOST_FRAMES if self.protocol.repeats else 1
        for first in range(0, self.protocol.frames, size):
            yield range(first, min(first + size, self.protocol.frames))

    @cached_property
    def _first_components(self) -> list[_Component]:
        return self._components(next(self._blocks()))

    def _components(self, block: range) -> list[_Component]:
        if self.protocol.kspace == "analytic":
            return self._exact(block)
        from sinotherm.operators.nufft import ACCURATE, FinufftPlan

        points = self.positions(self.angles(block.start)).reshape(-1, 2)
        matrix, coils = self.protocol.matrix, self.protocol.n_coils
        plan = FinufftPlan((matrix, matrix), coils, dtype=np.complex128, accuracy=ACCURATE).set_points(points)
        shape = (coils, self.protocol.spokes, self.protocol.n_readout)
        components = []
        for density, shift_hz, heated in (
            (self.anatomy.water, 0.0, True),
            (self.anatomy.fat, FAT_SHIFT * self.protocol.larmor_hz, False),
        ):
            present = density > 0.0
            if not present.any():
                continue
            columns, within, n_times = self._nodes(block, density, present, heated=heated)
            basis, coefficients = ranked(columns)
            logger.debug("frames %s: %d nodes in %d images", block, columns.shape[1], basis.shape[1])
            samples = np.empty((basis.shape[1], *shape), dtype=np.complex64)
            image = np.zeros((matrix, matrix), dtype=np.complex64)
            for place, values in enumerate(basis.T):
                image[present] = values
                samples[place] = plan.forward(self.coils.maps * image).reshape(shape)
            components.append(
                _Component(
                    basis=samples,
                    courses=coefficients.reshape(basis.shape[1], n_times, -1),
                    within=within,
                    phase=self._shift_phase(shift_hz),
                )
            )
        return components

    def _times(self, block: range) -> FloatArray:
        """Return the nodes in time of a block, s since the first spoke of the first frame."""
        nodes = np.arange(STEPS_PER_FRAME * block.start, STEPS_PER_FRAME * block.stop + 1)
        return nodes * (self.protocol.interval_s / STEPS_PER_FRAME)

    @property
    def _readout_times(self) -> FloatArray:
        """Time of each sample relative to TE, s."""
        return (np.arange(self.protocol.n_readout) - self.protocol.sampling.centre) * self.protocol.dwell_s

    def _shift_phase(self, shift_hz: float) -> Complex64[np.ndarray, "readout"]:
        """Return the phase of a chemical shift at each sample."""
        times = self.protocol.echo_time_s + self._readout_times
        return np.exp(2j * np.pi * self.protocol.phase_sign * shift_hz * times).astype(np.complex64)

    def _nodes(
        self, block: range, density: FloatArray, present: np.ndarray, *, heated: bool
    ) -> tuple[Complex64[np.ndarray, "pixel node"], Float64[np.ndarray, "readout segment"], int]:
        """Return the images at all nodes, the interpolation within the readout, and the nodes in time."""
        times = self._times(block)
        frequency = self.field_hz[present] + self.drift.course(times) @ self.drift.terms[:, present]
        if heated and self.protocol.peak_degc > 0.0:
            first = STEPS_PER_FRAME * block.start
            change = np.zeros((len(times), *present.shape), dtype=np.float32)
            change[:, self.anatomy.body] = self.heating[first : first + len(times)]
            frequency += (PRF_COEFFICIENT * self.protocol.larmor_hz) * change[:, present]
        frequency *= 2.0 * np.pi * self.protocol.phase_sign
        within = self._readout_times
        nodes = chebyshev_nodes(float(np.max(np.abs(within))), float(np.max(np.abs(frequency))))
        rate = frequency.T.astype(np.float32)[:, :, None]
        phase = rate * (self.protocol.echo_time_s + nodes).astype(np.float32)
        columns = np.empty(phase.shape, dtype=np.complex64)
        weight = density[present][:, None, None]
        np.multiply(np.cos(phase), weight, out=columns.real)
        np.multiply(np.sin(phase), weight, out=columns.imag)
        return columns.reshape(len(columns), -1), interpolation_weights(nodes, within), len(times)

    def _exact(self, block: range) -> list[_Component]:
        """Return water and fat as exact shapes; the drift is the same everywhere and is exact as well."""
        protocol = self.protocol
        amplitude = {
            name: gradient_echo(
                tissue,
                echo_time_s=protocol.echo_time_s,
                repetition_time_s=protocol.repetition_time_s,
                flip_angle_rad=protocol.flip_angle_rad,
            )
            for name, tissue in TISSUES.items()
        }
        k = self.positions(self.angles(block.start))
        frequency = 2.0 * np.pi * protocol.phase_sign * self.drift.course(self._times(block))[:, 0]
        within = self._readout_times
        nodes = chebyshev_nodes(float(np.max(np.abs(within))), float(np.max(np.abs(frequency))))
        courses = np.exp(1j * frequency[:, None] * (protocol.echo_time_s + nodes))
        components = []
        for fat in (False, True):
            shares = {
                name: amplitude[name] * (tissue.fat if fat else 1.0 - tissue.fat) for name, tissue in TISSUES.items()
            }
            if fat and not protocol.fat:
                shares = {name: value if name == "oil" else 0.0 for name, value in shares.items()}
            components.append(
                _Component(
                    basis=self.scene.kspace(k, shares, matrix=protocol.matrix).astype(np.complex64)[None, None],
                    courses=courses.astype(np.complex64)[None],
                    within=interpolation_weights(nodes, within),
                    phase=self._shift_phase(FAT_SHIFT * protocol.larmor_hz if fat else 0.0),
                )
            )
        return components
