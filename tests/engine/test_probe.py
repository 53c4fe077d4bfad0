"""A click finds what is alike, tells how distinct it is, and outlines the structure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_s2dc.engine.embed import Embedding
from napari_s2dc.engine.embedding import to_voxels
from napari_s2dc.engine.probe import (
    query_of,
    read_patch,
    sharpe_map,
    similarity_map,
    similarity_to,
    structure_mask,
)
from napari_s2dc.engine.structure import otsu_threshold
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.method.similarity import cosine_similarity, sharpe_ratio


def _made(features: torch.Tensor, foreground: torch.Tensor | None = None) -> Embedding:
    """Embedding with given features (C, tz, ty, tx), tokens of 8 voxels of 1 mm."""
    grid = features.shape[1:]
    inside = torch.ones(grid, dtype=torch.bool) if foreground is None else foreground
    z, y, x = (8 * side for side in grid)
    return Embedding(
        features.half(), inside, 8, (z, y, x), (0, 0, 0), (1.0, 1.0, 1.0), np.eye(4), "made"
    )


@pytest.fixture
def two_kinds() -> Embedding:
    """Noise round one direction, and a block of 2 x 2 x 3 tokens round another."""
    generator = torch.Generator().manual_seed(3)
    features = 0.05 * torch.randn(16, 6, 8, 10, generator=generator)
    features[0] += 1
    features[0, 2:4, 3:5, 4:7] -= 1
    features[1, 2:4, 3:5, 4:7] += 1
    return _made(features)


# --- similarity ----------------------------------------------------------------------------------


def test_similarity_is_the_cosine(embedding: Embedding) -> None:
    found = similarity_map(embedding, [(2, 3, 4)])
    flat = embedding.features.float().reshape(48, -1)
    place = (2 * 6 + 3) * 6 + 4
    expected = torch.nn.functional.cosine_similarity(flat, flat[:, place : place + 1], dim=0)
    torch.testing.assert_close(found.reshape(-1), expected)
    assert float(found[2, 3, 4]) == pytest.approx(1.0, abs=1e-5)
    assert found.dtype == torch.float32


def test_several_references_are_means_and_negatives_count_against(embedding: Embedding) -> None:
    positive, negative = [(2, 3, 4), (1, 1, 1)], [(0, 0, 0), (3, 5, 5), (1, 2, 3)]
    found = similarity_map(embedding, positive, negative)

    def mean(tokens: list[tuple[int, int, int]]) -> torch.Tensor:
        return torch.stack([similarity_map(embedding, [token]) for token in tokens]).mean(0)

    torch.testing.assert_close(
        found, (mean(positive) - mean(negative)).clamp(-1, 1), rtol=1e-4, atol=1e-5
    )


def test_a_click_in_one_scan_finds_the_same_in_another(two_kinds: Embedding) -> None:
    shifted = replace(two_kinds, features=two_kinds.features.roll((1, 2), (1, 3)))
    found = similarity_to(shifted, query_of(two_kinds, [(2, 3, 5)]))
    best = np.unravel_index(int(found.argmax()), found.shape)
    assert tuple(int(index) for index in best) == (3, 3, 7)
    assert float(found[3:5, 3:5, 6:9].min()) > float(found[0].max())


def test_what_cannot_be_compared_is_one_sentence(embedding: Embedding) -> None:
    with pytest.raises(ConfigurationError, match="no patch"):
        similarity_map(embedding, [])
    for outside in ((4, 0, 0), (0, -1, 0)):
        with pytest.raises(ConfigurationError, match="does not lie on the grid"):
            similarity_map(embedding, [outside])
    with pytest.raises(ConfigurationError, match="same encoder"):
        similarity_to(embedding, torch.ones(24))


# --- the reading of a patch ----------------------------------------------------------------------


def test_sharpe_map_is_that_of_the_table_of_cosines(embedding: Embedding) -> None:
    inside = embedding.foreground.reshape(-1)
    assert 20 < int(inside.sum()) < len(inside)
    unit = embedding.unit()
    expected = sharpe_ratio(cosine_similarity(unit[inside], unit[inside]), dim=1)
    found = sharpe_map(embedding)
    assert found.shape == embedding.grid
    torch.testing.assert_close(found.reshape(-1)[inside], expected, rtol=2e-3, atol=2e-3)
    assert sharpe_map(embedding) is found


def test_equal_features_have_no_sharpe_ratio() -> None:
    assert sharpe_map(_made(torch.ones(8, 3, 3, 3))).tolist() == torch.zeros(3, 3, 3).tolist()


def test_maps_of_embeddings_that_are_gone_are_forgotten(embedding: Embedding) -> None:
    from napari_s2dc.engine import probe

    copy = replace(embedding)
    sharpe_map(copy)
    assert copy in probe._sharpe_maps
    count = len(probe._sharpe_maps)
    del copy
    assert len(probe._sharpe_maps) == count - 1


def test_a_reading_describes_the_distribution(two_kinds: Embedding) -> None:
    token = (2, 3, 5)
    reading = read_patch(two_kinds, [token], neighbours=11)
    values = reading.similarity.ravel()
    assert reading.sharpe_ratio == pytest.approx((1 - values.mean()) / values.std(ddof=1), rel=1e-3)
    assert reading.sharpe_ratio == pytest.approx(float(sharpe_map(two_kinds)[token]), rel=1e-3)
    # The block is small and distinct, so its patches stand out against nearly all others.
    assert reading.percentile > 90
    assert read_patch(two_kinds, [(0, 0, 0)]).percentile < 98
    counts, edges = reading.histogram
    assert counts.sum() == values.size
    assert len(edges) == len(counts) + 1
    # All eleven others of the block, most similar first.
    block = {(z, y, x) for z in (2, 3) for y in (3, 4) for x in (4, 5, 6)} - {token}
    assert {near for near, _ in reading.nearest} == block
    similarities = [value for _, value in reading.nearest]
    assert similarities == sorted(similarities, reverse=True)
    for near, value in reading.nearest:
        assert reading.similarity[near] == pytest.approx(value)


def test_air_takes_no_part(two_kinds: Embedding) -> None:
    inside = torch.zeros(6, 8, 10, dtype=torch.bool)
    inside[2:4] = True
    body = replace(two_kinds, foreground=inside)
    reading = read_patch(body, [(2, 3, 5)], neighbours=500)
    assert reading.histogram[0].sum() == 160
    assert len(reading.nearest) == 159
    assert {near[0] for near, _ in reading.nearest} == {2, 3}
    # A click on air is answered too.
    assert read_patch(body, [(0, 0, 0)]).sharpe_ratio > 0


# --- the structure -------------------------------------------------------------------------------


def _whole_scan(
    similarity: np.ndarray, shape: tuple[int, ...], voxel: tuple[int, ...], threshold: float
) -> np.ndarray:
    """The same, the slow way."""
    large = to_voxels(torch.from_numpy(similarity), shape, 8)
    parts, _ = ndimage.label(large >= threshold)
    return parts == parts[voxel]


def test_the_structure_is_the_component_of_the_click(two_kinds: Embedding) -> None:
    similarity = similarity_map(two_kinds, [(2, 3, 5)])
    mask, threshold = structure_mask(similarity, two_kinds.shape, 8, (20, 28, 44))
    assert threshold == pytest.approx(otsu_threshold(similarity))
    assert mask.shape == two_kinds.shape
    block = np.zeros(two_kinds.shape, bool)
    block[16:32, 24:40, 32:56] = True
    overlap = 2 * (mask & block).sum() / (mask.sum() + block.sum())
    # Half way between tokens, so the corners of the block are round.
    assert overlap > 0.7
    assert mask[20:28, 28:36, 36:52].all()
    assert not (mask & ~ndimage.binary_dilation(block, iterations=4)).any()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_only_looking_where_needed_changes_nothing(threshold: float) -> None:
    shape = (44, 61, 72)
    noise = np.random.default_rng(5).normal(size=(6, 8, 9))
    similarity = ndimage.gaussian_filter(noise, 0.8).astype(np.float32)
    similarity /= similarity.max()
    above = np.argwhere(to_voxels(torch.from_numpy(similarity), shape, 8) >= threshold)
    sizes = set()
    for click in np.random.default_rng(6).choice(above, 20):
        place = tuple(int(index) for index in click)
        expected = _whole_scan(similarity, shape, place, threshold)
        mask, _ = structure_mask(similarity, shape, 8, place, threshold)
        assert (mask == expected).all()
        sizes.add(int(mask.sum()))
    assert len(sizes) > 1


def test_another_place_of_the_same_kind_is_not_part_of_it() -> None:
    similarity = torch.zeros(4, 4, 12)
    similarity[1:3, 1:3, 1:3] = 1
    similarity[1:3, 1:3, 8:11] = 1
    left, _ = structure_mask(similarity, (32, 32, 96), 8, (16, 16, 16), 0.5)
    right, _ = structure_mask(similarity, (32, 32, 96), 8, (16, 16, 76), 0.5)
    assert left.any()
    assert right.any()
    assert not (left & right).any()
    assert not left[..., 48:].any()


def test_a_click_beside_the_peak_takes_the_structure_of_its_token() -> None:
    similarity = torch.zeros(3, 3, 3)
    similarity[1, 1, 1] = 1
    centre, _ = structure_mask(similarity, (24, 24, 24), 8, (12, 12, 12), 0.8)
    corner, _ = structure_mask(similarity, (24, 24, 24), 8, (8, 8, 8), 0.8)
    assert centre.any()
    assert not centre[8, 8, 8]
    assert (corner == centre).all()


def test_a_click_where_nothing_is_alike_gives_nothing() -> None:
    similarity = torch.zeros(6, 3, 3)
    similarity[5] = 1
    for click in ((4, 12, 12), (-3, 0, 0), (48, 0, 0)):
        mask, threshold = structure_mask(similarity, (48, 24, 24), 8, click, 0.5)
        assert not mask.any()
        assert threshold == 0.5


def test_the_threshold_is_that_of_the_tissue() -> None:
    similarity = torch.full((4, 4, 4), -1.0)
    inside = torch.zeros(4, 4, 4, dtype=torch.bool)
    inside[1:3] = True
    similarity[1], similarity[2] = 0.2, 0.8
    _, everywhere = structure_mask(similarity, (32, 32, 32), 8, (20, 4, 4))
    _, tissue = structure_mask(similarity, (32, 32, 32), 8, (20, 4, 4), foreground=inside)
    assert everywhere < 0.2
    assert 0.2 <= tissue < 0.8
