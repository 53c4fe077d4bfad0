"""Training of the demo: how many steps fit into the time, and the trainer's own command."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder

if TYPE_CHECKING:
    from s2dc_train.preflight import PreflightReport

__all__ = ["SEED", "TRAIN", "preflight_of", "preset", "steps_within", "train"]

PRESET = "tiny_cpu"
SEED = 0

# A tenth of the preset's: the encoder starts trained, its heads do not.
_LEARNING_RATE = 2e-4

# In units of one forward and backward pass of the student: a step also runs the teacher, the
# losses and the optimizer; a validation encodes 64 crops without gradients.
_STEP_COST = 1.8
_VALIDATION_COST = 5.5
_VALIDATIONS = 6

TRAIN = "import sys; from s2dc_train.cli import main; sys.exit(main())"


def preset() -> dict[str, Any]:
    """Read the packaged configuration that the demo trains with."""
    text = (files("s2dc_train") / "configs" / f"{PRESET}.yaml").read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def preflight_of(folder: Path) -> PreflightReport:
    """Read the scans' headers as the trainer will.

    Raises
    ------
    S2DCError
        No scan can be read.
    """
    # Only here: the engine works without the trainer, the demo does not.
    from s2dc_train.config import DataConfig
    from s2dc_train.preflight import preflight
    from s2dc_train.sources import find_scans

    config = DataConfig(path=str(folder), **preset()["data"])
    return preflight(find_scans(config), config)


def steps_within(seconds: float, encoder: SwinEncoder) -> int:
    """Estimate how many training steps fit into a time on this machine.

    Parameters
    ----------
    seconds : float
        Time for steps and validations.
    encoder : SwinEncoder
        Timed over one forward and backward pass of the crops of a step.
    """
    settings = preset()
    side, crops = settings["data"]["crop_size"], math.prod(settings["data"]["grid"])
    batch = torch.rand(crops, 1, side, side, side)
    one_pass = math.inf
    for _ in range(2):  # the first one also pays for the memory
        started = time.perf_counter()
        encoder(batch)[settings["model"]["token_stage"]].sum().backward()
        one_pass = min(one_pass, time.perf_counter() - started)
    encoder.zero_grad(set_to_none=True)
    passes = seconds / one_pass - _VALIDATIONS * _VALIDATION_COST
    return max(int(passes / _STEP_COST), 2 * _VALIDATIONS)


def train(scans: Path, run: Path, *, steps: int, minutes: float, start_from: Path) -> list[str]:
    """Run ``s2dc-train`` as a user would, its progress on the screen.

    Parameters
    ----------
    scans : Path
        Folder; the last scan in the order of names is held out.
    run : Path
        Run folder.
    steps : int
        Length of the learning rate's schedule.
    minutes : float
        Training ends then at the latest.
    start_from : Path
        Checkpoint whose weights the encoder starts with.

    Returns
    -------
    list of str
        The command's arguments.

    Raises
    ------
    S2DCError
        Training failed; it has said why.
    """
    options: dict[str, object] = {
        "config": PRESET,
        "data.path": scans,
        "data.validation_volumes": 1,
        "model.initial_weights": start_from,
        "optimizer.learning_rate": _LEARNING_RATE,
        "out": run,
        "seed": SEED,
        "trainer.max_steps": steps,
        "trainer.max_minutes": round(minutes, 2),
        "trainer.validate_every": max(3, math.ceil(steps / _VALIDATIONS)),
        "trainer.log_every": max(1, steps // 60),
        "trainer.accelerator": "cpu",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    finished = subprocess.run([sys.executable, "-c", TRAIN, *arguments], check=False)
    if finished.returncode:
        raise S2DCError(
            f"Training ended with exit code {finished.returncode}.",
            "Its own message stands above.",
        )
    return arguments
