"""Layers of a match that the user removes, one or many at once."""

from __future__ import annotations

from typing import Any

import pytest

from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import match, named

WAIT_MS = 60_000


def names(viewer: Any) -> list[str]:
    return [str(layer.name) for layer in viewer.layers]


def test_a_removed_copy_is_let_go_once_napari_is_done(
    matched: Workbench, other: Any, viewer: Any, qtbot: Any
) -> None:
    viewer.layers.selection = {named(viewer, "side by side"), named(viewer, "matched patches")}
    viewer.layers.remove_selected()
    qtbot.waitUntil(lambda: not matched.match_tab.beside.isChecked(), timeout=WAIT_MS)
    assert other.visible
    assert len(named(viewer, "matched patches").data) > 5


def test_a_removed_random_view_stays_away(pair: Workbench, viewer: Any, qtbot: Any) -> None:
    tab = pair.match_tab
    tab.reference.choose(None)
    match(pair, qtbot)
    viewer.layers.remove(named(viewer, "– random view"))
    qtbot.waitUntil(lambda: not tab.beside.isChecked(), timeout=WAIT_MS)
    assert not [name for name in names(viewer) if "random view" in name]
    tab.beside.click()  # asks for it
    assert named(viewer, "– random view").visible
    tab.beside.click()
    viewer.layers.remove(named(viewer, "– random view"))
    qtbot.waitUntil(lambda: not pair.matching.layers.is_copy_gone, timeout=WAIT_MS)
    assert not [name for name in names(viewer) if "random view" in name]


def test_placing_does_not_renew_the_choices(
    matched: Workbench, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    qtbot.waitUntil(lambda: not matched._soon.isActive(), timeout=WAIT_MS)
    offered: list[int] = []
    own = matched.matching.offer
    monkeypatch.setattr(matched.matching, "offer", lambda: (offered.append(1), own()))
    matched.match_tab.beside.click()
    assert offered == []
    qtbot.waitUntil(lambda: not matched._soon.isActive(), timeout=WAIT_MS)
    qtbot.wait(20)
    assert len(offered) == 1


# The last one: napari 0.9.2 with Mesa ends the process when a layer is drawn and others removed in
# a window all layers of which were deleted so.
def test_all_layers_may_be_deleted_at_once(matched: Workbench, viewer: Any, qtbot: Any) -> None:
    matched.match_tab.unmatched.setChecked(True)
    viewer.layers.select_all()
    viewer.layers.remove_selected()  # walks along the layers that were selected
    qtbot.waitUntil(lambda: matched.matching.scans is None, timeout=WAIT_MS)
    assert names(viewer) == []
    assert "was removed" in matched.message.text()
    assert matched.header.volume.layer is None
