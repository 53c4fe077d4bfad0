"""DICOM series: which files belong together, in which order, and their voxels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.formats import (
    MODALITIES,
    FileArray,
    FileHeader,
    format_of,
    one_sentence,
)
from napari_s2dc.volumes.metaimage import itk_array

__all__ = ["is_dicom_file", "load_series", "series_files", "series_header", "series_in"]

TAGS = [
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "Modality",
    "BitsAllocated",
    "PixelRepresentation",
]
# Images by their tags, but not scans.
NOT_SCANS = ("SEG", "RTDOSE")
# Share of the slice distance by which single gaps may differ before slices count as missing.
GAP_TOLERANCE = 0.1


@dataclass
class Slice:
    """What is needed of one DICOM file to place it in its series."""

    path: Path
    tags: Any

    @property
    def frames(self) -> int:
        """Images inside this file."""
        return int(self.tags.get("NumberOfFrames", 1) or 1)

    @property
    def orientation(self) -> np.ndarray:
        """Row and column directions, six numbers, LPS."""
        return np.asarray(self.tags.get("ImageOrientationPatient", []), dtype=float)

    @property
    def position(self) -> np.ndarray:
        """Centre of the first voxel, LPS mm."""
        return np.asarray(self.tags.get("ImagePositionPatient", []), dtype=float)

    @property
    def group(self) -> tuple[Any, ...]:
        """Slices of one series, direction and size make one volume."""
        direction = tuple(np.round(self.orientation, 2) + 0.0)
        size = (self.tags.get("Rows"), self.tags.get("Columns"))
        own_file = str(self.path) if self.frames > 1 else ""
        return (str(self.tags.get("SeriesInstanceUID", "")), direction, size, own_file)


def is_dicom_file(path: Path) -> bool:
    """Whether the file carries the DICOM mark after its preamble."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_in(folder: Path) -> list[list[Slice]]:
    """All image series right inside a folder, the one with most slices first.

    One broken file does not hide the others; :func:`series_files` refuses it.

    Parameters
    ----------
    folder : Path
        Searched without its subfolders; file names and order do not matter.

    Returns
    -------
    list of list of Slice
        One list a series, sorted by file name; empty when the folder holds none.
    """
    return _scan_folder(folder)[0]


def _stores_image(tags: Any) -> bool:
    """Whether the file says that it holds an image, as a DICOMDIR, report or plan does not."""
    kind = tags.file_meta.get("MediaStorageSOPClassUID")
    return kind is None or "Image Storage" in kind.name


def _scan_folder(folder: Path) -> tuple[list[list[Slice]], list[Path]]:
    """Series of a folder, and DICOM files that cannot be read."""
    import pydicom

    broken: list[Path] = []
    groups: dict[tuple[Any, ...], list[Slice]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if not is_dicom_file(path):
            if format_of(path) == "dicom":
                broken.append(path)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values against the standard are common
            try:
                tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
                if not tags.get("Rows") and _stores_image(tags):
                    broken.append(path)  # cut off before its image
                if not tags.get("Rows") or tags.get("Modality") in NOT_SCANS:
                    continue  # DICOMDIR, reports, plans
                item = Slice(path, tags)
                groups.setdefault(item.group, []).append(item)
            except Exception:  # pydicom raises many unrelated types for a broken file
                broken.append(path)
    return sorted(groups.values(), key=lambda group: (-len(group), str(group[0].path))), broken


def volumes_in(folder: Path) -> list[list[Slice]]:
    """Series of a folder that make a volume: localisers and single slices left out."""
    return _volumes(series_in(folder))


def _volumes(groups: list[list[Slice]]) -> list[list[Slice]]:
    return [group for group in groups if len(group) > 2 or group[0].frames > 2]


def series_files(path: Path) -> list[Slice]:
    """Slices, sorted along their normal, of the series that `path` stands for.

    Parameters
    ----------
    path : Path
        A folder that holds one series, or any file of the wanted series.

    Raises
    ------
    VolumeError
        No series, several series, colour images, missing or doubled slices.
    """
    if path.is_file() and not is_dicom_file(path):
        raise VolumeError(f"{path} is not a DICOM file although its name ends like one.")
    series, broken = _scan_folder(path if path.is_dir() else path.parent)
    if broken:
        # It may be a slice of this series, at whose end its loss would not show.
        raise VolumeError(
            f"{path} cannot be read whole: the DICOM file {broken[0].name} is broken.",
            "Copy it again, or move it away if it is no slice of this scan.",
        )
    if path.is_dir():
        groups = _volumes(series)
        if not groups and series:
            raise VolumeError(f"{path} holds single DICOM images (2D), not a series of slices.")
        if not groups:
            raise VolumeError(f"{path} holds no DICOM series.")
        if len(groups) > 1:
            raise VolumeError(
                f"{path} holds {len(groups)} DICOM series.",
                f"Name one file of the wanted series instead, such as {groups[0][0].path.name}.",
            )
        slices = groups[0]
    else:
        matching = [group for group in series if any(item.path == path for item in group)]
        if not matching:
            raise VolumeError(f"{path} is a DICOM file without an image.")
        slices = matching[0]
    if int(slices[0].tags.get("SamplesPerPixel", 1) or 1) > 1:
        raise VolumeError(f"{path} holds colour (RGB) images, not a scan.")
    if slices[0].frames > 1:
        return slices
    if len(slices) < 3:
        raise VolumeError(f"{path} is a single DICOM image (2D), not a series of slices.")
    return _sorted_along_normal(path, slices)


def _sorted_along_normal(path: Path, slices: list[Slice]) -> list[Slice]:
    if any(
        item.position.size != 3 or item.orientation.size != 6 or "PixelSpacing" not in item.tags
        for item in slices
    ):
        raise VolumeError(f"{path} has DICOM slices without position, orientation or spacing.")
    across = np.cross(slices[0].orientation[:3], slices[0].orientation[3:])
    heights = np.array([float(item.position @ across) for item in slices])
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    typical = float(np.median(gaps))
    if typical <= 1e-4 or gaps.min() < GAP_TOLERANCE * typical:
        raise VolumeError(
            f"{path} has several DICOM images at one slice position (4D or doubled files).",
            "Keep one time point or echo in the folder.",
        )
    if np.abs(gaps - typical).max() > GAP_TOLERANCE * typical:
        raise VolumeError(
            f"{path} has missing or unevenly spaced DICOM slices: gaps from {gaps.min():.2f} to "
            f"{gaps.max():.2f} mm.",
            "Export the series again, or resample it to even spacing first.",
        )
    return [slices[index] for index in order]


def _affine_ras(slices: list[Slice]) -> np.ndarray:
    """Voxel (x, y, z) to RAS+ mm: columns, rows, slices (DICOM PS3.3 C.7.6.2.1.1)."""
    row_mm, column_mm = (float(value) for value in slices[0].tags.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = slices[0].orientation[:3] * column_mm
    affine[:3, 1] = slices[0].orientation[3:] * row_mm
    affine[:3, 2] = (slices[-1].position - slices[0].position) / (len(slices) - 1)
    affine[:3, 3] = slices[0].position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def series_header(path: Path) -> FileHeader:
    """Grid of a DICOM series from its tags alone.

    Raises
    ------
    VolumeError
        As :func:`series_files`.
    """
    with one_sentence(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values against the standard are common
        slices = series_files(path)
        header = _header_of(slices)
        if slices[0].frames > 1:
            array, header.affine = itk_array(slices[0].path)
            header.shape = array.shape
        return header


def _header_of(slices: list[Slice]) -> FileHeader:
    """Grid of sorted slices; that of a file with many frames is known only once it is read."""
    first = slices[0].tags
    signed = int(first.get("PixelRepresentation", 0) or 0)
    stacked = slices[0].frames == 1
    return FileHeader(
        shape=(int(first.Columns), int(first.Rows), len(slices)),
        affine=_affine_ras(slices) if stacked else np.eye(4),
        dtype=f"{'int' if signed else 'uint'}{first.get('BitsAllocated', 16)}",
        format="dicom",
        modality=MODALITIES.get(str(first.get("Modality", ""))),
    )


def load_series(path: Path) -> FileArray:
    """Voxels of a DICOM series in (column, row, slice) order, rescaled to HU or stored units.

    Raises
    ------
    VolumeError
        As :func:`series_files`; pixel data that cannot be decoded.
    """
    import pydicom
    from monai.data.image_reader import PydicomReader

    with one_sentence(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slices = series_files(path)
        header = _header_of(slices)
        if slices[0].frames > 1:
            array, header.affine = itk_array(slices[0].path)
            header.shape = array.shape
            return FileArray(array, header)
        datasets = []
        for number, item in enumerate(slices, start=1):
            dataset = pydicom.dcmread(item.path)
            dataset.InstanceNumber = number  # the reader stacks by number; ours follows position
            datasets.append(dataset)
        reader = PydicomReader(affine_lps_to_ras=True, swap_ij=True)
        reader.has_series = True
        names: Any = [[str(item.path) for item in slices]]  # one list a series
        reader.filenames = names
        array, meta = reader.get_data(datasets)
        header.affine = np.asarray(meta["affine"], dtype=np.float64)
        return FileArray(np.asarray(array), header)
