"""A scan that is turned is found again: embedded in the other's pose, matched near its map."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from napari_s2dc.engine import aligned_match
from napari_s2dc.engine.aligned_match import embed_in_pose, match_aligned
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embed_settings import region_of
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encoders import ANY_CONTRAST, bundled_encoder, encoder_named
from napari_s2dc.engine.match import MatchSettings, match_embeddings
from napari_s2dc.engine.match_checks import assess
from napari_s2dc.engine.progress import Progress, finish
from napari_s2dc.engine.registration import RegistrationSettings
from napari_s2dc.engine.self_check import KnownView, judge, known_view, self_check
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import Contrast, phantom
from napari_s2dc.volumes.volume import Volume

SETTINGS = EmbedSettings(device="cpu")


@pytest.fixture(scope="module")
def bundled() -> SwinEncoder:
    return SwinEncoder.from_checkpoint(bundled_encoder())


@pytest.fixture(scope="module")
def scan() -> Volume:
    return phantom((64, 80, 80), spacing_mm=4.5, seed=5)[0]


@pytest.fixture(scope="module")
def known(scan: Volume, bundled: SwinEncoder) -> KnownView:
    return finish(known_view(scan, bundled, SETTINGS, seed=2))


def true_places_mm(known: KnownView) -> tuple[np.ndarray, np.ndarray]:
    """Where patches with a partner lie in mm, and where the view shows them."""
    tokens = np.argwhere((known.partner >= 0).reshape(known.scan.grid).numpy())
    here = np.array([known.scan.mm_of_token(token) for token in tokens])
    affine = known.scan.affine
    there = known.place_vox[(known.partner >= 0).numpy()] @ affine[:3, :3].T + affine[:3, 3]
    return here, there


def test_a_turned_scan_is_found_better_in_its_pose(
    scan: Volume, bundled: SwinEncoder, known: KnownView
) -> None:
    images = (scan, known.volume)
    match = finish(match_aligned((known.scan, known.view), images, bundled, SETTINGS))
    assert match.matrix is not None
    here, there = true_places_mm(known)
    shown = assess(match).alignment
    assert shown is not None
    assert shown.matrix.tolist() == match.matrix.tolist()
    side_mm = 8 * 4.5
    assert np.linalg.norm(shown.apply(here) - there, axis=1).mean() < side_mm / 20
    fitted = assess(replace(match, matrix=None)).alignment
    assert fitted is not None
    assert np.linalg.norm(fitted.apply(here) - there, axis=1).mean() > side_mm / 20
    rigid = assess(match, kind="rigid").alignment
    assert rigid is not None
    assert rigid.matrix[:3, :3] @ rigid.matrix[:3, :3].T == pytest.approx(np.eye(3), abs=1e-6)
    error = np.linalg.norm(rigid.apply(here) - there, axis=1)
    assert error.mean() < side_mm / 2  # the view is scaled, too
    first = judge(known, match_embeddings(known.scan, known.view))
    found = judge(known, match)
    assert found.accuracy > first.accuracy + 0.1
    assert found.mean_mm < 0.8 * first.mean_mm
    assert match.a is known.scan  # whose own features are kept
    assert finish(self_check(scan, bundled, SETTINGS, seed=2)).accuracy == found.accuracy
    alone = finish(self_check(scan, bundled, SETTINGS, seed=2, align=False))
    assert alone.accuracy == first.accuracy


def test_scans_too_large_for_a_whole_plan_are_aligned_too(
    scan: Volume, bundled: SwinEncoder, known: KnownView
) -> None:
    embeddings, images = (known.scan, known.view), (scan, known.volume)
    tokens = int(known.scan.foreground.sum())
    small = MatchSettings(memory_bytes=tokens**2 * MatchSettings().bytes_per_pair // 4)
    match = finish(match_aligned(embeddings, images, bundled, SETTINGS, small))
    assert match.candidates is not None
    assert match.matrix is not None
    first = match_embeddings(*embeddings, small)
    assert judge(known, match).accuracy > judge(known, first).accuracy + 0.1


def test_without_a_common_map_the_first_plan_stays(
    scan: Volume, bundled: SwinEncoder, known: KnownView
) -> None:
    noise = torch.randn(known.view.features.shape, generator=torch.Generator().manual_seed(0))
    other = replace(known.view, features=noise.half())
    match = finish(match_aligned((known.scan, other), (scan, known.volume), bundled, SETTINGS))
    assert match.matrix is None
    assert torch.equal(match.mass, match_embeddings(known.scan, other).mass)


def test_further_looks_that_make_fewer_pairs_sure_are_not_taken(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, embedding: Embedding
) -> None:
    # By random weights a scan is like itself, but less so what lies between its patches.
    match = finish(match_aligned((embedding, embedding), (torso, torso), tiny, settings))
    first = match_embeddings(embedding, embedding)
    sure = len(first.pairs().best(least=0.2, mutual=True))
    assert len(match.pairs().best(least=0.2, mutual=True)) >= sure


def test_a_look_that_fails_leaves_the_match_of_before(
    scan: Volume, bundled: SwinEncoder, known: KnownView, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Embedding:
        raise S2DCError("There is not enough memory for windows of 96 voxels.")

    monkeypatch.setattr(aligned_match, "embed_in_pose", full)
    images = (scan, known.volume)
    match = finish(match_aligned((known.scan, known.view), images, bundled, SETTINGS))
    assert match.matrix is None
    assert torch.equal(match.mass, match_embeddings(known.scan, known.view).mass)


@pytest.mark.parametrize(
    ("by_features", "by_intensities", "overlap", "weight"),
    [(0.5, 0.9, 1, 1.0), (0.27, 0.93, 1, 0.2), (0.3, 0.33, 1, 1.0), (0.27, 0.93, 0.1, 1.0)],
)
def test_intensities_are_asked_above_all_where_features_lead_astray(
    by_features: float,
    by_intensities: float,
    overlap: float,
    weight: float,
    scan: Volume,
    bundled: SwinEncoder,
    known: KnownView,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []

    def scripted(*_: object, settings: RegistrationSettings) -> Any:
        yield Progress(0, 0, "steps")
        weight = settings.feature_weight
        agreed, seen = (by_features, 1) if weight == 1 else (by_intensities, overlap)
        return SimpleNamespace(correlation=agreed, overlap=seen, matrix=weight * np.eye(4))

    def seen(*_: object, matrix: np.ndarray, **__: object) -> Any:
        taken.append(1 / matrix[0, 0])  # of the map the other way
        yield Progress(0, 0, "windows")
        raise S2DCError("That is enough.")

    monkeypatch.setattr(aligned_match, "register", scripted)
    monkeypatch.setattr(aligned_match, "embed_in_pose", seen)
    images = (scan, known.volume)
    finish(match_aligned((known.scan, known.view), images, bundled, SETTINGS))
    assert taken == [pytest.approx(weight)]


def test_a_ct_is_found_in_an_mr() -> None:
    encoder = SwinEncoder.from_checkpoint(encoder_named(ANY_CONTRAST))
    settings = replace(SETTINGS, preset="auto")
    contrasts: tuple[Contrast, Contrast] = ("ct", "t2")
    ct, t2 = (phantom((64, 80, 80), 4.5, seed=5, contrast=one)[0] for one in contrasts)
    here, other = (finish(known_view(one, encoder, settings, seed=4)) for one in (ct, t2))
    mixed = replace(here, view=other.view, image=other.image)
    embeddings, images = (mixed.scan, mixed.view), (ct, mixed.volume)
    match = finish(match_aligned(embeddings, images, encoder, settings))
    assert match.matrix is not None
    own, there = true_places_mm(mixed)
    mapped = own @ match.matrix[:3, :3].T + match.matrix[:3, 3]
    assert np.linalg.norm(mapped - there, axis=1).mean() < 8 * 4.5 / 4
    first = judge(mixed, match_embeddings(*embeddings))
    assert judge(mixed, match).accuracy > first.accuracy + 0.1


@pytest.mark.parametrize("regions", [False, True])
def test_what_is_seen_of_a_patch_is_what_lies_there(
    regions: bool, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thick slices of A, turned axes and finer voxels of B, regions of both: places stay right."""
    shape_a = (20, 40, 48)
    affine_a = np.diag([5.0, 2.0, 2.0, 1.0])
    affine_a[:3, 3] = (-30.0, 12.0, 7.0)
    affine_b = np.array([[0, 0, -1.25, 80], [1.5, 0, 0, -10], [0, 1.25, 0, -5], [0, 0, 0, 1.0]])
    turn = np.radians(12)
    matrix = np.eye(4)
    matrix[1:3, 1:3] = 1.1 * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    matrix[:3, 3] = (3.0, -4.0, 2.0)
    roi = ((4, 20), (0, 32), (8, 48)) if regions else None
    settings = replace(SETTINGS, roi=roi, stage=2)
    volume = Volume(np.ones(shape_a, np.float32), affine_a, name="a")
    places = np.stack(np.meshgrid(*map(np.arange, shape_a), indexing="ij"), -1)
    millimetres = places @ affine_a[:3, :3].T + affine_a[:3, 3]

    def grid_of(
        sides: tuple[int, int, int], first: tuple[int, int, int], affine: np.ndarray
    ) -> Embedding:
        tokens = tuple(-(-side // 8) for side in sides)
        z, y, x = np.linalg.norm(affine[:3, :3], axis=0)
        return Embedding(
            features=torch.zeros(2, *tokens).half(),
            foreground=torch.ones(tokens, dtype=torch.bool),
            stride=8,
            shape=sides,
            offset_vox=first,
            spacing_mm=(float(z), float(y), float(x)),
            affine=affine,
            name="grid",
        )

    if regions:
        own = grid_of((16, 32, 40), (4, 0, 8), affine_a)
        b = grid_of((56, 80, 96), (8, 16, 0), affine_b)
    else:
        own, b = grid_of(shape_a, (0, 0, 0), affine_a), grid_of((64, 96, 112), (0, 0, 0), affine_b)
    for axis in range(3):
        # An image that says where it is, and an encoder that tells the mean of each patch.
        shown = (millimetres[..., axis] + 100)[region_of(shape_a, settings)].astype(np.float32)
        monkeypatch.setattr(aligned_match, "normalised", lambda *_, shown=shown: shown)

        def means(image: np.ndarray, *_: object, **__: object) -> Any:
            yield Progress(1, 1, "windows")
            mean = torch.nn.functional.avg_pool3d(torch.from_numpy(image)[None], 8)
            return torch.cat([mean, torch.full_like(mean, 100.0)]), {}

        monkeypatch.setattr(aligned_match, "encode", means)
        seen = finish(embed_in_pose(volume, own, tiny, settings, matrix=matrix, b=b))
        # Features get length 1 before they are interpolated; their ratio still tells.
        found = 100 * seen.features[0].float() / seen.features[1].float() - 100
        tokens = np.argwhere(np.ones(own.grid))
        truth = np.array([own.mm_of_token(token) for token in tokens])[:, axis]
        # At the edge, the image is not whole within a patch.
        middle = (np.abs(tokens - (np.asarray(own.grid) - 1) / 2) <= 1).all(1)
        assert middle.sum() >= 4
        off = np.abs(found.flatten().numpy() - truth)[middle]
        assert np.median(off) < 0.75, axis


def embedded(volume: Volume, encoder: SwinEncoder) -> Embedding:
    return finish(embed_volume(volume, encoder, SETTINGS))


def likeness(one: Embedding, other: Embedding) -> torch.Tensor:
    """Cosine similarities of the patches of tissue at equal places."""
    inside = (one.foreground & other.foreground).flatten()
    return (one.unit() * other.unit()).sum(1)[inside]


def test_in_its_own_pose_a_scan_looks_as_it_is(
    scan: Volume, bundled: SwinEncoder, known: KnownView
) -> None:
    same = finish(
        embed_in_pose(scan, known.scan, bundled, SETTINGS, matrix=np.eye(4), b=known.scan)
    )
    assert likeness(same, known.scan).min() > 0.999


def test_axes_and_size_of_voxels_are_those_of_the_other_scan(
    scan: Volume, bundled: SwinEncoder
) -> None:
    # The same body stored right to left and front to back, and in voxels of half the side.
    affine = scan.affine.copy()
    affine[:3, 2] *= -1
    affine[2, 3] += scan.affine[2, 2] * (scan.shape[2] - 1)
    flipped = Volume(np.ascontiguousarray(scan.array[..., ::-1]), affine, name="flipped")
    fine = Volume(
        scan.array.repeat(2, 0).repeat(2, 1).repeat(2, 2),
        scan.affine @ np.diag([0.5, 0.5, 0.5, 1.0]),
        name="fine",
    )
    fine.affine[:3, 3] -= scan.affine[:3, :3] @ np.full(3, 0.25)
    own = embedded(scan, bundled)
    mirrored = embedded(flipped, bundled)
    seen = finish(embed_in_pose(flipped, mirrored, bundled, SETTINGS, matrix=np.eye(4), b=own))
    back = replace(own, features=seen.features.flip(3), foreground=seen.foreground.flip(2))
    assert likeness(back, own).median() > 0.99
    # Without it, a body stored the other way round looks otherwise.
    plain = replace(own, features=mirrored.features.flip(3))
    assert likeness(plain, own).median() < 0.95
    large = embedded(fine, bundled)
    seen = finish(embed_in_pose(fine, large, bundled, SETTINGS, matrix=np.eye(4), b=own))
    # Every second token: the corner of eight lies between the centres of the coarse ones.
    coarse = replace(
        own,
        features=torch.nn.functional.avg_pool3d(seen.features.float(), 2).half(),
        foreground=own.foreground,
    )
    assert likeness(coarse, own).median() > 0.9


def test_patches_out_of_the_other_scan_have_no_features(
    scan: Volume, bundled: SwinEncoder, known: KnownView
) -> None:
    away = np.eye(4)
    away[0, 3] = 1e5
    none = finish(embed_in_pose(scan, known.scan, bundled, SETTINGS, matrix=away, b=known.scan))
    assert not none.features.any()
    up = np.eye(4)
    up[0, 3] = 6 * known.scan.stride * scan.spacing_mm[0]
    part = finish(embed_in_pose(scan, known.scan, bundled, SETTINGS, matrix=up, b=known.scan))
    # Four tokens beyond the edge are embedded, but none further away.
    seen = part.features.any(0)
    assert seen[:2][known.scan.foreground[:2]].all()
    assert not seen[7:].any()
