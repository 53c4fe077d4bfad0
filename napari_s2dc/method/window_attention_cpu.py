"""Window attention on the CPU by matrix products of a few windows at a time.

With the 4 to 16 features of a head in a Swin encoder these outrun torch's fused CPU kernel, which
gives no gradient for a bias either. The backward pass computes the attention again, so that nothing
of its size is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from napari_s2dc.method.window_plan import Group, add_bias_gradient, relative_bias, window_plan

ENTRIES_AT_ONCE = 1 << 19
"""Entries of attention matrices computed together: 2 MB in float32, which stay in cache."""


def _pack(group: Group, grid: Tensor, heads: int, filled: Tensor | None = None) -> Tensor:
    """Features (heads, boxes, n, D) of each box, in at least float32, from a grid (B, Z, Y, X, C).

    `filled` (C,) becomes one more token of every box where the plan has padding.
    """
    boxes = group.boxes(grid)
    boxes = boxes.unflatten(-1, (heads, -1)).movedim(-2, 0)
    extra = int(filled is not None and group.padding is not None)
    n, features = group.tokens, boxes.shape[-1]
    packed = boxes.new_empty(
        heads,
        boxes.shape[1:5].numel(),
        n + extra,
        features,
        dtype=torch.promote_types(grid.dtype, torch.float32),
    )
    target = packed[:, :, :n].unflatten(2, boxes.shape[5:8]).unflatten(1, boxes.shape[1:5])
    target.copy_(boxes)
    if extra and filled is not None:
        packed[:, :, n] = filled.view(heads, 1, features)
    return packed


def _unpack(group: Group, transposed: Tensor, grid: Tensor) -> None:
    """Write features (heads, boxes, D, n) to their places in a grid (B, Z, Y, X, C)."""
    heads, _, features, _ = transposed.shape
    target = group.boxes(grid).unflatten(-1, (heads, features)).movedim((-2, -1), (0, 5))
    target.copy_(transposed.unflatten(3, target.shape[6:]).unflatten(1, target.shape[1:5]))


def _transposed_like(packed: Tensor) -> Tensor:
    heads, boxes, tokens, features = packed.shape
    return packed.new_empty(heads, boxes, features, tokens)


class _Attention:
    """Attention matrices of one group of boxes, a few at a time.

    Parameters
    ----------
    query, key : Tensor (heads, boxes, n or m, D)
        Packed features.
    bias : Tensor (heads, n, m)
        Added to the scores.
    """

    def __init__(self, query: Tensor, key: Tensor, bias: Tensor) -> None:
        self.query, self.key, self.bias = query, key, bias
        heads, boxes, n, features = query.shape
        self.scale = features**-0.5
        self.shape = n, key.shape[2]
        together = max(1, ENTRIES_AT_ONCE // (n * key.shape[2]))
        self.boxes = min(boxes, together)
        self.heads = min(heads, together // self.boxes)

    def buffer(self) -> Tensor:
        """Memory for the matrices that are computed together."""
        return self.query.new_empty(self.heads * self.boxes, *self.shape)

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Heads, boxes and their attention (h · b, n, m), which lasts until the next."""
        buffer = self.buffer()
        heads, boxes, _, _ = self.query.shape
        for head in range(0, heads, self.heads):
            h = slice(head, head + self.heads)
            for box in range(0, boxes, self.boxes):
                b = slice(box, box + self.boxes)
                query, key = self.query[h, b], self.key[h, b]
                scores = buffer[: query.shape[0] * query.shape[1]]
                scores.view(*query.shape[:2], *self.shape).copy_(self.bias[h, None])
                scores.baddbmm_(query.flatten(0, 1), key.flatten(0, 1).mT, alpha=self.scale)
                torch.softmax(scores, -1, out=scores)
                yield h, b, scores


def blockwise_attention(
    qkv: Tensor, qkv_bias: Tensor, table: Tensor, side: int, shifted: bool
) -> Tensor:
    """See :func:`napari_s2dc.method.window_attention.window_attention`.

    Parameters
    ----------
    qkv, qkv_bias, table, side, shifted
        As there.

    Returns
    -------
    Tensor (B, Z, Y, X, C)
        As there.
    """
    mixed: Tensor = torch.ops.napari_s2dc.blockwise_attention(qkv, qkv_bias, table, side, shifted)
    return mixed


def _attend(qkv: Tensor, qkv_bias: Tensor, table: Tensor, side: int, shifted: bool) -> Tensor:
    heads = table.shape[1]
    batch, depth, height, width, triple = qkv.shape
    result = qkv.new_empty(batch, depth, height, width, triple // 3)
    _, key_bias, value_bias = qkv_bias.view(3, -1)
    for group in window_plan((depth, height, width), side, shifted, qkv.device):
        queries, keys, values = qkv.unflatten(-1, (3, -1)).unbind(-2)
        query = _pack(group, queries, heads)
        key = _pack(group, keys, heads, key_bias)
        value = _pack(group, values, heads, value_bias)
        bias = relative_bias(group, table).to(query.dtype)
        mixed = _transposed_like(query)
        for h, b, attention in _Attention(query, key, bias).blocks():
            # Products with few columns are five times slower than those with few rows
            torch.bmm(value[h, b].flatten(0, 1).mT, attention.mT, out=mixed[h, b].flatten(0, 1))
        _unpack(group, mixed, result)
    return result


def _attend_shape(qkv: Tensor, qkv_bias: Tensor, table: Tensor, side: int, shifted: bool) -> Tensor:
    return qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)


def _gradients(
    incoming: Tensor, qkv: Tensor, qkv_bias: Tensor, table: Tensor, side: int, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `qkv`, `qkv_bias` and `table` from the gradient of the result."""
    heads = table.shape[1]
    _, depth, height, width, _ = qkv.shape
    d_qkv = qkv.new_empty(qkv.shape)
    d_qkv_bias = torch.zeros_like(qkv_bias)
    d_table = table.new_zeros(table.shape[::-1])
    _, key_bias, value_bias = qkv_bias.view(3, -1)
    for group in window_plan((depth, height, width), side, shifted, qkv.device):
        queries, keys, values = qkv.unflatten(-1, (3, -1)).unbind(-2)
        query = _pack(group, queries, heads)
        key = _pack(group, keys, heads, key_bias)
        value = _pack(group, values, heads, value_bias)
        gradient = _pack(group, incoming, heads)
        bias = relative_bias(group, table).to(query.dtype)
        d_bias = torch.zeros_like(bias)
        d_query, d_key, d_value = map(_transposed_like, (query, key, value))
        matrices = _Attention(query, key, bias)
        buffer = matrices.buffer()
        for h, b, attention in matrices.blocks():
            q, k, v, g = (part[h, b].flatten(0, 1) for part in (query, key, value, gradient))
            dq, dk, dv = (part[h, b].flatten(0, 1) for part in (d_query, d_key, d_value))
            torch.bmm(g.mT, attention, out=dv)
            d_scores = torch.bmm(g, v.mT, out=buffer[: len(attention)])
            torch.ops.aten._softmax_backward_data.out(
                d_scores, attention, -1, d_scores.dtype, grad_input=d_scores
            )
            d_bias[h] += d_scores.view(*query[h, b].shape[:2], *matrices.shape).sum(1)
            torch.bmm(k.mT, d_scores.mT, out=dq)
            torch.bmm(q.mT, d_scores, out=dk)
        d_query *= matrices.scale
        d_key *= matrices.scale
        add_bias_gradient(group, table, d_bias, d_table)
        n = group.tokens
        for part, target, of_bias in zip(
            (d_query, d_key, d_value),
            d_qkv.unflatten(-1, (3, -1)).unbind(-2),
            d_qkv_bias.view(3, heads, -1),
            strict=True,
        ):
            _unpack(group, part[..., :n], target)
            of_bias += part[..., n:].sum((1, 3))
    return d_qkv, d_qkv_bias, d_table.t().contiguous()


def _gradients_shape(
    incoming: Tensor, qkv: Tensor, qkv_bias: Tensor, table: Tensor, side: int, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), torch.empty_like(qkv_bias), torch.empty_like(table)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.side, ctx.shifted = inputs[3:]


def _backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.napari_s2dc.blockwise_gradients(
        incoming, *ctx.saved_tensors, ctx.side, ctx.shifted
    )
    return (*gradients, None, None)


# Operators, so that a compiler sees one call. torch.library.custom_op would do the same, but its
# first call imports the compiler, which takes seconds.
_library = torch.library.Library("napari_s2dc", "DEF")
for _name, _function, _shape in (
    ("blockwise_attention", _attend, _attend_shape),
    ("blockwise_gradients", _gradients, _gradients_shape),
):
    _library.define(_name + torch.library.infer_schema(_function, mutates_args=()))
    _library.impl(_name, _function, "CPU")
    _library.impl(_name, _shape, "Meta")  # register_fake searches all modules for the source
torch.library.register_autograd(
    "napari_s2dc::blockwise_attention", _backward, setup_context=_remember, lib=_library
)
