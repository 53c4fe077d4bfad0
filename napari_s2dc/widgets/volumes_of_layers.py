"""From any napari layer to a volume the engine takes, or to one sentence why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.coarser import coarser_grids, on_grid
from napari_s2dc.volumes.volume import OriginalGeometry, Volume

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = [
    "LayerSnapshot",
    "level_like",
    "place_mm",
    "problem_of",
    "resolutions_of",
    "snapshot",
    "step_of",
    "volume_from_layer",
    "world_matrix",
]

_SAMPLE_VOXELS = 2**22
_SAMPLE_SIDE = 1024


@dataclass(frozen=True)
class LayerSnapshot:
    """What of a layer a worker needs, taken in the thread that owns the layer.

    Parameters
    ----------
    data : array-like
        (z, y, x) of the chosen level: numpy, memory map, dask or zarr; not read yet. Of a level
        that the layer does not hold, the whole scan.
    affine : np.ndarray
        (4, 4): voxel (z, y, x) of that level to mm.
    name : str
        Name of the layer.
    level : int
        Resolution level; 0 is the finest.
    factors : tuple of float
        Voxels of level 0 per voxel of this level, along (z, y, x).
    original : OriginalGeometry or None
        Grid of the file the layer was read from, where `data` has it.
    path : Path or None
        That file.
    modality : str or None
        ``ct``, ``mr`` or ``pet`` where known.
    overview : array-like or None
        Coarsest level of a multiscale layer.
    grid : tuple of int or None
        Voxels (z, y, x) of a level that the layer does not hold, made when it is read.
    """

    data: Any
    affine: np.ndarray
    name: str
    level: int = 0
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    original: OriginalGeometry | None = None
    path: Path | None = None
    modality: str | None = None
    overview: Any = None
    grid: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of the level."""
        z, y, x = self.grid or self.data.shape
        return int(z), int(y), int(x)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel of the level along (z, y, x)."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def stored(self) -> LayerSnapshot:
        """What the layer holds of it: the whole scan where the level is made when it is read."""
        if self.grid is None:
            return self
        affine = self.affine @ np.linalg.inv(step_of(self.factors))
        return replace(self, affine=affine, factors=(1.0, 1.0, 1.0), grid=None)

    def is_of(self, layer: Layer) -> bool:
        """Whether a layer still holds the array that was noted; edits within it are not seen."""
        levels = list(layer.data) if layer.multiscale else [layer.data]
        return self.level < len(levels) and levels[self.level] is self.data

    def load(self) -> Volume:
        """Read the voxels; may take long, so call it in a worker.

        Raises
        ------
        VolumeError
            The data cannot be read, or holds NaN, infinite or only equal values.
        """
        from napari_s2dc.volumes.io import check_values

        volume = self.stored._volume(self._read(lambda: np.asarray(self.data)))
        check_values(volume)
        return on_grid(volume, self.shape)

    def sample(self) -> Volume:
        """Read a bounded part of the values, to tell what kind of scan it is.

        Returns
        -------
        Volume
            With the spacing of the level and at most about four million finite values: all of a
            small scan, the coarsest level of a multiscale one, or the middle of three slices.

        Raises
        ------
        VolumeError
            The data cannot be read, or holds no finite value.
        """
        data = self.data if self.overview is None else self.overview
        shape = tuple(int(size) for size in data.shape)

        def middle(size: int) -> slice:
            first = max(0, (size - _SAMPLE_SIDE) // 2)
            return slice(first, first + _SAMPLE_SIDE)

        def read() -> np.ndarray:
            if np.prod(shape, dtype=float) <= _SAMPLE_VOXELS:
                return np.asarray(data)
            places = sorted({shape[0] * quarter // 4 for quarter in (1, 2, 3)})
            slices = [np.asarray(data[z, middle(shape[1]), middle(shape[2])]) for z in places]
            return np.stack(slices)

        array = self._read(read).astype(np.float32)  # a copy, so that holes can be filled
        known = np.isfinite(array)
        if not known.any():
            raise VolumeError(f"Layer {self.name} holds no number that can be used.")
        array[~known] = array[known].min()
        return self._volume(array)

    def _read(self, read: Callable[[], np.ndarray]) -> np.ndarray:
        try:
            return read()
        except MemoryError as error:
            raise VolumeError(
                f"Layer {self.name} does not fit into memory.",
                "Choose a coarser resolution or a region.",
            ) from error
        except Exception as error:  # dask and zarr raise whatever their storage raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise VolumeError(f"The data of layer {self.name} cannot be read: {reason}.") from error

    def _volume(self, array: np.ndarray) -> Volume:
        return Volume(
            array=array.astype(np.float32, copy=False),
            affine=self.affine,
            original=self.original,
            path=self.path,
            name=self.name,
            modality=self.modality,
        )


def volume_from_layer(layer: Layer, level: int = 0) -> Volume:
    """Give the volume a layer shows; the one entry point for every kind of layer data.

    Parameters
    ----------
    layer : napari Image layer
        Three-dimensional; numpy, memory map, dask, zarr or multiscale, of any number type.
    level : int
        Resolution level of a multiscale layer; 0 is the finest.

    Returns
    -------
    Volume
        float32 (z, y, x); positions in mm are those at which napari shows the voxels.

    Raises
    ------
    VolumeError
        One sentence: not a 3D image, or values that cannot be used.
    """
    return snapshot(layer, level).load()


def resolutions_of(layer: Layer | None) -> list[tuple[int, ...]]:
    """Voxels of the levels a layer can be read at, the finest first.

    Those of a multiscale layer; of a large scan its own, then coarser ones, which are made of it.
    Empty for what is no 3D scan.
    """
    if problem_of(layer) or layer is None:
        return []
    if layer.multiscale:
        return [tuple(int(size) for size in data.shape) for data in layer.data]
    shape = tuple(int(size) for size in layer.data.shape)
    spacing_mm = np.linalg.norm(_affine_mm(layer, (1.0, 1.0, 1.0))[:3, :3], axis=0)
    return [shape, *coarser_grids(shape, spacing_mm.tolist())]


def problem_of(layer: Layer | None) -> str:
    """Say in one sentence why a layer cannot be used; empty when it can."""
    if layer is None:
        return "Open or select a 3D image first."
    try:
        _checked(layer)
    except VolumeError as error:
        return str(error)
    return ""


def snapshot(layer: Layer, level: int | tuple[int, int, int] = 0) -> LayerSnapshot:
    """Note what a worker needs of a layer, without reading voxels.

    Parameters
    ----------
    layer : napari layer
        Any layer.
    level : int or tuple of int
        Resolution level of a multiscale layer; or voxels (z, y, x) of a coarser grid that another
        is brought to, such as one of :func:`resolutions_of`.

    Raises
    ------
    VolumeError
        The layer is not one 3D scan, or has no such level.
    """
    levels, number, shape = _checked(layer, level)
    made = level if isinstance(level, tuple) else None
    finest = [float(size) for size in levels[0].shape]
    z, y, x = (whole / part for whole, part in zip(finest, made or shape, strict=True))
    known = layer.metadata.get("s2dc", {})
    path = known.get("path")
    return LayerSnapshot(
        data=levels[number],
        affine=_affine_mm(layer, (z, y, x)),
        name=str(layer.name),
        level=number,
        factors=(z, y, x),
        original=known.get("original") if number == 0 else None,
        path=None if path is None else Path(path),
        modality=known.get("modality"),
        overview=levels[-1] if len(levels) > 1 else None,
        grid=made,
    )


def level_like(layer: Layer, spacing_mm: Sequence[float]) -> int:
    """Resolution level of a layer with voxels most like those of some size in mm, (z, y, x)."""
    if not getattr(layer, "multiscale", False):
        return 0

    def distance(level: int) -> float:
        mine = np.asarray(snapshot(layer, level).spacing_mm)
        return float(np.abs(np.log(mine / np.asarray(spacing_mm))).sum())

    return min(range(len(layer.data)), key=distance)


def _checked(
    layer: Layer, level: int | tuple[int, int, int] = 0
) -> tuple[list[Any], int, tuple[int, ...]]:
    """Give the levels of a layer, which of them is meant, and its shape; as :func:`snapshot`."""
    name = layer.name
    if type_of(layer) != "image":
        raise VolumeError(f"Layer {name} is no image layer.", "Select a 3D image.")
    if layer.rgb:
        raise VolumeError(f"Layer {name} is a colour image; a scan has one value per voxel.")
    levels = list(layer.data) if layer.multiscale else [layer.data]
    made = level if isinstance(level, tuple) else None
    number = 0 if isinstance(level, tuple) else level
    if not 0 <= number < len(levels):
        raise VolumeError(f"Layer {name} has no resolution level {number}.")
    data = levels[number]
    shape = tuple(int(size) for size in data.shape)
    if len(shape) != 3:
        hint = (
            "Open a volume."
            if len(shape) < 3
            else "Show one time point or channel as a layer of its own."
        )
        raise VolumeError(f"Layer {name} has {len(shape)} dimensions; a scan has three.", hint)
    if 0 in shape:
        raise VolumeError(f"Layer {name} is empty.")
    if min(shape) < 2:
        raise VolumeError(f"Layer {name} is one slice of shape {shape}, not a 3D scan.")
    if np.dtype(data.dtype).kind not in "biuf":
        raise VolumeError(f"Layer {name} holds values of type {data.dtype}, not plain numbers.")
    if made is not None and any(new > old for new, old in zip(made, shape, strict=True)):
        raise VolumeError(
            f"Layer {name} has fewer voxels than the resolution that was chosen.",
            "Choose the resolution again.",
        )
    return levels, number, shape


def type_of(layer: Layer) -> str:
    """Kind of a layer in lower case, such as ``image``, by its public class."""
    from napari import layers

    for kind in ("Labels", "Image", "Points", "Shapes", "Surface", "Tracks", "Vectors"):
        if isinstance(layer, getattr(layers, kind)):
            return kind.lower()
    return "other"


def world_matrix(layer: Layer) -> np.ndarray:
    """Matrix (ndim + 1, ndim + 1) from data coordinates of a layer to world coordinates."""
    origin = np.asarray(layer.data_to_world((0.0,) * layer.ndim), dtype=np.float64)
    matrix = np.eye(layer.ndim + 1)
    matrix[:-1, -1] = origin
    for axis, unit in enumerate(np.eye(layer.ndim)):
        matrix[:-1, axis] = np.asarray(layer.data_to_world(tuple(unit))) - origin
    return matrix


def place_mm(layer: Layer) -> np.ndarray:
    """Matrix (4, 4) from voxels of the finest level of a 3D layer to mm."""
    return _affine_mm(layer, (1.0, 1.0, 1.0))


def _affine_mm(layer: Layer, factors: tuple[float, float, float]) -> np.ndarray:
    """Voxel of a level to mm; the file's own where the layer still lies where it was read."""
    matrix = world_matrix(layer)
    stored = layer.metadata.get("s2dc", {}).get("affine")
    if stored is not None and np.shape(stored) == (4, 4):
        stored = np.asarray(stored, dtype=np.float64)
        spacing = np.linalg.norm(stored[:3, :3], axis=0)
        as_read = np.diag([*spacing, 1.0])
        as_read[:3, 3] = stored[:3, 3]
        if np.allclose(matrix, as_read, rtol=1e-4, atol=1e-4):
            matrix = stored.copy()
    else:
        matrix[:3] *= np.asarray([_mm_per_unit(unit) for unit in layer.units])[:, None]
    return matrix @ step_of(factors)


def step_of(factors: tuple[float, float, float]) -> np.ndarray:
    """Voxel i of a coarse level covers level 0 voxels [i * factor, (i + 1) * factor)."""
    step = np.diag([*factors, 1.0])
    step[:3, 3] = (np.asarray(factors) - 1) / 2
    return step


def _mm_per_unit(unit: Any) -> float:
    """Millimetres in one unit of length; 1 for pixels, whose size is not known."""
    try:
        return float((1 * unit).to("millimeter").magnitude)
    except Exception:  # pint raises its own error for units that are no length
        return 1.0
