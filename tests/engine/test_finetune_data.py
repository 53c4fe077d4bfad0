"""Crops of labelled scans: where they lie, what they hold, how they vary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_s2dc.engine.fewshot_settings import FewshotSettings, FinetuneSettings
from napari_s2dc.engine.finetune_data import CropSource, crop_shape
from napari_s2dc.engine.labelled_scans import LabelledScan, classes_in
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.volume import Volume


@pytest.mark.parametrize(
    ("sides", "crop_vox", "shape"),
    [
        ((36, 50, 35), 64, (32, 64, 32)),
        ((25, 63, 43), 64, (32, 64, 32)),
        ((25, 63, 44), 64, (32, 64, 64)),
        ((400, 500, 500), 64, (64, 64, 64)),
        ((40, 120, 70), 64, (32, 128, 64)),
        ((10, 12, 9), 64, (32, 64, 32)),
        ((100, 90, 80), 32, (64, 32, 32)),
    ],
)
def test_a_crop_is_as_long_as_the_tissue_if_it_may(
    sides: tuple[int, int, int], crop_vox: int, shape: tuple[int, int, int]
) -> None:
    assert crop_shape(sides, crop_vox) == shape


def scan_of(labels: np.ndarray) -> LabelledScan:
    """A scan whose intensity is higher where a label is, with noise everywhere."""
    noise = np.random.default_rng(0).random(labels.shape, np.float32)
    image = 100 + 10 * noise + 50 * (labels > 0)
    return LabelledScan(
        Volume(image.astype(np.float32), np.eye(4), "scan"), Volume(labels, np.eye(4), "labels")
    )


def source_of(
    labels: np.ndarray, *, augmentation: float = 0.0, seed: int = 0, zero: str = "background"
) -> CropSource:
    scan = scan_of(labels)
    settings = FewshotSettings(
        mode="finetune",
        zero=zero,  # type: ignore[arg-type]
        background=None if zero == "background" else 9,
        preset="mr",
        seed=seed,
        finetune=FinetuneSettings(crop_vox=41, augmentation=augmentation),
    )
    return CropSource([scan], classes_in([scan], settings), settings, "mr")


def two_blocks() -> np.ndarray:
    labels = np.zeros((60, 100, 60), np.uint16)
    labels[10:14, 80:84, 20:26] = 300
    labels[50, 5, 55] = 7
    return labels


def test_every_class_is_met_even_one_of_a_single_voxel() -> None:
    source = source_of(two_blocks())
    assert source.voxels.tolist() == [60 * 100 * 60 - 97, 1, 96]
    seen = torch.zeros(4)
    for _ in range(60):
        image, targets = source.draw()
        assert image.shape == (1, *source.shape)
        assert targets.shape == source.shape
        seen += torch.bincount(targets.reshape(-1) + 1, minlength=4) > 0
    assert seen[2] >= 10
    assert seen[3] >= 10


def test_image_and_targets_stay_together() -> None:
    for strength in (0.0, 1.0):
        source = source_of(two_blocks(), augmentation=strength)
        crops = [source.draw() for _ in range(20)]
        inside = torch.cat([image[0][targets == 2] for image, targets in crops])
        outside = torch.cat([image[0][targets == 0] for image, targets in crops])
        assert len(inside) > 100
        assert inside.mean() - outside.mean() > 0.4


def test_what_is_not_labelled_and_what_lies_outside_is_never_a_target() -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[5:9, 5:9, 5:9] = 1
    labels[20:24, 20:24, 20:24] = 9
    source = source_of(labels, augmentation=1.0, zero="unlabelled")
    for _ in range(10):
        _, targets = source.draw()
        assert set(targets.unique().tolist()) <= {-1, 0, 1}
        assert (targets >= 0).sum() < 4 * 64


def test_the_seed_decides_and_augmentation_varies() -> None:
    labels = two_blocks()
    first, again, other = (
        source_of(labels, augmentation=1.0, seed=seed).draw()[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_augmentation_a_crop_is_a_part_of_the_scan() -> None:
    labels = np.zeros((32, 64, 32), np.uint8)
    labels[:] = np.arange(64)[:, None] // 2
    source = source_of(labels)
    _, targets = source.draw()
    steps = targets[16, :, 16][targets[16, :, 16] >= 0].diff()
    assert set(steps.tolist()) <= {0, 1}
    assert (targets == targets[:, :, :1]).all() or (targets == -1).any()


def test_crops_are_turned_and_scaled_along_every_axis() -> None:
    """A rod leans to both sides, and a ball in its middle gets longer and shorter all ways."""
    labels = np.zeros((32, 64, 32), np.uint8)
    labels[15:17, 12:52, 15:17] = 1
    z, y, x = np.indices(labels.shape)
    labels[(z - 16) ** 2 + (y - 32) ** 2 + (x - 16) ** 2 < 50] = 2
    source = source_of(labels, augmentation=1.0)
    leaning, sizes = [], []
    for _ in range(30):
        _, targets = source.draw()
        rod = torch.nonzero(targets == 1).float()
        rod = torch.linalg.svd(rod - rod.mean(0), full_matrices=False)[2][0]
        leaning.append(rod * rod[1].sign())
        sizes.append(torch.nonzero(targets == 2).float().std(0))
    assert (torch.stack(leaning).std(0)[[0, 2]] > 0.08).all()
    sizes = torch.stack(sizes)
    assert (sizes.std(0) / sizes.mean(0) > 0.06).all()


def test_nothing_to_learn_is_one_sentence() -> None:
    scan = scan_of(two_blocks())
    settings = FewshotSettings(mode="finetune", preset="mr")
    other = replace(classes_in([scan], settings)[0], label=5)
    with pytest.raises(S2DCError, match="No voxel is labelled"):
        CropSource([scan], [other], settings, "mr")
