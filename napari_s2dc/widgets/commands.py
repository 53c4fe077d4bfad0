"""Menu entries under Layers: they open the workbench on one of its tabs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_s2dc.widgets.workbench import Workbench

__all__ = ["open_consistency", "open_embed", "open_match", "open_segment", "open_tab"]

DOCK = "Workbench (S²DC)"
"""Name that napari gives the dock when it is opened from the Plugins menu: both are the same."""


def open_embed() -> None:
    """Open the workbench on its Embed tab, the active layer chosen (npe2 menu command)."""
    _open("Embed")


def open_consistency() -> None:
    """Open the workbench on its Consistency tab, the active layer chosen (npe2 menu command)."""
    _open("Consistency")


def open_match() -> None:
    """Open the workbench on its Match tab, the active layer as the moving one (npe2 command)."""
    _open("Match")


def open_segment() -> None:
    """Open the workbench on its Segment tab, the active layer chosen (npe2 menu command)."""
    _open("Segment")


def open_tab(viewer: Viewer, tab: str, *, take_active: bool = True) -> Workbench:
    """Bring the viewer's workbench to the front, opening it first where there is none.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer.
    tab : str
        Title of the tab to show.
    take_active : bool
        Choose the active layer on it; a workbench that opens does so anyway.

    Returns
    -------
    Workbench
        The viewer's own.
    """
    from napari_s2dc.widgets.workbench import Workbench

    docked = viewer.window.dock_widgets.values()
    workbench = next((widget for widget in docked if isinstance(widget, Workbench)), None)
    if workbench is None:
        workbench = Workbench(viewer)
        viewer.window.add_dock_widget(workbench, name=DOCK, area="right")
        take_active = True
    workbench.show_tab(tab, take_active=take_active)
    return workbench


def _open(tab: str) -> None:
    import napari

    viewer = napari.current_viewer()
    if viewer is not None:
        open_tab(viewer, tab)
