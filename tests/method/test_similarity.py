"""Sharpe ratio and neighbourhood consistency."""

import pytest
import torch

from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.similarity import (
    cosine_similarity,
    neighbourhood_consistency,
    sharpe_ratio,
)
from napari_s2dc.method.tokens import partners, token_centres


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cosine_similarity_ignores_length() -> None:
    query, key = random(2, 3, 8), random(2, 4, 8, seed=1)
    found = cosine_similarity(query * 7, key * 0.1)
    expected = torch.nn.functional.cosine_similarity(query[:, :, None], key[:, None], dim=-1)
    assert torch.allclose(found, expected)


def test_sharpe_ratio_is_peak_over_spread() -> None:
    values = random(4, 9)
    expected = (values.max(1).values - values.mean(1)) / values.std(1)
    assert torch.allclose(sharpe_ratio(values, 1), expected)
    assert torch.allclose(sharpe_ratio(values.T, 0), expected)


def test_a_sharp_peak_has_a_higher_ratio_than_a_plateau() -> None:
    peak = torch.zeros(100)
    peak[3] = 1
    plateau = torch.zeros(100)
    plateau[:50] = 1
    ratios = sharpe_ratio(torch.stack([peak, plateau]), 1)
    assert ratios[0] > 5 * ratios[1]


def test_masked_ratio_equals_the_ratio_of_the_kept_entries() -> None:
    values = random(5, 12)
    valid = torch.ones(5, 12, dtype=torch.bool)
    valid[:, ::3] = False
    kept = values[:, [i for i in range(12) if i % 3]]
    assert torch.allclose(sharpe_ratio(values, 1, valid), sharpe_ratio(kept, 1))


def test_flat_and_empty_distributions_give_zero_with_finite_gradients() -> None:
    values = torch.full((3, 5), 0.25, requires_grad=True)
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[1] = False
    valid[2, 1:] = False
    ratio = sharpe_ratio(values, 1, valid)
    ratio.sum().backward()
    assert ratio.tolist() == [0.0, 0.0, 0.0]
    assert values.grad is not None
    assert values.grad.isfinite().all()


def consistency_of(second: torch.Tensor, first: torch.Tensor, affine: Affine3D) -> torch.Tensor:
    grid = (4, 5, 5)
    positions = token_centres(grid, 1.0)
    return neighbourhood_consistency(first, second, partners(affine, grid, 1.0), positions)


def test_consistency_is_one_when_the_view_only_moves_the_tokens() -> None:
    affine = Affine3D.compose((0, 1, 0), [], 1.0)
    first = random(100, 16)
    partner = partners(affine, (4, 5, 5), 1.0)
    second = torch.zeros_like(first)
    second[partner[partner >= 0]] = first[partner >= 0]
    found = consistency_of(second, first, affine)
    known = ~found.isnan()
    assert torch.equal(known, partner >= 0)
    assert torch.allclose(found[known], torch.ones_like(found[known]))


def test_consistency_of_unrelated_features_is_near_zero() -> None:
    found = consistency_of(random(100, 16, seed=5), random(100, 16), Affine3D.identity())
    assert abs(float(found.nanmean())) < 0.1
    assert float(found[~found.isnan()].abs().max()) < 0.95


def test_consistency_by_hand() -> None:
    """A line of five tokens, radius 1: the middle one has two neighbours."""
    first, second = random(5, 3), random(5, 3, seed=2)
    positions = torch.stack([torch.zeros(5), torch.zeros(5), torch.arange(5.0)], 1).double()
    found = neighbourhood_consistency(
        first, second, torch.arange(5), positions, radius=1, minimum_neighbours=2
    )
    here = cosine_similarity(first, first)[2, [1, 3]]
    there = cosine_similarity(second, second)[2, [1, 3]]
    expected = torch.sign((here[0] - here[1]) * (there[0] - there[1]))
    assert torch.isclose(found[2], expected)
    assert found[[0, 4]].isnan().all()


def test_what_is_left_out_may_be_infinite() -> None:
    values = torch.tensor([[0.1, 0.5, torch.nan, 0.2, torch.inf]])
    valid = torch.tensor([[True, True, False, True, False]])
    assert torch.allclose(
        sharpe_ratio(values, 1, valid), sharpe_ratio(torch.tensor([[0.1, 0.5, 0.2]]), 1)
    )


@pytest.mark.parametrize("count", [49, 144, 147])
@pytest.mark.parametrize("value", [0.3, 0.9, 1e-3])
def test_equal_values_have_no_peak_whatever_rounding_does(count: int, value: float) -> None:
    values = torch.full((2, count), value)
    assert sharpe_ratio(values, 1).tolist() == [0, 0]
    assert sharpe_ratio(values, 1, torch.ones_like(values, dtype=torch.bool)).tolist() == [0, 0]
