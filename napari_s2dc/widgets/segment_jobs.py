"""What the Segment tab runs in threads; nothing here touches Qt or layers."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_s2dc.engine.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from napari_s2dc.engine.carried_labels import CarriedLabels
    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.engine.fewshot_settings import (
        FewshotSettings,
        SegmentationClass,
    )
    from napari_s2dc.engine.finetune import FinetuneRun
    from napari_s2dc.engine.labelled_scans import LabelledScan
    from napari_s2dc.engine.quick_scan import QuickScan
    from napari_s2dc.engine.segment import Segmentation
    from napari_s2dc.engine.segmentation_model import SegmentationModel
    from napari_s2dc.volumes.volume import Volume
    from napari_s2dc.widgets.session import LoadedEncoder
    from napari_s2dc.widgets.volumes_of_layers import LayerSnapshot

__all__ = [
    "Learned",
    "ModelFound",
    "Ready",
    "Task",
    "Tuning",
    "learn",
    "learn_all",
    "tune",
]


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learned, as it was when the user asked for it.

    Parameters
    ----------
    scan : LayerSnapshot
        The image.
    labels : array-like
        On the finest grid of the image's layer; read in the thread, so that strokes that are
        painted until then count.
    labels_name : str
        Name of their layer.
    names, colours : mapping
        Of classes, by label.
    settings : FewshotSettings
        How.
    encoder : LoadedEncoder
        Pretrained.
    embedding : Embedding or None
        Of the image, where it was embedded.
    unlabelled : Path or None
        Folder with scans that fine-tuning carries the labels to.
    files : tuple of Path
        Those of the image and the labels, where they have any; they are no unlabelled scans.
    """

    scan: LayerSnapshot
    labels: Any
    labels_name: str
    names: Mapping[int, str]
    colours: Mapping[int, tuple[float, float, float]]
    settings: FewshotSettings
    encoder: LoadedEncoder
    embedding: Embedding | None
    unlabelled: Path | None = None
    files: tuple[Path, ...] = ()

    def load(self, image: Volume | None = None) -> LabelledScan:
        """Read the labels of the moment, and the image where it is not at hand."""
        from napari_s2dc.engine.labelled_scans import LabelledScan

        image = self.scan.load() if image is None else image
        return LabelledScan(image, self._on_grid_of(image))

    def _on_grid_of(self, image: Volume) -> Volume:
        from napari_s2dc.volumes.volume import Volume

        complete = self.settings.zero == "background"
        labels = at_level(np.array(self.labels), image.shape, complete=complete)
        return Volume(labels, image.affine, name=self.labels_name)

    def classes_in(self, scan: LabelledScan) -> tuple[SegmentationClass, ...]:
        """List the classes that the labels hold, named and coloured as their layer has them."""
        from napari_s2dc.engine.labelled_scans import classes_in

        return classes_in([scan], self.settings, names=self.names, colours=self.colours)


def at_level(labels: np.ndarray, shape: tuple[int, ...], *, complete: bool) -> np.ndarray:
    """Bring labels of the finest level to a coarser one.

    Parameters
    ----------
    labels : np.ndarray
        Integers.
    shape : tuple of int
        Voxels (z, y, x) of the level.
    complete : bool
        The label in the middle of every voxel counts; else every voxel that is labelled counts, so
        that no thin stroke is lost.
    """
    if labels.shape == shape:
        return labels
    factors = [fine / coarse for fine, coarse in zip(labels.shape, shape, strict=True)]
    if complete:
        middles = [
            ((np.arange(side) + 0.5) * factor).astype(int)
            for side, factor in zip(shape, factors, strict=True)
        ]
        return labels[np.ix_(*middles)]
    coarse = np.zeros(shape, labels.dtype)
    painted = np.nonzero(labels)
    places = tuple(
        (axis / factor).astype(int).clip(max=side - 1)
        for axis, factor, side in zip(painted, factors, shape, strict=True)
    )
    coarse[places] = labels[painted]
    return coarse


@dataclass(frozen=True, eq=False)
class Ready:
    """A scan with the features that Quick needs, and what they were made from.

    Parameters
    ----------
    features : QuickScan
        Features.
    scan : LayerSnapshot
        The image.
    recipe : tuple
        Encoder, settings and intensities.
    """

    features: QuickScan
    scan: LayerSnapshot
    recipe: tuple[Any, ...]

    def suits(self, task: Task) -> bool:
        """Whether a task needs just these features."""
        mine, other = self.scan, task.scan
        return (
            self.recipe == _recipe(task)
            and mine.data is other.data
            and np.allclose(mine.affine, other.affine)
        )


def _recipe(task: Task) -> tuple[Any, ...]:
    # The network itself: its number may be another one's once it has gone.
    return task.encoder.network, task.settings.quick, task.settings.preset


@dataclass(frozen=True, eq=False)
class Learned:
    """What a training of Quick has led to.

    Parameters
    ----------
    model : SegmentationModel
        The model.
    ready : Ready
        The scan with its features.
    labels : np.ndarray (Z, Y, X)
        What it was trained on.
    plane : Segmentation or None
        Of the plane on the screen.
    """

    model: SegmentationModel
    ready: Ready
    labels: np.ndarray
    plane: Segmentation | None


def learn(
    task: Task,
    ready: Ready | None,
    start: SegmentationModel | None,
    plane: tuple[int, int] | None,
) -> Generator[Any, None, Learned]:
    """Train Quick, and segment the plane (axis, index) on the screen.

    Parameters
    ----------
    task : Task
        What is learned.
    ready : Ready or None
        Features of before, used where they suit.
    start : SegmentationModel or None
        Trained on where it knows the same classes; else everything is learned anew.
    plane : tuple of int or None
        None for no plane.
    """
    from napari_s2dc.engine.fewshot import with_provenance
    from napari_s2dc.engine.loading import load_optimisers
    from napari_s2dc.engine.quick import train_quick
    from napari_s2dc.engine.quick_scan import prepare_scan
    from napari_s2dc.engine.segment import QuickSegmenter

    load_optimisers()
    if ready is not None and not ready.suits(task):
        ready = None
    scan = task.load(None if ready is None else ready.features.volume)
    classes = task.classes_in(scan)
    network, settings = task.encoder.network, task.settings
    if ready is None:
        features = yield from prepare_scan(
            scan.image,
            network,
            settings.quick,
            preset=settings.preset,
            device=settings.device,
            embedding=task.embedding,
        )
        ready, start = Ready(features, task.scan, _recipe(task)), None
    if start is not None and not _knows(start, classes):
        start = None
    model = yield from train_quick(
        [(ready.features, scan.labels.array)], classes, network, settings, start=start
    )
    if start is None:
        model = with_provenance(model, network, [scan.image], settings)
    else:  # hashing a large scan takes longer than a refresh may
        model = replace(model, metadata={**start.metadata, **model.metadata})
    shown = None if plane is None else QuickSegmenter(ready.features, model).plane(*plane)
    return Learned(model, ready, scan.labels.array, shown)


def learn_all(
    learned: Learned, settings: FewshotSettings
) -> Generator[Any, None, SegmentationModel]:
    """Let Quick learn from all of the scan where strokes were painted on it.

    Parameters
    ----------
    learned : Learned
        From the labels alone.
    settings : FewshotSettings
        It was trained with.
    """
    from napari_s2dc.engine.quick_spread import learn_from_spread_strokes

    painted = [(learned.ready.features, learned.labels)]
    return (yield from learn_from_spread_strokes(painted, learned.model, settings))


def _knows(model: SegmentationModel, classes: tuple[SegmentationClass, ...]) -> bool:
    """Whether a model of Quick tells just these classes apart."""
    return model.kind == "quick" and [one.label for one in model.classes] == [
        one.label for one in classes
    ]


# ------------------------------------------------------------------------------- fine-tuning
@dataclass(frozen=True)
class ModelFound(Progress):
    """The best model so far, asked for while a training goes on."""

    model: Any = None


@dataclass(eq=False)
class Tuning:
    """A fine-tuning that can be stopped, asked for its best so far, and taken up again.

    Parameters
    ----------
    task : Task
        What is learned.
    """

    task: Task
    run: FinetuneRun | None = None
    carried: CarriedLabels | None = None
    image: Volume | None = None
    stop: Event = field(default_factory=Event)
    best: Event = field(default_factory=Event)

    @property
    def has_learned(self) -> bool:
        """Whether there is a model: a step was learned, however the training ended."""
        return self.run is not None and self.run.steps_done > 0

    def model(self) -> SegmentationModel:
        """Give the best model so far."""
        from napari_s2dc.engine.fewshot import with_provenance

        assert self.run is not None
        assert self.image is not None
        task = self.task
        return with_provenance(
            self.run.model(),
            task.encoder.network,
            [self.image],
            task.settings,
            carried=self.carried,
        )


def tune(tuning: Tuning) -> Generator[Any, None, SegmentationModel]:
    """Fine-tune until the end or until it is stopped; again to go on."""
    from napari_s2dc.engine.cli_labels import unlabelled_files
    from napari_s2dc.engine.fewshot import prepare_fine_tuning
    from napari_s2dc.engine.loading import load_fine_tuning

    load_fine_tuning()
    if tuning.run is None:
        task = tuning.task
        scan = task.load()
        tuning.image = scan.image
        more: list[Path] = []
        if task.unlabelled is not None:
            own = () if scan.image.path is None else (scan.image.path,)
            more = unlabelled_files([str(task.unlabelled)], (*own, *task.files))
        tuning.run, tuning.carried = yield from prepare_fine_tuning(
            [scan],
            task.encoder.network,
            task.classes_in(scan),
            task.settings,
            unlabelled=more,
        )
    with closing(tuning.run.train()) as steps:
        for progress in steps:
            yield progress
            if tuning.best.is_set():
                tuning.best.clear()
                yield ModelFound(progress.done, progress.total, progress.what, tuning.model())
            if tuning.stop.is_set():
                break
    return tuning.model()
