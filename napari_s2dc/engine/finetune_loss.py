"""What fine-tuning makes small: cross-entropy and Dice over labelled voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from torch import Tensor

__all__ = ["labelled_voxels", "voxel_loss"]


def labelled_voxels(targets: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Choose the voxels that a step learns from.

    A random part is enough to learn from, and the last layers with their many outputs are computed
    for these voxels only. Every voxel is as likely as another: with more of small classes, these
    would be found too large.

    Parameters
    ----------
    targets : Tensor
        Outputs, negative where a voxel is not labelled; of any shape, on the CPU.
    most : int
        Most voxels.
    generator : torch.Generator
        Source of chance.

    Returns
    -------
    Tensor (n,)
        int64, places in the flattened targets.
    """
    places = torch.nonzero(targets.reshape(-1) >= 0)[:, 0]
    if len(places) > most:
        places = places[torch.randperm(len(places), generator=generator)[:most]]
    return places


def voxel_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy plus mean Dice loss of the classes that are there.

    Parameters
    ----------
    logits : Tensor (n, outputs)
        Of labelled voxels.
    targets : Tensor (n,)
        Outputs, 0 is background.

    Returns
    -------
    Tensor
        Scalar. A class that none of the voxels has is no part of the Dice loss, where it would be a
        constant but for what is wrongly taken for it, which the cross-entropy sees.
    """
    loss = F.cross_entropy(logits, targets)
    by_class = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, reduction="none")
    dice = by_class(logits.T[None], targets[None, None])[0, :, 0]
    there = torch.bincount(targets, minlength=logits.shape[1])[1:] > 0
    return loss + dice[there].mean() if there.any() else loss
