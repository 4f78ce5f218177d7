"""Stage: images and maps as MRD images, each product in a series of its own."""

import logging
from collections.abc import Iterator
from typing import Literal

from sinotherm.core.scan import Frame, FrameImage, FrameStatistics, Item, ScanHeader, Spoke, TemperatureMap
from sinotherm.core.settings import StageSettings, setting
from sinotherm.frames.images import ImageMaker, passed_series
from sinotherm.wire.messages import Image

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


class Settings(StageSettings):
    """Images out."""

    format: Literal["research", "console"] = setting(
        "research", "float32 with NaN for no reading, or uint16 with fixed slope and intercept for scanner consoles."
    )
    magnitude: bool = setting(True, "Send the magnitude (series 1).")
    complex_images: bool = setting(False, "Send the complex image (series 2).")
    sinograms: bool = setting(False, "Send the sinogram of the frame's spokes (series 7).")
    scale: float = setting(
        0.0, "Object units of one count of the console's magnitude; 0: from the first image, then fixed.", ge=0.0
    )


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Replace every image and map by its MRD images; spokes, frames and statistics end here.

    Images of another reconstruction pass; from the series of ours they are moved to one of their own.
    """
    maker = ImageMaker(scan, console=settings.format == "console", scale=settings.scale)
    n_angles: dict[str, int] = {}
    moved: set[int] = set()

    def fits(item: FrameImage, kind: str, found: int) -> bool:
        """Whether the sinogram has the shape of its series."""
        if n_angles.setdefault(kind, found) == found:
            return True
        logger.warning(
            "no %s of frame %d: it has %d spokes, the series has %d", kind, item.number, found, n_angles[kind]
        )
        return False

    for item in items:
        if isinstance(item, FrameImage):
            if settings.magnitude:
                yield maker.magnitude(item)
            if settings.complex_images:
                yield maker.complex_image(item)
            if settings.sinograms and item.spokes and fits(item, "sinogram", len(item.spokes)):
                yield maker.sinogram(item)
            if item.sinogram is not None and fits(item, "full sinogram", len(item.sinogram.angles)):
                yield maker.full_sinogram(item, item.sinogram)
        elif isinstance(item, TemperatureMap):
            yield from maker.maps(item)
        elif isinstance(item, Image) and (series := passed_series(item.image_series_index)) != item.image_series_index:
            if series not in moved:
                logger.warning(
                    "image series %d of another reconstruction is passed on as series %d: we number our own so",
                    *(item.image_series_index, series),
                )
                moved.add(series)
            head = item.getHead()
            head.image_series_index = series
            yield Image(head, meta=item.meta, data=item.data)
        elif not isinstance(item, Spoke | Frame | FrameStatistics):
            yield item
