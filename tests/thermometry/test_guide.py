import numpy as np
import pytest

from direct_radial import coil_maps, ellipse_image
from sinotherm.core.geometry import RadialSampling, spoke_angles
from sinotherm.operators.nufft import FinufftPlan, radial_points
from sinotherm.thermometry.drift import polynomial_terms
from sinotherm.thermometry.guide import Guide, belonging, references

N, COILS, SPOKES = 96, 4, 24
PIXEL = (0.003, 0.003)
SAMPLING = RadialSampling(n_readout=2 * N, spacing=0.5 / N, centre=float(N))
MAPS = coil_maps(COILS, N)
MAPS = (MAPS / np.sqrt((np.abs(MAPS) ** 2).sum(axis=0))).astype(np.complex64)
IMAGE = (ellipse_image(N) * np.exp(0.7j)).astype(np.complex64)
BODY = np.abs(IMAGE) > 0.3
TERMS = polynomial_terms((N, N), 1)
Y, X = np.mgrid[:N, :N] - N // 2
HEAT = 0.8 * np.exp(-(X**2 + (Y - 5) ** 2) / 60.0)


def _frame(phase: np.ndarray, number: int = 0, *, noise: float = 0.0, shifts=None):
    angles = spoke_angles("golden", SPOKES, first=number * SPOKES)
    plan = FinufftPlan((N, N), COILS)
    plan.set_points(np.ascontiguousarray(radial_points(angles, SAMPLING, shifts).reshape(-1, 2)))
    data = plan.forward((MAPS * IMAGE * np.exp(1j * phase)).astype(np.complex64)).reshape(COILS, SPOKES, 2 * N)
    random = np.random.default_rng(number)
    both = random.standard_normal((2, *data.shape))
    return (data + noise * (both[0] + 1j * both[1])).astype(np.complex64), angles


def _field(*coefficients: float) -> np.ndarray:
    return np.einsum("t,tyx->yx", np.array(coefficients), TERMS)


@pytest.mark.parametrize("shifts", [None, np.full((SPOKES, 2), 0.003)])
def test_a_frame_that_only_drifted_is_the_turned_reference(shifts) -> None:
    field = _field(0.3, 0.2, -0.15)
    data, angles = _frame(field, shifts=shifts)
    guide = Guide(IMAGE, MAPS, pixel_m=PIXEL)
    turned = guide.turned(data, SAMPLING, angles, shifts=shifts)
    assert turned.dtype == np.complex64
    error = np.angle(turned * (IMAGE * np.exp(1j * field)).conj())[BODY]
    assert np.abs(error).max() < 0.02
    np.testing.assert_allclose(guide.drift_rad, (0.3, 0.2, -0.15), atol=0.02)
    np.testing.assert_allclose(np.abs(turned), np.abs(IMAGE), atol=1e-5)


def test_heating_stays_out_of_the_reference() -> None:
    field = _field(-0.2, 0.1, 0.1)
    data, angles = _frame(field + HEAT, noise=0.02)
    turned = Guide(IMAGE, MAPS, pixel_m=PIXEL).turned(data, SAMPLING, angles)
    error = np.angle(turned * (IMAGE * np.exp(1j * field)).conj())[BODY]
    assert np.abs(error).max() < 0.05
    centre = np.angle(turned * IMAGE.conj())[N // 2 + 5, N // 2]
    assert centre == pytest.approx(-0.2, abs=0.05)


def test_a_slow_drift_is_followed_beyond_the_wrap() -> None:
    guide = Guide(IMAGE, MAPS, pixel_m=PIXEL)
    for number in range(12):
        field = _field(0.6 * number, 0.3 * number, 0.0)
        data, angles = _frame(field, number)
        turned = guide.turned(data, SAMPLING, angles)
    assert guide.drift_rad[0] == pytest.approx(6.6, abs=0.1)
    error = np.angle(turned * (IMAGE * np.exp(1j * field)).conj())[BODY]
    assert np.abs(error).max() < 0.1


def _moved(data: np.ndarray, angles: np.ndarray, x: float, y: float) -> np.ndarray:
    along = (np.cos(angles) * x + np.sin(angles) * y)[:, None] * SAMPLING.positions
    return (data * np.exp(-2j * np.pi * along)).astype(np.complex64)


@pytest.mark.parametrize("place", [(0.4, -0.3), (2.0, 1.0)])
def test_the_reference_follows_the_body(place: tuple[float, float]) -> None:
    field = _field(0.2, 0.1, -0.1)
    guide = Guide(IMAGE, MAPS, pixel_m=PIXEL)
    for number in range(2):
        data, angles = _frame(field, number, noise=0.02)
        still = guide.turned(data, SAMPLING, angles)
    assert guide.shift_px == (0.0, 0.0)
    for number in range(2, 4):
        data, angles = _frame(field, number, noise=0.02)
        turned = guide.turned(_moved(data, angles, *place), SAMPLING, angles)
    assert guide.shift_px == pytest.approx(place, abs=0.15)
    ky, kx = (np.fft.fftfreq(N)[:, None], np.fft.fftfreq(N)[None, :])
    true = np.fft.ifft2(np.fft.fft2(still) * np.exp(-2j * np.pi * (kx * place[0] + ky * place[1])))
    assert np.linalg.norm(turned - true) < 0.3 * np.linalg.norm(still - true)
    # … and back again.
    data, angles = _frame(field, 4, noise=0.02)
    guide.turned(data, SAMPLING, angles)
    assert np.hypot(*guide.shift_px) < 0.3


def test_what_cannot_change_moves_with_the_body() -> None:
    fat = np.zeros((N, N), dtype=bool)
    fat[N // 2 - 8 : N // 2 + 8, N // 2 - 5 : N // 2 + 5] = True
    guide = Guide(IMAGE, MAPS, pixel_m=PIXEL, still=fat)
    data, angles = _frame(np.zeros((N, N)))
    guide.turned(data, SAMPLING, angles)
    np.testing.assert_array_equal(guide.still, fat)
    guide.turned(_moved(data, angles, 2.0, -1.0), SAMPLING, angles)
    np.testing.assert_array_equal(guide.still, np.roll(fat, (-1, 2), axis=(0, 1)))
    # Where the frame lies, or how it drifted, is not known: nothing is said of it.
    guide.turned(_moved(data, angles, 12.0, 0.0), SAMPLING, angles)
    assert guide.still is None
    unguided = Guide(IMAGE, MAPS, pixel_m=PIXEL, order=-1, still=fat)
    unguided.turned(data, SAMPLING, angles)
    assert unguided.still is None


def test_a_body_that_seems_to_be_far_away_is_not_followed() -> None:
    guide = Guide(IMAGE, MAPS, pixel_m=PIXEL)
    for number in range(8):
        data, angles = _frame(_field(0.0, 0.0, 0.0), number)
        guide.turned(_moved(data, angles, 9.0, 0.0), SAMPLING, angles)
    assert np.hypot(*guide.shift_px) <= 5.0


def test_without_an_order_or_a_fit_the_reference_stays() -> None:
    data, angles = _frame(_field(0.3, 0.0, 0.0))
    np.testing.assert_array_equal(Guide(IMAGE, MAPS, pixel_m=PIXEL, order=-1).turned(data, SAMPLING, angles), IMAGE)
    guide = Guide(IMAGE, MAPS, pixel_m=PIXEL)
    drifted = guide.turned(data, SAMPLING, angles)
    np.testing.assert_array_equal(guide.turned(np.full_like(data, np.nan), SAMPLING, angles), drifted)


@pytest.mark.parametrize(("n_frames", "n_made"), [(1, 1), (2, 3), (5, 6), (12, 6)])
def test_no_frame_has_a_part_in_its_own_reference(n_frames: int, n_made: int) -> None:
    made: list[list[int]] = []

    def reconstruct(frames):
        made.append(list(frames))
        image = np.zeros((1, n_frames), np.complex64)
        image[0, list(frames)] = 1.0
        return image

    whole, others = references(range(n_frames), reconstruct)
    assert whole.all()
    assert len(made) == n_made
    if n_frames > 1:
        assert all(not other[0, number] for number, other in enumerate(others))
        assert all(np.count_nonzero(other) >= 0.75 * n_frames - 1 for other in others)


def _noisy(n_frames: int) -> np.ndarray:
    """Return frames of 40 spokes of 16 samples that differ by noise, complex128 (frame, spoke, sample)."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, n_frames, 40, 16))
    return 1.0 + 0.05 * (noise[0] + 1j * noise[1])


def _kept(frames: np.ndarray) -> list[int]:
    """Return the places of the frames that stay; a sample's reference is its mean over the frames."""
    kept, whole, _ = belonging(
        range(len(frames)),
        lambda places: frames[list(places)].mean(axis=0),
        lambda place, reference: np.linalg.norm(frames[place] - reference, axis=-1),
    )
    np.testing.assert_allclose(whole, frames[kept].mean(axis=0))
    return kept


@pytest.mark.parametrize("n_frames", [3, 4, 5, 12, 30])
@pytest.mark.parametrize("spokes", [slice(7, 8), slice(None)])
@pytest.mark.parametrize("error", [1.0, 2.0j, 100.0])
def test_a_frame_that_others_do_not_explain_has_no_part_in_the_reference(n_frames, spokes, error) -> None:
    frames = _noisy(n_frames)
    assert _kept(frames) == list(range(n_frames))
    frames[1, spokes] += error
    assert _kept(frames) == [place for place in range(n_frames) if place != 1]


def test_a_loud_stray_hides_no_other() -> None:
    frames = _noisy(8)
    frames[1, 5] += 100.0
    frames[6, 9] += 2.0
    assert _kept(frames) == [0, 2, 3, 4, 5, 7]


@pytest.mark.parametrize("n_frames", [3, 4, 5, 30])
def test_drift_makes_no_strays(n_frames) -> None:
    frames = _noisy(n_frames) * np.exp(1j * np.linspace(0.0, 0.8, n_frames))[:, None, None]
    assert len(_kept(frames)) == n_frames


def test_where_most_frames_stray_or_there_are_only_two_none_is_left_out(caplog) -> None:
    frames = _noisy(6)
    frames[np.arange(4), 3 * np.arange(4)] += 3.0
    assert len(_kept(frames)) == 6
    assert "more than half of the 6 frames of the reference do not fit each other" in caplog.text
    assert len(_kept(frames[3:5])) == 2
