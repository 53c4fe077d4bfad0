"""Threads for what takes long, and the way of its results back to the main thread.

napari's workers are not used for the work itself. superqt runs them with Python's warning filters
changed, which are those of the whole process: of two workers that overlap, the second puts back
what the first had set, and warnings stay changed for good. They also share one pool with two
threads on a machine of two cores, where a click would wait for a match of minutes.
"""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal, Slot

__all__ = ["busy", "start"]

logger = logging.getLogger(__name__)

_NAME = "S2DC"
_THREADS = 8
"""More than the long jobs a person starts before the first one ends, so that short ones begin at
once. The system shares the cores out among them."""

# Python's pools: at the program's end it waits for them, files that are being written included.
_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=_NAME)
_writing = ThreadPoolExecutor(1, thread_name_prefix=f"{_NAME} writing")

_numbers = count()
_hearing: dict[int, Callable[[Any], None]] = {}


class _Mail(QObject):
    """Takes what threads say to the thread in which it was made; it is never deleted.

    A sender that went away while a thread emits would end the process.
    """

    said = Signal(int, object)
    ended = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.said.connect(self._hear, Qt.ConnectionType.QueuedConnection)
        self.ended.connect(self._end, Qt.ConnectionType.QueuedConnection)

    @Slot(int, object)
    def _hear(self, number: int, message: Any) -> None:
        _hearing[number](message)

    @Slot(int)
    def _end(self, number: int) -> None:
        del _hearing[number]


_mail = functools.cache(_Mail)


def start(
    work: Callable[[Callable[[Any], None]], None],
    hear: Callable[[Any], None],
    *,
    writes: bool = False,
) -> None:
    """Call a function in a thread; to be called in the main thread.

    Parameters
    ----------
    work : callable
        Gets a function that it may call with messages. Its exceptions are its own business.
    hear : callable
        Called in the main thread with each message. No thread ever holds it: what it refers to,
        such as layers and widgets, goes away in the main thread.
    writes : bool
        It writes a file: such functions run one after the other, in their own thread.
    """
    _log_warnings_of_threads()
    number = next(_numbers)
    _hearing[number] = hear
    (_writing if writes else _pool).submit(_run, _mail(), number, work)


def busy() -> int:
    """How many functions were started and have not ended, or were not heard to the end."""
    return len(_hearing)


def _run(mail: _Mail, number: int, work: Callable[[Callable[[Any], None]], None]) -> None:
    try:
        work(functools.partial(mail.said.emit, number))
    finally:
        with suppress(RuntimeError):  # Qt is gone: the program ends
            mail.ended.emit(number)


class _Hook:
    """Show warnings as before, but only log those of our threads: napari would pop each one up."""

    def __init__(self, before: Callable[..., None]) -> None:
        self._before = before

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if threading.current_thread().name.startswith(_NAME):
            logger.info("%s (%s, line %s)", message, filename, lineno)
        else:
            self._before(message, category, filename, lineno, file, line)


def _log_warnings_of_threads() -> None:
    """Take over what shows warnings, once; again where napari or a test exchanged it since."""
    if not isinstance(warnings.showwarning, _Hook):
        warnings.showwarning = _Hook(warnings.showwarning)
