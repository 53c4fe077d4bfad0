"""What command-line programs share: arguments, errors and remarks as one line, exit codes."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from napari_s2dc.errors import ConfigurationError, S2DCError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""

_WRONG_VALUE = re.compile(
    r'Parser key "([\w.]+)": ?(.*?)(?:Given value type: \S+ \S+ )?(?:Given value|Got value): ?(.*)'
)
_KIND = re.compile(r"<class '[\w.]+'>|Literal\[[^\]]*\]")
# Of the types that jsonargparse names.
_WORDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'list'>": "a list such as [1,2,2]",
    "<class 'jsonargparse.typing.PositiveInt'>": "a whole number above 0",
    "<class 'jsonargparse.typing.NonNegativeInt'>": "a whole number of at least 0",
}


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
    _print_whatever_there_is()
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


def _print_whatever_there_is() -> None:
    """Let what the encoding of standard output lacks be printed as an escape, not end the work.

    On Windows a file or another program gets the system's 8-bit encoding, which knows few letters.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def parse_arguments(parser: ArgumentParser, arguments: Sequence[str], program: str) -> Namespace:
    """Parse a command line.

    Parameters
    ----------
    parser : ArgumentParser
        Of jsonargparse; it and those of its subcommands are told to raise, not to exit.
    arguments : sequence of str
        The command line.
    program : str
        Name of the command, for the hint.

    Raises
    ------
    ConfigurationError
        It cannot be parsed: one sentence that names the option and the value.
    """
    from jsonargparse import ArgumentError

    # No public name leads there; were it gone, jsonargparse's own words would have to do.
    known = getattr(parser, "_subcommands_action", None)
    commands = known.choices if known else {}
    for one in (parser, *commands.values()):
        one.exit_on_error = False
    command = next((name for name in arguments[:1] if name in commands), "")
    hint = f"See {' '.join(filter(None, (program, command)))} --help for every option."
    try:
        return parser.parse_args(list(arguments))
    except UnicodeDecodeError as error:
        values = [argument.rpartition("=")[2] for argument in arguments]
        named = [value for value in values if not _is_text(Path(value))]
        what = ", ".join(named) or "A file that is given as an option"
        raise ConfigurationError(f"{what} is not a UTF-8 text file.") from error
    except ArgumentError as error:
        options = _option_names(commands.get(command, parser))
        sentence = _in_one_sentence(str(error), command, options)
        files = [Path(value).name for value in _config_files(arguments)]
        if files and sentence.startswith("Unexpected config"):
            sentence = f"{', '.join(files)} holds no settings."
        elif files and ("parsing config" in sentence or "does not accept option" in sentence):
            sentence = f"{', '.join(files)}: {sentence}"
        raise ConfigurationError(sentence, hint) from error


def _option_names(parser: ArgumentParser) -> dict[str, str]:
    """Options as they are written, by the name of their value."""
    return {
        action.dest: next(
            (option for option in action.option_strings if option.startswith("--")), action.dest
        )
        for action in parser._actions
    }


def _in_one_sentence(message: str, command: str, options: Mapping[str, str]) -> str:
    """Shorten what jsonargparse says of an option with a wrong value; else only join its lines."""
    whole = " ".join(message.split())

    def option(name: str) -> str:
        name = name.removeprefix(f"{command}.")
        return options.get(name, name)

    found = _WRONG_VALUE.search(whole)
    kinds = [] if found is None else list(dict.fromkeys(_KIND.findall(found[2])))
    words = [_in_words(kind) for kind in kinds if kind != "<class 'NoneType'>"]
    if found is None or not words:
        if command and "required" in whole:
            whole = whole.replace(f" {command}.", " ")
        whole = re.sub(r'Parser key "([\w.]+)"', lambda key: option(key[1]), whole)
        return f"{whole.rstrip('.')}."
    return f"{option(found[1])} {found[3]}: {' or '.join(words)} is expected."


def _in_words(kind: str) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    return f"one of {kind.removeprefix('Literal[').rstrip(']')}".replace("'", "")


def _config_files(arguments: Sequence[str]) -> list[str]:
    """Values of every ``--config``."""
    joined = [item.removeprefix("--config=") for item in arguments if item.startswith("--config=")]
    return joined + [value for option, value in pairwise(arguments) if option == "--config"]


def _is_text(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    except OSError:
        return True  # the name of a packaged configuration
    return True


def command_line(arguments: Sequence[str]) -> str:
    """Join arguments to a line that the shell of this system takes apart again."""
    if sys.platform == "win32":  # where single quotes are characters like others
        from subprocess import list2cmdline

        return list2cmdline(arguments)
    return shlex.join(arguments)


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
