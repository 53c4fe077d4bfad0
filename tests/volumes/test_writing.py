"""What is written lies where it came from."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.io import (
    read_volume,
    write_volume,
)
from napari_s2dc.volumes.volume import Volume
from tests.volumes.files import (
    AFFINES,
    WRITERS,
    content,
    write_nifti,
    write_nrrd,
)


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_round_trip_is_voxel_exact(tmp_path: Path, affine: str, dtype: str, suffix: str) -> None:
    array = content(dtype)
    write = write_nrrd if suffix == ".nrrd" else write_nifti
    path = write(tmp_path / f"in{suffix}", array, AFFINES[affine])
    volume = read_volume(path)
    result = write_volume(tmp_path / f"out{suffix}", volume.array.astype(dtype), volume)
    if suffix == ".nrrd":
        import nrrd

        before, fields_before = nrrd.read(str(path))
        after, fields_after = nrrd.read(str(result))
        np.testing.assert_allclose(
            fields_after["space directions"], fields_before["space directions"], atol=1e-5
        )
        np.testing.assert_allclose(
            fields_after["space origin"], fields_before["space origin"], atol=1e-5
        )
        assert fields_after["space"] == fields_before["space"]
        assert fields_after["type"] == fields_before["type"]
    else:
        image_before, image_after = nibabel.load(path), nibabel.load(result)
        before, after = np.asarray(image_before.dataobj), np.asarray(image_after.dataobj)
        np.testing.assert_allclose(image_after.affine, image_before.affine, atol=1e-5)
        np.testing.assert_allclose(image_after.header.get_zooms(), image_before.header.get_zooms())
        for field in ("qform_code", "sform_code", "xyzt_units"):
            assert image_after.header[field] == image_before.header[field]
        assert image_after.header["sform_code"] == 2
    assert after.dtype == array.dtype
    np.testing.assert_array_equal(after, before)
    again = read_volume(result)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (0, 0), (3, 4)])
def test_qform_and_sform_codes_survive(tmp_path: Path, codes: tuple[int, int]) -> None:
    image = nibabel.Nifti1Image(content("int16"), AFFINES["oblique"])
    image.set_qform(AFFINES["oblique"], code=codes[0])
    image.set_sform(AFFINES["oblique"], code=codes[1])
    path = tmp_path / "codes.nii"
    nibabel.save(image, path)
    volume = read_volume(path)
    written = nibabel.load(write_volume(tmp_path / "out.nii", volume.array, volume))
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == codes
    np.testing.assert_allclose(written.affine, nibabel.load(path).affine, atol=1e-5)


@pytest.mark.parametrize("source", ["scan.mha", "scan.mgz", "scan.nrrd", "scan.nii"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_another_format_lies_at_the_same_place(tmp_path: Path, source: str, suffix: str) -> None:
    path = WRITERS[source](tmp_path / source, content("int16"), AFFINES["oblique permuted"])
    volume = read_volume(path)
    result = read_volume(write_volume(tmp_path / f"out{suffix}", volume.array, volume))
    np.testing.assert_array_equal(result.array, volume.array)
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-4)


def test_a_volume_made_in_memory_can_be_written(tmp_path: Path) -> None:
    volume = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([3.0, 2.0, 1.0, 1.0]))
    for suffix in (".nii", ".nrrd"):
        again = read_volume(
            write_volume(tmp_path / f"made{suffix}", volume.array, volume), labels=True
        )
        np.testing.assert_array_equal(again.array, volume.array)
        np.testing.assert_allclose(again.affine, volume.affine, atol=1e-6)
        assert again.original is not None
        assert again.original.axis_codes == ("L", "P", "S")


@pytest.mark.parametrize(
    ("given", "stored"), [("bool", "uint8"), ("int64", "int32"), ("float16", "float32")]
)
def test_types_a_file_cannot_hold_are_widened(tmp_path: Path, given: str, stored: str) -> None:
    volume = read_volume(write_nifti(tmp_path / "in.nii", content("int16"), np.eye(4)))
    array = (volume.array > 100).astype(given)
    written = nibabel.load(write_volume(tmp_path / "out.nii", array, volume))
    assert written.get_data_dtype() == np.dtype(stored)


def test_writing_refuses_what_does_not_fit(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "in.nii", content("int16"), np.eye(4)))
    with pytest.raises(VolumeError, match="original grid"):
        write_volume(tmp_path / "out.nii", np.zeros((2, 2, 2)), volume)
    with pytest.raises(VolumeError, match="NIfTI or NRRD"):
        write_volume(tmp_path / "out.mha", volume.array, volume)
    with pytest.raises(VolumeError, match="32 bits"):
        write_volume(tmp_path / "out.nii", np.full(volume.shape, 2**40), volume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nii"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    volume = read_volume(write_nifti(tmp_path / "in.nii", content("int16"), np.eye(4)))
    target = write_volume(tmp_path / f"out{suffix}", volume.array, volume)
    before = target.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nibabel.save", full)
    monkeypatch.setattr("nrrd.write", full)
    with pytest.raises(VolumeError, match="No space left"):
        write_volume(target, volume.array + 1, volume)
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nii", f"out{suffix}"]
