from pathlib import Path

import pytest

from sinotherm.errors import HeaderError, SettingsError
from sinotherm.pipelines.doors import open_pipeline, open_target
from sinotherm.wire.connection import ScanRequest
from sinotherm.wire.file import MrdFile

PIPELINE = """<configuration><version>2</version><stream><external>
<execute name="sinotherm.nodes" target="reconstruct" type="python"/>
<configuration><property name="frames.spokes" value="8"/><property name="publish.endpoint" value=""/></configuration>
</external></stream></configuration>"""


@pytest.fixture
def scan(shared_data: Path) -> MrdFile:
    return MrdFile(shared_data / "wire" / "tiny_radial.h5")


def n_images(request: ScanRequest, scan: MrdFile, directory: Path, **values: str) -> int:
    opening = open_pipeline((directory,), {"frames": values})
    return sum(hasattr(item, "image_series_index") for item in opening(request)(scan.items()))


@pytest.mark.data
def test_requests_become_pipelines(scan: MrdFile, tmp_path: Path) -> None:
    (tmp_path / "tiny.xml").write_text(PIPELINE)
    for config in (PIPELINE, "tiny"):
        request = ScanRequest(config=config, header_xml=scan.header_xml)
        assert n_images(request, scan, tmp_path) == 2
        # The server's own settings win over the file's …
        assert n_images(request, scan, tmp_path, by="count", spokes="4") == 4
    # … and the console's over the server's.
    parameters = '{"parameters": {"config": "tiny", "frames.spokes": 16, "frames.by": "count", "colour": "red"}}'
    request = ScanRequest(config="other", header_xml=scan.header_xml, parameters=parameters)
    assert n_images(request, scan, tmp_path, spokes="4") == 1
    scan.close()


@pytest.mark.data
def test_targets_take_the_properties_of_their_node(scan: MrdFile) -> None:
    with scan:
        configuration = PIPELINE[PIPELINE.index("<configuration><property") : PIPELINE.index("</external>")]
        request = ScanRequest(config=configuration, header_xml=scan.header_xml)
        assert len(list(open_target("reconstruct")(request)(scan.items()))) >= 2
        with pytest.raises(SettingsError, match="unknown target"):
            open_target("nonsense")(request)


def test_what_cannot_be_opened_says_why() -> None:
    with pytest.raises(SettingsError, match="unknown pipeline"):
        open_pipeline()(ScanRequest(config="none", header_xml=b""))
    with pytest.raises(HeaderError):
        open_target("reconstruct")(ScanRequest(config="<configuration/>", header_xml=b"<nothing"))
