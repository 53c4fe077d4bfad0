"""A match made visible: side by side, segments, unmatched patches, and one patch's row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_s2dc.widgets.layers import geometry_of, plain, token_geometry
from napari_s2dc.widgets.match_tab import BY_CONFIDENCE, PairChoice
from napari_s2dc.widgets.volumes_of_layers import world_matrix

if TYPE_CHECKING:
    from napari.layers import Layer, Vectors

    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.engine.match import Match, Pairs
    from napari_s2dc.widgets.session import Embedded, Session

__all__ = ["MatchLayers", "MatchedScans", "finest_step"]

_GAP = 0.05
"""Between the two scans, as a share of the moving one's width."""
_LINE_TOKENS = 0.15
_ROW, _FROM, _TO, _SEGMENTS = "transport", "patch", "partner", "pairs"
_UNMATCHED, _BESIDE, _CARRIED = "unmatched", "beside", "carried"

Token = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class MatchedScans:
    """A match and the layers it belongs to.

    Parameters
    ----------
    match : Match
        A with B.
    pairs : Pairs
        All its pairs.
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
    moving: Layer
    embedded: Embedded
    reference: Layer | None = None
    partner: Embedded | None = None
    view: np.ndarray | None = None

    @property
    def name_of_b(self) -> str:
        """Name of the scan that A is matched with."""
        return "random view" if self.reference is None else str(self.reference.name)


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

    # ------------------------------------------------------------------------------ placing
    def show(self, scans: MatchedScans, *, beside: bool, keep: Sequence[Any] = ()) -> None:
        """Take another match; its layers come when they are asked for."""
        self.close()
        self._scans = scans
        self.place(beside=beside, keep=keep)

    def close(self) -> None:
        """Take everything away that belongs to the match, and show what was hidden."""
        self.withdraw()
        self._scans, self._carried = None, None

    def withdraw(self) -> None:
        """Show the viewer as it was without the match, which is remembered."""
        self._remove_results()
        self._take_back()
        self._apart = False

    def place(self, *, beside: bool, keep: Sequence[Any] = ()) -> None:
        """Show the reference beside the moving scan, or leave both where they are.

        A copy that shares the reference's data is moved along x. The reference itself and whatever
        else is in sight, except the moving scan and the layers to keep, are hidden meanwhile.

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
        if beside or scans.reference is None:
            self._beside = self._put_beside(scans, apart=beside)
        if beside:
            self._show_carried()

    def _put_beside(self, scans: MatchedScans, *, apart: bool) -> Any:
        """Add the copy of the reference, or the random view."""
        if scans.reference is None:
            source, data = scans.moving, scans.view
            offset, factors = scans.match.a.offset_vox, scans.embedded.source.factors
        else:
            assert scans.partner is not None
            source, data = scans.reference, scans.partner.source.data
            offset, factors = (0, 0, 0), scans.partner.source.factors
        geometry = token_geometry(source, 1, offset, factors)
        if apart:
            shift = self._shift(scans, source)
            # Before the layer's affine, so that the copy keeps its distance when that is moved.
            linear = geometry["affine"][:3, :3]
            geometry["translate"] = geometry["translate"] + np.linalg.solve(linear, shift)
        looks = ("colormap", "contrast_limits", "gamma", "interpolation2d", "opacity")
        return self._overlays.add(
            source, _BESIDE, "add_image", data,
            "random view" if scans.reference is None else "side by side", geometry,
            **{name: getattr(source, name) for name in looks}, blending="translucent",
        )  # fmt: skip

    def _shift(self, scans: MatchedScans, source: Layer) -> np.ndarray:
        """World shift of B: beside A along x, and the matched patches at the same height."""
        first, second = (layer.extent.world[:, -3:] for layer in (scans.moving, source))
        best = scans.pairs.best(200, mutual=True)
        if len(best):
            to_a = self._world_of(best.token_a, scans.match.a, *self._of_a(scans))
            to_b = self._world_of(best.token_b, scans.match.b, *self._of_b(scans, home=True))
            shift: np.ndarray = np.median(to_a - to_b, axis=0)
        else:
            shift = first.mean(0) - second.mean(0)
        width = first[1, 2] - first[0, 2]
        shift[2] = first[1, 2] + _GAP * width - second[0, 2]
        return shift

    def _take_back(self) -> None:
        for layer in self._hidden:
            if self._session.has(layer):
                layer.visible = True
        self._hidden = []
        if self._beside is not None and self._session.has(self._beside):
            self._session.viewer.layers.remove(self._beside)
        self._beside = None

    def _remove_results(self) -> None:
        scans = self._scans
        if scans is None:
            return
        owners = [scans.moving, scans.reference, self._beside]
        for owner in owners:
            if owner is not None:
                for kind in (_SEGMENTS, _ROW, _FROM, _TO, _UNMATCHED, _CARRIED):
                    self._overlays.remove(owner, kind)

    # -------------------------------------------------------------------------- where things are
    def _of_a(self, scans: MatchedScans) -> tuple[Any, Any]:
        return scans.moving, scans.embedded.source.factors

    def _of_b(self, scans: MatchedScans, *, home: bool = False) -> tuple[Any, Any]:
        """Layer that results on B lie over, and its voxels per embedded voxel."""
        if self._beside is not None and not home:
            return self._beside, (1.0, 1.0, 1.0)
        if scans.partner is None:
            return self._of_a(scans)
        return scans.reference, scans.partner.source.factors

    def _grid(self, embedding: Embedding, layer: Any, factors: Any) -> dict[str, Any]:
        # The copy of a random view begins where the embedded region does.
        whole = layer is self._beside and self._scans is not None and self._scans.view is not None
        offset = (0, 0, 0) if whole else embedding.offset_vox
        return token_geometry(layer, embedding.stride, offset, factors)

    def _world_of(
        self, tokens: np.ndarray, embedding: Embedding, layer: Any, factors: Any
    ) -> np.ndarray:
        """World positions (n, 3) of the middles of tokens (n, 3)."""
        matrix = _matrix(self._grid(embedding, layer, factors))
        result: np.ndarray = tokens @ matrix[:3, :3].T + matrix[:3, 3]
        return result

    def partner_world(self, token: Token) -> np.ndarray:
        """World position of a token of B, where B is shown."""
        assert self._scans is not None
        scans = self._scans
        where = self._world_of(np.asarray([token]), scans.match.b, *self._of_b(scans))
        return np.asarray(where[0])

    # ---------------------------------------------------------------------------------- showing
    def show_pairs(self, choice: PairChoice) -> int:
        """Draw the chosen pairs as segments and give their number."""
        scans = self._scans
        if scans is None:
            return 0
        best = scans.pairs.best(choice.number, least=choice.least, mutual=choice.mutual)
        a, b = scans.match.a, scans.match.b
        geometry = self._grid(a, *self._of_a(scans))
        # In tokens of A, so that a segment is in sight in every slice of its patch.
        back = np.linalg.inv(_matrix(geometry))
        # Where in its patch the partner lies is finer than the patch.
        place = (best.voxel_b - b.offset_vox + 0.5) / b.stride - 0.5
        ends = self._world_of(place, b, *self._of_b(scans)) @ back[:3, :3].T + back[:3, 3]
        lines = np.stack([best.token_a, ends - best.token_a], axis=1).astype(np.float32)
        colours = _colours(best, a, choice.colour)
        layer: Vectors | None = self._overlays.find(scans.moving, _SEGMENTS)
        if layer is None:
            layer = self._overlays.add(
                scans.moving, _SEGMENTS, "add_vectors", lines, "matched patches", geometry,
                edge_width=_LINE_TOKENS, vector_style="line", edge_color="white", ndim=3,
            )  # fmt: skip
        else:
            layer.data = lines
        if len(lines):
            layer.edge_color = colours
        return len(best)

    def show_unmatched(self, on: bool) -> None:
        """Tint the patches of both scans by their mass without a partner, or take the tint away."""
        scans = self._scans
        if scans is None:
            return
        sides = (self._of_a(scans), self._of_b(scans))
        for values, scan, (layer, factors) in zip(
            scans.match.unmatched(), (scans.match.a, scans.match.b), sides, strict=True
        ):
            if on:
                self._overlays.add(
                    layer, _UNMATCHED, "add_image", np.nan_to_num(values.numpy()),
                    "without a partner", self._grid(scan, layer, factors),
                    colormap="red", contrast_limits=(0.0, 1.0), opacity=0.5, blending="additive",
                )  # fmt: skip
            else:
                self._overlays.remove(layer, _UNMATCHED)

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
        layer_a, factors_a = self._of_a(scans)
        layer_b, factors_b = self._of_b(scans)
        heat = self._overlays.find(layer_b, _ROW)
        if heat is None:
            heat = self._overlays.add(
                layer_b, _ROW, "add_image", np.array(row), "where it goes",
                self._grid(scans.match.b, layer_b, factors_b),
                colormap="inferno", opacity=0.9, interpolation2d="linear", blending="additive",
            )  # fmt: skip
        else:
            heat.data[...] = row
        heat.contrast_limits_range = (0.0, 1.0)
        heat.contrast_limits = (0.0, most)
        heat.refresh(extent=False, thumbnail=False, highlight=False)
        self._mark(layer_a, _FROM, token, self._grid(scans.match.a, layer_a, factors_a), "cyan")
        self._mark(layer_b, _TO, (z, y, x), self._grid(scans.match.b, layer_b, factors_b), "lime")
        return (z, y, x), most

    def clear_row(self) -> None:
        """Take the row of a patch away."""
        scans = self._scans
        if scans is not None:
            for layer in (self._of_a(scans)[0], self._of_b(scans)[0]):
                for kind in (_ROW, _FROM, _TO):
                    self._overlays.remove(layer, kind)

    def _mark(
        self, layer: Any, kind: str, token: Token, geometry: dict[str, Any], colour: str
    ) -> None:
        place = np.asarray([token], dtype=float)
        mark = self._overlays.find(layer, kind)
        if mark is not None:
            mark.data = place
            return
        self._overlays.add(
            layer, kind, "add_points", place, kind, geometry,
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
        self._overlays.add(
            self._beside, _CARRIED, "add_labels", layer.data, "carried labels",
            geometry_of(self._beside), colormap=layer.colormap, features=layer.features,
            opacity=layer.opacity,
        )  # fmt: skip


def finest_step(embedded: Embedded) -> np.ndarray:
    """Matrix (4, 4) from embedded voxels to voxels of the layer's finest level."""
    factors = np.asarray(embedded.source.factors)
    step = np.diag([*factors, 1.0])
    step[:3, 3] = (factors - 1) / 2
    return step


def _matrix(geometry: dict[str, Any]) -> np.ndarray:
    """Matrix (4, 4) from data coordinates of a layer with some geometry to the world."""
    from napari.layers import Points

    # napari itself composes scale, rotation, shear, translation and affine.
    return world_matrix(Points(ndim=3, **geometry))


def _colours(pairs: Pairs, a: Embedding, by: str) -> np.ndarray:
    """Colours (n, 4) of segments."""
    from napari.utils.colormaps import ensure_colormap

    if by == BY_CONFIDENCE:
        colours: np.ndarray = ensure_colormap("viridis").map(pairs.confidence)
        return colours
    last = np.maximum(np.asarray(a.grid) - 1, 1)
    place = pairs.token_a / last
    return np.concatenate([place[:, ::-1], np.ones((len(place), 1))], axis=1)
