"""The benchmarks of matching and probing compare what they say they compare."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import probing
from benchmarks.descriptors import mind, raw_patches
from benchmarks.matching_dustbin import SIMILARITIES, cut, dustbin
from benchmarks.matching_plans import pot_one_by_one, solvers
from benchmarks.matching_subjects import Subject, centred, judged, through_plan
from benchmarks.matching_truth import MAP_ALONE, OURS, WAYS, known_truth, random_views
from benchmarks.probing_scans import gather
from benchmarks.transport import features
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.method.transport import assignment
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.writing import write_volume

SHAPE = (32, 48, 40)


@pytest.fixture(scope="module")
def encoder() -> SwinEncoder:
    torch.manual_seed(0)
    encoder = SwinEncoder.from_size("tiny", window_size=4)
    encoder.metadata["token_stage"] = 2
    return encoder


@pytest.fixture(scope="module")
def subject(encoder: SwinEncoder) -> Subject:
    image, labels = phantom(SHAPE, 8.0, seed=1)
    return Subject(image, labels, finish(embed_volume(image, encoder, EmbedSettings())))


@pytest.mark.parametrize("descriptor", [mind, raw_patches])
def test_descriptors_move_with_the_image(descriptor: object) -> None:
    assert callable(descriptor)
    image = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    one, moved = descriptor(image, 8), descriptor(np.roll(image, 8, axis=1), 8)
    assert one.shape[1:] == (4, 6, 5)
    # Patches inside, whose neighbourhood did not wrap round.
    torch.testing.assert_close(moved[:, 1:-1, 2:-1, 1:-1], one[:, 1:-1, 1:-2, 1:-1])


def test_mind_is_blind_to_contrast() -> None:
    image = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    torch.testing.assert_close(mind(1 - image, 8), mind(image, 8), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_known_truth_has_a_row_for_every_way(subject: Subject, encoder: SwinEncoder) -> None:
    text = known_truth("phantom", subject.image, encoder, 2)
    rows = [line for line in text.splitlines() if line.startswith(("| in-plane", "| 3D"))]
    ways = [OURS, MAP_ALONE, *WAYS]
    assert [row.split("|")[2].strip() for row in rows] == 2 * ways


def test_a_cut_view_keeps_partners_that_both_still_show(
    subject: Subject, encoder: SwinEncoder
) -> None:
    ((in_plane, known),) = random_views(subject.image, encoder, subject.embedding, [0])
    assert in_plane
    piece = cut(known)
    own, has = piece.scan.foreground.flatten(), piece.partner >= 0
    had = known.partner >= 0
    assert 0 < has.sum() < had.sum()
    assert piece.view.foreground.flatten()[piece.partner[has]].all()
    assert torch.equal(piece.partner[has], known.partner[has])
    assert not (piece.gone & (has | ~own)).any()
    assert (has | piece.gone)[own & had].all()
    assert piece.gone.sum() > (known.gone & own).sum()


def test_the_dustbin_has_a_row_for_every_similarity(subject: Subject, encoder: SwinEncoder) -> None:
    rows = dustbin("phantom", subject.image, encoder, [0])
    assert [row[1] for row in rows] == ["whole"] * len(SIMILARITIES) + ["cut"] * len(SIMILARITIES)
    assert all(0 <= float(row[3]) <= 1 and 0 <= float(row[5]) <= 1 for row in rows)


def test_pot_solves_the_same_problem() -> None:
    scores = features(2, 12, 0.1, "cpu")
    ours = assignment(scores, 1.0, iterations=1000, tolerance=1e-6)
    torch.testing.assert_close(pot_one_by_one(scores), ours, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_solvers_reach_the_same_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.matching_plans.PROBLEMS", 2)
    monkeypatch.setattr("benchmarks.matching_plans.TOKENS", 16)
    text = solvers(2)
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("| ours", "| POT"))]
    assert len(rows) == 3
    for row in rows:
        assert float(row[-3]) < 1e-3
        assert float(row[-2]) < 1e-4


def test_a_subject_carried_to_itself_keeps_its_labels(subject: Subject) -> None:
    assert judged(subject.labels.array, subject).mean_dice == 1
    np.testing.assert_array_equal(centred(subject, subject), subject.labels.array)
    halves = np.where(np.arange(SHAPE[1])[:, None] < 24, 4, 9) * (subject.labels.array > 0)
    halved = replace(subject, labels=subject.labels.with_array(halves.astype(np.uint8)))
    assert judged(through_plan(halved, halved), halved).mean_dice > 0.6


def test_a_click_lands_deepest_inside() -> None:
    structure = np.zeros((20, 20, 20), bool)
    structure[2:9, 4:11, 6:13] = True
    structure[5, 7, 13:] = True
    assert probing.centre_of(structure) == (5, 7, 9)
    assert probing.largest_structures(np.array([0] * 9 + [3] * 2 + [7] * 5), 2) == [7, 3]


@pytest.mark.slow
def test_probing_compares_trained_untrained_and_intensity(
    tmp_path: Path,
    subject: Subject,
    encoder: SwinEncoder,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The setting would hold for the whole test process.
    monkeypatch.setattr(probing, "keep_large_buffers", lambda: False)
    for folder, volume in (("imagesTr", subject.image), ("labelsTr", subject.labels)):
        write_volume(tmp_path / "torso" / folder / "one.nii.gz", volume.array, volume)
    names = {str(label): f"organ_{label}" for label in range(40)}
    (tmp_path / "torso" / "dataset.json").write_text(json.dumps({"labels": names}))
    encoder.save(tmp_path / "encoder.safetensors")
    arguments = ["--structures", "2", "--stages", "2"]
    probing.main([str(tmp_path / "encoder.safetensors"), str(tmp_path / "torso"), *arguments])
    text = capsys.readouterr().out
    for row in ("trained, patches of 8 voxels", "untrained, patches", "intensity of", "chance"):
        assert f"| {row}" in text


def test_phantoms_are_gathered_beside_the_real_scans(tmp_path: Path) -> None:
    real = tmp_path / "data" / "thorax_ct" / "unlabelled" / "one.nii.gz"
    image, _ = phantom((8, 8, 8), 3.0)
    write_volume(real, image.array, image)
    scans = gather(tmp_path / "data", tmp_path / "scans", phantoms=1)
    assert [scan.name for scan in scans] == ["ct_one.nii.gz", "phantom_1.nii.gz"]
    assert all(scan.is_file() for scan in scans)
