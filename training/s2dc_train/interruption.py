"""Stopping on request: SIGTERM and Ctrl-C, from the first moment of the command to the last."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun passes on what the terminal has already sent: that is not a second wish.
_ONE_PRESS_SECONDS = 1.0


def is_first_process() -> bool:
    """Tell whether this process prints and writes; known before any library is imported."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    ranks = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


class Interrupted(BaseException):
    """A signal came while there was nothing to save, or Ctrl-C came twice.

    Not a ``KeyboardInterrupt``, which Lightning turns into exit code 1.

    Parameters
    ----------
    number : int
        The signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class StopRequest:
    """Takes over SIGTERM and Ctrl-C inside a ``with`` block.

    While steps are taken, a signal is only noted, so that the step can end and be saved; at any
    other time, or when Ctrl-C is pressed again, it raises :class:`Interrupted`.

    Attributes
    ----------
    number : int
        The noted signal; 0 for none.
    deferred : bool
        Whether signals are noted rather than raised.
    """

    def __init__(self) -> None:
        self.number = 0
        self.deferred = False
        self._noted = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def install(self) -> None:
        """Take the signals, again if a library has taken them meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread only
        for number in SIGNALS:
            previous = signal.signal(number, self._handle)
            self._previous.setdefault(number, previous)

    def _handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        again = self.number and number == signal.SIGINT and now - self._noted > _ONE_PRESS_SECONDS
        if not self.deferred or again:
            raise Interrupted(number)
        if not self.number:
            self.number, self._noted = number, now
