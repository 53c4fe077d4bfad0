"""Reading one file format each, through MONAI's readers, in the file's own axis order."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.errors import S2DCError, VolumeError

__all__ = [
    "FileArray",
    "FileHeader",
    "format_of",
    "load_file",
    "load_header",
    "one_sentence",
    "without_voxels",
]

SUFFIXES = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "mha",
    ".mhd": "mha",
    ".mgh": "mgh",
    ".mgz": "mgh",
    ".dcm": "dicom",
    ".ima": "dicom",
}
READABLE = "NIfTI (.nii, .nii.gz), NRRD, MHA/MHD, MGH/MGZ or a folder with a DICOM series"
MODALITIES = {"CT": "ct", "MR": "mr", "PT": "pet"}
# Of NIfTI's spatial units those that are not mm; 1 is the metre, 3 the micrometre.
MM_OF_UNIT_CODE = {1: 1000.0, 3: 0.001}
NIFTI_MARKS = {b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0"}


@dataclass
class FileHeader:
    """Grid of a file, in its own axis order.

    Parameters
    ----------
    shape : tuple of int
        Shape of the file's array.
    affine : np.ndarray
        (4, 4), voxels to mm, RAS+.
    dtype : str
        Stored type.
    channels : int
        Values per voxel.
    fields : dict
        Format's own header, for writing back.
    format : str
        Name of the format.
    modality : str, optional
        ``ct``, ``mr`` or ``pet`` where the file states it.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: str
    channels: int = 1
    fields: dict[str, Any] = field(default_factory=dict)
    format: str = "nifti"
    modality: str | None = None


@dataclass
class FileArray:
    """Voxels of a file in its own axis order, with its header."""

    array: np.ndarray
    header: FileHeader


def without_voxels(header: FileHeader) -> FileArray:
    """Stand for a file that its header alone rules out."""
    return FileArray(np.empty(header.shape, np.uint8), header)


# What the readers say of a file that ends too early, where they do not raise an EOFError.
_TRUNCATED = (
    "mmap length",
    "file be damaged",
    "buffer size must be a multiple",  # NRRD, as the next
    "Size of the data does not equal",
)


@contextmanager
def one_sentence(path: Path) -> Iterator[None]:
    """Turn whatever a file library raises while reading into one sentence about `path`."""
    try:
        yield
    except S2DCError:
        raise
    except MemoryError as error:
        raise VolumeError(f"{path} does not fit into memory.") from error
    except FileNotFoundError as error:
        what = "refers to a file that does not exist" if path.exists() else "does not exist"
        raise VolumeError(f"{path} {what}.") from error
    except PermissionError as error:
        raise VolumeError(f"{path} cannot be read: permission denied.") from error
    except EOFError as error:
        raise VolumeError(
            f"{path} is truncated: it ends before its last voxel.", "Copy or download it again."
        ) from error
    except Exception as error:  # the readers raise a dozen unrelated types for a broken file
        message = " ".join(str(error).split("ITK ERROR:")[-1].split())
        reason = (message or type(error).__name__)[:200].rstrip("?.")
        if any(words in message for words in _TRUNCATED):
            reason = f"it seems truncated ({reason})"
        raise VolumeError(f"{path} cannot be read: {reason}.") from error


def format_of(path: Path) -> str | None:
    """Format by the end of the file's name, ``None`` when it is none of ours."""
    name = path.name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return SUFFIXES[suffix]
    return None


def check_start(path: Path, file_format: str) -> None:
    """Refuse a file whose first bytes do not fit the format its name promises.

    Raises
    ------
    VolumeError
        Empty file, or another kind of content.
    """
    import gzip

    with path.open("rb") as stream:
        start = stream.read(400)
    name = path.name.lower()
    if not start:
        raise VolumeError(f"{path} is empty.", "Copy or download it again.")
    compressed = start[:2] == b"\x1f\x8b"
    if name.endswith((".nii.gz", ".mgz")) and not compressed:
        raise VolumeError(
            f"{path} is not gzip-compressed although its name ends like it.",
            "Rename it to its true format or compress it.",
        )
    if file_format == "nifti" and compressed and name.endswith(".gz"):
        with gzip.open(path) as stream:
            start = stream.read(400)
    marks = (start[344:348], start[4:8])  # of NIfTI-1 and NIfTI-2
    if file_format == "nifti" and len(start) >= 348 and not {*marks} & NIFTI_MARKS:
        raise VolumeError(f"{path} is not a NIfTI file although its name ends like one.")
    if file_format == "nrrd" and not start.startswith(b"NRRD"):
        raise VolumeError(f"{path} is not a NRRD file although its name ends like one.")


# ---------------------------------------------------------------------------- NIfTI and MGH
@contextmanager
def _mgh_image(path: Path) -> Iterator[Any]:
    # Loaded by name, nibabel leaves an uncompressed MGH file open.
    import gzip

    from nibabel.freesurfer import MGHImage

    compressed = path.name.lower().endswith(".mgz")
    with gzip.open(path) if compressed else path.open("rb") as stream:
        yield MGHImage.from_stream(stream)


def _nibabel_header(image: Any, file_format: str) -> FileHeader:
    stored = image.header
    dtype = stored.get_data_dtype()
    channels = 1 if dtype.fields is None else len(dtype.fields)
    if np.issubdtype(dtype, np.complexfloating):
        channels = 2
    fields: dict[str, Any] = {}
    affine = np.array(image.affine, dtype=np.float64)
    if file_format == "nifti":
        affine[:3] *= MM_OF_UNIT_CODE.get(int(stored["xyzt_units"]) & 7, 1.0)
        fields = {"header": stored.copy(), "class": type(image)}
    shape = tuple(int(size) for size in image.shape)
    return FileHeader(shape, affine, str(dtype), channels, fields, file_format)


def _check_pixdim(path: Path, image: Any) -> None:
    """Refuse a spacing of zero, which nibabel replaces by 1 mm when it loads."""
    from nibabel.openers import ImageOpener

    with ImageOpener(str(path)) as stream:
        raw = type(image).header_class.from_fileobj(stream, check=False)
    spacing = np.asarray(raw["pixdim"][1:4], dtype=float)
    # A sform states the spacing itself.
    if int(raw["sform_code"]) <= 0 and (not np.isfinite(spacing).all() or (spacing == 0).any()):
        raise VolumeError(f"{path} states a voxel spacing of zero.")


@functools.cache
def _without_remarks() -> None:
    """Drop nibabel's line on standard error about what `_check_pixdim` looks at."""
    from nibabel.imageglobals import logger

    logger.addFilter(lambda record: "pixdim[1,2,3] should be non-zero" not in record.getMessage())


def _nifti_header(path: Path) -> FileHeader:
    import nibabel

    _without_remarks()
    image: Any = nibabel.load(path)
    _check_pixdim(path, image)
    return _nibabel_header(image, "nifti")


def _nifti_array(path: Path) -> FileArray:
    from monai.data.image_reader import NibabelReader

    header = _nifti_header(path)
    if header.channels > 1:
        return without_voxels(header)
    # The affine is taken from the untouched header: MONAI may replace a sform by the qform.
    reader = NibabelReader()
    array, _ = reader.get_data(reader.read(str(path)))
    return FileArray(np.asarray(array), header)


def _mgh_header(path: Path) -> FileHeader:
    with _mgh_image(path) as image:
        return _nibabel_header(image, "mgh")


def _mgh_array(path: Path) -> FileArray:
    from monai.data.image_reader import NibabelReader

    with _mgh_image(path) as image:
        reader = NibabelReader()
        reader.filenames = [str(path)]
        array, _ = reader.get_data(image)
        return FileArray(np.array(array), _nibabel_header(image, "mgh"))


# ---------------------------------------------------------------------------------- choosing
def load_header(path: Path, file_format: str) -> FileHeader:
    """Header of a NIfTI, MGH, NRRD or MHA file, without its voxels.

    Raises
    ------
    VolumeError
        The file cannot be read, or is not of that format.
    """
    from napari_s2dc.volumes.metaimage import mha_header
    from napari_s2dc.volumes.nrrd_file import nrrd_header

    read = {"nifti": _nifti_header, "mgh": _mgh_header, "nrrd": nrrd_header, "mha": mha_header}
    with one_sentence(path):
        check_start(path, file_format)
        return read[file_format](path)


def load_file(path: Path, file_format: str) -> FileArray:
    """Voxels and header of a NIfTI, MGH, NRRD or MHA file.

    Raises
    ------
    VolumeError
        The file cannot be read, or is not of that format.
    """
    from napari_s2dc.volumes.metaimage import load_mha
    from napari_s2dc.volumes.nrrd_file import load_nrrd

    read = {"nifti": _nifti_array, "mgh": _mgh_array, "nrrd": load_nrrd, "mha": load_mha}
    with one_sentence(path):
        check_start(path, file_format)
        return read[file_format](path)
