"""From strokes to a segmentation on the Segment tab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_s2dc.widgets.placement import geometry_of
from napari_s2dc.widgets.preferences import PLUGIN
from tests.gui.conftest import SHAPE, STEPS, add_labels, add_phantom, named, open_workbench
from tests.gui.segmenting import (
    AIR,
    LUNG,
    MUSCLE,
    PLANE,
    answer,
    painted,
    settled,
    share_right,
    stroke,
    trained,
)

pytestmark = pytest.mark.usefixtures("light_quick")


def test_why_training_cannot_begin_is_said(workbench: Any, qtbot: Any) -> None:
    tab = workbench.segment_tab
    workbench.tabs.setCurrentIndex(3)
    assert not tab.train_button.isEnabled()
    assert "Press New" in tab.train_button.toolTip()
    tab.new_button.click()
    layer = tab.labels.layer
    qtbot.waitUntil(lambda: "Paint a few strokes" in tab.note.text())
    stroke(layer, MUSCLE)
    qtbot.waitUntil(lambda: "Class 1 means background" in tab.note.text())
    tab.background.setCurrentIndex(0)
    tab.background.activated.emit(0)
    assert "Only class 2 is painted" in tab.train_button.toolTip()
    stroke(layer, LUNG)
    qtbot.waitUntil(tab.train_button.isEnabled)
    assert "unlabelled voxels may become background" in tab.note.text()
    tab.mode.setCurrentIndex(tab.mode.findData("finetune"))
    assert "every voxel will become one of the classes" in tab.note.text()
    tab.mode.setCurrentIndex(tab.mode.findData("quick"))
    tab.background.setCurrentIndex(tab.background.findData(1))
    tab.background.activated.emit(1)
    assert not tab.train_button.isEnabled()
    stroke(layer, AIR)
    qtbot.waitUntil(tab.train_button.isEnabled)
    assert tab.note.text() == ""


def test_strokes_become_a_segmentation_and_its_uncertainty(
    workbench: Any, scan: Any, viewer: Any, qtbot: Any
) -> None:
    strokes = painted(workbench, qtbot)
    workbench.segmenting.painting._rename(LUNG, "lung")
    workbench.segmenting.painting._recolour(LUNG, (0.0, 1.0, 0.0))
    found = trained(workbench, qtbot)
    assert found.name == f"{scan.name} – segmentation"
    assert found.data.shape == SHAPE
    assert set(np.unique(found.data)) == {0, MUSCLE, LUNG}
    assert share_right(found.data) > 0.7
    np.testing.assert_allclose(found.colormap.map(LUNG)[:3], (0, 1, 0))
    np.testing.assert_allclose(found.colormap.map(MUSCLE), strokes.colormap.map(MUSCLE), atol=2e-3)
    assert dict(zip(found.features["index"], found.features["name"], strict=True))[LUNG] == "lung"
    uncertainty = named(viewer, "uncertainty")
    assert not uncertainty.visible
    assert 0 <= float(uncertainty.data.min()) < float(uncertainty.data.max()) <= 1
    for layer in (found, uncertainty):
        np.testing.assert_allclose(layer.extent.world, scan.extent.world)
        assert list(viewer.layers).index(layer) < list(viewer.layers).index(strokes)
    assert workbench.segment_tab.plot.losses[-1][0] == STEPS
    assert workbench.segment_tab.plot.dices[-1][1] > 0.9
    assert "2 classes found" in workbench.message.text()


def test_the_result_is_that_of_the_engine(workbench: Any, scan: Any, qtbot: Any) -> None:
    from napari_s2dc.engine.fewshot import train_model
    from napari_s2dc.engine.fewshot_settings import FewshotSettings
    from napari_s2dc.engine.labelled_scans import LabelledScan
    from napari_s2dc.engine.progress import finish
    from napari_s2dc.engine.segment import segment_volume
    from napari_s2dc.volumes.volume import Volume
    from napari_s2dc.widgets.volumes_of_layers import volume_from_layer

    strokes = painted(workbench, qtbot)
    found = trained(workbench, qtbot)
    image = volume_from_layer(scan)
    labels = Volume(np.asarray(strokes.data), image.affine)
    settings = workbench.segmenting.choices.settings()
    assert settings == FewshotSettings(background=AIR, device="cpu", quick=settings.quick)
    encoder = workbench.session.encoder.network
    model = finish(train_model([LabelledScan(image, labels)], encoder, settings))
    np.testing.assert_array_equal(found.data, finish(segment_volume(image, model)).labels)


def test_training_again_keeps_the_layers(workbench: Any, viewer: Any, qtbot: Any) -> None:
    strokes = painted(workbench, qtbot)
    first = trained(workbench, qtbot)
    before, layers = first.data.copy(), list(viewer.layers)
    stroke(strokes, LUNG, plane=20)
    settled(workbench, qtbot)
    assert trained(workbench, qtbot) is first
    assert list(viewer.layers) == layers
    assert (first.data != before).any()
    strokes.undo()  # napari's own
    assert not (strokes.data[20] == LUNG).any()


def test_strokes_refresh_the_segmentation(workbench: Any, qtbot: Any) -> None:
    strokes = painted(workbench, qtbot)
    found = trained(workbench, qtbot)
    workbench.segment_tab.refresh.setChecked(True)
    model, before = workbench.segmenting.training.model, found.data.copy()
    stroke(strokes, LUNG, plane=20, count=60)
    qtbot.waitUntil(lambda: workbench.jobs.is_running("segment training"))
    settled(workbench, qtbot)
    refreshed = workbench.segmenting.training.model
    assert workbench.segment_tab.plot.losses[0][0] == STEPS // 3  # no curve of another training
    assert model.metadata["steps"] == 2 * STEPS  # on strokes, then on all of the scan
    assert refreshed.metadata["steps"] == STEPS // 3 + STEPS  # trained on
    assert refreshed.metadata["scans"] == model.metadata["scans"]
    assert (found.data != before).any()
    strokes.undo()  # tells of itself in no event of its own
    qtbot.waitUntil(lambda: workbench.segmenting.training.model.tensors is not refreshed.tensors)
    settled(workbench, qtbot)
    workbench.segment_tab.refresh.setChecked(False)


def test_a_stroke_during_a_training_is_learned_next_also_after_stop(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any, hold: Any, held: Any
) -> None:
    from napari_s2dc.engine import quick

    strokes = painted(workbench, qtbot)
    training, tab = workbench.segmenting.training, workbench.segment_tab
    tab.refresh.setChecked(True)
    inside = hold(quick, "targets_of")
    tab.train_button.click()
    qtbot.waitUntil(inside.is_set)
    stroke(strokes, LUNG, plane=20)
    qtbot.waitUntil(lambda: training._waiting is not None)
    tab.stop_button.click()
    held.set()
    qtbot.waitUntil(lambda: training.model is not None)
    settled(workbench, qtbot)
    assert training.found_in(scan) is not None

    # Where another labels layer is chosen meanwhile, the model in hand is used.
    held.clear()
    inside.clear()
    model = training.model
    stroke(strokes, LUNG, plane=21)
    qtbot.waitUntil(inside.is_set)
    stroke(strokes, LUNG, plane=22)
    qtbot.waitUntil(lambda: training._waiting is not None)
    tab.labels.choose(add_labels(viewer, scan))
    found = training.found_in(scan)
    held.set()
    qtbot.waitUntil(lambda: training.found_in(scan) is not found)
    settled(workbench, qtbot)
    assert training.model.tensors is not model.tensors
    assert len(training.model.classes) == 2


def test_a_refresh_does_not_start_from_the_model_of_another_scan(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    painted(workbench, qtbot)
    trained(workbench, qtbot)
    other = add_phantom(viewer, 2)
    workbench.header.volume.choose(other)
    strokes = painted(workbench, qtbot)
    trained(workbench, qtbot)
    workbench.header.volume.choose(scan)
    trained(workbench, qtbot)  # the model is that of the first scan, both have features
    training = workbench.segmenting.training
    assert training.model.metadata["scans"][0]["name"] == scan.name
    workbench.header.volume.choose(other)
    workbench.segment_tab.labels.choose(strokes)
    settled(workbench, qtbot)
    workbench.segment_tab.refresh.setChecked(True)
    stroke(strokes, LUNG, plane=20)
    qtbot.waitUntil(lambda: workbench.jobs.is_running("segment training"))
    settled(workbench, qtbot)
    assert training.model.metadata["scans"][0]["name"] == other.name
    assert training.model.metadata["steps"] == 2 * STEPS
    workbench.segment_tab.refresh.setChecked(False)


def test_the_plane_on_the_screen_comes_first(
    workbench: Any, scan: Any, viewer: Any, qtbot: Any, hold: Any, held: Any
) -> None:
    from napari_s2dc.engine import segment

    painted(workbench, qtbot)
    viewer.dims.set_point(0, float(scan.data_to_world((PLANE, 0, 0))[0]))
    inside = hold(segment, "segment_volume")
    workbench.segment_tab.train_button.click()
    qtbot.waitUntil(inside.is_set)
    found = workbench.segmenting.layers.found_for(scan)
    assert found.data[PLANE].any()
    assert not found.data[:PLANE].any()
    assert not found.data[PLANE + 1 :].any()
    held.set()
    settled(workbench, qtbot)
    assert found.data[20].any()


def test_labels_of_another_grid_are_resampled_only_when_asked(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = np.zeros(tuple(side // 2 for side in SHAPE), np.uint8)
    coarse[4:8, 4:8, 4:8], coarse[10:14, 10:14, 10:14] = 1, 2
    geometry = {**geometry_of(scan), "scale": np.asarray(scan.scale) * 2}
    geometry["translate"] = np.asarray(scan.translate) + np.asarray(scan.scale) / 2
    other = viewer.add_labels(coarse, name="coarse", **geometry)
    tab = workbench.segment_tab
    workbench.tabs.setCurrentIndex(3)
    tab.labels.choose(other)
    qtbot.waitUntil(tab.train_button.isEnabled)
    layers = list(viewer.layers)
    asked = answer(workbench, False, monkeypatch)
    tab.train_button.click()
    assert "16 × 24 × 24 voxels" in asked[0]
    assert "nothing was trained" in workbench.message.text()
    assert list(viewer.layers) == layers
    answer(workbench, True, monkeypatch)
    tab.train_button.click()
    settled(workbench, qtbot)
    mine = tab.labels.layer
    assert mine is not other
    assert mine.data.shape == SHAPE
    assert (mine.data[8:16, 8:16, 8:16] == 1).all()
    assert (mine.data == 1).sum() == 8 * (coarse == 1).sum()
    assert (other.data == coarse).all()


def test_thin_strokes_survive_resampling_and_lost_classes_are_named(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = np.zeros(tuple(side * 2 for side in SHAPE), np.uint8)
    fine[8, :, 4], fine[9, :, 7], fine[3, 3, 3] = 1, 2, 3  # as thin as a brush of one voxel
    fine[20:22, 20, 20] = 4, 5  # in one voxel of the scan
    geometry = {**geometry_of(scan), "scale": np.asarray(scan.scale) / 2}
    geometry["translate"] = np.asarray(scan.translate) - np.asarray(scan.scale) / 4
    names = {"index": [1, 4], "name": ["background", "ureter"]}
    other = viewer.add_labels(fine, name="fine", features=names, **geometry)
    workbench.tabs.setCurrentIndex(3)
    tab = workbench.segment_tab
    tab.labels.choose(other)
    qtbot.waitUntil(tab.train_button.isEnabled)
    answer(workbench, True, monkeypatch)
    tab.train_button.click()
    settled(workbench, qtbot)
    mine = tab.labels.layer
    assert mine is not other
    assert (mine.data[4, :, 2] == 1).all()
    assert (mine.data[4, :, 3] == 2).all()
    assert mine.data[1, 1, 1] == 3
    assert np.count_nonzero(mine.data) == 2 * SHAPE[1] + 2
    assert f"No voxel of ureter is left on the grid of {scan.name}." in workbench.message.text()


def test_a_corrected_segmentation_is_left_alone(workbench: Any, viewer: Any, qtbot: Any) -> None:
    painted(workbench, qtbot)
    first = trained(workbench, qtbot)
    first.data_setitem((np.array([3]), np.array([4]), np.array([5])), 7)
    kept = first.data.copy()
    assert first.name.endswith("(corrected)")
    qtbot.waitUntil(lambda: first in workbench.segment_tab.labels.layers)
    second = trained(workbench, qtbot)
    assert second is not first
    assert (first.data == kept).all()
    assert first in viewer.layers


def test_cancelling_leaves_the_model_of_before(
    workbench: Any, qtbot: Any, hold: Any, held: Any
) -> None:
    from napari_s2dc.engine import quick

    strokes = painted(workbench, qtbot)
    found = trained(workbench, qtbot)
    model, before = workbench.segmenting.training._model, found.data.copy()
    inside = hold(quick, "targets_of")
    workbench.segment_tab.train_button.click()
    qtbot.waitUntil(inside.is_set)
    assert workbench.segment_tab.stop_button.isEnabled()
    stroke(strokes, LUNG, plane=20)  # painting goes on meanwhile
    workbench.segment_tab.stop_button.click()
    held.set()
    settled(workbench, qtbot)
    assert workbench.segmenting.training._model is model
    assert (found.data == before).all()
    assert not workbench.segment_tab.stop_button.isEnabled()


def test_the_model_is_there_once_it_has_learned_from_all_of_the_scan(
    workbench: Any, scan: Any, qtbot: Any, hold: Any, held: Any
) -> None:
    from napari_s2dc.engine import quick_spread

    strokes = painted(workbench, qtbot)
    training, tab = workbench.segmenting.training, workbench.segment_tab
    inside = hold(quick_spread, "random_walk")
    tab.train_button.click()
    qtbot.waitUntil(inside.is_set)
    # The slice is shown; the head that has seen strokes only is not on offer.
    assert workbench.segmenting.layers.found_for(scan) is not None
    assert training.model is None
    # A stroke is learned at once, from that head on, and what went on is given up.
    first = training._head
    tab.refresh.setChecked(True)
    stroke(strokes, LUNG, plane=20)
    qtbot.waitUntil(lambda: training._head is not first)
    held.set()
    settled(workbench, qtbot)
    assert training._model is training._head
    assert training.model.metadata["steps"] == STEPS // 3 + STEPS
    tab.refresh.setChecked(False)


def test_what_the_engine_refuses_is_told(workbench: Any, scan: Any, qtbot: Any) -> None:
    painted(workbench, qtbot)
    scan.data = np.full_like(scan.data, np.nan)
    workbench.segment_tab.train_button.click()
    settled(workbench, qtbot)
    assert scan.name in workbench.message.text()
    assert workbench.segmenting.training.model is None


def test_a_removed_scan_is_not_segmented(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any, hold: Any, held: Any
) -> None:
    from napari_s2dc.engine import segment

    painted(workbench, qtbot)
    inside = hold(segment, "segment_volume")
    workbench.segment_tab.train_button.click()
    qtbot.waitUntil(inside.is_set)
    viewer.layers.remove(scan)
    held.set()
    settled(workbench, qtbot)
    assert "was removed" in workbench.message.text()


def test_the_segmentation_is_saved_on_the_grid_of_the_file(
    plugin: Any, tmp_path: Path, qtbot: Any
) -> None:
    import nibabel

    from napari_s2dc.volumes.phantom import phantom

    image, _ = phantom(SHAPE, seed=1)
    affine = np.array([[0.0, -2, 0, 9], [2, 0, 0, -7], [0, 0, -3, 5], [0, 0, 0, 1]])
    written = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image.array.T, affine), written)
    (layer,) = plugin.open(str(written), plugin=PLUGIN)
    workbench = open_workbench(plugin, qtbot)
    workbench.header.volume.choose(layer)
    workbench.segment_tab.new_button.click()
    strokes = workbench.segment_tab.labels.layer
    strokes.data_setitem((np.full(5, 9), np.arange(5), np.full(5, 3)), 1)
    strokes.data_setitem((np.full(5, 9), np.arange(5), np.full(5, 20)), 2)
    qtbot.waitUntil(workbench.segment_tab.train_button.isEnabled)
    found = trained(workbench, qtbot)
    (saved,) = found.save(str(tmp_path / "found.nii.gz"), plugin=PLUGIN)
    again = nibabel.load(saved)
    np.testing.assert_allclose(again.affine, affine)
    assert again.shape == image.array.T.shape
    assert np.array_equal(np.unique(again.dataobj), np.unique(found.data))


def test_labels_are_learned_from_at_a_coarser_level(viewer: Any, qtbot: Any) -> None:
    single = add_phantom(viewer, 1)
    fine = np.asarray(single.data)
    viewer.layers.remove(single)
    layer = viewer.add_image([fine, fine[::2, ::2, ::2]], name="levels", multiscale=True)
    workbench = open_workbench(viewer, qtbot)
    workbench.header.volume.choose(layer)
    workbench.header.level.setCurrentIndex(1)
    painted(workbench, qtbot)
    found = trained(workbench, qtbot)
    assert found.data.shape == tuple(side // 2 for side in SHAPE)
    # From the middle of the first voxel to that of the last one, which are twice as large.
    inner = np.add(layer.extent.world, [[0.5], [-0.5]])
    np.testing.assert_allclose(found.extent.world, inner)


def test_a_result_waits_for_the_stroke_in_the_segmentation_and_leaves_it_alone(
    workbench: Any, scan: Any, qtbot: Any
) -> None:
    painted(workbench, qtbot)
    first = trained(workbench, qtbot)
    training, layers = workbench.segmenting.training, workbench.segmenting.layers
    before = training.found_in(scan)
    with first.block_history():  # as napari does from press to release
        first.paint((20, 10, 10), LUNG)
        drawn = first.data.copy()
        workbench.segment_tab.train_button.click()
        settled(workbench, qtbot)
        qtbot.wait(100)
        assert training.found_in(scan) is before
        assert (first.data == drawn).all()
    qtbot.waitUntil(lambda: training.found_in(scan) is not before)
    assert first.name.endswith("(corrected)")
    assert (first.data == drawn).all()
    assert layers.found_for(scan) is not first
    first.undo()
    assert (first.data != drawn).any()


def test_a_corrected_segmentation_is_a_complete_one(
    workbench: Any, viewer: Any, qtbot: Any
) -> None:
    painted(workbench, qtbot)
    found = trained(workbench, qtbot)
    found.data_setitem((np.array([3]), np.array([4]), np.array([5])), MUSCLE)
    tab = workbench.segment_tab
    qtbot.waitUntil(lambda: found in tab.labels.layers)
    tab.labels.choose(found)
    assert tab.zero.currentData() == "background"
    qtbot.waitUntil(tab.train_button.isEnabled)
    assert tab.note.text() == ""
