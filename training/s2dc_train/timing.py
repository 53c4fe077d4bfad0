"""How long steps wait for their data."""

from __future__ import annotations

import time
from collections import defaultdict

from lightning.pytorch.profilers import Profiler

_STEP = "run_training_batch"
_NEXT = "[_TrainingEpochLoop].train_dataloader_next"


class WaitClock(Profiler):
    """Adds up the time of Lightning's steps and of its waiting for the next batch.

    On a GPU the process is ahead of the device, so that its waiting is the most the device can
    have waited.

    Attributes
    ----------
    seconds : dict of str to float
        By Lightning's name of the action.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self._begun: dict[str, float] = {}

    def start(self, action_name: str) -> None:
        """Note the time if the action counts."""
        if action_name in (_STEP, _NEXT):
            self._begun[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add the time since the start."""
        if action_name in self._begun:
            self.seconds[action_name] += time.perf_counter() - self._begun.pop(action_name)

    @property
    def waiting_share(self) -> float | None:
        """Share of the time of training, without measuring and saving, spent waiting for data."""
        total = self.seconds[_STEP] + self.seconds[_NEXT]
        return self.seconds[_NEXT] / total if total else None
