"""What the Segment tab asks for: training on labels, and the segmentation that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from qtpy.QtCore import QObject, QTimer, Signal

from napari_s2dc.engine.progress import TrainingProgress
from napari_s2dc.widgets.between_strokes import BetweenStrokes
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.segment_choices import SegmentChoices
from napari_s2dc.widgets.segment_jobs import (
    Learned,
    Ready,
    Task,
    learn,
    learn_all,
    with_more,
)
from napari_s2dc.widgets.segment_layers import (
    SegmentLayers,
    grid_problem,
    plane_on_screen,
)
from napari_s2dc.widgets.segment_painting import PaintingActions
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.segment_use import segment
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.volumes_of_layers import LayerSnapshot
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
    carrying_wanted = Signal(object, object, str)
    """Image layer, labels layer on another grid, and in words how they differ."""
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
        self._between_strokes = BetweenStrokes(self)
        self._model: SegmentationModel | None = None
        self._head: SegmentationModel | None = None  # of Quick; may have seen strokes only
        self._ready: WeakKeyDictionary[Any, Ready] = WeakKeyDictionary()
        self._found: WeakKeyDictionary[Any, tuple[LayerSnapshot, Segmentation]]
        self._found = WeakKeyDictionary()
        self._trained_on: WeakKeyDictionary[SegmentationModel, tuple[ref[Ready], ...]]
        self._trained_on = WeakKeyDictionary()
        self._learning = False  # Quick; a fine-tuning uses the same name of a job
        self._waiting: tuple[Any, Any] | None = None  # image and labels of a stroke meanwhile
        tab.train_wanted.connect(self.train)
        painting.painted.connect(self._refresh)
        jobs.progressed.connect(self._on_progress)
        jobs.ended.connect(self._on_ended)

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
            self.carrying_wanted.emit(image, labels, different)
            return
        found = self._choices.task()
        if found is None:
            return
        task, images = found
        self._tell("")
        self._painting.keep_labels()
        if self._choices.is_quick:
            self._learn(images, labels, task, None, quiet=False)
        else:
            self._tab.plot.clear()
            self.fine_tuning_wanted.emit(image, labels, task)

    def _learn(
        self,
        images: Sequence[Any],
        labels: Any,
        task: Task,
        start: SegmentationModel | None,
        *,
        quiet: bool,
    ) -> None:
        """Train Quick on images; what is on the screen is shown before the rest is segmented."""
        image = images[task.chosen]
        self._jobs.cancel(_segmenting(image))
        self._learning, self._waiting = True, None
        self._tab.plot.clear()
        known = [self._ready.get(plain(one)) for one in images]
        plane = plane_on_screen(self._session.viewer, image, task.scan)

        def show(learned: Learned) -> None:
            if plane is None or learned.plane is None:
                return
            if self._session.has(image) and task.scan.is_of(image):
                self._layers.show_plane(
                    image, task.scan, plane, learned.plane, learned.model.classes, labels
                )

        def done(learned: Learned) -> None:
            self._learning = False
            for one, ready in zip(images, learned.ready, strict=True):
                self._ready[plain(one)] = ready
            model = learned.model
            self._trained_on[model] = tuple(map(ref, learned.ready))
            if quiet:  # too short for a curve
                steps = model.metadata["steps"]
                self._tab.plot.add(steps, steps, model.metadata["loss"], None)
            self._between_strokes.do(lambda: self._layers.found_for(image), lambda: show(learned))
            self._head = model
            if self._waiting == (image, labels) and self._catch_up():
                return  # the volume is segmented when that is done
            self._learn_all(learned, image, labels, task)
            self._catch_up()

        self._jobs.run(
            TRAINING,
            f"Training Quick on {task.labels_name}",
            lambda: learn(task, known, start, plane),
            done,
            quiet=quiet,
        )

    def _learn_all(self, learned: Learned, image: Any, labels: Any, task: Task) -> None:
        """Train Quick on with all of the scan, until the next stroke, and segment the scan."""

        def done(model: SegmentationModel) -> None:
            self._trained_on[model] = tuple(map(ref, learned.ready))
            if self._head is learned.model:  # else another scan's stroke made a newer one
                self._head = self.model = model
            self._segment(model, image, task.scan, labels, learned.ready[task.chosen])

        self._jobs.run(
            _segmenting(image),
            f"Learning from all of {with_more(task.scan.name, len(task.scans) - 1)}",
            lambda: learn_all(learned, task.settings),
            done,
        )

    def _refresh(self) -> bool:
        """Train on after a stroke, where that is wanted; while it goes on, the next waits."""
        image, labels = self._choices.image, self._choices.labels
        wanted = self._tab.refresh.isChecked() and self._choices.is_quick
        if not wanted or self._choices.problem() or grid_problem(labels, image):
            return False
        if self._jobs.is_running(TRAINING):
            self._waiting = (image, labels) if self._learning else None
            return False
        found = self._choices.task()
        if found is None:
            return False
        task, images = found
        ready = [self._ready.get(plain(one)) for one in images]
        at_hand = all(
            known is not None and known.suits(one.scan, task)
            for known, one in zip(ready, task.scans, strict=True)
        )
        head = self._head
        origin = None if head is None else self._trained_on.get(head)
        # A head knows the features of the scans that it was trained on.
        mine = origin is not None and [one() for one in origin] == ready
        self._learn(images, labels, task, head if at_hand and mine else None, quiet=at_hand)
        return True

    def _catch_up(self) -> bool:
        """Train on after a stroke that waited, if its labels are still the chosen ones."""
        waiting, self._waiting = self._waiting, None
        return waiting == (self._choices.image, self._choices.labels) and self._refresh()

    def _on_ended(self, name: str) -> None:
        if name == TRAINING:
            QTimer.singleShot(0, self._after_training)  # once its result, if any, was taken

    def _after_training(self) -> None:
        if self._learning and not self._jobs.is_running(TRAINING):  # stopped, or it failed
            self._learning = False
            self._catch_up()

    def _on_progress(self, name: str, progress: Any) -> None:
        if name == TRAINING and isinstance(progress, TrainingProgress):
            self._tab.plot.add(progress.done, progress.total, progress.loss, progress.dice)

    # ------------------------------------------------------------------------------ segmenting
    def use(
        self,
        model: SegmentationModel,
        image: Any,
        scan: LayerSnapshot,
        labels: Any | None = None,
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
        """
        self.model = model
        self._segment(model, image, scan, labels)

    def _segment(
        self,
        model: SegmentationModel,
        image: Any,
        scan: LayerSnapshot,
        labels: Any | None,
        ready: Ready | None = None,
    ) -> None:
        """Segment a scan in a thread, where Quick is ready with its features."""
        if not self._session.has(image):
            self._tell(f"The model is there. {scan.name} was removed, so it is not segmented.")
            return
        chosen, device = self._as_chosen(model), self._choices.device

        def show(found: Segmentation, count: int, warning: str) -> None:
            if not self._session.has(image):
                self._tell(f"{scan.name} was removed, so its segmentation is not shown.")
                return
            if not scan.is_of(image):
                self._tell(f"The data of {scan.name} was replaced, so it is to be segmented again.")
                return
            first = self.found_in(image) is None
            self._found[plain(image)] = scan, found
            layer = self._layers.show(image, scan, found, model.classes, labels)
            self._tell(f"{_summary(layer, count, first=first)} {warning}".rstrip())
            self.segmented.emit(image)

        self._jobs.run(
            _segmenting(image),
            f"Segmenting {scan.name}",
            lambda: segment(scan, chosen, device, ready),
            lambda result: self._between_strokes.do(
                lambda: self._layers.found_for(image), lambda: show(*result)
            ),
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
