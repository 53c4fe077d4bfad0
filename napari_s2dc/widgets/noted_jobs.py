"""Jobs as napari knows them: it lists those that run, and asks before it closes their window."""

from __future__ import annotations

from threading import Event
from typing import Any

from napari.qt.threading import FunctionWorker, create_worker

__all__ = ["note"]


class _Title:
    """Stands for the function of a worker, by whose text napari names it."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __str__(self) -> str:
        return self._title

    def __call__(self) -> None:
        raise RuntimeError("napari does not run this job; see napari_s2dc.widgets.threads")


class _Noted(FunctionWorker):
    """A worker that is never started, for its signals and for `quit`, which napari calls."""

    cancelled: Event | None = None

    def quit(self) -> None:
        if self.cancelled is not None:
            self.cancelled.set()


def note(title: str, cancelled: Event | None) -> Any:
    """Tell napari's current viewer of a job.

    Parameters
    ----------
    title : str
        What the user reads where napari asks whether to close.
    cancelled : threading.Event or None
        Set when the user closes all the same. napari keeps it as long as its window, so it is no
        callback that holds what the job works on.

    Returns
    -------
    napari.qt.threading.FunctionWorker
        Emit its ``started`` and ``finished``; they say nothing to anyone but napari.
    """
    worker = create_worker(_Title(title), _worker_class=_Noted)
    worker.cancelled = cancelled
    return worker
