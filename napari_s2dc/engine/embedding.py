"""The embedding of a scan: features on a token grid that knows where its tokens lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.engine.large_arrays import zeros

__all__ = ["Embedding", "Token", "to_voxels"]

_AT_ONCE = 2**16  # tokens that are normalised together

Token = tuple[int, int, int]
"""Place (z, y, x) on the token grid."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features of a scan, or of a region of it, on the token grid.

    Token ``i`` of an axis covers the voxels ``[i * stride, (i + 1) * stride)`` behind the first
    voxel of the region; the last token may reach past the scan.

    Parameters
    ----------
    features : Tensor (C, tz, ty, tx)
        float16, on the CPU. Those of the foreground are the encoder's, and those of the tokens
        next to it, so that values can be interpolated up to its edge; other tokens are background
        that need not have been encoded, and may be 0 in all channels.
    foreground : Tensor (tz, ty, tx)
        Boolean: the token is at least half tissue. Never all False.
    stride : int
        Voxels per token side.
    shape : tuple of int
        Voxels (z, y, x) of what was embedded: the scan, or the region.
    offset_vox : tuple of int
        First voxel of the region in the scan; zeros without a region.
    spacing_mm : tuple of float
        Distance between voxels along (z, y, x).
    affine : np.ndarray (4, 4)
        (z, y, x) voxel of the whole scan to (z, y, x) LPS mm, as ``Volume.affine``.
    name : str
        Name of the scan.
    metadata : dict
        JSON-able facts: ``encoder``, ``weights`` and ``voxels`` (hashes), ``preset``, ``settings``,
        ``window_vox``, ``device``, ``version``, and ``notice``: what a user should know, such as
        that the graphics memory did not suffice, or "".
    """

    features: Tensor
    foreground: Tensor
    stride: int
    shape: tuple[int, int, int]
    offset_vox: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    name: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> Token:
        """Tokens along (z, y, x)."""
        z, y, x = self.foreground.shape
        return z, y, x

    def token_of_voxel(self, voxel: Sequence[float]) -> Token | None:
        """Token that covers a voxel of the scan.

        Parameters
        ----------
        voxel : sequence of 3 floats
            (z, y, x) in the whole scan; voxel ``i`` reaches from ``i - 0.5`` to ``i + 0.5``.

        Returns
        -------
        tuple of int or None
            None outside what was embedded.
        """
        place = np.asarray(voxel, dtype=np.float64) + 0.5 - self.offset_vox
        if not (np.isfinite(place).all() and (place >= 0).all() and (place < self.shape).all()):
            return None
        z, y, x = (int(coordinate // self.stride) for coordinate in place)
        return z, y, x

    def voxel_of_token(self, token: Sequence[int]) -> tuple[float, float, float]:
        """Centre (z, y, x) of a token in voxels of the whole scan."""
        z, y, x = (
            float((index + 0.5) * self.stride - 0.5 + first)
            for index, first in zip(token, self.offset_vox, strict=True)
        )
        return z, y, x

    def token_of_mm(self, point_mm: Sequence[float]) -> Token | None:
        """Token that covers a point (z, y, x) in LPS mm, or None outside."""
        shifted = np.asarray(point_mm, dtype=np.float64) - self.affine[:3, 3]
        voxel = np.linalg.solve(self.affine[:3, :3], shifted)
        # Rounding must not push a point that lies exactly on a border out of the scan.
        return self.token_of_voxel(np.round(voxel, 6).tolist())

    def mm_of_token(self, token: Sequence[int]) -> tuple[float, float, float]:
        """Centre (z, y, x) of a token in LPS mm."""
        z, y, x = self.affine[:3, :3] @ self.voxel_of_token(token) + self.affine[:3, 3]
        return float(z), float(y), float(x)

    def unit(self) -> Tensor:
        """Features of length 1, (tokens, C) float32, first axis slowest; made once.

        Of length 0 where background was not encoded, so that its cosine to anything is 0.
        """
        return self._unit

    @cached_property
    def _unit(self) -> Tensor:
        flat = self.features.reshape(len(self.features), -1).mT
        unit = zeros(flat.shape, torch.float32)
        # Part by part, or the memory would be taken three times over.
        for part, target in zip(flat.split(_AT_ONCE), unit.split(_AT_ONCE), strict=True):
            F.normalize(part.float(), dim=1, out=target)
        return unit


def to_voxels(values: Tensor, shape: Sequence[int], stride: int) -> np.ndarray:
    """Interpolate values at the centres of tokens linearly to voxels.

    Parameters
    ----------
    values : Tensor (tz, ty, tx)
        Numbers on the token grid; where they are NaN, known neighbours count alone.
    shape : sequence of int
        Voxels (z, y, x) of the result; at most ``stride`` times the tokens.
    stride : int
        Voxels per token side.

    Returns
    -------
    np.ndarray (Z, Y, X)
        float32; NaN in the voxels of tokens that are NaN.
    """
    known = values.isfinite()
    corner = tuple(slice(0, int(side)) for side in shape)

    def enlarge(grid: Tensor, mode: str) -> np.ndarray:
        # align_corners is an option of the linear mode only
        options = {} if mode == "nearest" else {"align_corners": False}
        scale = float(stride)
        large = F.interpolate(grid.float()[None, None], scale_factor=scale, mode=mode, **options)
        cut: np.ndarray = large[0, 0][corner].numpy()
        return cut

    if bool(known.all()):
        return np.ascontiguousarray(enlarge(values, "trilinear"))
    weight = enlarge(known, "trilinear")
    total = enlarge(torch.where(known, values, 0.0), "trilinear")
    inside = enlarge(known, "nearest") > 0
    result = np.full(total.shape, np.nan, dtype=np.float32)
    np.divide(total, weight, out=result, where=inside)
    return result
