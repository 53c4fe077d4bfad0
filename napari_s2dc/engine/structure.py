"""The structure around a click: similar enough, and hanging together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.embedding import to_voxels

__all__ = ["otsu_threshold", "structure_mask"]


def otsu_threshold(similarity: Tensor | np.ndarray, foreground: Tensor | None = None) -> float:
    """Otsu's threshold of the similarities of the tissue.

    Parameters
    ----------
    similarity : (tz, ty, tx)
        Similarity map.
    foreground : Tensor (tz, ty, tx), optional
        Boolean; all tokens count when it is left out.
    """
    from skimage.filters import threshold_otsu

    values = np.asarray(similarity).ravel()
    if foreground is not None and bool(foreground.any()):
        values = values[foreground.numpy().ravel()]
    return float(threshold_otsu(values))


def structure_mask(
    similarity: Tensor | np.ndarray,
    shape: Sequence[int],
    stride: int,
    clicked_voxel: Sequence[float],
    threshold: float | None = None,
    *,
    foreground: Tensor | None = None,
) -> tuple[np.ndarray, float]:
    """Voxels around a click that are similar enough and hang together.

    Parameters
    ----------
    similarity : (tz, ty, tx)
        Similarity map.
    shape : sequence of int
        Voxels (z, y, x) of what was embedded.
    stride : int
        Voxels per token side.
    clicked_voxel : sequence of 3 numbers
        (z, y, x) in what was embedded, that is, less its ``offset_vox``.
    threshold : float, optional
        Least similarity; :func:`otsu_threshold` when left out.
    foreground : Tensor (tz, ty, tx), optional
        Boolean; the tokens over which that threshold is found.

    Returns
    -------
    mask : np.ndarray (Z, Y, X)
        Boolean: the connected component (over faces) of voxels at or above the threshold, between
        tokens interpolated linearly, that contains the click or, where the click lies just
        below, most of its token. All False when there is none.
    threshold : float
        The one that was used.
    """
    from scipy import ndimage

    values = torch.as_tensor(similarity).float()
    if threshold is None:
        threshold = otsu_threshold(values, foreground)
    z, y, x = (int(size) for size in shape)
    mask = np.zeros((z, y, x), dtype=bool)
    voxel = np.floor(np.asarray(clicked_voxel, dtype=np.float64) + 0.5).astype(int)
    if (voxel < 0).any() or (voxel >= mask.shape).any():
        return mask, threshold
    # No voxel lies further than one token from a token above the threshold; so components of
    # tokens, grown by one, tell in which box of the scan the voxels have to be looked at.
    corners = np.ones((3, 3, 3), dtype=bool)
    grown = ndimage.binary_dilation(values.numpy() >= threshold, corners)
    parts, _ = ndimage.label(grown, corners)
    clicked_token = tuple((voxel // stride).tolist())
    part = int(parts[clicked_token])
    if part == 0:
        return mask, threshold
    box = ndimage.find_objects(parts)[part - 1]
    wide = tuple(slice(max(cut.start - 1, 0), cut.stop + 1) for cut in box)
    corner = np.array([cut.start * stride for cut in wide])
    sizes = np.minimum(np.array(values[wide].shape) * stride, np.array(mask.shape) - corner)
    components, count = ndimage.label(to_voxels(values[wide], sizes, stride) >= threshold)
    if count == 0:
        return mask, threshold
    place = voxel - corner
    chosen = int(components[tuple(place)]) or _most(components, place // stride * stride, stride)
    if chosen:
        target = tuple(slice(a, a + n) for a, n in zip(corner, components.shape, strict=True))
        mask[target] = components == chosen
    return mask, threshold


def _most(components: np.ndarray, corner: np.ndarray, stride: int) -> int:
    """Component with most voxels in a token, 0 when there is none."""
    inside = components[tuple(slice(first, first + stride) for first in corner)]
    counts = np.bincount(inside.ravel())
    counts[0] = 0
    return int(counts.argmax())
