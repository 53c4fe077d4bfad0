"""The losses of the plain step: one problem, and one Sinkhorn iteration, after the other."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CLAMP = 1e-6


def sinkhorn(scores: Tensor, dustbin: float, iterations: int) -> Tensor:
    """Run all log-domain iterations of one problem; returns its (n + 1, m + 1) assignment."""
    n, m = scores.shape
    extended = scores.new_full((n + 1, m + 1), dustbin)
    extended[:n, :m] = scores
    log_rows = scores.new_full((n + 1,), -math.log(n + m))
    log_columns = scores.new_full((m + 1,), -math.log(n + m))
    log_rows[n] += math.log(m)
    log_columns[m] += math.log(n)
    u, v = torch.zeros_like(log_rows), torch.zeros_like(log_columns)
    for _ in range(iterations):
        u = log_rows - torch.logsumexp(extended + v[None, :], dim=1)
        v = log_columns - torch.logsumexp(extended + u[:, None], dim=0)
    return torch.exp(extended + u[:, None] + v[None, :]) * (n + m)


def patch_to_patch_loop(
    query: Tensor, key: Tensor, pairs: Tensor, temperature: float, dustbin: float, iterations: int
) -> Tensor:
    """Discrepancy loss, one problem after the other."""
    total = query.new_zeros(())
    for q, k, true in zip(query, key, pairs, strict=True):
        plan = sinkhorn(q @ k.T / temperature, dustbin, iterations)[:-1, :-1]
        plan = plan.clamp(CLAMP, 1 - CLAMP)
        if true.any():
            total = total - torch.log(plan[true]).mean()
        if (~true).any():
            total = total - torch.log(1 - plan[~true]).mean()
    return total / len(query)


def _sharpe(similarity: Tensor, dim: int) -> Tensor:
    spread = similarity.std(dim)
    ratio = (similarity.amax(dim) - similarity.mean(dim)) / spread
    return torch.where(spread > 0, ratio, torch.zeros_like(ratio))


def patch_to_structure_loop(query: Tensor, key: Tensor, pairs: Tensor) -> Tensor:
    """Consistency loss, one problem after the other."""
    total = query.new_zeros(())
    for q, k, true in zip(query, key, pairs, strict=True):
        similarity = (1 + q @ k.T) / 2
        column_weight = torch.softmax(_sharpe(similarity, 0), 0).expand_as(similarity)
        row_weight = torch.softmax(_sharpe(similarity, 1), 0)[:, None].expand_as(similarity)
        clamped = similarity.clamp(CLAMP, 1 - CLAMP)
        pulled = -torch.log(clamped[true])
        total = total + (pulled * column_weight[true]).sum() / 2
        total = total + (pulled * row_weight[true]).sum() / 2
        if (~true).any():
            total = total - torch.log(1 - clamped[~true]).mean()
    return total / len(query)


def global_contrast_loop(
    query: Tensor, positive: Tensor, negatives: list[Tensor], temperature: float
) -> Tensor:
    """InfoNCE, one query after the other; each has its own (N, C) negatives."""
    total = query.new_zeros(())
    for q, p, others in zip(query, positive, negatives, strict=True):
        logits = torch.cat([(q * p).sum()[None], others @ q]) / temperature
        total = total + F.cross_entropy(logits[None], logits.new_zeros(1, dtype=torch.long))
    return total / len(query)
