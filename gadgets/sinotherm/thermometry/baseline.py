"""The baseline: the complex reference before heating that every frame is compared with."""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from sinotherm.core.arrays import CoilImages, MapArray
from sinotherm.core.scan import Estimates, FrameImage, ScanHeader
from sinotherm.errors import BaselineError

__all__ = [
    "Baseline",
    "BaselineBuilder",
    "BaselineKey",
    "check_fingerprint",
    "effective_frames",
    "fingerprint_of",
    "load_baseline",
    "outliers",
    "save_baseline",
    "stored_estimates",
]

OUTLIER_FACTOR: Final = 4.0
_FILE_SCHEMA: Final = 2
_SAME_GEOMETRY: Final = 1.5e-3
"""Positions (mm) and directions, stated to 0.001, of the same plane: it may be rounded otherwise."""

BaselineKey: TypeAlias = tuple[int, int, str]
"""Slice, echo and reconstruction method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The complex reference of one slice and echo.

    Attributes
    ----------
    data
        complex64 (coil, slice, y, x): mean of the frames; of a library's, those that belong together.
    n_effective
        Independent frames in the mean (sliding windows share spokes).
    frames
        Numbers of the frames in the mean or the library; ``rejected`` those left out as outliers.
    time_s
        Centre of the last frame, s.
    noise_sd
        float32 (slice, y, x): noise of one frame as in `FrameImage`, or ``None``.
    phase_sd_rad
        float32 (slice, y, x): pooled temporal SD of the phase over the frames, widened where they are few; or ``None``.
    library
        The frames themselves, where each frame takes the most similar one (respiration); else empty.
    fingerprint
        What a frame must agree on.
    estimates
        What the frames' scan estimated to make them (coil maps, gradient delay, …): frames of another scan
        must be made with the same.
    """

    data: CoilImages
    n_effective: float
    frames: tuple[int, ...]
    time_s: float = math.nan
    rejected: tuple[int, ...] = ()
    noise_sd: MapArray | None = None
    phase_sd_rad: MapArray | None = None
    library: tuple[CoilImages, ...] = ()
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    estimates: Estimates = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Short name by content, for logs and meta."""
        return hashlib.sha256(np.ascontiguousarray(self.data).tobytes()).hexdigest()[:12]


def fingerprint_of(image: FrameImage, scan: ScanHeader) -> Mapping[str, str]:
    """Return what a baseline must agree on: the image's own fingerprint, with f0, TE and shape added."""
    facts = {"shape": "x".join(str(n) for n in image.data.shape)}
    if scan.larmor_hz is not None:
        facts["larmor_hz"] = f"{scan.larmor_hz:.0f}"
    if image.echo < len(scan.echo_times_s):
        facts["echo_time_s"] = f"{scan.echo_times_s[image.echo]:.6g}"
    facts["fov_m"] = "x".join(f"{size:.6g}" for size in scan.recon.fov_m)
    return facts | dict(image.fingerprint)


def check_fingerprint(baseline: Mapping[str, str], frame: Mapping[str, str]) -> None:
    """Refuse a baseline that does not fit.

    Raises
    ------
    BaselineError
        A fact that both state differs: f0, TE, geometry, coils, angle scheme, delays, maps or method.
    """
    differing = [
        f"{name} = {frame[name]} (baseline: {value})"
        for name, value in baseline.items()
        if name in frame and not _agree(name, value, frame[name])
    ]
    if differing:
        raise BaselineError(
            f"the baseline does not fit this scan: {'; '.join(differing)}. "
            "Take a new baseline, or give the one of this protocol."
        )


def _agree(name: str, one: str, other: str) -> bool:
    """Whether two facts are the same; positions (mm) and directions that differ by one in the last digit are."""
    if name != "geometry" or one == other:
        return one == other
    try:
        found: np.ndarray = np.array([text.split() for text in (one, other)], dtype=np.float64)
    except ValueError:
        return False
    return bool(np.abs(found[0] - found[1]).max(initial=0.0) < _SAME_GEOMETRY)


def effective_frames(images: Sequence[FrameImage]) -> float:
    """Return the number of independent frames: distinct spokes over spokes a frame.

    Foreign images without spokes count by the time that they cover together; without times each counts as one.
    """
    if all(image.spokes for image in images):
        distinct = {(spoke.slice, spoke.echo, spoke.index) for image in images for spoke in image.spokes}
        return max(1.0, len(distinct) * len(images) / sum(len(image.spokes) for image in images))
    spans = sorted((image.footprint[0], image.footprint[2]) for image in images)
    lengths = [end - start for start, end in spans]
    if not all(math.isfinite(length) and length > 0.0 for length in lengths):
        return float(len(images))
    covered, reached = 0.0, -math.inf
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return max(1.0, covered * len(spans) / sum(lengths))


def outliers(frames: Sequence[CoilImages]) -> list[bool]:
    """Return which frames do not belong to the rest: moved, or spoilt.

    A frame with a value that is not finite is one. Of the rest, each frame's distance to their median, its
    global phase taken out, decides: an outlier lies further than `OUTLIER_FACTOR` times the median distance.
    Fewer than four have none: one of three cannot be told from the other two.
    """
    finite = [bool(np.isfinite(frame).all()) for frame in frames]
    if not all(finite):
        rest = iter(outliers([frame for frame, good in zip(frames, finite, strict=True) if good]))
        return [next(rest) if good else True for good in finite]
    if len(frames) < 4:
        return [False] * len(frames)
    stack = np.stack(frames)
    reference = stack[0]
    phases = np.array([np.vdot(reference, frame) for frame in stack])
    aligned = stack * np.exp(-1j * np.angle(phases)).astype(np.complex64)[:, None, None, None, None]
    middle = np.median(aligned.real, axis=0) + 1j * np.median(aligned.imag, axis=0)
    distances = np.array([np.linalg.norm(frame - middle) for frame in aligned])
    usual = np.median(distances)
    return [bool(distance > OUTLIER_FACTOR * usual) for distance in distances]


class BaselineBuilder:
    """Collects the pre-heating frames of one slice and echo and makes their mean.

    Parameters
    ----------
    n_frames
        Frames of the baseline.
    library
        Keep the frames themselves beside their mean.

    Attributes
    ----------
    images, times_s
        The frames so far, and the time of each, s.
    """

    def __init__(self, n_frames: int, *, library: bool = False) -> None:
        self._n_frames = n_frames
        self._library = library
        self.images: list[FrameImage] = []
        self.times_s: list[float] = []

    @property
    def complete(self) -> bool:
        """Whether all frames are there."""
        return len(self.images) >= self._n_frames

    def add(self, image: FrameImage, time_s: float = math.nan) -> None:
        """Take a pre-heating frame, and its time, s."""
        self.images.append(image)
        self.times_s.append(time_s)

    def build(self, scan: ScanHeader) -> Baseline:
        """Return the mean of the frames that belong together; those that lack spokes do not.

        A library keeps the others as well: they may be a state of breathing, and only a frame like them takes one.

        Raises
        ------
        BaselineError
            Frames differ in their fingerprint, or more than half of them hold values that are not finite.
        """
        prints = [fingerprint_of(image, scan) for image in self.images]
        # Readouts that were lost make a frame of other streaks, not another scan.
        spokes = [facts.get("spokes") for facts in prints]
        usual = prints[spokes.index(max(spokes, key=spokes.count))]
        for other in prints:
            check_fingerprint({name: fact for name, fact in usual.items() if name != "spokes"}, other)
        spoilt = [not np.isfinite(image.data).all() for image in self.images]
        whole = [count == usual.get("spokes") and not bad for count, bad in zip(spokes, spoilt, strict=True)]
        apart = outliers([image.data for image in self.images])
        alike = [good and not out for good, out in zip(whole, apart, strict=True)]
        kept = [image for image, good in zip(self.images, alike, strict=True) if good]
        if not kept or 2 * sum(spoilt) > len(self.images):
            raise BaselineError(
                f"{sum(spoilt)} of {len(self.images)} pre-heating frames hold values that are not finite: "
                "check the receive chain."
            )
        used = whole if self._library else alike
        states = [image for image, good in zip(self.images, used, strict=True) if good]
        return Baseline(
            data=np.asarray(np.mean([image.data for image in kept], axis=0, dtype=np.complex64)),
            n_effective=effective_frames(kept),
            frames=tuple(image.number for image in states),
            rejected=tuple(image.number for image, good in zip(self.images, used, strict=True) if not good),
            time_s=kept[-1].footprint[1],
            noise_sd=kept[-1].noise_sd,
            library=tuple(image.data for image in states) if self._library else (),
            fingerprint=usual,
            estimates=kept[-1].estimates,
        )


def save_baseline(path: Path, baselines: Mapping[BaselineKey, Baseline]) -> None:
    """Write the baselines of a scan, by (slice, echo, method), as HDF5 or (``.npz``) NumPy archive.

    The file appears complete or not at all: a process that dies while it writes leaves the old one.

    Raises
    ------
    OSError
        It cannot be written.
    """
    entries: dict[str, np.ndarray] = {}
    facts: list[dict[str, Any]] = []
    for place, ((slice_, echo, method), baseline) in enumerate(baselines.items()):
        entries[f"{place}/data"] = baseline.data
        if baseline.noise_sd is not None:
            entries[f"{place}/noise_sd"] = baseline.noise_sd
        if baseline.phase_sd_rad is not None:
            entries[f"{place}/phase_sd_rad"] = baseline.phase_sd_rad
        for index, other in enumerate(baseline.library):
            entries[f"{place}/library{index}"] = other
        for name, values in baseline.estimates.items():
            entries[f"{place}/estimates/{name}"] = values
        facts.append(
            {
                "slice": slice_,
                "echo": echo,
                "method": method,
                "library": len(baseline.library),
                "n_effective": baseline.n_effective,
                "frames": list(baseline.frames),
                "rejected": list(baseline.rejected),
                "fingerprint": dict(baseline.fingerprint),
            }
        )
    text = json.dumps({"schema": _FILE_SCHEMA, "baselines": facts})
    # In memory first: HDF5 does not survive a disk that is full.
    content = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(content, facts=np.array(text), allow_pickle=False, **entries)
    else:
        import h5py

        with h5py.File(content, "w") as store:
            store.attrs["facts"] = text
            for name, values in entries.items():
                store.create_dataset(name, data=values)
    partial = path.with_name(path.name + ".part" + path.suffix)
    try:
        partial.write_bytes(content.getbuffer())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_baseline(path: Path) -> Mapping[BaselineKey, Baseline]:
    """Read the baselines that `save_baseline` wrote; their time is unknown to this scan's clock (NaN).

    Raises
    ------
    BaselineError
        The file is missing, was not written by `save_baseline`, or by that of another version.
    """
    if not path.is_file():
        raise BaselineError(f"baseline file {str(path)!r} does not exist: run with thermometry.baseline_save first.")
    entries: dict[str, np.ndarray] = {}
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                entries = {name: archive[name] for name in archive.files}
            text = str(entries.pop("facts"))
        else:
            import h5py

            with h5py.File(path, "r") as store:
                text = str(store.attrs["facts"])
                store.visititems(
                    lambda name, node: entries.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None
                )
        content = json.loads(text)
        if content["schema"] != _FILE_SCHEMA:
            raise BaselineError(
                f"baseline file {str(path)!r} has the schema {content['schema']}, written by another version; this one "
                f"reads {_FILE_SCHEMA}: take a new baseline, with thermometry.baseline_save."
            )
        return {
            (int(facts["slice"]), int(facts["echo"]), str(facts["method"])): Baseline(
                data=entries[f"{place}/data"],
                n_effective=float(facts["n_effective"]),
                frames=tuple(facts["frames"]),
                rejected=tuple(facts["rejected"]),
                noise_sd=entries.get(f"{place}/noise_sd"),
                phase_sd_rad=entries.get(f"{place}/phase_sd_rad"),
                library=tuple(entries[f"{place}/library{index}"] for index in range(facts["library"])),
                fingerprint=facts["fingerprint"],
                estimates={
                    name.removeprefix(f"{place}/estimates/"): values
                    for name, values in entries.items()
                    if name.startswith(f"{place}/estimates/")
                },
            )
            for place, facts in enumerate(content["baselines"])
        }
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise BaselineError(
            f"{str(path)!r} is not a baseline file ({error}): write one with thermometry.baseline_save."
        ) from error


def stored_estimates(path: Path, method: str) -> Mapping[tuple[int, int], Estimates]:
    """Return what the images of a stored baseline were made with, by slice and echo.

    Parameters
    ----------
    path
        File that `save_baseline` wrote.
    method
        Reconstruction that images will be made by; of another one's baselines nothing is returned, and their
        fingerprints say why they do not fit.

    Raises
    ------
    BaselineError
        It is no such file, or one that was written before it held this.
    """
    own = {(slice_, echo): one for (slice_, echo, name), one in load_baseline(path).items() if name == method}
    if not all("estimated" in baseline.fingerprint for baseline in own.values()):
        raise BaselineError(
            f"baseline file {str(path)!r} lacks the coil maps and the gradient delay that its images were made with "
            "(another version wrote it, or a network went beside): take a new baseline, with thermometry.baseline_save."
        )
    return {place: baseline.estimates for place, baseline in own.items()}
