"""How long work reports where it is, and how it is cancelled: generators of `Progress`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from math import nan
from typing import TypeAlias, TypeVar

__all__ = [
    "Progress",
    "Steps",
    "StopTraining",
    "TrainingProgress",
    "as_one",
    "finish",
    "finish_with_bar",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """Where a long function is.

    Parameters
    ----------
    done : int
        Parts finished.
    total : int
        Parts there are; it may change on the way, for example when windows have to be smaller. 0
        while they cannot be counted.
    what : str
        Name of the parts, plural: ``"windows"``, ``"views"``.
    """

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class TrainingProgress(Progress):
    """Where a training is, and how well it goes.

    Parameters
    ----------
    loss : float
        Of this step.
    dice : float, optional
        Mean over the classes, where it was measured after this step: on held-out scans if there
        are any, else on voxels that are learned from.
    """

    loss: float = nan
    dice: float | None = None


class StopTraining(Exception):
    """Thrown into a training, it ends that one after the step in hand; the best so far is kept.

    Where nothing can be kept, it comes back.
    """


Steps: TypeAlias = Generator[Progress, None, T]
"""A long function: yields `Progress`, returns its result; closing it cancels and leaves nothing."""


def as_one(steps: Steps[T], place: Progress) -> Steps[T]:
    """Run a long function, each of its steps a moment of one larger step.

    Parameters
    ----------
    steps : Steps
        What an engine function returned; closed with this.
    place : Progress
        Yielded after every one of its steps.

    Returns
    -------
    object
        The function's result.
    """
    with closing(steps):
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result
            yield place


def finish(steps: Steps[T]) -> T:
    """Run a long function silently to its end.

    Parameters
    ----------
    steps : Steps
        What an engine function returned.

    Returns
    -------
    object
        The function's result.
    """
    with closing(steps):
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result


def finish_with_bar(steps: Steps[T], stop: Callable[[], bool] = lambda: False) -> T:
    """Run a long function to its end under a bar on standard error with the time left.

    Parameters
    ----------
    steps : Steps
        What an engine function returned; Ctrl-C closes it.
    stop : callable
        Asked after every part; once it says yes, a training ends and keeps the best so far.

    Returns
    -------
    object
        The function's result. Where standard error is no terminal there is no bar.

    Raises
    ------
    StopTraining
        `stop` said yes where nothing can be kept.
    """
    from tqdm import tqdm

    # disable=None: only on a terminal, because a log file would collect every state of the bar
    with closing(steps), tqdm(leave=False, disable=None, mininterval=0) as bar:
        measured: dict[str, str] = {}
        while True:
            try:
                progress = steps.throw(StopTraining()) if stop() else next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            bar.total, bar.unit = progress.total, f" {progress.what}"
            if isinstance(progress, TrainingProgress):
                measured["loss"] = f"{progress.loss:.3f}"
                if progress.dice is not None:
                    measured["Dice"] = f"{progress.dice:.3f}"
                bar.set_postfix(measured, refresh=False)
            # Fewer than before after a new start with smaller windows.
            bar.update(progress.done - bar.n)
