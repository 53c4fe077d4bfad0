"""The class table and what labels mean on the Segment tab."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QColorDialog, QLineEdit

from napari_s2dc.widgets.placement import geometry_of
from napari_s2dc.widgets.segment_classes import ClassRow, ClassTable
from napari_s2dc.widgets.segment_layers import colours_of, names_of, recolour_class
from tests.gui.conftest import add_labels, add_phantom
from tests.gui.segmenting import LUNG, MUSCLE, painted, settled, stroke


def test_the_table_shows_what_is_painted_and_changes_the_layer(
    workbench: Any, viewer: Any, qtbot: Any, monkeypatch: Any
) -> None:
    layer = painted(workbench, qtbot)
    settled(workbench, qtbot)
    table = workbench.segment_tab.classes
    assert [row.label for row in table.rows] == [1, 2, 3]
    assert [row.name for row in table.rows] == ["background", "class 2", ""]
    assert [row.voxels for row in table.rows] == [
        int((layer.data == label).sum()) for label in (1, 2, 3)
    ]
    colours = colours_of(layer, range(1, 20))
    table.item(2, 2).setText("  lung ")
    assert names_of(layer) == {0: "background", 1: "background", 2: "class 2", 3: "lung"}
    monkeypatch.setattr(QColorDialog, "getColor", lambda *_: QColor(0, 255, 0))
    table.itemDoubleClicked.emit(table.item(2, 0))
    assert colours_of(layer, range(1, 20)) == {**colours, LUNG: (0.0, 1.0, 0.0)}
    viewer.layers.selection.active = workbench.header.volume.layer
    table.itemClicked.emit(table.item(1, 1))
    assert layer.selected_label == MUSCLE
    assert viewer.layers.selection.active is layer
    layer.selected_label = LUNG  # in napari's own controls
    assert {item.row() for item in table.selectedItems()} == {2}


def test_add_class_takes_the_next_number(workbench: Any, qtbot: Any) -> None:
    layer = painted(workbench, qtbot)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 300)
    settled(workbench, qtbot)
    workbench.segment_tab.class_button.click()
    assert layer.selected_label == 301
    assert [row.label for row in workbench.segment_tab.classes.rows] == [1, 2, 3, 300, 301]
    small = workbench._viewer.add_labels(np.full((4, 5, 6), 255, np.uint8), name="small")
    workbench.segment_tab.labels.choose(small)
    settled(workbench, qtbot)
    workbench.segment_tab.class_button.click()
    assert "small cannot hold class 256" in workbench.message.text()


def test_meaning_is_remembered_by_layer(workbench: Any, viewer: Any, scan: Any, qtbot: Any) -> None:
    tab = workbench.segment_tab
    mine = painted(workbench, qtbot)
    assert tab.background.currentData() == 1
    organs = add_labels(viewer, scan)
    tab.labels.choose(organs)
    assert tab.background.currentData() is None
    tab.zero.setCurrentIndex(1)
    tab.zero.activated.emit(1)
    assert not tab.background.isEnabled()
    assert "Background is what has 0" in tab.background.toolTip()
    tab.labels.choose(mine)
    assert tab.zero.currentIndex() == 0
    assert tab.background.currentData() == 1
    tab.labels.choose(organs)
    assert tab.zero.currentIndex() == 1


def test_labels_from_a_label_file_are_complete(workbench: Any, viewer: Any, scan: Any) -> None:
    layer = viewer.add_labels(
        np.ones(scan.data.shape, np.uint8),
        name="mask",
        metadata={"s2dc": {"path": "/data/labelsTr/case.nii.gz"}},
        **geometry_of(scan),
    )
    workbench.segment_tab.labels.choose(layer)
    assert workbench.segment_tab.zero.currentData() == "background"


def test_the_labels_of_the_scan_are_suggested(workbench: Any, viewer: Any, scan: Any) -> None:
    other = add_phantom(viewer, 2)
    layers = {
        name: viewer.add_labels(np.zeros(scan.data.shape, np.uint8), name=name, **geometry_of(scan))
        for name in ("torso 1 labels", "torso 2 labels")
    }
    workbench.header.volume.choose(other)
    assert workbench.segment_tab.labels.layer is layers["torso 2 labels"]
    workbench.header.volume.choose(scan)
    assert workbench.segment_tab.labels.layer is layers["torso 1 labels"]
    combo = workbench.segment_tab.labels
    combo.choose(layers["torso 2 labels"])
    combo.activated.emit(combo.currentIndex())  # by the user
    workbench._offer()
    assert workbench.segment_tab.labels.layer is layers["torso 2 labels"]


def test_painting_goes_on_unwatched_while_the_panel_is_hidden(
    workbench: Any, viewer: Any, qtbot: Any
) -> None:
    layer = painted(workbench, qtbot)
    settled(workbench, qtbot)
    before = workbench.segmenting.painting.counts
    workbench.hide()
    stroke(layer, LUNG, plane=20)
    qtbot.wait(400)
    assert workbench.segmenting.painting.counts == before
    workbench.show()
    qtbot.waitUntil(lambda: workbench.segmenting.painting.counts != before)


def test_strokes_that_nobody_watched_are_noticed_later(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    layer, heard = painted(workbench, qtbot), []
    other = add_labels(viewer, scan)
    settled(workbench, qtbot)
    workbench.segmenting.painting.painted.connect(lambda: heard.append(True))
    workbench.hide()
    stroke(layer, LUNG, plane=20)
    workbench.show()
    qtbot.waitUntil(lambda: heard == [True])
    stroke(layer, LUNG, plane=21)
    workbench.segment_tab.labels.choose(other)  # before the mouse has come to rest
    settled(workbench, qtbot)
    assert heard == [True]
    workbench.segment_tab.labels.choose(layer)
    qtbot.waitUntil(lambda: heard == [True, True])


def test_another_slice_is_not_counted_again(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any, monkeypatch: Any
) -> None:
    from napari_s2dc.widgets import segment_painting

    layer = painted(workbench, qtbot)
    settled(workbench, qtbot)
    own, counted = segment_painting.counted, []

    def count(labels: Any, name: str) -> dict[int, int]:
        counted.append(name)
        return own(labels, name)

    monkeypatch.setattr(segment_painting, "counted", count)
    for plane in (3, 4, 5):
        viewer.dims.set_point(0, float(scan.data_to_world((plane, 0, 0))[0]))
        qtbot.wait(20)
    settled(workbench, qtbot)
    assert counted == []
    layer.undo()
    settled(workbench, qtbot)
    assert counted == [layer.name]


def test_a_class_with_a_huge_number_is_recoloured(viewer: Any) -> None:
    data = np.zeros((4, 5, 6), np.uint32)
    data[0, 0, :3] = 600_000_000, 500_000_000, 7
    layer = viewer.add_labels(data)
    before = colours_of(layer, (7, 500_000_000))
    recolour_class(layer, 600_000_000, (1.0, 0.0, 0.0), [500_000_000])
    assert colours_of(layer, (7, 500_000_000)) == before
    assert colours_of(layer, [600_000_000]) == {600_000_000: (1.0, 0.0, 0.0)}


def test_colours_of_a_layer_that_shows_one_class_only_are_kept(viewer: Any) -> None:
    layer = viewer.add_labels(np.ones((4, 5, 6), np.uint8))
    colours = colours_of(layer, range(1, 9))
    layer.selected_label, layer.show_selected_label = 3, True
    assert colours_of(layer, range(1, 9)) == colours
    recolour_class(layer, 2, (1.0, 0.0, 0.0))
    layer.show_selected_label = False
    assert colours_of(layer, range(1, 9)) == {**colours, 2: (1.0, 0.0, 0.0)}


def test_a_name_that_is_being_typed_is_not_taken_away(workbench: Any, qtbot: Any) -> None:
    layer = painted(workbench, qtbot)
    settled(workbench, qtbot)
    table = workbench.segment_tab.classes
    table.editItem(table.item(1, 2))
    (field,) = table.findChildren(QLineEdit)
    field.setText("muscle")
    stroke(layer, LUNG, plane=20)
    settled(workbench, qtbot)
    qtbot.keyClick(field, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: names_of(layer)[MUSCLE] == "muscle")
    assert table.rows[2].voxels == int((layer.data == LUNG).sum())


def test_why_labels_cannot_be_counted_is_said(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    labels = np.zeros(scan.data.shape, np.int16)
    labels[3, 4, 5] = -1
    layer = viewer.add_labels(labels, name="wrong", **geometry_of(scan))
    tab = workbench.segment_tab
    workbench.tabs.setCurrentIndex(3)
    tab.labels.choose(layer)
    qtbot.waitUntil(lambda: "wrong holds negative values" in tab.note.text())
    assert not tab.train_button.isEnabled()
    stroke(layer, LUNG)
    layer.data_setitem((np.array([3]), np.array([4]), np.array([5])), MUSCLE)
    qtbot.waitUntil(tab.train_button.isEnabled)


def test_only_classes_that_changed_are_written_into_the_table_anew(qtbot: Any) -> None:
    table = ClassTable()
    qtbot.addWidget(table)
    rows = [ClassRow(label, f"class {label}", (0.1, 0.5, 0.5), label) for label in range(1, 301)]
    table.show_classes(rows, 3)
    kept, renewed = table.item(7, 2), table.item(8, 2)
    rows[8] = replace(rows[8], name="liver")
    table.item(7, 2).setText("class 8")  # as it was
    table.show_classes(rows, 4)
    assert table.item(7, 2) is kept
    assert table.item(8, 2) is not renewed
    assert table.item(8, 2).text() == "liver"
    assert [index.row() for index in table.selectionModel().selectedRows()] == [3]
    table.show_classes(rows[:5], 4)
    assert table.rowCount() == 5
    table.show_classes(rows[4:], 5)
    assert [table.item(number, 1).text() for number in (0, 295)] == ["5", "300"]
