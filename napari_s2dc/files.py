"""Writing files so that a crash or a full disk never leaves half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from napari_s2dc.errors import S2DCError


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
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=f"-{path.name}")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        # Temporary files are private; a result gets what the user's umask gives any file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise S2DCError(
            f"Cannot write {path}: {error.strerror or error}.",
            "Free some space or choose another folder.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
