"""Scans shared out to several devices: Lightning's ``predict``, a process for each device."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import DataLoader

from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.engine.cli_outcome import Outcome, Work, try_scan
from napari_s2dc.engine.cli_scans import ScanFile
from napari_s2dc.errors import S2DCError

__all__ = ["over_scans_on_devices"]


class _Scans(LightningModule):
    """Works on the scan of a number; what became of it is left as a file in a folder."""

    def __init__(
        self, scans: Sequence[ScanFile], targets: Sequence[Path], work: Work, folder: Path
    ) -> None:
        super().__init__()
        self._scans, self._targets, self._work = scans, targets, work
        self._folder = folder
        _say_nothing()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _say_nothing()  # in the process that this was sent to, before Lightning begins

    def on_predict_start(self) -> None:
        keep_large_buffers()

    def predict_step(self, batch: Any, *_: Any) -> int:
        number = int(batch)
        facts = try_scan(self._scans[number], self._targets[number], self._work)
        (self._folder / f"{number}.json").write_text(json.dumps(facts), encoding="utf-8")
        return number


def _say_nothing() -> None:
    """Silence what Lightning says about itself."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("lightning"):
            logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", ".isinstance.treespec, LeafSpec.. is deprecated")


def over_scans_on_devices(
    scans: Sequence[ScanFile], targets: Sequence[Path], work: Work, kind: str, devices: int
) -> Outcome:
    """Work through scans on several devices; as :func:`napari_s2dc.engine.cli_outcome.over_scans`.

    Parameters
    ----------
    scans, targets
        As there.
    work : callable
        As there; it is sent to other processes, so it must be picklable. On CUDA, the current
        device is that of its process.
    kind : str
        ``cpu``, ``cuda`` or ``mps``.
    devices : int
        How many; processes on the CPU.

    Raises
    ------
    S2DCError
        A process ended before its work was done.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        module = _Scans(scans, targets, work, Path(folder))
        # Processes of our own wherever this runs, also inside a job of SLURM.
        trainer = Trainer(
            accelerator=kind,
            devices=devices,
            # Nothing is exchanged, and NCCL, the usual way between GPUs, is not there on Windows.
            strategy=DDPStrategy(start_method="spawn", process_group_backend="gloo"),
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            numbers: Any = range(len(scans))
            trainer.predict(module, DataLoader(numbers), return_predictions=False)
        except SystemExit:  # what Lightning makes of Ctrl-C
            for process in multiprocessing.active_children():
                process.terminate()
            signal.signal(signal.SIGINT, interrupt)
            raise KeyboardInterrupt from None
        except ProcessExitedException as error:
            raise S2DCError(
                f"A process that worked on scans ended: {error}.",
                "Give the command again with fewer --devices: what is done is kept.",
            ) from error
        outcome = Outcome()
        for number in range(len(scans)):
            outcome.add(json.loads((Path(folder) / f"{number}.json").read_text(encoding="utf-8")))
    return outcome
