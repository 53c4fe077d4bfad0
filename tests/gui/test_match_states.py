"""Matching among the other things a user does: tools, hiding, moved layers, other choices."""

from __future__ import annotations

from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import pytest

from napari_s2dc.widgets.commands import open_tab
from napari_s2dc.widgets.placement import geometry_of
from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_labels, named, open_workbench, probe_at, threads_at_rest


# ---------------------------------------------------------------------------------- the mouse
def test_switching_between_the_two_mouse_tools_leaves_the_new_one_working(
    matched: Workbench, scan: Any, viewer: Any
) -> None:
    viewer.layers.selection.active = scan
    tools = [matched.probe_tab.probe_button, matched.match_tab.pointing]
    for tool, other in (tools, tools[::-1], tools):
        tool.setChecked(True)
        assert not other.isChecked()
        assert not viewer.scene.camera.mouse_pan
        assert viewer.cursor.style == "cross"
        assert "Escape" in {str(key) for key in viewer.keymap}
    tools[0].setChecked(False)
    assert viewer.scene.camera.mouse_pan
    assert "Escape" not in {str(key) for key in viewer.keymap}


def test_a_click_probes_the_scan_in_sight_not_the_hidden_one(
    matched: Workbench, scan: Any, other: Any, qtbot: Any
) -> None:
    matched.match_tab.beside.click()
    other.translate = scan.translate  # both at the same place
    matched.match_tab.beside.click()
    matched.header.volume.choose(other)
    assert not other.visible
    probe_at(matched, scan, (20, 28, 28), qtbot)
    assert matched.probing.home is scan
    matched.match_tab.beside.click()
    probe_at(matched, scan, (20, 28, 28), qtbot)
    assert matched.probing.home is other


# ------------------------------------------------------------------------------------ labels
def test_labels_that_lie_elsewhere_are_refused(
    matched: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    tab = matched.match_tab
    labels = add_labels(viewer, scan)
    tab.labels.choose(labels)
    assert tab.transfer_button.isEnabled()
    labels.translate = np.add(labels.translate, (0, 0, 5))
    tab.transfer_button.click()  # enabled before they were moved
    assert "lies elsewhere" in matched.message.text()
    assert not matched.jobs.is_running("transfer")
    assert not tab.transfer_button.isEnabled()
    assert "lies elsewhere" in tab.transfer_button.toolTip()
    labels.translate = scan.translate
    qtbot.waitUntil(tab.transfer_button.isEnabled)
    assert tab.transfer_button.text() == "Transfer torso 1 labels to torso 2"


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")
def test_labels_are_still_those_of_a_scan_that_the_map_has_moved(
    matched: Workbench, scan: Any, viewer: Any
) -> None:
    labels = add_labels(viewer, scan)
    labels.visible = False
    matched.match_tab.labels.choose(labels)
    matched.match_tab.apply_button.click()
    assert matched.match_tab.transfer_button.isEnabled()
    scan.affine = np.array(scan.affine.affine_matrix) @ np.diag([1, 1, 2, 1])
    matched.match_tab.transfer_button.click()
    assert "lies elsewhere" in matched.message.text()


def test_the_finest_level_of_labels_is_carried(
    matched: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    single = add_labels(viewer, scan)
    fine = single.data
    levels = [fine, np.zeros_like(fine[::2, ::2, ::2])]
    labels = viewer.add_labels(levels, multiscale=True, name="pyramid", **geometry_of(scan))
    matched.match_tab.labels.choose(labels)
    assert matched.match_tab.transfer_button.isEnabled()
    matched.match_tab.transfer_button.click()
    qtbot.waitUntil(lambda: "confidence" in matched.message.text(), timeout=120_000)
    assert (named(viewer, "labels from torso 1").data > 0).mean() > 0.1


def test_a_cancelled_transfer_leaves_nothing(
    matched: Workbench, scan: Any, viewer: Any, qtbot: Any, held: Event, hold: Any
) -> None:
    from napari_s2dc.engine import transfer

    inside = hold(transfer, "transfer_labels")
    matched.match_tab.labels.choose(add_labels(viewer, scan))
    before = list(viewer.layers)
    matched.match_tab.transfer_button.click()
    qtbot.waitUntil(inside.is_set)
    matched.jobs.cancel("transfer")
    held.set()
    qtbot.waitUntil(lambda: not matched.jobs.is_running("transfer"))
    threads_at_rest(qtbot)
    assert list(viewer.layers) == before


# ------------------------------------------------------------------- while the match runs
def test_a_match_that_ends_while_the_panel_is_hidden_waits_for_it(
    pair: Workbench, other: Any, viewer: Any, qtbot: Any
) -> None:
    layers = list(viewer.layers)
    pair.match_tab.match_button.click()
    pair.hide()
    qtbot.waitUntil(lambda: pair.matching.scans is not None, timeout=60_000)
    assert list(viewer.layers) == layers
    assert other.visible
    pair.show()
    qtbot.waitUntil(lambda: not other.visible, timeout=5000)
    assert len(named(viewer, "matched patches").data) > 5
    qtbot.waitUntil(lambda: not pair.jobs.is_running("mirror"), timeout=60_000)


@pytest.mark.parametrize("alone", [False, True])
def test_a_match_of_features_of_before_is_not_shown(
    pair: Workbench, scan: Any, viewer: Any, qtbot: Any, alone: bool
) -> None:
    if alone:
        pair.match_tab.reference.choose(None)
        pair.matching._on_reference(0)  # as if the user had done it
    pair.match_tab.match_button.click()
    pair.session.keep(scan, replace(pair.session.embedded(scan)))
    qtbot.waitUntil(lambda: not pair.jobs.is_running("match"), timeout=60_000)
    qtbot.waitUntil(lambda: "embedded anew" in pair.message.text(), timeout=5000)
    assert pair.matching.scans is None
    assert not [layer for layer in viewer.layers if layer.name.endswith("matched patches")]


# --------------------------------------------------------------------------------------- map
@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")
def test_the_map_can_be_taken_back_without_its_match_and_by_another_panel(
    matched: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    before = np.array(scan.affine.affine_matrix)
    matched.match_tab.apply_button.click()
    assert not np.allclose(scan.affine.affine_matrix, before)
    matched.match_tab.match_button.click()
    matched.jobs.cancel("match")
    qtbot.waitUntil(lambda: not matched.jobs.is_running("match"), timeout=60_000)
    assert matched.match_tab.apply_button.text() == "Undo the map of torso 1"
    assert matched.match_tab.apply_button.isEnabled()
    viewer.window.remove_dock_widget(matched)
    matched.close()
    matched.deleteLater()
    again = open_workbench(viewer, qtbot)
    assert again.match_tab.apply_button.isEnabled()
    again.match_tab.apply_button.click()
    np.testing.assert_array_equal(scan.affine.affine_matrix, before)


# ----------------------------------------------------------------------------------- choices
def test_a_random_view_stays_chosen_whatever_layers_come(pair: Workbench, viewer: Any) -> None:
    pair.match_tab.reference.choose(None)
    viewer.add_points(np.zeros((1, 3)), name="mine")
    assert pair.match_tab.reference.layer is None
    pair.hide()
    pair.matching._on_reference(0)  # as if the user had done it
    pair.show()
    assert pair.match_tab.reference.layer is None


def test_the_key_keeps_the_chosen_volumes_and_the_menu_takes_the_active_one(
    pair: Workbench, scan: Any, other: Any, viewer: Any, qtbot: Any
) -> None:
    tab = pair.match_tab
    viewer.layers.selection.active = other
    open_tab(viewer, "Match", take_active=False)
    assert (tab.moving.layer, tab.reference.layer) == (scan, other)
    open_tab(viewer, "Match")
    assert (tab.moving.layer, tab.reference.layer) == (other, scan)


# --------------------------------------------------------------------------- what is offered
def test_removing_the_copy_ends_side_by_side(
    matched: Workbench, other: Any, viewer: Any, qtbot: Any
) -> None:
    viewer.layers.remove(named(viewer, "side by side"))
    qtbot.waitUntil(lambda: not matched.match_tab.beside.isChecked(), timeout=60_000)
    assert other.visible
    assert len(named(viewer, "matched patches").data) > 5


def test_controls_that_cannot_be_used_say_why(workbench: Workbench) -> None:
    embed, probe, tab = workbench.embed_tab, workbench.probe_tab, workbench.match_tab
    pairs = tab.pairs
    for controls, why in (
        ((embed.triple, embed.clusters, embed.dots, embed.colouring), "Embed the volume first"),
        ((pairs.number, pairs.confidence, pairs.mutual, pairs.colour), "Match two scans first"),
        ((tab.unmatched, tab.beside, tab.export_button), "Match two scans first"),
        ((probe.clear_button,), "Click a place first"),
        ((probe.otsu, probe.threshold), "first"),
    ):
        for control in controls:
            assert not control.isEnabled()
            assert why in control.toolTip()
    usual = "Which three principal components"
    embed.show_embedded(True)
    assert usual in embed.triple.toolTip()
    actions = {action.text(): action for action in tab.export_button.menu().actions()}
    tab.show_match("no map", 3)
    assert not actions["Affine map…"].isEnabled()
    assert "no map" in actions["Affine map…"].toolTip()
    tab.show_match("a map", 3, has_map=True)
    assert all(action.isEnabled() for action in actions.values())
