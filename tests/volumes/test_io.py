from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.testing import data_path as nibabel_data

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.io import (
    check_values,
    find_volumes,
    is_label_path,
    read_header,
    read_volume,
    write_volume,
)
from napari_s2dc.volumes.volume import Volume
from tests.volumes.files import (
    AFFINES,
    SHAPE,
    WRITERS,
    blob_mm,
    content,
    write_dicom,
    write_mha,
    write_nifti,
    write_nrrd,
)


def brightest_mm(volume: Volume) -> np.ndarray:
    found = np.unravel_index(int(volume.array.argmax()), volume.array.shape)
    return volume.to_mm(np.array(found))


# ------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_puts_the_blob_at_its_mm(tmp_path: Path, name: str, affine: str) -> None:
    array = content("int16")
    path = WRITERS[name](tmp_path / name, array, AFFINES[affine])
    volume = read_volume(path)
    reference = read_volume(write_nifti(tmp_path / "reference.nii", array, AFFINES[affine]))
    assert volume.array.dtype == np.float32
    assert volume.name == "scan"
    np.testing.assert_allclose(brightest_mm(volume), blob_mm(AFFINES[affine]), atol=1e-3)
    np.testing.assert_array_equal(volume.array, reference.array)
    np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-4)
    header = read_header(path)
    assert header.shape_zyx == volume.shape
    np.testing.assert_allclose(header.spacing_mm, volume.spacing_mm, rtol=1e-5)


# Slices are stacked along rows x columns, so a left-handed grid cannot be a series.
RIGHT_HANDED = [name for name, affine in AFFINES.items() if np.linalg.det(affine[:3, :3]) > 0]


@pytest.mark.parametrize("affine", RIGHT_HANDED)
def test_dicom_series_agrees_with_nifti(tmp_path: Path, affine: str) -> None:
    stored = content("int16") % 500
    matrix = AFFINES[affine]
    folder = write_dicom(tmp_path / "series", stored, matrix)
    volume = read_volume(folder)
    reference = read_volume(
        write_nifti(tmp_path / "same.nii", stored.astype(np.float32) * 2 - 1000, matrix)
    )
    np.testing.assert_array_equal(volume.array, reference.array)
    np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-4)
    assert volume.modality == "ct"
    header = read_header(folder)
    assert header.modality == "ct"
    assert header.shape_zyx == volume.shape
    assert header.dtype == "int16"
    np.testing.assert_allclose(header.spacing_mm, reference.spacing_mm, rtol=1e-5)


def test_dicom_file_with_many_frames(tmp_path: Path) -> None:
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    source = get_testdata_file("rtdose.dcm", download=False)
    assert isinstance(source, str)
    dataset = dcmread(source)
    dataset.save_as(tmp_path / "dose.dcm")
    assert find_volumes(tmp_path) == []  # a dose is not a scan
    dataset.Modality = "CT"
    dataset.save_as(tmp_path / "dose.dcm")
    assert find_volumes(tmp_path) == [tmp_path]
    volume = read_volume(tmp_path)
    assert volume.shape == read_header(tmp_path).shape_zyx == dataset.pixel_array.shape
    np.testing.assert_array_equal(volume.array, dataset.pixel_array)
    x, y, z = (float(value) for value in dataset.ImagePositionPatient)
    np.testing.assert_allclose(volume.origin_mm, (z, y, x), atol=1e-6)
    assert volume.spacing_mm == (5.0, 10.0, 10.0)


def test_scaling_of_the_file_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    raw = content("int16")
    path = tmp_path / "scaled.nii"
    with path.open("wb") as stream:
        image.header.write_to(stream)
        stream.write(b"\0" * (352 - stream.tell()))
        stream.write(raw.tobytes(order="F"))
    volume = read_volume(path)
    np.testing.assert_allclose(volume.to_original(), raw * 0.5 - 3)


def test_big_endian_file_reads_natively(tmp_path: Path) -> None:
    array = content("int16").astype(">i2")
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(array.dtype)
    path = tmp_path / "big.nii"
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4), header), path)
    volume = read_volume(path, labels=True)
    assert volume.array.dtype == np.dtype("int16")
    np.testing.assert_array_equal(volume.to_original(), array)


def test_nrrd_in_ras_space_means_the_same_place(tmp_path: Path) -> None:
    array = content("int16")
    path = write_nrrd(
        tmp_path / "ras.nrrd", array, AFFINES["oblique"], space="right-anterior-superior"
    )
    volume = read_volume(path)
    np.testing.assert_allclose(brightest_mm(volume), blob_mm(AFFINES["oblique"]), atol=1e-6)


def test_nrrd_with_spacings_only(tmp_path: Path) -> None:
    import nrrd

    path = tmp_path / "plain.nrrd"
    nrrd.write(str(path), content("uint8"), {"spacings": [1.0, 2.0, 3.0]})
    assert read_volume(path).spacing_mm == (3.0, 2.0, 1.0)
    assert read_header(path).spacing_mm == (3.0, 2.0, 1.0)


def test_last_axis_of_size_one_is_accepted_and_written_back(tmp_path: Path) -> None:
    array = content("int16")[..., None]
    path = write_nifti(tmp_path / "four.nii", array, AFFINES["oblique"])
    volume = read_volume(path)
    assert read_header(path).shape_zyx == volume.shape
    written = nibabel.load(write_volume(tmp_path / "out.nii.gz", volume.array, volume))
    assert written.shape == (*SHAPE, 1)
    np.testing.assert_array_equal(np.asarray(written.dataobj), array)


def test_shipped_brain_reads() -> None:
    path = Path(nibabel_data) / "anatomical.nii"
    volume = read_volume(path)
    header = nibabel.load(path).header
    assert sorted(volume.array.shape) == sorted(header.get_data_shape())
    assert volume.original is not None
    np.testing.assert_array_equal(volume.original.affine, nibabel.load(path).affine)


def test_labels_stay_integers(tmp_path: Path) -> None:
    floats = (content("uint8") % 5).astype(np.float32)
    as_float = write_nifti(tmp_path / "float_seg.nii", floats, np.eye(4))
    assert read_volume(as_float, labels=True).array.dtype == np.int32
    as_byte = write_nifti(tmp_path / "byte_seg.nii", floats.astype(np.uint8), np.eye(4))
    assert read_volume(as_byte, labels=True).array.dtype == np.uint8
    not_labels = write_nifti(tmp_path / "scan.nii", floats + 0.25, np.eye(4))
    with pytest.raises(VolumeError, match="not a label map"):
        read_volume(not_labels, labels=True)


# ------------------------------------------------------------------------------- bad input
def two_dimensional(folder: Path) -> Path:
    return write_nifti(folder / "flat.nii", np.ones((8, 8), np.int16), np.eye(4))


def one_slice(folder: Path) -> Path:
    return write_nifti(folder / "slice.nii", np.ones((8, 8, 1), np.int16), np.eye(4))


def four_dimensional(folder: Path) -> Path:
    return write_nifti(folder / "time.nii", np.ones((8, 8, 8, 3), np.int16), np.eye(4))


def colour_nifti(folder: Path) -> Path:
    colour = np.zeros((6, 6, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = folder / "colour.nii"
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), path)
    return path


def colour_nrrd(folder: Path) -> Path:
    import nrrd

    path = folder / "colour.nrrd"
    directions = np.vstack([[np.nan] * 3, np.eye(3)])
    header = {
        "space": "left-posterior-superior",
        "kinds": ["RGB-color", "domain", "domain", "domain"],
        "space directions": directions,
        "space origin": np.zeros(3),
    }
    nrrd.write(str(path), np.zeros((3, 5, 6, 7), np.uint8), header)
    return path


def vectors_without_directions(folder: Path) -> Path:
    import nrrd

    path = folder / "field.nrrd"
    header = {"kinds": ["vector", "domain", "domain", "domain"], "spacings": [np.nan, 2, 3, 4]}
    nrrd.write(str(path), np.zeros((3, 4, 5, 6), np.int16), header)
    return path


def colour_dicom(folder: Path) -> Path:
    from pydicom.data import get_testdata_file

    source = get_testdata_file("SC_rgb_small_odd.dcm", download=False)
    assert isinstance(source, str)
    path = folder / "colour.dcm"
    path.write_bytes(Path(source).read_bytes())
    return path


def truncated_gzip(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    path = write_nifti(folder / "cut.nii.gz", noise, np.eye(4))
    path.write_bytes(path.read_bytes()[:5000])
    return path


def truncated_plain(folder: Path) -> Path:
    path = write_nifti(folder / "cut.nii", content("int16"), np.eye(4))
    path.write_bytes(path.read_bytes()[:900])
    return path


def truncated_nrrd(folder: Path) -> Path:
    path = write_nrrd(folder / "cut.nrrd", content("int16"), np.eye(4))
    path.write_bytes(path.read_bytes()[:400])
    return path


def lonely_nrrd_header(folder: Path) -> Path:
    path = folder / "lonely.nhdr"
    path.write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nspacings: 1 1 1\n"
        "endian: little\nencoding: raw\ndata file: gone.raw\n\n"
    )
    return path


def truncated_mha(folder: Path) -> Path:
    path = write_mha(folder / "cut.mha", content("int16"), np.eye(4))
    path.write_bytes(path.read_bytes()[:600])
    return path


def zero_spacing(folder: Path) -> Path:
    path = write_nifti(folder / "zero.nii", content("int16"), np.eye(4))
    raw = bytearray(path.read_bytes())
    raw[80:92] = b"\0" * 12  # pixdim[1..3]
    raw[252:256] = b"\0" * 4  # qform and sform codes
    path.write_bytes(bytes(raw))
    return path


def not_gzip(folder: Path) -> Path:
    path = write_nifti(folder / "scan.nii", content("int16"), np.eye(4))
    return path.rename(folder / "scan.nii.gz")


def text_as_nifti(folder: Path) -> Path:
    path = folder / "notes.nii.gz"
    path.write_bytes(gzip.compress(b"dear diary " * 100))
    return path


def text_as_nrrd(folder: Path) -> Path:
    path = folder / "notes.nrrd"
    path.write_text("dear diary")
    return path


def text_as_mha(folder: Path) -> Path:
    path = folder / "notes.mha"
    path.write_text("dear diary")
    return path


def text_as_dicom(folder: Path) -> Path:
    path = folder / "notes.dcm"
    path.write_text("dear diary")
    return path


def text_as_mgh(folder: Path) -> Path:
    path = folder / "notes.mgz"
    path.write_bytes(gzip.compress(b"dear diary " * 100))
    return path


def other_file(folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("dear diary")
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "nothing.nii"
    path.touch()
    return path


def missing_file(folder: Path) -> Path:
    return folder / "missing.nii.gz"


def empty_folder(folder: Path) -> Path:
    return folder


def single_dicom(folder: Path) -> Path:
    return write_dicom(folder / "one", content("int16")[:, :, :1], np.eye(4))


def missing_slice(folder: Path) -> Path:
    series = write_dicom(folder / "gap", content("int16"), AFFINES["lps"])
    from pydicom import dcmread

    files = sorted(series.iterdir(), key=lambda file: float(dcmread(file).ImagePositionPatient[2]))
    files[4].unlink()
    return series


def doubled_slices(folder: Path) -> Path:
    write_dicom(folder / "double", content("int16"), AFFINES["lps"])
    return write_dicom(folder / "double", content("int16"), AFFINES["lps"], first=100)


def two_series(folder: Path) -> Path:
    write_dicom(folder / "both", content("int16"), AFFINES["lps"], series="1.1")
    return write_dicom(folder / "both", content("int16"), AFFINES["lps"], series="1.2", first=50)


BAD = {
    two_dimensional: "2D",
    one_slice: "2D",
    four_dimensional: "4 dimensions",
    colour_nifti: "3 values per voxel",
    colour_nrrd: "3 values per voxel",
    vectors_without_directions: "3 values per voxel",
    colour_dicom: "RGB",
    truncated_gzip: "truncated",
    truncated_plain: "truncated",
    truncated_nrrd: "truncated",
    truncated_mha: "cannot be read",
    lonely_nrrd_header: r"lonely\.nhdr refers to a file that does not exist",
    zero_spacing: "spacing",
    not_gzip: "not gzip-compressed",
    text_as_nifti: "not a NIfTI file",
    text_as_nrrd: "not a NRRD file",
    text_as_mha: "notes.mha",
    text_as_dicom: "not a DICOM file",
    text_as_mgh: "notes.mgz",
    other_file: "not a format that can be read",
    empty_file: "is empty",
    missing_file: "does not exist",
    empty_folder: "no DICOM series",
    single_dicom: "2D",
    missing_slice: "missing or unevenly spaced",
    doubled_slices: "one slice position",
    two_series: "2 DICOM series",
}
# Only the voxels are broken; their headers are whole.
WHOLE_HEADER = (
    truncated_gzip,
    truncated_plain,
    truncated_nrrd,
    truncated_mha,
    lonely_nrrd_header,
)


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_input_gets_one_sentence_that_names_the_file(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    with pytest.raises(VolumeError, match=BAD[make]) as caught:
        read_volume(path)
    sentence = caught.value.sentence
    assert str(path) in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    if make not in WHOLE_HEADER:
        with pytest.raises(VolumeError, match=BAD[make]):
            read_header(path)


def test_nibabel_says_nothing_of_a_spacing_of_zero(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(VolumeError, match="spacing of zero"):
        read_header(zero_spacing(tmp_path))
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_permission_denied_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nifti(tmp_path / "secret.nii", content("int16"), np.eye(4))

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so chmod shows nothing
    for read in (read_volume, read_header):
        with pytest.raises(VolumeError, match=r"secret\.nii cannot be read: permission denied"):
            read(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_file_without_read_permission(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "secret.nii", content("int16"), np.eye(4))
    path.chmod(0)
    with pytest.raises(VolumeError, match="permission denied"):
        read_volume(path)


# -------------------------------------------------------------------------- values, finding
@pytest.mark.parametrize(
    ("value", "match"),
    [(np.nan, "NaN or infinite values in 1 of "), (np.inf, "infinite"), (None, "same")],
)
def test_values_nothing_can_be_learned_from(value: float | None, match: str) -> None:
    array = np.ones((4, 5, 6), np.float32)
    if value is not None:
        array[1, 2, 3] = value
        array[0, 0, 0] = 2
    with pytest.raises(VolumeError, match=match):
        check_values(Volume(array, np.eye(4), name="odd"))


def test_check_values_sees_shape_and_spacing() -> None:
    noise = np.random.default_rng(0).normal(size=(4, 5, 6))
    check_values(Volume(noise, np.eye(4)))
    with pytest.raises(VolumeError, match="three dimensions"):
        check_values(Volume(noise[0], np.eye(4)))
    with pytest.raises(VolumeError, match="spacing"):
        check_values(Volume(noise, np.diag([1.0, 0.0, 1.0, 1.0])))


def test_find_volumes_lists_files_and_series_once(tmp_path: Path) -> None:
    for name in ("b/scan.nii.gz", "a/scan.nrrd", "c/.hidden.nii", ".cache/scan.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write = write_nrrd if name.endswith("nrrd") else write_nifti
        write(tmp_path / name, content("int16"), np.eye(4))
    (tmp_path / "b" / "notes.txt").write_text("x")
    series = write_dicom(tmp_path / "d" / "ct", content("int16"), AFFINES["lps"])
    two_series(tmp_path)
    found = find_volumes(tmp_path)
    assert found[:2] == [tmp_path / "a" / "scan.nrrd", tmp_path / "b" / "scan.nii.gz"]
    assert series in found
    # Two series in one folder: one file of each stands for it.
    both = [path for path in found if path.parent.name == "both"]
    assert len(found) == 5
    assert len(both) == 2
    for path in [*both, series]:
        assert read_volume(path).shape == (SHAPE[2], SHAPE[1], SHAPE[0])


def test_find_volumes_survives_a_loop_of_links(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii", content("int16"), np.eye(4))
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert find_volumes(tmp_path) == [tmp_path / "scan.nii"]


def test_find_volumes_needs_a_folder(tmp_path: Path) -> None:
    assert find_volumes(tmp_path) == []
    with pytest.raises(VolumeError, match="not a folder"):
        find_volumes(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("labelsTr/case.nii.gz", True),
        ("imagesTr/case.nii.gz", False),
        ("case_seg.nrrd", True),
        ("case.seg.nrrd", True),
        ("aseg.mgz", True),
        ("segovia.nii", False),
        ("liver-mask.nii.gz", True),
    ],
)
def test_label_files_are_known_by_name(name: str, expected: bool) -> None:
    assert is_label_path(Path(name)) is expected


@pytest.mark.parametrize("kept", [0, 100, 140, 400, 500, 600, 700])
def test_broken_slice_at_the_end_of_a_series_is_not_dropped(tmp_path: Path, kept: int) -> None:
    folder = write_dicom(tmp_path / "series", content("int16"), AFFINES["lps"])
    last = sorted(folder.iterdir())[-1]
    named = last.with_name("last.dcm")
    named.write_bytes(last.read_bytes()[:kept])
    last.unlink()
    with pytest.raises(VolumeError, match=r"last.dcm|The number of bytes"):
        read_volume(folder)


def test_unit_that_nifti_does_not_define_counts_as_mm(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(content("int16"), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header["xyzt_units"] = 5
    nibabel.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "scan.nii").spacing_mm, (4, 3, 2))


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1000.0), ("meter", 0.001)])
def test_nifti_units_are_turned_into_mm(tmp_path: Path, unit: str, factor: float) -> None:
    affine = np.diag([2 * factor, 3 * factor, 4 * factor, 1.0])
    image = nibabel.Nifti1Image(content("int16"), affine)
    image.header.set_xyzt_units(unit)
    path = tmp_path / "scan.nii"
    nibabel.save(image, path)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.spacing_mm, (4, 3, 2), rtol=1e-6)
    np.testing.assert_allclose(read_header(path).spacing_mm, (4, 3, 2), rtol=1e-6)
    # Back in the file's own unit.
    written: Any = nibabel.load(write_volume(tmp_path / "result.nii", volume.array, volume))
    np.testing.assert_allclose(written.affine, image.affine, rtol=1e-6)
    assert written.header.get_xyzt_units()[0] == unit


def test_folder_that_may_not_be_entered_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(tmp_path / "scan.nii", content("int16"), np.eye(4))
    closed = tmp_path / "closed"
    closed.mkdir()
    enter = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return enter(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_volumes(tmp_path) == [closed, tmp_path / "scan.nii"]
