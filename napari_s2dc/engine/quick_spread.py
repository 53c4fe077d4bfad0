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
from napari_s2dc.engine.quick_scan import QuickScan, Sides
from napari_s2dc.engine.random_walk import random_walk
from napari_s2dc.engine.segmentation_model import SegmentationModel

__all__ = ["learn_from_spread_strokes"]

_CERTAINTY_OF_HEAD = 1e-4
_CERTAINTY_OF_STROKES = 100.0
_ITERATIONS = 100
_WEIGHT_OF_STROKES = 0.3
_RARE = 0.05
"""Share of the voxels painted of a class that are darker than what counts as its intensities, and
that are brighter."""
_ROUNDING = 1e-3
"""Of intensities from 0 to 1."""
_FEWEST_PAINTED = 20
"""Below, a few painted voxels do not tell how dark and how bright a class is."""
_MOST_EXAMPLES = 200_000


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
        The same with another head; the model itself where labels are complete, so that nothing
        has to spread.

    Notes
    -----
    Random walks take the strokes as seeds and what the head finds as a weak prior, in cells of a
    few voxels (:func:`napari_s2dc.engine.quick_scan.cell_sides`). Of the classes whose strokes show
    the intensity of a cell, the most likely one is then learned like a label, and the strokes with
    it: otherwise organs grow into the fat between them, where nobody painted background. A head
    that has seen strokes in one slice knows little of the slices far from it; regions of like
    intensity carry the strokes there. What benchmarks/README.md says of strokes led to this.

    Scans without strokes are left out, and of other scans what the head takes for a class that
    has no stroke there: the strokes of its neighbours would spread over it.
    """
    if settings.zero == "background":
        return model
    head, projections = head_of(model)
    classes = model.classes
    random = torch.Generator().manual_seed(settings.seed)
    features, targets = [], []
    for scan, labels in scans:
        truth = targets_of(labels, classes, settings)
        if (truth == UNLABELLED).all():
            continue
        cells = yield from scan.cells()
        voxels = VoxelFeatures(scan, projections).of_cells(cells)
        with torch.no_grad():
            prior = head(voxels).softmax(-1).permute(3, 0, 1, 2).contiguous()
        seeds = _seeds(truth, cells.sides, prior)
        seeded = seeds.sum(0) > 0
        found = yield from random_walk(
            torch.where(seeded, seeds, prior),
            torch.where(seeded, _CERTAINTY_OF_STROKES, _CERTAINTY_OF_HEAD),
            torch.from_numpy(cells.image),
            iterations=_ITERATIONS,
        )
        foreign = seeds.flatten(1).sum(1) == 0
        foreign[0] = False  # background is everywhere, painted or not
        known = torch.nonzero(~foreign[prior.argmax(0)].ravel())[:, 0]
        some = known[torch.randperm(len(known), generator=random)[: _MOST_EXAMPLES // len(scans)]]
        features.append(voxels.reshape(-1, voxels.shape[-1])[some])
        found[foreign] = 0
        if settings.background is not None:  # else what no class shows would be taught as such
            found *= _shown(scan, torch.from_numpy(cells.image), truth, seeds)
        targets.append(found.argmax(0).ravel()[some])
    if not sum(map(len, targets)):
        return model
    painted = balanced(*labelled_voxels(scans, projections, classes, settings), len(classes) + 1)
    kinds = [
        Examples(torch.cat(features), torch.cat(targets)),
        replace(painted, weight=_WEIGHT_OF_STROKES),
    ]
    loss = yield from fit_head(head, kinds, settings.quick.steps, random)
    steps = model.metadata["steps"] + settings.quick.steps
    return replace(
        model,
        tensors=tensors_of(head, projections),
        metadata={**model.metadata, "steps": steps, "loss": loss},
    )


def _shown(scan: QuickScan, image: Tensor, targets: np.ndarray, seeds: Tensor) -> Tensor:
    """Whether strokes of a class show the intensity of a cell, (outputs, z, y, x).

    Background, and classes of which little was painted, are taken to show all, and strokes the
    cells that they lie in.

    Parameters
    ----------
    scan : QuickScan
        Scan.
    image : Tensor (z, y, x)
        Mean intensities of its cells.
    targets : np.ndarray (Z, Y, X)
        Of its voxels.
    seeds : Tensor (outputs, z, y, x)
        Shares of them in cells.
    """
    shown = torch.ones(seeds.shape, dtype=torch.bool)
    for output, seeded in enumerate(seeds > 0):
        voxels = scan.scaling(scan.volume.array[targets == output])
        if output == 0 or len(voxels) < _FEWEST_PAINTED:
            continue
        # Those of cells, too: a structure may be thinner than a cell.
        ranges = [np.quantile(own, (_RARE, 1 - _RARE)) for own in (voxels, image[seeded].numpy())]
        low, high = min(one[0] for one in ranges), max(one[1] for one in ranges)
        within = (image >= float(low) - _ROUNDING) & (image <= float(high) + _ROUNDING)
        shown[output] = within | seeded
    return shown


def _seeds(targets: np.ndarray, sides: Sides, like: Tensor) -> Tensor:
    """Shares (outputs, z, y, x) of the targets among the labelled voxels of every cell."""
    numbers = torch.zeros_like(like)
    for z, plane in enumerate(targets):  # at once, places of many labels would take much memory
        y, x = np.nonzero(plane != UNLABELLED)
        outputs = torch.from_numpy(plane[y, x].astype(np.int64))
        cells = [torch.from_numpy(y // sides[1]), torch.from_numpy(x // sides[2])]
        numbers[:, z // sides[0]].index_put_(
            (outputs, *cells), torch.ones(len(outputs)), accumulate=True
        )
    return numbers / numbers.sum(0).clamp(min=1)
