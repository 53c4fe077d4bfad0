"""``s2dc finetune``: labelled scans in, a model file out; Ctrl-C keeps what was learned."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from napari_s2dc.engine import fewshot
from napari_s2dc.engine.cli import main
from napari_s2dc.engine.encoders import default_encoder
from napari_s2dc.engine.fewshot_settings import (
    FewshotSettings,
    FinetuneSettings,
    QuickSettings,
    write_settings,
)
from napari_s2dc.engine.finetune import FinetuneRun
from napari_s2dc.engine.labelled_scans import LabelledScan
from napari_s2dc.engine.progress import Progress, StopTraining, TrainingProgress
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.segments import segment_fields
from napari_s2dc.volumes.writing import write_volume

QUICK = ("--mode", "quick", "--quick.steps", "12", "--device", "cpu")


def run(folder: Path, out: Path, checkpoint: str, *more: str) -> int:
    folders = ("--images", str(folder / "imagesTr"), "--labels", str(folder / "labelsTr"))
    return main(["finetune", *folders, "--encoder", checkpoint, "--out", str(out), *more])


def facts_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_a_folder_becomes_a_model_with_names_and_provenance(
    labelled_folder: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "model.safetensors"
    assert run(labelled_folder, out, checkpoint, *QUICK, "--held-out", "1", "--json") == 0
    facts = facts_of(capsys)
    model = SegmentationModel.load(out)
    assert [(one.label, one.name) for one in model.classes] == [(1, "first organ"), (3, "class 3")]
    assert [one["name"] for one in facts["classes"]] == ["first organ", "class 3"]
    assert (facts["kind"], facts["steps"], facts["interrupted"]) == ("quick", 12, False)
    assert facts["settings"]["zero"] == "background"
    names = {Path(path).name.partition(".")[0] for path in facts["scans"]}
    assert len(names) == 2
    assert {one["name"] for one in model.metadata["scans"]} == names
    assert len(facts["held_out"]) == 1
    assert 0 <= model.metadata["metrics"]["held_out"]["dice"] <= 1
    assert facts["metrics"] == model.metadata["metrics"]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_text_says_what_is_learned_and_how_it_went(
    labelled_folder: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    assert run(labelled_folder, out, checkpoint, *QUICK, "--shots", "1", "--held-out", "1") == 0
    printed, told = capsys.readouterr()
    assert "first organ" in printed
    assert f"{out} (quick): 2 classes from 1 scan, 12 steps, loss " in printed
    assert "Mean of 1 scan set aside: Dice " in printed
    assert "background" not in told
    assert "single voxel" not in told


def test_labels_that_teach_little_are_told(
    labelled_folder: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, truth = (labelled_folder / kind / "torso1.nii.gz" for kind in ("imagesTr", "labelsTr"))
    image = nibabel.load(truth)
    labels = np.asarray(image.dataobj).astype(np.uint8)
    labels.flat[0] = 9
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), tmp_path / "labels.nii.gz")
    files = ["--images", str(scan), "--labels", str(tmp_path / "labels.nii.gz")]
    options = ["--out", str(tmp_path / "m.safetensors"), "--encoder", checkpoint, *QUICK, "--json"]
    assert main(["finetune", *files, *options, "--zero", "unlabelled"]) == 0
    told = capsys.readouterr().err
    assert "s2dc: Label 9 (class 9) has a single voxel, too little to learn it from.\n" in told
    assert "s2dc: No class means background, so what looks like unlabelled" in told
    assert told.count("s2dc: ") == 2
    assert main(["finetune", *files, *options, "--zero", "unlabelled", "--background", "1"]) == 0
    assert "No class means background" not in capsys.readouterr().err


def test_shots_are_nested_and_what_is_set_aside_stays(
    labelled_folder: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {}
    for shots in (1, 2):
        more = ("--shots", str(shots), "--held-out", "1", "--seed", "4", "--json")
        assert run(labelled_folder, tmp_path / "m.safetensors", checkpoint, *QUICK, *more) == 0
        chosen[shots] = facts_of(capsys)
    assert set(chosen[1]["scans"]) < set(chosen[2]["scans"])
    assert chosen[2]["scans"] == sorted(chosen[2]["scans"])
    assert chosen[1]["held_out"] == chosen[2]["held_out"]
    assert not set(chosen[2]["scans"]) & set(chosen[2]["held_out"])


def test_the_window_s_configuration_is_read_and_options_win(
    labelled_folder: Path, checkpoint: str, tmp_path: Path
) -> None:
    exported = FewshotSettings(
        background=3, device="cpu", seed=5, quick=QuickSettings(hidden=8, steps=9)
    )
    write_settings(exported, tmp_path / "settings.yaml")
    config = ("--config", str(tmp_path / "settings.yaml"))
    out = tmp_path / "model.safetensors"
    files = [f"{labelled_folder / kind / 'torso1.nii.gz'}" for kind in ("imagesTr", "labelsTr")]
    arguments = ["finetune", "--images", files[0], "--labels", files[1], "--encoder", checkpoint]
    assert main([*arguments, *config, "--out", str(out)]) == 0
    model = SegmentationModel.load(out)
    assert [one.label for one in model.classes] == [1]  # 3 is background, 0 is unlabelled
    kept = model.metadata["settings"]
    assert (kept["mode"], kept["zero"], kept["seed"]) == ("quick", "unlabelled", 5)
    assert kept["quick"]["hidden"] == 8
    assert main([*arguments, *config, "--quick.hidden", "4", "--out", str(out)]) == 0
    kept = SegmentationModel.load(out).metadata["settings"]
    assert (kept["quick"]["hidden"], kept["quick"]["steps"]) == (4, 9)


def test_the_same_seed_gives_the_same_model(
    labelled_folder: Path, checkpoint: str, tmp_path: Path
) -> None:
    names = []
    for number in (1, 2):
        out = tmp_path / f"{number}.safetensors"
        assert run(labelled_folder, out, checkpoint, *QUICK, "--shots", "1") == 0
        model = SegmentationModel.load(out)
        names.append(model.fingerprint(model.segment))
    assert names[0] == names[1]


def test_fine_tuning_writes_a_network(
    labelled_folder: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    more = ("--finetune.steps=2", "--finetune.crop_vox=32", "--device=cpu", "--shots=1", "--json")
    assert run(labelled_folder, out, checkpoint, *more) == 0
    assert facts_of(capsys)["kind"] == "finetune"  # the command's default
    assert SegmentationModel.load(out).kind == "finetune"


def test_labels_are_carried_to_the_scans_of_the_folder_that_are_not_learned_from(
    labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, bundled = labelled_folder / "imagesTr", str(default_encoder())
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    more = ("--finetune.steps=1", "--finetune.crop_vox=32", "--device=cpu", "--shots=1")
    more += ("--held-out=1", "--unlabelled", str(images), str(broken))
    out = tmp_path / "model.safetensors"
    assert run(labelled_folder, out, bundled, *more, "--json") == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    own = {Path(path).name.partition(".")[0] for path in (*facts["scans"], *facts["held_out"])}
    assert set(facts["unlabelled_scans"]) == {"torso1", "torso2", "torso3"} - own
    place = f"{tmp_path.name}/broken.nii.gz"
    assert f"No labels could be carried to {place}: " in printed.err
    assert SegmentationModel.load(out).metadata["left_out"] == facts["left_out"]
    assert str(tmp_path.parent) not in str(facts["left_out"])


def test_unlabelled_scans_must_be_others_and_are_not_for_quick(
    labelled_folder: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, images = tmp_path / "model.safetensors", str(labelled_folder / "imagesTr")
    assert run(labelled_folder, out, checkpoint, "--unlabelled", images) == 2
    assert "no scan but those that are learned from" in capsys.readouterr().err
    more = ("--shots", "1", "--unlabelled", images)
    assert run(labelled_folder, out, checkpoint, *QUICK, *more) == 2
    assert "Use --mode finetune" in capsys.readouterr().err
    assert run(labelled_folder, out, checkpoint, "--unlabelled", images, "nowhere") == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert not out.exists()


def test_scans_without_labels_are_told_and_how_they_could_be_used(
    labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = labelled_folder / "imagesTr", tmp_path / "labels"
    labels.mkdir()
    shutil.copy(labelled_folder / "labelsTr" / "torso1.nii.gz", labels)
    left_out = f"2 of 3 scans in {images} have no labels in {labels}: left out"
    asked = ["finetune", "--images", str(images), "--labels", str(labels), "--encoder", "nowhere"]
    asked += ["--out", str(tmp_path / "model.safetensors")]
    for more, told in (
        ([], f"{left_out} (--unlabelled {images} would carry labels to them"),
        (["--mode", "quick"], f"{left_out}\n"),
        (["--unlabelled", str(images / "torso2.nii.gz")], "1 of 3 scans in "),
        (["--unlabelled", str(images)], ""),
    ):
        assert main([*asked, *more]) == 2  # there is no such encoder
        printed = capsys.readouterr().err
        assert told in printed
        assert ("no labels in" in printed) == bool(told)


def test_channels_of_labelled_scans_are_no_scans_to_carry_labels_to(
    labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    for number in (1, 2):
        name = f"torso{number}.nii.gz"
        for folder, copy in (
            (images, f"{number}_0000.nii.gz"),
            (images, f"{number}_0001.nii.gz"),
            (labels, f"{number}.nii.gz"),
        ):
            folder.mkdir(exist_ok=True)
            original = labelled_folder / ("imagesTr" if folder is images else "labelsTr")
            shutil.copy(original / name, folder / copy)
    asked = ["--images", str(images), "--labels", str(labels), "--encoder", "nowhere"]
    out = str(tmp_path / "model.safetensors")
    assert main(["finetune", *asked, "--shots", "1", "--out", out]) == 2
    left_out = f"2 of 4 scans in {images} have no labels in {labels}: left out\n"
    assert left_out in capsys.readouterr().err


def test_a_real_training_that_is_stopped_gives_a_model(
    labelled_folder: Path, tiny: SwinEncoder
) -> None:
    paths = [labelled_folder / f"{kind}Tr" / "torso1.nii.gz" for kind in ("images", "labels")]
    scan = LabelledScan(read_volume(paths[0]), read_volume(paths[1], labels=True))
    finetune = FinetuneSettings(crop_vox=32)
    settings = FewshotSettings("finetune", "background", device="cpu", finetune=finetune)
    steps = fewshot.train_model([scan], tiny, settings)
    while not isinstance(next(steps), TrainingProgress):
        pass
    with pytest.raises(StopIteration) as ended:
        steps.throw(StopTraining())
    assert ended.value.value.kind == "finetune"
    assert ended.value.value.metadata["scans"][0]["name"] == "torso1"


def test_a_training_that_fails_leaves_the_best_so_far(
    labelled_folder: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = FinetuneRun._step

    def fails_at_last(run: FinetuneRun) -> float:
        if run.steps_done == 2:
            raise S2DCError("The loss is no number any more at step 3.", "Lower the rate.")
        return step(run)

    monkeypatch.setattr(FinetuneRun, "_step", fails_at_last)
    out = tmp_path / "model.safetensors"
    more = ("--finetune.steps=5", "--finetune.crop_vox=32", "--device=cpu", "--shots=1")
    assert run(labelled_folder, out, checkpoint, *more) == 2
    said = capsys.readouterr().err
    assert "no number any more at step 3" in said
    assert str(out) in said
    assert SegmentationModel.load(out).metadata["steps"] == 2


def ends_early(model: SegmentationModel, *, keeps: bool) -> Any:
    """A training during which Ctrl-C is pressed at its second step."""

    def train(*_: Any, **__: Any) -> Iterator[Progress]:
        for step in range(1, 1000):
            if step == 2:
                signal.raise_signal(signal.SIGINT)
            try:
                yield TrainingProgress(step, 1000, "steps", 0.5, 0.25)
            except StopTraining:
                if keeps:
                    return replace(model, metadata={**model.metadata, "steps": step})
                raise
        raise AssertionError("nobody stopped the training")

    return train


@pytest.fixture
def model(labelled_folder: Path, checkpoint: str, tmp_path: Path) -> SegmentationModel:
    out = tmp_path / "earlier.safetensors"
    assert run(labelled_folder, out, checkpoint, *QUICK, "--shots", "1") == 0
    return SegmentationModel.load(out)


def test_ctrl_c_keeps_the_best_so_far(
    model: SegmentationModel,
    labelled_folder: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fewshot, "train_model", ends_early(model, keeps=True))
    capsys.readouterr()
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "model.safetensors"
    assert run(labelled_folder, out, checkpoint, "--held-out", "1", "--json") == 130
    assert SegmentationModel.load(out).metadata["steps"] == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["interrupted"] is True
    assert f"{out} holds the best model so far" in captured.err
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_where_nothing_can_be_kept_writes_nothing(
    model: SegmentationModel,
    labelled_folder: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fewshot, "train_model", ends_early(model, keeps=False))
    out = tmp_path / "model.safetensors"
    assert run(labelled_folder, out, checkpoint) == 130
    assert capsys.readouterr().err.endswith("s2dc: interrupted\n")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["--shots", "9"], ["There are 3 scans with labels, too few for --shots 9"]),
        (["--held-out", "3"], ["too few for one scan to learn from and --held-out 3"]),
        (["--out", "{tmp}/model.pt"], ["model.pt is no name of a model file"]),
        (["--out", "{tmp}"], ["is no name of a model file"]),
        (["--out", "{tmp}/file/model.safetensors"], ["Cannot write"]),
        (["--preset", "xray"], ["no intensity preset 'xray'"]),
        (["--device", "tpu"], ["no device 'tpu'"]),
        (["--labels", "{tmp}/other"], ["torso1.nii.gz", "other/torso1.nii", "Both must"]),
        (["--labels", "{tmp}/strange"], ["No label map in", "has the name of a scan"]),
        (["--labels", "{tmp}/file"], ["is one file, but", "holds 3 scans"]),
        (["--encoder", "{tmp}/file"], ["file is not a checkpoint"]),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str],
    sentences: list[str],
    labelled_folder: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder, name in (("other", "torso1.nii"), ("strange", "head.nii")):
        (tmp_path / folder).mkdir()
        image = nibabel.Nifti1Image(np.ones((5, 6, 7), np.uint8), np.eye(4))
        nibabel.save(image, tmp_path / folder / name)
    more = [part.format(tmp=tmp_path) for part in arguments]
    assert run(labelled_folder, tmp_path / "model.safetensors", checkpoint, *QUICK, *more) == 2
    captured = capsys.readouterr()
    assert captured.err.count("s2dc: error: ") == 1
    for sentence in sentences:
        assert sentence in captured.err.splitlines()[-1]
    assert not list(tmp_path.glob("**/*.safetensors"))


@pytest.mark.parametrize("text", ["sead: 3", "quick: {hidden: x}", "mode: fast"])
def test_a_wrong_configuration_is_wrong_usage(
    text: str,
    labelled_folder: Path,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    config = ("--config", str(tmp_path / "settings.yaml"))
    assert run(labelled_folder, tmp_path / "model.safetensors", checkpoint, *config) == 2
    error = capsys.readouterr().err
    assert error.startswith("s2dc: error: ")
    assert error.count("\n") == 1


def test_names_and_colours_come_from_nrrd_and_contradictions_are_told(
    labelled_folder: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in ((1, "liver"), (2, "spleen")):
        labels = read_volume(labelled_folder / "labelsTr" / f"torso{seed}.nii.gz", labels=True)
        fields = segment_fields([(1, name, (1.0, 0.5, 0.0))])
        write_volume(tmp_path / f"torso{seed}.seg.nrrd", labels.array, labels, segments=fields)
    out = tmp_path / "model.safetensors"
    more = (*QUICK, "--labels", str(tmp_path))
    assert run(labelled_folder, out, checkpoint, *more) == 0
    told = capsys.readouterr().err
    model = SegmentationModel.load(out)
    first, names = model.classes[0], {"torso1": "liver", "torso2": "spleen"}
    mine = model.metadata["scans"][0]["name"]  # the first that is learned from names the class
    assert first.name == names.pop(mine)
    assert first.colour == (1.0, 0.5, 0.0)
    ((other, name),) = names.items()
    assert f"{other}.seg.nrrd calls label 1 '{name}'; others '{first.name}'" in told
    assert "1 of 3 scans" in told
