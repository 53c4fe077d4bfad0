"""Entropic optimal transport with a dustbin, on POT's batched log-domain Sinkhorn solver.

Gradients are unrolled (``grad="autodiff"``): in POT 0.9.7 ``last_step`` gives a wrong gradient and
``envelope`` none to the plan.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

MASKED_SCORE = -1e4
"""Score of a pair that cannot be: its kernel value is 0 in float32 and float64."""


def _solver() -> Callable:
    # POT imports every array library it finds, which takes seconds; we use only torch.
    for backend in ("JAX", "CUPY", "TENSORFLOW"):
        os.environ.setdefault(f"POT_BACKEND_DISABLE_{backend}", "1")
    from ot.batch import solve_batch

    return solve_batch


def assignment(
    scores: Tensor,
    dustbin: float | Tensor,
    *,
    iterations: int = 100,
    tolerance: float = 0.0,
    valid_rows: Tensor | None = None,
    valid_columns: Tensor | None = None,
) -> Tensor:
    """Transport plan between two token sets with a dustbin, scaled to assignment probabilities.

    Parameters
    ----------
    scores : Tensor (B, n, m)
        Similarity over temperature; higher is better. float32 or float64.
    dustbin : float or scalar Tensor
        Score of matching nothing, appended as the last row and column; may require a gradient.
    iterations : int
        Largest number of Sinkhorn iterations.
    tolerance : float
        Stop when the row marginals of the plan (which sums to 1) are this close for the whole
        batch; 0 runs all iterations.
    valid_rows, valid_columns : Tensor (B, n) and (B, m), optional
        Boolean; a token that is not valid goes to the dustbin whole, which leaves the assignment
        of the others exactly as if it were not there.

    Returns
    -------
    Tensor (B, n + 1, m + 1)
        ``(n + m) · T`` with the dustbin last. Each row and column of a token sums to 1 at
        convergence, the dustbin row to m and the dustbin column to n.

    Notes
    -----
    Source: S²DC, equations of section 3.2 (dustbin as in SuperGlue, Sarlin et al., CVPR 2020);
    solver: ``ot.batch.solve_batch`` with ``reg=1`` and cost ``-scores``.
    """
    batch, n, m = scores.shape
    if valid_rows is not None:
        scores = scores.masked_fill(~valid_rows[:, :, None], MASKED_SCORE)
    if valid_columns is not None:
        scores = scores.masked_fill(~valid_columns[:, None, :], MASKED_SCORE)
    bin_score = torch.as_tensor(dustbin, dtype=scores.dtype, device=scores.device)
    extended = torch.cat([scores, bin_score.expand(batch, n, 1)], dim=2)
    extended = torch.cat([extended, bin_score.expand(batch, 1, m + 1)], dim=1)
    rows = scores.new_ones(batch, n + 1)
    rows[:, n] = m
    columns = scores.new_ones(batch, m + 1)
    columns[:, m] = n
    result = _solver()(
        -extended,
        reg=1.0,
        a=rows / (n + m),
        b=columns / (n + m),
        max_iter=iterations,
        tol=tolerance,
        method="log_sinkhorn",
        grad="autodiff" if torch.is_grad_enabled() else "detach",
    )
    return result.plan * (n + m)
