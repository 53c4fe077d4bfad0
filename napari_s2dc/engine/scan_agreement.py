"""How well two scans agree under a map: their features, and the local correlation of intensities.

What :mod:`napari_s2dc.engine.registration` makes large. Grids are of bounded size, places in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.volumes.volume import Volume

__all__ = ["Agreement", "Level", "grid_places", "is_inside", "masked_mean", "sample", "to_tensor"]

MOST_VOXELS = 2_000_000
"""Blocks of a scan at most, however much larger it is than the other one."""
_MOST_TOKENS = 20_000
"""Tokens of a scan at most whose features are compared."""
_KERNEL = 5
"""Side in voxels of the neighbourhood whose intensities are correlated."""
_FLAT = 1e-2
"""Sum of squared deviations below which a neighbourhood counts as flat."""


def to_tensor(array: np.ndarray) -> Tensor:
    """Give an array as float32."""
    return torch.as_tensor(array, dtype=torch.float32)


def grid_places(shape: Sequence[int], first: int = 0) -> Tensor:
    """List the indices (*shape, 3) of every voxel, the first axis counted from `first`."""
    axes = [torch.arange(side, dtype=torch.float32) for side in shape]
    axes[0] += first
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sample(image: Tensor, places: Tensor) -> Tensor:
    """Values (C, *places) of an image (C, Z, Y, X) at voxel coordinates (..., 3); 0 outside."""
    sides = torch.tensor(image.shape[1:], dtype=torch.float32)
    grid = ((2 * places + 1) / sides - 1).flip(-1)
    flat = grid.reshape(1, -1, 1, 1, 3)
    values = F.grid_sample(image[None], flat, align_corners=False)
    return values.reshape(len(image), *places.shape[:-1])


@dataclass(frozen=True, eq=False)
class Level:
    """A scan on a coarser grid: intensities and where they lie.

    Parameters
    ----------
    image : Tensor (1, Z, Y, X)
        Mean intensities of blocks of voxels.
    tissue : Tensor (Z, Y, X)
        Boolean: the block is at least half tissue.
    affine : np.ndarray (4, 4)
        (z, y, x) block to mm.
    block : tuple of int
        Voxels (z, y, x) of a block.
    """

    image: Tensor
    tissue: Tensor
    affine: np.ndarray
    block: tuple[int, int, int]

    @cached_property
    def middle(self) -> Tensor:
        """Where a neighbourhood does not reach past the edge (Z, Y, X)."""
        inner = torch.zeros(self.image.shape[1:], dtype=torch.bool)
        reach = _KERNEL // 2
        inner[tuple(slice(reach, side - reach) for side in inner.shape)] = True
        return inner

    @classmethod
    def of(cls, image: Tensor, tissue: Tensor, volume: Volume, side_mm: float) -> Level:
        """Average whole blocks of voxels that are about `side_mm` wide.

        Parameters
        ----------
        image, tissue : Tensor (Z, Y, X)
            Intensities in [0, 1], and 1 where there is tissue.
        volume : Volume
            Where they lie.
        side_mm : float
            Wider where the scan would have more than :data:`MOST_VOXELS` blocks.
        """
        extent_mm3 = float(np.prod(volume.shape) * abs(np.linalg.det(volume.affine[:3, :3])))
        side_mm = max(side_mm, (extent_mm3 / MOST_VOXELS) ** (1 / 3))
        z, y, x = (
            min(max(1, round(side_mm / spacing)), length)
            for spacing, length in zip(volume.spacing_mm, volume.shape, strict=True)
        )
        block = (z, y, x)
        to_block = np.diag([*block, 1.0])
        to_block[:3, 3] = (np.asarray(block) - 1) / 2
        small, inside = (
            F.avg_pool3d(part[None, None], block, ceil_mode=True, count_include_pad=False)[0]
            for part in (image, tissue)
        )
        return cls(small, inside[0] >= 0.5, volume.affine @ to_block, block)

    def box(self) -> tuple[slice, slice, slice]:
        """Blocks (z, y, x) that hold all tissue and the neighbourhoods that are correlated."""
        reach = 2 * (_KERNEL // 2)  # of the tissue, and of the gradient there
        slices = []
        for axis, length in enumerate(self.tissue.shape):
            others = [other for other in range(3) if other != axis]
            there = torch.nonzero(self.tissue.any(others[1]).any(others[0])).flatten().tolist()
            first, last = (there[0], there[-1]) if there else (0, length - 1)
            slices.append(slice(max(0, first - reach), min(length, last + 1 + reach)))
        return slices[0], slices[1], slices[2]

    def cropped(self, box: tuple[slice, slice, slice]) -> Level:
        """Give the part of the scan in a box of blocks."""
        step = np.eye(4)
        step[:3, 3] = [part.start for part in box]
        return Level(self.image[:, *box], self.tissue[box], self.affine @ step, self.block)


class Agreement:
    """How well two scans agree under a map from B to A that can be moved.

    Parameters
    ----------
    features : (Embedding, Embedding)
        Of A and B.
    matrix : np.ndarray (4, 4)
        Where the map starts, mm of B to mm of A.
    feature_weight : float
        Weight of the features in the loss.

    Attributes
    ----------
    shift : Tensor (3,)
        What is added to the map, mm.
    change : Tensor (3, 3)
        What is added to its linear part, in mm at one radius from the middle of the tissue.
    """

    def __init__(
        self,
        features: tuple[Embedding, Embedding],
        matrix: np.ndarray,
        feature_weight: float,
    ) -> None:
        from monai.losses import LocalNormalizedCrossCorrelationLoss

        self.a, self.b = features
        self.feature_weight = feature_weight
        self._correlation = LocalNormalizedCrossCorrelationLoss(
            kernel_size=_KERNEL, smooth_dr=_FLAT, reduction="none"
        )
        index = torch.nonzero(self.b.foreground.flatten())[:, 0]
        index = index[:: -(-len(index) // _MOST_TOKENS)]
        tokens = torch.stack(torch.unravel_index(index, self.b.grid), dim=1).float()
        to_token_b = _token_affine(self.b)
        self.points_mm = tokens @ to_token_b[:3, :3].mT + to_token_b[:3, 3]
        self.from_mm_a = torch.linalg.inv(_token_affine(self.a))
        tissue = self.a.foreground[None].float()
        unit_a = self.a.unit().mT.reshape(self.a.features.shape)
        self.tissue_and_unit_a = torch.cat([tissue, unit_a * tissue])
        self.unit_b = self.b.unit()[index]
        self.middle = self.points_mm.mean(0)
        self.radius = float((self.points_mm - self.middle).square().sum(1).mean().sqrt())
        self.start = to_tensor(matrix)
        # Both in mm: the shift, and the change of the matrix at one radius from the middle.
        self.shift = torch.zeros(3, requires_grad=True)
        self.change = torch.zeros(3, 3, requires_grad=True)

    def move(self, points_mm: Tensor) -> Tensor:
        """Affine part of the map, mm of B to mm of A."""
        change = (points_mm - self.middle) @ (self.change.mT / self.radius)
        return points_mm @ self.start[:3, :3].mT + self.start[:3, 3] + change + self.shift

    def matrix(self) -> np.ndarray:
        """Affine part of the map as a matrix."""
        change = self.change.detach() / self.radius
        matrix = self.start.clone()
        matrix[:3, :3] += change
        matrix[:3, 3] += self.shift.detach() - change @ self.middle
        return matrix.double().numpy()

    def features_loss(self, bending_mm: Tensor | None, level: Level) -> Tensor:
        """One minus the mean cosine of the features that come to lie on each other."""
        mapped = self.move(self.points_mm)
        if bending_mm is not None:
            to_level = torch.linalg.inv(to_tensor(level.affine))
            where = self.points_mm @ to_level[:3, :3].mT + to_level[:3, 3]
            mapped = mapped + sample(bending_mm, where).mT
        place = mapped @ self.from_mm_a[:3, :3].mT + self.from_mm_a[:3, 3]
        # Between the edge and the last patch's middle, that patch's own features.
        most = torch.tensor(self.a.grid, dtype=torch.float32) - 1
        sampled = sample(self.tissue_and_unit_a, place.clamp(torch.zeros(3), most))
        # Unit vectors get shorter in between; what is shorter for lack of tissue stays so.
        cosine = sampled[0] * (F.normalize(sampled[1:], dim=0) * self.unit_b.mT).sum(0)
        return 1 - masked_mean(cosine, is_inside(place, self.a.grid, 0.5))

    def local_correlation(
        self, bending_mm: Tensor | None, a: Level, b: Level
    ) -> tuple[Tensor, Tensor]:
        """Squared local correlation of the intensities on the grid of B, and where it counts.

        It does not where the neighbourhood reaches past the edge of either picture: edges of the
        field of view would be pulled onto each other.
        """
        to_mm, from_mm = to_tensor(b.affine), torch.linalg.inv(to_tensor(a.affine))
        mapped = self.move(grid_places(b.image.shape[1:]) @ to_mm[:3, :3].mT + to_mm[:3, 3])
        if bending_mm is not None:
            mapped = mapped + bending_mm.movedim(0, -1)
        place = mapped @ from_mm[:3, :3].mT + from_mm[:3, 3]
        result = -self._correlation(sample(a.image, place)[None], b.image[None])[0, 0]
        reach = _KERNEL // 2
        return result, b.tissue & b.middle & is_inside(place, a.image.shape[1:], -reach)

    def loss(self, bending_mm: Tensor | None, a: Level, b: Level) -> Tensor:
        """Give what the steps make small."""
        loss = 1 - masked_mean(*self.local_correlation(bending_mm, a, b))
        if self.feature_weight:
            loss = loss + self.feature_weight * self.features_loss(bending_mm, b)
        return loss


def is_inside(place: Tensor, shape: Sequence[int], margin: float) -> Tensor:
    """Whether places (..., 3) lie in a grid of a shape, made wider on each side by a margin."""
    most = torch.tensor(shape, dtype=torch.float32) - 1 + margin
    return ((place >= -margin) & (place <= most)).all(-1)


def masked_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; 0 without any."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def _token_affine(embedding: Embedding) -> Tensor:
    """Token index to mm."""
    to_voxel = np.diag([embedding.stride] * 3 + [1.0])
    to_voxel[:3, 3] = (embedding.stride - 1) / 2 + np.asarray(embedding.offset_vox)
    return to_tensor(embedding.affine @ to_voxel)
