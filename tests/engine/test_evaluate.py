"""Dice and surface distances against values worked out by hand, in mm."""

from __future__ import annotations

import numpy as np
import pytest

from napari_s2dc.engine.evaluate import evaluate_labels, mean_of
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.volume import Volume

SPACING = (3.0, 2.0, 1.0)


def volume(array: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Volume:
    return Volume(array, np.diag([*spacing, 1.0]), name="labels")


def cube(first: tuple[int, int, int], label: int = 4) -> np.ndarray:
    array = np.zeros((16, 16, 16), np.uint8)
    z, y, x = first
    array[z : z + 6, y : y + 6, x : x + 6] = label
    return array


@pytest.mark.parametrize(("axis", "apart_mm"), [(0, 6.0), (1, 4.0), (2, 2.0)])
def test_a_shifted_cube(axis: int, apart_mm: float) -> None:
    shifted = [0, 0, 0]
    shifted[axis] = 2
    (score,) = evaluate_labels(volume(cube((0, 0, 0))), volume(cube(tuple(shifted)))).classes  # type: ignore[arg-type]
    assert score.label == 4
    assert score.dice == pytest.approx(4 / 6)
    assert score.hd95_mm == pytest.approx(apart_mm)
    assert score.voxels == score.reference_voxels == 216


def test_equal_maps_are_perfect() -> None:
    labels = cube((5, 5, 5)) + cube((5, 5, 5), 3) * 0
    labels[0, 0, 0] = 9
    result = evaluate_labels(volume(labels), volume(labels.astype(np.int32)))
    assert [score.label for score in result.classes] == [4, 9]
    assert result.mean_dice == 1
    assert result.mean_hd95_mm == 0
    assert result.mean_surface_dice == 1
    assert result.missed == ()


def test_a_class_of_one_map_alone_counts_as_zero_and_has_no_distance() -> None:
    found, truth = cube((0, 0, 0)), cube((0, 0, 0))
    truth[15, 15, 15] = 7
    result = evaluate_labels(volume(found), volume(truth))
    assert result.mean_dice == result.mean_surface_dice == pytest.approx(0.5)
    assert result.mean_hd95_mm == 0
    assert result.missed == (7,)
    assert result.classes[1].as_dict() == {
        "label": 7,
        "dice": 0.0,
        "hd95_mm": None,
        "surface_dice": 0.0,
        "voxels": 0,
        "reference_voxels": 1,
    }


def test_what_cannot_be_compared_is_one_sentence() -> None:
    one = volume(cube((0, 0, 0)))
    with pytest.raises(S2DCError, match="15 x 16 x 16 voxels"):
        evaluate_labels(one, volume(cube((0, 0, 0))[1:]))
    with pytest.raises(S2DCError, match="mm apart"):
        evaluate_labels(one, volume(cube((0, 0, 0)), (3.0, 2.0, 1.1)))
    with pytest.raises(S2DCError, match="other than background"):
        evaluate_labels(volume(cube((0, 0, 0)) * 0), volume(cube((0, 0, 0)) * 0))


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_label_map_is_refused(place: int) -> None:
    labels = cube((0, 0, 0)).astype(np.int16)
    for wrong in (labels - 1024, labels.astype(np.float32)):
        pair = [volume(labels), volume(labels)]
        pair[place] = Volume(wrong, pair[place].affine, name="the scan")
        with pytest.raises(S2DCError, match="the scan holds values that are no labels"):
            evaluate_labels(*pair)


@pytest.mark.parametrize(("axis", "side_mm"), [(0, 3.0), (1, 2.0), (2, 1.0)])
def test_surfaces_within_the_tolerance_count_as_equal(axis: int, side_mm: float) -> None:
    shifted = [0, 0, 0]
    shifted[axis] = 1
    one, other = volume(cube((0, 0, 0))), volume(cube(tuple(shifted)))  # type: ignore[arg-type]
    assert evaluate_labels(one, other, side_mm).mean_surface_dice == 1
    (score,) = evaluate_labels(one, other, 0.9 * side_mm).classes
    # The two faces that moved are off: of a box 18 x 12 x 6 mm, corners cut, their share.
    faces = np.array([12 * 6, 18 * 6, 18 * 12])
    assert score.surface_dice == pytest.approx(1 - faces[axis] / faces.sum(), abs=0.07)


def test_the_tolerance_is_the_longest_side_of_a_voxel() -> None:
    one, other = volume(cube((0, 0, 0))), volume(cube((1, 0, 0)))
    result = evaluate_labels(one, other)
    assert result.tolerance_mm == 3.0
    assert result.mean_surface_dice == 1
    assert evaluate_labels(one, volume(cube((2, 0, 0)))).mean_surface_dice < 1
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(S2DCError, match="makes no sense"):
            evaluate_labels(one, other, wrong)


def test_the_mean_leaves_out_what_is_not_known() -> None:
    assert mean_of([1.0, float("nan"), 3.0]) == 2
    assert np.isnan(mean_of([float("nan")]))
