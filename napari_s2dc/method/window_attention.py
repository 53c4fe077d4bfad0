"""Attention of Swin blocks within windows, without masks, padding or stored attention matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_s2dc.method.attention_plan import attention_plan, relative_bias, row_count
from napari_s2dc.method.operators import define
from napari_s2dc.method.window_attention_cpu import blockwise_attention


def window_attention(
    tokens: Tensor, qkv: nn.Linear, projection: nn.Linear, table: Tensor, side: int, shifted: bool
) -> Tensor:
    """Attention within the windows of a token grid.

    Parameters
    ----------
    tokens : Tensor (B, Z, Y, X, C)
        Features of every token.
    qkv : Linear (C to 3 C), with biases
        Queries, keys and values; heads follow each other in C.
    projection : Linear (C to C)
        Applied to the values mixed by attention.
    table : Tensor ((2 side - 1)³, heads)
        Relative position biases.
    side : int
        Side of a window in tokens.
    shifted : bool
        Move the windows by half their side.

    Returns
    -------
    Tensor (B, Z, Y, X, C)
        What MONAI's ``SwinTransformerBlock`` adds to the tokens.

    Notes
    -----
    Equal to MONAI up to rounding, with less work:

    - Where MONAI adds −100 between regions of a shifted window, the regions are boxes of their own
      here. Both agree as long as the scores of a query do not differ by about 80.
    - Tokens that only fill up a window are zeros, so that they share one key k₀ and one value. As
      keys they are one token whose bias is log Σ exp(b) over their biases, since
      Σ exp(q·k₀ + b) = exp(q·k₀) Σ exp(b).
    - Tokens are brought into the order of the boxes once and back once, before the queries, keys
      and values are there, which are three times as much.
    """
    images = list(tokens.shape[:4])
    rows = _reorder(tokens.flatten(0, 3), images, side, shifted, True)
    if rows.device.type == "cpu":
        # Features times rows: every box and head is then a matrix of long rows
        transposed = torch.addmm(qkv.bias[:, None], qkv.weight, rows.t())
        mixed = blockwise_attention(transposed, table, images, side, shifted).t()
    else:
        mixed = fused_attention(qkv(rows), table, images, side, shifted)
    back = _reorder(projection(mixed), images, side, shifted, False)
    return back.view(tokens.shape)


def fused_attention(
    qkv: Tensor, table: Tensor, images: list[int], side: int, shifted: bool
) -> Tensor:
    """Attention by ``scaled_dot_product_attention``, on any device.

    Parameters
    ----------
    qkv : Tensor (R, 3 C)
        Queries, keys and values of every row of the plan.
    table, side, shifted
        As for :func:`window_attention`.
    images : list of int
        Images, and tokens on their axes z, y, x.

    Returns
    -------
    Tensor (R, C)
        Values mixed by attention.
    """
    heads = table.shape[1]
    plan = attention_plan(tuple(images), side, shifted, qkv.device)
    mixed = []
    for group in plan.groups:
        biases = relative_bias(group, table).mT.to(qkv.dtype)
        boxes = qkv[group.start : group.stop].view(group.boxes, group.rows, 3, heads, -1)
        for number, kind in enumerate(group.kinds):
            alike = boxes[kind.first : kind.first + kind.boxes]
            query, key, value = alike.permute(2, 0, 3, 1, 4)
            bias = biases[None, :, number].contiguous()
            result = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            mixed.append(result.transpose(1, 2).reshape(-1, qkv.shape[1] // 3))
    spare = qkv.new_zeros(len(qkv) - plan.used, qkv.shape[1] // 3)
    return torch.cat([*mixed, spare])


def _reorder(x: Tensor, images: list[int], side: int, shifted: bool, to_rows: bool) -> Tensor:
    """Tokens (B · Z · Y · X, C) in the order of the plan, or rows (R, C) back; padding is 0."""
    moved: Tensor = torch.ops.napari_s2dc.reorder(x, images, side, shifted, to_rows)
    return moved


def _moved(x: Tensor, images: list[int], side: int, shifted: bool, to_rows: bool) -> Tensor:
    plan = attention_plan(tuple(images), side, shifted, x.device)
    moved = x.index_select(0, plan.order if to_rows else plan.back)
    return moved.index_fill_(0, plan.padding, 0) if to_rows and len(plan.padding) else moved


def _moved_shape(x: Tensor, images: list[int], side: int, shifted: bool, to_rows: bool) -> Tensor:
    rows = row_count(images, side, shifted) if to_rows else math.prod(images)
    return x.new_empty(rows, x.shape[1])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.images, ctx.side, ctx.shifted, ctx.to_rows = inputs[1:]


def _moved_back(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
    # One is the other's transpose, since padding hands nothing back
    gradient = _reorder(incoming, ctx.images, ctx.side, ctx.shifted, not ctx.to_rows)
    return gradient, None, None, None, None


# The gradient of index_select adds row after row; that of an exchange of rows is another exchange.
define("reorder", _moved, _moved_shape, backward=_moved_back, remember=_remember)
