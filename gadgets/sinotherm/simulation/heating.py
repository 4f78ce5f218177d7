"""Heating of tissue: the bioheat equation of Pennes in a slice.

    ρc ∂u/∂t = ∇·(k ∇u) − w u + Q,    k ∂u/∂n = −h u at the skin

for the temperature change u against the steady state before heating (°C); w = perfusion · ρ_blood · c_blood
in W/(m³ K), Q the absorbed power in W/m³. Pennes 1948, 10.1152/jappl.1948.1.2.93.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Float64

from sinotherm.core.arrays import FloatArray
from sinotherm.errors import SettingsError
from sinotherm.simulation.phantoms import Anatomy

__all__ = ["Bioheat", "HeatSource", "absorbed_power"]

HeatSource: TypeAlias = Literal["rf", "ultrasound"]

SKIN_TRANSFER: Final = 100.0
"""Heat transfer from the skin to the water bolus, W/(m² K). Van der Gaag et al. 2009, 10.1080/02656730902744171."""

_SD_OF_FWHM: Final = 1.0 / math.sqrt(8.0 * math.log(2.0))


def absorbed_power(anatomy: Anatomy, source: HeatSource, *, width_m: float) -> Float32[np.ndarray, "y x"]:
    """Return where the power goes, float32 (y, x), relative units.

    Parameters
    ----------
    anatomy
        The tissue that absorbs it, and its focus.
    source
        ``rf``: phased array of antennas; the interference maximum is a broad Gaussian on the target,
        the absorption follows the electric conductivity. ``ultrasound``: Gaussian focus, in any tissue.
    width_m
        Full width at half maximum, m.

    Raises
    ------
    SettingsError
        The width is below 1 mm.
    """
    if not width_m >= 1e-3:
        raise SettingsError(f"heating of width {width_m} m: it must be 1 mm or more.")
    matrix = anatomy.matrix
    axis = (np.arange(matrix) - matrix // 2) * (anatomy.fov_m / matrix)
    dx, dy = axis[None, :] - anatomy.focus_m[0], axis[:, None] - anatomy.focus_m[1]
    spot = np.exp(-(dx**2 + dy**2) / (2.0 * (width_m * _SD_OF_FWHM) ** 2))
    tissue = anatomy.absorption if source == "rf" else anatomy.body
    return (spot * tissue).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bioheat:
    """The bioheat equation on the pixels of a body, by the Crank-Nicolson method.

    Finite volumes: the conductivity between two pixels is the harmonic mean, so that the heat flux is
    continuous where tissues meet; the scheme is unconditionally stable and of second order in time.
    Crank and Nicolson 1947, 10.1017/S0305004100023197.

    Attributes
    ----------
    conductivity, heat_capacity, perfusion
        (y, x): k in W/(m K), ρc in J/(m³ K), w in W/(m³ K).
    body
        bool (y, x); outside is the bolus, which takes heat through the skin.
    pixel_m
        Size of a pixel, m.
    skin_transfer
        h, W/(m² K); 0 is an insulated body.
    """

    conductivity: FloatArray
    heat_capacity: FloatArray
    perfusion: FloatArray
    body: Bool[np.ndarray, "y x"]
    pixel_m: float
    skin_transfer: float = SKIN_TRANSFER

    @classmethod
    def of(cls, anatomy: Anatomy) -> "Bioheat":
        """Return the equation for a body."""
        return cls(
            conductivity=anatomy.conductivity,
            heat_capacity=anatomy.heat_capacity,
            perfusion=anatomy.perfusion,
            body=anatomy.body,
            pixel_m=anatomy.fov_m / anatomy.matrix,
        )

    def solve(
        self, power: Float32[np.ndarray, "y x"], switched: FloatArray, *, step_s: float
    ) -> Float32[np.ndarray, "time pixel"]:
        """Return the temperature change of the body's pixels at the ends of the steps, °C.

        Parameters
        ----------
        power
            (y, x), W/m³.
        switched
            float (step,): factor of the power during each step.
        step_s
            Length of a step, s.

        Returns
        -------
        Float32
            (step + 1, pixel of ``body`` in row order); the first row is 0.
        """
        from scipy import sparse
        from scipy.sparse.linalg import splu

        loss = self._loss()
        capacity = sparse.diags_array(self.heat_capacity[self.body].astype(np.float64) / step_s)
        ahead, behind = (capacity + 0.5 * loss).tocsc(), (capacity - 0.5 * loss).tocsr()
        factors = splu(ahead, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        source = power[self.body].astype(np.float64)
        change = np.zeros((len(switched) + 1, source.size), dtype=np.float32)
        now = np.zeros(source.size)
        for step, factor in enumerate(switched):
            if factor or now.any():
                now = factors.solve(behind @ now + factor * source)
            change[step + 1] = now
        return change

    def _loss(self) -> Any:
        """Return the sparse matrix of conduction, perfusion and loss through the skin, W/(m³ K)."""
        from scipy import sparse

        n = int(self.body.sum())
        index: np.ndarray = np.full(self.body.shape, -1)
        index[self.body] = np.arange(n)
        diagonal: Float64[np.ndarray, "pixel"] = self.perfusion[self.body].astype(np.float64)
        rows, columns, values = [], [], []
        conductivity = np.pad(self.conductivity.astype(np.float64), 1)
        index = np.pad(index, 1, constant_values=-1)
        here = index[1:-1, 1:-1][self.body]
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            place = slice(1 + dy, index.shape[0] - 1 + dy), slice(1 + dx, index.shape[1] - 1 + dx)
            there = index[place][self.body]
            own, other = conductivity[1:-1, 1:-1][self.body], conductivity[place][self.body]
            link = 2.0 * own * other / np.maximum(own + other, 1e-12) / self.pixel_m**2
            joined = there >= 0
            rows.append(here[joined])
            columns.append(there[joined])
            values.append(-link[joined])
            diagonal = diagonal + np.where(joined, link, self.skin_transfer / self.pixel_m)
        off = sparse.coo_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (n, n))
        return (off + sparse.diags_array(diagonal)).tocsc()
