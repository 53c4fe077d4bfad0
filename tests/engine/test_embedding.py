"""Where tokens lie, and values between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_s2dc.engine.embed import Embedding
from napari_s2dc.engine.embedding import to_voxels


def test_voxels_and_tokens_agree(embedding: Embedding) -> None:
    for token in ((0, 0, 0), (3, 5, 2)):
        assert embedding.token_of_voxel(embedding.voxel_of_token(token)) == token
        assert embedding.token_of_mm(embedding.mm_of_token(token)) == token
    assert embedding.voxel_of_token((0, 1, 2)) == (3.5, 11.5, 19.5)
    # 4 and 3 mm voxels from (-50, 20, 70)
    assert embedding.mm_of_token((0, 1, 2)) == pytest.approx((-36.0, 54.5, 128.5))


@pytest.mark.parametrize(
    ("voxel", "token"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((-0.5, 0, 0), (0, 0, 0)),
        ((-0.51, 0, 0), None),
        ((7.49, 7.5, 8), (0, 1, 1)),
        ((31.4, 47, 47), (3, 5, 5)),
        ((31.5, 47, 47), None),
        ((float("nan"), 0, 0), None),
    ],
)
def test_a_point_outside_has_no_token(
    embedding: Embedding, voxel: tuple[float, ...], token: tuple[int, ...] | None
) -> None:
    assert embedding.token_of_voxel(voxel) == token


def test_unit_features_are_in_the_order_of_tokens(embedding: Embedding) -> None:
    unit = embedding.unit()
    assert unit.shape == (4 * 6 * 6, 48)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(144))
    feature = embedding.features[:, 2, 3, 4].float()
    torch.testing.assert_close(unit[(2 * 6 + 3) * 6 + 4], feature / feature.norm())
    assert embedding.unit() is unit


def test_values_of_tokens_are_interpolated_between_their_centres() -> None:
    ramp = torch.arange(4.0)[:, None, None].expand(4, 3, 3)
    voxels = to_voxels(ramp, (30, 20, 24), 8)
    assert voxels.shape == (30, 20, 24)
    centres = np.arange(30)[4:28]
    np.testing.assert_allclose(voxels[4:28, 5, 5], (centres - 3.5) / 8, atol=1e-5)


def test_unknown_values_stay_unknown_and_do_not_spread() -> None:
    values = torch.ones(3, 3, 3)
    values[0] = torch.nan
    voxels = to_voxels(values, (24, 24, 24), 8)
    assert np.isnan(voxels[:8]).all()
    np.testing.assert_allclose(voxels[8:], 1.0, atol=1e-6)
