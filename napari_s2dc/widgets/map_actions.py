"""Moving the moving layer by the affine map of a match, and back."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import numpy as np
from qtpy.QtCore import QObject

from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.match_actions import MatchActions
from napari_s2dc.widgets.match_places import finest_step
from napari_s2dc.widgets.match_tab import MatchTab
from napari_s2dc.widgets.session import AppliedMap, Session
from napari_s2dc.widgets.volumes_of_layers import world_matrix

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
        tab.beside_changed.connect(self._on_beside)
        matching.choices_changed.connect(self.update)

    def update(self) -> None:
        """Say what the button will do, or why it cannot."""
        applied = self._session.applied
        moved = None if applied is None else applied.layer()
        if moved is not None and self._session.has(moved):
            self._tab.show_apply(f"Undo the map of {moved.name}", "", applied=True)
            return
        self._session.applied = None
        scans, found = self._matching.scans, self._matching.found
        if scans is None or found is None:
            self._tab.show_apply("Apply the map", "Match two scans first")
        elif scans.reference is None:
            self._tab.show_apply("Apply the map", "A random view is no scan to move to")
        elif found.alignment is None:
            self._tab.show_apply("Apply the map", "The confident pairs agree on no map")
        else:
            self._tab.show_apply(f"Apply the map to {scans.moving.name}", "")

    def _on_button(self, on: bool) -> None:
        if on:
            self._tab.beside.setChecked(False)  # over the reference is where it goes
            self._apply()
        else:
            self._undo()
        self._matching.place(self._tab.beside.isChecked())
        self.update()

    def _on_beside(self, on: bool) -> None:
        if on and self._session.applied is not None:
            self._tab.apply_button.setChecked(False)

    def _apply(self) -> None:
        scans, found = self._matching.scans, self._matching.found
        if scans is None or found is None or found.alignment is None or scans.partner is None:
            return
        layer = scans.moving
        before = np.array(layer.affine.affine_matrix)
        a, b = scans.match.a, scans.match.b
        # From the world to mm of A, by the map to mm of B, and back to the world.
        to_world_a = world_matrix(layer) @ finest_step(scans.embedded)
        to_world_b = world_matrix(scans.reference) @ finest_step(scans.partner)
        matrix = to_world_b @ np.linalg.inv(b.affine) @ found.alignment.matrix
        layer.affine = matrix @ a.affine @ np.linalg.inv(to_world_a) @ before
        after = np.array(layer.affine.affine_matrix)
        self._session.applied = AppliedMap(ref(plain(layer)), before, after)
        self._tell(
            f"{layer.name} is moved by the map; the same button moves it back. In 2D napari leaves "
            "out how the map tilts the slices; the 3D view shows all of it."
        )

    def _undo(self) -> None:
        applied = self._session.applied
        layer = None if applied is None else applied.layer()
        if applied is None or layer is None or not self._session.has(layer):
            return
        untouched = self._session.applied_to(layer) is not None
        self._session.applied = None
        if not untouched:
            self._tell(f"{layer.name} was moved since, so it is left where it is.")
            return
        layer.affine = applied.before
        self._tell(f"{layer.name} is back where it was.")
