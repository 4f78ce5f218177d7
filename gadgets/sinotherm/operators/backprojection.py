"""Back-projection of radial spokes into coil images, spoke by spoke or in batches, on the CPU.

f_c(x) = Σ_θ gap_θ · exp(2πi δ·x) · g_θc(x·n), g_θc(s) = Σ_i w_i·d_i·exp(+2πi κ_i s): the same sum as
gridding, but additive over spokes, so that each is added while the next is acquired and the ones that
leave a sliding window are taken away. g is sampled at half pixels by one FFT of the zero-padded spoke
and interpolated with four taps. The taps are the least-squares optimum for the scaling of a
Kaiser-Bessel window (after Fessler and Sutton 2003, 10.1109/TSP.2002.807005; Beatty et al. 2005,
10.1109/TMI.2005.848376): 2.5e-4 of the direct sum on white data, half the error of the window itself.

Layout: detectors [element][coil] and images [row][column][coil], so that one vector register holds
the coils of a pixel. Positions are 32.32 fixed point, taps come from a table of 4096 rows.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal, TypeAlias

import numba
import numpy as np
import scipy.fft
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from sinotherm.core.arrays import ComplexArray, FloatArray, SpokeAngles, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError, SpokeError
from sinotherm.operators.crew import crew
from sinotherm.operators.density import CentreRule, RadialFilter, parallel_shift, perpendicular_shift, readout_weights

__all__ = ["BackProjector", "Taps", "interleave_coils"]

Taps: TypeAlias = Literal["optimal", "linear"]

_TABLE_BITS: Final = 12
_BETA: Final = 8.5
_TILE: Final = 32
_BLOCK: Final = 4
"""Spokes that are summed in registers before a pixel is written."""
_PREPARED: Final = 8
"""Spokes that one task transforms at a time."""
_WORK_FOR_THREADS: Final = 2_000_000
"""Coil-pixel updates below which a second thread costs more than it gains: to wake one takes a millisecond on a busy
machine."""


def _interpolation(lanes: int, taps: int, rotate: bool) -> Callable[..., Any]:
    """Return the code generator of `add_taps`: all coils of a pixel in one vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        image, at, detector, places, table, rows, real, imaginary = args
        scalar = ir.FloatType()
        vector = ir.VectorType(scalar, lanes)
        index = ir.IntType(32)
        undefined = ir.Constant(vector, ir.Undefined)

        def pointer(position: int, value: Any) -> Any:
            return context.make_array(signature.args[position])(context, builder, value).data

        def spread(value: Any) -> Any:
            first = builder.insert_element(undefined, value, ir.Constant(index, 0))
            return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(index, lanes), [0] * lanes))

        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f32"
        )
        detectors, table_data = pointer(2, detector), pointer(4, table)
        target = builder.bitcast(builder.gep(pointer(0, image), [at]), vector.as_pointer())
        before = builder.load(target)
        before.align = 4
        total = ir.Constant(vector, [0.0] * lanes) if rotate else before
        for spoke in range(signature.args[3].count):
            place, row = builder.extract_value(places, spoke), builder.extract_value(rows, spoke)
            for tap in range(taps):
                weight = builder.load(builder.gep(table_data, [builder.add(row, ir.Constant(row.type, tap))]))
                offset = builder.add(place, ir.Constant(place.type, tap * lanes))
                values = builder.load(builder.bitcast(builder.gep(detectors, [offset]), vector.as_pointer()))
                values.align = 4
                total = builder.call(multiply_add, [spread(weight), values, total])
        if rotate:
            # (a + ib)(c + is) = (ac − bs) + i(bc + as): neighbours swapped, and the sine's sign alternates.
            swapped = builder.shuffle_vector(
                total, undefined, ir.Constant(ir.VectorType(index, lanes), [lane ^ 1 for lane in range(lanes)])
            )
            signs = ir.Constant(vector, [-1.0 if lane % 2 == 0 else 1.0 for lane in range(lanes)])
            total = builder.call(multiply_add, [spread(real), total, before])
            total = builder.call(multiply_add, [builder.fmul(spread(imaginary), signs), swapped, total])
        builder.store(total, target).align = 4
        return context.get_dummy_value()

    return generate


@intrinsic(prefer_literal=True)
def _add_taps(
    typing_context: Any,  # noqa: ARG001 (numba's protocol)
    image: Any,
    at: Any,
    detector: Any,
    places: Any,
    table: Any,
    rows: Any,
    real: Any,
    imaginary: Any,
    lanes: Any,
    taps: Any,
    rotate: Any,
) -> Any:
    signature = types.void(image, at, detector, places, table, rows, real, imaginary, lanes, taps, rotate)
    generate = _interpolation(lanes.literal_value, taps.literal_value, bool(rotate.literal_value))
    return signature, lambda context, builder, given, args: generate(context, builder, given, args[:8])


def add_taps(
    image: Any,
    at: int,
    detector: Any,
    places: tuple[int, ...],
    table: Any,
    rows: tuple[int, ...],
    real: Any,
    imaginary: Any,
    lanes: int,
    taps: int,
    rotate: int,
) -> None:
    """Add the interpolated detector values of some spokes to one pixel; compiled, one vector operation a tap.

    All arrays are flat float32. ``lanes`` is twice the coils; with ``rotate`` the sum is multiplied by
    real + i·imaginary before it is added.
    """
    total = np.zeros(lanes, np.float32)
    for place, row in zip(places, rows, strict=True):
        for tap in range(taps):
            total += table[row + tap] * detector[place + tap * lanes : place + (tap + 1) * lanes]
    if rotate:
        total = (total.view(np.complex64) * np.complex64(complex(real, imaginary))).view(np.float32)
    image[at : at + lanes] += total


@overload(add_taps, prefer_literal=True, inline="always", strict=False)
def _compiled_add_taps(*_types: Any) -> Any:
    return lambda image, at, detector, places, table, rows, real, imaginary, lanes, taps, rotate: _add_taps(
        image, at, detector, places, table, rows, real, imaginary, lanes, taps, rotate
    )  # type: ignore[call-arg]


@cache
def _accumulator(lanes: int, taps: int) -> Callable[..., None]:
    """Return the compiled kernel that adds spokes to some rows of an image, for this many coils."""
    shift, mask = 32 - _TABLE_BITS, (1 << _TABLE_BITS) - 1
    tile, block = _TILE, _BLOCK

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def accumulate(
        image: Any, columns: int, detectors: Any, length: int, start: Any, right: Any, down: Any, table: Any, rows: Any
    ) -> None:
        # start, right and down: detector element of pixel (0, 0) and its change per column and row.
        n_spokes = len(start)
        whole = n_spokes // block * block
        for left in range(0, columns, tile):
            end = min(left + tile, columns)
            for spoke in range(0, whole, block):
                d0 = spoke * length
                d1, d2, d3 = d0 + length, d0 + 2 * length, d0 + 3 * length
                r0, r1, r2, r3 = right[spoke], right[spoke + 1], right[spoke + 2], right[spoke + 3]
                for y in range(rows[0], rows[1]):
                    p0 = start[spoke] + down[spoke] * y + r0 * left
                    p1 = start[spoke + 1] + down[spoke + 1] * y + r1 * left
                    p2 = start[spoke + 2] + down[spoke + 2] * y + r2 * left
                    p3 = start[spoke + 3] + down[spoke + 3] * y + r3 * left
                    for x in range(left, end):
                        add_taps(
                            image,
                            (y * columns + x) * lanes,
                            detectors,
                            (
                                d0 + (p0 >> 32) * lanes,
                                d1 + (p1 >> 32) * lanes,
                                d2 + (p2 >> 32) * lanes,
                                d3 + (p3 >> 32) * lanes,
                            ),
                            table,
                            (
                                ((p0 >> shift) & mask) * taps,
                                ((p1 >> shift) & mask) * taps,
                                ((p2 >> shift) & mask) * taps,
                                ((p3 >> shift) & mask) * taps,
                            ),
                            np.float32(1.0),
                            np.float32(0.0),
                            lanes,
                            taps,
                            0,
                        )
                        p0 += r0
                        p1 += r1
                        p2 += r2
                        p3 += r3
            for spoke in range(whole, n_spokes):
                for y in range(rows[0], rows[1]):
                    p0 = start[spoke] + down[spoke] * y + right[spoke] * left
                    for x in range(left, end):
                        add_taps(
                            image,
                            (y * columns + x) * lanes,
                            detectors,
                            (spoke * length + (p0 >> 32) * lanes,),
                            table,
                            (((p0 >> shift) & mask) * taps,),
                            np.float32(1.0),
                            np.float32(0.0),
                            lanes,
                            taps,
                            0,
                        )
                        p0 += right[spoke]

    return accumulate


@cache
def _turning_accumulator(lanes: int, taps: int) -> Callable[..., None]:
    """Return the kernel for spokes that a gradient delay moved sideways: each pixel has a phase of its own."""
    shift, mask = 32 - _TABLE_BITS, (1 << _TABLE_BITS) - 1

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def accumulate(
        image: Any,
        columns: int,
        detectors: Any,
        length: int,
        start: Any,
        right: Any,
        down: Any,
        table: Any,
        rows: Any,
        column_phase: Any,
        row_phase: Any,
    ) -> None:
        for spoke in range(len(start)):
            for y in range(rows[0], rows[1]):
                place = start[spoke] + down[spoke] * y
                across = row_phase[spoke, y]
                for x in range(columns):
                    phase = across * column_phase[spoke, x]
                    add_taps(
                        image,
                        (y * columns + x) * lanes,
                        detectors,
                        (spoke * length + (place >> 32) * lanes,),
                        table,
                        (((place >> shift) & mask) * taps,),
                        phase.real,
                        phase.imag,
                        lanes,
                        taps,
                        1,
                    )
                    place += right[spoke]

    return accumulate


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _interleave(spectra: Any, carrier: Any, detectors: Any, first: int) -> None:
    """Write the spectra (spoke, coil, element) of spokes as detectors (spoke, element, coil), with the carrier."""
    n_spokes, n_coils, period = spectra.shape
    n_elements = carrier.shape[1]
    for spoke in range(n_spokes):
        own = spoke if carrier.shape[0] > 1 else 0
        element = first % period
        for j in range(n_elements):
            turn = carrier[own, j]
            for coil in range(n_coils):
                detectors[spoke, j, coil] = spectra[spoke, coil, element] * turn
            element += 1
            if element == period:
                element = 0


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
def _combine(image: Any, maps: Any, scale: Any, out: Any, rows: Any) -> None:
    """Write scale · Σ_c conj(map_c)·x_c; image and maps (y, x, coil), out (y, x)."""
    n_coils = maps.shape[2]
    for y in range(rows[0], rows[1]):
        for x in range(out.shape[1]):
            real = np.float32(0.0)
            imaginary = np.float32(0.0)
            for coil in range(n_coils):
                value, weight = image[y, x, coil], maps[y, x, coil]
                real += weight.real * value.real + weight.imag * value.imag
                imaginary += weight.real * value.imag - weight.imag * value.real
            out[y, x] = complex(scale * real, scale * imaginary)


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
def _root_sum_of_squares(image: Any, n_coils: int, scale: Any, out: Any, rows: Any) -> None:
    """Write scale · sqrt(Σ_c |x_c|²); image (y, x, coil), out (y, x) complex."""
    for y in range(rows[0], rows[1]):
        for x in range(out.shape[1]):
            total = np.float32(0.0)
            for coil in range(n_coils):
                value = image[y, x, coil]
                total += value.real * value.real + value.imag * value.imag
            out[y, x] = complex(scale * math.sqrt(total), 0.0)


def _aligned(shape: tuple[int, ...]) -> ComplexArray:
    """Return zeros, complex64, that start on a cache line: a vector then never straddles two."""
    size = math.prod(shape) * 8
    memory = np.zeros(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(np.complex64).reshape(shape)


def interleave_coils(images: ComplexArray, n_coils: int | None = None) -> ComplexArray:
    """Return (coil, y, x) as aligned complex64 (y, x, coil), with zeros up to ``n_coils``."""
    coils = len(images) if n_coils is None else n_coils
    out = _aligned((*images.shape[1:], coils))
    out[..., : len(images)] = np.moveaxis(images, 0, -1)
    return out


def _scaling(frequency: FloatArray, taps: Taps) -> FloatArray:
    """Transform of the interpolating window at frequencies in cycles per element."""
    if taps == "linear":
        return np.sinc(frequency) ** 2
    argument = np.sqrt(np.maximum(_BETA**2 - (4.0 * np.pi * frequency) ** 2, 1e-12))
    return 4.0 * np.sinh(argument) / (argument * np.i0(_BETA))


@cache
def _tap_table(taps: Taps) -> FloatArray:
    """Return the taps for each of the table's fractions of an element, flat float32 (fraction · tap,)."""
    fraction = (np.arange(1 << _TABLE_BITS) + 0.5) / (1 << _TABLE_BITS)
    if taps == "linear":
        return np.stack((1.0 - fraction, fraction), axis=-1).astype(np.float32).ravel()
    # Weights that best make exp(2πi ν f) of exp(2πi ν t)/Φ(ν), t = −1…2, over the band |ν| < 1/4.
    offsets = np.arange(-1, 3)
    nodes, quadrature = np.polynomial.legendre.leggauss(64)
    frequency = (nodes + 1.0) * 0.2525 / 2.0
    scaled = quadrature / _scaling(frequency, taps) ** 2
    between = np.cos(2.0 * np.pi * frequency[:, None, None] * (offsets[:, None] - offsets))
    towards = np.cos(2.0 * np.pi * frequency[:, None, None] * (offsets[:, None] - fraction))
    normal = np.einsum("n,nst->st", scaled, between)
    right = np.einsum("n,ntf->tf", scaled * _scaling(frequency, taps), towards)
    return np.ascontiguousarray(np.linalg.solve(normal, right).T, dtype=np.float32).ravel()


class BackProjector:
    """Running coil images of radial spokes.

    Parameters
    ----------
    shape
        Image (y, x) in pixels; any part of the plane, the detector keeps its full width.
    n_coils
        Receiver channels.
    sampling
        Where the samples lie on every spoke.
    radial_filter, centre
        As in `sinotherm.operators.density.readout_weights`.
    taps
        ``optimal``: four taps, 3e-4 of the direct sum. ``linear``: two taps, for previews; its error of some
        per cent is worth whole degrees, never measure on it.
    threads
        Threads at most; one a core by default. Small updates take one.

    Notes
    -----
    One object belongs to one thread at a time. Buffers are allocated once.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        n_coils: int,
        sampling: RadialSampling,
        *,
        radial_filter: RadialFilter = "ramp",
        centre: CentreRule = "exact",
        taps: Taps = "optimal",
        threads: int | None = None,
    ) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self.n_coils = n_coils
        self.sampling = sampling
        self.threads = crew.size if threads is None else threads
        self._filter: RadialFilter = radial_filter
        self._centre: CentreRule = centre
        self._taps: Taps = taps
        self._n_taps = 2 if taps == "linear" else 4
        # Coils fill whole vector registers; the ones added are zero.
        self._padded = n_coils if n_coils <= 2 else -(-n_coils // 4) * 4
        self._lanes = 2 * self._padded
        n = sampling.n_readout
        extent = 2.0 * max(sampling.centre, n - 1 - sampling.centre)
        self._period = 2 * scipy.fft.next_fast_len(n if extent <= 1.02 * n else math.ceil(extent))
        self._element = 1.0 / (sampling.spacing * self._period)
        self._corner = np.array([-(self.shape[1] // 2), -(self.shape[0] // 2)], dtype=np.float64)
        far = np.hypot(*np.maximum(-self._corner, np.array(self.shape[::-1]) + self._corner))
        self._reach = math.ceil(far / self._element) + 3
        self._n_elements = 2 * self._reach + 2
        self._table = _tap_table(taps)
        self._image = _aligned((*self.shape, self._padded))
        self._detectors = _aligned((0, self._n_elements, self._padded))
        self._elements = np.arange(-self._reach, self._reach + 2)
        self._plain = self._profile(np.zeros(1))

    @property
    def image(self) -> ComplexArray:
        """The running sum, complex64 (y, x, coil); a view of the buffer."""
        return self._image[..., : self.n_coils]

    def reset(self) -> None:
        """Set the running sum to zero."""
        self._image.fill(0.0)

    def coil_images(self, scale: float = 1.0) -> ComplexArray:
        """Return the running sum times a factor, complex64 (coil, y, x)."""
        return np.multiply(np.moveaxis(self.image, -1, 0), np.float32(scale), order="C")

    def add(
        self, data: ComplexArray, angle: float, weight: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Add one spoke.

        Parameters
        ----------
        data
            complex64 (coil, readout).
        angle
            Spoke angle, rad.
        weight
            Angle that the spoke stands for, rad; or 1, and the factor goes into the combination.
        shift
            Offset of the spoke in k-space, cycles per pixel. The part along the spoke is exact in one
            dimension, the part across it is a phase of each row and column.

        Raises
        ------
        SpokeError
            The spoke does not have the coils or samples of this object, or its angle is not a number.
        """
        shifts = np.array([shift]) if any(shift) else None
        self.add_batch(data[:, None], np.array([angle]), np.array([weight]), shifts)

    def subtract(
        self, data: ComplexArray, angle: float, weight: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Take away a spoke that was added."""
        self.add(data, angle, -weight, shift)

    def add_batch(
        self,
        data: ComplexArray,
        angles: SpokeAngles,
        weights: FloatArray | None = None,
        shifts: SpokeShifts | None = None,
    ) -> None:
        """Add spokes, complex64 (coil, spoke, readout); see `add`.

        Raises
        ------
        SpokeError
            As in `add`.
        """
        n_spokes = len(angles)
        if data.shape != (self.n_coils, n_spokes, self.sampling.n_readout):
            raise SpokeError(
                f"spokes of shape {data.shape}: {self.n_coils} coils, {n_spokes} spokes and "
                f"{self.sampling.n_readout} samples were announced."
            )
        if not np.isfinite(angles).all():
            raise SpokeError(f"angles of {n_spokes} spokes, of which some are not finite: give each one, in radians.")
        threads = self.threads if n_spokes * self._image.size > _WORK_FOR_THREADS else 1
        cosine, sine = np.cos(angles), np.sin(angles)
        moved = shifts is not None and bool(np.any(shifts))
        along = parallel_shift(angles, shifts) if moved and shifts is not None else None
        self._prepare(data, weights, along, threads)
        # 32.32 fixed point: detector element of pixel (0, 0), one before the pixel's own for four taps.
        unit = 2.0**32 / self._element
        right, down = cosine * unit, sine * unit
        first = (self._reach - (self._n_taps // 2 - 1)) * 2.0**32 + right * self._corner[0] + down * self._corner[1]
        arguments: tuple[Any, ...] = (
            self._image.reshape(-1).view(np.float32),
            self.shape[1],
            self._detectors.reshape(-1).view(np.float32),
            self._n_elements * self._lanes,
            first.astype(np.int64),
            right.astype(np.int64),
            down.astype(np.int64),
            self._table,
        )
        kernel = _accumulator(self._lanes, self._n_taps)
        phases: tuple[ComplexArray, ...] = ()
        if moved and shifts is not None:
            across = perpendicular_shift(angles, shifts)
            if np.any(np.abs(across) * max(self.shape) > 1e-6):
                kernel = _turning_accumulator(self._lanes, self._n_taps)
                phases = self._phases(-sine * across, self.shape[1]), self._phases(cosine * across, self.shape[0])
        height = _TILE if threads > 1 else self.shape[0]
        n_tasks = -(-self.shape[0] // height)

        def task(number: int) -> None:
            rows = (number * height, min((number + 1) * height, self.shape[0]))
            kernel(*arguments, rows, *phases)

        crew.run(task, n_tasks, threads)

    def combine(self, maps: ComplexArray, scale: float = 1.0) -> ComplexArray:
        """Return scale · Σ_c conj(s_c)·x_c, complex64 (y, x), of maps from `interleave_coils` (y, x, coil).

        Raises
        ------
        DataError
            The maps do not have this object's image shape or coils.
        """
        if maps.shape[:2] != self.shape or not self.n_coils <= maps.shape[2] <= self._padded:
            raise DataError(
                f"coil maps of shape {maps.shape}: {(*self.shape, self.n_coils)} is needed; interleave_coils gives it."
            )
        out = np.empty(self.shape, np.complex64)
        self._by_rows(lambda rows: _combine(self._image, maps, np.float32(scale), out, rows))
        return out

    def root_sum_of_squares(self, scale: float = 1.0) -> ComplexArray:
        """Return scale · sqrt(Σ_c |x_c|²) as complex64 (y, x) with zero phase."""
        out = np.empty(self.shape, np.complex64)
        self._by_rows(lambda rows: _root_sum_of_squares(self._image, self.n_coils, np.float32(scale), out, rows))
        return out

    def _by_rows(self, work: Callable[[tuple[int, int]], None]) -> None:
        threads = self.threads if self._image.size > _WORK_FOR_THREADS else 1
        crew.by_rows(work, self.shape[0], threads)

    def _profile(self, along: FloatArray) -> tuple[FloatArray, ComplexArray]:
        """Return the weights (spoke, readout) over the window's transform, and the carrier (spoke, element)."""
        position = self.sampling.positions + along[:, None]
        weights = readout_weights(self.sampling, self._filter, centre=self._centre, offset=along)
        profile = (weights / _scaling(position * self._element, self._taps)).astype(np.float32)
        centre = self.sampling.centre - along / self.sampling.spacing
        turns = centre[:, None] * self._elements / self._period
        return profile, np.exp(-2j * np.pi * (turns % 1.0)).astype(np.complex64)

    def _phases(self, slope: FloatArray, n: int) -> ComplexArray:
        return np.exp(2j * np.pi * slope[:, None] * (np.arange(n) - n // 2)).astype(np.complex64)

    def _prepare(self, data: ComplexArray, weights: FloatArray | None, along: FloatArray | None, threads: int) -> None:
        """Fill the detectors: filter, scale, zero-pad, transform, interleave the coils."""
        n_spokes = data.shape[1]
        if len(self._detectors) < n_spokes:
            self._detectors = _aligned((n_spokes, self._n_elements, self._padded))
        profile, carrier = self._plain if along is None else self._profile(along)
        weighted = np.broadcast_to(profile, (n_spokes, profile.shape[1]))
        if weights is not None:
            weighted = profile * weights[:, None].astype(np.float32)

        def task(number: int) -> None:
            own = slice(number * _PREPARED, min((number + 1) * _PREPARED, n_spokes))
            padded = np.zeros((own.stop - own.start, self.n_coils, self._period), np.complex64)
            np.multiply(
                data[:, own].transpose(1, 0, 2),
                weighted[own, None],
                out=padded[..., : self.sampling.n_readout],
            )
            spectra = scipy.fft.ifft(padded, norm="forward", overwrite_x=True)
            _interleave(spectra, carrier if len(carrier) == 1 else carrier[own], self._detectors[own], -self._reach)

        crew.run(task, -(-n_spokes // _PREPARED), threads)
