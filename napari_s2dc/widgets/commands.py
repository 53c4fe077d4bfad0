"""Menu entries under Layers: they open the workbench on one of its tabs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_s2dc.widgets.workbench import Workbench

__all__ = ["open_consistency", "open_embed"]

DOCK = "Workbench (S²DC)"
"""Name that napari gives the dock when it is opened from the Plugins menu: both are the same."""


def open_embed() -> None:
    """Open the workbench on its Embed tab, the active layer chosen (npe2 menu command)."""
    _open("Embed")


def open_consistency() -> None:
    """Open the workbench on its Consistency tab, the active layer chosen (npe2 menu command)."""
    _open("Consistency")


def _open(tab: str) -> Workbench | None:
    import napari

    from napari_s2dc.widgets.workbench import Workbench

    viewer = napari.current_viewer()
    if viewer is None:
        return None
    docked = viewer.window.dock_widgets.values()
    workbench = next((widget for widget in docked if isinstance(widget, Workbench)), None)
    if workbench is None:
        workbench = Workbench(viewer)
        viewer.window.add_dock_widget(workbench, name=DOCK, area="right")
    workbench.show_tab(tab)
    return workbench
