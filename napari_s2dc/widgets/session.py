"""What one viewer's tabs share: the encoder, and the embedding of each layer."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

from napari_s2dc.widgets.layers import Overlays, plain, token_geometry
from napari_s2dc.widgets.volumes_of_layers import LayerSnapshot

if TYPE_CHECKING:
    import numpy as np
    from napari.layers import Layer
    from napari.viewer import Viewer

    from napari_s2dc.engine.embed import Embedding, EmbedSettings
    from napari_s2dc.method.encoder import SwinEncoder

__all__ = ["AppliedMap", "Embedded", "LoadedEncoder", "Session", "session_of"]


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in memory.

    Parameters
    ----------
    network : SwinEncoder
        On the CPU, with its metadata and loading report.
    name : str
        Short name to show.
    path : Path
        File it came from.
    """

    network: SwinEncoder
    name: str
    path: Path


@dataclass(frozen=True)
class Embedded:
    """The embedding of a layer and what it was made with.

    Parameters
    ----------
    embedding : Embedding
        Features on the token grid.
    source : LayerSnapshot
        The layer's data and level at that time.
    encoder : LoadedEncoder
        What made it.
    settings : EmbedSettings
        Settings it was made with.
    """

    embedding: Embedding
    source: LayerSnapshot
    encoder: LoadedEncoder
    settings: EmbedSettings

    def comparable_to(self, other: Embedded) -> bool:
        """Whether features of the two mean the same: same weights, same stage."""
        mine, others = self.embedding, other.embedding
        return (
            mine.metadata.get("weights") == others.metadata.get("weights")
            and mine.features.shape[0] == others.features.shape[0]
        )

    def geometry(self, layer: Layer) -> dict[str, Any]:
        """Keywords that put an array on the token grid where it belongs over its layer."""
        return token_geometry(
            layer, self.embedding.stride, self.embedding.offset_vox, self.source.factors
        )

    def voxel_at(self, layer: Layer, world: Any) -> tuple[int, int, int] | None:
        """Embedded voxel at a world position, or None outside the scan."""
        return self.voxel_of_data(layer.world_to_data(tuple(world)[-3:]))

    def voxel_of_data(self, position: Any) -> tuple[int, int, int] | None:
        """Embedded voxel at a position in the layer's own data coordinates, or None outside."""
        voxel = tuple(
            int((float(place) + 0.5) // factor)
            for place, factor in zip(position, self.source.factors, strict=True)
        )
        inside = all(
            0 <= place < size for place, size in zip(voxel, self.source.shape, strict=True)
        )
        return (voxel[0], voxel[1], voxel[2]) if inside else None

    def data_of_token(self, token: Any) -> np.ndarray:
        """Middle of a token in the layer's own data coordinates."""
        import numpy as np

        voxel = np.asarray(self.embedding.voxel_of_token(tuple(int(part) for part in token)))
        factors = np.asarray(self.source.factors)
        return (voxel + 0.5) * factors - 0.5


@dataclass(frozen=True, eq=False)
class AppliedMap:
    """What a map has done to a layer.

    Parameters
    ----------
    before, after : np.ndarray
        Its affine, (4, 4), before the map was applied, and with it.
    """

    before: np.ndarray
    after: np.ndarray


class Session(QObject):
    """Encoder and embeddings of one viewer, held once however many panels show them.

    Parameters
    ----------
    viewer : napari.Viewer
        A weak proxy of it.
    """

    encoder_changed = Signal()
    embedding_changed = Signal(object)  # the layer
    data_replaced = Signal(object)  # the layer, whose embedding is dropped by then

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.overlays = Overlays(viewer)
        self._applied: weakref.WeakKeyDictionary[Any, AppliedMap] = weakref.WeakKeyDictionary()
        self._encoder: LoadedEncoder | None = None
        self._embedded: weakref.WeakKeyDictionary[Any, Embedded] = weakref.WeakKeyDictionary()

    @property
    def encoder(self) -> LoadedEncoder | None:
        """The encoder that new embeddings are made with."""
        return self._encoder

    @encoder.setter
    def encoder(self, encoder: LoadedEncoder | None) -> None:
        self._encoder = encoder
        self.encoder_changed.emit()

    def embedded(self, layer: Layer | None) -> Embedded | None:
        """Embedding of a layer, if there is one."""
        return None if layer is None else self._embedded.get(plain(layer))

    def keep(self, layer: Layer, embedded: Embedded) -> None:
        """Remember the embedding of a layer; it goes with the layer, or with the layer's data."""
        if not embedded.source.is_of(layer):  # replaced while it was embedded
            self.data_replaced.emit(layer)
            return
        self._embedded[plain(layer)] = embedded
        layer.events.data.connect(self._on_data)  # connecting twice connects once
        self.embedding_changed.emit(layer)

    def _on_data(self, event: Any) -> None:
        """Drop the embedding of a layer that shows other data by now."""
        layer = plain(event.source)
        embedded = self._embedded.get(layer)
        if embedded is None or embedded.source.is_of(layer):
            return
        del self._embedded[layer]
        self.embedding_changed.emit(layer)
        self.data_replaced.emit(layer)

    def change_of(self, layer: Layer) -> str:
        """Say what became of the embedding that a result was made of."""
        if self.embedded(layer) is None:
            return f"The data of {layer.name} was replaced"
        return f"{layer.name} was embedded anew"

    def embedded_layers(self) -> list[Layer]:
        """Layers of the viewer that are embedded, in the viewer's order."""
        return [layer for layer in self.viewer.layers if plain(layer) in self._embedded]

    def applied_to(self, layer: Layer) -> AppliedMap | None:
        """Give the map that has moved a layer, unless something else has moved it since."""
        import numpy as np

        applied = self._applied.get(plain(layer))
        if applied is None or not np.array_equal(layer.affine.affine_matrix, applied.after):
            return None
        return applied

    def moved_layers(self) -> list[Layer]:
        """Layers of the viewer that a map has moved, the one that was moved last at the end."""
        return [layer for layer in self._applied if self.has(layer)]

    def note_map(self, layer: Layer, applied: AppliedMap | None) -> None:
        """Remember the map that has moved a layer; None once it was taken back."""
        self._applied.pop(plain(layer), None)
        if applied is not None:
            self._applied[plain(layer)] = applied

    def has(self, layer: Layer | None) -> bool:
        """Whether a layer is still in the viewer."""
        return layer is not None and layer in self.viewer.layers


_SESSIONS: dict[int, Session] = {}


def session_of(viewer: Viewer) -> Session:
    """Give the session of a viewer, made at the first call and gone with the viewer."""
    owner = plain(viewer)
    session = _SESSIONS.get(id(owner))
    if session is None:
        session = Session(weakref.proxy(owner))  # must not keep the viewer alive
        _SESSIONS[id(owner)] = session
        weakref.finalize(owner, _SESSIONS.pop, id(owner), None)
    return session
