"""Find, read, check and write scans: NIfTI, NRRD, MHA, MGH and DICOM series."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes import dicom, formats
from napari_s2dc.volumes.formats import READABLE, FileHeader
from napari_s2dc.volumes.volume import Volume, canonical_axes
from napari_s2dc.volumes.writing import write_volume

__all__ = [
    "VolumeHeader",
    "check_values",
    "find_volumes",
    "is_label_path",
    "read_header",
    "read_volume",
    "write_volume",
]

LABEL_WORDS = ("label", "labels", "labelstr", "seg", "segmentation", "mask", "dseg", "aseg")


@dataclass(frozen=True)
class VolumeHeader:
    """What is known of a scan without its voxels.

    Parameters
    ----------
    shape_zyx : tuple of int
        Size along (z, y, x) after canonical ordering.
    spacing_mm : tuple of float
        Voxel spacing along (z, y, x) in mm.
    dtype : str
        Type stored in the file.
    modality : str, optional
        ``ct``, ``mr`` or ``pet`` where the file states it (DICOM does).
    """

    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    dtype: str
    modality: str | None = None


def _scan_name(path: Path) -> str:
    name = path.name
    for suffix in sorted(formats.SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)] or name
    return name


def _existing_format(path: Path) -> str:
    """Format of an existing file or folder; VolumeError when there is none."""
    with formats.one_sentence(path):
        if not path.exists():
            raise VolumeError(f"{path} does not exist.")
        if path.is_dir():
            next(path.iterdir(), None)  # raises where the folder may not be read
            return "dicom"
        with path.open("rb"):
            pass
    file_format = formats.format_of(path)
    if file_format is None and dicom.is_dicom_file(path):
        return "dicom"
    if file_format is None:
        raise VolumeError(f"{path} is not a format that can be read.", f"Use {READABLE}.")
    return file_format


def _spatial_axes(path: Path, header: FileHeader) -> tuple[int, ...]:
    """Shape without axes of size 1 beyond the third; VolumeError unless it is one 3D scan."""
    shape = list(header.shape)
    if header.channels > 1:
        raise VolumeError(
            f"{path} holds {header.channels} values per voxel (colour or vector image).",
            "A scan has one.",
        )
    while len(shape) > 3 and 1 in (shape[-1], shape[0]):
        shape.pop(-1 if shape[-1] == 1 else 0)
    if len(shape) > 3:
        raise VolumeError(
            f"{path} has {len(shape)} dimensions {tuple(header.shape)}; a scan has 3.",
            "Split it into one file per time point or channel.",
        )
    if len(shape) < 3 or min(shape) < 2:
        raise VolumeError(f"{path} is a 2D image of shape {tuple(header.shape)}, not a 3D scan.")
    return tuple(shape)


def read_header(path: str | Path) -> VolumeHeader:
    """Size and spacing of a scan, without reading its voxels.

    Parameters
    ----------
    path : str or Path
        File, or folder with a DICOM series.

    Returns
    -------
    VolumeHeader

    Raises
    ------
    VolumeError
        Missing, unreadable, not a 3D scan, zero spacing. A file that is truncated inside its
        compressed voxels shows only in :func:`read_volume`.
    """
    path = Path(path)
    file_format = _existing_format(path)
    if file_format == "dicom":
        header = dicom.series_header(path)
    else:
        header = formats.load_header(path, file_format)
    shape = _spatial_axes(path, header)
    permutation, _ = _axes_of(path, header)
    lengths = np.linalg.norm(header.affine[:3, :3], axis=0)
    z, y, x = permutation
    return VolumeHeader(
        shape_zyx=(shape[z], shape[y], shape[x]),
        spacing_mm=(float(lengths[z]), float(lengths[y]), float(lengths[x])),
        dtype=header.dtype,
        modality=header.modality,
    )


def _axes_of(
    path: Path, header: FileHeader
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    try:
        return canonical_axes(header.affine)
    except VolumeError as error:
        raise VolumeError(f"{path} has a zero or undefined voxel spacing.") from error


def read_volume(path: str | Path, *, labels: bool = False) -> Volume:
    """Read a scan or a label map into canonical (z, y, x) LPS order.

    Parameters
    ----------
    path : str or Path
        NIfTI, NRRD, MHA/MHD or MGH/MGZ file, a folder with one DICOM series, or one file of a
        DICOM series (its neighbours in the folder are read with it).
    labels : bool
        The file holds structure numbers: keep integers.

    Returns
    -------
    Volume
        float32 for images, with the file's scaling applied; integers for labels. Axes are
        permuted and reversed, never interpolated. Values are not judged here
        (:func:`check_values` does).

    Raises
    ------
    VolumeError
        Missing, unreadable or truncated file, not one 3D scan, zero spacing, or labels that are
        not whole numbers.
    """
    path = Path(path)
    file_format = _existing_format(path)
    if file_format == "dicom":
        loaded = dicom.load_series(path)
    else:
        loaded = formats.load_file(path, file_format)
    header = loaded.header
    shape = _spatial_axes(path, header)
    _axes_of(path, header)
    array = loaded.array.reshape(shape)
    return Volume.from_file_array(
        _as_labels(path, array) if labels else _as_image(path, array),
        header.affine,
        header=header.fields,
        file_format=header.format,
        file_shape=header.shape,
        path=path,
        name=_scan_name(path),
        modality=header.modality,
    )


def _as_image(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise VolumeError(f"{path} holds values of type {array.dtype}, not plain numbers.")
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _as_labels(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "iu":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    with np.errstate(invalid="ignore"):
        whole = np.rint(array).astype(np.int32)
    if array.dtype.kind != "f" or not np.array_equal(whole, array):
        raise VolumeError(f"{path} is not a label map: its values are not whole numbers.")
    return whole


def check_values(volume: Volume) -> None:
    """Refuse a scan that nothing can be learned from.

    Parameters
    ----------
    volume : Volume
        An image in memory, from any source.

    Raises
    ------
    VolumeError
        Not three-dimensional, zero spacing, NaN or infinite values, or one value everywhere.
    """
    what = str(volume.path or volume.name)
    array = volume.array
    if array.ndim != 3 or min(array.shape) < 2:
        raise VolumeError(f"{what} has shape {array.shape}; a scan has three dimensions.")
    spacing = np.asarray(volume.spacing_mm)
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise VolumeError(f"{what} has a zero or undefined voxel spacing.")
    # The sum is not finite when any value is not; the full scan is needed only then.
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(array.size - np.isfinite(array).sum())
        raise VolumeError(
            f"{what} holds NaN or infinite values in {count} of {array.size} voxels.",
            "Replace them in the file, for example by the background value.",
        )
    if low == high:
        raise VolumeError(f"{what} has the same value, {low:g}, in every voxel.")


def is_label_path(path: str | Path) -> bool:
    """Whether a file's name or folder says that it holds labels (``labelsTr/``, ``x_seg.nii``)."""
    path = Path(path)
    words = _scan_name(path).lower().replace("-", "_").replace(".", "_").split("_")
    return path.parent.name.lower() in ("labels", "labelstr", "labelsts") or any(
        word in LABEL_WORDS for word in words
    )


def find_volumes(folder: str | Path) -> list[Path]:
    """All scans below a folder, sorted by path.

    Parameters
    ----------
    folder : str or Path
        Searched with its subfolders; hidden files and folders are left out, links followed.

    Returns
    -------
    list of Path
        Files; for DICOM the folder of a series, or one file of each where a folder holds
        several series. Label maps are listed too (see :func:`is_label_path`), and folders that
        may not be entered, so that whoever reads them learns why.

    Raises
    ------
    VolumeError
        The folder does not exist or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VolumeError(f"{folder} is not a folder.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise VolumeError(f"{folder} cannot be read: permission denied.")
    found: list[Path] = []
    visited: set[str] = set()

    def note(error: OSError) -> None:
        found.append(Path(error.filename))

    for where, subfolders, names in os.walk(folder, onerror=note, followlinks=True):
        true_path = os.path.realpath(where)
        if true_path in visited:
            subfolders.clear()
            continue
        visited.add(true_path)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found.extend(_volumes_here(Path(where), names))
    return sorted(found)


def _volumes_here(where: Path, names: list[str]) -> list[Path]:
    visible = [where / name for name in sorted(names) if not name.startswith(".")]
    by_name = [path for path in visible if formats.format_of(path) not in (None, "dicom")]
    others = [path for path in visible if formats.format_of(path) in (None, "dicom")]
    if not any(dicom.is_dicom_file(path) for path in others):
        return by_name
    series = dicom.volumes_in(where)
    if len(series) == 1:
        return [*by_name, where]
    return [*by_name, *(group[0].path for group in series)]
