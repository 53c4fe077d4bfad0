"""Writing files so that a crash or a full disk never leaves half of one."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_s2dc.errors import S2DCError

if TYPE_CHECKING:
    from torch import Tensor


_WAITS_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbour that takes the place of a file when the block succeeds.

    Parameters
    ----------
    path : Path
        File to write; its folder is created.

    Yields
    ------
    Path
        Temporary path in the same folder, with the same suffixes; write here.

    Raises
    ------
    S2DCError
        The disk is full or the folder cannot be written. The old file, if any, is still whole.
    """
    temporary = path.parent / _temporary_name(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        take_place(temporary, path)
    except OSError as error:
        hint = "Free some space or choose another folder."
        if sys.platform == "win32" and isinstance(error, PermissionError) and os.path.exists(path):
            # It does not replace a file that is open somewhere.
            hint = "Close other programs that have it open, or choose another folder."
        raise S2DCError(f"Cannot write {path}: {error.strerror or error}.", hint) from error
    finally:
        with suppress(OSError):  # such as a parent that is a file: told above
            temporary.unlink(missing_ok=True)


def take_place(new: Path, path: Path) -> None:
    """Rename a new file or folder; on Windows, wait a little for what has it or the old one open.

    Virus scanners look at files that have just been written there.

    Parameters
    ----------
    new : Path
        File or folder in the folder of `path`.
    path : Path
        Name that it gets; a file of that name is replaced.
    """
    for seconds in _WAITS_SECONDS if sys.platform == "win32" else ():
        try:
            os.replace(new, path)
            return
        except PermissionError:
            time.sleep(seconds)
    os.replace(new, path)


def _temporary_name(name: str) -> str:
    # Not by tempfile, which on Windows tries names without end in a folder that refuses new files.
    return f".part-{uuid.uuid4().hex[:8]}-{name}"


def why_not_writable(path: Path) -> str:
    """Say in a few words why a file cannot be written, before there is any; empty when it may be.

    Parameters
    ----------
    path : Path
        File; it and its folder need not be there.
    """
    try:
        if path.is_dir():
            return "it is a folder"
        there = next(folder for folder in path.parents if folder.exists())
    except OSError as error:  # in a folder that may not be searched, or the name is too long
        return error.strerror or str(error)
    if not there.is_dir():
        return f"{there} is a file, not a folder"
    refused = f"{there} may not be written to"
    if not os.access(there, os.W_OK | os.X_OK):
        return refused
    if sys.platform == "win32":  # where the question above is not about the rights of a user
        trial = there / _temporary_name("trial")
        try:
            trial.touch(exist_ok=False)
            trial.unlink()
        except OSError:
            return refused
    return ""


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors; the file appears whole or not at all.

    Parameters
    ----------
    path : Path
        File to write; its folder is created.
    tensors : dict of Tensor
        By name.
    metadata : dict of str
        For the header.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    from safetensors.torch import save

    # In memory first: safetensors hides why its own writing failed, such as a full disk.
    content = save({name: part.contiguous() for name, part in tensors.items()}, metadata=metadata)
    with replace_atomically(path) as temporary:
        temporary.write_bytes(content)


def write_with_torch(path: Path, content: Any) -> None:
    """Write with torch.save; the file appears whole or not at all.

    Parameters
    ----------
    path : Path
        File to write; its folder is created.
    content : object
        What torch.save takes.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    import torch

    # Through a Python file, because torch's own writer hides why it failed.
    with replace_atomically(path) as temporary, temporary.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            # That its archive was cut short; the disk's own word came before.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def holds_tensors(path: Path, key: str) -> bool:
    """Whether a file is one of `write_tensors` whose header has a key."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as stream:
            return key in (stream.metadata() or {})
    except (OSError, SafetensorError):
        return False


@contextmanager
def reading_tensors(
    path: Path, key: str, latest: int, what: str, writer: str, kind: type[S2DCError]
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Read a safetensors file of ours; whatever is wrong with its content becomes a sentence.

    Parameters
    ----------
    path : Path
        File.
    key : str
        Of the JSON in its header, whose ``format`` is the version it was written in.
    latest : int
        Latest version that can be read.
    what : str
        What the file should hold, such as ``"embedding"``.
    writer : str
        Who writes such files, for the hint.
    kind : type
        Of the error.

    Yields
    ------
    facts : dict
        The JSON.
    tensors : dict of Tensor
        By name. Make sense of both in the block: its errors are those of a damaged file.

    Raises
    ------
    S2DCError
        Of the type `kind`: the file is missing, damaged, of a later version, or something else.
    """
    from safetensors import SafetensorError, safe_open

    hint = f"Name a file that {writer} wrote"
    try:
        with path.open("rb"):
            pass  # for the reason, which safetensors does not give
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
            if key not in header:
                raise kind(f"{path} holds no {what}.", f"{hint}.")
            facts = json.loads(header[key])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        if sys.platform == "win32":
            # They are the file, mapped into memory: it could not be replaced nor deleted.
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        if facts["format"] > latest:
            raise kind(
                f"{path} was written by a later version of napari-s2dc.", "Update napari-s2dc."
            )
        yield facts, tensors
    except OSError as error:
        if os.path.isdir(path):  # Windows says that permission was denied
            raise kind(f"Cannot read {path}: it is a folder.", f"{hint}.") from error
        raise kind(f"Cannot read {path}: {error.strerror or error}.") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise kind(
            f"{path} is damaged or holds no {what}.",
            f"{hint}; files with Python objects in them (pickle) are never read.",
        ) from error
