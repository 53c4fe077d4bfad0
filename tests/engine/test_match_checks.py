"""What is doubtful about a match is said, and what is fine is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encoders import ANY_CONTRAST
from napari_s2dc.engine.match import MatchSettings, match_embeddings
from napari_s2dc.engine.match_checks import (
    assess,
    kind_of,
    warnings_before,
)
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.phantom import phantom
from tests.engine.random_features import embedding, moved


def with_spacing(one: Embedding, factor: float) -> Embedding:
    z, y, x = (side * factor for side in one.spacing_mm)
    return replace(
        one, spacing_mm=(z, y, x), affine=np.diag([z, y, x, 1.0]), name=f"{factor:g} times"
    )


def with_tissue(one: Embedding, tokens: int) -> Embedding:
    foreground = torch.zeros(one.foreground.numel(), dtype=torch.bool)
    foreground[:tokens] = True
    return replace(one, foreground=foreground.reshape(one.foreground.shape), name="small")


def test_scans_that_fit_raise_no_doubt() -> None:
    one = embedding()
    found = assess(match_embeddings(one, moved(one, (0, 1, 0))), kinds=("mr", "mr"))
    assert found.warnings == ()
    assert found.alignment is not None
    side_mm = 4 * 1.5
    np.testing.assert_allclose(found.alignment.matrix[:3, 3], [0, side_mm, 0], atol=0.5)
    assert found.confident > 200


def test_different_kinds_are_said() -> None:
    one = embedding()
    (sentence,) = warnings_before(one, one, ("ct", "mr"))
    assert "is CT and" in sentence
    assert "is MR" in sentence
    assert f"'{ANY_CONTRAST}' looks at borders" in sentence
    (sentence,) = warnings_before(one, one, ("ct", "pet"))
    assert ANY_CONTRAST not in sentence
    both = replace(one, metadata={"borders": True})
    (sentence,) = warnings_before(both, both, ("ct", "mr"))
    assert "only where the same borders of tissues are seen in both" in sentence
    assert ANY_CONTRAST not in sentence
    assert kind_of(phantom((32, 32, 32), seed=1)[0]) == "ct"
    assert kind_of(phantom((32, 32, 32), seed=1, contrast="t1")[0]) == "mr"


@pytest.mark.parametrize("swap", [False, True])
def test_a_wrong_unit_of_spacing_is_said(swap: bool) -> None:
    pair = [embedding(), with_spacing(embedding(), 0.1)]
    (sentence,) = warnings_before(*(pair[::-1] if swap else pair))
    assert "10 times as large in mm" in sentence
    assert "0.2 × 0.15 × 0.1" in sentence
    assert "wrong units" in sentence
    assert not warnings_before(embedding(), with_spacing(embedding(), 1.5))


def test_sizes_far_apart_are_said() -> None:
    one = embedding((10, 10, 10))
    (sentence,) = warnings_before(one, with_tissue(one, 1000 // 30))
    assert "30 times as many patches" in sentence


@pytest.mark.parametrize(("tokens", "words"), [(1, "only 1 patch of"), (3, "only 3 patches of")])
def test_one_token_matches_and_is_said(tokens: int, words: str) -> None:
    one, few = embedding(), with_tissue(embedding(), tokens)
    for match in (match_embeddings(one, few), match_embeddings(few, few)):
        found = assess(match)
        assert any(words in sentence for sentence in found.warnings)
        assert found.alignment is None


def test_very_many_patches_are_said_and_need_not_all_be_sure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = embedding()
    number = int(one.foreground.sum())
    moved_far = moved(one, (0, 1, 0))
    noisy = replace(moved_far, features=embedding(seed=9).features.clone())
    noisy.features[:, :4, :5, :3] = moved_far.features[:, :4, :5, :3]  # few are left to match
    match = match_embeddings(one, noisy)
    found = assess(match)
    assert 20 < found.confident < 0.15 * number
    assert any("found a confident partner" in sentence for sentence in found.warnings)
    monkeypatch.setattr("napari_s2dc.engine.match_checks._MOST_TOKENS", found.confident * 2)
    found = assess(match)
    assert found.agreed
    assert all(f"{number} patches of tissue" in sentence for sentence in found.warnings)
    assert len(found.warnings) == 2  # both scans


def test_an_empty_mask_is_one_sentence() -> None:
    with pytest.raises(S2DCError, match="no foreground to match"):
        match_embeddings(embedding(), with_tissue(embedding(), 0))


@pytest.mark.parametrize(("channels", "words"), [(24, "agree on a map"), (400, "Only 0 of 1728")])
def test_disjoint_content_is_said(channels: int, words: str) -> None:
    one, other = (embedding((12, 12, 12), channels=channels, seed=seed) for seed in (0, 5))
    settings = MatchSettings(temperature=0.05, unmatched_similarity=0.3, prior=None, neighbours=0.0)
    found = assess(match_embeddings(one, other, settings))
    (sentence,) = found.warnings
    assert words in sentence
    assert "may show different regions" in sentence


def test_a_map_that_mirrors_is_said() -> None:
    one = embedding()
    flipped = replace(one, features=one.features.flip(3))
    found = assess(match_embeddings(one, flipped, MatchSettings(prior=None)))
    assert found.alignment is not None
    assert found.alignment.mirrored
    assert any("mirror images, left and right swapped" in sentence for sentence in found.warnings)
