"""Crops of a sub-volume, the token grid over them, and which tokens of two views correspond."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from napari_s2dc.method.affine import Affine3D


def split_crops(volume: Tensor, crop_size: int) -> Tensor:
    """Cut sub-volumes into cubic crops.

    Parameters
    ----------
    volume : Tensor (B, C, Z, Y, X)
        Sub-volumes; every side a multiple of `crop_size` voxels.
    crop_size : int
        Side of a crop in voxels.

    Returns
    -------
    Tensor (B * crops, C, crop_size, crop_size, crop_size)
        Crops of the first sub-volume first, the first grid axis slowest.
    """
    return rearrange(
        volume,
        "b c (gz z) (gy y) (gx x) -> (b gz gy gx) c z y x",
        z=crop_size,
        y=crop_size,
        x=crop_size,
    )


def merge_tokens(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Lay the tokens of all crops on one grid per sub-volume.

    Parameters
    ----------
    features : Tensor (B * crops, C, t, t, t)
        Stage output of every crop, ordered as by :func:`split_crops`.
    grid : sequence of 3 ints
        Crops along (z, y, x).

    Returns
    -------
    Tensor (B, C, gz * t, gy * t, gx * t)
        Token ``(a, b, c)`` of crop ``(i, j, l)`` lies at ``(i * t + a, j * t + b, l * t + c)``.
    """
    gz, gy, gx = grid
    return rearrange(
        features, "(b gz gy gx) c z y x -> b c (gz z) (gy y) (gx x)", gz=gz, gy=gy, gx=gx
    )


def token_share(mask: Tensor, token_size_vox: int) -> Tensor:
    """Share of each token's voxels that lie in a mask.

    Parameters
    ----------
    mask : Tensor (B, 1, Z, Y, X)
        Values from 0 to 1.
    token_size_vox : int
        Side of a token in voxels.

    Returns
    -------
    Tensor (B, Z / size, Y / size, X / size)
        Mean of the mask over each token.
    """
    return F.avg_pool3d(mask.float(), token_size_vox)[:, 0]


def token_centres(
    grid_shape: Sequence[int], token_size_vox: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Centres of all tokens in voxels from the centre of the volume.

    Parameters
    ----------
    grid_shape : sequence of 3 ints
        Tokens along each array axis.
    token_size_vox : float
        Side of a token in voxels.
    device : torch.device or str
        Where the result lies.

    Returns
    -------
    Tensor (tokens, 3)
        float64, first axis slowest.
    """
    axes = [
        (torch.arange(count, dtype=torch.float64, device=device) + 0.5 - count / 2) * token_size_vox
        for count in grid_shape
    ]
    return torch.cartesian_prod(*axes)


def _cells(points_vox: Tensor, grid_shape: Sequence[int], token_size_vox: float) -> Tensor:
    """Flat index of the cell around each point, or -1 outside the grid."""
    shape = torch.tensor(list(grid_shape), device=points_vox.device)
    cell = torch.floor(points_vox / token_size_vox + shape / 2).long()
    inside = ((cell >= 0) & (cell < shape)).all(-1)
    flat = (cell[..., 0] * shape[1] + cell[..., 1]) * shape[2] + cell[..., 2]
    return torch.where(inside, flat, -1)


def partners(affine: Affine3D, grid_shape: Sequence[int], token_size_vox: float) -> Tensor:
    """Token of view 2 that corresponds to each token of view 1.

    A pair is true when the centre of source token ``i`` falls inside cell ``j`` of view 2 and the
    centre of token ``j`` maps back into cell ``i``, both within bounds.

    Parameters
    ----------
    affine : Affine3D
        The map that warps the image: view 2 at ``y`` shows the source at ``affine.matrix @ y``.
    grid_shape : sequence of 3 ints
        Tokens along each array axis, the same in both views.
    token_size_vox : float
        Side of a token in voxels.

    Returns
    -------
    Tensor (tokens,) or (B, tokens)
        Flat index (first axis slowest) of the partner, -1 where there is none.

    Notes
    -----
    Source: S²DC, section 3.2; one matrix and its exact inverse.
    """
    centres = token_centres(grid_shape, token_size_vox, affine.matrix.device)
    forward = _cells(affine.inverse().map_points(centres), grid_shape, token_size_vox)
    back = _cells(affine.map_points(centres), grid_shape, token_size_vox)
    returned = torch.gather(back, -1, forward.clamp(min=0))
    source = torch.arange(len(centres), device=forward.device)
    return torch.where((forward >= 0) & (returned == source), forward, -1)


def correspondences(
    affine: Affine3D, grid_shape: Sequence[int], token_size_vox: float
) -> torch.LongTensor:
    """List the true token pairs of two views of one volume.

    Parameters
    ----------
    affine : Affine3D
        A single map (not a batch) that warps the image into view 2.
    grid_shape : sequence of 3 ints
        Tokens along each array axis.
    token_size_vox : float
        Side of a token in voxels.

    Returns
    -------
    LongTensor (pairs, 2)
        Flat token indices (first axis slowest): source token, token of view 2. No token occurs
        twice in a column.
    """
    partner = partners(affine, grid_shape, token_size_vox)
    source = torch.nonzero(partner >= 0)[:, 0]
    return torch.stack([source, partner[source]], dim=1)  # type: ignore[return-value]


def pair_matrix(partner: Tensor, grid_shape: Sequence[int], *, per_slice: bool) -> Tensor:
    """Boolean matrices of true pairs, one per matching problem.

    Parameters
    ----------
    partner : Tensor (B, tokens)
        As returned by :func:`partners`.
    grid_shape : sequence of 3 ints
        Tokens along (z, y, x).
    per_slice : bool
        True: every z-slice of tokens is one problem, and a pair that leaves its slice counts as
        unmatched. False: one problem of all tokens.

    Returns
    -------
    Tensor (problems, n, n)
        ``[p, i, j]`` is True where token ``i`` of view 1 corresponds to token ``j`` of view 2.
    """
    per_problem = grid_shape[1] * grid_shape[2] if per_slice else partner.shape[1]
    rows = partner.reshape(-1, per_problem)
    first = torch.arange(len(rows), device=partner.device) % (partner.shape[1] // per_problem)
    local = torch.where(rows >= 0, rows - (first * per_problem)[:, None], -1)
    columns = torch.arange(per_problem, device=partner.device)
    return local[:, :, None] == columns


def problems(grid_values: Tensor, *, per_slice: bool) -> Tensor:
    """Group values on the token grid into matching problems.

    Parameters
    ----------
    grid_values : Tensor (B, C, Z, Y, X)
        Features (or C = 1 values) on the token grid.
    per_slice : bool
        One problem per z-slice, or one per volume.

    Returns
    -------
    Tensor (problems, n, C)
        Tokens of each problem, first axis slowest.
    """
    if per_slice:
        return rearrange(grid_values, "b c z y x -> (b z) (y x) c")
    return rearrange(grid_values, "b c z y x -> b (z y x) c")
