"""Where results lie: all of the geometry of their source, kept when the source is moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = [
    "GEOMETRY",
    "Placement",
    "axis_names",
    "geometry_of",
    "matrix_of",
    "move",
    "to_units_of",
    "token_geometry",
    "words_of",
]

GEOMETRY = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
"""Properties of a layer, and events of the same names, that say where its voxels lie."""


def geometry_of(layer: Layer) -> dict[str, Any]:
    """Everything that says where a layer's voxels lie, as keywords for a new layer.

    A single layer without units would make napari drop the units of all, so they are part of it.
    """
    return {
        "scale": np.array(layer.scale),
        "translate": np.array(layer.translate),
        "rotate": np.array(layer.rotate),
        "shear": np.array(layer.shear),
        "affine": np.array(layer.affine.affine_matrix),
        "units": layer.units,
        "axis_labels": layer.axis_labels,
    }


def axis_names(layer: Layer) -> tuple[str, ...]:
    """Names of a layer's axes for people: z, y, x where napari only counts (-3, -2, -1)."""
    usual = ("z", "y", "x")[-layer.ndim :]
    labels = tuple(str(label) for label in layer.axis_labels)
    counted = tuple(str(axis) for axis in range(-layer.ndim, 0))
    return usual if labels == counted and layer.ndim <= 3 else labels


def words_of(layer: Layer, world: Sequence[float]) -> str:
    """Name a place of the world by the axes and the unit of a 3D layer.

    Whole numbers, or as many decimals as keep voxels apart that are much smaller than the unit.
    """
    names = axis_names(layer)
    steps = np.abs(matrix_of(geometry_of(layer))[:3, :3]).max(axis=1)
    places = zip(names, world, map(_decimals, steps), strict=True)
    words = ", ".join(f"{name} {part:z.{decimals}f}" for name, part, decimals in places)
    units = {f"{unit:~}" for unit in layer.units}
    return f"{words} {units.pop()}" if len(units) == 1 else words


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a result lies in the data of its source, wherever that one is in the world.

    Parameters
    ----------
    first : np.ndarray (3,)
        Middle of the result's voxel (0, 0, 0) in data coordinates of the source.
    step : np.ndarray (3,)
        Voxels of the source per voxel of the result.
    """

    first: np.ndarray
    step: np.ndarray

    @classmethod
    def between(cls, source: Layer, geometry: dict[str, Any]) -> Placement:
        """Placement of a layer with some geometry made from that of the source."""
        first = _data_to_own(geometry_of(source)).inverse(geometry["translate"])
        return cls(np.asarray(first), np.asarray(geometry["scale"]) / np.asarray(source.scale))

    @property
    def matrix(self) -> np.ndarray:
        """Matrix (4, 4) from voxels of the result to those of the source."""
        matrix = np.diag([*self.step, 1.0])
        matrix[:3, 3] = self.first
        return matrix

    def over(self, source: Layer) -> dict[str, Any]:
        """Geometry of the result over the source as it lies now, as keywords for a layer."""
        geometry = geometry_of(source)
        geometry["translate"] = np.asarray(_data_to_own(geometry)(self.first))
        geometry["scale"] = geometry["scale"] * self.step
        return geometry


def token_geometry(
    layer: Layer,
    stride: int,
    offset_vox: Sequence[float] = (0, 0, 0),
    factors: Sequence[float] = (1, 1, 1),
) -> dict[str, Any]:
    """Geometry of a token grid over a layer.

    Parameters
    ----------
    layer : napari layer
        Source, three-dimensional.
    stride : int
        Voxels per token side.
    offset_vox : sequence of 3 numbers
        First voxel of the first token.
    factors : sequence of 3 floats
        Voxels of the layer's finest level per voxel that was embedded.

    Returns
    -------
    dict
        Keywords for a layer of shape (tz, ty, tx): token ``i`` covers voxels
        ``[offset + i * stride, offset + (i + 1) * stride)`` of the embedded level.
    """
    # Where the middle of token 0 lies, in voxels of the finest level.
    middle = (np.asarray(offset_vox) + stride / 2) * np.asarray(factors) - 0.5
    return Placement(middle, stride * np.asarray(factors, dtype=float)).over(layer)


def matrix_of(geometry: dict[str, Any]) -> np.ndarray:
    """Matrix (4, 4) from data coordinates of a 3D layer with some geometry to the world."""
    matrix: np.ndarray = geometry["affine"] @ _data_to_own(geometry).affine_matrix
    return matrix


def to_units_of(layer: Layer, source: Layer) -> np.ndarray:
    """Give the matrix (4, 4) from the world of one 3D layer to that of another.

    napari shows layers in millimetres and in micrometres in one common unit, but says where each
    of them lies in its own. A unit that is no length, as pixels, is taken as that of the other.

    Parameters
    ----------
    layer : napari layer
        Whose units are wanted.
    source : napari layer
        Whose places are given.
    """
    return np.diag([*map(_ratio, source.units, layer.units), 1.0])


def _ratio(unit: Any, wanted: Any) -> float:
    if unit == wanted:
        return 1.0
    try:
        return float((1 * unit).to(wanted).magnitude)
    except Exception:  # pint raises its own error for units that do not compare
        return 1.0


def move(layer: Layer, geometry: dict[str, Any]) -> None:
    """Put a layer where a geometry says, changing only what differs."""
    now = geometry_of(layer)
    for name in GEOMETRY:
        wanted = geometry[name]
        if name in ("units", "axis_labels"):
            differs = tuple(now[name]) != tuple(wanted)
        else:
            differs = not (
                np.array_equal(now[name], wanted)
                or (np.shape(now[name]) == np.shape(wanted) and np.allclose(now[name], wanted))
            )
        if differs:
            setattr(layer, name, wanted)


def _decimals(step: float) -> int:
    """Decimals with which rounding moves a place by one voxel of a size at most."""
    return min(max(0, math.ceil(-math.log10(2 * step))), 9) if step > 0 else 0


def _data_to_own(geometry: dict[str, Any]) -> Any:
    """Transform from data to the layer's own coordinates, before its affine."""
    from napari.utils.transforms import Affine

    return Affine(**{name: geometry[name] for name in ("scale", "translate", "rotate", "shear")})
