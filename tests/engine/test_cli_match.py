"""``s2dc match``, ``transfer`` and ``evaluate`` on files, and what they say about bad ones."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest

from napari_s2dc.engine.cli import main
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding_file import save_embedding
from napari_s2dc.engine.encoders import bundled_encoder
from napari_s2dc.engine.match import Match
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.transfer import transfer_labels
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.coarser import on_grid
from napari_s2dc.volumes.io import find_volumes, read_volume, write_volume
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume

BUNDLED = str(bundled_encoder())


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two torsos with labels, stored (x, y, z) to the right and the front, as decathlon does."""
    folder = tmp_path_factory.mktemp("scans")
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-60.0, -70.0, 30.0)
    for seed in (1, 2):
        for volume, kind in zip(
            phantom((32, 48, 48), seed=seed), ("images", "labels"), strict=True
        ):
            voxels = np.ascontiguousarray(volume.array.transpose(2, 1, 0)[::-1, ::-1])
            (folder / kind).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / kind / f"torso{seed}.nii.gz")
    return folder


def image(folder: Path, seed: int) -> str:
    return str(folder / "images" / f"torso{seed}.nii.gz")


def labels(folder: Path, seed: int) -> str:
    return str(folder / "labels" / f"torso{seed}.nii.gz")


def run(*arguments: str, encoder: str) -> int:
    return main([*arguments, "--encoder", encoder, "--device", "cpu"])


# --------------------------------------------------------------------------------- match
def test_match_writes_pairs_plan_and_map(
    scans: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("pairs.csv", "plan.safetensors", "map.json")]
    options = ["--out", str(files[0]), "--plan", str(files[1]), "--affine", str(files[2])]
    first = image(scans, 1)
    assert run("match", first, first, *options, "--json", encoder=checkpoint) == 0
    facts = json.loads(capsys.readouterr().out)
    (one,) = facts["scans"]
    with files[0].open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == one["pairs"] > one["confident"] / 2 > 5
    same = [row["a_mm_z"] == row["b_mm_z"] for row in rows[:5]]
    assert all(same)
    stored = json.loads(files[2].read_text())
    assert stored["kind"] == "affine"
    assert stored["inliers"] == one["affine"]["inliers"]
    np.testing.assert_allclose(np.array(stored["matrix_xyz_ras"])[:3, :3], np.eye(3), atol=0.25)
    assert files[1].stat().st_size > 1000
    assert one["left_right_checked"] is True
    assert one["plan"] == str(files[1])


def test_scans_are_matched_in_one_pose_unless_told_otherwise(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["match", image(scans, 1), image(scans, 2), "--out", str(tmp_path / "pairs.csv")]
    encoder = str(bundled_encoder())
    found = []
    for more in ([], ["--no-align"]):
        assert run(*arguments, "--json", *more, encoder=encoder) == 0
        found += json.loads(capsys.readouterr().out)["scans"]
    assert [one["aligned"] for one in found] == [True, False]
    assert found[0]["confident"] >= found[1]["confident"]
    assert run(*arguments, encoder=encoder) == 0
    assert "in one pose" in capsys.readouterr().out


@pytest.fixture
def coarse_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small torsos count as large."""
    small = {"MOST_VOXELS": 20_000, "_WORTH_IT": 1000, "_FEWEST": 100, "_SHORTEST": 1}
    for name, value in small.items():
        monkeypatch.setattr(f"napari_s2dc.volumes.coarser.{name}", value)


@pytest.mark.usefixtures("coarse_from_here")
def test_large_scans_are_matched_coarsely_and_pairs_lie_in_their_own_voxels(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, sizes = [], []
    for more in ([], ["--full-resolution"]):
        out = tmp_path / "pairs.csv"
        arguments = ["match", image(scans, 1), image(scans, 1), "--out", str(out), "--stage", "1"]
        assert run(*arguments, *more, "--json", encoder=str(bundled_encoder())) == 0
        sizes.append(json.loads(capsys.readouterr().out)["scans"][0]["embedded_b_zyx"])
        rows = np.genfromtxt(out, delimiter=",", names=True)
        vox, mm = (
            np.stack([rows[f"a_{unit}_{axis}"] for axis in "zyx"], 1) for unit in ("vox", "mm")
        )
        affine = read_volume(image(scans, 1)).affine
        np.testing.assert_allclose(vox @ affine[:3, :3].T + affine[:3, 3], mm, atol=1e-2)
        numbers.append(len(rows))
        assert vox.max() > 32  # 48 voxels along y and x, half as many on the coarse grid
    assert numbers[0] < numbers[1] / 4
    assert sizes == [[16, 24, 24], [32, 48, 48]]
    features = tmp_path / "torso.safetensors"
    encoder = str(bundled_encoder())
    assert run("embed", image(scans, 1), "--out", str(features), encoder=encoder) == 0
    arguments = ["match", str(features), image(scans, 1), "--out", str(tmp_path / "more.csv")]
    capsys.readouterr()
    assert run(*arguments, "--json", encoder=encoder) == 0
    one = json.loads(capsys.readouterr().out)["scans"][0]
    assert one["embedded_a_zyx"] == one["embedded_b_zyx"] == [32, 48, 48]
    coarse = on_grid(read_volume(image(scans, 1)), (16, 24, 24))
    network = SwinEncoder.from_checkpoint(bundled_encoder())
    save_embedding(finish(embed_volume(coarse, network, EmbedSettings(device="cpu"))), features)
    assert run(*arguments, "--json", encoder=encoder) == 0
    one = json.loads(capsys.readouterr().out)["scans"][0]
    assert one["embedded_a_zyx"] == one["embedded_b_zyx"] == [16, 24, 24]


def test_match_takes_files_of_features_and_folders_and_skips_bad_ones(
    scans: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(scans / "images", folder)
    (folder / "broken.nii.gz").write_text("no scan")
    features = tmp_path / "torso.safetensors"
    assert run("embed", image(scans, 1), "--out", str(features), encoder=checkpoint) == 0
    out = tmp_path / "out"
    capsys.readouterr()
    assert run("match", str(features), str(folder), "--out", str(out), encoder=checkpoint) == 0
    written = capsys.readouterr()
    assert "in one pose" not in written.out  # a file of features cannot be turned
    assert sorted(path.name for path in out.iterdir()) == [
        "torso1.pairs.csv",
        "torso2.pairs.csv",
    ]
    assert "skipped" in written.err
    assert "broken.nii.gz" in written.err
    assert "confident" in written.out


def test_a_flipped_file_is_reported(
    scans: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = nibabel.load(image(scans, 1))
    flipped = nibabel.Nifti1Image(np.asarray(original.dataobj)[::-1], original.affine)
    nibabel.save(flipped, tmp_path / "flipped.nii.gz")
    options = ["--out", str(tmp_path / "pairs.csv")]
    path = str(tmp_path / "flipped.nii.gz")
    assert run("match", path, image(scans, 1), *options, encoder=checkpoint) == 0
    assert "left and right swapped" in capsys.readouterr().err
    assert run("match", image(scans, 2), image(scans, 1), *options, encoder=checkpoint) == 0
    assert "left and right swapped" not in capsys.readouterr().err


def test_self_check_prints_the_known_truth(
    scans: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["match", image(scans, 1), "--self-check", "2", "--seed", "3"]
    assert run(*arguments, encoder=checkpoint) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "found their true partner" in lines[0]
    assert "left the picture" in lines[0]
    assert run(*arguments, "--in-plane", "--json", encoder=checkpoint) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [view["seed"] for view in facts["views"]] == [3, 4]
    assert 0 <= facts["accuracy"] <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{1}"], "no scan B"),
        (["{1}", "{2}"], "--out is missing"),
        (["{1}", "{2}", "--self-check", "1"], "with itself"),
        (["{1}", "--self-check", "-1"], "--self-check must be at least 1"),
        (["{1}", "--self-check", "1", "--seed", "9" * 23], "--seed must be at least 0 and below"),
        (["{1}", "--self-check", "1", "--seed", "-1"], "--seed must be at least 0 and below"),
        (["{1}", "{2}", "--out", "x.csv", "--prior", "far"], "--prior must be a number"),
        (["{1}", "{2}", "--out", "x.csv", "--temperature", "0"], "temperature"),
        (["{1}", "{2}", "{1}", "--out", "x.csv"], "Name a folder"),
        (["missing.nii", "{2}", "--out", "x.csv"], "missing.nii"),
        (["{1}", "{2}", "--out", "pairs.txt"], "ending that is not written here"),
        (["{1}", "{2}", "--out", "x.csv", "--seed", "2"], "are for views of --self-check"),
        (["{1}", "{2}", "{1}", "--out", "d", "--plan", "x.safetensors"], "folder for --plan"),
    ],
)
def test_wrong_uses_of_match_are_one_sentence(
    arguments: list[str],
    words: str,
    scans: Path,
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"{1}": image(scans, 1), "{2}": image(scans, 2)}
    assert run("match", *(places.get(one, one) for one in arguments), encoder=checkpoint) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_settings_of_matching_reach_the_engine(
    scans: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for options in ([], ["--temperature", "0.5"], ["--prior", "anywhere"]):
        out = tmp_path / "pairs.csv"
        pair = [image(scans, 1), image(scans, 2), "--out", str(out)]
        assert run("match", *pair, *options, encoder=checkpoint) == 0
        found.append(out.read_text())
    assert len(set(found)) == 3


# ------------------------------------------------------------------------------ transfer
def test_transfer_lies_on_the_grid_of_its_scan_and_evaluate_reads_it(
    scans: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sure = tmp_path / "found.nii.gz", tmp_path / "sure.nii.gz"
    atlas = f"{image(scans, 1)}:{labels(scans, 1)}"
    options = ["--out", str(out), "--confidence", str(sure), "--json"]
    assert run("transfer", "--atlas", atlas, image(scans, 1), *options, encoder=checkpoint) == 0
    (one,) = json.loads(capsys.readouterr().out)["scans"]
    found, truth = nibabel.load(out), nibabel.load(labels(scans, 1))
    assert found.shape == truth.shape
    np.testing.assert_allclose(found.affine, truth.affine)
    assert one["classes"] == sorted(set(np.unique(truth.dataobj)) - {0})
    values = read_volume(sure).array
    assert 0 <= values.min() < values.max() <= 1
    assert main(["evaluate", str(out), labels(scans, 1), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["mean_dice"] > 0.9
    assert scores["mean_hd95_mm"] < 3.1
    assert len(scores["scans"][0]["classes"]) == len(one["classes"])


@pytest.mark.usefixtures("coarse_from_here")
def test_labels_are_carried_to_every_voxel_of_a_large_scan(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "carried.nii.gz"
    atlas = f"{image(scans, 1)}:{labels(scans, 1)}"
    arguments = ["transfer", "--atlas", atlas, image(scans, 1), "--out", str(out)]
    more = ["--stage", "1", "--sharpen-borders"]
    assert run(*arguments, *more, encoder=str(bundled_encoder())) == 0
    found, truth = (read_volume(path, labels=True) for path in (out, labels(scans, 1)))
    np.testing.assert_allclose(found.affine, truth.affine)
    body = truth.array != 0
    assert (found.array == truth.array)[body].mean() > 0.8


def test_transfer_fuses_atlases_and_takes_folders(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atlases = [
        part
        for seed in (1, 2)
        for part in ("--atlas", f"{image(scans, seed)}:{labels(scans, seed)}")
    ]
    out = tmp_path / "out"
    folder = str(scans / "images")
    assert run("transfer", folder, *atlases, "--out", str(out), encoder=BUNDLED) == 0
    assert "from 2 atlases" in capsys.readouterr().out
    names = sorted(path.name for path in find_volumes(out))
    assert names == ["torso1.labels.nii.gz", "torso2.labels.nii.gz"]
    assert main(["evaluate", str(out), str(scans / "labels")]) == 0
    assert "Mean of 2 label maps: Dice" in capsys.readouterr().out


def test_names_of_classes_are_kept_in_nrrd(scans: Path, checkpoint: str, tmp_path: Path) -> None:
    atlas = tmp_path / "atlas.seg.nrrd"
    source = read_volume(labels(scans, 1), labels=True)
    write_volume(atlas, source.array, source)
    voxels, header = nrrd.read(str(atlas))
    names = {"Segment0_Name": "skin", "Segment0_LabelValue": "1", "Segment0_Color": "1 0 0"}
    extent = {"Segment0_Extent": "0 1 0 1 0 1"}
    nrrd.write(str(atlas), voxels, {**header, **names, **extent})
    out = tmp_path / "out.nrrd"
    arguments = ["--atlas", f"{image(scans, 1)}:{atlas}", image(scans, 1), "--out", str(out)]
    assert run("transfer", *arguments, encoder=checkpoint) == 0
    written = nrrd.read_header(str(out))
    assert {name: written[name] for name in names} == names
    assert "Segment0_Extent" not in written


def test_wrong_atlases_are_one_sentence(
    scans: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.nii.gz"
    original = nibabel.load(labels(scans, 1))
    nibabel.save(nibabel.Nifti1Image(np.asarray(original.dataobj)[:20], original.affine), cut)
    counted = tmp_path / "counted.nii.gz"
    many = np.arange(original.shape[0] * 48 * 32, dtype=np.int16).reshape(original.shape) % 1002
    nibabel.save(nibabel.Nifti1Image(many, original.affine), counted)
    first = image(scans, 1)
    for atlas, words in (
        (first, "with a colon between them"),
        (f"{first}:nowhere.nii", "nowhere.nii does not exist"),
        (f"{first}:{cut}", "Both must lie on one grid"),
        (f"{labels(scans, 1)}:{first}", f"{first} looks like a scan; write SCAN:LABELS in this"),
        (f"{first}:{counted}", f"{counted} looks like a scan; write SCAN:LABELS in this"),
    ):
        arguments = ["--atlas", atlas, first, "--out", str(tmp_path / "x.nii.gz")]
        assert run("transfer", *arguments, encoder=checkpoint) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not (tmp_path / "x.nii.gz").exists()


def test_an_input_is_never_replaced(
    scans: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, mask = tmp_path / "own.nii.gz", tmp_path / "mask.nii.gz"
    shutil.copy(image(scans, 1), own)
    shutil.copy(labels(scans, 1), mask)
    before = own.read_bytes(), mask.read_bytes()
    start = ["transfer", "--atlas", f"{image(scans, 2)}:{mask}", str(own), "--out"]
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
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = nibabel.load(image(scans, 1))
    flipped = nibabel.Nifti1Image(np.asarray(original.dataobj)[::-1], original.affine)
    nibabel.save(flipped, tmp_path / "flipped.nii.gz")
    atlas = ["--atlas", f"{image(scans, 1)}:{labels(scans, 1)}"]
    found = []
    for options in ([], ["--refine", "pairs"], ["--refine", "none"], ["--sharpen-borders"]):
        out = tmp_path / "out.nii.gz"
        arguments = [*atlas, image(scans, 2), "--out", str(out), *options]
        assert run("transfer", *arguments, encoder=BUNDLED) == 0
        assert "left and right swapped" not in capsys.readouterr().err
        found.append(np.asarray(nibabel.load(out).dataobj).tobytes())
    assert len(set(found)) == 4
    target = str(tmp_path / "flipped.nii.gz")
    arguments = [*atlas, target, "--out", str(tmp_path / "mirrored.nii.gz")]
    assert run("transfer", *arguments, encoder=BUNDLED) == 0
    assert "left and right swapped" in capsys.readouterr().err


def refuse(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """Let labels of one kind of number be carried by nothing."""

    def carry(match: Match, labels: Volume, *more: Any) -> Any:
        if labels.array.dtype == kind:
            raise S2DCError("No map agrees.")
        return (yield from transfer_labels(match, labels, *more))

    monkeypatch.setattr("napari_s2dc.engine.transfer.transfer_labels", carry)


def test_what_is_doubtful_is_said_although_no_atlas_can_be_used(
    scans: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = nibabel.load(image(scans, 1))
    target = tmp_path / "flipped.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(original.dataobj)[::-1], original.affine), target)
    refuse(monkeypatch, read_volume(labels(scans, 1), labels=True).array.dtype.type)
    atlas = f"{image(scans, 1)}:{labels(scans, 1)}"
    arguments = ["--atlas", atlas, str(target), "--out", str(tmp_path / "out.nii.gz")]
    assert run("transfer", *arguments, encoder=checkpoint) == 2
    error = capsys.readouterr().err
    assert "left and right swapped" in error
    assert "No labels could be carried" in error
    assert error.count("No map agrees") == 1
    assert not (tmp_path / "out.nii.gz").exists()


def test_names_of_classes_are_those_of_an_atlas_that_was_used(
    scans: Path, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlases = []
    for kind in (np.int16, np.uint8):
        source = read_volume(labels(scans, 1), labels=True)
        path = tmp_path / f"{kind.__name__}.seg.nrrd"
        write_volume(path, source.array.astype(kind), source)
        voxels, header = nrrd.read(str(path))
        names = {"Segment0_Name": kind.__name__, "Segment0_LabelValue": "1"}
        extent = {"Segment0_Color": "1 0 0", "Segment0_Extent": "0 1 0 1 0 1"}
        nrrd.write(str(path), voxels, {**header, **names, **extent})
        atlases += ["--atlas", f"{image(scans, 1)}:{path}"]
    refuse(monkeypatch, np.int16)
    out = tmp_path / "out.nrrd"
    arguments = [*atlases, image(scans, 1), "--out", str(out)]
    assert run("transfer", *arguments, encoder=checkpoint) == 0
    assert nrrd.read_header(str(out))["Segment0_Name"] == "uint8"


# ------------------------------------------------------------------------------ evaluate
def test_evaluate_takes_the_label_map_where_it_lies_beside_its_scan(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found"
    found.mkdir()
    shutil.copy(image(scans, 1), found / "torso1.nii.gz")
    truth = read_volume(labels(scans, 1), labels=True)
    write_volume(found / "torso1.labels.nii.gz", truth.array, truth, result="label map")
    confidence = np.ones(truth.shape, np.float32)
    write_volume(found / "torso1.confidence.nii.gz", confidence, truth, result="confidence map")
    assert main(["evaluate", str(found), str(scans / "labels"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_dice"] == 1
    # Two that nothing tells apart.
    shutil.copy(labels(scans, 2), found / "torso2.nii.gz")
    shutil.copy(labels(scans, 2), found / "torso2.labels.nii.gz")
    assert main(["evaluate", str(found), str(scans / "labels")]) == 2
    assert "the same name" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".labels", ".seg", ""])
def test_evaluate_compares_folders_by_name(
    ending: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found"
    found.mkdir()
    shutil.copy(labels(scans, 1), found / f"torso1{ending}.nii.gz")
    shutil.copy(labels(scans, 2), found / "other.nii.gz")
    assert main(["evaluate", str(found), str(scans / "labels"), "--json"]) == 0
    written = capsys.readouterr()
    facts = json.loads(written.out)
    assert facts["mean_dice"] == 1
    assert [Path(one["scan"]).name for one in facts["scans"]] == [f"torso1{ending}.nii.gz"]
    assert "other.nii.gz" in written.err


def test_evaluate_says_what_it_cannot_compare(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", labels(scans, 1), str(scans / "labels")]) == 2
    assert "one is a folder" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    shutil.copy(labels(scans, 1), tmp_path / "none" / "x.nii.gz")
    assert main(["evaluate", str(tmp_path / "none"), str(scans / "labels")]) == 2
    assert "No file of" in capsys.readouterr().err
    assert main(["evaluate", labels(scans, 1), labels(scans, 2)]) == 0
    table = capsys.readouterr().out
    assert "HD95 mm" in table
    assert "mean" in table
    assert "at a tolerance of 3 mm" in table
    pair = [labels(scans, 1), labels(scans, 2)]
    assert main(["evaluate", *pair, "--tolerance", "500", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["scans"][0]["tolerance_mm"] == 500
    # All that both have is within half a metre.
    shares = [one["surface_dice"] for one in facts["scans"][0]["classes"]]
    assert set(shares) <= {0.0, 1.0}
    assert facts["mean_surface_dice"] == pytest.approx(np.mean(shares))
    assert main(["evaluate", *pair, "--tolerance", "-1"]) == 2
    assert "A tolerance of -1 mm makes no sense" in capsys.readouterr().err
