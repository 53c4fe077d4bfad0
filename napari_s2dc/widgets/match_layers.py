"""A match made visible: side by side, segments, unmatched patches, and one patch's row."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_s2dc.widgets.layers import geometry_of, plain
from napari_s2dc.widgets.match_places import MatchedScans, Side
from napari_s2dc.widgets.pairs_box import BY_CONFIDENCE, PairChoice
from napari_s2dc.widgets.placement import to_units_of
from napari_s2dc.widgets.stand_in import StandIn

if TYPE_CHECKING:
    from napari.layers import Vectors

    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.engine.match import Pairs
    from napari_s2dc.widgets.session import Session

__all__ = ["MatchLayers"]

_LINE_TOKENS = 0.15
_ROW, _FROM, _TO, _SEGMENTS = "transport", "patch", "partner", "pairs"
_UNMATCHED, _BESIDE, _CARRIED = "unmatched", "beside", "carried"

Token = tuple[int, int, int]


class MatchLayers:
    """Show one match at a time; the user's own layers are hidden at most, and shown again.

    Parameters
    ----------
    session : Session
        Its overlays add the layers.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._overlays = session, session.overlays
        self._scans: MatchedScans | None = None
        self._beside: Any | None = None
        self._apart = False
        self._hidden: list[Any] = []
        self._carried: Any | None = None
        self._stand_ins: list[StandIn] = []
        self._unwanted = False  # the copy, since the user has removed it

    # ------------------------------------------------------------------------------ placing
    def take(self, scans: MatchedScans) -> None:
        """Take another match; `place` shows it."""
        self.close()
        self._scans = scans

    def close(self) -> None:
        """Take everything away that belongs to the match, and show what was hidden."""
        self.withdraw()
        self._scans, self._carried, self._unwanted = None, None, False

    def withdraw(self) -> None:
        """Show the viewer as it was without the match, which is remembered."""
        gone = self._results()
        copy, self._beside = self._beside, None
        if copy is not None:
            gone.append(copy)
        hidden, self._hidden, self._stand_ins = self._hidden, [], []
        self._overlays.take_away(gone)
        for layer in hidden:
            if self._session.has(layer):
                layer.visible = True
        self._apart = False

    def place(self, *, beside: bool, keep: Sequence[Any] = ()) -> None:
        """Show the reference beside the moving scan, or leave both where they are.

        A copy that shares the reference's data is moved along x. A random view has no other layer;
        once the user has removed it, it comes back with side by side only. The reference itself and
        whatever else is in sight, except the moving scan and the layers to keep, are hidden
        meanwhile.

        Parameters
        ----------
        beside : bool
            Side by side.
        keep : sequence of napari layers
            Layers that stay in sight.
        """
        scans = self._scans
        if scans is None:
            return
        self._unwanted = not beside and (self._unwanted or self.is_copy_gone)
        self.withdraw()
        self._apart = beside
        if beside:
            stay = {id(plain(layer)) for layer in (scans.moving, *keep) if layer is not None}
            self._hidden = [
                layer
                for layer in self._session.viewer.layers
                if layer.visible and id(plain(layer)) not in stay
            ]
            for layer in self._hidden:
                layer.visible = False
        if beside or (scans.reference is None and not self._unwanted):
            self._beside = self._put_beside(scans, apart=beside)
        if beside:
            self._show_carried()

    @property
    def is_copy_gone(self) -> bool:
        """Whether the user has removed the copy that is shown side by side."""
        return self._beside is not None and not self._session.has(self._beside)

    @property
    def placed(self) -> list[Any]:
        """The layers that the two scans are shown by, and the hidden reference."""
        scans = self._scans
        layers = () if scans is None else (scans.moving, scans.reference, self._beside)
        return [layer for layer in layers if layer is not None]

    def _put_beside(self, scans: MatchedScans, *, apart: bool) -> Any:
        """Add the copy of the reference, or the random view."""
        source, data, geometry = scans.copy_of_b(apart=apart)
        looks = ("colormap", "contrast_limits", "gamma", "interpolation2d", "opacity")
        copy = self._overlays.add(
            source, _BESIDE, "image", data,
            "random view" if scans.reference is None else "side by side", geometry,
            **{name: getattr(source, name) for name in looks}, blending="translucent",
        )  # fmt: skip
        self._stand_ins.append(StandIn(copy, source, scans.copy_of_b(apart=False)[2]))
        return copy

    def _results(self) -> list[Any]:
        kinds = (_SEGMENTS, _ROW, _FROM, _TO, _UNMATCHED, _CARRIED)
        return self._overlays.find_all(self.placed, *kinds)

    def partner_world(self, token: Token) -> np.ndarray:
        """World position of a token of B, where B is shown."""
        assert self._scans is not None
        where = self._scans.second(self._beside).world_of(np.asarray([token]))
        return np.asarray(where[0])

    # ---------------------------------------------------------------------------------- showing
    def show_pairs(self, choice: PairChoice) -> None:
        """Draw the chosen pairs as segments."""
        scans = self._scans
        if scans is None:
            return
        best = scans.pairs.best(choice.number, least=choice.least, mutual=choice.mutual)
        a, b = scans.first, scans.second(self._beside)
        # In tokens of A, so that a segment is in sight in every slice of its patch.
        back = np.linalg.inv(a.matrix) @ to_units_of(a.layer, b.layer)
        # Where in its patch the partner lies is finer than the patch.
        grid = b.embedding
        place = (best.voxel_b - grid.offset_vox + 0.5) / grid.stride - 0.5
        ends = b.world_of(place) @ back[:3, :3].T + back[:3, 3]
        lines = np.stack([best.token_a, ends - best.token_a], axis=1).astype(np.float32)
        colours = _colours(best, a.embedding, choice.colour)
        layer: Vectors | None = self._overlays.find(scans.moving, _SEGMENTS)
        if layer is None:
            layer = self._overlays.add(
                scans.moving, _SEGMENTS, "vectors", lines, "matched patches", a.geometry,
                edge_width=_LINE_TOKENS, vector_style="line", edge_color="white", ndim=3,
            )  # fmt: skip
        else:
            layer.data = lines
        if len(lines):
            layer.edge_color = colours

    def show_unmatched(self, on: bool) -> None:
        """Tint the patches of both scans by how much has no partner, or take the tint away."""
        scans = self._scans
        if scans is None:
            return
        sides = (scans.first, scans.second(self._beside))
        if not on:
            layers = [side.layer for side in sides]
            self._overlays.remove_all(layers, _UNMATCHED)
            return
        for side, values in zip(sides, scans.unmatched, strict=True):
            tint = self._overlays.add(
                side.layer, _UNMATCHED, "image", values,
                "without a partner", side.geometry,
                colormap="red", contrast_limits=(0.0, 1.0), opacity=0.5, blending="additive",
            )  # fmt: skip
            if side is sides[1]:
                self._save_over_b(scans, tint)

    def show_row(self, token: Token) -> tuple[Token, float] | None:
        """Draw where a patch of A goes; its best partner and the mass on it, None without any."""
        scans = self._scans
        if scans is None:
            return None
        row = scans.match.row(token).numpy()
        most = float(row.max())
        if not most > 0:
            self.clear_row()
            return None
        z, y, x = (int(place) for place in np.unravel_index(int(row.argmax()), row.shape))
        a, b = scans.first, scans.second(self._beside)
        heat = self._overlays.find(b.layer, _ROW)
        if heat is None:
            heat = self._overlays.add(
                b.layer, _ROW, "image", np.array(row), "where it goes", b.geometry,
                colormap="inferno", opacity=0.9, interpolation2d="linear", blending="additive",
            )  # fmt: skip
            self._save_over_b(scans, heat)
        else:
            heat.data[...] = row
        heat.contrast_limits_range = (0.0, 1.0)
        heat.contrast_limits = (0.0, most)
        heat.refresh(extent=False, thumbnail=False, highlight=False)
        self._mark(a, _FROM, token, "cyan")
        self._mark(b, _TO, (z, y, x), "lime")
        return (z, y, x), most

    def clear_row(self) -> None:
        """Take the row of a patch away."""
        scans = self._scans
        if scans is not None:
            layers = [scans.first.layer, scans.second(self._beside).layer]
            self._overlays.remove_all(layers, _ROW, _FROM, _TO)

    def _save_over_b(self, scans: MatchedScans, layer: Any) -> None:
        """Let a map on the tokens of B be saved over B, wherever that is shown."""
        own = scans.second(None)
        self._stand_ins = [one for one in self._stand_ins if one.is_needed]
        self._stand_ins.append(StandIn(layer, own.layer, own.geometry))

    def _mark(self, side: Side, kind: str, token: Token, colour: str) -> None:
        place = np.asarray([token], dtype=float)
        mark = self._overlays.find(side.layer, kind)
        if mark is not None:
            mark.data = place
            return
        self._overlays.add(
            side.layer, kind, "points", place, kind, side.geometry,
            size=1.2, symbol="square", face_color="transparent", border_color=colour,
            border_width=0.15, ndim=3,
        )  # fmt: skip

    # ----------------------------------------------------------------------------------- labels
    def keep_carried(self, layer: Any) -> None:
        """Show labels that were carried to B beside A too, as long as B is shown there."""
        self._carried = layer
        if self._apart:
            layer.visible = False
            self._hidden.append(layer)
            self._show_carried()

    def _show_carried(self) -> None:
        layer, scans = self._carried, self._scans
        if layer is None or scans is None or not self._session.has(layer):
            return
        shown = self._overlays.add(
            self._beside, _CARRIED, "labels", layer.data, "carried labels",
            geometry_of(self._beside), colormap=deepcopy(layer.colormap), features=layer.features,
            opacity=layer.opacity,
        )  # fmt: skip
        self._stand_ins.append(StandIn(shown, layer, geometry_of(layer)))


def _colours(pairs: Pairs, a: Embedding, by: str) -> np.ndarray:
    """Colours (n, 4) of segments."""
    from napari.utils.colormaps import ensure_colormap

    if by == BY_CONFIDENCE:
        colours: np.ndarray = ensure_colormap("viridis").map(pairs.confidence)
        return colours
    last = np.maximum(np.asarray(a.grid) - 1, 1)
    place = pairs.token_a / last
    return np.concatenate([place[:, ::-1], np.ones((len(place), 1))], axis=1)
