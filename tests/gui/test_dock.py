"""The Plugins menu, whose entry napari makes a switch, brings a covered workbench forward."""

from __future__ import annotations

from typing import Any

import pytest
from qtpy.QtWidgets import QLabel

from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_phantom, open_workbench


def test_a_covered_workbench_comes_forward_when_it_is_switched(viewer: Any, qtbot: Any) -> None:
    add_phantom(viewer, 1)
    workbench = open_workbench(viewer, qtbot)
    dock = workbench.dock.find()
    other = viewer.window.add_dock_widget(QLabel("other"), name="other", area="right", tabify=True)

    def in_front() -> bool:
        return bool(workbench.isVisible() and not workbench.visibleRegion().isEmpty())

    def switch() -> None:  # what napari does
        dock.setVisible(not dock.isVisible())

    try:
        other.raise_()
        qtbot.waitUntil(lambda: workbench.visibleRegion().isEmpty(), timeout=5000)
        switch()
        qtbot.waitUntil(in_front, timeout=5000)
        switch()
        qtbot.wait(200)
        assert not workbench.isVisible()
        other.raise_()
        switch()
        qtbot.waitUntil(in_front, timeout=5000)
    finally:
        viewer.window.remove_dock_widget(other)


def test_a_panel_that_is_shown_again_is_followed_once(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dock:
        """As under PyQt6, where a connection of the same kind made twice raises."""

        def __init__(self) -> None:
            self.connected: list[Any] = []
            self.visibilityChanged = self

        def connect(self, slot: Any, kind: Any = None) -> None:
            if self.connected:
                raise TypeError("connection is not unique")
            self.connected.append(slot)

        def raise_(self) -> None: ...

    first, second = Dock(), Dock()
    with monkeypatch.context() as patch:
        for dock in (first, first, second):
            patch.setattr(workbench.dock, "find", lambda dock=dock: dock)
            workbench.dock.follow()
    assert len(first.connected) == len(second.connected) == 1
