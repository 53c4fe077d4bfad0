"""Class probabilities smoothed within regions of like intensity, and brought back to voxels."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.engine.quick_scan import Box, Sides, cells_of
from napari_s2dc.engine.random_walk import contrast_of, random_walk

__all__ = ["smooth", "to_voxels"]

_CERTAINTY = 0.1
_ITERATIONS = 40
_HALO = 16
"""Cells round a block that its answer may come from."""
_LEAST_SIDE = 32
_MOST_VALUES = 20_000_000
"""Of all classes in a block with its halo, which bounds the memory."""
_LIKENESS = 200.0


def smooth(prior: Tensor, image: Tensor) -> Steps[Tensor]:
    """Smooth probabilities of cells by random walks without seeds.

    Parameters
    ----------
    prior : Tensor (K, z, y, x)
        Probabilities.
    image : Tensor (z, y, x)
        Mean intensities.

    Yields
    ------
    Progress
        After every iteration in every block; a scan of few values is a single block.

    Returns
    -------
    Tensor (K, z, y, x)
        Of the type of `prior`.

    Notes
    -----
    Certainty, cells of two voxels: 0.1 raised the mean Dice of one labelled mouse brain from 0.62
    to 0.66 and of five hippocampi from 0.79 to 0.80 (0.76 with 0.01); cells of one voxel gave 0.63
    and 0.80.
    """
    side = round((_MOST_VALUES / len(prior)) ** (1 / 3)) - 2 * _HALO
    if prior.numel() <= _MOST_VALUES:
        side = max(image.shape)
    side = max(side, _LEAST_SIDE)
    starts = list(product(*(range(0, length, side) for length in image.shape)))
    smoothed = torch.empty_like(prior)
    contrast = contrast_of(image)
    for done, first in enumerate(starts, start=1):
        outer = [
            slice(max(0, begin - _HALO), min(length, begin + side + _HALO))
            for begin, length in zip(first, image.shape, strict=True)
        ]
        part = prior[:, outer[0], outer[1], outer[2]].float()
        certainty = torch.full(part.shape[1:], _CERTAINTY)
        walk = random_walk(
            part,
            certainty,
            image[outer[0], outer[1], outer[2]],
            iterations=_ITERATIONS,
            contrast=contrast,
        )
        found = yield from _counted(walk, done - 1, len(starts))
        z, y, x = (slice(begin, begin + side) for begin in first)
        zi, yi, xi = (
            slice(begin - edge.start, begin - edge.start + side)
            for begin, edge in zip(first, outer, strict=True)
        )
        smoothed[:, z, y, x] = found[:, zi, yi, xi]
    return smoothed


def _counted(walk: Steps[Tensor], done: int, blocks: int) -> Steps[Tensor]:
    """Count the iterations of a block among those of all."""
    while True:
        try:
            progress = next(walk)
        except StopIteration as end:
            found: Tensor = end.value
            return found
        total = progress.total
        yield Progress(done * total + progress.done, blocks * total, progress.what)


def to_voxels(values: Tensor, image: Tensor, voxels: Tensor, box: Box, sides: Sides) -> Tensor:
    """Interpolate values of cells to a box of voxels, from cells of like intensity above all.

    Parameters
    ----------
    values : Tensor (K, z, y, x)
        Of all cells.
    image : Tensor (z, y, x)
        Mean intensities of all cells, 0 to 1.
    voxels : Tensor (Z, Y, X)
        Intensities of the box.
    box : Box
        Where it lies, in voxels.
    sides : tuple of int
        Of a cell in voxels.

    Returns
    -------
    Tensor (K, Z, Y, X)
        float32.

    Notes
    -----
    Weights of linear interpolation times ``exp(-200 d²)`` of the difference in intensity: joint
    bilateral upsampling (Kopf, Cohen, Lischinski, Uyttendaele, SIGGRAPH 2007). The mean Dice of
    organs after strokes on a CT was 0.01 higher than with linear interpolation.
    """
    around = [
        slice(max(0, part.start - 1), part.stop + 1) for part in cells_of(box, sides)
    ]  # all that is needed, which is quicker to pick from
    image = image[around[0], around[1], around[2]]
    values = values[:, around[0], around[1], around[2]]
    ends = [
        _neighbours(part, side, cells.start, length)
        for part, side, cells, length in zip(box, sides, around, image.shape, strict=True)
    ]
    total = torch.zeros(voxels.shape)
    found = torch.zeros((len(values), *voxels.shape))
    for (z, a), (y, b), (x, c) in product(*ends):
        share = a[:, None, None] * b[:, None] * c
        apart = _picked(image, z, y, x) - voxels
        weight = share * torch.exp(-_LIKENESS * apart**2).clamp(min=1e-6)
        found += _picked(values, z, y, x).float() * weight
        total += weight
    return found / total


def _neighbours(part: slice, side: int, first: int, cells: int) -> list[tuple[Tensor, Tensor]]:
    """Own cell and the nearest other one of voxels along an axis, each with its linear weight.

    Cells are counted from the `first` one on.
    """
    voxels = torch.arange(part.start, part.stop)
    own = voxels // side - first
    if side == 1:
        return [(own, torch.ones(len(own)))]
    offset = (voxels % side - (side - 1) / 2) / side
    other = (own + offset.sign().long()).clamp(0, cells - 1)
    return [(own, 1 - offset.abs()), (other, offset.abs())]


def _picked(values: Tensor, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    for axis, places in zip((-3, -2, -1), (z, y, x), strict=True):
        values = values.index_select(axis, places)
    return values
