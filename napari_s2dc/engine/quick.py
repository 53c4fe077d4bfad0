"""Quick: a light head over features of the frozen encoder, trained in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from napari_s2dc.engine.fewshot_settings import (
    FewshotSettings,
    QuickSettings,
    SegmentationClass,
    SegmentSettings,
)
from napari_s2dc.engine.labelled_scans import UNLABELLED, targets_of
from napari_s2dc.engine.progress import Steps
from napari_s2dc.engine.quick_features import Projection, VoxelFeatures, project
from napari_s2dc.engine.quick_head import Examples, QuickHead, fit_head, head_of, tensors_of
from napari_s2dc.engine.quick_scan import QuickScan, intensity_channels
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.encoder import SwinEncoder

__all__ = ["balanced", "check_quick", "labelled_voxels", "refuse_mirror_images", "train_quick"]

_BALANCE = 0.5
_UNLABELLED = 0.01
_LEAST_OF_CLASS = 200
_LEAST_SPREAD = 1e-3


def check_quick(settings: FewshotSettings) -> None:
    """Refuse settings that nothing can be trained with, or used then, by ConfigurationError."""
    refuse_mirror_images(settings.segment)
    quick = settings.quick
    least = {"components": 1, "hidden": 1, "steps": 1, "voxels": 1}
    for name, lowest in least.items():
        if getattr(quick, name) < lowest:
            raise ConfigurationError(
                f"quick.{name} is {getattr(quick, name)}, but must be at least {lowest}."
            )
    widths = quick.smoothing_vox
    if not quick.stages or not widths or not all(0 <= width < math.inf for width in widths):
        raise ConfigurationError(
            "Quick needs at least one stage, and one width of smoothing, of 0 voxels or more.",
            "Mend quick.stages or quick.smoothing_vox.",
        )


def refuse_mirror_images(settings: SegmentSettings) -> None:
    """Refuse to average mirror images, by ConfigurationError: the head knows a voxel's place."""
    if settings.flips:
        raise ConfigurationError(
            "A Quick model knows left from right, so mirror images cannot be averaged.",
            "Switch mirror images off, or use Fine-tune.",
        )


def train_quick(
    scans: Sequence[tuple[QuickScan, np.ndarray]],
    classes: Sequence[SegmentationClass],
    encoder: SwinEncoder,
    settings: FewshotSettings,
    *,
    start: SegmentationModel | None = None,
) -> Steps[SegmentationModel]:
    """Train the head on the labelled voxels of scans.

    Parameters
    ----------
    scans : sequence of (QuickScan, np.ndarray)
        With labels (Z, Y, X) on the grid of the scan.
    classes : sequence of SegmentationClass
        What is learned.
    encoder : SwinEncoder
        The one that the scans were embedded with; kept in the model.
    settings : FewshotSettings
        Settings.
    start : SegmentationModel, optional
        Of the same encoder, classes and settings: its head is trained on, for a third of the steps.

    Yields
    ------
    TrainingProgress
        After every step; Dice, every few, is that of the voxels of the step.

    Returns
    -------
    SegmentationModel
        Of kind ``quick``; metadata has ``stages``, ``smoothing_vox``, ``steps`` and ``loss``.

    Raises
    ------
    ConfigurationError
        A setting of Quick is out of range.
    S2DCError
        No voxel is labelled, or the loss is no number.

    Notes
    -----
    A voxel counts by the inverse square root of how many its class has: between voxels that all
    count alike and classes that do. From one mouse brain to others (37 structures) the mean Dice
    was 0.39 so, 0.32 when voxels count alike; with strokes on a CT 0.57, 0.52 when classes do.

    Where strokes were painted, random voxels without a label count as background, a hundredth as
    much as the labelled ones: most of a scan is background, and a few strokes do not show all that
    there is. With background painted in one slice of a CT only, the mean Dice of eight organs was
    0.54 so and 0.34 with a random forest that knows the strokes only.
    """
    quick = settings.quick
    check_quick(settings)
    random = torch.Generator().manual_seed(settings.seed)
    if start is None:
        projections = [
            project([scan.embeddings[place] for scan, _ in scans], quick.components)
            for place in range(len(quick.stages))
        ]
        features, targets = labelled_voxels(scans, projections, classes, settings)
        head = _new_head(features, quick, len(classes) + 1, random)
        steps = quick.steps
    else:
        head, projections = head_of(start)
        features, targets = labelled_voxels(scans, projections, classes, settings)
        steps = max(1, quick.steps // 3)
    kinds = [balanced(features, targets, len(classes) + 1)]
    if settings.zero == "unlabelled" and (others := _unlabelled(scans, projections)) is not None:
        nothing = torch.zeros(len(others), dtype=torch.long)
        kinds.append(Examples(others, nothing, weight=_UNLABELLED))
    loss = yield from fit_head(head, kinds, steps, random)
    return SegmentationModel(
        kind="quick",
        encoder=encoder,
        tensors=tensors_of(head, projections),
        classes=tuple(classes),
        preset=scans[0][0].embeddings[0].metadata["preset"],
        spacing_mm=settings.spacing_mm,
        segment=settings.segment,
        metadata={
            "stages": list(quick.stages),
            "smoothing_vox": list(quick.smoothing_vox),
            "steps": steps,
            "loss": loss,
        },
    )


def labelled_voxels(
    scans: Sequence[tuple[QuickScan, np.ndarray]],
    projections: Sequence[Projection],
    classes: Sequence[SegmentationClass],
    settings: FewshotSettings,
) -> tuple[Tensor, Tensor]:
    """Features (N, F) and targets (N,) of the voxels that are learned from.

    Raises
    ------
    S2DCError
        No voxel is labelled.
    """
    random = np.random.default_rng(settings.seed)
    limit = max(1, settings.quick.voxels // len(scans))
    least = max(1, _LEAST_OF_CLASS // len(scans))
    features, truth = [], []
    for scan, labels in scans:
        targets = targets_of(labels, classes, settings).ravel()
        drawn = _draw(targets, limit, least, random)
        if len(drawn):
            voxels = np.stack(np.unravel_index(drawn, labels.shape), axis=1)
            features.append(VoxelFeatures(scan, projections).at(voxels))
            truth.append(torch.from_numpy(targets[drawn].astype(np.int64)))
    if not features:
        raise S2DCError("No voxel is labelled.", "Paint at least two classes.")
    return torch.cat(features), torch.cat(truth)


def balanced(features: Tensor, targets: Tensor, outputs: int) -> Examples:
    """Weigh voxels by the inverse square root of how many their class has."""
    counts = torch.bincount(targets, minlength=outputs)
    return Examples(features, targets, class_weights=counts.clamp(min=1) ** -_BALANCE)


def _unlabelled(
    scans: Sequence[tuple[QuickScan, np.ndarray]], projections: Sequence[Projection]
) -> Tensor | None:
    """Features (N, F) of random voxels with label 0; None without any."""
    found = []
    for scan, labels in scans:
        voxels, features = VoxelFeatures(scan, projections).of_sample()
        found.append(features[torch.from_numpy(labels[tuple(voxels.T)] == 0)])
    everything = torch.cat(found)
    return everything if len(everything) else None


def _draw(targets: np.ndarray, limit: int, least: int, random: np.random.Generator) -> np.ndarray:
    """Choose labelled voxels of a scan, ascending; of every class at least a few, where it has."""
    known = np.flatnonzero(targets != UNLABELLED)
    if len(known) <= limit:
        return known
    drawn = random.choice(known, limit, replace=False)
    number = np.bincount(targets[known])
    missing = np.minimum(number, least) - np.bincount(targets[drawn], minlength=len(number))
    rare = [
        random.choice(np.flatnonzero(targets == output), min(number[output], least), replace=False)
        for output in np.flatnonzero(missing > 0)
    ]
    return np.unique(np.concatenate([drawn, *rare]))


def _new_head(
    features: Tensor, quick: QuickSettings, outputs: int, random: torch.Generator
) -> QuickHead:
    head = QuickHead(features.shape[1], quick.hidden, outputs)
    # Tokens and places have their scale already.
    intensities = slice(0, intensity_channels(quick.smoothing_vox))
    head.centre[intensities] = features[:, intensities].mean(0)
    head.scale[intensities] = 1 / features[:, intensities].std(0, correction=0).clamp(
        min=_LEAST_SPREAD
    )
    for layer in (head.first, head.second):
        bound = layer.in_features**-0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=random)
        nn.init.zeros_(layer.bias)
    return head
