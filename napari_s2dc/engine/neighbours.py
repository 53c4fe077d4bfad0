"""How alike patches are together with the patches beside them.

One patch of muscle looks like many others; with what lies above, below and beside it, it looks like
few. So two patches are compared by the cosine similarities of their neighbourhoods, each neighbour
with the one that lies in the same direction of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding

__all__ = ["Neighbourhoods", "neighbourhoods"]

_FARTHEST = 2
"""Tokens of one scan that are as long as one of the other: beyond, features are of other things."""


@dataclass(frozen=True)
class _Side:
    """The neighbourhoods of one scan.

    Parameters
    ----------
    unit : Tensor (n + 1, C)
        Features of length 1 of the foreground tokens; the last row is 0.
    beside : Tensor (n, directions)
        Place of each token's neighbours among the rows of `unit`; n where there is none.
    """

    unit: Tensor
    beside: Tensor


@dataclass(frozen=True)
class Neighbourhoods:
    """What similarities between the tokens of two scans are made of.

    Parameters
    ----------
    a, b
        Sides.
    weights : Tensor (directions,)
        Of every direction; the first one is the token itself, with weight 1.
    """

    a: _Side
    b: _Side
    weights: Tensor

    def similarity(self, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Average the cosine similarities of neighbours, by weight, over those both tokens have.

        Parameters
        ----------
        rows, columns : Tensor (cells, r) and (cells, c), optional
            Places among the foreground tokens of A and B; all of them, in one cell, when left out.

        Returns
        -------
        Tensor (cells, r, c), or (n, m) of all
            From -1 to 1.
        """
        beside_a = self.a.beside if rows is None else self.a.beside[rows]
        beside_b = self.b.beside if columns is None else self.b.beside[columns]
        there_a, there_b = (
            (beside < len(side.unit) - 1).float()
            for beside, side in ((beside_a, self.a), (beside_b, self.b))
        )
        there_a[..., 0] = there_b[..., 0] = 1.0  # itself, even where it was not encoded
        # How much of the weight both have; divided by only at the end, so in one array.
        total = self.a.unit.new_zeros((*beside_a.shape[:-1], beside_b.shape[-2]))
        add_product = total.addmm_ if total.dim() == 2 else total.baddbmm_
        for direction, weight in enumerate(self.weights.tolist()):
            one = self.a.unit[beside_a[..., direction]]
            other = self.b.unit[beside_b[..., direction]]
            add_product(one, other.mT, alpha=weight)
        return total.div_((there_a * self.weights) @ there_b.mT)


def neighbourhoods(
    a: Embedding,
    b: Embedding,
    index_a: Tensor,
    index_b: Tensor,
    weight: float,
    matrix: np.ndarray | None = None,
) -> Neighbourhoods:
    """Look up the neighbours of all foreground tokens of two scans.

    Parameters
    ----------
    a, b : Embedding
        Scans.
    index_a, index_b : Tensor (n,) and (m,)
        Flat indices of their foreground tokens.
    weight : float
        Of a neighbour that shares a face, beside 1 for the token itself; its square for one that
        shares an edge, its cube for a corner. 0: tokens by themselves. Neighbours along an axis on
        which one scan's tokens are far longer than the other's do not count.
    matrix : np.ndarray (4, 4), optional
        Map from mm of A to mm of B; the same mm when left out. Where it puts A does not matter.
    """
    steps, weights = zip(*_steps(weight), strict=True)
    offsets_a, offsets_b = _directions(a, b, np.asarray(steps), matrix)
    near = (np.abs(offsets_a) <= _FARTHEST).all(1) & (np.abs(offsets_b) <= _FARTHEST).all(1)
    near[1:] &= offsets_b[1:].any(1)  # rounded to the token itself, where axes are oblique
    return Neighbourhoods(
        _side(a, index_a, offsets_a[near]),
        _side(b, index_b, offsets_b[near]),
        torch.tensor(weights)[near],
    )


def _steps(weight: float) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield the token itself, then the directions that count, with their weights."""
    yield (0, 0, 0), 1.0
    if weight > 0:
        for step in product((-1, 0, 1), repeat=3):
            if any(step):
                yield step, weight ** sum(map(abs, step))


def _directions(
    a: Embedding, b: Embedding, steps: np.ndarray, matrix: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Give offsets (directions, 3) in whole tokens of A and B that point to the same places.

    Along each axis of A, a step is as long as the longer of both scans' tokens there.
    """
    moved = (np.eye(4) if matrix is None else matrix)[:3, :3] @ a.affine[:3, :3] * a.stride
    to_b = np.linalg.solve(b.affine[:3, :3] * b.stride, moved)  # tokens of A to tokens of B
    lengths = np.maximum(1, np.round(1 / np.linalg.norm(to_b, axis=0).clip(1e-6)))
    of_a = steps * lengths
    return of_a.astype(int), np.round(of_a @ to_b.T).astype(int)


def _side(scan: Embedding, index: Tensor, offsets: np.ndarray) -> _Side:
    """Look up neighbours; background and what was not encoded is none."""
    unit = scan.unit()[index]
    count, grid = len(index), torch.tensor(scan.grid)
    place = torch.full((scan.foreground.numel(),), count)
    place[index] = torch.arange(count).masked_fill_(unit.abs().amax(1) == 0, count)
    tokens = torch.stack(torch.unravel_index(index, scan.grid), 1)
    columns = []
    for offset in torch.as_tensor(offsets):
        token = tokens + offset
        inside = ((token >= 0) & (token < grid)).all(1)
        z, y, x = token.clamp(min=0).minimum(grid - 1).unbind(1)
        flat = (z * grid[1] + y) * grid[2] + x
        columns.append(torch.where(inside, place[flat], count))
    return _Side(torch.cat([unit, unit.new_zeros(1, unit.shape[1])]), torch.stack(columns, 1))
