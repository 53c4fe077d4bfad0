"""Which tokens attend to each other in a Swin block, as boxes of the token grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_PLANS = 32
"""Plans kept: eight (four layers, shifted and not) for each batch of images of one size; up to 10
MB each at window 7."""
_SPARE = 32
"""Lengths of rows are half of this, and any number of times all of it."""


@dataclass(frozen=True)
class Run:
    """Segments of equal kind that follow each other on one axis.

    Parameters
    ----------
    start : First token.
    count : Segments.
    size : Tokens of each segment.
    padding : Places behind the tokens of each segment where the grid has ended.
    offset : Place of the segment's first token in its attention window.
    """

    start: int
    count: int
    size: int
    padding: int
    offset: int

    @property
    def stop(self) -> int:
        """First token behind the run."""
        return self.start + self.count * self.size


def axis_runs(length: int, window: int, shift: int) -> tuple[Run, ...]:
    """Cut one axis into segments that attend within themselves.

    Parameters
    ----------
    length : int
        Tokens on the axis.
    window : int
        Side of the attention window, at most `length`.
    shift : int
        How far the windows are moved; 0 for none.

    Returns
    -------
    tuple of Run
        They hold every token once. A shifted window that reaches over both ends of the axis is
        two segments, since its mask keeps the two ends apart.
    """
    padded = -(-length // window) * window
    # (start, places, offset in the window)
    segments = [(0, shift, window - shift)] if shift else []
    whole = padded // window - (1 if shift else 0)
    segments += [(shift + number * window, window, 0) for number in range(whole)]
    if shift:
        segments.append((padded - window + shift, window - shift, 0))
    runs: list[Run] = []
    for start, places, offset in segments:
        size = min(places, length - start)
        if size <= 0:
            continue
        run = Run(start, 1, size, places - size, offset)
        if runs and (runs[-1].size, runs[-1].padding, runs[-1].offset) == (
            run.size,
            run.padding,
            run.offset,
        ):
            run = Run(runs[-1].start, runs[-1].count + 1, size, places - size, offset)
            runs.pop()
        runs.append(run)
    return tuple(runs)


@dataclass(frozen=True)
class Kind:
    """Boxes that lie alike in their attention windows.

    Parameters
    ----------
    first : Number of the first of them in its group.
    boxes : How many, in all images.
    padding : Tensor (n, p), int64, or None
        Row of the table of relative position biases for each of n queries and p keys: the places
        of the window, in one region with the box, that lie outside the grid. None where there are
        none.
    """

    first: int
    boxes: int
    padding: Tensor | None


@dataclass(frozen=True, eq=False)
class Group:
    """Boxes with equally many rows; each attends within itself.

    Parameters
    ----------
    start : First row, in the order of the plan.
    boxes : Boxes in all images, kind after kind.
    rows : Rows of one box; where it has padding, the last one stands for all of it.
    kinds : What they differ in.
    bias : Tensor (kinds, rows, rows), int64
        Row of the table of relative position biases for each key and query; any row where one of
        them is padding.
    """

    start: int
    boxes: int
    rows: int
    kinds: tuple[Kind, ...]
    bias: Tensor

    @property
    def stop(self) -> int:
        """First row behind the group."""
        return self.start + self.boxes * self.rows


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Order of the tokens of some images in which those that attend to each other are neighbours.

    Parameters
    ----------
    order : Tensor (R,), int32
        Token at each row, by its number in the images (B, Z, Y, X); 0 at the rows of padding.
    padding : Tensor (P,), int64
        Rows that stand for padding, and the spare ones.
    back : Tensor (B · Z · Y · X,), int32
        Row of each token.
    groups : They hold all rows but the spare ones at the end.
    """

    order: Tensor
    padding: Tensor
    back: Tensor
    groups: tuple[Group, ...]

    @property
    def used(self) -> int:
        """First of the spare rows."""
        return self.groups[-1].stop


def _places(extents: Sequence[range], window: Sequence[int]) -> Tensor:
    """Numbers of some places of a window in raster order."""
    z, y, x = (torch.tensor(extent) for extent in extents)
    return ((z[:, None, None] * window[1] + y[:, None]) * window[2] + x).flatten()


def _table_rows(queries: Tensor, keys: Tensor, side: int) -> Tensor:
    """Row of the bias table for each query and key, given by their raster numbers.

    Source: ``relative_position_index`` of MONAI's ``WindowAttention``. Where a grid is smaller than
    the window, it is cut to the places of the grid by number, as if the window were full; so the
    numbers are read in a full window here, too.
    """
    difference = torch.zeros(len(queries), len(keys), dtype=torch.long)
    for unit in (side * side, side, 1):
        apart = (queries // unit % side)[:, None] - (keys // unit % side)
        difference = difference * (2 * side - 1) + apart + side - 1
    return difference


def _kinds_of_boxes(
    grid: Sequence[int], side: int, shifted: bool
) -> tuple[list[int], list[tuple[Run, Run, Run]]]:
    """Sides of a window in a grid, and its boxes of each kind."""
    window = [min(side, length) for length in grid]
    z, y, x = (
        axis_runs(length, cut, side // 2 if shifted and length > side else 0)
        for length, cut in zip(grid, window, strict=True)
    )
    return window, list(itertools.product(z, y, x))


def row_count(images: Sequence[int], side: int, shifted: bool) -> int:
    """Count the rows of a plan without making it.

    Parameters
    ----------
    images, side, shifted
        As for :func:`attention_plan`.

    Returns
    -------
    int
        R, the spare rows among them.

    Notes
    -----
    Products with matrices whose rows are an odd multiple of 16 long take between half and all of
    the time that other lengths take: 13 ms for 110608, 17 for 110592 and 27 for 110719 rows, 48
    features to 144. Hence the spare rows.
    """
    _, kinds = _kinds_of_boxes(images[1:], side, shifted)
    used = images[0] * sum(
        math.prod(run.count for run in box)
        * (math.prod(run.size for run in box) + any(run.padding for run in box))
        for box in kinds
    )
    return used + (_SPARE // 2 - used) % _SPARE


@lru_cache(maxsize=_PLANS)
@torch.inference_mode(False)
def attention_plan(
    images: tuple[int, ...], side: int, shifted: bool, device: torch.device
) -> AttentionPlan:
    """Order the tokens of images by the boxes in which they attend to each other.

    Parameters
    ----------
    images : tuple of int
        Images, and tokens on their axes z, y, x.
    side : int
        Side of an attention window; an axis that is not longer is one window and is not shifted.
    shifted : bool
        Move the windows by half their side, as every second Swin block does.
    device : torch.device
        Where the tensors are kept.

    Returns
    -------
    AttentionPlan
        Every token has one row.
    """
    batch, *grid = images
    window, kinds_of_boxes = _kinds_of_boxes(grid, side, shifted)
    numbers = torch.arange(batch * math.prod(grid)).view(*images, 1)
    by_rows: dict[int, list[tuple[Tensor, Tensor, Tensor | None]]] = {}
    for box in kinds_of_boxes:
        places = _places([range(run.offset, run.offset + run.size) for run in box], window)
        region = _places(
            [range(run.offset, run.offset + run.size + run.padding) for run in box], window
        )
        outside = region[~torch.isin(region, places)]
        tokens = _boxes(numbers, box)
        bias, padding = _table_rows(places, places, side).t(), None
        if len(outside):
            padding = _table_rows(places, outside, side).to(device)
            tokens, bias = F.pad(tokens, (0, 1), value=-1), F.pad(bias, (0, 1, 0, 1))
        by_rows.setdefault(tokens.shape[1], []).append((tokens, bias, padding))
    order: list[Tensor] = []
    groups = []
    start = 0
    for rows, alike in sorted(by_rows.items(), reverse=True):
        order += [tokens.flatten() for tokens, _, _ in alike]
        counts = [len(tokens) for tokens, _, _ in alike]
        firsts = itertools.accumulate(counts[:-1], initial=0)
        kinds = [
            Kind(first, count, padding)
            for first, count, (_, _, padding) in zip(firsts, counts, alike, strict=True)
        ]
        bias = torch.stack([bias for _, bias, _ in alike])
        groups.append(Group(start, sum(counts), rows, tuple(kinds), bias.to(device)))
        start = groups[-1].stop
    spare = torch.full((row_count(images, side, shifted) - start,), -1)
    rows_of = torch.cat([*order, spare])
    filled = rows_of < 0
    back = torch.empty(numbers.numel(), dtype=torch.int32)
    back[rows_of[~filled]] = (~filled).nonzero()[:, 0].int()
    return AttentionPlan(
        rows_of.clamp(min=0).int().to(device),
        filled.nonzero()[:, 0].to(device),
        back.to(device),
        tuple(groups),
    )


def _boxes(numbers: Tensor, runs: Sequence[Run]) -> Tensor:
    """Numbers (boxes, tokens of one) of some boxes, from those of all tokens (B, Z, Y, X, 1)."""
    for axis, run in enumerate(runs):
        numbers = numbers.narrow(axis + 1, run.start, run.stop - run.start)
    for axis, run in enumerate(runs):
        numbers = numbers.unflatten(1 + 2 * axis, (run.count, run.size))
    return numbers.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(0, 3)


def _entries(index: Tensor, table: Tensor) -> Tensor:
    """Entries (heads, ...) of the table in the rows that an index names."""
    flat = table.t().gather(1, index.reshape(1, -1).expand(table.shape[1], -1))
    return flat.unflatten(1, index.shape)


def relative_bias(group: Group, table: Tensor) -> Tensor:
    """Biases of the scores in a group's boxes.

    Parameters
    ----------
    group : Group
        Group of boxes of n rows.
    table : Tensor ((2 side - 1)³, heads)
        Relative position biases.

    Returns
    -------
    Tensor (heads, kinds, n, n)
        Of each key and query. As a key, padding has the bias of all of it together; as a query,
        where nothing is asked of it, any finite one.
    """
    bias = _entries(group.bias, table)
    for number, kind in enumerate(group.kinds):
        if kind.padding is not None:
            bias[:, number, -1, :-1] = _entries(kind.padding, table).logsumexp(-1)
    return bias


def add_bias_gradient(group: Group, table: Tensor, incoming: Tensor, total: Tensor) -> None:
    """Add what :func:`relative_bias` hands back to its table.

    Parameters
    ----------
    group, table
        As there.
    incoming : Tensor
        Gradient of its result, 0 where padding is the query; changed.
    total : Tensor (heads, (2 side - 1)³)
        Gradient of the table, transposed; changed in place.
    """

    def add(index: Tensor, gradient: Tensor) -> None:
        places = index.reshape(1, -1).expand(table.shape[1], -1)
        total.scatter_add_(1, places, gradient.flatten(1).to(total.dtype))

    for number, kind in enumerate(group.kinds):
        if kind.padding is not None:
            shares = _entries(kind.padding, table).softmax(-1)
            add(kind.padding, shares * incoming[:, number, -1, :-1, None])
            incoming[:, number, -1] = 0
    add(group.bias, incoming)
