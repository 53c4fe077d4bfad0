"""The only code that adds layers to a viewer or changes their data.

Results take every part of their geometry from the layer they belong to, in one place. The user's
own layers are never changed, except for labels that they ask to be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np

from napari_s2dc._writer import TO_SCAN
from napari_s2dc.widgets.placement import GEOMETRY, Placement, geometry_of, move, token_geometry

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer, Points
    from napari.viewer import Viewer

__all__ = ["COMPLETE", "Overlays", "geometry_of", "in_file", "plain", "token_geometry"]

COMPLETE = "s2dc_complete"
"""Key in the metadata of labels that were found for a whole scan: 0 is background there."""


def plain(layer: Any) -> Any:
    """Give the layer itself instead of the proxy that napari hands to plugins.

    Proxies are made anew at each access, so they cannot be remembered weakly.
    """
    return getattr(layer, "__wrapped__", layer)


class Overlays:
    """The result layers of one viewer: one for each source layer and kind of result.

    Parameters
    ----------
    viewer : napari.Viewer
        Viewer (or the public proxy of it) that shows them.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._made: WeakKeyDictionary[Any, dict[str, ref[Any]]] = WeakKeyDictionary()
        self._placements: WeakKeyDictionary[Any, Placement] = WeakKeyDictionary()
        self._results: WeakSet[Any] = WeakSet()
        self._keeping = False

    @property
    def keeps_selection(self) -> bool:
        """Whether a layer is being added, so that the user has selected none of those announced."""
        return self._keeping

    def find(self, source: Layer, kind: str) -> Any | None:
        """Give the layer of a kind that belongs to a source, if the user has not removed it."""
        reference = self._made.get(plain(source), {}).get(kind)
        layer = None if reference is None else reference()
        return layer if layer is not None and layer in self._viewer.layers else None

    def is_overlay(self, layer: Layer) -> bool:
        """Whether a layer is a result, from before it is inserted; a copy of one is the user's."""
        return plain(layer) in self._results

    def give_away(self, layer: Layer) -> None:
        """Make a result layer the user's own: it stays as it is, and is offered as any other."""
        for made in self._made.values():
            for kind in [kind for kind, known in made.items() if known() is plain(layer)]:
                del made[kind]
        self._results.discard(plain(layer))

    def find_all(self, sources: Iterable[Layer], *kinds: str) -> list[Any]:
        """Give the layers of some kinds that belong to any of some sources."""
        found = [self.find(source, kind) for source in sources for kind in kinds]
        return [layer for layer in found if layer is not None]

    def remove(self, source: Layer, *kinds: str) -> None:
        """Take result layers of some kinds away, those that are there."""
        self.remove_all([source], *kinds)

    def remove_all(self, sources: Iterable[Layer], *kinds: str) -> None:
        """Take those away that belong to any of some sources."""
        self.take_away(self.find_all(sources, *kinds))

    def take_away(self, layers: Sequence[Any]) -> None:
        """Take layers out of the viewer, all at once.

        napari collects garbage after every removal, and with torch and all that in memory it takes
        a third of a second.
        """
        if not layers:
            return
        with self._viewer.layers.batched_update():
            for layer in layers:
                if layer in self._viewer.layers:
                    self._viewer.layers.remove(layer)

    def show_colours(self, source: Layer, colours: np.ndarray, geometry: dict[str, Any]) -> Image:
        """Show anatomy colours, (tz, ty, tx, 4) uint8."""
        layer = self.find(source, "colours")
        if layer is not None and layer.data.shape == colours.shape:
            self.put(source, layer, geometry)
            layer.data = colours
            return layer
        return self.add(
            source, "colours", "image", colours, "anatomy colours", geometry,
            rgb=True, opacity=0.6, interpolation2d="linear",
        )  # fmt: skip

    def show_heat(
        self,
        source: Layer,
        values: np.ndarray,
        geometry: dict[str, Any],
        kind: str = "similarity",
        *,
        colour_bar: bool = True,
    ) -> Image:
        """Show a map of numbers (tz, ty, tx); a map of the same shape is overwritten in place.

        Writing into the array that is shown and redrawing the slice is what keeps up with a
        dragged mouse; setting new data would compute ranges and thumbnails each time.
        """
        layer = self.find(source, kind)
        if layer is not None and layer.data.shape == values.shape:
            self.put(source, layer, geometry)
            layer.data[...] = values
            layer.refresh(extent=False, thumbnail=False, highlight=False)
            return layer
        similarity = kind == "similarity"
        layer = self.add(
            source, kind, "image", np.array(values, dtype=np.float32),
            kind, geometry,
            colormap="inferno" if similarity else "viridis",
            contrast_limits=(0.0, 1.0), opacity=0.6, interpolation2d="linear",
            blending="additive" if similarity else "translucent",
        )  # fmt: skip
        layer.colorbar.visible = colour_bar
        return layer

    def show_labels(
        self, source: Layer, kind: str, title: str, labels: np.ndarray, geometry: dict[str, Any]
    ) -> Labels:
        """Show integer labels as an overlay: clusters, selected patches, the structure found."""
        layer = self.find(source, kind)
        if layer is not None and layer.data.shape == labels.shape:
            self.put(source, layer, geometry)
            layer.data = labels
            return layer
        return self.add(source, kind, "labels", labels, title, geometry, opacity=0.5)

    def show_points(self, source: Layer, voxels: np.ndarray, size: float) -> Points:
        """Mark voxels (n, 3) of a source with rings; `size` in voxels."""
        layer = self.find(source, "nearest")
        if layer is not None:
            self.put(source, layer, geometry_of(source))
            layer.data = voxels
            return layer
        return self.add(
            source, "nearest", "points", voxels, "nearest patches", geometry_of(source),
            size=size, symbol="ring", face_color="transparent", border_color="cyan",
            ndim=3,
        )  # fmt: skip

    def show_marks(
        self, source: Layer, positive: np.ndarray, negative: np.ndarray, size: float
    ) -> Points:
        """Mark clicked voxels (n, 3): a green cross belongs to the structure, a red x does not."""
        voxels = np.concatenate([np.reshape(positive, (-1, 3)), np.reshape(negative, (-1, 3))])
        symbols = ["cross"] * len(positive) + ["x"] * len(negative)
        colours = ["#00d26a"] * len(positive) + ["#ff4040"] * len(negative)
        layer = self.find(source, "clicked")
        if layer is None or len(layer.data) != len(voxels):
            return self.add(
                source, "clicked", "points", voxels, "clicked places", geometry_of(source),
                size=size, symbol=symbols, face_color=colours, border_color="black",
                border_width=0.1, ndim=3,
            )  # fmt: skip
        self.put(source, layer, geometry_of(source))
        layer.data = voxels
        layer.symbol = symbols
        layer.face_color = colours
        return layer

    def new_labels(self, source: Layer, title: str) -> Labels:
        """Add an empty Labels layer on the grid of a source, and so of that source's file."""
        with self._selection_kept():
            return self._viewer.add_labels(
                np.zeros(_shape(source), dtype=np.uint16),
                name=f"{source.name} – {title}",
                metadata=dict(source.metadata),
                **geometry_of(source),
            )

    def own_labels(
        self, labels: np.ndarray, name: str, geometry: dict[str, Any], **look: Any
    ) -> Labels:
        """Add a Labels layer of the user's own that belongs to no scan at hand."""
        with self._selection_kept():
            return self._viewer.add_labels(labels, name=name, **geometry, **look)

    @staticmethod
    def write_labels(layer: Labels, voxels: tuple[np.ndarray, ...], label: int) -> None:
        """Write a label into a Labels layer as one step that napari's undo takes back."""
        layer.data_setitem(voxels, label)

    def put(self, source: Layer, layer: Layer, geometry: dict[str, Any]) -> None:
        """Put a result layer, which is there already, elsewhere over its source."""
        move(layer, geometry)
        placement = Placement.between(source, geometry)
        if np.allclose(placement.matrix, self._placements[plain(layer)].matrix):
            return
        self._placements[plain(layer)] = placement
        layer.metadata = {**layer.metadata, **in_file(source, placement)}

    def clear_colours(self, source: Layer) -> None:
        """Make the anatomy colours of a source show nothing until there are others.

        They are not removed: where all results of the only scan go between two pictures, napari
        0.9 on a software renderer crashes with the next layer that is added.
        """
        layer = self.find(source, "colours")
        if layer is not None:
            layer.data = np.zeros_like(layer.data)

    def jump_to(self, world: Sequence[float]) -> None:
        """Move the slices and the camera to a world position."""
        dims = self._viewer.dims
        first = dims.ndim - 3
        dims.set_point(range(first, dims.ndim), [float(value) for value in world])
        # The camera counts the axes as they are displayed.
        shown = [float(dims.point[axis]) for axis in dims.displayed]
        self._viewer.scene.camera.center = (*[0.0] * (3 - len(shown)), *shown)

    def keep_labels(
        self,
        source: Layer,
        title: str,
        labels: np.ndarray,
        geometry: dict[str, Any],
        like: Labels,
        *,
        complete: bool,
    ) -> Labels:
        """Add a Labels layer of the user's own over a source, with another one's classes.

        Parameters
        ----------
        source : napari layer
            Its metadata goes along, so that the labels are saved on the grid of its file.
        title : str
            End of the name.
        labels : np.ndarray
            Integers.
        geometry : dict
            Where they lie.
        like : napari Labels layer
            Names and colours of the classes.
        complete : bool
            Whether what has no class is background.
        """
        mark = {COMPLETE: True} if complete else {}
        with self._selection_kept():
            return self._viewer.add_labels(
                labels,
                name=f"{source.name} – {title}",
                metadata={**source.metadata, **mark},
                features=like.features,
                colormap=deepcopy(like.colormap),  # napari would share it: a click recolours both
                **geometry,
            )

    def add(
        self,
        source: Layer,
        kind: str,
        layer_type: str,
        data: Any,
        title: str,
        geometry: dict[str, Any],
        *,
        metadata: dict[str, Any] | None = None,
        **look: Any,
    ) -> Any:
        """Add a result layer in the place of the one of this kind that the source has.

        Parameters
        ----------
        source : napari layer
            Layer that the result belongs to and follows when it is moved.
        kind : str
            What it is; a source has one of each.
        layer_type : str
            As napari calls it, such as ``"image"``.
        data : array-like
            Data of the layer.
        title : str
            End of the name.
        geometry : dict
            Where it lies, as keywords.
        metadata : dict, optional
            What the layer says of itself; when left out, where it lies in the source's file, so
            that it is saved there.
        **look
            Further keywords of the layer.
        """
        from napari.layers import Layer

        self.remove(source, kind)
        placement = Placement.between(source, geometry)
        if metadata is None:
            metadata = in_file(source, placement)
        name = f"{source.name} – {title}"
        facts = {"name": name, "metadata": metadata, **geometry, **look}
        layer = Layer.create(data, facts, layer_type)
        self._results.add(layer)  # those who are told of it ask what it is
        with self._selection_kept():
            self._viewer.add_layer(layer)
        self._made.setdefault(plain(source), {})[kind] = ref(layer)
        self._placements[layer] = placement
        for name in GEOMETRY:  # connecting twice connects once
            getattr(source.events, name).connect(self._on_moved)
        return layer

    def _on_moved(self, event: Any) -> None:
        """Let the results of a layer follow it."""
        source = plain(event.source)
        for kind in list(self._made.get(source, {})):
            layer = self.find(source, kind)
            if layer is not None:
                move(layer, self._placements[plain(layer)].over(source))

    @contextmanager
    def _selection_kept(self) -> Iterator[None]:
        """Leave the user's selected layer selected: a new layer would take the mouse from it."""
        layers = self._viewer.layers
        active = layers.selection.active
        before, self._keeping = self._keeping, True
        try:
            yield
            if active is not None and active in layers:
                layers.selection.active = active
        finally:
            self._keeping = before


def in_file(source: Layer, placement: Placement) -> dict[str, Any]:
    """Metadata of a result that say where it lies in the file of its source, if there is one.

    The viewer does not know: it shows an oblique scan, and what was made of it, on straight axes.
    """
    known = source.metadata.get("s2dc") or {}
    if known.get("affine") is None:
        return {}
    # The source may be a copy of a result, with a grid of its own.
    to_scan = known.get(TO_SCAN, np.eye(4)) @ placement.matrix
    if np.allclose(to_scan, np.eye(4)):
        return {"s2dc": {name: known.get(name) for name in ("affine", "original")}}
    return {"s2dc": {"affine": known["affine"], TO_SCAN: to_scan}}


def _shape(layer: Layer) -> tuple[int, ...]:
    data = layer.data[0] if layer.multiscale else layer.data
    return tuple(int(size) for size in data.shape)
