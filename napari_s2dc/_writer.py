"""Save layers as scans: on the grid of the file they came from, or on their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.volume import Volume

__all__ = ["PLACE", "TO_SCAN", "volume_of", "write_layer"]

PLACE = "s2dc_place"
"""Key in the metadata of a copy that is shown elsewhere: geometry of what it is a copy of."""

TO_SCAN = "to_scan"
"""Key in ``metadata["s2dc"]`` of a result on its own grid: matrix of its voxels to the scan's."""

_MM_OF_UNIT = {
    "meter": 1000.0,
    "centimeter": 10.0,
    "millimeter": 1.0,
    "micrometer": 1e-3,
    "micron": 1e-3,
    "nanometer": 1e-6,
}


def write_layer(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Save one Image or Labels layer as NIfTI or NRRD (npe2 writer command).

    Parameters
    ----------
    path : str
        Ends with ``.nii.gz``, ``.nii`` or ``.nrrd``.
    data : array-like
        The layer's data, (z, y, x); the finest level of a multiscale layer is written.
    attributes : dict
        The layer's state as napari hands it to writers.

    Returns
    -------
    list of str
        The file written. A layer that was read from a file, or made on the grid of one, is
        written on that file's grid: same shape, affine and header geometry. Another layer gets
        its own scale, rotation and translation as affine, in mm. A result on a grid of its own lies
        where the file of its scan has it. What is shown side by side is written like what it shows.
        NRRD takes names and colours of classes along.

    Raises
    ------
    VolumeError
        Not a 3D layer, or the file cannot be written.
    """
    from napari_s2dc.volumes.writing import write_volume

    volume = volume_of(data, attributes)
    if volume.original is None:
        # A layer may be turned by any angle; as a file with x first it finds its canonical axes.
        volume = Volume.from_file_array(
            np.transpose(volume.array), volume.affine_ras[:, [2, 1, 0, 3]], name=volume.name
        )
    segments = _segments_of(volume, attributes) if path.lower().endswith(".nrrd") else None
    return [str(write_volume(path, volume.array, volume, segments=segments))]


def _segments_of(labels: Volume, attributes: dict[str, Any]) -> dict[str, str] | None:
    """Header fields with the classes of a Labels layer.

    None where they have no names, or those that the file had from which they were read: its own
    fields say more of them. Classes with a name of that file keep its colour.
    """
    from napari_s2dc.engine.labelled_scans import voxels_of_labels
    from napari_s2dc.volumes.segments import segment_fields, segments_in
    from napari_s2dc.widgets.segment_layers import colours_in, names_in

    names = names_in(attributes.get("features", ()))
    names.pop(0, None)
    if not names:
        return None
    read = segments_in(labels)
    there = set(voxels_of_labels(labels.array)) - {0}
    if there <= set(read) and names == {label: name for label, (name, _) in read.items()}:
        return None
    colours = colours_in(attributes["colormap"], {*names, *there})
    kept = {one: colour for one, (name, colour) in read.items() if names.get(one) == name}
    return segment_fields(
        (label, names.get(label) or f"class {label}", kept.get(label) or colour)
        for label, colour in colours.items()
    )


def volume_of(data: Any, attributes: dict[str, Any]) -> Volume:
    """Make the volume of a layer, with the grid it is to be written on.

    Parameters
    ----------
    data : array-like
        (z, y, x), or the levels of a multiscale layer.
    attributes : dict
        The layer's state.

    Raises
    ------
    VolumeError
        Colour, or another number of dimensions than three.
    """
    name = str(attributes.get("name", "layer"))
    if attributes.get("multiscale"):
        data = data[0]
    if attributes.get("rgb"):
        raise VolumeError(f"Layer {name} is a colour image, which is no scan and cannot be saved.")
    array = np.asarray(data)
    if array.ndim != 3:
        raise VolumeError(
            f"Layer {name} has {array.ndim} dimensions; only 3D layers can be saved as scans."
        )
    metadata = attributes.get("metadata") or {}
    own = _affine_mm({**attributes, **metadata.get(PLACE, {})})
    known = metadata.get("s2dc") or {}
    volume = Volume(array=array, affine=own, name=name)
    stored, original = known.get("affine"), known.get("original")
    if stored is None:
        return volume
    stored = np.asarray(stored, dtype=np.float64)
    # napari shows an oblique scan on an axis-aligned grid; a layer that was moved since is new.
    shown = np.diag([*np.linalg.norm(stored[:3, :3], axis=0), 1.0])
    shown[:3, 3] = stored[:3, 3]
    to_scan = known.get(TO_SCAN)
    if to_scan is not None:
        stored, shown, original = stored @ to_scan, shown @ to_scan, None
    if not np.allclose(own, shown, rtol=1e-4, atol=1e-4):
        return volume
    if original is not None and sorted(original.spatial_shape) == sorted(array.shape):
        return Volume(array=array, affine=stored, original=original, name=name)
    return Volume(array=array, affine=stored, name=name)


def _affine_mm(attributes: dict[str, Any]) -> np.ndarray:
    """(4, 4): voxel (z, y, x) to mm, from a layer's scale, rotation, shear, translation, affine."""
    scale = np.asarray(attributes.get("scale", (1, 1, 1)), dtype=np.float64)[-3:]
    translate = np.asarray(attributes.get("translate", (0, 0, 0)), dtype=np.float64)[-3:]
    rotate = np.asarray(attributes.get("rotate", np.eye(3)), dtype=np.float64)
    shear = np.asarray(attributes.get("shear", (0, 0, 0)), dtype=np.float64)
    if shear.ndim == 1:
        upper = np.eye(3)
        upper[np.triu_indices(3, 1)] = shear
        shear = upper
    inner = np.eye(4)
    inner[:3, :3] = rotate @ shear @ np.diag(scale)
    inner[:3, 3] = translate
    outer = np.asarray(attributes.get("affine", np.eye(4)), dtype=np.float64)
    matrix = outer @ inner
    units = attributes.get("units") or ("millimeter",) * 3
    matrix[:3] *= np.asarray([_MM_OF_UNIT.get(str(unit), 1.0) for unit in units])[:, None]
    return matrix
