from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from napari.layers import Image, Labels, Points

from napari_s2dc.errors import VolumeError
from napari_s2dc.widgets.volumes_of_layers import (
    problem_of,
    resolutions_of,
    snapshot,
    volume_from_layer,
    world_matrix,
)

VALUES = np.random.default_rng(0).integers(-500, 500, (8, 10, 12)).astype(np.int16)


def _memory_map(folder: Path) -> np.ndarray:
    np.save(folder / "scan.npy", VALUES)
    return np.load(folder / "scan.npy", mmap_mode="r")


def _dask(_: Path) -> Any:
    return dask.array.from_array(VALUES, chunks=4)


def _zarr(_: Path) -> Any:
    return zarr.array(VALUES)


@pytest.mark.parametrize(
    "make",
    [lambda _: VALUES, lambda _: VALUES.astype(np.uint8), _memory_map, _dask, _zarr],
    ids=["int16", "uint8", "memmap", "dask", "zarr"],
)
def test_every_kind_of_data_becomes_the_same_volume(make: Any, tmp_path: Path) -> None:
    data = make(tmp_path)
    volume = volume_from_layer(Image(data, name="scan", scale=(3, 1, 2), translate=(5, 6, 7)))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, np.asarray(data).astype(np.float32))
    assert volume.spacing_mm == pytest.approx((3, 1, 2))
    assert volume.origin_mm == pytest.approx((5, 6, 7))


def test_levels_of_a_multiscale_layer() -> None:
    coarse = VALUES.reshape(4, 2, 5, 2, 6, 2).mean((1, 3, 5))
    layer = Image([VALUES, coarse], multiscale=True, name="pyramid", scale=(3, 1, 2))
    fine, half = snapshot(layer, 0), snapshot(layer, 1)
    assert fine.shape == VALUES.shape
    assert half.shape == coarse.shape
    assert half.factors == (2, 2, 2)
    assert half.load().spacing_mm == pytest.approx((6, 2, 4))
    # the first coarse voxel lies between the first two fine ones
    assert half.load().origin_mm == pytest.approx((1.5, 0.5, 1))
    with pytest.raises(VolumeError, match="no resolution level 2"):
        snapshot(layer, 2)


def test_large_scans_can_be_read_on_coarser_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_s2dc.volumes.coarser._WORTH_IT", 900)
    monkeypatch.setattr("napari_s2dc.volumes.coarser._FEWEST", 100)
    monkeypatch.setattr("napari_s2dc.volumes.coarser._SHORTEST", 1)
    layer = Image(VALUES, name="scan", scale=(3, 1, 2), translate=(5, 6, 7))
    assert resolutions_of(layer) == [(8, 10, 12), (8, 5, 12), (8, 3, 8)]
    whole, coarse = snapshot(layer), snapshot(layer, (8, 5, 12))
    assert coarse.shape == (8, 5, 12)
    assert coarse.factors == (1, 2, 1)
    assert coarse.data is layer.data
    stored = coarse.stored
    assert (stored.shape, stored.factors, stored.level) == (whole.shape, (1, 1, 1), 0)
    np.testing.assert_allclose(coarse.stored.affine, whole.affine)
    volume = coarse.load()
    assert volume.shape == (8, 5, 12)
    assert volume.spacing_mm == pytest.approx((3, 2, 2))
    np.testing.assert_allclose(volume.affine, coarse.affine)
    with pytest.raises(VolumeError, match="fewer voxels than the resolution"):
        snapshot(layer, (8, 11, 12))
    assert resolutions_of(Points(np.zeros((2, 3)))) == []
    assert resolutions_of(None) == []


def test_units_become_mm() -> None:
    layer = Image(VALUES, scale=(300, 100, 200), units=("um", "um", "um"), name="stack")
    assert volume_from_layer(layer).spacing_mm == pytest.approx((0.3, 0.1, 0.2))


def test_turned_layer_keeps_its_place() -> None:
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0.1, 0], [0, 1, 0.2], [0, 0, 1]]
    layer = Image(VALUES, scale=(3, 1, 2), translate=(1, 2, 3), affine=affine, rotate=20)
    volume = volume_from_layer(layer)
    for voxel in [(0, 0, 0), (3, 4, 5), (7, 9, 11)]:
        np.testing.assert_allclose(volume.to_mm(np.array(voxel)), layer.data_to_world(voxel))
    np.testing.assert_allclose(world_matrix(layer), volume.affine)


def _empty() -> Image:
    with np.errstate(invalid="ignore"):  # napari divides by its size
        return Image(np.zeros((0, 4, 4)), name="nothing", contrast_limits=(0, 1))


NAN = VALUES.astype(np.float32)
NAN[2, 3, 4] = np.nan


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (Image(VALUES[0], name="slice"), "Layer slice has 2 dimensions"),
        (Image(VALUES[None], name="series"), "Layer series has 4 dimensions"),
        (Image(np.zeros((8, 9, 10, 3)), rgb=True, name="photo"), "colour image"),
        (Image(VALUES[:1], name="thin"), "one slice"),
        (_empty(), "Layer nothing is empty"),
        (Labels(np.zeros((4, 4, 4), np.uint8), name="organs"), "no image layer"),
        (Points(np.zeros((2, 3)), name="spots"), "no image layer"),
    ],
    ids=["2d", "4d", "rgb", "thin", "empty", "labels", "points"],
)
def test_what_is_no_scan_gets_one_sentence(layer: Any, sentence: str) -> None:
    assert sentence in problem_of(layer)
    assert "\n" not in problem_of(layer)
    with pytest.raises(VolumeError, match="Layer"):
        volume_from_layer(layer)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [(NAN, "NaN or infinite values in 1 of "), (np.zeros((4, 4, 4)), "same value")],
)
def test_values_that_cannot_be_used_are_told_when_read(values: Any, sentence: str) -> None:
    layer = Image(values, name="broken", contrast_limits=(0, 1))
    assert problem_of(layer) == ""
    with pytest.raises(VolumeError, match=sentence):
        volume_from_layer(layer)


def test_data_that_fails_to_load_is_one_sentence() -> None:
    class Torn:
        shape, ndim, dtype, size = (4, 4, 4), 3, np.dtype("f4"), 64

        def __getitem__(self, key: Any) -> np.ndarray:
            return np.zeros((4, 4, 4), "f4")[key]

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            raise OSError("chunk 3 is\nmissing")

    found = snapshot(Image(VALUES, name="remote"))
    with pytest.raises(VolumeError, match="remote cannot be read: chunk 3 is missing"):
        type(found)(data=Torn(), affine=found.affine, name="remote").load()


def test_no_layer_is_a_sentence_too() -> None:
    assert "Open or select" in problem_of(None)


class _Counting:
    """Array-like that says how much of it was read."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.ndim, self.dtype = shape, len(shape), np.dtype(np.float32)
        self.read = 0

    def __getitem__(self, index: Any) -> np.ndarray:
        values = np.broadcast_to(np.float32(-700), self.shape)[index]
        self.read += values.size
        return values

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise AssertionError("read whole")


def test_a_sample_reads_a_bounded_part() -> None:
    data = _Counting((2000, 3000, 3000))
    layer = Image(np.zeros((4, 5, 6)), name="scan", scale=(3, 1, 2))
    source = replace(snapshot(layer), data=data)
    sample = source.sample()
    assert data.read <= 2**22
    assert sample.array.shape == (3, 1024, 1024)
    assert (sample.array == -700).all()
    assert sample.spacing_mm == pytest.approx((3, 1, 2))


def test_a_sample_of_a_pyramid_is_its_coarsest_level_and_has_no_holes() -> None:
    coarse = np.full((4, 5, 6), 7, np.float32)
    coarse[0] = np.nan
    layer = Image([VALUES, coarse], multiscale=True, name="pyramid", scale=(3, 1, 2))
    sample = snapshot(layer, 0).sample()
    assert sample.array.shape == coarse.shape
    assert (sample.array == 7).all()
    assert sample.spacing_mm == pytest.approx((3, 1, 2))
    with pytest.raises(VolumeError, match="no number"):
        snapshot(Image(np.full((4, 5, 6), np.nan), contrast_limits=(0, 1))).sample()
