"""Copies that are shown elsewhere, saved as what they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_s2dc._writer import PLACE
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.placement import GEOMETRY, Placement

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = ["StandIn"]


class StandIn:
    """Keep in a copy's metadata where the original lies, since a writer knows nothing else of it.

    It follows the original as long as this object is kept.

    Parameters
    ----------
    copy : napari layer
        Shown elsewhere.
    original : napari layer
        What it shows; the facts of its file go along.
    geometry : dict
        Where the copy's voxels lie over the original, as keywords.
    """

    def __init__(self, copy: Layer, original: Layer, geometry: dict[str, Any]) -> None:
        self._copy, self._original = copy, plain(original)
        self._placement = Placement.between(original, geometry)
        if "s2dc" in original.metadata:
            copy.metadata["s2dc"] = original.metadata["s2dc"]
        for name in GEOMETRY:  # held weakly, so that it ends with this object
            getattr(original.events, name).connect(self._note)
        self._note()

    def _note(self, _: object = None) -> None:
        self._copy.metadata[PLACE] = self._placement.over(self._original)
