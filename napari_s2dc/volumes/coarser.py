"""Coarser grids of large scans: an encoder sees farther on them, and everything takes less."""

from __future__ import annotations

import math
from collections.abc import Sequence

from napari_s2dc.volumes.preprocess import resample
from napari_s2dc.volumes.volume import Volume

__all__ = ["MOST_VOXELS", "coarser_grids", "first_small", "grid_to_match", "on_grid", "side_mm"]

Grid = tuple[int, int, int]

MOST_VOXELS = 2**24
"""Of a grid that is matched by default, 256³: see the table in docs/explanation/matching.md."""
_WORTH_IT = 2**22
"""Voxels of a scan from which on coarser grids are offered."""
_FEWEST = 2**18
_SHORTEST = 32
"""Voxels along an axis from which on it stays as it is: an encoder's smallest window."""
_TIMES = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Voxels of a coarser grid are as wide as so many of the scan's shortest sides."""


def coarser_grids(shape: Sequence[int], spacing_mm: Sequence[float]) -> list[Grid]:
    """List coarser grids of a scan whose voxels are as near to cubes as its own allow.

    Parameters
    ----------
    shape : sequence of int
        Voxels (z, y, x).
    spacing_mm : sequence of float
        Their sides along the same axes.

    Returns
    -------
    list of (z, y, x)
        The finest first; empty for scans of less than four million voxels.
    """
    grids: list[Grid] = []
    if math.prod(shape) < _WORTH_IT:
        return grids
    for times in _TIMES:
        side = times * min(spacing_mm)
        z, y, x = (
            max(min(length, _SHORTEST), round(length * spacing / max(spacing, side)))
            for length, spacing in zip(shape, spacing_mm, strict=True)
        )
        if math.prod((z, y, x)) < _FEWEST:
            break
        if (z, y, x) not in (tuple(shape), *grids):
            grids.append((z, y, x))
    return grids


def grid_to_match(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    like_mm: float | None = None,
    most: int | None = None,
) -> Grid:
    """Choose a grid of not too many voxels, or the coarsest that is offered.

    Scans of less than four million voxels keep their own.

    Parameters
    ----------
    shape, spacing_mm
        As for :func:`coarser_grids`.
    like_mm : float, optional
        Side of the other scan's voxels, see :func:`side_mm`: the grid with the nearest to that is
        chosen, since a patch is found more surely among patches of its size. Left out, the finest.
    most : int, optional
        Voxels of the grid; :data:`MOST_VOXELS` when left out.
    """
    z, y, x = shape
    grids = [(z, y, x), *coarser_grids(shape, spacing_mm)]
    few = grids[first_small(grids, most) :]
    if like_mm is None:
        return few[0]
    whole = math.prod(shape) * side_mm(spacing_mm) ** 3

    def apart(grid: Grid) -> float:
        return abs(math.log((whole / math.prod(grid)) ** (1 / 3) / like_mm))

    return min(few, key=apart)


def first_small(grids: Sequence[Sequence[int]], most: int | None = None) -> int:
    """Say which of some grids, the finest first, is the first of not too many voxels.

    Parameters
    ----------
    grids : sequence of (z, y, x)
        A scan's own and coarser ones.
    most : int, optional
        Voxels of the grid; :data:`MOST_VOXELS` when left out.

    Returns
    -------
    int
        Its place among them, that of the last where all have more.
    """
    most = MOST_VOXELS if most is None else most
    small = (place for place, grid in enumerate(grids) if math.prod(grid) <= most)
    return next(small, len(grids) - 1)


def side_mm(spacing_mm: Sequence[float]) -> float:
    """Side in mm of a cube that is as large as a voxel."""
    return math.prod(spacing_mm) ** (1 / 3)


def on_grid(volume: Volume, grid: Grid) -> Volume:
    """Bring a scan to a coarser grid over the same field of view.

    Parameters
    ----------
    volume : Volume
        Scan.
    grid : tuple of int
        Voxels (z, y, x); voxel ``i`` of an axis covers voxels ``[i * f, (i + 1) * f)`` of the scan,
        ``f`` being how many times as many that has.

    Returns
    -------
    Volume
        The same one where it has that grid already; otherwise as
        :func:`napari_s2dc.volumes.preprocess.resample` gives it.
    """
    if volume.shape == grid:
        return volume
    z, y, x = (
        spacing * length / side
        for spacing, length, side in zip(volume.spacing_mm, volume.shape, grid, strict=True)
    )
    return resample(volume, (z, y, x))
