import pytest

from sinotherm.errors import SettingsError
from sinotherm.pipelines.xml import Step, parse_configuration, parse_properties, split_name

EXTERNAL = """<external><execute name="sinotherm.nodes" target="{0}" type="python"/>
<configuration><property name="frames.spokes" value="30"/><!-- no setting -->
<property name="frames.by">count</property></configuration></external>"""


def pipeline(stream, version="<version>2</version>"):
    return f'<?xml version="1.0" encoding="UTF-8"?><configuration>{version}<stream>{stream}</stream></configuration>'


def test_nodes_become_steps_in_sequence():
    steps = parse_configuration(pipeline(EXTERNAL.format("reconstruct") + EXTERNAL.format("thermometry")))
    values = {"frames": {"spokes": "30", "by": "count"}}
    assert steps == (Step(target="reconstruct", values=values), Step(target="thermometry", values=values))


def test_attributes_of_xml_are_no_settings():
    text = pipeline(EXTERNAL.format("reconstruct").replace("<configuration>", '<configuration xml:space="preserve">'))
    assert parse_configuration(text)[0].values["frames"]["by"] == "count"


def test_a_node_as_gadgetron_writes_it():
    node = EXTERNAL.format("reconstruct").replace("<external>", "<external><readers/><writers/>")
    assert parse_configuration(pipeline(node)) == parse_configuration(pipeline(EXTERNAL.format("reconstruct")))


def test_a_node_without_configuration_and_a_nul():
    steps = parse_configuration(
        pipeline('<external><execute name="sinotherm.nodes" target="reconstruct"/></external>').encode() + b"\0"
    )
    assert steps == (Step(target="reconstruct", values={}),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("radial", "not XML"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><configuration>&b;</configuration>", "refused"),
        ("<gadgetronStreamConfiguration/>", "gadgetronStreamConfiguration"),
        (pipeline("", version=""), "version none"),
        (pipeline("", version="<version>1</version>"), "version 1"),
        ("<configuration><version>2</version></configuration>", "no <stream>"),
        (pipeline(""), "empty"),
        (pipeline("<gadget><classname>NoiseAdjustGadget</classname></gadget>"), "NoiseAdjustGadget.*stage whitening"),
        (pipeline("<gadget><classname>MyGadget</classname></gadget>"), "MyGadget.*leave it out"),
        (pipeline("<gadget/>"), "without a <classname>"),
        (
            pipeline('<external><connect address="gpu" port="18000"/></external>'),
            'connect address="gpu" port="18000".*sinotherm.nodes',
        ),
        (pipeline("<external/>"), "connect/"),
        (pipeline('<external><execute name="os" target="system"/></external>'), 'name="os" target="system"'),
        (pipeline('<external><execute name="sinotherm.nodes"/></external>'), "only targets"),
        (
            pipeline("<parallel><stream><gadget><classname>FFTGadget</classname></gadget></stream></parallel>"),
            "<parallel> with FFTGadget",
        ),
        (pipeline("<distributed/>"), "<distributed> runs in Gadgetron only"),
        (pipeline(EXTERNAL.format("thermometry") * 17), "has 17 nodes: the bound is 16"),
        (pipeline(EXTERNAL.format("x").replace("frames.by", "by")), "stage.setting"),
        (pipeline(EXTERNAL.format("x").replace("<!-- no setting -->", "<parameter/>")), "holds <parameter>"),
        (pipeline(EXTERNAL.format("x")).replace("</stream>", "</stream><configuration/>"), "pipeline holds <config"),
        (pipeline(EXTERNAL.format("x").replace("<configuration>", "<configuraton/><configuration>")), "<configuraton>"),
        (pipeline(EXTERNAL.format("x").replace("<configuration>", "<property/><configuration>")), "holds <property>"),
        (
            pipeline(EXTERNAL.format("x").replace("</configuration>", "</configuration><configuration/>")),
            "a second <configuration>.*it takes <execute>, .*<configuration>, each once",
        ),
        (pipeline(EXTERNAL.format("x").replace("<configuration>", '<configuration sign="1">')), "attribute 'sign'"),
        (pipeline(EXTERNAL.format("x").replace("frames.by", "frames.spokes")), "frames.spokes twice"),
        (
            pipeline('<external><execute name="sinotherm.nodes" target="x"><property/></execute></external>'),
            "<execute> holds <property>.*attributes only",
        ),
    ],
)
def test_what_cannot_be_run_is_named(text, words):
    with pytest.raises(SettingsError, match=words):
        parse_configuration(text)


def test_properties_of_a_node_as_gadgetron_sends_them():
    sent = '<?xml version="1.0"?>\n<configuration>\n\t<property name="fbp.filter" value="hann" />\n</configuration>\n'
    assert parse_properties(sent) == {"fbp": {"filter": "hann"}}
    assert parse_properties("<configuration/>") == {}
    with pytest.raises(SettingsError, match="begins with <stream>"):
        parse_properties("<stream/>")


@pytest.mark.parametrize("sent", [pipeline(EXTERNAL.format("thermometry")), "<configuration><a/></configuration>"])
def test_a_node_is_not_given_what_it_would_leave_out(sent):
    """Settings of a whole pipeline, the sign of the phase among them, would be without effect."""
    with pytest.raises(SettingsError, match=r"holds <(version|a)>.*a node takes <property"):
        parse_properties(sent)


@pytest.mark.parametrize("name", ["", "frames", "frames.", ".by", "a.b.c"])
def test_names_are_stage_dot_setting(name):
    with pytest.raises(SettingsError, match=r"stage\.setting"):
        split_name(name)
