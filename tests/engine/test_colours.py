"""Like features have like colours in every scan, and clusters cover the tissue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_s2dc.engine.colours import ColourBasis, clusters
from napari_s2dc.engine.embed import Embedding
from napari_s2dc.errors import ConfigurationError


@pytest.fixture(scope="module")
def mirrored(embedding: Embedding) -> Embedding:
    """Another scan: the same patches elsewhere."""
    return replace(
        embedding, features=embedding.features.flip(3), foreground=embedding.foreground.flip(2)
    )


def test_like_features_have_like_colours_across_scans(
    embedding: Embedding, mirrored: Embedding
) -> None:
    basis = ColourBasis.fit([embedding, mirrored])
    one, two = basis.colours(embedding), basis.colours(mirrored)
    assert one.dtype == np.uint8
    assert one.shape == (4, 6, 6, 3)
    np.testing.assert_array_equal(one[:, :, ::-1], two)
    inside = embedding.foreground.numpy()
    assert (one[~inside] == 0).all()
    # The robust range is used: every colour has dark and bright tissue.
    assert (one[inside].min(0) < 20).all()
    assert (one[inside].max(0) > 235).all()


def test_the_basis_does_not_depend_on_signs_or_order(
    embedding: Embedding, mirrored: Embedding
) -> None:
    one = ColourBasis.fit([embedding, mirrored])
    two = ColourBasis.fit([mirrored, embedding])
    torch.testing.assert_close(one.components[:, :3], two.components[:, :3], rtol=1e-3, atol=1e-3)
    columns = one.components
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())
    torch.testing.assert_close(columns.mT @ columns, torch.eye(9), rtol=1e-4, atol=1e-4)


def test_components_are_in_the_order_of_their_variance(embedding: Embedding) -> None:
    basis = ColourBasis.fit([embedding])
    tissue = embedding.unit()[embedding.foreground.reshape(-1)]
    variance = ((tissue - basis.mean) @ basis.components).var(0)
    assert bool((variance[:-1] >= variance[1:]).all())
    total = tissue.var(0).sum()
    expected = torch.linalg.svdvals(tissue - tissue.mean(0))[:3].square().sum()
    assert float(variance[:3].sum()) == pytest.approx(float(expected) / (len(tissue) - 1), rel=1e-3)
    assert float(variance[:3].sum()) <= float(total)


def test_triples_differ_and_others_are_refused(embedding: Embedding) -> None:
    basis = ColourBasis.fit([embedding])
    assert basis.triples == 3
    assert not np.array_equal(basis.colours(embedding, 0), basis.colours(embedding, 1))
    with pytest.raises(ConfigurationError, match="no triple"):
        basis.colours(embedding, 3)


def test_coordinates_are_those_of_the_first_two_components(embedding: Embedding) -> None:
    basis = ColourBasis.fit([embedding])
    found = basis.coordinates(embedding)
    expected = (embedding.unit() - basis.mean) @ basis.components[:, :2]
    assert found.shape == (144, 2)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_sample_is_enough_and_repeats(embedding: Embedding) -> None:
    one, two = (ColourBasis.fit([embedding], sample=60, seed=4) for _ in range(2))
    assert torch.equal(one.components, two.components)
    other = ColourBasis.fit([embedding], sample=60, seed=5)
    assert not torch.equal(one.components, other.components)


def test_equal_features_have_one_colour(embedding: Embedding) -> None:
    flat = replace(embedding, features=torch.ones_like(embedding.features))
    colours = ColourBasis.fit([flat]).colours(flat)
    assert len(np.unique(colours[embedding.foreground.numpy()], axis=0)) == 1


def test_embeddings_that_do_not_fit_are_one_sentence(embedding: Embedding) -> None:
    other = replace(embedding, features=embedding.features[:24])
    with pytest.raises(ConfigurationError, match="share no colours"):
        ColourBasis.fit([embedding, other])
    with pytest.raises(ConfigurationError, match="no embedding"):
        ColourBasis.fit([])
    with pytest.raises(ConfigurationError, match="48 channels"):
        ColourBasis.fit([embedding]).colours(other)


def test_clusters_find_kinds_and_number_them_by_size() -> None:
    kinds = torch.zeros(4, 5, 6, dtype=torch.long)
    kinds[2:, 3:], kinds[0] = 1, 2
    generator = torch.Generator().manual_seed(0)
    features = torch.eye(8)[kinds].permute(3, 0, 1, 2)
    features = features + 0.05 * torch.randn(features.shape, generator=generator)
    inside = torch.ones(4, 5, 6, dtype=torch.bool)
    inside[..., 0] = False
    made = Embedding(
        features.half(), inside, 8, (32, 40, 48), (0, 0, 0), (1.0, 1.0, 1.0), np.eye(4), "made"
    )
    found = clusters(made, 3)
    assert found.dtype == np.int32
    assert (found[~inside.numpy()] == 0).all()
    counts = np.bincount(found.ravel())[1:]
    assert list(counts) == sorted(counts, reverse=True)
    for kind in range(3):
        assert len(np.unique(found[(kinds == kind).numpy() & inside.numpy()])) == 1
    assert np.array_equal(found, clusters(made, 3))
    assert np.array_equal(found, clusters(made, 3, seed=1))


def test_more_clusters_than_tokens_are_as_many_as_tokens(embedding: Embedding) -> None:
    few = torch.zeros_like(embedding.foreground)
    few[1, 2, 2:5] = True
    assert sorted(np.unique(clusters(replace(embedding, foreground=few), 12))) == [0, 1, 2, 3]
    with pytest.raises(ConfigurationError):
        clusters(embedding, 0)
