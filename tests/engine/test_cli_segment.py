"""``s2dc segment``: label maps on the grid of their scans, resumed, and by several processes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from napari_s2dc._reader import read_path
from napari_s2dc._writer import write_layer
from napari_s2dc.engine import segment
from napari_s2dc.engine.cli import main
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.segment import segment_volume
from napari_s2dc.engine.segment_files import SegmentationFiles, maker_name, unlike_training
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.results import maker_of, result_in
from napari_s2dc.volumes.segments import segments_in
from napari_s2dc.volumes.volume import Volume


@pytest.fixture(scope="module")
def model(labelled_folder: Path, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model.safetensors"
    folders = [f"--{kind}={labelled_folder / kind}Tr" for kind in ("images", "labels")]
    options = ["--mode=quick", "--quick.steps=12", "--shots=1", "--device=cpu"]
    assert main(["finetune", *folders, *options, f"--encoder={checkpoint}", f"--out={out}"]) == 0
    return out


@pytest.fixture
def scans(labelled_folder: Path, tmp_path: Path) -> Path:
    """Two scans, one of them in a subfolder, and a file that is none."""
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(labelled_folder / "imagesTr" / "torso1.nii.gz", folder / "one.nii.gz")
    shutil.copy(labelled_folder / "imagesTr" / "torso2.nii.gz", folder / "sub" / "two.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"not a scan")
    return folder


def run(scans: Path, model: Path, out: Path, *more: str) -> int:
    options = ["--model", str(model), "--out", str(out), "--device", "cpu"]
    return main(["segment", str(scans), *options, *more])


def facts_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_a_label_map_lies_on_the_grid_of_its_scan_and_is_the_engine_s(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = scans / "one.nii.gz", tmp_path / "found.nii.gz"
    assert run(scan, model, out, "--uncertainty") == 0
    assert str(out) in capsys.readouterr().out
    image, written = nibabel.load(scan), nibabel.load(out)
    np.testing.assert_array_equal(written.affine, image.affine)
    assert written.shape == image.shape
    network = SegmentationModel.load(model)
    expected = finish(segment_volume(read_volume(scan), network, device="cpu"))
    assert len(np.unique(expected.labels)) > 1
    np.testing.assert_array_equal(read_volume(out, labels=True).array, expected.labels)
    unsure = read_volume(tmp_path / "found.uncertainty.nii.gz")
    np.testing.assert_array_equal(unsure.array, expected.uncertainty.astype(np.float32))
    assert result_in(out) == "label map"
    assert result_in(unsure.path) == "uncertainty map"
    assert maker_of(unsure.path) == maker_name(network, network.segment)
    assert maker_of(out).startswith(maker_of(unsure.path))


def test_nrrd_has_the_names_of_the_classes(scans: Path, model: Path, tmp_path: Path) -> None:
    assert run(scans, model, tmp_path / "out", "--format", "nrrd") == 0
    found = read_volume(tmp_path / "out" / "sub" / "two.seg.nrrd", labels=True)
    classes = SegmentationModel.load(model).classes
    named = {label: name for label, (name, _) in segments_in(found).items()}
    assert named == {one.label: one.name for one in classes}
    assert "first organ" in named.values()


def test_a_folder_is_gone_through_and_bad_files_are_reported(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scans, model, tmp_path / "out", "--json") == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert [Path(one["scan"]).name for one in facts["skipped"]] == ["broken.nii.gz"]
    assert "skipped" in captured.err
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [one["out"] for one in facts["scans"]] == [str(path) for path in written]
    assert written[1] == tmp_path / "out" / "sub" / "two.labels.nii.gz"
    assert [one["name"] for one in facts["model"]["classes"]] == ["first organ", "class 3"]
    counted = facts["scans"][0]["voxels"]
    array = read_volume(written[0], labels=True).array
    assert {int(label): count for label, count in counted.items()} == {
        label: int((array == label).sum()) for label in (1, 3) if (array == label).any()
    }
    only_bad = scans / "broken.nii.gz"
    assert run(only_bad, model, tmp_path / "out") == 2


def kept(capsys: pytest.CaptureFixture[str]) -> dict[str, bool]:
    return {Path(one["scan"]).name: one["kept"] for one in facts_of(capsys)["scans"]}


def test_a_half_done_folder_is_resumed(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(scans, model, out) == 0
    capsys.readouterr()
    (out / "one.labels.nii.gz").unlink()
    before = (out / "sub" / "two.labels.nii.gz").stat()
    assert run(scans, model, out, "--json") == 0
    captured = capsys.readouterr()
    assert "1 of 3 label maps were there already" in captured.err
    facts = {Path(one["scan"]).name: one["kept"] for one in json.loads(captured.out)["scans"]}
    assert facts == {"one.nii.gz": False, "two.nii.gz": True}
    assert (out / "sub" / "two.labels.nii.gz").stat().st_mtime_ns == before.st_mtime_ns

    # What the model would not have made like this is made again: a file that was cut short,
    content = (out / "one.labels.nii.gz").read_bytes()
    (out / "one.labels.nii.gz").write_bytes(content[:500])
    assert run(scans, model, out, "--json") == 0
    assert kept(capsys) == {"one.nii.gz": False, "two.nii.gz": True}
    # of a scan that has changed since,
    later = before.st_mtime + 60
    os.utime(scans / "sub" / "two.nii.gz", (later, later))
    assert run(scans, model, out, "--json") == 0
    assert kept(capsys) == {"one.nii.gz": True, "two.nii.gz": False}
    # of other settings, or without the map that is asked for now.
    earlier = before.st_mtime - 60
    os.utime(scans / "sub" / "two.nii.gz", (earlier, earlier))
    for option in ("--largest-component", "--uncertainty"):
        assert run(scans, model, out, "--json", option) == 0
        assert not any(kept(capsys).values())
        assert run(scans, model, out, "--json", option) == 0
        assert all(kept(capsys).values())


def test_results_of_another_model_are_replaced(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = scans / "one.nii.gz", tmp_path / "one.nii.gz"
    assert run(scan, model, out) == 0
    network = SegmentationModel.load(model)
    network.tensors["second.bias"][0] += 1.0
    other = network.save(tmp_path / "other.safetensors")
    capsys.readouterr()
    assert run(scan, other, out, "--json") == 0
    assert kept(capsys) == {"one.nii.gz": False}
    assert maker_of(out).startswith(maker_name(network, network.segment))


def test_what_was_changed_by_a_program_that_keeps_headers_is_kept(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = scans / "one.nii.gz", tmp_path / "one.nii.gz"
    assert run(scan, model, out) == 0
    found = nibabel.load(out)
    labels = np.asarray(found.dataobj).copy()
    labels[0, 0, 0] += 1
    nibabel.save(nibabel.Nifti1Image(labels, found.affine, found.header), out)
    assert maker_of(out)
    assert run(scan, model, out) == 2
    assert "was changed since: kept" in capsys.readouterr().err
    assert np.array_equal(nibabel.load(out).dataobj, labels)


def test_what_no_model_has_written_is_kept(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = scans / "one.labels.nii.gz"
    image = nibabel.load(scans / "one.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones(image.shape, np.uint8), image.affine), drawn)
    before = drawn.read_bytes()
    assert run(scans / "one.nii.gz", model, drawn) == 2  # the only scan
    assert f"{drawn} was not made by s2dc segment" in capsys.readouterr().err
    assert run(scans, model, scans) == 0
    told = capsys.readouterr().err
    assert f"skipped {scans / 'one.nii.gz'}: {drawn} was not made by s2dc segment" in told
    assert "--overwrite" in told
    assert drawn.read_bytes() == before
    assert run(scans, model, scans, "--overwrite", "--json") == 0
    assert kept(capsys) == {"one.nii.gz": False, "two.nii.gz": True}
    assert result_in(drawn) == "label map"
    # The map beside the labels is no less somebody's.
    unsure = tmp_path / "out" / "one.uncertainty.nii.gz"
    unsure.parent.mkdir()
    unsure.write_bytes(b"notes of somebody")
    assert run(scans, model, unsure.parent, "--uncertainty") == 0
    assert f"{unsure} was not made by s2dc segment" in capsys.readouterr().err
    assert [path.name for path in unsure.parent.iterdir() if path.is_file()] == [unsure.name]


@pytest.mark.parametrize("name", ["one.labels.nii.gz", "one.seg.nrrd"])
def test_a_result_that_was_corrected_in_napari_is_kept(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from napari.layers import Labels

    out = tmp_path / name
    assert run(scans / "one.nii.gz", model, out) == 0
    [(labels, keywords, kind)] = read_path(str(out))
    assert kind == "labels"
    labels[0] = 7
    data, state, _ = Labels(labels, **keywords).as_layer_data_tuple()
    write_layer(str(out), data, state)
    assert maker_of(out) == result_in(out) == ""
    corrected = out.read_bytes()
    capsys.readouterr()
    assert run(scans / "one.nii.gz", model, out) == 2
    assert "or was changed since: kept" in capsys.readouterr().err
    assert out.read_bytes() == corrected


def test_ctrl_c_leaves_whole_files_and_the_next_run_goes_on(
    scans: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segmented: list[str] = []

    def until_the_second(volume: Any, *more: Any, **settings: Any) -> Any:
        if segmented:
            raise KeyboardInterrupt
        segmented.append(volume.name)
        return segment_volume(volume, *more, **settings)

    (scans / "broken.nii.gz").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(segment, "segment_volume", until_the_second)
        assert run(scans, model, tmp_path / "out") == 130
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 1
    capsys.readouterr()
    assert run(scans, model, tmp_path / "out", "--json") == 0
    assert kept(capsys) == {"one.nii.gz": True, "two.nii.gz": False}


@pytest.mark.slow
def test_several_devices_write_the_same_files(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scans, model, tmp_path / "alone", "--uncertainty", "--json") == 0
    alone = facts_of(capsys)
    assert run(scans, model, tmp_path / "two", "--uncertainty", "--json", "--devices", "2") == 0
    shared = facts_of(capsys)
    names = sorted(path.name for path in (tmp_path / "alone").rglob("*.nii.gz"))
    assert len(names) == 4
    for path in (tmp_path / "alone").rglob("*.nii.gz"):
        one, other = (
            nibabel.load(folder / path.relative_to(tmp_path / "alone"))
            for folder in (tmp_path / "alone", tmp_path / "two")
        )
        assert one.header == other.header
        # Products may round otherwise where matrices lie elsewhere in memory.
        np.testing.assert_allclose(np.asarray(other.dataobj), np.asarray(one.dataobj), atol=1e-5)
    assert [one["voxels"] for one in shared["scans"]] == [one["voxels"] for one in alone["scans"]]
    assert shared["skipped"] == alone["skipped"]


def test_a_scan_of_another_kind_is_told(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nibabel.load(scans / "one.nii.gz")
    voxels = np.abs(image.get_fdata()).astype(np.float32) + 200
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([9.0, 9.0, 9.0, 1])), tmp_path / "mr.nii.gz")
    assert run(tmp_path / "mr.nii.gz", model, tmp_path / "out.nii.gz") == 0
    told = capsys.readouterr().err
    assert "is MR and the model was trained on CT" in told
    assert "voxels of 9 × 9 × 9 mm and the model was trained at 4 × 4 × 4 mm" in told


@pytest.mark.parametrize(("sides", "told"), [((4, 4, 8), True), ((4, 4, 5), False)])
def test_voxels_twice_as_long_are_told(
    sides: tuple[float, float, float], told: bool, model: Path
) -> None:
    scan = Volume(np.zeros((4, 4, 4), np.float32), np.diag([*sides, 1.0]), modality="ct")
    warning = unlike_training(scan, SegmentationModel.load(model))
    assert ("voxels of 4 × 4 × 8 mm" in warning) == bool(warning) == told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "{scans}/one.nii.gz"], "one.nii.gz is damaged or holds no segmentation model"),
        (["--model", "{scans}/none.safetensors"], "Cannot read"),
        (["--out", "{tmp}/all.nii.gz"], "one file, but there are 3 scans"),
        (["--out", "{tmp}/x.mha"], "has an ending that is not written here"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    scans: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    more = [part.format(scans=scans, tmp=tmp_path) for part in arguments]
    assert run(scans, model, tmp_path / "out", *more) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("s2dc: error: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err


def test_more_devices_than_there_are_is_refused(
    scans: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    more = ("--devices", "3", "--device", "cuda")
    assert run(scans, model, tmp_path / "out", *more) == 2
    assert "--devices 3: this computer has 1 of CUDA" in capsys.readouterr().err


def test_mirror_images_are_refused_by_a_quick_model(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scans / "one.nii.gz", model, tmp_path / "x.nii.gz", "--flips") == 2
    assert "mirror images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "uncertainty"),
    [
        ("a.labels.nii.gz", "a.uncertainty.nii.gz"),
        ("a.seg.nrrd", "a.uncertainty.nrrd"),
        ("a.b.nii", "a.b.uncertainty.nii"),
        (".NII.gz.nii.gz", ".NII.gz.uncertainty.nii.gz"),
    ],
)
def test_the_uncertainty_is_named_after_the_label_map(labels: str, uncertainty: str) -> None:
    assert SegmentationFiles(Path(labels)).uncertainty == Path(uncertainty)
