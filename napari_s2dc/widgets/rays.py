"""Which voxel a click in the 3D view means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["hit_in_3d"]

_LARGEST_SCAN_SAMPLES = 4096


def hit_in_3d(
    layer: Image, position: Any, view_direction: Any, dims_displayed: Any
) -> tuple[float, float, float] | None:
    """Find the data coordinates that a click in the 3D view means, None beside the scan.

    Parameters
    ----------
    layer : napari Image layer
        Three-dimensional.
    position, view_direction, dims_displayed
        As napari's mouse event has them.

    Notes
    -----
    What the user sees there: the brightest voxel on the ray with maximum projection (the darkest
    with minimum projection), otherwise the first voxel brighter than the middle of the contrast
    limits. Data that does not lie in memory is not read for a click; the middle of the ray counts.
    """
    # The viewer may have more axes than the layer, which has the last three.
    axes = [axis - (len(position) - 3) for axis in dims_displayed]
    if min(axes) < 0:
        return None
    start, end = layer.get_ray_intersections(
        np.asarray(position)[-3:], np.asarray(view_direction)[-3:], axes
    )
    if start is None or end is None:
        return None
    start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    length = int(min(max(2 * np.abs(end - start).max(), 2), _LARGEST_SCAN_SAMPLES))
    points = start + np.linspace(0, 1, length)[:, None] * (end - start)
    data = layer.data
    if layer.multiscale or not isinstance(data, np.ndarray):
        return _triple(points[length // 2])
    voxels = np.rint(points).astype(int)
    inside = ((voxels >= 0) & (voxels < np.asarray(data.shape))).all(axis=1)
    points, voxels = points[inside], voxels[inside]
    if not len(points):
        return None
    values = data[tuple(voxels.T)]
    rendering = str(layer.rendering)
    if rendering == "minip":
        return _triple(points[int(np.argmin(values))])
    if rendering != "mip":
        bright = np.flatnonzero(values > np.mean(layer.contrast_limits))
        if len(bright):
            return _triple(points[bright[0]])
    return _triple(points[int(np.argmax(values))])


def _triple(point: np.ndarray) -> tuple[float, float, float]:
    z, y, x = (float(part) for part in point)
    return z, y, x
