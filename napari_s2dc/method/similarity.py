"""Cosine similarity of patches, how sharply it peaks, and how neighbourhoods agree across views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_similarity(query: Tensor, key: Tensor) -> Tensor:
    """Cosine similarity of every query with every key.

    Parameters
    ----------
    query, key : Tensor (..., n, C) and (..., m, C)
        Features of any length.

    Returns
    -------
    Tensor (..., n, m)
        Values from -1 to 1.
    """
    return F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT


def sharpe_ratio(similarity: Tensor, dim: int, valid: Tensor | None = None) -> Tensor:
    """How sharply a similarity distribution peaks: (max - mean) / standard deviation.

    Parameters
    ----------
    similarity : Tensor
        Similarities.
    dim : int
        The dimension along which the distribution lies.
    valid : Tensor, optional
        Boolean, broadcastable to `similarity`: which entries belong to the distribution.

    Returns
    -------
    Tensor
        `similarity` without `dim`; 0 where the standard deviation (unbiased) is 0 or fewer than
        two entries are valid.

    Notes
    -----
    Source: S²DC, section 3.3. A small distinct structure gives a high ratio, a large homogeneous
    one a low ratio.
    """
    if valid is None:
        count = torch.tensor(similarity.shape[dim], device=similarity.device)
        centred = similarity - similarity.mean(dim, keepdim=True)
    else:
        mask = valid.expand_as(similarity)
        inside = mask.to(similarity.dtype)
        count = inside.sum(dim)
        # Filled, not multiplied: what is left out may be infinite.
        similarity = similarity.masked_fill(~mask, 0)
        total = similarity.sum(dim, keepdim=True)
        centred = (similarity - total / count.clamp(min=1).unsqueeze(dim)) * inside
    # The peak is never below the mean, so the zeros of entries left out cannot be mistaken for it.
    highest = centred.amax(dim)
    squares = torch.linalg.vecdot(centred, centred, dim=dim)
    # Equal values differ from their mean by its rounding.
    rounding = 4 * torch.finfo(similarity.dtype).eps * similarity.detach().abs().amax(dim)
    flat = (squares <= count * rounding.square()) | (count < 2)
    # The square root has no gradient at 0, so flat distributions take a harmless 1 instead.
    variance = torch.where(flat, torch.ones_like(squares), squares) / (count - 1).clamp(min=1)
    return torch.where(flat, torch.zeros_like(highest), highest / variance.sqrt())


def neighbourhood_consistency(
    first: Tensor,
    second: Tensor,
    partner: Tensor,
    positions: Tensor,
    *,
    radius: float = 2.0,
    minimum_neighbours: int = 4,
) -> Tensor:
    """How well the similarity pattern round each patch agrees between two views.

    For patch ``i`` with true partner ``j``, the cosines of ``i`` with its spatial neighbours in
    view 1 are compared with those of ``j`` with the neighbours' partners in view 2: the cosine
    similarity of the two vectors after centring.

    Parameters
    ----------
    first, second : Tensor (n, C) and (m, C)
        Features of the two views.
    partner : Tensor (n,)
        Index into `second` of each patch's true partner, -1 where unknown.
    positions : Tensor (n, 3)
        Positions of the patches of view 1, in tokens.
    radius : float
        Neighbours are at most this many tokens away (the patch itself excluded).
    minimum_neighbours : int
        With fewer neighbours whose partners are known the value is not a number.

    Returns
    -------
    Tensor (n,)
        From -1 to 1, 1 where the neighbourhood looks the same from both views; NaN where there is
        no partner or too few neighbours.

    Notes
    -----
    Defined by this project; memory grows with n times the neighbours in the radius.
    """
    known = torch.nonzero(partner >= 0)[:, 0]
    reach = int(radius)
    steps = torch.arange(-reach, reach + 1, device=first.device)
    offsets = torch.cartesian_prod(steps, steps, steps)
    length = offsets.square().sum(1)
    offsets = offsets[(length > 0) & (length <= radius**2)]

    # A dense lookup table from position to patch finds neighbours without an n x n distance table.
    cell = positions.round().long()
    cell = cell - cell.amin(0) + reach
    size = cell.amax(0) + reach + 1
    table = torch.full((int(size.prod()),), -1, dtype=torch.long, device=first.device)
    strides = torch.stack([size[1] * size[2], size[2], torch.ones_like(size[2])])
    table[(cell[known] * strides).sum(1)] = known
    neighbours = table[((cell[known, None] + offsets) * strides).sum(-1)]
    present = neighbours >= 0

    one = F.normalize(first, dim=-1)
    two = F.normalize(second, dim=-1)
    safe = neighbours.clamp(min=0)
    here = torch.einsum("nc,nkc->nk", one[known], one[safe])
    there = torch.einsum("nc,nkc->nk", two[partner[known]], two[partner[safe].clamp(min=0)])
    count = present.sum(1)

    def centred(values: Tensor) -> Tensor:
        mean = (values * present).sum(1) / count.clamp(min=1)
        return (values - mean[:, None]) * present

    agreement = F.cosine_similarity(centred(here), centred(there), dim=1)
    result = torch.full((len(first),), torch.nan, dtype=first.dtype, device=first.device)
    result[known] = torch.where(count >= minimum_neighbours, agreement, torch.nan)
    return result
