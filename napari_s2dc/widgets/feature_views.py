"""Features made visible: anatomy colours, clusters, and the scatter of patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject

from napari_s2dc.widgets.embed_tab import BY_CLUSTER, BY_LABELS, EmbedTab
from napari_s2dc.widgets.header import Header
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.preferences import preferences
from napari_s2dc.widgets.session import Embedded, Session
from napari_s2dc.widgets.volumes_of_layers import world_matrix
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_s2dc.engine.colours import ColourBasis

__all__ = ["FeatureViews"]

_SHOWN_IN_SCATTER = 20_000
"""Dots beyond this many hide each other; a fixed sample is drawn instead."""


class FeatureViews(QObject):
    """Keep colours, clusters and scatter in step with the embeddings.

    Parameters
    ----------
    session : Session
        State of the viewer.
    header : Header
        Says which volume is chosen.
    tab : EmbedTab
        Controls and scatter.
    jobs : Jobs
        Threads.
    """

    def __init__(
        self, session: Session, header: Header, tab: EmbedTab, jobs: Jobs, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._session, self._header, self._tab, self._jobs = session, header, tab, jobs
        self._basis: ColourBasis | None = None
        self._newest: Embedded | None = None
        self._clusters: np.ndarray | None = None
        self._drawn = np.zeros(0, dtype=int)  # token of each dot
        self._points = np.zeros((0, 2))
        self._anatomy = np.zeros((0, 3), dtype=np.uint8)
        header.volume_changed.connect(self._show_embedding)
        session.embedding_changed.connect(self._on_embedding)
        tab.triple_changed.connect(self._show_colours)
        tab.clusters_wanted.connect(self.show_clusters)
        tab.colouring_changed.connect(self._colour_dots)
        tab.scatter.lassoed.connect(self._select)
        tab.scatter.picked.connect(self._jump_to_dot)

    def _on_embedding(self, layer: Layer) -> None:
        self._basis = None  # one basis for all, so that colours can be compared
        self._newest = self._session.embedded(layer)
        if plain(layer) is plain(self._header.volume.layer):
            self._show_embedding(layer)
        self._show_colours(self._tab.triple.value() - 1)

    def _show_embedding(self, layer: Layer | None) -> None:
        embedded = self._session.embedded(layer)
        self._clusters = None
        self._tab.show_embedded(embedded is not None)
        if embedded is None or layer is None:
            self._drawn = np.zeros(0, dtype=int)
            self._tab.scatter.show_points(np.zeros((0, 2)), np.zeros((0, 3)))
            return
        self._draw_scatter(layer, embedded)

    def _show_colours(self, triple: int) -> None:
        newest = self._newest
        if newest is None:
            return
        # Colours of different encoders cannot be compared, so one basis is for one encoder.
        pairs = [
            (layer, embedded)
            for layer in self._session.embedded_layers()
            if (embedded := self._session.embedded(layer)) and embedded.comparable_to(newest)
        ]
        if not pairs:
            return
        basis, seed = self._basis, preferences().seed

        def colour() -> tuple[ColourBasis, list[np.ndarray]]:
            from napari_s2dc.engine.colours import ColourBasis

            embeddings = [embedded.embedding for _, embedded in pairs]
            fitted = basis or ColourBasis.fit(embeddings, seed=seed)
            return fitted, [_with_air(fitted.colours(one, triple), one) for one in embeddings]

        def done(found: tuple[ColourBasis, list[np.ndarray]]) -> None:
            self._basis, pictures = found
            for (layer, embedded), picture in zip(pairs, pictures, strict=True):
                if self._session.has(layer):
                    self._session.overlays.show_colours(layer, picture, embedded.geometry(layer))
            chosen = self._header.volume.layer
            current = self._session.embedded(chosen)
            if chosen is not None and current is not None:
                self._draw_scatter(chosen, current)

        self._jobs.run("colours", "Finding colours", colour, done, quiet=True)

    def show_clusters(self, count: int) -> None:
        """Group the patches of the chosen volume into `count` clusters and show them."""
        layer = self._header.volume.layer
        embedded = self._session.embedded(layer)
        if embedded is None or layer is None:
            return
        seed = preferences().seed

        def group() -> np.ndarray:
            from napari_s2dc.engine.colours import clusters

            return clusters(embedded.embedding, count, seed=seed)

        def done(groups: np.ndarray) -> None:
            if not self._session.has(layer):
                return
            self._session.overlays.show_labels(
                layer, "clusters", "clusters", groups, embedded.geometry(layer)
            )
            if plain(layer) is plain(self._header.volume.layer):
                self._clusters = groups
                self._colour_dots()

        self._jobs.run("clusters", "Grouping patches", group, done, quiet=True)

    # -------------------------------------------------------------------------- scatter
    def _draw_scatter(self, layer: Layer, embedded: Embedded) -> None:
        basis = self._basis
        if basis is None or self._newest is None or not embedded.comparable_to(self._newest):
            return  # comes with the colours
        embedding = embedded.embedding
        tokens = np.flatnonzero(embedding.foreground.numpy().ravel())
        if len(tokens) > _SHOWN_IN_SCATTER:
            random = np.random.default_rng(0)
            tokens = np.sort(random.choice(tokens, _SHOWN_IN_SCATTER, replace=False))
        triple = self._tab.triple.value() - 1

        def place() -> tuple[np.ndarray, np.ndarray]:
            flat = basis.colours(embedding, triple).reshape(-1, 3)
            return basis.coordinates(embedding)[tokens], flat[tokens]

        def done(found: tuple[np.ndarray, np.ndarray]) -> None:
            if plain(layer) is plain(self._header.volume.layer):
                self._drawn = tokens
                self._points, self._anatomy = found
                self._colour_dots()

        self._jobs.run("scatter", "Placing dots", place, done, quiet=True)

    def _colour_dots(self, _: object = None) -> None:
        layer = self._header.volume.layer
        embedded = self._session.embedded(layer)
        if embedded is None or layer is None or not len(self._drawn):
            return
        what = self._tab.colouring.currentData()
        colours = self._anatomy
        if what == BY_CLUSTER:
            if self._clusters is None:
                self.show_clusters(self._tab.clusters.value())
                return
            overlay = self._session.overlays.find(layer, "clusters")
            if overlay is not None:
                colours = _label_colours(overlay, self._clusters.ravel()[self._drawn])
        elif what == BY_LABELS and self._tab.labels.layer is not None:
            labels = self._tab.labels.layer
            colours = _label_colours(labels, self._labels_of_dots(layer, embedded, labels))
        self._tab.scatter.show_points(self._points, colours)

    def _labels_of_dots(self, layer: Layer, embedded: Embedded, labels: Layer) -> np.ndarray:
        """Label at the middle of each dot's patch; 0 outside the labels layer."""
        grid = embedded.embedding.foreground.shape
        tokens = np.stack(np.unravel_index(self._drawn, grid), axis=1)
        stride, offset = embedded.embedding.stride, np.asarray(embedded.embedding.offset_vox)
        voxels = (tokens + 0.5) * stride + offset
        data = voxels * np.asarray(embedded.source.factors) - 0.5
        to_labels = np.linalg.inv(world_matrix(labels)) @ world_matrix(layer)
        places = np.rint(data @ to_labels[:3, :3].T + to_labels[:3, 3]).astype(int)
        array = labels.data[0] if labels.multiscale else labels.data
        inside = ((places >= 0) & (places < np.asarray(array.shape))).all(axis=1)
        found = np.zeros(len(places), dtype=np.int64)
        found[inside] = np.asarray(array)[tuple(places[inside].T)]
        return found

    def _select(self, chosen: np.ndarray) -> None:
        layer = self._header.volume.layer
        embedded = self._session.embedded(layer)
        if embedded is None or layer is None:
            return
        if not chosen.any():
            self._session.overlays.remove(layer, "selected")
            return
        mask = np.zeros(embedded.embedding.foreground.numel(), dtype=np.uint8)
        mask[self._drawn[chosen]] = 1
        self._session.overlays.show_labels(
            layer,
            "selected",
            "selected patches",
            mask.reshape(embedded.embedding.foreground.shape),
            embedded.geometry(layer),
        )

    def _jump_to_dot(self, dot: int) -> None:
        layer = self._header.volume.layer
        embedded = self._session.embedded(layer)
        if embedded is None or layer is None:
            return
        token = np.unravel_index(int(self._drawn[dot]), embedded.embedding.foreground.shape)
        self._tab.scatter.mark(dot)
        self._session.overlays.jump_to(layer.data_to_world(embedded.data_of_token(token)))

    def mark_token(self, layer: Layer, token: tuple[int, int, int]) -> None:
        """Put the ring round the dot of a patch that was clicked in the viewer."""
        embedded = self._session.embedded(layer)
        if embedded is None or plain(layer) is not plain(self._header.volume.layer):
            self._tab.scatter.mark(-1)
            return
        flat = int(np.ravel_multi_index(token, tuple(embedded.embedding.foreground.shape)))
        place = int(np.searchsorted(self._drawn, flat))
        known = place < len(self._drawn) and int(self._drawn[place]) == flat
        self._tab.scatter.mark(place if known else -1)


def _with_air(colours: np.ndarray, embedding: Any) -> np.ndarray:
    """Colours with alpha: patches without tissue are seen through."""
    alpha = np.where(embedding.foreground.numpy(), 255, 0).astype(np.uint8)
    return np.concatenate([colours, alpha[..., None]], axis=-1)


def _label_colours(layer: Layer, labels: np.ndarray) -> np.ndarray:
    """Colours (n, 3) uint8 that a Labels layer gives to label numbers."""
    numbers, inverse = np.unique(labels, return_inverse=True)
    table = []
    for number in numbers:
        colour = layer.get_color(int(number)) if number else None
        table.append((0.5, 0.5, 0.5) if colour is None else tuple(colour[:3]))
    return (np.asarray(table)[inverse.ravel()] * 255).astype(np.uint8)
