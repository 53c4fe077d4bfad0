"""What a click tells: similarity to a patch, how sharply it peaks, and the structure around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.consistency import (
    ConsistencyMap,
    ConsistencyReading,
    consistency_at,
    consistency_map,
)
from napari_s2dc.engine.embedding import Embedding, Token
from napari_s2dc.engine.structure import otsu_threshold, structure_mask
from napari_s2dc.errors import ConfigurationError

__all__ = [
    "ConsistencyMap",
    "ConsistencyReading",
    "PatchReading",
    "consistency_at",
    "consistency_map",
    "otsu_threshold",
    "query_of",
    "read_patch",
    "sharpe_map",
    "similarity_map",
    "similarity_to",
    "structure_mask",
]

_BINS = 64

# One entry per embedding that is in use: a click must not wait for what does not change.
_sharpe_maps: WeakKeyDictionary[Embedding, Tensor] = WeakKeyDictionary()


def query_of(
    embedding: Embedding, positive: Sequence[Token], negative: Sequence[Token] = ()
) -> Tensor:
    """Direction that patches are compared with.

    Parameters
    ----------
    embedding : Embedding
        Scan in which the patches lie.
    positive, negative : sequence of (z, y, x)
        Tokens that the structure looks like, at least one, and that it does not look like.

    Returns
    -------
    Tensor (C,)
        Mean unit feature of the positives minus that of the negatives; its product with a unit
        feature is the mean cosine to the former minus that to the latter.

    Raises
    ------
    ConfigurationError
        There is no positive token, or one lies outside the grid.
    """
    if not positive:
        raise ConfigurationError("There is no patch to compare with.", "Click a place in the scan.")
    unit = embedding.unit()
    query = unit[_flat(embedding, positive)].mean(0)
    if negative:
        query = query - unit[_flat(embedding, negative)].mean(0)
    return query


def similarity_to(embedding: Embedding, query: Tensor) -> Tensor:
    """Similarity of every patch to a query, which may come from another scan.

    Parameters
    ----------
    embedding : Embedding
        Scan whose patches are compared.
    query : Tensor (C,)
        As made by :func:`query_of` with the same encoder and stage.

    Returns
    -------
    Tensor (tz, ty, tx)
        float32, -1 to 1.

    Raises
    ------
    ConfigurationError
        The query has another number of channels.
    """
    unit = embedding.unit()
    if len(query) != unit.shape[1]:
        raise ConfigurationError(
            f"The patch has {len(query)} channels and those of {embedding.name} have "
            f"{unit.shape[1]}.",
            "Embed both scans with the same encoder and stage.",
        )
    return (unit @ query).clamp_(-1, 1).reshape(embedding.grid)


def similarity_map(
    embedding: Embedding, positive: Sequence[Token], negative: Sequence[Token] = ()
) -> Tensor:
    """Similarity of every patch to some patches of the same scan.

    Parameters
    ----------
    embedding : Embedding
        Scan.
    positive, negative : sequence of (z, y, x)
        Tokens, as for :func:`query_of`.

    Returns
    -------
    Tensor (tz, ty, tx)
        float32, -1 to 1: mean cosine to the positives minus mean cosine to the negatives.
    """
    return similarity_to(embedding, query_of(embedding, positive, negative))


def _flat(embedding: Embedding, tokens: Sequence[Token]) -> list[int]:
    """Turn places into indices into the list of tokens; ConfigurationError outside."""
    depth, height, width = embedding.grid
    for z, y, x in tokens:
        if not (0 <= z < depth and 0 <= y < height and 0 <= x < width):
            raise ConfigurationError(
                f"The patch {z, y, x} does not lie on the grid {embedding.grid} of "
                f"{embedding.name}."
            )
    return [(z * height + y) * width + x for z, y, x in tokens]


@dataclass(frozen=True, eq=False)
class PatchReading:
    """What the similarity distribution of a patch looks like.

    Parameters
    ----------
    similarity : np.ndarray (tz, ty, tx)
        float32, -1 to 1.
    sharpe_ratio : float
        (peak - mean) / standard deviation of the similarity over the tissue; high where the patch
        belongs to something small and distinct.
    percentile : float
        Share of the patches of tissue, in percent, whose own Sharpe ratio is lower.
    histogram : (counts, edges)
        Of the similarity over the tissue.
    nearest : list of (token, similarity)
        The most similar patches of tissue, most similar first, without the positives.
    """

    similarity: np.ndarray
    sharpe_ratio: float
    percentile: float
    histogram: tuple[np.ndarray, np.ndarray]
    nearest: list[tuple[Token, float]]


def read_patch(
    embedding: Embedding,
    positive: Sequence[Token],
    negative: Sequence[Token] = (),
    *,
    neighbours: int = 10,
) -> PatchReading:
    """Describe how the similarity to some patches is distributed over the tissue.

    Parameters
    ----------
    embedding : Embedding
        Scan.
    positive, negative : sequence of (z, y, x)
        Tokens, as for :func:`query_of`.
    neighbours : int
        How many of the nearest patches to list.
    """
    similarity = similarity_map(embedding, positive, negative)
    inside = embedding.foreground
    values = similarity[inside]
    own = similarity.reshape(-1)[_flat(embedding, positive)]
    deviation = values.std() if len(values) > 1 else torch.tensor(0.0)
    peak = torch.maximum(values.max(), own.max())
    sharpe = float((peak - values.mean()) / deviation) if float(deviation) > 1e-6 else 0.0
    others = sharpe_map(embedding)[inside]
    return PatchReading(
        similarity=similarity.numpy(),
        sharpe_ratio=sharpe,
        percentile=100 * float((others < sharpe - 1e-6).float().mean()),
        histogram=_histogram(values.numpy()),
        nearest=_nearest(embedding, similarity, positive, neighbours),
    )


def _histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        high = low + 1e-3
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    return counts, edges


def _nearest(
    embedding: Embedding, similarity: Tensor, positive: Sequence[Token], count: int
) -> list[tuple[Token, float]]:
    candidates = torch.where(embedding.foreground, similarity, -torch.inf).reshape(-1)
    candidates[_flat(embedding, positive)] = -torch.inf
    values, places = candidates.topk(min(count, len(candidates)))
    found: list[tuple[Token, float]] = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        if value > -torch.inf:
            z, y, x = (int(index) for index in np.unravel_index(place, embedding.grid))
            found.append(((z, y, x), value))
    return found


def sharpe_map(embedding: Embedding) -> Tensor:
    """Sharpe ratio of every patch's similarity to the tissue; kept while the embedding lives.

    Parameters
    ----------
    embedding : Embedding
        Scan.

    Returns
    -------
    Tensor (tz, ty, tx)
        float32; for patches of tissue equal to `napari_s2dc.method.similarity.sharpe_ratio` of
        their row in the table of all cosines. 0 where all cosines are equal.

    Notes
    -----
    A patch's highest cosine is that to itself, 1. Mean and variance of its cosines follow from
    mean ``m`` and covariance ``S`` of the unit features: ``u·m`` and ``u·S·u``. So the table,
    whose size is the square of the number of tokens, is never made.
    """
    if embedding not in _sharpe_maps:
        unit = embedding.unit()
        tissue = unit[embedding.foreground.reshape(-1)]
        mean = tissue.mean(0)
        centred = tissue - mean
        covariance = centred.mT @ centred / max(len(tissue) - 1, 1)
        deviation = torch.linalg.vecdot(unit @ covariance, unit).clamp(min=0).sqrt()
        ratio = (1 - unit @ mean) / deviation
        # Padding has features of length 0 in some encoders; equal features leave no deviation.
        sound = (deviation > 1e-6) & (unit.square().sum(1) > 0.5)
        _sharpe_maps[embedding] = torch.where(sound, ratio, 0.0).reshape(embedding.grid)
    return _sharpe_maps[embedding]
