"""A simulated scan as an MRD file, and the truth beside it.

``/dataset`` is what a scanner's converter would write; ``/truth`` in the same file is what the scanner
cannot know. Each of its arrays has its unit and axes as attributes.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from sinotherm.core.arrays import SpokeAngles, SpokeData
from sinotherm.core.geometry import TINY_GOLDEN_ORDER
from sinotherm.core.physics import BODY_TEMPERATURE_DEGC, PRF_COEFFICIENT
from sinotherm.simulation.scan import Scan

__all__ = ["header_xml", "readouts", "simulate", "write_truth"]

_TICK_S: Final = 2.5e-3
_START_S: Final = 10 * 3600.0


def header_xml(scan: Scan) -> bytes:
    """Return the MRD header of a scan."""
    import ismrmrd.xsd as xsd

    protocol = scan.protocol
    fov_mm, matrix = 1e3 * scan.scene.fov_m, protocol.matrix

    def space(n_x: int, fov_x: float) -> Any:
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=n_x, y=matrix, z=1),
            fieldOfView_mm=xsd.fieldOfViewMm(x=fov_x, y=fov_mm, z=10.0),
        )

    def limit(maximum: int, centre: int = 0) -> Any:
        return xsd.limitType(minimum=0, maximum=maximum, center=centre)

    header = xsd.ismrmrdHeader(
        version=1,
        measurementInformation=xsd.measurementInformationType(
            measurementID=f"simulated_{protocol.scene}_{protocol.seed}",
            protocolName=f"sinotherm_{protocol.scene}_{protocol.schedule}",
            patientPosition=xsd.patientPositionType.HFS,
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="Sinotherm",
            systemModel="simulation",
            systemFieldStrength_T=protocol.field_strength_t,
            relativeReceiverNoiseBandwidth=1.0,
            receiverChannels=protocol.n_coils,
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=round(protocol.larmor_hz)),
        encoding=[
            xsd.encodingType(
                encodedSpace=space(2 * matrix, 2.0 * fov_mm),
                reconSpace=space(matrix, fov_mm),
                encodingLimits=xsd.encodingLimitsType(
                    kspace_encoding_step_0=limit(2 * matrix - 1, matrix),
                    kspace_encoding_step_1=limit(protocol.spokes - 1, protocol.spokes // 2),
                    kspace_encoding_step_2=limit(0),
                    slice=limit(0),
                    repetition=limit(protocol.frames - 1),
                ),
                # "goldenangle" says 111.246 degrees; the other orders have no name in MRD.
                trajectory=xsd.trajectoryType.GOLDENANGLE
                if protocol.schedule == "golden"
                else xsd.trajectoryType.RADIAL,
            )
        ],
        sequenceParameters=xsd.sequenceParametersType(
            TR=[1e3 * protocol.repetition_time_s],
            TE=[1e3 * protocol.echo_time_s],
            flipAngle_deg=[math.degrees(protocol.flip_angle_rad)],
        ),
        userParameters=xsd.userParametersType(
            userParameterLong=[
                xsd.userParameterLongType(name="spokes_per_frame", value=protocol.spokes),
                xsd.userParameterLongType(name="baseline_frames", value=protocol.baseline_frames),
                *(
                    [xsd.userParameterLongType(name="tiny_golden_order", value=TINY_GOLDEN_ORDER)]
                    if protocol.schedule == "tiny_golden"
                    else []
                ),
            ],
            userParameterDouble=[
                xsd.userParameterDoubleType(name="dwell_time_us", value=1e6 * protocol.dwell_s),
                xsd.userParameterDoubleType(name="pixel_bandwidth_hz", value=protocol.pixel_bandwidth_hz),
            ],
            userParameterString=[
                xsd.userParameterStringType(name="angle_schedule", value=protocol.schedule),
            ],
        ),
    )
    return xsd.ToXML(header).encode()


def _trajectories(scan: Scan) -> Callable[[SpokeAngles], list[np.ndarray]]:
    """Return what gives the nominal sample positions of spokes, float32 (sample, 2), one object for each angle."""
    positions = scan.protocol.sampling.positions
    if not scan.protocol.trajectory:
        nothing = np.zeros((len(positions), 0), dtype=np.float32)
        return lambda angles: [nothing] * len(angles)

    def stored(angles: SpokeAngles) -> list[np.ndarray]:
        direction = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
        return list((positions[:, None] * direction[:, None, :]).astype(np.float32))

    return stored


def readouts(scan: Scan) -> Iterator[Any]:
    """Yield the readouts (`sinotherm.wire.messages.Readout`) in the order of acquisition.

    Noise scans, dummy scans, then the frames. Time stamps count 2.5 ms ticks since midnight, rounded,
    as scanners do; readouts of a frame are TR apart.
    """
    import ismrmrd

    from sinotherm.wire.messages import Readout

    protocol = scan.protocol
    blank = ismrmrd.AcquisitionHeader()
    blank.version = 1
    blank.measurement_uid = protocol.seed
    blank.number_of_samples = protocol.n_readout
    blank.available_channels = blank.active_channels = protocol.n_coils
    blank.center_sample = protocol.matrix
    blank.trajectory_dimensions = 2 if protocol.trajectory else 0
    blank.sample_time_us = 1e6 * protocol.dwell_s
    blank.read_dir[:] = (1.0, 0.0, 0.0)
    blank.phase_dir[:] = (0.0, 1.0, 0.0)
    blank.slice_dir[:] = (0.0, 0.0, 1.0)
    template = bytes(blank)
    counter = 0

    def flags(*bits: int) -> int:
        return sum(1 << (bit - 1) for bit in bits)

    def readout(data: SpokeData, trajectory: np.ndarray, *, spoke: int, frame: int, bits: int) -> Any:
        nonlocal counter
        header = ismrmrd.AcquisitionHeader.from_buffer_copy(template)
        header.scan_counter = counter
        late_s = frame * (protocol.interval_s - protocol.frame_s)
        header.acquisition_time_stamp = round((_START_S + counter * protocol.repetition_time_s + late_s) / _TICK_S)
        header.flags = bits
        header.idx.kspace_encode_step_1 = spoke
        header.idx.repetition = frame
        header.trajectory_dimensions = trajectory.shape[1]
        counter += 1
        return Readout(header=header, data=np.ascontiguousarray(data), trajectory=trajectory)

    trajectories = _trajectories(scan)
    noise, dummies = scan.preparation()
    nothing = np.zeros((protocol.n_readout, 0), dtype=np.float32)
    for number in range(noise.shape[1]):
        yield readout(noise[:, number], nothing, spoke=0, frame=0, bits=flags(ismrmrd.ACQ_IS_NOISE_MEASUREMENT))
    paths = trajectories(scan.angles(0))
    for number in range(dummies.shape[1]):
        spoke = number % protocol.spokes
        yield readout(dummies[:, number], paths[spoke], spoke=spoke, frame=0, bits=flags(ismrmrd.ACQ_IS_DUMMYSCAN_DATA))
    for frame, data in enumerate(scan.frames()):
        if not protocol.repeats:
            paths = trajectories(scan.angles(frame))
        for spoke in range(protocol.spokes):
            bits = flags(ismrmrd.ACQ_FIRST_IN_REPETITION) if spoke == 0 else 0
            if spoke == protocol.spokes - 1:
                bits |= flags(ismrmrd.ACQ_LAST_IN_REPETITION)
                if frame == protocol.frames - 1:
                    bits |= flags(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
            yield readout(data[:, spoke], paths[spoke], spoke=spoke, frame=frame, bits=bits)


def write_truth(scan: Scan, group: Any) -> None:
    """Write what is behind the scan into an HDF5 group.

    Parameters
    ----------
    group
        ``h5py.Group``; every dataset in it gets ``unit`` and ``axes``.
    """
    protocol, anatomy = scan.protocol, scan.anatomy
    frames = range(protocol.frames)
    centres = np.arange(protocol.frames) * protocol.interval_s + 0.5 * protocol.frame_s
    water, fat = scan.signal()

    def store(name: str, values: Any, unit: str, axes: str, note: str) -> None:
        dataset = group.create_dataset(name, data=values)
        dataset.attrs.update({"unit": unit, "axes": axes, "description": note})

    temperature = np.stack([scan.temperature(number) for number in frames])
    store("temperature", temperature, "degC", "frame, y, x", "mean over the spokes of the frame; NaN outside the body")
    store("time", centres, "s", "frame", "centre of the frame after its first spoke")
    store("drift", scan.drift.frequency(centres).astype(np.float32), "Hz", "frame, y, x", "B0 drift at that time")
    store("field", scan.field_hz.astype(np.float32), "Hz", "y, x", "static off-resonance")
    store("magnitude", anatomy.water + anatomy.fat, "1", "y, x", "signal of water and fat")
    store("water", water, "1", "y, x", "complex signal at TE that shifts with temperature, before drift and heat")
    store("fat", fat, "1", "y, x", "complex signal of fat at TE")
    store("coil_maps", scan.coils.maps, "1", "coil, y, x", "receive sensitivity")
    covariance = scan.coils.noise_covariance * (2.0 * scan.noise_sd**2)
    store("noise_covariance", covariance, "1", "coil, coil", "E[n conj(n)] of one sample")
    for name in ("body", "tumour", "cold"):
        store(f"masks/{name}", getattr(anatomy, name), "1", "y, x", "mask")
    store("masks/fat", anatomy.fat_mask, "1", "y, x", "mask: mostly fat, which has no PRF shift")
    facts = {
        "scene": protocol.scene,
        "seed": protocol.seed,
        "snr": protocol.snr,
        "body_temperature_degC": BODY_TEMPERATURE_DEGC,
        "peak_heating_degC": float(np.nanmax(temperature)) - BODY_TEMPERATURE_DEGC,
        "prf_coefficient_per_degC": PRF_COEFFICIENT,
        "phase_sign": protocol.phase_sign,
        "larmor_hz": protocol.larmor_hz,
        "echo_time_s": protocol.echo_time_s,
        "pixel_m": anatomy.fov_m / anatomy.matrix,
        "baseline_frames": protocol.baseline_frames,
        "gradient_delay_samples": (protocol.delay_x, protocol.delay_y),
        "kspace": protocol.kspace,
    }
    group.attrs.update(facts)


def simulate(
    scan: Scan, path: Path, *, watch: Callable[[Iterator[Any]], Iterator[Any]] = lambda items: items
) -> dict[str, Any]:
    """Write a scan and its truth to an MRD file; an existing one is replaced when all of it is written.

    Parameters
    ----------
    path
        The file.
    watch
        Takes and gives the readouts on their way to the file: a progress bar.

    Returns
    -------
    dict
        The scan in figures, as ``--json`` writes them.

    Raises
    ------
    FileFormatError
        The file cannot be written.
    """
    import h5py

    from sinotherm.wire.file import AcquisitionWriter

    protocol = scan.protocol
    part = path.with_name(f"{path.name}.part")
    try:
        with AcquisitionWriter(part, header_xml(scan)) as writer:
            for readout in watch(readouts(scan)):
                writer.append(readout)
        with h5py.File(part, "a") as file:
            truth = file.create_group("truth")
            write_truth(scan, truth)
            peak = float(truth.attrs["peak_heating_degC"])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return {
        "scene": protocol.scene,
        "matrix": protocol.matrix,
        "n_coils": protocol.n_coils,
        "spokes_per_frame": protocol.spokes,
        "frames": protocol.frames,
        "baseline_frames": protocol.baseline_frames,
        "readouts": protocol.n_readouts,
        "duration_s": round(protocol.duration_s, 3),
        "echo_time_ms": round(1e3 * protocol.echo_time_s, 6),
        "repetition_time_ms": round(1e3 * protocol.repetition_time_s, 6),
        "frame_interval_s": round(protocol.interval_s, 6),
        "field_strength_T": protocol.field_strength_t,
        "snr": None if math.isinf(protocol.snr) else protocol.snr,
        "peak_heating_degC": round(peak, 3),
        "drift_hz": protocol.drift_hz,
        "tumour_voxels": int(scan.anatomy.tumour.sum()),
        "seed": protocol.seed,
    }
