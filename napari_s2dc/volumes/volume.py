"""A scan in memory: canonical axes, and the way back to the grid of its file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.errors import VolumeError

__all__ = ["OriginalGeometry", "Volume", "canonical_axes", "index_map"]

# Canonical array axes as (axis of RAS+ space, sign): Superior, Posterior, Left.
CANONICAL = ((2, 1.0), (1, -1.0), (0, -1.0))
# RAS+ (x, y, z) mm to LPS mm in (z, y, x) order.
RAS_TO_ZYX_LPS = np.array(
    [[0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)


def canonical_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which file axis becomes which canonical axis, and whether it is reversed.

    Parameters
    ----------
    affine : np.ndarray
        (4, 4), file voxels to mm, RAS+.

    Returns
    -------
    permutation : tuple of int
        File axis that becomes canonical axis 0 (Superior), 1 (Posterior), 2 (Left).
    flips : tuple of bool
        Whether that axis is reversed on the way.

    Raises
    ------
    VolumeError
        The affine does not span three dimensions.

    Notes
    -----
    Each file axis is matched to the closest anatomical one (``nibabel.io_orientation``), so an
    oblique scan is permuted and flipped but never interpolated.
    """
    from nibabel.orientations import io_orientation

    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise VolumeError("The scan's affine has a zero or undefined voxel spacing.")
    orientation = io_orientation(affine)
    if not np.isfinite(orientation).all():
        raise VolumeError("The scan's affine does not span three dimensions.")
    ras_axes = orientation[:, 0].astype(int).tolist()
    permutation = [ras_axes.index(ras_axis) for ras_axis, _ in CANONICAL]
    flips = [
        bool(orientation[file_axis, 1] != sign)
        for file_axis, (_, sign) in zip(permutation, CANONICAL, strict=True)
    ]
    return (
        (permutation[0], permutation[1], permutation[2]),
        (flips[0], flips[1], flips[2]),
    )


def index_map(
    shape: tuple[int, ...], permutation: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> np.ndarray:
    """Matrix (4, 4) that takes a canonical voxel index to the voxel index in the file.

    Parameters
    ----------
    shape : tuple of int
        First three sizes of the file's array.
    permutation, flips : tuple
        As returned by :func:`canonical_axes`.
    """
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    for canonical_axis, (file_axis, flip) in enumerate(zip(permutation, flips, strict=True)):
        matrix[file_axis, canonical_axis] = -1.0 if flip else 1.0
        matrix[file_axis, 3] = shape[file_axis] - 1 if flip else 0.0
    return matrix


def _reverse(array: np.ndarray, flips: tuple[bool, bool, bool]) -> np.ndarray:
    return array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


@dataclass(frozen=True)
class OriginalGeometry:
    """Where the voxels of a scan lie in the file it came from.

    Parameters
    ----------
    shape : tuple of int
        Shape of the file's array, in the file's axis order (x fastest in the file first); it may
        hold axes of size 1 beside the three spatial ones.
    affine : np.ndarray
        (4, 4) float64, file voxels to mm, RAS+ (nibabel's convention, whatever the format).
    axis_codes : tuple of str
        Direction in which each spatial file axis increases, such as ``("R", "A", "S")``.
    header : dict
        What the format needs to write the same grid again.
    format : str
        ``nifti``, ``nrrd``, ``mha``, ``mgh`` or ``dicom``.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    axis_codes: tuple[str, str, str]
    header: dict[str, Any] = field(default_factory=dict, repr=False)
    format: str = "nifti"

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """Sizes of the three spatial axes in the file's order."""
        shape = self.header.get("spatial_shape", self.shape[:3])
        return int(shape[0]), int(shape[1]), int(shape[2])


@dataclass
class Volume:
    """One scan or label map, (z, y, x) with LPS directions.

    Parameters
    ----------
    array : np.ndarray
        (z, y, x); index 0 increases to Superior, 1 to Posterior, 2 to the patient's Left.
        float32 for images, an integer type for labels.
    affine : np.ndarray
        (4, 4) float64: ``affine @ (z, y, x, 1)`` of a voxel index is its position
        ``(z, y, x, 1)`` in LPS mm, rows and columns both in (z, y, x) order. Near diagonal with
        positive entries; the off-diagonal part is the rotation of an oblique scan.
    original : OriginalGeometry, optional
        Grid of the file; ``None`` for a scan made or resampled in memory.
    path : Path, optional
        File or folder the scan was read from.
    name : str
        Short name to show.
    units : str
        Unit of the affine; always ``"mm"``.
    modality : str, optional
        ``"ct"``, ``"mr"`` or ``"pet"`` where the file states it.
    """

    array: np.ndarray
    affine: np.ndarray
    original: OriginalGeometry | None = None
    path: Path | None = None
    name: str = "volume"
    units: str = "mm"
    modality: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes (z, y, x)."""
        sizes = self.array.shape
        return int(sizes[0]), int(sizes[1]), int(sizes[2])

    def voxels_hash(self) -> str:
        """Hash of the voxels alone: those of equal scans are equal."""
        digest = hashlib.sha256()
        for plane in self.array:  # a view need not be copied whole
            digest.update(np.ascontiguousarray(plane).data)
        return digest.hexdigest()[:32]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxels along (z, y, x)."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Position (z, y, x) in LPS mm of voxel (0, 0, 0)."""
        z, y, x = self.affine[:3, 3]
        return float(z), float(y), float(x)

    @property
    def is_oblique(self) -> bool:
        """Whether the voxel axes are turned or sheared against the anatomical axes."""
        matrix = self.affine[:3, :3]
        off_diagonal = np.abs(matrix - np.diag(np.diag(matrix))).max()
        return bool(off_diagonal > 1e-4 * np.abs(matrix).max())

    @property
    def affine_ras(self) -> np.ndarray:
        """(4, 4): (z, y, x) voxel index to (x, y, z) mm in RAS+ space."""
        return np.linalg.inv(RAS_TO_ZYX_LPS) @ self.affine

    def to_mm(self, points_vox: np.ndarray) -> np.ndarray:
        """Positions (..., 3) in LPS mm of voxel indices (..., 3), both (z, y, x)."""
        points = np.asarray(points_vox, dtype=np.float64)
        return points @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_vox(self, points_mm: np.ndarray) -> np.ndarray:
        """Voxel indices (..., 3), not rounded, of positions (..., 3) in LPS mm."""
        points = np.asarray(points_mm, dtype=np.float64) - self.affine[:3, 3]
        return points @ np.linalg.inv(self.affine[:3, :3]).T

    def with_array(self, array: np.ndarray, *, name: str | None = None) -> Volume:
        """Return another array of the same shape on this volume's grid.

        Raises
        ------
        VolumeError
            The shapes differ.
        """
        if array.shape != self.array.shape:
            raise VolumeError(
                f"An array of shape {array.shape} does not lie on the grid of {self.name}, "
                f"which is {self.array.shape}."
            )
        return replace(self, array=array, name=self.name if name is None else name)

    def to_original(self, array: np.ndarray | None = None) -> np.ndarray:
        """Bring an array (z, y, x) back to the file's own axis order and directions.

        Parameters
        ----------
        array : np.ndarray, optional
            (z, y, x) on this volume's grid; the volume's own array when left out.

        Returns
        -------
        np.ndarray
            Array of shape ``original.shape``, same values and type; nothing is interpolated.

        Raises
        ------
        VolumeError
            The volume did not come from a file, or the shape is not this volume's.
        """
        if array is None:
            array = self.array
        if self.original is None:
            raise VolumeError(f"{self.name} was not read from a file, so it has no original grid.")
        if tuple(array.shape) != self.shape:
            raise VolumeError(
                f"An array of shape {tuple(array.shape)} cannot be put on the original grid of "
                f"{self.name}, whose shape in (z, y, x) is {self.shape}.",
                "Resample it to the scan's grid first.",
            )
        permutation, flips = canonical_axes(self.original.affine)
        flipped = _reverse(array, flips)
        in_file_order = np.transpose(flipped, np.argsort(permutation))
        return np.ascontiguousarray(in_file_order).reshape(self.original.shape)

    @classmethod
    def from_file_array(
        cls,
        array: np.ndarray,
        affine_ras: np.ndarray,
        *,
        header: dict[str, Any] | None = None,
        file_format: str = "nifti",
        file_shape: tuple[int, ...] | None = None,
        path: Path | None = None,
        name: str = "volume",
        modality: str | None = None,
    ) -> Volume:
        """Build the canonical volume of an array in its file's axis order.

        Parameters
        ----------
        array : np.ndarray
            Three-dimensional, axes as in the file.
        affine_ras : np.ndarray
            (4, 4), voxels of ``array`` to mm, RAS+.
        file_shape : tuple of int, optional
            Shape in the file when axes of size 1 were dropped from ``array``.
        header, file_format, path, name, modality
            Kept with the volume.

        Raises
        ------
        VolumeError
            The affine does not span three dimensions.
        """
        from nibabel.orientations import aff2axcodes

        affine_ras = np.asarray(affine_ras, dtype=np.float64)
        permutation, flips = canonical_axes(affine_ras)
        canonical = _reverse(np.transpose(array, permutation), flips)
        codes = aff2axcodes(affine_ras)
        original = OriginalGeometry(
            shape=tuple(int(size) for size in (file_shape or array.shape)),
            affine=affine_ras,
            axis_codes=(str(codes[0]), str(codes[1]), str(codes[2])),
            header={**(header or {}), "spatial_shape": tuple(array.shape)},
            format=file_format,
        )
        return cls(
            array=np.ascontiguousarray(canonical),
            affine=RAS_TO_ZYX_LPS @ affine_ras @ index_map(array.shape, permutation, flips),
            original=original,
            path=path,
            name=name,
            modality=modality,
        )
