"""What the Consistency tab and clicks in the canvas ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.placement import words_of
from napari_s2dc.widgets.probe_mouse import ADD, NOT, ProbeMouse, ProbePoint
from napari_s2dc.widgets.probe_tab import PatchFacts, ProbeTab
from napari_s2dc.widgets.rays import hit_in_3d
from napari_s2dc.widgets.session import Embedded, Session

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = ["ProbeActions"]

Token = tuple[int, int, int]

_PANEL_INTERVAL_MS = 60
_NEIGHBOURS = 8


class ProbeActions(QObject):
    """Carry out what the Consistency tab and the mouse ask for.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : ProbeTab
        Controls.
    mouse : ProbeMouse
        Clicks.
    current : callable
        Gives the volume chosen in the header.
    tell : callable
        Shows a sentence to the user.
    """

    patch_chosen = Signal(object, object)  # layer, token
    forgotten = Signal()
    structure_changed = Signal()

    def __init__(
        self,
        session: Session,
        tab: ProbeTab,
        mouse: ProbeMouse,
        current: Callable[[], Layer | None],
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._mouse = session, tab, mouse
        self._current, self._tell = current, tell
        self._home: ref[Any] | None = None
        self._positive: list[Token] = []
        self._negative: list[Token] = []
        self._marks: tuple[list[Token], list[Token]] = [], []  # embedded voxels
        self._voxel: Token = (0, 0, 0)
        self._similarity: np.ndarray | None = None
        self._nearest: list[Token] = []
        self._dragged = False  # the colours are those of where the drag began
        self._limits: WeakKeyDictionary[Any, tuple[float, float]] = WeakKeyDictionary()
        # A drag sends events faster than the panel has to change.
        self._panel = QTimer(self)
        self._panel.setSingleShot(True)
        self._panel.setInterval(_PANEL_INTERVAL_MS)
        self._panel.timeout.connect(self._update_panel)
        mouse.pointed.connect(self.probe)
        mouse.left.connect(lambda: tab.probe_button.setChecked(False))
        tab.probing_changed.connect(self._on_probing)
        tab.cleared.connect(self.clear)
        tab.others_changed.connect(self._on_others)
        tab.nearest_chosen.connect(self._jump)
        session.embedding_changed.connect(self._on_embedding)

    @property
    def home(self) -> Layer | None:
        """Layer that holds the clicked patches, if it is still there."""
        layer = None if self._home is None else self._home()
        return layer if self._session.has(layer) else None

    @property
    def similarity(self) -> np.ndarray | None:
        """Similarity (tz, ty, tx) to the clicked patches in their own volume."""
        return self._similarity if self.home is not None else None

    @property
    def voxel(self) -> Token:
        """Embedded voxel that was clicked last."""
        return self._voxel

    def _on_probing(self, on: bool) -> None:
        if on:
            self._mouse.start()
        else:
            self._mouse.stop()

    def _on_embedding(self, layer: Layer) -> None:
        # Old patches would mean other features now.
        if self.home is None or plain(layer) is self.home:
            self.clear()
        elif self._session.embedded(layer) is None:
            self._session.overlays.remove(layer, "similarity")
        else:
            self._update_heat(fit_contrast=False)  # the new scan lights up too

    def clear(self) -> None:
        """Forget the clicked patches and take away what shows them."""
        overlays, layers = self._session.overlays, self._session.viewer.layers
        overlays.remove_all(layers, "similarity", "nearest", "clicked")
        self._home, self._similarity = None, None
        self._positive, self._negative, self._nearest = [], [], []
        self._marks = [], []
        self._tab.show_patch(None)
        self.forgotten.emit()
        self.structure_changed.emit()

    # --------------------------------------------------------------------------- probing
    def probe(self, point: ProbePoint) -> None:
        """Compare every patch with the one at a point; a point outside changes nothing."""
        found = self._find(point)
        if found is None:
            if not point.dragged:
                self._tell("That place lies outside the embedded scan.")
            return
        layer, embedded, voxel = found
        token = embedded.embedding.token_of_voxel(voxel)
        if token is None:
            return
        same = self.home is layer
        if point.kind == NOT:
            if not same:
                self._tell("Click a place first; Alt+click then says what does not belong to it.")
                return
            self._negative.append(token)
            self._marks[1].append(voxel)
        elif point.kind == ADD and same:
            self._positive.append(token)
            self._marks[0].append(voxel)
            self._voxel = voxel
        else:
            self._positive, self._negative = [token], []
            self._marks = [voxel], []
            self._voxel = voxel
        self._home = ref(layer)
        self._update_heat(fit_contrast=not point.dragged)
        self._dragged = point.dragged
        if not self._panel.isActive():
            self._panel.start()

    def hits(self, point: ProbePoint) -> bool:
        """Whether a point lies on tissue of an embedded volume."""
        found = self._find(point)
        if found is None:
            return False
        _, embedded, voxel = found
        token = embedded.embedding.token_of_voxel(voxel)
        return token is not None and bool(embedded.embedding.foreground[token])

    def _find(self, point: ProbePoint) -> tuple[Any, Embedded, Token] | None:
        """Find the embedded layer and voxel under a point: one in sight first, then the chosen."""
        chosen = plain(self._current())
        layers = [plain(layer) for layer in self._session.embedded_layers()]
        # Stable: the others keep their order.
        layers.sort(key=lambda layer: (not layer.visible, layer is not chosen))
        for layer in layers:
            embedded = self._session.embedded(layer)
            if embedded is None or not (layer.visible or layer is chosen):
                continue
            if point.in_3d:
                place = hit_in_3d(layer, point.position, point.view_direction, point.dims_displayed)
                voxel = None if place is None else embedded.voxel_of_data(place)
            else:
                voxel = embedded.voxel_at(layer, point.position)
            if voxel is not None and embedded.embedding.token_of_voxel(voxel) is not None:
                return layer, embedded, voxel
        return None

    def _update_heat(self, *, fit_contrast: bool) -> None:
        from napari_s2dc.engine.probe import query_of, similarity_to

        home = self.home
        embedded = self._session.embedded(home)
        if home is None or embedded is None:
            return
        query = query_of(embedded.embedding, self._positive, self._negative)
        for layer in self._shown_layers(home):
            other = self._session.embedded(layer)
            if other is None or not other.comparable_to(embedded):
                continue
            similarity = similarity_to(other.embedding, query)
            tissue = other.embedding.foreground
            heat = similarity.where(tissue, similarity.new_zeros(())).numpy()
            overlay = self._session.overlays.show_heat(
                layer, heat, other.geometry(layer), colour_bar=layer is home
            )
            if fit_contrast:
                self._fit_contrast(overlay, similarity[tissue].numpy())
            if layer is home:
                self._similarity = similarity.numpy()

    def _shown_layers(self, home: Layer) -> list[Any]:
        layers = [plain(layer) for layer in self._session.embedded_layers()]
        return layers if self._tab.others.isChecked() else [one for one in layers if one is home]

    def _fit_contrast(self, overlay: Any, values: np.ndarray) -> None:
        """Let colours begin at the median, unless the user has chosen the limits."""
        key = plain(overlay)
        if key in self._limits and not np.allclose(
            self._limits[key], overlay.contrast_limits, atol=1e-3
        ):
            return
        # Not below 0, which air has: it would get a colour.
        low, high = max(0.0, float(np.median(values))), float(values.max())
        limits = (min(low, high - 0.05), high)
        overlay.contrast_limits_range = (-1.0, 1.0)
        overlay.contrast_limits = limits
        self._limits[key] = limits

    def _on_others(self, on: bool) -> None:
        home = self.home
        if home is None:
            return
        if not on:
            overlays = self._session.overlays
            others = [layer for layer in self._session.embedded_layers() if layer is not home]
            overlays.remove_all(others, "similarity")
        self._update_heat(fit_contrast=True)

    # ----------------------------------------------------------------------------- panel
    def _update_panel(self) -> None:
        from napari_s2dc.engine.probe import read_patch

        home = self.home
        embedded = self._session.embedded(home)
        if home is None or embedded is None or not self._positive:
            self._tab.show_patch(None)
            return
        if self._dragged:
            self._dragged = False
            self._update_heat(fit_contrast=True)
        reading = read_patch(
            embedded.embedding, self._positive, self._negative, neighbours=_NEIGHBOURS
        )
        token = self._positive[-1]
        counts, edges = reading.histogram
        self._nearest = [token for token, _ in reading.nearest]
        places = [embedded.data_of_token(token) for token in self._nearest]
        self._tab.show_patch(
            PatchFacts(
                place=words_of(home, home.data_to_world(embedded.data_of_token(token))),
                sharpe_ratio=reading.sharpe_ratio,
                percentile=reading.percentile,
                counts=counts,
                edges=edges,
                peak=float(edges[-1]),
                nearest=[
                    (words_of(home, home.data_to_world(place)), similarity)
                    for place, (_, similarity) in zip(places, reading.nearest, strict=True)
                ],
            )
        )
        factors = np.asarray(embedded.source.factors)
        size = embedded.embedding.stride * float(np.mean(factors))
        if places:
            self._session.overlays.show_points(home, np.asarray(places), size)
        positive, negative = (
            (np.reshape(voxels, (-1, 3)) + 0.5) * factors - 0.5 for voxels in self._marks
        )
        self._session.overlays.show_marks(home, positive, negative, size / 2)
        self.announce()
        self.structure_changed.emit()

    def announce(self) -> None:
        """Say again which patch is probed, if one is."""
        if self.home is not None and self._positive:
            self.patch_chosen.emit(self.home, self._positive[-1])

    def _jump(self, row: int) -> None:
        home = self.home
        embedded = self._session.embedded(home)
        if home is not None and embedded is not None and row < len(self._nearest):
            data = embedded.data_of_token(self._nearest[row])
            self._session.overlays.jump_to(home.data_to_world(data))
