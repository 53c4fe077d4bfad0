"""What the head of Quick sees of a voxel: intensities round it, its place, the encoder's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encoders import preset_of, weights_hash
from napari_s2dc.engine.fewshot_settings import QuickSettings
from napari_s2dc.engine.progress import Steps
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.foreground import foreground_mask
from napari_s2dc.volumes.preprocess import Scaling, scaling_of
from napari_s2dc.volumes.volume import Volume

__all__ = [
    "Box",
    "Projection",
    "QuickScan",
    "VoxelFeatures",
    "blocks_of",
    "prepare_scan",
    "project",
]

Box = tuple[slice, slice, slice]
"""Voxels (z, y, x) of a part of a scan; every slice has a start and a stop."""

BLOCK_VOX = 96
"""Side of the blocks that features are computed in, which bounds the memory."""
_TRUNCATE = 3.0
_PLACE_WEIGHT = 6.0
_FARTHEST = 4.0
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True, eq=False)
class QuickScan:
    """A scan that is ready for the head of Quick.

    Parameters
    ----------
    volume : Volume
        Raw intensities, on the grid that is learned from or segmented.
    scaling : Scaling
        From raw intensities to [0, 1].
    embeddings : tuple of Embedding
        Of the whole scan, one for each stage.
    body : tuple of (first, end)
        Box of the tissue in voxels along z, y and x.
    """

    volume: Volume
    scaling: Scaling
    embeddings: tuple[Embedding, ...]
    body: tuple[tuple[int, int], ...]


def prepare_scan(
    volume: Volume,
    encoder: SwinEncoder,
    settings: QuickSettings,
    *,
    preset: str = "checkpoint",
    device: str = "auto",
    embedding: Embedding | None = None,
) -> Steps[QuickScan]:
    """Embed a scan at every stage that the head uses.

    Parameters
    ----------
    volume : Volume
        Scan with raw intensities.
    encoder : SwinEncoder
        Not changed.
    settings : QuickSettings
        Say which stages.
    preset, device : str
        As those of :class:`napari_s2dc.engine.embed.EmbedSettings`.
    embedding : Embedding, optional
        Of this scan; used where it is what would be computed.

    Yields
    ------
    Progress
        Windows of the stage that is embedded.

    Raises
    ------
    VolumeError
        The scan holds no usable values.
    ConfigurationError
        A stage, the preset or the device does not exist.
    """
    preset = preset_of(volume, encoder, preset)
    embeddings = []
    for stage in settings.stages:
        wanted = EmbedSettings(stage=stage, preset=preset, device=device)
        if embedding is not None and _is_same(embedding, volume, encoder, wanted):
            embeddings.append(embedding)
        else:
            embeddings.append((yield from embed_volume(volume, encoder, wanted)))
    tissue = foreground_mask(volume.array)
    return QuickScan(
        volume=volume,
        scaling=scaling_of(volume.array, preset, tissue),
        embeddings=tuple(embeddings),
        body=_box_of(tissue),
    )


def _is_same(
    embedding: Embedding, volume: Volume, encoder: SwinEncoder, wanted: EmbedSettings
) -> bool:
    """Whether an embedding is of the whole scan and made as wanted, on whatever device."""
    facts = embedding.metadata
    made = facts.get("settings") or {}
    return (
        facts.get("stage") == wanted.stage
        and facts.get("preset") == wanted.preset
        and facts.get("weights") == weights_hash(encoder)
        and embedding.shape == volume.shape
        and np.allclose(embedding.affine, volume.affine)
        and made.get("roi") is None
        and facts.get("window_vox") == wanted.window_vox
        and made.get("overlap") == wanted.overlap
    )


def _box_of(tissue: np.ndarray) -> tuple[tuple[int, int], ...]:
    box = []
    for axis, side in enumerate(tissue.shape):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(tissue.any(others))
        box.append((int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, side))
    return tuple(box)


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


class VoxelFeatures:
    """Features of the voxels of a scan, computed where they are needed.

    Parameters
    ----------
    scan : QuickScan
        Scan.
    projections : sequence of Projection
        One for each of its embeddings.
    smoothing_vox : sequence of float
        Widths of the Gaussians in voxels; 0 for the intensity itself.
    """

    def __init__(
        self, scan: QuickScan, projections: Sequence[Projection], smoothing_vox: Sequence[float]
    ) -> None:
        self.scan = scan
        self._grids = [
            (projection(one.features), one.stride)
            for projection, one in zip(projections, scan.embeddings, strict=True)
        ]
        self._smoothing = tuple(smoothing_vox)

    def in_box(self, box: Box) -> Tensor:
        """Features (z, y, x, F), float32, of all voxels of a box."""
        shape = [part.stop - part.start for part in box]
        channels = [torch.from_numpy(part) for part in self._intensities(box)]
        channels += [place.expand(shape) for place in self._place(box)]
        tokens = [_interpolated(grid, box, stride) for grid, stride in self._grids]
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

    def _intensities(self, box: Box) -> list[np.ndarray]:
        """Smoothed intensities and their gradients, without an edge where the box ends."""
        from scipy import ndimage

        array = self.scan.volume.array
        halo = int(np.ceil(_TRUNCATE * max(self._smoothing, default=0.0))) + 1
        grown = [
            (max(0, part.start - halo), min(side, part.stop + halo))
            for part, side in zip(box, array.shape, strict=True)
        ]
        image = self.scan.scaling(array[tuple(slice(a, b) for a, b in grown)])
        inner = tuple(
            slice(part.start - a, part.stop - a) for part, (a, _) in zip(box, grown, strict=True)
        )
        channels = []
        for width in self._smoothing:
            if width == 0:
                channels.append(image[inner])
                continue
            smooth = ndimage.gaussian_filter(image, width, mode="nearest", truncate=_TRUNCATE)
            slopes = [_slope(smooth, axis) for axis in range(3)]
            channels += [smooth[inner], np.sqrt(sum(slope**2 for slope in slopes))[inner]]
        return channels

    def _place(self, box: Box) -> list[Tensor]:
        """Where the voxels lie in the box of the tissue: -1 to 1 along each axis, weighted."""
        places = []
        for axis, (part, (first, end)) in enumerate(zip(box, self.scan.body, strict=True)):
            voxels = torch.arange(part.start, part.stop, dtype=torch.float32)
            middle, half = (first + end - 1) / 2, max(1.0, (end - first) / 2)
            shape = [-1 if other == axis else 1 for other in range(3)]
            places.append(((voxels - middle) / half * _PLACE_WEIGHT).reshape(shape))
        return places


def intensity_channels(smoothing_vox: Sequence[float]) -> int:
    """Count the first features of a voxel: smoothed intensities and their gradients."""
    return sum(1 if width == 0 else 2 for width in smoothing_vox)


def _slope(image: np.ndarray, axis: int) -> np.ndarray:
    """Change from voxel to voxel; none along an axis of one voxel."""
    return np.gradient(image, axis=axis) if image.shape[axis] > 1 else np.zeros_like(image)


def _interpolated(grid: Tensor, box: Box, stride: int) -> Tensor:
    """Interpolate values (K, tz, ty, tx) at the centres of tokens linearly to a box of voxels."""
    for axis, part in enumerate(box, start=1):
        tokens = grid.shape[axis]
        place = (torch.arange(part.start, part.stop) + 0.5) / stride - 0.5
        place = place.clamp(0, tokens - 1)
        low = place.floor().long().clamp(max=max(0, tokens - 2))
        share = (place - low).reshape([-1 if other == axis else 1 for other in range(4)])
        high = (low + 1).clamp(max=tokens - 1)
        grid = torch.lerp(grid.index_select(axis, low), grid.index_select(axis, high), share)
    return grid


def blocks_of(shape: Sequence[int]) -> list[Box]:
    """Cut a scan into blocks, z slowest."""
    parts = [
        [slice(first, min(first + BLOCK_VOX, side)) for first in range(0, side, BLOCK_VOX)]
        for side in shape
    ]
    return [(z, y, x) for z, y, x in product(*parts)]
