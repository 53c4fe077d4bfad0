"""The image warp and the point map of one affine agree, measured on images."""

import math

import pytest
import torch

from napari_s2dc.method.affine import Affine3D

SHAPE = (40, 56, 48)

AFFINES = {
    "identity": Affine3D.identity(),
    "translation": Affine3D.in_plane((5, -3), 0, 1),
    "rotation": Affine3D.in_plane((0, 0), 30, 1),
    "scale up": Affine3D.in_plane((0, 0), 0, 1.2),
    "scale down": Affine3D.in_plane((0, 0), 0, 0.9),
    "all in plane": Affine3D.in_plane((6, -4), -25, 1.13),
    "other plane": Affine3D.in_plane((6, -4), 20, 0.95, plane=(0, 2)),
    "three dimensions": Affine3D.compose(
        (3, -5, 4), [(20, (1, 2)), (-12, (0, 2)), (9, (0, 1))], 1.08
    ),
}


def coordinates(shape: tuple[int, int, int]) -> torch.Tensor:
    """Image (3, *shape) whose value is each voxel's position from the centre."""
    axes = [torch.arange(n, dtype=torch.float64) + 0.5 - n / 2 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@pytest.mark.parametrize("name", AFFINES)
def test_warped_coordinate_image_shows_the_mapped_point(name: str) -> None:
    affine = AFFINES[name]
    image = coordinates(SHAPE)
    warped = affine.warp(image)
    points = image.reshape(3, -1).T
    expected = affine.map_points(points)
    # Linear interpolation of a linear image is exact where all eight neighbours exist.
    half = torch.tensor(SHAPE) / 2
    inside = (expected.abs() <= half - 0.5).all(1)
    assert inside.sum() > 10_000
    assert (warped.reshape(3, -1).T - expected)[inside].abs().max() < 1e-9


@pytest.mark.parametrize("name", AFFINES)
def test_bright_blob_lands_where_the_inverse_says(name: str) -> None:
    affine = AFFINES[name]
    grid = coordinates(SHAPE)
    for source in ([0.0, 0.0, 0.0], [6.0, -9.0, 5.0], [-8.0, 7.0, -6.0]):
        point = torch.tensor(source, dtype=torch.float64)
        blob = torch.exp(-((grid - point[:, None, None, None]) ** 2).sum(0) / (2 * 2.0**2))
        warped = affine.warp(blob)
        landed = (grid * warped).sum((1, 2, 3)) / warped.sum()
        assert (landed - affine.inverse().map_points(point[None])[0]).abs().max() < 0.05


def test_inverse_undoes_the_map() -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for affine in AFFINES.values():
        back = affine.inverse().map_points(affine.map_points(points * 30))
        assert (back - points * 30).abs().max() < 1e-10


def test_matrix_is_translation_rotation_scale() -> None:
    matrix = Affine3D.in_plane((24, -12), 30, 1.1, plane=(0, 1)).matrix
    cosine, sine = math.cos(math.radians(30)) * 1.1, math.sin(math.radians(30)) * 1.1
    expected = torch.tensor(
        [[cosine, sine, 0, 24], [-sine, cosine, 0, -12], [0, 0, 1.1, 0], [0, 0, 0, 1]]
    )
    assert torch.allclose(matrix, expected.double(), atol=1e-6)


def test_batched_map_equals_single_maps() -> None:
    shift = torch.tensor([[3.0, -2.0], [0.0, 5.0]])
    angle, scale = torch.tensor([10.0, -20.0]), torch.tensor([0.95, 1.1])
    batched = Affine3D.in_plane(shift, angle, scale)
    image = torch.rand(2, 2, 12, 16, 20, generator=torch.Generator().manual_seed(1))
    warped = batched.warp(image)
    points = torch.randn(7, 3, dtype=torch.float64)
    for i in range(2):
        single = Affine3D.in_plane(shift[i].tolist(), float(angle[i]), float(scale[i]))
        assert torch.allclose(warped[i], single.warp(image[i]), atol=1e-5)
        assert torch.allclose(batched.map_points(points)[i], single.map_points(points), atol=1e-5)


def test_crop_of_another_size_is_sampled_round_its_own_centre() -> None:
    image = coordinates((32, 32, 32))
    offset = torch.tensor([8.0, -8.0, 0.0])
    crop = Affine3D.identity().translated(offset).warp(image, output_shape=(16, 16, 16))
    assert torch.allclose(crop, image[:, 16:32, 0:16, 8:24])


@pytest.mark.parametrize("dimensions", [3, 4, 5])
def test_warp_keeps_the_number_of_dimensions(dimensions: int) -> None:
    image = torch.rand((2, 3, 8, 8, 8)[5 - dimensions :])
    assert AFFINES["rotation"].warp(image).shape == image.shape
