"""Sample data for napari: two labelled phantom torsos, made on the spot."""

from __future__ import annotations

from typing import Literal

from napari_s2dc._reader import LayerData, layer_data
from napari_s2dc.volumes.phantom import LABELS, phantom

__all__ = ["phantom_pair_ct", "phantom_pair_mr"]


def _pair(contrast: Literal["ct", "t1"]) -> list[LayerData]:
    layers = []
    for subject in (1, 2):
        image, labels = phantom(seed=subject, contrast=contrast)
        image.name = f"torso {subject} {contrast.upper()}"
        labels.name = f"torso {subject} labels"
        for layer in (layer_data(image), layer_data(labels, labels=True, names=LABELS)):
            # Both lie at the same place; the second would hide the first.
            layer[1]["visible"] = subject == 1
            layers.append(layer)
    return layers


def phantom_pair_ct() -> list[LayerData]:
    """Two CT-like torsos with their organ labels (npe2 sample data command).

    Returns
    -------
    list of tuple
        Image and labels of two subjects, (z, y, x) in mm.
    """
    return _pair("ct")


def phantom_pair_mr() -> list[LayerData]:
    """Two T1-weighted MR-like torsos with their organ labels (npe2 sample data command).

    Returns
    -------
    list of tuple
        Image and labels of two subjects, (z, y, x) in mm.
    """
    return _pair("t1")
