"""A plan holds every token once; both ways of attention agree, also where scores are large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from napari_s2dc.method import window_attention_cpu
from napari_s2dc.method.attention_plan import attention_plan, axis_runs
from napari_s2dc.method.window_attention import _reorder, fused_attention, window_attention
from napari_s2dc.method.window_attention_cpu import blockwise_attention

GRIDS = [((8, 8, 8), 4), ((9, 10, 5), 4), ((5, 3, 9), 7), ((8, 15, 12), 7), ((1, 2, 7), 3)]
CPU = torch.device("cpu")


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_every_token_has_one_row(grid: tuple[int, int, int], side: int, shifted: bool) -> None:
    plan = attention_plan((2, *grid), side, shifted, CPU)
    tokens = torch.arange(2 * grid[0] * grid[1] * grid[2])
    assert torch.equal(plan.order[plan.back].long(), tokens)
    rows = torch.cat([plan.back, plan.padding]).sort().values
    assert torch.equal(rows.long(), torch.arange(len(plan.order)))
    starts = [group.start for group in plan.groups]
    assert [0, *(group.stop for group in plan.groups)] == [*starts, plan.used]
    assert 0 <= len(plan.order) - plan.used < 32
    for group in plan.groups:
        assert sum(kind.boxes for kind in group.kinds) == group.boxes


@pytest.mark.parametrize("length", range(5, 23))
def test_segments_stay_in_their_window(length: int) -> None:
    for shift in (0, 2):
        for run in axis_runs(length, 5, shift):
            assert run.offset + run.size + run.padding <= 5
            assert run.size > 0


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("entries", [1, 1 << 9, 1 << 19])
@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_blockwise_equals_fused(
    grid: tuple[int, int, int],
    side: int,
    entries: int,
    shifted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_attention_cpu, "ENTRIES_A_THREAD", entries)
    given, weights = _given(grid, side, shifted, torch.float64)
    mine, reference = (
        _with_gradients(attention, given, weights, (grid, side, shifted))
        for attention in (blockwise_attention, _fused)
    )
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shift", [-200.0, -60.0, 60.0, 200.0])
def test_scores_whose_powers_cannot_be_added_up(shift: float) -> None:
    """All scores of a head moved alike change nothing, but 2 to the power of them overflows."""
    case = (6, 8, 9), 4, True
    given, weights = _given(*case, torch.float32)
    with torch.no_grad():
        given[1] += shift
    mine = _with_gradients(blockwise_attention, given, weights, case)
    reference = _with_gradients(_fused, [part.double() for part in given], weights.double(), case)
    for one, other in zip(mine, reference, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("shifted", [True, False])
def test_the_way_of_other_devices_gives_the_same(shifted: bool) -> None:
    torch.manual_seed(0)
    qkv, projection = torch.nn.Linear(12, 36), torch.nn.Linear(12, 12)
    table = torch.randn(343, 3, requires_grad=True)
    tokens = torch.randn(2, 6, 8, 9, 12, requires_grad=True)
    images = [2, 6, 8, 9]
    rows = _reorder(tokens.flatten(0, 3), images, 4, shifted, True)
    mixed = fused_attention(qkv(rows), table, images, 4, shifted)
    other = _reorder(projection(mixed), images, 4, shifted, False).view(tokens.shape)
    mine = window_attention(tokens, qkv, projection, table, 4, shifted)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    weights = torch.randn(tokens.shape)
    leaves = [tokens, table, *qkv.parameters(), *projection.parameters()]
    gradients = (torch.autograd.grad((way * weights).sum(), leaves) for way in (mine, other))
    for one, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(one, reference, rtol=1e-3, atol=1e-4)


Case = tuple[tuple[int, int, int], int, bool]


def _given(
    grid: tuple[int, int, int], side: int, shifted: bool, dtype: torch.dtype
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Queries, keys and values, and a table, with gradients; and weights of the result."""
    generator = torch.Generator().manual_seed(0)
    plan = attention_plan((2, *grid), side, shifted, CPU)
    shapes = [(18, len(plan.order)), ((2 * side - 1) ** 3, 3), (6, len(plan.order))]
    qkv, table, weights = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    weights[:, plan.padding] = 0
    return [qkv.requires_grad_(), table.requires_grad_()], weights


def _fused(qkv: torch.Tensor, *rest: Any) -> torch.Tensor:
    return fused_attention(qkv.t(), *rest).t()


def _with_gradients(
    attention: Callable[..., torch.Tensor],
    given: list[torch.Tensor],
    weights: torch.Tensor,
    case: Case,
) -> list[torch.Tensor]:
    """Values at tokens, and gradients of what was given."""
    grid, side, shifted = case
    back = attention_plan((2, *grid), side, shifted, CPU).back
    result = attention(*given, [2, *grid], side, shifted)[:, back]
    return [result, *torch.autograd.grad((result * weights[:, back]).sum(), given)]
