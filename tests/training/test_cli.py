"""What a user can get wrong on the command line: one sentence, exit code 2, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from s2dc_train.callbacks import read_rows
from s2dc_train.cli import main
from s2dc_train.validation import Validation

from napari_s2dc.errors import VolumeError

Arguments = Callable[..., list[str]]

TWO_PROCESSES = """
import os, sys
from s2dc_train.cli import main
from s2dc_train.module import S2DCModule

folder = sys.argv[sys.argv.index("--out") + 1] + "-seen"
os.makedirs(folder, exist_ok=True)
original = S2DCModule.training_step

def step(self, batch, index):
    with open(f"{folder}/{self.global_rank}", "a") as stream:
        print(*batch["sample"].tolist(), file=stream)
    return original(self, batch, index)

def end(self):
    import torch
    torch.save(self.state_dict(), f"{folder}/{self.global_rank}.pt")

S2DCModule.training_step = step
S2DCModule.on_train_end = end
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def finished(train_arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    out = tmp_path_factory.mktemp("finished") / "run"
    more = ["--trainer.max_steps", "1", "--trainer.probe", "false"]
    assert main(train_arguments(out, *more)) == 0
    return out


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Assert that the command fails with one line that says all of `parts`."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    # Progress bars go to the same stream, on lines of their own.
    message = captured.err.splitlines()[-1]
    assert message.startswith("s2dc-train: error: ")
    assert captured.err.count("s2dc-train: error: ") == 1
    assert "Traceback" not in captured.out + captured.err
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--model.widnow_size", "3"], ["model.widnow_size"]),
        (["--trainer.max_steps", "many"], ["trainer.max_steps", "many"]),
        (["--data.grid", "2"], ["--data.grid 2: a list such as [1,2,2] is expected."]),
        (["--config", "tiny_gpu"], ["There is no configuration 'tiny_gpu'", "tiny_cpu"]),
        (["--model.size", "huge"], ["model.size", "tiny"]),
        (["--views.matching", "both"], ["views.matching"]),
        (["--data.path", ""], ["No scans are named", "--data.path"]),
        (["--data.path", "/no/such/folder"], ["/no/such/folder does not exist"]),
        (["--data.preset", "xray"], ["data.preset", "xray", "ct_lung"]),
        (["--data.crop_size", "40"], ["data.crop_size is 40", "multiple of 16"]),
        (["--data.crop_size", "16"], ["data.crop_size is 16"]),
        (["--data.grid", "[1, 0, 2]"], ["data.grid"]),
        (["--data.grid", "[2, 2]"], ["data.grid"]),
        (["--data.grid", "[1, 1, 1]"], ["at least two crops per step"]),
        (
            ["--model.head_normalization", "slices", "--views.matching", "3d"],
            ["head_normalization slices", "in_plane"],
        ),
        (["--data.batch_size", "0"], ["data.batch_size"]),
        (["--data.workers", "-1"], ["data.workers"]),
        (["--data.validation_volumes", "0"], ["data.validation_volumes"]),
        (["--data.spacing_mm", "[1, 1, 0]"], ["data.spacing_mm"]),
        (["--data.section", "test"], ["test", "dataset.json"]),
        (["--model.token_stage", "7"], ["model.token_stage is 7"]),
        (["--model.window_size", "0"], ["model.window_size must be at least 1"]),
        (["--model.queue_length", "-5"], ["model.queue_length must be at least 0"]),
        (["--model.teacher_momentum", "1.5"], ["model.teacher_momentum must be between 0 and 1"]),
        (["--model.initial_weights", "/no/file.pt"], ["/no/file.pt"]),
        (["--loss.temperature", "0"], ["loss.temperature must be above 0"]),
        (["--loss.patch_to_patch", ".nan"], ["loss.patch_to_patch must be at least 0"]),
        (["--optimizer.learning_rate", "-1"], ["optimizer.learning_rate must be above 0"]),
        (["--trainer.max_steps", "0"], ["trainer.max_steps must be at least 1"]),
        (["--trainer.max_steps", "-3"], ["trainer.max_steps must be at least 1"]),
        (["--trainer.save_every", "0"], ["trainer.save_every must be at least 1"]),
        (["--trainer.max_minutes", "-1"], ["trainer.max_minutes must be at least 0"]),
        (["--trainer.devices", "0"], ["devices 0"]),
        (["--trainer.devices", "all"], ["devices all"]),
        (["--trainer.accelerator", "abacus"], ["accelerator abacus"]),
        (["--trainer.accelerator", "mps"], ["Apple's graphics", "--trainer.accelerator cpu"]),
        (["--seed", "-1"], ["seed must be at least 0"]),
        (["--ckpt", "last"], ["There is no checkpoint", "last.ckpt"]),
        (["--ckpt", "/no/last.ckpt"], ["There is no checkpoint /no/last.ckpt"]),
    ],
    ids=lambda value: " ".join(value) if str(value[0]).startswith("--") else "",
)
def test_unusable_settings(
    more: list[str],
    parts: list[str],
    train_arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(train_arguments(tmp_path / "run", *more), capsys, *parts)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_configuration_file_with_an_unknown_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trainer: {max_step: 5}\n")
    refused(["--config", str(path)], capsys, "mine.yaml", "max_step")
    for empty in ("", "# to be filled in\n", "tiny_cpu\n"):
        path.write_text(empty)
        refused(["--config", str(path)], capsys, "error: mine.yaml holds no settings. See")
    path.write_text("trainer: {max_steps: [\n")
    refused(["--config", str(path)], capsys, "mine.yaml")


def test_folder_without_scans(
    train_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "notes.txt").write_text("no scan")
    arguments = train_arguments(tmp_path / "run", "--data.path", str(tmp_path / "scans"))
    refused(arguments, capsys, "No scan was found in", "NIfTI")


def unusable_scans(folder: Path) -> None:
    folder.mkdir()
    nan = np.full((40, 40, 40), np.nan, np.float32)
    nibabel.save(nibabel.Nifti1Image(nan, np.eye(4)), folder / "nan.nii.gz")
    constant = np.full((40, 40, 40), 7, np.int16)
    nibabel.save(nibabel.Nifti1Image(constant, np.eye(4)), folder / "constant.nii.gz")
    (folder / "half.nii.gz").write_bytes((folder / "constant.nii.gz").read_bytes()[:60])


def test_nothing_left_after_skipping(
    train_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unusable_scans(tmp_path / "scans")
    arguments = train_arguments(tmp_path / "run", "--data.path", str(tmp_path / "scans"))
    refused(arguments, capsys, "None of the 3 scans can be used", ".nii.gz")


def test_unusable_scans_are_skipped_and_listed(
    train_arguments: Arguments,
    tmp_path: Path,
    save_scan: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    unusable_scans(tmp_path / "scans")
    for number in range(2):
        save_scan(tmp_path / "scans" / f"good_{number}.nii.gz", seed=number)
    more = ["--trainer.max_steps", "1", "--data.path", str(tmp_path / "scans")]
    assert main(train_arguments(tmp_path / "run", *more)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["volumes_used"] == 2
    skipped = {Path(path).name: reason for path, reason in summary["volumes_skipped"]}
    assert set(skipped) == {"nan.nii.gz", "constant.nii.gz", "half.nii.gz"}
    assert all(skipped.values())
    # The user is told, too.
    assert "nan.nii.gz" in capsys.readouterr().out


def test_run_folder_is_not_overwritten(
    run_copy: Path, train_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run_copy / "metrics.csv").read_bytes()
    refused(train_arguments(run_copy), capsys, "already holds a run", "--ckpt last", "--out")
    assert (run_copy / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--trainer.max_steps", "1"], ["already done 1 step", "--trainer.max_steps"]),
        (["--model.size", "small"], ["feature_size 12", "24", "--config"]),
        (["--model.window_size", "3"], ["window_size 2", "3"]),
        (["--model.borders", "true"], ["borders False", "True", "--config"]),
        (["--model.head_output", "4"], ["does not fit", "token_head"]),
        (["--model.queue_length", "9"], ["does not fit", "queue.keys"]),
        (["--loss.global_contrast", "0"], ["trained other parameters"]),
    ],
    ids=lambda value: " ".join(value) if str(value[0]).startswith("--") else "",
)
def test_checkpoint_that_does_not_fit(
    more: list[str],
    parts: list[str],
    run_copy: Path,
    train_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    refused(train_arguments(run_copy, "--ckpt", "last", *more), capsys, *parts)
    # Nothing of the run is lost by asking for the wrong thing.
    assert before == {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "half", "weights"])
def test_file_that_is_no_training_checkpoint(
    content: bytes | str,
    run_copy: Path,
    train_arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = run_copy / "checkpoints" / "last.ckpt"
    path = tmp_path / "other.ckpt"
    if content == "weights":
        torch.save({"state_dict": torch.load(last, weights_only=True)["state_dict"]}, path)
    elif content == "half":
        path.write_bytes(last.read_bytes()[:100_000])
    else:
        path.write_bytes(content)  # type: ignore[arg-type]
    arguments = train_arguments(tmp_path / "run", "--ckpt", str(path))
    refused(arguments, capsys, "other.ckpt is not a training checkpoint")


def test_folder_that_cannot_be_written(
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        refused(train_arguments(out), capsys, f"the run folder {out}: {tmp_path}/file is a file")
    with monkeypatch.context() as patch:
        access = os.access
        patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))
        # Before any scan is looked at, and without blaming the cache inside it.
        arguments = train_arguments(tmp_path / "run", "--data.path", "/nowhere")
        refused(arguments, capsys, f"{tmp_path} may not be written to. Choose another --out.")

    # The tests may run as root, whom no permission stops.
    def denied(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "run" / "config.yaml"))

    monkeypatch.setattr(Path, "touch", denied)
    refused(train_arguments(tmp_path / "run"), capsys, "Cannot write", "Permission denied")


def test_on_windows_a_run_takes_one_device(
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    arguments = train_arguments(tmp_path / "run", "--trainer.devices")
    refused([*arguments, "2"], capsys, "On Windows a run takes one device", "--trainer.devices 1")
    asked = []

    def trainer(**settings: Any) -> None:
        asked.append(settings["devices"])
        raise ValueError("that is all")

    monkeypatch.setattr("s2dc_train.run.L.Trainer", trainer)
    refused([*arguments, "auto"], capsys, "that is all")
    monkeypatch.undo()
    monkeypatch.setattr("s2dc_train.run.L.Trainer", trainer)
    refused([*arguments, "auto"], capsys, "that is all")
    assert asked == [1, "auto"]


def test_a_gpu_is_one_of_cuda(
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a Mac, Lightning would take its graphics, which have no float64."""
    asked = []

    def trainer(**settings: Any) -> None:
        asked.append(settings["accelerator"])
        raise ValueError("that is all")

    monkeypatch.setattr("s2dc_train.run.L.Trainer", trainer)
    arguments = train_arguments(tmp_path / "run", "--trainer.accelerator", "gpu")
    refused(arguments, capsys, "that is all")
    assert asked == ["cuda"]


def test_error_inside_lightning_is_a_sentence(
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def gone(*args: Any) -> None:
        raise VolumeError("The cache is gone.", "Start again.")

    monkeypatch.setattr(Validation, "on_train_start", gone)
    refused(train_arguments(tmp_path / "run"), capsys, "The cache is gone. Start again.")


def test_output_is_quiet_and_to_the_point(train_arguments: Arguments, tmp_path: Path) -> None:
    """In a process of its own, where no test settings hide warnings."""
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from s2dc_train.cli import main; sys.exit(main(sys.argv[1:]))",
            *train_arguments(tmp_path / "run", "--trainer.max_steps", "2"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("4 usable, 0 skipped, 4 labelled") == 1
    for name in ("Matching accuracy", "5-NN accuracy", "Effective rank", "minutes", "Encoder"):
        assert finished.stdout.count(name) == 1
    bars = [line for line in finished.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert all(line.startswith(("Preprocessing scans:", "Training:")) for line in bars)
    assert "2/2" in bars[-1]
    assert "loss=" in bars[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_two_processes(train_arguments: Arguments, tmp_path: Path) -> None:
    out, script = tmp_path / "run", tmp_path / "s2dc-train"
    script.write_text(TWO_PROCESSES)
    more = ["--trainer.devices", "2", "--trainer.max_steps", "3", "--trainer.probe", "false"]
    finished = subprocess.run(
        [sys.executable, str(script), *train_arguments(out, *more)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
        timeout=570,
    )
    assert finished.returncode == 0, finished.stderr
    # One of them speaks and writes.
    assert finished.stdout.count("usable, 0 skipped") == 1
    assert finished.stdout.count("Matching accuracy") == 1
    assert "Traceback" not in finished.stderr
    assert "Warning" not in finished.stderr
    assert [row["step"] for row in read_rows(out / "metrics.csv") if row["loss"]] == list("012")
    assert len(list((out / "tensorboard").glob("events*"))) == 1
    assert yaml.safe_load((out / "config.yaml").read_text())["trainer"]["devices"] == 2

    seen = tmp_path / "run-seen"
    samples = [[int(line) for line in (seen / rank).read_text().split()] for rank in "01"]
    assert samples == [[0, 2, 4], [1, 3, 5]]
    first, second = (torch.load(seen / f"{rank}.pt", weights_only=True) for rank in "01")
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    # One key of each process at each step.
    assert int(first["queue.filled"].sum()) == 6
    assert len(first["queue.keys"][first["queue.filled"]].unique(dim=0)) == 6
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["S2DCDataModule"]["next_sample"] == 6
    assert all(torch.equal(saved["state_dict"][name], first[name]) for name in first)


def test_configuration_that_is_not_text(
    train_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"out: r\xe9sultats\n")
    arguments = train_arguments(tmp_path / "run", "--config", str(file))
    refused(arguments, capsys, "latin.yaml", "UTF-8")
