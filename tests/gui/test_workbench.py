"""The whole way: open, embed, colours, clusters, probe, structure, labels; and rough treatment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wrapt

from napari_s2dc.widgets.probe_mouse import ADD, NOT, REPLACE, ProbePoint
from napari_s2dc.widgets.session import session_of
from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_phantom, embed, open_workbench, point, probe_at, threads_at_rest


# ------------------------------------------------------------------------------- opening
def test_opening_imports_no_torch_and_paints_first() -> None:
    code = """
import sys
import napari
viewer = napari.Viewer(show=True)
heavy = {"torch", "monai", "ot", "sklearn"}
assert not heavy & set(sys.modules), "before"
from qtpy.QtWidgets import QApplication
from napari_s2dc.widgets.workbench import Workbench
workbench = Workbench(viewer)
viewer.window.add_dock_widget(workbench)
while not workbench._painted:
    QApplication.processEvents()
print(*heavy & set(sys.modules))
workbench._shown = False
viewer.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_header_knows_volume_and_encoder(workbench: Workbench, scan: Any) -> None:
    assert workbench.header.volume.layer is scan
    assert workbench.header.encoder.currentText() == "untrained"
    assert workbench.embed_tab.embed_button.text() == "Embed torso 1"
    assert workbench.embed_tab.plan.text() == "Takes at most 4 windows, less than 0.1 GB."
    assert not workbench.embed_tab.save_button.isEnabled()
    assert "Embed a volume first" in workbench.probe_tab.probe_button.toolTip()


def test_layers_that_are_no_scan_are_not_offered(workbench: Workbench, viewer: Any) -> None:
    viewer.add_image(np.zeros((8, 9)), name="slice")
    viewer.add_image(np.zeros((2, 8, 9, 9)), name="series")
    viewer.add_labels(np.zeros((8, 9, 9), np.uint8), name="labels")
    assert workbench.header.volume.count() == 1


def test_names_and_removals_are_followed(
    workbench: Workbench, viewer: Any, scan: Any, qtbot: Any
) -> None:
    scan.name = "patient"
    assert workbench.header.volume.currentText() == "patient"
    assert workbench.embed_tab.embed_button.text() == "Embed patient"
    viewer.layers.remove(scan)
    qtbot.waitUntil(lambda: workbench.header.volume.layer is None, timeout=60_000)
    assert not workbench.embed_tab.embed_button.isEnabled()


def test_a_far_scan_is_warned_of(workbench: Workbench, viewer: Any, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("mismatch"))
    assert not workbench.header.warning.isVisibleTo(workbench)
    coarse = add_phantom(viewer, 2, scale=(9, 9, 9), metadata={})
    workbench.header.volume.choose(coarse)
    qtbot.waitUntil(lambda: "9 × 9 × 9 mm" in workbench.header.warning.text(), timeout=10_000)


def test_a_checkpoint_of_something_else_is_refused_in_a_sentence(
    workbench: Workbench, tmp_path: Path, qtbot: Any
) -> None:
    (tmp_path / "notes.pt").write_text("no weights")
    before = workbench.session.encoder
    workbench.header.encoder_chosen.emit("notes", str(tmp_path / "notes.pt"))
    qtbot.waitUntil(lambda: "notes.pt" in workbench.message.text(), timeout=10_000)
    assert workbench.session.encoder is before
    assert workbench.header.encoder.currentText() == "untrained"


# ------------------------------------------------------------------------------ embedding
def test_embedding_shows_colours_in_the_right_place(
    embedded: Workbench, scan: Any, viewer: Any
) -> None:
    colours = embedded.session.overlays.find(scan, "colours")
    assert colours.data.shape == (4, 6, 6, 4)
    assert colours.rgb
    np.testing.assert_allclose(
        colours.data_to_world((-0.5,) * 3), scan.data_to_world((-0.5,) * 3), atol=1e-6
    )
    air = ~embedded.session.embedded(scan).embedding.foreground.numpy()
    assert (colours.data[air][:, 3] == 0).all()
    assert (colours.data[~air][:, 3] == 255).all()
    assert viewer.layers.selection.active == scan
    assert "is embedded" in embedded.message.text()


def test_embedding_again_comes_from_the_cache(embedded: Workbench, scan: Any, qtbot: Any) -> None:
    assert "MB" in embedded.embed_tab.cache.text()
    seen: list[Any] = []
    embedded.jobs.progressed.connect(lambda name, at: seen.append(at))
    embedded.embed_tab.embed_button.click()
    qtbot.waitUntil(lambda: not embedded.jobs.is_running("embed"), timeout=20_000)
    assert seen == []
    embedded.embed_tab.clear_button.click()
    qtbot.waitUntil(lambda: embedded.embed_tab.cache.text() == "Cache: empty", timeout=10_000)


def test_cancel_leaves_no_half_layer(
    workbench: Workbench, scan: Any, viewer: Any, qtbot: Any, slow_windows: Any
) -> None:
    with qtbot.waitSignal(workbench.jobs.progressed, timeout=60_000):
        workbench.embed_tab.embed_button.click()
    workbench.task_bar.cancel_button.click()
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("embed"), timeout=30_000)
    assert list(viewer.layers) == [scan]
    assert workbench.session.embedded(scan) is None


def test_the_layer_may_be_renamed_or_removed_while_it_is_embedded(
    workbench: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    workbench.embed_tab.embed_button.click()
    scan.name = "other name"
    viewer.layers.remove(scan)
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("embed"), timeout=60_000)
    assert len(viewer.layers) == 0
    assert "was removed" in workbench.message.text()


def test_values_that_cannot_be_embedded_are_told(
    workbench: Workbench, viewer: Any, qtbot: Any
) -> None:
    broken = np.zeros((32, 32, 32), np.float32)
    broken[3, 3, 3] = np.nan
    layer = viewer.add_image(broken, name="broken", contrast_limits=(0, 1))
    workbench.header.volume.choose(layer)
    workbench.embed_tab.embed_button.click()
    qtbot.waitUntil(lambda: "NaN" in workbench.message.text(), timeout=20_000)
    assert workbench.session.embedded(layer) is None


def test_clusters_follow_the_slider(embedded: Workbench, scan: Any, qtbot: Any) -> None:
    tab = embedded.embed_tab
    tab.clusters_button.click()
    qtbot.waitUntil(lambda: embedded.session.overlays.find(scan, "clusters") is not None)
    layer = embedded.session.overlays.find(scan, "clusters")
    assert layer.data.max() == 12
    tab.clusters.setValue(5)
    qtbot.waitUntil(lambda: layer.data.max() == 5, timeout=10_000)
    assert embedded.session.overlays.find(scan, "clusters") is layer


def test_the_lasso_highlights_patches_and_a_click_marks_a_dot(
    embedded: Workbench, scan: Any, qtbot: Any
) -> None:
    scatter = embedded.embed_tab.scatter
    chosen = np.zeros(len(scatter.pixels()), dtype=bool)
    chosen[[3, 7]] = True
    scatter.lassoed.emit(chosen)
    selected = embedded.session.overlays.find(scan, "selected")
    assert selected.data.sum() == 2
    scatter.lassoed.emit(np.zeros_like(chosen))
    assert embedded.session.overlays.find(scan, "selected") is None
    probe_at(embedded, scan, (16, 24, 24), qtbot)
    assert scatter._marked >= 0
    token = np.unravel_index(int(embedded.scatter.tokens[scatter._marked]), (4, 6, 6))
    assert token == (2, 3, 3)


def test_dots_take_the_colours_of_a_labels_layer(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    organs = np.zeros(scan.data.shape, np.uint8)
    organs[16:] = 3
    labels = viewer.add_labels(
        organs, name="organs", scale=scan.scale, translate=scan.translate, units=scan.units
    )
    tab = embedded.embed_tab
    tab.labels.choose(labels)
    tab.colouring.setCurrentIndex(2)
    tokens = np.unravel_index(embedded.scatter.tokens, (4, 6, 6))
    wanted = (np.asarray(labels.get_color(3)[:3]) * 255).astype(np.uint8)
    upper = tokens[0] >= 2
    assert (tab.scatter._colours[upper] == wanted).all()
    assert (tab.scatter._colours[~upper] == 127).all()


def test_save_embedding_writes_what_python_reads(
    embedded: Workbench, scan: Any, tmp_path: Path, qtbot: Any
) -> None:
    from napari_s2dc.engine.embedding_file import load_embedding

    embedded.embed_tab.save_wanted.emit(str(tmp_path / "torso.safetensors"))
    qtbot.waitUntil(lambda: "Saved" in embedded.message.text(), timeout=10_000)
    loaded = load_embedding(tmp_path / "torso.safetensors")
    own = embedded.session.embedded(scan).embedding
    assert (loaded.features == own.features).all()


# ------------------------------------------------------------------------------- probing
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
    labels.undo()
    assert not labels.data.any()
    tab.otsu.click()
    qtbot.waitUntil(lambda: tab.threshold.value() == pytest.approx(otsu, abs=0.01), timeout=20_000)
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


# ------------------------------------------------------------------------- several, closing
def test_two_viewers_have_their_own_state(new_viewer: Any, qtbot: Any) -> None:
    first, second = new_viewer(), new_viewer()
    one, two = add_phantom(first, 1), add_phantom(second, 2)
    left, right = open_workbench(first, qtbot), open_workbench(second, qtbot)
    assert left.session is session_of(first)
    assert right.session is not left.session
    embed(left, one, qtbot)
    assert right.session.embedded(two) is None
    assert list(second.layers) == [two]


def test_a_second_workbench_shares_the_state(embedded: Workbench, viewer: Any, qtbot: Any) -> None:
    other = open_workbench(viewer, qtbot)
    assert other.session is embedded.session
    assert other.probe_tab.probe_button.isEnabled()


def test_the_viewer_may_be_closed_while_embedding(
    new_viewer: Any, qtbot: Any, slow_windows: Any
) -> None:
    viewer = new_viewer()
    add_phantom(viewer, 1)
    workbench = open_workbench(viewer, qtbot)
    workbench.probe_tab.probe_button.setEnabled(True)
    workbench.probe_tab.probe_button.setChecked(True)
    with qtbot.waitSignal(workbench.jobs.progressed, timeout=60_000):
        workbench.embed_tab.embed_button.click()
    viewer.close()
    slow_windows()
    threads_at_rest(qtbot)
    qtbot.wait(100)  # errors in slots would fail the test here


def test_hiding_lets_the_viewer_go(workbench: Workbench, viewer: Any, scan: Any) -> None:
    before = len(viewer.layers.events.inserted.callbacks)
    workbench.hide()
    assert len(viewer.layers.events.inserted.callbacks) == before - 1
    workbench.show()
    workbench.show()
    assert len(viewer.layers.events.inserted.callbacks) == before
