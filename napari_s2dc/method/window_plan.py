"""Which tokens attend to each other in a Swin block, as boxes of the token grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_PLANS = 64
"""Plans kept: eight per image size (four layers, shifted and not); a few MB each at window 7."""


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


@dataclass(frozen=True, eq=False)
class Group:
    """Boxes of tokens of equal kind; each attends within itself.

    Parameters
    ----------
    runs : The boxes on the axes z, y, x.
    bias : Tensor (n, n)
        Row of the table of relative position biases for each query and key, n tokens of a box.
    padding : Tensor (n, p) or None
        The same for the p places of the window, in one region with the box, that lie outside the
        grid. None where there are none.
    """

    runs: tuple[Run, Run, Run]
    bias: Tensor
    padding: Tensor | None

    @property
    def count(self) -> int:
        """Boxes in one image."""
        z, y, x = self.runs
        return z.count * y.count * x.count

    @property
    def tokens(self) -> int:
        """Tokens of one box."""
        return len(self.bias)

    def boxes(self, grid: Tensor) -> Tensor:
        """View of a grid as boxes.

        Parameters
        ----------
        grid : Tensor (B, Z, Y, X, C)
            Values of every token.

        Returns
        -------
        Tensor (B, cz, cy, cx, sz, sy, sx, C)
            Of the same memory: box (cz, cy, cx), token (sz, sy, sx) in it.
        """
        for axis, run in enumerate(self.runs):
            grid = grid.narrow(axis + 1, run.start, run.stop - run.start)
        for axis, run in enumerate(self.runs):
            grid = grid.unflatten(1 + 2 * axis, (run.count, run.size))
        return grid.permute(0, 1, 3, 5, 2, 4, 6, 7)


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


@lru_cache(maxsize=_PLANS)
def window_plan(
    grid: tuple[int, int, int], side: int, shifted: bool, device: torch.device
) -> tuple[Group, ...]:
    """Boxes of a token grid that attend within themselves.

    Parameters
    ----------
    grid : tuple of int
        Tokens on the axes z, y, x.
    side : int
        Side of an attention window; an axis that is not longer is one window and is not shifted.
    shifted : bool
        Move the windows by half their side, as every second Swin block does.
    device : torch.device
        Where the tensors are kept.

    Returns
    -------
    tuple of Group
        They hold every token once.
    """
    window = [min(side, length) for length in grid]
    runs = [
        axis_runs(length, cut, side // 2 if shifted and length > side else 0)
        for length, cut in zip(grid, window, strict=True)
    ]
    groups = []
    for z, y, x in itertools.product(*runs):
        box = (z, y, x)
        tokens = _places([range(run.offset, run.offset + run.size) for run in box], window)
        region = _places(
            [range(run.offset, run.offset + run.size + run.padding) for run in box], window
        )
        outside = region[~torch.isin(region, tokens)]
        groups.append(
            Group(
                box,
                _table_rows(tokens, tokens, side).to(device),
                _table_rows(tokens, outside, side).to(device) if len(outside) else None,
            )
        )
    return tuple(groups)


def _entries(index: Tensor, table: Tensor) -> Tensor:
    """Entries (heads, n, m) of the table in the rows that an index (n, m) names."""
    flat = table.t().gather(1, index.reshape(1, -1).expand(table.shape[1], -1))
    return flat.unflatten(1, index.shape)


def relative_bias(group: Group, table: Tensor) -> Tensor:
    """Biases of the scores in a group's boxes.

    Parameters
    ----------
    group : Group
        Group of boxes of n tokens.
    table : Tensor ((2 side - 1)³, heads)
        Relative position biases.

    Returns
    -------
    Tensor (heads, n, n) or (heads, n, n + 1)
        The last column, where there is padding, is the bias of all padding together.
    """
    bias = _entries(group.bias, table)
    if group.padding is None:
        return bias
    return torch.cat([bias, _entries(group.padding, table).logsumexp(-1, keepdim=True)], -1)


def add_bias_gradient(group: Group, table: Tensor, incoming: Tensor, total: Tensor) -> None:
    """Add what :func:`relative_bias` hands back to its table.

    Parameters
    ----------
    group, table
        As there.
    incoming : Tensor
        Gradient of its result.
    total : Tensor (heads, (2 side - 1)³)
        Gradient of the table, transposed; changed in place.
    """
    parts = [(group.bias, incoming[..., : group.tokens])]
    if group.padding is not None:
        shares = _entries(group.padding, table).softmax(-1)
        parts.append((group.padding, shares * incoming[..., group.tokens :]))
    for index, gradient in parts:
        places = index.reshape(1, -1).expand(table.shape[1], -1)
        total.scatter_add_(1, places, gradient.flatten(1).to(total.dtype))
