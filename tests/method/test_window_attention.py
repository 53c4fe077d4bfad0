"""Boxes of a plan hold every token once; both ways of attention agree."""

from __future__ import annotations

import pytest
import torch

from napari_s2dc.method import window_attention_cpu
from napari_s2dc.method.window_attention import fused_attention, window_attention
from napari_s2dc.method.window_plan import axis_runs, window_plan

GRIDS = [((8, 8, 8), 4), ((9, 10, 5), 4), ((5, 3, 9), 7), ((8, 15, 12), 7), ((1, 2, 7), 3)]


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_every_token_is_in_one_box(grid: tuple[int, int, int], side: int, shifted: bool) -> None:
    seen = torch.zeros(1, *grid, 1, dtype=torch.long)
    for group in window_plan(grid, side, shifted, torch.device("cpu")):
        boxes = group.boxes(seen)
        boxes += 1
        assert boxes.numel() == group.tokens * boxes.shape[1:4].numel()
    assert (seen == 1).all()


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
    monkeypatch.setattr(window_attention_cpu, "ENTRIES_AT_ONCE", entries)
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, *grid, 18), (18,), ((2 * side - 1) ** 3, 3)]
    arguments = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]
    weights = torch.randn(2, *grid, 6, generator=generator, dtype=torch.float64)
    found = []
    for attention in (window_attention, fused_attention):
        result = attention(*arguments, side, shifted)
        # Without padding nothing depends on the bias
        gradients = torch.autograd.grad((result * weights).sum(), arguments, materialize_grads=True)
        found.append((result, *gradients))
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference)
