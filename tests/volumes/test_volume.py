from __future__ import annotations

import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.volume import Volume, canonical_axes, index_map
from tests.volumes.files import AFFINES, BLOB_VOX, SHAPE, blob_mm, content


@pytest.mark.parametrize("name", AFFINES)
def test_canonical_order_keeps_every_voxel_at_its_place(name: str) -> None:
    array = content("int16")
    volume = Volume.from_file_array(array, AFFINES[name])
    found = np.unravel_index(int(volume.array.argmax()), volume.array.shape)
    np.testing.assert_allclose(volume.to_mm(np.array(found)), blob_mm(AFFINES[name]), atol=1e-9)
    np.testing.assert_allclose(volume.to_vox(blob_mm(AFFINES[name])), found, atol=1e-9)
    # Axes increase to Superior, Posterior, Left: columns of the affine in RAS+ say so.
    xyz_ras = volume.affine_ras
    assert aff2axcodes(xyz_ras) == ("S", "P", "L")
    assert sorted(volume.array.ravel()) == sorted(array.ravel())


@pytest.mark.parametrize("name", AFFINES)
def test_to_original_restores_the_file_array(name: str) -> None:
    array = content("int16")
    volume = Volume.from_file_array(array, AFFINES[name])
    restored = volume.to_original()
    assert restored.dtype == array.dtype
    np.testing.assert_array_equal(restored, array)
    assert volume.original is not None
    np.testing.assert_array_equal(volume.original.affine, AFFINES[name])
    assert volume.original.axis_codes == aff2axcodes(AFFINES[name])


def test_ras_file_becomes_reversed_lps() -> None:
    array = content("uint8")
    volume = Volume.from_file_array(array, AFFINES["ras"])
    np.testing.assert_array_equal(volume.array, array.transpose(2, 1, 0)[:, ::-1, ::-1])
    assert volume.spacing_mm == (1.0, 1.0, 1.0)
    # The last voxel of the file is the first of ours along y and x.
    assert volume.origin_mm == (0.0, -(SHAPE[1] - 1.0), -(SHAPE[0] - 1.0))


def test_spacing_follows_the_permutation() -> None:
    volume = Volume.from_file_array(content("uint8"), AFFINES["permuted"])
    assert volume.spacing_mm == (1.5, 1.0, 2.0)
    assert volume.shape == (SHAPE[1], SHAPE[0], SHAPE[2])
    assert not volume.is_oblique
    assert Volume.from_file_array(content("uint8"), AFFINES["oblique"]).is_oblique


def test_index_map_points_to_the_file_voxel() -> None:
    permutation, flips = canonical_axes(AFFINES["flipped"])
    volume = Volume.from_file_array(content("int16"), AFFINES["flipped"])
    found = np.unravel_index(int(volume.array.argmax()), volume.array.shape)
    in_file = index_map(SHAPE, permutation, flips) @ [*found, 1]
    assert tuple(in_file[:3].astype(int)) == BLOB_VOX


def test_axes_of_size_one_come_back() -> None:
    array = content("int16")
    volume = Volume.from_file_array(array, AFFINES["oblique"], file_shape=(*SHAPE, 1))
    assert volume.to_original().shape == (*SHAPE, 1)


@pytest.mark.parametrize("column", [0, 1, 2])
def test_zero_spacing_is_refused(column: int) -> None:
    affine = AFFINES["oblique"].copy()
    affine[:3, column] = 0
    with pytest.raises(VolumeError, match="spacing"):
        canonical_axes(affine)


def test_undefined_affine_is_refused() -> None:
    affine = np.eye(4)
    affine[0, 0] = np.nan
    with pytest.raises(VolumeError, match="spacing"):
        canonical_axes(affine)


def test_another_shape_is_refused() -> None:
    volume = Volume.from_file_array(content("int16"), AFFINES["ras"])
    with pytest.raises(VolumeError, match="original grid"):
        volume.to_original(np.zeros((3, 3, 3)))
    with pytest.raises(VolumeError, match="grid"):
        volume.with_array(np.zeros((3, 3, 3)))


def test_a_volume_without_a_file_has_no_original_grid() -> None:
    with pytest.raises(VolumeError, match="not read from a file"):
        Volume(np.zeros((2, 2, 2)), np.eye(4)).to_original()


def test_with_array_keeps_the_geometry() -> None:
    volume = Volume.from_file_array(content("int16"), AFFINES["oblique"], name="scan")
    mask = volume.with_array(volume.array > 100, name="mask")
    assert mask.name == "mask"
    assert mask.original is volume.original
    assert mask.array.dtype == bool
