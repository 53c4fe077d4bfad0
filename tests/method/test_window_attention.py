"""A plan holds every token once; both ways of attention agree, also where scores are large."""

from __future__ import annotations

import pytest
import torch

from napari_s2dc.method import window_attention_cpu
from napari_s2dc.method.window_attention import fused_attention
from napari_s2dc.method.window_attention_cpu import blockwise_attention
from napari_s2dc.method.window_plan import axis_runs, window_plan

GRIDS = [((8, 8, 8), 4), ((9, 10, 5), 4), ((5, 3, 9), 7), ((8, 15, 12), 7), ((1, 2, 7), 3)]
CPU = torch.device("cpu")


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_every_token_has_one_row(grid: tuple[int, int, int], side: int, shifted: bool) -> None:
    plan = window_plan((2, *grid), side, shifted, CPU)
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


@pytest.mark.parametrize("largest", [1.0, 40.0])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("entries", [1, 1 << 9, 1 << 19])
@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_blockwise_equals_fused(
    grid: tuple[int, int, int],
    side: int,
    entries: int,
    shifted: bool,
    largest: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_attention_cpu, "ENTRIES_AT_ONCE", entries)
    generator = torch.Generator().manual_seed(0)
    plan = window_plan((2, *grid), side, shifted, CPU)
    shapes = [(18, len(plan.order)), ((2 * side - 1) ** 3, 3)]
    # Scores of some hundreds are beyond what powers of them can be added up to
    qkv, table = (
        largest * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    weights = torch.randn(6, len(plan.order), generator=generator, dtype=torch.float64)
    weights[:, plan.padding] = 0
    qkv.requires_grad_(), table.requires_grad_()
    found = []
    for attention in (
        blockwise_attention,
        lambda qkv, *rest: fused_attention(qkv.t(), *rest).t(),
    ):
        result = attention(qkv, table, [2, *grid], side, shifted)[:, plan.back]
        gradients = torch.autograd.grad((result * weights[:, plan.back]).sum(), (qkv, table))
        found.append((result, *gradients))
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference)


def test_large_scores_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = len(window_plan((1, 8, 8, 8), 4, True, CPU).order)
    qkv = 30 * torch.randn(18, rows, generator=generator)
    table = torch.randn(343, 3, generator=generator)
    given = table, [1, 8, 8, 8], 4, True
    mine = blockwise_attention(qkv, *given)
    reference = fused_attention(qkv.t(), *given).t()
    torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-3)
