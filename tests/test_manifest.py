from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from npe2 import PluginManifest

import napari_s2dc
from napari_s2dc._reader import get_reader, layer_data, read_path
from napari_s2dc._sample import phantom_pair_ct, phantom_pair_mr, phantom_pair_pet
from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.phantom import LABELS
from napari_s2dc.volumes.volume import Volume
from tests.volumes.files import AFFINES, content, write_dicom, write_mha, write_nifti

PACKAGE = Path(napari_s2dc.__file__).parent


@pytest.fixture(scope="module")
def manifest() -> PluginManifest:
    return PluginManifest.from_file(PACKAGE / "napari.yaml")


def test_the_package_has_no_links() -> None:
    """Git on Windows makes text files of them that hold the name of the target."""
    assert [path for path in PACKAGE.rglob("*") if path.is_symlink()] == []


def test_manifest_is_valid_and_its_functions_exist(manifest: PluginManifest) -> None:
    manifest.validate_imports()
    assert manifest.name == "napari-s2dc"
    ids = {command.id for command in manifest.contributions.commands or []}
    used = {reader.command for reader in manifest.contributions.readers or []}
    used |= {sample.command for sample in manifest.contributions.sample_data or []}  # type: ignore[union-attr]
    assert used
    assert used <= ids


@pytest.mark.parametrize(
    "name",
    ["a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.mgh", "a.mgz", "a.dcm", "a.ima"],
)
def test_every_format_is_claimed(manifest: PluginManifest, name: str) -> None:
    from fnmatch import fnmatch

    readers = manifest.contributions.readers
    assert readers
    assert any(fnmatch(name, pattern) for pattern in readers[0].filename_patterns)
    assert readers[0].accepts_directories
    assert get_reader(name) is read_path


def test_other_files_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    assert get_reader(str(tmp_path / "picture.png")) is None
    assert get_reader(str(tmp_path)) is None
    assert get_reader([str(tmp_path / "scan.nii"), str(tmp_path / "picture.png")]) is None
    assert get_reader([]) is None


def test_image_becomes_a_layer_in_mm(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", content("int16"), AFFINES["permuted"])
    [(data, keywords, kind)] = read_path(str(path))
    volume = read_volume(path)
    assert kind == "image"
    np.testing.assert_array_equal(data, volume.array)
    assert keywords["name"] == "scan"
    assert keywords["scale"] == volume.spacing_mm
    assert keywords["translate"] == volume.origin_mm
    assert keywords["units"] == ("mm", "mm", "mm")
    assert keywords["metadata"]["s2dc"]["path"] == str(path)
    np.testing.assert_array_equal(keywords["metadata"]["s2dc"]["affine"], volume.affine)


def test_label_file_becomes_labels(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    path = write_nifti(tmp_path / "labelsTr" / "case.nii", content("uint8") % 4, np.eye(4))
    scan = write_mha(tmp_path / "case.mha", content("int16"), np.eye(4))
    (labels, _, first), (image, _, second) = read_path([str(path), str(scan)])
    assert (first, second) == ("labels", "image")
    assert labels.dtype == np.uint8
    assert image.dtype == np.float32


def test_dicom_folder_becomes_one_layer(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "series", content("int16"), AFFINES["lps"])
    assert get_reader(str(folder)) is read_path
    [(data, keywords, kind)] = read_path(str(folder))
    assert kind == "image"
    assert data.ndim == 3
    assert keywords["contrast_limits"] == (-160.0, 240.0)
    assert keywords["metadata"]["s2dc"]["modality"] == "ct"


def test_all_files_of_a_dicom_series_are_one_layer(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "series", content("int16"), AFFINES["lps"])
    other = write_dicom(tmp_path / "other", content("int16"), AFFINES["lps"], series="1.2.3.5")
    files = [str(file) for where in (folder, other) for file in sorted(where.iterdir())]
    assert len(files) > 2
    layers = read_path(files)
    assert len(layers) == 2
    np.testing.assert_array_equal(layers[0][0], read_volume(folder).array)


def test_broken_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_text("no scan")
    with pytest.raises(VolumeError, match=r"scan\.nii"):
        read_path(str(path))


@pytest.mark.parametrize("make", [phantom_pair_ct, phantom_pair_mr, phantom_pair_pet])
def test_sample_is_two_labelled_subjects(make: object) -> None:
    assert callable(make)
    layers = make()
    assert [kind for _, _, kind in layers] == ["image", "labels"] * 2
    assert len({keywords["name"] for _, keywords, _ in layers}) == 4
    for _, keywords, kind in layers:
        assert keywords["units"] == ("mm", "mm", "mm")
        if kind == "labels":
            assert keywords["features"]["name"] == ["background", *LABELS.values()]
            assert len(keywords["features"]["index"]) == len(LABELS) + 1
    assert (layers[0][0] != layers[2][0]).any()


def test_pet_is_shown_so_that_organs_are_seen_beside_the_bladder() -> None:
    image, _, *_ = phantom_pair_pet()
    array, keywords, _ = image
    low, high = keywords["contrast_limits"]
    assert low == 0
    assert 1.5 < high < 0.5 * array.max()
    nothing = Volume(np.zeros((4, 4, 4), np.float32), np.eye(4), name="empty", modality="pet")
    assert "contrast_limits" not in layer_data(nothing)[1]


def test_layer_data_keeps_the_way_back(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii", content("int16"), AFFINES["oblique"])
    volume = read_volume(path)
    _, keywords, _ = layer_data(volume)
    assert keywords["metadata"]["s2dc"]["original"] is volume.original
    assert keywords["scale"] == volume.spacing_mm


def test_listing_the_plugin_imports_nothing_heavy() -> None:
    heavy = "('napari', 'torch', 'monai', 'ot', 'nibabel', 'itk', 'pydicom', 'scipy', 'qtpy')"
    code = (
        "import sys, napari_s2dc._reader, napari_s2dc._sample;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert result.stdout.strip() == "[]"
