"""The shipped pipelines on recorded scans, without a socket."""

import numpy as np
import pytest

from sinotherm.frames.header import scan_header
from sinotherm.pipelines.compose import load_pipeline, parse_assignments
from sinotherm.wire.file import MrdFile
from sinotherm.wire.messages import Image, Waveform

pytestmark = pytest.mark.data


def run(path, pipeline, *settings):
    chain = load_pipeline(pipeline).with_values(parse_assignments(["publish.endpoint=", *settings]))
    with MrdFile(path) as file:
        return list(chain.run(scan_header(file.header_xml), file.items()))


@pytest.fixture(scope="module")
def perfusion(shared_data):
    return shared_data / "radial_cardiac_perfusion_goldenangle" / "radial_perfusion_7x30spokes_ismrmrd.h5"


def test_seven_frames_of_thirty_spokes(perfusion):
    images = run(perfusion, "radial_fbp")
    assert [image.data.shape for image in images] == [(1, 1, 144, 144)] * 7
    assert [image.image_index for image in images] == list(range(1, 8))
    assert {image.meta["sinotherm_spokes"] for image in images} == {"30"}


def test_all_spokes_in_one_frame_and_both_routes_agree(perfusion):
    settings = ("frames.by=count", "frames.spokes=210", "images.complex_images=true", "delay.mode=off")
    by_fbp, by_gridding = (
        run(perfusion, f"radial_{method}", *settings, f"{method}.combine=maps", f"{method}.centre=exact")
        for method in ("fbp", "gridding")
    )
    assert [image.image_series_index for image in by_fbp] == [1, 2]
    assert by_fbp[0].meta["sinotherm_spokes"] == "210"
    assert by_fbp[0].meta["sinotherm_setting_frames.spokes"] == "210"
    one, other = by_fbp[1].data, by_gridding[1].data
    assert np.linalg.norm(one - other) / np.linalg.norm(other) < 2e-3


def test_the_tiny_scan_with_its_waveform_in_place(shared_data):
    out = run(shared_data / "wire" / "tiny_radial.h5", "radial_fbp")
    assert [type(item) for item in out] == [Waveform, Image, Image]
    assert [image.acquisition_time_stamp for image in out[1:]] == [40080, 40160]
    assert [image.data.shape for image in out[1:]] == [(1, 1, 16, 16)] * 2
