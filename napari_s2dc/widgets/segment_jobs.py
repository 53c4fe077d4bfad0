"""What the Segment tab runs in threads; nothing here touches Qt or layers."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_s2dc.engine.progress import Progress, as_one
from napari_s2dc.errors import SCAN_ERRORS, S2DCError, reason_of

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
    "PaintedScan",
    "Ready",
    "Task",
    "Tuning",
    "given_names",
    "learn",
    "learn_all",
    "tune",
    "with_more",
]


@dataclass(frozen=True, eq=False)
class PaintedScan:
    """A scan and its labels, as they were when the user asked for what is learned from them.

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
    embedding : Embedding or None
        Of the image, where it was embedded.
    files : tuple of Path
        Those of the image and the labels, where they have any; they are no unlabelled scans.
    """

    scan: LayerSnapshot
    labels: Any
    labels_name: str
    names: Mapping[int, str]
    colours: Mapping[int, tuple[float, float, float]]
    embedding: Embedding | None = None
    files: tuple[Path, ...] = ()

    def load(self, zero: str, image: Volume | None = None) -> LabelledScan:
        """Read the labels of the moment, and the image where it is not at hand.

        Parameters
        ----------
        zero : str
            What 0 means: ``unlabelled`` or ``background``.
        image : Volume, optional
            The scan, where it was read before.
        """
        from napari_s2dc.engine.labelled_scans import LabelledScan
        from napari_s2dc.volumes.volume import Volume

        image = self.scan.load() if image is None else image
        try:
            painted = np.array(self.labels)
        except SCAN_ERRORS as error:
            raise S2DCError(f"{self.labels_name} cannot be read: {reason_of(error)}") from error
        labels = at_level(painted, image.shape, complete=zero == "background")
        return LabelledScan(image, Volume(labels, image.affine, name=self.labels_name))


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learned, as it was when the user asked for it.

    Parameters
    ----------
    scans : tuple of PaintedScan
        What is learned from, in the order of their names, as `s2dc finetune` takes files.
    chosen : int
        Which of them is the chosen one, which is segmented.
    settings : FewshotSettings
        How.
    encoder : LoadedEncoder
        Pretrained.
    unlabelled : Path or None
        Folder with scans that fine-tuning carries the labels to.
    """

    scans: tuple[PaintedScan, ...]
    chosen: int
    settings: FewshotSettings
    encoder: LoadedEncoder
    unlabelled: Path | None = None

    @property
    def scan(self) -> LayerSnapshot:
        """The chosen scan."""
        return self.scans[self.chosen].scan

    @property
    def labels_name(self) -> str:
        """Name of the layer with its labels, and how many more scans are learned from."""
        return with_more(self.scans[self.chosen].labels_name, len(self.scans) - 1)

    def load(
        self, images: Sequence[Volume | None] = ()
    ) -> Generator[Progress, None, list[LabelledScan]]:
        """Read the labels of the moment, and the images that are not at hand.

        Yields
        ------
        Progress
            Scans, where there are several.

        Raises
        ------
        S2DCError
            An image cannot be read, or one of several scans has no label.
        """
        known = images or [None] * len(self.scans)
        found: list[LabelledScan] = []
        for number, (one, image) in enumerate(zip(self.scans, known, strict=True)):
            if len(self.scans) > 1:
                yield Progress(number, len(self.scans), "scans")
            scan = one.load(self.settings.zero, image)
            if len(self.scans) > 1 and not scan.labels.array.any():
                # By mistake it would be a whole scan of background.
                raise S2DCError(
                    f"{one.labels_name} holds no label.",
                    f"Paint some, or leave {one.scan.name} out.",
                )
            found.append(scan)
        return found

    def classes_in(self, scans: Sequence[LabelledScan]) -> tuple[SegmentationClass, ...]:
        """List the classes that the labels hold, named and coloured as their layers have them."""
        from napari_s2dc.engine.labelled_scans import classes_in

        names: dict[int, str] = {}
        colours: dict[int, tuple[float, float, float]] = {}
        for one in (*self.scans, self.scans[self.chosen]):  # the chosen one has the last word
            names |= given_names(one.names)
            colours |= one.colours
        return classes_in(scans, self.settings, names=names, colours=colours)


def given_names(names: Mapping[int, str]) -> dict[int, str]:
    """Leave out the names that classes have as long as nobody has given them any."""
    return {label: name for label, name in names.items() if name != f"class {label}"}


def with_more(name: str, more: int) -> str:
    """Name a labels layer and how many more there are."""
    return name if not more else f"{name} and {more} more"


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

    def suits(self, other: LayerSnapshot, task: Task) -> bool:
        """Whether a task needs just these features of a scan."""
        mine = self.scan
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
    ready : tuple of Ready
        The scans of the task with their features.
    labels : tuple of np.ndarray (Z, Y, X)
        What it was trained on.
    plane : Segmentation or None
        Of the plane on the screen.
    """

    model: SegmentationModel
    ready: tuple[Ready, ...]
    labels: tuple[np.ndarray, ...]
    plane: Segmentation | None

    def painted(self) -> list[tuple[QuickScan, np.ndarray]]:
        """Features and labels of every scan."""
        return features_with(self.ready, self.labels)


def features_with(
    ready: Sequence[Ready], labels: Sequence[np.ndarray]
) -> list[tuple[QuickScan, np.ndarray]]:
    """Give the features of every scan with its labels, as Quick takes them."""
    return [(one.features, array) for one, array in zip(ready, labels, strict=True)]


def learn(
    task: Task,
    known: Sequence[Ready | None],
    start: SegmentationModel | None,
    plane: tuple[int, int] | None,
) -> Generator[Any, None, Learned]:
    """Train Quick, and segment the plane (axis, index) of the chosen scan on the screen.

    Parameters
    ----------
    task : Task
        What is learned.
    known : sequence of Ready or None
        Features of before, for every scan of the task; used where they suit.
    start : SegmentationModel or None
        Trained on where it knows the same classes; else everything is learned anew.
    plane : tuple of int or None
        None for no plane.
    """
    from napari_s2dc.engine.fewshot import with_provenance
    from napari_s2dc.engine.loading import load_optimisers
    from napari_s2dc.engine.quick import train_quick
    from napari_s2dc.engine.segment import QuickSegmenter

    load_optimisers()
    at_hand = [
        ready if ready is not None and ready.suits(one.scan, task) else None
        for one, ready in zip(task.scans, known, strict=True)
    ]
    scans = yield from task.load(
        [None if ready is None else ready.features.volume for ready in at_hand]
    )
    classes = task.classes_in(scans)
    if start is not None and (None in at_hand or not _knows(start, classes)):
        start = None
    ready = yield from _prepare(task, scans, at_hand)
    labels = tuple(scan.labels.array for scan in scans)
    network, settings = task.encoder.network, task.settings
    painted = features_with(ready, labels)
    model = yield from train_quick(painted, classes, network, settings, start=start)
    if start is None:
        model = with_provenance(model, network, [scan.image for scan in scans], settings)
    else:  # hashing a large scan takes longer than a refresh may
        model = replace(model, metadata={**start.metadata, **model.metadata})
    shown = (
        None if plane is None else QuickSegmenter(ready[task.chosen].features, model).plane(*plane)
    )
    return Learned(model, ready, labels, shown)


def _prepare(
    task: Task, scans: Sequence[LabelledScan], at_hand: Sequence[Ready | None]
) -> Generator[Any, None, tuple[Ready, ...]]:
    """Make the features of the scans that have none yet."""
    from napari_s2dc.engine.quick_scan import prepare_scan

    settings, found = task.settings, []
    for number, (one, scan, ready) in enumerate(zip(task.scans, scans, at_hand, strict=True)):
        if ready is None:
            steps = prepare_scan(
                scan.image,
                task.encoder.network,
                settings.quick,
                preset=settings.preset,
                device=settings.device,
                embedding=one.embedding,
            )
            if len(scans) > 1:
                steps = as_one(steps, Progress(number, len(scans), "scans"))
            features = yield from steps
            ready = Ready(features, one.scan, _recipe(task))
        found.append(ready)
    return tuple(found)


def learn_all(
    learned: Learned, settings: FewshotSettings
) -> Generator[Any, None, SegmentationModel]:
    """Let Quick learn from all of the scans where strokes were painted on them.

    Parameters
    ----------
    learned : Learned
        From the labels alone.
    settings : FewshotSettings
        It was trained with.
    """
    from napari_s2dc.engine.quick_spread import learn_from_spread_strokes

    return (yield from learn_from_spread_strokes(learned.painted(), learned.model, settings))


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
    images: tuple[Volume, ...] = ()
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
        task = self.task
        return with_provenance(
            self.run.model(),
            task.encoder.network,
            self.images,
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
        scans = yield from task.load()
        tuning.images = tuple(scan.image for scan in scans)
        more: list[Path] = []
        if task.unlabelled is not None:
            own = [image.path for image in tuning.images if image.path is not None]
            files = [file for one in task.scans for file in one.files]
            more = unlabelled_files([str(task.unlabelled)], (*own, *files))
        tuning.run, tuning.carried = yield from prepare_fine_tuning(
            scans,
            task.encoder.network,
            task.classes_in(scans),
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
