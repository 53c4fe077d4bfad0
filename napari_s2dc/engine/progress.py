"""How long work reports where it is, and how it is cancelled: generators of `Progress`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

__all__ = ["Progress", "Steps", "finish", "finish_with_bar"]

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


Steps: TypeAlias = Generator[Progress, None, T]
"""A long function: yields `Progress`, returns its result; closing it cancels and leaves nothing."""


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


def finish_with_bar(steps: Steps[T]) -> T:
    """Run a long function to its end under a bar on standard error with the time left.

    Parameters
    ----------
    steps : Steps
        What an engine function returned; Ctrl-C closes it.

    Returns
    -------
    object
        The function's result. Where standard error is no terminal there is no bar.
    """
    from tqdm import tqdm

    # disable=None: only on a terminal, because a log file would collect every state of the bar
    with closing(steps), tqdm(leave=False, disable=None, mininterval=0) as bar:
        while True:
            try:
                progress = next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result
            bar.total, bar.unit = progress.total, f" {progress.what}"
            # Fewer than before after a new start with smaller windows.
            bar.update(progress.done - bar.n)
