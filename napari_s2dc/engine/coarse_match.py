"""Matching scans whose whole plan would not fit into memory: coarsely, then near what matched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.match import (
    Match,
    MatchSettings,
    foreground_index,
    match_embeddings,
    places_of,
    scores_of,
)
from napari_s2dc.engine.neighbours import neighbourhoods

__all__ = ["coarse_to_fine", "sparse_plan"]

_FACTOR = 2
_PARTNERS = 48
"""Coarse partners at most whose fine tokens are looked at; fewer where memory is short."""
_BYTES_PER_CANDIDATE = 40
"""Column, score, kernel, the plan and temporaries; 38 were measured with 10 million."""
_CELLS_AT_ONCE = 512


def _pooled(embedding: Embedding) -> Embedding:
    """Return the embedding with cells of 2 x 2 x 2 tokens, foreground where any token is."""
    inside = embedding.foreground[None, None].float()
    unit = embedding.unit().mT.reshape(1, *embedding.features.shape) * inside
    pooled = F.avg_pool3d(unit, _FACTOR, ceil_mode=True, count_include_pad=False)
    share = F.max_pool3d(inside, _FACTOR, ceil_mode=True)
    return replace(
        embedding,
        features=F.normalize(pooled, dim=1)[0].half(),
        foreground=share[0, 0] > 0,
        stride=embedding.stride * _FACTOR,
    )


def _children(embedding: Embedding, coarse: Embedding) -> Tensor:
    """Fine tokens (coarse tokens, 8) of every coarse cell, as places in the foreground list; -1."""
    shape, cells = embedding.features.shape[1:], coarse.features.shape[1:]
    index = foreground_index(embedding)
    place = torch.full((embedding.foreground.numel(),), -1)
    place[index] = torch.arange(len(index))
    padding: list[int] = []
    for side, count in zip(reversed(shape), reversed(cells), strict=True):
        padding += [0, count * _FACTOR - side]
    padded = F.pad(place.reshape(shape), padding, value=-1)
    return rearrange(
        padded, "(z a) (y b) (x c) -> (z y x) (a b c)", a=_FACTOR, b=_FACTOR, c=_FACTOR
    )


@torch.no_grad()
def coarse_to_fine(
    a: Embedding, b: Embedding, settings: MatchSettings, matrix: np.ndarray | None = None
) -> Match:
    """Match cells of 2 x 2 x 2 tokens, then all tokens, each with those of its cell's partners.

    Parameters
    ----------
    a, b : Embedding
        Scans.
    settings : MatchSettings
        As for :func:`napari_s2dc.engine.match.match_embeddings`; where the coarse plan would not
        fit into the memory either, cells are joined again.
    matrix : np.ndarray (4, 4), optional
        As for :func:`napari_s2dc.engine.match.match_embeddings`.

    Returns
    -------
    Match
        With `candidates`: mass outside the partners' cells is not looked for.
    """
    coarse_a, coarse_b = _pooled(a), _pooled(b)
    coarse = match_embeddings(coarse_a, coarse_b, settings, matrix=matrix)
    index_a, index_b = foreground_index(a), foreground_index(b)
    places = places_of(a, b, index_a, index_b, settings, matrix)
    near = neighbourhoods(a, b, index_a, index_b, settings.neighbours, matrix)
    rows = _children(a, coarse_a)[coarse.index_a]
    candidate_bytes = len(index_a) * _FACTOR**3 * _BYTES_PER_CANDIDATE
    partners = max(1, min(_PARTNERS, settings.memory_bytes // candidate_bytes))
    best = coarse.mass.topk(min(partners, coarse.mass.shape[1]), dim=1).indices
    if coarse.candidates is not None:
        best = coarse.candidates.gather(1, best)
    columns = _children(b, coarse_b).int()[coarse.index_b[best]].flatten(1)

    candidates = torch.zeros(len(index_a), columns.shape[1], dtype=torch.int32)
    scores = torch.full(candidates.shape, -torch.inf)
    for start in range(0, len(rows), _CELLS_AT_ONCE):
        row, column = rows[start : start + _CELLS_AT_ONCE], columns[start : start + _CELLS_AT_ONCE]
        of_a, of_b = row.clamp(min=0), column.clamp(min=0)
        there = None if places is None else (places[0][of_a], places[1][of_b])
        found = scores_of(near.similarity(of_a, of_b), there, settings)
        found = found.masked_fill((column < 0)[:, None], -torch.inf)
        cell, within = torch.nonzero(row >= 0).unbind(1)
        candidates[row[cell, within]] = column[cell].clamp(min=0)
        scores[row[cell, within]] = found[cell, within]
    mass = sparse_plan(scores, candidates, len(index_b), settings)
    return Match(a, b, index_a, index_b, candidates, mass, matrix)


def sparse_plan(
    scores: Tensor, candidates: Tensor, columns: int, settings: MatchSettings
) -> Tensor:
    """Solve for the assignment probabilities where each row may only go to some columns.

    Parameters
    ----------
    scores : Tensor (n, k)
        Scores of the candidates; minus infinity for none.
    candidates : Tensor (n, k)
        Their columns.
    columns : int
        How many columns there are.
    settings : MatchSettings
        Dustbin and accuracy.

    Returns
    -------
    Tensor (n, k)
        As :func:`napari_s2dc.method.transport.assignment`, were all other scores minus infinity.
    """
    rows = len(scores)
    best = scores.amax(1).clamp(min=settings.dustbin)
    kernel = torch.exp(scores - best[:, None])
    to_dustbin = torch.exp(settings.dustbin - best)
    flat = candidates.flatten()
    row, column, column_dustbin = torch.zeros(rows), torch.ones(columns), torch.ones(())
    for _ in range(settings.iterations):
        product = (kernel * column[candidates]).sum(1) + to_dustbin * column_dustbin
        if float(torch.linalg.vector_norm(row * product - 1)) < settings.tolerance:
            break
        row, row_dustbin = 1 / product, columns / (column.sum() + column_dustbin)
        received = torch.zeros(columns).index_add_(0, flat, (kernel * row[:, None]).flatten())
        column = 1 / (received + row_dustbin)
        column_dustbin = rows / ((to_dustbin * row).sum() + row_dustbin)
    return row[:, None] * kernel * column[candidates]
