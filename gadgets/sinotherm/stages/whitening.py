"""Stage: whitens the readouts by the scan's noise measurement."""

import logging
from collections.abc import Iterator
from typing import Literal

from sinotherm.core.arrays import ComplexArray
from sinotherm.core.scan import Estimates, Item, ScanHeader
from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import SpokeError
from sinotherm.frames.calibration import check_stored, stored_estimate
from sinotherm.frames.whitening import NoiseScan, WhitenedReadout, is_noise
from sinotherm.wire.messages import Readout

__all__ = ["Settings", "stage"]

logger = logging.getLogger(__name__)


class Settings(StageSettings):
    """Noise whitening."""

    mode: Literal["auto", "off"] = setting("auto", "Whiten by the noise scan where there is one, or never.")
    relative_bandwidth: float = setting(
        0.0,
        "Share of the receiver's bandwidth that its noise fills; 0: as the header says, 1 where it is silent.",
        ge=0.0,
        le=1.0,
    )


def stage(items: Iterator[Item], scan: ScanHeader, settings: Settings) -> Iterator[Item]:
    """Whiten every readout after the noise scan; without one they pass through as they are.

    Noise readouts go on to the stage ``spokes``, which counts and drops them. The noise scan is frozen
    with the first other readout. With a stored baseline it is that of the baseline, and the one of this
    scan, if there is one, only has to agree with it.

    Raises
    ------
    BaselineError
        The noise is not that of the stored baseline.
    SpokeError
        Noise scan and readouts do not have the same channels, or the noise scan cannot be used.
    """
    if settings.mode == "off":
        yield from items
        return
    noise = NoiseScan()
    estimates: Estimates = {}
    products, readout = (stored_estimate(scan, name) for name in ("noise_products", "noise_readout"))
    bandwidth = settings.relative_bandwidth or scan.relative_noise_bandwidth or 1.0
    matrices: dict[float, ComplexArray] = {}
    frozen = warned = False
    for item in items:
        if not isinstance(item, Readout):
            yield item
            continue
        header = item.header
        if is_noise(header):
            if not frozen:
                noise.add(item)
            elif not warned:
                logger.warning("noise readout %d comes after imaging has begun: not used", header.scan_counter)
                warned = True
            yield item
            continue
        if not frozen:
            frozen = True
            if products is not None and readout is not None:
                measured, noise = noise, NoiseScan.of(products, readout)
                if measured.n_coils:
                    measured.check_against(noise)
            estimates = noise.estimates
            _report(noise, bandwidth)
        if not noise.n_coils:
            yield item
            continue
        dwell = header.sample_time_us
        matrix = matrices.get(dwell)
        if matrix is None:
            matrix = matrices[dwell] = noise.matrix(dwell_us=dwell, relative_bandwidth=bandwidth)
        if len(item.data) != len(matrix):
            if products is not None:
                check_stored("coils", (len(matrix),), (len(item.data),))
            raise SpokeError(
                f"readout {header.scan_counter} has {len(item.data)} channels, the noise scan {len(matrix)}: "
                "both need the same coils, or set whitening.mode = off."
            )
        yield WhitenedReadout(
            header=header,
            data=matrix @ item.data,
            trajectory=item.trajectory,
            received_s=item.received_s,
            waiting=item.waiting,
            estimates=estimates,
        )


def _report(noise: NoiseScan, bandwidth: float) -> None:
    if noise.n_coils:
        logger.info(
            "whitening %d coils by %d noise samples, relative noise bandwidth %g",
            *(noise.n_coils, noise.n_samples, bandwidth),
        )
    else:
        logger.info("no noise scan: readouts are not whitened, and the SNR is unknown")
