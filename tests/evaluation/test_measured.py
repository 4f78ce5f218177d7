from pathlib import Path

import numpy as np
import pytest

from sinotherm.evaluation.measured import measured, reconstructed
from sinotherm.frames.images import META_PREFIX
from sinotherm.wire.file import ImageWriter
from sinotherm.wire.messages import Image

HEADER = b"""<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>32</x><y>32</y><z>1</z></matrixSize>
<fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>32</x><y>32</y><z>1</z></matrixSize>
<fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits/><trajectory>radial</trajectory></encoding>
<sequenceParameters><TE>19.1</TE></sequenceParameters></ismrmrdHeader>"""
FRAMES = 8


def _scan(path: Path, series: tuple[int, ...], **meta: str) -> Path:
    """Write complex images of one frame after the other, each reconstructed in these series; a later one is noisier."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] - 16
    with ImageWriter(path, HEADER) as writer:
        for frame in range(FRAMES):
            for number in series:
                noise = number * 0.01 * random.standard_normal((2, 32, 32))
                pixels = (np.hypot(x, y) < 12) + noise[0] + 1j * noise[1]
                made = Image.from_array(pixels.astype(np.complex64)[None, None])
                made.image_series_index, made.repetition = number, frame
                made.acquisition_time_stamp = 400 * (frame + 1)
                made.meta = {META_PREFIX + name: text for name, text in meta.items()}
                writer.append(made)
    return path


@pytest.mark.parametrize("made", [measured, reconstructed])
def test_a_second_reconstruction_is_not_pooled_with_the_first(tmp_path: Path, made) -> None:
    values = {"thermometry": {"phase_sign": "1"}}
    _, alone = made(_scan(tmp_path / "one.h5", (1,)), values)
    _, found = made(_scan(tmp_path / "two.h5", (1, 5)), values)
    assert [one.number for one in alone] == [one.number for one in found] == list(range(FRAMES))
    assert {one.meta["method"] for one in found} == {"foreign_1"}
    # A file of nothing but what went beside a network, say.
    _, beside = made(_scan(tmp_path / "beside.h5", (12,), beside="pdunet"), values)
    assert [one.meta["beside"] for one in beside] == ["pdunet"] * FRAMES
