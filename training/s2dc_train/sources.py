"""From what a user names (a folder, ``dataset.json``, a list, a scan) to a list of scans."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_s2dc.errors import ConfigurationError
from napari_s2dc.volumes.io import find_volumes, is_label_path
from napari_s2dc.volumes.results import result_in
from s2dc_train.config import DataConfig

FORMATS = "NIfTI (.nii, .nii.gz), NRRD, MHA/MHD, MGH/MGZ or DICOM series folders"
LIST_SUFFIXES = (".csv", ".tsv", ".txt")
_LABEL_ENDINGS = ("_seg", "-seg", ".seg", "_label", "_labels", "_mask", "-label", ".label")
_VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh")


@dataclass(frozen=True, order=True)
class ScanEntry:
    """One scan and, where there is one, its label map.

    Parameters
    ----------
    image : pathlib.Path
        File, or folder of a DICOM series.
    label : pathlib.Path or None
        Label map on the same grid; used to judge features, never to train them.
    """

    image: Path
    label: Path | None = None


def find_scans(config: DataConfig) -> list[ScanEntry]:
    """List the scans that ``config.path`` names, sorted by path, each once.

    Files that a list or ``dataset.json`` names are not looked at here: a missing one is found,
    and reported with its reason, by :func:`s2dc_train.preflight.preflight`.

    Parameters
    ----------
    config : DataConfig
        ``path`` and ``section`` are used.

    Returns
    -------
    list of ScanEntry
        With absolute paths: they are opened in threads, and a library that is loaded meanwhile
        may change the working folder (ITK does).

    Raises
    ------
    ConfigurationError
        When the path does not exist, cannot be understood, or names no scan.
    """
    if not config.path:
        raise ConfigurationError(
            "No scans are named.", "Set --data.path to a folder, a dataset.json or a list of scans."
        )
    path = Path(config.path).expanduser()
    try:
        if not path.exists():
            raise ConfigurationError(f"{path} does not exist.", "Check --data.path.")
        entries = [_absolute(entry) for entry in _dispatch(path, config.section)]
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or error}.", "Check its permissions."
        ) from error
    unique = sorted({entry.image: entry for entry in entries}.values(), key=_order)
    if not unique:
        raise ConfigurationError(f"No scan was found in {path}.", f"Expected {FORMATS}.")
    return unique


def _absolute(entry: ScanEntry) -> ScanEntry:
    return ScanEntry(entry.image.absolute(), entry.label.absolute() if entry.label else None)


def _order(entry: ScanEntry) -> str:
    return entry.image.as_posix()


def _dispatch(path: Path, section: str) -> list[ScanEntry]:
    if path.is_dir():
        table = path / "dataset.json"
        if table.is_file():
            content = _read_json(table)
            # nnU-Net and others write a dataset.json without lists: then the folder decides.
            if section or _sections(content):
                return _from_dataset_json(table, content, section)
        _refuse_section(path, section)
        return _from_folder(path)
    name = path.name.lower()
    if name.endswith(".json"):
        return _from_dataset_json(path, _read_json(path), section)
    _refuse_section(path, section)
    if name.endswith(LIST_SUFFIXES):
        return _from_list(path)
    if name.endswith(_VOLUME_SUFFIXES):
        return [ScanEntry(path)]
    raise ConfigurationError(
        f"{path} is neither a folder, a dataset.json, a CSV/TXT list nor a scan.",
        f"Scans are {FORMATS}.",
    )


def _refuse_section(path: Path, section: str) -> None:
    if section:
        raise ConfigurationError(
            f'Section "{section}" is asked for, but {path} holds no dataset.json with sections.',
            "Leave --data.section empty.",
        )


# --- folders ---------------------------------------------------------------------------------


def _from_folder(folder: Path) -> list[ScanEntry]:
    # Maps that the tools wrote beside the scans are no scans either.
    files = [file for file in find_volumes(folder) if is_label_path(file) or not result_in(file)]
    by_name: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        stem = _stem(file)
        by_name.setdefault((file.parent, stem), []).append(file)
        # nnU-Net numbers the channels of a scan: case_0000, case_0001 belong to label case.
        if re.search(r"_\d{4}$", stem):
            by_name.setdefault((file.parent, stem[:-5]), []).append(file)
    labels: set[Path] = set()
    pairs: dict[Path, Path] = {}
    for file in files:
        scans = _scans_of_label(file, by_name)
        if scans is not None:
            labels.add(file)
            pairs.update({scan: file for scan in scans if scan != file})
    return [ScanEntry(file, pairs.get(file)) for file in files if file not in labels]


def _scans_of_label(file: Path, by_name: dict[tuple[Path, str], list[Path]]) -> list[Path] | None:
    """Return the scans that ``file`` labels; None when name and folder say it is no label map."""
    if file.is_dir() and not os.access(file, os.R_OK | os.X_OK):
        return None  # whoever reads it as a scan learns why it cannot be
    stem = _stem(file)
    match = re.fullmatch(r"labels?(.*)", file.parent.name, re.IGNORECASE)
    if match:
        for prefix in ("images", "image"):
            folder = file.parent.with_name(prefix + match[1])
            if folder.is_dir():
                return by_name.get((folder, stem), [])
    for ending in _LABEL_ENDINGS:
        if stem.lower().endswith(ending):
            scans = by_name.get((file.parent, stem[: -len(ending)]))
            if scans:
                return scans
    return [] if is_label_path(file) else None


def _stem(file: Path) -> str:
    for suffix in _VOLUME_SUFFIXES:
        if file.name.lower().endswith(suffix):
            return file.name[: -len(suffix)]
    return file.name


# --- dataset.json ----------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not a UTF-8 text file.") from error
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path} is not valid JSON: {error.msg} in line {error.lineno}."
        ) from error
    except RecursionError as error:
        raise ConfigurationError(f"{path} is nested too deeply to be a dataset.json.") from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} is not a decathlon dataset.json: it holds no named sections.",
            'Expected {"training": [{"image": ..., "label": ...}, ...]}.',
        )
    return content


def _sections(content: dict[str, Any]) -> dict[str, list[Any]]:
    """Sections that list images; a table of channels or labels is none."""
    return {
        name: rows
        for name, rows in content.items()
        if isinstance(rows, list) and any(_names_image(row) for row in rows)
    }


def _names_image(row: Any) -> bool:
    if isinstance(row, dict):
        return "image" in row
    return isinstance(row, str) and ("/" in row or row.lower().endswith(_VOLUME_SUFFIXES))


def _from_dataset_json(path: Path, content: dict[str, Any], section: str) -> list[ScanEntry]:
    sections = _sections(content)
    if section and section not in sections:
        names = ", ".join(sections) or "none"
        raise ConfigurationError(
            f'{path} has no section "{section}" that lists images.', f"Sections there: {names}."
        )
    if not sections:
        raise ConfigurationError(
            f"{path} has no section that lists images.",
            'Expected {"training": [{"image": ..., "label": ...}, ...]}.',
        )
    chosen = [section] if section else list(sections)
    return [
        entry
        for name in chosen
        for number, row in enumerate(sections[name])
        for entry in _from_row(path, f"{name}[{number}]", row)
    ]


def _from_row(path: Path, where: str, row: Any) -> Iterable[ScanEntry]:
    image = row.get("image") if isinstance(row, dict) else row
    label = row.get("label") if isinstance(row, dict) else None
    label_path = _resolve(path.parent, label) if isinstance(label, str) and label else None
    for name in image if isinstance(image, list) else [image]:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f'{path}: "image" of {where} is not a file name.')
        yield ScanEntry(_resolve(path.parent, name), label_path)


# --- CSV and TXT lists -----------------------------------------------------------------------


def _from_list(path: Path) -> list[ScanEntry]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path} is not a UTF-8 text file.", "In a spreadsheet, save it as CSV in UTF-8."
        ) from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise ConfigurationError(f"{path} lists no scans.")
    try:
        rows = list(csv.reader(lines, delimiter=_delimiter(path, lines[0])))
    except csv.Error as error:
        raise ConfigurationError(f"{path} cannot be read as a list: {error}.") from error
    names = [cell.strip().lower() for cell in rows[0]]
    image_column, label_column = 0, None
    if "image" in names:
        image_column = names.index("image")
        label_column = names.index("label") if "label" in names else None
        rows = rows[1:]
    return [
        ScanEntry(_resolve(path.parent, image), _resolve(path.parent, label) if label else None)
        for row in rows
        if (image := _cell(row, image_column))
        for label in [_cell(row, label_column)]
    ]


def _delimiter(path: Path, first: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    return next((mark for mark in ("\t", ";") if mark in first), ",")


def _cell(row: list[str], column: int | None) -> str:
    return row[column].strip() if column is not None and column < len(row) else ""


def _resolve(folder: Path, name: str) -> Path:
    path = Path(name).expanduser()
    return path if path.is_absolute() else folder / path
