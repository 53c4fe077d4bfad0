"""The Plugins menu, whose entry napari makes a switch, brings a covered workbench forward."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QLabel

from tests.gui.conftest import add_phantom, open_workbench


def test_a_covered_workbench_comes_forward_when_it_is_switched(viewer: Any, qtbot: Any) -> None:
    add_phantom(viewer, 1)
    workbench = open_workbench(viewer, qtbot)
    dock = workbench._dock()
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
