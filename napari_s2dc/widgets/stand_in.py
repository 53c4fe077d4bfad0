"""Layers that are shown elsewhere, saved as what they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from napari_s2dc._writer import PLACE
from napari_s2dc.widgets.layers import in_file, plain
from napari_s2dc.widgets.placement import GEOMETRY, Placement

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = ["StandIn"]


class StandIn:
    """Keep in a layer's metadata where it belongs, since a writer knows nothing else of it.

    It follows the original as long as this object is kept.

    Parameters
    ----------
    shown : napari layer
        Copy of the original, or result over one, which is shown elsewhere.
    original : napari layer
        What it belongs to; where it lies in that one's file goes along.
    geometry : dict
        Where its voxels lie over the original, as keywords.
    """

    def __init__(self, shown: Layer, original: Layer, geometry: dict[str, Any]) -> None:
        self._shown, self._original = ref(plain(shown)), plain(original)
        self._placement = Placement.between(original, geometry)
        shown.metadata.update(in_file(original, self._placement))
        for name in GEOMETRY:  # held weakly, so that it ends with this object
            getattr(original.events, name).connect(self._note)
        self._note()

    @property
    def is_needed(self) -> bool:
        """Whether the layer is still there."""
        return self._shown() is not None

    def _note(self, _: object = None) -> None:
        shown = self._shown()
        if shown is not None:
            shown.metadata[PLACE] = self._placement.over(self._original)
