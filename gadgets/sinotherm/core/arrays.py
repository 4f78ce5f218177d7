"""Names for the arrays that travel through the chain.

Axis order is fixed here, so that a signature says it: images are (coil, slice, row, column),
sinograms and frames (coil, spoke, readout or detector).
"""

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Complex64, Float32, Float64, UInt16

__all__ = [
    "CoilImages",
    "ComplexArray",
    "FloatArray",
    "FrameData",
    "MapArray",
    "MaskArray",
    "SampleMask",
    "SpokeAngles",
    "SpokeData",
    "SpokeShifts",
    "ValidityArray",
]

ComplexArray: TypeAlias = np.ndarray[Any, np.dtype[np.complexfloating[Any, Any]]]
FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

SpokeData: TypeAlias = Complex64[np.ndarray, "coil readout"]
FrameData: TypeAlias = Complex64[np.ndarray, "coil spoke readout"]
SpokeAngles: TypeAlias = Float64[np.ndarray, "spoke"]
SpokeShifts: TypeAlias = Float64[np.ndarray, "spoke 2"]
CoilImages: TypeAlias = Complex64[np.ndarray, "coil slice y x"]
MapArray: TypeAlias = Float32[np.ndarray, "slice y x"]
SampleMask: TypeAlias = Bool[np.ndarray, "readout"]
MaskArray: TypeAlias = Bool[np.ndarray, "slice y x"]
ValidityArray: TypeAlias = UInt16[np.ndarray, "slice y x"]
