"""Strokes spread over the scan that they were painted on, so that Quick learns from all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.fewshot_settings import FewshotSettings
from napari_s2dc.engine.labelled_scans import UNLABELLED, targets_of
from napari_s2dc.engine.progress import Steps
from napari_s2dc.engine.quick import balanced, labelled_voxels
from napari_s2dc.engine.quick_features import VoxelFeatures
from napari_s2dc.engine.quick_head import Examples, fit_head, head_of, tensors_of
from napari_s2dc.engine.quick_scan import QuickScan
from napari_s2dc.engine.random_walk import random_walk
from napari_s2dc.engine.segmentation_model import SegmentationModel

__all__ = ["learn_from_spread_strokes"]

_CERTAINTY = 1e-4
_OF_STROKES = 100.0
_ITERATIONS = 100
_SHARE_OF_STROKES = 0.3
_MOST_CELLS = 200_000


def learn_from_spread_strokes(
    scans: Sequence[tuple[QuickScan, np.ndarray]],
    model: SegmentationModel,
    settings: FewshotSettings,
) -> Steps[SegmentationModel]:
    """Train the head on, with what its strokes become when they spread within their regions.

    Parameters
    ----------
    scans : sequence of (QuickScan, np.ndarray)
        What the model was trained on, with labels (Z, Y, X).
    model : SegmentationModel
        Of :func:`napari_s2dc.engine.quick.train_quick`; not changed.
    settings : FewshotSettings
        Its settings.

    Yields
    ------
    Progress
        Of the random walk, then :class:`TrainingProgress` for every step.

    Returns
    -------
    SegmentationModel
        The same with another head.

    Notes
    -----
    A random walk takes the strokes as seeds and what the head finds as a weak prior, in cells of at
    least two voxels a side. The most likely class of every cell is then learned like a label, and
    the strokes with it. A head that has seen strokes in one slice knows little of the slices far
    from it; regions of like intensity carry the strokes there.
    """
    head, projections = head_of(model)
    classes = model.classes
    random = torch.Generator().manual_seed(settings.seed)
    features, targets = [], []
    for scan, labels in scans:
        cells = VoxelFeatures(scan, projections).of_cells()
        with torch.no_grad():
            prior = head(cells).softmax(-1).permute(3, 0, 1, 2).contiguous()
        seeds = _seeds(targets_of(labels, classes, settings), scan.cells.step, prior)
        seeded = seeds.sum(0) > 0
        found = yield from random_walk(
            torch.where(seeded, seeds, prior),
            torch.where(seeded, _OF_STROKES, _CERTAINTY),
            torch.from_numpy(scan.cells.image),
            iterations=_ITERATIONS,
        )
        some = torch.randperm(seeded.numel(), generator=random)[: _MOST_CELLS // len(scans)]
        features.append(cells.reshape(-1, cells.shape[-1])[some])
        targets.append(found.argmax(0).ravel()[some])
    painted = balanced(*labelled_voxels(scans, projections, classes, settings), len(classes) + 1)
    kinds = [
        Examples(torch.cat(features), torch.cat(targets)),
        replace(painted, share=_SHARE_OF_STROKES),
    ]
    loss = yield from fit_head(head, kinds, settings.quick.steps, random)
    return replace(
        model, tensors=tensors_of(head, projections), metadata={**model.metadata, "loss": loss}
    )


def _seeds(targets: np.ndarray, step: int, like: Tensor) -> Tensor:
    """Shares (outputs, z, y, x) of the targets among the labelled voxels of every cell."""
    places = np.nonzero(targets != UNLABELLED)
    numbers = torch.zeros_like(like)
    cells = [torch.from_numpy(axis // step) for axis in places]
    outputs = torch.from_numpy(targets[places].astype(np.int64))
    numbers.index_put_((outputs, *cells), torch.ones(len(outputs)), accumulate=True)
    return numbers / numbers.sum(0).clamp(min=1)
