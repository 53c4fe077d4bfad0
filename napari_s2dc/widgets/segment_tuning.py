"""A fine-tuning on the Segment tab: stopped, taken up again, its best model used meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from qtpy.QtCore import QObject

from napari_s2dc.widgets.segment_actions import TRAINING, SegmentActions
from napari_s2dc.widgets.segment_jobs import ModelFound, Task, Tuning, tune
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari_s2dc.engine.segmentation_model import SegmentationModel

__all__ = ["TuningActions"]

_BEST = "segment best"


class TuningActions(QObject):
    """Fine-tune, and what can be done with a training that runs or was stopped.

    Parameters
    ----------
    tab : SegmentTab
        Controls.
    segmenting : SegmentActions
        Uses the models.
    jobs : Jobs
        Threads.
    """

    def __init__(
        self, tab: SegmentTab, segmenting: SegmentActions, jobs: Jobs, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._tab, self._segmenting, self._jobs = tab, segmenting, jobs
        self._tuning: Tuning | None = None
        self._layers: tuple[ref[Any], ref[Any]] | None = None
        self._runs = False
        segmenting.fine_tuning_wanted.connect(self._begin)
        tab.stop_wanted.connect(self.stop)
        tab.continue_wanted.connect(self._go_on)
        tab.best_wanted.connect(self._use_best)
        jobs.started.connect(self._on_job)
        jobs.ended.connect(self._on_job)
        jobs.progressed.connect(self._on_progress)
        self._on_job(TRAINING)

    def _begin(self, image: Any, labels: Any, task: Task) -> None:
        self._tuning, self._layers = Tuning(task), (ref(image), ref(labels))
        self._tune()

    def _go_on(self) -> None:
        if not self._jobs.is_running(_BEST):  # it reads what the training would write
            self._tune()

    def _tune(self) -> None:
        """Train on, or begin to."""
        tuning = self._tuning
        if tuning is None or self._jobs.is_running(TRAINING):
            return
        tuning.stop.clear()
        tuning.best.clear()
        self._runs = True
        self._jobs.run(
            TRAINING,
            f"Fine-tuning on {tuning.task.labels_name}",
            lambda: tune(tuning),
            self._use,
        )

    def stop(self) -> None:
        """End a fine-tuning, its best so far is used; or end Quick, the model of before stays."""
        if self._runs and self._tuning is not None and self._tuning.run is not None:
            self._tuning.stop.set()
        else:
            self._jobs.cancel(TRAINING)

    def _use_best(self) -> None:
        """Segment with the best model so far."""
        tuning = self._tuning
        if tuning is None or not tuning.has_learned:
            return
        if self._runs:
            tuning.best.set()  # only the thread that trains may look at it
        else:
            self._jobs.run(_BEST, "Taking the best so far", tuning.model, self._use)

    def _use(self, model: SegmentationModel) -> None:
        tuning, layers = self._tuning, self._layers
        if tuning is not None and layers is not None:
            image, labels = (layer() for layer in layers)
            self._segmenting.use(model, image, tuning.task.scan, labels)

    def _on_progress(self, name: str, progress: Any) -> None:
        if name == TRAINING and isinstance(progress, ModelFound):
            self._use(progress.model)
        elif name == TRAINING and self._runs:
            self._show()  # there is a model to use from the first step on

    def _on_job(self, name: str, _: str = "") -> None:
        if name in (TRAINING, _BEST):
            self._runs = self._runs and self._jobs.is_running(TRAINING)
            self._show()

    def _show(self) -> None:
        begun = self._tuning is not None and self._tuning.has_learned
        taken = self._jobs.is_running(_BEST)
        self._tab.show_training(self._jobs.is_running(TRAINING), begun, taken)
