"""Where to label next: uncertain places of the segmentation that is shown, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
from qtpy.QtCore import QObject

from napari_s2dc.widgets.placement import words_of
from napari_s2dc.widgets.segment_actions import SegmentActions
from napari_s2dc.widgets.segment_choices import SegmentChoices
from napari_s2dc.widgets.segment_layers import finest, grid_problem
from napari_s2dc.widgets.segment_painting import PaintingActions
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.segment_use import places
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari_s2dc.engine.label_next import PlaceToLabel

__all__ = ["PlaceActions"]


class PlaceActions(QObject):
    """Jump to the places where a label would help most.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : SegmentTab
        Controls.
    choices : SegmentChoices
        What is chosen.
    segmenting : SegmentActions
        Has the segmentation.
    painting : PaintingActions
        The labels.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        tab: SegmentTab,
        choices: SegmentChoices,
        segmenting: SegmentActions,
        painting: PaintingActions,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._choices = session, tab, choices
        self._segmenting, self._jobs, self._tell = segmenting, jobs, tell
        self._places: list[PlaceToLabel] = []
        self._next = 0
        self._image: ref[Any] | None = None
        tab.next_wanted.connect(self._go)
        segmenting.segmented.connect(self._forget)
        choices.changed.connect(self._show)
        painting.painted.connect(self._forget)

    def _show(self) -> None:
        found = self._segmenting.found_in(self._choices.image)
        self._tab.show_next("" if found is not None else "Segment the volume first")

    def _forget(self, _: object = None) -> None:
        """Places of another segmentation, or before a stroke, are no longer the best ones."""
        self._places = []
        self._show()

    def _go(self) -> None:
        image = self._choices.image
        shown = None if self._image is None else self._image()
        if self._places and shown is image:
            self._next = (self._next + 1) % len(self._places)
            self._jump(image)
            return
        found = self._segmenting.found_in(image)
        if found is None or image is None:
            return
        scan, model = self._segmenting.scan_of(image), self._segmenting.model
        if scan is None or model is None:
            return
        embedded = self._session.embedded(image)
        embedding = None if embedded is None else embedded.embedding
        ready, device = self._segmenting.features_of(image), self._choices.device
        labels = self._choices.labels
        painted = None if labels is None or grid_problem(labels, image) else finest(labels)

        def done(best: list[PlaceToLabel]) -> None:
            if self._choices.image is not image or self._segmenting.found_in(image) is not found:
                return  # another one was chosen or segmented meanwhile
            if not best:
                self._tell("There is no uncertain place.")
                return
            self._places, self._next, self._image = best, 0, ref(image)
            self._jump(image)

        self._jobs.run(
            "segment places",
            "Looking for uncertain places",
            lambda: places(found, painted, scan, model, device, ready, embedding),
            done,
        )

    def _jump(self, image: Any) -> None:
        place = self._places[self._next]
        scan = self._segmenting.scan_of(image)
        assert scan is not None
        voxel = (np.asarray(place.voxel) + 0.5) * np.asarray(scan.factors) - 0.5
        world = image.data_to_world(tuple(voxel))
        self._session.overlays.jump_to(world)
        labels = self._choices.labels
        if labels is not None:  # to be painted in
            self._session.viewer.layers.selection.active = labels
        self._tell(
            f"Place {self._next + 1} of {len(self._places)}: uncertainty "
            f"{place.uncertainty:.2f} at {words_of(image, world)}. Label it, or go to the next."
        )
