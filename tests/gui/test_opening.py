"""Scans get into a running napari by every way a person has: files, folders, samples, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Layer

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.phantom import LABELS
from napari_s2dc.widgets.layers import Overlays, geometry_of, token_geometry
from napari_s2dc.widgets.preferences import PLUGIN
from tests.volumes.files import (
    AFFINES,
    content,
    write_dicom,
    write_mgh,
    write_mha,
    write_nifti,
    write_nrrd,
)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("scan.nii.gz", write_nifti),
        ("scan.nrrd", write_nrrd),
        ("scan.mha", write_mha),
        ("scan.mgz", write_mgh),
        ("series", write_dicom),
    ],
)
def test_every_format_opens_in_mm(name: str, write: Any, plugin: Any, tmp_path: Path) -> None:
    path = write(tmp_path / name, content("int16"), AFFINES["lps"])
    (layer,) = plugin.open(path, plugin=PLUGIN)
    volume = read_volume(path)
    np.testing.assert_array_equal(layer.data, volume.array)
    np.testing.assert_allclose(layer.scale, volume.spacing_mm)
    np.testing.assert_allclose(layer.translate, volume.origin_mm)
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    assert layer.axis_labels == ("z", "y", "x")


def test_a_broken_file_is_told_in_a_sentence(plugin: Any, tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_text("no scan")
    with pytest.raises(VolumeError, match=r"scan\.nii"):
        plugin.open(tmp_path / "scan.nii", plugin=PLUGIN)
    assert not plugin.layers


@pytest.mark.parametrize("key", ["phantom_pair_ct", "phantom_pair_mr", "phantom_pair_pet"])
def test_the_phantoms_open_with_named_labels(key: str, plugin: Any) -> None:
    plugin.open_sample(PLUGIN, key)
    image, labels, *second = plugin.layers
    assert [layer.visible for layer in second] == [False, False]
    assert set(labels.features["name"]) == {"background", *LABELS.values()}
    assert image.data.shape == labels.data.shape
    assert set(np.unique(labels.data)) <= {0, *LABELS}


def test_labels_drawn_on_an_opened_scan_are_saved_on_its_grid(plugin: Any, tmp_path: Path) -> None:
    import nibabel

    path = write_nifti(tmp_path / "scan.nii.gz", content("int16"), AFFINES["oblique permuted"])
    (scan,) = plugin.open(path, plugin=PLUGIN)
    drawn = np.zeros(scan.data.shape, np.uint8)
    drawn[1:3, 1:3, 1:3] = 2
    labels = plugin.add_labels(
        drawn, scale=scan.scale, translate=scan.translate, metadata=dict(scan.metadata)
    )
    (written,) = labels.save(str(tmp_path / "drawn.nii.gz"), plugin=PLUGIN)
    before, after = nibabel.load(path), nibabel.load(written)
    assert after.shape == before.shape
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    np.testing.assert_array_equal(read_volume(written, labels=True).array, drawn)


@pytest.mark.parametrize("orientation", ["oblique permuted", "anisotropic"])
def test_results_are_saved_where_the_file_of_their_scan_has_them(
    orientation: str, plugin: Any, tmp_path: Path
) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", content("int16"), AFFINES[orientation])
    (scan,) = plugin.open(path, plugin=PLUGIN)
    true, overlays = read_volume(path), Overlays(plugin)
    values = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    for offset in ((0, 0, 0), (1, 0, 2)):  # the second time the layer is there already
        heat = overlays.show_heat(scan, values, token_geometry(scan, 4, offset))
        (written,) = heat.save(str(tmp_path / "heat.nii.gz"), plugin=PLUGIN)
        saved = read_volume(written)
        for token in ((0, 0, 0), (1, 1, 0), (0, 1, 1)):
            place = true.to_mm((np.array(token) + 0.5) * 4 - 0.5 + offset)
            voxel = tuple(np.rint(saved.to_vox(place)).astype(int))
            np.testing.assert_allclose(saved.to_mm(np.array(voxel)), place, atol=1e-3)
            assert saved.array[voxel] == values[token]
    copy = plugin.add_layer(Layer.create(*heat.as_layer_data_tuple()))
    coarse = overlays.show_heat(copy, values, token_geometry(copy, 2))
    (written,) = coarse.save(str(tmp_path / "coarse.nii.gz"), plugin=PLUGIN)
    saved, place = read_volume(written), true.to_mm(np.array([4, 4, 4]) - 0.5 + offset)
    voxel = tuple(np.rint(saved.to_vox(place)).astype(int))
    np.testing.assert_allclose(saved.to_mm(np.array(voxel)), place, atol=1e-3)
    assert saved.array[voxel] == values[0, 0, 0]
    mask = np.zeros(scan.data.shape, np.uint8)
    structure = overlays.show_labels(scan, "structure", "structure", mask, geometry_of(scan))
    (written,) = structure.save(str(tmp_path / "structure.nii.gz"), plugin=PLUGIN)
    again = read_volume(written, labels=True)
    assert again.original.shape == true.original.shape
    np.testing.assert_allclose(again.original.affine, true.original.affine, atol=1e-4)
    scan.translate = (100, 0, 0)  # moved by hand: what the viewer shows counts
    (written,) = heat.save(str(tmp_path / "heat.nii.gz"), plugin=PLUGIN)
    np.testing.assert_allclose(
        read_volume(written).to_mm(np.zeros(3)), heat.data_to_world((0, 0, 0)), atol=1e-3
    )
