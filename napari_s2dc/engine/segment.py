"""A whole scan, or one plane of it, segmented by a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.encode import device_of
from napari_s2dc.engine.fewshot_settings import QuickSettings, SegmentSettings
from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.engine.quick import refuse_mirror_images
from napari_s2dc.engine.quick_features import VoxelFeatures
from napari_s2dc.engine.quick_head import head_of
from napari_s2dc.engine.quick_scan import (
    Box,
    QuickScan,
    blocks_of,
    cell_means,
    cell_sides,
    cells_of,
    prepare_scan,
    whole_of,
)
from napari_s2dc.engine.quick_smooth import smooth, to_voxels
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.volumes.io import check_values
from napari_s2dc.volumes.preprocess import normalize, resample, resample_to
from napari_s2dc.volumes.volume import Volume

__all__ = ["QuickSegmenter", "Segmentation", "segment_volume"]

_MOST_PROBABILITIES = 150_000_000
"""Of all classes in all cells; they are held twice, in two bytes each."""
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model finds in a scan.

    Parameters
    ----------
    labels : np.ndarray (Z, Y, X)
        Label numbers of the classes, 0 for background; uint8 where they fit, else uint16 or uint32.
    uncertainty : np.ndarray (Z, Y, X)
        float16, from 0 (sure) to 1 (all classes are as likely): entropy over its largest value.
    """

    labels: np.ndarray
    uncertainty: np.ndarray


class QuickSegmenter:
    """The head of Quick on one scan.

    Parameters
    ----------
    scan : QuickScan
        Prepared with the encoder and settings of the model.
    model : SegmentationModel
        Of kind ``quick``.
    """

    def __init__(self, scan: QuickScan, model: SegmentationModel) -> None:
        self.scan = scan
        self._head, projections = head_of(model)
        self._features = VoxelFeatures(scan, projections)
        self._labels = label_numbers(model)

    def plane(self, axis: int, index: int) -> Segmentation:
        """Segment the plane with an index along an axis as it is before it is smoothed.

        Returns
        -------
        Segmentation
            2D, without that axis.
        """
        box = [slice(0, side) for side in self.scan.volume.shape]
        box[axis] = slice(index, index + 1)
        best, entropy = judge(self._logits((box[0], box[1], box[2])))
        return Segmentation(self._labels[best.squeeze(axis).numpy()], entropy.squeeze(axis).numpy())

    def whole(self) -> Steps[Segmentation]:
        """Segment the scan: every voxel by itself, then smoothed within regions.

        Yields
        ------
        Progress
            Blocks, iterations of the smoothing, and blocks again.
        """
        volume, outputs = self.scan.volume, len(self._labels)
        shape, blocks = volume.shape, blocks_of(volume.shape)
        sides = cell_sides(shape, volume.spacing_mm, _MOST_PROBABILITIES // outputs)
        grid = [part.stop for part in cells_of(whole_of(shape), sides)]
        prior = torch.empty((outputs, *grid), dtype=torch.float16)
        image = torch.empty(grid)
        for done, box in enumerate(blocks, start=1):
            z, y, x = cells_of(box, sides)
            found = self._logits(box).softmax(-1).permute(3, 0, 1, 2)
            prior[:, z, y, x] = cell_means(found, sides).half()
            image[z, y, x] = cell_means(self._intensities(box)[None], sides)[0]
            yield Progress(done, len(blocks), "blocks")
        smoothed = yield from smooth(prior, image)
        del prior
        labels = np.zeros(shape, self._labels.dtype)
        uncertainty = np.zeros(shape, np.float16)
        for done, box in enumerate(blocks, start=1):
            found = to_voxels(smoothed, image, self._intensities(box), box, sides)
            best, entropy = judge(found.permute(1, 2, 3, 0).clamp(min=_TINY).log())
            labels[box], uncertainty[box] = self._labels[best.numpy()], entropy.numpy()
            yield Progress(done, len(blocks), "blocks")
        return Segmentation(labels, uncertainty)

    def _logits(self, box: Box) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self._head(self._features.in_box(box))
        return logits

    def _intensities(self, box: Box) -> Tensor:
        return torch.from_numpy(self.scan.scaling(self.scan.volume.array[box]))


def judge(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Best output and uncertainty of logits (..., outputs).

    Returns
    -------
    best : Tensor (...)
        int64.
    uncertainty : Tensor (...)
        float16, 0 to 1.
    """
    logarithms = logits.log_softmax(-1)
    entropy = -(logarithms.exp() * logarithms).sum(-1) / math.log(max(2, logits.shape[-1]))
    return logits.argmax(-1), entropy.clamp(0, 1).half()


def label_numbers(model: SegmentationModel) -> np.ndarray:
    """Label number of every output, in the smallest type that holds them."""
    numbers = np.array([0, *(one.label for one in model.classes)])
    return numbers.astype(np.min_scalar_type(int(numbers.max())))


def segment_volume(
    volume: Volume,
    model: SegmentationModel,
    *,
    settings: SegmentSettings | None = None,
    device: str = "auto",
    prepared: QuickScan | None = None,
) -> Steps[Segmentation]:
    """Segment a scan.

    Parameters
    ----------
    volume : Volume
        Scan with raw intensities.
    model : SegmentationModel
        Model.
    settings : SegmentSettings, optional
        The model's own when left out.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    prepared : QuickScan, optional
        The scan on the model's grid, prepared earlier for a model of kind ``quick``.

    Yields
    ------
    Progress
        Windows; with Quick, blocks and iterations of the smoothing too.

    Returns
    -------
    Segmentation
        On the grid of `volume`.

    Raises
    ------
    VolumeError
        The scan holds no usable values.
    ConfigurationError
        The device is not there, or mirror images are asked of a model of kind ``quick``.
    """
    check_values(volume)
    settings = settings or model.segment
    grid = volume if model.spacing_mm is None else resample(volume, model.spacing_mm)
    if model.kind == "finetune":
        found = yield from _by_network(volume, grid, model, settings, device)
    else:
        refuse_mirror_images(settings)
        found = yield from _by_head(volume, grid, model, device, prepared)
    if settings.largest_component:
        labels = yield from largest_components(found.labels, [one.label for one in model.classes])
        return Segmentation(labels, found.uncertainty)
    return found


def _by_head(
    volume: Volume, grid: Volume, model: SegmentationModel, device: str, scan: QuickScan | None
) -> Steps[Segmentation]:
    if scan is None:
        quick = QuickSettings(
            stages=tuple(model.metadata["stages"]),
            smoothing_vox=tuple(model.metadata["smoothing_vox"]),
        )
        scan = yield from prepare_scan(
            grid, model.encoder, quick, preset=model.preset, device=device
        )
    found = yield from QuickSegmenter(scan, model).whole()
    if grid is volume:
        return found
    return Segmentation(
        resample_to(grid.with_array(found.labels), volume, labels=True).array,
        resample_to(grid.with_array(found.uncertainty), volume).array.astype(np.float16),
    )


def _by_network(
    volume: Volume, grid: Volume, model: SegmentationModel, settings: SegmentSettings, device: str
) -> Steps[Segmentation]:
    from napari_s2dc.engine.finetune_segment import places_of, segment_with_network

    best, uncertainty = yield from segment_with_network(
        normalize(grid.array, model.preset),
        model,
        settings,
        device_of(device),
        places=None if grid is volume else places_of(volume, grid),
    )
    return Segmentation(label_numbers(model)[best], uncertainty)


def largest_components(labels: np.ndarray, classes: Sequence[int]) -> Steps[np.ndarray]:
    """Keep the largest connected part of every class; the other parts become background.

    Yields
    ------
    Progress
        After every class.
    """
    from monai.transforms.utils import get_largest_connected_component_mask
    from scipy import ndimage

    kept = labels.copy()
    # MONAI looks at the whole array for each class; the box of the class is enough.
    boxes = ndimage.find_objects(np.searchsorted(np.unique(labels), labels).astype(np.int32))
    there = {int(label): box for label, box in zip(np.unique(labels)[1:], boxes, strict=False)}
    for done, label in enumerate(classes, start=1):
        if label in there:
            part = kept[there[label]]
            mask = part == label
            largest = get_largest_connected_component_mask(torch.from_numpy(mask))
            part[mask & ~np.asarray(largest, bool)] = 0
        yield Progress(done, len(classes), "classes")
    return kept
