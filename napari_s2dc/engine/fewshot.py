"""From a few labels to a segmentation model, by a light head or by fine-tuning a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_s2dc import __version__
from napari_s2dc.engine.carried_labels import CarriedLabels
from napari_s2dc.engine.encoders import name_of, weights_hash
from napari_s2dc.engine.fewshot_settings import FewshotSettings, SegmentationClass
from napari_s2dc.engine.labelled_scans import (
    LabelledScan,
    classes_in,
    facts_of,
    keep_strokes,
    voxels_of_labels,
)
from napari_s2dc.engine.progress import Steps, StopTraining
from napari_s2dc.engine.quick import train_quick
from napari_s2dc.engine.quick_scan import prepare_scan
from napari_s2dc.engine.quick_spread import learn_from_spread_strokes
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.preprocess import resample
from napari_s2dc.volumes.volume import Volume

if TYPE_CHECKING:
    from napari_s2dc.engine.finetune import FinetuneRun

__all__ = ["on_training_grid", "prepare_fine_tuning", "train_model", "with_provenance"]


def train_model(
    scans: Sequence[LabelledScan],
    encoder: SwinEncoder,
    settings: FewshotSettings,
    *,
    classes: Sequence[SegmentationClass] | None = None,
    unlabelled: Sequence[Path] = (),
    held_out: Sequence[LabelledScan] = (),
) -> Steps[SegmentationModel]:
    """Learn to segment from labelled scans.

    Parameters
    ----------
    scans : sequence of LabelledScan
        At least one.
    encoder : SwinEncoder
        Pretrained; not changed.
    settings : FewshotSettings
        Say how.
    classes : sequence of SegmentationClass, optional
        What is learned; the classes that the labels hold when left out.
    unlabelled : sequence of Path
        More scans of the kind. Fine-tuning carries the labels to them by
        :func:`napari_s2dc.engine.carried_labels.carry_labels` and learns from those too.
    held_out : sequence of LabelledScan
        Fine-tuning keeps the network that is best on them; Quick does without.

    Yields
    ------
    Progress
        Windows that are embedded, or scans, labelled and unlabelled ones, while labels are
        carried; then :class:`TrainingProgress` for every step. A fine-tuning that
        :class:`StopTraining` is thrown into ends with the best so far.

    Returns
    -------
    SegmentationModel
        With its provenance in the metadata; ``metadata["left_out"]`` says which unlabelled scans
        could not be used, and why.

    Raises
    ------
    S2DCError
        There is nothing to learn, a scan cannot be used, there are unlabelled scans but Quick is
        asked for, labels can be carried to none of them, or training failed at once. Where it
        failed later, ``metadata["failure"]`` of the model so far says why.
    """
    if unlabelled and settings.mode == "quick":
        raise ConfigurationError(
            "Quick learns nothing from unlabelled scans.", "Choose the mode finetune for them."
        )
    classes = classes_in(scans, settings) if classes is None else tuple(classes)
    carried = CarriedLabels()
    if settings.mode == "quick":
        prepared = []
        for scan in _ready(scans, classes, settings):
            features = yield from prepare_scan(
                scan.image, encoder, settings.quick, preset=settings.preset, device=settings.device
            )
            prepared.append((features, scan.labels.array))
        model = yield from train_quick(prepared, classes, encoder, settings)
        model = yield from learn_from_spread_strokes(prepared, model, settings)
    else:
        run, carried = yield from prepare_fine_tuning(
            scans, encoder, classes, settings, unlabelled=unlabelled, held_out=held_out
        )
        failure = ""
        try:
            yield from run.train()
        except StopTraining:
            pass
        except S2DCError as error:
            if not run.steps_done:
                raise
            failure = str(error)
        model = run.model()
        if failure:
            model = replace(model, metadata={**model.metadata, "failure": failure})
    images = [scan.image for scan in scans]
    return with_provenance(model, encoder, images, settings, carried=carried)


def prepare_fine_tuning(
    scans: Sequence[LabelledScan],
    encoder: SwinEncoder,
    classes: Sequence[SegmentationClass],
    settings: FewshotSettings,
    *,
    unlabelled: Sequence[Path] = (),
    held_out: Sequence[LabelledScan] = (),
    matching: SwinEncoder | None = None,
) -> Steps[tuple[FinetuneRun, CarriedLabels]]:
    """Bring scans to the grid of the model and carry labels, so that a training can begin.

    Parameters
    ----------
    scans, encoder, classes, settings, unlabelled, held_out
        As for :func:`train_model`.
    matching : SwinEncoder, optional
        Its features are matched where labels are carried; `encoder` when left out.

    Yields
    ------
    Progress
        Scans, labelled and unlabelled ones, while labels are carried.

    Returns
    -------
    FinetuneRun
        Not begun.
    CarriedLabels
        What became of the unlabelled scans, without their voxels.

    Raises
    ------
    S2DCError
        As of :func:`train_model`.
    """
    from napari_s2dc.engine.carried_labels import carry_labels
    from napari_s2dc.engine.finetune import FinetuneRun

    ready = _ready(scans, classes, settings)
    judges = [on_training_grid(scan, settings) for scan in held_out]
    carried = CarriedLabels()
    if unlabelled:
        network = encoder if matching is None else matching
        carried = yield from carry_labels(ready, unlabelled, network, classes, settings)
    run = FinetuneRun(ready, encoder, classes, settings, carried=carried.scans, held_out=judges)
    return run, carried.without_scans()


def _ready(
    scans: Sequence[LabelledScan],
    classes: Sequence[SegmentationClass],
    settings: FewshotSettings,
) -> list[LabelledScan]:
    """Bring scans to the grid of the model, on which no class may be lost."""
    ready = [on_training_grid(scan, settings) for scan in scans]
    _require_all(classes, ready, settings)
    return ready


def on_training_grid(scan: LabelledScan, settings: FewshotSettings) -> LabelledScan:
    """Resample a scan and its labels to the spacing of the settings; no stroke is lost."""
    if settings.spacing_mm is None:
        return scan
    image = resample(scan.image, settings.spacing_mm)
    labels = resample(scan.labels, settings.spacing_mm, labels=True)
    if settings.zero == "unlabelled" and labels is not scan.labels:
        labels = keep_strokes(scan.labels, labels)
    return LabelledScan(image, labels)


def _require_all(
    classes: Sequence[SegmentationClass], scans: Sequence[LabelledScan], settings: FewshotSettings
) -> None:
    """Refuse a spacing at which a class has no voxel left."""
    left = set().union(*(voxels_of_labels(scan.labels.array) for scan in scans))
    lost = [one.name for one in classes if one.label not in left]
    if lost and settings.spacing_mm is not None:
        spacing = " x ".join(f"{side:g}" for side in settings.spacing_mm)
        raise S2DCError(
            f"At a spacing of {spacing} mm no voxel of {', '.join(lost)} is left.",
            "Choose a smaller spacing, or leave these classes out.",
        )


def with_provenance(
    model: SegmentationModel,
    encoder: SwinEncoder,
    images: Sequence[Volume],
    settings: FewshotSettings,
    *,
    carried: CarriedLabels | None = None,
) -> SegmentationModel:
    """Note in a model what it was made of.

    Parameters
    ----------
    model : SegmentationModel
        As trained.
    encoder : SwinEncoder
        As it was before training.
    images : sequence of Volume
        Scans that were learned from.
    settings : FewshotSettings
        How.
    carried : CarriedLabels, optional
        Scans that labels were carried to.
    """
    carried = carried or CarriedLabels()
    facts = {
        "encoder": name_of(encoder),
        "encoder_weights": weights_hash(encoder),
        "scans": [facts_of(image) for image in images],
        "unlabelled_scans": list(carried.facts),
        "left_out": list(carried.left_out),
        "settings": asdict(settings),
        "version": __version__,
    }
    return replace(model, metadata={**model.metadata, **facts})
