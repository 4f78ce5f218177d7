"""Objects of simulated scans: scenes of ellipses with exact k-space, and images taken as objects.

A scene is a set of nested ellipses, each of one tissue; the k-space of an ellipse is known in closed
form, so a scan of the continuous object can be made without a grid. For heating, coils and field the
same ellipses are drawn on the reconstructed grid with partial volumes.

Metres and radians; x points to the right (columns), y down (rows), the origin is pixel n//2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Complex128, Float32, Float64

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import DataError, SettingsError

__all__ = [
    "SCENES",
    "TISSUES",
    "Anatomy",
    "Ellipse",
    "Scene",
    "SceneName",
    "Tissue",
    "anatomy_of_image",
    "coverage",
    "ellipse_kspace",
    "gradient_echo",
    "image_of_file",
    "scene_named",
]

SceneName: TypeAlias = Literal["hyperthermia", "hifu", "brain"]

_SUBPIXELS: Final = 8
_BODY_THRESHOLD: Final = 0.05
_SUBCUTANEOUS_M: Final = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class Tissue:
    """What a tissue is made of.

    Thermal and perfusion values: Hasgall et al., IT'IS database V4.1 2022, 10.13099/VIP21000-04-1.
    Relaxation at 1.5 T: Stanisz et al. 2005, 10.1002/mrm.20605, and de Bazelaire et al. 2004,
    10.1148/radiol.2303021331; T2* rounded, since it depends on the shim.

    Attributes
    ----------
    proton_density
        Relative to water.
    t1_s, t2_star_s
        Relaxation times, s.
    fat
        Part of the signal that has fat's chemical shift and no PRF shift.
    conductivity
        Thermal conductivity, W/(m K).
    heat_capacity
        J/(kg K).
    density
        kg/m³.
    perfusion
        Blood flow, ml/(min kg).
    electric_conductivity
        S/m near 100 MHz: where RF deposits its power.
    """

    proton_density: float
    t1_s: float
    t2_star_s: float
    fat: float
    conductivity: float
    heat_capacity: float
    density: float
    perfusion: float
    electric_conductivity: float


def _tissue(*values: float) -> Tissue:
    return Tissue(**dict(zip(Tissue.__dataclass_fields__, values, strict=True)))


TISSUES: Final[Mapping[str, Tissue]] = {
    #                pd    T1    T2*    fat  k     c       rho     perf  sigma
    "muscle": _tissue(0.80, 1.01, 0.030, 0.0, 0.49, 3421.0, 1090.0, 37.0, 0.71),
    "fat": _tissue(0.90, 0.34, 0.030, 1.0, 0.21, 2348.0, 911.0, 33.0, 0.07),
    "tumour": _tissue(0.88, 1.20, 0.050, 0.0, 0.51, 3600.0, 1060.0, 25.0, 0.85),
    "urine": _tissue(1.00, 3.50, 0.200, 0.0, 0.56, 4178.0, 1024.0, 0.0, 1.75),
    "bone": _tissue(0.05, 1.00, 0.001, 0.0, 0.32, 1313.0, 1908.0, 10.0, 0.06),
    "marrow": _tissue(0.85, 0.55, 0.020, 0.6, 0.28, 2666.0, 1029.0, 135.0, 0.23),
    "blood": _tissue(0.95, 1.44, 0.060, 0.0, 0.52, 3617.0, 1050.0, 1000.0, 1.23),
    "gas": _tissue(0.00, 1.00, 0.001, 0.0, 0.03, 1004.0, 1.2, 0.0, 0.00),
    "uterus": _tissue(0.85, 1.27, 0.045, 0.0, 0.51, 3676.0, 1105.0, 60.0, 0.95),
    "grey": _tissue(0.82, 1.12, 0.055, 0.0, 0.55, 3696.0, 1045.0, 764.0, 0.56),
    "white": _tissue(0.70, 0.88, 0.050, 0.0, 0.48, 3583.0, 1041.0, 212.0, 0.32),
    "csf": _tissue(1.00, 4.00, 0.200, 0.0, 0.57, 4096.0, 1007.0, 0.0, 2.11),
    "oil": _tissue(0.80, 0.30, 0.050, 1.0, 0.17, 1970.0, 920.0, 0.0, 0.00),
}


def gradient_echo(tissue: Tissue, *, echo_time_s: float, repetition_time_s: float, flip_angle_rad: float) -> float:
    """Return the steady-state signal of a spoiled gradient echo, relative to fully relaxed water.

    S = ρ sin α (1 − E1)/(1 − E1 cos α) exp(−TE/T2*), E1 = exp(−TR/T1). Ernst and Anderson 1966,
    10.1063/1.1719961. The change of T1 with temperature is not simulated.
    """
    e1 = math.exp(-repetition_time_s / tissue.t1_s)
    steady = math.sin(flip_angle_rad) * (1.0 - e1) / (1.0 - e1 * math.cos(flip_angle_rad))
    return tissue.proton_density * steady * math.exp(-echo_time_s / tissue.t2_star_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipse:
    """A region of one tissue.

    Attributes
    ----------
    name, tissue
        Its name in the scene, and a key of `TISSUES`.
    x_m, y_m
        Centre, m.
    a_m, b_m
        Half axes, m; a along the angle.
    angle_rad
        From the x axis towards y.
    inside
        Name of the ellipse that encloses it, whose tissue it replaces; ``None`` for one that stands free.
    """

    name: str
    tissue: str
    x_m: float
    y_m: float
    a_m: float
    b_m: float
    angle_rad: float = 0.0
    inside: str | None = None


def ellipse_kspace(
    ellipse: Ellipse, k: Float64[np.ndarray, "*points 2"], *, pixel_m: float
) -> Complex128[np.ndarray, "*points"]:
    """Return the exact Fourier transform of an ellipse of height 1.

    F(k) = π a b · 2 J1(2πq)/(2πq) · exp(−2πi k·c) with q the length of k in units of the half axes.
    Van de Walle et al. 2000, 10.1109/42.897811.

    Parameters
    ----------
    k
        float64 (…, 2), cycles per pixel, x then y.
    pixel_m
        Size of a pixel, m; the transform is in units of a pixel's area, as a sum over pixels is.
    """
    from scipy.special import j1

    kx, ky = k[..., 0] / pixel_m, k[..., 1] / pixel_m
    cosine, sine = math.cos(ellipse.angle_rad), math.sin(ellipse.angle_rad)
    argument = 2.0 * np.pi * np.hypot(ellipse.a_m * (kx * cosine + ky * sine), ellipse.b_m * (ky * cosine - kx * sine))
    small = argument < 1e-6
    shape = np.where(small, 1.0, 2.0 * j1(argument) / np.where(small, 1.0, argument))
    area = np.pi * ellipse.a_m * ellipse.b_m / pixel_m**2
    return area * shape * np.exp(-2j * np.pi * (kx * ellipse.x_m + ky * ellipse.y_m))


def coverage(ellipse: Ellipse, matrix: int, fov_m: float) -> Float32[np.ndarray, "y x"]:
    """Return the part of each pixel that the ellipse covers, float32 (matrix, matrix), by 8 × 8 subpixels."""
    pixel = fov_m / matrix
    axis = (np.arange(matrix) - matrix // 2) * pixel
    cosine, sine = math.cos(ellipse.angle_rad), math.sin(ellipse.angle_rad)

    def outside(x: FloatArray, y: FloatArray) -> FloatArray:
        dx, dy = x - ellipse.x_m, y - ellipse.y_m
        return ((dx * cosine + dy * sine) / ellipse.a_m) ** 2 + ((dy * cosine - dx * sine) / ellipse.b_m) ** 2

    x, y = np.meshgrid(axis, axis)
    # A pixel's corner is at most 0.71 pixels from its centre: only pixels that close to the edge are mixed.
    radius = np.sqrt(outside(x, y))
    margin = 0.75 * pixel / min(ellipse.a_m, ellipse.b_m)
    part = (radius < 1.0).astype(np.float32)
    mixed = np.abs(radius - 1.0) < margin
    steps = ((np.arange(_SUBPIXELS) + 0.5) / _SUBPIXELS - 0.5) * pixel
    sub_y, sub_x = np.meshgrid(steps, steps, indexing="ij")
    inner = outside(x[mixed][:, None] + sub_x.ravel(), y[mixed][:, None] + sub_y.ravel()) < 1.0
    part[mixed] = inner.mean(axis=1)
    return part


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anatomy:
    """A body on the reconstructed grid; every map is (y, x).

    Attributes
    ----------
    fov_m
        Field of view, m.
    water, fat
        float32: signal that shifts with temperature, and signal of fat.
    body, fat_mask, tumour, cold
        bool: all tissue; mostly fat; the region to be heated; tissue whose frequency never changes
        by heat (fat and oil), the reference for drift.
    conductivity, heat_capacity, perfusion
        float32: W/(m K), J/(m³ K) and W/(m³ K), as the bioheat equation needs them.
    absorption
        float32: electric conductivity, S/m.
    focus_m
        Centre (x, y) of the heating.
    """

    fov_m: float
    water: Float32[np.ndarray, "y x"]
    fat: Float32[np.ndarray, "y x"]
    body: Bool[np.ndarray, "y x"]
    fat_mask: Bool[np.ndarray, "y x"]
    tumour: Bool[np.ndarray, "y x"]
    cold: Bool[np.ndarray, "y x"]
    conductivity: Float32[np.ndarray, "y x"]
    heat_capacity: Float32[np.ndarray, "y x"]
    perfusion: Float32[np.ndarray, "y x"]
    absorption: Float32[np.ndarray, "y x"]
    focus_m: tuple[float, float]

    @property
    def matrix(self) -> int:
        """Rows and columns."""
        return self.water.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Nested ellipses; a child lies wholly inside its parent and children of one parent do not overlap.

    Attributes
    ----------
    name, fov_m, ellipses
        Its name, the field of view in m, and its parts.
    target
        Name of the ellipse that is heated.
    """

    name: str
    fov_m: float
    ellipses: tuple[Ellipse, ...]
    target: str = "tumour"

    def ellipse(self, name: str) -> Ellipse:
        """Return the ellipse of this name."""
        return next(ellipse for ellipse in self.ellipses if ellipse.name == name)

    def varied(self, random: np.random.Generator) -> "Scene":
        """Return another person: the target moved by up to 4 mm and scaled by up to 8 %."""
        old = self.ellipse(self.target)
        dx, dy = random.uniform(-0.004, 0.004, 2).tolist()
        scale = float(random.uniform(0.95, 1.08))
        new = replace(old, x_m=old.x_m + dx, y_m=old.y_m + dy, a_m=old.a_m * scale, b_m=old.b_m * scale)
        return replace(self, ellipses=tuple(new if part is old else part for part in self.ellipses))

    def kspace(
        self, k: Float64[np.ndarray, "*points 2"], amplitudes: Mapping[str, float], *, matrix: int
    ) -> Complex128[np.ndarray, "*points"]:
        """Return the exact k-space of the scene.

        Parameters
        ----------
        k
            float64 (…, 2), cycles per pixel of a grid of ``matrix``² pixels on the field of view.
        amplitudes
            Signal of each tissue.
        """
        pixel = self.fov_m / matrix
        total = np.zeros(k.shape[:-1], dtype=np.complex128)
        for part in self.ellipses:
            replaced = 0.0 if part.inside is None else amplitudes[self.ellipse(part.inside).tissue]
            step = amplitudes[part.tissue] - replaced
            if step != 0.0:
                total += step * ellipse_kspace(part, k, pixel_m=pixel)
        return total

    def fractions(self, matrix: int) -> dict[str, Float32[np.ndarray, "y x"]]:
        """Return the part of each pixel that belongs to each ellipse, without its children, by name."""
        parts = {part.name: coverage(part, matrix, self.fov_m) for part in self.ellipses}
        own = dict(parts)
        for part in self.ellipses:
            if part.inside is not None:
                own[part.inside] = own[part.inside] - parts[part.name]
        return {name: np.clip(part, 0.0, 1.0) for name, part in own.items()}

    def rasterise(
        self, matrix: int, *, echo_time_s: float, repetition_time_s: float, flip_angle_rad: float, fat: bool = True
    ) -> Anatomy:
        """Return the scene on a grid, with the signal of a spoiled gradient echo.

        Parameters
        ----------
        matrix
            Side, pixels.
        echo_time_s, repetition_time_s, flip_angle_rad
            Of the gradient echo, s and rad.
        fat
            Whether fat gives signal (False: perfect fat suppression; oil tubes stay).
        """
        own = self.fractions(matrix)
        tissue_of = {part.name: TISSUES[part.tissue] for part in self.ellipses}
        signal = {
            name: gradient_echo(
                tissue,
                echo_time_s=echo_time_s,
                repetition_time_s=repetition_time_s,
                flip_angle_rad=flip_angle_rad,
            )
            for name, tissue in tissue_of.items()
        }

        def mixed(value: Mapping[str, float]) -> Float32[np.ndarray, "y x"]:
            return reduce(np.add, (own[name] * np.float32(value[name]) for name in own))

        kept = {part.name: 1.0 if fat or part.tissue == "oil" else 0.0 for part in self.ellipses}
        water = mixed({name: signal[name] * (1.0 - tissue_of[name].fat) for name in own})
        fatty = mixed({name: signal[name] * tissue_of[name].fat * kept[name] for name in own})
        body = mixed(dict.fromkeys(own, 1.0)) > 0.5
        pure_fat = mixed({name: float(tissue_of[name].fat == 1.0) for name in own}) > 0.99
        target = self.ellipse(self.target)
        return _anatomy(
            fov_m=self.fov_m,
            water=water,
            fat=fatty,
            body=body,
            fat_mask=mixed({name: tissue_of[name].fat for name in own}) > 0.5,
            tumour=own[self.target] > 0.5,
            cold=pure_fat & (fatty > 0.0),
            tissues={part.name: part.tissue for part in self.ellipses},
            own=own,
            focus_m=(target.x_m, target.y_m),
        )


def _anatomy(*, own: Mapping[str, np.ndarray], tissues: Mapping[str, str], **maps: Any) -> Anatomy:
    """Add the maps of the bioheat equation. Blood warms by perfusion · ρ_blood · c_blood."""
    blood = TISSUES["blood"].density * TISSUES["blood"].heat_capacity
    per_second = 1e-6 / 60.0  # ml/(min kg) → m³/(s kg)

    def total(value: Any) -> Float32[np.ndarray, "y x"]:
        return reduce(np.add, (part * np.float32(value(TISSUES[tissues[name]])) for name, part in own.items()))

    return Anatomy(
        conductivity=total(lambda t: t.conductivity),
        heat_capacity=total(lambda t: t.heat_capacity * t.density),
        perfusion=total(lambda t: t.perfusion * per_second * t.density * blood),
        absorption=total(lambda t: t.electric_conductivity),
        **maps,
    )


def anatomy_of_image(image: FloatArray, scene: Scene, *, fat: bool = True) -> Anatomy:
    """Return a magnitude image as an object in place of the scene's ellipses.

    The image gives the signal; all tissue is muscle but the scene's target, and what is bright within
    25 mm of the skin, which is fat.

    Parameters
    ----------
    image
        float (y, x), square, 0 and above.
    scene
        Gives the field of view and the target of the heating.
    fat
        Whether bright tissue under the skin is fat.

    Raises
    ------
    DataError
        The image is not square or the target lies outside of the body.
    """
    from scipy import ndimage

    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise DataError(f"an object of shape {image.shape}: it must be one square image (y, x).")
    matrix = image.shape[0]
    signal = np.maximum(image, 0.0).astype(np.float32)
    body = ndimage.binary_fill_holes(ndimage.binary_opening(signal > _BODY_THRESHOLD * signal.max(), iterations=2))
    depth = ndimage.distance_transform_edt(body) * (scene.fov_m / matrix)
    under_skin = body & (depth < _SUBCUTANEOUS_M)
    fat_mask = np.zeros_like(body)
    if fat and under_skin.any():
        bright = signal > 0.5 * np.percentile(signal[under_skin], 95.0)
        fat_mask = ndimage.binary_opening(under_skin & bright)
    target = scene.ellipse(scene.target)
    tumour = (coverage(target, matrix, scene.fov_m) > 0.5) & body & ~fat_mask
    if not tumour.any():
        raise DataError(f"the target of the scene {scene.name} lies outside of the object: give another image.")
    own = {"muscle": body & ~fat_mask & ~tumour, "fat": fat_mask, "tumour": tumour}
    return _anatomy(
        fov_m=scene.fov_m,
        water=np.where(fat_mask, 0.0, signal).astype(np.float32),
        fat=np.where(fat_mask, signal, 0.0).astype(np.float32),
        body=body,
        fat_mask=fat_mask,
        tumour=tumour,
        cold=fat_mask,
        tissues={name: name for name in own},
        own={name: part.astype(np.float32) for name, part in own.items()},
        focus_m=(target.x_m, target.y_m),
    )


def image_of_file(source: str, matrix: int) -> FloatArray:
    """Return a magnitude image of a file as an object, float32 (matrix, matrix), 99.5 % point at 1.

    Parameters
    ----------
    source
        ``FILE``, ``FILE:DATASET`` or ``FILE:DATASET:SLICE``; the first dataset and the middle slice by default.
        HDF5, NIfTI, PNG or NumPy, as `simulation.image_sets` reads them.

    Raises
    ------
    DataError
        There is no such file, dataset or slice, or the slice is empty or not finite.
    """
    from sinotherm.simulation.image_sets import prepare, read_series

    name, _, rest = source.partition(":")
    dataset, _, place = rest.partition(":")
    known = []
    for series in read_series(Path(name)):
        full = series.person if series.name == series.person else f"{series.person}/{series.name}"
        known.append(full)
        if dataset in ("", full):
            number = len(series.images)
            index = number // 2 if not place else int(place) if place.isdigit() else number
            if index >= number:
                raise DataError(f"{source}: slice {place} of {full} does not exist; it has 0 to {number - 1}.")
            if not series.images[index].any():
                raise DataError(f"{source}: slice {index} of {full} is empty or not finite: name another one.")
            return prepare(series.images[index], matrix)
    raise DataError(f"{source}: no dataset {dataset!r}; in the file: {', '.join(known[:20])}.")


def _hyperthermia() -> Scene:
    """Return a female pelvis with a cervix tumour, between four oil tubes for the drift."""
    parts = [
        Ellipse(name="skin", tissue="fat", x_m=0.0, y_m=0.0, a_m=0.172, b_m=0.116),
        Ellipse(name="muscle", tissue="muscle", x_m=0.0, y_m=0.002, a_m=0.150, b_m=0.094, inside="skin"),
        Ellipse(name="bladder", tissue="urine", x_m=0.0, y_m=-0.055, a_m=0.036, b_m=0.023, inside="muscle"),
        Ellipse(name="tumour", tissue="tumour", x_m=0.0, y_m=-0.002, a_m=0.024, b_m=0.019, inside="muscle"),
        Ellipse(name="rectum", tissue="gas", x_m=0.004, y_m=0.041, a_m=0.012, b_m=0.009, inside="muscle"),
        Ellipse(name="sacrum", tissue="bone", x_m=0.0, y_m=0.072, a_m=0.034, b_m=0.013, inside="muscle"),
        Ellipse(name="sacral_marrow", tissue="marrow", x_m=0.0, y_m=0.072, a_m=0.030, b_m=0.010, inside="sacrum"),
    ]
    for side, sign in (("right", -1.0), ("left", 1.0)):
        hip, cleft = f"{side}_hip", f"{side}_cleft"
        parts += [
            Ellipse(
                name=hip, tissue="bone", x_m=sign * 0.105, y_m=-0.004, a_m=0.036, b_m=0.021,
                angle_rad=sign * 1.15, inside="muscle",
            ),
            Ellipse(
                name=f"{hip}_marrow", tissue="marrow", x_m=sign * 0.105, y_m=-0.004, a_m=0.031, b_m=0.016,
                angle_rad=sign * 1.15, inside=hip,
            ),
            Ellipse(
                name=cleft, tissue="fat", x_m=sign * 0.070, y_m=0.055, a_m=0.030, b_m=0.0035,
                angle_rad=-sign * 0.55, inside="muscle",
            ),
            Ellipse(
                name=f"{side}_vessel", tissue="blood", x_m=sign * 0.062, y_m=-0.058, a_m=0.006, b_m=0.005,
                inside="muscle",
            ),
        ]  # fmt: skip
        parts += [
            Ellipse(name=f"{side}_{end}_tube", tissue="oil", x_m=sign * 0.150, y_m=y, a_m=0.009, b_m=0.009)
            for end, y in (("upper", -0.108), ("lower", 0.108))
        ]
    return Scene(name="hyperthermia", fov_m=0.40, ellipses=tuple(parts))


def _hifu() -> Scene:
    """Return a pelvis with a uterine fibroid, treated by focused ultrasound from below."""
    parts = (
        Ellipse(name="skin", tissue="fat", x_m=0.0, y_m=0.0, a_m=0.130, b_m=0.105),
        Ellipse(name="muscle", tissue="muscle", x_m=0.0, y_m=-0.004, a_m=0.116, b_m=0.088, inside="skin"),
        Ellipse(name="uterus", tissue="uterus", x_m=-0.006, y_m=0.006, a_m=0.052, b_m=0.040, inside="muscle"),
        Ellipse(name="tumour", tissue="tumour", x_m=-0.010, y_m=0.008, a_m=0.030, b_m=0.024, inside="uterus"),
        Ellipse(name="bladder", tissue="urine", x_m=0.006, y_m=-0.058, a_m=0.026, b_m=0.017, inside="muscle"),
        Ellipse(name="vessel", tissue="blood", x_m=0.072, y_m=-0.030, a_m=0.006, b_m=0.005, inside="muscle"),
    )
    return Scene(name="hifu", fov_m=0.28, ellipses=parts)


def _brain() -> Scene:
    """Return a head with a glioma."""
    parts = [
        Ellipse(name="scalp", tissue="fat", x_m=0.0, y_m=0.0, a_m=0.078, b_m=0.096),
        Ellipse(name="skull", tissue="bone", x_m=0.0, y_m=0.0, a_m=0.073, b_m=0.091, inside="scalp"),
        Ellipse(name="csf", tissue="csf", x_m=0.0, y_m=0.0, a_m=0.067, b_m=0.085, inside="skull"),
        Ellipse(name="cortex", tissue="grey", x_m=0.0, y_m=0.0, a_m=0.065, b_m=0.083, inside="csf"),
        Ellipse(name="white", tissue="white", x_m=0.0, y_m=0.0, a_m=0.057, b_m=0.074, inside="cortex"),
        Ellipse(name="tumour", tissue="tumour", x_m=0.031, y_m=0.018, a_m=0.016, b_m=0.015, inside="white"),
    ]
    for side, sign in (("right", -1.0), ("left", 1.0)):
        parts += [
            Ellipse(
                name=f"{side}_ventricle", tissue="csf", x_m=sign * 0.011, y_m=-0.018, a_m=0.016, b_m=0.006,
                angle_rad=1.571 - sign * 0.25, inside="white",
            ),
            Ellipse(
                name=f"{side}_thalamus", tissue="grey", x_m=sign * 0.0045, y_m=0.014, a_m=0.004, b_m=0.009,
                inside="white",
            ),
        ]  # fmt: skip
    return Scene(name="brain", fov_m=0.24, ellipses=tuple(parts))


SCENES: Final[Mapping[str, Scene]] = {scene.name: scene for scene in (_hyperthermia(), _hifu(), _brain())}


def scene_named(name: str) -> Scene:
    """Return a scene.

    Raises
    ------
    SettingsError
        The name is unknown; the message lists the known ones.
    """
    if name not in SCENES:
        raise SettingsError(f"unknown scene {name!r}; known scenes: {', '.join(SCENES)}.")
    return SCENES[name]
