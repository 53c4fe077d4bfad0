"""Left and right swapped is said, and a body that only lies askew is not called mirrored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from napari_s2dc.engine.alignment import Alignment
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encoders import bundled_encoder
from napari_s2dc.engine.match import match_embeddings
from napari_s2dc.engine.mirror_check import embed_mirrored, mirror_warning
from napari_s2dc.engine.progress import finish
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


def test_a_flipped_scan_is_told_from_the_scan(scan: Volume, bundled: SwinEncoder) -> None:
    right, wrong = (embedded(one, bundled) for one in (scan, swapped(scan)))
    other = phantom(SHAPE, SPACING_MM, seed=7)[0]
    for b, target in ((scan, right), (other, embedded(other, bundled))):
        flipped = match_embeddings(wrong, target)
        assert "more surely" in finish(mirror_warning(flipped, right, (swapped(scan), b)))
        assert finish(mirror_warning(match_embeddings(right, target), wrong, (scan, b))) == ""


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
def test_without_a_map_that_could_tell_the_first_look_stands(
    scan: Volume, bundled: SwinEncoder, monkeypatch: pytest.MonkeyPatch, undone: bool
) -> None:
    right, wrong = embedded(scan, bundled), embedded(swapped(scan), bundled)

    def align(_: object) -> Alignment:
        if undone:
            return Alignment(np.diag([1.0, 1.0, -1.0, 1.0]), np.ones(20, dtype=bool), 1.0)
        raise S2DCError("No map agrees.")

    monkeypatch.setattr("napari_s2dc.engine.mirror_check.align_match", align)
    said = finish(mirror_warning(match_embeddings(wrong, right), right, (swapped(scan), scan)))
    assert "left and right swapped" in said


def test_a_mirrored_scan_is_noticed_after_a_match_in_one_pose(
    scan: Volume, bundled: SwinEncoder
) -> None:
    right, wrong = embedded(scan, bundled), embedded(swapped(scan), bundled)
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
