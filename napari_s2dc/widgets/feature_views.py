"""Features made visible in the viewer: anatomy colours and clusters."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_s2dc.widgets.embed_tab import EmbedTab
from napari_s2dc.widgets.header import Header
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.preferences import preferences
from napari_s2dc.widgets.session import Embedded, Session
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_s2dc.engine.colours import ColourBasis

__all__ = ["FeatureViews"]


class FeatureViews(QObject):
    """Keep colours and clusters in step with the embeddings.

    Parameters
    ----------
    session : Session
        State of the viewer.
    header : Header
        Says which volume is chosen.
    tab : EmbedTab
        Controls.
    jobs : Jobs
        Threads.
    """

    coloured = Signal()
    """Colours were found anew."""
    clustered = Signal(object)
    """The layer whose clusters were found anew."""

    def __init__(
        self, session: Session, header: Header, tab: EmbedTab, jobs: Jobs, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._session, self._header, self._tab, self._jobs = session, header, tab, jobs
        self._bases: dict[Hashable, ColourBasis] = {}
        self._clusters: WeakKeyDictionary[Any, np.ndarray] = WeakKeyDictionary()
        session.embedding_changed.connect(self._on_embedding)
        tab.triple_changed.connect(self._show_colours)
        tab.clusters_wanted.connect(self.show_clusters)

    def basis_of(self, embedded: Embedded) -> ColourBasis | None:
        """Colour basis of an embedding, which it shares with all comparable ones."""
        return self._bases.get(_encoder_of(embedded))

    def clusters_of(self, layer: Layer) -> np.ndarray | None:
        """Cluster numbers (tz, ty, tx) of a layer, None when they were not asked for."""
        return self._clusters.get(plain(layer))

    def _on_embedding(self, layer: Layer) -> None:
        self._clusters.pop(plain(layer), None)
        self._session.overlays.remove(layer, "clusters", "selected")
        embedded = self._session.embedded(layer)
        if embedded is None:
            self._session.overlays.clear_colours(layer)
            return
        self._bases.pop(_encoder_of(embedded), None)  # it has to suit the new scan too
        self._show_colours(self._tab.triple.value() - 1)

    def _show_colours(self, triple: int) -> None:
        """Colour all embedded volumes; those of one encoder share a basis and so compare."""
        groups: dict[Hashable, list[tuple[Layer, Embedded]]] = {}
        for layer in self._session.embedded_layers():
            embedded = self._session.embedded(layer)
            if embedded is not None:
                groups.setdefault(_encoder_of(embedded), []).append((layer, embedded))
        if not groups:
            return
        known, seed = dict(self._bases), preferences().seed

        def colour() -> tuple[dict[Hashable, ColourBasis], list[np.ndarray]]:
            from napari_s2dc.engine.colours import ColourBasis

            pictures = []
            for encoder, members in groups.items():
                embeddings = [embedded.embedding for _, embedded in members]
                if encoder not in known:
                    known[encoder] = ColourBasis.fit(embeddings, seed=seed)
                pictures += [
                    _with_air(known[encoder].colours(one, triple), one) for one in embeddings
                ]
            return known, pictures

        def done(found: tuple[dict[Hashable, ColourBasis], list[np.ndarray]]) -> None:
            self._bases, pictures = found
            members = [member for group in groups.values() for member in group]
            for (layer, embedded), picture in zip(members, pictures, strict=True):
                if self._session.has(layer) and self._session.embedded(layer) is embedded:
                    self._session.overlays.show_colours(layer, picture, embedded.geometry(layer))
            self.coloured.emit()

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
            if not self._session.has(layer) or self._session.embedded(layer) is not embedded:
                return
            self._session.overlays.show_labels(
                layer, "clusters", "clusters", groups, embedded.geometry(layer)
            )
            self._clusters[plain(layer)] = groups
            self.clustered.emit(layer)

        self._jobs.run("clusters", "Grouping patches", group, done, quiet=True)


def _encoder_of(embedded: Embedded) -> Hashable:
    """Name what embeddings that compare have in common, see `Embedded.comparable_to`."""
    embedding = embedded.embedding
    return embedding.metadata.get("weights"), embedding.features.shape[0]


def _with_air(colours: np.ndarray, embedding: Any) -> np.ndarray:
    """Colours with alpha: patches without tissue are seen through."""
    alpha = np.where(embedding.foreground.numpy(), 255, 0).astype(np.uint8)
    return np.concatenate([colours, alpha[..., None]], axis=-1)
