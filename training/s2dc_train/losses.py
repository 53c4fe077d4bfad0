"""The three S²DC losses as batched pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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


@dataclass(frozen=True)
class _Pairs:
    """Which pairs of tokens are true, which false, and how many each problem has.

    Parameters
    ----------
    true_pairs : Tensor (B, n, m)
        Non-zero where tokens correspond.
    valid_rows, valid_columns : Tensor (B, n) and (B, m), optional
        Boolean; pairs of other tokens are neither true nor false.
    """

    true_pairs: Tensor
    valid_rows: Tensor | None
    valid_columns: Tensor | None

    @cached_property
    def considered(self) -> Tensor | None:
        """Pairs of valid tokens (B, n, m); None when all are."""
        masks = []
        if self.valid_rows is not None:
            masks.append(self.valid_rows[:, :, None].expand_as(self.true_pairs))
        if self.valid_columns is not None:
            masks.append(self.valid_columns[:, None, :].expand_as(self.true_pairs))
        return torch.stack(masks).all(0) if masks else None

    @cached_property
    def true(self) -> Tensor:
        """True pairs (B, n, m)."""
        true = self.true_pairs.bool()
        return true if self.considered is None else true & self.considered

    @cached_property
    def where(self) -> tuple[Tensor, Tensor, Tensor]:
        """Problem, row and column of every true pair."""
        problem, row, column = self.true.nonzero().unbind(1)
        return problem, row, column

    @cached_property
    def false(self) -> Tensor:
        """False pairs (B, n, m)."""
        return ~self.true if self.considered is None else self.considered & ~self.true

    def mean_true(self, values: Tensor) -> Tensor:
        """Mean over true pairs of ``values`` (pairs,), averaged over problems; 0 without any."""
        count = self.true.sum((1, 2))
        return (values / count[self.where[0]]).sum() / self.problems

    def mean_false(self, values: Tensor) -> Tensor:
        """Mean over false pairs of `values` (B, n, m), averaged over problems."""
        false = self.false.to(values.dtype)
        return ((values * false).sum((1, 2)) / false.sum((1, 2)).clamp(min=1)).sum() / self.problems

    @cached_property
    def problems(self) -> Tensor:
        """How many problems hold any valid pair; at least 1."""
        if self.considered is None:
            return torch.tensor(len(self.true_pairs), device=self.true_pairs.device)
        return self.considered.flatten(1).any(1).sum().clamp(min=1)


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
    return _match_loss(assignment, _Pairs(true_pairs, valid_query, valid_key))


def _match_loss(probability: Tensor, pairs: _Pairs) -> MatchLoss:
    probability = probability.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    positive = pairs.mean_true(-probability[pairs.where].log())
    negative = pairs.mean_false(-torch.log1p(-probability))
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
    pairs = _Pairs(true_pairs, valid_query, valid_key)
    return _discrepancy(query @ key.mT, pairs, temperature, dustbin, iterations, tolerance)


def _discrepancy(
    cosine: Tensor,
    pairs: _Pairs,
    temperature: float,
    dustbin: float | Tensor,
    iterations: int,
    tolerance: float,
) -> MatchLoss:
    plan = assignment(
        cosine / temperature,
        dustbin,
        iterations=iterations,
        tolerance=tolerance,
        valid_rows=pairs.valid_rows,
        valid_columns=pairs.valid_columns,
    )
    return _match_loss(plan[:, :-1, :-1], pairs)


def _sharpe_weights(similarity: Tensor, valid: Tensor | None, dim: int) -> Tensor:
    """Softmax, over the tokens of one view, of their Sharpe ratios along `dim`."""
    ratio = sharpe_ratio(similarity, dim, valid)
    if valid is not None:
        # The lowest finite number keeps a problem without any valid token free of NaN.
        ratio = ratio.masked_fill(~valid.any(dim), torch.finfo(ratio.dtype).min)
    return ratio.softmax(-1)


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
    return _consistency(query @ key.mT, _Pairs(true_pairs, valid_query, valid_key))


def _consistency(cosine: Tensor, pairs: _Pairs) -> Tensor:
    similarity = (1 + cosine) / 2
    column_weight = _sharpe_weights(similarity, pairs.considered, -2)
    row_weight = _sharpe_weights(similarity, pairs.considered, -1)
    clamped = similarity.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    problem, row, column = pairs.where
    weight = column_weight[problem, column] + row_weight[problem, row]
    pull = (-clamped[pairs.where].log() * weight / 2).sum() / pairs.problems
    return pull + pairs.mean_false(-torch.log1p(-clamped))


def patch_losses(
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
) -> tuple[MatchLoss, Tensor]:
    """Return :func:`patch_to_patch` and :func:`patch_to_structure` of the same tokens.

    The similarities and the bookkeeping of pairs are worked out once for both; parameters are
    those of :func:`patch_to_patch`.
    """
    pairs = _Pairs(true_pairs, valid_query, valid_key)
    cosine = query @ key.mT
    match = _discrepancy(cosine, pairs, temperature, dustbin, iterations, tolerance)
    return match, _consistency(cosine, pairs)


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
