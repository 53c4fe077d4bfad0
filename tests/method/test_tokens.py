"""Token grid and correspondences against the golden pairs and against warped images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.tokens import (
    correspondences,
    merge_tokens,
    pair_matrix,
    partners,
    problems,
    split_crops,
    token_centres,
    token_share,
)

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "correspondences_12x12.npz")
ON_CELL_EDGES = 6


def golden_affine(number: int) -> Affine3D:
    x, y, angle, scale = GOLDEN["settings"][number]
    return Affine3D.in_plane((x, y), angle, scale, plane=(0, 1))


@pytest.mark.parametrize("number", range(12))
def test_golden_pairs(number: int) -> None:
    found = correspondences(golden_affine(number), (12, 12, 1), 32)
    expected = GOLDEN[f"true_pairs_{number}"]
    if number == ON_CELL_EDGES:
        both = {tuple(pair) for pair in found.tolist()} ^ {tuple(pair) for pair in expected}
        assert len(both) <= 26
    else:
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("number", range(12))
def test_golden_blobs_lie_where_the_map_puts_them(number: int) -> None:
    token = torch.as_tensor(GOLDEN[f"blob_source_token_{number}"]).long()
    centres = token_centres((12, 12, 1), 32)[token]
    landed = golden_affine(number).inverse().map_points(centres)[:, :2] + 192
    error = np.abs(landed.numpy() - GOLDEN[f"blob_landed_voxel_{number}"]).max()
    assert error <= 0.75


def random_affines(count: int) -> list[Affine3D]:
    generator = torch.Generator().manual_seed(4)

    def uniform(limit: float) -> float:
        return (float(torch.rand((), generator=generator)) * 2 - 1) * limit

    return [
        Affine3D.compose(
            [uniform(6), uniform(6), uniform(6)],
            [(uniform(30), (1, 2)), (uniform(15), (0, 2)), (uniform(15), (0, 1))],
            1.05 + uniform(0.15),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("affine", random_affines(6))
def test_pairs_in_three_dimensions_are_where_the_warp_puts_blobs(affine: Affine3D) -> None:
    size, grid = 8, (5, 6, 6)
    shape = [count * size for count in grid]
    axes = [torch.arange(n, dtype=torch.float64) + 0.5 - n / 2 for n in shape]
    image = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centres = token_centres(grid, size)
    pairs = correspondences(affine, grid, size)
    assert len(pairs) > 30
    assert len(set(pairs[:, 0].tolist())) == len(set(pairs[:, 1].tolist())) == len(pairs)
    expected = affine.inverse().map_points(centres)
    # A blob that the border cuts has its centre of mass elsewhere.
    whole = (expected.abs() <= torch.tensor(shape) / 2 - 6).all(1)
    pairs = pairs[whole[pairs[:, 0]]]
    assert len(pairs) > 10
    for source, target in pairs[:: max(1, len(pairs) // 12)].tolist():
        point = centres[source][:, None, None, None]
        warped = affine.warp(torch.exp(-((image - point) ** 2).sum(0) / (2 * 1.5**2)))
        landed = (image * warped).sum((1, 2, 3)) / warped.sum()
        assert (landed - expected[source]).abs().max() <= 0.75
        assert (landed - centres[target]).abs().max() <= size / 2 + 0.75


def test_identity_pairs_every_token_with_itself() -> None:
    found = correspondences(Affine3D.identity(), (3, 4, 5), 8)
    assert torch.equal(found[:, 0], torch.arange(60))
    assert torch.equal(found[:, 0], found[:, 1])


def test_tokens_moved_out_of_the_volume_have_no_partner() -> None:
    found = correspondences(Affine3D.compose((0, 0, 16), [], 1.0), (1, 1, 4), 8)
    assert found.tolist() == [[2, 0], [3, 1]]


def test_crops_and_tokens_lie_on_one_grid() -> None:
    volume = torch.arange(2 * 8 * 8 * 4).reshape(2, 1, 8, 8, 4).float()
    crops = split_crops(volume, 4)
    assert crops.shape == (8, 1, 4, 4, 4)
    assert torch.equal(crops[3], volume[0, :, 4:, 4:, :])
    assert torch.equal(merge_tokens(crops, (2, 2, 1)), volume)


def test_problems_and_pair_matrices_agree_per_slice() -> None:
    affine = Affine3D.in_plane(torch.tensor([[8.0, 0.0], [0.0, -8.0]]), 0.0, 1.0)
    grid = (2, 3, 3)
    partner = partners(affine, grid, 8)
    matrices = pair_matrix(partner, grid, per_slice=True)
    assert matrices.shape == (4, 9, 9)
    positions = torch.arange(18).reshape(1, 1, *grid).expand(2, -1, -1, -1, -1)
    index = problems(positions, per_slice=True)[..., 0]
    for problem, i, j in matrices.nonzero().tolist():
        assert partner[problem // 2, index[problem, i]] == index[problem, j]
    assert matrices.sum() == (partner >= 0).sum() == 2 * 2 * 6
    whole = pair_matrix(partner, grid, per_slice=False)
    assert whole.sum() == matrices.sum()


def test_a_pair_that_leaves_its_slice_is_no_pair_of_the_slice() -> None:
    partner = partners(Affine3D(Affine3D.compose((8, 0, 0), [], 1.0).matrix[None]), (2, 2, 2), 8)
    assert (partner >= 0).sum() == 4
    assert pair_matrix(partner, (2, 2, 2), per_slice=True).sum() == 0


def test_token_share_is_the_mean_over_each_token() -> None:
    mask = torch.zeros(1, 1, 4, 4, 8)
    mask[..., :2] = 1
    assert token_share(mask, 4).tolist() == [[[[0.5, 0.0]]]]
