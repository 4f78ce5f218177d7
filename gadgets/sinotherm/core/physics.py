"""Physical constants, units, and the relation of phase and temperature."""

import math
from typing import Final

from sinotherm.errors import SettingsError

__all__ = [
    "BODY_TEMPERATURE_DEGC",
    "BREAKPOINT_DEGC",
    "FAT_SHIFT",
    "GAMMA_HZ_PER_T",
    "LARMOR_HZ",
    "LONGEST_ECHO_TIME_S",
    "PRF_COEFFICIENT",
    "PRF_COEFFICIENT_SIZE",
    "PRF_COEFFICIENT_SPREAD",
    "degc_per_radian",
    "radian_per_degc",
]

GAMMA_HZ_PER_T: Final = 42.577478518e6
"""Gyromagnetic ratio of the proton over 2π, Hz/T (CODATA 2018)."""

LARMOR_HZ: Final = (1e5, 2e9)
"""Smallest and largest f0 that is believed, Hz (2 mT to 47 T): a smaller one is meant in MHz."""

LONGEST_ECHO_TIME_S: Final = 1.0
"""Longest TE that is believed, s: a longer one is meant in ms, and would show hot tissue as unheated."""

PRF_COEFFICIENT: Final = -0.01e-6
"""Default α of aqueous tissue, per °C. Ishihara et al. 1995, 10.1002/mrm.1910340606."""

PRF_COEFFICIENT_SIZE: Final = (1e-9, 1e-7)
"""Smallest and largest |α| that is believed, per °C: a larger one is meant in ppm."""

PRF_COEFFICIENT_SPREAD: Final = 0.06
"""Relative spread of α in use (−0.00909 to −0.0103 ppm/°C): a systematic part of every map."""

FAT_SHIFT: Final = -3.4e-6
"""Chemical shift of fat's main line against water at body temperature, as a fraction of f0."""

BODY_TEMPERATURE_DEGC: Final = 37.0
"""Body temperature of the simulated scenes, °C. A real scan has only the one that it was told."""

BREAKPOINT_DEGC: Final = 43.0
"""Breakpoint of the thermal dose, °C. Sapareto and Dewey 1984, 10.1016/0360-3016(84)90379-1."""


def radian_per_degc(*, larmor_hz: float, echo_time_s: float, prf_coefficient: float, phase_sign: int) -> float:
    """Return the phase that 1 °C adds: Δφ = phase_sign · 2π · f0 · α · TE · ΔT.

    Parameters
    ----------
    larmor_hz
        f0, Hz.
    echo_time_s
        TE, s.
    prf_coefficient
        α, per °C; negative in aqueous tissue.
    phase_sign
        +1 or −1: the receiver's convention. +1: the phase of a voxel whose frequency rises grows.

    Returns
    -------
    float
        rad/°C.

    Raises
    ------
    SettingsError
        A quantity is out of range.

    References
    ----------
    Ishihara et al. 1995, 10.1002/mrm.1910340606; Rieke and Butts Pauly 2008, 10.1002/jmri.21265.
    """
    if phase_sign not in (-1, 1):
        raise SettingsError(f"phase_sign = {phase_sign}: it is +1 or -1 (the receiver's convention).")
    for name, value, unit in (("larmor_hz", larmor_hz, "Hz"), ("echo_time_s", echo_time_s, "s")):
        if not (math.isfinite(value) and value > 0.0):
            raise SettingsError(f"{name} = {value} {unit}: it must be finite and above 0.")
    least, most = PRF_COEFFICIENT_SIZE
    if not least <= abs(prf_coefficient) <= most:
        raise SettingsError(
            f"prf_coefficient = {prf_coefficient} per °C: its size must lie between {least:g} and {most:g} "
            "(aqueous tissue: -0.01e-6)."
        )
    return phase_sign * 2.0 * math.pi * larmor_hz * prf_coefficient * echo_time_s


def degc_per_radian(*, larmor_hz: float, echo_time_s: float, prf_coefficient: float, phase_sign: int) -> float:
    """Return the temperature change that 1 rad stands for, °C/rad; see `radian_per_degc`."""
    return 1.0 / radian_per_degc(
        larmor_hz=larmor_hz, echo_time_s=echo_time_s, prf_coefficient=prf_coefficient, phase_sign=phase_sign
    )
