"""MHA/MHD, and whatever else ITK reads best, through MONAI's ITK reader."""

from __future__ import annotations

import functools
import threading
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.formats import FileArray, FileHeader, without_voxels

__all__ = ["itk_array", "load_mha", "mha_header"]

_LOADING = threading.Lock()


@functools.cache
def _loaded_itk() -> ModuleType:
    """Give ITK with the compiled parts that reading needs.

    ITK loads them on first use and changes the working folder of the process meanwhile, so that
    other threads cannot open relative paths. Here that happens once, and never while another
    MetaImage is read; who reads files in several threads names them by absolute paths. The parts
    warn while they load, and where warnings are errors the process crashes there.
    """
    with _LOADING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import itk

        for part in ("CommonEnums", "ImageIOFactory", "ImageFileReader", "PyBuffer"):
            getattr(itk, part)
    return itk


def mha_header(path: Path) -> FileHeader:
    """Grid of a MetaImage file, without its voxels.

    Raises
    ------
    VolumeError
        Not a MetaImage file.
    """
    itk = _loaded_itk()
    mode = itk.CommonEnums.IOFileMode_ReadMode
    image_io = itk.ImageIOFactory.CreateImageIO(str(path), mode)
    if image_io is None:
        raise VolumeError(f"{path} is not a MetaImage file although its name ends like one.")
    image_io.SetFileName(str(path))
    image_io.ReadImageInformation()
    dimension = image_io.GetNumberOfDimensions()
    shape = tuple(int(image_io.GetDimensions(axis)) for axis in range(dimension))
    affine = np.eye(4)
    if dimension >= 3:
        for axis in range(3):
            direction = np.asarray([float(value) for value in image_io.GetDirection(axis)])
            affine[:3, axis] = direction[:3] * image_io.GetSpacing(axis)
            affine[axis, 3] = image_io.GetOrigin(axis)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    dtype = str(image_io.GetComponentTypeAsString(image_io.GetComponentType()))
    channels = int(image_io.GetNumberOfComponents())
    return FileHeader(shape, affine, dtype, channels, {}, "mha")


def itk_array(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array in (x, y, z) order, and RAS+ affine, of a file that ITK reads."""
    from monai.data.image_reader import ITKReader

    _loaded_itk()
    reader = ITKReader(affine_lps_to_ras=True)
    array, meta = reader.get_data(reader.read(str(path)))
    return np.asarray(array), np.asarray(meta["affine"], dtype=np.float64)


def load_mha(path: Path) -> FileArray:
    """Voxels and grid of a MetaImage file.

    Raises
    ------
    VolumeError
        Not a MetaImage file.
    """
    header = mha_header(path)
    if header.channels > 1 or len(header.shape) < 3:
        return without_voxels(header)
    array, header.affine = itk_array(path)
    return FileArray(array, header)
