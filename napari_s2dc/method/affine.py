"""One affine map between two views: the image warp and the point map come from the same matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def _identity(reference: Tensor) -> Tensor:
    return torch.eye(4, dtype=reference.dtype, device=reference.device).expand(
        *reference.shape, 4, 4
    )


def _rotation(angle_rad: Tensor, plane: tuple[int, int]) -> Tensor:
    first, second = plane
    matrix = _identity(angle_rad).clone()
    cosine, sine = torch.cos(angle_rad), torch.sin(angle_rad)
    matrix[..., first, first] = cosine
    matrix[..., second, second] = cosine
    matrix[..., first, second] = sine
    matrix[..., second, first] = -sine
    return matrix


def _scaling(scale: Tensor) -> Tensor:
    matrix = _identity(scale).clone()
    for axis in range(3):
        matrix[..., axis, axis] = scale
    return matrix


def _translation(shift_vox: Tensor) -> Tensor:
    matrix = _identity(shift_vox[..., 0]).clone()
    matrix[..., :3, 3] = shift_vox
    return matrix


def _sampling_grid(theta: Tensor, shape: Sequence[int]) -> Tensor:
    """``F.affine_grid`` as a sum of one term for each axis, without its slow matrix product."""
    z, y, x = (
        ((torch.arange(side, device=theta.device).to(theta) * 2 + 1) / side - 1)[:, None]
        * theta[:, None, :, axis]
        for side, axis in zip(shape, (2, 1, 0), strict=True)
    )
    x = x + theta[:, None, :, 3]
    return z[:, :, None, None] + y[:, None, :, None] + x[:, None, None]


def _shares(volume: Tensor, depth: int) -> int:
    """Into how many equal parts to cut `depth` planes, so that every thread samples some.

    On the CPU, torch shares the work of ``grid_sample`` by entries of the batch alone.
    """
    return math.gcd(depth, torch.get_num_threads()) if volume.device.type == "cpu" else 1


@dataclass(frozen=True)
class Affine3D:
    """Affine map about the centre of a volume, in array-axis order and voxels.

    A warped view shows at output point ``y`` the value of the source at ``matrix @ y``; a source
    point ``x`` therefore appears at ``inverse().map_points(x)``. Points are measured from the
    centre of the volume, with voxel ``i`` of ``n`` at ``i + 0.5 - n / 2``.

    Parameters
    ----------
    matrix : Tensor
        ``(4, 4)`` homogeneous matrix, or ``(B, 4, 4)`` for one map per volume of a batch. Kept in
        float64, so that a map and its inverse agree to rounding.

    Notes
    -----
    Source: S²DC (Pan et al., ICCV 2025), section 3.2, with the exact inverse.
    """

    matrix: Tensor

    @classmethod
    def identity(cls) -> Affine3D:
        """Return the map that leaves every point where it is."""
        return cls(torch.eye(4, dtype=torch.float64))

    @classmethod
    def in_plane(
        cls,
        translation_vox: Sequence[float] | Tensor,
        angle_deg: float | Tensor,
        scale: float | Tensor,
        plane: tuple[int, int] = (1, 2),
    ) -> Affine3D:
        """Compose translation · rotation · scale with translation and rotation in one plane.

        Parameters
        ----------
        translation_vox : sequence of 2 floats or Tensor (..., 2)
            Shift in voxels along the two axes of `plane`.
        angle_deg : float or Tensor (...)
            Rotation in degrees that turns by ``[[cos, sin], [-sin, cos]]`` in `plane`.
        scale : float or Tensor (...)
            Isotropic factor on all three axes.
        plane : tuple of int
            The two array axes, for (z, y, x) volumes ``(1, 2)``.

        Returns
        -------
        Affine3D
            The map, batched when the arguments are.
        """
        in_plane = torch.as_tensor(translation_vox, dtype=torch.float64)
        shift = torch.zeros(*in_plane.shape[:-1], 3, dtype=torch.float64, device=in_plane.device)
        shift[..., list(plane)] = in_plane
        return cls.compose(shift, [(angle_deg, plane)], scale)

    @classmethod
    def compose(
        cls,
        translation_vox: Sequence[float] | Tensor,
        rotations: Sequence[tuple[float | Tensor, tuple[int, int]]],
        scale: float | Tensor,
    ) -> Affine3D:
        """Compose translation · rotations (first named outermost) · scale in three dimensions.

        Parameters
        ----------
        translation_vox : sequence of 3 floats or Tensor (..., 3)
            Shift in voxels along the three array axes.
        rotations : sequence of (angle in degrees, plane)
            Each turns in the plane of two array axes.
        scale : float or Tensor (...)
            Isotropic factor.

        Returns
        -------
        Affine3D
            The composed map.
        """
        matrix = _translation(torch.as_tensor(translation_vox, dtype=torch.float64))
        for angle_deg, plane in rotations:
            angle = torch.as_tensor(angle_deg, dtype=torch.float64) * (math.pi / 180)
            matrix = matrix @ _rotation(angle.to(matrix.device), plane)
        factor = torch.as_tensor(scale, dtype=torch.float64).to(matrix.device)
        return cls(matrix @ _scaling(factor))

    def inverse(self) -> Affine3D:
        """Return the exact inverse of this map."""
        return Affine3D(torch.linalg.inv(self.matrix))

    def translated(self, offset_vox: Tensor) -> Affine3D:
        """Return this map followed by a shift of the source point.

        Parameters
        ----------
        offset_vox : Tensor (..., 3)
            Shift in voxels, added after this map is applied.
        """
        return Affine3D(_translation(offset_vox.to(self.matrix)) @ self.matrix)

    def in_larger_voxels(self, factor: int) -> Affine3D:
        """Return this map for volumes whose voxels are `factor` times as large."""
        matrix = self.matrix.clone()
        matrix[..., :3, 3] /= factor
        return Affine3D(matrix)

    def map_points(self, points_vox: Tensor) -> Tensor:
        """Apply the matrix to points.

        Parameters
        ----------
        points_vox : Tensor (N, 3) or (B, N, 3)
            Points in voxels from the centre of the volume, in array-axis order.

        Returns
        -------
        Tensor
            Mapped points, ``(N, 3)``, or ``(B, N, 3)`` when map or points are batched; float64.
        """
        points = torch.as_tensor(points_vox).to(self.matrix)
        return points @ self.matrix[..., :3, :3].mT + self.matrix[..., None, :3, 3]

    def warp(
        self,
        image: Tensor,
        *,
        output_shape: Sequence[int] | None = None,
    ) -> Tensor:
        """Resample an image so that output point ``y`` shows the source at ``matrix @ y``.

        Parameters
        ----------
        image : Tensor
            ``(D0, D1, D2)``, ``(C, D0, D1, D2)`` or ``(B, C, D0, D1, D2)``, floating point. A
            batched map needs the last form and one map per volume.
        output_shape : sequence of 3 ints, optional
            Size of the result in voxels; the source's by default. Both centres coincide.

        Returns
        -------
        Tensor
            The warped view, interpolated trilinearly, with as many dimensions as `image`; 0 outside
            of the source.
        """
        volume = image.reshape(*(1,) * (5 - image.ndim), *image.shape)
        if volume.device.type == "cpu" and self._keeps_first_axis():
            warped = self._warp_planes(volume, output_shape or volume.shape[-3:])
            return warped.reshape(*image.shape[:-3], *warped.shape[-3:])
        source = torch.tensor(volume.shape[-3:], dtype=torch.float64, device=self.matrix.device)
        target_shape = list(output_shape) if output_shape is not None else list(volume.shape[-3:])
        target = torch.tensor(target_shape, dtype=torch.float64, device=self.matrix.device)
        # grid_sample counts axes from the last and measures from -1 to 1 over the whole edge.
        linear = self.matrix[..., :3, :3] * (target / source[:, None])
        shift = self.matrix[..., :3, 3] * (2 / source)
        theta = torch.cat([linear.flip(-1, -2), shift.flip(-1)[..., None]], dim=-1)
        theta = theta.to(device=volume.device, dtype=volume.dtype)
        theta = theta.expand(volume.shape[0], 3, 4)
        grid = _sampling_grid(theta, target_shape)
        # A single volume is shown several times (not copied), each time for a part of the planes.
        parts = _shares(volume, target_shape[0]) if len(volume) == 1 else 1
        warped = F.grid_sample(
            volume.expand(len(volume) * parts, *volume.shape[1:]),
            grid.reshape(len(volume) * parts, -1, *grid.shape[2:]),
            align_corners=False,
        )
        warped = warped.reshape(len(volume), parts, *warped.shape[1:]).movedim(1, 2)
        return warped.reshape(*image.shape[:-3], *target_shape)

    def _keeps_first_axis(self) -> bool:
        """Whether the first axis is only scaled and shifted."""
        mixed = [self.matrix[..., 0, 1:3], self.matrix[..., 1:3, 0]]
        return not any(bool(part.any()) for part in mixed)

    def _warp_planes(self, volume: Tensor, output_shape: Sequence[int]) -> Tensor:
        """Trilinear warp as a bilinear one in the planes, then a linear one along the first axis.

        The weights are the same products; torch samples planes several times faster on the CPU,
        because all planes share their positions.
        """
        matrix = self.matrix.cpu()
        batch, channels, *sides = volume.shape
        depth, *rest = output_shape
        source, target = (
            torch.tensor(shape, dtype=torch.float64) for shape in (sides, [depth, *rest])
        )
        linear = matrix[..., 1:3, 1:3] * (target[1:] / source[1:, None])
        shift = matrix[..., 1:3, 3] * (2 / source[1:])
        theta = torch.cat([linear.flip(-1, -2), shift.flip(-1)[..., None]], dim=-1).to(volume)
        grid = F.affine_grid(theta.expand(batch, 2, 3), [batch, 1, *rest], align_corners=False)
        parts = channels * _shares(volume, sides[0])
        planes = F.grid_sample(
            volume.reshape(batch * parts, -1, *sides[1:]),
            grid.repeat_interleave(parts, 0),
            align_corners=False,
        )

        place = torch.arange(depth, dtype=torch.float64) + 0.5 - depth / 2
        place = matrix[..., 0, :1] * place + matrix[..., 0, 3:] + (sides[0] - 1) / 2
        distance = place[..., None] - torch.arange(sides[0])
        weight = (1 - distance.abs()).clamp(min=0).to(volume).expand(batch, depth, sides[0])
        columns = planes.view(batch, channels, sides[0], -1)
        return (weight[:, None] @ columns).view(batch, channels, depth, *rest)
