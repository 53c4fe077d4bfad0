"""Matching in a real viewer: side by side and back, pairs, rows, labels, files, the map."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_s2dc.widgets.pairs_box import BY_PLACE
from napari_s2dc.widgets.placement import geometry_of, words_of
from napari_s2dc.widgets.probe_mouse import ProbePoint
from napari_s2dc.widgets.segment_meaning import Meaning, likely_meaning
from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import SHAPE, add_labels, embed, match, named


def state_of(layer: Any, viewer: Any) -> dict[str, Any]:
    """Everything of a user's layer that must come back."""
    return {
        **{name: np.array(value).tolist() for name, value in geometry_of(layer).items()},
        "visible": layer.visible,
        "opacity": layer.opacity,
        "name": layer.name,
        "data": id(layer.data),
        "selected": layer in viewer.layers.selection,
    }


# -------------------------------------------------------------------------------- choices
def test_the_button_says_what_it_will_do_or_why_it_cannot(
    workbench: Workbench, scan: Any, other: Any, qtbot: Any
) -> None:
    tab = workbench.match_tab
    tab.moving.choose(scan)
    tab.reference.choose(other)
    assert tab.match_button.text() == "Match torso 1 with torso 2"
    assert not tab.match_button.isEnabled()
    assert "Embed torso 1 first" in tab.match_button.toolTip()
    embed(workbench, scan, qtbot)
    assert "Embed torso 2 first" in tab.match_button.toolTip()
    tab.reference.choose(scan)
    assert "Choose another volume" in tab.match_button.toolTip()
    tab.reference.choose(None)
    assert tab.match_button.isEnabled()
    assert tab.match_button.text() == "Match torso 1 with a random view of itself"
    embed(workbench, other, qtbot)
    tab.reference.choose(other)
    assert tab.match_button.isEnabled()
    assert "Ctrl+Alt+M" in tab.match_button.toolTip()
    for control in (tab.transfer_button, tab.apply_button, tab.pointing, tab.export_button):
        assert not control.isEnabled()
        assert "Match two scans first" in control.toolTip()
    workbench.main_action("Match")
    qtbot.waitUntil(lambda: workbench.matching.scans is not None, timeout=60_000)


def test_long_names_do_not_widen_the_panel(
    matched: Workbench, scan: Any, other: Any, qtbot: Any
) -> None:
    tab = matched.match_tab
    width = tab.minimumSizeHint().width()
    scan.name, other.name = "a subject with a long name " * 4, "another with a longer one " * 5
    qtbot.wait(50)
    assert scan.name in tab.match_button.text()
    assert scan.name in tab.match_button.toolTip()
    assert tab.minimumSizeHint().width() == width


# ----------------------------------------------------------------------------- side by side
def test_side_by_side_comes_and_goes_without_a_trace(
    pair: Workbench, scan: Any, other: Any, viewer: Any, qtbot: Any
) -> None:
    users = [scan, other]
    colours = [pair.session.overlays.find(layer, "colours") for layer in users]
    before = [state_of(layer, viewer) for layer in users]
    hidden_before = [layer.visible for layer in colours]
    match(pair, qtbot)
    beside = named(viewer, "side by side")
    assert not other.visible
    assert scan.visible
    assert not any(layer.visible for layer in colours)
    assert np.shares_memory(beside.data, other.data)
    assert beside.extent.world[0, 2] > scan.extent.world[1, 2]
    np.testing.assert_allclose(np.array(beside.scale), np.array(other.scale))
    pair.match_tab.beside.click()
    assert [state_of(layer, viewer) for layer in users] == before
    assert [layer.visible for layer in colours] == hidden_before
    assert not [layer for layer in viewer.layers if layer.name.endswith("side by side")]
    pair.match_tab.beside.click()
    assert not other.visible
    pair.hide()
    assert [state_of(layer, viewer) for layer in users] == before
    assert all(not layer.name.endswith("matched patches") for layer in viewer.layers)
    pair.show()
    qtbot.waitUntil(lambda: not other.visible, timeout=5000)
    viewer.layers.remove(scan)
    qtbot.waitUntil(lambda: pair.matching.scans is None, timeout=60_000)
    assert state_of(other, viewer) == before[1]
    assert "was removed" in pair.message.text()
    assert not [layer for layer in viewer.layers if layer.name.endswith("matched patches")]


def test_a_layer_that_was_hidden_stays_hidden(
    pair: Workbench, other: Any, viewer: Any, qtbot: Any
) -> None:
    other.visible = False
    match(pair, qtbot)
    pair.match_tab.beside.click()
    assert not other.visible


# ------------------------------------------------------------------------------------ pairs
def test_segments_join_the_places_that_match(
    matched: Workbench, scan: Any, other: Any, viewer: Any
) -> None:
    scans = matched.matching.scans
    lines = named(viewer, "matched patches")
    best = scans.pairs.best(matched.match_tab.pairs.number.value(), mutual=True)
    assert len(lines.data) == len(best) > 5
    beside = named(viewer, "side by side")
    for line, pair in zip(lines.data[:5], range(5), strict=True):
        start, end = lines.data_to_world(line[0]), lines.data_to_world(line[0] + line[1])
        np.testing.assert_allclose(start, scan.data_to_world(best.voxel_a[pair]), atol=1e-3)
        np.testing.assert_allclose(end, beside.data_to_world(best.voxel_b[pair]), atol=1e-2)
    matched.match_tab.beside.click()
    lines = named(viewer, "matched patches")
    end = lines.data_to_world(lines.data[0, 0] + lines.data[0, 1])
    np.testing.assert_allclose(end, other.data_to_world(best.voxel_b[0]), atol=1e-2)


def test_the_sliders_choose_pairs_and_the_colour_means_something(
    matched: Workbench, viewer: Any
) -> None:
    tab, pairs = matched.match_tab, matched.matching.scans.pairs
    lines = named(viewer, "matched patches")
    tab.pairs.number.setValue(4)
    assert len(lines.data) == 4
    first = np.array(lines.edge_color)
    assert first.shape == (4, 4)
    tab.pairs.colour.setCurrentIndex(tab.pairs.colour.findData(BY_PLACE))
    assert not tab.pairs.bar.isVisibleTo(tab)
    assert (np.array(lines.edge_color) != first).any()
    tab.pairs.number.setValue(len(pairs))
    tab.pairs.mutual.setChecked(False)
    assert len(lines.data) == len(pairs)
    least = float(np.quantile(pairs.confidence, 0.9))
    tab.pairs.confidence.setValue(round(least, 2))
    assert len(lines.data) == int((pairs.confidence >= round(least, 2)).sum()) < len(pairs)
    tab.pairs.number.setValue(0)
    assert len(lines.data) == 0
    tab.pairs.number.setValue(3)
    assert len(named(viewer, "matched patches").data) == 3


def test_patches_without_a_partner_are_tinted(matched: Workbench, viewer: Any) -> None:
    matched.match_tab.unmatched.click()
    tints = [layer for layer in viewer.layers if layer.name.endswith("without a partner")]
    assert len(tints) == 2
    lost, new = matched.matching.scans.match.unmatched()
    shown = sorted(float(layer.data.sum()) for layer in tints)
    assert shown == pytest.approx(sorted([float(lost.nansum()), float(new.nansum())]), rel=1e-4)
    matched.match_tab.unmatched.click()
    assert not [layer for layer in viewer.layers if layer.name.endswith("without a partner")]


# ---------------------------------------------------------------------------------- one patch
def test_a_click_shows_where_the_patch_goes_and_jumps_there(
    matched: Workbench, scan: Any, viewer: Any
) -> None:
    tab, scans = matched.match_tab, matched.matching.scans
    tab.pointing.click()
    token = (2, 3, 3)
    world = tuple(scan.data_to_world([20, 28, 28]))
    matched.pointer.point(ProbePoint(world, "replace", None, [1, 2], False, False))
    heat = named(viewer, "where it goes")
    row = scans.match.row(token).numpy()
    np.testing.assert_allclose(heat.data, row)
    partner = tuple(int(part) for part in np.unravel_index(int(row.argmax()), row.shape))
    assert f"The patch at {words_of(scan, scan.data_to_world((19.5, 27.5, 27.5)))} goes" in (
        tab.patch.text()
    )
    there = scans.reference.data_to_world(scans.match.b.voxel_of_token(partner))
    assert f"to {words_of(scans.reference, there)} of torso 2" in tab.patch.text()
    mark = named(viewer, "– partner")
    beside = named(viewer, "side by side")
    middle = scans.match.b.voxel_of_token(partner)
    np.testing.assert_allclose(
        mark.data_to_world(mark.data[0]), beside.data_to_world(middle), atol=1e-6
    )
    tab.jump_button.click()
    np.testing.assert_allclose(viewer.dims.point[0], beside.data_to_world(middle)[0], atol=2)
    np.testing.assert_allclose(
        viewer.scene.camera.center[-2:], beside.data_to_world(middle)[1:], atol=2
    )
    # The row moves with the scans, and leaves with a click outside.
    tab.beside.click()
    np.testing.assert_allclose(
        named(viewer, "where it goes").data_to_world((0, 0, 0)),
        scans.reference.data_to_world(scans.match.b.voxel_of_token((0, 0, 0))),
        atol=1e-6,
    )
    matched.pointer.point(ProbePoint((1e4,) * 3, "replace", None, [1, 2], False, False))
    assert not [layer for layer in viewer.layers if layer.name.endswith("where it goes")]
    assert not tab.jump_button.isEnabled()


def test_the_row_follows_the_mouse_until_a_click_keeps_it(
    matched: Workbench, scan: Any, viewer: Any
) -> None:
    matched.match_tab.pointing.click()

    def at(voxel: tuple[int, int, int]) -> Any:
        return SimpleNamespace(position=tuple(scan.data_to_world(voxel)))

    (move,) = [one for one in viewer.mouse_move_callbacks if "MatchPointer" in repr(one)]
    move(viewer, at((20, 20, 20)))
    first = matched.match_tab.patch.text()
    assert words_of(scan, scan.data_to_world((19.5, 19.5, 19.5))) in first
    move(viewer, at((20, 28, 28)))
    second = words_of(scan, scan.data_to_world((19.5, 27.5, 27.5)))
    assert second in matched.match_tab.patch.text()
    world = at((20, 20, 20)).position
    matched.pointer.point(ProbePoint(world, "replace", None, [1, 2], False, False))
    move(viewer, at((20, 28, 28)))
    assert matched.match_tab.patch.text() == first
    matched.probe_tab.probe_button.click()
    assert not matched.match_tab.pointing.isChecked()
    assert not [one for one in viewer.mouse_move_callbacks if "MatchPointer" in repr(one)]
    matched.match_tab.pointing.click()
    assert not matched.probe_tab.probe_button.isChecked()


# ------------------------------------------------------------------------------- self-check
def test_the_self_check_prints_the_known_truth(
    pair: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    tab = pair.match_tab
    tab.reference.choose(None)
    match(pair, qtbot)
    text = tab.result.text()
    assert "found their true partner" in text
    assert "mm median" in text
    view = named(viewer, "– random view")
    assert view.data.shape == SHAPE
    assert view.extent.world[0, 2] > scan.extent.world[1, 2]
    assert len(named(viewer, "matched patches").data) > 5
    assert "random view is no scan" in tab.transfer_button.toolTip()
    match(pair, qtbot)
    assert tab.result.text() != text  # another view
    assert len([layer for layer in viewer.layers if "random view" in layer.name]) == 1


def test_scans_are_matched_in_one_pose_unless_it_is_unticked(
    pair: Workbench, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_s2dc.engine import aligned_match, self_check

    asked: list[str] = []
    original = aligned_match.match_aligned

    def noted(embeddings: Any, images: Any, *more: Any) -> Any:
        asked.append(embeddings[0].name)
        assert [one.shape for one in images] == [one.shape for one in embeddings]
        return (yield from original(embeddings, images, *more))

    for module in (aligned_match, self_check):
        monkeypatch.setattr(module, "match_aligned", noted)
    tab = pair.match_tab
    match(pair, qtbot)
    assert not asked
    tab.align.setChecked(True)
    match(pair, qtbot)
    assert asked == ["torso 1"]
    tab.reference.choose(None)
    match(pair, qtbot)
    assert asked == ["torso 1"] * 2


def test_cancelling_leaves_no_match(
    pair: Workbench, viewer: Any, qtbot: Any, held: Event, hold: Any
) -> None:
    from napari_s2dc.engine import self_check

    inside = hold(self_check, "self_check")
    pair.match_tab.reference.choose(None)
    layers = list(viewer.layers)
    pair.match_tab.match_button.click()
    qtbot.waitUntil(inside.is_set)
    pair.jobs.cancel("match")
    held.set()
    qtbot.waitUntil(lambda: not pair.jobs.is_running("match"))
    assert pair.matching.scans is None
    assert list(viewer.layers) == layers


# ----------------------------------------------------------------------------------- labels
def test_labels_are_carried_with_names_and_colours(
    matched: Workbench,
    scan: Any,
    other: Any,
    viewer: Any,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    viewer.add_labels(np.zeros(SHAPE, np.uint8), name="something else")
    labels = add_labels(viewer, scan)
    tab = matched.match_tab
    tab.labels.choose(labels)
    assert tab.transfer_button.text() == "Transfer torso 1 labels to torso 2"
    tab.transfer_button.click()
    qtbot.waitUntil(lambda: "confidence" in matched.message.text(), timeout=120_000)
    carried = named(viewer, "labels from torso 1")
    assert not matched.session.overlays.is_overlay(carried)
    assert carried.data.shape == other.data.shape
    assert set(np.unique(carried.data)) <= set(np.unique(labels.data))
    assert (carried.data > 0).mean() > 0.1
    np.testing.assert_array_equal(carried.features["name"], labels.features["name"])
    np.testing.assert_array_equal(carried.get_color(1), labels.get_color(1))
    np.testing.assert_allclose(carried.data_to_world((3, 4, 5)), other.data_to_world((3, 4, 5)))
    assert likely_meaning(carried) == Meaning("background")
    sure = named(viewer, "confidence of the labels")
    assert 0 <= sure.data.min() < sure.data.max() <= 1
    # Seen beside the moving scan for now, and on the reference once both are back.
    assert not carried.visible
    assert named(viewer, "carried labels").visible
    tab.beside.click()
    assert carried.visible
    assert not [layer for layer in viewer.layers if layer.name.endswith("carried labels")]
    assert "hardly agree" not in matched.message.text()
    monkeypatch.setattr("napari_s2dc.engine.transfer._LEAST_CORRELATION", 1.0)
    tab.transfer_button.click()
    qtbot.waitUntil(lambda: "hardly agree" in matched.message.text(), timeout=120_000)


def test_labels_named_like_the_moving_scan_come_up(
    workbench: Workbench, scan: Any, other: Any, viewer: Any
) -> None:
    tab = workbench.match_tab
    for number in (1, 2):
        viewer.add_labels(np.zeros(SHAPE, np.uint8), name=f"torso {number} labels")
    for layer, name in ((other, "torso 2 labels"), (scan, "torso 1 labels")):
        tab.moving.choose(layer)
        assert tab.labels.currentText() == name
    tab.labels.choose(viewer.layers["torso 2 labels"])
    scan.name = "torso 1 again"  # what the user has chosen stays
    assert tab.labels.currentText() == "torso 2 labels"


def test_labels_of_another_grid_are_refused(matched: Workbench, viewer: Any, scan: Any) -> None:
    labels = viewer.add_labels(np.ones((4, 5, 6), np.uint8), name="small")
    matched.match_tab.labels.choose(labels)
    assert not matched.match_tab.transfer_button.isEnabled()
    assert "grid of torso 1" in matched.match_tab.transfer_button.toolTip()


def test_large_scans_are_matched_on_the_grid_that_was_chosen(
    workbench: Workbench,
    scan: Any,
    other: Any,
    viewer: Any,
    qtbot: Any,
    tmp_path: Path,
    by_themselves: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_WORTH_IT", "_FEWEST"):
        monkeypatch.setattr(f"napari_s2dc.volumes.coarser.{name}", 1000)
    monkeypatch.setattr("napari_s2dc.volumes.coarser._TIMES", (1.3,))
    monkeypatch.setattr("napari_s2dc.volumes.coarser._SHORTEST", 1)
    monkeypatch.setattr("napari_s2dc.volumes.coarser.MOST_VOXELS", 40_000)
    grid = (25, 37, 37)
    factors = np.divide(SHAPE, grid)
    header = workbench.header
    for layer in (scan, other):
        header.volume.choose(None)
        header.volume.choose(layer)  # offered anew, now that they count as large
        assert header.form.isRowVisible(header.level)
        assert header.level.currentData() == grid  # so it begins, since the own one is too large
        embed(workbench, layer, qtbot)
    tab = workbench.match_tab
    tab.moving.choose(scan)
    tab.reference.choose(other)
    match(workbench, qtbot)
    scans = workbench.matching.scans
    assert scans.match.b.shape == grid
    beside, lines = named(viewer, "side by side"), named(viewer, "matched patches")
    assert beside.data.shape == SHAPE
    np.testing.assert_allclose(np.array(beside.scale), np.array(other.scale))
    best = scans.pairs.best(tab.pairs.number.value(), mutual=True)
    ends = [lines.data[0, 0], lines.data[0, 0] + lines.data[0, 1]]
    for layer, end, voxel in zip((scan, beside), ends, (best.voxel_a, best.voxel_b), strict=True):
        place = layer.data_to_world(voxel[0] * factors + (factors - 1) / 2)
        np.testing.assert_allclose(lines.data_to_world(end), place, atol=1e-2)
    tab.export_wanted.emit("pairs", str(tmp_path / "p.csv"))
    qtbot.waitUntil(lambda: (tmp_path / "p.csv").exists(), timeout=20_000)
    rows = np.genfromtxt(tmp_path / "p.csv", delimiter=",", names=True)
    own = np.stack([rows[f"a_vox_{axis}"] for axis in "zyx"], 1)
    np.testing.assert_allclose(own, scans.pairs.voxel_a * factors + (factors - 1) / 2, atol=1e-3)
    labels = add_labels(viewer, scan)
    workbench.segment_tab.labels.choose(labels)
    task, _ = workbench.segmenting.choices.task()
    assert task.scan.shape == SHAPE  # whose voxels the labels lie on
    tab.labels.choose(labels)
    assert tab.transfer_button.isEnabled()
    tab.transfer_button.click()
    qtbot.waitUntil(lambda: "confidence" in workbench.message.text(), timeout=60_000)
    carried = named(viewer, "labels from torso 1")
    assert carried.data.shape == SHAPE
    np.testing.assert_allclose(np.array(carried.scale), np.array(other.scale))


# ------------------------------------------------------------------------------------ export
def test_everything_can_be_exported(matched: Workbench, tmp_path: Path, qtbot: Any) -> None:
    scans = matched.matching.scans
    for what, name in (("pairs", "p.csv"), ("plan", "p.safetensors"), ("affine", "a.json")):
        matched.match_tab.export_wanted.emit(what, str(tmp_path / name))
        qtbot.waitUntil(lambda name=name: name in matched.message.text(), timeout=20_000)
    with (tmp_path / "p.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(scans.pairs)
    facts = json.loads((tmp_path / "a.json").read_text())
    assert (facts["a"], facts["b"]) == ("torso 1", "torso 2")


# --------------------------------------------------------------------------------------- map
@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")
def test_the_map_is_applied_on_request_and_taken_back_exactly(
    matched: Workbench, scan: Any, other: Any, viewer: Any
) -> None:
    scan.affine = np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, -3], [0, 0, 0, 1]], float)
    before = np.array(scan.affine.affine_matrix)
    tab, scans = matched.match_tab, matched.matching.scans
    best = scans.pairs.best(100, mutual=True)
    inliers = matched.matching.found.alignment.inliers

    def apart() -> float:
        return float(
            np.median(
                [
                    np.linalg.norm(np.subtract(scan.data_to_world(one), other.data_to_world(two)))
                    for one, two in zip(best.voxel_a, best.voxel_b, strict=True)
                ]
            )
        )

    far = apart()
    tab.apply_button.click()
    assert not tab.beside.isChecked()
    assert tab.apply_button.text() == "Undo the map of torso 1"
    assert inliers.any()
    assert apart() < 0.2 * far
    tab.apply_button.click()
    np.testing.assert_array_equal(scan.affine.affine_matrix, before)
    assert tab.apply_button.text() == "Apply the map to torso 1"
    # A layer that was moved meanwhile is not moved again.
    tab.apply_button.click()
    scan.affine = np.eye(4)
    tab.apply_button.click()
    np.testing.assert_array_equal(scan.affine.affine_matrix, np.eye(4))
    assert "was moved since" in matched.message.text()
