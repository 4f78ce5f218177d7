import pytest

from sinotherm.errors import SettingsError
from sinotherm.pipelines import registry


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.xml").write_text("<configuration/>")
    return tmp_path


def test_own_folder_comes_first_then_the_installed_then_the_checkout(folder, monkeypatch, tmp_path):
    assert registry.find_pipeline("mine", [folder]) == folder / "mine.xml"
    assert registry.find_pipeline("mine.xml", [folder]) == folder / "mine.xml"
    installed = tmp_path / "share" / "gadgetron" / "config"
    installed.mkdir(parents=True)
    (installed / "radial_fbp.xml").write_text("<configuration/>")
    monkeypatch.setattr(registry.sysconfig, "get_path", lambda name: str(tmp_path))
    assert registry.find_pipeline("radial_fbp") == installed / "radial_fbp.xml"
    assert registry.find_pipeline("radial_gridding").parent.name == "pipeline_xml"
    assert set(registry.pipeline_names([folder])) >= {
        "mine",
        "radial_fbp",
        "radial_gridding",
        "radial_thermometry",
        "thermometry",
    }


def test_an_installed_package_has_no_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "a" / "b" / "c" / "registry.py"))
    monkeypatch.setattr(registry.sysconfig, "get_path", lambda name: str(tmp_path))
    assert registry.pipeline_names() == []
    with pytest.raises(SettingsError, match="known pipelines: none"):
        registry.find_pipeline("radial_fbp")


@pytest.mark.parametrize("name", ["../mine", "/etc/passwd", "a/b", "", "..", "mine.xml.xml", "a" * 200, "mine\0"])
def test_a_path_is_no_name(folder, name):
    with pytest.raises(SettingsError, match="bare name"):
        registry.find_pipeline(name, [folder])


def test_an_unknown_name_lists_the_known_ones(folder):
    with pytest.raises(SettingsError, match=r"unknown pipeline 'nobody'; known pipelines: .*mine.*--pipelines"):
        registry.find_pipeline("nobody", [folder])


def test_targets_with_their_method():
    assert registry.target_stages("reconstruct", "gridding") == (
        *("whitening", "spokes", "compression", "delay", "frames", "gridding", "publish", "images"),
    )
    assert "thermometry" in registry.target_stages("radial_thermometry", "fbp")
    with pytest.raises(SettingsError, match=r"unknown target 'x'; known targets: reconstruct, thermometry"):
        registry.target_stages("x", "fbp")


def test_every_stage_of_a_target_is_registered():
    for target in registry.TARGETS:
        for method in registry.METHODS:
            assert set(registry.target_stages(target, method)) <= set(registry.STAGES)


def test_a_stage_is_imported_only_by_the_table(monkeypatch):
    assert registry.stage_module("delay").__name__ == "sinotherm.stages.delay"
    with pytest.raises(SettingsError, match="unknown stage 'os'; known stages: whitening"):
        registry.stage_module("os")
    monkeypatch.setitem(registry.STAGES, "fbp", "sinotherm.stages.not_installed")
    with pytest.raises(SettingsError, match=r"stage fbp cannot be loaded: No module named.*doctor"):
        registry.stage_module("fbp")
