"""The random walker moves unsure borders to edges, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_s2dc.engine.alignment import Alignment
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.label_borders import refine_borders
from napari_s2dc.engine.transfer import Transfer
from napari_s2dc.volumes.volume import Volume


@pytest.fixture
def carried(torso: Volume) -> tuple[Transfer, Volume, np.ndarray]:
    """A bright cube and its label, one voxel too far along the last axis."""
    truth = np.zeros(torso.shape, np.int16)
    truth[8:24, 12:36, 12:36] = 300
    image = torso.with_array((truth * 3.0).astype(np.float32))
    labels = torso.with_array(np.roll(truth, 1, axis=2))
    confidence = np.where(np.roll(truth, 1, axis=2) == truth, 0.9, 0.1).astype(np.float32)
    return Transfer(labels, confidence, Alignment(np.eye(4), np.ones(1, bool), 0.0)), image, truth


def test_an_unsure_border_moves_to_the_edge(
    carried: tuple[Transfer, Volume, np.ndarray], embedding: Embedding
) -> None:
    transfer, image, truth = carried
    before = (transfer.labels.array != truth).sum()
    refined = refine_borders(transfer, image, embedding)
    assert (refined.labels.array != truth).sum() < 0.1 * before
    assert refined.labels.array.dtype == np.int16
    sure = transfer.confidence >= 0.2
    np.testing.assert_array_equal(refined.labels.array[sure], transfer.labels.array[sure])


def test_sure_labels_stay(
    carried: tuple[Transfer, Volume, np.ndarray], embedding: Embedding
) -> None:
    transfer, image, _ = carried
    sure = replace(transfer, confidence=np.ones_like(transfer.confidence))
    assert refine_borders(sure, image, embedding) is sure


def test_a_class_without_a_sure_voxel_stays_and_no_other_takes_its_number(
    carried: tuple[Transfer, Volume, np.ndarray], embedding: Embedding
) -> None:
    transfer, image, truth = carried
    labels = transfer.labels.array.copy()
    labels[14:17, 20:23, 35] = 200  # between 0 and 300, at the border that is to move
    confidence = np.where(labels == 200, 0.0, transfer.confidence)
    small = replace(transfer, labels=image.with_array(labels), confidence=confidence)
    refined = refine_borders(small, image, embedding).labels.array
    np.testing.assert_array_equal(refined == 200, labels == 200)
    others = labels != 200
    assert (refined != truth)[others].sum() < 0.1 * (labels != truth)[others].sum()


def test_parts_far_apart_are_decided_each_on_its_own(
    carried: tuple[Transfer, Volume, np.ndarray], embedding: Embedding
) -> None:
    transfer, image, truth = carried
    # Sure in between, so that the two borders do not touch.
    confidence = transfer.confidence.copy()
    confidence[:, 20:28] = 0.9
    apart = replace(transfer, confidence=confidence)
    refined = refine_borders(apart, image, embedding).labels.array
    wrong = refined != truth
    before = transfer.labels.array != truth
    for side in (slice(0, 20), slice(28, None)):
        assert wrong[:, side].sum() < 0.1 * before[:, side].sum()
    np.testing.assert_array_equal(wrong[:, 20:28], before[:, 20:28])
