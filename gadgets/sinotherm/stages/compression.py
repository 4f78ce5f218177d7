"""Stage: coil compression, decided on the first frame and frozen for the scan."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from sinotherm.core.scan import Item, MetaValue, ScanHeader, Spoke
from sinotherm.core.settings import StageSettings, setting
from sinotherm.frames.calibration import check_stored, first_frame, released, stacked, stored_estimate
from sinotherm.frames.compression import (
    CoilCompression,
    region_compression,
    streak_ratios,
    streak_weights,
    svd_compression,
)

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


class Settings(StageSettings):
    """Coil compression."""

    method: Literal["svd", "region", "off"] = setting(
        "svd", "Strongest singular vectors, those that keep the field of view and give up the outside, or none."
    )
    coils: int = setting(8, "Virtual coils; scans with no more coils stay as they are; 0: by energy.", ge=0)
    energy: float = setting(0.995, "Share of the signal's energy to keep where coils = 0 (svd).", gt=0.0, le=1.0)
    streak_limit: float = setting(
        2.0, "Coils whose streak ratio is above this times the median count less; 0: all count alike.", ge=0.0
    )
    spokes: int = setting(0, "Spokes to decide on; 0: the first frame.", ge=0)


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Turn coils into fewer virtual coils, the same for the whole scan.

    The first frame is held back until its last spoke (`sinotherm.frames.calibration`); with a stored
    baseline nothing is, and the coils become those of the baseline.

    Raises
    ------
    BaselineError
        The stored baseline was taken with another number of coils.
    """
    if settings.method == "off":
        yield from items
        return
    matrix = stored_estimate(scan, "coil_compression")
    held, spokes = first_frame(items, scan, settings.spokes if matrix is None else 1)
    n_coils = len(spokes[0].data) if spokes else 0
    if n_coils < 2 or 0 < n_coils <= settings.coils:
        yield from released(held, items)
        return
    note: dict[str, MetaValue] = {}
    if matrix is None:
        compression, streaky = _decided(spokes, scan, settings)
        note["coil_compression_energy"] = round(compression.energy, 5)
        if streaky:
            note["streak_prone_coils"] = streaky
    else:
        check_stored("coils", matrix.shape[1:], (n_coils,))
        compression = CoilCompression(matrix=matrix)
    note |= {"coil_compression": settings.method, "coil_compression_coils": (n_coils, len(compression.matrix))}
    logger.info("coil compression: %s", note)
    for item in released(held, items):
        if isinstance(item, Spoke):
            yield dataclasses.replace(
                item,
                data=compression.apply(item.data),
                calibration={**item.calibration, **note},
                estimates={**item.estimates, "coil_compression": compression.matrix},
            )
        else:
            yield item


def _decided(spokes: Sequence[Spoke], scan: ScanHeader, settings: Settings) -> tuple[CoilCompression, tuple[int, ...]]:
    """Return the compression and the streak-prone coils, from all planes of the first frame."""
    data, angles = stacked(spokes)
    sampling, matrix = spokes[0].sampling, scan.recon.matrix[0]
    weights = np.ones(len(data))
    if settings.streak_limit > 0.0:
        plane = [spoke.slice == spokes[0].slice and spoke.partition == spokes[0].partition for spoke in spokes]
        ratios = streak_ratios(data[:, plane], angles[plane], sampling, matrix)
        weights = streak_weights(ratios, limit=settings.streak_limit)
    streaky = tuple(int(coil) for coil in np.flatnonzero(weights < 1.0))
    if settings.method == "svd":
        found = svd_compression(data, n_coils=settings.coils, energy=settings.energy, weights=weights)
    else:
        wanted = settings.coils or len(data) // 2
        found = region_compression(data, sampling, matrix, n_coils=wanted, weights=weights)
    return found, streaky
