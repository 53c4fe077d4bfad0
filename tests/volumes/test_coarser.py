"""Coarser grids of large scans."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest

from napari_s2dc.volumes import coarser
from napari_s2dc.volumes.coarser import coarser_grids, first_small, grid_to_match, on_grid
from napari_s2dc.volumes.volume import Volume


def test_small_scans_stay_as_they_are() -> None:
    assert coarser_grids((112, 101, 122), (3.0, 3.0, 3.0)) == []
    assert grid_to_match((112, 101, 122), (3.0, 3.0, 3.0)) == (112, 101, 122)
    assert grid_to_match((256, 256, 256), (1.0, 1.0, 1.0)) == (256, 256, 256)


def test_coarser_grids_grow_towards_cubes() -> None:
    grids = coarser_grids((100, 512, 512), (4.0, 0.8, 0.8))
    assert grids[0] == (100, 256, 256)  # slices are thick enough for long
    assert grids[3] == (83, 85, 85)
    assert all(prod(one) > prod(other) for one, other in pairwise(grids))


def test_a_clinical_ct_is_matched_on_a_grid_of_a_few_million_voxels() -> None:
    shape = grid_to_match((400, 512, 512), (0.84, 0.59, 0.71))
    assert prod(shape) <= coarser.MOST_VOXELS
    sides = np.multiply((400, 512, 512), (0.84, 0.59, 0.71)) / shape
    assert sides == pytest.approx(np.full(3, 3 * 0.59), rel=0.01)


def test_the_finest_small_grid_is_the_first_choice() -> None:
    grids = [(400, 512, 512), (200, 256, 256), (133, 171, 171)]
    assert first_small(grids) == 1
    assert first_small(grids, most=10**9) == 0
    assert first_small(grids, most=10) == 2


def test_thin_scans_keep_their_slices() -> None:
    assert {grid[0] for grid in coarser_grids((20, 3000, 3000), (1.0, 1.0, 1.0))} == {20}
    assert {grid[0] for grid in coarser_grids((2, 4096, 4096), (1.0, 1.0, 1.0))} == {2}


def test_scans_are_matched_with_voxels_like_those_of_the_other() -> None:
    side = coarser.side_mm((3.0, 3.0, 3.0))
    assert side == pytest.approx(3.0)
    assert grid_to_match((400, 512, 512), (0.75, 0.75, 0.75), side) == (100, 128, 128)
    # Nothing can be made finer than it is, and no large scan stays large.
    assert grid_to_match((112, 101, 122), (3.0, 3.0, 3.0), 0.7) == (112, 101, 122)
    assert prod(grid_to_match((400, 512, 512), (0.75, 0.75, 0.75), 0.7)) <= coarser.MOST_VOXELS


def test_a_coarser_grid_shows_the_same_places() -> None:
    places = np.stack(np.meshgrid(*map(np.arange, (24, 30, 33)), indexing="ij"), -1)
    affine = np.array([[0, 0, 2.0, 5], [0, 3.0, 0, 6], [4.0, 0, 0, 7], [0, 0, 0, 1]])
    mm = places @ affine[:3, :3].T + affine[:3, 3]
    fine = Volume(mm[..., 1].astype(np.float32), affine, name="ramp")
    coarse = on_grid(fine, (12, 10, 11))
    assert coarse.shape == (12, 10, 11)
    assert coarse.spacing_mm == pytest.approx(np.multiply(fine.spacing_mm, (2, 3, 3)))
    voxel = np.array([6, 5, 4])  # off the edges, where blurring has less to average
    place = coarse.affine[:3, :3] @ voxel + coarse.affine[:3, 3]
    assert coarse.array[tuple(voxel)] == pytest.approx(place[1], abs=1e-3)
    assert on_grid(fine, fine.shape) is fine
