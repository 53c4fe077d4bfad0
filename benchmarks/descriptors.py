"""Classical descriptors of patches, to compare the encoder's features with."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

_NEIGHBOURS = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


def raw_patches(image: np.ndarray, side: int) -> Tensor:
    """Intensities of the voxels of each patch, less their mean (side³, tz, ty, tx)."""
    values = _in_patches(torch.as_tensor(image)[None], side)
    return values - values.mean(0, keepdim=True)


def mind(image: np.ndarray, side: int) -> Tensor:
    """MIND self-similarity context of each patch (96, tz, ty, tx).

    Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using
    self-similarities", MICCAI 2013: how alike the 12 pairs of neighbours of the six-neighbourhood
    that touch are, as exponentials of their patch distances. Every patch keeps the means of its
    eight octants.
    """
    scan = torch.as_tensor(image, dtype=torch.float32)[None, None]
    around = torch.cat([torch.roll(scan, step, (2, 3, 4)) for step in _NEIGHBOURS], dim=1)
    pairs = [
        (i, j)
        for i, one in enumerate(_NEIGHBOURS)
        for j, other in enumerate(_NEIGHBOURS[:i])
        if np.dot(one, other) == 0
    ]
    distances = torch.cat(
        [
            F.avg_pool3d((around[:, i : i + 1] - around[:, j : j + 1]).square(), 3, 1, 1)
            for i, j in pairs
        ],
        dim=1,
    )
    distances = distances - distances.min(1, keepdim=True).values
    variance = distances.mean(1, keepdim=True)
    middle = float(variance.mean())
    variance = variance.clamp(min=1e-3 * middle + 1e-12, max=1e3 * middle + 1e-12)
    octants = F.avg_pool3d(torch.exp(-distances / variance), side // 2, ceil_mode=True)[0]
    return _in_patches(octants, 2)


def _in_patches(image: Tensor, side: int) -> Tensor:
    """Values (C · side³, tz, ty, tx) of whole patches of an image (C, Z, Y, X), 0 past its edge."""
    padding: list[int] = []
    for length in reversed(image.shape[1:]):
        padding += [0, -length % side]
    padded = F.pad(image, padding)
    return rearrange(
        padded, "c (z a) (y b) (x d) -> (c a b d) z y x", a=side, b=side, d=side
    ).contiguous()
