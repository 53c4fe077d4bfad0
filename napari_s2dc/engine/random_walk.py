"""Random walks on a grid of voxels: class probabilities that change at edges of the image only."""

from __future__ import annotations

import torch
from torch import Tensor

from napari_s2dc.engine.progress import Progress, Steps

__all__ = ["contrast_of", "random_walk"]

_SHARPNESS = 25.0
"""How much less a walker crosses a mean difference of intensity than none: exp of minus this."""
_LEAST_WEIGHT = 1e-4
_TINY = 1e-20


def contrast_of(image: Tensor) -> float:
    """Mean squared difference between neighbours of an image (z, y, x)."""
    squares = [torch.diff(image, dim=axis) ** 2 for axis in range(3)]
    number = sum(square.numel() for square in squares)
    return sum(float(square.sum()) for square in squares) / max(1, number)


def random_walk(
    prior: Tensor,
    certainty: Tensor,
    image: Tensor,
    *,
    iterations: int,
    contrast: float | None = None,
) -> Steps[Tensor]:
    """Spread class probabilities along regions of like intensity.

    A walker starts at a voxel, steps to neighbours, rarely over an edge of the image, and stops
    with a chance that grows with the certainty of where it is; what it finds there is the answer.

    Parameters
    ----------
    prior : Tensor (K, z, y, x)
        Probabilities of the classes, float32.
    certainty : Tensor (z, y, x)
        How much the prior of a voxel holds against its neighbours', above 0. About 1 stops most
        walkers in place; 0.01 lets the answer come from some ten voxels away within a region.
    image : Tensor (z, y, x)
        Intensities in any unit.
    iterations : int
        Of conjugate gradients; what is known goes one voxel farther with each.
    contrast : float, optional
        :func:`contrast_of` the whole image, where `image` is a part of it.

    Yields
    ------
    Progress
        After every iteration.

    Returns
    -------
    Tensor (K, z, y, x)
        Probabilities.

    Notes
    -----
    The solution ``x`` of ``(L + C) x = C p`` with the Laplacian ``L`` of the edge weights
    ``exp(-25 d² / mean(d²))``, ``d`` being the difference of intensity between neighbours: random
    walks with prior models (Grady, "Multilabel random walker image segmentation using prior
    models", CVPR 2005), whose seeds are priors with a large certainty. scikit-image's
    ``random_walker`` knows seeds but no priors. All classes are solved together by conjugate
    gradients with the diagonal as preconditioner.
    """
    weights = _edge_weights(image, contrast_of(image) if contrast is None else contrast)
    diagonal = certainty + _degree(weights)
    found = prior.clone()
    residual = -_laplacian(found, weights)
    step = residual / diagonal
    product = _dot(residual, step)
    for done in range(1, iterations + 1):
        change = _laplacian(step, weights) + certainty * step
        length = product / _dot(step, change).clamp(min=_TINY)
        found += length * step
        residual -= length * change
        scaled = residual / diagonal
        after = _dot(residual, scaled)
        step = scaled + after / product.clamp(min=_TINY) * step
        product = after
        yield Progress(done, iterations, "iterations")
    found = found.clamp(min=0)
    return found / found.sum(0).clamp(min=_TINY)


def _edge_weights(image: Tensor, contrast: float) -> list[Tensor]:
    """Weights between neighbours along each axis."""
    factor = -_SHARPNESS / max(contrast, _TINY)
    return [
        torch.exp(factor * torch.diff(image, dim=axis) ** 2) + _LEAST_WEIGHT for axis in range(3)
    ]


def _degree(weights: list[Tensor]) -> Tensor:
    """Sum of the weights round each voxel."""
    shape = [weight.shape[axis] + 1 for axis, weight in enumerate(weights)]
    total = torch.zeros(shape)
    for axis, weight in enumerate(weights):
        total.narrow(axis, 0, weight.shape[axis]).add_(weight)
        total.narrow(axis, 1, weight.shape[axis]).add_(weight)
    return total


def _laplacian(values: Tensor, weights: list[Tensor]) -> Tensor:
    """Apply the Laplacian to values (K, z, y, x)."""
    result = torch.zeros_like(values)
    for axis, weight in enumerate(weights, start=1):
        flow = torch.diff(values, dim=axis).mul_(weight)
        side = flow.shape[axis]
        result.narrow(axis, 0, side).sub_(flow)
        result.narrow(axis, 1, side).add_(flow)
    return result


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Inner product of every class, (K, 1, 1, 1)."""
    return torch.einsum("kzyx,kzyx->k", one, other).reshape(-1, 1, 1, 1)
