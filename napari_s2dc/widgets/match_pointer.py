"""Pointing at a patch of the moving scan: where it goes on the other one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject

from napari_s2dc.widgets.match_actions import MatchActions
from napari_s2dc.widgets.match_tab import MatchTab
from napari_s2dc.widgets.placement import words_of
from napari_s2dc.widgets.probe_mouse import ProbeMouse, ProbePoint
from napari_s2dc.widgets.rays import hit_in_3d
from napari_s2dc.widgets.session import Session

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["MatchPointer"]

Token = tuple[int, int, int]


class MatchPointer(QObject):
    """Draw the row of the patch under the mouse; a click keeps it, one outside lets it go.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : MatchTab
        Controls.
    matching : MatchActions
        The match that is shown.
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
        self._mouse = ProbeMouse(session.viewer, self._hits, self)
        self._mouse.pointed.connect(self.point)
        self._mouse.left.connect(lambda: tab.pointing.setChecked(False))
        self._on = False
        self._kept = False
        self._token: Token | None = None
        self._partner: Token | None = None
        tab.pointing_changed.connect(self._switch)
        tab.jump_wanted.connect(self.jump)
        matching.match_changed.connect(self._on_match)

    def _switch(self, on: bool) -> None:
        callbacks = self._session.viewer.mouse_move_callbacks
        if on and not self._on:
            self._mouse.start()
            callbacks.append(self._on_move)
        elif not on and self._on:
            self._mouse.stop()
            if self._on_move in callbacks:
                callbacks.remove(self._on_move)
        self._on = on

    def _on_match(self) -> None:
        """Draw the kept row anew where the scans are now, or forget it with its match."""
        scans = self._matching.scans
        if scans is None:
            self._token, self._partner, self._kept = None, None, False
            self._tab.show_patch("")
        elif self._token is not None:
            self._show(self._token)

    def _on_move(self, viewer: Viewer, event: Any) -> None:
        if not self._kept and viewer.dims.ndisplay == 2:
            token = self._token_at(tuple(event.position), None)
            if token is not None and token != self._token:
                self._show(token)

    def point(self, point: ProbePoint) -> None:
        """Keep the row of the patch at a point; a point outside lets it go."""
        token = self._token_under(point)
        self._kept = token is not None
        if token is not None:
            self._show(token)
        elif not point.dragged:
            self._matching.layers.clear_row()
            self._token, self._partner = None, None
            self._tab.show_patch("")

    def _hits(self, point: ProbePoint) -> bool:
        return self._token_under(point) is not None

    def _token_under(self, point: ProbePoint) -> Token | None:
        return self._token_at(point.position, point if point.in_3d else None)

    def _token_at(self, position: tuple[float, ...], point: ProbePoint | None) -> Token | None:
        """Patch of tissue of the moving scan under a position."""
        scans = self._matching.scans
        if scans is None:
            return None
        layer, embedded = scans.moving, scans.embedded
        if point is not None:
            place = hit_in_3d(layer, position, point.view_direction, point.dims_displayed)
            voxel = None if place is None else embedded.voxel_of_data(place)
        else:
            voxel = embedded.voxel_at(layer, position)
        token = None if voxel is None else embedded.embedding.token_of_voxel(voxel)
        if token is None or not bool(embedded.embedding.foreground[token]):
            return None
        return token

    def _show(self, token: Token) -> None:
        scans = self._matching.scans
        if scans is None:
            return
        self._token, self._partner = token, None
        found = self._matching.layers.show_row(token)
        place = words_of(scans.moving, scans.first.world_of(np.asarray([token]))[0])
        if found is None:
            self._tab.show_patch(f"The patch at {place} has no partner at all.")
            self._tab.jump_button.setEnabled(False)
            return
        partner, mass = found
        self._partner = partner
        own = scans.second(None)  # in its own world, wherever it is shown
        there = words_of(own.layer, own.world_of(np.asarray([partner]))[0])
        alone = 1 - float(scans.match.row(token).sum())
        self._tab.show_patch(
            f"The patch at {place} goes to {there} of {scans.name_of_b} with "
            f"{mass:.2f}; {max(alone, 0.0):.2f} of it has no partner."
        )

    def jump(self) -> None:
        """Move the slices and the camera to the best partner."""
        if self._partner is not None:
            world = self._matching.layers.partner_world(self._partner)
            self._session.overlays.jump_to(world.tolist())
