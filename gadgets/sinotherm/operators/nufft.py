"""Non-uniform Fourier transform: gridding kernels and finufft on the CPU, sparse Kaiser-Bessel matrices on CUDA.

All compute ``s_m = Σ_x f(x)·exp(−2πi k_m·x)`` and its adjoint ``f(x) = Σ_m s_m·exp(+2πi k_m·x)``
(no scale factor), with k in cycles per pixel, its first component along the column x, its second along
the row y, and pixel n//2 at x = 0. Barnett, Magland and af Klinteberg 2019, 10.1137/18M120885X; Fessler
and Sutton 2003, 10.1109/TSP.2002.807005 (torchkbnufft).
"""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from sinotherm.core.arrays import ComplexArray, FloatArray, SpokeShifts
from sinotherm.core.geometry import RadialSampling
from sinotherm.errors import DataError, SettingsError
from sinotherm.operators.backend import nufft_backend
from sinotherm.operators.kaiser_bessel import SparseNufft
from sinotherm.operators.linear import LinearOperator

if TYPE_CHECKING:
    from sinotherm.operators.gridded import GriddedPlan

__all__ = ["ACCURATE", "FAST", "FinufftPlan", "Nufft", "NufftBackend", "radial_points"]

NufftBackend: TypeAlias = Literal["auto", "gridded", "finufft", "sparse", "torchkbnufft"]

FAST: Final = 5e-4
"""Accuracy for images, on a grid of 1.25 times the image: 4e-4 measured on white data (1e-3 would give 1.4e-3)."""
ACCURATE: Final = 1e-6
"""Accuracy for simulation and oracles; needs complex128, single-precision positions end at 2e-5."""

_KEPT_PLANS: Final = 12


def radial_points(angles: FloatArray, sampling: RadialSampling, shifts: SpokeShifts | None = None) -> FloatArray:
    """Return the sample positions of spokes, float64 (…, spoke, readout, 2), cycles per pixel (kx, ky).

    Parameters
    ----------
    angles
        Spoke angles, rad, (…, spoke).
    sampling
        Where the samples lie on each spoke.
    shifts
        Offset of each spoke, cycles per pixel, (…, spoke, 2).

    Raises
    ------
    DataError
        There are not as many offsets as angles.
    """
    angles = np.asarray(angles, dtype=np.float64)
    direction = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    points = direction[..., None, :] * sampling.positions[:, None]
    if shifts is not None:
        shifts = np.asarray(shifts, dtype=np.float64)
        if shifts.shape[-angles.ndim - 1 :] != (*angles.shape, 2):
            raise DataError(f"shifts of shape {shifts.shape}: {(*angles.shape, 2)} is needed, one a spoke.")
        points = points + shifts[..., None, :]
    return points


class FinufftPlan:
    """finufft plan with its points; FFT plans, buffers and sorted points are kept between calls.

    Parameters
    ----------
    shape
        Image (y, x) in pixels.
    n_transforms
        Images transformed in one call.
    dtype
        complex64 or complex128.
    accuracy
        Relative error asked for. From 5e-4 upwards the oversampled grid is 1.25 times the image
        instead of twice, which is several times faster for few samples.

    Raises
    ------
    SettingsError
        The accuracy lies outside of 1e-14 to 0.1.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        n_transforms: int = 1,
        *,
        dtype: Any = np.complex64,
        accuracy: float = FAST,
    ) -> None:
        import finufft

        if not 1e-14 <= accuracy <= 0.1:
            raise SettingsError(f"accuracy = {accuracy}: a NUFFT can be asked for 1e-14 to 0.1.")
        self.shape = (int(shape[0]), int(shape[1]))
        self.n_transforms = n_transforms
        self.dtype = np.dtype(dtype)
        self.accuracy = accuracy
        options: dict[str, Any] = {"upsampfac": 1.25} if accuracy >= 5e-4 else {}
        self._plan = finufft.Plan(2, self.shape, n_transforms, eps=accuracy, isign=-1, dtype=self.dtype.name, **options)
        self.points: FloatArray | None = None

    def set_points(self, points: FloatArray) -> Self:
        """Set the sample positions, (sample, 2), cycles per pixel (kx, ky); the same array again costs nothing."""
        if points is not self.points:
            real = np.float32 if self.dtype == np.complex64 else np.float64
            # Points wrap at a full turn; finufft's first axis is the row.
            radian = (points.reshape(-1, 2).astype(np.float64) * (2.0 * np.pi)).astype(real)
            self._plan.setpts(np.ascontiguousarray(radian[:, 1]), np.ascontiguousarray(radian[:, 0]))
            self.points = points
            self.n_points = len(radian)
        return self

    def forward(self, images: ComplexArray, out: ComplexArray | None = None) -> ComplexArray:
        """Return samples (transform, sample) of images (transform, y, x)."""
        samples = np.empty((self.n_transforms, self.n_points), self.dtype) if out is None else out
        self._plan.execute(
            np.ascontiguousarray(images, self.dtype).reshape(self._leading(self.shape)),
            out=samples.reshape(self._leading((self.n_points,))),
        )
        return samples

    def adjoint(self, samples: ComplexArray, out: ComplexArray | None = None) -> ComplexArray:
        """Return images (transform, y, x) of samples (transform, sample)."""
        images = np.empty((self.n_transforms, *self.shape), self.dtype) if out is None else out
        self._plan.execute_adjoint(
            np.ascontiguousarray(samples, self.dtype).reshape(self._leading((self.n_points,))),
            out=images.reshape(self._leading(self.shape)),
        )
        return images

    def _leading(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        # A plan of one transform takes arrays without the transform axis.
        return shape if self.n_transforms == 1 else (self.n_transforms, *shape)


class _PlanShelf:
    """Plans that are not in use, most recent last: planning costs more than a transform.

    A plan is taken off the shelf while it works, so that threads never share one.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._plans: OrderedDict[int, tuple[tuple[Any, ...], FinufftPlan]] = OrderedDict()

    def take(self, key: tuple[Any, ...], points: FloatArray) -> FinufftPlan:
        """Return a plan of this kind, the one that holds these points if there is one."""
        with self._lock:
            fitting = [place for place, (other, _) in self._plans.items() if other == key]
            same = [place for place in fitting if self._plans[place][1].points is points]
            if fitting:
                return self._plans.pop((same or fitting)[-1])[1]
        shape, n_transforms, dtype, accuracy = key
        return FinufftPlan(shape, n_transforms, dtype=dtype, accuracy=accuracy)

    def put(self, key: tuple[Any, ...], plan: FinufftPlan) -> None:
        """Give a plan back; the one that was unused longest goes."""
        with self._lock:
            self._plans[id(plan)] = (key, plan)
            while len(self._plans) > self._size:
                self._plans.popitem(last=False)


_shelf = _PlanShelf(_KEPT_PLANS)


class _FinufftTransform(torch.autograd.Function):
    """Forward or adjoint by finufft; the gradient of either is the other.

    ``x`` is (set, transform, y, x) or (set, transform, sample), ``sets`` one point array a set.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sets: tuple[FloatArray, ...], shape: tuple[int, int], accuracy: float, adjoint: bool
    ) -> Tensor:
        ctx.settings = (sets, shape, accuracy, adjoint)
        data = x.detach().resolve_conj().contiguous().numpy()
        result = np.empty((*data.shape[:2], *(shape if adjoint else sets[0].shape[:1])), data.dtype)
        key = (shape, data.shape[1], data.dtype.name, accuracy)
        for points, values, out in zip(sets, data, result, strict=True):
            plan = _shelf.take(key, points).set_points(points)
            (plan.adjoint if adjoint else plan.forward)(values, out)
            _shelf.put(key, plan)
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        sets, shape, accuracy, adjoint = ctx.settings
        return _FinufftTransform.apply(gradients[0], sets, shape, accuracy, not adjoint), None, None, None, None


class _GriddedTransform(torch.autograd.Function):
    """Forward or adjoint by the gridding kernels, as `_FinufftTransform`; one plan a set of points."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plans: "tuple[GriddedPlan, ...]", adjoint: bool) -> Tensor:
        ctx.settings = (plans, adjoint)
        data = x.detach().resolve_conj().contiguous().numpy()
        end = plans[0].shape if adjoint else (plans[0].n_points,)
        result = np.empty((*data.shape[:2], *end), np.complex64)
        for plan, values, out in zip(plans, data, result, strict=True):
            (plan.adjoint if adjoint else plan.forward)(values, out)
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        plans, adjoint = ctx.settings
        return _GriddedTransform.apply(gradients[0], plans, not adjoint), None, None


class Nufft(LinearOperator):
    """NUFFT of images (…, y, x) to samples (…, *points.shape[:-1]), differentiable.

    All leading axes go through one many-transform call. Building one costs next to nothing: plans are
    kept and shared between operators, so every training sample may have its own angles.

    Parameters
    ----------
    points
        (…, 2) positions in cycles per pixel (kx, ky). The axes before the last are the range's.
    shape
        Image (y, x) in pixels.
    accuracy
        Relative error asked for (`FAST`, `ACCURATE`); torchkbnufft has 4e-4.
    batched
        The first axis of ``points`` is a batch axis: item b of the data has its own points.
    backend
        ``auto``: as `sinotherm.operators.backend.nufft_backend` decides. ``gridded`` is for complex64 on the
        CPU, `sinotherm.operators.gridded.ACCURACY`. ``sparse`` is `SparseNufft`; torchkbnufft is a peer.

    Raises
    ------
    DataError
        Shapes do not fit.
    """

    def __init__(
        self,
        points: FloatArray | Tensor,
        shape: tuple[int, int],
        *,
        accuracy: float = FAST,
        batched: bool = False,
        backend: NufftBackend = "auto",
    ) -> None:
        array = points.detach().cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
        if array.ndim < 2 + batched or array.shape[-1] != 2:
            raise DataError(f"points of shape {array.shape}: (…, 2) is needed, with a batch axis first where batched.")
        super().__init__(shape, array.shape[1:-1] if batched else array.shape[:-1])
        self.n_batch = array.shape[0] if batched else None
        self._shape = (int(shape[0]), int(shape[1]))
        self.accuracy = accuracy
        self.backend = backend
        sets = np.ascontiguousarray(array, dtype=np.float64).reshape(self.n_batch or 1, -1, 2)
        self._sets = tuple(sets)
        self._sparse: dict[tuple[torch.device, torch.dtype], list[SparseNufft]] = {}
        self._gridded: tuple[GriddedPlan, ...] = ()
        self._torch: dict[tuple[torch.device, torch.dtype], tuple[nn.Module, nn.Module, Tensor]] = {}

    @classmethod
    def radial(
        cls,
        angles: FloatArray,
        sampling: RadialSampling,
        shape: tuple[int, int],
        *,
        shifts: SpokeShifts | None = None,
        accuracy: float = FAST,
        backend: NufftBackend = "auto",
    ) -> "Nufft":
        """Return the operator of radial spokes: range (spoke, readout); angles (batch, spoke) are batched."""
        angles = np.asarray(angles, dtype=np.float64)
        points = radial_points(angles, sampling, shifts)
        return cls(points, shape, accuracy=accuracy, batched=angles.ndim == 2, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        """Return the samples of images, complex, precision as the input's."""
        self.check(x, self.domain_shape, "images")
        return self._apply_backend(x, adjoint=False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the images of samples, complex, precision as the input's."""
        self.check(y, self.range_shape, "samples")
        return self._apply_backend(y, adjoint=True)

    def _apply_backend(self, x: Tensor, *, adjoint: bool) -> Tensor:
        start = self.range_shape if adjoint else self.domain_shape
        end = self.domain_shape if adjoint else self.range_shape
        batch = x.shape[: x.ndim - len(start)]
        if self.n_batch is not None and (not batch or batch[0] != self.n_batch):
            raise DataError(
                f"data of shape {tuple(x.shape)}: the first axis must be the {self.n_batch} sets of points."
            )
        n_samples = len(self._sets[0])
        flat = x.reshape(len(self._sets), -1, *((n_samples,) if adjoint else self.domain_shape))
        backend = self.backend
        if backend == "auto":
            backend = nufft_backend(x.device.type, single=x.dtype == torch.complex64, accuracy=self.accuracy)
        if backend == "gridded":
            if x.dtype != torch.complex64 or x.device.type != "cpu":
                raise DataError(f"gridded NUFFT of {x.dtype} on {x.device.type}: complex64 on the CPU is needed.")
            if not self._gridded:
                from sinotherm.operators.gridded import GriddedPlan

                self._gridded = tuple(GriddedPlan(points, self._shape) for points in self._sets)
            result = _GriddedTransform.apply(flat, self._gridded, adjoint)
        elif backend == "finufft":
            result = _FinufftTransform.apply(flat, self._sets, self.domain_shape, self.accuracy, adjoint)
        elif backend == "torchkbnufft":
            result = self._torchkbnufft(flat, adjoint=adjoint)
        else:
            result = self._interpolated(flat, adjoint=adjoint)
        return result.reshape(*batch, *end)

    def _interpolated(self, flat: Tensor, *, adjoint: bool) -> Tensor:
        kind, (rows, columns) = (flat.device, flat.real.dtype), self.domain_shape
        if kind not in self._sparse:
            self._sparse[kind] = [
                SparseNufft(torch.from_numpy(points).to(flat.device), (rows, columns), kind[1]) for points in self._sets
            ]
        pairs = zip(self._sparse[kind], flat, strict=True)
        return torch.stack([(one.adjoint if adjoint else one.forward)(values) for one, values in pairs])

    def _torchkbnufft(self, flat: Tensor, *, adjoint: bool) -> Tensor:
        real = flat.real.dtype
        kind_of_data = (flat.device, real)
        if kind_of_data not in self._torch:
            import torchkbnufft

            pair = (torchkbnufft.KbNufft, torchkbnufft.KbNufftAdjoint)
            forward, backward = (kind(self.domain_shape).to(flat.device, real) for kind in pair)
            # torchkbnufft wants radians, row first: (set, axis, sample).
            omega = torch.from_numpy(np.stack(self._sets)[..., ::-1] * (2.0 * np.pi)).to(flat.device, real)
            self._torch[kind_of_data] = (forward, backward, omega.transpose(-1, -2).contiguous())
        forward, backward, omega = self._torch[kind_of_data]
        return (backward if adjoint else forward)(flat, omega if len(self._sets) > 1 else omega[0])
