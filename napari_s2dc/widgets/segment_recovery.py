"""Labels kept in files while they are painted, so that a crash does not take them."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import platformdirs

from napari_s2dc.errors import S2DCError
from napari_s2dc.files import replace_atomically

__all__ = ["KeptLabels", "autosave_folder", "left_behind", "own_name", "read_facts"]

_ENDING = ".npz"
_SAME_PROCESS_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class KeptLabels:
    """Facts about a Labels layer, all that is needed to show it again.

    Parameters
    ----------
    name : str
        Of the layer.
    geometry : dict
        Where it lies, as plain values.
    names, colours : dict
        Of classes, by label.
    zero, background : str, int or None
        What the labels mean.
    image : str
        File of the scan that was painted on, or "".
    affine : list of list of float, optional
        Of that file, (4, 4): voxel (z, y, x) to mm.
    mode : str
        Method of training that was chosen.
    saved : str
        When, in ISO format.
    """

    name: str
    geometry: dict[str, Any]
    names: dict[int, str]
    colours: dict[int, tuple[float, float, float]]
    zero: str
    background: int | None
    image: str = ""
    affine: list[list[float]] | None = None
    mode: str = ""
    saved: str = field(default_factory=lambda: datetime.now().isoformat(timespec="seconds"))

    def write(self, labels: Any, path: Path) -> Path:
        """Write facts and labels as one file, which appears whole or not at all.

        Raises
        ------
        S2DCError
            The file cannot be written.
        """
        with replace_atomically(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, labels=np.asarray(labels), facts=json.dumps(asdict(self)))
        return path


def autosave_folder() -> Path:
    """Folder of the files."""
    return platformdirs.user_data_path("napari-s2dc", appauthor=False) / "autosave"


def own_name(number: int) -> str:
    """Name of a file of this process."""
    import psutil

    return f"{_host()}-{os.getpid()}-{psutil.Process().create_time():.0f}-{number}{_ENDING}"


def _host() -> str:
    """Name of this computer, of which several may share the folder; without a hyphen."""
    return platform.node().replace("-", "_")


def left_behind(folder: Path) -> list[Path]:
    """List the files of processes that have ended without removing them, the newest last."""
    files = [path for path in folder.glob(f"*{_ENDING}") if _has_ended(path)]
    return sorted(files, key=lambda path: path.stat().st_mtime)


def _has_ended(path: Path) -> bool:
    import psutil

    try:
        host, *numbers = path.stem.split("-")
        process, begun, _ = map(int, numbers)
    except ValueError:
        return False  # no file of ours
    if host != _host():
        return False  # only that computer knows
    try:
        began = psutil.Process(process).create_time()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:  # it is there, but may not be asked
        return False
    return abs(began - begun) > _SAME_PROCESS_SECONDS  # another one has its number now


def read_facts(path: Path) -> KeptLabels:
    """Read the facts of a file.

    Raises
    ------
    S2DCError
        It is damaged.
    """
    return _read(path, "facts")


def read_labels(path: Path) -> np.ndarray:
    """Read the labels of a file.

    Raises
    ------
    S2DCError
        It is damaged.
    """
    found: np.ndarray = _read(path, "labels")
    return found


def _read(path: Path, what: str) -> Any:
    try:
        with np.load(path, allow_pickle=False) as content:
            part = content[what]
        if what == "labels":
            return part
        facts = json.loads(str(part))
        for numbered in ("names", "colours"):  # JSON has words as keys only
            facts[numbered] = {int(label): one for label, one in facts[numbered].items()}
        facts["colours"] = {label: tuple(one) for label, one in facts["colours"].items()}
        return KeptLabels(**facts)
    except (OSError, BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise S2DCError(f"{path} holds no labels that can be restored.") from error
