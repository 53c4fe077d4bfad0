"""NRRD, through MONAI's reader; headers may leave out most of the geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.formats import FileArray, FileHeader, without_voxels

__all__ = ["NRRD_SPACES", "load_nrrd", "nrrd_header"]

# Sign of the RAS axes for the world spaces a NRRD header may name.
NRRD_SPACES = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}
_SPATIAL_KINDS = ("domain", "space")
NRRD_KIND_COLOUR = ("rgb-color", "rgba-color", "hsv-color", "xyz-color", "vector", "3-color")


def _complete_nrrd(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a NRRD header may leave out, so that MONAI's reader takes it."""
    if fields.get("space", "left-posterior-superior").lower() not in NRRD_SPACES:
        raise VolumeError(f"{path} uses the NRRD space '{fields['space']}', which is not known.")
    dimension = int(fields["dimension"])
    if "space directions" not in fields:
        spacings = np.asarray(fields.get("spacings", np.ones(dimension)), dtype=float)
        spacings = np.where(np.isnan(spacings), 1.0, spacings)
        spatial = _spatial_axes(fields)
        directions = np.full((max(spatial, default=0) + 1, len(spatial)), np.nan)
        directions[spatial] = np.diag(spacings[spatial])
        fields["space directions"] = directions
    if "space origin" not in fields:
        fields["space origin"] = np.zeros(np.asarray(fields["space directions"]).shape[1])
    return fields


def _spatial_axes(fields: dict[str, Any]) -> list[int]:
    """Axes of space: the three whose kinds say so, otherwise the first three."""
    kinds = [str(kind).lower() for kind in fields.get("kinds", [])]
    named = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL_KINDS]
    return named if len(named) == 3 else list(range(min(3, int(fields["dimension"]))))


def nrrd_header(path: Path) -> FileHeader:
    """Grid of a NRRD file, without its voxels.

    Raises
    ------
    VolumeError
        A world space that is not known.
    """
    import nrrd

    return _nrrd_grid(path, dict(nrrd.read_header(str(path))))


def _nrrd_grid(path: Path, fields: dict[str, Any]) -> FileHeader:
    stored = dict(fields)
    completed = _complete_nrrd(path, dict(fields))
    sizes = [int(size) for size in completed["sizes"]]
    directions = np.asarray(completed["space directions"], dtype=np.float64)
    kinds = [str(kind).lower() for kind in completed.get("kinds", [])]
    spatial = [axis for axis in range(len(directions)) if np.isfinite(directions[axis]).all()]
    channels = int(np.prod([size for axis, size in enumerate(sizes) if axis not in spatial]))
    if any(kind in NRRD_KIND_COLOUR for kind in kinds):
        channels = max(channels, 2)
    affine = np.eye(4)
    if len(spatial) == 3:
        affine[:3, :3] = directions[spatial].T
        affine[:3, 3] = completed["space origin"]
        space = str(completed.get("space", "left-posterior-superior")).lower()
        affine = np.diag([*NRRD_SPACES[space], 1.0]) @ affine
    return FileHeader(
        tuple(sizes), affine, str(completed["type"]), channels, {"header": stored}, "nrrd"
    )


def load_nrrd(path: Path) -> FileArray:
    """Voxels and grid of a NRRD file.

    Raises
    ------
    VolumeError
        A world space that is not known.
    """
    from monai.data.image_reader import NrrdReader

    reader = NrrdReader()
    image: Any = reader.read(str(path))
    header = _nrrd_grid(path, dict(image.header))
    if header.channels > 1:
        return without_voxels(header)
    reader.dtype = image.array.dtype
    image.header.update(_complete_nrrd(path, dict(image.header)))
    array, _ = reader.get_data(image)
    return FileArray(np.asarray(array), header)
