"""Names for the arrays that travel through the chain.

Axis order is fixed here, so that a signature says it: images are (coil, slice, row, column),
sinograms and frames (coil, spoke, readout or detector).
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Complex64, Float32, Float64, UInt16
else:
    try:
        from jaxtyping import Bool, Complex64, Float32, Float64, UInt16
    except ModuleNotFoundError:

        class _Unchecked:
            """Names an array without its shape: a machine that only trains has none but torch's packages."""

            def __class_getitem__(cls, named: tuple[type, str]) -> type:
                return named[0]

        Bool = Complex64 = Float32 = Float64 = UInt16 = _Unchecked

__all__ = [
    "CoilImages",
    "ComplexArray",
    "FloatArray",
    "FrameData",
    "MapArray",
    "MaskArray",
    "PlaneMask",
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
PlaneMask: TypeAlias = Bool[np.ndarray, "y x"]
ValidityArray: TypeAlias = UInt16[np.ndarray, "slice y x"]
