"""Where tissues border on each other, however bright they are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["tissue_borders"]

_SIGMA = 0.8
"""Of the Gaussian in voxels: noise of single voxels makes no borders."""
_REACH = 2
_FAINT = 0.009375
"""Slope, in the image's unit a voxel, from which on a border counts by its logarithm."""
_RANGE = 0.5
"""Brings the logarithms to about 0 to 2."""


def tissue_borders(image: Tensor) -> Tensor:
    """Show how steep intensities are, on a logarithmic scale, and not whether they rise or fall.

    A border between two tissues looks alike in scans of any contrast that tells the two apart.

    Parameters
    ----------
    image : Tensor (B, C, Z, Y, X)
        Normalised to [0, 1].

    Returns
    -------
    Tensor (B, C, Z, Y, X)
        ``log(1 + slope / faint) / 2`` of the length of the gradient after a Gaussian of 0.8 voxels;
        0 where the image is flat. The edge of the image is no border, but padding makes one.

    Notes
    -----
    Defined by this project, after descriptors that compare a scan with itself, as MIND (Heinrich et
    al., Medical Image Analysis 2012). Gaussian and difference along an axis are one product with a
    matrix of its length: for crops of 48 voxels on a CPU a tenth of the time that MONAI's
    ``separable_filtering`` takes.
    """
    with torch.autocast(image.device.type, enabled=False):  # half precision drowns faint borders
        dtype, image = image.dtype, image.float()
        matrices = [_smoothing_and_slope(length, image.device) for length in image.shape[-3:]]
        (smooth_z, slope_z), (smooth_y, slope_y), (smooth_x, slope_x) = matrices
        smooth = image @ smooth_x.mT
        along_x = _along_z(smooth_z, smooth_y @ (image @ slope_x.mT))
        along_y = _along_z(smooth_z, slope_y @ smooth)
        along_z = _along_z(slope_z, smooth_y @ smooth)
        squares = along_x.square() + along_y.square() + along_z.square()
        # The square root has no gradient at 0
        slope = (squares + torch.finfo(squares.dtype).tiny).sqrt()
        return (torch.log1p(slope / _FAINT) * _RANGE).to(dtype)


def _along_z(matrix: Tensor, image: Tensor) -> Tensor:
    return (matrix @ image.flatten(-2)).view(image.shape)


def _smoothing_and_slope(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices (length, length) of a Gaussian along an axis, and of its central difference.

    What lies beyond an end is taken to be as the end.
    """
    places = torch.arange(length, device=device)
    steps = torch.arange(-_REACH, _REACH + 1, device=device)
    weights = torch.exp(-steps.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    from_places = (places[:, None] + steps).clamp(0, length - 1)
    # Not scattered, which adds in any order on a GPU
    smooth = ((from_places[..., None] == places) * weights[:, None]).sum(1)
    after, before = (places + 1).clamp(max=length - 1), (places - 1).clamp(min=0)
    return smooth, (smooth[after] - smooth[before]) / 2
