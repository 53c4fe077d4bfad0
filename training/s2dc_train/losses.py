"""The three S²DC losses as batched pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.method.similarity import sharpe_ratio
from napari_s2dc.method.transport import assignment

PROBABILITY_FLOOR = 1e-6


@dataclass(frozen=True)
class MatchLoss:
    """Scalar loss and its two terms: ``total = positive + negative``."""

    total: Tensor
    positive: Tensor
    negative: Tensor


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked entries of each problem; 0 for a problem with none."""
    count = mask.sum((-2, -1))
    return values.masked_fill(~mask, 0).sum((-2, -1)) / count.clamp(min=1)


def _pair_masks(
    true_pairs: Tensor, valid_rows: Tensor | None, valid_columns: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return true pairs, false pairs and the problems that hold any valid pair."""
    true = true_pairs.bool()
    rows = torch.ones_like(true[:, :, 0]) if valid_rows is None else valid_rows
    columns = torch.ones_like(true[:, 0]) if valid_columns is None else valid_columns
    considered = rows[:, :, None] & columns[:, None, :]
    used = rows.any(-1) & columns.any(-1)
    return true & considered, ~true & considered, used


def _over_problems(values: Tensor, used: Tensor) -> Tensor:
    return values.masked_fill(~used, 0).sum() / used.sum().clamp(min=1)


def match_loss(
    assignment: Tensor,
    true_pairs: Tensor,
    *,
    valid_query: Tensor | None = None,
    valid_key: Tensor | None = None,
) -> MatchLoss:
    """Negative log-likelihood of true pairs and of the absence of false ones.

    Parameters
    ----------
    assignment : Tensor (B, n, m)
        Assignment probabilities without dustbins; clamped to [1e-6, 1 - 1e-6].
    true_pairs : Tensor (B, n, m)
        Non-zero where tokens correspond.
    valid_query, valid_key : Tensor (B, n) and (B, m), optional
        Boolean; tokens that are not valid take part in no pair.

    Returns
    -------
    MatchLoss
        Mean over true pairs of ``-log P`` and over false pairs of ``-log(1 - P)``, each 0 when a
        problem has no such pair, averaged over problems.

    Notes
    -----
    Source: S²DC, the patch-to-patch loss of section 3.2.
    """
    true, false, used = _pair_masks(true_pairs, valid_query, valid_key)
    probability = assignment.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    positive = _over_problems(_mean_where(-probability.log(), true), used)
    negative = _over_problems(_mean_where(-torch.log1p(-probability), false), used)
    return MatchLoss(positive + negative, positive, negative)


def patch_to_patch(
    query: Tensor,
    key: Tensor,
    true_pairs: Tensor,
    *,
    temperature: float = 0.1,
    dustbin: float | Tensor = 1.0,
    iterations: int = 100,
    tolerance: float = 0.0,
    valid_query: Tensor | None = None,
    valid_key: Tensor | None = None,
) -> MatchLoss:
    """Discrepancy loss: optimal transport with a dustbin must find the true correspondences.

    Parameters
    ----------
    query, key : Tensor (B, n, C) and (B, m, C)
        L2-normalised token features of the two views, float32 or float64.
    true_pairs : Tensor (B, n, m)
        Non-zero where tokens correspond.
    temperature : float
        Divides the cosine similarities.
    dustbin : float or scalar Tensor
        Score of matching nothing; may be a learnable parameter.
    iterations, tolerance : int, float
        Passed to :func:`napari_s2dc.method.transport.assignment`.
    valid_query, valid_key : Tensor (B, n) and (B, m), optional
        Boolean; tokens that are not valid (padding) are left out of transport and loss.

    Returns
    -------
    MatchLoss
        Mean over problems.

    Notes
    -----
    Source: S²DC, section 3.2 (L_p2p).
    """
    plan = assignment(
        query @ key.mT / temperature,
        dustbin,
        iterations=iterations,
        tolerance=tolerance,
        valid_rows=valid_query,
        valid_columns=valid_key,
    )
    return match_loss(plan[:, :-1, :-1], true_pairs, valid_query=valid_query, valid_key=valid_key)


def _sharpe_weights(similarity: Tensor, valid: Tensor, dim: int) -> Tensor:
    """Softmax, over the tokens of one view, of their Sharpe ratios along `dim`."""
    ratio = sharpe_ratio(similarity, dim, valid)
    present = valid.any(dim)
    # The lowest finite number keeps a problem without any valid token free of NaN.
    return ratio.masked_fill(~present, torch.finfo(ratio.dtype).min).softmax(-1)


def patch_to_structure(
    query: Tensor,
    key: Tensor,
    true_pairs: Tensor,
    *,
    valid_query: Tensor | None = None,
    valid_key: Tensor | None = None,
) -> Tensor:
    """Consistency loss: each pair is pulled as strongly as its similarity distribution peaks.

    Parameters
    ----------
    query, key : Tensor (B, n, C) and (B, m, C)
        L2-normalised token features of the two views.
    true_pairs : Tensor (B, n, m)
        Non-zero where tokens correspond.
    valid_query, valid_key : Tensor (B, n) and (B, m), optional
        Boolean; tokens that are not valid belong to no distribution and no pair.

    Returns
    -------
    Tensor
        Scalar, mean over problems.

    Notes
    -----
    Source: S²DC, section 3.3 (L_p2s). The weights are differentiated through.
    """
    true, false, used = _pair_masks(true_pairs, valid_query, valid_key)
    considered = true | false
    similarity = (1 + query @ key.mT) / 2
    column_weight = _sharpe_weights(similarity, considered, -2)[:, None, :]
    row_weight = _sharpe_weights(similarity, considered, -1)[:, :, None]
    clamped = similarity.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    pull = (-clamped.log() * (column_weight + row_weight) / 2).masked_fill(~true, 0)
    push = _mean_where(-torch.log1p(-clamped), false)
    return _over_problems(pull.sum((-2, -1)) + push, used)


def global_contrast(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.2,
    normalize: bool = True,
    valid_negatives: Tensor | None = None,
) -> Tensor:
    """InfoNCE between whole crops.

    Parameters
    ----------
    query, positive : Tensor (B, C)
        Student feature of one crop per volume and teacher feature of its other view.
    negatives : Tensor (N, C) or (B, N, C)
        Teacher features of other crops, the same for all queries or one set for each.
    temperature : float
        Divides the similarities.
    normalize : bool
        Whether features are L2-normalised here.
    valid_negatives : Tensor (N,) or (B, N), optional
        Boolean; entries that are not valid never count.

    Returns
    -------
    Tensor
        Scalar cross-entropy of picking the positive, mean over queries.

    Notes
    -----
    Source: S²DC, section 3.4 (L_g); InfoNCE with a queue as in MoCo (He et al., CVPR 2020).
    """
    if normalize:
        query, positive, negatives = (
            F.normalize(features, dim=-1) for features in (query, positive, negatives)
        )
    alike = (query * positive).sum(-1, keepdim=True)
    unlike = (query[:, None] @ negatives.mT)[:, 0] if negatives.ndim == 3 else query @ negatives.mT
    if valid_negatives is not None:
        unlike = unlike.masked_fill(~valid_negatives, -torch.inf)
    logits = torch.cat([alike, unlike], dim=1) / temperature
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, target)
