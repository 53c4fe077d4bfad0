"""Whole runs of seconds: files, exact resume, signals, full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import yaml
from s2dc_train import passes
from s2dc_train.callbacks import MetricsFile, read_rows
from s2dc_train.cli import main
from s2dc_train.interruption import Interrupted, StopRequest
from s2dc_train.module import S2DCModule
from s2dc_train.run import last_checkpoint, peak_memory_mb
from s2dc_train.validation import Validation
from safetensors import safe_open

from napari_s2dc.method.encoder import SwinEncoder

Arguments = Callable[..., list[str]]

KILLED_AT_STEP_5 = """
import os, signal, sys
from s2dc_train.cli import main
from s2dc_train.module import S2DCModule

original = S2DCModule.training_step

def step(self, *args):
    if self.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args)

S2DCModule.training_step = step
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def straight(train_arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing disturbs."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert main(train_arguments(out)) == 0
    return out


def losses(out: Path) -> list[tuple[int, str]]:
    """Step and loss, to the last digit; no row may be there twice or be missing."""
    return [
        (int(row["step"]), row["loss"]) for row in read_rows(out / "metrics.csv") if row["loss"]
    ]


def validations(out: Path) -> list[tuple[int, str]]:
    rows = read_rows(out / "metrics.csv")
    name = "validation_match_accuracy"
    return [(int(row["step"]), row[name]) for row in rows if row[name]]


def weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(
        out / "checkpoints" / "last.ckpt", weights_only=True
    )["state_dict"]
    return state


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def at_step(number: int, act: Callable[[], None]) -> Callable[..., Any]:
    """Wrap the training step so that something happens at the beginning of one of them."""
    original = S2DCModule.training_step
    done: list[int] = []

    def step(self: S2DCModule, *args: Any) -> torch.Tensor:
        if self.global_step == number and not done:
            done.append(number)
            act()
        return original(self, *args)

    return step


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def test_validation_encodes_no_more_crops_together_than_training(
    straight: Path,
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, batches = SwinEncoder.stage, list[int]()

    def noted(self: SwinEncoder, crops: torch.Tensor, number: int) -> torch.Tensor:
        batches.append(len(crops))
        return original(self, crops, number)

    monkeypatch.setattr(SwinEncoder, "stage", noted)
    monkeypatch.setattr(passes, "CPU_VOXELS", 1)
    out = tmp_path / "run"
    assert main(train_arguments(out, "--trainer.max_steps", "1", "--trainer.probe", "false")) == 0
    assert set(batches) == {1}
    assert float(validations(out)[0][1]) == pytest.approx(float(validations(straight)[0][1]))


def test_peak_memory_in_the_units_of_each_system(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    here = psutil.Process().memory_info().rss / 2**20
    assert 0.5 * here < peak_memory_mb(cpu) < 100 * here
    usage = SimpleNamespace(ru_maxrss=300 * 2**20)  # macOS counts bytes
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_mb(cpu) == 300
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows has no such module
    facts = SimpleNamespace(peak_wset=200 * 2**20)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: facts))
    assert peak_memory_mb(cpu) == 200


def test_run_folder_is_complete(straight: Path) -> None:
    files = {path.name for path in straight.iterdir()}
    expected = {"config.yaml", "metrics.csv", "checkpoints", "encoder.safetensors", "summary.json"}
    assert expected <= files
    assert [path.name for path in (straight / "checkpoints").iterdir()] == ["last.ckpt"]

    assert [step for step, _ in losses(straight)] == list(range(6))
    assert [step for step, _ in validations(straight)] == [0, 3, 5]

    summary = json.loads((straight / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["volumes_used"] == 4
    assert summary["volumes_skipped"] == []
    assert summary["seconds"] > 0
    assert summary["steps_per_second"] >= 6 / summary["seconds"]
    assert summary["peak_memory_mb"] > 50
    assert 0 < summary["waiting_for_data"] < 1
    assert summary["effective_rank_last"] > 1
    measured = dict(validations(straight))
    assert summary["match_accuracy_first"] == float(measured[0])
    assert summary["match_accuracy_last"] == float(measured[5])
    assert 0 <= summary["nearest_neighbour_accuracy_last"] <= 1

    config = yaml.safe_load((straight / "config.yaml").read_text())
    assert config["out"] == str(straight)
    assert config["trainer"]["max_steps"] == 6


def test_logged_parts_add_up_to_the_loss(straight: Path) -> None:
    rows = [row for row in read_rows(straight / "metrics.csv") if row["loss"]]
    for row in rows:
        parts = ("patch_to_patch", "patch_to_structure", "global_contrast")
        assert sum(float(row[part]) for part in parts) / 2 == pytest.approx(float(row["loss"]))
        assert 0 < float(row["probability_true_pairs"]) < 1
    # Warm-up over two steps, then down.
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[0] == pytest.approx(1.5e-4)
    assert rates[1] == max(rates) == pytest.approx(3e-4)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_mixed_precision_trains_with_clipped_gradients(
    train_arguments: Arguments, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    more = ["--trainer.precision", "bf16-mixed", "--trainer.max_steps", "2"]
    assert main(train_arguments(out, *more)) == 0
    assert [math.isfinite(float(loss)) for _, loss in losses(out)] == [True, True]


@pytest.mark.slow
def test_resume_after_kill_is_exact(
    straight: Path, train_arguments: Arguments, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_STEP_5, *train_arguments(out)],
        env=environment,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [step for step, _ in losses(out)] == [0, 1, 2, 3, 4]
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    # What a kill while saving and while writing a row leaves behind.
    (out / "checkpoints" / ".part-x-last.ckpt").write_bytes(b"half")
    with (out / "metrics.csv").open("a") as stream:
        stream.write("5,0.")

    assert main(train_arguments(out, "--ckpt", "last")) == 0
    assert_same_run(out, straight)
    assert validations(out) == validations(straight)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["last.ckpt"]
    resumed, whole = (json.loads((run / "summary.json").read_text()) for run in (out, straight))
    timing = {"seconds", "steps_per_second", "peak_memory_mb", "waiting_for_data"}
    assert {k: v for k, v in resumed.items() if k not in timing} == {
        k: v for k, v in whole.items() if k not in timing
    }
    # All six steps and their time count, not only those since the resume.
    assert resumed["steps_per_second"] >= 6 / resumed["seconds"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["term", "interrupt"]
)
def test_signal_saves_after_the_step_and_resume_is_exact(
    number: int,
    code: int,
    straight: Path,
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        # Step 2 is the third: no multiple of save_every, so only the stop itself can save it.
        patch.setattr(S2DCModule, "training_step", at_step(2, send(number)))
        assert main(train_arguments(out)) == code
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    printed = capsys.readouterr().out
    assert f"s2dc-train --config {out}/config.yaml --ckpt last" in printed
    assert [step for step, _ in losses(out)] == [0, 1, 2]
    # No time for a measurement when someone waits for the process to end.
    assert [step for step, _ in validations(out)] == [0]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["measured_after_steps"]) == (3, 0)
    assert f"{summary['match_accuracy_last']:.3f} (after 0 steps)" in printed
    with safe_open(out / "encoder.safetensors", "pt") as stream:
        assert '"match_accuracy": null' in stream.metadata()["napari_s2dc"]

    if number == signal.SIGTERM:  # both save in the same way
        # The very command that was printed.
        assert main(["--config", str(out / "config.yaml"), "--ckpt", "last"]) == 0
        assert_same_run(out, straight)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "place",
    [
        "s2dc_train.data.find_scans",  # while scans are read
        "s2dc_train.validation.matching",  # inside Lightning, after it has set its own handlers
    ],
)
def test_signal_before_the_first_step(
    number: int,
    code: int,
    place: str,
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(place, lambda *args, **kwargs: os.kill(os.getpid(), number))
    assert main(train_arguments(tmp_path / "run")) == code
    assert "Stopped at once." in capsys.readouterr().out
    monkeypatch.undo()
    # Nothing stands in the way of the same command.
    assert last_checkpoint(tmp_path / "run") is None


def test_only_an_impatient_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 10.0}
    monkeypatch.setattr("s2dc_train.interruption.time.monotonic", lambda: clock["now"])
    with StopRequest() as request:
        request.deferred = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert request.number == signal.SIGINT
        clock["now"] += 2
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun and SLURM repeat it
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_time_limit_measures_saves_and_can_go_on(
    straight: Path,
    train_arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    assert main(train_arguments(out, "--trainer.max_minutes", "1e-9")) == 0
    assert "at the time limit" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 1
    assert summary["match_accuracy_last"] is not None
    assert [step for step, _ in validations(out)] == [0, 0]
    assert main(train_arguments(out, "--ckpt", "last")) == 0
    assert_same_run(out, straight)


def test_accumulated_steps_resume_exactly(
    train_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--trainer.accumulate", "2", "--trainer.max_steps", "3", "--trainer.probe", "false"]
    assert main(train_arguments(tmp_path / "whole", *more)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(S2DCModule, "training_step", at_step(1, send(signal.SIGTERM)))
        assert main(train_arguments(tmp_path / "parts", *more)) == 0
    assert [step for step, _ in losses(tmp_path / "parts")] == [0, 1]
    assert main(train_arguments(tmp_path / "parts", *more, "--ckpt", "last")) == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_finished_run_can_be_prolonged(
    straight: Path, train_arguments: Arguments, tmp_path: Path
) -> None:
    out = tmp_path / "longer"
    checkpoint = str(straight / "checkpoints" / "last.ckpt")
    # What it began from is not needed any more.
    more = ["--trainer.max_steps", "8", "--model.initial_weights", str(tmp_path / "gone.pt")]
    assert main(train_arguments(out, "--ckpt", checkpoint, *more)) == 0
    assert [step for step, _ in losses(out)] == [6, 7]
    assert json.loads((out / "summary.json").read_text())["steps"] == 8
    # The next samples, not the first ones again.
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["S2DCDataModule"]["next_sample"] == 8


def test_optimizer_settings_may_be_changed_at_a_resume(
    straight: Path,
    train_arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "slower"
    checkpoint = str(straight / "checkpoints" / "last.ckpt")
    more = ["--optimizer.learning_rate", "1e-6", "--optimizer.final_learning_rate", "1"]
    more += ["--optimizer.weight_decay", "0.3", "--optimizer.beta2", "0.9"]
    more += ["--trainer.max_steps", "8", "--trainer.probe", "false"]
    assert main(train_arguments(out, "--ckpt", checkpoint, *more)) == 0
    said = "optimizer.weight_decay 0.3 (was 0.1)"
    assert said in capsys.readouterr().out
    assert any(said in note for note in json.loads((out / "summary.json").read_text())["notes"])
    rows = [row for row in read_rows(out / "metrics.csv") if row["loss"]]
    assert [float(row["learning_rate"]) for row in rows] == [1e-6, 1e-6]
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    groups = state["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert {group["betas"][1] for group in groups} == {0.9}


def test_settings_edited_in_the_run_folder_are_told_until_they_are_saved(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(straight, tmp_path / "run"))
    file = out / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    before = settings["optimizer"]["learning_rate"]
    settings["out"] = str(out)
    settings["optimizer"]["learning_rate"] = "LATER"
    settings["trainer"]["max_steps"] = 7
    # To PyYAML, which does not read the settings, 2e-4 is text.
    file.write_text(yaml.safe_dump(settings).replace("LATER", "2e-4"))
    go_on = ["--config", str(file), "--ckpt", "last"]
    assert main(go_on) == 0
    said = f"optimizer.learning_rate 0.0002 (was {before}), trainer.max_steps 7 (was 6)."
    assert f"Going on with other settings: {said}" in capsys.readouterr().out
    assert main([*go_on, "--trainer.max_steps", "8"]) == 0
    said = "trainer.max_steps 8 (was 7)."
    assert f"Going on with other settings: {said}" in capsys.readouterr().out


def test_diverged_weights_are_not_saved(
    straight: Path,
    train_arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = Path(shutil.copytree(straight, tmp_path / "run"))
    before = {name: (out / name).read_bytes() for name in ("checkpoints/last.ckpt", "summary.json")}
    more = ["--ckpt", "last", "--trainer.max_steps", "10", "--optimizer.learning_rate", "1e30"]
    assert main(train_arguments(out, *more, "--optimizer.warmup_steps", "0")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("s2dc-train: error: Training has diverged: after 8 steps")
    assert {name: (out / name).read_bytes() for name in before} == before


class ShortStream:
    """A file on a disk that has room for the beginning only."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.room = 100_000

    def write(self, content: bytes) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self.stream.write(content))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), "short", RuntimeError("half")],
    ids=["disk", "archive", "fault"],
)
def test_failure_while_saving_keeps_the_old_checkpoint(
    error: Exception | str,
    straight: Path,
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    original = torch.save

    def save(content: dict[str, Any], stream: Any) -> None:
        if content["global_step"] == 4:
            if isinstance(error, str):  # torch meets the full disk itself
                original(content, ShortStream(stream))
            stream.write(b"half a checkpoint")
            assert isinstance(error, Exception)
            raise error
        original(content, stream)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        if not isinstance(error, RuntimeError):
            assert main(train_arguments(out)) == 2
            message = capsys.readouterr().err.splitlines()[-1]
            assert message.startswith("s2dc-train: error: Cannot write ")
            assert "No space left on device" in message
        else:  # a fault of the program: its traceback must not be hidden
            with pytest.raises(RuntimeError, match="half"):
                main(train_arguments(out))
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2

    if isinstance(error, OSError):  # both leave the same behind
        assert main(train_arguments(out, "--ckpt", "last")) == 0
        assert_same_run(out, straight)


def test_full_disk_while_logging_is_one_sentence(
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsFile, "log_metrics", full)
    assert main(train_arguments(tmp_path / "run")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"s2dc-train: error: Cannot write to the run folder {tmp_path}/run")


def test_requeued_slurm_job_goes_on_by_itself(
    straight: Path,
    train_arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(S2DCModule, "training_step", at_step(2, send(signal.SIGTERM)))
        assert main(train_arguments(out)) == 0
    # Lightning's name for what it saves just before the job is requeued.
    last = out / "checkpoints" / "last.ckpt"
    last.rename(last.with_name("hpc_ckpt_1.ckpt"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(train_arguments(out)) == 0
    assert_same_run(out, straight)
    assert last_checkpoint(out) == last


def test_metrics_file_continues_before_the_resumed_step(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path, 0)
    log.log_metrics({"validation": 0.5}, 0)
    for step in range(3):
        log.log_metrics({"loss": 0.1 + step}, step)
    before = read_rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in before] == ["0", "0", "1", "2"]
    again = MetricsFile(tmp_path, 2)
    again.log_metrics({"loss": 7.0, "new": 1.0}, 2)
    after = read_rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in after] == ["0", "0", "1", "2"]
    assert [row["loss"] for row in after[:3]] == [row["loss"] for row in before[:3]]
    assert after[-1] == {"step": "2", "validation": "", "loss": "7.0", "new": "1.0"}
    MetricsFile(tmp_path, 0)
    assert read_rows(tmp_path / "metrics.csv") == []


def test_run_killed_before_its_encoder_was_written_is_finished(
    straight: Path, train_arguments: Arguments, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    # Of an earlier stop, at a smaller number of steps.
    (out / "encoder.safetensors").write_bytes(b"old")
    summary = json.loads((out / "summary.json").read_text())
    (out / "summary.json").write_text(json.dumps(summary | {"steps": 4}))
    assert main(train_arguments(out, "--ckpt", "last")) == 0
    assert_same_run(out, straight)
    assert weights(out).keys() == weights(straight).keys()
    summary, expected = (
        json.loads((folder / "summary.json").read_text()) for folder in (out, straight)
    )
    assert summary["steps"] == 6
    assert summary["match_accuracy_last"] == expected["match_accuracy_last"]
    assert summary["match_accuracy_first"] == expected["match_accuracy_first"]
    # Once it is whole, there is nothing to go on with.
    assert main(train_arguments(out, "--ckpt", "last")) == 2


def test_checkpoint_of_another_run_does_not_overwrite_a_run(
    straight: Path,
    train_arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.ckpt"
    shutil.copy(straight / "checkpoints" / "last.ckpt", other)
    before = (straight / "metrics.csv").read_bytes()
    arguments = train_arguments(straight, "--ckpt", str(other), "--trainer.max_steps", "8")
    assert main(arguments) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (straight / "metrics.csv").read_bytes() == before


def test_run_killed_before_its_last_measurement_is_measured(
    straight: Path, train_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "on_train_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main(train_arguments(out))
    assert main(train_arguments(out, "--ckpt", "last")) == 0
    summary, expected = (
        json.loads((folder / "summary.json").read_text()) for folder in (out, straight)
    )
    assert summary["steps"] == 6
    assert summary["match_accuracy_last"] == expected["match_accuracy_last"]


def test_requeued_job_that_began_from_another_run_goes_on_with_its_own(
    straight: Path, train_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(tmp_path / "other.ckpt")
    shutil.copy(straight / "checkpoints" / "last.ckpt", other)
    out = tmp_path / "run"
    arguments = train_arguments(out, "--ckpt", other, "--trainer.max_steps", "8")
    assert main(arguments) == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    longer = train_arguments(out, "--ckpt", other, "--trainer.max_steps", "9")
    assert main(longer) == 0
    assert [step for step, _ in losses(out)] == [6, 7, 8]
