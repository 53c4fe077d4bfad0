"""Left and right swapped is said, and a body that only lies askew is not called mirrored."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from napari_s2dc.engine import mirror_check
from napari_s2dc.engine.alignment import Alignment
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encoders import bundled_encoder
from napari_s2dc.engine.match import Match, match_embeddings
from napari_s2dc.engine.mirror_check import embed_mirrored, mirror_warning
from napari_s2dc.engine.progress import Progress, Steps, finish
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume

SETTINGS = EmbedSettings(device="cpu")
SHAPE = (48, 64, 64)
SPACING_MM = 5.6


@pytest.fixture(scope="module")
def bundled() -> SwinEncoder:
    return SwinEncoder.from_checkpoint(bundled_encoder())


@pytest.fixture(scope="module")
def scan() -> Volume:
    return phantom(SHAPE, SPACING_MM, seed=6)[0]


@pytest.fixture(scope="module")
def right(scan: Volume, bundled: SwinEncoder) -> Embedding:
    return embedded(scan, bundled)


@pytest.fixture(scope="module")
def wrong(scan: Volume, bundled: SwinEncoder) -> Embedding:
    return embedded(swapped(scan), bundled)


def swapped(volume: Volume) -> Volume:
    return volume.with_array(np.ascontiguousarray(volume.array[..., ::-1]))


def tilted(volume: Volume, degrees: float) -> Volume:
    """Turned in the axial plane, air where nothing was."""
    air = float(volume.array.min())
    return volume.with_array(
        ndimage.rotate(volume.array, degrees, (1, 2), reshape=False, order=1, cval=air)
    )


def embedded(volume: Volume, encoder: SwinEncoder) -> Embedding:
    return finish(embed_volume(volume, encoder, SETTINGS))


def test_a_flipped_scan_is_told_from_the_scan(
    scan: Volume, bundled: SwinEncoder, right: Embedding, wrong: Embedding
) -> None:
    other = phantom(SHAPE, SPACING_MM, seed=7)[0]  # of another body
    target = embedded(other, bundled)
    flipped = match_embeddings(wrong, target)
    assert "more surely" in finish(mirror_warning(flipped, right, (swapped(scan), other)))
    match = match_embeddings(right, target)
    assert finish(mirror_warning(match, wrong, (scan, other))) == ""


def test_a_symmetric_body_that_lies_askew_is_not_called_mirrored(
    scan: Volume, bundled: SwinEncoder
) -> None:
    symmetric = scan.with_array((scan.array + scan.array[..., ::-1]) / 2)
    a, b = tilted(symmetric, 12), tilted(symmetric, -12)
    match = match_embeddings(embedded(a, bundled), embedded(b, bundled))
    mirrored = finish(embed_mirrored(a, bundled, SETTINGS))
    assert "more surely" in finish(mirror_warning(match, mirrored, None))  # as they lie
    assert finish(mirror_warning(match, mirrored, (a, b))) == ""


@pytest.mark.parametrize("undone", [False, True])
@pytest.mark.parametrize(
    ("as_it_is", "mirrored", "said"), [(0, 0, True), (0, 1, True), (1, 0, False)]
)
def test_a_scan_without_a_map_or_with_a_mirroring_one_agrees_with_nothing(
    scan: Volume,
    right: Embedding,
    wrong: Embedding,
    monkeypatch: pytest.MonkeyPatch,
    undone: bool,
    as_it_is: int,
    mirrored: int,
    said: bool,
) -> None:
    match = match_embeddings(wrong, right)
    has_map = {id(wrong): as_it_is, id(right): mirrored}

    def align(one: Match) -> Alignment:
        if not has_map[id(one.a)] and not undone:
            raise S2DCError("No map agrees.")
        sign = 1.0 if has_map[id(one.a)] else -1.0
        return Alignment(np.diag([1.0, 1.0, sign, 1.0]), np.ones(20, dtype=bool), 1.0)

    def register(*_: object) -> Steps[SimpleNamespace]:
        yield Progress(1, 1, "steps")
        return SimpleNamespace(correlation=0.5)

    monkeypatch.setattr(mirror_check, "align_match", align)
    monkeypatch.setattr(mirror_check, "register", register)
    sentence = finish(mirror_warning(match, right, (swapped(scan), scan)))
    assert ("left and right swapped" in sentence) is said


def test_without_memory_for_a_second_look_the_first_one_stands(
    scan: Volume, right: Embedding, wrong: Embedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    match = match_embeddings(wrong, right)

    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(mirror_check, "register", full)
    assert "mirror images" in finish(mirror_warning(match, right, (scan, scan)))


def test_a_mirrored_scan_is_noticed_after_a_match_in_one_pose(
    right: Embedding, wrong: Embedding
) -> None:
    first = match_embeddings(wrong, right)
    # A match in one pose makes a wrong one surer too: it must not be compared with a first one.
    surer = replace(first, mass=2 * first.mass, matrix=np.eye(4))
    sentence = finish(mirror_warning(first, right, None))
    assert "mirror images" in sentence
    assert finish(mirror_warning(surer, right, None)) == sentence


def test_the_mirrored_region_is_the_region(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings
) -> None:
    roi = ((0, 32), (0, 48), (0, 32))
    flipped = finish(embed_mirrored(torso, tiny, replace(settings, roi=roi)))
    assert flipped.shape == (32, 48, 32)
    assert flipped.offset_vox == (0, 0, 16)
