import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from sinotherm.core.scan import EncodingSpace, FrameImage, ScanHeader
from sinotherm.core.settings import StageSettings, setting
from sinotherm.errors import SettingsError
from sinotherm.pipelines import compose as module
from sinotherm.pipelines.compose import compose, fire_parameters, load_pipeline, merged, parse_assignments
from sinotherm.pipelines.registry import STAGES

SPACE = EncodingSpace(matrix=(8, 8, 1), fov_m=(0.1, 0.1, 0.01))
SCAN = ScanHeader(encoded=SPACE, recon=SPACE, trajectory="radial")


@pytest.fixture
def stages(monkeypatch):
    """Stand-ins that append their name (and setting) to texts: composition is tested, not reconstruction."""

    class Settings(StageSettings):
        mark: int = setting(0, "A mark.", ge=0)
        by: str = setting("auto", "What ends a frame.")
        spokes: int = setting(0, "Spokes.", ge=0)
        window: int = setting(0, "Spokes of a window.", ge=0)

    def stand_in(name):
        def stage(items, scan, settings):
            for item in items:
                yield f"{item} {name}{settings.mark or ''}" if isinstance(item, str) else item

        return SimpleNamespace(Settings=Settings, stage=stage)

    known = {name: stand_in(name) for name in STAGES}
    monkeypatch.setattr(module, "stage_module", lambda name: known[name])


@pytest.mark.usefixtures("stages")
class TestChains:
    def test_stages_follow_each_other(self):
        chain = compose("radial_thermometry", {"frames": {"mark": "3"}})
        assert list(chain(SCAN, iter(["x"]))) == [
            "x whitening spokes compression delay frames3 fbp thermometry publish images"
        ]

    def test_the_method_fills_its_slot(self):
        values = {"reconstruction": {"method": "gridding"}, "gridding": {"mark": "2"}, "fbp": {"mark": "9"}}
        assert "frames gridding2 publish" in next(compose("reconstruct", values)(SCAN, iter(["x"])))

    def test_images_say_which_stages_and_settings_made_them(self):
        image = FrameImage(data=np.zeros((1, 1, 8, 8), np.complex64), number=0, meta={"filter": "hann"})
        chain = compose("thermometry", {"thermometry": {"mark": "1"}})
        (made,) = chain(SCAN, iter([image]))
        assert made.meta == {
            "filter": "hann",
            "pipeline": "complex_images > thermometry > publish > images",
            "setting thermometry.mark": "1",
        }

    @pytest.mark.parametrize(
        ("target", "values", "words"),
        [
            ("nothing", {}, "known targets: reconstruct"),
            ("nothing", {"fbp": {}}, "known targets: reconstruct"),
            ("reconstruct", {"reconstruction": {"method": "magic"}}, "reconstruction.method.*magic"),
            ("reconstruct", {"reconstruction": {"way": "fbp"}}, "known settings .*reconstruction.method"),
            ("reconstruct", {"thermometry": {"mark": "1"}}, "'thermometry' is not part of the target reconstruct"),
            ("reconstruct", {"os": {"mark": "1"}}, "'os' is unknown in the target reconstruct; its stages: whitening"),
            ("thermometry", {"reconstruction": {"method": "fbp"}}, "reconstruction"),
            ("reconstruct", {"frames": {"mrk": "1"}}, "unknown setting frames.mrk; known .*frames.mark"),
            ("reconstruct", {"frames": {"mark": "-1"}}, "frames.mark = '-1'.*greater than or equal to 0"),
            ("reconstruct", {"frames": {"mark": "x"}}, "frames.mark = 'x'"),
            ("reconstruct", {"cg_sense": {"mrk": "1"}}, "unknown setting cg_sense.mrk; known .*cg_sense.mark"),
            ("reconstruct", {"cg_sense": {"mark": "-1"}}, "cg_sense.mark = '-1'.*greater than or equal to 0"),
            ("thermometry", {"cg_sense": {"mark": "-1"}}, "cg_sense.mark = '-1'.*greater than or equal to 0"),
        ],
    )
    def test_what_is_wrong_is_named(self, target, values, words):
        with pytest.raises(SettingsError, match=words):
            compose(target, values)

    @pytest.mark.parametrize(
        ("target", "why"),
        [("reconstruct", "reconstruction.method is fbp"), ("thermometry", "thermometry has no reconstruction")],
    )
    def test_settings_of_another_method_are_logged(self, caplog, target, why):
        with caplog.at_level(logging.INFO):
            compose(target, {"pdunet": {"mark": "1"}})
        assert f"settings of pdunet are not used: {why}" in caplog.text

    def test_who_asks_for_settings_of_another_method_is_warned(self, caplog):
        compose("reconstruct", {"fbp": {"mark": "1"}, "pdunet": {"mark": "1"}, "gridding": {}}, asked=("fbp", "pdunet"))
        assert [(record.levelname, record.message) for record in caplog.records if record.levelno > logging.INFO] == [
            ("WARNING", "settings of pdunet are not used: reconstruction.method is fbp")
        ]


class TestShippedPipelines:
    def test_they_load_by_name(self):
        assert [chain.target for chain in load_pipeline("radial_fbp").chains] == ["reconstruct"]
        assert load_pipeline("radial_gridding").chains[0].stages[5][0] == "gridding"
        assert load_pipeline("radial_thermometry").chains[0].target == "radial_thermometry"
        assert load_pipeline("thermometry").chains[0].target == "thermometry"

    def test_another_method_over_the_file(self):
        pipeline = load_pipeline("radial_fbp").with_values({"reconstruction": {"method": "cg_sense"}})
        assert pipeline.chains[0].stages[5][0] == "cg_sense"


class TestFirstFrame:
    def spokes(self, **values):
        chain = compose("reconstruct", values)
        return tuple(settings.spokes for name, _, settings in chain.stages if name in ("compression", "delay"))

    @pytest.mark.parametrize(
        ("frames", "n"),
        [
            ({}, 0),
            ({"spokes": "40"}, 40),
            ({"by": "count", "spokes": "40", "window": "34"}, 40),
            ({"by": "index", "spokes": "40"}, 40),
            ({"window": "34", "stride": "17"}, 34),
            ({"by": "window", "spokes": "40", "window": "34"}, 34),
            ({"by": "flags", "spokes": "40"}, 0),
            ({"spokes": "5"}, 5),
        ],
    )
    def test_what_waits_for_it_knows_the_frame_that_is_asked_for(self, frames, n):
        assert self.spokes(frames=frames) == (n, n)

    def test_what_is_set_stays(self):
        frames = {"spokes": "40"}
        assert self.spokes(frames=frames, delay={"spokes": "30"}, compression={"spokes": "0"}) == (40, 30)


class TestNetworkWithThermometry:
    def settings(self, target="radial_thermometry", **values):
        chain = compose(target, {"reconstruction": {"method": "pdunet"}} | values)
        return next(settings for name, _, settings in chain.stages if name == "pdunet")

    def test_it_is_the_guided_one_and_its_reference_is_the_baseline(self):
        found = self.settings(thermometry={"baseline_frames": "12", "baseline_skip": "2"})
        assert (found.network, found.reference_frames, found.reference_skip) == ("pdunet-thermo", 12, 2)
        assert self.settings().reference_frames == 5
        assert self.settings("reconstruct").network == "pdunet-radial"

    @pytest.mark.parametrize(("asked", "followed"), [("-1", 1), ("0", 1), ("2", 2)])
    def test_its_reference_follows_the_drift_that_the_maps_take_out(self, asked, followed):
        assert self.settings(thermometry={"drift_order": asked}).drift_order == followed
        assert self.settings(thermometry={"drift_order": asked}, pdunet={"drift_order": "0"}).drift_order == 0

    def test_what_is_set_stays(self):
        found = self.settings(pdunet={"network": "pdunet-radial", "reference_frames": "3"})
        assert (found.network, found.reference_frames) == ("pdunet-radial", 3)

    def test_gridding_always_goes_beside_its_maps(self):
        with pytest.raises(SettingsError, match="never go without gridding's"):
            self.settings(pdunet={"beside": "false"})
        assert not self.settings("reconstruct", pdunet={"beside": "false"}).beside

    def test_the_shipped_pipeline_takes_it(self):
        pipeline = load_pipeline("radial_thermometry").with_values({"reconstruction": {"method": "pdunet"}})
        assert [name for name, _, _ in pipeline.chains[0].stages][5:7] == ["pdunet", "thermometry"]


@pytest.mark.usefixtures("stages")
class TestPipelines:
    def test_several_nodes_run_in_sequence(self, caplog):
        node = '<external><execute name="sinotherm.nodes" target="{}" type="python"/><configuration/></external>'
        text = (
            f"\ufeff<configuration><version>2</version><stream>{node.format('reconstruct')}"
            f"{node.format('thermometry')}</stream></configuration>\0"
        )
        pipeline = load_pipeline(text).with_values(parse_assignments(["images.mark=4", "fbp.mark=1"]))
        with caplog.at_level(logging.INFO):
            (out,) = pipeline.run(SCAN, iter(["x"]))
        assert out == (
            "x whitening spokes compression delay frames fbp1 publish images4"
            " complex_images thermometry publish images4"
        )
        assert "settings: images.mark=4, fbp.mark=1" in caplog.text

    def test_a_stage_that_no_step_has_is_named(self):
        with pytest.raises(SettingsError, match="'fbp' is not part of the pipeline thermometry"):
            load_pipeline("thermometry").with_values({"fbp": {"mark": "1"}})

    def test_a_path_is_for_the_local_user_only(self, tmp_path):
        file = tmp_path / "mine.xml"
        file.write_bytes(load_pipeline_bytes("thermometry"))
        assert load_pipeline(str(file), local=True).name == "mine"
        with pytest.raises(SettingsError, match="bare name"):
            load_pipeline(str(file))
        with pytest.raises(SettingsError, match="bare name"):
            load_pipeline(str(tmp_path / "none.xml"), local=True)


def load_pipeline_bytes(name):
    from sinotherm.pipelines.registry import find_pipeline

    return find_pipeline(name).read_bytes()


def test_later_values_win():
    assert merged({"a": {"x": "1", "y": "1"}}, {"b": {"z": "2"}, "a": {"x": "2"}}) == {
        "a": {"x": "2", "y": "1"},
        "b": {"z": "2"},
    }
    assert parse_assignments(["frames.by=count", "frames.by= index "]) == {"frames": {"by": "index"}}
    with pytest.raises(SettingsError, match=r"stage\.setting=value"):
        parse_assignments(["frames.by"])


def test_fire_json(caplog):
    text = '{"version":"1.0","parameters":{"config":"radial_fbp","frames.spokes":34,"a.b":true,"l.t":[1,2],"x":"1"}}\0'
    with caplog.at_level(logging.INFO):
        name, values = fire_parameters(text)
    assert name == "radial_fbp"
    assert values == {"frames": {"spokes": "34"}, "a": {"b": "True"}, "l": {"t": "1,2"}}
    assert "console parameter x = 1 is" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        fire_parameters(json.dumps({"parameters": {"a\nb": "c\n\x1b" + "d" * 9000}}))
    (said,) = caplog.messages
    assert said.startswith(r"console parameter a\nb = c\n\x1bddd")
    assert said.isprintable()
    assert len(said) < 700
    assert fire_parameters('{"parameters": {"config": ""}}') == (None, {})
    assert fire_parameters("{}") == (None, {})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"parameters": 3}'])
def test_what_is_not_fire_json(text):
    with pytest.raises(SettingsError, match="parameters"):
        fire_parameters(text)


@pytest.mark.parametrize(
    ("stage", "general", "asked", "left"),
    [
        ("thermometry", {"baseline_rule": "stored", "baseline_file": "b.h5"}, {"baseline_rule": "after_frames"}, None),
        ("thermometry", {"baseline_rule": "stored", "baseline_file": "b.h5"}, {"baseline_rule": "stored"}, "b.h5"),
        ("thermometry", {"baseline_rule": "stored", "baseline_file": "b.h5"}, {"phase_sign": "1"}, "b.h5"),
        ("delay", {"mode": "given", "given": "0.5"}, {"mode": "off"}, None),
        ("frames", {"window": "64", "stride": "16"}, {"window": "0"}, None),
        ("frames", {"window": "64", "stride": "16"}, {"window": "032"}, "16"),
    ],
)
def test_a_console_turns_off_what_belongs_to_a_setting_too(stage, general, asked, left):
    """A server that goes on with a stored baseline could not be told to take a new one."""
    dependent = {"thermometry": "baseline_file", "delay": "given", "frames": "stride"}[stage]
    assert merged({stage: general}, {stage: asked})[stage].get(dependent) == left


def test_console_settings_outside_of_their_object_are_refused():
    with pytest.raises(SettingsError, match="must look like"):
        fire_parameters('{"version": "1.0", "frames.spokes": "16"}')
    assert fire_parameters("{}") == (None, {})
