"""Phase differences: complex products over coils and neighbours, unwrapped in time, echoes combined."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.core.arrays import CoilImages, ComplexArray, FloatArray, MaskArray
from sinotherm.errors import DataError, SettingsError

__all__ = [
    "JUMP_LIMIT_RAD",
    "STEP_LIMIT_RAD",
    "TemporalUnwrapper",
    "combine_echoes",
    "complex_product",
    "connected_phase",
]

JUMP_LIMIT_RAD: Final = 0.75 * math.pi
"""Largest change of a voxel's phase between frames (beside the whole image's) whose branch is certain."""
STEP_LIMIT_RAD: Final = 0.5 * math.pi
"""Largest difference of neighbours in space whose branch is certain."""
FEWEST_ANCHORS: Final = 5
"""Unheated voxels of a patch that tell its branch."""

_LARGE_PATCH: Final = 0.05
"""Share of a plane's voxels from which on a patch is no hot spot."""
_AGREED: Final = 0.75
"""Share of a patch's anchors that must tell the same branch."""
_MANY_JUMPS: Final = 10
"""Neighbours that jump in one frame, from which on it is no noise: what they surround may have gone a whole turn."""
_NEAR: Final = 3
"""Pixels from a jump within which a voxel may have gone a whole turn."""
_TURN: Final = np.float32(2.0 * math.pi)

_Row: TypeAlias = np.ndarray[Any, Any]


def complex_product(image: CoilImages, baseline: CoilImages, *, neighbours: int = 1) -> ComplexArray:
    """Return Σ_c x_c · conj(x0_c), complex64 (slice, y, x), summed over ``neighbours`` × ``neighbours`` voxels.

    Its angle is the phase difference, each coil and neighbour weighted by its own signal; angles
    themselves are never subtracted or averaged.

    Parameters
    ----------
    image, baseline
        complex64 (coil, slice, y, x) of one echo.
    neighbours
        Odd width of the in-plane window; 1 leaves every voxel to itself.

    Raises
    ------
    DataError
        The shapes differ.
    SettingsError
        The window is even, or below 1.

    References
    ----------
    Bernstein et al. 1994, 10.1002/mrm.1910320308.
    """
    if image.shape != baseline.shape:
        raise DataError(
            f"an image of (coil, slice, y, x) = {image.shape} does not fit its baseline of {baseline.shape}: "
            "take a new baseline after a change of the matrix or the coils."
        )
    if neighbours < 1 or neighbours % 2 == 0:
        raise SettingsError(f"a window of {neighbours} voxels: give an odd number of 1 or more.")
    product = np.einsum("czyx,czyx->zyx", image, baseline.conj()) if len(image) > 1 else image[0] * baseline[0].conj()
    if neighbours > 1:
        from scipy.ndimage import uniform_filter

        size = (1, neighbours, neighbours)
        product = uniform_filter(product, size=size, mode="nearest") * np.float32(neighbours**2)
    return product.astype(np.complex64, copy=False)


class TemporalUnwrapper:
    """Follows the phase difference of every voxel through the frames, beyond ±π.

    The change of the whole image since the last frame (B0 drift) is taken out first; what then
    jumps by more than `JUMP_LIMIT_RAD` in a voxel may have gone either way: the voxel is doubtful until it
    joins certain ones again. Where the past is not known (frames are missing, the baseline is of an earlier
    scan), a step says nothing of the branch, and space must tell it: see `connected_phase`.

    Parameters
    ----------
    known
        Whether the frames follow directly on the baseline's own.
    drifts
        Whether the whole image may change its phase between frames. If not, each frame is compared with a reference
        of its own, and anchors alone tell a branch: half of the region may be hot.
    """

    def __init__(self, *, known: bool = True, drifts: bool = True) -> None:
        self._known = known
        self._drifts = drifts
        self._last: _Followed | None = None
        self._before: _Followed | None = None

    def rebase(self, between: ComplexArray) -> None:
        """Go on against another baseline.

        Parameters
        ----------
        between
            complex64 (slice, y, x): complex product of the old baseline with the new one.
        """
        if self._last is not None:
            angle = np.angle(between)
            self._last = _Followed(
                phase=self._last.phase + angle,
                product=self._last.product * np.exp(1j * angle).astype(np.complex64),
                trusted=self._last.trusted,
                doubtful=self._last.doubtful,
            )

    def lose(self) -> None:
        """Frames are missing between the last one and the next."""
        self._known = False

    def withdraw(self) -> None:
        """Forget the last frame, which turned out to be none to go on from, and go on from the one before it."""
        self._last = self._before
        self._known = False

    def _change(self, product: ComplexArray, voxels: MaskArray) -> float:
        """Return by how much the phase of voxels together has changed since the last frame, rad."""
        if not self._drifts:
            return 0.0
        before = np.ones_like(product) if self._last is None else self._last.product
        return float(np.angle(np.vdot(before[voxels], product[voxels])))

    def update(self, product: ComplexArray, trusted: MaskArray, anchors: MaskArray) -> tuple[FloatArray, MaskArray]:
        """Take the next frame's complex product.

        Parameters
        ----------
        product
            complex64 (slice, y, x).
        trusted
            bool (slice, y, x): voxels with enough signal for a phase.
        anchors
            bool (slice, y, x): unheated tissue, whose phase changes by the drift alone.

        Returns
        -------
        phase
            float32 (slice, y, x), rad: unwrapped phase difference to the baseline.
        doubtful
            bool (slice, y, x): trusted voxels whose branch is not certain.
        """
        wrapped = np.angle(product)
        if self._last is None:
            before: FloatArray = np.zeros_like(wrapped)
            kept = returned = np.zeros_like(trusted)
        else:
            before, kept = self._last.phase, self._last.doubtful
            # Cold tissue is followed by time alone; the rest may have turned while it had no signal.
            returned = trusted & ~(self._last.trusted | anchors)
        bulk = self._change(product, trusted)
        expected = before + np.float32(bulk)
        if not self._known:
            # Most of the body may have heated meanwhile: cold tissue changes by itself, and all of it together.
            beside = np.float32(self._change(product, trusted & anchors) - bulk)
            expected[anchors] += beside - _TURN * np.rint(beside / _TURN)
        step = wrapped - expected
        step -= _TURN * np.rint(step / _TURN)
        # A voxel without signal in this frame keeps its branch: noise would walk it away.
        phase = followed = np.where(trusted, expected + step, expected)
        jumped = trusted & (np.abs(step) > JUMP_LIMIT_RAD)
        doubtful = (kept & trusted) | returned | _beside_jumps(step, jumped, trusted, anchors)
        if doubtful.any() and self._known:
            phase, doubtful = _joined(phase, doubtful, trusted)
        if not self._known or _many(jumped) or _many(returned & doubtful):
            sure = trusted & ~kept & (anchors | self._drifts)
            found, certain = connected_phase(wrapped, trusted, sure, sure & anchors, expected)
            rest = trusted & ~certain
            # A patch without anchors that touches no jump (the other leg) is where it was.
            doubtful = (doubtful & rest) | (_touching(jumped, rest) if self._known else rest)
            phase = np.where(certain, found, phase)
        # Cold tissue that lost its signal must scatter, or a drift would be fitted to it: what space tells otherwise
        # of it is no reading yet, but what the next frame goes on from.
        doubtful |= trusted & anchors & (np.abs(phase - followed) > STEP_LIMIT_RAD)
        kept = np.where(trusted, doubtful, kept)
        self._before, self._last = self._last, _Followed(phase=phase, product=product, trusted=trusted, doubtful=kept)
        self._known = True
        return np.where(anchors, followed, phase), doubtful


@dataclass(frozen=True, slots=True, kw_only=True)
class _Followed:
    """A frame that was followed: float32 phase, complex64 product, bool trusted and doubtful, each (slice, y, x)."""

    phase: FloatArray
    product: ComplexArray
    trusted: MaskArray
    doubtful: MaskArray


def connected_phase(
    wrapped: FloatArray, trusted: MaskArray, followed: MaskArray, anchors: MaskArray, expected: FloatArray
) -> tuple[FloatArray, MaskArray]:
    """Return the phase unwrapped in space, and where it is certain.

    Voxels belong together where steps of at most `STEP_LIMIT_RAD` lead from one to the other; a patch of
    them is certain where it holds `FEWEST_ANCHORS` anchors, and these agree on its branch, or where it is large, and
    its median tells it. A hot spot whose rim is too steep to be followed is neither.

    Parameters
    ----------
    wrapped
        float (slice, y, x), rad.
    trusted, followed, anchors
        bool (slice, y, x): voxels with a phase; those of them whose branch was certain in the last frame; those of
        these whose phase is near the expected one.
    expected
        float (slice, y, x), rad.

    Returns
    -------
    phase
        float32 (slice, y, x), rad; that of voxels that are not certain means nothing.
    certain
        bool (slice, y, x).

    Raises
    ------
    DataError
        A phase that is trusted is not finite.

    References
    ----------
    Herráez et al. 2002, 10.1364/AO.41.007437 (sorting by reliability).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from skimage.restoration import unwrap_phase

    phase = np.zeros(wrapped.shape, dtype=np.float32)
    certain = np.zeros(wrapped.shape, dtype=bool)
    planes = zip(wrapped, trusted, followed, anchors, strict=True)
    for number, (plane, inside, before, anchor) in enumerate(planes):
        if not before.any():
            continue
        # Sorting by reliability does not end with a NaN, under the mask neither.
        known = np.where(inside, plane, np.float32(0.0))
        if not np.isfinite(known).all():
            raise DataError("a phase that is trusted is not finite: give such voxels as not trusted.")
        unwrapped = unwrap_phase(np.ma.array(known, mask=~inside), rng=0).filled(0.0)  # type: ignore[no-untyped-call]
        places = np.arange(plane.size).reshape(plane.shape)
        edges = []
        for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
            near = inside[first] & inside[second] & (np.abs(unwrapped[first] - unwrapped[second]) <= STEP_LIMIT_RAD)
            edges.append((places[first][near], places[second][near]))
        rows, columns = (np.concatenate(ends) for ends in zip(*edges, strict=True))
        graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(plane.size, plane.size))
        _, labels = connected_components(graph, directed=False)
        patches = labels.reshape(plane.shape)
        sizes = np.bincount(labels[before.ravel()], minlength=plane.size)
        held = np.bincount(labels[anchor.ravel()], minlength=plane.size)
        large = sizes >= max(1.0, _LARGE_PATCH * inside.sum())
        enough = held >= FEWEST_ANCHORS
        for patch in np.flatnonzero(large | enough):
            own = patches == patch
            away = expected[number] - unwrapped
            turns = _turns(away[own & anchor], _AGREED) if enough[patch] else math.nan
            if math.isnan(turns) and large[patch]:
                turns = _turns(away[own & before])
            if math.isfinite(turns):
                phase[number][own] = unwrapped[own] + np.float32(turns)
                certain[number] |= own
    return phase, certain & trusted


def _turns(away: FloatArray, share: float = 0.0) -> float:
    """Return the whole turns, rad, by which voxels are away; NaN where less than a share of them says so."""
    middle = np.median(away)
    turns = _TURN * np.rint(middle / _TURN)
    agreed = np.mean(np.abs(away - turns) <= JUMP_LIMIT_RAD) >= share
    return float(turns) if agreed and np.abs(middle - turns) <= JUMP_LIMIT_RAD else math.nan


def _many(jumped: MaskArray) -> bool:
    """Whether `_MANY_JUMPS` voxels or more that are neighbours in a plane jumped."""
    from scipy.ndimage import label

    if jumped.sum() < _MANY_JUMPS:
        return False
    groups, _ = label(jumped, np.pad(np.ones((1, 3, 3), bool), ((1, 1), (0, 0), (0, 0))))
    return bool(np.bincount(groups.ravel())[1:].max() >= _MANY_JUMPS)


def _beside_jumps(step: FloatArray, jumped: MaskArray, trusted: MaskArray, anchors: MaskArray) -> MaskArray:
    """Return the voxels that jumped, and those near them that may have gone a whole turn, bool (slice, y, x).

    The middle of a focus warms more than its flank, which jumps, or is so steep that neighbours differ by more than
    half a turn. A voxel near by is followed where steps that differ by at most `STEP_LIMIT_RAD` from neighbour to
    neighbour lead to it from further away, or from an anchor.
    """
    seen = jumped.copy()
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[..., 1:], np.s_[..., :-1])):
        steep = trusted[one] & trusted[other] & (np.abs(step[one] - step[other]) > math.pi)
        seen[one] |= steep
        seen[other] |= steep
    if not seen.any():
        return seen
    inside, out = _padded(trusted), _padded(jumped)
    near = np.zeros_like(inside)
    near[np.flatnonzero(_padded(seen))[:, None] + _window(step.shape, _NEAR)] = True
    followed = inside & ~out & (~near | _padded(anchors))
    values, cross = _padded(step), _window(step.shape, 1)[1::2]
    # Nothing leads to an islet: it goes by itself.
    reached = _spread(followed.copy(), np.flatnonzero(inside & ~followed), cross, np.zeros_like(values))
    followed |= inside & ~out & ~reached
    _spread(followed, np.flatnonzero(inside & ~out & ~followed), cross, values)
    return _cropped(inside & ~followed, step.shape)


def _spread(reached: _Row, places: _Row, beside: _Row, values: _Row) -> _Row:
    """Spread to those of the places beside which a value that differs by at most `STEP_LIMIT_RAD` is reached."""
    while True:
        others = places[:, None] + beside
        joins = (reached[others] & (np.abs(values[others] - values[places, None]) <= STEP_LIMIT_RAD)).any(axis=1)
        if not joins.any():
            return reached
        reached[places[joins]] = True
        places = places[~joins]


def _touching(jumped: MaskArray, rest: MaskArray) -> MaskArray:
    """Return the voxels of the rest that lead to a jump, or are one, bool (slice, y, x)."""
    from scipy.ndimage import binary_dilation, binary_propagation

    window = np.ones((1, 3, 3), bool)
    return np.asarray(binary_propagation(rest & binary_dilation(jumped, window), window, mask=rest))


def _joined(phase: FloatArray, doubtful: MaskArray, trusted: MaskArray) -> tuple[FloatArray, MaskArray]:
    """Return phases and doubtful voxels after those that join certain ones have taken their branch, float32 and bool.

    A voxel joins where it is within `STEP_LIMIT_RAD` of every certain one of the eight around it.
    """
    values, certain = _padded(phase), _padded(trusted & ~doubtful)
    window = _window(phase.shape, 1)
    places = np.flatnonzero(_padded(doubtful))
    while True:
        others = places[:, None] + window
        known, near = certain[others], values[others]
        most = np.where(known, near, -np.inf).max(axis=1, initial=-np.inf)
        least = np.where(known, near, np.inf).min(axis=1, initial=np.inf)
        middle = 0.5 * np.where(known.any(axis=1), most, np.nan) + 0.5 * least
        branch = values[places] - _TURN * np.rint((values[places] - middle) / _TURN)
        joins = np.maximum(most - branch, branch - least) <= STEP_LIMIT_RAD
        if not joins.any():
            doubtful = np.zeros_like(certain)
            doubtful[places] = True
            return _cropped(values, phase.shape), _cropped(doubtful, phase.shape)
        values[places[joins]], certain[places[joins]] = branch[joins], True
        places = places[~joins]


def _padded(values: _Row) -> _Row:
    """Return the values of (slice, y, x) with a margin of `_NEAR` in the planes, in one row."""
    return np.pad(values, ((0, 0), (_NEAR, _NEAR), (_NEAR, _NEAR))).ravel()


def _cropped(row: _Row, shape: tuple[int, ...]) -> _Row:
    """Return the row of `_padded` without its margin, (slice, y, x)."""
    padded = row.reshape(shape[0], shape[1] + 2 * _NEAR, shape[2] + 2 * _NEAR)
    return padded[:, _NEAR:-_NEAR, _NEAR:-_NEAR].copy()


def _window(shape: tuple[int, ...], radius: int) -> _Row:
    """Return how far the pixels of a square window lie from its middle in the row of `_padded`."""
    along = np.arange(-radius, radius + 1)
    return np.add.outer(along * (shape[2] + 2 * _NEAR), along).ravel()


def combine_echoes(
    changes: Sequence[FloatArray], magnitudes: Sequence[FloatArray], echo_times_s: Sequence[float]
) -> tuple[FloatArray, FloatArray]:
    """Return the echoes' temperature changes combined with weights (TE·|S|)², and the weights.

    Parameters
    ----------
    changes
        float32 (slice, y, x), °C, one an echo: each echo unwrapped and converted by itself.
    magnitudes
        float32 (slice, y, x), |S| of each echo in the same unit.
    echo_times_s
        TE of each echo, s.

    Returns
    -------
    change
        float32 (slice, y, x), °C.
    weights
        float32 (echo, slice, y, x), adding up to 1 over the echoes.
    """
    weights = np.stack([(te * size) ** 2 for te, size in zip(echo_times_s, magnitudes, strict=True)])
    total = weights.sum(axis=0)
    weights = np.divide(weights, total, out=np.full_like(weights, 1.0 / len(weights)), where=total > 0.0)
    return np.einsum("ezyx,ezyx->zyx", weights, np.stack(changes)), weights
