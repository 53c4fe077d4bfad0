"""The segmentation compared with a reference on the Segment tab."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication

from napari_s2dc.engine.evaluate import evaluate_labels
from napari_s2dc.volumes.volume import Volume
from napari_s2dc.widgets.placement import geometry_of
from napari_s2dc.widgets.volumes_of_layers import world_matrix
from tests.gui.segmenting import LUNG, MUSCLE, painted, settled, trained, truth

pytestmark = pytest.mark.usefixtures("light_quick")


def test_scores_are_those_of_the_engine_and_can_be_copied(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    box = workbench.segment_tab.scores
    assert "Segment the volume first" in box.compare_button.toolTip()
    painted(workbench, qtbot)
    workbench.segmenting.painting._rename(LUNG, "lung")
    found = trained(workbench, qtbot)
    reference = truth()
    reference[0, 0, :4] = 99  # a class that the model does not know is left out
    layer = viewer.add_labels(reference, name="truth", **geometry_of(scan))
    assert "Choose a labels layer" in box.compare_button.toolTip()
    box.reference.choose(layer)
    assert box.compare_button.text() == f"Compare {found.name} with truth"
    assert not box.copy_button.isEnabled()
    box.compare_button.click()
    settled(workbench, qtbot)
    known = np.where(np.isin(reference, (MUSCLE, LUNG)), reference, 0)
    place = world_matrix(scan)
    scores = evaluate_labels(Volume(np.asarray(found.data), place), Volume(known, place))
    lines = [
        f"{name}\t{one.dice:.3f}\t{one.hd95_mm:.2f}"
        for name, one in zip(("class 2", "lung"), scores.classes, strict=True)
    ]
    mean = f"mean\t{scores.mean_dice:.3f}\t{scores.mean_hd95_mm:.2f}"
    box.copy_button.click()
    text = QApplication.clipboard().text()
    assert text.splitlines() == ["class\tDice\tHD95 (mm)", *lines, mean]
    trained(workbench, qtbot)
    assert box.table.rowCount() == 0  # of another segmentation


def test_a_reference_of_another_grid_is_refused(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    painted(workbench, qtbot)
    trained(workbench, qtbot)
    moved = {**geometry_of(scan), "translate": np.asarray(scan.translate) + 1}
    workbench.segment_tab.scores.reference.choose(
        viewer.add_labels(truth(), name="elsewhere", **moved)
    )
    button = workbench.segment_tab.scores.compare_button
    assert not button.isEnabled()
    assert "lies elsewhere" in button.toolTip()


@pytest.mark.parametrize("has_all", [True, False])
def test_classes_are_paired_by_name_where_the_reference_has_all_of_them(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any, has_all: bool
) -> None:
    box = workbench.segment_tab.scores
    painted(workbench, qtbot)
    for label, name in ((MUSCLE, "muscle"), (LUNG, "lung")):
        workbench.segmenting.painting._rename(label, name)
    trained(workbench, qtbot)
    numbered, renumbered = truth(), truth()
    renumbered[numbered == MUSCLE], renumbered[numbered == LUNG] = LUNG, MUSCLE
    names = ["Lung", "muscle" if has_all else "flesh"]
    other = viewer.add_labels(
        renumbered,
        name="other numbers",
        features={"index": [MUSCLE, LUNG], "name": names},
        **geometry_of(scan),
    )
    tables = []
    for reference in (viewer.add_labels(numbered, name="same", **geometry_of(scan)), other):
        box.reference.choose(reference)
        box.compare_button.click()
        settled(workbench, qtbot)
        tables.append(box.as_text())
    assert (tables[0] == tables[1]) == has_all


def test_a_corrected_segmentation_is_compared_until_there_is_a_new_one(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    box = workbench.segment_tab.scores
    strokes = painted(workbench, qtbot)
    found = trained(workbench, qtbot)
    reference = viewer.add_labels(truth(), name="truth", **geometry_of(scan))
    box.reference.choose(reference)
    assert box.compared.layer is found
    found.data_setitem(tuple(np.argwhere(truth() == LUNG).T), LUNG)
    wanted = f"Compare {scan.name} – segmentation (corrected) with truth"
    qtbot.waitUntil(lambda: box.compare_button.text() == wanted)
    box.compare_button.click()
    settled(workbench, qtbot)
    known = np.where(np.isin(truth(), (MUSCLE, LUNG)), truth(), 0)
    place = world_matrix(scan)
    scores = evaluate_labels(Volume(np.asarray(found.data), place), Volume(known, place))
    assert box.as_text().splitlines()[-1].split("\t")[1] == f"{scores.mean_dice:.3f}"
    second = trained(workbench, qtbot)
    assert box.compared.layer is second
    # What the user chooses stays chosen: any labels on the grid.
    box.compared.choose(strokes)
    box.compared.activated.emit(box.compared.currentIndex())
    trained(workbench, qtbot)
    assert box.compared.layer is strokes
    box.compare_button.click()
    settled(workbench, qtbot)
    assert len(box.as_text().splitlines()) == 5  # three classes, and the one without a name
    box.reference.choose(strokes)
    assert "Choose another reference" in box.compare_button.toolTip()
    viewer.layers.remove(strokes)
    qtbot.waitUntil(lambda: box.compared.layer is second)
    other = {**geometry_of(scan), "translate": np.asarray(scan.translate) + 1}
    elsewhere = viewer.add_labels(truth(), name="elsewhere", **other)
    assert elsewhere in box.reference.layers
    assert elsewhere not in box.compared.layers
