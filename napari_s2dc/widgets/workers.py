"""Engine generators in threads: progress, time left, cancel, and nothing left behind.

A job never touches the viewer; what it returns reaches a slot of a Qt object in the main thread,
which Qt disconnects when that object goes away. So a viewer may be closed at any moment.
"""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

from qtpy.QtCore import QObject, QThreadPool, QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_s2dc.engine.loading import load_engine
from napari_s2dc.errors import S2DCError

__all__ = ["Jobs", "TaskBar", "time_left"]

logger = logging.getLogger(__name__)

_CANCELLED = object()
_THREADS = 8
"""At least; with one a core, a quick job would wait for minutes behind long ones."""


@dataclass(frozen=True)
class _Failure:
    """An error as a result: raised, superqt and napari would both report it in their own ways."""

    error: Exception


class _Titled(functools.partial):
    """A function that shows itself by a title, since napari prints it in its own messages."""

    title = "S²DC"

    def __repr__(self) -> str:
        return self.title


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    # napari would pop up every warning that a library gives in a worker.
    logger.info("%s (%s, line %s)", message, filename, lineno)


class _PythonsWarnings:
    """Python's treatment of warnings, given back when no job runs any more.

    Every worker of superqt replaces it for the whole process and puts back what it found, which
    is another worker's where two overlap.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._running = 0
        self._found: tuple[Any, Any] = (warnings.filters, warnings.showwarning)

    def keep(self) -> None:
        with self._lock:
            if not self._running:
                self._found = (warnings.filters, warnings.showwarning)
            self._running += 1

    def give_back(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                warnings.filters, warnings.showwarning = self._found
                with warnings.catch_warnings():
                    pass  # makes Python forget what it decided by the other filters


_pythons_warnings = _PythonsWarnings()


def _steps(make: Callable[[], Any], cancelled: Event) -> Generator[Any, None, Any]:
    """Run an engine function; yields its progress and returns its result or its error."""
    warnings.showwarning = _log_warning  # napari's worker restores it at its end
    try:
        load_engine()
        if cancelled.is_set():  # while it waited for its turn or for the import
            return _CANCELLED
        steps = make()
        if not isinstance(steps, Generator):
            return _CANCELLED if cancelled.is_set() else steps
        try:
            while not cancelled.is_set():
                try:
                    progress = next(steps)
                except StopIteration as end:
                    return end.value
                yield progress
            return _CANCELLED
        finally:
            steps.close()
    except Exception as error:  # shown by the main thread, whatever it is
        return _Failure(error)


class _Job(QObject):
    """One run of an engine function in a thread."""

    progressed = Signal(object)
    ended = Signal(object)  # result, _Failure or _CANCELLED

    def __init__(self, make: Callable[[], Any], title: str, parent: QObject) -> None:
        from napari.qt.threading import create_worker

        super().__init__(parent)
        self.cancelled = Event()
        self._over = False
        function = _Titled(_steps, make, self.cancelled)
        function.title = title
        worker = create_worker(function)
        worker.yielded.connect(self._on_progress)
        worker.returned.connect(self._end)
        # After a quit by napari, which closes its window, nothing is returned.
        worker.finished.connect(self._on_finished)
        self._worker = worker

    def start(self) -> None:
        _pythons_warnings.keep()
        # In the thread itself, and so also when this object is gone.
        self._worker.finished.connect(_pythons_warnings.give_back)
        self._worker.start()

    def cancel(self) -> None:
        self.cancelled.set()

    def _on_progress(self, progress: Any) -> None:
        if not self.cancelled.is_set():
            self.progressed.emit(progress)

    def _on_finished(self) -> None:
        self._end(_CANCELLED)

    def _end(self, outcome: Any) -> None:
        if not self._over:
            self._over = True
            self.ended.emit(_CANCELLED if self.cancelled.is_set() else outcome)


class Jobs(QObject):
    """The running jobs of one workbench, at most one of each name.

    A new job of a name takes the place of the one that runs: the old one is cancelled and its
    result, should it still come, is dropped.

    Parameters
    ----------
    parent : QObject
        With it, all connections go.
    """

    started = Signal(str, str)  # name, title
    progressed = Signal(str, object)  # name, engine Progress
    ended = Signal(str)  # name
    failed = Signal(str)  # a sentence for the user
    """Every job that shows progress announces these; quiet ones only ``failed``."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._running: dict[str, _Job] = {}
        pool = QThreadPool.globalInstance()
        pool.setMaxThreadCount(max(pool.maxThreadCount(), _THREADS))

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
        job = _Job(make, title, self)
        self._running[name] = job

        def end(outcome: Any) -> None:
            job.deleteLater()
            current = self._running.get(name) is job
            if current:
                del self._running[name]
                if not quiet:
                    self.ended.emit(name)
            if isinstance(outcome, _Failure):
                self._report(title, outcome.error)
            elif outcome is not _CANCELLED and current:
                done(outcome)

        job.ended.connect(end)
        if not quiet:
            job.progressed.connect(functools.partial(self.progressed.emit, name))
            self.started.emit(name, title)
        job.start()

    def _report(self, title: str, error: Exception) -> None:
        if isinstance(error, S2DCError):
            self.failed.emit(str(error))
            return
        from napari.utils.notifications import notification_manager

        self.failed.emit(f"{title} stopped because of an error in the program; napari shows it.")
        notification_manager.receive_error(type(error), error, error.__traceback__)

    def is_running(self, name: str) -> bool:
        """Whether a job of that name runs."""
        return name in self._running

    def cancel(self, name: str) -> None:
        """Ask a job to stop after its current step; unknown names are fine."""
        job = self._running.get(name)
        if job is not None:
            job.cancel()

    def cancel_all(self) -> None:
        """Ask every job to stop."""
        for job in list(self._running.values()):
            job.cancel()


def time_left(seconds: float) -> str:
    """Words for a duration in seconds: ``12 s left``, ``3 min left``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"{round(seconds / 60)} min left"
    return f"{seconds / 3600:.1f} h left"


class TaskBar(QWidget):
    """What runs, how far it is, and a button that stops it; hidden while nothing runs.

    Parameters
    ----------
    jobs : Jobs
        Jobs to show; the latest one that is running.
    """

    def __init__(self, jobs: Jobs, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._jobs = jobs
        self._titles: dict[str, str] = {}
        self._since: dict[str, tuple[float, int]] = {}
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.setToolTip("Stop after the current step; nothing half-done is left")
        self.cancel_button.clicked.connect(self._cancel)
        row = QHBoxLayout()
        row.addWidget(self.bar, 1)
        row.addWidget(self.cancel_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.text)
        column.addLayout(row)
        self.hide()
        jobs.started.connect(self._start)
        jobs.progressed.connect(self._progress)
        jobs.ended.connect(self._end)
        # A job that takes a blink should not make the panel jump.
        self._delay = QTimer(self)
        self._delay.setSingleShot(True)
        self._delay.setInterval(150)
        self._delay.timeout.connect(self._appear)

    def _start(self, name: str, title: str) -> None:
        self._titles.pop(name, None)  # to the end: the latest is shown
        self._titles[name] = title
        self._since.pop(name, None)
        self.text.setText(f"{title}…")
        self.bar.setRange(0, 0)
        self.cancel_button.setEnabled(True)
        self._delay.start()

    def _appear(self) -> None:
        self.setVisible(bool(self._titles))

    def _progress(self, name: str, progress: Any) -> None:
        if name != next(reversed(self._titles), None):
            return
        first = self._since.setdefault(name, (time.monotonic(), progress.done))
        self.bar.setRange(0, max(progress.total, 1))
        self.bar.setValue(progress.done)
        text = f"{self._titles[name]}: {progress.done} of {progress.total} {progress.what}"
        made = progress.done - first[1]
        if made > 0:
            rate = (time.monotonic() - first[0]) / made
            text += f", {time_left(rate * (progress.total - progress.done))}"
        self.text.setText(text)

    def _end(self, name: str) -> None:
        self._titles.pop(name, None)
        if self._titles:
            self.text.setText(f"{self._titles[next(reversed(self._titles))]}…")
            self.bar.setRange(0, 0)
            self.cancel_button.setEnabled(True)
        else:
            self._delay.stop()
            self.hide()

    def _cancel(self) -> None:
        name = next(reversed(self._titles), None)
        if name is not None:
            self.cancel_button.setEnabled(False)
            self.text.setText(f"{self._titles[name]}: stopping…")
            self._jobs.cancel(name)
