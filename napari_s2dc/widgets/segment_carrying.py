"""Labels on another grid than the volume: resampled as a new layer, where the user agrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject

from napari_s2dc.widgets.segment_layers import SegmentLayers, finest, names_of
from napari_s2dc.widgets.segment_meaning import BACKGROUND
from napari_s2dc.widgets.segment_painting import PaintingActions
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.segment_use import carried
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.volumes_of_layers import world_matrix
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CarryingActions"]


class CarryingActions(QObject):
    """Bring labels onto the grid of the volume.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : SegmentTab
        Asks the user.
    painting : PaintingActions
        The labels.
    layers : SegmentLayers
        Adds layers.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        tab: SegmentTab,
        painting: PaintingActions,
        layers: SegmentLayers,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._painting = session, tab, painting
        self._layers, self._jobs, self._tell = layers, jobs, tell

    def ask(self, image: Any, labels: Any, different: str) -> None:
        """Ask whether labels of another grid are to be resampled; never done in silence."""
        if not self._tab.ask(
            "Labels on another grid",
            f"{different}. Resample the labels to the grid of {image.name}, as a new layer? "
            f"{labels.name} stays as it is.",
        ):
            self._tell(f"{different}, so nothing was trained.")
            return
        array, places = finest(labels), (world_matrix(labels), world_matrix(image))
        shape = tuple(finest(image).shape)
        meaning, names = self._painting.meaning_of(labels), names_of(labels)
        complete = meaning.zero == BACKGROUND

        def done(result: tuple[np.ndarray, list[int]]) -> None:
            if self._session.has(image) and self._session.has(labels):
                found, lost = result
                self._painting.take(self._layers.carry(image, found, labels), meaning, image)
                gone = ", ".join(names.get(label) or f"class {label}" for label in lost)
                self._tell(
                    "The labels are resampled. Look whether they lie well, then train."
                    + (f" No voxel of {gone} is left on the grid of {image.name}." if gone else "")
                )

        self._jobs.run(
            "segment carry",
            f"Resampling {labels.name}",
            lambda: carried(array, *places, shape, complete=complete),
            done,
        )
