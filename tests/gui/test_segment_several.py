"""Several labelled scans of one window, learned from together on the Segment tab."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any
from weakref import ref

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.widgets.placement import geometry_of
from napari_s2dc.widgets.segment_layers import name_class
from napari_s2dc.widgets.segment_meaning import Meaning
from napari_s2dc.widgets.segment_pairs import MoreScans, called_after, pair_up
from tests.gui.conftest import SHAPE, add_phantom
from tests.gui.segmenting import LUNG, painted, settled, stroke, tick, trained

pytestmark = pytest.mark.usefixtures("light_quick")

MASK = {2: 1, 4: 2}
"""Muscle and lung of the phantom, and their labels in a complete mask."""


def mask(viewer: Any, image: Any, seed: int, name: str = "") -> Any:
    """Add a complete mask of a torso, as a file of labels would come up."""
    _, organs = phantom(SHAPE, seed=seed)
    data = np.zeros(SHAPE, np.uint8)
    for organ, label in MASK.items():
        data[organs.array == organ] = label
    about = {"s2dc": {"path": f"/nowhere/labelsTr/torso_{seed}.nii.gz"}}
    return viewer.add_labels(
        data, name=name or f"{image.name} mask", metadata=about, **geometry_of(image)
    )


@pytest.fixture
def two(workbench: Any, viewer: Any, scan: Any, qtbot: Any) -> tuple[Any, Any, Any, Any]:
    """Two torsos and their masks, the first one chosen."""
    other = add_phantom(viewer, seed=2)
    labels, more = mask(viewer, scan, 1), mask(viewer, other, 2)
    workbench.tabs.setCurrentIndex(3)
    workbench.header.volume.choose(scan)
    tab = workbench.segment_tab
    qtbot.waitUntil(lambda: tab.labels.layer is labels and tab.train_button.isEnabled())
    return scan, labels, other, more


def rows(workbench: Any) -> list[str]:
    """Read what the list offers."""
    more = workbench.segment_tab.more
    return [more.item(row).text() for row in range(more.count())]


def test_labels_go_to_the_scan_on_their_grid_with_the_name_most_like_theirs(
    two: tuple[Any, Any, Any, Any], workbench: Any, viewer: Any
) -> None:
    scan, labels, other, more = two
    assert pair_up([other, scan], [labels, more], lambda _: None) == [(other, more), (scan, labels)]
    chosen = {id(scan): more}
    assert pair_up([other, scan], [labels, more], lambda one: chosen.get(id(one))) == [(scan, more)]
    labels.name = "first"  # called after neither
    assert pair_up([other, scan], [labels, more], lambda one: chosen.get(id(one))) == [
        (other, labels),
        (scan, more),
    ]
    assert pair_up([scan, other], [more], lambda _: None) == [(other, more)]
    tick(workbench.segment_tab, other)
    more.translate = np.asarray(more.translate) + 9.0
    assert pair_up([scan, other], [more], lambda _: None) == []
    workbench.segment_tab.train_button.click()
    assert f"lies elsewhere: choose {other.name} as volume" in workbench.message.text()


def test_labels_that_are_called_after_a_scan_are_given_to_no_other(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    plain, more = add_phantom(viewer, seed=2), add_phantom(viewer, seed=3)
    labels = mask(viewer, scan, 1)
    second = mask(viewer, more, 3, name=f"{more.name} [1]")  # files of one name
    tab = workbench.segment_tab
    workbench.tabs.setCurrentIndex(3)
    assert called_after(labels, [plain, scan]) == [scan]
    assert called_after(second, [plain, scan, more]) == [more]
    assert pair_up([plain, scan, more], [labels, second], lambda _: None) == [
        (scan, labels),
        (more, second),
    ]
    workbench.header.volume.choose(scan)
    qtbot.waitUntil(tab.train_button.isEnabled)
    workbench.header.volume.choose(plain)  # has none of its own
    assert not tab.train_button.isEnabled()
    assert f"{labels.name} is of {scan.name}: choose it again" in tab.note.text()
    tab.labels.activated.emit(tab.labels.currentIndex())
    assert tab.train_button.isEnabled()
    assert tab.labels.layer is labels


def test_what_was_ticked_stays_together_whatever_the_names_say(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    other = add_phantom(viewer, seed=2)
    first, second = mask(viewer, scan, 1, name="first"), mask(viewer, other, 2, name="second")
    tab = workbench.segment_tab
    workbench.tabs.setCurrentIndex(3)
    workbench.header.volume.choose(scan)
    pairs = {scan: tab.labels.layer, other: ({first, second} - {tab.labels.layer}).pop()}
    tick(tab, other)
    for chosen in (other, scan):
        workbench.header.volume.choose(chosen)
        assert {chosen: tab.labels.layer, **dict(tab.more.pairs)} == pairs
    scan.name, other.name = "a", "second, but another one"
    assert {scan: tab.labels.layer, **dict(tab.more.pairs)} == pairs


def test_the_row_is_there_only_with_other_labelled_scans(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    tab = workbench.segment_tab
    workbench.tabs.setCurrentIndex(3)
    assert not tab.form.isRowVisible(tab.more)
    painted(workbench, qtbot)
    other = add_phantom(viewer, seed=2)
    workbench.header.volume.choose(scan)
    assert not tab.form.isRowVisible(tab.more)
    more = mask(viewer, other, 2)
    assert tab.form.isRowVisible(tab.more)
    assert rows(workbench) == [other.name]
    more.name = "mine"
    assert rows(workbench) == [f"{other.name} (mine)"]
    viewer.layers.remove(more)
    qtbot.waitUntil(lambda: not tab.form.isRowVisible(tab.more))


def test_quick_learns_from_all_that_are_ticked_as_the_engine_does(
    two: tuple[Any, Any, Any, Any], workbench: Any, qtbot: Any
) -> None:
    from napari_s2dc.engine.fewshot import train_model
    from napari_s2dc.engine.labelled_scans import LabelledScan
    from napari_s2dc.engine.progress import finish
    from napari_s2dc.engine.segment import segment_volume
    from napari_s2dc.volumes.volume import Volume
    from napari_s2dc.widgets.volumes_of_layers import volume_from_layer

    scan, labels, other, more = two
    tab, training = workbench.segment_tab, workbench.segmenting.training
    alone = trained(workbench, qtbot).data.copy()
    assert len(training.model.metadata["scans"]) == 1
    tick(tab, other)
    assert f"{labels.name} and 1 more" in tab.train_button.text()
    found = trained(workbench, qtbot)
    facts = training.model.metadata["scans"]
    assert [one["name"] for one in facts] == [scan.name, other.name]
    assert (found.data != alone).any()
    images = [volume_from_layer(layer) for layer in (scan, other)]
    scans = [
        LabelledScan(image, Volume(np.asarray(layer.data), image.affine))
        for image, layer in zip(images, (labels, more), strict=True)
    ]
    network, settings = workbench.session.encoder.network, workbench.segmenting.choices.settings()
    model = finish(train_model(scans, network, settings))
    np.testing.assert_array_equal(found.data, finish(segment_volume(images[0], model)).labels)


def test_who_goes_on_to_another_of_the_scans_keeps_them_together(
    two: tuple[Any, Any, Any, Any], workbench: Any, qtbot: Any
) -> None:
    scan, labels, other, more = two
    tab = workbench.segment_tab
    tick(tab, other)
    workbench.header.volume.choose(other)
    assert tab.labels.layer is more
    assert tab.more.pairs == [(scan, labels)]
    tick(tab, scan, False)
    workbench.header.volume.choose(scan)
    assert tab.labels.layer is labels
    assert tab.more.pairs == []


def test_a_glance_at_another_scan_changes_nothing_of_what_is_together(
    two: tuple[Any, Any, Any, Any], workbench: Any, viewer: Any
) -> None:
    scan, labels, other, _ = two
    tab = workbench.segment_tab
    tick(tab, other)
    third = add_phantom(viewer, seed=3)
    mask(viewer, third, 3)
    workbench.header.volume.choose(third)
    assert tab.more.pairs == []
    workbench.header.volume.choose(other)
    assert tab.more.pairs == [(scan, labels)]
    workbench.header.volume.choose(third)
    tick(tab, scan)  # something new is put together
    assert tab.more.pairs == [(scan, labels)]
    workbench.header.volume.choose(other)
    assert tab.more.pairs == []


def test_a_stroke_in_labels_of_another_scan_does_not_make_them_those_of_the_volume(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    strokes = painted(workbench, qtbot)
    other = add_phantom(viewer, seed=2)  # on the same grid, without labels
    workbench.header.volume.choose(other)
    tab = workbench.segment_tab
    assert tab.labels.layer is strokes  # there are no others
    stroke(strokes, LUNG, plane=20)
    settled(workbench, qtbot)
    assert workbench.segmenting.painting.chosen_for(other) is None
    assert f"is of {scan.name}" in tab.note.text()
    assert not tab.train_button.isEnabled()


def test_layers_are_not_kept_by_the_list(qapp: Any) -> None:
    class Layer:
        name = "scan"

    more = MoreScans()
    chosen, image, labels = Layer(), Layer(), Layer()
    more.offer([(image, labels)], chosen)
    more.item(0).setCheckState(Qt.CheckState.Checked)
    assert more.pairs == [(image, labels)]
    gone = ref(image)
    del image
    gc.collect()
    assert gone() is None
    assert more.pairs == []


def test_labels_that_cannot_be_read_are_named(
    two: tuple[Any, Any, Any, Any], workbench: Any, qtbot: Any
) -> None:
    from napari_s2dc.engine.progress import finish
    from napari_s2dc.errors import S2DCError

    class Gone:
        shape = SHAPE

        def __array__(self, *_: Any, **__: Any) -> Any:
            raise OSError("the disk is gone")

    _, _, other, more = two
    tick(workbench.segment_tab, other)
    task, _ = workbench.segmenting.choices.task()
    broken = [replace(one, labels=Gone()) if one.labels is more.data else one for one in task.scans]
    with pytest.raises(S2DCError, match=f"{more.name} cannot be read: the disk is gone"):
        finish(replace(task, scans=tuple(broken)).load())


def test_fine_tuning_learns_from_all_that_are_ticked(
    two: tuple[Any, Any, Any, Any], workbench: Any, qtbot: Any
) -> None:
    scan, _, other, _ = two
    tab = workbench.segment_tab
    tick(tab, other)
    tab.mode.setCurrentIndex(tab.mode.findData("finetune"))
    tab.steps.setValue(10)
    trained(workbench, qtbot)
    facts = workbench.segmenting.training.model.metadata["scans"]
    assert [one["name"] for one in facts] == [scan.name, other.name]


def test_a_stroke_trains_the_head_of_all_scans_on(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    strokes = painted(workbench, qtbot)
    other = add_phantom(viewer, seed=2)
    workbench.header.volume.choose(other)
    second = painted(workbench, qtbot)
    assert second is not strokes
    workbench.header.volume.choose(scan)
    tab = workbench.segment_tab
    assert tab.labels.layer is strokes
    assert tab.more.pairs == []
    tick(tab, other)
    assert tab.more.pairs == [(other, second)]
    trained(workbench, qtbot)
    model = workbench.segmenting.training.model
    tab.refresh.setChecked(True)
    stroke(strokes, LUNG, plane=20, count=60)
    qtbot.waitUntil(lambda: workbench.jobs.is_running("segment training"))
    settled(workbench, qtbot)
    refreshed = workbench.segmenting.training.model
    assert refreshed.metadata["steps"] < model.metadata["steps"]  # trained on, not anew
    assert refreshed.metadata["scans"] == model.metadata["scans"]
    tick(tab, other, False)  # features of one scan are no longer those of the head
    stroke(strokes, LUNG, plane=22, count=60)
    qtbot.waitUntil(lambda: workbench.segmenting.training.model.tensors is not refreshed.tensors)
    settled(workbench, qtbot)
    alone = workbench.segmenting.training.model
    assert len(alone.metadata["scans"]) == 1
    assert alone.metadata["steps"] == model.metadata["steps"]
    tab.refresh.setChecked(False)


def test_what_does_not_fit_together_is_said(
    two: tuple[Any, Any, Any, Any], workbench: Any, qtbot: Any
) -> None:
    _, labels, other, more = two
    tab = workbench.segment_tab
    tick(tab, other)
    assert tab.train_button.isEnabled()
    name_class(labels, {1: "muscle"})
    name_class(more, {1: "class 1"})  # nobody has named it
    assert workbench.segmenting.choices.problem() == ""
    name_class(more, {1: "Liver"})
    workbench.segmenting.choices.update()
    assert f"Class 1 is muscle in {labels.name} and Liver in {more.name}" in tab.note.text()
    assert not tab.train_button.isEnabled()
    name_class(more, {1: "Muscle"})
    tab.zero.setCurrentIndex(tab.zero.findData("unlabelled"))
    tab.zero.activated.emit(tab.zero.currentIndex())
    assert f"0 does not mean the same in {more.name} and {labels.name}" in tab.note.text()
    tab.zero.setCurrentIndex(tab.zero.findData("background"))
    tab.zero.activated.emit(tab.zero.currentIndex())
    assert tab.train_button.isEnabled()
    more.metadata.clear()  # as labels that napari's own reader has opened: nobody knows
    tab.zero.setCurrentIndex(tab.zero.findData("unlabelled"))
    tab.zero.activated.emit(tab.zero.currentIndex())
    assert tab.train_button.isEnabled()
    name_class(more, {1: "", 2: ""})
    workbench.segmenting.painting._meanings[more] = Meaning(background=2)
    workbench.segmenting.choices.update()
    assert f"Class 2 means background in {more.name}, and none in {labels.name}" in tab.note.text()
    del workbench.segmenting.painting._meanings[more]
    workbench.segmenting.choices.update()
    assert tab.train_button.isEnabled()
    workbench.segmenting.painting._strokes[more] = 1  # painted in, with the tab saying unlabelled
    tab.zero.setCurrentIndex(tab.zero.findData("background"))
    tab.zero.activated.emit(tab.zero.currentIndex())
    assert f"0 does not mean the same in {more.name}" in tab.note.text()
    tab.zero.setCurrentIndex(tab.zero.findData("unlabelled"))
    tab.zero.activated.emit(tab.zero.currentIndex())
    more.data = np.zeros(SHAPE, np.uint8)
    qtbot.waitUntil(tab.train_button.isEnabled)
    tab.train_button.click()
    qtbot.waitUntil(lambda: "holds no label" in workbench.message.text())
    assert workbench.segmenting.training.model is None


def test_voxels_of_another_size_are_said(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    array, coarse = np.asarray(scan.data), np.asarray(scan.data)[::2, ::2, ::2]
    levels = viewer.add_image([array, coarse], multiscale=True, name="levels")
    viewer.add_labels(np.ones(array.shape, np.uint8), name="levels mask")
    other = viewer.add_image(coarse, scale=(2, 2, 2), name="coarse")
    viewer.add_labels(np.ones(coarse.shape, np.uint8), scale=(2, 2, 2), name="coarse mask")
    tab, level = workbench.segment_tab, workbench.header.level
    workbench.tabs.setCurrentIndex(3)
    workbench.header.volume.choose(levels)
    tick(tab, other)
    qtbot.waitUntil(tab.train_button.isEnabled)
    assert "coarse has voxels of 2 × 2 × 2 mm and levels of 1 × 1 × 1 mm" in tab.note.text()
    level.setCurrentIndex(1)
    assert "has voxels of" not in tab.note.text()
    level.setCurrentIndex(0)
    assert "has voxels of" in tab.note.text()
