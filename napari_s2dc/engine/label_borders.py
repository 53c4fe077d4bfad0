"""Let intensities and features decide again where carried labels are unsure at their borders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding, to_voxels
from napari_s2dc.engine.transfer import Transfer
from napari_s2dc.volumes.preprocess import normalize, resample_to
from napari_s2dc.volumes.volume import Volume

__all__ = ["refine_borders"]

_BORDER_VOX = 2
_SEED_VOX = 2
_COMPONENTS = 3


def refine_borders(
    transfer: Transfer,
    image: Volume,
    embedding: Embedding,
    *,
    least_confidence: float = 0.2,
    stiffness: float = 500.0,
) -> Transfer:
    """Give unsure voxels at borders to the label that a random walker from them meets first.

    Parameters
    ----------
    transfer : Transfer
        Labels on the grid of the image.
    image : Volume
        Scan that the labels were carried to.
    embedding : Embedding
        Of that scan; its first three principal components guide the walker beside the intensities.
    least_confidence : float
        Voxels at a border that are less sure than this are decided again.
    stiffness : float
        How hard it is to walk across an edge (``beta``).

    Returns
    -------
    Transfer
        Other labels; confidence and alignment stay. So do the voxels of a class that has no sure
        voxel nearby to walk from.

    Notes
    -----
    Four maps of the scan are held in memory, and the walk of one connected part at a time.
    ``skimage.segmentation.random_walker`` (Grady 2006). Between mouse brains this lowered Dice a
    little, see ``benchmarks.matching``; it is for structures with sharp edges.
    """
    from scipy import ndimage
    from skimage.segmentation import random_walker

    labels = transfer.labels.array
    border = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)
    border = ndimage.binary_dilation(border, iterations=_BORDER_VOX - 1)
    unsure = border & (transfer.confidence < least_confidence)
    if not unsure.any():
        return transfer
    around = ndimage.binary_dilation(unsure, iterations=_SEED_VOX)
    preset = embedding.metadata.get("preset", "auto")
    channels = [normalize(image.array, preset)]
    unit = embedding.unit()
    _, _, directions = torch.pca_lowrank(unit[embedding.foreground.flatten()], _COMPONENTS, niter=4)
    for component in (unit @ directions).mT:
        grid = component.reshape(embedding.grid)
        channels.append(_at_voxels(grid, embedding, image))
    refined = labels.copy()
    parts, _ = ndimage.label(around)
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        here, own = parts[box] == number, labels[box]
        names = np.unique(own[here & ~unsure[box]])
        known = here & np.isin(own, names)
        seeds = np.full(own.shape, -1)  # takes no part
        # Numbered without a gap, because the walker numbers anew what has one.
        seeds[known] = np.searchsorted(names, own[known]) + 1
        seeds[known & unsure[box]] = 0
        if len(names) < 2 or seeds.all():
            continue
        found = random_walker(
            np.stack([channel[box] for channel in channels], axis=-1),
            seeds,
            beta=stiffness,
            mode="cg_j",
            prob_tol=0.1,  # conjugate gradients stop early; the largest stays the largest
            channel_axis=-1,
            spacing=np.asarray(image.spacing_mm) / min(image.spacing_mm),
        )
        decided = (seeds == 0) & (found > 0)
        refined[box][decided] = names[found[decided] - 1]
    return replace(transfer, labels=transfer.labels.with_array(refined))


def _at_voxels(grid: Tensor, embedding: Embedding, image: Volume) -> np.ndarray:
    """Interpolate values of tokens to the voxels of the scan; 0 outside what was embedded."""
    step = np.eye(4)
    # With a voxel more all round, so that the outermost of a finer scan have neighbours.
    step[:3, 3] = np.asarray(embedding.offset_vox) - 1
    values = np.pad(to_voxels(grid, embedding.shape, embedding.stride), 1, mode="edge")
    return resample_to(Volume(values, embedding.affine @ step, name=image.name), image).array
