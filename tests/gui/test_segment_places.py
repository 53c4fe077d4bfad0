"""Where to label next on the Segment tab."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_s2dc.widgets.segment_use import places
from tests.gui.conftest import SHAPE
from tests.gui.segmenting import LUNG, painted, settled, trained

pytestmark = pytest.mark.usefixtures("light_quick")


def test_the_viewer_goes_from_one_uncertain_place_to_the_next(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    button = workbench.segment_tab.next_button
    assert "Segment the volume first" in button.toolTip()
    strokes = painted(workbench, qtbot)
    trained(workbench, qtbot)
    viewer.layers.selection.active = scan
    seen = []
    for number in (1, 2, 3, 4, 5, 1):
        button.click()
        settled(workbench, qtbot)
        assert f"Place {number} of 5" in workbench.message.text()
        voxel = np.rint(scan.world_to_data(viewer.dims.point)).astype(int)
        seen.append(tuple(int(part) for part in voxel))
    assert len(set(seen)) == 5
    assert seen[5] == seen[0]
    assert viewer.layers.selection.active is strokes
    found = workbench.segmenting.training.found_in(scan)
    # Each is the most uncertain voxel of its patch, in tissue, where nothing is labelled.
    for place in seen:
        patch = tuple(slice(part // 4 * 4, part // 4 * 4 + 4) for part in place)
        assert found.uncertainty[place] == found.uncertainty[patch].max()
        assert not strokes.data[patch].any()


def test_features_of_the_size_of_a_stroke_are_preferred(
    workbench: Any, scan: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_s2dc.engine import label_next
    from napari_s2dc.engine.progress import finish

    used: list[Any] = []
    monkeypatch.setattr(label_next, "places_to_label", lambda *given: used.append(given[2]))
    painted(workbench, qtbot)
    trained(workbench, qtbot)
    training = workbench.segmenting.training
    ready, found, model = training.features_of(scan), training.found_in(scan), training.model
    (own,) = ready.features.embeddings
    for session in (SimpleNamespace(shape=SHAPE, stride=stride) for stride in (32, 8)):
        finish(places(found, None, ready.scan, model, "cpu", ready, session))
    assert used[0] is own
    assert used[1].stride == 8


def test_a_stroke_makes_other_places_the_best(workbench: Any, scan: Any, qtbot: Any) -> None:
    strokes = painted(workbench, qtbot)
    trained(workbench, qtbot)
    workbench.segment_tab.next_button.click()
    settled(workbench, qtbot)
    actions = workbench.segmenting.places
    place = actions._places[0].voxel
    strokes.data_setitem(tuple(np.array([part]) for part in place), LUNG)
    settled(workbench, qtbot)
    assert actions._places == []
    workbench.segment_tab.next_button.click()
    settled(workbench, qtbot)
    assert len(actions._places) == 5
    assert place not in [one.voxel for one in actions._places]
