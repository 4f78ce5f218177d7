"""``evaluate radial``: reconstructions of accelerated radial imaging, scored on people.

Two settings: ``paper`` (one coil, real non-negative object, no noise) and ``real`` (coils round the
body, smooth object phase, noise of a stated SNR).
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from sinotherm.core.arrays import CoilImages, ComplexArray, FloatArray, FrameData, SpokeAngles
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.errors import SettingsError
from sinotherm.evaluation.images import EvaluationSlice, default_split, magnitude_slices
from sinotherm.evaluation.metrics import ImageScores, body_mask, body_signal, people_means, score
from sinotherm.evaluation.reports import Result, report
from sinotherm.simulation.image_sets import Split

if TYPE_CHECKING:
    from sinotherm.networks.inference import Symmetries

__all__ = [
    "METHODS",
    "RadialScan",
    "Reconstruction",
    "coil_maps",
    "complex_object",
    "evaluate",
    "methods",
    "run",
    "simulate_scan",
]

log = logging.getLogger(__name__)

Setting: TypeAlias = Literal["paper", "real"]
Angles: TypeAlias = Literal["uniform", "golden"]
METHODS: Final = (
    "fbp",
    "gridding",
    "cg-sense-tv",
    "cg-sense-tv-masked",
    "pd-paper",
    "pdunet-paper",
    "fourier-pdunet",
    "pdunet",
    "pdunet-8",
)
PAPER_METHODS: Final = ("pd-paper", "pdunet-paper")
FULL_SPOKES: Final = 402
TV_STRENGTH: Final = 2e-3
TV_ITERATIONS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RadialScan:
    """One accelerated frame with its truth.

    Attributes
    ----------
    samples
        complex64 (coil, spoke, readout).
    angles, sampling
        Where they lie.
    maps
        complex64 (coil, y, x), Σ|s|² = 1.
    truth
        complex64 (y, x).
    noise_sd
        SD of the real part of a sample's noise; 0 without noise.
    """

    samples: FrameData
    angles: SpokeAngles
    sampling: RadialSampling
    maps: ComplexArray
    truth: ComplexArray
    noise_sd: float


Reconstruction: TypeAlias = Callable[[RadialScan], ComplexArray]


def complex_object(image: np.ndarray, random: np.random.Generator) -> ComplexArray:
    """Return a magnitude image (y, x) with a smooth phase: B1 and off-resonance as cubic splines of 4 × 4 knots."""
    from scipy.ndimage import zoom

    field = zoom(random.standard_normal((4, 4)), image.shape[0] / 4, order=3, mode="nearest", grid_mode=True)
    phase = 0.8 * (field - field.mean()) / field.std()
    return (image * np.exp(1j * phase)).astype(np.complex64)


def coil_maps(image: np.ndarray, coils: int, random: np.random.Generator) -> CoilImages:
    """Return maps of coils round the body of an image (y, x), complex64 (coil, y, x), Σ|s|² = 1."""
    from sinotherm.simulation.coils import coil_array

    if coils == 1:
        return np.ones((1, *image.shape), dtype=np.complex64)
    maps = coil_array(coils, body=body_mask(image), fov_m=0.25, random=random).maps
    return (maps / np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))).astype(np.complex64)


def simulate_scan(
    image: np.ndarray,
    *,
    setting: Setting,
    coils: int,
    angles: Angles,
    spokes: int,
    snr: float = 30.0,
    seed: int = 0,
) -> RadialScan:
    """Return a simulated frame of a magnitude image (y, x), readout oversampled twice.

    The SNR is |S|/SD(real part) in the combined ramp-filtered reconstruction of 402 spokes; |S| as `body_signal`.

    Raises
    ------
    SettingsError
        The paper's setting with more than one coil.
    """
    from sinotherm.operators.density import readout_weights
    from sinotherm.operators.nufft import ACCURATE, FinufftPlan, radial_points

    if setting == "paper" and coils != 1:
        raise SettingsError(f"the paper's setting has one coil, not {coils}: use --setting real.")
    size = image.shape[0]
    random = np.random.default_rng(seed)
    sampling = RadialSampling(n_readout=2 * size, spacing=0.5 / size, centre=float(size))
    theta = spoke_angles("uniform180" if angles == "uniform" else "golden", spokes)
    truth = complex_object(image, random) if setting == "real" else image.astype(np.complex64)
    maps = coil_maps(image, coils, random)
    plan = FinufftPlan((size, size), coils, dtype=np.complex128, accuracy=ACCURATE)
    plan.set_points(np.ascontiguousarray(radial_points(theta, sampling).reshape(-1, 2)))
    samples = plan.forward((truth * maps).astype(np.complex128)).reshape(coils, spokes, -1)
    noise_sd = 0.0
    if setting == "real":
        weights = readout_weights(sampling, centre="area") * (math.pi / FULL_SPOKES)
        noise_sd = body_signal(image) / (snr * math.sqrt(FULL_SPOKES * float(np.sum(weights**2))))
        noise = random.standard_normal((2, *samples.shape))
        samples = samples + noise_sd * (noise[0] + 1j * noise[1])
    return RadialScan(
        samples=samples.astype(np.complex64),
        angles=theta,
        sampling=sampling,
        maps=maps,
        truth=truth,
        noise_sd=noise_sd,
    )


def _fbp(scan: RadialScan) -> ComplexArray:
    """Return the filtered back-projection: classical equal weights, Hann window as in the papers."""
    return _gridded(scan, "equal", "hann")


def _gridding(scan: RadialScan) -> ComplexArray:
    """Return the NUFFT gridding: weights by the angular gaps, plain ramp of the classical areas."""
    return _gridded(scan, "gaps", "ramp")


def _gridded(scan: RadialScan, weights: Any, radial_filter: Any) -> ComplexArray:
    from sinotherm.operators.density import radial_weights
    from sinotherm.operators.nufft import FinufftPlan, radial_points

    coils, size = scan.maps.shape[0], scan.maps.shape[-1]
    plan = FinufftPlan((size, size), coils)
    plan.set_points(np.ascontiguousarray(radial_points(scan.angles, scan.sampling).reshape(-1, 2)))
    density = radial_weights(scan.angles, scan.sampling, weights=weights, radial_filter=radial_filter, centre="area")
    images = plan.adjoint((scan.samples * density).astype(np.complex64).reshape(coils, -1))
    return np.sum(images * scan.maps.conj(), axis=0)


def _network(name: str, symmetries: "Symmetries" = 1) -> Reconstruction:
    """Return a network as the chain runs it."""
    from sinotherm.networks.inference import RadialReconstructor

    network = RadialReconstructor(name, symmetries=symmetries)

    def reconstruct(scan: RadialScan) -> ComplexArray:
        image, _ = network.reconstruct(scan.samples, scan.sampling, scan.angles, scan.maps)
        return image

    return reconstruct


def _cartesian_network(name: str) -> Reconstruction:
    """Return a Fourier network; it sees its own Cartesian scan of the object with as many lines as there are spokes."""
    import torch

    from sinotherm.networks.cartesian import CartesianLines
    from sinotherm.networks.weights import load_network
    from sinotherm.operators.cartesian import variable_density_lines

    network, _ = load_network(name)

    def reconstruct(scan: RadialScan) -> ComplexArray:
        size, spokes = scan.truth.shape[-1], scan.samples.shape[1]
        random = np.random.default_rng(spokes)
        operator = CartesianLines(variable_density_lines(size, size / spokes, random), torch.from_numpy(scan.maps))
        measured = operator.forward(torch.from_numpy(scan.truth)[None])
        noise = random.standard_normal((2, *measured.shape)).astype(np.float32)
        # Unitary transforms: a sample of the same duration as two oversampled radial ones has √2 less noise.
        level = scan.noise_sd / (size * math.sqrt(2.0))
        added = torch.complex(torch.from_numpy(noise[0]), torch.from_numpy(noise[1])) * operator.context()[None]
        with torch.inference_mode():
            return network(measured + level * added, operator)[0].numpy()

    return reconstruct


def _paper_network(name: str) -> Reconstruction:
    import torch

    from sinotherm.networks.paper import MagnitudeSinogram
    from sinotherm.networks.weights import load_network

    network, _ = load_network(name)

    def reconstruct(scan: RadialScan) -> ComplexArray:
        operator = MagnitudeSinogram(scan.sampling, scan.angles, n_pixels=scan.maps.shape[-1])
        with torch.inference_mode():
            combined = torch.from_numpy(scan.samples)[None]
            return network(operator.measured(combined), operator)[0].numpy().astype(np.complex64)

    return reconstruct


def methods(
    names: Sequence[str], network: str = "pdunet-radial", *, tv_strength: float = TV_STRENGTH
) -> dict[str, Reconstruction]:
    """Return the reconstructions of these names, ready to run.

    Parameters
    ----------
    network
        Weights of methods ``pdunet`` and ``pdunet-8``, which averages its image blocks' corrections over the eight
        symmetries of the square: the name of shipped ones, or a ``.safetensors`` file.
    tv_strength
        Of methods ``cg-sense-tv`` and ``cg-sense-tv-masked``, which knows where the object has no signal.

    Raises
    ------
    SettingsError
        A name is unknown.
    WeightsError
        A network's weights are missing; the message names the file.
    """
    found: dict[str, Reconstruction] = {}
    for name in names:
        if name not in METHODS:
            raise SettingsError(f"unknown method {name}; known: {', '.join(METHODS)}.")
        if name == "fbp":
            found[name] = _fbp
        elif name == "gridding":
            found[name] = _gridding
        elif name == "cg-sense-tv":
            found[name] = partial(_cg_sense_tv, strength=tv_strength)
        elif name == "cg-sense-tv-masked":
            found[name] = partial(_masked, of=partial(_cg_sense_tv, strength=tv_strength))
        elif name == "pdunet":
            found[name] = _network(network)
        elif name == "pdunet-8":
            found[name] = _network(network, symmetries=8)
        elif name == "fourier-pdunet":
            found[name] = _cartesian_network(name)
        else:
            found[name] = _paper_network(name)
    return found


def _cg_sense_tv(scan: RadialScan, strength: float) -> ComplexArray:
    """Return CG-SENSE with total variation; `TV_STRENGTH`, for all numbers of spokes, was tuned on val people."""
    from sinotherm.reconstruction.total_variation import tv_sense

    return tv_sense(
        scan.samples, scan.angles, scan.sampling, scan.maps, strength=strength, iterations=TV_ITERATIONS
    ).image


def _masked(scan: RadialScan, of: Reconstruction) -> ComplexArray:
    """Return a reconstruction, zero outside the true object's body mask."""
    return np.where(body_mask(np.abs(scan.truth)), of(scan), 0).astype(np.complex64)


def _unfit(name: str, coils: int, spokes: int, size: int) -> str:
    """Return why a method cannot reconstruct images of this size in such a case; empty where it can."""
    from sinotherm.operators.cartesian import variable_density_lines

    if name in PAPER_METHODS and coils > 1:
        return "it knows the real image of one coil only"
    if name == "fourier-pdunet" and spokes > 0:
        try:
            variable_density_lines(size, size / spokes, np.random.default_rng(0))
        except SettingsError as error:
            return f"it sees a Cartesian scan of as many lines, and {str(error).rstrip('.')}"
    return ""


def _fitting(
    names: Sequence[str], coils: Sequence[int], spokes: Sequence[int], size: int, *, every: bool
) -> dict[tuple[int, int], list[str]]:
    """Return the methods that can do each number of coils and of spokes; the log says what is left out.

    Raises
    ------
    SettingsError
        ``every`` method is wanted, and one cannot.
    """
    found: dict[tuple[int, int], list[str]] = {}
    for case in dict.fromkeys((c, s) for c in coils for s in spokes):
        found[case] = []
        for name in names:
            why = _unfit(name, *case, size)
            what = f"method {name} cannot do {case[0]} coils and {case[1]} spokes: {why}"
            if why and every:
                raise SettingsError(f"{what}; leave it out, or the case.")
            if why:
                log.warning("%s; left out", what)
            else:
                found[case].append(name)
    return found


def _images(
    ready: Mapping[str, Reconstruction], case: Mapping[str, Any], image: FloatArray, seed: int
) -> tuple[ComplexArray, dict[str, ComplexArray]]:
    """Return the truth of a slice, and what each method makes of its scan."""
    scan = simulate_scan(
        image,
        setting=case["setting"],
        coils=case["coils"],
        angles=case["angles"],
        spokes=case["spokes"],
        snr=case["snr"] or 30.0,
        seed=seed,
    )
    return scan.truth, {name: reconstruct(scan) for name, reconstruct in ready.items()}


def evaluate(
    path: Path,
    *,
    split: Split | None = None,
    setting: Setting = "paper",
    coils: Sequence[int] = (1,),
    angles: Sequence[Angles] = ("uniform",),
    spokes: Sequence[int] = (32,),
    snr: float = 30.0,
    names: Sequence[str] | None = None,
    network: str = "pdunet-radial",
    tv_strength: float = TV_STRENGTH,
    per_person: int | None = None,
) -> Iterator[Result]:
    """Yield one row for each set, method, number of coils, angle scheme and number of spokes.

    Beside the row come the scores of each slice. Means and SDs are over people. Without ``names`` these are all
    methods that can do a case.

    Raises
    ------
    SettingsError
        A method is unknown, or was named and cannot do a case.
    """
    ready = methods(names or METHODS, network, tv_strength=tv_strength)
    if any(name.startswith("cg-sense-tv") for name in ready):
        log.info("cg-sense-tv: strength %g (tuned on val: %g), %d rounds", tv_strength, TV_STRENGTH, TV_ITERATIONS)
    slices = magnitude_slices(path, split=split, per_person=per_person)
    split = split or default_split(path)
    fitting = _fitting(list(ready), coils, spokes, slices[0].image.shape[0], every=names is not None)
    cases = [(c, a, s) for c in coils for a in angles for s in spokes]
    for dataset in dict.fromkeys(one.dataset for one in slices):
        chosen = [one for one in slices if one.dataset == dataset]
        for n_coils, scheme, n_spokes in cases:
            fit = {name: ready[name] for name in fitting[n_coils, n_spokes]}
            results: dict[str, list[tuple[EvaluationSlice, ImageScores]]] = {name: [] for name in fit}
            case = {
                "setting": setting,
                "angles": scheme,
                "snr": snr if setting == "real" else None,
                "spokes": n_spokes,
                "coils": n_coils,
            }
            for index, one in enumerate(chosen):
                truth, images = _images(fit, case, one.image, index)
                for name, image in images.items():
                    results[name].append((one, score(image, truth)))
            for name, scores in results.items():
                row = {
                    "dataset": dataset,
                    "split": split,
                    "setting": setting,
                    "angles": scheme,
                    "snr": case["snr"],
                    "method": name,
                    "spokes": n_spokes,
                    "coils": n_coils,
                    **people_means([(one.person, value) for one, value in scores]),
                }
                yield row, scores


def run(
    path: Path,
    *,
    output: Path | None = None,
    json: Path | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Print the table of `evaluate`, and write it with a figure of the worst, median and best slice."""
    settings = {name: options[name] for name in ("network", "tv_strength") if name in options}

    def again(names: Sequence[str]) -> Callable[..., tuple[ComplexArray, dict[str, ComplexArray]]]:
        return partial(_images, methods(names, **settings))

    return report(evaluate(path, **options), "radial", again=again, output=output, json=json)
