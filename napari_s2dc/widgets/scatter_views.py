"""The scatter of patches: where dots lie, what their colours mean, and what they select."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
from qtpy.QtCore import QObject

from napari_s2dc.widgets.embed_tab import BY_CLUSTER, BY_LABELS, UMAP, EmbedTab
from napari_s2dc.widgets.feature_views import FeatureViews
from napari_s2dc.widgets.header import Header
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.preferences import preferences
from napari_s2dc.widgets.session import Embedded, Session
from napari_s2dc.widgets.volumes_of_layers import world_matrix
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_s2dc.engine.colours import ColourBasis
    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.engine.progress import Steps

__all__ = ["ScatterViews"]

_SHOWN = 20_000
"""Dots beyond this many hide each other; a fixed sample is drawn instead."""
_SHOWN_BY_UMAP = 4_000
"""Below 4096 umap-learn compares all pairs; above, it first compiles a search, for a minute."""


@dataclass(frozen=True, eq=False)
class _Dots:
    """What the scatter shows.

    Parameters
    ----------
    layer : napari layer
        Whose patches.
    embedded : Embedded
        Their features.
    tokens : np.ndarray (n,)
        Index of each dot's patch, first axis of the grid slowest; ascending.
    points : np.ndarray (n, 2)
        Places of the dots.
    anatomy : np.ndarray (n, 3)
        uint8, colours as in the viewer.
    """

    layer: Any
    embedded: Embedded
    tokens: np.ndarray
    points: np.ndarray
    anatomy: np.ndarray


class ScatterViews(QObject):
    """Keep the scatter of the Embed tab in step with the volume that is chosen.

    Parameters
    ----------
    session : Session
        State of the viewer.
    header : Header
        Says which volume is chosen.
    tab : EmbedTab
        Scatter and its controls.
    features : FeatureViews
        Colours and clusters.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        header: Header,
        tab: EmbedTab,
        features: FeatureViews,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._header, self._tab, self._jobs = session, header, tab, jobs
        self._features, self._tell = features, tell
        self._dots: _Dots | None = None
        self._umaps: WeakKeyDictionary[Any, np.ndarray] = WeakKeyDictionary()
        self._being_laid_out: ref[Any] | None = None
        header.volume_changed.connect(self._on_volume)
        session.embedding_changed.connect(self._on_volume)
        features.coloured.connect(self.draw)
        features.clustered.connect(self._colour)
        tab.layout_changed.connect(self.draw)
        tab.colouring_changed.connect(self._colour)
        tab.scatter.lassoed.connect(self._select)
        tab.scatter.picked.connect(self._jump_to)

    @property
    def tokens(self) -> np.ndarray:
        """Index of the patch of each dot; empty while nothing is shown."""
        return np.zeros(0, dtype=int) if self._dots is None else self._dots.tokens

    def _chosen(self) -> tuple[Any, Embedded | None]:
        layer = self._header.volume.layer
        return layer, self._session.embedded(layer)

    def _on_volume(self, _: object = None) -> None:
        _, embedded = self._chosen()
        self._tab.show_embedded(embedded is not None)
        if self._dots is None or self._dots.embedded is not embedded:
            self._clear()
        self.draw()

    def _clear(self) -> None:
        """Show no dots: those of another scan would be taken for this one's."""
        self._jobs.cancel("scatter")
        _, embedded = self._chosen()
        if embedded is None or not self._is_being_laid_out(embedded.embedding):
            self._jobs.cancel("umap")
        self._dots = None
        self._tab.scatter.show_points(np.zeros((0, 2)), np.zeros((0, 3)))

    def draw(self, _: object = None) -> None:
        """Place the dots of the chosen volume anew, in a thread."""
        layer, embedded = self._chosen()
        basis = None if embedded is None else self._features.basis_of(embedded)
        if embedded is None or basis is None:
            return  # comes with the colours
        embedding = embedded.embedding
        by_umap = self._tab.dots.currentData() == UMAP
        tokens = np.flatnonzero(embedding.foreground.numpy().ravel())
        most = _SHOWN_BY_UMAP if by_umap else _SHOWN
        if len(tokens) > most:
            random = np.random.default_rng(0)
            tokens = np.sort(random.choice(tokens, most, replace=False))
        self._jobs.cancel("scatter")
        points = self._umaps.get(embedding) if by_umap else None
        if by_umap and points is None:
            self._lay_out(embedding, basis, tokens)  # calls again
            return
        triple = self._tab.triple.value() - 1

        def place() -> tuple[np.ndarray, np.ndarray]:
            colours = basis.colours(embedding, triple).reshape(-1, 3)[tokens]
            return basis.coordinates(embedding)[tokens] if points is None else points, colours

        def done(found: tuple[np.ndarray, np.ndarray]) -> None:
            now, shown = self._chosen()
            if shown is embedded and now is layer:
                self._dots = _Dots(layer, embedded, tokens, *found)
                self._colour()

        self._jobs.run("scatter", "Placing dots", place, done, quiet=True)

    def _lay_out(self, embedding: Embedding, basis: ColourBasis, tokens: np.ndarray) -> None:
        """Make the layout of an embedding, once: it cannot be stopped, and only one is made."""
        if self._is_being_laid_out(embedding):
            return
        self._being_laid_out = ref(embedding)
        seed = preferences().seed

        def lay_out() -> Steps[np.ndarray]:
            from napari_s2dc.engine.umap_layout import umap_layout

            start = basis.coordinates(embedding)[tokens]
            return (yield from umap_layout(embedding.unit()[tokens].numpy(), start, seed))

        def done(points: np.ndarray) -> None:
            self._umaps[embedding] = points
            self.draw()

        title = f"UMAP of {len(tokens):,} patches (the first takes longest)"
        self._jobs.run("umap", title, lay_out, done)

    def _is_being_laid_out(self, embedding: Embedding) -> bool:
        known = None if self._being_laid_out is None else self._being_laid_out()
        return known is embedding and self._jobs.is_due("umap")

    # --------------------------------------------------------------------------- colours
    def _colour(self, _: object = None) -> None:
        dots = self._dots
        if dots is None or not self._session.has(dots.layer):
            return
        what, colours = self._tab.colouring.currentData(), dots.anatomy
        if what == BY_CLUSTER:
            clusters = self._features.clusters_of(dots.layer)
            overlay = self._session.overlays.find(dots.layer, "clusters")
            if clusters is None:
                self._features.show_clusters(self._tab.clusters.value())  # calls again
                return
            if overlay is not None:
                colours = _label_colours(overlay, clusters.ravel()[dots.tokens])
        elif what == BY_LABELS and self._tab.labels.layer is not None:
            self._colour_by_labels(dots, self._tab.labels.layer)
            return
        self._tab.scatter.show_points(dots.points, colours)

    def _colour_by_labels(self, dots: _Dots, labels: Any) -> None:
        places = _places_in(labels, dots)
        array = labels.data[0] if labels.multiscale else labels.data

        def done(found: np.ndarray) -> None:
            if self._dots is dots and self._session.has(labels):
                self._tab.scatter.show_points(dots.points, _label_colours(labels, found))

        if isinstance(array, np.ndarray):
            done(_labels_at(array, places))
        else:  # lazy: reading takes its time
            self._jobs.run(
                "labels", "Reading labels", lambda: _labels_at(array, places), done, quiet=True
            )

    # ------------------------------------------------------------------- viewer and back
    def _select(self, chosen: np.ndarray) -> None:
        dots = self._dots
        if dots is None or not self._session.has(dots.layer) or len(chosen) != len(dots.tokens):
            return
        if not chosen.any():
            self._session.overlays.remove(dots.layer, "selected")
            return
        foreground = dots.embedded.embedding.foreground
        mask = np.zeros(foreground.numel(), dtype=np.uint8)
        mask[dots.tokens[chosen]] = 1
        self._session.overlays.show_labels(
            dots.layer,
            "selected",
            "selected patches",
            mask.reshape(foreground.shape),
            dots.embedded.geometry(dots.layer),
        )
        count = int(chosen.sum())
        self._tell(f"{count:,} patch{'' if count == 1 else 'es'} highlighted in {dots.layer.name}.")

    def _jump_to(self, dot: int) -> None:
        dots = self._dots
        if dots is None or not self._session.has(dots.layer):
            return
        token = np.unravel_index(int(dots.tokens[dot]), dots.embedded.embedding.foreground.shape)
        self._tab.scatter.mark(dot)
        data = dots.embedded.data_of_token(token)
        self._session.overlays.jump_to(dots.layer.data_to_world(data))

    def mark_token(self, layer: Layer, token: tuple[int, int, int]) -> None:
        """Put the ring round the dot of a patch that was clicked in the viewer."""
        dots = self._dots
        if dots is None or plain(layer) is not plain(dots.layer):
            self._tab.scatter.mark(-1)
            return
        grid = tuple(dots.embedded.embedding.foreground.shape)
        flat = int(np.ravel_multi_index(token, grid))
        place = int(np.searchsorted(dots.tokens, flat))
        known = place < len(dots.tokens) and int(dots.tokens[place]) == flat
        self._tab.scatter.mark(place if known else -1)


def _places_in(labels: Layer, dots: _Dots) -> np.ndarray:
    """Voxels (n, 3) of a labels layer in which the middles of the dots' patches lie."""
    embedding = dots.embedded.embedding
    tokens = np.stack(np.unravel_index(dots.tokens, embedding.foreground.shape), axis=1)
    voxels = (tokens + 0.5) * embedding.stride + np.asarray(embedding.offset_vox)
    data = voxels * np.asarray(dots.embedded.source.factors) - 0.5
    to_labels = np.linalg.inv(world_matrix(labels)) @ world_matrix(dots.layer)
    return np.rint(data @ to_labels[:3, :3].T + to_labels[:3, 3]).astype(int)


def _labels_at(array: Any, places: np.ndarray) -> np.ndarray:
    """Labels (n,) at voxels, 0 outside the array."""
    inside = ((places >= 0) & (places < np.asarray(array.shape))).all(axis=1)
    found = np.zeros(len(places), dtype=np.int64)
    found[inside] = np.asarray(array)[tuple(places[inside].T)]
    return found


def _label_colours(layer: Layer, labels: np.ndarray) -> np.ndarray:
    """Colours (n, 3) uint8 that a Labels layer gives to label numbers."""
    numbers, inverse = np.unique(labels, return_inverse=True)
    table = []
    for number in numbers:
        colour = layer.get_color(int(number)) if number else None
        table.append((0.5, 0.5, 0.5) if colour is None else tuple(colour[:3]))
    return (np.asarray(table)[inverse.ravel()] * 255).astype(np.uint8)
