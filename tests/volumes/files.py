"""Scans with known content, written in every format, for the tests of reading and writing."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

# File affines (RAS+): straight, permuted, flipped, anisotropic, shifted by 2 mm, oblique.
ANGLE = np.radians(20)
TURN = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]
) @ np.array(
    [[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]]
)  # fmt: skip


def affine_of(matrix: np.ndarray, origin: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "ras": affine_of(np.diag([1.0, 1.0, 1.0]), (0, 0, 0)),
    "lps": affine_of(np.diag([-1.5, -1.5, 1.5]), (40, 30, -20)),
    "flipped": affine_of(np.diag([2.0, -1.0, -3.0]), (-5, 7, 90)),
    "permuted": affine_of(np.array([[0, 0, 2.0], [-1.0, 0, 0], [0, 1.5, 0]]), (3, -4, 5)),
    "anisotropic": affine_of(np.diag([0.7, 0.8, 5.0]), (-100, -90, 10)),
    "offset 2 mm": affine_of(np.diag([1.0, 1.0, 1.0]), (2, 2, 2)),
    "oblique": affine_of(TURN @ np.diag([0.9, 1.1, 2.5]), (-12.3, 45.6, 7.8)),
    "oblique permuted": affine_of(
        TURN @ np.array([[0, -1.2, 0], [0, 0, 0.8], [3.0, 0, 0]]), (1, 2, 3)
    ),
}
SHAPE = (13, 11, 9)
BLOB_VOX = (9, 3, 6)


def content(dtype: str, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Noise, file axis order, with one bright voxel at BLOB_VOX."""
    random = np.random.default_rng(7)
    if dtype == "float32":
        array = random.normal(0, 50, shape).astype(np.float32)
        array[BLOB_VOX] = 5000.5
        return array
    array = random.integers(1, 200, shape).astype(dtype)
    array[BLOB_VOX] = np.iinfo(dtype).max
    return array


def blob_mm(affine_ras: np.ndarray) -> np.ndarray:
    """Place (z, y, x) in LPS mm of the bright voxel."""
    x, y, z = (affine_ras @ [*BLOB_VOX, 1.0])[:3]
    return np.array([z, -y, -x])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def write_mgh(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.MGHImage(array, affine), path)
    return path


def write_nrrd(
    path: Path, array: np.ndarray, affine: np.ndarray, space: str = "left-posterior-superior"
) -> Path:
    import nrrd

    world = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine if space.startswith("left") else affine
    header = {
        "space": space,
        "kinds": ["domain"] * 3,
        "space directions": world[:3, :3].T,
        "space origin": world[:3, 3],
    }
    nrrd.write(str(path), array, header)
    return path


def write_mha(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = (lps[:3, :3] / spacing).T.ravel()
    kinds = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "float32": "MET_FLOAT"}
    fields = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(f"{value:.17g}" for value in directions),
        "Offset": " ".join(f"{value:.17g}" for value in lps[:3, 3]),
        "ElementSpacing": " ".join(f"{value:.17g}" for value in spacing),
        "DimSize": " ".join(str(size) for size in array.shape),
        "ElementType": kinds[str(array.dtype)],
        "ElementDataFile": "LOCAL",
    }
    text = "".join(f"{name} = {value}\n" for name, value in fields.items())
    path.write_bytes(text.encode() + array.tobytes(order="F"))
    return path


def write_dicom(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    *,
    slope: float = 2.0,
    intercept: float = -1000.0,
    modality: str = "CT",
    series: str = "1.2.3.4",
    first: int = 0,
) -> Path:
    """Series of (stored values) slices; file names and instance numbers out of order."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    shuffled = np.random.default_rng(3).permutation(array.shape[2])
    for index in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        name = folder / f"IM{first + shuffled[index]:04d}"
        dataset = FileDataset(str(name), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID = series
        dataset.Modality = modality
        dataset.InstanceNumber = int(shuffled[index]) + 1
        dataset.Columns, dataset.Rows = array.shape[0], array.shape[1]
        position = lps[:3, 3] + lps[:3, 2] * index
        dataset.ImagePositionPatient = [f"{value:.9g}" for value in position]
        cosines = [*directions[:, 0], *directions[:, 1]]
        dataset.ImageOrientationPatient = [f"{value:.9g}" for value in cosines]
        dataset.PixelSpacing = [f"{spacing[1]:.9g}", f"{spacing[0]:.9g}"]
        dataset.SliceThickness = f"{spacing[2]:.9g}"
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit = 15
        dataset.PixelRepresentation = 1
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.PixelData = array[:, :, index].T.astype("<i2").tobytes()
        dataset.save_as(name, enforce_file_format=True)
    return folder


WRITERS = {
    "scan.nii": write_nifti,
    "scan.nii.gz": write_nifti,
    "scan.nrrd": write_nrrd,
    "scan.mha": write_mha,
    "scan.mgh": write_mgh,
    "scan.mgz": write_mgh,
}
