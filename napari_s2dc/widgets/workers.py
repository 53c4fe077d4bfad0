"""Engine generators in threads: progress, time left, cancel, and nothing left behind.

A job never touches the viewer; what it returns reaches the main thread, where it is dropped once
the workbench that asked for it has gone. So a viewer may be closed at any moment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import count
from threading import Event
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_s2dc.engine.loading import load_engine
from napari_s2dc.errors import S2DCError
from napari_s2dc.widgets.noted_jobs import note
from napari_s2dc.widgets.threads import start

__all__ = ["Jobs"]

_numbers = count()


@dataclass(frozen=True)
class _End:
    """The last message of a job: its result, or the error in its place; neither if cancelled."""

    result: Any = None
    error: Exception | None = None
    cancelled: bool = False


@dataclass(eq=False)
class _Job:
    """One run of an engine function."""

    title: str
    done: Callable[[Any], None]
    quiet: bool
    writes: bool
    cancelled: Event = field(default_factory=Event)
    is_abandoned: bool = False  # by a workbench that went

    def cancel(self) -> None:
        if not self.writes:
            self.cancelled.set()


def _work(make: Callable[[], Any], cancelled: Event, say: Callable[[Any], None]) -> None:
    """Run an engine function; says its progress, and at last how it ended."""
    try:
        end = _run(make, cancelled, say)
    except Exception as error:  # shown by the main thread, whatever it is
        end = _End(error=error)
    say(end)


def _run(make: Callable[[], Any], cancelled: Event, say: Callable[[Any], None]) -> _End:
    load_engine()
    if cancelled.is_set():  # while it waited for its turn or for the import
        return _End(cancelled=True)
    steps = make()
    if not isinstance(steps, Generator):
        return _End(steps)
    try:
        while not cancelled.is_set():
            try:
                progress = next(steps)
            except StopIteration as end:
                return _End(end.value)
            say(progress)
        return _End(cancelled=True)
    finally:
        steps.close()


class Jobs(QObject):
    """The running jobs of one workbench, at most one of each name.

    A new job of a name takes the place of the one that runs: the old one is cancelled and its
    result, should it still come, is dropped. What writes files is never cancelled.

    Parameters
    ----------
    parent : QObject
        With it, all jobs are cancelled.
    """

    started = Signal(str, str)  # name, title
    progressed = Signal(str, object)  # name, engine Progress
    ended = Signal(str)  # name
    failed = Signal(str)  # a sentence for the user
    """Every job that shows progress announces these; quiet ones only ``failed``."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._running: dict[str, _Job] = {}
        self._unfinished: set[_Job] = set()  # also those whose place was taken
        self.destroyed.connect(functools.partial(_abandon, self._unfinished))

    def run(
        self,
        name: str,
        title: str,
        make: Callable[[], Any],
        done: Callable[[Any], None],
        *,
        quiet: bool = False,
    ) -> None:
        """Run an engine function in a thread.

        Parameters
        ----------
        name : str
            Which job it is; one of a name runs at a time.
        title : str
            What the user reads while it runs.
        make : callable
            Called in the thread; returns a result, or a generator that yields progress.
        done : callable
            Called in the main thread with the result.
        quiet : bool
            Too short to show progress.
        """
        self.cancel(name)
        self._begin(name, make, _Job(title, done, quiet, writes=False))

    def write(self, title: str, make: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run a function that writes a file, or takes one away, in a thread.

        It is done whatever comes after it, also when the viewer is closed; its errors are told.
        Such functions run one after the other, in the order of the calls.

        Parameters
        ----------
        title : str
            What the user reads where it fails.
        make : callable
            Called in the thread; returns a result.
        done : callable
            Called in the main thread with the result.
        """
        job = _Job(title, done, quiet=True, writes=True)
        self._begin(f"writing {next(_numbers)}", make, job)

    def _begin(self, name: str, make: Callable[[], Any], job: _Job) -> None:
        self._running[name] = job
        self._unfinished.add(job)
        noted = note(job.title, None if job.writes else job.cancelled)

        def hear(message: Any) -> None:
            if isinstance(message, _End):
                noted.finished.emit()
                self._end(name, job, message)
            elif not (job.quiet or job.is_abandoned or job.cancelled.is_set()):
                self.progressed.emit(name, message)

        if not job.quiet:
            self.started.emit(name, job.title)
        start(functools.partial(_work, make, job.cancelled), hear, writes=job.writes)
        noted.started.emit()

    def _end(self, name: str, job: _Job, end: _End) -> None:
        if job.is_abandoned:
            if job.writes and end.error is not None:
                _report_to_napari(job.title, end.error)
            return
        self._unfinished.discard(job)
        current = self._running.get(name) is job
        if current:
            del self._running[name]
            if not job.quiet:
                self.ended.emit(name)
        if job.cancelled.is_set() or end.cancelled:
            return
        if end.error is not None:
            self._report(job.title, end.error)
        elif current:
            job.done(end.result)

    def _report(self, title: str, error: Exception) -> None:
        if isinstance(error, S2DCError):
            self.failed.emit(str(error))
            return
        self.failed.emit(f"{title} stopped because of an error in the program; napari shows it.")
        _report_to_napari(title, error)

    def is_running(self, name: str) -> bool:
        """Whether a job of that name runs, or is about to stop."""
        return name in self._running

    def is_due(self, name: str) -> bool:
        """Whether a job of that name runs and was not cancelled, so that its result will come."""
        job = self._running.get(name)
        return job is not None and not job.cancelled.is_set()

    def cancel(self, name: str) -> None:
        """Ask a job to stop after its current step; unknown names are fine."""
        job = self._running.get(name)
        if job is not None:
            job.cancel()

    def cancel_all(self) -> None:
        """Ask every job to stop, except those that write."""
        for job in self._running.values():
            job.cancel()


def _abandon(jobs: set[_Job]) -> None:
    """Nobody is left to show results to."""
    for job in jobs:
        job.is_abandoned = True
        job.cancel()


def _report_to_napari(title: str, error: Exception) -> None:
    """Have napari show an error: in its window, or where there is none in the terminal."""
    from napari.utils.notifications import notification_manager, show_error

    if isinstance(error, S2DCError):
        show_error(f"{title}: {error}")
    else:
        notification_manager.receive_error(type(error), error, error.__traceback__)
