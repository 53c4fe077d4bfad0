"""What happens around the steps of a run: stopping in order, progress and the metrics file."""

from __future__ import annotations

import csv
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from napari_s2dc.files import replace_atomically
from s2dc_train.interruption import StopRequest


class OrderlyStop(Callback):
    """End the run after a whole step when a signal came or the time is over, and save first.

    Must stand after the validation among the callbacks, so that what is due at this step is done.

    Parameters
    ----------
    request : StopRequest
        Notes the signals.
    checkpoint : Path
        Where to save.
    minutes : float
        Time limit; 0 means none.

    Attributes
    ----------
    reason : str
        ``""``, ``"signal"`` or ``"time"``.
    """

    def __init__(self, request: StopRequest, checkpoint: Path, minutes: float) -> None:
        self.request = request
        self.checkpoint = checkpoint
        self.minutes = minutes
        self.reason = ""
        self._started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back from Lightning, whose own handler would leave without saving."""
        self.request.install()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From the first step on there is something to save."""
        self.request.deferred = True

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Decide together with the other processes, else they would wait for each other."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # half a step cannot be saved
        if trainer.global_step >= trainer.max_steps:
            return  # the run ends here anyway, and saves
        over = bool(self.minutes) and time.monotonic() - self._started > 60 * self.minutes
        decide = trainer.strategy.reduce_boolean_decision
        if decide(bool(self.request.number), all=False):
            self.reason = "signal"
        elif decide(over, all=False):
            self.reason = "time"
        if self.reason:
            trainer.should_stop = True
            trainer.save_checkpoint(self.checkpoint)


class Progress(Callback):
    """One line with the steps done, the time left, the loss and the last matching accuracy.

    Parameters
    ----------
    measured : callable
        Gives the last figures of the validation by name.
    """

    def __init__(self, measured: Callable[[], Mapping[str, float]]) -> None:
        self.measured = measured
        # A log file gets a line now and then, a screen a lively one.
        self.interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar: tqdm | None = None
        self._shown = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar in the first process only."""
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                desc="Training",
                unit="step",
                dynamic_ncols=True,
                mininterval=self.interval,
            )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move on."""
        if self._bar is None:
            return
        now = time.monotonic()
        last = trainer.global_step == trainer.max_steps
        # Reading the loss waits for the GPU: only when it is going to be shown.
        if last or now - self._shown >= self.interval:
            self._shown = now
            figures = {"loss": float(outputs["loss"]) * trainer.accumulate_grad_batches}
            accuracy = self.measured().get("match_accuracy")
            if accuracy is not None:
                figures["match"] = accuracy
            self._bar.set_postfix(
                {name: f"{value:.3f}" for name, value in figures.items()}, refresh=False
            )
        self._bar.update(trainer.global_step - self._bar.n)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the finished line on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """End the line before the message about the error."""
        self.teardown(trainer, pl_module, "fit")


class MetricsFile(Logger):
    """``metrics.csv``: each row is on disk at once, and a resumed run goes on without repeating.

    Lightning's own logger deletes the file of the run before and writes a row only after the
    checkpoint of its step, so that a kill in between would lose it.

    Parameters
    ----------
    folder : Path
        Run folder.
    resumed_step : int
        Rows of this and later steps are dropped, because they are taken again; 0 starts afresh.
    """

    name = ""
    version = ""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns: list[str] = ["step"]
        self._start(resumed_step)

    @rank_zero_only
    def _start(self, resumed_step: int) -> None:
        rows = [row for row in read_rows(self.path) if int(row["step"]) < resumed_step]
        self._columns += sorted({name for row in rows for name in row} - {"step"})
        self._write(rows)

    def _write(self, rows: list[dict[str, str]]) -> None:
        with (
            replace_atomically(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, self._columns)
            writer.writeheader()
            writer.writerows(rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row; new names become new columns."""
        row = {"step": step or 0, **{name: float(value) for name, value in metrics.items()}}
        new = sorted(set(row) - set(self._columns))
        if new:
            self._columns += new
            self._write(read_rows(self.path))
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self._columns).writerow(row)

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to do: ``config.yaml`` holds every setting."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics file, without a last one that a crash cut short; none without a file.

    Parameters
    ----------
    path : Path
        ``metrics.csv``.

    Returns
    -------
    list of dict
        Text of each column; empty where the row has no figure.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return list(csv.DictReader(lines))
