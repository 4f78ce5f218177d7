import logging
import math

import numpy as np
import pytest

from sinotherm.thermometry.fat import fat_phase, find_fat

N = 128
Y, X = (np.mgrid[:N, :N] - N // 2) / (N / 2)
BODY = np.hypot(X / 0.85, Y / 0.7) < 1
FAT = BODY & (np.hypot(X / 0.7, Y / 0.55) > 1)
TUMOUR = np.hypot(X - 0.2, Y + 0.1) < 0.15
OFFSET = fat_phase(larmor_hz=63.87e6, echo_time_s=0.0191, phase_sign=1)


def _image(offset: float = OFFSET, tumour: float = 1.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    size = np.where(TUMOUR, tumour, np.where(FAT, 1.6, 0.9)) * BODY
    field = 1.0 + 1.5 * X - Y + 0.8 * X**2 - 0.5 * X * Y**2
    noise = 0.02 * (random.standard_normal((N, N)) + 1j * random.standard_normal((N, N)))
    return (size * np.exp(1j * (field + FAT * offset)) + noise).astype(np.complex64)


def test_phase_of_fat_at_a_known_echo_time() -> None:
    # In phase after a whole turn of 3.4 ppm · f0.
    whole = 1.0 / (3.4e-6 * 63.87e6)
    assert fat_phase(larmor_hz=63.87e6, echo_time_s=whole, phase_sign=1) == pytest.approx(0.0, abs=1e-6)
    assert fat_phase(larmor_hz=63.87e6, echo_time_s=whole / 4, phase_sign=1) == pytest.approx(-math.pi / 2, abs=1e-6)
    assert fat_phase(larmor_hz=63.87e6, echo_time_s=whole / 4, phase_sign=-1) == pytest.approx(math.pi / 2, abs=1e-6)


@pytest.mark.parametrize("tumour", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("offset", [OFFSET, math.pi, 1.5])
def test_fat_is_found_and_the_tumour_is_not_masked(tumour: float, offset: float) -> None:
    image = _image(offset, tumour)
    found = find_fat(image, np.abs(image), 0.2, offset)
    assert found[FAT].mean() > 0.8
    assert not found[TUMOUR].any()
    assert found[BODY & ~FAT].mean() < 0.01


def test_nothing_is_masked_where_it_cannot_be_said(caplog: pytest.LogCaptureFixture) -> None:
    image = _image(0.2)
    with caplog.at_level(logging.WARNING):
        assert not find_fat(image, np.abs(image), 0.2, 0.2).any()
        assert "0.20 rad only" in caplog.text
        random = np.random.default_rng(1)
        torn = image * np.exp(2j * np.pi * random.random((N, N)))
        assert not find_fat(torn.astype(np.complex64), np.abs(image), 0.2, OFFSET).any()
        assert "fat is not masked" in caplog.text
