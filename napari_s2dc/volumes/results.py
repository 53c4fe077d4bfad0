"""Tell files that this program wrote as results from scans: they lie in the same folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_s2dc.volumes.formats import format_of

__all__ = ["maker_of", "mark_nifti", "mark_nrrd", "result_in"]

_MARK = "napari-s2dc"
"""Begins the description in a NIfTI header; name of the field in a NRRD header."""
_BY = "; by "


def mark_nifti(header: Any, result: str, by: str = "") -> None:
    """Say in a NIfTI header what was written; "" takes away what its scan's header said.

    Parameters
    ----------
    header : NIfTI header
        Changed in place.
    result : str
        What the file holds. With `by`, at most 60 characters: the header has room for 80.
    by : str
        What made it, to be found by :func:`maker_of`.
    """
    if result:
        header["descrip"] = f"{_MARK}: {_note(result, by)}".encode()
    elif _described(header):
        header["descrip"] = b""


def mark_nrrd(fields: dict[str, Any], result: str, by: str = "") -> None:
    """Say in the fields of a NRRD header what was written; as `mark_nifti`."""
    fields.pop(_MARK, None)
    if result:
        fields[_MARK] = _note(result, by)


def _note(result: str, by: str) -> str:
    return f"{result}{_BY}{by}" if by else result


def result_in(path: Path) -> str:
    """Name the result that a file holds, from its header.

    Parameters
    ----------
    path : Path
        File; a folder holds none.

    Returns
    -------
    str
        Such as ``"similarity map"``; "" for a scan, and for what cannot be read: whoever reads it
        as a scan learns why.
    """
    return _note_in(path).partition(_BY)[0]


def maker_of(path: Path) -> str:
    """Say what made the result that a file holds; "" where there is none, or it is not noted."""
    return _note_in(path).partition(_BY)[2]


def _note_in(path: Path) -> str:
    kind = format_of(path) if path.is_file() else None
    try:
        if kind == "nifti":
            import nibabel

            return _described(nibabel.load(path).header)
        if kind == "nrrd":
            import nrrd

            return str(nrrd.read_header(str(path)).get(_MARK, ""))
    except Exception:  # libraries raise whatever a broken header leads to
        return ""
    return ""


def _described(header: Any) -> str:
    text = bytes(header["descrip"]).rstrip(b"\0").decode("latin-1")
    mark, _, result = text.partition(": ")
    return result if mark == _MARK else ""
