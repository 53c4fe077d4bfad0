"""Anatomies and contrasts that are made up for training."""

from __future__ import annotations

import numpy as np
import pytest

from napari_s2dc.volumes import random_anatomy as module
from napari_s2dc.volumes.random_anatomy import random_anatomy
from napari_s2dc.volumes.random_contrast import render

SHAPE = (32, 48, 40)


@pytest.mark.parametrize("kind", ["_part_of_torso", "_head", "_shapes"])
def test_every_kind_has_several_regions_of_some_size(kind: str) -> None:
    shares = []
    for seed in range(6):
        regions = getattr(module, kind)(SHAPE, np.random.default_rng(seed))
        assert regions.shape == SHAPE
        shares.append((np.bincount(regions.ravel())[1:] > 0.005 * regions.size).sum())
    assert np.mean(shares) >= 3


def test_regions_are_numbered_without_gaps_and_repeat_by_seed() -> None:
    for seed in range(8):
        regions = random_anatomy(SHAPE, np.random.default_rng(seed))
        assert regions.dtype == np.uint8
        present = np.unique(np.append(regions, 0))
        np.testing.assert_array_equal(present, np.arange(len(present)))
        again = random_anatomy(SHAPE, np.random.default_rng(seed))
        np.testing.assert_array_equal(regions, again)
    other = random_anatomy(SHAPE, np.random.default_rng(99))
    assert not np.array_equal(regions, other)


def test_a_part_of_a_torso_is_cut_at_its_place_and_outside_is_air(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = np.ones((4, 4, 4), np.uint8)
    monkeypatch.setattr(module, "_torso", lambda number: whole)
    regions = module._part_of_torso((24, 24, 24), np.random.default_rng(0))
    inside = np.argwhere(regions)
    sides = np.ptp(inside, axis=0) + 1
    assert regions.sum() == sides.prod()  # one solid block
    assert ((sides >= 2) & (sides <= 8)).all()  # 4 voxels, zoomed by 0.7 to 1.6


def test_renderings_of_an_anatomy_differ_in_contrast_but_not_in_edges() -> None:
    random = np.random.default_rng(3)
    regions = np.zeros(SHAPE, np.uint8)
    regions[4:28, 6:42, 5:35] = 1
    regions[8:24, 12:36, 10:20] = 2
    regions[8:24, 12:36, 22:30] = 3
    orders = set()
    within, between = [], []
    for _ in range(12):
        image = render(regions, random)
        assert image.shape == SHAPE
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 1
        means = [float(image[regions == region].mean()) for region in (1, 2, 3)]
        orders.add(tuple(np.argsort(means)))
        within.append(np.mean([image[regions == region].std() for region in (1, 2, 3)]))
        between.append(np.std(means))
    assert len(orders) >= 3
    assert np.mean(within) < np.mean(between)  # regions are seen


def test_renderings_repeat_by_seed() -> None:
    regions = random_anatomy(SHAPE, np.random.default_rng(1))
    one, other = (render(regions, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_air_alone_is_black() -> None:
    image = render(np.zeros((8, 8, 8), np.uint8), np.random.default_rng(0))
    assert not image.any()
