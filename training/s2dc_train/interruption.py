"""Stopping on request: SIGTERM and Ctrl-C, from the first moment of the command to the last."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal came while there was nothing to save.

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
    other time, or when a second one comes, it raises :class:`Interrupted`.

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
        if not self.deferred or self.number:
            raise Interrupted(number)
        self.number = number
