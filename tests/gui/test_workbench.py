"""Opening, embedding, colours, clusters and dots; several viewers, and closing them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.widgets.session import session_of
from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_phantom, embed, open_workbench, probe_at, threads_at_rest


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


def test_why_the_active_layer_is_no_scan_is_said_when_it_is_asked_for(
    viewer: Any, qtbot: Any
) -> None:
    layers = {
        "has 2 dimensions": viewer.add_image(np.zeros((8, 9)), name="slice"),
        "has 4 dimensions": viewer.add_image(np.zeros((2, 8, 9, 9)), name="series"),
        "is a colour image": viewer.add_image(np.zeros((8, 9, 9, 3)), rgb=True, name="photo"),
    }
    workbench = open_workbench(viewer, qtbot)
    for words, layer in layers.items():
        viewer.layers.selection.active = layer
        for ask in (workbench.show_tab, workbench.main_action):  # menu entry, shortcut
            workbench.tell("")
            ask("Segment")
            assert f"Layer {layer.name} {words}" in workbench.message.text()
    viewer.layers.selection.active = add_phantom(viewer, 1)
    workbench.tell("")
    workbench.show_tab("Segment")
    assert workbench.message.text() == ""


def test_names_and_removals_are_followed(
    workbench: Workbench, viewer: Any, scan: Any, qtbot: Any
) -> None:
    scan.name = "patient"
    assert workbench.header.volume.currentText() == "patient"
    assert workbench.embed_tab.embed_button.text() == "Embed patient"
    viewer.layers.remove(scan)
    qtbot.waitUntil(lambda: workbench.header.volume.layer is None, timeout=60_000)
    assert not workbench.embed_tab.embed_button.isEnabled()


def test_the_volume_of_the_header_stays_when_a_layer_comes_up(
    workbench: Workbench, viewer: Any, scan: Any
) -> None:
    other = add_phantom(viewer, 2)
    viewer.layers.selection.active = other
    workbench.header.volume.choose(scan)  # another one than napari has selected
    workbench.session.overlays.new_labels(scan, "strokes")
    assert viewer.layers.selection.active == other
    assert workbench.header.volume.layer is scan
    viewer.layers.selection.active = viewer.layers[-1]
    viewer.layers.selection.active = other
    assert workbench.header.volume.layer is other


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


def test_a_copy_of_a_result_is_offered_as_any_other_layer(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    from napari.layers import Layer

    embedded.embed_tab.clusters_button.click()
    find = embedded.session.overlays.find
    qtbot.waitUntil(lambda: find(scan, "clusters") is not None)
    clusters = find(scan, "clusters")
    assert embedded.embed_tab.labels.layers == []
    copy = viewer.add_layer(Layer.create(*clusters.as_layer_data_tuple()))
    assert embedded.embed_tab.labels.layers == [copy]
    viewer.layers.remove(scan)
    qtbot.waitUntil(lambda: embedded.header.volume.layer is None)
    assert embedded.embed_tab.labels.layers == [copy]  # not the result that stays behind
