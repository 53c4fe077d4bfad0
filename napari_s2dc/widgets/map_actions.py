"""Moving the moving layer by the affine map of a match, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qtpy.QtCore import QObject

from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.match_actions import MatchActions
from napari_s2dc.widgets.match_tab import MatchTab
from napari_s2dc.widgets.placement import to_units_of
from napari_s2dc.widgets.session import AppliedMap, Session
from napari_s2dc.widgets.volumes_of_layers import step_of, world_matrix

__all__ = ["MapActions"]


class MapActions(QObject):
    """Apply the map to the user's layer on request; nothing else of the layer changes.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : MatchTab
        Controls.
    matching : MatchActions
        The match.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        tab: MatchTab,
        matching: MatchActions,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._matching, self._tell = session, tab, matching, tell
        tab.apply_changed.connect(self._on_button)
        tab.back_wanted.connect(self._on_back)
        tab.beside_changed.connect(self._on_beside)
        matching.choices_changed.connect(self.update)

    def update(self) -> None:
        """Say what the button will do, or why it cannot."""
        own, others = self._layer(), self._others()
        self._tab.show_back(f"Undo the map of {others[-1].name}" if others else "")
        if own is not None and own in self._session.moved_layers():
            self._tab.show_apply(f"Undo the map of {own.name}", "", applied=True)
            return
        scans, found = self._matching.scans, self._matching.found
        if scans is None or found is None:
            self._tab.show_apply("Apply the map", "Match two scans first")
        elif scans.reference is None:
            self._tab.show_apply("Apply the map", "A random view is no scan to move to")
        elif found.alignment is None:
            self._tab.show_apply("Apply the map", "The confident pairs agree on no map")
        else:
            self._tab.show_apply(f"Apply the map to {scans.moving.name}", "")

    def _layer(self) -> Any | None:
        """Give the layer of the button: the moving one, else the one that was moved last."""
        scans = self._matching.scans
        if scans is not None:
            return plain(scans.moving)
        return next(reversed(self._session.moved_layers()), None)

    def _others(self) -> list[Any]:
        """Give the layers that maps have moved, but for that of the button."""
        own = self._layer()
        return [layer for layer in self._session.moved_layers() if layer is not own]

    def _on_button(self, on: bool) -> None:
        if on:
            self._tab.beside.setChecked(False)  # over the reference is where it goes
            self._apply()
        else:
            self._undo(self._layer())
        self._matching.place(self._tab.beside.isChecked())
        self.update()

    def _on_back(self) -> None:
        others = self._others()
        if others:
            self._undo(others[-1])
        self.update()

    def _on_beside(self, on: bool) -> None:
        scans = self._matching.scans
        if on and scans is not None and plain(scans.moving) in self._session.moved_layers():
            self._tab.apply_button.setChecked(False)

    def _apply(self) -> None:
        scans, found = self._matching.scans, self._matching.found
        if scans is None or found is None or found.alignment is None or scans.partner is None:
            return
        layer = scans.moving
        before = np.array(layer.affine.affine_matrix)
        a, b = scans.match.a, scans.match.b
        # From the world to mm of A, by the map to mm of B, and back to the world.
        to_world_a = world_matrix(layer) @ step_of(scans.embedded.source.factors)
        to_world_b = world_matrix(scans.reference) @ step_of(scans.partner.source.factors)
        from_b = to_units_of(layer, scans.reference) @ to_world_b @ np.linalg.inv(b.affine)
        matrix = from_b @ found.alignment.matrix
        layer.affine = matrix @ a.affine @ np.linalg.inv(to_world_a) @ before
        after = np.array(layer.affine.affine_matrix)
        self._session.note_map(layer, AppliedMap(before, after))
        self._tell(
            f"{layer.name} is moved by the map; the same button moves it back. In 2D napari leaves "
            "out how the map tilts the slices; the 3D view shows all of it."
        )

    def _undo(self, layer: Any | None) -> None:
        if layer is None:
            return
        applied = self._session.applied_to(layer)
        self._session.note_map(layer, None)
        if applied is None:
            self._tell(f"{layer.name} was moved since, so it is left where it is.")
            return
        layer.affine = applied.before
        self._tell(f"{layer.name} is back where it was.")
