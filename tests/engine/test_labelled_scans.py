"""Classes and targets of labelled scans."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from napari_s2dc.engine.fewshot_settings import FewshotSettings
from napari_s2dc.engine.labelled_scans import (
    LabelledScan,
    classes_in,
    keep_strokes,
    targets_of,
    voxels_of_labels,
)
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.volume import Volume


def _scan(labels: list[int], spacing_mm: float = 1.0) -> LabelledScan:
    array = np.zeros((4, 4, 4), np.uint16)
    array.flat[: len(labels)] = labels
    image = Volume(np.zeros((4, 4, 4), np.float32), np.eye(4))
    return LabelledScan(image, Volume(array, np.diag([spacing_mm] * 3 + [1.0])))


def test_labels_may_have_gaps_and_one_means_background() -> None:
    scan = _scan([1, 7, 300, 300])
    settings = FewshotSettings(background=7)
    classes = classes_in([scan], settings, names={300: "liver"})
    assert [(one.label, one.name) for one in classes] == [(1, "class 1"), (300, "liver")]
    targets = targets_of(scan.labels.array, classes, settings)
    assert targets.flat[:5].tolist() == [1, 0, 2, 2, -1]


def test_in_complete_masks_zero_is_background_and_unknown_labels_teach_nothing() -> None:
    settings = FewshotSettings(zero="background")
    classes = classes_in([_scan([1, 7])], settings)
    targets = targets_of(np.array([0, 7, 1, 5, 999]), classes, settings)
    assert targets.tolist() == [0, 2, 1, -1, -1]


@pytest.mark.parametrize(
    ("labels", "background", "reason"),
    [
        ([], None, "No voxel is labelled"),
        ([3], None, "nothing to tell it from"),
        ([3], 3, "which means background"),
        ([3, 4], 5, "no voxel has it"),
    ],
)
def test_nothing_to_tell_apart_is_one_sentence(
    labels: list[int], background: int | None, reason: str
) -> None:
    with pytest.raises(S2DCError, match=reason):
        classes_in([_scan(labels)], FewshotSettings(background=background))


def test_one_class_in_a_complete_mask_is_enough() -> None:
    assert len(classes_in([_scan([3])], FewshotSettings(zero="background"))) == 1


def test_another_grid_is_refused() -> None:
    with pytest.raises(S2DCError, match="mm apart"):
        _scan([1, 2], spacing_mm=2.0)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint32, np.uint64])
@pytest.mark.parametrize("largest", [1, 200, 600_000_000])
def test_voxels_are_counted_by_label(dtype: type, largest: int) -> None:
    labels = np.zeros((3, 4, 5), dtype)
    labels[0, 0, :2] = labels[2, 1, 1] = 1
    if np.dtype(dtype).itemsize >= np.min_scalar_type(largest).itemsize:
        labels[1, 1, 1] = largest
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    assert voxels_of_labels(labels) == dict(
        zip((int(one) for one in values), counts.tolist(), strict=True)
    )
    assert voxels_of_labels(labels[:0]) == {}


def test_counting_makes_no_copy_of_the_scan() -> None:
    labels = np.zeros((64, 64, 64), np.uint8)
    tracemalloc.start()
    voxels_of_labels(labels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < labels.nbytes


def test_a_thin_stroke_is_kept_on_a_coarser_grid_and_none_is_moved_onto_it() -> None:
    fine = np.zeros((8, 8, 8), np.uint8)
    fine[2, 2, 2], fine[5, 5, 7], fine[0, 0, 0] = 1, 2, 3
    place = np.diag([0.5, 0.5, 0.5, 1.0])
    place[:3, 3] = -0.25
    beyond = place.copy()
    beyond[2, 3] += 2.5  # the stroke of class 2 lies two voxels beside the coarser grid
    coarse = Volume(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    found = keep_strokes(Volume(fine, place), coarse).array
    assert (found[1, 1, 1], found[2, 2, 3], found[0, 0, 0]) == (1, 2, 3)
    assert np.count_nonzero(found) == 3
    assert set(np.unique(keep_strokes(Volume(fine, beyond), coarse).array)) == {0, 1, 3}
