"""Window attention on NVIDIA GPUs by Triton kernels: one launch for all boxes of a grid.

Tokens stay where they are: each program reads the tokens of its box by their numbers and writes
theirs. Nothing of the size of the attention is kept, as in FlashAttention (Dao et al., 2022). The
biases of each kind of box are laid out once; where a box has ended they are -inf, so that nothing
else has to know. ``scaled_dot_product_attention`` takes a call for each kind of box, gives
gradients of biases that are as large as the attention, and wants features of a head by eights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from napari_s2dc.method.attention_plan import Group, attention_plan, row_count
from napari_s2dc.method.operators import define

_SIDE = tl.constexpr(64)
"""Sides of the matrices of biases are multiples of this, and so of all that follow."""

_BY_QUERY = {"tile": 64, "step": 32, "num_warps": 4}
"""Queries of one program, and keys that it meets at a time."""

_BY_KEY = {"tile": 64, "step": 32, "num_warps": 4}
"""Keys of one program, and queries that it meets at a time."""

_BY_PAIR = {"tile": 32, "num_warps": 2}
"""Side of the part of a matrix of biases whose gradient one program adds up."""

_BOXES_AT_ONCE = 128
"""Boxes over which it does."""

_VARYING = ("count", "heads", "rows_in_all", "entries_in_all")
"""Numbers for whose divisors no kernels of their own are compiled."""

_LOG2_E = tl.constexpr(math.log2(math.e))


@dataclass(frozen=True, eq=False)
class _Tiles:
    """Where the kernels find what belongs together.

    Parameters
    ----------
    tokens : Tensor (R,), int32
        Token at each row of the plan; behind the last one for padding.
    biases : Tensor (E,), int32
        For each entry of the matrices (queries, keys) of all kinds of boxes its place among the
        rows of the table of biases, -inf, 0 and what padding has for each of Q queries.
    padding : Tensor (Q, p), int64
        Rows of the table that padding has for each query of the kinds with padding; that of -inf
        where there are fewer.
    queries, keys : Tensor (T, 5), int32
        For each tile of queries, or keys: first row of its box, rows of the box, first row of the
        tile in it, first entry of its matrix of biases, side of that.
    pairs : Tensor (P, 7), int32
        For each part of a matrix and some boxes of a kind: first row of the first box, rows of one,
        boxes, first query, first key, first entry of the matrix, its side.
    """

    tokens: Tensor
    biases: Tensor
    padding: Tensor
    queries: Tensor
    keys: Tensor
    pairs: Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _tiles(images: tuple[int, ...], side: int, shifted: bool, device: torch.device) -> _Tiles:
    plan = attention_plan(images, side, shifted, torch.device("cpu"))
    length = (2 * side - 1) ** 3
    matrices: list[Tensor] = []
    padding: list[Tensor] = []
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    pairs: list[Tensor] = []
    entries = asked = 0
    for group in plan.groups:
        for number, kind in enumerate(group.kinds):
            matrices.append(_matrix(group, number, length, asked))
            first, edge = group.start + kind.first * group.rows, len(matrices[-1])
            starts = torch.arange(first, first + kind.boxes * group.rows, group.rows)
            for found, tile in ((queries, _BY_QUERY["tile"]), (keys, _BY_KEY["tile"])):
                corners = torch.arange(0, group.rows, tile)
                found.append(_product(starts, group.rows, corners, entries, edge))
            corners = torch.arange(0, group.rows, _BY_PAIR["tile"])
            begins = torch.arange(0, kind.boxes, _BOXES_AT_ONCE)
            boxes = (kind.boxes - begins).clamp(max=_BOXES_AT_ONCE)
            some = _product(
                first + begins * group.rows, group.rows, corners, corners, entries, edge
            )
            repeated = boxes.repeat_interleave(len(corners) ** 2)[:, None]
            pairs.append(torch.cat([some[:, :2], repeated, some[:, 2:]], 1))
            entries += matrices[-1].numel()
            if kind.padding is not None:
                padding.append(kind.padding)
                asked += len(kind.padding)
    longest = max((places.shape[1] for places in padding), default=1)
    filled = [F.pad(p, (0, longest - p.shape[1]), value=length) for p in padding]
    return _Tiles(
        plan.order.index_fill(0, plan.padding, math.prod(images)).to(device),
        torch.cat([matrix.flatten() for matrix in matrices]).int().to(device),
        torch.cat([*filled, torch.zeros(0, longest, dtype=torch.long)]).to(device),
        torch.cat(queries).int().to(device),
        torch.cat(keys).int().to(device),
        torch.cat(pairs).int().to(device),
    )


def _matrix(group: Group, number: int, length: int, asked: int) -> Tensor:
    """Places (side, side) of the biases of a kind of boxes; `asked` queries met padding before."""
    side = -(-group.rows // _SIDE.value) * _SIDE.value
    matrix = torch.full((side, side), length)
    matrix[:, : group.rows] = length + 1
    tokens = group.rows
    if group.kinds[number].padding is not None:
        tokens -= 1
        # The last row stands for padding; as a query it does not matter
        matrix[:tokens, tokens] = length + 2 + asked + torch.arange(tokens)
    matrix[:tokens, :tokens] = group.bias[number, :tokens, :tokens].t()
    return matrix


def _product(*axes: Tensor | int) -> Tensor:
    """All combinations (n, axes) of the values on some axes."""
    return torch.cartesian_prod(*(torch.as_tensor(axis).reshape(-1) for axis in axes))


@triton.jit
def _features(base, tokens, width, offset, size: tl.constexpr, padded: tl.constexpr):
    """Features (tile, padded) of some tokens, from a column on; 0 behind those of the head."""
    feature = tl.arange(0, padded)
    places = tokens.to(tl.int64)[:, None] * width + (offset + feature)[None, :]
    if size == padded:
        return tl.load(base + places)
    return tl.load(base + places, mask=(feature < size)[None, :], other=0.0)


@triton.jit
def _results(base, tokens, count, channels, offset, size: tl.constexpr, padded: tl.constexpr):
    """Features (tile, padded) of what some tokens are given, or their gradients; 0 for padding."""
    feature = tl.arange(0, padded)
    places = tokens.to(tl.int64)[:, None] * channels + (offset + feature)[None, :]
    there = (tokens < count)[:, None] & (feature < size)[None, :]
    return tl.load(base + places, mask=there, other=0.0)


@triton.jit
def _scores(first, second, bias, scale, precision: tl.constexpr):
    """Scores of (queries, keys), or of (keys, queries), in exponents of two."""
    products = tl.dot(first, tl.trans(second), input_precision=precision)
    return products * (scale * _LOG2_E) + bias.to(tl.float32)


@triton.jit(do_not_specialize=_VARYING)
def _attend_kernel(
    qkv, biases, tokens, queries, mixed, logarithms,
    count, heads, rows_in_all, entries_in_all, scale,
    size: tl.constexpr, padded: tl.constexpr, precision: tl.constexpr,
    tile: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    part = queries + tl.program_id(0) * 5
    start, rows = tl.load(part), tl.load(part + 1)
    first = tl.multiple_of(tl.load(part + 2), tile)
    biases += tl.multiple_of(head * entries_in_all + tl.load(part + 3), _SIDE)
    side = tl.multiple_of(tl.load(part + 4), _SIDE)
    channels, at = heads * size, head * size
    width = 3 * channels
    row = first + tl.arange(0, tile)
    query_token = tl.load(tokens + start + row, mask=row < rows, other=count)
    query = _features(qkv, query_token, width, at, size, padded)
    largest = tl.full([tile], -float("inf"), tl.float32)
    total = tl.zeros([tile], tl.float32)
    found = tl.zeros([tile, padded], tl.float32)
    for other in range(0, rows, step):
        key_row = other + tl.arange(0, step)
        token = tl.load(tokens + start + key_row, mask=key_row < rows, other=count)
        key = _features(qkv, token, width, channels + at, size, padded)
        value = _features(qkv, token, width, 2 * channels + at, size, padded)
        bias = tl.load(biases + row[:, None] * side + key_row[None, :])
        scores = _scores(query, key, bias, scale, precision)
        larger = tl.maximum(largest, tl.max(scores, 1))
        powers = tl.exp2(scores - larger[:, None])
        shrunk = tl.exp2(largest - larger)
        total = total * shrunk + tl.sum(powers, 1)
        found = found * shrunk[:, None]
        found += tl.dot(powers.to(value.dtype), value, input_precision=precision)
        largest = larger
    found = found / total[:, None]
    feature = tl.arange(0, padded)
    places = query_token.to(tl.int64)[:, None] * channels + (at + feature)[None, :]
    kept = (query_token < count)[:, None] & (feature < size)[None, :]
    tl.store(mixed + places, found.to(mixed.dtype.element_ty), mask=kept)
    place = head * rows_in_all + start + row
    tl.store(logarithms + place, largest + tl.log2(total), mask=row < rows)


@triton.jit(do_not_specialize=_VARYING)
def _query_gradient_kernel(
    qkv, biases, tokens, queries, mixed, logarithms, incoming, common, d_qkv,
    count, heads, rows_in_all, entries_in_all, scale,
    size: tl.constexpr, padded: tl.constexpr, precision: tl.constexpr,
    tile: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    part = queries + tl.program_id(0) * 5
    start, rows = tl.load(part), tl.load(part + 1)
    first = tl.multiple_of(tl.load(part + 2), tile)
    biases += tl.multiple_of(head * entries_in_all + tl.load(part + 3), _SIDE)
    side = tl.multiple_of(tl.load(part + 4), _SIDE)
    channels, at = heads * size, head * size
    width = 3 * channels
    row = first + tl.arange(0, tile)
    query_token = tl.load(tokens + start + row, mask=row < rows, other=count)
    query = _features(qkv, query_token, width, at, size, padded)
    gradient = _results(incoming, query_token, count, channels, at, size, padded)
    result = _results(mixed, query_token, count, channels, at, size, padded)
    place = head * rows_in_all + start + row
    logarithm = tl.load(logarithms + place, mask=row < rows, other=float("inf"))
    # What the softmax takes off the gradients of all scores of a query; the next kernels need it
    taken_off = tl.sum(gradient.to(tl.float32) * result.to(tl.float32), 1)
    tl.store(common + place, taken_off, mask=row < rows)
    found = tl.zeros([tile, padded], tl.float32)
    for other in range(0, rows, step):
        key_row = other + tl.arange(0, step)
        token = tl.load(tokens + start + key_row, mask=key_row < rows, other=count)
        key = _features(qkv, token, width, channels + at, size, padded)
        value = _features(qkv, token, width, 2 * channels + at, size, padded)
        bias = tl.load(biases + row[:, None] * side + key_row[None, :])
        scores = _scores(query, key, bias, scale, precision)
        powers = tl.exp2(scores - logarithm[:, None])
        d_powers = tl.dot(gradient, tl.trans(value), input_precision=precision)
        d_scores = powers * (d_powers - taken_off[:, None])
        found += tl.dot(d_scores.to(key.dtype), key, input_precision=precision)
    feature = tl.arange(0, padded)
    places = query_token.to(tl.int64)[:, None] * width + (at + feature)[None, :]
    kept = (query_token < count)[:, None] & (feature < size)[None, :]
    tl.store(d_qkv + places, (found * scale).to(d_qkv.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=_VARYING)
def _key_gradient_kernel(
    qkv, biases, tokens, keys, logarithms, incoming, common, d_qkv, d_blank,
    count, heads, rows_in_all, entries_in_all, scale,
    size: tl.constexpr, padded: tl.constexpr, precision: tl.constexpr,
    tile: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    part = keys + tl.program_id(0) * 5
    start, rows = tl.load(part), tl.load(part + 1)
    first = tl.multiple_of(tl.load(part + 2), tile)
    biases += tl.multiple_of(head * entries_in_all + tl.load(part + 3), _SIDE)
    side = tl.multiple_of(tl.load(part + 4), _SIDE)
    channels, at = heads * size, head * size
    width = 3 * channels
    key_row = first + tl.arange(0, tile)
    token = tl.load(tokens + start + key_row, mask=key_row < rows, other=count)
    key = _features(qkv, token, width, channels + at, size, padded)
    value = _features(qkv, token, width, 2 * channels + at, size, padded)
    d_key = tl.zeros([tile, padded], tl.float32)
    d_value = tl.zeros([tile, padded], tl.float32)
    for other in range(0, rows, step):
        row = other + tl.arange(0, step)
        query_token = tl.load(tokens + start + row, mask=row < rows, other=count)
        query = _features(qkv, query_token, width, at, size, padded)
        gradient = _results(incoming, query_token, count, channels, at, size, padded)
        place = head * rows_in_all + start + row
        logarithm = tl.load(logarithms + place, mask=row < rows, other=float("inf"))
        taken_off = tl.load(common + place, mask=row < rows, other=0.0)
        # Keys by queries, as the products need them
        bias = tl.trans(tl.load(biases + row[:, None] * side + key_row[None, :]))
        scores = _scores(key, query, bias, scale, precision)
        powers = tl.exp2(scores - logarithm[None, :])
        d_value += tl.dot(powers.to(gradient.dtype), gradient, input_precision=precision)
        d_powers = tl.dot(value, tl.trans(gradient), input_precision=precision)
        d_scores = powers * (d_powers - taken_off[None, :])
        d_key += tl.dot(d_scores.to(query.dtype), query, input_precision=precision)
    d_key *= scale
    feature = tl.arange(0, padded)
    wanted = feature < size
    places = token.to(tl.int64)[:, None] * width + (at + feature)[None, :]
    kept = (token < count)[:, None] & wanted[None, :]
    tl.store(d_qkv + channels + places, d_key.to(d_qkv.dtype.element_ty), mask=kept)
    tl.store(d_qkv + 2 * channels + places, d_value.to(d_qkv.dtype.element_ty), mask=kept)
    # Padding is the last row of its box
    if first + tile >= rows:  # noqa: SIM102 - Triton evaluates both sides of "and"
        if tl.load(tokens + start + rows - 1) == count:
            is_blank = (key_row == rows - 1)[:, None]
            of_key = tl.sum(tl.where(is_blank, d_key, 0.0), 0)
            of_value = tl.sum(tl.where(is_blank, d_value, 0.0), 0)
            tl.atomic_add(d_blank + channels + at + feature, of_key, mask=wanted)
            tl.atomic_add(d_blank + 2 * channels + at + feature, of_value, mask=wanted)


@triton.jit(do_not_specialize=(*_VARYING, "places_in_all"))
def _bias_gradient_kernel(
    qkv, biases, tokens, pairs, logarithms, incoming, common, places, d_biases, places_in_all,
    count, heads, rows_in_all, entries_in_all, scale,
    size: tl.constexpr, padded: tl.constexpr, precision: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    pair = pairs + tl.program_id(0) * 7
    start, rows, boxes = tl.load(pair), tl.load(pair + 1), tl.load(pair + 2)
    row = tl.multiple_of(tl.load(pair + 3), tile) + tl.arange(0, tile)
    key_row = tl.multiple_of(tl.load(pair + 4), tile) + tl.arange(0, tile)
    side = tl.multiple_of(tl.load(pair + 6), _SIDE)
    entry = tl.multiple_of(tl.load(pair + 5), _SIDE) + row[:, None] * side + key_row[None, :]
    channels, at = heads * size, head * size
    width = 3 * channels
    bias = tl.load(biases + tl.multiple_of(head * entries_in_all, _SIDE) + entry)
    found = tl.zeros([tile, tile], tl.float32)
    for box in range(0, boxes):
        begin = start + box * rows
        query_token = tl.load(tokens + begin + row, mask=row < rows, other=count)
        token = tl.load(tokens + begin + key_row, mask=key_row < rows, other=count)
        query = _features(qkv, query_token, width, at, size, padded)
        gradient = _results(incoming, query_token, count, channels, at, size, padded)
        key = _features(qkv, token, width, channels + at, size, padded)
        value = _features(qkv, token, width, 2 * channels + at, size, padded)
        place = head * rows_in_all + begin + row
        logarithm = tl.load(logarithms + place, mask=row < rows, other=float("inf"))
        taken_off = tl.load(common + place, mask=row < rows, other=0.0)
        scores = _scores(query, key, bias, scale, precision)
        powers = tl.exp2(scores - logarithm[:, None])
        d_powers = tl.dot(gradient, tl.trans(value), input_precision=precision)
        found += powers * (d_powers - taken_off[:, None])
    there = (row < rows)[:, None] & (key_row < rows)[None, :]
    tl.atomic_add(d_biases + head * places_in_all + tl.load(places + entry), found, mask=there)


class _Launch:
    """What all kernels of one call are given."""

    def __init__(
        self, qkv: Tensor, table: Tensor, images: list[int], side: int, shifted: bool
    ) -> None:
        self.qkv = qkv.contiguous()
        self.tiles = _tiles(tuple(images), side, shifted, qkv.device)
        self.heads = table.shape[1]
        # The table, -inf and 0
        fixed = F.pad(F.pad(table.t().float(), (0, 1), value=-math.inf), (0, 1))
        self.of_padding = fixed[:, self.tiles.padding]  # (heads, Q, p)
        places = torch.cat([fixed, self.of_padding.logsumexp(-1)], 1) * _LOG2_E.value
        self.places = places.shape[1]
        # float16 is more precise than bfloat16, and biases are small
        narrow = torch.float32 if qkv.dtype == torch.float32 else torch.float16
        self.biases = places.to(narrow).index_select(1, self.tiles.biases)
        size = qkv.shape[1] // (3 * self.heads)
        self.numbers = (
            len(qkv) - 1,
            self.heads,
            len(self.tiles.tokens),
            len(self.tiles.biases),
            size**-0.5,
        )
        self.constants: dict[str, Any] = {
            "size": size,
            "padded": max(16, triton.next_power_of_2(size)),
            # Products of float32 are as precise as those of torch
            "precision": "tf32x3" if qkv.dtype == torch.float32 else "tf32",
        }

    def rows(self) -> Tensor:
        """Zeros for every head and row of the plan, of which no kernel writes the spare ones."""
        return self.qkv.new_zeros(self.heads, len(self.tiles.tokens), dtype=torch.float32)

    def run(self, kernel: Any, entries: Tensor, *others: Tensor | int, **tile: int) -> None:
        """Start a kernel with a program for every entry and head."""
        kernel[(len(entries), self.heads)](
            self.qkv, self.biases, self.tiles.tokens, entries, *others, *self.numbers,
            **self.constants, **tile,
        )  # fmt: skip


def _attend(
    qkv: Tensor, table: Tensor, images: list[int], side: int, shifted: bool
) -> tuple[Tensor, Tensor]:
    """Mix values; also logarithms (heads, R) of the sums of attention, to the base of two."""
    launch = _Launch(qkv, table, images, side, shifted)
    mixed = qkv.new_empty(len(qkv) - 1, qkv.shape[1] // 3)
    logarithms = launch.rows()
    launch.run(_attend_kernel, launch.tiles.queries, mixed, logarithms, **_BY_QUERY)
    return mixed, logarithms


def _attend_shape(
    qkv: Tensor, table: Tensor, images: list[int], side: int, shifted: bool
) -> tuple[Tensor, Tensor]:
    shape = table.shape[1], row_count(images, side, shifted)
    return (
        qkv.new_empty(len(qkv) - 1, qkv.shape[1] // 3),
        qkv.new_empty(*shape, dtype=torch.float32),
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
    launch = _Launch(qkv, table, images, side, shifted)
    tiles, common = launch.tiles, launch.rows()
    incoming = incoming.to(qkv.dtype).contiguous()
    d_qkv = torch.empty_like(launch.qkv)
    d_blank = torch.zeros_like(qkv[0], dtype=torch.float32)
    d_biases = d_blank.new_zeros(launch.heads, launch.places)
    given = (logarithms, incoming, common)
    launch.run(_query_gradient_kernel, tiles.queries, mixed, *given, d_qkv, **_BY_QUERY)
    launch.run(_key_gradient_kernel, tiles.keys, *given, d_qkv, d_blank, **_BY_KEY)
    launch.run(
        _bias_gradient_kernel, tiles.pairs, *given, tiles.biases, d_biases, launch.places,
        **_BY_PAIR,
    )  # fmt: skip
    d_qkv[-1] = d_blank
    length = len(table)
    if len(tiles.padding):
        # Of the logarithm of the sum of the biases that padding has
        shares = launch.of_padding.softmax(-1) * d_biases[:, length + 2 :, None]
        d_biases.scatter_add_(
            1, tiles.padding.reshape(1, -1).expand(launch.heads, -1), shares.flatten(1)
        )
    return d_qkv, d_biases[:, :length].t().contiguous().to(table.dtype)


def _gradients_shape(incoming: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    qkv, table = given[:2]
    return qkv.new_empty(qkv.shape), table.new_empty(table.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], *output)
    ctx.images, ctx.side, ctx.shifted = inputs[2:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, incoming: Tensor, _: None) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.napari_s2dc.tiled_gradients(
        incoming, *ctx.saved_tensors, ctx.images, ctx.side, ctx.shifted
    )
    return (*gradients, None, None, None)


define(
    "tiled_attention",
    _attend,
    _attend_shape,
    backward=_backward,
    remember=_remember,
    kernels=True,
)
define("tiled_gradients", _gradients, _gradients_shape, kernels=True)
