"""What the head of Quick sees of a voxel: intensities round it, its place, the encoder's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.quick_scan import (
    BLOCK_VOX,
    Box,
    Cells,
    QuickScan,
    intensity_channels,
    middles_of,
)

__all__ = ["Projection", "VoxelFeatures", "features_of_voxel", "project"]

_PLACE_WEIGHT = 6.0
_FARTHEST = 4.0
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True, eq=False)
class Projection:
    """Few principal components of the tokens of a stage.

    Parameters
    ----------
    mean : Tensor (C,)
        Of the tokens of tissue.
    basis : Tensor (C, components)
        Directions, scaled so that the first component has variance 1.
    """

    mean: Tensor
    basis: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Project (C, tz, ty, tx) to (components, tz, ty, tx), float32.

        Tokens of background that were not encoded count as mean tokens. Others that are far from
        all tissue come nearer: 4 standard deviations are the most.
        """
        flat = features.reshape(len(features), -1).float()
        components = self.basis.mT @ (flat - self.mean[:, None]) * (flat != 0).any(0)
        return components.clamp(-_FARTHEST, _FARTHEST).reshape(-1, *features.shape[1:])


def project(embeddings: Sequence[Embedding], components: int) -> Projection:
    """Find the principal components of tokens of tissue.

    Parameters
    ----------
    embeddings : sequence of Embedding
        Of several scans at one stage.
    components : int
        Most that are kept; fewer where the stage has fewer channels.
    """
    tokens = torch.cat([one.features[:, one.foreground].float() for one in embeddings], dim=1)
    mean = tokens.mean(1)
    covariance = torch.cov(tokens, correction=0)
    variances, directions = torch.linalg.eigh(covariance.double())
    directions = directions.flip(1)[:, :components]
    # The sign of an eigenvector is arbitrary, and results must not depend on the library.
    largest = directions.abs().argmax(0)
    signs = directions.gather(0, largest[None]).sign()
    spread = variances[-1].clamp(min=0).sqrt()
    # A single token, or equal ones, have no directions; dividing would enlarge rounding errors.
    share = 1 / spread if spread > _LEAST_SPREAD * mean.norm() else 0.0
    return Projection(mean, (directions * signs * share).float())


def features_of_voxel(smoothing_vox: Sequence[float], projections: Sequence[Projection]) -> int:
    """Count the features of a voxel: intensities, place along each axis, and components."""
    return intensity_channels(smoothing_vox) + 3 + sum(one.basis.shape[1] for one in projections)


class VoxelFeatures:
    """Features of the voxels of a scan, computed where they are needed.

    Parameters
    ----------
    scan : QuickScan
        Scan.
    projections : sequence of Projection
        One for each of its embeddings.
    """

    def __init__(self, scan: QuickScan, projections: Sequence[Projection]) -> None:
        self.scan = scan
        self._grids = [
            (projection(one.features), one.stride)
            for projection, one in zip(projections, scan.embeddings, strict=True)
        ]

    def in_box(self, box: Box) -> Tensor:
        """Features (z, y, x, F), float32, of all voxels of a box."""
        lines = [torch.arange(part.start, part.stop) for part in box]
        return self._on_grid(lines, [torch.from_numpy(part) for part in self.scan.intensities(box)])

    def of_cells(self, cells: Cells) -> Tensor:
        """Features (z, y, x, F) of the voxel in the middle of every cell."""
        lines = [torch.from_numpy(line) for line in middles_of(self.scan.volume.shape, cells.sides)]
        return self._on_grid(lines, list(torch.from_numpy(cells.intensities)))

    def _on_grid(self, lines: Sequence[Tensor], intensities: list[Tensor]) -> Tensor:
        """Features of voxels that are given by their indices along each axis."""
        shape = [len(line) for line in lines]
        channels = intensities + [place.expand(shape) for place in self._place(lines)]
        tokens = [_interpolated(grid, lines, stride) for grid, stride in self._grids]
        return torch.cat([torch.stack(channels), *tokens]).permute(1, 2, 3, 0)

    def at(self, voxels: np.ndarray) -> Tensor:
        """Features (N, F) of single voxels (N, 3), z, y, x."""
        result: Tensor | None = None
        blocks, inverse = np.unique(voxels // BLOCK_VOX, axis=0, return_inverse=True)
        for number in range(len(blocks)):
            chosen = np.flatnonzero(inverse.ravel() == number)
            inside = voxels[chosen]
            first = inside.min(0)
            box = tuple(
                slice(int(a), int(b) + 1) for a, b in zip(first, inside.max(0), strict=True)
            )
            z, y, x = (torch.from_numpy(part) for part in (inside - first).T)
            found = self.in_box((box[0], box[1], box[2]))[z, y, x]
            if result is None:
                result = torch.empty(len(voxels), found.shape[1])
            result[torch.from_numpy(chosen)] = found
        assert result is not None, "there is at least one voxel"
        return result

    def of_sample(self) -> tuple[np.ndarray, Tensor]:
        """Random voxels (N, 3) and their features (N, F); quick after the first time."""
        voxels, intensities = self.scan.sample
        points = torch.from_numpy(voxels)
        first, end = torch.tensor(self.scan.body).T
        half = ((end - first) / 2).clamp(min=1.0)
        places = (points - (first + end - 1) / 2) / half * _PLACE_WEIGHT
        tokens = [_at_points(grid, points, stride) for grid, stride in self._grids]
        return voxels, torch.cat([torch.from_numpy(intensities), places.float(), *tokens], dim=1)

    def _place(self, lines: Sequence[Tensor]) -> list[Tensor]:
        """Where the voxels lie in the box of the tissue: -1 to 1 along each axis, weighted."""
        places = []
        for axis, (line, (first, end)) in enumerate(zip(lines, self.scan.body, strict=True)):
            middle, half = (first + end - 1) / 2, max(1.0, (end - first) / 2)
            shape = [-1 if other == axis else 1 for other in range(3)]
            places.append(((line.float() - middle) / half * _PLACE_WEIGHT).reshape(shape))
        return places


def _interpolated(grid: Tensor, lines: Sequence[Tensor], stride: int) -> Tensor:
    """Interpolate values (K, tz, ty, tx) at the centres of tokens linearly to a grid of voxels."""
    for axis, line in enumerate(lines, start=1):
        tokens = grid.shape[axis]
        place = (line + 0.5) / stride - 0.5
        place = place.clamp(0, tokens - 1)
        low = place.floor().long().clamp(max=max(0, tokens - 2))
        share = (place - low).reshape([-1 if other == axis else 1 for other in range(4)])
        high = (low + 1).clamp(max=tokens - 1)
        grid = torch.lerp(grid.index_select(axis, low), grid.index_select(axis, high), share)
    return grid


def _at_points(grid: Tensor, points: Tensor, stride: int) -> Tensor:
    """Interpolate values (K, tz, ty, tx) linearly to voxels (N, 3); (N, K)."""
    sides = torch.tensor(grid.shape[1:])
    tokens = ((points + 0.5) / stride - 0.5).clamp(min=0).minimum(sides - 1)
    # From -1 to 1 between the centres of the first and the last token; x comes first.
    place = tokens / (sides - 1).clamp(min=1) * 2 - 1
    found = F.grid_sample(grid[None], place.flip(1)[None, None, None].float(), align_corners=True)
    return found[0, :, 0, 0].mT
