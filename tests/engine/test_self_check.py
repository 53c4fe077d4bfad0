"""The self-check's truth is where the image really went, and its figures mean what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_s2dc.engine.embed import EmbedSettings
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.match import Match
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.self_check import KnownView, judge, known_view, self_check
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.volume import Volume


@pytest.fixture(scope="module")
def known(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, embedding: Embedding
) -> KnownView:
    # With this seed some tissue leaves the picture.
    return finish(known_view(torso, tiny, settings, embedding=embedding, seed=3))


def decided(known: KnownView, partner: torch.Tensor) -> Match:
    """A match that gives every patch of tissue all its mass to one partner, or none (-1)."""
    index_a = torch.nonzero(known.scan.foreground.flatten())[:, 0]
    index_b = torch.arange(known.view.foreground.numel())
    mass = torch.zeros(len(index_a), len(index_b))
    there = partner[index_a] >= 0
    mass[there.nonzero()[:, 0], partner[index_a][there]] = 1
    return Match(known.scan, known.view, index_a, index_b, None, mass)


@pytest.mark.parametrize("in_plane", [True, False])
def test_places_are_where_the_image_shows_them(
    in_plane: bool, torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, embedding: Embedding
) -> None:
    # A bright blob round one token's centre, dark tissue everywhere else.
    token = (2, 3, 3)
    centre = np.asarray(embedding.voxel_of_token(token))
    axes = np.meshgrid(*map(np.arange, torso.shape), indexing="ij")
    away = sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True))
    blob = torso.with_array((100 * np.exp(-away / 18)).astype(np.float32))
    known = finish(known_view(blob, tiny, settings, in_plane=in_plane, embedding=embedding))
    weight = known.image - known.image.min()
    found = [float((axis * weight).sum() / weight.sum()) for axis in axes]
    expected = known.place_vox[np.ravel_multi_index(token, embedding.grid)]
    np.testing.assert_allclose(found, expected, atol=0.75)
    turns_z = known.affine.matrix[0, 1:3].abs().max()
    shift_z = float(known.affine.matrix[0, 3])
    if in_plane:
        assert turns_z == shift_z == 0
        assert known.affine.matrix[1:3, 0].abs().max() == 0
        assert known.affine.matrix[1:3, 1:3].flatten()[1:3].abs().max() > 0.01
    else:
        assert turns_z > 0.01
        assert abs(shift_z) > 0.01


def test_the_partner_is_the_token_at_the_place(known: KnownView) -> None:
    asked = torch.nonzero(known.partner >= 0)[:, 0].numpy()
    assert len(asked) > 10
    tokens = np.stack(np.unravel_index(known.partner.numpy()[asked], known.view.grid), 1)
    centres = (tokens + 0.5) * known.view.stride - 0.5
    assert np.abs(centres - known.place_vox[asked]).max() <= known.view.stride / 2 + 1e-6
    assert not (known.gone & (known.partner >= 0)).any()
    assert known.view.foreground.flatten()[known.partner[asked]].all()


def test_the_true_match_is_all_right(known: KnownView) -> None:
    result = judge(known, decided(known, known.partner))
    assert result.accuracy == 1
    assert result.asked == int((known.partner >= 0).sum())
    assert result.dustbin_right == 1
    half_a_token_mm = 0.5 * known.scan.stride * np.linalg.norm(known.scan.spacing_mm)
    assert 0 < result.median_mm <= result.mean_mm * 1.5 < 1.5 * half_a_token_mm
    assert f"100.0 % of {result.asked} patches" in result.sentence


def test_wrong_matches_and_wrong_dustbins_are_counted(known: KnownView) -> None:
    nothing = judge(known, decided(known, torch.full_like(known.partner, -1)))
    assert nothing.dustbin_right == pytest.approx(nothing.gone / (nothing.gone + nothing.asked))
    assert nothing.gone > 0
    assert nothing.dustbin_found == 1
    elsewhere = torch.where(known.partner >= 0, (known.partner + 1) % len(known.partner), -1)
    wrong = judge(known, decided(known, elsewhere))
    assert wrong.accuracy == 0
    assert wrong.mean_mm > judge(known, decided(known, known.partner)).mean_mm
    kept = torch.where(known.gone, 0, known.partner)
    assert judge(known, decided(known, kept)).dustbin_found == 0


def test_a_view_without_partners_is_one_sentence(known: KnownView) -> None:
    lost = replace(known, partner=torch.full_like(known.partner, -1))
    with pytest.raises(S2DCError, match="No patch"):
        judge(lost, decided(lost, lost.partner))


def test_the_check_as_a_whole_repeats_itself(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, embedding: Embedding
) -> None:
    first, again, other = (
        finish(self_check(torso, tiny, settings, seed=seed, embedding=embedding))
        for seed in (3, 3, 4)
    )
    assert first.as_dict() == again.as_dict()
    assert first.as_dict() != other.as_dict()
    assert 0 <= first.accuracy <= 1
    steps = self_check(torso, tiny, settings)
    assert next(steps).what == "windows"
    steps.close()


def test_places_in_a_region_count_from_the_whole_scan(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings
) -> None:
    region = replace(settings, roi=((0, 32), (8, 48), (4, 44)), preset="ct_wide")
    part = finish(known_view(torso, tiny, region, seed=1))
    cut = Volume(np.ascontiguousarray(torso.array[:, 8:48, 4:44]), torso.affine)
    alone = finish(known_view(cut, tiny, replace(region, roi=None), seed=1))
    np.testing.assert_allclose(part.place_vox, alone.place_vox + np.array([0, 8, 4]))
