"""How well the segmentation that is shown agrees with a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import QObject

from napari_s2dc.widgets.segment_actions import SegmentActions
from napari_s2dc.widgets.segment_choices import SegmentChoices
from napari_s2dc.widgets.segment_layers import SegmentLayers, finest, grid_problem, names_of
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.segment_use import compare
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari_s2dc.engine.evaluate import Evaluation

__all__ = ["EvaluationActions"]


class EvaluationActions(QObject):
    """Carry out what the Evaluation box of the Segment tab asks for.

    Parameters
    ----------
    tab : SegmentTab
        Controls.
    choices : SegmentChoices
        What is chosen.
    segmenting : SegmentActions
        Has the segmentation.
    layers : SegmentLayers
        Shows it.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        tab: SegmentTab,
        choices: SegmentChoices,
        segmenting: SegmentActions,
        layers: SegmentLayers,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._box, self._choices = tab.scores, choices
        self._segmenting, self._layers = segmenting, layers
        self._jobs, self._tell = jobs, tell
        self._box.compare_wanted.connect(self.compare)
        self._box.reference.layer_changed.connect(self.update)
        segmenting.segmented.connect(self._on_segmented)
        choices.changed.connect(self.update)

    def _on_segmented(self, _: object) -> None:
        self._box.show_scores(())  # of the segmentation before
        self.update()

    def update(self, _: object = None) -> None:
        """Say what would be compared, or why nothing can be."""
        image, reference = self._choices.image, self._box.reference.layer
        found = None if image is None else self._layers.found_for(image)
        words, problem = "Compare", ""
        if found is None:
            problem = "Segment the volume first"
        elif reference is None:
            problem = "Choose a labels layer with the truth first"
        else:
            problem = grid_problem(reference, found)
            words = f"Compare {found.name} with {reference.name}"
        self._box.show_ready(words, problem)

    def compare(self) -> None:
        """Compare in a thread and show the scores."""
        image, reference = self._choices.image, self._box.reference.layer
        found = None if image is None else self._layers.found_for(image)
        if found is None or reference is None or grid_problem(reference, found):
            return
        scan = self._segmenting.scan_of(image)
        if scan is None:
            return
        known = names_of(found)
        partners = _partners(known, names_of(reference))
        arrays = found.data, finest(reference)

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
            lambda: compare(*arrays, scan.affine, partners),
            done,
        )


def _partners(known: Mapping[int, str], others: Mapping[int, str]) -> dict[int, int]:
    """Give the class of the reference for every class.

    By name where the reference has all of them, so that liver is compared with liver whatever
    their numbers are; else by number.
    """
    by_name = {name.casefold(): label for label, name in others.items()}
    named = {label: by_name.get(name.casefold()) for label, name in known.items() if label}
    found = {label: other for label, other in named.items() if other is not None}
    return found if len(found) == len(named) else {label: label for label in named}


def _distance(millimetres: float) -> str:
    return "–" if np.isnan(millimetres) else f"{millimetres:.2f}"
