"""Images and maps as MRD images, with their meta in the three dialects that readers know; and back.

===== ================== ==================== =========================================
series what              research             console (value = slope · stored + intercept)
===== ================== ==================== =========================================
1     magnitude          float32              uint16, one slope for the whole scan
2     complex image      complex64            the same
3     temperature, °C    float32, NaN = no    uint16, slope 0.1, intercept −100; 0 = no
                         reading              reading
4     σ_T, °C            float32              uint16, slope 0.01; 65535 = saturated or none
5     CEM43, min         float32              uint16, slope 0.1; 65535 = saturated or none
6     validity           uint16 bits          the same
7     sinogram           complex64            the same
8     sinogram, full     complex64            the same
===== ================== ==================== =========================================

An image that only accompanies another one of the same frame (its meta has the entry ``beside``), and
the maps made from it, stand in series 11 to 17 instead.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from xml.sax.saxutils import escape

import ismrmrd
import numpy as np

from sinotherm import __version__
from sinotherm.core.scan import FrameImage, MetaValue, ScanHeader, Sinogram, TemperatureMap
from sinotherm.frames.assembly import geometry_text
from sinotherm.wire.messages import Image

__all__ = ["META_PREFIX", "ImageMaker", "foreign_image", "is_image", "passed_series"]

logger = logging.getLogger(__name__)

META_PREFIX: Final = "sinotherm_"
"""Begins the name of every meta entry that says how an image was made."""

_BESIDE: Final = 10
_OWN: Final = frozenset(series + beside for series in range(1, 9) for beside in (0, _BESIDE))
_AWAY: Final = 1000
_TOP: Final = 65_535
_MAGNITUDE_TOP: Final = 2047.0
_COUNTERS: Final = ("average", "phase", "set")
_FIXED: Final = ("measurement_uid", "acquisition_time_stamp")
_VECTORS: Final = ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")
_OTHERS: Final = ("physiology_time_stamp", "user_int", "user_float")
_ASCII: Final = str.maketrans(
    {"°": "deg", "µ": "u", "μ": "u", "σ": "sigma", "α": "alpha", "·": "*", "−": "-", "×": "x"}
    # XML cannot hold them, and a command's remark may.
    | {chr(code): "?" for code in range(32) if chr(code) not in "\t\n\r"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """One series: number, names, unit, and how a console stores it."""

    series: int
    name: str
    comment: str
    unit: str = ""
    slope: float = 1.0
    intercept: float = 0.0
    lowest: int = 0
    nothing: int = 0
    window: tuple[float, float] = (0.0, 0.0)
    colours: str = ""
    quantitative: bool = True


_MAGNITUDE: Final = _Product(series=1, name="magnitude", comment="Magnitude", quantitative=False)
_COMPLEX: Final = _Product(series=2, name="complex", comment="Complex image", quantitative=False)
_TEMPERATURE: Final = _Product(
    series=3,
    name="temperature",
    comment="Temperature in degC, NaN (console: stored 0) = no reading",
    unit="degC",
    slope=0.1,
    intercept=-100.0,
    lowest=1,
    window=(40.5, 11.0),
    colours="MicroDeltaHotMetal.pal",
)
_CHANGE: Final = _Product(
    series=3,
    name="temperature_change",
    comment="Temperature change to the baseline in degC, NaN (console: stored 0) = no reading",
    unit="degC",
    slope=0.1,
    intercept=-100.0,
    lowest=1,
    window=(3.5, 11.0),
    colours="MicroDeltaHotMetal.pal",
)
_SIGMA: Final = _Product(
    series=4,
    name="temperature_uncertainty",
    comment="Standard deviation of temperature in degC, NaN (console: stored 65535) = none",
    unit="degC",
    slope=0.01,
    nothing=_TOP,
    window=(1.0, 2.0),
)
_DOSE: Final = _Product(
    series=5,
    name="CEM43",
    comment="Thermal dose CEM43 in minutes, NaN (console: stored 65535) = none",
    unit="min",
    slope=0.1,
    nothing=_TOP,
    window=(120.0, 240.0),
)
_VALIDITY: Final = _Product(
    series=6,
    name="validity",
    comment="Reasons for no reading as bits: 0 signal, 1 noise, 2 wrap, 3 drift, 4 motion, 5 guard, "
    "6 no baseline, 7 reserved; 0 = valid",
    window=(128.0, 256.0),
)
_SINOGRAM: Final = _Product(series=7, name="sinogram", comment="Sinogram (coil, angle, detector)", quantitative=False)
_FULL_SINOGRAM: Final = _Product(
    series=8,
    name="sinogram_full",
    comment="Sinogram (coil, angle, detector): measured spokes, between them projections of the image",
    quantitative=False,
)


def _text(value: Any) -> str:
    return str(value).translate(_ASCII).encode("ascii", "replace").decode("ascii")


class _Meta(ismrmrd.Meta):  # type: ignore[misc]
    """Meta that is written ten times as fast: the image waits for it."""

    def serialize(self) -> str:
        """Return the meta as MRD meta XML."""
        parts = ['<?xml version="1.0" encoding="UTF-8"?>\n<ismrmrdMeta>']
        for name, value in self.items():
            values = value if isinstance(value, list) else [value]
            written = "".join(f"<value>{escape(str(one))}</value>" for one in values)
            parts.append(f"<meta><name>{escape(name)}</name>{written}</meta>")
        return "".join([*parts, "</ismrmrdMeta>"])


class ImageMaker:
    """Makes the MRD images of a scan.

    Parameters
    ----------
    scan
        The scan's header.
    console
        uint16 with fixed slope and intercept instead of float32.
    scale
        Object units of one stored count of the console's magnitude; 0: from the first image, then fixed.
    """

    def __init__(self, scan: ScanHeader, *, console: bool = False, scale: float = 0.0) -> None:
        self._scan = scan
        self._console = console
        self._scale = scale
        self._largest = 0.0
        self._saturated = False
        self._counts: Counter[int] = Counter()

    def magnitude(self, image: FrameImage) -> Any:
        """Return the magnitude, series 1 (coils by root sum of squares)."""
        data = image.data
        magnitude = np.abs(data[0]) if len(data) == 1 else np.sqrt(np.sum(np.abs(data) ** 2, axis=0))
        magnitude = magnitude.astype(np.float32, copy=False)
        if not self._largest:
            self._largest = float(magnitude.max()) or 1.0
            # Room for images twice as bright in 12 bits, and 32 times before they saturate.
            self._scale = self._scale or self._largest / _MAGNITUDE_TOP
        window = (self._largest / 2.0, self._largest)
        return self._image(image, _MAGNITUDE, magnitude[None], slope=self._scale, window=window)

    def complex_image(self, image: FrameImage) -> Any:
        """Return the complex image, series 2."""
        # Whoever measures the phase of these pixels would find that nothing ever changes.
        more: dict[str, MetaValue] = {} if image.phase_valid else {"no_phase": "root sum of squares"}
        return self._image(image, _COMPLEX, np.ascontiguousarray(image.data, dtype=np.complex64), more=more)

    def sinogram(self, image: FrameImage) -> Any:
        """Return the sinogram of the image's spokes, series 7."""
        import torch

        from sinotherm.operators.fourier_slice import FourierSlice

        data = np.stack([spoke.data for spoke in image.spokes], axis=1)
        projections = FourierSlice(image.spokes[0].sampling)(torch.from_numpy(data)).numpy()
        angles = tuple(round(spoke.angle_rad, 6) for spoke in image.spokes)
        return self._image(image, _SINOGRAM, projections[:, None], more={"spoke_angles_rad": angles})

    def full_sinogram(self, image: FrameImage, sinogram: Sinogram) -> Any:
        """Return the sinogram without gaps, series 8."""
        more: dict[str, MetaValue] = {
            "sinogram_angles_rad": tuple(round(float(angle), 6) for angle in sinogram.angles),
            "sinogram_measured": tuple(np.flatnonzero(sinogram.measured).tolist()),
        }
        return self._image(image, _FULL_SINOGRAM, sinogram.data[:, None], more=more)

    def maps(self, made: TemperatureMap) -> Iterator[Any]:
        """Yield temperature (or its change, without body temperature), σ_T, dose and validity, series 3 to 6."""
        if made.temperature_degc is None:
            yield self._image(made, _CHANGE, made.change_degc[None])
        else:
            yield self._image(made, _TEMPERATURE, made.temperature_degc[None])
        yield self._image(made, _SIGMA, made.sigma_degc[None])
        if made.cem43_min is not None:
            yield self._image(made, _DOSE, made.cem43_min[None])
        yield self._image(made, _VALIDITY, made.validity[None].astype(np.uint16, copy=False))

    def _stored(self, product: _Product, pixels: np.ndarray, slope: float) -> np.ndarray:
        """Return float32 pixels as the console stores them, uint16."""
        with np.errstate(invalid="ignore"):
            counts = np.rint((pixels.astype(np.float64) - product.intercept) / slope)
        lost = np.isnan(counts)
        if product is _MAGNITUDE and not self._saturated and bool(np.any(counts > _TOP)):
            logger.warning("the magnitude exceeds %g and is cut off there: set images.scale", _TOP * slope)
            self._saturated = True
        return np.where(lost, product.nothing, np.clip(np.where(lost, 0, counts), product.lowest, _TOP)).astype("<u2")

    def _image(
        self,
        item: FrameImage | TemperatureMap,
        product: _Product,
        pixels: np.ndarray,
        *,
        slope: float = 0.0,
        window: tuple[float, float] | None = None,
        more: Mapping[str, MetaValue] | None = None,
    ) -> Any:
        """Return the MRD image of pixels (channel, z, y, x)."""
        slope, intercept = slope or product.slope, product.intercept
        if pixels.dtype.kind == "f" and self._console:
            pixels = self._stored(product, pixels, slope)
        elif pixels.dtype.kind != "u" or product is not _VALIDITY:
            slope, intercept = 1.0, 0.0
        meta = self._meta(item, product, slope, intercept, window or product.window)
        for name, value in {**item.meta, **(more or {})}.items():
            key = META_PREFIX + _text(name).replace(" ", "_")
            meta[key] = [_text(one) for one in value] if isinstance(value, tuple | list) else _text(value)
        head = self._head(item, product, pixels)
        image = Image(head, meta=meta, data=np.ascontiguousarray(pixels))
        image.received_s = item.received_s
        return image

    def _head(self, item: FrameImage | TemperatureMap, product: _Product, pixels: np.ndarray) -> Any:
        """Return the image header: geometry, counters and stamps of the reference readout."""
        head, reference = ismrmrd.ImageHeader(), item.header
        head.version = 1
        recon = self._scan.recon
        n_planes = self._scan.n_planes
        fov = [1e3 * recon.fov_m[0], 1e3 * recon.fov_m[1], 1e3 * self._scan.plane_m]
        if reference is not None:
            for name in _FIXED:
                setattr(head, name, getattr(reference, name))
            for name in (*_VECTORS, *_OTHERS):
                getattr(head, name)[:] = getattr(reference, name)[:]
            counters = getattr(reference, "idx", reference)
            for name in _COUNTERS:
                setattr(head, name, getattr(counters, name))
            if isinstance(reference, ismrmrd.ImageHeader):
                # 0 is none stated.
                fov = [said if said > 0.0 else size for said, size in zip(reference.field_of_view, fov, strict=True)]
            elif n_planes > 1:
                # The reference is the slab's; plane n//2 is its z = 0.
                away = (item.slice % n_planes - n_planes // 2) * fov[2]
                for axis in range(3):
                    head.position[axis] += away * reference.slice_dir[axis]
        if isinstance(item, FrameImage) and product in (_SINOGRAM, _FULL_SINOGRAM):
            # The detector's elements are as large as pixels where 1/Δκ of them lie on it: the readout's oversampling.
            fov[0] = 1e3 * self._scan.pixel_m[0] / item.spokes[0].sampling.spacing
        head.field_of_view[:] = fov
        head.slice, head.repetition = item.slice & 0xFFFF, item.number & 0xFFFF
        head.contrast = getattr(item, "echo", 0)
        series = product.series + (_BESIDE if item.meta.get("beside") else 0)
        self._counts[series] += 1
        head.image_series_index, head.image_index = series, self._counts[series] & 0xFFFF
        if pixels.dtype.kind == "c":
            head.image_type = ismrmrd.IMTYPE_COMPLEX
        elif pixels.dtype.kind == "u" or product is _MAGNITUDE:
            head.image_type = ismrmrd.IMTYPE_MAGNITUDE
        else:
            head.image_type = ismrmrd.IMTYPE_REAL
        return head

    def _meta(
        self,
        item: FrameImage | TemperatureMap,
        product: _Product,
        slope: float,
        intercept: float,
        window: tuple[float, float],
    ) -> _Meta:
        """Return what readers of the three dialects look for, and times."""
        role = "Quantitative" if product.quantitative else "Image"
        history = ["SINOTHERM", __version__, *str(item.meta.get("method", "")).split()]
        series = f"SINOTHERM_{product.name}"
        meta = _Meta(
            DataRole=role,
            GADGETRON_DataRole=role,
            ImageComments=product.comment,
            ImageComment=product.comment,
            GADGETRON_ImageComment=product.comment,
            SeriesDescription=series,
            SequenceDescriptionAdditional=series,
            GADGETRON_SeqDescription=series,
            ImageProcessingHistory=history,
            GADGETRON_ImageProcessingHistory=history,
            RescaleSlope=f"{slope:.9g}",
            RescaleIntercept=f"{intercept:.9g}",
            # Gadgetron: stored = ratio · value + offset.
            GADGETRON_ScaleRatio=f"{1.0 / slope:.9g}",
            GADGETRON_ScaleOffset=f"{0.0 - intercept / slope:.9g}",
            Keep_image_geometry="1",
        )
        if window[1] > 0.0:
            meta.update(
                WindowCenter=f"{window[0]:.6g}",
                WindowWidth=f"{window[1]:.6g}",
                GADGETRON_WindowCenter=f"{(window[0] - intercept) / slope:.6g}",
                GADGETRON_WindowWidth=f"{window[1] / slope:.6g}",
            )
        if product.colours:
            meta.update(LUTFileName=product.colours, GADGETRON_ColorMap=product.colours)
        if item.header is not None:
            meta["ImageRowDir"] = [f"{value:.9g}" for value in item.header.read_dir]
            meta["ImageColumnDir"] = [f"{value:.9g}" for value in item.header.phase_dir]
        mine: dict[str, str | list[str]] = {"product": product.name, "version": __version__, "frame": str(item.number)}
        if product.unit:
            mine["unit"] = product.unit
        if isinstance(item, FrameImage) and item.spokes:
            # The repetition counts the frames that were made, and leaves no gap where the scanner's were lost.
            mine["scan_counter"] = f"{0.5 * (item.spokes[0].index + item.spokes[-1].index):.1f}"
        first, centre, last = item.footprint
        if not math.isnan(centre):
            mine["footprint_s"] = [f"{first:.6f}", f"{centre:.6f}", f"{last:.6f}"]
            mine["lag_s"] = f"{last - centre:.6f}"
        if not math.isnan(item.received_s):
            mine["latency_ms"] = f"{1e3 * (monotonic() - item.received_s):.3f}"
        meta.update({META_PREFIX + name: value for name, value in mine.items()})
        return meta


def passed_series(series: int) -> int:
    """Return the series in which images of another reconstruction are passed on.

    Numbers of ours move by 1000, and so do those that would be met there: two series never become one.
    """
    return series + _AWAY if series % _AWAY in _OWN and series + _AWAY < 1 << 16 else series


def is_image(image: Any) -> bool:
    """Return whether a complex MRD image shows the object; our own sinograms are complex as well, and do not."""
    return str(image.meta.get(META_PREFIX + "product", _COMPLEX.name)) == _COMPLEX.name


def foreign_image(image: Any, *, number: int, time_s: float) -> FrameImage:
    """Return a complex MRD image of another reconstruction as a `FrameImage`.

    Each series is a reconstruction of its own. Where it comes from another process of ours, it keeps what its
    meta says about its place: that it goes beside another one, stands in for one that was held back, or has no phase,
    and the scan counter of its readouts.

    Parameters
    ----------
    image
        ``ismrmrd.Image`` of complex pixels (channel, z, y, x), with the time of its receipt if it came alive.
    number
        Frame counter of its series and slice.
    time_s
        Time of its time stamp, s; NaN where it has none.
    """
    head = image.getHead()
    across_m = (1e-3 * head.field_of_view[0], 1e-3 * head.field_of_view[1])
    method = f"foreign_{head.image_series_index}"
    meta: dict[str, MetaValue] = {"method": method, "source_series": head.image_series_index}
    said = {name: str(image.meta.get(META_PREFIX + name, "")) for name in ("beside", "guard", "in_place_of")}
    if said["beside"]:
        meta["beside"] = said["beside"]
    with suppress(TypeError, ValueError):
        meta["scan_counter"] = float(image.meta.get(META_PREFIX + "scan_counter"))
    if said["in_place_of"]:
        meta |= {"guard": said["guard"] or "held back", "in_place_of": method}
    return FrameImage(
        data=np.ascontiguousarray(image.data, dtype=np.complex64),
        number=number,
        slice=head.slice,
        echo=head.contrast,
        phase_valid=META_PREFIX + "no_phase" not in image.meta,
        fingerprint={
            "method": method,
            "coils": str(head.channels),
            "geometry": geometry_text(head),
        },
        # 0 is none stated.
        fov_m=across_m if all(0.0 < size < math.inf for size in across_m) else None,
        footprint=(time_s, time_s, time_s),
        header=head,
        received_s=getattr(image, "received_s", math.nan),
        meta=meta,
    )
