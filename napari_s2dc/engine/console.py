"""What every command-line program of the project shares: errors as one line, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

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
