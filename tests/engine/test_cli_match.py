"""``s2dc match`` on files, and what it says about bad ones."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding_file import save_embedding
from napari_s2dc.engine.encoders import bundled_encoder
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.coarser import on_grid
from napari_s2dc.volumes.io import read_volume
from tests.engine.torso_files import image, run


def test_match_writes_pairs_plan_and_map(
    torsos: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("pairs.csv", "plan.safetensors", "map.json")]
    options = ["--out", str(files[0]), "--plan", str(files[1]), "--affine", str(files[2])]
    first = image(torsos, 1)
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


def test_pairs_of_an_oblique_file_are_where_the_guide_says(
    torsos: Path, checkpoint: str, tmp_path: Path
) -> None:
    source = nibabel.load(image(torsos, 1))
    turn = np.array(
        [[0, 0.6, 0.8, 7], [0.8, 0.48, -0.36, -3], [-0.6, 0.64, -0.48, 9], [0, 0, 0, 1]]
    )
    affine = turn @ source.affine @ np.diag([-1, 1, 1, 1])
    stored, turned = np.asarray(source.dataobj)[::-1], tmp_path / "turned.nii"
    affine[:3, 3] -= affine[:3, 0] * (stored.shape[0] - 1)
    nibabel.save(nibabel.Nifti1Image(stored, affine), turned)
    out = tmp_path / "pairs.csv"
    arguments = [image(torsos, 1), str(turned), "--no-align", "--out", str(out)]
    assert run("match", *arguments, encoder=checkpoint) == 0
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    volume = read_volume(turned)
    for row in rows[:5]:
        z, y, x = (float(row[f"b_mm_{axis}"]) for axis in "zyx")
        shown = [float(row[f"b_vox_{axis}"]) for axis in "zyx"]
        in_file = np.linalg.inv(affine) @ (-x, -y, z, 1)
        value = map_coordinates(stored.astype(float), in_file[:3, None], order=1)
        same = map_coordinates(volume.array, np.reshape(shown, (3, 1)), order=1)
        np.testing.assert_allclose(value, same, atol=0.5)


def test_scans_are_matched_in_one_pose_unless_told_otherwise(
    torsos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["match", image(torsos, 1), image(torsos, 2), "--out", str(tmp_path / "pairs.csv")]
    encoder = str(bundled_encoder())
    found = []
    for more in ([], ["--no-align"]):
        assert run(*arguments, "--json", *more, encoder=encoder) == 0
        found += json.loads(capsys.readouterr().out)["scans"]
    assert [one["aligned"] for one in found] == [True, False]
    assert found[0]["confident"] >= found[1]["confident"]
    assert run(*arguments, encoder=encoder) == 0
    assert "in one pose" in capsys.readouterr().out


@pytest.mark.usefixtures("coarse_from_here")
def test_large_scans_are_matched_coarsely_and_pairs_lie_in_their_own_voxels(
    torsos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, sizes = [], []
    for more in ([], ["--full-resolution"]):
        out = tmp_path / "pairs.csv"
        arguments = ["match", image(torsos, 1), image(torsos, 1), "--out", str(out), "--stage", "1"]
        assert run(*arguments, *more, "--json", encoder=str(bundled_encoder())) == 0
        sizes.append(json.loads(capsys.readouterr().out)["scans"][0]["embedded_b_zyx"])
        rows = np.genfromtxt(out, delimiter=",", names=True)
        vox, mm = (
            np.stack([rows[f"a_{unit}_{axis}"] for axis in "zyx"], 1) for unit in ("vox", "mm")
        )
        affine = read_volume(image(torsos, 1)).affine
        np.testing.assert_allclose(vox @ affine[:3, :3].T + affine[:3, 3], mm, atol=1e-2)
        numbers.append(len(rows))
        assert vox.max() > 32  # 48 voxels along y and x, half as many on the coarse grid
    assert numbers[0] < numbers[1] / 4
    assert sizes == [[16, 24, 24], [32, 48, 48]]
    features = tmp_path / "torso.safetensors"
    encoder = str(bundled_encoder())
    assert run("embed", image(torsos, 1), "--out", str(features), encoder=encoder) == 0
    arguments = ["match", str(features), image(torsos, 1), "--out", str(tmp_path / "more.csv")]
    capsys.readouterr()
    assert run(*arguments, "--json", encoder=encoder) == 0
    one = json.loads(capsys.readouterr().out)["scans"][0]
    assert one["embedded_a_zyx"] == one["embedded_b_zyx"] == [32, 48, 48]
    coarse = on_grid(read_volume(image(torsos, 1)), (16, 24, 24))
    network = SwinEncoder.from_checkpoint(bundled_encoder())
    save_embedding(finish(embed_volume(coarse, network, EmbedSettings(device="cpu"))), features)
    assert run(*arguments, "--json", encoder=encoder) == 0
    one = json.loads(capsys.readouterr().out)["scans"][0]
    assert one["embedded_a_zyx"] == one["embedded_b_zyx"] == [16, 24, 24]


def test_match_takes_files_of_features_and_folders_and_skips_bad_ones(
    torsos: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(torsos / "images", folder)
    (folder / "broken.nii.gz").write_text("no scan")
    features = tmp_path / "torso.safetensors"
    assert run("embed", image(torsos, 1), "--out", str(features), encoder=checkpoint) == 0
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
    torsos: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = nibabel.load(image(torsos, 1))
    flipped = nibabel.Nifti1Image(np.asarray(original.dataobj)[::-1], original.affine)
    nibabel.save(flipped, tmp_path / "flipped.nii.gz")
    options = ["--out", str(tmp_path / "pairs.csv")]
    path = str(tmp_path / "flipped.nii.gz")
    assert run("match", path, image(torsos, 1), *options, encoder=checkpoint) == 0
    assert "left and right swapped" in capsys.readouterr().err
    assert run("match", image(torsos, 2), image(torsos, 1), *options, encoder=checkpoint) == 0
    assert "left and right swapped" not in capsys.readouterr().err
    # A file of features has no intensities to register: how surely patches are matched decides.
    features = str(tmp_path / "torso.safetensors")
    assert run("embed", image(torsos, 1), "--out", features, encoder=checkpoint) == 0
    assert run("match", path, features, *options, encoder=checkpoint) == 0
    assert "left and right swapped" in capsys.readouterr().err


def test_self_check_prints_the_known_truth(
    torsos: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["match", image(torsos, 1), "--self-check", "2", "--seed", "3"]
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
    torsos: Path,
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"{1}": image(torsos, 1), "{2}": image(torsos, 2)}
    assert run("match", *(places.get(one, one) for one in arguments), encoder=checkpoint) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_told_before_matching(
    torsos: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def embedded(*_: object) -> None:
        raise AssertionError("embedded a scan whose result cannot be written")

    monkeypatch.setattr("napari_s2dc.engine.cli_embedded.EmbeddedScans.of", embedded)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    both = [image(torsos, 1), image(torsos, 2)]
    fine = ["--out", str(tmp_path / "x.csv")]
    for options, words in (
        (["--out", str(tmp_path / "folder.csv")], "folder.csv: it is a folder"),
        (["--out", str(tmp_path / "file" / "x.csv")], "is a file, not a folder"),
        ([*fine, "--plan", str(tmp_path / "file" / "plans")], "Name another place for --plan"),
    ):
        assert run("match", *both, *options, encoder=checkpoint) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    assert run("match", *both, "--out", str(tmp_path / "new"), encoder=checkpoint) == 2
    assert f"{tmp_path} may not be written to" in capsys.readouterr().err


def test_settings_of_matching_reach_the_engine(
    torsos: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for options in ([], ["--temperature", "0.5"], ["--prior", "anywhere"]):
        out = tmp_path / "pairs.csv"
        pair = [image(torsos, 1), image(torsos, 2), "--out", str(out)]
        assert run("match", *pair, *options, encoder=checkpoint) == 0
        found.append(out.read_text())
    assert len(set(found)) == 3
