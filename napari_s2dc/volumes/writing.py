"""Write a result on the grid of the scan it belongs to, voxel for voxel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.errors import S2DCError, VolumeError
from napari_s2dc.files import replace_atomically
from napari_s2dc.volumes.formats import format_of
from napari_s2dc.volumes.nrrd_file import NRRD_SPACES
from napari_s2dc.volumes.results import mark_nifti, mark_nrrd
from napari_s2dc.volumes.segments import is_segment_field
from napari_s2dc.volumes.volume import OriginalGeometry, Volume, index_map

__all__ = ["write_volume"]


def write_volume(
    path: str | Path,
    array_zyx: np.ndarray,
    like: Volume,
    *,
    result: str = "",
    by: str = "",
    segments: Mapping[str, Any] | None = None,
) -> Path:
    """Write an array on the original grid of the scan it was made from.

    Parameters
    ----------
    path : str or Path
        Ends with ``.nii``, ``.nii.gz`` or ``.nrrd``; its folder is created. The file appears
        whole or not at all, and an older one stays until then.
    array_zyx : np.ndarray
        (z, y, x) on the grid of `like`. Its type is kept where the format has it: bool becomes
        uint8, 64-bit integers 32-bit when they fit, float16 float32.
    like : Volume
        Scan read from a file: shape, axis order, affine, header (qform and sform codes) are its
        file's. A volume without a file is written on its own grid, axes (x, y, z).
    result : str
        What the array is where it is no scan, such as ``"similarity map"``: noted in the header,
        so that :func:`napari_s2dc.volumes.results.result_in` knows the file again.
    by : str
        What made the result, noted beside it for :func:`napari_s2dc.volumes.results.maker_of`.
    segments : mapping, optional
        Header fields that name the classes of a label map, of
        :func:`napari_s2dc.volumes.segments.segment_fields`. NRRD has them; NIfTI does not.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    VolumeError
        Another ending, a shape that is not that of `like`, or the disk refuses.
    """
    path = Path(path)
    file_format = format_of(path)
    if file_format not in ("nifti", "nrrd") or path.suffix.lower() == ".nhdr":
        raise VolumeError(
            f"{path} cannot be written: results are NIfTI or NRRD.",
            "End the name with .nii, .nii.gz or .nrrd.",
        )
    grid = like.original or _own_grid(like)
    array = _storable(path, _with_grid(like, grid).to_original(np.asarray(array_zyx)))
    try:
        with replace_atomically(path) as partial:
            if file_format == "nifti":
                _write_nifti(partial, array, grid, result, by)
            else:
                _write_nrrd(partial, array, grid, result, by, segments or {})
    except VolumeError:
        raise
    except S2DCError as error:
        raise VolumeError(error.sentence, error.hint) from error
    return path


def _own_grid(volume: Volume) -> OriginalGeometry:
    """Grid (x, y, z) increasing to Left, Posterior, Superior for a volume without a file."""
    z, y, x = volume.shape
    to_canonical = np.linalg.inv(index_map((x, y, z), (2, 1, 0), (False, False, False)))
    return OriginalGeometry((x, y, z), volume.affine_ras @ to_canonical, ("L", "P", "S"))


def _with_grid(volume: Volume, grid: OriginalGeometry) -> Volume:
    return Volume(volume.array, volume.affine, original=grid, name=volume.name)


def _storable(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype in (np.int64, np.uint64):
        limits = np.iinfo(np.int32)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise VolumeError(f"{path} cannot be written: a value does not fit 32 bits.")
        return array.astype(np.int32)
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise VolumeError(f"{path} cannot be written: values of type {array.dtype}.")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _write_nifti(
    path: Path, array: np.ndarray, grid: OriginalGeometry, result: str, by: str
) -> None:
    import nibabel

    if grid.format == "nifti" and "header" in grid.header:
        header = grid.header["header"].copy()
        header.set_data_dtype(array.dtype)
        header["cal_min"] = header["cal_max"] = 0
        # Without an affine nibabel keeps qform, sform and both codes as they are.
        image: Any = grid.header["class"](array, None, header)
    else:
        image = nibabel.Nifti1Image(array, grid.affine)
        image.set_sform(grid.affine, code=1)
        image.set_qform(grid.affine, code=1)
        if not np.allclose(image.get_qform(), grid.affine, atol=1e-4):
            image.set_qform(None, code=0)  # a shear has no quaternion
        image.header.set_xyzt_units("mm")
    mark_nifti(image.header, result, by)
    nibabel.save(image, path)


def _write_nrrd(
    path: Path,
    array: np.ndarray,
    grid: OriginalGeometry,
    result: str,
    by: str,
    segments: Mapping[str, Any],
) -> None:
    import nrrd

    if grid.format == "nrrd":
        fields = dict(grid.header["header"])
        # Those describe the old file's bytes.
        for name in ("type", "encoding", "endian", "sizes", "data file", "line skip", "byte skip"):
            fields.pop(name, None)
        if segments:  # the file's own are those of other labels
            fields = {name: value for name, value in fields.items() if not is_segment_field(name)}
    else:
        array = array.reshape(grid.spatial_shape)
        lps = np.diag([*NRRD_SPACES["left-posterior-superior"], 1.0]) @ grid.affine
        fields = {
            "space": "left-posterior-superior",
            "kinds": ["domain", "domain", "domain"],
            "space directions": lps[:3, :3].T,
            "space origin": lps[:3, 3],
        }
    fields.update(segments)
    mark_nrrd(fields, result, by)
    nrrd.write(str(path), array, header=fields, index_order="F")
