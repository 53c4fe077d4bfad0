"""Wall time of the named parts of a step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Add up the seconds spent in each part of a step.

    Parameters
    ----------
    device : torch.device
        Device to wait for at the ends of a part; on the CPU nothing runs behind our back.

    Attributes
    ----------
    seconds : dict of str to float
        Seconds of each part since the last :meth:`start`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def start(self) -> None:
        """Forget all parts."""
        self.seconds = defaultdict(float)

    def now(self) -> float:
        """Seconds on a steady clock, once the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as part `name`, in addition to earlier times."""
        begin = self.now()
        yield
        self.seconds[name] += self.now() - begin
