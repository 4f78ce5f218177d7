"""``sinotherm simulate``: a scan with its truth, as a scanner would write it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sinotherm.core.record import writable

__all__ = ["command"]


def command(
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT.h5", help="MRD file to write, the truth in /truth of it.", callback=writable),
    ],
    scene: Annotated[Literal["hyperthermia", "hifu", "brain"], typer.Option(help="Body and heating.")] = "hyperthermia",
    matrix: Annotated[int, typer.Option(help="Pixels of an image's side.")] = 256,
    coils: Annotated[int, typer.Option(help="Receiver coils.")] = 8,
    spokes: Annotated[int, typer.Option(help="Spokes of a frame.")] = 402,
    frames: Annotated[int, typer.Option(help="Frames.")] = 32,
    baseline: Annotated[int | None, typer.Option(help="Frames before the heating. [default: a third]")] = None,
    cooling: Annotated[int | None, typer.Option(help="Frames after the heating. [default: a sixth]")] = None,
    schedule: Annotated[
        Literal["uniform180", "uniform360", "golden", "tiny_golden", "raga"], typer.Option(help="Order of the angles.")
    ] = "raga",
    tr: Annotated[float, typer.Option(help="TR, ms.")] = 25.0,
    interval: Annotated[
        float | None,
        typer.Option(help="From the begin of a frame to that of the next, s. [default: no pause between frames]"),
    ] = None,
    te: Annotated[float, typer.Option(help="TE, ms.")] = 19.1,
    b0: Annotated[float, typer.Option(help="Field strength, T.")] = 1.5,
    bandwidth: Annotated[float, typer.Option(help="Receiver bandwidth, Hz per pixel.")] = 500.0,
    flip: Annotated[float, typer.Option(help="Flip angle, degrees.")] = 15.0,
    snr: Annotated[
        float, typer.Option(help="SNR in the tumour with 402 spokes; inf: no noise, and no noise scan.")
    ] = 40.0,
    peak: Annotated[float, typer.Option(help="Largest heating of a frame, °C above 37 °C.")] = 8.0,
    width: Annotated[float | None, typer.Option(help="Width of the heating (FWHM), mm. [default: the scene's]")] = None,
    drift: Annotated[float, typer.Option(help="B0 drift at the end of the scan, Hz.")] = 2.0,
    drift_order: Annotated[int, typer.Option(help="Order of the drift in space, 0 to 2.")] = 1,
    field: Annotated[float, typer.Option(help="Largest static off-resonance, Hz.")] = 15.0,
    fat: Annotated[bool, typer.Option(help="Fat gives signal.")] = True,
    delay_x: Annotated[float, typer.Option(help="Gradient delay along x, samples; positive is late.")] = 0.0,
    delay_y: Annotated[float, typer.Option(help="Gradient delay along y, samples.")] = 0.0,
    phase_sign: Annotated[int, typer.Option(help="Receiver's convention, +1 or -1.")] = 1,
    trajectory: Annotated[bool, typer.Option(help="Write the sample positions.")] = True,
    noise_scans: Annotated[int, typer.Option(help="Noise readouts before the scan.")] = 32,
    dummy_scans: Annotated[int, typer.Option(help="Dummy readouts before the steady state.")] = 40,
    kspace: Annotated[Literal["nufft", "analytic"], typer.Option(help="Grid and NUFFT, or exact shapes.")] = "nufft",
    image: Annotated[
        str | None, typer.Option("--object", metavar="FILE[:DATASET[:SLICE]]", help="Magnitude image as the object.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures of the scan as JSON.", callback=writable)
    ] = None,
) -> None:
    """Write a simulated radial scan as an MRD file, with the truth beside it.

    Noise and dummy scans, coils, static field and drift, fat, heating by the bioheat equation, noise of a
    stated SNR. TE must fit the readout and TR.
    """
    import math
    from functools import partial
    from time import monotonic

    from sinotherm.cli.progress import counted
    from sinotherm.core.record import figures_record, write_record
    from sinotherm.evaluation.tables import command_line
    from sinotherm.simulation.mrd import simulate
    from sinotherm.simulation.phantoms import image_of_file
    from sinotherm.simulation.protocol import Protocol
    from sinotherm.simulation.scan import Scan

    protocol = Protocol(
        scene=scene,
        matrix=matrix,
        n_coils=coils,
        spokes=spokes,
        frames=frames,
        baseline_frames=frames // 3 if baseline is None else baseline,
        cooling_frames=frames // 6 if cooling is None else cooling,
        schedule=schedule,
        repetition_time_s=1e-3 * tr,
        frame_interval_s=interval,
        echo_time_s=1e-3 * te,
        field_strength_t=b0,
        pixel_bandwidth_hz=bandwidth,
        flip_angle_rad=math.radians(flip),
        snr=snr,
        peak_degc=peak,
        heating_width_m=None if width is None else 1e-3 * width,
        drift_hz=drift,
        drift_order_space=drift_order,
        field_hz=field,
        fat=fat,
        delay_x=delay_x,
        delay_y=delay_y,
        phase_sign=phase_sign,
        trajectory=trajectory,
        noise_scans=noise_scans,
        dummy_scans=dummy_scans,
        kspace=kspace,
        seed=seed,
    )
    start_s = monotonic()
    scan = Scan(protocol=protocol, image=None if image is None else image_of_file(image, matrix))
    figures = simulate(scan, output, watch=partial(counted, total=protocol.n_readouts, what="readouts"))
    figures |= {"file": str(output), "wall_s": round(monotonic() - start_s, 2)}
    typer.echo(
        f"{output}: {figures['frames']} frames of {figures['spokes_per_frame']} spokes, "
        f"{figures['duration_s']:g} s of scan, peak heating {figures['peak_heating_degC']:g} degC"
    )
    if json is not None:
        write_record(json, figures_record(command_line(), figures))
