"""A scan that is turned is found again: embedded in the other's pose, matched near its map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_s2dc.engine.aligned_match import embed_in_pose, match_aligned
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encoders import bundled_encoder
from napari_s2dc.engine.match import MatchSettings, match_embeddings
from napari_s2dc.engine.match_checks import mirror_warning
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.self_check import KnownView, judge, known_view, self_check
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom
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
    mapped = here @ match.matrix[:3, :3].T + match.matrix[:3, 3]
    side_mm = 8 * 4.5
    assert np.linalg.norm(mapped - there, axis=1).mean() < side_mm / 4
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


def test_a_mirrored_scan_is_noticed_after_the_second_look(
    scan: Volume, bundled: SwinEncoder, known: KnownView
) -> None:
    mirrored = scan.with_array(np.ascontiguousarray(scan.array[..., ::-1]))
    wrong, right = embedded(mirrored, bundled), known.scan
    first = match_embeddings(wrong, right)
    # A second look makes a wrong match surer too: it must not be compared with a first one.
    surer = replace(first, mass=2 * first.mass, matrix=np.eye(4))
    sentence = mirror_warning(first, right)
    assert "mirror images" in sentence
    assert mirror_warning(surer, right) == sentence
    assert mirror_warning(match_embeddings(right, right), wrong) == ""
