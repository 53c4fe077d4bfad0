"""Labels follow a match, from one atlas or several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_s2dc.engine.alignment import Alignment
from napari_s2dc.engine.match import match_embeddings
from napari_s2dc.engine.match_checks import assess
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.registration import RegistrationSettings
from napari_s2dc.engine.transfer import Transfer, TransferSettings, fuse, transfer_labels
from napari_s2dc.volumes.volume import Volume
from tests.engine.random_features import SPACING, embedding, moved


def test_pairs_bend_the_map_of_scans_with_thick_slices() -> None:
    # Slices of 20 voxels' width: in mm, the nearest 64 patches lie in one slice.
    affine = np.diag([20.0, 1.0, 1.0, 1.0])
    one = replace(embedding((6, 12, 12)), spacing_mm=(20.0, 1.0, 1.0), affine=affine)
    texture = np.random.default_rng(0).normal(100, 20, one.shape).astype(np.float32)
    scan = Volume(texture, affine)
    labels = Volume((np.indices(one.shape)[1] // 12).astype(np.uint8), affine)
    pairs_alone = TransferSettings(bend_by_pairs=True, registration=RegistrationSettings(0, 0))
    found = finish(
        transfer_labels(match_embeddings(one, one), labels, scan, scan, pairs_alone)
    ).labels.array
    assert (found == labels.array).mean() > 0.98


@pytest.mark.parametrize("spacings", [(0.15, 1.5), (5.0, 1.0)])
def test_the_start_fits_scans_of_other_spacings_and_leaves_wrong_pairs_out(
    spacings: tuple[float, float],
) -> None:
    one, target = (
        replace(embedding((8, 8, 8)), spacing_mm=(side,) * 3, affine=np.diag([side] * 3 + [1.0]))
        for side in spacings
    )
    two = replace(target, features=moved(embedding((8, 8, 8)), (0, 1, 0)).features)
    match = match_embeddings(one, two)
    # A quarter of the patches is sure of a place that is wrong, but no partner is of theirs.
    wrong = torch.arange(0, len(match.mass), 4)
    mass = match.mass.clone()
    mass[wrong] = 0.0
    mass[wrong, torch.randint(512, (len(wrong),))] = 0.9
    match = replace(match, mass=mass)
    texture = np.random.default_rng(0).normal(100, 20, one.shape).astype(np.float32)
    scan, reference = (Volume(texture, each.affine) for each in (one, two))
    labels = Volume(np.ones(one.shape, np.uint8), one.affine)
    pairs_alone = TransferSettings(registration=RegistrationSettings(0, 0))
    found = finish(transfer_labels(match, labels, scan, reference, pairs_alone)).alignment
    scale = spacings[1] / spacings[0]
    points = np.random.default_rng(0).uniform(0, 31, (50, 3))
    expected = np.add(points, (0, 4, 0)) * spacings[1]
    off_vox = np.abs(found.apply(points * spacings[0]) - expected) / spacings[1]
    assert off_vox.max() < 0.5
    assert np.linalg.det(found.matrix[:3, :3]) == pytest.approx(scale**3, rel=0.05)
    assert found.matrix.tolist() == assess(match).alignment.matrix.tolist()  # type: ignore[union-attr]
    assert found.inliers.sum() > 0.9 * 384 * 7 / 8


def test_labels_are_carried_and_fused() -> None:
    one = embedding()
    two = moved(one, (0, 1, 0))
    labels = np.zeros(one.shape, np.uint8)
    labels[4:16, 4:20, 8:20] = 3
    affine = np.diag([*SPACING, 1.0])
    texture = np.random.default_rng(0).normal(100, 20, one.shape).astype(np.float32)
    scan = Volume(texture, affine)
    target = Volume(np.roll(texture, 4, axis=1), affine)
    match = match_embeddings(one, two)
    pairs_alone = TransferSettings(registration=RegistrationSettings(0, 0))
    carried = finish(transfer_labels(match, Volume(labels, affine), scan, target, pairs_alone))
    expected = np.zeros_like(labels)
    expected[4:16, 8:24, 8:20] = 3
    overlap = (carried.labels.array == expected).mean()
    assert overlap > 0.97
    assert set(np.unique(carried.labels.array)) == {0, 3}
    assert carried.confidence.shape == one.shape
    assert 0.5 < carried.confidence.mean() <= 1
    wrong = replace(
        carried,
        labels=Volume(np.zeros_like(labels), affine),
        confidence=np.full(one.shape, 0.1, np.float32),
    )
    fused = fuse([wrong, carried, carried])
    assert (fused.labels.array == carried.labels.array).all()
    expected_mean = (
        2 * carried.confidence + np.where(carried.labels.array == 0, wrong.confidence, 0)
    ) / 3
    np.testing.assert_allclose(fused.confidence, expected_mean, atol=1e-6)


def test_labels_on_a_scan_that_looks_otherwise_are_doubted() -> None:
    one = embedding((5, 6, 5))
    random = np.random.default_rng(0)
    scan, other = (
        Volume(
            ndimage.gaussian_filter(random.normal(100, 20, one.shape), 1.5).astype(np.float32),
            one.affine,
            name=name,
        )
        for name in ("scan", "other")
    )
    labels = Volume((np.indices(one.shape)[1] // 12).astype(np.uint8), one.affine)
    match = match_embeddings(one, one)
    settings = TransferSettings(registration=RegistrationSettings(5, 5))
    assert finish(transfer_labels(match, labels, scan, scan, settings)).doubt == ""
    doubted = finish(transfer_labels(match, labels, scan, other, settings))
    assert "hardly agree where the labels were laid" in doubted.doubt


def test_fused_labels_keep_large_numbers() -> None:
    affine = np.eye(4)
    sure = np.ones((2, 2, 2), np.float32)

    def carried(label: int, kind: type, confidence: float) -> Transfer:
        labels = Volume(np.full((2, 2, 2), label, kind), affine)
        return Transfer(labels, confidence * sure, Alignment(affine, np.ones(1, bool), 0.0))

    fused = fuse([carried(7, np.uint8, 0.4), carried(70_000, np.int32, 0.9)])
    assert (fused.labels.array == 70_000).all()
    # Two that are hardly sure do not become sure by agreeing.
    np.testing.assert_allclose(
        fuse([carried(7, np.uint8, 0.01), carried(7, np.uint8, 0.01)]).confidence, 0.01
    )
