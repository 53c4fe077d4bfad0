"""Random views of sub-volumes with their exact correspondences, batched on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.tokens import pair_matrix, partners, problems, split_crops
from s2dc_train.config import ViewConfig


@dataclass(frozen=True)
class ViewDraws:
    """Every random number of the views of a batch; the first axis is the volume.

    Parameters
    ----------
    affine : Affine3D
        Batched map of view 2.
    crop_affine : Affine3D
        Batched map of the contrastive crop, about the crop's own centre.
    crop_choice : Tensor (B,)
        From 0 to 1: which of the crops that hold tissue is the query of the global contrast.
    intensity : Tensor (B, 3, 2)
        Contrast factor and shift of view 1, view 2 and the contrastive crop.
    """

    affine: Affine3D
    crop_affine: Affine3D
    crop_choice: Tensor
    intensity: Tensor


@dataclass(frozen=True)
class Views:
    """The views of a batch and what corresponds in them.

    Parameters
    ----------
    first, second : Tensor (B * crops, 1, c, c, c)
        Crops of the two views.
    contrast : Tensor (B, 1, c, c, c)
        The contrastive view of the query crops.
    query_index : Tensor (B,)
        Index of each query crop in `first`.
    true_pairs : Tensor (problems, n, n)
        Boolean; true correspondences.
    valid_first, valid_second : Tensor (problems, n)
        Boolean; tokens that hold scan (not padding) and enough foreground.
    tissue_second : Tensor (B * crops,)
        Boolean; crops of view 2 that hold enough foreground to stand for anything.
    """

    first: Tensor
    second: Tensor
    contrast: Tensor
    query_index: Tensor
    true_pairs: Tensor
    valid_first: Tensor
    valid_second: Tensor
    tissue_second: Tensor


def _uniform(generator: torch.Generator, count: int, limit: float) -> Tensor:
    return (torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1) * limit


def draw(config: ViewConfig, crop_size: int, samples: Sequence[int], seed: int) -> ViewDraws:
    """Random numbers of the views, a pure function of the seed and each sample's number.

    Parameters
    ----------
    config : ViewConfig
        Ranges.
    crop_size : int
        Side of a crop in voxels.
    samples : sequence of int
        Global number of each sample of the batch; equal numbers give equal views, whatever the
        batch, process or machine, which is what makes a resumed run exact.
    seed : int
        Seed of the run.

    Returns
    -------
    ViewDraws
        On the CPU.
    """
    translations, rotations, scales = [], [], []
    crop_translations, crop_rotations, crop_scales = [], [], []
    choices, intensities = [], []
    for sample in samples:
        # Torch's CPU generator looks at 32 bits of a seed only, so seed and number are mixed first.
        (mixed,) = np.random.SeedSequence([seed, int(sample)]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed))
        shift = _uniform(generator, 3, config.translation * crop_size)
        turn = _uniform(generator, 3, 1.0) * torch.tensor(
            [config.rotation_deg, config.tilt_deg, config.tilt_deg], dtype=torch.float64
        )
        share = torch.rand(1, generator=generator, dtype=torch.float64)
        scales.append(config.scale_min + share[0] * (config.scale_max - config.scale_min))
        if config.matching == "in_plane":
            shift[0] = 0
            turn[1:] = 0
        translations.append(shift)
        rotations.append(turn)
        crop_translations.append(_uniform(generator, 3, config.crop_translation * crop_size))
        crop_rotations.append(_uniform(generator, 3, config.crop_rotation_deg))
        crop_scales.append(1 + _uniform(generator, 1, config.crop_scale)[0])
        choices.append(torch.rand(1, generator=generator)[0])
        contrast = 1 + _uniform(generator, 3, config.intensity_scale)
        brightness = _uniform(generator, 3, config.intensity_shift)
        intensities.append(torch.stack([contrast, brightness], dim=1))

    def compose(shifts: list[Tensor], turns: list[Tensor], factors: list[Tensor]) -> Affine3D:
        angle = torch.stack(turns)
        planes = [(angle[:, 0], (1, 2)), (angle[:, 1], (0, 2)), (angle[:, 2], (0, 1))]
        return Affine3D.compose(torch.stack(shifts), planes, torch.stack(factors))

    return ViewDraws(
        affine=compose(translations, rotations, scales),
        crop_affine=compose(crop_translations, crop_rotations, crop_scales),
        crop_choice=torch.stack(choices),
        intensity=torch.stack(intensities).float(),
    )


def _toned(image: Tensor, presence: Tensor, intensity: Tensor) -> Tensor:
    """Change contrast and brightness where there is scan; air and padding keep their 0.

    Done before the warp, which is linear: the image alone is warped then, not its mask too.
    """
    factor, shift = (intensity[:, number].view(-1, 1, 1, 1, 1) for number in (0, 1))
    return torch.addcmul(image * factor, presence, shift)


def _choose(allowed: Tensor, choice: Tensor) -> Tensor:
    """Index (B,) of one allowed column of each row (B, n), any column where none is allowed."""
    allowed = allowed | ~allowed.any(1, keepdim=True)
    number = (choice * allowed.sum(1)).long().clamp(max=allowed.shape[1] - 1)
    return (allowed.cumsum(1) > number[:, None]).long().argmax(1)


def build_views(
    image: Tensor,
    valid: Tensor,
    foreground: Tensor,
    draws: ViewDraws,
    config: ViewConfig,
    *,
    crop_size: int,
    token_size_vox: int,
) -> Views:
    """Warp, cut and label the views of a batch.

    Parameters
    ----------
    image : Tensor (B, 1 or 3, Z, Y, X)
        Sub-volumes, normalised to [0, 1]; with three channels, as view 1, view 2 and the
        contrastive view see them.
    valid, foreground : Tensor (B, Z, Y, X)
        Boolean; inside the scan (not padding), and tissue rather than air.
    draws : ViewDraws
        Random numbers from :func:`draw`.
    config : ViewConfig
        Matching mode and least foreground.
    crop_size, token_size_vox : int
        Sides of a crop and of a token in voxels.

    Returns
    -------
    Views
        On the device of `image`.
    """
    device = image.device
    shape = image.shape[-3:]
    affine = Affine3D(draws.affine.matrix.to(device))
    masks = torch.stack([valid, valid & foreground], dim=1).to(image.dtype)
    first, second, contrast = (
        _toned(seen[:, None], masks[:, 1:], intensity)
        for seen, intensity in zip(
            image.expand(-1, 3, -1, -1, -1).unbind(1),
            draws.intensity.to(device).unbind(1),
            strict=True,
        )
    )
    second = affine.warp(second)
    # Shares of a token need no full resolution: four cells along its side will do.
    coarse = max(token_size_vox // 4, 1)
    masks = F.avg_pool3d(masks, coarse)
    warped_masks = affine.in_larger_voxels(coarse).warp(masks)

    def with_tissue(mask: Tensor) -> Tensor:
        share = F.avg_pool3d(mask[:, 1], crop_size // coarse).flatten(1)
        return share >= config.minimum_foreground

    # The contrastive crop is sampled round its own centre straight from the whole sub-volume.
    grid = torch.tensor([side // crop_size for side in shape])
    index = _choose(with_tissue(masks), draws.crop_choice.to(device)).cpu()
    place = torch.stack(
        [index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2]], dim=1
    )
    centre = (place + 0.5 - grid / 2) * crop_size
    crop_affine = Affine3D(draws.crop_affine.matrix.to(device)).translated(centre.to(device))
    contrast = crop_affine.warp(contrast, output_shape=(crop_size,) * 3)

    token_grid = [side // token_size_vox for side in shape]
    per_slice = config.matching == "in_plane"
    partner = partners(affine, token_grid, token_size_vox)

    def usable(mask: Tensor) -> Tensor:
        share = F.avg_pool3d(mask, token_size_vox // coarse)
        inside, tissue = share[:, :1] >= 0.5, share[:, 1:] >= config.minimum_foreground
        return problems(inside & tissue, per_slice=per_slice)[..., 0]

    valid_first, valid_second = usable(masks), usable(warped_masks)
    pairs = pair_matrix(partner, token_grid, per_slice=per_slice)
    return Views(
        first=split_crops(first.clamp(0, 1), crop_size),
        second=split_crops(second.clamp(0, 1), crop_size),
        contrast=contrast.clamp(0, 1),
        query_index=(torch.arange(len(index)) * int(grid.prod()) + index).to(device),
        true_pairs=pairs & valid_first[:, :, None] & valid_second[:, None, :],
        valid_first=valid_first,
        valid_second=valid_second,
        tissue_second=with_tissue(warped_masks).flatten(),
    )
