"""How alike patches are together with the patches beside them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.match import MatchSettings, foreground_index, match_embeddings
from napari_s2dc.engine.neighbours import Neighbourhoods, neighbourhoods
from tests.engine.random_features import embedding

GRID = (4, 5, 6)


def between(a: Embedding, b: Embedding, weight: float = 0.5) -> Neighbourhoods:
    return neighbourhoods(a, b, foreground_index(a), foreground_index(b), weight)


def with_air(seed: int) -> Embedding:
    one = embedding(GRID, seed=seed)
    one.foreground[torch.rand(GRID, generator=torch.Generator().manual_seed(seed)) < 0.3] = False
    return one


def test_without_weight_it_is_the_cosine() -> None:
    one, two = with_air(0), with_air(1)
    cosine = one.unit()[foreground_index(one)] @ two.unit()[foreground_index(two)].mT
    torch.testing.assert_close(between(one, two, 0.0).similarity(), cosine)


def test_it_is_the_mean_over_the_neighbours_that_both_have() -> None:
    one, two = with_air(0), with_air(1)
    one.features[:, 1, 1, 1] = 0  # tissue that was not encoded
    found = between(one, two).similarity()
    units = [scan.unit().reshape(*GRID, -1) for scan in (one, two)]
    there = [
        scan.foreground & (unit.norm(dim=-1) > 0)
        for scan, unit in zip((one, two), units, strict=True)
    ]
    tokens = [torch.nonzero(scan.foreground).tolist() for scan in (one, two)]
    for row, column in ((0, 0), (3, 17), (25, 8), (len(tokens[0]) - 1, len(tokens[1]) - 1)):
        total, weights = 0.0, 0.0
        for step in product((-1, 0, 1), repeat=3):
            places = [
                tuple(np.add(side[k], step)) for side, k in zip(tokens, (row, column), strict=True)
            ]
            if any(min(place) < 0 or (np.asarray(place) >= GRID).any() for place in places):
                continue
            if any(step) and not all(
                bool(mask[place]) for mask, place in zip(there, places, strict=True)
            ):
                continue
            weight = 0.5 ** sum(map(abs, step))
            total += weight * float(units[0][places[0]] @ units[1][places[1]])
            weights += weight
        assert float(found[row, column]) == pytest.approx(total / weights, abs=1e-5)


def test_parts_are_those_of_the_whole() -> None:
    near = between(with_air(0), with_air(1))
    rows, columns = torch.tensor([[0, 4], [7, 2]]), torch.tensor([[5, 1, 3], [8, 8, 0]])
    whole = near.similarity()
    for part, row, column in zip(near.similarity(rows, columns), rows, columns, strict=True):
        torch.testing.assert_close(part, whole[row][:, column])


def test_neighbours_lie_in_the_same_direction_of_space() -> None:
    one = embedding(GRID)
    # The same scan with its axes in another order, one of them backwards.
    features = one.features.permute(0, 3, 1, 2).flip(1).contiguous()
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 2], affine[2, 0] = one.affine[0, 0], one.affine[1, 1], -one.affine[2, 2]
    affine[2, 3], affine[3, 3] = one.affine[2, 2] * (one.shape[2] - 1), 1.0
    z, y, x = GRID
    two = replace(
        one,
        features=features,
        foreground=torch.ones(x, z, y, dtype=torch.bool),
        shape=(one.shape[2], one.shape[0], one.shape[1]),
        affine=affine,
    )
    place = torch.arange(z * y * x).reshape(GRID).permute(2, 0, 1).flip(0).flatten()
    found = between(one, two).similarity()
    torch.testing.assert_close(found[place, torch.arange(len(place))], torch.ones(len(place)))


def test_of_larger_patches_the_next_one_counts() -> None:
    fine = embedding((8, 8, 8))
    coarse = replace(
        fine,
        features=fine.features[:, ::2, ::2, ::2].contiguous(),
        foreground=torch.ones(4, 4, 4, dtype=torch.bool),
        shape=(16, 16, 16),
        affine=fine.affine @ np.diag([2.0, 2.0, 2.0, 1.0]),
    )
    rows = torch.arange(512).reshape(8, 8, 8)[::2, ::2, ::2].flatten()
    for found in (between(fine, coarse).similarity(), between(coarse, fine).similarity().mT):
        torch.testing.assert_close(found[rows, torch.arange(64)], torch.ones(64))


def test_of_oblique_scans_no_neighbour_is_the_patch_itself() -> None:
    one = embedding(GRID)
    turn = np.eye(4)
    turn[1:3, 1:3] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    longer = np.eye(4)
    longer[:3, :3] *= 1.45
    one.affine[:3, :3] = np.eye(3)
    two = replace(embedding(GRID, seed=1), affine=turn @ longer)
    for matrix in (None, turn):
        index = foreground_index(one)
        near = neighbourhoods(one, two, index, index, 0.5, matrix)
        assert len(near.weights) > 9
        own = torch.arange(len(index))[:, None]
        assert not (near.a.beside[:, 1:] == own).any()
        assert not (near.b.beside[:, 1:] == own).any()


def test_patches_that_look_alike_are_told_apart_by_their_neighbours() -> None:
    one = embedding(GRID)
    noise = torch.randn(one.features.shape, generator=torch.Generator().manual_seed(3))
    two = replace(one, features=(one.features.float() + 1.5 * noise).half())

    def right(neighbours: float) -> float:
        pairs = match_embeddings(one, two, MatchSettings(neighbours=neighbours, prior=None)).pairs()
        return float((pairs.token_a == pairs.token_b).all(1).mean())

    assert right(0.5) > right(0.0) + 0.2
