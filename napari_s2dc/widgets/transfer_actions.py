"""Carrying labels from the moving scan to the reference."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject

from napari_s2dc.widgets.layers import token_geometry
from napari_s2dc.widgets.match_actions import MatchActions
from napari_s2dc.widgets.match_places import MatchedScans
from napari_s2dc.widgets.match_tab import MatchTab
from napari_s2dc.widgets.moves import Moves
from napari_s2dc.widgets.segment_layers import finest
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.volumes_of_layers import step_of, world_matrix
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari_s2dc.engine.transfer import Transfer

__all__ = ["TransferActions"]


class TransferActions(QObject):
    """Carry labels through the match that is shown.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : MatchTab
        Controls.
    matching : MatchActions
        The match.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        tab: MatchTab,
        matching: MatchActions,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._jobs, self._tell = session, tab, jobs, tell
        self._matching = matching
        self._watched: Any | None = None
        self._moves = Moves(self)
        self._moves.happened.connect(self.update)
        tab.transfer_wanted.connect(self.transfer)
        matching.choices_changed.connect(self.update)

    def update(self) -> None:
        """Say what the button will do, or why it cannot."""
        scans, labels = self._matching.scans, self._tab.labels.layer
        if labels is not self._watched:  # moved onto their scan, they can be carried
            self._watched = labels
            self._moves.watch(() if labels is None else (labels,))
        if scans is None:
            self._tab.show_transfer("Transfer labels", "Match two scans first")
        elif scans.reference is None:
            self._tab.show_transfer("Transfer labels", "A random view is no scan to carry them to")
        elif labels is None:
            self._tab.show_transfer(
                "Transfer labels", f"Open a labels layer on the grid of {scans.moving.name} first"
            )
        else:
            problem = self._problem(scans, labels)
            words = "Transfer labels" if problem else f"Transfer {labels.name} to {scans.name_of_b}"
            self._tab.show_transfer(words, problem)

    def _problem(self, scans: MatchedScans, labels: Any) -> str:
        """Why labels are not those of the moving scan; empty when they are."""
        moving = scans.moving
        if finest(labels).shape != finest(moving).shape:
            return f"{labels.name} does not lie on the grid of {moving.name}"
        places = [world_matrix(moving)]
        applied = self._session.applied_to(moving)
        if applied is not None:  # labels stay where they are when the map moves their scan
            places.append(applied.before @ np.linalg.inv(applied.after) @ places[0])
        lies = world_matrix(labels)
        if not any(np.allclose(lies, place, atol=1e-4) for place in places):
            return f"{labels.name} has the grid of {moving.name} but lies elsewhere"
        return ""

    def transfer(self) -> None:
        """Carry the chosen labels in a thread and show them with their confidence."""
        scans, labels = self._matching.scans, self._tab.labels.layer
        if scans is None or scans.partner is None or labels is None:
            return
        problem = self._problem(scans, labels)  # moved since the button was enabled
        if problem:
            self.update()
            self._tell(f"{problem}.")
            return
        # Where the finest level lay when the scan was embedded, wherever it is shown by now.
        place = scans.embedded.source.affine @ np.linalg.inv(step_of(scans.embedded.source.factors))
        data = finest(labels)
        name = str(labels.name)
        moving, target, match = scans.embedded.source, scans.partner.source.stored, scans.match

        def carry() -> Generator[Any, None, tuple[Transfer, int, float]]:
            from napari_s2dc.engine.loading import load_optimisers
            from napari_s2dc.engine.transfer import transfer_labels
            from napari_s2dc.volumes.volume import Volume

            load_optimisers()
            atlas = Volume(np.asarray(data), place, name=name)
            found = yield from transfer_labels(match, atlas, moving.load(), target.load())
            named = found.labels.array != 0
            classes = len(np.unique(found.labels.array[named]))
            return found, classes, float(found.confidence[named].mean()) if classes else 0.0

        self._tell("")
        self._jobs.run(
            "transfer",
            f"Carrying {name} to {scans.name_of_b}",
            carry,
            lambda found: self._show(scans, labels, *found),
        )

    def _show(
        self, scans: MatchedScans, labels: Any, found: Transfer, count: int, mean: float
    ) -> None:
        if self._matching.scans is not scans or not self._session.has(labels):
            self._tell("The match or the labels are gone, so nothing was carried.")
            return
        reference, partner = scans.reference, scans.partner
        assert reference is not None
        assert partner is not None
        geometry = token_geometry(reference, 1, (0, 0, 0), partner.source.stored.factors)
        carried = self._session.overlays.keep_labels(
            reference,
            f"labels from {scans.moving.name}",
            found.labels.array,
            geometry,
            labels,
            complete=True,
        )
        confidence = self._session.overlays.add(
            reference, "transfer confidence", "image", found.confidence,
            "confidence of the labels", geometry, colormap="viridis", contrast_limits=(0.0, 1.0),
            opacity=0.6, blending="translucent", visible=False,
        )  # fmt: skip
        confidence.colorbar.visible = True
        self._matching.layers.keep_carried(carried)
        self._tell(
            f"{carried.name}: {count} {'class' if count == 1 else 'classes'}, confidence "
            f"{mean:.2f} on average. "
            + (found.doubt or "The confidence layer is hidden; click its eye to see it.")
        )
