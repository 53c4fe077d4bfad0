"""Matching coarsely first agrees with the whole plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_s2dc.engine.coarse_match import sparse_plan
from napari_s2dc.engine.match import Match, MatchSettings, match_embeddings, plan_of
from tests.engine.random_features import embedding


def test_coarse_to_fine_finds_what_the_whole_plan_finds() -> None:
    # Features that vary slowly, as an encoder's do, so that cells of tokens have a meaning.
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(1, 24, 5, 6, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, size=(10, 12, 10), mode="trilinear")[0]
    one = replace(embedding((10, 12, 10)), features=smooth.half())
    two = replace(
        one, features=(smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).half()
    )
    whole = match_embeddings(one, two)
    parts = match_embeddings(one, two, MatchSettings(memory_bytes=4_000_000))
    assert whole.candidates is None
    assert parts.candidates is not None
    # The memory says how many partners are looked at.
    assert parts.candidates.shape[1] < 8 * 48
    assert parts.candidates.nbytes * 10 <= 4_000_000
    fewer = match_embeddings(one, two, MatchSettings(memory_bytes=2_000_000))
    assert fewer.candidates is not None
    assert fewer.candidates.shape[1] < parts.candidates.shape[1]

    def accuracy(match: object) -> float:
        pairs = match.pairs()  # type: ignore[attr-defined]
        return float((pairs.token_a == pairs.token_b).all(1).mean())

    assert accuracy(parts) > accuracy(whole) - 0.02
    assert accuracy(whole) > 0.8
    row = parts.row((4, 5, 6))
    assert np.unravel_index(int(row.argmax()), row.shape) == (4, 5, 6)


@pytest.mark.parametrize("threads", [1, 2])
def test_of_a_sparse_plan_one_row_is_the_best_of_each_column(threads: int) -> None:
    # All rows go to one column, with masses that differ in the last digits or not at all.
    one = embedding((20, 20, 20))
    index = torch.arange(8000)
    mass = 1e-4 * (1 + torch.arange(8000.0) % 1000)[:, None]
    match = Match(one, one, index, index, torch.full((8000, 1), 7, dtype=torch.int32), mass)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pairs = match.pairs()
    finally:
        torch.set_num_threads(before)
    assert pairs.mutual.sum() == 1
    (best,) = pairs.token_a[pairs.mutual]
    assert best.tolist() == [2, 9, 19]  # 999, the first of the largest
    assert match.pairs() is pairs


def test_mutual_pairs_of_coarse_and_whole_plans_are_the_same() -> None:
    one, two = embedding(), embedding(seed=1)
    whole = match_embeddings(one, two)
    order = torch.argsort(torch.rand(whole.mass.shape), dim=1)
    sparse = replace(whole, candidates=order.int(), mass=whole.mass.gather(1, order))
    pairs, same = whole.pairs(), sparse.pairs()
    assert 0 < pairs.mutual.sum() < len(pairs)
    np.testing.assert_array_equal(pairs.mutual, same.mutual)
    np.testing.assert_array_equal(pairs.token_b, same.token_b)


def test_a_row_of_a_coarse_match_has_the_mass_of_its_pair() -> None:
    one = embedding()
    match = match_embeddings(one, one, MatchSettings(memory_bytes=20_000))
    assert match.candidates is not None
    for token in ((0, 0, 0), (3, 4, 5)):
        row = match.row(token)
        assert float(row[token]) > 0.9
        assert float(row.sum()) <= 1 + 1e-4


def test_a_sparse_plan_with_all_candidates_is_the_whole_plan() -> None:
    settings = MatchSettings(tolerance=1e-6, iterations=2000)
    scores = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)) * 10 + settings.dustbin
    whole = plan_of(scores.clone(), settings)
    candidates = torch.arange(20).expand(30, 20)
    torch.testing.assert_close(
        sparse_plan(scores, candidates, 20, settings), whole, rtol=0, atol=1e-4
    )
    # Without its best candidate, a row goes elsewhere, and everybody still keeps to one share.
    best = scores.argmax(1, keepdim=True)
    found = sparse_plan(scores.scatter(1, best, -torch.inf), candidates, 20, settings)
    assert not found.gather(1, best).any()
    assert found.sum(0).max() <= 1 + 1e-4
    assert found.sum(1).max() <= 1 + 1e-4
