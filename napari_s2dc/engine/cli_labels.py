"""Which label map belongs to which scan: by name, in folders as decathlon and nnU-Net have them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_s2dc.engine.cli_scans import ScanFile, bare_name, scans_in
from napari_s2dc.engine.random_order import chance_of
from napari_s2dc.errors import S2DCError

__all__ = [
    "LABEL_ENDINGS",
    "LABEL_MAP",
    "LABEL_MAP_ENDINGS",
    "LabelledFile",
    "class_names_beside",
    "in_order_of",
    "label_maps_in",
    "labelled_files",
    "unlabelled_files",
]

LABEL_MAP = "label map"
"""What a file of labels calls itself in its header."""
LABEL_MAP_ENDINGS = {"nii.gz": ".labels.nii.gz", "nrrd": ".seg.nrrd"}
"""How names of label maps in a folder end, by format."""
LABEL_ENDINGS = (".labels", ".seg")
"""End the name of a label map that lies beside its scan, before the format's ending: ours, and
that of 3D Slicer."""

_CHANNEL = "_0000"
"""Ends the name of nnU-Net's scans, and not that of their labels."""


@dataclass(frozen=True)
class LabelledFile:
    """A scan and its label map on disk.

    Parameters
    ----------
    scan : Path
        Scan, or folder of a DICOM series.
    labels : Path
        Its label map.
    name : Path
        What both are called: where the scan lies in its folder, without ending.
    """

    scan: Path
    labels: Path
    name: Path


def label_maps_in(folder: Path, without: Collection[Path] = ()) -> dict[Path, Path]:
    """List the label maps of a folder by where they lie in it, without ending.

    Parameters
    ----------
    folder : Path
        Searched with its subfolders.
    without : collection of Path
        Files that are known to be something else.

    Returns
    -------
    dict of Path to Path
        ``NAME.nii.gz``, ``NAME.labels.nii.gz`` and ``NAME.seg.nrrd`` all as ``NAME``. Of two files
        of one name, the one whose header says that it is a label map; other results are no labels.

    Raises
    ------
    S2DCError
        Two files have one name and nothing tells which is meant, or the folder cannot be read.
    """
    from napari_s2dc.volumes.io import find_volumes
    from napari_s2dc.volumes.results import result_in

    left_out = {path.resolve() for path in without}
    named: dict[Path, Path] = {}
    for path in find_volumes(folder):
        if path.resolve() in left_out or result_in(path) not in ("", LABEL_MAP):
            continue
        below = path.relative_to(folder) if path != folder else Path(path.name)
        name = below.with_name(_without_ending(below.name))
        other = named.setdefault(name, path)
        if other is path:
            continue
        kept = [one for one in (other, path) if result_in(one) == LABEL_MAP]
        if len(kept) != 1:
            raise S2DCError(
                f"{other} and {path} have the same name without their endings.",
                "Keep label maps in a folder of their own.",
            )
        named[name] = kept[0]
    return named


def _without_ending(name: str) -> str:
    name = bare_name(name)
    for ending in LABEL_ENDINGS:
        name = name.removesuffix(ending)
    return name


def labelled_files(images: str, labels: str) -> tuple[list[LabelledFile], list[Path]]:
    """Find the label map of every scan that has one.

    Parameters
    ----------
    images : str
        Scan, DICOM series folder, or folder with scans.
    labels : str
        Label map of the one scan, or folder with label maps of the scans' names; nnU-Net's
        ``NAME_0000`` has the labels ``NAME``. Both folders may be one where label maps are called
        ``NAME.labels`` or ``NAME.seg``.

    Returns
    -------
    found : list of LabelledFile
        By name.
    missing : list of Path
        Scans that have no labels.

    Raises
    ------
    S2DCError
        A file or folder is not there, no scan has labels, or one label map is given for several
        scans.
    """
    _require_there([images, labels])
    scans = scans_in([images])
    if not Path(labels).is_dir():
        if len(scans) > 1:
            raise S2DCError(
                f"{labels} is one file, but {images} holds {len(scans)} scans.",
                "Name a folder for --labels.",
            )
        return [LabelledFile(scans[0].path, Path(labels), scans[0].name)], []
    maps = label_maps_in(Path(labels), without=[scan.path for scan in scans])
    found = [
        LabelledFile(scan.path, path, scan.name)
        for scan in scans
        if (path := _labels_of(scan, maps)) is not None
    ]
    if not found:
        raise S2DCError(
            f"No label map in {labels} has the name of a scan in {images}.",
            f"Names are compared without ending and without {' or '.join(LABEL_ENDINGS)}.",
        )
    there = {one.scan for one in found}
    missing = [scan.path for scan in scans if scan.path not in there]
    return sorted(found, key=lambda one: one.name), missing


def _require_there(paths: Sequence[str]) -> None:
    for path in paths:
        if not Path(path).exists():
            raise S2DCError(f"{path} does not exist.", "Name a file, or a folder that holds some.")


def unlabelled_files(inputs: Sequence[str], known: Collection[Path]) -> list[Path]:
    """List the scans of files and folders but those that are known.

    Parameters
    ----------
    inputs : sequence of str
        As for :func:`napari_s2dc.engine.cli_scans.scans_in`.
    known : collection of Path
        Scans that are learned from or set aside, and label maps; of a DICOM series, its folder or
        one of its files. Of an nnU-Net scan ``NAME_0000`` the other channels are left out too.

    Raises
    ------
    S2DCError
        A file or folder is not there, a folder holds no scan, or none is left.
    """
    _require_there(inputs)
    left_out = {path.resolve() for path in known}
    left_out |= {path.parent for path in left_out if _may_be_dicom(path)}
    names = {_without_ending(path.name) for path in known}
    # Where the label map goes without the channel; else NAME_0000 may be the first of many people.
    cases = {
        path.parent / name.removesuffix(_CHANNEL)
        for path in left_out
        if (name := bare_name(path.name)).endswith(_CHANNEL)
        and name.removesuffix(_CHANNEL) in names
    }
    found = {scan.path.resolve(): scan.path for scan in scans_in(inputs)}
    rest = [
        path
        for place, path in found.items()
        if place not in left_out and _case_of(place) not in cases
    ]
    if not rest:
        raise S2DCError(
            f"{', '.join(inputs)} holds no scan but those that are learned from or set aside.",
            "Name a folder with more scans, or learn from the labelled ones alone.",
        )
    return rest


def _case_of(path: Path) -> Path:
    """Place of a file without its ending and without the channel that ends nnU-Net's names."""
    return path.parent / re.sub(r"_\d{4}$", "", bare_name(path.name))


def _may_be_dicom(path: Path) -> bool:
    from napari_s2dc.volumes.formats import format_of

    return path.is_file() and format_of(path) in (None, "dicom")


def _labels_of(scan: ScanFile, maps: dict[Path, Path]) -> Path | None:
    without_channel = scan.name.with_name(scan.name.name.removesuffix(_CHANNEL))
    return maps.get(scan.name) or maps.get(without_channel)


def in_order_of(files: Sequence[LabelledFile], seed: int) -> list[LabelledFile]:
    """Put files in a random order that depends on the seed and on their names only.

    The first five are then among the first ten, and a scan that is added changes nothing about
    the order of the others.

    Parameters
    ----------
    files : sequence of LabelledFile
        In any order.
    seed : int
        Another seed, another order.
    """
    return sorted(files, key=lambda file: chance_of(file.name.as_posix(), seed))


def class_names_beside(labels: Path) -> dict[int, str]:
    """Names of classes in the ``dataset.json`` of a decathlon or nnU-Net folder.

    Parameters
    ----------
    labels : Path
        Label map, or folder of label maps: ``dataset.json`` lies in the folder or the one above.

    Returns
    -------
    dict of int to str
        By label, without 0; empty where there is no such file or it names none.
    """
    folder = labels if labels.is_dir() else labels.parent
    for place in (folder, folder.resolve().parent):
        try:
            content = json.loads((place / "dataset.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        named = content.get("labels") if isinstance(content, dict) else None
        if isinstance(named, dict):
            return _names(named)
    return {}


def _names(named: dict[str, object]) -> dict[int, str]:
    """Read ``{"1": "liver"}`` as decathlon has it, or ``{"liver": 1}`` as nnU-Net has it."""
    pairs = [
        (int(key), value) if isinstance(value, str) and key.isdecimal() else (value, key)
        for key, value in named.items()
    ]
    return {
        label: str(name)
        for label, name in pairs
        if isinstance(label, int) and label > 0 and not isinstance(label, bool)
    }
