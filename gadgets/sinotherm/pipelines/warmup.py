"""A tiny simulated scan through a pipeline, so that the first real one finds everything imported and compiled."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.core.geometry import RadialSampling
from sinotherm.core.scan import Item
from sinotherm.errors import SettingsError, WeightsError
from sinotherm.frames.header import scan_header
from sinotherm.operators.backprojection import BackProjector
from sinotherm.pipelines.compose import Pipeline, merged
from sinotherm.pipelines.registry import METHOD_SLOT, METHODS, TARGETS
from sinotherm.pipelines.xml import Step, Values
from sinotherm.simulation.mrd import header_xml, readouts
from sinotherm.simulation.protocol import Protocol
from sinotherm.simulation.scan import Scan
from sinotherm.wire.messages import Readout

__all__ = ["warm_up"]

logger = logging.getLogger(__name__)

_Checked: TypeAlias = Callable[[Iterable[Any]], Iterator[Any]]

_SCANS: Final = ((4, 64, 0.3), (12, 34, 0.0))
"""Coils, spokes of a frame, gradient delay in samples: few coils of many spokes are gridded in another way than many
of few, and delays turn the spokes' phase."""

_PROJECTED: Final = (1, 2, 4, 8)
"""Numbers of coils that back-projection is compiled for; more are compressed to 8 unless settings say otherwise."""

_KEPT: Final = (METHOD_SLOT, *METHODS, "compression", "delay", "whitening", "images")
"""Stages whose settings say what is to be loaded; those of the others belong to the body and the protocol."""

_OWN: Final[Values] = {
    "thermometry": {"phase_sign": "1", "baseline_frames": "1", "body_temperature_degc": "37"},
    "publish": {"endpoint": ""},
    # As many frames as there are must do for what waits for the first ones.
    "compression": {"spokes": "0"},
    "delay": {"spokes": "0"},
    "fbp": {"maps_frames": "1"},
    "gridding": {"maps_frames": "1"},
    "cg_sense": {"maps_spokes": "1"},
    "pdunet": {"maps_spokes": "1", "reference_frames": "1", "reference_skip": "0"},
}

_IMAGES: Final[Values] = {"images": {"complex_images": "true"}, "publish": _OWN["publish"]}
"""What makes complex images for a pipeline that begins with them."""


def warm_up(steps: Sequence[Step], checked: _Checked = iter) -> None:
    """Run a pipeline on tiny simulated scans and throw the images away.

    Nothing is published, written or listened to. Whatever fails is a warning: the first scan is served all the
    same, and pays for what was not loaded.

    Parameters
    ----------
    steps
        The pipeline, with the settings of its user.
    checked
        Wraps what is gone through one by one, kernels and readouts: raises between two of them what ends the warm-up.

    Raises
    ------
    SettingsError
        A setting is wrong, or what it needs is not installed.
    WeightsError
        The network's weights are missing, or do not fit their card.
    """
    start_s = monotonic()
    logger.info("warming up: %s", ", ".join(step.target for step in steps))
    tamed = tuple(Step(target=step.target, values=_tamed(step)) for step in steps)
    if tamed[0].target == "thermometry":
        tamed = (Step(target="reconstruct", values=_IMAGES), *tamed)
    try:
        with _quiet():
            _compile(32 if any("compression" in step.values for step in steps) else _PROJECTED[-1], checked)
            for n_coils, n_spokes, delay in _SCANS:
                _run(tamed, _scan(n_spokes, delay), n_coils, checked)
    except (SettingsError, WeightsError):
        raise
    except Exception:
        logger.warning("the warm-up failed: the first scan will wait for what it loads", exc_info=True)
    else:
        logger.info("warm after %.1f s", monotonic() - start_s)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log free of what the stages say of this scan: it would be taken for a patient's."""
    package = logging.getLogger("sinotherm")
    level = package.level
    package.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        package.setLevel(level)


def _tamed(step: Step) -> Values:
    """Return those settings of a step that matter here, and what suits so short a scan."""
    stages = {*TARGETS.get(step.target, ())}
    stages |= {*METHODS} if METHOD_SLOT in stages else set()
    kept = {stage: named for stage, named in step.values.items() if stage in stages.intersection(_KEPT)}
    return merged(kept, {stage: named for stage, named in _OWN.items() if stage in stages})


def _compile(most_coils: int, checked: _Checked = iter) -> None:
    """Compile back-projection for numbers of coils, with spokes that have no delay and with those that have."""
    sampling = RadialSampling(n_readout=16, spacing=1 / 16, centre=8.0)
    for n_coils in checked((*_PROJECTED, *range(_PROJECTED[-1] + 4, most_coils + 1, 4))):
        projector = BackProjector((8, 8), n_coils, sampling)
        for shift in ((0.0, 0.0), (0.01, -0.02)):
            projector.add(np.zeros((n_coils, 16), np.complex64), 0.3, shift=shift)


def _scan(n_spokes: int, delay: float) -> Scan:
    """Return a scan of one coil without heat and drift: its projections are exact, and quickly made."""
    protocol = Protocol(
        matrix=64,
        n_coils=1,
        spokes=n_spokes,
        frames=3,
        baseline_frames=3,
        cooling_frames=0,
        peak_degc=0.0,
        field_hz=0.0,
        drift_hz=0.0,
        drift_order_space=0,
        delay_x=delay,
        delay_y=-delay,
        noise_scans=16,
        dummy_scans=0,
        kspace="analytic",
    )
    return Scan(protocol=protocol)


def _run(steps: tuple[Step, ...], scan: Scan, n_coils: int, checked: _Checked) -> None:
    header = dataclasses.replace(scan_header(header_xml(scan)), n_coils=n_coils)
    for _ in Pipeline(name="warm-up", steps=steps).run(header, checked(_received(scan, n_coils))):
        pass


def _received(scan: Scan, n_coils: int) -> Iterator[Item]:
    """Yield the readouts as coils with noise of their own receive them, with the clock of their receipt."""
    rng = np.random.default_rng(0)
    gains = rng.standard_normal((n_coils, 1)) + 1j * rng.standard_normal((n_coils, 1))
    for readout in readouts(scan):
        shape = (n_coils, readout.data.shape[1])
        noise = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        data = (gains * readout.data + scan.noise_sd * noise).astype(np.complex64)
        readout.header.active_channels = n_coils
        yield Readout(header=readout.header, data=data, trajectory=readout.trajectory, received_s=monotonic())
