"""Validation with fixed views of held-out scans, before, during and after training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from s2dc_train.config import RunConfig
from s2dc_train.data import S2DCDataModule
from s2dc_train.evaluate import matching, structures
from s2dc_train.module import S2DCModule
from s2dc_train.passes import together_on_cpu
from s2dc_train.views import Views

VIEWS_PER_VOLUME = 4
FIRST_FIXED_SAMPLE = 2**40
"""Number of the first validation sample: far from every training sample's."""


def _fixed_views(module: S2DCModule, data: S2DCDataModule) -> Iterator[Views]:
    """Yield views of the held-out scans, the same every time."""
    for number, item in enumerate(data.validation_items()):
        scan = {
            name: item[name][None].to(module.device) for name in ("image", "valid", "foreground")
        }
        for repeat in range(VIEWS_PER_VOLUME):
            sample = FIRST_FIXED_SAMPLE + number * VIEWS_PER_VOLUME + repeat
            yield module.views(scan | {"sample": torch.tensor([sample])})


class Validation(Callback):
    """Measure matching accuracy, effective rank and the 5-nearest-neighbour probe.

    Parameters
    ----------
    config : RunConfig
        Settings of the run; the views are fixed by their numbers, not by the state of training.
    leaving : callable, optional
        Whether a signal ended the run: then there is no time for a last measurement.

    Attributes
    ----------
    training_seconds : float
        Time spent on steps, without measuring; counted on over a resume.
    measuring_seconds : float
        Time spent on measuring; counted on over a resume.
    """

    def __init__(self, config: RunConfig, leaving: Callable[[], bool] = lambda: False) -> None:
        self.config = config
        self.leaving = leaving
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.last_step = -1
        self.training_seconds = 0.0
        self.measuring_seconds = 0.0
        self._started: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the untrained encoder of a fresh run."""
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)
            self.first = dict(self.last)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Measure every ``validate_every`` steps."""
        step = trainer.global_step
        if step % self.config.trainer.validate_every == 0 and step != self.last_step:
            self._stop_clock()
            self._measure(trainer, pl_module)
            self._started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the trained encoder."""
        self._stop_clock()
        if not self.leaving():
            self.measure_if_stale(trainer, pl_module)
        self._started = None

    def measure_if_stale(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure unless this was done after the last step."""
        if trainer.global_step != self.last_step:
            self._measure(trainer, module)

    def _stop_clock(self) -> None:
        if self._started is not None:
            now = time.perf_counter()
            self.training_seconds += now - self._started
            self._started = now

    def _measure(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, S2DCModule)
        begun = time.perf_counter()
        data: S2DCDataModule = trainer.datamodule  # type: ignore[attr-defined]
        stage, grid = self.config.model.token_stage, self.config.data.grid
        branches = {"": module.student, "teacher_": module.teacher}
        values: dict[str, float] = {}
        precision = trainer.precision_plugin.forward_context
        for prefix, branch in branches.items():

            def encode(crops: Tensor, branch: Any = branch) -> Tensor:
                on_cpu = crops.device.type == "cpu"
                together = together_on_cpu(crops.shape[-1]) if on_cpu else len(crops)
                with torch.no_grad(), precision():
                    parts = [branch.encoder.stage(part, stage) for part in crops.split(together)]
                return torch.cat(parts)

            found = matching(_fixed_views(module, data), encode, grid, per_slice=module.per_slice)
            values |= {prefix + name: value for name, value in found.items()}
        if self.config.trainer.probe:
            with precision():
                accuracy = structures(
                    data.labelled_volumes(held_out=False),
                    data.labelled_volumes(held_out=True),
                    module.student.encoder,
                    stage,
                )
            if not math.isnan(accuracy):
                values["nearest_neighbour_accuracy"] = accuracy
        self.last, self.last_step = values, trainer.global_step
        self.measuring_seconds += time.perf_counter() - begun
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"validation_{name}": value for name, value in values.items()},
                step=max(trainer.global_step - 1, 0),
            )

    def state_dict(self) -> dict[str, Any]:
        """Figures of the untrained encoder, kept over a resume."""
        self._stop_clock()
        return {
            "first": self.first,
            "last": self.last,
            "last_step": self.last_step,
            "training_seconds": self.training_seconds,
            "measuring_seconds": self.measuring_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the figures of the resumed run."""
        self.first = dict(state_dict["first"])
        self.last = dict(state_dict["last"])
        self.last_step = int(state_dict["last_step"])
        self.training_seconds = float(state_dict["training_seconds"])
        self.measuring_seconds = float(state_dict["measuring_seconds"])

    def summary(self) -> dict[str, float | None]:
        """First and last figure of everything measured, for ``summary.json``."""
        result: dict[str, float | None] = {}
        for name in self.last:
            result[f"{name}_first"] = self.first.get(name)
            result[f"{name}_last"] = self.last[name]
        return result
