"""Quick: features of voxels, the head, and scans segmented with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_s2dc.engine import quick_scan, quick_spread
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import to_voxels
from napari_s2dc.engine.fewshot import on_training_grid, train_model
from napari_s2dc.engine.fewshot_settings import FewshotSettings, QuickSettings, SegmentSettings
from napari_s2dc.engine.labelled_scans import UNLABELLED, LabelledScan, classes_in
from napari_s2dc.engine.progress import Progress, TrainingProgress, finish
from napari_s2dc.engine.quick import train_quick
from napari_s2dc.engine.quick_features import VoxelFeatures, project
from napari_s2dc.engine.quick_head import Examples, head_of
from napari_s2dc.engine.quick_scan import QuickScan, prepare_scan
from napari_s2dc.engine.quick_spread import learn_from_spread_strokes
from napari_s2dc.engine.segment import (
    QuickSegmenter,
    Segmentation,
    largest_components,
    segment_volume,
)
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume

QUICK = QuickSettings(steps=90, hidden=64, smoothing_vox=(0.0, 1.5))
COMPLETE = FewshotSettings(zero="background", device="cpu", quick=QUICK)
STROKES = FewshotSettings(zero="unlabelled", background=9, device="cpu", quick=QUICK)


@pytest.fixture(scope="module")
def labelled() -> LabelledScan:
    """A torso with its organs."""
    return LabelledScan(*phantom((40, 48, 56), spacing_mm=(4.0, 3.0, 3.0), seed=1))


@pytest.fixture(scope="module")
def scan(labelled: LabelledScan, tiny: SwinEncoder) -> QuickScan:
    return finish(prepare_scan(labelled.image, tiny, QUICK, device="cpu"))


@pytest.fixture(scope="module")
def features(scan: QuickScan) -> VoxelFeatures:
    projections = [project([one], 4) for one in scan.embeddings]
    return VoxelFeatures(scan, projections)


@pytest.fixture(scope="module")
def model(labelled: LabelledScan, tiny: SwinEncoder) -> SegmentationModel:
    return finish(train_model([labelled], tiny, COMPLETE))


def painted(labelled: LabelledScan, step: int = 3) -> LabelledScan:
    """Label every few voxels of some slices, background with 9."""
    truth = labelled.labels.array
    strokes = np.zeros_like(truth)
    for z in range(4, 40, 6):
        plane = np.where(truth[z] == 0, 9, truth[z])[::step, ::step]
        strokes[z, ::step, ::step] = plane
    return LabelledScan(labelled.image, labelled.labels.with_array(strokes))


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    labels = [label for label in np.unique(truth) if label]
    each = [
        2 * np.sum((found == one) & (truth == one)) / (np.sum(found == one) + np.sum(truth == one))
        for one in labels
    ]
    return float(np.mean(each))


def test_a_part_of_a_scan_has_the_features_of_the_whole(features: VoxelFeatures) -> None:
    shape = features.scan.volume.shape
    whole = features.in_box(tuple(slice(0, side) for side in shape))  # type: ignore[arg-type]
    box = (slice(7, 21), slice(11, 12), slice(30, 56))
    torch.testing.assert_close(features.in_box(box), whole[box], atol=1e-5, rtol=1e-4)
    voxels = np.array([[39, 0, 0], [3, 47, 55], [20, 20, 20], [3, 1, 2]])
    torch.testing.assert_close(features.at(voxels), whole[tuple(voxels.T)], atol=1e-5, rtol=1e-4)


def test_random_voxels_have_the_features_that_they_have_anywhere(features: VoxelFeatures) -> None:
    voxels, found = features.of_sample()
    assert len(voxels) > 1000
    torch.testing.assert_close(found, features.at(voxels), atol=1e-4, rtol=1e-3)


def test_tokens_are_interpolated_at_their_centres(features: VoxelFeatures) -> None:
    shape = features.scan.volume.shape
    whole = features.in_box(tuple(slice(0, side) for side in shape))  # type: ignore[arg-type]
    one = features.scan.embeddings[-1]
    grid = project([one], 4)(one.features)
    expected = torch.from_numpy(to_voxels(grid[-1], shape, one.stride))
    torch.testing.assert_close(whole[..., -1], expected, atol=1e-5, rtol=1e-4)


def test_the_first_component_has_variance_one(scan: QuickScan) -> None:
    one = scan.embeddings[0]
    grid = project([one], 3)(one.features)[:, one.foreground]
    spread = grid.var(1, correction=0)
    assert spread[0] == pytest.approx(1, rel=1e-3)
    assert spread[0] > spread[1] > spread[2] > 0


def test_tokens_that_are_all_equal_have_no_components(scan: QuickScan) -> None:
    one = scan.embeddings[0]
    equal = replace(one, features=torch.ones_like(one.features))
    grid = project([equal], 3)(equal.features)
    torch.testing.assert_close(grid, torch.zeros_like(grid))


def test_an_embedding_at_hand_is_used(labelled: LabelledScan, tiny: SwinEncoder) -> None:
    ready = EmbedSettings(stage=2, device="cpu")
    at_hand = finish(embed_volume(labelled.image, tiny, ready))
    found = finish(prepare_scan(labelled.image, tiny, QUICK, device="cpu", embedding=at_hand))
    assert found.embeddings[0] is at_hand
    assert found.embeddings[1].stride == 16
    other = replace(at_hand, metadata={**at_hand.metadata, "weights": "of another"})
    found = finish(prepare_scan(labelled.image, tiny, QUICK, device="cpu", embedding=other))
    assert found.embeddings[0] is not other
    changed = replace(labelled.image, array=labelled.image.array[::-1])
    found = finish(prepare_scan(changed, tiny, QUICK, device="cpu", embedding=at_hand))
    assert found.embeddings[0] is not at_hand


def test_complete_labels_are_learned(labelled: LabelledScan, model: SegmentationModel) -> None:
    found = finish(segment_volume(labelled.image, model, device="cpu"))
    assert dice(found.labels, labelled.labels.array) > 0.6
    assert found.labels.shape == found.uncertainty.shape == labelled.image.shape
    assert found.uncertainty.dtype == np.float16
    wrong = found.labels != labelled.labels.array
    assert found.uncertainty[wrong].mean() > 1.5 * found.uncertainty[~wrong].mean()


def test_strokes_are_learned_and_refreshed(
    labelled: LabelledScan, scan: QuickScan, tiny: SwinEncoder
) -> None:
    strokes = painted(labelled)
    classes = classes_in([strokes], STROKES)
    assert 9 not in {one.label for one in classes}
    few = strokes.labels.array.copy()
    few[20:] = 0
    messages: list[Progress] = []
    running = train_quick([(scan, few)], classes, tiny, STROKES)
    while True:
        try:
            messages.append(next(running))
        except StopIteration as stop:
            first = stop.value
            break
    assert [message.done for message in messages] == list(range(1, 91))
    assert all(isinstance(message, TrainingProgress) for message in messages)
    assert messages[-1].loss < messages[0].loss  # type: ignore[attr-defined]
    assert messages[-1].dice > 0.5  # type: ignore[attr-defined]
    again = finish(train_quick([(scan, strokes.labels.array)], classes, tiny, STROKES, start=first))
    assert again.metadata["steps"] == 30
    truth = labelled.labels.array
    before, after = (
        dice(finish(QuickSegmenter(scan, one).whole()).labels, truth) for one in (first, again)
    )
    assert after > before
    assert after > 0.4


def test_what_was_not_painted_counts_as_background_a_little(
    labelled: LabelledScan, scan: QuickScan, tiny: SwinEncoder
) -> None:
    # Two organs in one slice and nothing else: without that all of the scan would be one of them.
    truth = labelled.labels.array
    first, second = np.argsort(-np.bincount(truth.ravel())[1:])[:2] + 1
    strokes = np.zeros_like(truth)
    strokes[20] = np.where((truth[20] == first) | (truth[20] == second), truth[20], 0)
    strokes[20, ::2] = 0
    settings = replace(STROKES, background=None)
    painted = LabelledScan(labelled.image, labelled.labels.with_array(strokes))
    classes = classes_in([painted], settings)
    found = finish(
        QuickSegmenter(
            scan, finish(train_quick([(scan, strokes)], classes, tiny, settings))
        ).whole()
    ).labels
    assert set(np.unique(found)) == {0, first, second}
    assert (found[truth == 0] == 0).mean() > 0.5


def test_the_same_seed_gives_the_same_head(
    labelled: LabelledScan, scan: QuickScan, tiny: SwinEncoder
) -> None:
    few = replace(COMPLETE, quick=replace(QUICK, steps=3))
    classes = classes_in([labelled], few)
    one, same = (
        finish(train_quick([(scan, labelled.labels.array)], classes, tiny, few)) for _ in "ab"
    )
    other = finish(
        train_quick([(scan, labelled.labels.array)], classes, tiny, replace(few, seed=1))
    )
    torch.testing.assert_close(one.tensors, same.tensors, atol=0, rtol=0)
    assert not torch.equal(one.tensors["first.weight"], other.tensors["first.weight"])


def test_a_plane_is_nearly_that_of_the_whole(scan: QuickScan, model: SegmentationModel) -> None:
    segmenter = QuickSegmenter(scan, model)
    whole = finish(segmenter.whole())
    for axis, index in ((0, 17), (1, 30), (2, 5)):
        plane: Segmentation = segmenter.plane(axis, index)
        assert np.mean(plane.labels == whole.labels.take(index, axis)) > 0.85
        assert plane.uncertainty.shape == plane.labels.shape


def test_a_saved_model_finds_the_same(
    labelled: LabelledScan, model: SegmentationModel, tmp_path: Path
) -> None:
    loaded = SegmentationModel.load(model.save(tmp_path / "model.safetensors"))
    ours, theirs = (
        finish(segment_volume(labelled.image, one, device="cpu")) for one in (model, loaded)
    )
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(ours.uncertainty, theirs.uncertainty)
    assert loaded.metadata["scans"][0]["name"] == labelled.image.name
    assert len(loaded.metadata["encoder_weights"]) == 32


def test_another_spacing_comes_back_on_the_grid_of_the_scan(
    labelled: LabelledScan, tiny: SwinEncoder
) -> None:
    coarse = replace(COMPLETE, spacing_mm=(6.0, 6.0, 6.0))
    model = finish(train_model([labelled], tiny, coarse))
    found = finish(segment_volume(labelled.image, model, device="cpu"))
    assert found.labels.shape == found.uncertainty.shape == labelled.image.shape
    assert dice(found.labels, labelled.labels.array) > 0.35


def test_labels_with_gaps_and_a_class_of_one_voxel(
    labelled: LabelledScan, tiny: SwinEncoder
) -> None:
    truth = labelled.labels.array
    labels = np.zeros(truth.shape, np.uint16)
    first, second = np.unique(truth)[1:3]
    labels[truth == first] = 7
    labels[truth == second] = 300
    labels[0, 0, 0] = 1
    scan = LabelledScan(labelled.image, replace(labelled.labels, array=labels))
    model = finish(train_model([scan], tiny, COMPLETE))
    assert [one.label for one in model.classes] == [1, 7, 300]
    found = finish(segment_volume(labelled.image, model, device="cpu"))
    assert found.labels.dtype == np.uint16
    assert {0, 7, 300} <= set(np.unique(found.labels)) <= {0, 1, 7, 300}
    one_class = LabelledScan(labelled.image, replace(labelled.labels, array=(labels == 7) * 7))
    only = finish(train_model([one_class], tiny, COMPLETE))
    found = finish(segment_volume(labelled.image, only, device="cpu"))
    assert dice(found.labels, (labels == 7) * 7) > 0.6


def test_no_stroke_is_lost_at_a_larger_spacing(labelled: LabelledScan) -> None:
    strokes = np.zeros_like(labelled.labels.array)
    strokes[7, 20, 10:40] = 5
    strokes[30, 30, 30] = 6
    thin = LabelledScan(labelled.image, labelled.labels.with_array(strokes))
    coarse = on_training_grid(thin, replace(STROKES, spacing_mm=(9.0, 9.0, 9.0)))
    assert np.count_nonzero(coarse.labels.array == 5) in (10, 11)
    assert np.count_nonzero(coarse.labels.array == 6) == 1
    assert coarse.image.shape == coarse.labels.shape != thin.image.shape


def test_a_class_that_vanishes_at_the_spacing_is_named(
    labelled: LabelledScan, tiny: SwinEncoder
) -> None:
    mask = np.zeros_like(labelled.labels.array)
    mask[10:30, 10:40, 10:40] = 1
    mask[2, 2, 2] = 2  # between the voxels that are left
    thin = LabelledScan(labelled.image, labelled.labels.with_array(mask))
    with pytest.raises(S2DCError, match="no voxel of class 2"):
        finish(train_model([thin], tiny, replace(COMPLETE, spacing_mm=(9.0, 9.0, 9.0))))


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": ()},
        {"hidden": 0},
        {"smoothing_vox": (-1.0,)},
        {"steps": 0},
        {"smoothing_vox": ()},
    ],
)
def test_settings_out_of_range_are_refused(
    labelled: LabelledScan, scan: QuickScan, tiny: SwinEncoder, wrong: dict[str, Any]
) -> None:
    settings = replace(COMPLETE, quick=replace(QUICK, **wrong))
    classes = classes_in([labelled], settings)
    with pytest.raises(ConfigurationError, match=r"quick|Quick"):
        finish(train_quick([(scan, labelled.labels.array)], classes, tiny, settings))


def test_of_a_rare_class_a_few_voxels_are_always_learned(
    labelled: LabelledScan, scan: QuickScan, tiny: SwinEncoder
) -> None:
    labels = np.zeros_like(labelled.labels.array)
    labels[12:28, 12:36, 12:44] = 1
    labels[20, 20, 20:25] = 2
    settings = replace(COMPLETE, quick=replace(QUICK, voxels=500))
    rare = LabelledScan(labelled.image, labelled.labels.with_array(labels))
    model = finish(train_quick([(scan, labels)], classes_in([rare], settings), tiny, settings))
    found = QuickSegmenter(scan, model).plane(0, 20)
    assert (found.labels[20, 20:25] == 2).mean() > 0.5


def test_mirror_images_are_refused(labelled: LabelledScan, model: SegmentationModel) -> None:
    with pytest.raises(ConfigurationError, match="left from right"):
        finish(segment_volume(labelled.image, model, settings=SegmentSettings(flips=True)))
    # A model whose own settings refuse it must not come to be.
    mirrored = replace(COMPLETE, segment=SegmentSettings(flips=True))
    with pytest.raises(ConfigurationError, match="left from right"):
        finish(train_model([labelled], model.encoder, mirrored))


def test_values_that_are_no_numbers_are_refused(
    labelled: LabelledScan, model: SegmentationModel
) -> None:
    broken = Volume(np.full((8, 8, 8), np.nan, np.float32), np.eye(4), name="broken")
    with pytest.raises(S2DCError, match="broken"):
        finish(segment_volume(broken, model, device="cpu"))


def test_only_the_largest_part_of_a_class_stays() -> None:
    labels = np.zeros((4, 6, 6), np.uint16)
    labels[1:3, 1:3, 1:3] = 300
    labels[0, 5, 5] = 300
    labels[3, 0, 0] = 7
    kept = finish(largest_components(labels, [7, 300]))
    expected = labels.copy()
    expected[0, 5, 5] = 0
    np.testing.assert_array_equal(kept, expected)
    assert kept.dtype == np.uint16


def test_strokes_of_one_slice_reach_the_others(
    labelled: LabelledScan, scan: QuickScan, tiny: SwinEncoder
) -> None:
    truth = labelled.labels.array
    strokes = np.zeros_like(truth)
    strokes[20, ::3, ::3] = np.where(truth[20] == 0, 9, truth[20])[::3, ::3]
    painted = LabelledScan(labelled.image, labelled.labels.with_array(strokes))
    classes = classes_in([painted], STROKES)
    alone = finish(train_quick([(scan, strokes)], classes, tiny, STROKES))
    spread = finish(learn_from_spread_strokes([(scan, strokes)], alone, STROKES))
    there = np.isin(truth, [one.label for one in classes])
    before, after = (
        dice(finish(QuickSegmenter(scan, one).whole()).labels * there, truth * there)
        for one in (alone, spread)
    )
    assert after > before
    assert not torch.equal(alone.tensors["first.weight"], spread.tensors["first.weight"])


def test_cells_are_bounded_and_hold_the_scan(
    scan: QuickScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    projections = [project([one], 4) for one in scan.embeddings]
    features = VoxelFeatures(scan, projections)
    everything = features.in_box((slice(0, 40), slice(0, 48), slice(0, 56)))
    cells = finish(scan.cells())
    assert cells.sides == (1, 1, 1)
    torch.testing.assert_close(features.of_cells(cells), everything)
    assert finish(scan.cells()) is cells  # computed once
    monkeypatch.setattr(quick_scan, "_FEW_VOXELS", 1000)
    monkeypatch.setattr(quick_scan, "_MOST_CELLS", 20_000)
    larger = finish(replace(scan, _cells=[]).cells())
    assert larger.sides == (2, 3, 3)  # slices are 4 mm apart, voxels in them 3 mm
    torch.testing.assert_close(features.of_cells(larger), everything[1::2, 1::3, 1::3])
    assert larger.image.shape == (20, 16, 19)
    inner = scan.scaling(scan.volume.array)[2:4, 3:6, 3:6]
    assert larger.image[1, 1, 1] == pytest.approx(inner.mean(), abs=1e-6)


def test_slices_that_lie_far_apart_are_not_joined() -> None:
    assert quick_scan.cell_sides((64, 512, 512), (5.0, 0.8, 0.8), 10_000_000) == (1, 2, 2)
    assert quick_scan.cell_sides((400, 512, 512), (1.0, 1.0, 1.0), 600_000) == (6, 6, 6)
    assert quick_scan.cell_sides((40, 50, 60), (1.0, 1.0, 1.0), 600_000) == (1, 1, 1)


def test_what_has_no_stroke_in_a_scan_is_not_learned_from_it(
    labelled: LabelledScan, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = finish(prepare_scan(labelled.image, tiny, QUICK, device="cpu"))
    truth = labelled.labels.array
    both, one = np.zeros_like(truth), np.zeros_like(truth)
    for z in (14, 20, 26):
        both[z] = np.select([truth[z] == 3, truth[z] == 2, truth[z] == 0], [3, 2, 9], 0)
        one[z] = np.where(both[z] == 3, 0, both[z])  # another scan, on which 3 was not painted
    painted = [LabelledScan(labelled.image, labelled.labels.with_array(s)) for s in (both, one)]
    classes = classes_in(painted, STROKES)
    model = finish(train_quick([(scan, both), (replace(scan), one)], classes, tiny, STROKES))
    head, _ = head_of(model)
    third = 1 + [known.label for known in classes].index(3)
    learned: list[torch.Tensor] = []

    def fit(_: object, examples: list[Examples], *__: object) -> Iterator[object]:
        learned.append(examples[0].features)
        yield from ()
        return 0.0

    monkeypatch.setattr(quick_spread, "fit_head", fit)
    for strokes in (both, one):
        finish(learn_from_spread_strokes([(scan, strokes)], model, STROKES))
    with torch.no_grad():
        found, left = (head(features).argmax(-1) for features in learned)
    assert (found == third).sum() > 100
    assert not (left == third).any()
    assert (left != third).sum() == (found != third).sum()


def test_classes_do_not_spread_to_intensities_that_their_strokes_do_not_show(
    scan: QuickScan, labelled: LabelledScan
) -> None:
    cells = finish(scan.cells())
    targets = np.full(scan.volume.shape, UNLABELLED)
    values = scan.scaling(scan.volume.array)
    grey = np.argwhere((values > 0.4) & (values < 0.6))
    targets[tuple(grey[:100].T)] = 1
    targets[tuple(grey[100:105].T)] = 2  # so few say little
    seeds = quick_spread._seeds(targets, cells.sides, torch.zeros((3, *cells.image.shape)))
    shown = quick_spread._shown(scan, torch.from_numpy(cells.image), targets, seeds)
    assert shown[0].all()
    assert shown[2].all()
    assert shown[1][seeds[1] > 0].all()
    inside = cells.image[shown[1].numpy()]
    assert 0 < len(inside) < cells.image.size / 2
    assert 0.4 - 1e-3 < inside.min() < inside.max() < 0.6 + 1e-3


def test_structures_thinner_than_a_cell_keep_their_strokes(tiny: SwinEncoder) -> None:
    array = np.full((40, 48, 56), 0.3, np.float32)
    array[::4] += 0.01  # tissue must not be all alike
    array[:, 20:23, 30:33] = 0.7
    scan = finish(prepare_scan(Volume(array, np.eye(4), name="tube"), tiny, QUICK, device="cpu"))
    targets = np.full(array.shape, UNLABELLED)
    targets[::3, 21, 31] = 1
    targets[::2, 22, 31] = 1
    image = quick_scan.cell_means(torch.from_numpy(scan.scaling(array))[None], (6, 6, 6))[0]
    seeds = quick_spread._seeds(targets, (6, 6, 6), torch.zeros((2, *image.shape)))
    shown = quick_spread._shown(scan, image, targets, seeds)
    assert shown[1][seeds[1] > 0].all()
    assert shown[1].float().mean() < 0.5


def test_complete_labels_do_not_spread(scan: QuickScan, model: SegmentationModel) -> None:
    labels = [(scan, np.zeros(scan.volume.shape, np.uint8))]
    assert finish(learn_from_spread_strokes(labels, model, COMPLETE)) is model
