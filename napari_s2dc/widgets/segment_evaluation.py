"""How well a segmentation, as it was found or corrected, agrees with a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
from qtpy.QtCore import QObject

from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.segment_actions import SegmentActions
from napari_s2dc.widgets.segment_choices import SegmentChoices
from napari_s2dc.widgets.segment_layers import SegmentLayers, finest, grid_problem, names_of
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.segment_use import compare
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.volumes_of_layers import place_mm
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari_s2dc.engine.evaluate import Evaluation

__all__ = ["EvaluationActions"]


class EvaluationActions(QObject):
    """Carry out what the Evaluation box of the Segment tab asks for.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : SegmentTab
        Controls.
    choices : SegmentChoices
        What is chosen.
    segmenting : SegmentActions
        Tells of segmentations.
    layers : SegmentLayers
        Shows them.
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
        layers: SegmentLayers,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._box, self._choices = session, tab.scores, choices
        self._layers, self._jobs, self._tell = layers, jobs, tell
        self._chosen_for: ref[Any] | None = None  # the volume for which the user chose
        self._box.compare_wanted.connect(self.compare)
        self._box.compared.activated.connect(self._on_chosen)  # by the user, not by the program
        for box in (self._box.compared, self._box.reference):
            box.layer_changed.connect(self.update)
        segmenting.segmented.connect(self._on_segmented)
        choices.changed.connect(self.renew)

    def _on_segmented(self, _: object) -> None:
        self._box.show_scores(())  # of the segmentation before
        self.renew()

    def _on_chosen(self, _: int) -> None:
        image = self._choices.image
        self._chosen_for = None if image is None else ref(image)

    def renew(self) -> None:
        """Offer what lies on the grid of the volume; its segmentation is chosen unless another is.

        That which the user has corrected takes its place until there is a new one.
        """
        image, box = self._choices.image, self._box.compared
        latest = None if image is None else self._layers.latest_for(image)
        grids = [one for one in (image, latest) if one is not None]
        own = {id(layer) for layer in self._box.reference.layers}
        box.offer(
            layer
            for layer in map(plain, self._session.viewer.layers)
            if layer is latest
            or (id(layer) in own and any(not grid_problem(layer, one) for one in grids))
        )
        chosen_for = None if self._chosen_for is None else self._chosen_for()
        if image is None or image is not chosen_for or box.layer is None:
            box.choose(latest)
        self.update()

    def update(self, _: object = None) -> None:
        """Say what would be compared, or why nothing can be."""
        found, reference = self._box.compared.layer, self._box.reference.layer
        words, problem = "Compare", ""
        if found is None:
            problem = "Segment the volume first"
        elif reference is None:
            problem = "Choose a labels layer with the truth first"
        elif reference is found:
            problem = f"Choose another reference than {found.name} itself"
        else:
            problem = grid_problem(reference, found)
            words = f"Compare {found.name} with {reference.name}"
        self._box.show_ready(words, problem)

    def compare(self) -> None:
        """Compare in a thread and show the scores."""
        found, reference = self._box.compared.layer, self._box.reference.layer
        if found is None or reference is None or grid_problem(reference, found):
            return
        known, there = names_of(found), names_of(reference)
        arrays, place, name = (finest(found), finest(reference)), place_mm(found), str(found.name)

        def done(result: Evaluation) -> None:
            rows = [
                (
                    known.get(one.label) or str(one.label),
                    f"{one.dice:.3f}",
                    _distance(one.hd95_mm),
                )
                for one in result.classes
            ]
            rows.append(("mean", f"{result.mean_dice:.3f}", _distance(result.mean_hd95_mm)))
            self._box.show_scores(rows)

        self._tell("")
        self._jobs.run(
            "segment scores",
            f"Comparing with {reference.name}",
            lambda: compare(*arrays, place, name, known, there),
            done,
        )


def _distance(millimetres: float) -> str:
    return "–" if np.isnan(millimetres) else f"{millimetres:.2f}"
