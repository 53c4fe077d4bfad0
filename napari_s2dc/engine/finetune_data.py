"""Crops of labelled scans to train on: where they lie, how they are varied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandScaleIntensityd,
)
from torch import Tensor

from napari_s2dc.engine.fewshot_settings import FewshotSettings, SegmentationClass
from napari_s2dc.engine.finetune_segment import box_of
from napari_s2dc.engine.labelled_scans import UNLABELLED, LabelledScan, targets_of
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.foreground import foreground_mask
from napari_s2dc.volumes.preprocess import normalize

__all__ = ["CropSource", "crop_shape"]

_STRIDE = 32
"""Voxels that the encoder halves five times: sides of a crop are multiples."""

_LEFT_OUT = 11
"""Voxels of a side that a crop may lack before it is longer by a stride."""

_CENTRES = 10_000
"""Most voxels of a class in a scan that crops are drawn around."""

_SLACK_VOX = 4
"""Voxels that a crop may reach beyond the tissue."""

_REACH = 0.15
"""How far a crop that is turned reaches beyond its own box, as a share of its longest side."""


def crop_shape(sides: Sequence[int], crop_vox: int) -> tuple[int, int, int]:
    """Choose the shape of crops: as much of the tissue as fits, so that a crop knows its place.

    Parameters
    ----------
    sides : sequence of 3 ints
        Of the box around the tissue, in voxels.
    crop_vox : int
        Side of the cube that has as many voxels as a crop may have.

    Returns
    -------
    tuple of int
        Multiples of 32, not all of them 32.
    """
    shape = [max(1, (side + _STRIDE - _LEFT_OUT - 1) // _STRIDE) * _STRIDE for side in sides]
    while np.prod(shape) > crop_vox**3 and max(shape) > _STRIDE:
        shape[int(np.argmax(shape))] -= _STRIDE
    if max(shape) == _STRIDE:
        # The last stage would be a single token, which instance normalisation makes 0.
        shape[int(np.argmax(sides))] += _STRIDE
    return shape[0], shape[1], shape[2]


@dataclass(frozen=True, eq=False)
class _Scan:
    """A scan as crops are cut from it.

    Parameters
    ----------
    image : np.ndarray (Z, Y, X)
        Normalised.
    targets : np.ndarray (Z, Y, X)
        int16, one higher than those of :func:`targets_of`, so that what lies outside of the scan
        and becomes 0 is unlabelled.
    first, end : np.ndarray (3,)
        Corners of the box that holds tissue and labels.
    centres : tuple of np.ndarray (n, 3)
        Voxels of every output that is labelled.
    """

    image: np.ndarray
    targets: np.ndarray
    first: np.ndarray
    end: np.ndarray
    centres: tuple[np.ndarray, ...]


class CropSource:
    """Endless random crops of labelled scans; the same seed gives the same ones.

    Parameters
    ----------
    scans : sequence of LabelledScan
        On the grid of the model.
    classes : sequence of SegmentationClass
        What is learned.
    settings : FewshotSettings
        Of these, what labels mean, the seed, and the crops of fine-tuning.
    preset : str
        Intensity preset of the model.
    carried : sequence of LabelledScan
        On the grid of the model, with labels that were carried to them; they give
        ``finetune.carried_share`` of the crops.

    Attributes
    ----------
    shape : tuple of int
        Of every crop (z, y, x).
    voxels : np.ndarray (outputs,)
        Labelled voxels of background and classes, over all scans.

    Raises
    ------
    S2DCError
        No voxel is labelled with anything that is learned.
    """

    def __init__(
        self,
        scans: Sequence[LabelledScan],
        classes: Sequence[SegmentationClass],
        settings: FewshotSettings,
        preset: str,
        *,
        carried: Sequence[LabelledScan] = (),
    ) -> None:
        self._random = np.random.default_rng(settings.seed)
        self.voxels = np.zeros(len(classes) + 1, np.int64)
        self._carried_share = settings.finetune.carried_share

        def prepared(scans: Sequence[LabelledScan]) -> list[_Scan]:
            ready = []
            for scan in scans:
                targets = targets_of(scan.labels.array, classes, settings)
                found = np.bincount(targets[targets != UNLABELLED], minlength=len(self.voxels))
                self.voxels += found
                if found.any():
                    ready.append(_prepare(scan, targets, found, preset, self._random))
            return ready

        self._scans, self._carried = prepared(scans), prepared(carried)
        if not self._scans:
            raise S2DCError(
                "No voxel is labelled with a class that is to be learned.",
                "Paint some, or name other labels.",
            )
        there = (*self._scans, *self._carried)
        sides = np.max([scan.end - scan.first for scan in there], axis=0)
        self.shape = crop_shape(sides.tolist(), settings.finetune.crop_vox)
        self._vary = _variations(self.shape, settings.finetune.augmentation, settings.seed)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Cut a crop around a labelled voxel, every class as often, and vary it.

        Returns
        -------
        image : Tensor (1, Z, Y, X)
            float32.
        targets : Tensor (Z, Y, X)
            int64, as of :func:`napari_s2dc.engine.labelled_scans.targets_of`.
        """
        carried = self._carried and self._random.random() < self._carried_share
        scans = self._carried if carried else self._scans
        scan = scans[self._random.integers(len(scans))]
        around = scan.centres[self._random.integers(len(scan.centres))]
        shape = np.asarray(self.shape)
        centre = around[self._random.integers(len(around))] + 0.5
        centre += self._random.uniform(-0.25, 0.25, 3) * shape
        # Within the tissue where that is longer than the crop, else about its middle.
        low, high = scan.first + shape / 2, scan.end - shape / 2
        middle = (scan.first + scan.end) / 2
        low, high = np.minimum(low, middle) - _SLACK_VOX, np.maximum(high, middle) + _SLACK_VOX
        centre = np.clip(centre, low, high)
        # A crop that is turned reaches beyond its own box.
        sides = shape + 2 * int(np.ceil(_REACH * shape.max()))
        corner = np.rint(centre - sides / 2).astype(int)
        varied = self._vary(
            {
                "image": _cut(scan.image, corner, sides),
                "targets": _cut(scan.targets, corner, sides),
            }
        )
        image, targets = (varied[key].as_tensor() for key in ("image", "targets"))
        return image, targets[0].round().long() - 1


def _prepare(
    scan: LabelledScan,
    targets: np.ndarray,
    found: np.ndarray,
    preset: str,
    random: np.random.Generator,
) -> _Scan:
    foreground = foreground_mask(scan.image.array)
    box = box_of(foreground | (targets > 0)) or tuple(slice(0, side) for side in targets.shape)
    order = np.argsort(targets, axis=None, kind="stable")  # by output, the unlabelled first
    centres = []
    for output in np.flatnonzero(found):
        last = order.size - int(found[output + 1 :].sum())
        flat = order[last - found[output] : last]
        if len(flat) > _CENTRES:
            flat = random.choice(flat, _CENTRES, replace=False)
        centres.append(np.stack(np.unravel_index(flat, targets.shape), axis=1))
    return _Scan(
        image=normalize(scan.image.array, preset, foreground),
        targets=targets + np.int16(1),
        first=np.array([part.start for part in box]),
        end=np.array([part.stop for part in box]),
        centres=tuple(centres),
    )


def _cut(array: np.ndarray, corner: np.ndarray, sides: np.ndarray) -> Tensor:
    """Box (1, *sides) of an array, float32; 0 outside of it."""
    first, end = np.maximum(corner, 0), np.minimum(corner + sides, array.shape)
    box = torch.zeros(1, *sides.tolist())
    z, y, x = (slice(a, b) for a, b in zip(first - corner, end - corner, strict=True))
    part = array[tuple(slice(a, b) for a, b in zip(first, end, strict=True))]
    box[0, z, y, x] = torch.from_numpy(part.astype(np.float32))
    return box


def _variations(shape: tuple[int, int, int], strength: float, seed: int) -> Compose:
    """Random changes of place, form and intensity.

    Without mirror images: left and right may be classes of their own.
    """
    keys = ("image", "targets")
    if not strength:
        return Compose([CenterSpatialCropd(keys, shape)])
    place = RandAffined(
        keys,
        prob=1.0,
        rotate_range=(0.25 * strength,) * 3,
        scale_range=(0.2 * strength,) * 3,
        shear_range=(0.05 * strength,) * 6,
        spatial_size=shape,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )
    gamma = (math.exp(-0.3 * strength), math.exp(0.3 * strength))
    return Compose(
        [
            place,
            RandAdjustContrastd("image", prob=0.9, gamma=gamma),
            RandScaleIntensityd("image", factors=0.15 * strength, prob=0.9),
            RandGaussianNoised("image", prob=0.5, std=0.03 * strength),
        ]
    ).set_random_state(seed)
