"""What command-line programs share: errors and remarks as one line, exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from napari_s2dc.errors import S2DCError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""


def run_reporting_errors(function: Callable[[], int | None], program: str) -> int:
    """Run a command and turn the errors a user can mend into one line and an exit code.

    Other exceptions pass through: they are faults of the program and need their traceback.

    Parameters
    ----------
    function : callable
        The command; returns its exit code, None meaning 0.
    program : str
        Name that starts the line on standard error.

    Returns
    -------
    int
        The command's exit code; the error's own (2) after an `S2DCError`; 130 after Ctrl-C.
    """
    try:
        code = function() or 0
        sys.stdout.flush()
    except S2DCError as error:
        # a message may quote a library; the user still gets one line
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader (head, less) went away; keep the interpreter's own last flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # a place that cannot be read or written, or a name the system does not take
        print(f"{program}: error: {error.filename or 'A file'}: {error.strerror}", file=sys.stderr)
        return S2DCError.exit_code
    return code


def tell(text: str) -> None:
    """Say something on standard error, in one line that names the program."""
    print(f"s2dc: {text}", file=sys.stderr, flush=True)


def counted(number: int, one: str, several: str) -> str:
    """Give a number and what it counts, such as ``1 scan`` or ``2 scans``."""
    return f"{number} {one if number == 1 else several}"


class NotedInterrupt:
    """Ctrl-C in a ``with`` block: the first is noted, a second one interrupts at once.

    Attributes
    ----------
    noted : bool
        Whether there was one.
    """

    def __init__(self) -> None:
        self.noted = False

    def __enter__(self) -> NotedInterrupt:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True
        tell("stopping after this step; Ctrl-C again stops at once and keeps nothing")
