"""Views: what is labelled a pair shows the same place; every draw depends on its sample alone."""

import pytest
import torch
from s2dc_train.config import ViewConfig
from s2dc_train.views import ViewDraws, build_views, draw

from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.tokens import merge_tokens, problems

GRID, CROP, TOKEN = (1, 2, 2), 32, 8
SHAPE = tuple(count * CROP for count in GRID)
PLAIN = {"intensity_shift": 0.0, "intensity_scale": 0.0, "minimum_foreground": 0.0}


def draws(config: ViewConfig, samples: list[int], seed: int = 0) -> ViewDraws:
    return draw(config, CROP, samples, seed)


def coordinates() -> torch.Tensor:
    """Three images (3, 1, Z, Y, X) whose values are positions from the centre, scaled to 0-1."""
    axes = [(torch.arange(n) + 0.5) / 100 for n in SHAPE]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[:, None]


def everywhere(batch: int) -> torch.Tensor:
    return torch.ones(batch, *SHAPE, dtype=torch.bool)


@pytest.mark.parametrize("matching", ["in_plane", "3d"])
@pytest.mark.parametrize("sample", [0, 1, 2])
def test_labelled_pairs_show_the_same_place(matching: str, sample: int) -> None:
    config = ViewConfig(matching=matching, **PLAIN)  # type: ignore[arg-type]
    # The three coordinates go through the very call the trainer uses, one per batch item.
    drawn = draws(config, [sample] * 3)
    views = build_views(
        coordinates(),
        everywhere(3),
        everywhere(3),
        drawn,
        config,
        crop_size=CROP,
        token_size_vox=TOKEN,
    )

    def means(crops: torch.Tensor) -> torch.Tensor:
        """Mean position in voxels of every token: (problems of one volume, n, 3)."""
        tokens = merge_tokens(torch.nn.functional.avg_pool3d(crops, TOKEN), GRID)
        rows = problems(tokens, per_slice=matching == "in_plane")[..., 0] * 100
        return rows.reshape(3, -1, rows.shape[-1]).permute(1, 2, 0)

    first, second = means(views.first), means(views.second)
    per_volume = len(first)
    # Every volume of the batch has the same map, hence the same pairs.
    assert torch.equal(views.true_pairs[:per_volume], views.true_pairs[per_volume:-per_volume])
    problem, source, target = views.true_pairs[:per_volume].nonzero().T
    warped = Affine3D(drawn.affine.matrix[0]).warp(torch.ones(1, *SHAPE))[None]
    share = torch.nn.functional.avg_pool3d(warped, TOKEN)
    inside = problems(share, per_slice=matching == "in_plane")[..., 0] > 0.999
    # Tokens of view 2 that the border blends with the empty outside show no clean position.
    whole = inside[:per_volume][problem, target]
    assert whole.sum() > 15
    distance = (first[problem, source] - second[problem, target])[whole].abs()
    # Mutual nearest cells: at most half a token (times the largest scale) along each axis.
    assert distance.max() <= TOKEN / 2 * config.scale_max * 1.5
    assert distance.mean() <= TOKEN / 4 * config.scale_max


def test_pairs_need_scan_and_foreground_in_both_views() -> None:
    config = ViewConfig(minimum_foreground=0.5)
    valid = everywhere(1)
    valid[..., :16] = False
    foreground = everywhere(1)
    foreground[:, :, :24] = False
    views = build_views(
        torch.rand(1, 1, *SHAPE),
        valid,
        foreground,
        draws(config, [3]),
        config,
        crop_size=CROP,
        token_size_vox=TOKEN,
    )
    tokens = views.valid_first.reshape(4, 8, 8)
    assert not tokens[:, :, :2].any()
    assert not tokens[:, :3].any()
    assert tokens[:, 3:, 2:].all()
    assert not views.true_pairs[~views.valid_first].any()
    assert not views.true_pairs.transpose(1, 2)[~views.valid_second].any()
    assert views.true_pairs.any()


def test_padding_stays_dark_whatever_the_brightness() -> None:
    config = ViewConfig(intensity_shift=0.3, intensity_scale=0.0)
    valid = everywhere(2)
    valid[:, :, :32] = False
    image = torch.full((2, 1, *SHAPE), 0.4) * valid[:, None]
    views = build_views(
        image, valid, valid, draws(config, [5, 6]), config, crop_size=CROP, token_size_vox=TOKEN
    )
    first = views.first.reshape(2, 2, 2, CROP, CROP, CROP)
    assert first[:, 0].abs().max() == 0
    assert first[:, 1].std(correction=0) > 0


def test_the_contrastive_crop_shows_the_query_crop() -> None:
    config = ViewConfig(crop_translation=0.0, crop_rotation_deg=0.0, crop_scale=0.0, **PLAIN)
    image = torch.rand(3, 1, *SHAPE)
    views = build_views(
        image,
        everywhere(3),
        everywhere(3),
        draws(config, [0, 1, 2]),
        config,
        crop_size=CROP,
        token_size_vox=TOKEN,
    )
    assert torch.allclose(views.contrast, views.first[views.query_index], atol=1e-5)
    assert len(set((views.query_index % 4).tolist())) > 1


def test_contrastive_crop_stays_within_its_small_range() -> None:
    """Five percent of scale must be five percent: MONAI's RandAffined would make it 0 to 2."""
    drawn = draws(ViewConfig(), list(range(200)))
    matrix = drawn.crop_affine.matrix[:, :3, :3]
    scale = torch.linalg.det(matrix) ** (1 / 3)
    assert scale.min() >= 0.95
    assert scale.max() <= 1.05
    assert scale.std() > 0.01


def test_draws_stay_within_their_ranges_and_use_them() -> None:
    config = ViewConfig()
    matrix = draws(config, list(range(300))).affine.matrix
    scale = torch.linalg.det(matrix[:, :3, :3]) ** (1 / 3)
    assert config.scale_min <= scale.min() < 0.93
    assert 1.17 < scale.max() <= config.scale_max
    shift = matrix[:, :3, 3]
    assert shift[:, 0].abs().max() == 0
    assert 7 < shift.abs().max() <= config.translation * CROP
    angle = torch.rad2deg(torch.atan2(matrix[:, 1, 2], matrix[:, 1, 1]))
    assert 28 < angle.abs().max() <= config.rotation_deg + 1e-6
    assert draws(ViewConfig(matching="3d"), [1]).affine.matrix[0, 0, 1] != 0


def test_draws_depend_on_seed_and_sample_alone() -> None:
    config = ViewConfig()
    together = draws(config, [7, 8, 9])
    alone = draws(config, [8])
    assert torch.equal(together.affine.matrix[1], alone.affine.matrix[0])
    assert torch.equal(together.crop_affine.matrix[1], alone.crop_affine.matrix[0])
    assert torch.equal(together.intensity[1], alone.intensity[0])
    assert not torch.equal(together.affine.matrix[0], together.affine.matrix[1])
    assert not torch.equal(draws(config, [8], seed=1).affine.matrix, alone.affine.matrix)


def test_view_two_is_the_warp_of_the_whole() -> None:
    config = ViewConfig(**PLAIN)
    image = torch.rand(1, 1, *SHAPE)
    drawn = draws(config, [11])
    views = build_views(
        image, everywhere(1), everywhere(1), drawn, config, crop_size=CROP, token_size_vox=TOKEN
    )
    expected = Affine3D(drawn.affine.matrix[0]).warp(image[0])
    assert torch.allclose(merge_tokens(views.second, GRID)[0], expected, atol=1e-5)


def test_the_query_crop_and_the_negatives_hold_tissue() -> None:
    config = ViewConfig(minimum_foreground=0.05)
    foreground = everywhere(8)
    foreground[:, :, 32:] = False  # the two crops of the far half along y are air
    views = build_views(
        torch.rand(8, 1, *SHAPE),
        everywhere(8),
        foreground,
        draws(config, list(range(8))),
        config,
        crop_size=CROP,
        token_size_vox=TOKEN,
    )
    assert (views.query_index % 4 < 2).all()
    assert set((views.query_index % 4).tolist()) == {0, 1}
    assert not views.tissue_second.all()
    tokens = views.valid_second.reshape(8, 4, 2, 4, 2, 4).any((1, 3, 5)).flatten()
    assert views.tissue_second[tokens.logical_not()].sum() == 0
    # Where nothing is tissue any crop will do.
    nothing = build_views(
        torch.rand(1, 1, *SHAPE),
        everywhere(1),
        ~everywhere(1),
        draws(config, [3]),
        config,
        crop_size=CROP,
        token_size_vox=TOKEN,
    )
    assert 0 <= int(nothing.query_index) < 4
    assert not nothing.tissue_second.any()
