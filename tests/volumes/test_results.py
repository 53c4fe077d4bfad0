"""Files that were written as results are known again; scans and broken files are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_s2dc.volumes.io import read_volume, write_volume
from napari_s2dc.volumes.results import maker_of, result_in
from tests.volumes.files import AFFINES, content, write_nifti, write_nrrd


@pytest.mark.parametrize("source", [".nii", ".nrrd"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_a_result_says_so_and_what_is_written_like_it_does_not(
    source: str, suffix: str, tmp_path: Path
) -> None:
    write = write_nrrd if source == ".nrrd" else write_nifti
    scan = read_volume(write(tmp_path / f"scan{source}", content("int16"), AFFINES["oblique"]))
    assert result_in(tmp_path / f"scan{source}") == ""
    made = write_volume(tmp_path / f"map{suffix}", scan.array, scan, result="similarity map")
    assert result_in(made) == "similarity map"
    assert maker_of(made) == ""
    marked = write_volume(made, scan.array, scan, result="uncertainty map", by="0123456789abcdef")
    assert result_in(marked) == "uncertainty map"
    assert maker_of(marked) == "0123456789abcdef"
    result = read_volume(made)
    again = write_volume(tmp_path / f"again{suffix}", result.array, result)
    assert result_in(again) == maker_of(again) == ""


def test_a_scans_own_description_stays(tmp_path: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(content("int16"), AFFINES["lps"])
    image.header["descrip"] = b"FSL5.0"
    nibabel.save(image, tmp_path / "scan.nii")
    scan = read_volume(tmp_path / "scan.nii")
    written = write_volume(tmp_path / "out.nii", scan.array, scan)
    assert bytes(nibabel.load(written).header["descrip"]).startswith(b"FSL5.0")
    assert result_in(written) == ""


def test_what_cannot_be_read_is_no_result(tmp_path: Path) -> None:
    for name in ("broken.nii", "broken.nii.gz", "broken.nrrd"):
        (tmp_path / name).write_bytes(b"no scan")
        assert result_in(tmp_path / name) == ""
    assert result_in(tmp_path) == ""
    assert result_in(tmp_path / "absent.nii") == ""
