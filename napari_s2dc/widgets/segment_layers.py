"""Names and colours of classes in Labels layers, and the layers that show a segmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np

from napari_s2dc.widgets.layers import COMPLETE, geometry_of, plain, token_geometry
from napari_s2dc.widgets.volumes_of_layers import LayerSnapshot, world_matrix

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer

    from napari_s2dc.engine.fewshot_settings import SegmentationClass
    from napari_s2dc.engine.segment import Segmentation
    from napari_s2dc.widgets.session import Session

__all__ = [
    "LayerGrid",
    "LayerGrids",
    "SegmentLayers",
    "colours_in",
    "colours_of",
    "finest",
    "grid_problem",
    "kept_colours",
    "name_class",
    "names_in",
    "names_of",
    "plane_on_screen",
    "recolour_class",
    "slice_on_screen",
]

SEGMENTATION, UNCERTAINTY = "segmentation", "uncertainty"
"""Kinds of result layers."""

Colour = tuple[float, float, float]

_OFF_MM, _OFF_SHARE = 1e-4, 1e-5
"""How much grids that count as one may differ, by rounding in files."""
_COLOURED = 256
"""Labels below keep their colour, also where none of them is painted or named yet."""


def finest(layer: Any) -> Any:
    """Give the data of the finest level of a layer."""
    return layer.data[0] if layer.multiscale else layer.data


@dataclass(frozen=True, eq=False)
class LayerGrid:
    """Where the voxels of the finest level of a layer lie.

    Parameters
    ----------
    shape : tuple of int
        Voxels.
    place : np.ndarray
        Data coordinates to world coordinates.
    """

    shape: tuple[int, ...]
    place: np.ndarray

    @classmethod
    def of(cls, layer: Any) -> LayerGrid:
        """Give the grid of a layer."""
        return cls(tuple(int(side) for side in finest(layer).shape), world_matrix(layer))

    def is_like(self, other: LayerGrid) -> bool:
        """Whether both have the same voxels."""
        if self.shape != other.shape:
            return False
        off = np.abs(self.place - other.place)  # as np.allclose, which takes ten times as long
        return bool((off <= _OFF_MM + _OFF_SHARE * np.abs(other.place)).all())


class LayerGrids:
    """Grids of layers at one moment, each looked at once: that takes napari a tenth of a ms."""

    def __init__(self) -> None:
        self._known: dict[Any, LayerGrid] = {}

    def of(self, layer: Any) -> LayerGrid:
        """Give the grid of a layer."""
        if layer not in self._known:
            self._known[layer] = LayerGrid.of(layer)
        return self._known[layer]

    def alike(self, one: Any, other: Any) -> bool:
        """Whether two layers have the same voxels."""
        return self.of(one).is_like(self.of(other))


def grid_problem(labels: Any, image: Any) -> str:
    """Why labels do not lie on the grid of an image, without a full stop; empty when they do."""
    one, other = LayerGrid.of(labels), LayerGrid.of(image)
    if one.shape != other.shape:
        words = [" × ".join(map(str, grid.shape)) for grid in (one, other)]
        return f"{labels.name} has {words[0]} voxels, {image.name} {words[1]}"
    if not one.is_like(other):
        return f"{labels.name} has as many voxels as {image.name} but lies elsewhere"
    return ""


def slice_on_screen(viewer: Any) -> tuple[Any, ...]:
    """Say what the viewer shows, to tell whether it shows something else later."""
    return viewer.dims.point, viewer.dims.order, viewer.dims.ndisplay


def plane_on_screen(viewer: Any, image: Any, scan: LayerSnapshot) -> tuple[int, int] | None:
    """Axis and index of the plane of a scan that is on the screen; None in 3D."""
    dims = viewer.dims
    hidden = [axis - (dims.ndim - 3) for axis in dims.not_displayed]
    axes = [axis for axis in hidden if axis >= 0]
    if len(axes) != 1:
        return None
    axis = axes[0]
    place = image.world_to_data(dims.point)[-3:][axis]
    index = int((float(place) + 0.5) // scan.factors[axis])
    return (axis, index) if 0 <= index < scan.shape[axis] else None


# ------------------------------------------------------------------ classes of a Labels layer
def names_of(layer: Labels) -> dict[int, str]:
    """Names of classes as the layer's features have them, where napari's status bar takes them."""
    return names_in(layer.features)


def names_in(features: Any) -> dict[int, str]:
    """Names of classes in the features table of a Labels layer."""
    if "name" not in features:
        return {}
    labels = features.get("index", features.index)
    named = zip(labels, features["name"], strict=True)
    return {int(label): str(name) for label, name in named if str(name) not in ("", "nan")}


def name_class(layer: Labels, names: Mapping[int, str]) -> None:
    """Name classes of a Labels layer, the others keep theirs; "" takes a name away."""
    merged = {0: "background", **names_of(layer), **names}
    kept = {label: name for label, name in sorted(merged.items()) if name}
    layer.features = {"index": list(kept), "name": list(kept.values())}


def colours_of(layer: Labels, labels: Iterable[int]) -> dict[int, Colour]:
    """Colours of classes by label: red, green and blue, 0 to 1."""
    return colours_in(layer.colormap, labels)


def colours_in(colormap: Any, labels: Iterable[int]) -> dict[int, Colour]:
    """Colours of classes in the colormap of a Labels layer."""
    wanted = sorted(labels)
    if not wanted:
        return {}
    if colormap.use_selection:  # the layer hides all but the selected class
        colormap = deepcopy(colormap)
        colormap.use_selection = False
    mapped = np.asarray(colormap.map(np.array(wanted, dtype=np.int64)))[:, :3].round(3)
    return {
        label: (float(red), float(green), float(blue))
        for label, (red, green, blue) in zip(wanted, mapped.tolist(), strict=True)
    }


def kept_colours(layer: Labels, labels: Iterable[int]) -> dict[int, Colour]:
    """Colours of small labels, of those with a name, and of the given ones."""
    known = {*range(1, _COLOURED), *names_of(layer), *labels}
    return colours_of(layer, known - {0})


def recolour_class(layer: Labels, label: int, colour: Colour, painted: Iterable[int] = ()) -> None:
    """Change the colour of a class; others keep theirs, large ones that are named or painted."""
    known = kept_colours(layer, {*painted, int(layer.selected_label)})
    layer.colormap = colormap_of({**known, label: colour})


def colormap_of(colours: Mapping[Any, Colour]) -> Any:
    """Colours by label as napari wants them; grey for others, nothing for 0."""
    from napari.utils.colormaps import DirectLabelColormap

    table: dict[Any, Any] = {None: (0.5, 0.5, 0.5, 1.0), 0: (0.0, 0.0, 0.0, 0.0)}
    table |= {label: (*colour, 1.0) for label, colour in colours.items()}
    return DirectLabelColormap(color_dict=table)


# ----------------------------------------------------------------------------- result layers
class SegmentLayers:
    """The layers of one viewer that show segmentations, two for each scan.

    Parameters
    ----------
    session : Session
        State of the viewer.
    given_away : callable
        Called with a segmentation once it has become the user's own, because it was painted in.
    """

    def __init__(self, session: Session, given_away: Callable[[Labels], None]) -> None:
        self._session = session
        self._given_away = given_away
        self._overlays = session.overlays
        self._sources: WeakKeyDictionary[Any, ref[Any]] = WeakKeyDictionary()
        self._corrected: WeakKeyDictionary[Any, ref[Any]] = WeakKeyDictionary()

    def new_labels(self, source: Layer) -> Labels:
        """Add an empty Labels layer to paint in, with a background and one class to begin with."""
        layer = self._overlays.new_labels(source, "strokes")
        name_class(layer, {1: "background", 2: "class 2"})
        layer.selected_label = 2
        return layer

    def found_for(self, source: Layer) -> Labels | None:
        """Give the segmentation that a scan has, if the user has not removed it."""
        layer: Labels | None = self._overlays.find(source, SEGMENTATION)
        return layer

    def latest_for(self, source: Layer) -> Labels | None:
        """Give the segmentation that a scan has, or the last one that the user has corrected."""
        found, known = self.found_for(source), self._corrected.get(plain(source))
        if found is not None or known is None:
            return found
        corrected: Labels | None = known()
        return corrected if corrected is not None and self._session.has(corrected) else None

    def show(
        self,
        source: Layer,
        scan: LayerSnapshot,
        found: Segmentation,
        classes: Sequence[SegmentationClass],
        below: Layer | None = None,
    ) -> Labels:
        """Show a segmentation and its uncertainty; layers that are there get the new data.

        Parameters
        ----------
        source : napari layer
            The scan.
        scan : LayerSnapshot
            What of it was segmented.
        found : Segmentation
            On the grid of `scan`.
        classes : sequence of SegmentationClass
            Their names and colours.
        below : napari layer, optional
            New layers are put below it, so that strokes stay in sight.
        """
        geometry = token_geometry(source, 1, (0, 0, 0), scan.factors)
        uncertainty: Image | None = self._overlays.find(source, UNCERTAINTY)
        if uncertainty is not None and uncertainty.data.shape == found.uncertainty.shape:
            self._overlays.put(source, uncertainty, geometry)
            uncertainty.data = found.uncertainty
        else:
            uncertainty = self._overlays.add(
                source, UNCERTAINTY, "image", found.uncertainty, "uncertainty", geometry,
                colormap="magma", contrast_limits=(0.0, 1.0), opacity=0.6,
                blending="translucent", visible=False,
            )  # fmt: skip
            uncertainty.colorbar.visible = True
            self._put_below(uncertainty, below)
        return self._show_labels(source, found.labels, geometry, classes, below)

    def show_plane(
        self,
        source: Layer,
        scan: LayerSnapshot,
        plane: tuple[int, int],
        found: Segmentation,
        classes: Sequence[SegmentationClass],
        below: Layer | None = None,
    ) -> None:
        """Show one plane (axis, index) of a segmentation before the rest of it is known."""
        axis, index = plane
        geometry = token_geometry(source, 1, (0, 0, 0), scan.factors)
        layer = self._overlays.find(source, SEGMENTATION)
        if (
            layer is None
            or layer.data.shape != scan.shape
            or layer.data.dtype != found.labels.dtype
        ):
            empty = np.zeros(scan.shape, found.labels.dtype)
            layer = self._show_labels(source, empty, geometry, classes, below)
        else:
            self._dress(layer, classes)
        place = tuple(index if other == axis else slice(None) for other in range(3))
        shown = [(layer, found.labels)]
        uncertainty = self._overlays.find(source, UNCERTAINTY)
        if uncertainty is not None and uncertainty.data.shape == scan.shape:
            shown.append((uncertainty, found.uncertainty))
        for one, values in shown:
            one.data[place] = values
            one.refresh(extent=False, thumbnail=False, highlight=False)

    def _show_labels(
        self,
        source: Layer,
        labels: np.ndarray,
        geometry: dict[str, Any],
        classes: Sequence[SegmentationClass],
        below: Layer | None,
    ) -> Labels:
        layer: Labels | None = self._overlays.find(source, SEGMENTATION)
        if layer is not None and layer.data.shape == labels.shape:
            self._overlays.put(source, layer, geometry)
            layer.data = labels
            self._dress(layer, classes)
            return layer
        layer = self._overlays.add(
            source, SEGMENTATION, "labels", labels, "segmentation", geometry,
            metadata={**source.metadata, COMPLETE: True}, opacity=0.5, visible=source.visible,
        )  # fmt: skip
        self._dress(layer, classes)
        self._put_below(layer, below)
        self._sources[plain(layer)] = ref(plain(source))
        layer.events.paint.connect(self._on_corrected)
        return layer

    @staticmethod
    def _dress(layer: Labels, classes: Sequence[SegmentationClass]) -> None:
        colours = {one.label: one.colour for one in classes}
        if colours_of(layer, colours) != colours:
            layer.colormap = colormap_of(colours)
        names = {one.label: one.name for one in classes}
        if names_of(layer) != {0: "background", **names}:
            layer.features = {"index": [0, *names], "name": ["background", *names.values()]}

    def _put_below(self, layer: Any, other: Any | None) -> None:
        layers = self._session.viewer.layers
        if other is not None and other in layers and layers.index(layer) > layers.index(other):
            layers.move(layers.index(layer), layers.index(other))

    def _on_corrected(self, event: Any) -> None:
        """Leave a segmentation that was painted in to the user: the next one is another layer."""
        layer = plain(event.source)
        layer.events.paint.disconnect(self._on_corrected)
        self._overlays.give_away(layer)
        layer.name = f"{layer.name} (corrected)"
        source = self._sources[layer]()
        if source is not None:
            self._corrected[source] = ref(layer)
        self._given_away(layer)

    def carry(self, source: Layer, array: np.ndarray, like: Labels) -> Labels:
        """Add labels that were resampled to the grid of a scan as a layer of the user's own."""
        return self._overlays.keep_labels(
            source,
            f"{like.name} on its grid",
            array,
            geometry_of(source),
            like,
            complete=COMPLETE in like.metadata,
        )
