"""Stacks of stars: from the partitions of a slab to its planes."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from sinotherm.core.scan import Spoke
from sinotherm.errors import SpokeError

__all__ = ["planes"]

logger = logging.getLogger(__name__)

_SAME_ANGLE: Final = 1e-3


def planes(spokes: Sequence[Spoke], n_partitions: int, n_planes: int, n_acquired: int) -> list[list[Spoke]]:
    """Return the spokes of every plane of a slab: the centred unitary inverse FFT along the partitions.

    Partition n//2 is kz = 0, plane n//2 is z = 0; partitions that were not acquired (partial Fourier) count as
    zero, and the planes are multiplied by sqrt(n_partitions / n_acquired): the SD of whitened noise stays 1, and the
    object's amplitude becomes n_partitions / sqrt(n_acquired) times itself.

    Parameters
    ----------
    spokes
        Of one slab, in order of acquisition; each angle in every partition.
    n_partitions
        Encoded partitions.
    n_planes
        Planes to keep about the centre (slice oversampling is cut off).
    n_acquired
        Partitions that the scan acquires of each slab.

    Returns
    -------
    list
        For each plane its spokes in the order of the fullest partition; ``slice`` is the plane's place
        in the slab, behind the planes of the slabs before.

    Raises
    ------
    SpokeError
        A partition lies outside the slab, or the angles of the partitions differ.
    """
    # It loads torch, which scans without partitions can do without here.
    from sinotherm.operators.fourier import ifft1

    stacks: dict[int, list[Spoke]] = {}
    for spoke in spokes:
        if not 0 <= spoke.partition < n_partitions:
            raise SpokeError(
                f"readout {spoke.index} has partition {spoke.partition}: the slab has 0 to {n_partitions - 1}."
            )
        stacks.setdefault(spoke.partition, []).append(spoke)
    star = max(stacks.values(), key=len)
    missing = n_partitions * len(star) - len(spokes)
    if missing:
        logger.info("%d of %d spokes of the stack were not acquired: zero", missing, n_partitions * len(star))
    data = np.zeros((n_partitions, len(star), *star[0].data.shape), dtype=np.complex64)
    received = [spoke.received_s for spoke in star]
    for partition, stack in stacks.items():
        for place, spoke in zip(_places(stack, star), stack, strict=True):
            data[partition, place] = spoke.data
            received[place] = max(received[place], spoke.received_s)
    # The scan's number, so that frames that lost a partition keep their scale; a frame that has more tells better.
    volume = ifft1(data, 0) * np.float32(math.sqrt(n_partitions / max(n_acquired, len(stacks))))
    n_planes = min(n_planes, n_partitions)
    first = n_partitions // 2 - n_planes // 2
    slab = star[0].slice * n_planes
    # What the last spoke waited for decides about the latency of every plane.
    received[-1] = max(received)
    return [
        [
            dataclasses.replace(
                spoke, data=volume[first + plane, place], slice=slab + plane, partition=0, received_s=received[place]
            )
            for place, spoke in enumerate(star)
        ]
        for plane in range(n_planes)
    ]


def _places(stack: Sequence[Spoke], star: Sequence[Spoke]) -> list[int]:
    """Return which spoke of the star each spoke of a partition belongs to."""
    if len(stack) == len(star) and all(_same(a, b) for a, b in zip(stack, star, strict=True)):
        return list(range(len(star)))
    free = dict(enumerate(star))
    places = []
    for spoke in stack:
        place = next((place for place, other in free.items() if _same(spoke, other)), None)
        if place is None:
            raise SpokeError(
                f"readout {spoke.index} of partition {spoke.partition} stands at {math.degrees(spoke.angle_rad):.2f} "
                "degrees, where no other partition has a spoke: rotated partitions are not supported."
            )
        del free[place]
        places.append(place)
    return places


def _same(one: Spoke, other: Spoke) -> bool:
    difference = math.remainder(one.angle_rad - other.angle_rad, 2.0 * math.pi)
    return abs(difference) < _SAME_ANGLE
