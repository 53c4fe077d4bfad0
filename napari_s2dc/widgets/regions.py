"""Which part of a scan is embedded: what the view shows, or the box round shapes or labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_s2dc.errors import VolumeError
from napari_s2dc.widgets.volumes_of_layers import LayerSnapshot, type_of, world_matrix

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_s2dc.engine.embed_settings import Region

__all__ = ["can_bound", "finder_round", "region_shown", "words"]

_LEAST_VOX = 32
"""The encoder's smallest window; a smaller region would be filled up with nothing."""


def can_bound(layer: Layer) -> bool:
    """Whether a layer can say where a region lies: shapes, or labels that are in memory."""
    kind = type_of(layer)
    if kind == "labels":
        return layer.ndim == 3 and not layer.multiscale and isinstance(layer.data, np.ndarray)
    return kind == "shapes" and layer.ndim in (2, 3)


def region_shown(layer: Layer, source: LayerSnapshot, displayed: tuple[int, ...]) -> Region | None:
    """Give the part of a scan that the slice view shows, through all slices.

    Parameters
    ----------
    layer : napari Image layer
        Three-dimensional.
    source : LayerSnapshot
        Level of it that will be embedded.
    displayed : tuple of int
        Axes of the layer that are displayed, 0 to 2.

    Returns
    -------
    tuple of (first, end), or None
        Voxels of the level along z, y and x; None for all of them.

    Raises
    ------
    VolumeError
        The view is three-dimensional, or shows nothing of the scan.
    """
    if len(displayed) != 2:
        raise VolumeError(
            "What the view shows is known in slices only.", "Leave the 3D view, or take a box."
        )
    corners = np.asarray(layer.corner_pixels, dtype=float)
    if layer.multiscale:  # they count voxels of the level on the screen
        corners = (corners + 0.5) * np.asarray(layer.downsample_factors)[layer.data_level] - 0.5
    low = np.full(3, -0.5)
    high = np.asarray(source.shape) * np.asarray(source.factors) - 0.5
    axes = list(displayed)
    if not (corners[1, axes] > corners[0, axes]).all():
        raise VolumeError(f"The view shows nothing of {source.name}.", "Press the home button.")
    low[axes], high[axes] = corners[0, axes] - 0.5, corners[1, axes] + 0.5
    return _on_level(low, high, source)


def finder_round(layer: Layer, bounds: Layer, source: LayerSnapshot) -> Callable[[], Region | None]:
    """Give a function that finds the box round all shapes or labels of another layer.

    Looking through labels takes long, so it is to be called in a thread, which must not touch
    layers: everything else that is needed of them is noted here.

    Parameters
    ----------
    layer : napari Image layer
        The scan, three-dimensional.
    bounds : napari Shapes or Labels layer
        As :func:`can_bound` allows. Along an axis on which shapes have no extent, such as the
        slices behind a rectangle, the whole scan is taken.
    source : LayerSnapshot
        Level of the scan that will be embedded.

    Returns
    -------
    callable
        Gives (first, end) along z, y and x in voxels of the level, None for all of them; raises
        VolumeError where the layer is empty, or lies beside the scan.
    """
    name, shapes = str(bounds.name), type_of(bounds) == "shapes"
    if shapes:
        drawn = [corner for shape in bounds.data for corner in np.array(shape)]
        painted = None
    else:
        drawn, painted = [], bounds.data
    to_world, to_data = world_matrix(bounds), np.linalg.inv(world_matrix(layer))
    size = np.asarray(source.shape) * source.factors
    middle = layer.data_to_world((size - 1) / 2)

    def find() -> Region | None:
        own = np.array(drawn if painted is None else _corners(painted), dtype=float)
        if not len(own):
            raise VolumeError(
                f"{name} is empty.", "Draw a rectangle in it, or paint what to embed."
            )
        corners = own @ to_world[:-1, :-1].T + to_world[:-1, -1]
        if corners.shape[1] == 2:  # drawn while one plane of the world was shown
            corners = np.insert(corners, 0, middle[0], axis=1)
        places = corners @ to_data[:3, :3].T + to_data[:3, 3]
        low, high = places.min(axis=0), places.max(axis=0)
        if shapes:
            without = high - low < 1
            low[without] = -0.5
            high[without] = (size - 0.5)[without]
        if (high <= -0.5).any() or (low >= size - 0.5).any():
            raise VolumeError(f"{name} lies beside {source.name}.", "Choose another layer.")
        return _on_level(low, high, source)

    return find


def words(region: Region | None) -> str:
    """Size of a region for people; empty for the whole scan."""
    if region is None:
        return ""
    sides = " × ".join(str(end - first) for first, end in region)
    return f"a region of {sides} voxels"


def _corners(painted: Any) -> list[tuple[float, ...]]:
    """Corners of the box round all that is painted, in data coordinates; none when nothing is."""
    filled = np.asarray(painted) != 0
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(filled.any(axis=others))
        if not len(places):
            return []
        sides.append((places[0] - 0.5, places[-1] + 0.5))
    return list(itertools.product(*sides))


def _on_level(low: np.ndarray, high: np.ndarray, source: LayerSnapshot) -> Region | None:
    """Voxels of a level between two places in data of the finest one, at least a window wide."""
    factors, shape = np.asarray(source.factors), np.asarray(source.shape)
    # In voxels of the level, borders between voxels on whole numbers; rounding is no voxel.
    first = np.clip(np.floor((low + 0.5) / factors + 1e-3).astype(int), 0, shape - 1)
    end = np.clip(np.ceil((high + 0.5) / factors - 1e-3).astype(int), first + 1, shape)
    least = np.minimum(_LEAST_VOX, shape)
    first = np.clip(first - np.maximum(0, least - (end - first) + 1) // 2, 0, shape - least)
    end = np.maximum(end, first + least)
    if (first == 0).all() and (end == shape).all():
        return None
    z, y, x = ((int(a), int(b)) for a, b in zip(first, end, strict=True))
    return z, y, x
