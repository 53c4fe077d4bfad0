"""The sections of ``docs/benchmarks.md`` as plain values, for JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_SECTION = re.compile(r"<!-- begin (?P<name>.+?) -->\n(?P<text>.*?)\n<!-- end (?P=name) -->", re.S)
_NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_CELL = re.compile(
    rf"(?P<value>{_NUMBER})(?: \[(?P<low>{_NUMBER}), (?P<high>{_NUMBER})\]| ± (?P<sd>{_NUMBER}))?"
)


def sections(document: str) -> dict[str, dict[str, Any]]:
    """Read every section that :func:`benchmarks.report.write_section` has written.

    Parameters
    ----------
    document : str
        Markdown.

    Returns
    -------
    dict
        By the name of the section: ``title``, ``text`` (paragraphs), ``command`` and ``tables``;
        each table is a list of rows, each row a dict by column. See :func:`value` for the cells.
    """
    return {found["name"]: _section(found["text"]) for found in _SECTION.finditer(document)}


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Read the sections of a file; none if it is missing."""
    return sections(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _section(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {"title": "", "text": [], "tables": [], "command": ""}
    for block in re.split(r"\n{2,}", text):
        if block.startswith("|"):
            found["tables"].append(_table(block))
        elif block.startswith("    "):
            found["command"] = block.strip()
        elif block.startswith("## "):
            found["title"] = block[3:].strip()
        else:
            found["text"].append(block.strip())
    return found


def _table(block: str) -> list[dict[str, Any]]:
    header, _, *rows = (
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()
    )
    return [{column: value(cell) for column, cell in zip(header, row, strict=True)} for row in rows]


def value(cell: str) -> Any:
    """Turn a cell into a number, a median with quartiles, a mean with deviation, or text.

    Parameters
    ----------
    cell : str
        Such as ``3.4``, ``3.4 [3.1, 3.9]``, ``0.9 ± 0.1`` or ``views``.
    """
    found = _CELL.fullmatch(cell)
    if found is None:
        return cell
    number = float(found["value"])
    if found["low"]:
        return {"median": number, "quartiles": [float(found["low"]), float(found["high"])]}
    if found["sd"]:
        return {"mean": number, "deviation": float(found["sd"])}
    return number
