"""Names and colours of classes in NRRD headers, as 3D Slicer reads and writes them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from napari_s2dc.volumes.volume import Volume

__all__ = [
    "fused_segment_fields",
    "is_segment_field",
    "segment_fields",
    "segment_fields_of",
    "segments_in",
]

Colour = tuple[float, float, float]

_OF_ONE = re.compile(r"Segment\d+_")
_NUMBERED = re.compile(r"Segment(\d+)_LabelValue")


def is_segment_field(name: str) -> bool:
    """Whether a field of a NRRD header says something of one class."""
    return _OF_ONE.match(name) is not None


def segment_fields(classes: Iterable[tuple[int, str, Colour]]) -> dict[str, str]:
    """Fields of a NRRD header that name classes.

    Parameters
    ----------
    classes : iterable of (label, name, colour)
        Colour as red, green and blue, 0 to 1. Of names, letters beyond ASCII lose their accents or
        become ``?``: the format has no others.
    """
    fields: dict[str, str] = {}
    for number, (label, name, colour) in enumerate(classes):
        start = f"Segment{number}_"
        fields |= {
            f"{start}ID": f"Segment_{label}",
            f"{start}Name": _ascii(name),
            f"{start}Color": " ".join(f"{part:g}" for part in colour),
            f"{start}LabelValue": str(label),
            f"{start}Layer": "0",
        }
    return fields


def _ascii(name: str) -> str:
    """Give a name as a NRRD header can hold it: one line, letters without accents."""
    parts = unicodedata.normalize("NFKD", " ".join(name.split()))
    letters = "".join(part for part in parts if not unicodedata.combining(part))
    return letters.encode("ascii", "replace").decode()


def segment_fields_of(labels: Volume) -> dict[str, Any]:
    """Fields that name the classes of a label map read from NRRD; those of its grid are left out.

    Parameters
    ----------
    labels : Volume
        Label map; from another format there are none.
    """
    return {name: value for name, value in _header(labels).items() if "Extent" not in name}


def fused_segment_fields(labels: Sequence[Volume]) -> dict[str, Any]:
    """Fields that name the classes of several label maps together, as :func:`segment_fields_of`.

    Parameters
    ----------
    labels : sequence of Volume
        At least one; a class of several is called what the first of them calls it.
    """
    fields = segment_fields_of(labels[0])
    named = set(_labels(fields))
    for volume in labels[1:]:
        others = segment_fields_of(volume)
        for label, number in _labels(others).items():
            if label in named:
                continue
            named.add(label)
            free = 1 + max([-1, *map(int, _labels(fields).values())])
            start = f"Segment{number}_"
            known = {value for name, value in fields.items() if name.endswith("_ID")}
            fields |= {
                f"Segment{free}_{name.removeprefix(start)}": value
                for name, value in others.items()
                if name.startswith(start)
            }
            if fields.get(f"Segment{free}_ID") in known:  # by its own atlas's count
                fields[f"Segment{free}_ID"] = f"Segment_{free + 1}"
    return fields


def _labels(fields: Mapping[str, Any]) -> dict[int, str]:
    """Give the number of the segment of each label."""
    return {
        int(value): number[1]
        for name, value in fields.items()
        if (number := _NUMBERED.fullmatch(name)) and str(value).isdecimal()
    }


def segments_in(labels: Volume) -> dict[int, tuple[str, Colour | None]]:
    """Read names and colours of the classes of a label map from NRRD.

    Parameters
    ----------
    labels : Volume
        Label map; from another format there are none.

    Returns
    -------
    dict
        Name and colour by label; None for a colour that is not there.
    """
    fields = _header(labels)
    found: dict[int, tuple[str, Colour | None]] = {}
    for field, value in fields.items():
        number = _NUMBERED.fullmatch(field)
        name = fields.get(f"Segment{number[1]}_Name") if number else None
        if number and isinstance(name, str) and name and str(value).isdecimal():
            colour = _colour(fields.get(f"Segment{number[1]}_Color"))
            found[int(value)] = name, colour
    return found


def _header(labels: Volume) -> Mapping[str, Any]:
    original = labels.original
    if original is None or original.format != "nrrd":
        return {}
    fields = original.header["header"].items()
    return {name: value for name, value in fields if name.startswith("Segment")}


def _colour(text: Any) -> Colour | None:
    try:
        red, green, blue = (float(part) for part in str(text).split())
    except ValueError:
        return None
    inside = all(0 <= part <= 1 for part in (red, green, blue))
    return (red, green, blue) if inside else None
