"""Labels are carried to scans that have none, and what is not known stays unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from napari_s2dc.engine import carried_labels
from napari_s2dc.engine.alignment import Alignment
from napari_s2dc.engine.carried_labels import carry_labels
from napari_s2dc.engine.encoders import default_encoder
from napari_s2dc.engine.fewshot import train_model
from napari_s2dc.engine.fewshot_settings import FewshotSettings, FinetuneSettings
from napari_s2dc.engine.finetune_data import CropSource
from napari_s2dc.engine.labelled_scans import UNLABELLED, LabelledScan, classes_in, targets_of
from napari_s2dc.engine.match import Match
from napari_s2dc.engine.progress import Progress, Steps, finish
from napari_s2dc.engine.transfer import Transfer
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume
from napari_s2dc.volumes.writing import write_volume

T = TypeVar("T")

SHAPE, SPACING = (40, 56, 64), (5.0, 5.0, 5.0)
COMPLETE = FewshotSettings(mode="finetune", zero="background", device="cpu")
STROKES = replace(COMPLETE, zero="unlabelled")


@pytest.fixture(scope="module")
def bundled() -> SwinEncoder:
    """The encoder that comes with the plugin."""
    return SwinEncoder.from_checkpoint(default_encoder())


@pytest.fixture(scope="module")
def torsos() -> list[LabelledScan]:
    """Three of them, with all their organs."""
    return [LabelledScan(*phantom(SHAPE, spacing_mm=SPACING, seed=seed)) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def files(torsos: list[LabelledScan], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of them without labels, and one that is not there."""
    folder = tmp_path_factory.mktemp("unlabelled")
    paths = [folder / f"{name}.nii.gz" for name in ("second", "third", "missing")]
    for path, torso in zip(paths[:2], torsos[1:], strict=True):
        write_volume(path, torso.image.array, torso.image)
    return paths


def right(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the body's voxels that have their true label."""
    return float((found == truth)[truth > 0].mean())


def watched(steps: Steps[T]) -> tuple[list[Progress], T]:
    """Run a long function; gives what it reported, and its result."""
    seen: list[Progress] = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return seen, end.value


def test_labels_are_carried_to_another_body(
    torsos: list[LabelledScan], files: list[Path], bundled: SwinEncoder
) -> None:
    classes = classes_in(torsos[:1], COMPLETE)
    seen, carried = watched(carry_labels(torsos[:1], files[1:], bundled, classes, COMPLETE))
    assert {(one.total, one.what) for one in seen} == {(3, "scans")}
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert seen[-1].done == 3
    (sentence,) = carried.left_out
    assert "missing.nii.gz" in sentence
    (scan,) = carried.scans
    assert scan.image.name == "third"
    truth = torsos[2].labels.array
    assert right(scan.labels.array, truth) > right(torsos[0].labels.array, truth) + 0.1


def test_what_the_labelled_scan_does_not_show_stays_unknown(
    torsos: list[LabelledScan], files: list[Path], bundled: SwinEncoder
) -> None:
    affine = torsos[1].image.affine.copy()
    affine[:3, 3] += (60.0, 0.0, 0.0)
    upper = LabelledScan(
        *(Volume(one.array[12:], affine) for one in (torsos[1].image, torsos[1].labels))
    )
    classes = classes_in([upper], COMPLETE)
    (scan,) = finish(carry_labels([upper], files[:1], bundled, classes, COMPLETE)).scans
    targets = targets_of(scan.labels.array, classes, COMPLETE)
    assert (targets[:8] == UNLABELLED).mean() > 0.9
    assert (targets[16:] == UNLABELLED).mean() < 0.1
    assert right(scan.labels.array[16:], torsos[1].labels.array[16:]) > 0.9


def test_strokes_are_carried_and_nothing_beside_them(
    torsos: list[LabelledScan], files: list[Path], bundled: SwinEncoder
) -> None:
    organs = torsos[1].labels.array
    painted = np.zeros_like(organs)
    painted[20] = organs[20] + 1
    strokes = LabelledScan(torsos[1].image, torsos[1].labels.with_array(painted))
    classes = classes_in([strokes], STROKES)
    (scan,) = finish(carry_labels([strokes], files[:1], bundled, classes, STROKES)).scans
    found = scan.labels.array
    assert not found[:16].any()
    assert not found[24:].any()
    known = found > 0
    assert known.sum() > 0.5 * (painted > 0).sum()
    assert (found[known] == organs[known] + 1).mean() > 0.85


def test_of_many_labelled_scans_those_that_match_best_are_used(
    torsos: list[LabelledScan],
    files: list[Path],
    bundled: SwinEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[str] = []

    def refuse(match: Match, labels: Volume, *images: Volume) -> Steps[Transfer]:
        used.append(labels.name)
        raise S2DCError("It does not fit.")

    monkeypatch.setattr(carried_labels, "transfer_labels", refuse)
    own, other = torsos[2], torsos[0]
    labelled = [
        LabelledScan(one.image, one.labels.with_array(one.labels.array, name=name))
        for name, one in (("a", other), ("b", own), ("c", other), ("d", own), ("e", own))
    ]
    classes = classes_in(labelled, COMPLETE)
    with pytest.raises(S2DCError, match="It does not fit"):
        finish(carry_labels(labelled, files[1:2], bundled, classes, COMPLETE))
    assert used == ["b", "d", "e"]  # the scan itself


def test_strokes_of_one_scan_are_not_outvoted_by_what_another_leaves_open(
    torsos: list[LabelledScan], files: list[Path], bundled: SwinEncoder
) -> None:
    organs = torsos[1].labels.array
    strokes = []
    for plane in (14, 26):
        painted = np.zeros_like(organs)
        painted[plane] = organs[plane] + 1
        strokes.append(LabelledScan(torsos[1].image, torsos[1].labels.with_array(painted)))
    classes = classes_in(strokes, STROKES)
    (scan,) = finish(carry_labels(strokes, files[:1], bundled, classes, STROKES)).scans
    for plane in (14, 26):
        assert (scan.labels.array[plane - 1 : plane + 2] > 0).sum() > 0.5 * organs[plane].size


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, none of which can be used."""
    names: list[str] = []

    def read(path: Path) -> Volume:
        names.append(path.as_posix())
        raise S2DCError("It cannot be read.")

    monkeypatch.setattr(carried_labels, "read_volume", read)
    return names


def test_the_seed_draws_scans_and_one_more_changes_nothing_about_the_others(
    torsos: list[LabelledScan], bundled: SwinEncoder, looked_at: list[str]
) -> None:
    def drawn(names: list[str], seed: int) -> list[str]:
        looked_at.clear()
        settings = replace(COMPLETE, seed=seed, finetune=FinetuneSettings(carried_scans=4))
        classes = classes_in(torsos[:1], settings)
        with pytest.raises(S2DCError):
            finish(carry_labels(torsos[:1], list(map(Path, names)), bundled, classes, settings))
        return list(looked_at)

    alike = [f"{letter}/scan.nii.gz" for letter in "abcdefghij"]
    assert len({tuple(drawn(alike, seed)) for seed in range(4)}) > 1
    names = [f"{letter}.nii.gz" for letter in "abcdefghij"]
    assert len(drawn(names, 0)) == 4
    assert drawn(names, 0) == drawn(names, 0) == sorted(drawn(names, 0))
    assert len({tuple(drawn(names, seed)) for seed in range(4)}) > 1
    assert len(set(drawn([*names, "k.nii.gz"], 0)) - set(drawn(names, 0))) <= 1


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_scans_that_makes_no_sense_is_refused_at_once(
    number: int, torsos: list[LabelledScan], bundled: SwinEncoder, looked_at: list[str]
) -> None:
    settings = replace(COMPLETE, finetune=FinetuneSettings(carried_scans=number))
    classes = classes_in(torsos[:1], settings)
    with pytest.raises(ConfigurationError, match=r"finetune\.carried_scans is "):
        next(carry_labels(torsos[:1], [Path("a.nii.gz")], bundled, classes, settings))
    assert not looked_at


def test_it_says_why_none_could_be_used(
    torsos: list[LabelledScan], files: list[Path], bundled: SwinEncoder
) -> None:
    classes = classes_in(torsos[:1], COMPLETE)
    with pytest.raises(S2DCError, match=r"to none of 1 unlabelled scans\. .*missing\.nii\.gz"):
        finish(carry_labels(torsos[:1], files[2:], bundled, classes, COMPLETE))
    with pytest.raises(ConfigurationError, match="Quick learns nothing from unlabelled"):
        finish(
            train_model(torsos[:1], bundled, replace(COMPLETE, mode="quick"), unlabelled=files[:1])
        )


def test_doubted_labels_are_not_learned_from(
    torsos: list[LabelledScan],
    files: list[Path],
    bundled: SwinEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def doubt(match: Match, labels: Volume, *images: Volume) -> Steps[Transfer]:
        yield Progress(0, 0, "steps")
        alignment = Alignment(np.eye(4), np.ones(1, bool), 0.0)
        sure = np.ones(labels.shape, np.float32)
        return Transfer(labels, sure, alignment, doubt="They hardly agree.")

    monkeypatch.setattr(carried_labels, "transfer_labels", doubt)
    classes = classes_in(torsos[2:], COMPLETE)
    with pytest.raises(S2DCError, match="They hardly agree"):
        finish(carry_labels(torsos[2:], files[1:2], bundled, classes, COMPLETE))


def test_a_scan_of_another_kind_is_left_out(
    torsos: list[LabelledScan],
    files: list[Path],
    bundled: SwinEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "resonance.nii.gz"
    write_volume(path, torsos[2].image.array * 0.3 + 310, torsos[2].image)
    classes = classes_in(torsos[:1], COMPLETE)

    def read(path: Path) -> Volume:
        kind = "mr" if path.name.startswith("resonance") else "ct"
        return replace(read_volume(path), modality=kind)  # as DICOM files say it

    monkeypatch.setattr(carried_labels, "read_volume", read)
    carried = finish(carry_labels(torsos[:1], [path, files[0]], bundled, classes, COMPLETE))
    assert [scan.image.name for scan in carried.scans] == ["second"]
    (sentence,) = carried.left_out
    assert sentence.startswith(f"No labels could be carried to {tmp_path.name}/{path.name}: ")
    assert "phantom 1 CT is CT and resonance MR, and labels are carried" in sentence


def test_scans_of_another_spacing_come_to_that_of_the_model(
    torsos: list[LabelledScan], bundled: SwinEncoder, tmp_path: Path
) -> None:
    image, organs = phantom((20, 56, 64), spacing_mm=(10.0, 5.0, 5.0), seed=2)
    path = tmp_path / "thick.nii.gz"
    write_volume(path, image.array, image)
    classes = classes_in(torsos[:1], COMPLETE)
    carried = finish(carry_labels(torsos[:1], [path], bundled, classes, COMPLETE))
    (scan,) = carried.scans
    assert scan.image.spacing_mm == pytest.approx(SPACING)
    assert carried.facts[0]["spacing_mm"] == pytest.approx([10.0, 5.0, 5.0])
    assert right(scan.labels.array[::2], organs.array) > 0.7


def test_a_share_of_the_crops_comes_from_carried_scans() -> None:
    def scan(value: float) -> LabelledScan:
        labels = np.zeros((32, 40, 32), np.uint8)
        labels[8:24, 8:24, 8:24] = 1
        noise = np.random.default_rng(0).random(labels.shape)
        image = (np.where(labels, value, -200) + 20 * noise).astype(np.float32)
        return LabelledScan(Volume(image, np.eye(4)), Volume(labels, np.eye(4)))

    def inside(share: float) -> np.ndarray:
        """Brightness of the structure in 40 crops."""
        finetune = FinetuneSettings(crop_vox=32, augmentation=0.0, carried_share=share)
        settings = replace(COMPLETE, finetune=finetune)
        classes = classes_in([labelled], settings)
        source = CropSource([labelled], classes, settings, "ct_wide", carried=[carried])
        crops = [source.draw() for _ in range(40)]
        return np.array([float(image[0][targets == 1].mean()) for image, targets in crops])

    labelled, carried = scan(900.0), scan(0.0)
    threshold = (inside(0.0).min() + inside(1.0).max()) / 2
    assert inside(0.0).min() > threshold > inside(1.0).max()
    assert 10 < (inside(0.5) > threshold).sum() < 30


def test_the_model_says_which_scans_it_learned_from(
    torsos: list[LabelledScan], files: list[Path], bundled: SwinEncoder
) -> None:
    settings = replace(COMPLETE, finetune=FinetuneSettings(steps=2, crop_vox=32))
    seen, model = watched(train_model(torsos[:1], bundled, settings, unlabelled=files[1:]))
    kinds = [progress.what for progress in seen]
    assert kinds[0] == "scans"
    assert kinds[-2:] == ["steps", "steps"]
    assert [one["name"] for one in model.metadata["unlabelled_scans"]] == ["third"]
    assert len(model.metadata["left_out"]) == 1
    assert model.metadata["unlabelled_scans"][0]["hash"] != model.metadata["scans"][0]["hash"]
