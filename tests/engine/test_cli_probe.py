"""``s2dc probe`` and ``s2dc consistency`` write maps that lie where their scan lies."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from s2dc_train.config import DataConfig
from s2dc_train.sources import ScanEntry, find_scans

from napari_s2dc.engine.cli import main
from napari_s2dc.engine.embedding_file import load_embedding
from napari_s2dc.engine.probe import similarity_map
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume, write_volume
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume


@pytest.fixture(scope="module")
def checkpoint(tiny: SwinEncoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    tiny.save(path, {"token_stage": 2})
    return str(path)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan stored (x, y, z) with x to the right, off the origin, voxels of 2 x 3 x 4 mm."""
    image, _ = phantom((32, 40, 48), seed=1)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (-60.0, -70.0, 30.0)
    voxels = np.ascontiguousarray(image.array.transpose(2, 1, 0)[::-1, ::-1])
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.mark.parametrize("unit", ["vox", "mm", ""])
def test_the_heat_is_highest_where_the_point_is(
    unit: str, scan: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = read_volume(scan)
    voxel = np.array([12.0, 20.0, 28.0])
    place = volume.to_mm(voxel) if unit == "mm" else voxel
    point = ",".join(f"{value:g}" for value in place) + unit
    out = tmp_path / "heat.nii.gz"
    arguments = ["--out", str(out), "--encoder", checkpoint, "--device", "cpu", "--json"]
    assert main(["probe", str(scan), "--point", point, *arguments]) == 0
    heat, original = nibabel.load(out), nibabel.load(scan)
    assert heat.shape == original.shape
    np.testing.assert_allclose(heat.affine, original.affine)
    values = read_volume(out).array
    peak = np.unravel_index(int(values.argmax()), values.shape)
    assert tuple(int(index) // 8 for index in peak) == (1, 2, 3)
    assert values.max() > 0.85
    facts = json.loads(capsys.readouterr().out)
    assert facts["points"][0]["token"] == [1, 2, 3]
    assert facts["points"][0]["vox"] == [11.5, 19.5, 27.5]
    assert facts["points"][0]["mm"] == pytest.approx(volume.to_mm([11.5, 19.5, 27.5]).tolist())
    assert len(facts["nearest"]) == 10
    assert facts["sharpe_ratio"] > 0
    assert 0 <= facts["percentile"] <= 100
    assert facts["scans"][0]["out"] == str(out)


def test_a_point_that_begins_with_a_minus_is_a_point(
    scan: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = read_volume(scan)
    corner = volume.to_mm([0, 0, 0])
    point = ",".join(f"{value:g}" for value in corner) + "mm"
    assert "-" in point
    flipped = f"-5,{point.split(',', 1)[1]}"
    out = str(tmp_path / "heat.nii.gz")
    options = ["--out", out, "--encoder", checkpoint]
    assert main(["probe", str(scan), "--point", flipped, *options]) == 2
    assert "-5," in capsys.readouterr().err
    assert main(["probe", str(scan), "--point", point, *options]) == 0


def test_positives_negatives_and_files_of_features(
    scan: Path, checkpoint: str, tmp_path: Path
) -> None:
    features = tmp_path / "scan.safetensors"
    assert main(["embed", str(scan), "--out", str(features), "--encoder", checkpoint]) == 0
    out = tmp_path / "heat.nii.gz"
    points = ["--point", "12,20,28", "20,20,20", "--negative", "4,4,4"]
    assert main(["probe", str(features), *points, "--out", str(out)]) == 0
    embedding = load_embedding(features)
    expected = similarity_map(embedding, [(1, 2, 3), (2, 2, 2)], [(0, 0, 0)])
    heat, volume = read_volume(out), read_volume(scan)
    assert heat.shape == volume.shape
    # The file of features does not know the file of the scan, but where it lies.
    np.testing.assert_allclose(heat.affine, volume.affine, atol=1e-4)
    centres = heat.array.reshape(4, 8, 5, 8, 6, 8)[:, 3:5, :, 3:5, :, 3:5].mean((1, 3, 5))
    assert np.corrcoef(centres.ravel(), expected.ravel())[0, 1] > 0.98


def test_a_patch_of_one_scan_is_looked_for_in_others(
    scan: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, _ = phantom((32, 32, 32), seed=2)
    write_volume(tmp_path / "other.nrrd", other.array, other)
    (tmp_path / "broken.nii").write_bytes(b"")
    scans = [str(scan), str(tmp_path / "other.nrrd"), str(tmp_path / "broken.nii")]
    out = tmp_path / "maps"
    options = ["--point", "12,20,28", "--out", str(out), "--encoder", checkpoint]
    assert main(["probe", *scans, *options]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "other.similarity.nii.gz",
        "scan.similarity.nii.gz",
    ]
    assert read_volume(out / "other.similarity.nii.gz").shape == (32, 32, 32)
    captured = capsys.readouterr()
    assert "skipped" in captured.err
    assert "Nearest patches" in captured.out


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_maps_in_the_folder_of_the_scans_are_not_taken_for_scans(
    ending: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    image, _ = phantom((32, 32, 32), seed=2)
    write_volume(folder / f"scan{ending}", image.array, image)
    options = ["--encoder", checkpoint, "--device", "cpu", "--json"]
    runs = [
        ["probe", str(folder), "--point", "12,20,28", "--out", str(folder)],
        ["probe", str(folder), "--point", "12,20,28", "--out", str(folder / f"heat{ending}")],
        ["consistency", str(folder), "--views", "1", "--out", str(folder / f"map{ending}")],
        ["embed", str(folder)],
        ["embed", str(folder)],
    ]
    for run in runs:
        capsys.readouterr()
        assert main([*run, *options]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert [entry["scan"] for entry in facts["scans"]] == [str(folder / f"scan{ending}")]
    assert main([*runs[-1], *options]) == 0
    told = capsys.readouterr().err
    assert f"left out {folder / 'scan.similarity.nii.gz'}: it is a similarity map that s2dc" in told
    assert f"left out {folder / f'map{ending}'}: it is a consistency map that s2dc wrote" in told
    # named, it is taken
    assert main(["embed", str(folder / f"heat{ending}"), *options]) == 0
    assert find_scans(DataConfig(path=str(folder))) == [ScanEntry(folder / f"scan{ending}")]


def test_of_a_single_patch_there_are_no_figures(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = phantom((32, 32, 32), seed=2)
    part = np.ascontiguousarray(image.array[12:20, 12:20, 12:20].transpose(2, 1, 0))
    path = tmp_path / "small.nii"
    nibabel.save(nibabel.Nifti1Image(part, np.eye(4)), path)
    out = tmp_path / "heat.nii.gz"
    arguments = ["probe", str(path), "--point", "4,4,4", "--out", str(out)]
    assert main([*arguments, "--encoder", checkpoint]) == 0
    captured = capsys.readouterr()
    assert "only one patch of tissue" in captured.err
    assert "Use an earlier --stage" in captured.err
    assert captured.out == f"{out}: similarity to 4,4,4\n"
    assert main([*arguments, "--encoder", checkpoint, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["sharpe_ratio"], facts["percentile"], facts["nearest"]) == (None, None, [])


@pytest.mark.parametrize("seed", ["-1", "4294967296", "9" * 23])
def test_a_seed_that_generators_do_not_take(
    seed: str, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["consistency", str(scan), "--out", str(tmp_path / "c.nii"), "--seed", seed]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error == (
        f"s2dc: error: --seed must be at least 0 and below 4294967296, not {int(seed)}.\n"
    )


def test_a_point_in_air_is_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = phantom((32, 40, 48), seed=1)
    voxels = np.pad(image.array, ((0, 0), (0, 0), (0, 96)), constant_values=-1000)
    path = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0)[::-1, ::-1], np.eye(4)), path)
    out = str(tmp_path / "heat.nii.gz")
    options = ["--out", out, "--encoder", checkpoint]
    assert main(["probe", str(path), "--point", "16,20,140", *options]) == 2
    assert "lies in the air of scan" in capsys.readouterr().err
    assert main(["probe", str(path), "--point", "16,20,24", *options]) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--point", "1,2"], "is no point"),
        (["--point", "1,2,3cm"], "is no point"),
        (["--point", "12,20,400"], "lies outside scan"),
        (["--point", "12,20,28", "--negative", "0,0,9e3mm"], "lies outside scan"),
        (["--point", "12,20,28", "--out", "{tmp}/file/heat.nii.gz"], "Cannot write"),
    ],
)
def test_errors_are_one_line(
    options: list[str],
    sentence: str,
    scan: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    options = [part.format(tmp=tmp_path) for part in options]
    if "--out" not in options:
        options += ["--out", str(tmp_path / "heat.nii.gz")]
    assert main(["probe", str(scan), *options, "--encoder", checkpoint]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("s2dc: error: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err
    assert not (tmp_path / "heat.nii.gz").exists()


def test_features_of_another_encoder_are_not_compared(
    scan: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(9)
    SwinEncoder.from_size("tiny", window_size=4).save(tmp_path / "other-encoder.safetensors")
    for name, encoder in (
        ("one", checkpoint),
        ("two", str(tmp_path / "other-encoder.safetensors")),
    ):
        out = str(tmp_path / f"{name}.safetensors")
        assert main(["embed", str(scan), "--out", out, "--encoder", encoder]) == 0
    both = [str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors")]
    assert main(["probe", *both, "--point", "12,20,28", "--out", str(tmp_path / "maps")]) == 0
    assert "by another encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--encoder", "S2DC tiny"], "by another encoder than --encoder S2DC tiny."),
        (["--stage", "1"], "holds features of stage 2, not of --stage 1."),
    ],
)
def test_options_that_a_file_of_features_does_not_follow_are_refused(
    more: list[str],
    sentence: str,
    scan: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    features, out = str(tmp_path / "scan.safetensors"), str(tmp_path / "heat.nii.gz")
    made = ["--encoder", checkpoint, "--stage", "2"]
    assert main(["embed", str(scan), "--out", features, *made]) == 0
    probe = ["probe", features, "--point", "12,20,28", "--out", out]
    assert main([*probe, *made]) == 0
    assert main([*probe, *more]) == 2
    assert f"s2dc: error: {features} " in (error := capsys.readouterr().err)
    assert sentence in error


def test_consistency_lies_on_the_grid_of_the_scan(
    scan: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.nii.gz"
    options = ["--views", "2", "--stage", "1", "--encoder", checkpoint, "--json"]
    assert main(["consistency", str(scan), "--out", str(out), *options]) == 0
    facts = json.loads(capsys.readouterr().out)["scans"][0]
    found, volume = read_volume(out), read_volume(scan)
    assert isinstance(found, Volume)
    assert found.shape == volume.shape
    np.testing.assert_allclose(found.affine, volume.affine)
    known = np.isfinite(found.array)
    assert known.mean() * found.array.size / 64 == pytest.approx(facts["tokens_known"], rel=1e-6)
    assert found.array[known].mean() == pytest.approx(facts["mean"], abs=0.05)


def test_a_scan_too_small_for_neighbours_is_one_sentence(
    scan: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "map.nii.gz")
    options = ["--views", "1", "--stage", "4", "--encoder", checkpoint, "--out", out]
    assert main(["consistency", str(scan), *options]) == 2
    assert "too small" in capsys.readouterr().err
    assert main(["consistency", str(scan), *options, "--views", "0"]) == 2
    assert "--views must be at least 1" in capsys.readouterr().err
