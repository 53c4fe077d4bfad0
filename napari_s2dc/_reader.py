"""Open scans in napari: files and DICOM folders become layers in mm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.volumes.dicom import is_dicom_file, series_files
from napari_s2dc.volumes.foreground import sample_of
from napari_s2dc.volumes.formats import format_of
from napari_s2dc.volumes.io import is_label_path, read_volume
from napari_s2dc.volumes.preprocess import PRESETS
from napari_s2dc.volumes.segments import segments_in
from napari_s2dc.volumes.volume import Volume

__all__ = ["LayerData", "get_reader", "layer_data", "read_path"]

LayerData = tuple[Any, dict[str, Any], str]


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Say whether these paths can be opened (npe2 reader command).

    Parameters
    ----------
    path : str or list of str
        What the user dropped: a file, a folder, or several.

    Returns
    -------
    callable or None
        :func:`read_path` when every path is a scan; a folder counts when DICOM files lie in it.
    """
    paths = [Path(path)] if isinstance(path, str) else [Path(one) for one in path]
    return read_path if paths and all(_is_ours(one) for one in paths) else None


def _is_ours(path: Path) -> bool:
    if path.is_dir():
        return any(is_dicom_file(file) for file in path.iterdir() if file.is_file())
    return format_of(path) is not None


def read_path(path: str | list[str]) -> list[LayerData]:
    """Read scans as napari layer data.

    Parameters
    ----------
    path : str or list of str
        One scan, or several; each becomes its own layer, and files of one DICOM series one.

    Returns
    -------
    list of tuple
        ``(array, keywords, "image" or "labels")``: array (z, y, x), scale and translate in mm.
        Files whose name or folder says so (``labelsTr``, ``x_seg.nii.gz``) become labels.

    Raises
    ------
    VolumeError
        A file cannot be read or is not a 3D scan.
    """
    paths = [Path(path)] if isinstance(path, str) else [Path(one) for one in path]
    layers = []
    read: set[Path] = set()
    for one in paths:
        if one in read:
            continue
        if len(paths) > 1 and one.is_file() and is_dicom_file(one):
            read.update(piece.path for piece in series_files(one))
        labels = is_label_path(one)
        layers.append(layer_data(read_volume(one, labels=labels), labels=labels))
    return layers


def layer_data(
    volume: Volume, *, labels: bool = False, names: dict[int, str] | None = None
) -> LayerData:
    """Turn a volume into napari layer data, without importing napari.

    Parameters
    ----------
    volume : Volume
        Scan, or label map with integers.
    labels : bool
        Make a labels layer.
    names : dict, optional
        Name of each label, shown in napari's status bar; as a NRRD header has them when left out.

    Returns
    -------
    tuple
        Data, keywords, layer type. The layer lies on an axis-aligned grid, since napari cannot
        slice a turned one in 2D; the true affine of an oblique scan and the grid of its file are
        in ``metadata["s2dc"]``.
    """
    keywords: dict[str, Any] = {
        "name": volume.name,
        "scale": volume.spacing_mm,
        "translate": volume.origin_mm,
        "units": ("mm", "mm", "mm"),
        "axis_labels": ("z", "y", "x"),
        "metadata": {
            "s2dc": {
                "affine": volume.affine,
                "original": volume.original,
                "path": None if volume.path is None else str(volume.path),
                "modality": volume.modality,
            }
        },
    }
    if labels:
        if names is None:
            names = {label: name for label, (name, _) in segments_in(volume).items()}
        if names:
            keywords["features"] = {
                "index": [0, *names],
                "name": ["background", *names.values()],
            }
        return volume.array, keywords, "labels"
    if volume.modality == "ct":
        soft_tissue = PRESETS["ct_soft_tissue"]
        keywords["contrast_limits"] = (soft_tissue.low, soft_tissue.high)
    elif volume.modality == "pet":
        # The bladder or the brain may be ten times as bright as the organs
        sample = sample_of(volume.array)
        high = float(np.percentile(sample[sample > 0], 99.5)) if (sample > 0).any() else 0.0
        if np.isfinite(high) and high > 0:
            keywords["contrast_limits"] = (0.0, high)
    return volume.array, keywords, "image"
