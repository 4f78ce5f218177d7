"""Stage: complex images of other reconstructions as images of ours."""

import logging
from collections import Counter
from collections.abc import Iterator

from sinotherm.core.scan import Item, ScanHeader
from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import DataError
from sinotherm.frames.images import foreign_image
from sinotherm.wire.messages import Image, Readout

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


class Settings(StageSettings):
    """Complex images in."""

    tick: float = setting(
        2.5e-3, "Length of a tick of the acquisition time stamp (Siemens: 2.5 ms).", unit="s", gt=0.0, le=1.0
    )


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:  # noqa: ARG001 (every stage has it)
    """Replace every complex MRD image by a `FrameImage`; images without phase and the rest pass.

    Raises
    ------
    DataError
        Acquisitions come instead.
    """
    numbers: Counter[tuple[int, int]] = Counter()
    warned = False
    for item in items:
        if isinstance(item, Readout):
            raise DataError(
                f"readout {item.header.scan_counter} came where complex images are awaited: "
                "acquisitions are the business of radial_thermometry."
            )
        if not isinstance(item, Image):
            yield item
        elif item.data.dtype.kind == "c":
            place = (item.slice, item.contrast)
            yield foreign_image(item, number=numbers[place], tick_s=settings.tick)
            numbers[place] += 1
        else:
            if not warned:
                logger.warning(
                    "image series %d is %s and has no phase: passed on as it is; thermometry needs complex images",
                    *(item.image_series_index, item.data.dtype),
                )
                warned = True
            yield item
