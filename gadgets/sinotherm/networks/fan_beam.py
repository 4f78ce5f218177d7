"""Fan-beam sinograms as the dual space: the operators of the CT networks, ours and the papers'."""

import torch
from torch import Tensor

from sinotherm.operators.fan_beam import FanBeam

__all__ = ["FanBeamSinogram", "RealFanBeamSinogram"]


class FanBeamSinogram:
    """T: image → fan-beam sinogram, as one coil of the complex family; the imaginary part stays zero.

    Parameters
    ----------
    projector
        Geometry and views.
    device
        Where it works.
    """

    def __init__(self, projector: FanBeam, device: torch.device | str = "cpu") -> None:
        self._projector = projector
        turn = 2 * torch.pi / len(projector.angles)
        self._gaps = torch.as_tensor(projector.gaps / turn, dtype=torch.float32, device=device)[None, :, None]

    def forward(self, image: Tensor) -> Tensor:
        """T: complex64 (batch, y, x) → (batch, 1, view, detector)."""
        sinogram = self._projector(image.real.contiguous())[:, None]
        return torch.complex(sinogram, torch.zeros_like(sinogram))

    def inverse(self, dual: Tensor) -> Tensor:
        """T⁺: filtered back-projection, Hann window, weights by the actual gaps."""
        return self._back(dual, limit=False)

    def update(self, dual: Tensor) -> Tensor:
        """Return T⁺ with the weights limited to Nyquist between views."""
        return self._back(dual, limit=True)

    def normal(self, image: Tensor) -> Tensor:
        """Return update(T image)."""
        return self.update(self.forward(image))

    def _back(self, dual: Tensor, *, limit: bool) -> Tensor:
        sinogram = dual[:, 0].real.contiguous()
        image = self._projector.filtered_back_projection(sinogram, hann=not limit, limit=limit)
        return torch.complex(image, torch.zeros_like(image))

    def context(self) -> Tensor:
        """Return the gap of each view relative to an even spread, (1, view, 1)."""
        return self._gaps


class RealFanBeamSinogram:
    """The papers' T and T⁺ for CT: line integrals and Hann-windowed filtered back-projection.

    Parameters
    ----------
    projector
        Geometry and views.
    """

    def __init__(self, projector: FanBeam) -> None:
        self._projector = projector

    def forward(self, image: Tensor) -> Tensor:
        """T: float32 (batch, y, x) → (batch, view, detector)."""
        return self._projector(image)

    def inverse(self, sinogram: Tensor) -> Tensor:
        """T⁺: (batch, view, detector) → float32 (batch, y, x)."""
        return self._projector.filtered_back_projection(sinogram)
