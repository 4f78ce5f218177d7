"""A library of baselines: in which of its states a frame is, told by tissue that heat does not change."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from sinotherm.core.arrays import CoilImages, ComplexArray, FloatArray, MaskArray
from sinotherm.thermometry.drift import polynomial_terms

__all__ = ["Library", "Match", "correlation"]

_BLOCK: Final = 8
"""Side of the neighbourhoods whose phases are compared, voxels."""
_WIDTHS_RAD: Final = (1.0, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.03, 0.03)
"""Widths of the robust fit, rad: from one that finds the drift anywhere down to one that heat lies outside of."""
_LEAST_SHARE: Final = 0.05
"""Share of the tissue below which a mask does not show what breathing does to the rest (oil tubes)."""
_AGREES_RAD: Final = 0.1
_LEAST_AGREEING: Final = 0.5
_LEAST_LIKENESS: Final = 0.7
"""Likeness of a frame, as a share of that which the states have to each other, below which the choice is in doubt. In
simulated breathing and heat wrong choices that mattered stayed below it, and right ones above 0.85 unless the heat
reached the cold tissue."""
_FEW: Final = 16
"""States that tell how like each other all are: each is compared with each, which takes time in large libraries."""
_LEAST: Final = 1e-30


def correlation(one: CoilImages, other: CoilImages) -> float:
    """Return |⟨x, y⟩| / (‖x‖·‖y‖) over all coils and voxels: 1 for the same image up to a factor."""
    return float(abs(np.vdot(one, other)) / max(_LEAST, float(np.linalg.norm(one) * np.linalg.norm(other))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The state that a frame is in.

    Attributes
    ----------
    place
        Of the state in the library.
    score
        Its likeness over the cold tissue, 0 to 1: 1 for the same image up to a factor and a drift.
    agreeing
        Share of the cold tissue, by power, of which the phase agrees with that state to 0.1 rad.
    doubt
        Why it may be the wrong one; empty where nothing says so.
    """

    place: int
    score: float
    agreeing: float
    doubt: str = ""

    @property
    def found(self) -> bool:
        """Whether at least half of the cold tissue agrees with the state."""
        return self.agreeing >= _LEAST_AGREEING


class Library:
    """The states of a library (respiration), to which frames are assigned.

    Heat turns the phase as breathing does: over all tissue, the state that cancels a part of it is more like a heated
    frame than the right one, and shows it too cold. So cold tissue tells the state, by what most of its neighbourhoods
    share after the drift is fitted to each state: drift grows with time, and could be cancelled as well.

    Parameters
    ----------
    states
        complex64 (coil, slice, y, x) each.
    tissue
        bool (slice, y, x): voxels with signal.
    cold
        bool (slice, y, x) each: masks of tissue that is not heated. The first one counts that is a twentieth of the
        tissue or more, else all of this.
    order
        Order of the drift; below 0 one phase is taken out all the same, which is the receiver's.

    References
    ----------
    Multi-baseline subtraction: Rieke and Butts Pauly 2008, 10.1002/jmri.21265. The score is one of this project: the
    correlation of 8 × 8 voxels, weighted by Geman and McClure 1987 (Bull. Int. Statist. Inst. 52, 5) for their phase.
    """

    def __init__(
        self, states: Sequence[CoilImages], *, tissue: MaskArray, cold: Sequence[MaskArray], order: int
    ) -> None:
        least = _LEAST_SHARE * np.count_nonzero(tissue)
        used = next((mask & tissue for mask in cold if np.count_nonzero(mask & tissue) >= least), tissue)
        planes, rows, columns = np.nonzero(used)
        down, along = (-(-n // _BLOCK) for n in used.shape[1:])
        blocks = (planes * down + rows // _BLOCK) * along + columns // _BLOCK
        inorder = np.argsort(blocks, kind="stable")
        self._voxels = planes[inorder], rows[inorder], columns[inorder]
        _, self._starts, counts = np.unique(blocks[inorder], return_index=True, return_counts=True)
        # The drift is one of each plane, the state one of all.
        self._planes = [self._voxels[0][self._starts] == plane for plane in np.unique(planes)]
        terms = polynomial_terms((used.shape[1], used.shape[2]), max(0, order))[:, *self._voxels[1:]]
        self._design = (np.add.reduceat(terms, self._starts, axis=1) / counts).T
        self._seen = np.stack([state[:, *self._voxels] for state in states])
        self._power = self._summed(np.square(np.abs(self._seen)).sum(axis=1))
        self._states = states
        self._usual = 0.0
        few = range(0, len(states), -(-len(states) // _FEW))
        self._usual = float(np.median([self.match(states[place], without=place).score for place in few]))

    @cached_property
    def others(self) -> list[Match]:
        """Of each state the most similar other one."""
        return [self.match(state, without=place) for place, state in enumerate(self._states)]

    def match(self, image: CoilImages, *, without: int | None = None) -> Match:
        """Return the state that a frame, complex64 (coil, slice, y, x), is in; ``without``: but for this one."""
        seen = image[:, *self._voxels]
        power = self._summed(np.square(np.abs(seen)).sum(axis=0))
        sums = self._summed(np.einsum("jcv,cv->jv", self._seen.conj(), seen))
        weights = np.sqrt(self._power * power)
        residual = np.empty(sums.shape)
        for plane in self._planes:
            residual[:, plane] = _without_drift(sums[:, plane], self._design[plane])
        likeness = np.abs(sums) * _kept(residual, _WIDTHS_RAD[-1])
        scores = likeness.sum(axis=1) / np.maximum(weights.sum(axis=1), _LEAST)
        if without is not None:
            scores[without] = -1.0
        best = int(np.argmax(scores))
        score, agrees = float(scores[best]), np.abs(residual[best]) < _AGREES_RAD
        agreeing = float(weights[best][agrees].sum() / max(float(weights[best].sum()), _LEAST))
        doubt = ""
        if agreeing < _LEAST_AGREEING or score < _LEAST_LIKENESS * self._usual:
            doubt = (
                f"the cold tissue is less like any frame of the library (score {score:.2f}) than these are like each "
                f"other ({self._usual:.2f}): it is heated, drifts by more than drift_order tells, or breathing is in a "
                "state that the library lacks; give cold_mask a region that is not heated, or take a new library"
            )
        return Match(place=best, score=score, agreeing=agreeing, doubt=doubt)

    def _summed(self, values: np.ndarray) -> np.ndarray:
        """Return the sums over the neighbourhoods."""
        return np.add.reduceat(values, self._starts, axis=-1)


def _kept(residual: FloatArray, width: float) -> FloatArray:
    return np.asarray(1.0 / np.square(1.0 + np.square(residual / width)))


def _without_drift(sums: ComplexArray, design: FloatArray) -> FloatArray:
    """Return what the drift that most neighbourhoods share leaves of their phases, float64 (state, block), rad."""
    size, terms = np.abs(sums), design.shape[1]
    pairs = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    coefficients = np.zeros((len(sums), terms))
    coefficients[:, 0] = np.angle(sums.sum(axis=1))
    residual = np.angle(sums * np.exp(-1j * (coefficients @ design.T)))
    for width in _WIDTHS_RAD:
        weights = size * _kept(residual, width)
        normal = np.linalg.pinv((weights @ pairs).reshape(-1, terms, terms), hermitian=True)
        coefficients += np.einsum("jst,jt->js", normal, (weights * residual) @ design)
        residual = np.angle(sums * np.exp(-1j * (coefficients @ design.T)))
    return np.asarray(residual)
