import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sinotherm.errors import HeaderError, SettingsError
from sinotherm.pipelines.compose import load_pipeline
from sinotherm.pipelines.doors import open_pipeline, open_target
from sinotherm.pipelines.registry import STAGES, stage_module
from sinotherm.wire.connection import ScanRequest
from sinotherm.wire.file import MrdFile

PIPELINE = """<configuration><version>2</version><stream><external>
<execute name="sinotherm.nodes" target="reconstruct" type="python"/>
<configuration><property name="frames.spokes" value="8"/><property name="publish.endpoint" value=""/></configuration>
</external></stream></configuration>"""

TE = "<sequenceParameters><TE>16</TE></sequenceParameters>"
F0 = "<experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>"
SPACE = """<matrixSize><x>16</x><y>16</y><z>1</z></matrixSize>
<fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm>"""
HEADER = f"""<ismrmrdHeader>{F0}<encoding><encodedSpace>{SPACE}</encodedSpace><reconSpace>{SPACE}</reconSpace>
<trajectory>radial</trajectory></encoding>{TE}</ismrmrdHeader>"""


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


@pytest.mark.parametrize(
    ("left_out", "words", "given"),
    [
        (TE, "states no TE: give thermometry.echo_times_s", "echo_times_s=0.016"),
        (F0, "states no H1resonanceFrequency_Hz: give thermometry.larmor_hz", "larmor_hz=123e6"),
    ],
)
def test_what_thermometry_needs_of_the_header_is_asked_for_when_the_scan_opens(
    left_out: str, words: str, given: str
) -> None:
    xml = HEADER.replace(left_out, "").encode()
    setting, value = given.split("=")
    configuration = f'<configuration><property name="thermometry.{setting}" value="{value}"/></configuration>'
    for target in ("thermometry", "radial_thermometry"):
        with pytest.raises(HeaderError, match=words):
            open_target(target)(ScanRequest(config="<configuration/>", header_xml=xml))
        assert open_target(target)(ScanRequest(config=configuration, header_xml=xml))
    request = ScanRequest(config="thermometry", header_xml=xml)
    with pytest.raises(HeaderError, match=words):
        open_pipeline()(request)
    parameters = json.dumps({"parameters": {f"thermometry.{setting}": value}})
    assert open_pipeline()(replace(request, parameters=parameters))
    # Nor is what cannot be meant taken for them.
    unmeant = {TE: TE.replace("16", "19100"), F0: F0.replace("000000", "")}[left_out]
    with pytest.raises(HeaderError, match=f"give thermometry.{setting}"):
        open_pipeline()(replace(request, header_xml=HEADER.replace(left_out, unmeant).encode()))
    # Images need neither.
    assert open_target("reconstruct")(ScanRequest(config="<configuration/>", header_xml=xml))


@pytest.mark.parametrize("setting", ["regions=tumour=circle:8,8,3;off=circle:100,8,3", "cold_mask=circle:100,8,3"])
def test_a_region_outside_of_the_images_is_refused_when_the_scan_opens(setting: str) -> None:
    name, _, value = setting.partition("=")
    configuration = f'<configuration><property name="thermometry.{name}" value="{value}"/></configuration>'
    request = ScanRequest(config=configuration, header_xml=HEADER.encode())
    with pytest.raises(SettingsError, match=r"'circle:100,8,3' holds no voxel of the image .* = \(1, 16, 16\)"):
        open_target("radial_thermometry")(request)
    parameters = json.dumps({"parameters": {f"thermometry.{name}": value}})
    with pytest.raises(SettingsError, match="holds no voxel"):
        open_pipeline()(replace(request, config="radial_thermometry", parameters=parameters))
    # The images of others may be of another size than the header says.
    assert open_target("thermometry")(request)


def test_a_servers_settings_go_to_the_pipelines_that_have_their_stage(caplog: pytest.LogCaptureFixture) -> None:
    header = b"<nothing"
    opening = open_pipeline((), {"thermometry": {"body_temperature_degc": "37"}, "reconstruction": {"method": "fbp"}})
    # The pipeline without thermometry is opened, up to the header that is none …
    with caplog.at_level("INFO"), pytest.raises(HeaderError):
        opening(ScanRequest(config="radial_fbp", header_xml=header))
    assert "settings of thermometry are not used: not part of the pipeline radial_fbp" in caplog.text
    # … and what a client sends must have its place.
    sent = '{"parameters": {"thermometry.phase_sign": 1}}'
    with pytest.raises(SettingsError, match="stage 'thermometry' is not part of the pipeline radial_fbp"):
        opening(ScanRequest(config="radial_fbp", header_xml=header, parameters=sent))
    with pytest.raises(HeaderError):
        opening(ScanRequest(config="radial_thermometry", header_xml=header, parameters=sent))


def test_a_client_is_warned_of_its_settings_of_another_method(caplog: pytest.LogCaptureFixture) -> None:
    opening = open_pipeline((), {"cg_sense": {"iterations": "5"}})
    sent = '{"parameters": {"fbp.filter": "hann"}}'
    with caplog.at_level("INFO"), pytest.raises(HeaderError):
        opening(ScanRequest(config="radial_gridding", header_xml=b"<nothing", parameters=sent))
    found = {(record.levelname, record.message) for record in caplog.records if "are not used" in record.message}
    assert found == {
        ("WARNING", "settings of fbp are not used: reconstruction.method is gridding"),
        # The server's go to any pipeline: it is no mistake that one does not use them.
        ("INFO", "settings of cg_sense are not used: reconstruction.method is gridding"),
    }
    with pytest.raises(SettingsError, match=r"unknown setting fbp\.fliter"):
        opening(ScanRequest(config="radial_gridding", header_xml=b"", parameters=sent.replace("filter", "fliter")))


def test_a_servers_settings_are_checked_when_it_starts() -> None:
    for stage, name, value, message in (
        ("thermometry", "phase_sing", "1", "unknown setting thermometry.phase_sing"),
        ("thermometry", "phase_sign", "0", r"\+1 or -1"),
        ("thermometry", "regions", "tumour=circel:32,30,4", "region 'circel:32,30,4': write circle"),
        ("reconstruction", "method", "fpb", "reconstruction.method"),
        ("thermometri", "phase_sign", "1", "unknown stage 'thermometri'"),
    ):
        with pytest.raises(SettingsError, match=message):
            open_pipeline((), {stage: {name: value}})
    # The region may be the pipeline's or the console's.
    opening = open_pipeline((), {"thermometry": {"baseline_mode": "harmonic"}})
    sent = '{"parameters": {"thermometry.heated": "circle:20,20,5"}}'
    with pytest.raises(HeaderError):
        opening(ScanRequest(config="radial_thermometry", header_xml=b"<nothing", parameters=sent))
    with pytest.raises(SettingsError, match=r"needs thermometry\.heated"):
        opening(ScanRequest(config="radial_thermometry", header_xml=b"<nothing"))


LOCAL = [
    ("thermometry.log", "/tmp/log"),
    ("thermometry.baseline_file", "baseline.h5"),
    ("thermometry.baseline_save", "baseline.h5"),
    ("thermometry.qualified", "/etc/passwd"),
    ("thermometry.commands", "tcp://0.0.0.0:5561"),
    ("thermometry.commands_key_file", "/etc/passwd"),
    ("thermometry.cold_mask", "file:mask.npy"),
    ("thermometry.fat", "masks.h5:/fat"),
    ("thermometry.heated", "circle:1,2,3+masks.hdf5:/h"),
    ("thermometry.regions", "tumour=file:mask.npy"),
    ("publish.endpoint", "tcp://0.0.0.0:5560"),
    ("pdunet.network", "../../weights"),
]


@pytest.mark.parametrize(("name", "value"), LOCAL)
def test_a_peer_names_no_files_and_no_endpoints(name: str, value: str) -> None:
    configuration = f'<configuration><property name="{name}" value="{value}"/></configuration>'
    document = (
        PIPELINE[: PIPELINE.index("<configuration><property")] + configuration + "</external></stream></configuration>"
    )
    asked = [
        (open_target("radial_thermometry"), configuration, ""),
        (open_pipeline(), document, ""),
        (open_pipeline(), "radial_thermometry", json.dumps({"parameters": {name: value}})),
        (open_pipeline(), "radial_fbp", json.dumps({"parameters": {"config": document}})),
    ]
    for opening, config, parameters in asked:
        with pytest.raises(SettingsError, match=rf"{name} = .* is refused from a network peer"):
            opening(ScanRequest(config=config, header_xml=b"", parameters=parameters))


def test_every_setting_of_a_file_or_endpoint_is_local() -> None:
    words = re.compile(r"\b(file|folder|path|endpoint|record of|region text)\b|file:", re.IGNORECASE)
    naming = {
        name
        for stage in STAGES
        for name, *_, sentence in stage_module(stage).Settings.rows(stage)
        if words.search(sentence) or sentence.endswith(" Local.")
    }
    assert naming == {name for name, _ in LOCAL}


@pytest.mark.data
def test_the_log_tells_the_settings_of_both_nodes_of_a_pipeline(scan: MrdFile, tmp_path: Path) -> None:
    second = (
        '<external><execute name="sinotherm.nodes" target="thermometry" type="python"/><configuration>'
        f'<property name="thermometry.log" value="{tmp_path / "log"}"/></configuration></external>'
    )
    document = PIPELINE.replace("</external>", f"</external>{second}").replace(
        '<property name="publish', '<property name="images.complex_images" value="true"/><property name="publish'
    )
    (tmp_path / "two.xml").write_text(document)
    with scan:
        request = ScanRequest(config="two", header_xml=scan.header_xml)
        opening = open_pipeline((tmp_path,), {"publish": {"endpoint": ""}})
        assert len(list(opening(request)(scan.items()))) >= 2
    (begin, *_) = (tmp_path / "log" / "audit.jsonl").read_text().splitlines()
    chain = json.loads(begin)["chain"]
    assert chain["frames"]["spokes"] == 8
    assert {"whitening", "delay", "complex_images"} <= chain.keys()


@pytest.mark.data
def test_the_user_of_this_machine_names_them(scan: MrdFile, tmp_path: Path) -> None:
    mine = {"thermometry": {"log": str(tmp_path / "log")}, "publish": {"endpoint": ""}, "frames": {"spokes": "8"}}
    with scan:
        request = ScanRequest(config="<configuration/>", header_xml=scan.header_xml)
        assert len(list(open_target("radial_thermometry", mine)(request)(scan.items()))) >= 2
        (begin, *_) = (tmp_path / "log" / "audit.jsonl").read_text().splitlines()
        chain = json.loads(begin)["chain"]
        assert chain["frames"]["spokes"] == 8
        assert {"whitening", "delay", "compression"} <= chain.keys()
        document = PIPELINE.replace("reconstruct", "radial_thermometry").replace(
            '<property name="publish.endpoint" value=""/>',
            f'<property name="thermometry.log" value="{tmp_path / "b"}"/>',
        )
        (tmp_path / "mine.xml").write_text(document)
        request = ScanRequest(config="mine", header_xml=scan.header_xml)
        opening = open_pipeline((tmp_path,), {"publish": {"endpoint": ""}})
        assert len(list(opening(request)(scan.items()))) >= 2
        assert (tmp_path / "b" / "audit.jsonl").is_file()
        # A document that its user gives is its user's.
        assert load_pipeline(document, local=True).chains


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"parameters": 3}'])
def test_parameters_that_are_no_parameters(text: str) -> None:
    with pytest.raises(SettingsError, match="parameters"):
        open_pipeline()(ScanRequest(config="radial_fbp", header_xml=b"", parameters=text))
