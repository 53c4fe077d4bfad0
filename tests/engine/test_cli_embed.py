"""``s2dc embed``: files and folders become files of features; bad ones are skipped, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from napari_s2dc.engine.cli import main
from napari_s2dc.engine.cli_scans import scans_in
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding_file import load_embedding
from napari_s2dc.engine.encoders import ANY_CONTRAST, remember_local_run
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume, write_volume
from napari_s2dc.volumes.phantom import phantom


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scans of the same name, a label map and a file that is broken."""
    for seed, name in ((1, "a/scan.nii.gz"), (2, "b/scan.nrrd")):
        image, labels = phantom((32, 32, 32), seed=seed)
        write_volume(tmp_path / "scans" / name, image.array, image)
    write_volume(tmp_path / "scans" / "a" / "scan_seg.nii.gz", labels.array, labels)
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"not a scan")
    return tmp_path / "scans"


@pytest.fixture
def checkpoint(tiny: SwinEncoder, tmp_path: Path) -> Path:
    tiny.save(tmp_path / "run" / "encoder.safetensors", {"name": "run", "token_stage": 2})
    return tmp_path / "run"


def test_a_scan_becomes_the_file_that_is_named(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = folder / "a" / "scan.nii.gz", tmp_path / "out.safetensors"
    arguments = [str(scan), "--out", str(out), "--encoder", str(checkpoint), "--device", "cpu"]
    assert main(["embed", *arguments]) == 0
    found = load_embedding(out)
    encoder = SwinEncoder.from_checkpoint(checkpoint / "encoder.safetensors")
    expected = finish(embed_volume(read_volume(scan), encoder, EmbedSettings(device="cpu")))
    assert torch.equal(found.features, expected.features)
    assert found.name == "scan"
    assert found.metadata["encoder"] == "run"
    printed = capsys.readouterr().out
    assert "4 x 4 x 4 tokens of 8 voxels, 48 channels, ct," in printed


def test_a_bundled_encoder_is_taken_by_its_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = str(folder / "a" / "scan.nii.gz"), tmp_path / "out.safetensors"
    assert main(["embed", scan, "--out", str(out), "--encoder", ANY_CONTRAST.upper()]) == 0
    assert load_embedding(out).metadata["encoder"] == ANY_CONTRAST
    assert load_embedding(out).metadata["borders"]
    capsys.readouterr()
    assert main(["embed", scan, "--out", str(out), "--encoder", "S2DC huge"]) == 2
    told = capsys.readouterr().err
    assert "There is no run folder or checkpoint file S2DC huge." in told
    assert ANY_CONTRAST in told


def test_a_folder_becomes_a_folder_and_bad_files_are_skipped(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--out", str(out), "--encoder", str(checkpoint), "--stage", "3", "--json"]
    assert main(["embed", str(folder), *options]) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    assert written == ["a/scan.embedding.safetensors", "b/scan.embedding.safetensors"]
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert [entry["out"] for entry in facts["scans"]] == [str(out / name) for name in written]
    assert facts["scans"][0]["token_side_vox"] == 16
    assert facts["encoder"]["name"] == "run"
    (skipped,) = facts["skipped"]
    assert skipped["scan"] == str(folder / "broken.nii.gz")
    assert f"s2dc: skipped {folder / 'broken.nii.gz'}: " in captured.err
    assert captured.err.count("broken.nii.gz") == 1


def test_without_out_features_lie_beside_the_scan(folder: Path, checkpoint: Path) -> None:
    scan = folder / "b" / "scan.nrrd"
    assert main(["embed", str(scan), "--encoder", str(checkpoint)]) == 0
    assert (folder / "b" / "scan.embedding.safetensors").is_file()


def test_the_default_encoder_is_the_latest_run(
    folder: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("napari_s2dc.engine.encoders.files", lambda _: tmp_path / "package")
    scan = folder / "b" / "scan.nrrd"
    assert main(["embed", str(scan)]) == 2
    assert "bundled encoder is missing" in capsys.readouterr().err
    remember_local_run(checkpoint / "encoder.safetensors")
    assert main(["embed", str(scan)]) == 0


def test_none_that_works_is_exit_code_2(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.nii.gz").write_bytes(b"")
    broken = [str(folder / "broken.nii.gz"), str(tmp_path / "other.nii.gz")]
    options = ["--encoder", str(checkpoint), "--json", "--out", str(tmp_path / "out")]
    assert main(["embed", *broken, *options]) == 2
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["skipped"]) == 2
    assert captured.err.count("s2dc: skipped ") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{scans}/broken.nii.gz"], "broken.nii.gz"),
        (["{scans}/missing.nii.gz"], "does not exist"),
        (["{run}"], "holds no scan"),
        (["{scans}", "--out", "x.safetensors"], "one file, but there are 3 scans"),
        (["{scans}", "--preset", "xray"], "no intensity preset 'xray'"),
        (["{scans}/a/scan.nii.gz", "--stage", "9"], "no encoder stage 9"),
        (["{scans}/a/scan.nii.gz", "--encoder", "{scans}"], "holds neither"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    folder: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [part.format(scans=folder, run=checkpoint) for part in arguments]
    if "--encoder" not in arguments:
        arguments += ["--encoder", str(checkpoint)]
    assert main(["embed", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("s2dc: error: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err


def test_a_scan_unlike_the_training_is_told(
    tiny: SwinEncoder, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tmp_path / "mr.safetensors", {"preprocessing": {"preset": "mr"}})
    scan = folder / "a" / "scan.nii.gz"
    assert main(["embed", str(scan), "--encoder", str(tmp_path / "mr.safetensors")]) == 0
    assert "is CT and the encoder was trained on MR" in capsys.readouterr().err


def test_equal_names_are_told_apart(folder: Path) -> None:
    both = scans_in([str(folder / "a" / "scan.nii.gz"), str(folder / "b" / "scan.nrrd")])
    assert [str(scan.name) for scan in both] == ["scan", "scan-2"]
