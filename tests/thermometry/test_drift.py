import numpy as np
import pytest
from scipy import ndimage

from sinotherm.core.physics import radian_per_degc
from sinotherm.errors import SettingsError
from sinotherm.thermometry.drift import DriftEstimator, periphery_mask, polynomial_terms

N = 256
RADIAN_PER_DEGC = radian_per_degc(larmor_hz=63.87e6, echo_time_s=0.0191, prf_coefficient=-1e-8, phase_sign=1)
Y, X = (np.mgrid[:N, :N] - N // 2) / (N / 2)
BODY = np.hypot(X / 0.8, Y / 0.6) < 1.0
FIRST_ORDER = 1.5 + 2.5 * X - 1.0 * Y
SECOND_ORDER = FIRST_ORDER + 0.7 * X**2 - 0.4 * X * Y + 0.9 * Y**2


def _estimator(mask: np.ndarray, **changes) -> DriftEstimator:
    options = {"order": 1, "one_sided": False, "min_voxels": 100, "max_condition": 1e4} | changes
    return DriftEstimator(magnitude=BODY.astype(float), mask=mask & BODY, **options)


def _product(change: np.ndarray, random: np.random.Generator | None = None, snr: float = 30.0) -> np.ndarray:
    image = BODY * np.exp(1j * RADIAN_PER_DEGC * change)
    baseline = BODY.astype(complex)
    if random is not None:
        noise = (random.standard_normal((2, N, N)) + 1j * random.standard_normal((2, N, N))) / snr
        image, baseline = image + noise[0], baseline + noise[1] / np.sqrt(5.0)
    return (image * baseline.conj()).astype(np.complex64)


ONE_SIDE = (X > 0.3) & (X < 0.75)


@pytest.mark.parametrize("mask", [BODY & (np.hypot(X, Y) > 0.4), ONE_SIDE], ids=["around", "one side"])
@pytest.mark.parametrize(("order", "drift"), [(0, 0 * X + 3.0), (1, FIRST_ORDER), (2, SECOND_ORDER)])
def test_noiseless_drift_is_found(mask: np.ndarray, order: int, drift: np.ndarray) -> None:
    product = _product(drift)
    fit = _estimator(mask, order=order).fit(product, np.angle(product), 1.0 / RADIAN_PER_DEGC)
    assert not fit.problem
    assert np.abs(fit.field_degc - drift)[BODY].max() <= 0.005


@pytest.mark.parametrize("mask", [BODY & (np.hypot(X, Y) > 0.4), ONE_SIDE], ids=["around", "one side"])
def test_drift_at_snr_30_with_heating_beside_the_mask(mask: np.ndarray) -> None:
    random = np.random.default_rng(1)
    heat = 8.0 * np.exp(-(X**2 + Y**2) / 0.02)
    estimator = _estimator(mask)
    errors = []
    for _ in range(8):
        product = _product(FIRST_ORDER + heat, random)
        fit = estimator.fit(product, np.angle(product), 1.0 / RADIAN_PER_DEGC)
        errors.append(np.sqrt(np.mean((fit.field_degc - FIRST_ORDER)[BODY] ** 2)))
    assert np.sqrt(np.mean(np.square(errors))) <= 0.05


def test_drift_beyond_the_wrap_follows_the_unwrapped_phase() -> None:
    drift = FIRST_ORDER + 60.0
    product = _product(drift)
    phase = (RADIAN_PER_DEGC * drift).astype(np.float32)
    fit = _estimator(BODY).fit(product, phase, 1.0 / RADIAN_PER_DEGC)
    assert np.abs(fit.field_degc - drift)[BODY].max() <= 0.005


def test_a_bowl_between_the_thin_rim_of_a_coarse_matrix() -> None:
    """Blocks as wide as the rim do not tell its thickness, which alone tells the bowl."""
    random, n = np.random.default_rng(7), 64
    y, x = (np.mgrid[:n, :n] - n // 2) / (n / 2)
    radius = np.hypot(x / 0.8, y / 0.66)
    mask = periphery_mask((radius < 1.0).astype(float), 0.5, (0.004, 0.004))
    estimator = DriftEstimator(
        magnitude=radius < 1.0, mask=mask, order=2, one_sided=True, min_voxels=100, max_condition=1e4
    )
    means = []
    for _ in range(60):
        noise = 0.02 * random.standard_normal((2, n, n))
        product = ((radius < 1.0) * (1.0 + noise[0] + 1j * noise[1])).astype(np.complex64)
        fit = estimator.fit(product, np.angle(product), 1.0 / RADIAN_PER_DEGC)
        means.append(fit.field_degc[radius < 0.5].mean())
    assert np.std(means) < 1.1 * 0.02 / abs(RADIAN_PER_DEGC)


def test_outliers_in_a_given_mask_weigh_little() -> None:
    heat = 6.0 * ((np.abs(X - 0.5) < 0.1) & (np.abs(Y) < 0.15))
    product = _product(FIRST_ORDER + heat, np.random.default_rng(2))
    fit = _estimator(BODY & (np.hypot(X, Y) > 0.3)).fit(product, np.angle(product), 1.0 / RADIAN_PER_DEGC)
    assert np.abs(fit.field_degc - FIRST_ORDER)[BODY].mean() <= 0.05


@pytest.mark.parametrize("seed", range(4))
def test_found_mask_with_diffuse_heating_reaching_the_rim(seed: int) -> None:
    """7 °C of diffuse heating, water heated everywhere by 0.3 °C, fat around it that does not shift."""
    random = np.random.default_rng(seed)
    x0, y0 = random.uniform(-0.4, 0.4), random.uniform(-0.3, 0.3)
    water = np.hypot(X / 0.74, Y / 0.54) < 1.0
    heat = np.where(water, 7.0 * np.exp(-((X - x0) ** 2 + (Y - y0) ** 2) / 0.06) + 0.3, 0.0)
    product = _product(FIRST_ORDER + heat, random, 40.0)
    mask = periphery_mask(np.abs(product), 0.3, (0.0016, 0.0016))
    assert mask[BODY & ~water].mean() > 0.5
    assert not mask[np.hypot(X, Y) < 0.3].any()
    fit = _estimator(mask, one_sided=True).fit(product, np.angle(product), 1.0 / RADIAN_PER_DEGC)
    tumour = np.hypot(X - x0, Y - y0) < 0.15
    assert abs((fit.field_degc - FIRST_ORDER)[tumour].mean()) <= 0.05


def test_gates() -> None:
    product = _product(FIRST_ORDER)
    phase = np.angle(product)
    small = _estimator((np.abs(X) < 0.03) & (np.abs(Y) < 0.03)).fit(product, phase, 1.0 / RADIAN_PER_DEGC)
    assert "cold voxels: 100 are needed" in small.problem
    assert not small.field_degc.any()
    narrow = _estimator(X > 0.7, order=2, max_condition=50.0).fit(product, phase, 1.0 / RADIAN_PER_DEGC)
    assert "condition number" in narrow.problem
    dark = _estimator(BODY).fit(0 * product, phase, 1.0 / RADIAN_PER_DEGC)
    assert dark.problem.startswith("0 cold voxels")
    # Half of the mask is heated by 3 °C and half by 6 °C: too few agree on one drift.
    torn = _product(np.where(np.random.default_rng(0).random((N, N)) < 0.5, 3.0, 6.0))
    disagreeing = _estimator(BODY, min_voxels=int(BODY.sum())).fit(torn, np.angle(torn), 1.0 / RADIAN_PER_DEGC)
    assert "agree on one drift" in disagreeing.problem


def test_sizes_that_are_no_multiple_of_the_block() -> None:
    crop = np.s_[:230, 1:255]
    product = _product(FIRST_ORDER)[crop]
    terms = polynomial_terms(product.shape, 1)
    estimator = DriftEstimator(
        magnitude=BODY[crop], mask=BODY[crop], order=1, one_sided=False, min_voxels=9, max_condition=1e4
    )
    fit = estimator.fit(product, np.angle(product), 1.0 / RADIAN_PER_DEGC)
    np.testing.assert_allclose(
        np.tensordot(fit.coefficients_degc, terms, 1)[BODY[crop]], FIRST_ORDER[crop][BODY[crop]], atol=0.005
    )


def test_unknown_order() -> None:
    with pytest.raises(SettingsError, match="0 to 6"):
        polynomial_terms((4, 4), 7)


@pytest.mark.parametrize("one_sided", [False, True])
def test_cold_tissue_that_went_dark_as_a_whole_tells_nothing(one_sided: bool) -> None:
    random = np.random.default_rng(3)
    noise = (random.standard_normal((2, N, N)) * 0.03).view(np.float64)
    product = (noise[0] + 1j * noise[1]).astype(np.complex64)
    estimator = _estimator(BODY & (np.hypot(X, Y) > 0.4), one_sided=one_sided)
    fit = estimator.fit(product, np.angle(product), 1.0 / RADIAN_PER_DEGC)
    assert "hold no signal" in fit.problem
    assert not fit.field_degc.any()


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("blur", [0.0, 1.5])
@pytest.mark.parametrize(("mask", "order"), [("around", 1), ("around", 2), ("one side", 1)])
def test_stated_variance_is_that_of_the_fits(mask: str, order: int, blur: float, one_sided: bool) -> None:
    """White noise, and noise that neighbours share; extrapolated over the body or not."""
    random, n = np.random.default_rng(6), 96
    y, x = (np.mgrid[:n, :n] - n // 2) / (n / 2)
    body = np.hypot(x / 0.8, y / 0.7) < 1.0
    cold = body & (np.hypot(x / 0.8, y / 0.7) > 0.6 if mask == "around" else x > 0.35)
    estimator = DriftEstimator(
        magnitude=body, mask=cold, order=order, one_sided=one_sided, min_voxels=100, max_condition=1e4
    )
    errors, stated = [], []
    for _ in range(40):
        noise = random.standard_normal((2, n, n))
        if blur:
            noise = ndimage.gaussian_filter(noise, (0, blur, blur), mode="wrap") * (2 * np.sqrt(np.pi) * blur)
        product = (body * (1.0 + 0.03 * (noise[0] + 1j * noise[1]))).astype(np.complex64)
        fit = estimator.fit(product, np.angle(product), 1.0 / RADIAN_PER_DEGC)
        assert not fit.problem
        errors.append(fit.field_degc[body])
        stated.append(estimator.variance(fit)[body])
    scatter = np.sqrt(np.mean(np.square(errors)))
    assert 0.75 < np.sqrt(np.mean(stated)) / scatter < 1.5
    if mask == "one side":
        assert scatter > 0.15 * 0.03 / abs(RADIAN_PER_DEGC)


def test_a_failed_fit_has_no_variance() -> None:
    product = _product(FIRST_ORDER)
    estimator = _estimator(BODY, min_voxels=N * N)
    fit = estimator.fit(product, np.angle(product), 1.0 / RADIAN_PER_DEGC)
    assert fit.uncertainty is None
    assert not estimator.variance(fit).any()
