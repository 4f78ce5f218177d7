"""The first frame's spokes, held back until the scan is calibrated on them.

Gradient delay and coil compression are decided once and then frozen. They must hold for the first
frame too: it is usually part of the baseline, and a baseline that was made otherwise than the frames
compared with it is worthless. So the first frame waits for its last spoke, which its image needs
anyway; nothing after it waits.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from sinotherm.core.arrays import FrameData, SpokeAngles
from sinotherm.core.scan import Item, ScanHeader, Spoke

__all__ = ["first_frame", "released", "stacked"]

_MOST_SPOKES = 64


def first_frame(items: Iterator[Item], scan: ScanHeader, n_spokes: int = 0) -> tuple[list[Item], list[Spoke]]:
    """Read the stream up to the end of its first frame.

    Parameters
    ----------
    n_spokes
        Spokes per slice, partition and echo; 0: as the header or the flags of the readouts say, and
        64 where both are silent.

    Returns
    -------
    held
        Everything that was read, in order.
    spokes
        The spokes of the first frame among it (all slices, partitions and echoes that came with it).
    """
    held: list[Item] = []
    spokes: list[Spoke] = []
    wanted = n_spokes or scan.spokes_per_frame or 0
    most = (wanted or _MOST_SPOKES) * scan.n_partitions
    of_first = 0
    for item in items:
        held.append(item)
        if not isinstance(item, Spoke):
            continue
        if spokes and not wanted and item.repetition != spokes[0].repetition:
            break
        spokes.append(item)
        of_first += (item.slice, item.echo) == (spokes[0].slice, spokes[0].echo)
        if of_first >= most or (item.last and not wanted):
            break
    return held, spokes


def released(held: list[Item], items: Iterator[Item]) -> Iterator[Item]:
    """Yield what was held back, then the rest of the stream; ``held`` is emptied."""
    yield from held
    held.clear()
    yield from items


def stacked(spokes: Sequence[Spoke]) -> tuple[FrameData, SpokeAngles]:
    """Return data, complex64 (coil, spoke, readout), and angles, float64 (spoke,), of these spokes."""
    return np.stack([spoke.data for spoke in spokes], axis=1), np.array([spoke.angle_rad for spoke in spokes])
