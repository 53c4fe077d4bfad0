from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.io import check_values
from napari_s2dc.volumes.phantom import LABELS, phantom

SHAPE = (48, 64, 64)
NUMBER = {name: number for number, name in LABELS.items()}


def centre(labels: np.ndarray, name: str) -> np.ndarray:
    return np.argwhere(labels == NUMBER[name]).mean(0)


def test_every_organ_is_there() -> None:
    assert len(LABELS) >= 12
    for seed in range(6):
        image, labels = phantom(SHAPE, seed=seed)
        assert image.array.dtype == np.float32
        assert labels.array.dtype == np.uint8
        assert image.shape == labels.shape == SHAPE
        counts = np.bincount(labels.array.ravel(), minlength=len(LABELS) + 1)
        missing = [LABELS[number] for number in LABELS if counts[number] < 10]
        assert not missing, seed
        assert counts.size == len(LABELS) + 1
        assert 0.2 < (labels.array > 0).mean() < 0.8
        check_values(image)


@pytest.mark.parametrize("seed", range(4))
def test_organs_lie_where_they_belong(seed: int) -> None:
    labels = phantom(SHAPE, seed=seed)[1].array
    place = {name: centre(labels, name) for name in NUMBER}
    z, y, x = 0, 1, 2
    # x increases to the patient's left, y to posterior, z to superior.
    for right, left in (("right lung", "left lung"), ("right kidney", "left kidney")):
        assert place[right][x] < place[left][x]
    for organ in ("liver", "gallbladder", "inferior vena cava"):
        assert place[organ][x] < place["aorta"][x]
    for organ in ("spleen", "stomach", "heart"):
        assert place[organ][x] > place["liver"][x]
    for organ in ("heart", "liver", "stomach", "bladder", "aorta", "bowel", "right kidney"):
        assert place["vertebrae"][y] > place[organ][y]
    assert place["right kidney"][y] > place["stomach"][y]
    assert place["spinal cord"][y] > place["vertebrae"][y] - 1
    heights = ["right lung", "liver", "right kidney", "bowel", "bladder"]
    assert [place[name][z] for name in heights] == sorted(
        (place[name][z] for name in heights), reverse=True
    )
    assert place["heart"][z] > place["liver"][z]


@pytest.mark.parametrize(
    ("tissue", "low", "high"),
    [
        ("subcutaneous fat", -130, -70),
        ("muscle", 30, 80),
        ("right lung", -950, -650),
        ("liver", 40, 130),
        ("bladder", -10, 40),
        ("spinal cord", 0, 70),
        ("ribs", 200, 800),
    ],
)
def test_ct_values_are_like_hounsfield_units(tissue: str, low: float, high: float) -> None:
    for seed in range(3):
        image, labels = phantom((72, 96, 96), seed=seed)
        median = np.median(image.array[labels.array == NUMBER[tissue]])
        assert low < median < high
    air = image.array[:, :3, :3]
    assert -1010 < np.median(air) < -990
    assert 3 < air.std() < 40
    assert image.array.min() >= -1024


def test_mr_contrasts_differ_as_they_should() -> None:
    t1, labels = phantom(SHAPE, contrast="t1", seed=2)
    t2, _ = phantom(SHAPE, contrast="t2", seed=2)

    def ratio(array: np.ndarray, first: str, second: str) -> float:
        values = [np.median(array[labels.array == NUMBER[name]]) for name in (first, second)]
        return float(values[0] / values[1])

    assert ratio(t1.array, "subcutaneous fat", "muscle") > 1.5
    assert ratio(t1.array, "liver", "spleen") > 1.05
    assert ratio(t2.array, "liver", "spleen") < 0.9
    assert ratio(t2.array, "bladder", "muscle") > 2
    assert t1.array.min() >= 0


def test_pet_shows_the_uptake_of_a_tracer_not_edges() -> None:
    pet, labels = phantom(SHAPE, contrast="pet", seed=2)
    assert pet.modality == "pet"
    assert pet.array.min() >= 0

    def uptake(name: str) -> float:
        return float(np.median(pet.array[labels.array == NUMBER[name]]))

    assert 1.8 < uptake("liver") < 2.6
    assert uptake("bladder") > 3 * uptake("liver")
    assert uptake("subcutaneous fat") < 0.6 * uptake("muscle")
    assert np.median(pet.array[labels.array == 0]) < 0.1
    # A scanner of 6 mm blurs the bladder over its edge.
    beside = ndimage.binary_dilation(labels.array == NUMBER["bladder"]) & (labels.array > 0)
    beside &= labels.array != NUMBER["bladder"]
    assert np.median(pet.array[beside]) > 1.3 * uptake("muscle")


def test_same_seed_is_the_same_subject_in_every_contrast() -> None:
    first = phantom(SHAPE, seed=5)
    again = phantom(SHAPE, seed=5)
    np.testing.assert_array_equal(first[0].array, again[0].array)
    np.testing.assert_array_equal(first[1].array, again[1].array)
    for contrast in ("t1", "t2", "pet"):
        np.testing.assert_array_equal(
            first[1].array,
            phantom(SHAPE, seed=5, contrast=contrast)[1].array,  # type: ignore[arg-type]
        )


def test_subjects_differ_but_are_alike() -> None:
    labels = [phantom(SHAPE, seed=seed)[1].array for seed in range(4)]
    for first in range(4):
        for second in range(first):
            body = (labels[first] > 0) & (labels[second] > 0)
            same = (labels[first] == labels[second])[body].mean()
            assert 0.3 < same < 0.9
    volumes = [(label == NUMBER["liver"]).sum() for label in labels]
    assert np.std(volumes) / np.mean(volumes) > 0.03


def test_bias_makes_one_tissue_uneven_in_mr() -> None:
    uneven = []
    for seed in range(4):
        image, labels = phantom(SHAPE, seed=seed, contrast="t1")
        fat = labels.array == NUMBER["subcutaneous fat"]
        left, right = fat.copy(), fat.copy()
        left[:, :, :32] = False
        right[:, :, 32:] = False
        uneven.append(abs(np.median(image.array[left]) / np.median(image.array[right]) - 1))
    assert max(uneven) > 0.03


def test_spacing_and_centre() -> None:
    image, labels = phantom((20, 30, 40), spacing_mm=(2.0, 1.5, 1.0))
    assert image.spacing_mm == (2.0, 1.5, 1.0)
    np.testing.assert_array_equal(image.affine, labels.affine)
    np.testing.assert_allclose(image.to_mm(np.array([9.5, 14.5, 19.5])), 0, atol=1e-9)
    assert (image.modality, phantom((8, 8, 8), contrast="t1")[0].modality) == ("ct", "mr")


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 40, 23), (130, 50, 50)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    image, labels = phantom(shape)
    assert image.shape == labels.shape == shape
    assert len(np.unique(labels.array)) > 8


def test_shape_of_the_anatomy_does_not_depend_on_resolution() -> None:
    coarse = phantom((32, 48, 48), seed=3)[1].array
    fine = phantom((96, 144, 144), seed=3)[1].array[1::3, 1::3, 1::3]
    assert (coarse == fine).mean() > 0.97


def test_it_is_quick() -> None:
    phantom((16, 16, 16))
    started = time.process_time()
    phantom()
    assert time.process_time() - started < 5  # 0.4 s on a quiet core


@pytest.mark.parametrize(
    "keywords",
    [
        {"shape": (4, 64, 64)},
        {"shape": (64, 64)},
        {"contrast": "ultrasound"},
        {"spacing_mm": 0.0},
        {"spacing_mm": float("nan")},
    ],
)
def test_impossible_phantoms(keywords: dict) -> None:
    with pytest.raises(VolumeError):
        phantom(**{"shape": (16, 16, 16), **keywords})
