"""Stage: coil compression, decided on the first frame of every slice and frozen for the scan."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from sinotherm.core.arrays import ComplexArray
from sinotherm.core.scan import Item, MetaValue, ScanHeader, Spoke
from sinotherm.core.settings import StageSettings, setting
from sinotherm.frames.calibration import check_stored, first_frame, released, stacked, stored_estimate
from sinotherm.frames.compression import (
    CoilCompression,
    region_compression,
    rows_without,
    streak_prone_coils,
    svd_compression,
)
from sinotherm.frames.whitening import NoiseScan

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


class Settings(StageSettings):
    """Coil compression."""

    method: Literal["svd", "region", "off"] = setting(
        "svd", "Strongest singular vectors, those that keep the field of view and give up the outside, or none."
    )
    coils: int = setting(
        8, "Virtual coils; scans with no more coils keep theirs; 0: by energy (svd), half of them (region).", ge=0
    )
    energy: float = setting(0.995, "Share of the signal's energy to keep where coils = 0 (svd).", gt=0.0, le=1.0)
    streak_limit: float = setting(
        2.5, "Coils whose streaks are above this times the median, and its scatter, are left out; 0: none is.", ge=0.0
    )
    spokes: int = setting(0, "Spokes of each slice to decide on; 0: the first frame.", ge=0)


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Leave streak-prone coils out and turn the others into fewer virtual coils, the same for the whole scan.

    The first frame is held back until its last spoke (`sinotherm.frames.calibration`), where slices follow each
    other until those of all have come, unless its first spoke shows that there is nothing to decide; with a stored
    baseline nothing is, and the coils become those of the baseline.

    Raises
    ------
    BaselineError
        The stored baseline was taken with another number of coils.
    """
    if settings.method == "off":
        yield from items
        return
    first: Spoke | None = None
    for item in items:
        if isinstance(item, Spoke):
            first = item
            break
        yield item
    if first is None:
        return
    items, n_coils = itertools.chain((first,), items), len(first.data)
    matrix = stored_estimate(scan, "coil_compression")
    # Where the stored baseline's scan left no coil out, its images have them all.
    search = settings.streak_limit > 0.0 and not scan.estimates
    if matrix is None and (n_coils == 1 or (n_coils <= settings.coils and not search)):
        yield from items
        return
    held: list[Item] = []
    note: dict[str, MetaValue] = {}
    compression: CoilCompression | None
    if matrix is None:
        # What only a later slice's coils see would be lost.
        held, spokes = first_frame(items, scan, settings.spokes, n_slices=scan.n_slices)
        compression, streaky = _decided(spokes, scan, settings)
        if compression is not None and not np.isnan(compression.energy):
            note["coil_compression_energy"] = round(compression.energy, 5)
        if settings.streak_limit > 0.0:
            # None found is another thing than none looked for.
            note["streak_prone_coils"] = streaky
        if streaky:
            logger.warning(
                "coils %s of %d are left out: their streaks stand out, by compression.streak_limit = %g; "
                "sinotherm qa coils shows those of every coil",
                *(", ".join(map(str, streaky)), n_coils, settings.streak_limit),
            )
    else:
        check_stored("coils", matrix.shape[1:], (n_coils,))
        compression = CoilCompression(matrix=matrix)
    if compression is not None:
        note |= {"coil_compression": settings.method, "coil_compression_coils": (n_coils, len(compression.matrix))}
        logger.info("coil compression: %s", note)
    before: Mapping[str, MetaValue] | None = None
    noted: Mapping[str, MetaValue] = note
    for item in released(held, items):
        if isinstance(item, Spoke):
            if item.calibration != before:
                before = item.calibration
                noted = {**before, **note}
            if compression is None:
                yield item.changed(calibration=noted)
                continue
            yield item.changed(
                data=compression.apply(item.data),
                calibration=noted,
                estimates={**item.estimates, "coil_compression": compression.matrix},
            )
        else:
            yield item


def _decided(
    spokes: Sequence[Spoke], scan: ScanHeader, settings: Settings
) -> tuple[CoilCompression | None, tuple[int, ...]]:
    """Return the compression, ``None`` where all coils stay as they are, and the coils that are left out."""
    data, _ = stacked(spokes)
    sampling, width = spokes[0].sampling, scan.recon.matrix[0]
    streaky = _streaky(spokes, width, settings.streak_limit) if settings.streak_limit > 0.0 else ()
    rows = None
    if streaky:
        rows = rows_without(streaky, _mixing(spokes[0]))
        data = np.tensordot(rows, data, axes=1)
    if len(data) <= settings.coils:
        return (None if rows is None else CoilCompression(matrix=rows)), streaky
    if settings.method == "svd":
        found = svd_compression(data, n_coils=settings.coils, energy=settings.energy)
    else:
        found = region_compression(data, sampling, width, n_coils=settings.coils or len(data) // 2)
    return found if rows is None else dataclasses.replace(found, matrix=found.matrix @ rows), streaky


def _streaky(spokes: Sequence[Spoke], width: int, limit: float) -> tuple[int, ...]:
    """Return the streak-prone coils, from the slice, partition and echo with the strongest signal."""
    planes: dict[tuple[int, int, int], list[Spoke]] = {}
    for spoke in spokes:
        planes.setdefault((spoke.slice, spoke.partition, spoke.echo), []).append(spoke)
    plane = max(planes.values(), key=lambda found: sum(float(np.vdot(s.data, s.data).real) for s in found))
    data, angles = stacked(plane)
    raw = np.tensordot(_mixing(plane[0]), data, axes=1).astype(np.complex64)
    return streak_prone_coils(raw, angles, plane[0].sampling, width, limit=limit)


def _mixing(spoke: Spoke) -> ComplexArray:
    """Return what makes the spoke's data those of the physical coils again."""
    products, readout = (spoke.estimates.get(name) for name in ("noise_products", "noise_readout"))
    noise = NoiseScan() if products is None or readout is None else NoiseScan.of(products, readout)
    return noise.mixing(len(spoke.data))
