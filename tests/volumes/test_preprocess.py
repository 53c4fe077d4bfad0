from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nibabel.testing import data_path as nibabel_data

from napari_s2dc.errors import ConfigurationError, VolumeError
from napari_s2dc.volumes.foreground import sample_inside, sample_of
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.preprocess import (
    PRESETS,
    foreground_mask,
    guess_preset,
    normalize,
    resample,
    resample_to,
    scaling_of,
)
from napari_s2dc.volumes.volume import Volume
from tests.volumes.files import AFFINES

SMALL = (40, 56, 56)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def crop_of_brain() -> np.ndarray:
    return read_volume(Path(nibabel_data) / "anatomical.nii").array


# ------------------------------------------------------------------------------- presets
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("ct_soft_tissue", -160, 240),
        ("ct_lung", -1350, 150),
        ("ct_bone", -500, 1300),
        ("ct_wide", -1000, 1000),
    ],
)
def test_ct_windows(name: str, low: float, high: float) -> None:
    middle = (low + high) / 2
    array = np.array([low - 50, low, middle, high, high + 50], np.float32).reshape(1, 1, 5)
    np.testing.assert_allclose(normalize(array, name).ravel(), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_the_ct_preset_bends_so_that_no_tissue_is_lost() -> None:
    hu = np.array([-1100, -1000, -580, -160, 40, 240, 870, 1500, 3000]).reshape(1, 1, 9)
    expected = [0, 0, 0.075, 0.15, 0.5, 0.85, 0.925, 1, 1]
    for kind in (np.int16, np.float32):
        found = normalize(hu.astype(kind), "ct")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_float32_in_unit_range(name: str) -> None:
    image, _ = phantom(SMALL, contrast="ct" if name.startswith("ct") else "t1")
    before = image.array.copy()
    result = normalize(image.array, name)
    assert result.dtype == np.float32
    assert result.shape == image.array.shape
    assert result.min() >= 0
    assert result.max() <= 1
    assert result.std() > 0.1
    np.testing.assert_array_equal(image.array, before)


def test_mr_does_not_depend_on_scanner_scale_or_on_the_amount_of_air() -> None:
    image, _ = phantom(SMALL, contrast="t2")
    reference = normalize(image.array, "mr")
    np.testing.assert_allclose(normalize(image.array * 1e4, "mr"), reference, atol=1e-4)
    wide = np.pad(image.array, 12, mode="wrap")
    wide[:12] = wide[-12:] = 0
    inside = tuple(slice(12, -12) for _ in range(3))
    tissue = reference > 0.2
    assert np.abs(normalize(wide, "mr")[inside] - reference)[tissue].mean() < 0.1


def test_presets_are_guessed() -> None:
    assert guess_preset(phantom(SMALL, contrast="ct")[0].array) == "ct"
    assert guess_preset(phantom(SMALL, contrast="t1")[0].array) == "mr"
    assert guess_preset(crop_of_brain()) == "mr"
    # Negative values alone do not make a CT: an MR after z-score, and one with an offset.
    noise = np.random.default_rng(0).normal(size=(20, 20, 20))
    assert guess_preset(noise) == "mr"
    assert guess_preset(noise * 10 - 5000) == "mr"
    image, _ = phantom(SMALL, contrast="ct")
    np.testing.assert_array_equal(normalize(image.array, "auto"), normalize(image.array, "ct"))


def test_unknown_preset_and_constant_scan() -> None:
    with pytest.raises(ConfigurationError, match="no intensity preset 'x'"):
        normalize(np.zeros((3, 3, 3)), "x")
    with pytest.raises(VolumeError, match="same value"):
        normalize(np.full((8, 8, 8), 3.0), "mr")


# ---------------------------------------------------------------------------- foreground
@pytest.mark.parametrize("contrast", ["ct", "t1", "t2", "pet"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("normalised", [False, True])
def test_body_of_the_phantom(contrast: str, seed: int, normalised: bool) -> None:
    image, labels = phantom(SMALL, seed=seed, contrast=contrast)  # type: ignore[arg-type]
    preset = "pet" if contrast == "pet" else "auto"
    array = normalize(image.array, preset) if normalised else image.array
    mask = foreground_mask(array)
    assert mask.dtype == bool
    assert mask.shape == array.shape
    # Lungs are inside although they are dark.
    assert mask[np.isin(labels.array, [4, 5])].mean() > 0.98
    assert overlap(mask, labels.array > 0) > 0.94


def test_table_beside_the_body_is_left_out() -> None:
    image, labels = phantom(SMALL)
    array = image.array.copy()
    table = (slice(None), slice(-3, -2), slice(None))
    array[table] = 50
    assert foreground_mask(array)[table].mean() < 0.05
    assert overlap(foreground_mask(array), labels.array > 0) > 0.98


def test_background_of_one_value_is_left_out() -> None:
    image, labels = phantom(SMALL, contrast="t2")
    brain = np.isin(labels.array, [10, 7, 13])  # some solid organs, everything else masked
    array = np.where(brain, image.array, 0)
    assert overlap(foreground_mask(array), brain) > 0.95


def test_crop_inside_the_body_is_all_foreground() -> None:
    assert foreground_mask(crop_of_brain()).mean() > 0.99
    image, _ = phantom((64, 64, 64))
    inside = image.array[5:45, 24:36, 14:50]
    assert foreground_mask(inside).mean() > 0.95


def test_lung_cut_by_the_edge_of_a_ct_is_body() -> None:
    image, labels = phantom(SMALL)
    part = (slice(28, None), slice(18, 40), slice(6, 28))
    lung = labels.array[part] == 4
    assert lung.any()
    assert foreground_mask(image.array[part])[lung].mean() > 0.95


def test_large_scan_is_masked_on_a_coarser_grid() -> None:
    image, labels = phantom((161, 161, 161))
    mask = foreground_mask(image.array)
    assert mask.shape == image.array.shape
    assert overlap(mask, labels.array > 0) > 0.97


def test_mask_is_never_empty() -> None:
    assert foreground_mask(np.zeros((8, 8, 8))).all()
    assert foreground_mask(np.arange(8**3, dtype=float).reshape(8, 8, 8)).any()


# ---------------------------------------------------------------------------- resampling
@pytest.mark.parametrize("affine", ["lps", "oblique permuted"])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.7, 1.3, 2.9)])
def test_resampling_keeps_places_in_mm(affine: str, spacing: tuple[float, float, float]) -> None:
    grid = np.stack(np.meshgrid(*(np.arange(24.0),) * 3, indexing="ij"))
    volume = Volume.from_file_array(np.zeros((24, 24, 24), np.float32), AFFINES[affine])
    centre = volume.to_mm(np.array([11.0, 12.5, 10.0]))
    distance = np.linalg.norm(volume.to_mm(np.moveaxis(grid, 0, -1)) - centre, axis=-1)
    volume = volume.with_array(np.exp(-((distance / 6) ** 2)).astype(np.float32))
    changed = resample(volume, spacing)
    np.testing.assert_allclose(changed.spacing_mm, spacing, rtol=1e-9)
    weight = changed.array.astype(float) ** 2
    middle = [
        (weight * axis).sum() / weight.sum()
        for axis in np.meshgrid(*(np.arange(size) for size in changed.shape), indexing="ij")
    ]
    assert np.linalg.norm(changed.to_mm(np.array(middle)) - centre) < 0.1
    # The outer corner stays.
    np.testing.assert_allclose(
        changed.to_mm(np.full(3, -0.5)), volume.to_mm(np.full(3, -0.5)), atol=1e-9
    )
    assert changed.original is None


def test_labels_stay_labels() -> None:
    _, labels = phantom(SMALL, spacing_mm=3.0)
    coarse = resample(labels, (6.0, 6.0, 6.0), labels=True)
    assert coarse.array.dtype == labels.array.dtype
    assert set(np.unique(coarse.array)) <= set(np.unique(labels.array))
    assert coarse.shape == tuple(size // 2 for size in SMALL)


def test_shrinking_averages_instead_of_picking() -> None:
    noise = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    coarse = resample(Volume(noise, np.eye(4)), (4.0, 4.0, 4.0))
    assert coarse.array.std() < 0.35


def test_same_spacing_is_the_same_volume() -> None:
    image, _ = phantom(SMALL)
    assert resample(image, (3.0, 3.0, 3.0)) is image


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (np.nan, 1.0, 1.0)])
def test_impossible_spacing(spacing: tuple[float, float, float]) -> None:
    image, _ = phantom(SMALL)
    with pytest.raises(VolumeError, match="cannot be resampled"):
        resample(image, spacing)


def test_spacing_that_needs_too_much_memory() -> None:
    image, _ = phantom(SMALL)
    with pytest.raises(VolumeError, match="larger spacing"):
        resample(image, (0.01, 0.01, 0.01))


@pytest.mark.parametrize("affine", ["lps", "oblique permuted"])
def test_going_back_to_the_grid_of_the_file(affine: str) -> None:
    labels = (np.indices((20, 24, 16)).sum(0) > 28).astype(np.uint8)
    volume = Volume.from_file_array(labels, AFFINES[affine])
    fine = resample(volume, (0.5, 0.5, 0.5), labels=True)
    back = resample_to(fine, volume, labels=True)
    assert back.original is volume.original
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_array_equal(back.to_original(), labels)
    shifted = Volume(volume.array, volume.affine.copy())
    shifted.affine[:3, 3] += 1000
    assert (resample_to(shifted, volume, outside=7).array == 7).all()


@pytest.mark.parametrize("preset", ["mr", "pet", "ct", "ct_wide"])
def test_a_part_is_scaled_as_in_the_whole(preset: str) -> None:
    image, _ = phantom(SMALL, seed=1, contrast="t1")
    part = (slice(3, 20), slice(10, 40), slice(0, 56))
    scale = scaling_of(image.array, preset)
    np.testing.assert_array_equal(scale(image.array[part]), normalize(image.array, preset)[part])


@pytest.mark.parametrize("most", [10**6, 1000, 37])
def test_a_sample_inside_a_mask_is_that_of_all_its_values(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_s2dc.volumes.foreground.SAMPLE_VOXELS", most)
    random = np.random.default_rng(0)
    array, mask = random.random((9, 20, 21)), random.random((9, 20, 21)) < 0.4
    mask[4] = False
    found = sample_inside(array, mask)
    np.testing.assert_array_equal(found, sample_of(array[mask]))
    assert 0 < len(found) <= most
