"""The scan that the benchmarks send: radial readouts of a smooth object, as bytes and as arrays."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from sinotherm.core.geometry import RadialSampling
from sinotherm.wire.codec import encode
from sinotherm.wire.messages import AcquisitionHeader, ConfigText, Header, Readout

__all__ = ["MATRIX", "NETWORK_ALONE", "READOUT", "BenchScan", "bench_scan"]

MATRIX: Final = 256
READOUT: Final = 512
NETWORK_ALONE: Final = {"beside": "false", "guard_every": "1000000"}
"""Settings of the stage ``pdunet`` for one image a frame, made once: peers check nothing beside it either."""
_FOV_MM: Final = 300
_TICK_S: Final = 2.5e-3
_LAST_IN_REPETITION: Final = 1 << 13
_FIRST_IN_REPETITION: Final = 1 << 12

_HEADER: Final = """<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <acquisitionSystemInformation><systemFieldStrength_T>1.5</systemFieldStrength_T>\
<receiverChannels>{coils}</receiverChannels></acquisitionSystemInformation>
  <experimentalConditions><H1resonanceFrequency_Hz>63866218</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace><matrixSize><x>{readout}</x><y>{readout}</y><z>1</z></matrixSize>\
<fieldOfView_mm><x>{wide}</x><y>{wide}</y><z>5</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>{matrix}</x><y>{matrix}</y><z>1</z></matrixSize>\
<fieldOfView_mm><x>{fov}</x><y>{fov}</y><z>5</z></fieldOfView_mm></reconSpace>
    <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>0</center>\
</kspace_encoding_step_1></encodingLimits>
    <trajectory>radial</trajectory>
  </encoding>
  <sequenceParameters><TR>{tr_ms}</TR><TE>1.5</TE></sequenceParameters>
</ismrmrdHeader>"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BenchScan:
    """One frame that is sent again and again.

    Attributes
    ----------
    header_xml
        Its MRD header.
    readouts
        Acquisition messages as bytes, one a spoke.
    data
        complex64 (coil, spoke, readout).
    angles
        rad, float64 (spoke,), uniform over 180°.
    sampling
        Where the samples lie.
    """

    header_xml: bytes
    readouts: tuple[bytes, ...]
    data: np.ndarray
    angles: np.ndarray
    sampling: RadialSampling

    def opening(self, config: str) -> bytes:
        """Return config text and header as bytes."""
        return b"".join(
            bytes(part)
            for message in (ConfigText(text=config), Header(xml=self.header_xml))
            for part in encode(message)
        )


def bench_scan(*, coils: int, spokes: int, repetition_time_s: float) -> BenchScan:
    """Return a frame of a Gaussian body seen by smooth coils, with a little noise (seeded)."""
    rng = np.random.default_rng(0)
    angles = np.arange(spokes) * (math.pi / spokes)
    sampling = RadialSampling(n_readout=READOUT, spacing=1.0 / READOUT, centre=READOUT / 2)
    positions = sampling.positions
    turn = 2.0 * math.pi * np.arange(coils) / coils
    # Each coil sees the body through its own place at the rim: a shift of the Gaussian.
    places = 0.2 * MATRIX * np.stack([np.cos(turn), np.sin(turn)])
    along = np.stack([np.cos(angles), np.sin(angles)])[:, :, None] * positions
    phase = np.exp(-2j * np.pi * np.einsum("dc,dsr->csr", places, along))
    width = 0.12 * MATRIX
    data = phase * (2.0 * np.pi * width**2 * np.exp(-2.0 * (np.pi * width * positions) ** 2))
    data = data + rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape)
    data = data.astype(np.complex64)
    readouts = []
    for spoke in range(spokes):
        head = AcquisitionHeader()
        head.version = 1
        head.number_of_samples, head.active_channels, head.available_channels = READOUT, coils, coils
        head.center_sample, head.trajectory_dimensions, head.sample_time_us = READOUT // 2, 2, 2.0
        head.acquisition_time_stamp = 1 + round(spoke * repetition_time_s / _TICK_S)
        head.idx.kspace_encode_step_1 = spoke
        head.read_dir[0] = head.phase_dir[1] = head.slice_dir[2] = 1.0
        head.flags = (_FIRST_IN_REPETITION if spoke == 0 else 0) | (_LAST_IN_REPETITION if spoke == spokes - 1 else 0)
        readout = Readout(header=head, data=data[:, spoke], trajectory=along[:, spoke].T.astype(np.float32))
        readouts.append(b"".join(bytes(part) for part in encode(readout)))
    header = _HEADER.format(
        coils=coils,
        readout=READOUT,
        matrix=MATRIX,
        fov=_FOV_MM,
        wide=_FOV_MM * READOUT // MATRIX,
        last=spokes - 1,
        tr_ms=1e3 * repetition_time_s,
    )
    return BenchScan(header_xml=header.encode(), readouts=tuple(readouts), data=data, angles=angles, sampling=sampling)
