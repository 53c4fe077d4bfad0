"""Runs of a benchmark as files, so that it goes on where it was interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from napari_s2dc.files import replace_atomically

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One training with its tests.

    Parameters
    ----------
    data : str
        Name of the data set.
    way : str
        How labels are learned.
    shots : int
        Labelled scans.
    seed : int
        Of the split and of everything random.
    """

    data: str
    way: str
    shots: int
    seed: int


@dataclass(frozen=True)
class Result:
    """What a run found.

    Parameters
    ----------
    dice, hd95_mm : list of float
        Mean over the classes, of every test scan.
    training_seconds, test_seconds : float
        Of one thread's processor time: the whole training, features of the labelled scans
        included, and the mean over the test scans.
    """

    dice: list[float]
    hd95_mm: list[float]
    training_seconds: float
    test_seconds: float


class Memo:
    """Keep what several runs of a process need, and count its making for each of them."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[Any, float]] = {}
        self._borrowed = 0.0

    def __call__(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under a key, made now if it is not there yet."""
        if key in self._made:
            value, seconds = self._made[key]
            self._borrowed += seconds
        else:
            begun = time.process_time()
            value = make()
            self._made[key] = value, time.process_time() - begun
        found: T = value
        return found

    def now(self) -> float:
        """Processor seconds, with those that a process without memory would have spent."""
        return time.process_time() + self._borrowed


def file_of(folder: Path, run: Run, encoder: str) -> Path:
    """File of a run with an encoder, which is another one with another encoder."""
    way = run.way.replace(" ", "_")
    return folder / f"{run.data.replace(' ', '_')}-{way}-{run.shots}-{run.seed}-{encoder[:10]}.json"


def results_of(
    runs: Sequence[Run],
    work: Callable[[Run], Result],
    folder: Path,
    encoder: str,
    jobs: int,
) -> dict[Run, Result]:
    """Read the results that are there and make the others, several at a time.

    Parameters
    ----------
    runs : sequence of Run
        What is wanted.
    work : callable
        From a run to its result; it must be picklable. Each process has one thread.
    folder : Path
        Of the files.
    encoder : str
        Hash of its weights: another encoder, another file.
    jobs : int
        Processes; with 0 nothing is made, and what is not there is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {run: file_of(folder, run, encoder) for run in runs}
    missing = [run for run in runs if not files[run].is_file()]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are there.", flush=True)
    if missing and not jobs:
        files = {run: file for run, file in files.items() if run not in missing}
    elif missing:
        with ProcessPoolExecutor(jobs, get_context("spawn"), one_thread) as pool:
            waiting = {pool.submit(work, run): run for run in missing}
            for number, done in enumerate(as_completed(waiting), 1):
                run, result = waiting[done], done.result()
                with replace_atomically(files[run]) as temporary:
                    content = {"run": asdict(run), "encoder": encoder, "result": asdict(result)}
                    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
                dice = sum(result.dice) / len(result.dice)
                print(f"{number} of {len(missing)}: {run} {dice:.3f}", flush=True)
    return {
        run: Result(**json.loads(file.read_text(encoding="utf-8"))["result"])
        for run, file in files.items()
    }


def one_thread() -> None:
    """Hold this process to one thread."""
    import torch

    from napari_s2dc.engine.allocator import keep_large_buffers

    keep_large_buffers()
    torch.set_num_threads(1)
