"""What runs, and for how long it still will."""

from __future__ import annotations

import time
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_s2dc.widgets.workers import Jobs

__all__ = ["TaskBar", "time_left"]


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
        self._since: dict[str, tuple[float, int, str]] = {}
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
        if name != next(reversed(self._titles), None) or not progress.total:
            return
        now = time.monotonic(), progress.done, progress.what
        first = self._since.setdefault(name, now)
        if first[2] != now[2]:  # other parts take another time
            first = self._since[name] = now
        self.bar.setRange(0, progress.total)
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
