"""Clicks on a scan: what is alike, its structure and its consistency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wrapt

from napari_s2dc.widgets.probe_mouse import ADD, NOT, REPLACE, ProbePoint
from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_phantom, embed, point, probe_at


def test_a_click_lights_up_its_own_place(embedded: Workbench, scan: Any, qtbot: Any) -> None:
    probe_at(embedded, scan, (20, 20, 28), qtbot)
    heat = embedded.session.overlays.find(scan, "similarity")
    hottest = np.unravel_index(int(heat.data.argmax()), heat.data.shape)
    assert hottest == (2, 2, 3)
    assert heat.data[2, 2, 3] == pytest.approx(1, abs=1e-3)
    offset = np.abs(heat.data_to_world(hottest) - np.asarray(scan.data_to_world((20, 20, 28))))
    assert (offset <= 4 * np.asarray(scan.scale)).all()
    tab = embedded.probe_tab
    assert float(tab.sharpe.text().split(",")[0]) > 0
    assert tab.nearest.count() == 8
    assert "mm" in tab.place.text()


def test_the_heat_follows_a_drag_in_the_same_layer(
    embedded: Workbench, scan: Any, qtbot: Any
) -> None:
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    heat = embedded.session.overlays.find(scan, "similarity")
    for x in range(20, 44, 4):
        embedded.probing.probe(point(scan, (20, 20, x), dragged=True))
        assert heat.data[2, 2, x // 8] == pytest.approx(1, abs=1e-3)
    assert embedded.session.overlays.find(scan, "similarity") is heat


def test_a_click_outside_changes_nothing(embedded: Workbench, scan: Any, qtbot: Any) -> None:
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    before = embedded.session.overlays.find(scan, "similarity").data.copy()
    for voxel in [(-3, 20, 20), (20, 48.6, 20), (500, 500, 500)]:
        probe_at(embedded, scan, voxel, qtbot)
        assert "outside" in embedded.message.text()
    np.testing.assert_array_equal(embedded.session.overlays.find(scan, "similarity").data, before)


def test_more_places_and_places_that_do_not_belong(
    embedded: Workbench, scan: Any, qtbot: Any
) -> None:
    from napari_s2dc.engine.probe import similarity_map

    probe_at(embedded, scan, (20, 20, 20), qtbot)
    probe_at(embedded, scan, (12, 28, 28), qtbot, kind=ADD)
    probe_at(embedded, scan, (20, 36, 20), qtbot, kind=NOT)
    embedding = embedded.session.embedded(scan).embedding
    wanted = similarity_map(embedding, [(2, 2, 2), (1, 3, 3)], [(2, 4, 2)]).numpy()
    heat = embedded.session.overlays.find(scan, "similarity")
    assert heat.contrast_limits[0] >= 0  # or air, which is 0, would have a colour
    shown = heat.data
    tissue = embedding.foreground.numpy()
    np.testing.assert_allclose(shown[tissue], wanted[tissue], atol=1e-5)


def test_the_list_jumps(embedded: Workbench, scan: Any, viewer: Any, qtbot: Any) -> None:
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    tab = embedded.probe_tab
    tab.nearest.itemClicked.emit(tab.nearest.item(2))
    token = embedded.probing._nearest[2]
    data = embedded.session.embedded(scan).data_of_token(token)
    place = scan.data_to_world(data)
    assert viewer.dims.point[0] == pytest.approx(place[0], abs=scan.scale[0])
    points = embedded.session.overlays.find(scan, "nearest")
    np.testing.assert_allclose(points.data_to_world(points.data[2]), place)


def test_probing_across_two_volumes(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    second = add_phantom(viewer, 2, translate=(0, 0, 400))
    embed(embedded, second, qtbot)
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    other = embedded.session.overlays.find(second, "similarity")
    from napari_s2dc.engine.probe import query_of, similarity_to

    query = query_of(embedded.session.embedded(scan).embedding, [(2, 2, 2)])
    embedding = embedded.session.embedded(second).embedding
    tissue = embedding.foreground.numpy()
    np.testing.assert_allclose(
        other.data[tissue], similarity_to(embedding, query).numpy()[tissue], atol=1e-5
    )
    embedded.probe_tab.others.setChecked(False)
    assert embedded.session.overlays.find(second, "similarity") is None
    # a click in the other volume makes that one the home
    probe_at(embedded, second, (20, 20, 20), qtbot)
    assert embedded.probing.home is second


def test_the_structure_is_previewed_and_written_undoably(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    tab = embedded.probe_tab
    assert not tab.add_button.isEnabled()
    assert "Probe a patch first" in tab.add_button.toolTip()
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    tab.preview.setChecked(True)
    qtbot.waitUntil(
        lambda: embedded.session.overlays.find(scan, "structure") is not None, timeout=20_000
    )
    preview = embedded.session.overlays.find(scan, "structure")
    assert preview.data.shape == scan.data.shape
    assert preview.data[20, 20, 20] == 1
    otsu = tab.threshold.value()
    before = int(preview.data.sum())
    tab.threshold.setValue((1 + otsu) / 2)
    qtbot.waitUntil(lambda: 0 < int(preview.data.sum()) < before, timeout=20_000)
    tab.label.setValue(4)
    tab.add_button.click()
    labels = tab.target.layer
    assert labels is not None
    np.testing.assert_array_equal(labels.data == 4, preview.data == 1)
    assert "Ctrl+Z takes it back." in embedded.message.text()
    labels.undo()
    assert not labels.data.any()
    tab.otsu.click()
    qtbot.waitUntil(lambda: tab.threshold.value() == pytest.approx(otsu, abs=0.01), timeout=20_000)
    frozen = np.zeros(scan.data.shape, np.uint8)
    frozen.flags.writeable = False  # such as those of a file that was mapped into memory
    tab.target.choose(viewer.add_labels(frozen, name="frozen"))
    tab.add_button.click()
    assert "frozen cannot be changed" in embedded.message.text()
    tab.preview.setChecked(False)
    assert embedded.session.overlays.find(scan, "structure") is None


def test_the_consistency_map_is_shown_and_read(embedded: Workbench, scan: Any, qtbot: Any) -> None:
    tab = embedded.probe_tab
    tab.views.setValue(2)
    tab.map_button.click()
    qtbot.waitUntil(
        lambda: embedded.session.overlays.find(scan, "consistency") is not None, timeout=60_000
    )
    values = embedded.session.overlays.find(scan, "consistency").data
    assert np.nanmin(values) >= -1
    assert np.nanmax(values) <= 1
    token = tuple(int(part) for part in np.argwhere(np.isfinite(values))[0])
    data = embedded.session.embedded(scan).data_of_token(token)
    probe_at(embedded, scan, tuple(data), qtbot)
    mean, rest = tab.consistency.text().split(" ± ")
    assert float(mean) == pytest.approx(float(values[token]), abs=0.006)
    assert "of the map" in rest
    assert embedded.session.overlays.find(scan, "consistency").colorbar.visible


def test_the_consistency_of_a_patch_needs_no_map(
    embedded: Workbench, scan: Any, qtbot: Any
) -> None:
    tab = embedded.probe_tab
    foreground = embedded.session.embedded(scan).embedding.foreground.numpy()
    token = tuple(int(part) for part in np.argwhere(foreground)[len(np.argwhere(foreground)) // 2])
    data = embedded.session.embedded(scan).data_of_token(token)
    probe_at(embedded, scan, tuple(data), qtbot)
    qtbot.waitUntil(lambda: "views nearby" in tab.consistency.text(), timeout=30_000)
    assert -1 <= float(tab.consistency.text().split()[0]) <= 1
    # a drag does not compute, and clearing stops what runs
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    tab.clear_button.click()
    assert tab.consistency.text() == "–"
    qtbot.wait(600)
    assert not embedded.jobs.is_running("near")
    assert tab.consistency.text() == "–"


def test_clicked_places_are_marked(embedded: Workbench, scan: Any, viewer: Any, qtbot: Any) -> None:
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    probe_at(embedded, scan, (12, 28, 28), qtbot, kind=ADD)
    probe_at(embedded, scan, (20, 36, 20), qtbot, kind=NOT)
    marks = embedded.session.overlays.find(scan, "clicked")
    np.testing.assert_allclose(marks.data, [[20, 20, 20], [12, 28, 28], [20, 36, 20]])
    assert [str(symbol) for symbol in marks.symbol] == ["cross", "cross", "x"]
    probe_at(embedded, scan, (20, 20, 24), qtbot)
    marks = embedded.session.overlays.find(scan, "clicked")
    np.testing.assert_allclose(marks.data, [[20, 20, 24]])
    embedded.probe_tab.clear_button.click()
    assert embedded.session.overlays.find(scan, "clicked") is None


def test_places_of_foreign_layers_have_names_of_axes(
    workbench: Workbench, viewer: Any, scan: Any, qtbot: Any
) -> None:
    foreign = viewer.add_image(np.asarray(scan.data), name="foreign", scale=scan.scale)
    embed(workbench, foreign, qtbot)
    probe_at(workbench, foreign, (20, 20, 20), qtbot)
    assert workbench.probe_tab.place.text().startswith("z ")


def test_mouse_events_of_the_viewer_probe(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    from napari.utils.interactions import (
        mouse_move_callbacks,
        mouse_press_callbacks,
        mouse_release_callbacks,
    )

    class Event:
        button = 1
        modifiers: tuple[str, ...] = ()
        view_direction = None
        dims_displayed = (1, 2)

        def __init__(self, kind: str, voxel: tuple[float, ...]) -> None:
            self.type, self.position = kind, tuple(scan.data_to_world(voxel))
            self.is_dragging = kind == "mouse_move"

    embedded.probe_tab.probe_button.setChecked(True)
    assert not viewer.scene.camera.mouse_pan
    assert viewer.cursor.style == "cross"
    # napari hands out a wrapper and changes what is in it while the mouse moves
    mouse_press_callbacks(viewer, wrapt.ObjectProxy(Event("mouse_press", (20, 20, 20))))
    heat = embedded.session.overlays.find(scan, "similarity")
    assert heat.data[2, 2, 2] == pytest.approx(1, abs=1e-3)
    mouse_move_callbacks(viewer, Event("mouse_move", (20, 20, 36)))
    assert heat.data[2, 2, 4] == pytest.approx(1, abs=1e-3)
    mouse_release_callbacks(viewer, Event("mouse_release", (20, 20, 36)))
    count = len(viewer.mouse_drag_callbacks)
    embedded.probing._mouse.left.emit()  # Esc
    assert not embedded.probe_tab.probe_button.isChecked()
    assert len(viewer.mouse_drag_callbacks) == count - 1
    assert viewer.scene.camera.mouse_pan


def test_a_click_in_3d_means_the_brightest_voxel_on_the_ray(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    viewer.dims.ndisplay = 3
    z, y, x = 12, 24, 24
    data = scan.data
    depth = int(np.argmax(data[:, y, x]))
    position = scan.data_to_world((z, y, x))
    embedded.probing.probe(
        ProbePoint(tuple(position), REPLACE, np.array([1.0, 0, 0]), [0, 1, 2], True, False)
    )
    assert embedded.probing.voxel == (depth, y, x)
    embedded.probing.probe(
        ProbePoint((0, -5000, -5000), REPLACE, np.array([1.0, 0, 0]), [0, 1, 2], True, False)
    )
    assert "outside" in embedded.message.text()


def test_a_drag_in_3d_probes_on_tissue_and_turns_the_view_beside_it(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    from napari.utils.interactions import (
        mouse_move_callbacks,
        mouse_press_callbacks,
        mouse_release_callbacks,
    )

    class Event:
        button = 1
        modifiers: tuple[str, ...] = ()
        view_direction = np.array([1.0, 0, 0])
        dims_displayed = (0, 1, 2)

        def __init__(self, kind: str, voxel: tuple[float, ...]) -> None:
            self.type, self.position = kind, tuple(scan.data_to_world(voxel))
            self.is_dragging = kind == "mouse_move"

    viewer.dims.ndisplay = 3
    embedded.probe_tab.probe_button.setChecked(True)
    assert viewer.scene.camera.mouse_pan
    start = Event("mouse_press", (12, 24, 24))
    assert embedded.probing.hits(embedded.probing._mouse._point(start, dragged=False))
    mouse_press_callbacks(viewer, wrapt.ObjectProxy(start))
    assert not viewer.scene.camera.mouse_pan
    first = embedded.probing.voxel
    assert first[1:] == (24, 24)
    mouse_move_callbacks(viewer, Event("mouse_move", (12, 24, 28)))
    assert embedded.probing.voxel[1:] == (24, 28)
    mouse_release_callbacks(viewer, Event("mouse_release", (12, 24, 28)))
    assert viewer.scene.camera.mouse_pan
    before = embedded.probing.voxel
    mouse_press_callbacks(viewer, wrapt.ObjectProxy(Event("mouse_press", (12, 0, 0))))
    assert viewer.scene.camera.mouse_pan
    mouse_move_callbacks(viewer, Event("mouse_move", (12, 24, 24)))
    mouse_release_callbacks(viewer, Event("mouse_release", (12, 24, 24)))
    assert embedded.probing.voxel == before


def test_the_probed_layer_may_be_removed(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    embedded.probe_tab.preview.setChecked(True)
    viewer.layers.remove(scan)
    embedded.probing._update_panel()
    embedded.structures.update()
    qtbot.waitUntil(lambda: not embedded.jobs.is_running("structure"), timeout=20_000)
    assert embedded.probing.home is None
    viewer.layers.clear()


def test_probing_ends_with_the_last_embedded_volume(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    button = embedded.probe_tab.probe_button
    button.click()
    assert not viewer.scene.camera.mouse_pan
    viewer.layers.remove(scan)
    qtbot.waitUntil(lambda: not button.isEnabled())
    assert not button.isChecked()
    assert viewer.scene.camera.mouse_pan


def test_volumes_of_different_encoders_are_not_said_to_compare(
    embedded: Workbench, viewer: Any, tmp_path: Path, qtbot: Any
) -> None:
    import torch

    from napari_s2dc.method.encoder import SwinEncoder

    first = embedded.header.chosen_path
    torch.manual_seed(1)
    SwinEncoder.from_size("tiny", window_size=4).save(tmp_path / "second.safetensors", {})
    others, other = embedded.probe_tab.others, add_phantom(viewer, 2)
    for path, alike in ((str(tmp_path / "second.safetensors"), False), (first, True)):
        embedded.encoders.load_encoder("encoder", path)
        qtbot.waitUntil(lambda wanted=path: str(embedded.session.encoder.path) == wanted)
        embed(embedded, other, qtbot)
        qtbot.waitUntil(lambda: not embedded.jobs.is_running("embed"))
        assert others.isEnabled() == alike
        assert ("different encoders" in others.toolTip()) != alike


def test_what_else_esc_does_is_given_back(embedded: Workbench, viewer: Any) -> None:
    def own(_: Any) -> None:
        pass

    viewer.bind_key("Escape", own)
    button = embedded.probe_tab.probe_button
    try:
        for _ in range(2):
            button.click()
            assert own not in viewer.keymap.values()
            button.click()
            assert own in viewer.keymap.values()
    finally:
        viewer.bind_key("Escape", None)


def test_a_drawing_tool_that_is_put_away_leaves_the_mouse_to_probing(
    embedded: Workbench, scan: Any, viewer: Any
) -> None:
    camera, button = viewer.scene.camera, embedded.probe_tab.probe_button
    labels = viewer.add_labels(np.zeros(scan.data.shape, np.uint8))
    button.click()
    labels.mode = "paint"
    assert viewer.cursor.style != "cross"
    labels.mode = "pan_zoom"
    assert (viewer.cursor.style, camera.mouse_pan) == ("cross", False)
    button.click()
    labels.mode = "paint"
    labels.mode = "pan_zoom"
    assert (viewer.cursor.style, camera.mouse_pan) == ("standard", True)
