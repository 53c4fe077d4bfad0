"""Where to label next."""

from __future__ import annotations

import numpy as np
import pytest

from napari_s2dc.engine.embed import Embedding
from napari_s2dc.engine.label_next import places_to_label
from napari_s2dc.volumes.volume import Volume


@pytest.fixture
def doubt(embedding: Embedding, torso: Volume) -> np.ndarray:
    """Uncertain at three tokens of tissue, and a little everywhere."""
    doubt = np.full(torso.shape, 0.05, np.float16)
    inside = embedding.foreground.nonzero()
    for number, share in ((0, 0.9), (len(inside) // 2, 0.8), (len(inside) - 1, 0.7)):
        z, y, x = (int(place) * embedding.stride for place in inside[number])
        doubt[z : z + 8, y : y + 8, x : x + 8] = share
    return doubt


def test_uncertain_tissue_comes_first(embedding: Embedding, doubt: np.ndarray) -> None:
    places = places_to_label(doubt, np.zeros(doubt.shape, int), embedding, 3)
    assert sorted(round(place.uncertainty, 1) for place in places) == [0.7, 0.8, 0.9]
    for place in places:
        token = embedding.token_of_voxel(place.voxel)
        assert token is not None
        assert bool(embedding.foreground[token])
        assert doubt[place.voxel] > 0.6


def test_what_is_labelled_is_not_asked_for(embedding: Embedding, doubt: np.ndarray) -> None:
    labels = (doubt > 0.75).astype(np.uint8)
    places = places_to_label(doubt, labels, embedding, 1)
    assert places[0].uncertainty == pytest.approx(0.7, abs=0.01)


def test_a_look_alike_comes_after_what_differs(embedding: Embedding, doubt: np.ndarray) -> None:
    # The twin of the first place is as uncertain as it, the other a little less.
    inside = embedding.foreground.nonzero()
    first, twin, other = inside[0].tolist(), inside[1].tolist(), inside[-1].tolist()
    features = embedding.features.clone()
    features[(slice(None), *twin)] = features[(slice(None), *first)]
    alike = Embedding(
        **{**{k: v for k, v in embedding.__dict__.items() if k != "_unit"}, "features": features}
    )
    flat = np.zeros_like(doubt)
    for (z, y, x), share in ((first, 0.9), (twin, 0.9), (other, 0.5)):
        flat[z * 8 : z * 8 + 8, y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] = share
    places = places_to_label(flat, np.zeros(flat.shape, int), alike, 3)
    assert [round(place.uncertainty, 1) for place in places] == [0.9, 0.5]


def test_a_sure_scan_has_no_place(embedding: Embedding, torso: Volume) -> None:
    sure = np.zeros(torso.shape, np.float16)
    assert places_to_label(sure, np.zeros(torso.shape, int), embedding) == []
