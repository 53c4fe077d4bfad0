"""Clicks and drags in the canvas while probing is on; nothing of it stays when it is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["ProbeMouse", "ProbePoint"]

REPLACE, ADD, NOT = "replace", "add", "not"


@dataclass(frozen=True)
class ProbePoint:
    """Where the mouse was and what it means.

    Parameters
    ----------
    position : tuple of float
        World coordinates.
    kind : str
        ``replace`` for a click or drag, ``add`` with Shift, ``not`` with Alt.
    view_direction, dims_displayed
        As napari's event has them; they make a ray in the 3D view.
    in_3d : bool
        Whether the view is three-dimensional.
    dragged : bool
        The mouse moved here with the button down.
    """

    position: tuple[float, ...]
    kind: str
    view_direction: Any
    dims_displayed: Any
    in_3d: bool
    dragged: bool


class ProbeMouse(QObject):
    """Turn mouse events of a viewer into probe points.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer.
    hits : callable
        Whether there is tissue under a point of the 3D view, so that a drag from there follows the
        mouse instead of turning the view.
    """

    pointed = Signal(object)  # ProbePoint
    left = Signal()  # Esc

    def __init__(self, viewer: Viewer, hits: Callable[[ProbePoint], bool], parent: QObject) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._hits = hits
        self._on = False
        self._following = False  # a drag that probes is under way
        self._escape: Any = None  # what else Esc does in the viewer

    def start(self) -> None:
        """Take clicks; calling it twice is fine."""
        if self._on:
            return
        self._on = True
        viewer = self._viewer
        viewer.mouse_drag_callbacks.append(self._on_press)
        bound = viewer.bind_key("Escape", self._on_escape, overwrite=True)
        ours = isinstance(getattr(bound, "__self__", None), ProbeMouse)  # of another workbench
        self._escape = None if ours else bound
        # napari gives pan and cursor back to the layer whenever another one becomes active.
        viewer.layers.selection.events.active.connect(self._hold, position="last")
        viewer.dims.events.ndisplay.connect(self._hold, position="last")
        self._hold()

    def stop(self) -> None:
        """Leave everything as it was; calling it twice is fine."""
        if not self._on:
            return
        self._on = False
        viewer = self._viewer
        viewer.layers.selection.events.active.disconnect(self._hold)
        viewer.dims.events.ndisplay.disconnect(self._hold)
        for layer in viewer.layers:
            layer.events.mode.disconnect(self._hold)
        if self._on_press in viewer.mouse_drag_callbacks:
            viewer.mouse_drag_callbacks.remove(self._on_press)
        viewer.bind_key("Escape", self._escape, overwrite=True)
        active = viewer.layers.selection.active
        viewer.scene.camera.mouse_pan = True if active is None else active.mouse_pan
        viewer.cursor.style = "standard" if active is None else active.cursor

    def _hold(self, _: object = None) -> None:
        """Keep a drag from panning the slice; the 3D view still turns."""
        active = self._viewer.layers.selection.active
        if self._on and active is not None:  # a drawing tool may be put away; once is enough
            active.events.mode.connect(self._hold, position="last")
        if self._on and self._tool_is_free():
            in_3d = self._viewer.dims.ndisplay == 3
            self._viewer.scene.camera.mouse_pan = in_3d and not self._following
            self._viewer.cursor.style = "cross"

    def _tool_is_free(self) -> bool:
        """Whether no drawing tool of the active layer wants the mouse."""
        active = self._viewer.layers.selection.active
        return active is None or str(active.mode) == "pan_zoom"

    def _on_escape(self, _: Any) -> None:
        self.left.emit()

    def _on_press(self, viewer: Any, event: Any) -> Iterator[None]:
        if event.button != 1 or not self._tool_is_free():
            return
        in_3d = viewer.dims.ndisplay == 3
        # In 3D a drag that begins on tissue probes, and one that begins beside it turns the view.
        follows = not in_3d or self._hits(self._point(event, dragged=False))
        if follows:
            self._following = True
            self._hold()
            self.pointed.emit(self._point(event, dragged=False))
        yield
        dragged = False
        while event.type == "mouse_move":
            dragged = True
            # Only a plain drag follows the mouse.
            if follows and not set(event.modifiers) & {"Alt", "Shift"}:
                self.pointed.emit(self._point(event, dragged=True))
            yield
        if not follows and not dragged:
            self.pointed.emit(self._point(event, dragged=False))  # says that nothing is there
        self._following = False
        if self._on:
            self._hold()

    def _point(self, event: Any, *, dragged: bool) -> ProbePoint:
        kind = REPLACE
        if "Alt" in event.modifiers:
            kind = NOT
        elif "Shift" in event.modifiers:
            kind = ADD
        return ProbePoint(
            position=tuple(float(part) for part in event.position),
            kind=kind,
            view_direction=event.view_direction,
            dims_displayed=list(event.dims_displayed),
            in_3d=self._viewer.dims.ndisplay == 3,
            dragged=dragged,
        )
