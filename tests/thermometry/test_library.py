import numpy as np
import pytest

from sinotherm.thermometry.library import Library, correlation

N = 64
Y, X = (np.mgrid[:N, :N] - N // 2) / (N / 2)
BODY = (np.hypot(X / 0.8, Y / 0.7) < 1.0)[None]
RIM = BODY & (np.hypot(X / 0.68, Y / 0.58) > 1.0)
NONE = np.zeros_like(BODY)
FIELD = X**2 * 1.5 + Y**3
BREATHS = (-0.5, -0.25, 0.0, 0.25, 0.5)
HEAT = np.exp(-(X**2 + Y**2) / 0.09)


def _frame(breath: float, *, phase: np.ndarray | float = 0.0, seed: int = 0, coils: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    data = BODY * np.exp(1j * (breath * FIELD + phase)) * np.exp(1j * np.arange(coils))[:, None, None, None]
    return (data + 0.01 * (random.standard_normal((*data.shape, 2)) @ (1.0, 1j))).astype(np.complex64)


def _library(*, cold=(RIM,), order: int = 0, coils: int = 1, breaths=BREATHS * 2) -> Library:
    states = [_frame(breath, seed=10 + place, coils=coils) for place, breath in enumerate(breaths)]
    return Library(states, tissue=BODY, cold=cold, order=order)


@pytest.mark.parametrize("coils", [1, 2])
@pytest.mark.parametrize("heat_rad", [0.0, -0.8, -1.2])
def test_heat_does_not_choose_the_state(heat_rad: float, coils: int) -> None:
    library = _library(coils=coils)
    for place, breath in enumerate(BREATHS):
        frame = _frame(breath, phase=heat_rad * HEAT, seed=99 + place, coils=coils)
        match = library.match(3.0j * frame)
        assert match.place % 5 == place
        assert match.score > 0.9
        assert match.agreeing > 0.99
        assert match.found
        assert match.doubt == ""
        # Over all tissue the breathing that cancels some of the heat is more like it than its own.
        over_all = [correlation(_frame(one, coils=coils), frame) for one in BREATHS]
        assert (int(np.argmax(over_all)) == place) is (heat_rad == 0.0 or place == 4)


def test_the_drift_does_not_choose_the_state() -> None:
    library = _library(order=1)
    for place, breath in enumerate(BREATHS):
        match = library.match(_frame(breath, phase=0.7 + 0.8 * X - 0.4 * Y + 0.8 * HEAT, seed=99 + place))
        assert match.place % 5 == place
        assert match.doubt == ""


def test_heat_in_a_part_of_the_cold_tissue_is_left_out_and_told() -> None:
    """A superficial applicator: a fifth of the rim is heated."""
    library = _library()
    match = library.match(_frame(0.25, phase=-1.2 * np.exp(-((X - 0.7) ** 2 + Y**2) / 0.05), seed=99))
    assert match.place % 5 == 3
    assert 0.6 < match.agreeing < 0.95
    assert match.found
    assert match.doubt == "" or "it is heated" in match.doubt


def test_what_agrees_with_no_state_is_told() -> None:
    library = _library()
    between = library.match(_frame(0.62, seed=99))
    assert between.place % 5 == 4
    assert between.found
    assert "less like any frame of the library (score 0." in between.doubt
    lost = library.match(_frame(2.5, seed=99))
    assert not lost.found
    assert lost.doubt
    dark = library.match(np.zeros_like(_frame(0.0)))
    assert dark.score == dark.agreeing == 0.0
    assert not dark.found


def test_a_cold_mask_that_is_too_small_does_not_tell_the_state() -> None:
    """Tubes beside what breathes: the periphery tells it. Without one all tissue does, or says that it cannot."""
    tubes = NONE.copy()
    tubes[0, 12:15, 32:35] = True
    focal = _frame(0.0, phase=-1.2 * np.exp(-(X**2 + Y**2) / 0.1), seed=99)
    match = _library(cold=(tubes, RIM)).match(focal)
    assert match.place % 5 == 2
    assert match.doubt == ""
    wide = _frame(0.0, phase=-1.2 * np.exp(-(X**2 + Y**2) / 0.2), seed=99)
    for frame, found in ((focal, True), (wide, False)):
        match = _library(cold=(tubes, NONE)).match(frame)
        assert (match.place % 5 == 2) is match.found is found
        assert match.doubt


def test_planes_drift_each_by_themselves_and_share_a_state() -> None:
    states = [np.concatenate([_frame(breath), _frame(-breath)], axis=1) for breath in (-0.5, 0.0, 0.5, 0.02)]
    library = Library(states, tissue=np.concatenate([BODY, BODY]), cold=(np.concatenate([RIM, RIM]),), order=0)
    match = library.match(np.concatenate([_frame(0.5, phase=1.0), _frame(-0.5, phase=-2.0)], axis=1))
    assert match.place == 2
    assert match.score > 0.95
    assert [other.place for other in library.others][1] == 3
