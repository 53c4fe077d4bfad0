"""What the Segment tab asks for: training on labels, and the segmentation that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_s2dc.engine.progress import TrainingProgress
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.segment_choices import SegmentChoices
from napari_s2dc.widgets.segment_jobs import (
    Learned,
    Ready,
    Task,
    learn,
)
from napari_s2dc.widgets.segment_layers import SegmentLayers, finest, grid_problem
from napari_s2dc.widgets.segment_painting import PaintingActions
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.segment_use import carried, segment
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.volumes_of_layers import LayerSnapshot, world_matrix
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_s2dc.engine.segment import Segmentation
    from napari_s2dc.engine.segmentation_model import SegmentationModel

__all__ = ["TRAINING", "SegmentActions"]

TRAINING = "segment training"
"""Name of the job."""


class SegmentActions(QObject):
    """Train on the chosen labels and segment the chosen volume.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : SegmentTab
        Controls.
    choices : SegmentChoices
        What is chosen.
    painting : PaintingActions
        The labels.
    layers : SegmentLayers
        Shows results.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    model_changed = Signal()
    segmented = Signal(object)
    """The layer of a scan that was segmented."""
    fine_tuning_wanted = Signal(object, object, object)
    """Image layer, labels layer, Task."""

    def __init__(
        self,
        session: Session,
        tab: SegmentTab,
        choices: SegmentChoices,
        painting: PaintingActions,
        layers: SegmentLayers,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._choices = session, tab, choices
        self._painting, self._layers, self._jobs, self._tell = painting, layers, jobs, tell
        self._model: SegmentationModel | None = None
        self._ready: WeakKeyDictionary[Any, Ready] = WeakKeyDictionary()
        self._found: WeakKeyDictionary[Any, tuple[LayerSnapshot, Segmentation]]
        self._found = WeakKeyDictionary()
        self._stale = False
        tab.train_wanted.connect(self.train)
        painting.painted.connect(self._refresh)
        jobs.progressed.connect(self._on_progress)

    # ------------------------------------------------------------------------- what there is
    @property
    def model(self) -> SegmentationModel | None:
        """The model, with the choices of the tab for how it segments."""
        return None if self._model is None else self._as_chosen(self._model)

    @model.setter
    def model(self, model: SegmentationModel) -> None:
        self._model = model
        self.model_changed.emit()

    def _as_chosen(self, model: SegmentationModel) -> SegmentationModel:
        chosen = self._choices.segmenting(model.kind)
        return replace(model, segment=replace(chosen, overlap=model.segment.overlap))

    def found_in(self, layer: Layer | None) -> Segmentation | None:
        """Give the segmentation of a scan, None as long as there is none."""
        known = None if layer is None else self._found.get(plain(layer))
        return None if known is None else known[1]

    def scan_of(self, layer: Layer) -> LayerSnapshot | None:
        """Say what of a layer was segmented."""
        known = self._found.get(plain(layer))
        return None if known is None else known[0]

    def features_of(self, layer: Layer) -> Ready | None:
        """Give what Quick knows of a scan."""
        return self._ready.get(plain(layer))

    # -------------------------------------------------------------------------------- training
    def train(self) -> None:
        """Train anew in a thread and show the segmentation."""
        image, labels, problem = self._choices.image, self._choices.labels, self._choices.problem()
        if problem:
            self._tell(f"{problem}.")
            return
        if self._jobs.is_running(TRAINING):
            self._tell("A model is being trained; stop that first.")
            return
        different = grid_problem(labels, image)
        if different:
            self._ask_to_carry(image, labels, different)
            return
        task = self._choices.task()
        if task is None:
            return
        self._tell("")
        self._tab.plot.clear()
        if self._choices.is_quick:
            self._learn(image, labels, task, None, quiet=False)
        else:
            self.fine_tuning_wanted.emit(image, labels, task)

    def _learn(
        self,
        image: Any,
        labels: Any,
        task: Task,
        start: SegmentationModel | None,
        *,
        quiet: bool,
    ) -> None:
        """Train Quick; what is on the screen is shown before the rest is segmented."""
        self._jobs.cancel(_segmenting(image))
        self._stale = False
        ready, plane = self._ready.get(plain(image)), self._plane(image, task.scan)

        def done(learned: Learned) -> None:
            self._ready[plain(image)] = learned.ready
            model = learned.model
            if plane is not None and learned.plane is not None and self._session.has(image):
                self._layers.show_plane(
                    image, task.scan, plane, learned.plane, model.classes, labels
                )
            if self._stale:
                self.model = model
                self._refresh()  # segments the volume when it is done
            else:
                self.use(model, image, task.scan, labels, learned.ready)

        self._jobs.run(
            TRAINING,
            f"Training Quick on {labels.name}",
            lambda: learn(task, ready, start, plane),
            done,
            quiet=quiet,
        )

    def _plane(self, image: Any, scan: LayerSnapshot) -> tuple[int, int] | None:
        """Axis and index of the plane of a scan that is on the screen; None in 3D."""
        dims = self._session.viewer.dims
        hidden = [axis - (dims.ndim - 3) for axis in dims.not_displayed]
        axes = [axis for axis in hidden if axis >= 0]
        if len(axes) != 1:
            return None
        axis = axes[0]
        place = image.world_to_data(dims.point)[-3:][axis]
        index = int((float(place) + 0.5) // scan.factors[axis])
        return (axis, index) if 0 <= index < scan.shape[axis] else None

    def _refresh(self) -> None:
        """Train on after a stroke, where that is wanted; while it goes on, the next waits."""
        image, labels = self._choices.image, self._choices.labels
        wanted = self._tab.refresh.isChecked() and self._choices.is_quick
        if not wanted or self._choices.problem() or grid_problem(labels, image):
            return
        if self._jobs.is_running(TRAINING):
            self._stale = True
            return
        task = self._choices.task()
        if task is None:
            return
        ready = self._ready.get(plain(image))
        at_hand = ready is not None and ready.suits(task)
        mine = self._model is not None and self._model.encoder is task.encoder.network
        self._learn(image, labels, task, self._model if mine else None, quiet=at_hand)

    def _on_progress(self, name: str, progress: Any) -> None:
        if name == TRAINING and isinstance(progress, TrainingProgress):
            self._tab.plot.add(progress.done, progress.total, progress.loss, progress.dice)

    def _ask_to_carry(self, image: Any, labels: Any, different: str) -> None:
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

        def done(found: np.ndarray) -> None:
            if self._session.has(image) and self._session.has(labels):
                meaning = self._painting.meaning_of(labels)
                self._painting.take(self._layers.carry(image, found, labels), meaning)
                self._tell("The labels are resampled. Look whether they lie well, then train.")

        self._jobs.run(
            "segment carry",
            f"Resampling {labels.name}",
            lambda: carried(array, *places, shape),
            done,
        )

    # ------------------------------------------------------------------------------ segmenting
    def use(
        self,
        model: SegmentationModel,
        image: Any,
        scan: LayerSnapshot,
        labels: Any | None = None,
        ready: Ready | None = None,
    ) -> None:
        """Take a model and segment a scan with it in a thread.

        Parameters
        ----------
        model : SegmentationModel
            Model.
        image : napari Image layer
            Shows the scan.
        scan : LayerSnapshot
            What of it is segmented.
        labels : napari Labels layer, optional
            Strokes, which stay above what is found.
        ready : Ready, optional
            What Quick knows of the scan.
        """
        if not self._session.has(image):
            self._tell(f"{scan.name} was removed, so it is not segmented.")
            return
        self.model = model
        chosen, device = self._as_chosen(model), self._choices.device

        def done(result: tuple[Segmentation, int]) -> None:
            found, count = result
            if not self._session.has(image):
                self._tell(f"{scan.name} was removed, so its segmentation is not shown.")
                return
            first = self.found_in(image) is None
            self._found[plain(image)] = scan, found
            layer = self._layers.show(image, scan, found, model.classes, labels)
            self._tell(_summary(layer, count, first=first))
            self.segmented.emit(image)

        self._jobs.run(
            _segmenting(image),
            f"Segmenting {scan.name}",
            lambda: segment(scan, chosen, device, ready),
            done,
        )


def _segmenting(image: Any) -> str:
    """Name of the job that segments a scan; those of others go on beside it."""
    return f"segment {id(plain(image))}"


def _summary(layer: Any, count: int, *, first: bool) -> str:
    """Say what was found, and at first where the uncertainty is."""
    words = f"{layer.name}: {count} {'class' if count == 1 else 'classes'} found."
    if not first:
        return words
    if not layer.visible:
        return f"{words} It is hidden, as its scan is; click its eye to see it."
    return f"{words} The uncertainty layer is hidden; click its eye to see it."
