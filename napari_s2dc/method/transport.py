"""Entropic optimal transport with a dustbin: Sinkhorn iterations and their exact gradient.

The iterations are those of POT's batched log-domain solver, done as matrix-vector products on the
exponentiated scores. Their reverse needs the scaling vectors and no matrix of each iteration, so
that the gradient is that of unrolled iterations at little memory. POT's solver takes over where
scores spread too far for exponentials, and is the reference in the tests. Measured, 6 problems of
144 x 144 at temperature 0.1: see ``docs/benchmarks.md``. (In POT 0.9.7 the cheaper gradients cannot
be used: ``last_step`` is wrong and ``envelope`` gives none to the plan.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from napari_s2dc.errors import ConfigurationError

MASKED_SCORE = -1e4
"""Score of a pair that cannot be: its kernel value is 0 in float32 and float64."""


LARGEST_SPREAD = {torch.float32: 60.0, torch.float64: 500.0}
"""Largest difference of scores whose exponentials, and products of them, stay in range."""

_CHECK_EVERY = 10


def _pot_solver() -> Callable[..., Any]:
    # POT imports every array library it finds, which takes seconds; we use only torch.
    for backend in ("JAX", "CUPY", "TENSORFLOW"):
        os.environ.setdefault(f"POT_BACKEND_DISABLE_{backend}", "1")
    from ot.batch import solve_batch

    return solve_batch


def _times(vector: Tensor, matrix: Tensor) -> Tensor:
    # The vector goes first: torch's batched product of a matrix with a column takes several times
    # as long on the CPU.
    return torch.bmm(vector[:, None], matrix)[:, 0]


class _Sinkhorn(torch.autograd.Function):
    """Plan (B, n, m) of scores with marginals a (n,) and b (m,)."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, a: Tensor, b: Tensor, iterations: int, tolerance: float
    ) -> Tensor:
        # Any factor of a row is taken up by its scaling, so the largest entry can be 1.
        kernel = torch.exp(scores - scores.amax(2, keepdim=True))
        transposed = kernel.mT.contiguous()
        column = torch.ones_like(kernel[:, 0])
        rows, columns = [], [column]
        product = _times(column, transposed)
        for iteration in range(iterations):
            row = a / product
            column = b / _times(row, kernel)
            rows.append(row)
            columns.append(column)
            product = _times(column, transposed)
            if tolerance and iteration % _CHECK_EVERY == 0:
                error = torch.linalg.vector_norm(row * product - a, dim=1).amax()
                if float(error) < tolerance:
                    break
        ctx.save_for_backward(kernel, transposed, a, b, torch.stack(rows), torch.stack(columns))
        return row[:, :, None] * kernel * column[:, None, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        kernel, transposed, a, b, rows, columns = ctx.saved_tensors
        weighted = gradient * kernel
        by_row = (weighted * columns[-1][:, None, :]).sum(2)
        by_column = _times(rows[-1], weighted)
        by_products, by_sums = [], []
        for iteration in range(len(rows) - 1, -1, -1):
            row, column = rows[iteration], columns[iteration + 1]
            # In this order, because the square of a scaling may be out of range.
            by_sum = -(by_column * column) * (column / b)
            by_row = by_row + _times(by_sum, transposed)
            by_product = -(by_row * row) * (row / a)
            by_column = _times(by_product, kernel)
            by_row = torch.zeros_like(by_row)
            by_sums.append(by_sum)
            by_products.append(by_product)
        # Every iteration adds two outer products to the gradient of the kernel: one matrix product.
        left = torch.cat([torch.stack(by_products[::-1]), rows]).permute(1, 2, 0)
        right = torch.cat([columns[:-1], torch.stack(by_sums[::-1])]).permute(1, 0, 2)
        by_kernel = gradient * rows[-1][:, :, None] * columns[-1][:, None, :] + left @ right
        return by_kernel * kernel, None, None, None, None


def _plan(
    scores: Tensor, a: Tensor, b: Tensor, iterations: int, tolerance: float, spread: float
) -> Tensor:
    if spread <= LARGEST_SPREAD[scores.dtype]:
        return _Sinkhorn.apply(scores, a, b, iterations, tolerance)
    if spread <= LARGEST_SPREAD[torch.float64]:
        wide = _Sinkhorn.apply(scores.double(), a.double(), b.double(), iterations, tolerance)
        return wide.to(scores.dtype)
    result = _pot_solver()(
        -scores,
        reg=1.0,
        a=a.expand(len(scores), -1),
        b=b.expand(len(scores), -1),
        max_iter=iterations,
        tol=tolerance,
        method="log_sinkhorn",
        grad="autodiff" if torch.is_grad_enabled() else "detach",
    )
    return result.plan


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

    Raises
    ------
    ConfigurationError
        No iteration is asked for, or the scores are neither float32 nor float64.

    Notes
    -----
    Source: S²DC, section 3.2 (dustbin as in SuperGlue, Sarlin et al., CVPR 2020); equal
    to ``ot.batch.solve_batch`` with ``reg=1``, cost ``-scores`` and ``grad="autodiff"``.
    """
    if iterations < 1:
        raise ConfigurationError(f"Transport needs at least one iteration, not {iterations}.")
    if scores.dtype not in LARGEST_SPREAD:
        raise ConfigurationError(f"Transport needs float32 or float64 scores, not {scores.dtype}.")
    batch, n, m = scores.shape
    bin_score = torch.as_tensor(dustbin, dtype=scores.dtype, device=scores.device)
    with torch.no_grad():
        # Before masking: pairs that cannot be have no part in the range of exponentials.
        low, high = torch.aminmax(torch.cat([scores.flatten(), bin_score.flatten()]))
        spread = float(high - low)
    if valid_rows is not None:
        scores = scores.masked_fill(~valid_rows[:, :, None], MASKED_SCORE)
    if valid_columns is not None:
        scores = scores.masked_fill(~valid_columns[:, None, :], MASKED_SCORE)
    extended = torch.cat([scores, bin_score.expand(batch, n, 1)], dim=2)
    extended = torch.cat([extended, bin_score.expand(batch, 1, m + 1)], dim=1)
    a = scores.new_ones(n + 1)
    a[n] = m
    b = scores.new_ones(m + 1)
    b[m] = n
    plan = _plan(extended, a / (n + m), b / (n + m), iterations, tolerance, spread)
    return plan * (n + m)
