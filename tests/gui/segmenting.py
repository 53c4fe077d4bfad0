"""Strokes on the phantom, and waiting for what is learned from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import SHAPE

PLANE = 24
"""Slice with all of them, painted in unless another is named."""

LUNG, MUSCLE, AIR = 3, 2, 1
"""Labels of the strokes: two classes and the background."""

_ORGANS = {AIR: 0, MUSCLE: 2, LUNG: 4}
"""What of the phantom each of them is painted on."""


def truth() -> np.ndarray:
    """Label every voxel of the phantom as the strokes would be; 0 where none would."""
    _, organs = phantom(SHAPE, seed=1)
    labels = np.zeros(SHAPE, np.uint16)
    for label, organ in _ORGANS.items():
        labels[organs.array == organ] = label
    return labels


def stroke(layer: Any, label: int, plane: int = PLANE, count: int = 25) -> None:
    """Paint some voxels of a class in a plane, as one step for undo."""
    places = np.argwhere(truth()[plane] == label)
    places = places[:: max(1, len(places) // count)]
    layer.data_setitem((np.full(len(places), plane), places[:, 0], places[:, 1]), label)


def painted(workbench: Workbench, qtbot: Any) -> Any:
    """Press New and paint strokes of three classes; gives their layer."""
    workbench.tabs.setCurrentIndex(3)
    workbench.segment_tab.new_button.click()
    layer = workbench.segment_tab.labels.layer
    for label in _ORGANS:
        stroke(layer, label)
    qtbot.waitUntil(workbench.segment_tab.train_button.isEnabled)
    return layer


def settled(workbench: Workbench, qtbot: Any) -> None:
    """Wait until nothing is counted, trained or segmented any more."""
    painting, jobs = workbench.segmenting.painting, workbench.jobs

    def rests() -> bool:
        busy = any(name.startswith("segment") for name in jobs._running)
        return not (busy or painting._rest.isActive())

    qtbot.waitUntil(rests)


def trained(workbench: Workbench, qtbot: Any) -> Any:
    """Press Train and wait; gives the layer of the segmentation."""
    image = workbench.header.volume.layer
    workbench.segment_tab.train_button.click()
    settled(workbench, qtbot)
    layer = workbench.segmenting.layers.found_for(image)
    assert layer is not None, workbench.message.text()
    return layer


def tick(tab: Any, image: Any, on: bool = True) -> None:
    """Tick a scan in the list, or take the tick away, as a click would."""
    places = [one for one, _ in tab.more._pairs]
    state = Qt.CheckState.Checked if on else Qt.CheckState.Unchecked
    tab.more.item(places.index(image)).setCheckState(state)


def share_right(found: np.ndarray) -> float:
    """Share of the voxels of the two classes and the background that were found to be so."""
    wanted = truth()
    known = wanted > 0
    return float((found[known] == np.where(wanted == AIR, 0, wanted)[known]).mean())


def answer(workbench: Workbench, yes: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answer every question of the tab; gives the questions."""
    asked: list[str] = []

    def ask(title: str, question: str) -> bool:
        asked.append(question)
        return yes

    monkeypatch.setattr(workbench.segment_tab, "ask", ask)
    return asked
