"""The consistency map follows patches through random views and forgets nothing of their number."""

from __future__ import annotations

import math

import pytest
import torch

from napari_s2dc.engine import consistency
from napari_s2dc.engine.consistency import ConsistencyMap, consistency_at, consistency_map
from napari_s2dc.engine.embed import Embedding, EmbedSettings
from napari_s2dc.engine.progress import Progress, finish
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.method.similarity import neighbourhood_consistency
from napari_s2dc.method.tokens import partners
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume

SETTINGS = EmbedSettings(stage=1, window_vox=48, device="cpu")


@pytest.fixture(scope="module")
def found(torso: Volume, tiny: SwinEncoder) -> ConsistencyMap:
    return finish(consistency_map(torso, tiny, SETTINGS, views=3))


def test_the_map_has_values_where_views_know_the_patch(found: ConsistencyMap) -> None:
    assert found.mean.shape == found.spread.shape == found.count.shape == (8, 12, 12)
    known = found.count > 0
    assert 0.2 < float(known.float().mean()) < 1
    assert int(found.count.max()) == 3
    assert torch.equal(found.mean.isfinite(), known)
    assert torch.equal(found.spread.isfinite(), known)
    values = found.mean[known]
    assert float(values.abs().max()) <= 1
    # Even untrained, patches in a turned view have more in common with theirs than with chance.
    assert float(values.mean()) > 0.2
    single = found.spread[found.count == 1]
    assert float(single.abs().max()) < 1e-3


def test_the_same_seed_gives_the_same_map(
    found: ConsistencyMap, torso: Volume, tiny: SwinEncoder
) -> None:
    again = finish(consistency_map(torso, tiny, SETTINGS, views=3))
    torch.testing.assert_close(again.mean, found.mean, equal_nan=True)
    other = finish(consistency_map(torso, tiny, SETTINGS, views=3, seed=1))
    assert not torch.allclose(other.mean, found.mean, equal_nan=True)


def test_an_embedding_that_is_there_is_not_made_again(
    torso: Volume,
    tiny: SwinEncoder,
    settings: EmbedSettings,
    embedding: Embedding,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = finish(consistency_map(torso, tiny, settings, views=1))
    monkeypatch.delattr(consistency, "embed_volume")
    given = finish(consistency_map(torso, tiny, settings, views=1, embedding=embedding))
    torch.testing.assert_close(given.mean, made.mean, equal_nan=True)


def test_progress_counts_views_and_cancel_comes_between_windows(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, embedding: Embedding
) -> None:
    steps = consistency_map(torso, tiny, settings, views=2, embedding=embedding)
    seen = list(steps)
    assert [Progress(1, 2, "views"), Progress(2, 2, "views")] == [
        now for last, now in zip([None, *seen], seen, strict=False) if last != now
    ][1:]
    assert len(seen) == 2 * (4 + 1)
    cancelled = consistency_map(torso, tiny, settings, views=2)
    assert [next(cancelled), next(cancelled)] == [Progress(0, 2, "views")] * 2
    cancelled.close()
    assert next(cancelled, None) is None


def test_the_identity_is_perfectly_consistent(embedding: Embedding) -> None:
    partner = consistency._partners(embedding, Affine3D.identity())
    agreement = consistency._agreement(embedding, embedding.features, partner, 2.0)
    assert torch.equal(agreement.isfinite(), embedding.foreground)
    inside = agreement[embedding.foreground]
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=1e-3, atol=1e-3)


def test_slabs_give_what_the_whole_gives(
    embedding: Embedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = Affine3D.in_plane((3.0, -5.0), 12.0, 1.05)
    features = torch.randn(embedding.features.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(consistency, "_LARGEST_GATHER_BYTES", 1)
    partner = consistency._partners(embedding, view)
    found = consistency._agreement(embedding, features.half(), partner, 1.5)
    partner = partners(view, embedding.grid, 8)
    partner[~embedding.foreground.reshape(-1)] = -1
    expected = neighbourhood_consistency(
        embedding.unit(),
        features.half().float().reshape(48, -1).mT,
        partner,
        torch.cartesian_prod(*(torch.arange(n) for n in embedding.grid)).float(),
        radius=1.5,
    )
    assert found.isfinite().any()
    torch.testing.assert_close(found.reshape(-1), expected, equal_nan=True)


def test_views_are_turned_in_mm() -> None:
    """The map is a rotation with one scale in mm, whatever the voxels' sides."""
    spacing = (5.0, 0.8, 0.8)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        view = consistency.random_view(generator, spacing)
        to_mm = torch.diag(torch.tensor(spacing, dtype=torch.float64))
        linear = to_mm @ view.matrix[:3, :3] @ torch.linalg.inv(to_mm)
        gram = linear.mT @ linear
        scale = gram[0, 0]
        torch.testing.assert_close(gram, scale * torch.eye(3, dtype=torch.float64))
        assert 0.9 <= math.sqrt(float(scale)) <= 1.1
        assert float(view.matrix[:3, 3].abs().max()) <= 8


def test_a_reading_at_a_token(found: ConsistencyMap) -> None:
    token = tuple(int(index) for index in (found.count == 3).nonzero()[0])
    reading = consistency_at(found, token)
    assert reading.count == 3
    assert reading.mean == pytest.approx(float(found.mean[token]))
    nowhere = tuple(int(index) for index in (found.count == 0).nonzero()[0])
    assert consistency_at(found, nowhere).count == 0
    assert math.isnan(consistency_at(found, nowhere).mean)


def test_sides_that_are_no_whole_tokens_are_taken(tiny: SwinEncoder) -> None:
    image, _ = phantom((30, 45, 50), seed=2)
    found = finish(consistency_map(image, tiny, SETTINGS, views=1))
    assert found.mean.shape == (8, 12, 13)
    assert int(found.count.sum()) > 100


def test_no_view_is_refused(torso: Volume, tiny: SwinEncoder) -> None:
    with pytest.raises(ConfigurationError, match="0 views"):
        finish(consistency_map(torso, tiny, SETTINGS, views=0))
