"""What is decided once for a scan: on its first frame, or as the scan of a stored baseline decided it.

Gradient delay and coil compression are decided once and then frozen. They must hold for the first
frame too: it is usually part of the baseline, and a baseline that was made otherwise than the frames
compared with it is worthless. So the first frame waits for its last spoke, which its image needs
anyway; nothing after it waits.

A baseline that was stored is compared with frames of another scan, or of another part of the same one.
What was estimated for it (noise, coil compression, gradient delay, coil maps) depends on the noise of its
first frame, so it is stored as well and used again: estimated anew it would differ a little, and the phase
with it. `ScanHeader.estimates` has it then, and no frame waits.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from sinotherm.core.arrays import FrameData, SpokeAngles
from sinotherm.core.scan import Frame, Item, ScanHeader, Spoke
from sinotherm.errors import BaselineError

__all__ = [
    "calibration_facts",
    "check_stored",
    "enough_spokes",
    "first_frame",
    "released",
    "stacked",
    "stored_estimate",
]

_MOST_SPOKES = 64
_QUALITY: Final = ("gradient_delay_mismatch", "gradient_delay_refused", "coil_compression_energy", "streak_prone_coils")
"""Notes on how well something was estimated: they change with the noise, and no image with them."""


def stored_estimate(
    scan: ScanHeader, name: str, *, slice_: int | None = None, echo: int | None = None
) -> np.ndarray[Any, Any] | None:
    """Return what the scan of the stored baseline estimated under this name; ``None`` where nothing is stored.

    Parameters
    ----------
    slice_, echo
        Of which slice and echo; by default the first that there is, for what holds for all of them.
    """
    for (of_slice, of_echo), found in scan.estimates.items():
        if name in found and slice_ in (None, of_slice) and echo in (None, of_echo):
            return found[name]
    return None


def check_stored(what: str, stored: Sequence[int], here: Sequence[int]) -> None:
    """Refuse to use what was stored where its size is not that of this scan.

    Raises
    ------
    BaselineError
        The two differ.
    """
    if tuple(stored) != tuple(here):
        sizes = [" x ".join(str(n) for n in size) for size in (stored, here)]
        raise BaselineError(
            f"the stored baseline does not fit this scan: its {what}: {sizes[0]}, of this scan: {sizes[1]}. "
            "Take a new baseline, or give the one of this protocol."
        )


def calibration_facts(spoke: Spoke) -> Mapping[str, str]:
    """Return what a baseline must agree on of a spoke's calibration; what was estimated stands there by its content."""
    # Counts of what went wrong so far are no property of the scan.
    facts = {
        name: str(value)
        for name, value in spoke.calibration.items()
        if not name.startswith("readouts_") and name not in _QUALITY
    }
    named = {
        name: hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:12]
        for name, values in spoke.estimates.items()
    }
    return facts | named | {"estimated": " ".join(sorted(named)) or "nothing"}


def first_frame(
    items: Iterator[Item], scan: ScanHeader, n_spokes: int = 0, *, n_slices: int = 1
) -> tuple[list[Item], list[Spoke]]:
    """Read the stream up to the end of its first frame.

    Parameters
    ----------
    items, scan
        The stream, which is read no further than needed, and its header.
    n_spokes
        Spokes per slice, partition and echo; 0: as the header or the flags of the readouts say, and
        64 where both are silent.
    n_slices
        Slices of which it is read; no further than to the second frame of the first.

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
    n_partitions = scan.acquired_partitions or scan.n_partitions
    most = (wanted or _MOST_SPOKES) * n_partitions
    longest = max(most, (scan.spokes_per_frame or _MOST_SPOKES) * n_partitions)
    counts: Counter[tuple[int, int]] = Counter()
    whole: set[int] = set()
    for item in items:
        held.append(item)
        if not isinstance(item, Spoke):
            continue
        key = (item.slice, item.echo)
        ended = counts[key] >= longest or (key[0] in whole and not wanted)
        if (key == next(iter(counts), key) and ended) or (
            spokes and not wanted and item.repetition != spokes[0].repetition
        ):
            break
        spokes.append(item)
        counts[key] += 1
        if counts[key] >= most or (item.last and not wanted):
            whole.add(key[0])
            if len(whole) >= n_slices or (item.last_of_all and not wanted):
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


def enough_spokes(frames: Sequence[Frame], n_spokes: int) -> bool:
    """Return whether coil maps can be made of the frames that wait for them.

    Parameters
    ----------
    frames
        Of one slice; those of the first one's echo make the maps.
    n_spokes
        Spokes that are enough. Frames with the angles of the first are, too: they would add nothing.
    """
    first = [frame for frame in frames if frame.echo == frames[0].echo]
    if sum(frame.n_spokes for frame in first) >= n_spokes:
        return True
    last = first[-1]
    return len(first) > 1 and last.n_spokes == first[0].n_spokes and np.allclose(last.angles(), first[0].angles())
