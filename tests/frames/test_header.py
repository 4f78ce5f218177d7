import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinotherm.errors import HeaderError
from sinotherm.frames.header import scan_header

SPACE = """<{0}><matrixSize><x>{1}</x><y>{1}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{2}</x><y>{2}</y><z>5</z></fieldOfView_mm></{0}>"""
ENCODING = (
    "<encoding>"
    + SPACE.format("encodedSpace", 32, 480)
    + SPACE.format("reconSpace", 16, 240)
    + "<trajectory>radial</trajectory></encoding>"
)


def document(*parts: str, root: str = "ismrmrdHeader", space: str = ' xmlns="http://www.ismrm.org/ISMRMRD"') -> str:
    return f'<?xml version="1.0"?><{root}{space}>{"".join(parts)}</{root}>'


@pytest.mark.data
def test_a_real_header_becomes_si(shared_data):
    h5py = pytest.importorskip("h5py")
    with h5py.File(shared_data / "wire" / "tiny_radial.h5") as file:
        scan = scan_header(bytes(file["dataset/xml"][0]))
    assert scan.encoded.matrix == (32, 32, 1)
    assert scan.encoded.fov_m == pytest.approx((0.48, 0.48, 0.008))
    assert scan.recon.matrix == (16, 16, 1)
    assert scan.pixel_m == pytest.approx((0.015, 0.015))
    assert scan.echo_times_s == pytest.approx((12.5e-3,))
    assert scan.repetition_time_s == pytest.approx(25e-3)
    assert scan.larmor_hz == 63866215.0
    assert scan.field_strength_t == 1.5
    assert scan.relative_noise_bandwidth == pytest.approx(0.793)
    assert scan.n_coils == 2
    assert scan.trajectory == "radial"
    assert (scan.spokes_per_frame, scan.n_slices, scan.n_partitions) == (8, 1, 1)
    assert scan.waveforms == (0,)
    assert (scan.protocol, scan.measurement_id) == ("tiny_radial", "1_1_1_42")
    assert scan.xml.endswith("</ismrmrdHeader>")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["", "\0", "\n\0", "\0\r\n"])
def test_a_header_may_come_in_any_encoding_and_with_a_nul(encoding, end):
    xml = document(ENCODING).replace('"1.0"', f'"1.0" encoding="{encoding[:6]}"')
    assert scan_header((xml + end).encode(encoding)).encoded.matrix == (32, 32, 1)


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://www.ismrm.org/ISMRMRD"'])
def test_silent_parts_are_none_and_a_nul_is_dropped(namespace):
    xml = document(
        ENCODING,
        "<waveformInformation><waveformName>x</waveformName><waveformType>other</waveformType></waveformInformation>",
        "<waveformInformation><waveformType>respiratory</waveformType></waveformInformation>",
        space=namespace,
    )
    scan = scan_header(xml.encode() + b"\0")
    assert scan.waveforms == (2,)
    assert scan.n_coils is None
    assert scan.larmor_hz is None
    assert scan.field_strength_t is None
    assert scan.repetition_time_s is None
    assert scan.relative_noise_bandwidth is None
    assert scan.echo_times_s == ()
    assert scan.spokes_per_frame is None
    assert scan.user_parameters == {}
    assert scan_header(xml) == scan


def test_without_a_recon_space_the_encoded_one_counts():
    scan = scan_header(document("<encoding>" + SPACE.format("encodedSpace", 64, 300) + "</encoding>"))
    assert scan.recon == scan.encoded
    assert scan.trajectory == ""


def test_z_may_be_missing():
    space = "<{0}><matrixSize><x>8</x><y>8</y></matrixSize><fieldOfView_mm><x>9</x><y>9</y></fieldOfView_mm></{0}>"
    scan = scan_header(document("<encoding>" + space.format("encodedSpace") + "</encoding>"))
    assert scan.encoded.matrix == (8, 8, 1)
    assert scan.encoded.fov_m[2] == pytest.approx(1e-3)


def test_the_first_radial_encoding_counts():
    other = ENCODING.replace("radial", "cartesian").replace("<x>16</x>", "<x>20</x>")
    assert scan_header(document(other, ENCODING)).encoding_space == 1
    assert scan_header(document(other, ENCODING)).recon.matrix[0] == 16
    assert scan_header(document(other, other)).encoding_space == 0


def test_zero_means_not_stated():
    scan = scan_header(
        document(
            "<experimentalConditions><H1resonanceFrequency_Hz>0</H1resonanceFrequency_Hz></experimentalConditions>",
            ENCODING,
            "<sequenceParameters><TR>0</TR><TE>0</TE><TE>4.76</TE><TE></TE></sequenceParameters>",
        )
    )
    assert scan.larmor_hz is None
    assert scan.repetition_time_s is None
    # An echo keeps its place.
    assert scan.echo_times_s == pytest.approx((0.0, 4.76e-3))


def test_limits_and_user_parameters():
    limits = """<encodingLimits>
    <kspace_encoding_step_1><minimum>0</minimum><maximum>0</maximum><center>0</center></kspace_encoding_step_1>
    <kspace_encoding_step_2><maximum>11</maximum></kspace_encoding_step_2>
    <slice><minimum>1</minimum><maximum>3</maximum></slice></encodingLimits>"""
    scan = scan_header(
        document(
            ENCODING.replace("<trajectory>", limits + "<trajectory>"),
            "<userParameters><userParameterLong><name>n</name><value>3</value></userParameterLong>"
            "<userParameterDouble><name>d</name><value>0.5</value></userParameterDouble>"
            "<userParameterString><name>s</name><value>x</value></userParameterString>"
            "<userParameterString><value>nameless</value></userParameterString>"
            # Of no concern to anybody: no reason to refuse a scan.
            "<userParameterLong><name>empty</name><value></value></userParameterLong>"
            "<userParameterDouble><name>none</name><value>NaN</value></userParameterDouble>"
            "<userParameterDouble><name>all</name><value>INF</value></userParameterDouble></userParameters>",
        )
    )
    assert scan.n_partitions == 12
    assert scan.n_slices == 3
    assert scan.spokes_per_frame is None
    assert scan.user_parameters == {"n": 3.0, "d": 0.5, "s": "x", "empty": "", "none": "NaN", "all": "INF"}


@pytest.mark.parametrize(
    ("encoded", "limits", "found"),
    [
        (8, (0, 7, 4), (8, 8, 0)),
        # A full slab fits in one way only: a centre that nobody filled in does no harm.
        (8, (0, 7, 0), (8, 8, 0)),
        (8, (2, 7, 4), (8, 6, 0)),
        (8, (0, 5, 2), (8, 6, 2)),
        (9, (0, 6, 2), (9, 7, 2)),
        (8, (0, 5, None), (8, 6, 0)),
        (8, (0, 0, 0), (1, 1, 0)),
        (8, (3, 3, 3), (1, 1, -3)),
        (1, (1, 6, 3), (6, 6, -1)),
        (8, None, (1, 1, 0)),
    ],
)
def test_partitions_go_by_the_encoded_matrix_and_the_centre(encoded, limits, found):
    xml = ENCODING.replace("<z>1</z>", f"<z>{encoded}</z>", 1)
    if limits is not None:
        names = [(name, value) for name, value in zip(("minimum", "maximum", "center"), limits, strict=True)]
        values = "".join(f"<{name}>{value}</{name}>" for name, value in names if value is not None)
        step = f"<kspace_encoding_step_2>{values}</kspace_encoding_step_2>"
        xml = xml.replace("<trajectory>", f"<encodingLimits>{step}</encodingLimits><trajectory>")
    scan = scan_header(document(xml))
    assert (scan.n_partitions, scan.acquired_partitions, scan.partition_offset) == found


BILLION = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ismrmrdHeader>&b;</ismrmrdHeader>'


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("", "empty"),
        (" \n\0", "empty"),
        ("not xml", "not XML"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "not XML"),
        (BILLION, "refused"),
        (document(root="configuration"), "<configuration>"),
        (document(), "no <encoding>"),
        (document("<encoding><trajectory>radial</trajectory></encoding>"), "no <encodedSpace>"),
        (document(ENCODING.replace("<x>32</x>", "<x>0</x>")), "matrix x .* is 0"),
        (document(ENCODING.replace("<x>32</x>", "<x>3.5</x>")), "is 3.5"),
        (document(ENCODING.replace("<x>32</x>", "<x>100000</x>")), "1 to 4096"),
        (document(ENCODING.replace("<x>32</x>", "")), "''"),
        (document(ENCODING.replace("<x>480</x>", "<x>-1</x>")), "-1 mm"),
        (document(ENCODING.replace("<x>240</x>", "<x>1e-300</x>")), r"reconSpace .* x .* is 1e-300 mm: .* 0\.1 to"),
        (document(ENCODING.replace("<x>480</x>", "<x>nan</x>")), "'nan'"),
        (document(ENCODING, "<sequenceParameters><TE>soon</TE></sequenceParameters>"), "'soon'"),
        (
            document(
                ENCODING,
                "<acquisitionSystemInformation><receiverChannels>1e9</receiverChannels></acquisitionSystemInformation>",
            ),
            "receiverChannels .* 1e\\+09",
        ),
        (
            document(
                ENCODING.replace(
                    "<trajectory>",
                    "<encodingLimits><slice><minimum>3</minimum><maximum>1</maximum></slice></encodingLimits><trajectory>",
                )
            ),
            "3 to 1",
        ),
    ],
)
def test_a_bad_header_is_named(xml, words):
    with pytest.raises(HeaderError, match=re.compile(words, re.DOTALL)):
        scan_header(xml)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_header_or_our_error(raw):
    with pytest.raises(HeaderError):
        scan_header(raw)
