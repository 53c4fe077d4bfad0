"""Registration: known moves and bends are found, from intensities and from features alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.registration import Registration, RegistrationSettings, register
from napari_s2dc.engine.scan_agreement import Agreement
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume

SHAPE = (40, 48, 48)
SPACING_MM = 6.0
STRIDE = 8
IMAGES_ONLY = RegistrationSettings(affine_steps=60, bending_steps=60, feature_weight=0.0)


def features_of(volume: Volume) -> Embedding:
    """Smooth random functions of the place, seen where the volume's affine puts it."""
    grid = tuple(-(-side // STRIDE) for side in volume.shape)
    embedding = Embedding(
        features=torch.zeros(16, *grid, dtype=torch.float16),
        foreground=torch.ones(grid, dtype=torch.bool),
        stride=STRIDE,
        shape=volume.shape,
        offset_vox=(0, 0, 0),
        spacing_mm=volume.spacing_mm,
        affine=volume.affine,
        name="scan",
        metadata={"preset": "ct_soft_tissue"},
    )
    tokens = np.argwhere(np.ones(grid))
    points = np.array([embedding.mm_of_token(token) for token in tokens])
    waves = np.random.default_rng(0).normal(0, 0.02, (3, 16))
    values = torch.from_numpy(np.sin(points @ waves + np.arange(16)))
    return replace(embedding, features=values.mT.reshape(16, *grid).half())


@pytest.fixture(scope="module")
def torso() -> tuple[Volume, Volume]:
    return phantom(SHAPE, SPACING_MM, seed=3)


def moved(volume: Volume, where: Callable[[np.ndarray], np.ndarray], order: int = 1) -> Volume:
    """The volume that shows at voxel x what `volume` has at where(x)."""
    places = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    source = np.moveaxis(where(places.astype(float)), -1, 0)
    return volume.with_array(
        ndimage.map_coordinates(volume.array, source, order=order, mode="nearest")
    )


def error_vox(
    found: Registration, volume: Volume, where: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Median distance in voxels from the truth, in the middle of the scan."""
    middle = tuple(slice(side // 4, -(side // 4)) for side in volume.shape)
    places = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    mapped = found.voxels_in(volume.affine, slice(0, volume.shape[0])).numpy()
    return float(np.median(np.linalg.norm(mapped - where(places.astype(float)), axis=-1)[middle]))


def shifted(places: np.ndarray) -> np.ndarray:
    return places * [1.05, 0.97, 1.0] + [1.0, 2.5, -2.0]


def bent(places: np.ndarray) -> np.ndarray:
    return places + 1.5 * np.sin(places[..., ::-1] / 8)


def run(
    volume: Volume,
    where: Callable[[np.ndarray], np.ndarray],
    settings: RegistrationSettings,
    **more: object,
) -> Registration:
    target = moved(volume, where)
    embeddings = features_of(volume), features_of(target)
    return finish(
        register(embeddings, (volume, target), np.eye(4), settings=settings, **more)  # type: ignore[arg-type]
    )


def test_a_known_affine_map_is_found_from_the_images(torso: tuple[Volume, Volume]) -> None:
    image, _ = torso
    start = run(image, shifted, RegistrationSettings(0, 0))
    found = run(image, shifted, replace(IMAGES_ONLY, bending_steps=0))
    assert error_vox(start, image, shifted) > 2.5
    assert error_vox(found, image, shifted) < 0.6
    assert not found.bending_mm.any()
    assert found.agreement.mean() > start.agreement.mean()
    linear = (found.matrix @ found.affine)[:3, :3] / SPACING_MM
    np.testing.assert_allclose(np.diag(linear), [1.05, 0.97, 1.0], atol=0.02)


def far(places: np.ndarray) -> np.ndarray:
    return places + np.array([4.0, 5.0, -4.0])


def test_steps_go_on_while_the_map_gets_better(
    torso: tuple[Volume, Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = torso
    few = replace(IMAGES_ONLY, affine_steps=12, bending_steps=0)
    found = run(image, far, few)
    monkeypatch.setattr("napari_s2dc.engine.registration._MOST_ROUNDS", 1)
    once = run(image, far, few)
    assert error_vox(once, image, far) > 2
    assert error_vox(found, image, far) < 1
    monkeypatch.setattr("napari_s2dc.engine.registration._MOST_ROUNDS", 5)
    embeddings = (features_of(image),) * 2
    steps = list(register(embeddings, (image, image), np.eye(4), settings=few))
    assert steps[-1].total == 12  # what has arrived stays


def test_the_finest_grid_alone_finds_an_affine_map_that_is_near(
    torso: tuple[Volume, Volume],
) -> None:
    image, _ = torso
    alone = replace(IMAGES_ONLY, affine_steps=0, bending_steps=0, fine_affine_steps=60)
    found = run(image, shifted, alone)
    assert error_vox(found, image, shifted) < 0.2
    assert not found.bending_mm.any()


def test_a_known_bend_is_found(torso: tuple[Volume, Volume]) -> None:
    image, _ = torso
    affine = run(image, bent, replace(IMAGES_ONLY, bending_steps=0))
    found = run(image, bent, IMAGES_ONLY)
    assert error_vox(found, image, bent) < 0.6 * error_vox(affine, image, bent)


def test_the_start_may_be_bent(torso: tuple[Volume, Volume]) -> None:
    image, _ = torso
    wave = run(
        image,
        lambda places: places,
        RegistrationSettings(0, 0),
        bending=lambda points_mm: np.tile([SPACING_MM, 0.0, 0.0], (len(points_mm), 1)),
    )
    places = wave.voxels_in(image.affine, slice(0, 3))
    np.testing.assert_allclose(places[..., 0], np.arange(1, 4)[:, None, None] * np.ones(SHAPE[1:]))


def test_features_alone_move_the_map_where_intensities_say_nothing() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    flat = Volume(np.ones(SHAPE, np.float32), affine)
    there = affine.copy()
    there[:3, 3] = [5.0, -4.0, 3.0]
    # The same grid under another affine: features depend on the place in mm alone.
    embeddings = features_of(flat), replace(features_of(Volume(flat.array, there)), affine=affine)
    settings = RegistrationSettings(affine_steps=120, bending_steps=0, feature_weight=1.0)
    found = finish(register(embeddings, (flat, flat), np.eye(4), settings=settings))
    middle = np.array([40.0, 48.0, 48.0, 1.0])
    np.testing.assert_allclose((found.matrix @ middle - middle)[:3], [5.0, -4.0, 3.0], atol=1.0)


def test_scans_of_other_spacing_and_size_are_compared_in_mm(torso: tuple[Volume, Volume]) -> None:
    image, _ = torso
    affine = image.affine.copy()
    affine[:3, 2] *= 2  # every second voxel along x
    coarse = Volume(np.ascontiguousarray(image.array[:, :, ::2]), affine)
    steps = register(
        (features_of(image), features_of(coarse)), (image, coarse), np.eye(4), settings=IMAGES_ONLY
    )
    places = finish(steps).voxels_in(image.affine, slice(10, 30))
    expected = torch.arange(0, SHAPE[2], 2.0)
    assert float((places[..., 2] - expected).abs().median()) < 0.5


def test_progress_counts_every_step_and_the_same_start_gives_the_same_map(
    torso: tuple[Volume, Volume],
) -> None:
    image, _ = torso
    embeddings = features_of(image), features_of(image)
    settings = RegistrationSettings(affine_steps=7, bending_steps=6)
    seen = list(register(embeddings, (image, image), np.eye(4), settings=settings))
    assert seen[0].done == 0
    assert seen[-1].done == seen[-1].total == 13
    one, two = (
        finish(register(embeddings, (image, image), np.eye(4), settings=settings)) for _ in range(2)
    )
    np.testing.assert_array_equal(one.matrix, two.matrix)
    assert torch.equal(one.bending_mm, two.bending_mm)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"affine_steps": -1}, {"stiffness": -0.1}, {"feature_weight": -1.0}):
        with pytest.raises(ConfigurationError):
            RegistrationSettings(**wrong)  # type: ignore[arg-type]


def test_of_many_tokens_a_part_that_covers_the_scan_is_compared(
    torso: tuple[Volume, Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = features_of(torso[0])
    whole = Agreement((features, features), np.eye(4), 1.0)
    assert len(whole.points_mm) == len(whole.unit_b) == 5 * 6 * 6
    monkeypatch.setattr("napari_s2dc.engine.scan_agreement._MOST_TOKENS", 50)
    part = Agreement((features, features), np.eye(4), 1.0)
    assert 40 <= len(part.points_mm) == len(part.unit_b) <= 50
    for place, unit in zip(part.points_mm, part.unit_b, strict=True):
        (same,) = torch.nonzero((whole.points_mm == place).all(1))[:, 0]
        assert torch.equal(whole.unit_b[same], unit)
    extent = [points.amax(0) - points.amin(0) for points in (part.points_mm, whole.points_mm)]
    assert bool((extent[0] >= 0.7 * extent[1]).all())
