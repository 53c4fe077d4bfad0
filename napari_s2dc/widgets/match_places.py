"""The two scans of a match, and where their patches lie in the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_s2dc.widgets.layers import token_geometry
from napari_s2dc.widgets.placement import matrix_of, to_units_of

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.engine.match import Match, Pairs
    from napari_s2dc.widgets.session import Embedded

__all__ = ["MatchedScans", "Side"]

_GAP = 0.05
"""Between the two scans, as a share of the moving one's width."""


@dataclass(frozen=True, eq=False)
class Side:
    """One scan of a match over the layer that shows it.

    Parameters
    ----------
    layer : napari layer
        Shows the scan.
    embedding : Embedding
        Its features.
    offset_vox : sequence of 3 numbers
        First embedded voxel in the layer.
    factors : sequence of 3 floats
        Voxels of the layer's finest level per embedded voxel.
    """

    layer: Any
    embedding: Embedding
    offset_vox: tuple[float, ...]
    factors: tuple[float, ...]

    @property
    def geometry(self) -> dict[str, Any]:
        """Keywords that put an array on the token grid where it belongs."""
        return token_geometry(self.layer, self.embedding.stride, self.offset_vox, self.factors)

    @property
    def matrix(self) -> np.ndarray:
        """Matrix (4, 4) from tokens to the world."""
        return matrix_of(self.geometry)

    def world_of(self, tokens: np.ndarray) -> np.ndarray:
        """World positions (n, 3) of the middles of tokens (n, 3)."""
        matrix = self.matrix
        result: np.ndarray = tokens @ matrix[:3, :3].T + matrix[:3, 3]
        return result


@dataclass(frozen=True, eq=False)
class MatchedScans:
    """A match and the layers it belongs to.

    Parameters
    ----------
    match : Match
        A with B.
    pairs : Pairs
        All its pairs.
    unmatched : tuple of two np.ndarray
        Share of each patch of A and of B that has no partner, on their token grids.
    moving : napari Image layer
        A.
    embedded : Embedded
        Its embedding.
    reference : napari Image layer or None
        B; None for a random view of A.
    partner : Embedded or None
        Embedding of B; None for a random view.
    view : np.ndarray or None
        The random view, on the grid of A's embedding.
    """

    match: Match
    pairs: Pairs
    unmatched: tuple[np.ndarray, np.ndarray]
    moving: Layer
    embedded: Embedded
    reference: Layer | None = None
    partner: Embedded | None = None
    view: np.ndarray | None = None

    @property
    def name_of_b(self) -> str:
        """Name of the scan that A is matched with."""
        return "random view" if self.reference is None else str(self.reference.name)

    @property
    def first(self) -> Side:
        """A."""
        return Side(
            self.moving, self.match.a, self.match.a.offset_vox, self.embedded.source.factors
        )

    def second(self, copy: Any | None) -> Side:
        """B over its copy, or without one where the user's own layer has it."""
        b = self.match.b
        if copy is not None:
            # The copy of a random view begins where the embedded region does.
            offset = (0, 0, 0) if self.reference is None else b.offset_vox
            return Side(copy, b, offset, self._factors_of_copy)
        if self.reference is None or self.partner is None:
            return Side(self.moving, b, b.offset_vox, self.embedded.source.factors)
        return Side(self.reference, b, b.offset_vox, self.partner.source.factors)

    @property
    def _factors_of_copy(self) -> tuple[float, ...]:
        """Voxels of the copy of B per embedded voxel."""
        if self.partner is None or self.partner.source.grid is None:
            return 1.0, 1.0, 1.0
        return self.partner.source.factors

    def in_stored_voxels(self, pairs: Pairs) -> Pairs:
        """Give pairs in voxels that the layers hold, where they were embedded on coarser grids."""
        # A random view lies on the grid of A.
        sources = self.embedded.source, (self.partner or self.embedded).source
        own = [None if one.grid is None else one.stored.affine for one in sources]
        return pairs.in_voxels_of(own[0], own[1])

    def copy_of_b(self, *, apart: bool) -> tuple[Layer, Any, dict[str, Any]]:
        """Give what shows B as a layer of our own.

        Parameters
        ----------
        apart : bool
            Beside A, otherwise where B lies.

        Returns
        -------
        source : napari Image layer
            Layer it belongs to.
        data : array-like
            Its voxels, shared with the user's layer.
        geometry : dict
            Keywords that say where it lies.
        """
        source: Layer
        if self.reference is None or self.partner is None:
            source, data = self.moving, self.view
            offset, factors = self.match.a.offset_vox, self.embedded.source.factors
        else:
            stored = self.partner.source.stored
            source, data, offset, factors = self.reference, stored.data, (0, 0, 0), stored.factors
        geometry = token_geometry(source, 1, offset, factors)
        if apart:
            # Before the layer's affine, so that the copy keeps its distance when that is moved.
            linear = geometry["affine"][:3, :3]
            shift = np.linalg.solve(linear, self._shift(source))
            geometry["translate"] = geometry["translate"] + shift
        return source, data, geometry

    def _shift(self, source: Layer) -> np.ndarray:
        """Shift of B in its world: beside A along x, and the matched patches at the same height."""
        units = to_units_of(source, self.moving).diagonal()[:3]
        first, second = self.moving.extent.world[:, -3:] * units, source.extent.world[:, -3:]
        best = self.pairs.best(200, mutual=True)
        if len(best):
            places = self.first.world_of(best.token_a) * units
            away = places - self.second(None).world_of(best.token_b)
            shift: np.ndarray = np.median(away, axis=0)
        else:
            shift = first.mean(0) - second.mean(0)
        width = first[1, 2] - first[0, 2]
        shift[2] = first[1, 2] + _GAP * width - second[0, 2]
        return shift
