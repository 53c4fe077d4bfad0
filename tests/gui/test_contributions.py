"""What the manifest promises, in a napari that runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import napari_s2dc
from napari_s2dc.widgets.preferences import PLUGIN, Preferences
from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_phantom

MANIFEST = yaml.safe_load((Path(napari_s2dc.__file__).parent / "napari.yaml").read_text())


def test_every_menu_is_one_that_plugins_may_fill() -> None:
    from napari._app_model.constants import MenuId

    menus = set(MANIFEST["contributions"]["menus"])
    assert menus == {
        "napari/layers/visualize",
        "napari/layers/measure",
        "napari/layers/register",
        "napari/layers/segment",
    }
    assert menus <= {str(menu.value) for menu in MenuId.contributables()}


def test_menu_commands_open_the_workbench_once_and_on_their_tab(plugin: Any, qtbot: Any) -> None:
    from napari_s2dc.widgets.commands import (
        open_consistency,
        open_embed,
        open_match,
        open_segment,
    )

    layer = add_phantom(plugin, 1)
    plugin.layers.selection.active = layer
    open_embed()
    docks = dict(plugin.window.dock_widgets)
    (workbench,) = [widget for widget in docks.values() if isinstance(widget, Workbench)]
    assert workbench.tabs.tabText(workbench.tabs.currentIndex()) == "Embed"
    assert workbench.header.volume.layer == layer
    open_consistency()
    assert workbench.tabs.tabText(workbench.tabs.currentIndex()) == "Consistency"
    open_match()
    assert workbench.tabs.tabText(workbench.tabs.currentIndex()) == "Match"
    assert workbench.match_tab.moving.layer == layer
    open_segment()
    assert workbench.tabs.tabText(workbench.tabs.currentIndex()) == "Segment"
    assert len(plugin.window.dock_widgets) == len(docks)
    workbench.hide()


def test_commands_are_enabled_for_3d_images_only(plugin: Any) -> None:
    from napari._app_model.context import get_context

    texts = {
        command["enablement"]
        for command in MANIFEST["contributions"]["commands"]
        if "enablement" in command
    }
    assert len(texts) == 1
    (text,) = texts
    from app_model.expressions import parse_expression

    def enabled() -> bool:
        return bool(parse_expression(text).eval(get_context(plugin.layers)))

    assert not enabled()
    plugin.add_image(np.zeros((8, 9)))
    assert not enabled()
    plugin.add_image(np.zeros((2, 8, 9, 9)))
    assert not enabled()
    plugin.add_labels(np.zeros((8, 9, 9), np.uint8))
    assert not enabled()
    plugin.add_image(np.zeros((8, 9, 9, 3)), rgb=True)
    assert not enabled()
    plugin.add_image(np.zeros((8, 9, 9)))
    assert enabled()


def test_a_saved_layer_is_read_back_in_its_place(plugin: Any, tmp_path: Path) -> None:
    layer = add_phantom(plugin, 1, scale=(3, 1, 2), translate=(5, -6, 7), metadata={})
    for name in ("scan.nii.gz", "scan.nrrd"):
        (written,) = plugin.layers.save(str(tmp_path / name), plugin=PLUGIN)
        (again,) = plugin.open(written, plugin=PLUGIN)
        np.testing.assert_array_equal(again.data, layer.data)
        np.testing.assert_allclose(again.scale, layer.scale)
        np.testing.assert_allclose(again.translate, layer.translate)
        plugin.layers.remove(again)


def test_samples_open(plugin: Any) -> None:
    pytest.importorskip("nilearn")
    plugin.open_sample(PLUGIN, "mni152")
    (layer,) = plugin.layers
    assert layer.data.ndim == 3
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3


def test_preferences_have_the_defaults_of_the_code(plugin: Any) -> None:
    groups = MANIFEST["contributions"]["configurations"]
    defaults = {
        key: entry["default"]
        for group in groups.values()
        for key, entry in group["properties"].items()
    }
    own = Preferences()
    assert defaults == {
        "device": own.device,
        "window_size": own.window_vox,
        "seed": own.seed,
        "folder": "",
        "limit_gb": own.cache_limit_bytes / 2**30,
    }


def test_preferences_are_read_from_napari(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari import settings

    from napari_s2dc.widgets.preferences import preferences

    known = settings.get_plugin_settings(PLUGIN)
    assert set(type(known.computing).model_fields) >= {"device", "window_size", "seed"}
    assert set(type(known.cache).model_fields) >= {"folder", "limit_gb"}
    chosen = SimpleNamespace(
        computing=SimpleNamespace(device="cpu", window_size=64, seed=3),
        cache=SimpleNamespace(folder="/somewhere", limit_gb=2.0),
    )
    monkeypatch.setattr(settings, "get_plugin_settings", lambda name: chosen)
    assert preferences() == Preferences("cpu", 64, 3, Path("/somewhere"), 2 * 2**30)
