"""``s2dc transfer`` on files, and what it says about bad ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest

from napari_s2dc.engine.cli import main
from napari_s2dc.engine.encoders import bundled_encoder
from napari_s2dc.engine.match import Match
from napari_s2dc.engine.transfer import transfer_labels
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.io import find_volumes, read_volume, write_volume
from napari_s2dc.volumes.segments import segment_fields, segments_in
from napari_s2dc.volumes.volume import Volume
from tests.engine.torso_files import image, labels, run

BUNDLED = str(bundled_encoder())


def test_transfer_lies_on_the_grid_of_its_scan_and_evaluate_reads_it(
    torsos: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sure = tmp_path / "found.nii.gz", tmp_path / "sure.nii.gz"
    atlas = f"{image(torsos, 1)}:{labels(torsos, 1)}"
    options = ["--out", str(out), "--confidence", str(sure), "--json"]
    assert run("transfer", "--atlas", atlas, image(torsos, 1), *options, encoder=checkpoint) == 0
    (one,) = json.loads(capsys.readouterr().out)["scans"]
    found, truth = nibabel.load(out), nibabel.load(labels(torsos, 1))
    assert found.shape == truth.shape
    np.testing.assert_allclose(found.affine, truth.affine)
    assert one["classes"] == sorted(set(np.unique(truth.dataobj)) - {0})
    values = read_volume(sure).array
    assert 0 <= values.min() < values.max() <= 1
    assert main(["evaluate", str(out), labels(torsos, 1), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["mean_dice"] > 0.9
    assert scores["mean_hd95_mm"] < 3.1
    assert len(scores["scans"][0]["classes"]) == len(one["classes"])


@pytest.mark.usefixtures("coarse_from_here")
def test_labels_are_carried_to_every_voxel_of_a_large_scan(torsos: Path, tmp_path: Path) -> None:
    out = tmp_path / "carried.nii.gz"
    atlas = f"{image(torsos, 1)}:{labels(torsos, 1)}"
    arguments = ["transfer", "--atlas", atlas, image(torsos, 1), "--out", str(out)]
    more = ["--stage", "1", "--sharpen-borders"]
    assert run(*arguments, *more, encoder=str(bundled_encoder())) == 0
    found, truth = (read_volume(path, labels=True) for path in (out, labels(torsos, 1)))
    np.testing.assert_allclose(found.affine, truth.affine)
    body = truth.array != 0
    assert (found.array == truth.array)[body].mean() > 0.8


def test_transfer_fuses_atlases_and_takes_folders(
    torsos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atlases = [
        part
        for seed in (1, 2)
        for part in ("--atlas", f"{image(torsos, seed)}:{labels(torsos, seed)}")
    ]
    out = tmp_path / "out"
    folder = str(torsos / "images")
    assert run("transfer", folder, *atlases, "--out", str(out), encoder=BUNDLED) == 0
    assert "from 2 atlases" in capsys.readouterr().out
    names = sorted(path.name for path in find_volumes(out))
    assert names == ["torso1.labels.nii.gz", "torso2.labels.nii.gz"]
    assert main(["evaluate", str(out), str(torsos / "labels")]) == 0
    assert "Mean of 2 label maps: Dice" in capsys.readouterr().out


def test_names_of_classes_are_kept_in_nrrd(torsos: Path, checkpoint: str, tmp_path: Path) -> None:
    atlas = tmp_path / "atlas.seg.nrrd"
    source = read_volume(labels(torsos, 1), labels=True)
    write_volume(atlas, source.array, source)
    voxels, header = nrrd.read(str(atlas))
    names = {"Segment0_Name": "skin", "Segment0_LabelValue": "1", "Segment0_Color": "1 0 0"}
    extent = {"Segment0_Extent": "0 1 0 1 0 1"}
    nrrd.write(str(atlas), voxels, {**header, **names, **extent})
    out = tmp_path / "out.nrrd"
    arguments = ["--atlas", f"{image(torsos, 1)}:{atlas}", image(torsos, 1), "--out", str(out)]
    assert run("transfer", *arguments, encoder=checkpoint) == 0
    written = nrrd.read_header(str(out))
    assert {name: written[name] for name in names} == names
    assert "Segment0_Extent" not in written


def test_wrong_atlases_are_one_sentence(
    torsos: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.nii.gz"
    original = nibabel.load(labels(torsos, 1))
    nibabel.save(nibabel.Nifti1Image(np.asarray(original.dataobj)[:20], original.affine), cut)
    counted = tmp_path / "counted.nii.gz"
    many = np.arange(original.shape[0] * 48 * 32, dtype=np.int16).reshape(original.shape) % 1002
    nibabel.save(nibabel.Nifti1Image(many, original.affine), counted)
    first = image(torsos, 1)
    for atlas, words in (
        (first, "with a colon between them"),
        (f"{first}:nowhere.nii", "nowhere.nii does not exist"),
        (f"{first}:{cut}", "Both must lie on one grid"),
        (f"{labels(torsos, 1)}:{first}", f"{first} looks like a scan; write SCAN:LABELS in this"),
        (f"{first}:{counted}", f"{counted} looks like a scan; write SCAN:LABELS in this"),
    ):
        arguments = ["--atlas", atlas, first, "--out", str(tmp_path / "x.nii.gz")]
        assert run("transfer", *arguments, encoder=checkpoint) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not (tmp_path / "x.nii.gz").exists()


def test_an_input_is_never_replaced(
    torsos: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, mask = tmp_path / "own.nii.gz", tmp_path / "mask.nii.gz"
    shutil.copy(image(torsos, 1), own)
    shutil.copy(labels(torsos, 1), mask)
    before = own.read_bytes(), mask.read_bytes()
    start = ["transfer", "--atlas", f"{image(torsos, 2)}:{mask}", str(own), "--out"]
    for rest in (
        [str(own)],
        [str(mask)],
        [str(tmp_path / "x.nii.gz"), "--confidence", str(own)],
        [str(tmp_path / "x.nii.gz"), "--confidence", str(tmp_path / "x.nii.gz")],
    ):
        assert run(*start, *rest, encoder=checkpoint) == 2
        error = capsys.readouterr().err
        assert "would be replaced" in error or "both name" in error
    assert (own.read_bytes(), mask.read_bytes()) == before


def test_transfer_says_what_is_doubtful_and_follows_its_options(
    torsos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = nibabel.load(image(torsos, 1))
    flipped = nibabel.Nifti1Image(np.asarray(original.dataobj)[::-1], original.affine)
    nibabel.save(flipped, tmp_path / "flipped.nii.gz")
    atlas = ["--atlas", f"{image(torsos, 1)}:{labels(torsos, 1)}"]
    found = []
    for options in ([], ["--refine", "pairs"], ["--refine", "none"], ["--sharpen-borders"]):
        out = tmp_path / "out.nii.gz"
        arguments = [*atlas, image(torsos, 2), "--out", str(out), *options]
        assert run("transfer", *arguments, encoder=BUNDLED) == 0
        said = capsys.readouterr().err
        assert "left and right swapped" not in said
        assert "hardly agree" not in said
        found.append(np.asarray(nibabel.load(out).dataobj).tobytes())
    assert len(set(found)) == 4
    target = str(tmp_path / "flipped.nii.gz")
    monkeypatch.setattr("napari_s2dc.engine.transfer._LEAST_CORRELATION", 1.0)
    arguments = [*atlas, target, "--out", str(tmp_path / "mirrored.nii.gz")]
    assert run("transfer", *arguments, encoder=BUNDLED) == 0
    said = capsys.readouterr().err
    assert "left and right swapped" in said
    assert "torso1 and flipped hardly agree where the labels were laid" in said


def refuse(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """Let labels of one kind of number be carried by nothing."""

    def carry(match: Match, labels: Volume, *more: Any) -> Any:
        if labels.array.dtype == kind:
            raise S2DCError("No map agrees.")
        return (yield from transfer_labels(match, labels, *more))

    monkeypatch.setattr("napari_s2dc.engine.transfer.transfer_labels", carry)


def test_what_is_doubtful_is_said_although_no_atlas_can_be_used(
    torsos: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = nibabel.load(image(torsos, 1))
    target = tmp_path / "flipped.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(original.dataobj)[::-1], original.affine), target)
    refuse(monkeypatch, read_volume(labels(torsos, 1), labels=True).array.dtype.type)
    atlas = f"{image(torsos, 1)}:{labels(torsos, 1)}"
    arguments = ["--atlas", atlas, str(target), "--out", str(tmp_path / "out.nii.gz")]
    assert run("transfer", *arguments, encoder=checkpoint) == 2
    error = capsys.readouterr().err
    assert "left and right swapped" in error
    assert "No labels could be carried" in error
    assert error.count("No map agrees") == 1
    assert not (tmp_path / "out.nii.gz").exists()


def test_names_of_classes_are_those_of_an_atlas_that_was_used(
    torsos: Path, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlases = []
    for kind in (np.int16, np.uint8):
        source = read_volume(labels(torsos, 1), labels=True)
        path = tmp_path / f"{kind.__name__}.seg.nrrd"
        write_volume(path, source.array.astype(kind), source)
        voxels, header = nrrd.read(str(path))
        names = {"Segment0_Name": kind.__name__, "Segment0_LabelValue": "1"}
        extent = {"Segment0_Color": "1 0 0", "Segment0_Extent": "0 1 0 1 0 1"}
        nrrd.write(str(path), voxels, {**header, **names, **extent})
        atlases += ["--atlas", f"{image(torsos, 1)}:{path}"]
    refuse(monkeypatch, np.int16)
    out = tmp_path / "out.nrrd"
    arguments = [*atlases, image(torsos, 1), "--out", str(out)]
    assert run("transfer", *arguments, encoder=checkpoint) == 0
    assert nrrd.read_header(str(out))["Segment0_Name"] == "uint8"


def test_names_of_several_atlases_are_kept(
    torsos: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atlases = []
    source = read_volume(labels(torsos, 1), labels=True)
    for number, (names, kept) in enumerate((((1, "skin"), 1), ((2, "fat"), 2))):
        path = tmp_path / f"{number}.seg.nrrd"
        classes = [(*names, (1.0, 0.0, 0.0)), (3, f"organ {number}", (0.0, 1.0, 0.0))]
        array = np.where(np.isin(source.array, (kept, 3)), source.array, 0)
        write_volume(path, array, source, segments=segment_fields(classes))
        atlases += ["--atlas", f"{image(torsos, 1)}:{path}"]
    out = tmp_path / "out.nrrd"
    arguments = [*atlases, image(torsos, 1), "--out", str(out)]
    assert run("transfer", *arguments, encoder=checkpoint) == 0
    error = capsys.readouterr().err
    assert "Label 3 is organ 0 in" in error
    assert "fused by number" in error
    found = segments_in(read_volume(out, labels=True))
    names = {label: name for label, (name, _) in found.items()}
    assert names == {1: "skin", 3: "organ 0", 2: "fat"}
