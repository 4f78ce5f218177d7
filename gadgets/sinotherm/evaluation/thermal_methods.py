"""Reconstructions of heated series that the scores compare, with the settings they were tuned to."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import numpy as np

from sinotherm.core.arrays import ComplexArray, FloatArray, MaskArray
from sinotherm.core.physics import PRF_COEFFICIENT
from sinotherm.core.scan import FrameImage
from sinotherm.errors import SettingsError
from sinotherm.evaluation.heated_scans import Series
from sinotherm.operators.coils import combine
from sinotherm.operators.density import radial_weights
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.thermometry.drift import periphery_mask
from sinotherm.thermometry.fat import fat_at_echo
from sinotherm.thermometry.guide import Guide, references
from sinotherm.thermometry.monitor import SliceMonitor
from sinotherm.thermometry.settings import ThermometrySettings

__all__ = ["METHODS", "Method", "Temperatures", "method_named", "temperatures"]

_LEAST_SIGNAL: Final = 0.02
_TREND: Final = "-trend"
"""Ends the name of a method whose maps are filtered in time."""

SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gridding": {},
    "cg-sense-tv": {"strength": 3e-3, "iterations": 8},
    "tcr": {"space": 3e-3, "time": 3e-4, "iterations": 10},
    "view-sharing": {"most": 11},
    "kspace-hybrid": {"sparsity": 3e-5, "iterations": 30},
    "pdunet": {"weights": "pdunet-thermo"},
    "pdunet-fat": {"weights": "pdunet-thermo", "fat": "auto"},
}
"""Settings of each method; the comparators' were chosen on val people at S = 40."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesImages:
    """What a method makes of a series.

    Attributes
    ----------
    images
        complex64 (frame, y, x).
    references, change_error
        As in `FrameImage`, for reference-guided methods: one reference for each frame.
    """

    images: ComplexArray
    references: Sequence[ComplexArray] | None = None
    change_error: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A reconstruction of a whole series.

    Attributes
    ----------
    name, schedule, settings
        Its name, the angles that it needs, and its settings.
    images
        Its reconstruction of a series.
    linear
        Whether the noise follows from the weights (σ by formula), or from the pre-heating frames.
    drift_free
        The images carry no drift: the method took it out.
    trend
        Whether the maps are filtered in time (``thermometry.temporal = trend``).
    """

    name: str
    schedule: str
    settings: Mapping[str, Any]
    images: Callable[[Series], SeriesImages]
    linear: bool = False
    drift_free: bool = False
    trend: bool = False

    @property
    def base(self) -> str:
        """Name of its reconstruction."""
        return self.name.removesuffix(_TREND)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Temperatures:
    """What a method shows: change and σ_T, float32 (frame, y, x), °C, its time of reconstruction, and its images."""

    change: FloatArray
    sigma: FloatArray
    ms_per_frame: float
    made: SeriesImages | None = None


def _gridded(data: ComplexArray, angles: FloatArray, found: Series) -> ComplexArray:
    """Return the gridding image of one frame; weights exact at the centre of k-space."""
    sampling, side = found.scan.protocol.sampling, found.scan.protocol.matrix
    weights = radial_weights(angles, sampling, centre="exact").astype(np.float32)
    plan = FinufftPlan((side, side), len(data))
    plan.set_points(np.ascontiguousarray(radial_points(angles, sampling).reshape(-1, 2)))
    return combine(plan.adjoint((data * weights).reshape(len(data), -1)), found.maps)


def _gridding(found: Series) -> ComplexArray:
    return np.stack([_gridded(data, angles, found) for data, angles in zip(found.data, found.angles, strict=True)])


def _cg_sense_tv(found: Series) -> ComplexArray:
    from sinotherm.reconstruction.total_variation import tv_sense

    return np.stack(
        [
            tv_sense(data, angles, found.scan.protocol.sampling, found.maps, **SETTINGS["cg-sense-tv"]).image
            for data, angles in zip(found.data, found.angles, strict=True)
        ]
    )


def _tcr(found: Series) -> ComplexArray:
    from sinotherm.reconstruction.tcr import tcr

    return tcr(found.data, found.angles, found.scan.protocol.sampling, found.maps, **SETTINGS["tcr"])


def _view_sharing(found: Series) -> ComplexArray:
    from sinotherm.reconstruction.view_sharing import view_sharing

    side = found.scan.protocol.matrix
    coils = view_sharing(found.data, found.angles, found.scan.protocol.sampling, side, **SETTINGS["view-sharing"])
    return np.stack([combine(frame, found.maps) for frame in coils])


def _together(found: Series, frames: Sequence[int]) -> ComplexArray:
    """Return the image of all spokes of some frames, complex64 (y, x)."""
    from sinotherm.reconstruction.cg_sense import cg_sense

    data = np.concatenate([found.data[number] for number in frames], axis=1)
    angles = np.concatenate([found.angles[number] for number in frames])
    return cg_sense(data, angles, found.scan.protocol.sampling, found.maps).image


def _kspace_hybrid(found: Series) -> ComplexArray:
    """Return the baseline turned by the heating that the model finds, without its drift."""
    from sinotherm.reconstruction.kspace_hybrid import kspace_hybrid

    baseline = _together(found, range(found.n_baseline))
    protocol = found.scan.protocol
    sign: Literal[-1, 1] = -1 if protocol.phase_sign * PRF_COEFFICIENT < 0.0 else 1
    images = []
    for data, angles in zip(found.data, found.angles, strict=True):
        phase = kspace_hybrid(
            data,
            angles,
            protocol.sampling,
            found.maps,
            baseline,
            sign=sign,
            **SETTINGS["kspace-hybrid"],
        )
        images.append(baseline * np.exp(1j * phase.heating))
    return np.stack(images).astype(np.complex64)


def _fat(found: Series, reference: ComplexArray) -> MaskArray:
    """Return the fat that its phase and brightness tell, but for what tells the drift, bool (y, x)."""
    protocol, size = found.scan.protocol, np.abs(reference)
    fat = fat_at_echo(
        reference,
        min_signal=_LEAST_SIGNAL,
        larmor_hz=protocol.larmor_hz,
        echo_time_s=protocol.echo_time_s,
        phase_sign=protocol.phase_sign,
    )
    return fat & ~periphery_mask(size, _LEAST_SIGNAL * float(np.percentile(size, 99.0)), found.header.pixel_m)


def _pdunet(name: str) -> Callable[[Series], SeriesImages]:
    """Return the network's reconstruction; with ``fat`` what is found to be fat stays as the reference shows it.

    Its voxels are scored as all others are: what is taken for fat and is none counts as an error.
    """
    from sinotherm.networks.inference import RadialReconstructor

    settings = SETTINGS[name]
    network = RadialReconstructor(settings["weights"])

    def images(found: Series) -> SeriesImages:
        """Reconstruct the change since the baseline, which the drift up to each frame has turned."""
        protocol, pixel = found.scan.protocol, found.header.pixel_m
        whole, others = references(range(found.n_baseline), partial(_together, found))
        fat = _fat(found, whole) if "fat" in settings else None
        later, *before = (
            Guide(one, found.maps, pixel_m=pixel, order=protocol.drift_order_space, still=fat)
            for one in (whole, *others)
        )
        result = []
        guides = [*before, *[later] * (len(found.data) - found.n_baseline)]
        for guide, data, angles in zip(guides, found.data, found.angles, strict=True):
            turned = guide.turned(data, protocol.sampling, angles)
            image, _ = network.reconstruct(
                data, protocol.sampling, angles, found.maps, reference=turned, still=guide.still
            )
            result.append(image)
        return SeriesImages(
            images=np.stack(result),
            references=[guide.reference for guide in guides],
            change_error=network.card.change_error,
        )

    return images


METHODS: Final = ("gridding", "cg-sense-tv", "tcr", "view-sharing", "kspace-hybrid", "pdunet", "pdunet-fat-trend")


def method_named(name: str) -> Method:
    """Return a method, ready to run; ``NAME-trend``: its maps are filtered in time.

    Raises
    ------
    SettingsError
        The name is unknown.
    WeightsError
        A network's weights are missing; the message names the file.
    """
    base = name.removesuffix(_TREND)
    made: dict[str, Callable[[], Method]] = {
        "gridding": lambda: _method(base, _gridding, linear=True),
        "cg-sense-tv": lambda: _method(base, _cg_sense_tv),
        "tcr": lambda: _method(base, _tcr),
        "view-sharing": lambda: _method(base, _view_sharing, schedule="golden"),
        "kspace-hybrid": lambda: _method(base, _kspace_hybrid, schedule="golden", drift_free=True),
        **dict.fromkeys(
            ("pdunet", "pdunet-fat"),
            lambda: Method(name=base, schedule="golden", settings=SETTINGS[base], images=_pdunet(base)),
        ),
    }
    if base not in made:
        raise SettingsError(
            f"unknown method {name!r}; known methods: {', '.join(made)}, each with {_TREND} at its end too."
        )
    method = made[base]()
    if base == name:
        return method
    return replace(method, name=name, settings={**method.settings, "temporal": "trend"}, trend=True)


def _method(
    name: str,
    images: Callable[[Series], ComplexArray],
    *,
    schedule: str = "uniform180",
    linear: bool = False,
    drift_free: bool = False,
) -> Method:
    return Method(
        name=name,
        schedule=schedule,
        settings=SETTINGS[name],
        images=lambda found: SeriesImages(images=images(found)),
        linear=linear,
        drift_free=drift_free,
    )


def _monitor(found: Series, method: Method) -> SliceMonitor:
    protocol = found.scan.protocol
    settings = ThermometrySettings.parse(
        "thermometry",
        {
            "phase_sign": protocol.phase_sign,
            "baseline_frames": found.n_baseline,
            "drift_order": -1 if method.drift_free else protocol.drift_order_space,
            "temporal": "trend" if method.trend else "none",
            # Every voxel that can be followed is scored, however uncertain.
            "max_sigma_degc": 1e6,
            "min_signal": _LEAST_SIGNAL,
            "motion_correlation": 0.0,
            "motion_shift_px": 1e6,
            "alarm_signal": 0.0,
            "alarm_wrap": 1.0,
        },
    )
    return SliceMonitor(found.header, settings)


def _frame_image(found: Series, made: SeriesImages, number: int, *, noise_sd: float | None) -> FrameImage:
    protocol, image = found.scan.protocol, made.images[number]
    begin_s = number * protocol.interval_s
    level = None if noise_sd is None else np.full((1, *image.shape), noise_sd, dtype=np.float32)
    return FrameImage(
        data=np.ascontiguousarray(image, dtype=np.complex64)[None, None],
        number=number,
        noise_sd=level,
        reference=None if made.references is None else made.references[number][None, None],
        change_error=made.change_error,
        footprint=(begin_s, begin_s + 0.5 * protocol.frame_s, begin_s + protocol.frame_s),
    )


def gridding_noise_sd(found: Series) -> float:
    """Return the SD of the real part of the noise in a gridding image of the series."""
    weights = radial_weights(found.angles[0], found.scan.protocol.sampling, centre="exact")
    return found.noise_sd * math.sqrt(float(np.sum(weights**2)))


def temperatures(found: Series, method: Method, before: Temperatures | None = None) -> Temperatures:
    """Reconstruct a series and measure its frames as the thermometry stage does.

    Parameters
    ----------
    before
        What the same method showed of the series with or without the filter in time: its images serve again.
    """
    start = time.perf_counter()
    made = before.made if before and before.made else method.images(found)
    taken = time.perf_counter() - start
    monitor = _monitor(found, method)
    noise = gridding_noise_sd(found) if method.linear else None
    maps = [monitor.frame([_frame_image(found, made, number, noise_sd=noise)])[0] for number in range(len(found.data))]
    heated = maps[found.n_baseline :]
    return Temperatures(
        change=np.stack([one.change_degc[0] for one in heated]),
        sigma=np.stack([one.sigma_degc[0] for one in heated]),
        ms_per_frame=before.ms_per_frame if before else 1e3 * taken / len(found.data),
        made=made,
    )
