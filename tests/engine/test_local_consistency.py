from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_s2dc.engine.consistency import consistency_at, consistency_map
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.local_consistency import consistency_near
from napari_s2dc.engine.progress import finish
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume


@pytest.fixture(scope="module")
def encoder() -> SwinEncoder:
    torch.manual_seed(0)
    return SwinEncoder.from_size("tiny", window_size=4)


def test_in_a_scan_of_one_window_it_is_the_maps_value(encoder: SwinEncoder) -> None:
    scan, _ = phantom((32, 40, 44), seed=1)
    settings = EmbedSettings(device="cpu", window_vox=48)
    embedding = finish(embed_volume(scan, encoder, settings))
    whole = finish(consistency_map(scan, encoder, settings, views=2, seed=5, embedding=embedding))
    token = tuple(int(part) for part in embedding.foreground.nonzero()[40])
    near = finish(consistency_near(scan, encoder, settings, embedding, token, views=2, seed=5))
    assert near == consistency_at(whole, token)
    assert near.count > 0


@pytest.mark.parametrize("roi", [None, ((0, 40), (8, 88), (0, 80))])
def test_elsewhere_only_the_surroundings_are_turned(
    encoder: SwinEncoder, roi: tuple[tuple[int, int], ...] | None
) -> None:
    scan, _ = phantom((40, 90, 80), seed=1)
    settings = EmbedSettings(device="cpu", window_vox=32, roi=roi)
    embedding = finish(embed_volume(scan, encoder, settings))
    places = embedding.foreground.nonzero().tolist()
    for token in (places[0], places[len(places) // 2], places[-1]):
        steps = consistency_near(scan, encoder, settings, embedding, token, views=3)
        progress = []
        while True:
            try:
                progress.append(next(steps))
            except StopIteration as stop:
                reading = stop.value
                break
        assert len(progress) == 6  # one window a view
        assert reading.count == 0 or -1 <= reading.mean <= 1
    with pytest.raises(ConfigurationError, match="does not lie on the grid"):
        finish(consistency_near(scan, encoder, settings, embedding, (0, 0, 50)))


def test_a_region_reads_as_the_same_cut_out_of_the_scan(encoder: SwinEncoder) -> None:
    scan, _ = phantom((40, 90, 80), seed=1)
    settings = EmbedSettings(device="cpu", window_vox=32, preset="ct_wide")
    region = replace(settings, roi=((0, 40), (8, 88), (16, 80)))
    cut = Volume(np.ascontiguousarray(scan.array[:, 8:88, 16:80]), scan.affine)
    embedding = finish(embed_volume(scan, encoder, region))
    own = replace(finish(embed_volume(cut, encoder, settings)), foreground=embedding.foreground)
    places = embedding.foreground.nonzero().tolist()
    token = tuple(places[len(places) // 2])
    near = finish(consistency_near(scan, encoder, region, embedding, token, views=2))
    assert near.count > 0
    expected = finish(consistency_near(cut, encoder, settings, own, token, views=2))
    assert near.mean == pytest.approx(expected.mean, abs=1e-3)
