"""How far the memory of this process rises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 2**20


def peak_during(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of some work and by how many MB the memory rose above its start meanwhile."""
    start, highest, finished = resident_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not finished.wait(0.003):
            highest = max(highest, resident_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - begun
        finished.set()
        watcher.join()
    return seconds, max(highest, resident_mb()) - start
