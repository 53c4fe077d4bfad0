"""Window attention on the CPU by matrix products of a few windows at a time.

With the 4 to 16 features of a head in a Swin encoder these outrun torch's fused CPU kernel, which
gives no gradient for a bias either. Nothing of the size of the attention is kept: the backward pass
computes it again from the logarithms of its sums, as FlashAttention does (Dao et al., 2022).

Every matrix has long rows, since products with few columns are five times slower than those with
few rows: features lie as (features, rows), attention as (keys, queries). Sums over an axis come
out of the products, by rows of ones. Powers of two take a third of the time of ``exp``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from napari_s2dc.method.attention_plan import (
    Group,
    add_bias_gradient,
    attention_plan,
    relative_bias,
)
from napari_s2dc.method.operators import define

ENTRIES_A_THREAD = 1 << 19
"""Entries of attention matrices computed together, for each thread: 2 MB in float32, which a core's
cache holds, and several matrices for each of many cores."""

_LOG2_E = math.log2(math.e)
_SAFE = 2.0**60
"""Sums of powers between this and its inverse have lost nothing to over- or underflow, and leave
values room for their products with such powers."""


def blockwise_attention(
    qkv: Tensor, table: Tensor, images: list[int], side: int, shifted: bool
) -> Tensor:
    """Attention within the boxes of a plan.

    Parameters
    ----------
    qkv : Tensor (3 C, R)
        Queries, keys and values of every row of the plan; heads follow each other in C.
    table : Tensor ((2 side - 1)³, heads)
        Relative position biases.
    images : list of int
        Images, and tokens on their axes z, y, x.
    side : int
        Side of a window in tokens.
    shifted : bool
        Move the windows by half their side.

    Returns
    -------
    Tensor (C, R)
        Values mixed by attention; any finite ones at rows of padding.
    """
    mixed: Tensor
    mixed, _ = torch.ops.napari_s2dc.blockwise_attention(qkv, table, images, side, shifted)
    return mixed


def _box_view(group: Group, rows: Tensor) -> Tensor:
    """View (heads, boxes, D, n) of features (heads, D, R) in a group's boxes."""
    part = rows[..., group.start : group.stop].unflatten(-1, (group.boxes, group.rows))
    return part.transpose(1, 2)


def _pack(group: Group, rows: Tensor, last: float | Tensor) -> Tensor:
    """Features (heads · boxes, D + 1, n) of each head and box, one after the other in memory.

    `last`, a number or a tensor (heads, R), is one more feature.
    """
    boxes = _box_view(group, rows)
    heads, count, features, n = boxes.shape
    packed = boxes.new_empty(heads, count, features + 1, n)
    packed[:, :, :-1] = boxes
    packed[:, :, -1:] = last if isinstance(last, float) else _box_view(group, last[:, None])
    return packed.flatten(0, 1)


def _unpack(group: Group, packed: Tensor, rows: Tensor) -> None:
    """Write packed features to their rows (heads, D, R)."""
    _box_view(group, rows).copy_(packed.unflatten(0, (-1, group.boxes)))


class _Part(NamedTuple):
    """Heads and boxes that are computed together, and their places among all matrices."""

    heads: slice
    boxes: slice
    matrices: slice


class _Scores:
    """Scores of one group of boxes as exponents of two, a few matrices at a time.

    Parameters
    ----------
    group : Group
        Boxes of n rows.
    query, key : Tensor (heads · boxes, D, n)
        Packed features, the queries scaled.
    bias : Tensor (heads, kinds, n, n)
        Added to the scores of each key and query.
    """

    def __init__(self, group: Group, query: Tensor, key: Tensor, bias: Tensor) -> None:
        self.group, self.query, self.bias = group, query, bias
        self.key = key.mT
        together = max(1, torch.get_num_threads() * ENTRIES_A_THREAD // group.rows**2)
        self.boxes = min(group.boxes, together)
        self.heads = min(len(bias), together // self.boxes)

    def buffer(self) -> Tensor:
        """Memory for the matrices of one part."""
        return self.query.new_empty(self.heads * self.boxes, self.group.rows, self.group.rows)

    def parts(self) -> Iterator[_Part]:
        """All matrices, head after head."""
        boxes = self.group.boxes
        for head in range(0, len(self.bias), self.heads):
            heads = slice(head, min(head + self.heads, len(self.bias)))
            for box in range(0, boxes, self.boxes):
                stop = min(box + self.boxes, boxes)
                # More heads than one only where each has all of its boxes
                matrices = slice(head * boxes + box, (heads.stop - 1) * boxes + stop)
                yield _Part(heads, slice(box, stop), matrices)

    def of(self, part: _Part, buffer: Tensor) -> Tensor:
        """Scores (h · b, n, n) of each key and query, in the memory of the buffer."""
        query = self.query[part.matrices]
        scores = buffer[: len(query)]
        for kind, alike in self._alike(part, scores):
            alike.copy_(self.bias[part.heads, kind, None])
        return scores.baddbmm_(self.key[part.matrices], query)

    def add_up(self, part: _Part, scores: Tensor, total: Tensor) -> None:
        """Add such scores to a total (heads, kinds, n, n) of each kind."""
        for kind, alike in self._alike(part, scores):
            ones = alike.new_ones(()).expand(len(alike), 1, alike.shape[1])
            total[part.heads, kind, None].flatten(2).baddbmm_(ones, alike.flatten(2))

    def _alike(self, part: _Part, scores: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Give the number of each kind in a part, and its scores (heads, boxes, n, n)."""
        first, stop = part.boxes.start, part.boxes.stop
        by_head = scores.unflatten(0, (-1, stop - first))
        for number, kind in enumerate(self.group.kinds):
            alike = slice(
                max(kind.first, first) - first, min(kind.first + kind.boxes, stop) - first
            )
            if alike.start < alike.stop:
                yield number, by_head[:, alike]


def _precise(rows: Tensor, heads: int) -> Tensor:
    """Features (heads, D, R) in at least float32."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).unflatten(0, (heads, -1))


def _attend(
    qkv: Tensor, table: Tensor, images: list[int], side: int, shifted: bool
) -> tuple[Tensor, Tensor]:
    """Values mixed by attention, and logarithms (heads, R) of its sums, to the base of two."""
    heads = table.shape[1]
    features = _precise(qkv, 3 * heads)
    _, channels, rows = features.shape
    mixed = features.new_empty(heads, channels, rows)
    logarithms = features.new_empty(heads, 1, rows)
    plan = attention_plan(tuple(images), side, shifted, qkv.device)
    mixed[..., plan.used :] = logarithms[..., plan.used :] = 0
    for group in plan.groups:
        query, key, value = _pack(group, features, 1.0).chunk(3)
        query *= _LOG2_E * channels**-0.5
        bias = _LOG2_E * relative_bias(group, table).to(value.dtype)
        scores = _Scores(group, query[:, :-1], key[:, :-1], bias)
        buffer, found = scores.buffer(), torch.empty_like(value)
        largest = torch.zeros_like(value[:, :1])
        for part in scores.parts():
            powers = scores.of(part, buffer).exp2_()
            torch.bmm(value[part.matrices], powers, out=found[part.matrices])
        least, most = (float(sums) for sums in found[:, -1].aminmax())
        if not 1 / _SAFE < least <= most < _SAFE:
            # Once more without the largest of each query, which is seldom needed
            for part in scores.parts():
                powers = scores.of(part, buffer)
                torch.amax(powers, 1, keepdim=True, out=largest[part.matrices])
                powers.sub_(largest[part.matrices]).exp2_()
                torch.bmm(value[part.matrices], powers, out=found[part.matrices])
        sums = found[:, -1:]
        _unpack(group, found[:, :-1] / sums, mixed)
        _unpack(group, largest.add_(sums.log2()), logarithms)
    return mixed.flatten(0, 1).to(qkv.dtype), logarithms[:, 0]


def _attend_shape(
    qkv: Tensor, table: Tensor, images: list[int], side: int, shifted: bool
) -> tuple[Tensor, Tensor]:
    features, rows = qkv.shape
    precise = torch.promote_types(qkv.dtype, torch.float32)
    return (
        qkv.new_empty(features // 3, rows),
        qkv.new_empty(table.shape[1], rows, dtype=precise),
    )


def _gradients(
    incoming: Tensor,
    qkv: Tensor,
    table: Tensor,
    mixed: Tensor,
    logarithms: Tensor,
    images: list[int],
    side: int,
    shifted: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `qkv` and `table` from the gradient of the mixed values."""
    heads = table.shape[1]
    features, gradients = _precise(qkv, 3 * heads), _precise(incoming, heads)
    # What the softmax takes off the gradients of all scores of a query
    common = (gradients * _precise(mixed, heads)).sum(1).neg_()
    scale = features.shape[1] ** -0.5
    d_qkv = torch.empty_like(qkv)
    d_table = table.new_zeros(table.shape[::-1])
    plan = attention_plan(tuple(images), side, shifted, qkv.device)
    d_qkv[:, plan.used :] = 0
    for group in plan.groups:
        query, key, value = _pack(group, features, 1.0).chunk(3)
        query *= _LOG2_E * scale
        query.unflatten(0, (heads, -1))[:, :, -1:] = _box_view(group, logarithms[:, None]).neg()
        gradient = _pack(group, gradients, common)
        bias = _LOG2_E * relative_bias(group, table).to(query.dtype)
        scores = _Scores(group, query, key, bias)
        d_bias = torch.zeros_like(bias)
        found = query.new_empty(3, len(query), features.shape[1], group.rows)
        buffer, other = scores.buffer(), scores.buffer()
        for part in scores.parts():
            m = part.matrices
            d_query, d_key, d_value = found[:, m]
            attention = scores.of(part, buffer).exp2_()
            torch.bmm(gradient[m, :-1], attention.mT, out=d_value)
            d_scores = torch.bmm(value[m].mT, gradient[m], out=other[: len(attention)])
            d_scores *= attention
            torch.bmm(key[m, :-1], d_scores, out=d_query)
            torch.bmm(query[m, :-1], d_scores.mT, out=d_key)
            scores.add_up(part, d_scores, d_bias)
        found[0] *= scale
        found[1] /= _LOG2_E  # the queries hold it, and the scale
        _unpack(group, found.flatten(0, 1), d_qkv.unflatten(0, (3 * heads, -1)))
        add_bias_gradient(group, table, d_bias, d_table)
    return d_qkv, d_table.t().contiguous()


def _gradients_shape(
    incoming: Tensor,
    qkv: Tensor,
    table: Tensor,
    mixed: Tensor,
    logarithms: Tensor,
    images: list[int],
    side: int,
    shifted: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(table)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], *output)
    ctx.images, ctx.side, ctx.shifted = inputs[2:]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, incoming: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.napari_s2dc.blockwise_gradients(
        incoming, *ctx.saved_tensors, ctx.images, ctx.side, ctx.shifted
    )
    return (*gradients, None, None, None)


define(
    "blockwise_attention",
    _attend,
    _attend_shape,
    device="CPU",
    backward=_backward,
    remember=_remember,
)
define("blockwise_gradients", _gradients, _gradients_shape, device="CPU")
